//! The scenarios: load, fault, recovery, comparison.
//!
//! Owns: the order of events and their stamps. Recovery from a primary's crash is a promotion that
//! the drill asks for by the same call an operator would make, until nodes do it themselves. Never:
//! waits for a log line; only for service seen from outside.

#![expect(clippy::disallowed_methods, reason = "an observer controls real processes, files and time")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use mainstay_client::{Client, Scan};

use super::cluster::{Cluster, Scratch, mainstay};
use super::compare::{Comparison, compare};
use super::ledger::{Ledger, Operation, Outcome};
use super::report::{Rpo, Rto, Run, Verdict};
use super::workload::{Clocks, Load, Since, mark, preload, probe};
use super::{RunArgs, Sabotage, Scenario};
use crate::cli::output;

/// Longest wait for anything that must happen.
const PATIENCE: Duration = Duration::from_secs(120);

/// What a run collects on its way.
struct Course {
    scenario: Scenario,
    since: Since,
    timeline: Vec<(f64, String)>,
    rto: Rto,
    /// Microseconds since the drill began, when the fault struck.
    fault_us: u64,
    comparison: Comparison,
    operations: Vec<Operation>,
    /// Whether any acknowledged write may be missing at all.
    may_lose: bool,
}

impl Course {
    fn note(&mut self, what: impl Into<String>) {
        let (at, what) = (self.since.us() as f64 / 1e6, what.into());
        output::say(format!("[{} {at:7.2}s] {what}", self.scenario.name()));
        self.timeline.push((at, what));
    }

    fn phase(&mut self, name: &str, seconds: f64) {
        self.rto.phases.insert(name.to_owned(), seconds);
    }

    fn clocks(&mut self, clocks: Clocks) {
        self.rto.first_read_s = clocks.first_read;
        self.rto.first_write_s = clocks.first_write;
        self.rto.sustained_s = clocks.sustained;
    }
}

/// Runs one scenario to its verdict.
pub(super) async fn run(scenario: Scenario, args: &RunArgs) -> Run {
    let mut course = Course {
        scenario,
        since: Since::start(),
        timeline: Vec::new(),
        rto: Rto::default(),
        fault_us: 0,
        comparison: Comparison::default(),
        operations: Vec::new(),
        may_lose: false,
    };
    let mut reasons = Vec::new();
    let ran = match Scratch::new(scenario.name(), args.keep) {
        Err(e) => Err(e),
        Ok(scratch) => match scenario {
            Scenario::PrimaryCrash => primary_crash(&mut course, args, &scratch).await,
            Scenario::FatFinger => fat_finger(&mut course, args, &scratch).await,
            Scenario::RegionLoss => region_loss(&mut course, args, &scratch).await,
            Scenario::All => Err(anyhow::anyhow!("not a scenario of its own")),
        },
    };
    if let Err(e) = ran {
        reasons.push(format!("the run did not come to its end: {e:#}"));
    }
    verdict(course, args, reasons)
}

fn verdict(course: Course, args: &RunArgs, mut reasons: Vec<String>) -> Run {
    let c = &course.comparison;
    let lost_bytes = c.lost * 220;
    let seconds = c.first_lost_reply_us.map_or(0.0, |t| course.fault_us.saturating_sub(t) as f64 / 1e6);
    if c.acked == 0 {
        reasons.push("no write was acknowledged, so nothing was tested".into());
    }
    if c.phantom + c.wrong + c.resurrected > 0 && !(course.may_lose && c.phantom + c.wrong == 0) {
        reasons.push(format!(
            "{} keys nobody wrote, {} wrong values, {} deletes undone",
            c.phantom, c.wrong, c.resurrected
        ));
    }
    if c.lost > 0 && !course.may_lose {
        reasons.push(format!("{} acknowledged writes lost; this mode and scenario allow none", c.lost));
    }
    if !c.prefix_holds {
        reasons.push("what is left is no prefix of what was acknowledged: there is a hole".into());
    }
    if seconds > args.rpo {
        reasons.push(format!("RPO {seconds:.2} s is over the objective of {} s", args.rpo));
    }
    match course.rto.sustained_s {
        Some(s) if s <= args.rto => {}
        Some(s) => reasons.push(format!("RTO {s:.2} s is over the objective of {} s", args.rto)),
        None => reasons.push("service was not sustained again".into()),
    }
    if course.rto.reprotected_s.is_none() && course.scenario != Scenario::FatFinger {
        reasons.push("redundancy was not restored".into());
    }
    let passed = reasons.is_empty();
    if !passed {
        reasons.extend(c.examples.iter().cloned());
    }
    Run {
        scenario: course.scenario.name().to_owned(),
        mode: args.mode.to_string(),
        seed: args.seed,
        verdict: if passed { Verdict::Pass } else { Verdict::Fail },
        acked: c.acked,
        rpo: Rpo { writes: c.lost, seconds, bytes: lost_bytes },
        rto: course.rto,
        objective_rpo_s: args.rpo,
        objective_rto_s: args.rto,
        comparison: course.comparison,
        timeline: course.timeline,
        reasons,
    }
}

/// Everything a client can see, but for the probe's own key: keys and marks.
async fn read_all(endpoints: &[String]) -> anyhow::Result<BTreeMap<String, String>> {
    let client = Client::connect(endpoints)?;
    let mut entries = client.scan(Scan::all()).await?;
    let mut all = BTreeMap::new();
    while let Some(e) = entries.next().await? {
        let key = String::from_utf8_lossy(&e.key).into_owned();
        if !key.starts_with("s/") {
            all.insert(key, mark(&e.value));
        }
    }
    Ok(all)
}

async fn sabotage(course: &mut Course, args: &RunArgs, endpoints: &[String]) -> anyhow::Result<()> {
    let client = Client::connect(endpoints)?;
    match args.sabotage {
        Some(Sabotage::LoseAcked) => {
            let key = "d/00000001";
            client.delete(key).await?;
            course.note(format!("sabotage: deleted {key} behind the ledger's back"));
        }
        Some(Sabotage::AddPhantom) => {
            client.put("u/phantom", "x:").await?;
            course.note("sabotage: wrote a key that the ledger does not know");
        }
        Some(Sabotage::DropArchiveObject) | None => {}
    }
    Ok(())
}

struct Started {
    cluster: Cluster,
    endpoints: Vec<String>,
    preloaded: BTreeMap<String, String>,
    ledger: Arc<Ledger>,
}

async fn start(
    course: &mut Course,
    args: &RunArgs,
    scratch: &Scratch,
    bucket: Option<&str>,
) -> anyhow::Result<Started> {
    let mut cluster = Cluster::new(&scratch.path, 3, &args.mode.to_string(), bucket)?;
    cluster.start_all()?;
    let endpoints = cluster.endpoints();
    let client = Client::connect(&endpoints)?;
    let preloaded = preload(&client, args).await.context("loading the first records")?;
    course.note(format!("three nodes run in mode {}, {} records are loaded", args.mode, preloaded.len()));
    let ledger = Arc::new(Ledger::create(&scratch.path.join("ledger.jsonl"))?);
    Ok(Started { cluster, endpoints, preloaded, ledger })
}

async fn settle(course: &mut Course, load: Load, ledger: &Ledger) -> anyhow::Result<()> {
    load.stop().await?;
    record(course, ledger);
    Ok(())
}

fn record(course: &mut Course, ledger: &Ledger) {
    course.operations = ledger.operations();
    let acked = course.operations.iter().filter(|o| matches!(o.outcome, Outcome::Acked { .. })).count();
    course.note(format!("load ended: {} writes attempted, {acked} acknowledged", course.operations.len()));
}

async fn primary_crash(course: &mut Course, args: &RunArgs, scratch: &Scratch) -> anyhow::Result<()> {
    let Started { mut cluster, endpoints, preloaded, ledger } = start(course, args, scratch, None).await?;
    let load = Load::start(&endpoints, args, &ledger, course.since)?;
    tokio::time::sleep(Duration::from_secs(args.seconds)).await;
    let fault = Instant::now();
    course.fault_us = course.since.us();
    cluster.kill(1);
    course.note("SIGKILL of node 1, the primary, under load");
    let watching = tokio::spawn({
        let endpoints = endpoints.clone();
        async move { probe(&endpoints, fault, PATIENCE).await }
    });
    let promoted = promote_best(course, args, &endpoints, fault).await?;
    let clocks = watching.await??;
    course.phase("redirect", clocks.first_write.map_or(0.0, |w| (w - promoted).max(0.0)));
    course.clocks(clocks);
    course.note("reads and writes are sustained again");
    tokio::time::sleep(Duration::from_secs(1)).await;
    settle(course, load, &ledger).await?;
    cluster.start(1)?;
    protected(&endpoints, 3).await.context("waiting for node 1 to follow again")?;
    course.rto.reprotected_s = Some(fault.elapsed().as_secs_f64());
    course.note("node 1 is back as a replica and holds everything committed");
    sabotage(course, args, &endpoints).await?;
    let found = read_all(&endpoints).await?;
    course.may_lose = args.mode == mainstay_replication::rule::Mode::Async;
    course.comparison = compare(&course.operations, &preloaded, u64::MAX, &found);
    Ok(())
}

/// Detects that the primary is gone, chooses the survivor with the newest log, asks it to lead.
/// Returns seconds after the fault.
async fn promote_best(
    course: &mut Course,
    args: &RunArgs,
    endpoints: &[String],
    fault: Instant,
) -> anyhow::Result<f64> {
    let client = Client::builder().endpoints(endpoints).timeout(Duration::from_secs(15)).connect()?;
    let (dead, survivors) = endpoints.split_first().context("no nodes")?;
    while client.status(dead).await.is_ok() {
        if fault.elapsed() > PATIENCE {
            bail!("the primary still answers");
        }
    }
    let detected = fault.elapsed().as_secs_f64();
    course.phase("detect", detected);
    let mut best = None;
    for endpoint in survivors {
        if let Ok(s) = client.status(endpoint).await {
            best = best.max(Some((s.last_epoch, s.durable_lsn, endpoint)));
        }
    }
    let (_, lsn, endpoint) = best.context("no survivor answers")?;
    let decided = fault.elapsed().as_secs_f64();
    course.phase("decide", decided - detected);
    let accept_loss = args.mode == mainstay_replication::rule::Mode::Async;
    let reign = client.promote(endpoint, accept_loss).await.context("promotion")?;
    let promoted = fault.elapsed().as_secs_f64();
    course.phase("promote", promoted - decided);
    course.note(format!("promoted the survivor whose log reaches LSN {lsn}; epoch {} began", reign.epoch));
    Ok(promoted)
}

/// Waits until a primary has `nodes - 1` replicas that hold everything it has committed.
async fn protected(endpoints: &[String], nodes: usize) -> anyhow::Result<()> {
    let client = Client::connect(endpoints)?;
    let end = Instant::now() + PATIENCE;
    loop {
        for (_, status) in client.status_all().await {
            if let Ok(s) = status
                && s.role == "primary"
                && s.peers.iter().filter(|p| p.connected && p.durable_lsn >= s.commit_lsn).count() + 1 >= nodes
            {
                return Ok(());
            }
        }
        if Instant::now() > end {
            bail!("not all replicas caught up within {} s", PATIENCE.as_secs());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn fat_finger(course: &mut Course, args: &RunArgs, scratch: &Scratch) -> anyhow::Result<()> {
    let bucket = scratch.bucket();
    let Started { mut cluster, endpoints, preloaded, ledger } = start(course, args, scratch, Some(&bucket)).await?;
    mainstay(&["backup", "create", "--endpoints", &endpoints.join(",")]).await.context("base backup")?;
    course.note("base backup taken");
    let load = Load::start(&endpoints, args, &ledger, course.since)?;
    tokio::time::sleep(Duration::from_secs(args.seconds)).await;
    settle(course, load, &ledger).await?;
    let client = Client::connect(&endpoints)?;
    let good = client.put("s/last-good", "s:").await?.lsn;
    let tenth = args.preload / 10;
    let (from, to) = ("d/00000000".to_owned(), format!("d/{tenth:08}"));
    course.fault_us = course.since.us();
    let bad = client.write(mainstay_client::Write::new().delete_range(from.as_str(), to.as_str())).await?;
    course.note(format!("deleted {tenth} records by mistake at LSN {}; the last good write is LSN {good}", bad.lsn));
    for i in 0..50 {
        client.put(format!("u/after/{i}"), "x:").await?;
    }
    client.wait_archived().await.context("archiving")?;
    drop_archive_object(course, args, scratch, Some(good))?;
    let begun = Instant::now();
    let restored = scratch.path.join("restored");
    let landed = restore(course, &bucket, &restored, &["--to-lsn", &good.to_string()]).await?;
    if landed != good {
        bail!("the restore landed on LSN {landed}, asked for {good}");
    }
    cluster.kill_all();
    let mut one = Cluster::new(&scratch.path, 1, "async", None)?;
    if let Some(node) = one.nodes.first_mut() {
        node.data = restored;
    }
    one.start(1)?;
    let clocks = probe(&one.endpoints(), begun, PATIENCE).await?;
    course.clocks(clocks);
    course.note("the restored node serves");
    sabotage(course, args, &one.endpoints()).await?;
    let found = read_all(&one.endpoints()).await?;
    course.comparison = compare(&course.operations, &preloaded, good, &found);
    Ok(())
}

fn drop_archive_object(
    course: &mut Course,
    args: &RunArgs,
    scratch: &Scratch,
    holds: Option<u64>,
) -> anyhow::Result<()> {
    if args.sabotage != Some(Sabotage::DropArchiveObject) {
        return Ok(());
    }
    let mut stack = vec![scratch.path.join("bucket").join("wal")];
    let mut objects = Vec::new();
    while let Some(dir) = stack.pop() {
        for entry in std::fs::read_dir(dir)? {
            let path = entry?.path();
            if path.is_dir() { stack.push(path) } else { objects.push(path) }
        }
    }
    objects.sort_unstable();
    let covers = |path: &&std::path::PathBuf| {
        let name = path.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
        let range = name
            .split_once('-')
            .and_then(|(a, b)| Some((u64::from_str_radix(a, 16).ok()?, u64::from_str_radix(b, 16).ok()?)));
        range.zip(holds).is_some_and(|((a, b), lsn)| (a..=b).contains(&lsn))
    };
    let victim = objects.iter().find(covers).or_else(|| objects.iter().rev().nth(1)).context("too few log objects")?;
    std::fs::remove_file(victim)?;
    course.note("sabotage: removed a log object from the bucket");
    Ok(())
}

/// Restores into `dir` by the command an operator would use; returns the LSN it landed on.
async fn restore(course: &mut Course, bucket: &str, dir: &std::path::Path, target: &[&str]) -> anyhow::Result<u64> {
    let data = dir.display().to_string();
    let mut args = vec!["restore", "--repository", bucket, "--data", &data, "-o", "json"];
    args.extend(target);
    let out = mainstay(&args).await?;
    let report: serde_json::Value = serde_json::from_str(&out).context("reading the restore's report")?;
    let lsn = report.get("lsn").and_then(serde_json::Value::as_u64).context("the restore says no LSN")?;
    for (name, seconds) in report.get("phases").and_then(|p| p.as_object()).into_iter().flatten() {
        course.phase(name, seconds.as_f64().unwrap_or_default());
    }
    let records = report.get("records").and_then(serde_json::Value::as_u64).unwrap_or_default();
    course.note(format!("restored to LSN {lsn}, {records} records replayed"));
    Ok(lsn)
}

async fn region_loss(course: &mut Course, args: &RunArgs, scratch: &Scratch) -> anyhow::Result<()> {
    let bucket = scratch.bucket();
    let Started { mut cluster, endpoints, preloaded, ledger } = start(course, args, scratch, Some(&bucket)).await?;
    mainstay(&["backup", "create", "--endpoints", &endpoints.join(",")]).await.context("base backup")?;
    course.note("base backup taken");
    let load = Load::start(&endpoints, args, &ledger, course.since)?;
    tokio::time::sleep(Duration::from_secs(args.seconds)).await;
    let fault = Instant::now();
    course.fault_us = course.since.us();
    cluster.kill_all();
    for node in &cluster.nodes {
        std::fs::remove_dir_all(&node.data).with_context(|| format!("removing {}", node.data.display()))?;
    }
    course.note("SIGKILL of all nodes, all data directories removed");
    // The clients notice in their own time; the restore does not wait for them.
    let ending = tokio::spawn(load.stop());
    drop_archive_object(course, args, scratch, None)?;
    let data = cluster.nodes.first().context("no nodes")?.data.clone();
    restore(course, &bucket, &data, &["--to-latest"]).await?;
    ending.await??;
    record(course, &ledger);
    let restored = Instant::now();
    cluster.start_all()?;
    let clocks = probe(&endpoints, fault, PATIENCE).await?;
    course.phase("start", restored.elapsed().as_secs_f64());
    course.clocks(clocks);
    course.note("three new nodes serve what the bucket held");
    protected(&endpoints, 3).await?;
    Client::connect(&endpoints)?.wait_archived().await.context("archiving the new timeline")?;
    course.rto.reprotected_s = Some(fault.elapsed().as_secs_f64());
    course.note("replicas are seeded, the new timeline is archived");
    sabotage(course, args, &endpoints).await?;
    let found = read_all(&endpoints).await?;
    course.may_lose = true;
    course.comparison = compare(&course.operations, &preloaded, u64::MAX, &found);
    Ok(())
}
