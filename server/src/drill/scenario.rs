//! One run: the stage that all scenarios share, and the judgement at its end.
//!
//! Owns: the order of a run (cluster, data set, load, fault, recovery, reading back, comparing) as
//! far as it is common, and what becomes of errors: before the fault they end the drill, after it
//! they are a negative verdict. Never: a look into a node; only the client library, process control
//! and this binary's own subcommands.

mod fat_finger;
mod primary_crash;
mod region_loss;

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use mainstay_client::{Client, Consistency, ReadOptions, Scan};
use serde_json::Value;

use super::cluster::{Cluster, LOOK_EVERY, Scratch, Shape, until};
use super::compare::{Contents, Found, Question, compare, rpo};
use super::fault::{Sabotage, archive_size};
use super::ledger::{self, Entry, Ledger, Recorded, Told};
use super::measure::{Clock, Kind, latency, longest_gap, rate, series, sustained};
use super::report::{Dataset, Event, LedgerReport, LoadReport, Pitr, Rto, RunReport};
use super::verdict::{Allowed, Facts, Objectives, Verdict, judge};
use super::voice::Voice;
use super::workload::{Load, Workload, connect};
use super::{DrillArgs, Scenario};

/// Longest wait for a step that is not a recovery.
const STEP_PATIENCE: Duration = Duration::from_secs(60);

/// The parts of a run, and what it leaves behind.
struct Stage<'a> {
    args: &'a DrillArgs,
    scenario: Scenario,
    mode: String,
    scratch: Scratch,
    repository: String,
    clock: Clock,
    work: Arc<Workload>,
    voice: &'a Voice,
    timeline: Vec<Event>,
    notes: Vec<String>,
    broken: Vec<String>,
    skipped: Vec<String>,
    fault_us: Option<u64>,
    baseline: f64,
    rto: Rto,
    pitr: Option<Pitr>,
    replicas_agree: Option<bool>,
    /// LSN the archive had confirmed at the last look before the fault.
    archived_before: u64,
    /// Last epoch before the fault.
    epoch_before: u64,
}

/// What a scenario read back, and by which question it is judged.
struct Aftermath {
    found: Contents,
    upto: Option<u64>,
}

/// Runs one scenario once.
///
/// # Errors
/// What went wrong before the fault, or with the observer itself.
pub(super) async fn run_once(
    args: &DrillArgs,
    scenario: Scenario,
    mode: &str,
    seed: u64,
    voice: &Voice,
) -> anyhow::Result<RunReport> {
    let parent = args.dir.clone().unwrap_or_else(std::env::temp_dir);
    let scratch = Scratch::new(&parent, args.keep)?;
    let ledger = Ledger::create(&scratch.join("ledger"))?;
    let clock = Clock::start();
    let mut stage = Stage {
        args,
        scenario,
        mode: mode.to_owned(),
        repository: scratch.repository()?,
        scratch,
        clock,
        work: Workload::new(clock, ledger, seed, args.records),
        voice,
        timeline: Vec::new(),
        notes: Vec::new(),
        broken: Vec::new(),
        skipped: Vec::new(),
        fault_us: None,
        baseline: 0.0,
        rto: Rto::default(),
        pitr: None,
        replicas_agree: None,
        archived_before: 0,
        epoch_before: 0,
    };
    if args.keep {
        stage.note(format!("kept: {}", stage.scratch.path().display()));
    }
    let played = match scenario {
        Scenario::PrimaryCrash => primary_crash::play(&mut stage).await,
        Scenario::FatFinger => fat_finger::play(&mut stage).await,
        Scenario::RegionLoss => region_loss::play(&mut stage).await,
    };
    stage.work.check()?;
    let aftermath = match played {
        Ok(aftermath) => aftermath,
        Err(e) if stage.fault_us.is_some() => {
            stage.broken.push(format!("{e:#}"));
            stage.notes.push("nothing was read back, so every acknowledged write counts as lost".to_owned());
            Aftermath { found: Contents::new(), upto: None }
        }
        Err(e) => return Err(e.context(format!("drill {} {mode} did not get as far as the fault", scenario.as_str()))),
    };
    stage.judge(seed, aftermath)
}

impl Stage<'_> {
    fn mark(&mut self, text: impl Into<String>) -> u64 {
        let (at_us, event) = (self.clock.us(), text.into());
        let at_s = at_us as f64 / 1e6;
        self.voice.line(format!("{} {}: {at_s:>6.2} s  {event}", self.scenario.as_str(), self.mode));
        self.timeline.push(Event { at_s, event });
        at_us
    }

    fn note(&mut self, text: String) {
        self.voice.line(format!("{} {}: {text}", self.scenario.as_str(), self.mode));
        self.notes.push(text);
    }

    /// Stamps the fault, which comes right after.
    async fn fault(&mut self, text: impl Into<String>) -> anyhow::Result<u64> {
        let what = text.into();
        let at_us = self.clock.us();
        self.work.ledger.record(&Entry::Mark { at_us, what: what.clone() }).await?;
        let at_us = self.mark(what);
        self.fault_us = Some(at_us);
        Ok(at_us)
    }

    /// Seconds from the fault to a stamp.
    fn since_fault(&self, at_us: u64) -> f64 {
        at_us.saturating_sub(self.fault_us.unwrap_or(0)) as f64 / 1e6
    }

    fn shape(&self, name: &str) -> Shape {
        Shape {
            name: name.to_owned(),
            nodes: self.args.nodes,
            mode: Some(self.mode.clone()),
            repository: Some(self.repository.clone()),
            archive_interval_ms: self.args.archive_interval_ms,
        }
    }

    /// A cluster in full strength with the data set in it.
    async fn build(&mut self) -> anyhow::Result<(Cluster, Client)> {
        let mut cluster = Cluster::new(&self.scratch, &self.shape("node"), None)?;
        cluster.start().await?;
        let client = connect(&cluster.endpoints())?;
        super::cluster::full_strength(&client, self.args.nodes, true, STEP_PATIENCE).await?;
        self.mark(format!("{} nodes are up in mode {}, archiving", self.args.nodes, self.mode));
        self.work.preload(&client).await?;
        self.mark(format!("{} records are loaded", self.args.records));
        if self.args.sabotage == Some(Sabotage::SkipLedgerWrites) {
            self.work.forget_some();
        }
        Ok((cluster, client))
    }

    fn load(&self, endpoints: &[String]) -> anyhow::Result<Load> {
        Load::start(&self.work, endpoints, self.args.clients, self.args.writes_per_second)
    }

    /// Steady load for a while; its rate becomes the baseline. Returns the running load.
    async fn steady(&mut self, endpoints: &[String], how_long: Duration) -> anyhow::Result<Load> {
        let load = self.load(endpoints)?;
        let begun = self.mark(format!("load: {} clients, {} writes/s", self.args.clients, self.args.writes_per_second));
        tokio::time::sleep(how_long).await;
        self.work.check()?;
        let now = self.clock.us();
        // The first quarter is warm-up.
        self.baseline = rate(&self.work.samples(), begun + (now - begun) / 4, now);
        self.mark(format!("{:.0} writes/s are acknowledged", self.baseline));
        if self.baseline < 0.5 * f64::from(self.args.writes_per_second) {
            let text =
                format!("only {:.0} writes/s came through; the load was below what was asked for", self.baseline);
            self.skipped.push(text);
        }
        Ok(load)
    }

    /// Last look at the primary before the fault: who it is, what is archived.
    async fn last_look(&mut self, client: &Client) -> anyhow::Result<(String, u64)> {
        let (addr, status) = until("a primary", STEP_PATIENCE, || super::cluster::primary(client)).await?;
        self.epoch_before = status.epoch;
        self.archived_before = status.archived_lsn;
        Ok((addr, status.node_id))
    }

    /// Waits for sustained service and stamps the clocks that the samples give.
    async fn await_sustained(&mut self, since_us: u64) -> Option<u64> {
        let patience = Duration::from_secs_f64(self.args.rto_seconds.max(30.0) * 2.0);
        let looked =
            until("sustained service", patience, || async { sustained(&self.work.samples(), since_us, self.baseline) });
        let at = looked.await.ok()?;
        self.rto.sustained_s = Some(self.since_fault(at));
        self.mark("service is sustained");
        Some(at)
    }

    /// Ends the load; says whether service stopped again after it had been sustained.
    async fn end_load(&mut self, load: Load) {
        let end_us = self.clock.us();
        load.stop().await;
        self.mark("load has ended");
        let (Some(sustained_s), Some(fault_us)) = (self.rto.sustained_s, self.fault_us) else { return };
        let from_us = fault_us + (sustained_s * 1e6) as u64;
        let gap_s = longest_gap(&self.work.samples(), from_us, end_us.max(from_us)) as f64 / 1e6;
        self.rto.longest_gap_after_s = Some(gap_s);
        if gap_s > self.args.rto_seconds {
            self.broken.push(format!("service was back and stopped again for {gap_s:.2} s"));
        }
    }

    /// Reads everything from the primary.
    async fn read_back(&mut self, client: &Client) -> anyhow::Result<(Contents, u64)> {
        let begun = self.mark("reading everything back");
        let (found, lsn) = read_all(client, ReadOptions::default()).await.context("reading everything back")?;
        self.rto.phases.insert("verify", (self.clock.us() - begun) as f64 / 1e6);
        Ok((found, lsn))
    }

    /// Every other node must show what the primary shows.
    async fn compare_replicas(&mut self, cluster: &Cluster, found: &Contents, lsn: u64) -> anyhow::Result<()> {
        let stale = ReadOptions { consistency: Consistency::Stale, at_lsn: 0 };
        let mut agree = true;
        for node in &cluster.nodes {
            let client = connect(std::slice::from_ref(&node.client))?;
            let applied =
                || async { client.status(&node.client).await.ok().filter(|s| s.applied_lsn >= lsn).map(drop) };
            until(&format!("node {} to apply LSN {lsn}", node.id), STEP_PATIENCE, applied).await?;
            let (theirs, _) = read_all(&client, stale).await?;
            if theirs != *found {
                agree = false;
                let differ = found.iter().filter(|(k, v)| theirs.get(*k) != Some(*v)).count();
                let (id, has, more) = (node.id, theirs.len(), found.len());
                self.broken.push(format!("node {id} shows {has} keys, the primary {more}; {differ} of these differ"));
            }
        }
        self.replicas_agree = Some(agree);
        Ok(())
    }

    /// A node that ends on its own is a failure, whatever the others do.
    fn check_processes(&mut self, cluster: &mut Cluster) {
        for id in cluster.fallen() {
            self.broken.push(format!("node {id} ended although nobody killed it"));
        }
    }

    /// `mainstay restore` as a child; its words become phases and the landing.
    async fn restore(
        &mut self,
        target: &[&str],
        asked: Option<u64>,
        exact_only: bool,
    ) -> anyhow::Result<std::path::PathBuf> {
        let data = self.scratch.join("restored");
        let data_text = data.display().to_string();
        let mut args = vec!["restore", "--repository", &self.repository, "--data", &data_text];
        args.extend(target);
        let begun = self.clock.us();
        let (said, warned) = super::cluster::run_json(&args).await?;
        let total = (self.clock.us() - begun) as f64 / 1e6;
        let number = |name: &str| said.get(name).and_then(Value::as_u64);
        let landed = number("lsn").context("`mainstay restore` does not say where it landed")?;
        let mut inside = 0.0;
        for phase in ["locate", "fetch", "replay", "open"] {
            if let Some(s) = said.get("phases").and_then(|p| p.get(phase)).and_then(Value::as_f64) {
                self.rto.phases.insert(phase, s);
                inside += s;
            }
        }
        self.rto.phases.insert("restore_process", (total - inside).max(0.0));
        let problems: Vec<String> =
            said.get("plan").and_then(|p| p.get("problems")).and_then(Value::as_array).map_or_else(Vec::new, |all| {
                all.iter().map(|p| p.as_str().map_or_else(|| p.to_string(), str::to_owned)).collect()
            });
        self.mark(format!("restored to LSN {landed} in {total:.2} s"));
        if warned || !problems.is_empty() {
            self.broken.push(format!("the restore warned: {}", problems.join("; ")));
        }
        if let Some(asked) = asked.filter(|a| exact_only && *a != landed) {
            self.broken.push(format!("LSN {asked} was asked for, the restore landed at {landed}"));
        }
        let landed_time = said.get("commit_time").and_then(Value::as_str).unwrap_or_default().to_owned();
        let archived_before_lsn = self.archived_before;
        self.pitr = Some(Pitr {
            asked_lsn: asked,
            landed_lsn: landed,
            landed_time,
            exact: None,
            archived_before_lsn,
            problems,
        });
        Ok(data)
    }

    fn allowed(&self) -> Allowed {
        match self.scenario {
            Scenario::PrimaryCrash if self.mode == "async" => Allowed::Tail,
            Scenario::PrimaryCrash | Scenario::FatFinger => Allowed::Nothing,
            Scenario::RegionLoss => Allowed::Tail,
        }
    }

    fn judge(mut self, seed: u64, aftermath: Aftermath) -> anyhow::Result<RunReport> {
        let recorded = ledger::read(self.work.ledger.path())?;
        let fault_us = self.fault_us.unwrap_or(u64::MAX);
        let Aftermath { found, upto } = aftermath;
        let question = Question { seed, upto, epoch_before: self.epoch_before };
        let compared = compare(&recorded.attempts, &found, question);
        let rpo = rpo(&recorded.attempts, &compared, fault_us);
        let objectives = Objectives {
            allowed_loss: self.allowed(),
            rpo_seconds: self.args.rpo_seconds,
            rto_seconds: self.args.rto_seconds,
        };
        if let Some(pitr) = &mut self.pitr {
            let c = &compared.counts;
            pitr.exact = upto.map(|_| c.lost + c.phantom + c.wrong + c.torn + c.resurrected == 0);
        }
        let acked_before_fault =
            recorded.attempts.iter().filter(|a| a.acked().is_some() && a.replied_us <= fault_us).count() as u64;
        let facts = Facts {
            acked_before_fault,
            counts: compared.counts.clone(),
            rpo: rpo.clone(),
            prefix_rule_holds: compared.prefix_rule_holds(),
            // Where there is load after the recovery, being back means sustained.
            rto_s: match self.scenario {
                Scenario::FatFinger => self.rto.first_write_s,
                Scenario::PrimaryCrash | Scenario::RegionLoss => self.rto.sustained_s,
            },
            broken: std::mem::take(&mut self.broken),
            skipped: std::mem::take(&mut self.skipped),
        };
        let (verdict, reasons) = judge(&objectives, &facts);
        self.mark(format!("verdict: {}", verdict.as_str()));
        self.keep_evidence(verdict, seed);
        let (attempted, acked, refused, unknown) = tally(&recorded);
        Ok(RunReport {
            scenario: self.scenario.as_str(),
            nodes: self.args.nodes,
            seed,
            verdict,
            reasons,
            sabotage: self.args.sabotage,
            objectives,
            attempted,
            acked,
            refused,
            unknown,
            rpo,
            counts: compared.counts.clone(),
            prefix_rule_holds: compared.prefix_rule_holds(),
            holes: compared.holes,
            replicas_agree: self.replicas_agree,
            pitr: self.pitr.take(),
            load: self.load_report(fault_us),
            dataset: self.dataset(&found),
            ledger: LedgerReport { entries: recorded.entries, digest: format!("{:016x}", recorded.digest) },
            findings: compared.findings,
            series: series(&self.work.samples()),
            rto: self.rto,
            mode: self.mode,
            timeline: self.timeline,
            notes: self.notes,
        })
    }

    /// After a run that did not pass: ledger and logs go beside the report.
    fn keep_evidence(&mut self, verdict: Verdict, seed: u64) {
        let Some(report) = self.args.report.as_ref().filter(|_| verdict != Verdict::Pass) else { return };
        let mode = self.mode.replace(':', "-");
        let to = report.join(format!("evidence-{}-{mode}-seed{seed}", self.scenario.as_str()));
        match self.scratch.save_evidence(&to) {
            Ok(()) => self.note(format!("ledger and logs: {}", to.display())),
            Err(e) => self.note(format!("ledger and logs could not be kept: {e:#}")),
        }
    }

    fn load_report(&self, fault_us: u64) -> LoadReport {
        let samples = self.work.samples();
        LoadReport {
            clients: self.args.clients,
            writes_per_second: self.args.writes_per_second,
            acked_per_second_before: self.baseline,
            shed: samples.iter().filter(|s| s.kind == Kind::Shed).count() as u64,
            latency_before: latency(&samples, 0, fault_us.saturating_sub(1)),
            latency_after: latency(&samples, fault_us, u64::MAX),
        }
    }

    fn dataset(&self, found: &Contents) -> Dataset {
        let (archive_objects, archive_bytes) = archive_size(&self.scratch.bucket());
        Dataset {
            records: self.args.records,
            keys_found: found.len() as u64,
            bytes_found: found.iter().map(|(k, f)| (k.len() + f.value.len()) as u64).sum(),
            archive_objects,
            archive_bytes,
        }
    }
}

fn tally(recorded: &Recorded) -> (u64, u64, u64, u64) {
    let count = |f: fn(&Told) -> bool| recorded.attempts.iter().filter(|a| f(&a.told)).count() as u64;
    let acked = count(|t| matches!(t, Told::Acked { .. }));
    let refused = count(|t| matches!(t, Told::Refused { .. }));
    (recorded.attempts.len() as u64, acked, refused, count(|t| matches!(t, Told::Unknown { .. })))
}

/// Everything, by one scan; started again when it breaks off.
async fn read_all(client: &Client, options: ReadOptions) -> anyhow::Result<(Contents, u64)> {
    let mut last = None;
    for _ in 0..5 {
        match try_read_all(client, options).await {
            Ok(all) => return Ok(all),
            Err(e) => last = Some(e),
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Err(last.map_or_else(|| anyhow::anyhow!("nothing was read"), anyhow::Error::new))
}

async fn try_read_all(client: &Client, options: ReadOptions) -> mainstay_client::Result<(Contents, u64)> {
    let mut entries = client.scan(Scan::all().read(options)).await?;
    let mut found = Contents::new();
    while let Some(e) = entries.next().await? {
        // Keys of the drill are ASCII; any other key must still be seen, as a phantom.
        found.insert(String::from_utf8_lossy(&e.key).into_owned(), Found { value: e.value, version: e.version });
    }
    Ok((found, entries.lsn()))
}
