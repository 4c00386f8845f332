//! Figures: what is printed of a run, and the table of ratios.
//!
//! Owns: medians, and against whom a ratio is. Never: measuring.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde::{Deserialize, Serialize};

/// One engine's figures in one workload.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Line {
    pub engine: String,
    pub workload: String,
    pub round: u32,
    pub ops: u64,
    pub seconds: f64,
    pub ops_per_second: f64,
    /// Latency of a sample of the operations, in microseconds.
    pub p50_us: f64,
    pub p99_us: f64,
    pub p999_us: f64,
    /// What a write survives when its call returns.
    pub durability: String,
    pub keys: u64,
    pub value_bytes: usize,
    /// Bytes of the store's files after the workload; those of them that hold superseded versions for reads of the past;
    /// and by how much the others are more than keys and values would be at the same compression. 0 where it was not measured.
    pub disk_bytes: u64,
    pub history_bytes: u64,
    pub space_amplification: f64,
    /// Most memory of the process so far, in MiB.
    pub rss_mib: u64,
    /// Memory of the process at the end of the workload, in MiB.
    pub rss_now_mib: u64,
    /// What the engine says of its own work.
    pub notes: String,
    /// Writes a second of the thread that wrote beside the readers; 0 where none did.
    pub writes_beside: f64,
    /// Sustained: the worst second's operations as a part of the median second's.
    pub worst_second: f64,
}

impl Line {
    /// The line for people.
    pub fn shown(&self) -> String {
        let mut out = format!(
            "{:<18} {:<17} {:>11.0} op/s  p50 {:>8.1}  p99 {:>8.1}  p99.9 {:>8.1} us  {:>5}/{} MiB",
            self.engine,
            self.workload,
            self.ops_per_second,
            self.p50_us,
            self.p99_us,
            self.p999_us,
            self.rss_now_mib,
            self.rss_mib
        );
        if self.disk_bytes > 0 {
            let _ = write!(out, "  {} MiB on disk", self.disk_bytes >> 20);
        }
        if self.history_bytes > 0 {
            let _ = write!(out, ", {} MiB of it history", self.history_bytes >> 20);
        }
        if self.space_amplification > 0.0 {
            let _ = write!(out, "  space {:.2}", self.space_amplification);
        }
        if self.writes_beside > 0.0 {
            let _ = write!(out, "  beside {:.0} writes/s", self.writes_beside);
        }
        if self.worst_second > 0.0 {
            let _ = write!(out, "  worst second {:.0} %", self.worst_second * 100.0);
        }
        if !self.notes.is_empty() {
            let _ = write!(out, "\n    {}", self.notes);
        }
        out
    }
}

/// Against the better of these a ratio is.
const PEERS: [&str; 2] = ["rocksdb", "fjall"];

/// The ratio that is wanted of a workload, if there is one.
fn target(workload: &str) -> Option<f64> {
    match workload {
        "fillseq" | "fillrandom" | "overwrite" => Some(2.0),
        "readrandom" | "readrandom-2" | "readmissing" => Some(1.8),
        "scan" => Some(1.5),
        "durable-1" => Some(1.0),
        "durable-16" => Some(2.8),
        "larger-read" | "larger-read-2" => Some(1.2),
        _ => None,
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

/// All workloads with each engine's median, and Mainstay's ratio to the better peer.
pub fn table(lines: &[Line]) -> String {
    let mut rates: BTreeMap<(usize, &str), BTreeMap<&str, Vec<f64>>> = BTreeMap::new();
    let mut engines: Vec<&str> = Vec::new();
    let mut order: Vec<&str> = Vec::new();
    for line in lines {
        if !engines.contains(&line.engine.as_str()) {
            engines.push(&line.engine);
        }
        if !order.contains(&line.workload.as_str()) {
            order.push(&line.workload);
        }
        let at = order.iter().position(|w| *w == line.workload).unwrap_or_default();
        let of = rates.entry((at, &line.workload)).or_default();
        of.entry(&line.engine).or_default().push(line.ops_per_second);
    }
    let mut out = format!("\n{:<17}", "op/s, medians");
    for engine in &engines {
        let _ = write!(out, " {engine:>17}");
    }
    out.push_str("   ratio  target\n");
    for ((_, workload), of) in &rates {
        let rate = |engine: &str| of.get(engine).map(|r| median(r.clone()));
        let _ = write!(out, "{workload:<17}");
        for engine in &engines {
            let cell = rate(engine).map_or_else(|| "-".to_owned(), |r| format!("{r:.0}"));
            let _ = write!(out, " {cell:>17}");
        }
        let best = PEERS.iter().filter_map(|p| rate(p)).fold(0.0, f64::max);
        if let Some(own) = rate("mainstay").filter(|_| best > 0.0) {
            let _ = write!(out, "  {:>6.2}", own / best);
            let _ = target(workload).map_or(Ok(()), |t| write!(out, "  {t:>6.1}"));
        }
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ratio_is_of_medians_and_against_the_better_peer() {
        let line = |engine: &str, rate| Line {
            engine: engine.to_owned(),
            workload: "scan".to_owned(),
            ops_per_second: rate,
            ..Line::default()
        };
        let lines: Vec<Line> =
            [("mainstay", 10.0), ("mainstay", 300.0), ("mainstay", 200.0), ("fjall", 50.0), ("rocksdb", 100.0)]
                .map(|(e, r)| line(e, r))
                .into();
        let table = table(&lines);
        let row: Vec<&str> = table.lines().find(|l| l.starts_with("scan")).unwrap().split_whitespace().collect();
        assert_eq!(row, ["scan", "200", "50", "100", "2.00", "1.5"]);
    }
}
