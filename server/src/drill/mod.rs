//! `mainstay drill`: build a scratch cluster, hurt it, let it recover, and report what was lost and
//! how long it took.
//!
//! Owns: the measurement, seen from outside: real child processes, the client library, a ledger of
//! its own. Never: internals of a node (it would share the bugs it is to find), never a live
//! directory or bucket.

mod cluster;
mod compare;
mod ledger;
mod report;
mod scenario;
mod workload;

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use mainstay_replication::rule::Mode;

use crate::cli::output::{self, Format};
use crate::codes::Exit;

/// Inject faults into a scratch cluster and report measured RPO and RTO
#[derive(Debug, Subcommand)]
pub enum DrillCommand {
    /// Run a scenario, or all of them
    #[command(after_help = "\
Examples:
  mainstay drill run all
  mainstay drill run primary-crash --mode sync --seconds 10
  mainstay drill run region-loss --report ./evidence -o json

Everything happens in a scratch directory with processes on loopback; nothing of yours is touched.
Exit code 0: all objectives met; 4: one was not.")]
    Run(RunArgs),
    /// List the scenarios
    #[command(after_help = "Examples:\n  mainstay drill list")]
    List,
}

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Scenario {
    /// The primary is killed under load
    PrimaryCrash,
    /// A tenth of the data is deleted by mistake; restore to the moment before
    FatFinger,
    /// Every node and its disk is lost under load; restore from the bucket
    RegionLoss,
    /// All of them, one after the other
    All,
}

impl Scenario {
    const EACH: [Scenario; 3] = [Scenario::PrimaryCrash, Scenario::FatFinger, Scenario::RegionLoss];

    const fn name(self) -> &'static str {
        match self {
            Scenario::PrimaryCrash => "primary-crash",
            Scenario::FatFinger => "fat-finger",
            Scenario::RegionLoss => "region-loss",
            Scenario::All => "all",
        }
    }

    const fn what(self) -> &'static str {
        match self {
            Scenario::PrimaryCrash => "SIGKILL of the primary under load; the drill promotes the best replica",
            Scenario::FatFinger => "a tenth of the data is deleted; restore to the write before, compare exactly",
            Scenario::RegionLoss => "SIGKILL of all nodes, all data directories removed; restore from the bucket",
            Scenario::All => "all of them",
        }
    }
}

/// A rule broken on purpose, to show that a drill can fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Sabotage {
    /// Delete an acknowledged key behind the drill's back, before it reads back
    LoseAcked,
    /// Write a key that the ledger does not know
    AddPhantom,
    /// Remove a log object from the bucket before the restore
    DropArchiveObject,
}

/// How to run a drill.
#[derive(Clone, Debug, Args)]
pub struct RunArgs {
    /// The scenario
    #[arg(value_enum)]
    pub scenario: Scenario,
    /// When a write is committed: sync, quorum, semi-sync:K, async
    #[arg(long, default_value = "quorum")]
    pub mode: Mode,
    /// Client tasks
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=256))]
    pub clients: u32,
    /// Writes a second, all clients together; sent when due, whatever became of earlier ones
    #[arg(long, default_value_t = 400, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub rate: u32,
    /// Seconds of load before the fault
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub seconds: u64,
    /// Records loaded before the load begins
    #[arg(long, default_value_t = 5000, value_parser = clap::value_parser!(u32).range(10..=10_000_000))]
    pub preload: u32,
    /// Seed of keys, values and operations
    #[arg(long, default_value_t = 42)]
    pub seed: u64,
    /// Objective: most seconds of acknowledged writes that may be lost
    #[arg(long, default_value_t = 5.0, value_name = "SECONDS")]
    pub rpo: f64,
    /// Objective: most seconds until reads and writes are sustained again
    #[arg(long, default_value_t = 60.0, value_name = "SECONDS")]
    pub rto: f64,
    /// Directory for report.json
    #[arg(long, value_name = "DIR")]
    pub report: Option<PathBuf>,
    /// Keep the scratch directory
    #[arg(long)]
    pub keep: bool,
    /// Break a rule on purpose
    #[arg(long, value_enum, hide = true)]
    pub sabotage: Option<Sabotage>,
}

/// Runs the command.
///
/// # Errors
/// What kept a drill from starting; a drill that ran badly is a verdict, not an error.
pub async fn run(format: Format, command: DrillCommand) -> anyhow::Result<Exit> {
    match command {
        DrillCommand::List => {
            let rows = Scenario::EACH.map(|s| (s.name(), s.what()));
            output::print(format, &serde_json::json!({ "scenarios": rows }), || {
                output::table(&["SCENARIO", "WHAT HAPPENS"], rows.map(|(n, w)| vec![n.to_owned(), w.to_owned()]))
            })?;
            Ok(Exit::Ok)
        }
        DrillCommand::Run(args) => {
            let scenarios = if args.scenario == Scenario::All { Scenario::EACH.to_vec() } else { vec![args.scenario] };
            let mut runs = Vec::new();
            for scenario in scenarios {
                runs.push(scenario::run(scenario, &args).await);
            }
            let report = report::Report::new(runs);
            if let Some(dir) = &args.report {
                report.write(dir)?;
            }
            output::print(format, &report, || report.table())?;
            Ok(if report.passed() { Exit::Ok } else { Exit::NegativeVerdict })
        }
    }
}
