//! The report: a table for people, `report.json` for machines.
//!
//! Owns: the shape of both. Never: a figure that was not measured; what was not reached is absent.

#![expect(clippy::disallowed_methods, reason = "the observer's own file, outside the simulated core")]

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Context;
use serde::Serialize;

use super::compare::Comparison;
use crate::cli::output;

/// Whether the objectives were met.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Verdict {
    Pass,
    Fail,
}

/// Loss.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Rpo {
    /// Acknowledged writes lost.
    pub(super) writes: u64,
    /// From the acknowledgement of the first lost write to the fault.
    pub(super) seconds: f64,
    /// Bytes of keys and values of the lost writes, about.
    pub(super) bytes: u64,
}

/// Time to recover, in seconds after the fault (or after the restore began).
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Rto {
    pub(super) first_read_s: Option<f64>,
    pub(super) first_write_s: Option<f64>,
    pub(super) sustained_s: Option<f64>,
    pub(super) reprotected_s: Option<f64>,
    /// Parts of it, in seconds.
    pub(super) phases: BTreeMap<String, f64>,
}

/// One scenario's run.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Run {
    pub(super) scenario: String,
    pub(super) mode: String,
    pub(super) seed: u64,
    pub(super) verdict: Verdict,
    pub(super) acked: u64,
    pub(super) rpo: Rpo,
    pub(super) rto: Rto,
    /// Objectives it is held against.
    pub(super) objective_rpo_s: f64,
    pub(super) objective_rto_s: f64,
    pub(super) comparison: Comparison,
    /// What happened when, in seconds since the run began.
    pub(super) timeline: Vec<(f64, String)>,
    /// Why the verdict is what it is, when it is not a pass.
    pub(super) reasons: Vec<String>,
}

/// All runs of one call.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    version: &'static str,
    runs: Vec<Run>,
}

fn seconds(s: Option<f64>) -> String {
    s.map_or_else(|| "-".to_owned(), |s| format!("{s:.2}"))
}

impl Report {
    pub(super) const fn new(runs: Vec<Run>) -> Self {
        Self { version: env!("CARGO_PKG_VERSION"), runs }
    }

    pub(super) fn passed(&self) -> bool {
        !self.runs.is_empty() && self.runs.iter().all(|r| r.verdict == Verdict::Pass)
    }

    /// Writes `report.json` into a directory, which is made.
    pub(super) fn write(&self, dir: &Path) -> anyhow::Result<()> {
        let path = dir.join("report.json");
        let body = serde_json::json!({ "schema": 1, "version": self.version, "runs": self.runs });
        std::fs::create_dir_all(dir)
            .and_then(|()| std::fs::write(&path, format!("{body:#}\n")))
            .with_context(|| format!("cannot write {}", path.display()))
    }

    /// The table, and below it what it has no columns for.
    pub(super) fn table(&self) -> String {
        let head = [
            "SCENARIO",
            "MODE",
            "ACKED",
            "LOST",
            "RPO s",
            "FIRST READ s",
            "FIRST WRITE s",
            "SUSTAINED s",
            "RE-PROTECTED s",
            "VERDICT",
        ];
        let rows = self.runs.iter().map(|r| {
            vec![
                r.scenario.clone(),
                r.mode.clone(),
                r.acked.to_string(),
                r.rpo.writes.to_string(),
                format!("{:.2}", r.rpo.seconds),
                seconds(r.rto.first_read_s),
                seconds(r.rto.first_write_s),
                seconds(r.rto.sustained_s),
                seconds(r.rto.reprotected_s),
                if r.verdict == Verdict::Pass { "pass".to_owned() } else { "FAIL".to_owned() },
            ]
        });
        let mut text = output::table(&head, rows);
        for r in &self.runs {
            if !r.rto.phases.is_empty() {
                let phases: Vec<String> = r.rto.phases.iter().map(|(n, s)| format!("{n} {s:.3}")).collect();
                text.push_str(&format!("\n{}: phases in seconds: {}", r.scenario, phases.join(", ")));
            }
            for reason in &r.reasons {
                text.push_str(&format!("\n{}: {reason}", r.scenario));
            }
        }
        text
    }
}
