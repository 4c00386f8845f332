//! What a drill hands over: a table for people, `report.json` for programs.
//!
//! Owns: the shape of the report. Never: a number that was not measured (absent is `null`).

#![expect(clippy::disallowed_methods, reason = "the drill is an outside observer with a report of its own")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context;
use comfy_table::{Table, presets};
use serde::Serialize;

use super::compare::{Counts, Rpo};
use super::fault::Sabotage;
use super::measure::{Latency, Step};
use super::verdict::{Objectives, Verdict};

/// Version of the report; raised when a field changes meaning or goes away.
const SCHEMA: u32 = 1;
/// A second interruption of at least this many seconds is told in the table.
const NOTABLE_GAP_S: f64 = 1.0;

/// The result of a drill: all its runs.
#[derive(Debug, Serialize)]
pub struct DrillOutcome {
    /// The worst verdict of all runs.
    pub verdict: Verdict,
    /// Version of this binary, which ran the nodes as well.
    pub version: &'static str,
    /// When the drill began, in UTC.
    pub begun: String,
    pub(super) host: Host,
    pub(super) runs: Vec<RunReport>,
    /// Per scenario and mode: runs, losses, and what clean runs prove at most.
    pub(super) summary: Vec<Summary>,
    /// Where the report was written.
    #[serde(skip)]
    pub report: Option<PathBuf>,
}

#[derive(Debug, Serialize)]
pub(super) struct Host {
    pub(super) os: &'static str,
    pub(super) architecture: &'static str,
    pub(super) cpus: usize,
    pub(super) debug_build: bool,
    pub(super) note: &'static str,
}

/// An event on the drill's clock.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Event {
    pub(super) at_s: f64,
    pub(super) event: String,
}

/// The four clocks, in seconds from the fault, and the phases within.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Rto {
    pub(super) first_read_s: Option<f64>,
    pub(super) first_write_s: Option<f64>,
    pub(super) sustained_s: Option<f64>,
    pub(super) reprotected_s: Option<f64>,
    /// Longest time without an acknowledged write after service was sustained, to the end of the load:
    /// nodes that come back must not stop it again.
    pub(super) longest_gap_after_s: Option<f64>,
    pub(super) phases: BTreeMap<&'static str, f64>,
    /// What the clocks start at and who decided.
    pub(super) basis: &'static str,
}

#[derive(Clone, Debug, Serialize)]
pub(super) struct Pitr {
    pub(super) asked_lsn: Option<u64>,
    pub(super) landed_lsn: u64,
    pub(super) landed_time: String,
    pub(super) exact: Option<bool>,
    /// LSN the archive had confirmed at the last look before the fault.
    pub(super) archived_before_lsn: u64,
    pub(super) problems: Vec<String>,
}

#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct LoadReport {
    pub(super) clients: u32,
    pub(super) writes_per_second: u32,
    pub(super) acked_per_second_before: f64,
    pub(super) shed: u64,
    pub(super) latency_before: Option<Latency>,
    pub(super) latency_after: Option<Latency>,
}

#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Dataset {
    pub(super) records: u64,
    pub(super) keys_found: u64,
    pub(super) bytes_found: u64,
    pub(super) archive_objects: u64,
    pub(super) archive_bytes: u64,
}

#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct LedgerReport {
    pub(super) entries: u64,
    pub(super) digest: String,
}

#[derive(Clone, Debug, Serialize)]
pub(super) struct RunReport {
    pub(super) scenario: &'static str,
    pub(super) mode: String,
    pub(super) nodes: u32,
    pub(super) seed: u64,
    pub(super) verdict: Verdict,
    pub(super) reasons: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) sabotage: Option<Sabotage>,
    pub(super) objectives: Objectives,
    pub(super) attempted: u64,
    pub(super) acked: u64,
    pub(super) refused: u64,
    pub(super) unknown: u64,
    pub(super) rpo: Rpo,
    pub(super) rto: Rto,
    pub(super) counts: Counts,
    pub(super) prefix_rule_holds: bool,
    pub(super) holes: u64,
    pub(super) replicas_agree: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) pitr: Option<Pitr>,
    pub(super) load: LoadReport,
    pub(super) dataset: Dataset,
    pub(super) ledger: LedgerReport,
    pub(super) timeline: Vec<Event>,
    pub(super) findings: Vec<String>,
    pub(super) notes: Vec<String>,
    pub(super) series: Vec<Step>,
}

/// What a number of runs of the same kind shows.
#[derive(Debug, Serialize)]
pub(super) struct Summary {
    pub(super) scenario: &'static str,
    pub(super) mode: String,
    pub(super) runs: usize,
    pub(super) runs_with_loss: usize,
    /// 95 % upper bound of the share of runs that lose something, where none did: 3/n.
    pub(super) loss_rate_at_most: Option<f64>,
    pub(super) sustained_median_s: Option<f64>,
    pub(super) sustained_max_s: Option<f64>,
}

/// Sums up runs of the same scenario and mode.
pub(super) fn summary(runs: &[RunReport]) -> Vec<Summary> {
    let mut groups: BTreeMap<(&'static str, &str), Vec<&RunReport>> = BTreeMap::new();
    for run in runs {
        groups.entry((run.scenario, &run.mode)).or_default().push(run);
    }
    let sum = |((scenario, mode), runs): ((&'static str, &str), Vec<&RunReport>)| {
        let with_loss = runs.iter().filter(|r| r.rpo.writes > 0).count();
        let mut sustained: Vec<f64> = runs.iter().filter_map(|r| r.rto.sustained_s).collect();
        sustained.sort_by(f64::total_cmp);
        Summary {
            scenario,
            mode: mode.to_owned(),
            runs: runs.len(),
            runs_with_loss: with_loss,
            loss_rate_at_most: (with_loss == 0).then(|| (3.0 / runs.len() as f64).min(1.0)),
            sustained_median_s: sustained.get(sustained.len() / 2).copied(),
            sustained_max_s: sustained.last().copied(),
        }
    };
    groups.into_iter().map(sum).collect()
}

impl DrillOutcome {
    /// The table and the reasons, for people.
    #[must_use]
    pub fn table(&self) -> String {
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        let head = [
            "scenario",
            "mode",
            "seed",
            "acked",
            "lost",
            "rpo s",
            "first read",
            "first write",
            "sustained",
            "re-protected",
            "verdict",
        ];
        table.set_header(head.map(str::to_uppercase));
        let seconds = |s: Option<f64>| s.map_or_else(|| "-".to_owned(), |s| format!("{s:.2} s"));
        for r in &self.runs {
            table.add_row(vec![
                r.scenario.to_owned(),
                r.mode.clone(),
                r.seed.to_string(),
                r.acked.to_string(),
                r.rpo.writes.to_string(),
                format!("{:.2}", r.rpo.seconds),
                seconds(r.rto.first_read_s),
                seconds(r.rto.first_write_s),
                seconds(r.rto.sustained_s),
                seconds(r.rto.reprotected_s),
                r.verdict.as_str().to_owned(),
            ]);
        }
        let mut out: Vec<String> = table.lines().map(|l| l.trim_end().trim_start_matches(' ').to_owned()).collect();
        for r in &self.runs {
            if let Some(gap) = r.rto.longest_gap_after_s.filter(|s| *s >= NOTABLE_GAP_S) {
                let when = "after service was back, while nodes came back";
                out.push(format!(
                    "{} {} seed {}: no write was acknowledged for {gap:.2} s {when}",
                    r.scenario, r.mode, r.seed
                ));
            }
            let sabotage = r.sabotage.map(|s| format!("sabotaged on purpose ({s:?})"));
            for why in r.reasons.iter().cloned().chain(sabotage) {
                out.push(format!("{} {} seed {}: {why}", r.scenario, r.mode, r.seed));
            }
        }
        for s in &self.summary {
            if let Some(most) = s.loss_rate_at_most.filter(|most| *most < 1.0) {
                let share = most * 100.0;
                out.push(format!(
                    "{} {}: no loss in {} runs, so at most {share:.0} % of runs lose something (95 %)",
                    s.scenario, s.mode, s.runs
                ));
            }
        }
        if let Some(path) = &self.report {
            out.push(format!("report: {}", path.display()));
        }
        out.join("\n")
    }

    /// Writes `report.json` into a directory, which is made if need be.
    pub(super) fn write(&mut self, dir: &Path) -> anyhow::Result<()> {
        #[derive(Serialize)]
        struct Versioned<'a> {
            schema: u32,
            #[serde(flatten)]
            body: &'a DrillOutcome,
        }
        std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let path = dir.join("report.json");
        let text = serde_json::to_vec_pretty(&Versioned { schema: SCHEMA, body: self })?;
        // Whole or not at all: a program may be waiting for the name.
        let partial = dir.join("report.json.partial");
        std::fs::write(&partial, text).with_context(|| format!("cannot write {}", partial.display()))?;
        std::fs::rename(&partial, &path)?;
        self.report = Some(path);
        Ok(())
    }
}
