//! An operator deletes a tenth of the data; the state just before comes back, exactly.
//!
//! Owns: the steps. The clocks start with the restore: how long people need to notice is theirs.
//! Never: an approximate comparison; a missing key and an extra key both fail.

use anyhow::{Context, bail};

use super::{Aftermath, STEP_PATIENCE, Stage};
use crate::drill::cluster::{Cluster, Shape, run_json, until};
use crate::drill::fault::{Sabotage, drop_archive_object, lose_acked};
use crate::drill::ledger::fnv;
use crate::drill::workload::{Plan, connect, preload_key};

/// Written to the restored node to see that it takes writes; not part of the comparison.
const CANARY: &str = "zzz/drill-canary";

pub(super) async fn play(stage: &mut Stage<'_>) -> anyhow::Result<Aftermath> {
    let (mut cluster, client) = stage.build().await?;
    let endpoints = cluster.endpoints();
    let quarter = stage.args.duration / 4;
    let base = base_backup(stage, &endpoints).await?;
    let load = stage.steady(&endpoints, quarter * 2).await?;
    load.stop().await;
    let last_good = stage.work.once(&client, &[Plan::Put("good/last".to_owned())]).await?;
    let target = last_good.context("the last good write was not acknowledged")?.lsn;
    stage.mark(format!("the last good write is at LSN {target}"));

    let (start, end) = (preload_key(0), preload_key(stage.args.records.div_ceil(10)));
    stage.mark(format!("an operator deletes {start}..{end}"));
    stage.work.once(&client, &[Plan::DeleteRange(start.clone(), end)]).await?.context("the delete was refused")?;
    let load = stage.load(&endpoints)?;
    tokio::time::sleep(quarter).await;
    load.stop().await;
    if client.get(start.clone()).await?.is_some() {
        bail!("{start} was deleted and can still be read");
    }
    stage.last_look(&client).await?;
    let archived = client.wait_archived().await?;
    stage.mark(format!("archived up to LSN {archived}"));
    if stage.args.sabotage == Some(Sabotage::DropArchiveObject) {
        let gone = drop_archive_object(&stage.scratch.bucket(), base)?;
        stage.note(format!("sabotage: removed {gone}"));
    }

    let fault_us = stage.fault(format!("restore to LSN {target} begins")).await?;
    stage.rto.basis = "from the start of the restore; noticing and deciding are people's";
    let text = target.to_string();
    // The old cluster lives on: the two must not meet.
    let data = stage.restore(&["--to-lsn", &text, "--new-cluster"], Some(target), true).await?;
    let shape = Shape { nodes: 1, mode: None, repository: None, ..stage.shape("single") };
    let mut single = Cluster::new(&stage.scratch, &shape, Some(data))?;
    let starting = stage.clock.us();
    single.start().await?;
    let restored = connect(&single.endpoints())?;
    let key = preload_key(0);
    let read = || async { restored.get(key.clone()).await.ok().flatten() };
    let first = until(&format!("{key} on the restored node"), STEP_PATIENCE, read).await?;
    let read_us = stage.mark(format!("{key} can be read again ({:016x})", fnv(&first.value)));
    restored.put(CANARY, "x").await.context("the restored node takes no writes")?;
    let write_us = stage.mark("the restored node takes writes");
    stage.rto.first_read_s = Some((read_us - fault_us) as f64 / 1e6);
    stage.rto.first_write_s = Some((write_us - fault_us) as f64 / 1e6);
    stage.rto.phases.insert("start", (read_us - starting) as f64 / 1e6);

    if stage.args.sabotage == Some(Sabotage::LoseAcked) {
        lose_acked(&restored, &key).await?;
    }
    let (mut found, _) = stage.read_back(&restored).await?;
    found.remove(CANARY);
    stage.check_processes(&mut single);
    stage.check_processes(&mut cluster);
    Ok(Aftermath { found, upto: Some(target) })
}

/// Takes a base backup by the command line; returns its LSN.
pub(super) async fn base_backup(stage: &mut Stage<'_>, endpoints: &[String]) -> anyhow::Result<u64> {
    let (said, _) = run_json(&["backup", "create", "--endpoints", &endpoints.join(",")]).await?;
    let lsn = said.get("lsn").and_then(serde_json::Value::as_u64).context("`mainstay backup create` names no LSN")?;
    stage.mark(format!("base backup at LSN {lsn}"));
    Ok(lsn)
}
