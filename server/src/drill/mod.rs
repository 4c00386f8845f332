//! `mainstay drill`: break a scratch cluster on purpose, let it recover, prove what was lost and how
//! long it took.
//!
//! Owns: flags, the list of scenarios, the order of runs. A drill is an outside observer: it sees
//! the cluster only through the client library, process control and this binary's own subcommands,
//! and believes only its own ledger. Never: a live cluster, directory or bucket.

mod cluster;
mod compare;
mod fault;
mod ledger;
mod measure;
pub mod ports;
mod report;
mod scenario;
mod verdict;
mod voice;
mod workload;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::bail;
use clap::{Args, Subcommand, ValueEnum};
use jiff::{SignedDuration, Timestamp};
use mainstay_replication::rule::Mode;
use serde_json::json;

use crate::cli::output::{self, Format};
use crate::codes::Exit;

pub use fault::Sabotage;
pub use report::DrillOutcome;
pub use verdict::Verdict;

/// Prove RPO and RTO on a scratch cluster
#[derive(Debug, Subcommand)]
#[command(after_help = "\
Examples:
  mainstay drill run all --report ./report
  mainstay drill run primary-crash --mode quorum,async --repeat 5
  mainstay drill list")]
pub enum DrillCommand {
    /// Run scenarios; exit code 0 pass, 3 partial, 4 fail
    Run(Box<DrillArgs>),
    /// Show the scenarios
    #[command(after_help = "Examples:\n  mainstay drill list\n  mainstay drill list -o json")]
    List,
}

/// What can be run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Choice {
    /// The primary dies under load, a survivor takes over
    PrimaryCrash,
    /// A tenth of the data is deleted by mistake, the state before is restored exactly
    FatFinger,
    /// All nodes and disks are lost, the cluster is restored from the bucket
    RegionLoss,
    /// One after the other
    All,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scenario {
    PrimaryCrash,
    FatFinger,
    RegionLoss,
}

impl Scenario {
    const ALL: [Scenario; 3] = [Scenario::PrimaryCrash, Scenario::FatFinger, Scenario::RegionLoss];

    const fn as_str(self) -> &'static str {
        match self {
            Scenario::PrimaryCrash => "primary-crash",
            Scenario::FatFinger => "fat-finger",
            Scenario::RegionLoss => "region-loss",
        }
    }
}

/// Run scenarios on a scratch cluster of this machine
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Examples:
  mainstay drill run primary-crash
  mainstay drill run all --mode quorum --report ./report
  mainstay drill run region-loss --archive-interval-ms 250 --rpo-seconds 1 -o json

Everything happens in a new directory that is removed at the end; no live cluster is touched.
Exit codes: 0 all runs pass, 3 something could not be checked, 4 something that must hold did not.")]
pub struct DrillArgs {
    /// What to run
    #[arg(value_enum)]
    pub scenario: Choice,
    /// Replication modes, separated by commas: sync, quorum, semi-sync:K, async
    #[arg(long, default_value = "quorum", value_delimiter = ',', value_name = "MODE")]
    pub mode: Vec<String>,
    /// Nodes of the scratch cluster
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=9), value_name = "N")]
    pub nodes: u32,
    /// Clients that write
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=256), value_name = "N")]
    pub clients: u32,
    /// Writes per second of all clients together, on a timetable
    #[arg(long, default_value_t = 400, value_parser = clap::value_parser!(u32).range(1..=100_000), value_name = "N")]
    pub writes_per_second: u32,
    /// Time under load of one run, half of it before the fault; recovery comes on top
    #[arg(long, default_value = "10s", value_parser = duration, value_name = "DURATION")]
    pub duration: Duration,
    /// Records loaded first, of about 500 bytes
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u64).range(100..=10_000_000), value_name = "N")]
    pub records: u64,
    /// Keys, values and the mix of writes follow from it; repeated runs count on from it
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub seed: u64,
    /// Runs of each scenario and mode
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000), value_name = "N")]
    pub repeat: u32,
    /// Write report.json into this directory
    #[arg(long, value_name = "DIR")]
    pub report: Option<PathBuf>,
    /// Where the scratch directory is made [default: the system's directory for temporary files]
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// Keep the scratch directory
    #[arg(long)]
    pub keep: bool,
    /// Objective: acknowledged writes of at most this many seconds may be lost, where loss is allowed at all
    #[arg(long, default_value_t = 5.0, value_parser = seconds, value_name = "SECONDS")]
    pub rpo_seconds: f64,
    /// Objective: service is back within this many seconds
    #[arg(long, default_value_t = 60.0, value_parser = seconds, value_name = "SECONDS")]
    pub rto_seconds: f64,
    /// Longest time a committed record waits for its archive object
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(10..=600_000), value_name = "MS")]
    pub archive_interval_ms: u64,
    /// Negative control: make the run fail in a known way
    #[arg(long, value_enum, hide = true, value_name = "WAY")]
    pub sabotage: Option<Sabotage>,
}

fn duration(text: &str) -> Result<Duration, String> {
    let parsed: Result<SignedDuration, _> = text.parse();
    let positive = parsed.ok().and_then(|d| Duration::try_from(d).ok()).filter(|d| *d >= Duration::from_secs(2));
    positive.ok_or_else(|| "expected a duration of at least 2 s, such as 10s or 2m".to_owned())
}

fn seconds(text: &str) -> Result<f64, String> {
    let parsed = text.trim_end_matches('s').parse().ok().filter(|s: &f64| s.is_finite() && *s >= 0.0);
    parsed.ok_or_else(|| "expected a number of seconds, such as 5 or 0.5".to_owned())
}

impl DrillArgs {
    fn scenarios(&self) -> Vec<Scenario> {
        match self.scenario {
            Choice::PrimaryCrash => vec![Scenario::PrimaryCrash],
            Choice::FatFinger => vec![Scenario::FatFinger],
            Choice::RegionLoss => vec![Scenario::RegionLoss],
            Choice::All => Scenario::ALL.to_vec(),
        }
    }

    /// Refuses what could only fail later, or would prove nothing.
    fn check(&self) -> anyhow::Result<()> {
        let scenarios = self.scenarios();
        for mode in &self.mode {
            mode.parse::<Mode>().map_err(|e| anyhow::anyhow!("--mode {mode}: {e}"))?;
            if self.nodes == 1 && mode != "async" {
                bail!("--mode {mode} needs more than one node");
            }
        }
        if scenarios.contains(&Scenario::PrimaryCrash) && self.nodes < 3 {
            bail!("primary-crash needs at least 3 nodes: with fewer no survivor can prove that it may lead");
        }
        if self.sabotage == Some(Sabotage::DropArchiveObject) && scenarios.contains(&Scenario::PrimaryCrash) {
            bail!("--sabotage drop-archive-object has no effect on primary-crash, which restores nothing");
        }
        Ok(())
    }
}

/// The scenarios and what they prove, one line each.
fn list() -> Vec<[&'static str; 3]> {
    vec![
        [
            "primary-crash",
            "SIGKILL to the primary under load",
            "no acknowledged write is lost (async: at most the RPO objective)",
        ],
        ["fat-finger", "a range delete of a tenth of the data", "the state before it is restored exactly, to the LSN"],
        [
            "region-loss",
            "all nodes and their disks are gone",
            "the bucket alone brings the cluster back, but for the archive's lag",
        ],
    ]
}

/// Runs the command and prints its outcome.
///
/// # Errors
/// As [`drill`].
pub async fn run(format: Format, command: DrillCommand) -> anyhow::Result<Exit> {
    let DrillCommand::Run(args) = command else {
        let rows = list();
        let body: Vec<_> = rows
            .iter()
            .map(|[name, fault, holds]| json!({ "name": name, "fault": fault, "must_hold": holds }))
            .collect();
        output::print(format, &json!({ "scenarios": body }), || {
            let cells = rows.iter().map(|r| r.iter().map(|c| (*c).to_owned()).collect());
            output::table(&["scenario", "fault", "must hold"], cells)
        })?;
        return Ok(Exit::Ok);
    };
    let outcome = drill(*args).await?;
    output::print(format, &outcome, || outcome.table())?;
    Ok(match outcome.verdict {
        Verdict::Pass => Exit::Ok,
        Verdict::Partial => Exit::Warnings,
        Verdict::Fail => Exit::NegativeVerdict,
    })
}

/// Runs what the flags ask for.
///
/// # Errors
/// Flags that make no sense, a cluster that does not get as far as the fault, an observer that fails.
pub async fn drill(args: DrillArgs) -> anyhow::Result<DrillOutcome> {
    args.check()?;
    let begun = Timestamp::now().to_string();
    let voice = voice::Voice::new();
    let mut runs = Vec::new();
    for scenario in args.scenarios() {
        for mode in &args.mode {
            for n in 0..u64::from(args.repeat) {
                let seed = args.seed.wrapping_add(n);
                let one = scenario::run_once(&args, scenario, mode, seed, &voice);
                tokio::select! {
                    run = one => runs.push(run?),
                    // Dropping the run kills its nodes, which would otherwise outlive this process.
                    () = terminated() => bail!("stopped by SIGTERM; the scratch nodes are killed"),
                }
            }
        }
    }
    drop(voice);
    let mut outcome = DrillOutcome {
        verdict: runs.iter().map(|r| r.verdict).max().unwrap_or(Verdict::Partial),
        version: env!("CARGO_PKG_VERSION"),
        begun,
        host: report::Host {
            os: std::env::consts::OS,
            architecture: std::env::consts::ARCH,
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            debug_build: cfg!(debug_assertions),
            note: "all nodes, clients, ledger and bucket share one machine, its disk and its loopback",
        },
        summary: report::summary(&runs),
        runs,
        report: None,
    };
    if let Some(dir) = &args.report {
        outcome.write(dir)?;
    }
    Ok(outcome)
}

async fn terminated() {
    use tokio::signal::unix::{SignalKind, signal};
    match signal(SignalKind::terminate()) {
        Ok(mut term) => drop(term.recv().await),
        Err(_) => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Just {
        #[command(flatten)]
        args: DrillArgs,
    }

    fn parse(flags: &[&str]) -> anyhow::Result<DrillArgs> {
        let args = Just::try_parse_from([&["x"], flags].concat())?.args;
        args.check()?;
        Ok(args)
    }

    #[test]
    fn flags_that_prove_nothing_are_refused() {
        let all = parse(&["all", "--mode", "quorum,async,semi-sync:1", "--duration", "4s"]).unwrap();
        assert_eq!((all.mode.len(), all.scenarios().len()), (3, 3));
        for bad in [
            &["all", "--mode", "eventual"][..],
            &["primary-crash", "--nodes", "2"],
            &["fat-finger", "--nodes", "1"],
            &["fat-finger", "--duration", "1s"],
            &["all", "--sabotage", "drop-archive-object"],
            &["fat-finger", "--rpo-seconds", "-1"],
            &["nothing"],
        ] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
        assert!(parse(&["region-loss", "--sabotage", "drop-archive-object"]).is_ok());
    }
}
