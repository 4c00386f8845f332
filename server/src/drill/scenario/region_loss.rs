//! All nodes and their disks are gone; what is left is the bucket.
//!
//! Owns: the steps. Never: anything of the lost nodes; the new cluster starts from the bucket alone.

use std::time::Duration;

use anyhow::Context;

use super::fat_finger::base_backup;
use super::{Aftermath, STEP_PATIENCE, Stage};
use crate::drill::cluster::{Cluster, full_strength, primary, until};
use crate::drill::fault::{Sabotage, drop_archive_object, lose_acked, lose_region};
use crate::drill::measure::{Kind, first};
use crate::drill::workload::{connect, preload_key};

pub(super) async fn play(stage: &mut Stage<'_>) -> anyhow::Result<Aftermath> {
    let (mut cluster, client) = stage.build().await?;
    let endpoints = cluster.endpoints();
    let base = base_backup(stage, &endpoints).await?;
    let half = stage.args.duration / 2;
    let load = stage.steady(&endpoints, half).await?;
    stage.last_look(&client).await?;

    let fault_us = stage.fault("SIGKILL to all nodes, their directories are removed").await?;
    stage.rto.basis = "from SIGKILL; restore and restart begin at once, by the drill";
    lose_region(&mut cluster).await?;
    let killed_us = stage.clock.us();
    // What is under way fails on its own; nobody waits for it.
    let ending = tokio::spawn(load.stop());
    if stage.args.sabotage == Some(Sabotage::DropArchiveObject) {
        let gone = drop_archive_object(&stage.scratch.bucket(), base)?;
        stage.note(format!("sabotage: removed {gone}"));
    }
    let data = stage.restore(&["--to-latest"], None, false).await?;
    if let Some(pitr) = &stage.pitr
        && pitr.landed_lsn < stage.archived_before
    {
        let (landed, archived) = (pitr.landed_lsn, stage.archived_before);
        stage.broken.push(format!("LSN {archived} was archived before the fault, the restore landed at {landed}"));
    }

    let starting = stage.clock.us();
    let mut fresh = Cluster::new(&stage.scratch, &stage.shape("fresh"), Some(data))?;
    fresh.start().await?;
    let endpoints = fresh.endpoints();
    let client = connect(&endpoints)?;
    let load = stage.load(&endpoints)?;
    let (_, status) = until("the restored node to lead", STEP_PATIENCE, || primary(&client)).await?;
    let led = stage.mark(format!("node {} leads epoch {}", status.node_id, status.epoch));
    stage.rto.phases.insert("start", (led - starting) as f64 / 1e6);

    stage.await_sustained(killed_us.max(starting)).await;
    let samples = stage.work.samples();
    let stamp = |at: Option<u64>| at.map(|at| at.saturating_sub(fault_us) as f64 / 1e6);
    stage.rto.first_read_s = stamp(first(&samples, Kind::Read, killed_us));
    stage.rto.first_write_s = stamp(first(&samples, Kind::Write, killed_us));
    match full_strength(&client, stage.args.nodes, true, STEP_PATIENCE).await {
        Ok(_) => {
            let at = stage.mark("the other nodes are seeded and stream, the archive has caught up");
            stage.rto.reprotected_s = Some(stage.since_fault(at));
        }
        Err(e) => stage.broken.push(format!("not protected again: {e:#}")),
    }
    let rest = half.saturating_sub(Duration::from_micros(stage.clock.us() - led));
    tokio::time::sleep(rest).await;
    stage.end_load(load).await;
    ending.await.context("the load of before did not end")?;

    if stage.args.sabotage == Some(Sabotage::LoseAcked) {
        lose_acked(&client, &preload_key(0)).await?;
    }
    let (found, lsn) = stage.read_back(&client).await?;
    stage.compare_replicas(&fresh, &found, lsn).await?;
    stage.check_processes(&mut fresh);
    Ok(Aftermath { found, upto: None })
}
