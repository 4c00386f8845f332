//! The primary's process dies under load; a survivor takes over; the dead one comes back.
//!
//! Owns: the steps. The drill stands in for whoever watches the cluster: it notices, decides and
//! promotes, unless the cluster does so by itself. Never: promoting without proof, unless the mode
//! promises none.

use std::time::Duration;

use anyhow::{Context, bail};
use mainstay_client::{Client, StatusResponse};

use super::{Aftermath, STEP_PATIENCE, Stage};
use crate::drill::cluster::{Cluster, LOOK_EVERY, full_strength};
use crate::drill::fault::{Sabotage, lose_acked};
use crate::drill::measure::{Kind, first, first_failure, first_write_of_epoch_after};
use crate::drill::workload::preload_key;

/// How often the drill asks the primary whether it lives, and how many silences make it dead.
const WATCH_EVERY: Duration = Duration::from_millis(100);
const SILENCES: u32 = 3;

pub(super) async fn play(stage: &mut Stage<'_>) -> anyhow::Result<Aftermath> {
    let (mut cluster, client) = stage.build().await?;
    let half = stage.args.duration / 2;
    let load = stage.steady(&cluster.endpoints(), half).await?;
    let (addr, id) = stage.last_look(&client).await?;
    let id = u32::try_from(id)?;

    let fault_us = stage.fault(format!("SIGKILL to node {id}, the primary of epoch {}", stage.epoch_before)).await?;
    cluster.node(id)?.kill().await?;
    let killed_us = stage.clock.us();
    take_over(stage, &cluster, &client, id, &addr).await?;

    stage.await_sustained(killed_us).await;
    let samples = stage.work.samples();
    let stamp = |at: Option<u64>| at.map(|at| at.saturating_sub(fault_us) as f64 / 1e6);
    stage.rto.first_read_s = stamp(first(&samples, Kind::Read, killed_us));
    // Acknowledged in a later epoch: not by the dead one's last breath.
    stage.rto.first_write_s = stamp(first_write_of_epoch_after(&samples, stage.epoch_before));
    if let Some(s) = stamp(first_failure(&samples, fault_us)) {
        stage.rto.phases.insert("clients_notice", s);
    }
    if let Some(write_s) = stage.rto.first_write_s {
        let before: f64 = ["detect", "decide", "promote"].iter().filter_map(|p| stage.rto.phases.get(p)).sum();
        stage.rto.phases.insert("redirect", (write_s - before).max(0.0));
    }

    let restarted = stage.mark(format!("node {id} starts again"));
    cluster.node(id)?.start().await?;
    match full_strength(&client, stage.args.nodes, true, STEP_PATIENCE).await {
        Ok(_) => {
            let at = stage.mark("all nodes stream, the archive has caught up");
            stage.rto.reprotected_s = Some(stage.since_fault(at));
            stage.rto.phases.insert("reprotect", (at - restarted) as f64 / 1e6);
        }
        Err(e) => stage.broken.push(format!("not protected again: {e:#}")),
    }
    let rest = half.saturating_sub(Duration::from_micros(stage.clock.us() - fault_us));
    tokio::time::sleep(rest).await;
    stage.end_load(load).await;

    if stage.args.sabotage == Some(Sabotage::LoseAcked) {
        lose_acked(&client, &preload_key(0)).await?;
    }
    let (found, lsn) = stage.read_back(&client).await?;
    stage.compare_replicas(&cluster, &found, lsn).await?;
    stage.check_processes(&mut cluster);
    Ok(Aftermath { found, upto: None })
}

/// Detect, decide, promote.
async fn take_over(
    stage: &mut Stage<'_>,
    cluster: &Cluster,
    client: &Client,
    dead: u32,
    dead_addr: &str,
) -> anyhow::Result<()> {
    let mut silent = 0;
    while silent < SILENCES {
        let asked = tokio::time::timeout(WATCH_EVERY * 3, client.status(dead_addr)).await;
        silent = if matches!(asked, Ok(Ok(_))) { 0 } else { silent + 1 };
        tokio::time::sleep(WATCH_EVERY).await;
    }
    let noticed = stage.mark("the drill's monitor finds the primary dead");
    stage.rto.phases.insert("detect", stage.since_fault(noticed));

    let end = tokio::time::Instant::now() + STEP_PATIENCE;
    loop {
        let survivors = survivors(cluster, client, dead).await;
        if let Some((addr, s)) = survivors.iter().find(|(_, s)| s.role == "primary" && s.epoch > stage.epoch_before) {
            let at = stage.mark(format!("{addr} took over by itself, in epoch {}", s.epoch));
            stage.rto.phases.insert("decide", (at - noticed) as f64 / 1e6);
            stage.rto.phases.insert("promote", 0.0);
            stage.rto.basis = "from SIGKILL; failover by the cluster";
            return Ok(());
        }
        let Some((addr, best)) = survivors.into_iter().max_by_key(|(_, s)| (s.last_epoch, s.durable_lsn)) else {
            bail!("no survivor answers");
        };
        let decided = stage.mark(format!("node {} has the newest log: LSN {}", best.node_id, best.durable_lsn));
        stage.rto.phases.insert("decide", (decided - noticed) as f64 / 1e6);
        let refused = match promote(stage, client, &addr).await {
            Ok(epoch) => {
                let at = stage.mark(format!("node {} leads epoch {epoch}", best.node_id));
                stage.rto.phases.insert("promote", (at - decided) as f64 / 1e6);
                stage.rto.basis = "from SIGKILL; detection and promotion by the drill's monitor";
                return Ok(());
            }
            Err(e) => e,
        };
        if tokio::time::Instant::now() >= end {
            return Err(refused.context("no survivor could be promoted"));
        }
        stage.note(format!("not promoted: {refused:#}"));
        tokio::time::sleep(LOOK_EVERY * 5).await;
    }
}

async fn survivors(cluster: &Cluster, client: &Client, dead: u32) -> Vec<(String, StatusResponse)> {
    let asked = cluster.nodes.iter().filter(|n| n.id != dead).map(|n| async {
        let status = client.status(&n.client).await.ok()?;
        Some((n.client.clone(), status))
    });
    futures::future::join_all(asked).await.into_iter().flatten().collect()
}

async fn promote(stage: &mut Stage<'_>, client: &Client, addr: &str) -> anyhow::Result<u64> {
    match client.promote(addr, false, &[]).await {
        Ok(p) => Ok(p.epoch),
        Err(e) if stage.mode == "async" && e.code() == "NOT_PROMOTED" => {
            stage.note(format!("mode async proves nothing ({e}); the loss is accepted, as an operator would"));
            Ok(client.promote(addr, true, &[]).await.context("promoting with --accept-loss")?.epoch)
        }
        Err(e) => Err(e.into()),
    }
}
