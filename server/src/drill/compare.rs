//! What was read back against what the ledger has: every write in exactly one class.
//!
//! Owns: the classes and the prefix rule, as pure functions. Never: the cluster, and never the
//! benefit of the doubt: a value counts only if it is, byte for byte, what a recorded write put
//! under that key.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use serde::Serialize;

use super::ledger::{Attempt, Change, Told};
use super::workload::{content, writer_of};

/// A key as it was read back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) value: Vec<u8>,
    /// LSN that wrote it, as the system says.
    pub(super) version: u64,
}

/// Everything read back.
pub(super) type Contents = BTreeMap<String, Found>;

/// What is judged by which knowledge.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Question {
    pub(super) seed: u64,
    /// The state asked for ends here: later writes must be absent. `None`: everything counts.
    pub(super) upto: Option<u64>,
    /// Last epoch before the fault: the prefix rule speaks of its writes.
    pub(super) epoch_before: u64,
}

/// How many keys and writes fell into each class.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Counts {
    /// Acknowledged writes with at least one change seen, and none missing.
    pub(super) present: u64,
    /// Acknowledged writes, later overwritten or deleted: nothing of them can be seen.
    pub(super) superseded: u64,
    /// Acknowledged writes that are missing.
    pub(super) lost: u64,
    /// Keys acknowledged as deleted that are there.
    pub(super) resurrected: u64,
    /// Keys nobody wrote, or whose write was refused or lies beyond the target.
    pub(super) phantom: u64,
    /// Writes of which only a part is there.
    pub(super) torn: u64,
    /// Values that are not what was written, or not in the place that was acknowledged.
    pub(super) wrong: u64,
    /// Writes of unknown outcome that happened. Either way is right.
    pub(super) unknown_landed: u64,
    /// Writes of unknown outcome of which nothing is seen.
    pub(super) unknown_absent: u64,
}

/// The result of a comparison.
#[derive(Clone, Debug, Default)]
pub(super) struct Comparison {
    pub(super) counts: Counts,
    /// Ids of the lost writes.
    pub(super) lost: BTreeSet<u64>,
    /// Smallest LSN of a lost write.
    pub(super) first_lost_lsn: Option<u64>,
    /// Writes above the first lost one that are there all the same: history has a hole.
    pub(super) holes: u64,
    /// The first few findings, for people.
    pub(super) findings: Vec<String>,
}

impl Comparison {
    /// Every acknowledged write before the first lost one is there, none after it.
    pub(super) const fn prefix_rule_holds(&self) -> bool {
        self.holes == 0 && self.counts.torn == 0
    }

    fn tell(&mut self, text: impl FnOnce() -> String) {
        if self.findings.len() < 20 {
            self.findings.push(text());
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Present,
    Superseded,
    Lost,
}

/// All that touched one key.
#[derive(Debug, Default)]
struct History {
    /// By LSN: whether it put (else it deleted).
    acked: BTreeMap<u64, bool>,
    unknown_deletes: bool,
}

struct Judge<'a> {
    question: Question,
    attempts: BTreeMap<u64, &'a Attempt>,
    histories: BTreeMap<&'a str, History>,
    found: &'a Contents,
    out: Comparison,
}

/// Compares what was found with what the ledger has.
pub(super) fn compare(attempts: &[Attempt], found: &Contents, question: Question) -> Comparison {
    let mut judge = Judge {
        question,
        attempts: attempts.iter().map(|a| (a.id, a)).collect(),
        histories: BTreeMap::new(),
        found,
        out: Comparison::default(),
    };
    judge.build_histories(attempts);
    for (key, f) in found {
        judge.value(key, f);
    }
    for attempt in attempts {
        judge.attempt(attempt);
    }
    judge.prefix(attempts);
    judge.out
}

impl<'a> Judge<'a> {
    /// Acknowledged, and within what was asked for.
    fn counts(&self, a: &Attempt) -> Option<u64> {
        a.acked().map(|(_, lsn)| lsn).filter(|lsn| self.question.upto.is_none_or(|upto| *lsn <= upto))
    }

    fn build_histories(&mut self, attempts: &'a [Attempt]) {
        let keys: BTreeSet<&'a str> = attempts.iter().flat_map(|a| &a.changes).filter_map(key_of).collect();
        for a in attempts {
            let lsn = self.counts(a);
            let unknown = matches!(a.told, Told::Unknown { .. });
            for change in &a.changes {
                let touched: Vec<&'a str> = match change {
                    Change::Put { key, .. } | Change::Delete { key } => vec![key],
                    Change::DeleteRange { start, end } => keys.range(start.as_str()..end.as_str()).copied().collect(),
                };
                let puts = matches!(change, Change::Put { .. });
                for key in touched {
                    let history = self.histories.entry(key).or_default();
                    if let Some(lsn) = lsn {
                        history.acked.insert(lsn, puts);
                    } else if unknown && !puts {
                        history.unknown_deletes = true;
                    }
                }
            }
        }
    }

    /// Is the value what a recorded write put there, and where it was acknowledged?
    fn value(&mut self, key: &str, f: &Found) {
        let Some(history) = self.histories.get(key) else {
            self.out.counts.phantom += 1;
            return self.out.tell(|| format!("{key}: nobody wrote this key"));
        };
        let last_delete = history.acked.iter().next_back().filter(|(_, puts)| !**puts).map(|(lsn, _)| *lsn);
        let writer = writer_of(&f.value).and_then(|id| self.attempts.get(&id).copied());
        let wrote = writer.filter(|a| a.changes.iter().any(|c| matches!(c, Change::Put { key: k, .. } if k == key)));
        let Some(writer) = wrote.filter(|a| content(self.question.seed, a.id, key) == f.value) else {
            self.out.counts.wrong += 1;
            return self.out.tell(|| format!("{key}: a value that no recorded write put there"));
        };
        match &writer.told {
            Told::Refused { code } => {
                self.out.counts.phantom += 1;
                return self.out.tell(|| format!("{key}: write {} was refused ({code}) and happened", writer.id));
            }
            Told::Acked { lsn, .. } if self.question.upto.is_some_and(|upto| *lsn > upto) => {
                self.out.counts.phantom += 1;
                return self.out.tell(|| format!("{key}: written at LSN {lsn}, beyond the target"));
            }
            Told::Acked { lsn, .. } if *lsn != f.version => {
                self.out.counts.wrong += 1;
                return self.out.tell(|| format!("{key}: acknowledged at LSN {lsn}, found at {}", f.version));
            }
            Told::Acked { .. } | Told::Unknown { .. } => {}
        }
        if let Some(lsn) = last_delete.filter(|lsn| f.version < *lsn) {
            self.out.counts.resurrected += 1;
            self.out.tell(|| format!("{key}: deleted at LSN {lsn}, and there again (version {})", f.version));
        }
    }

    fn states(&self, lsn: u64, change: &Change) -> Vec<State> {
        let keys: Vec<&str> = match change {
            Change::Put { key, .. } | Change::Delete { key } => vec![key],
            Change::DeleteRange { start, end } => {
                let range = (Bound::Included(start.as_str()), Bound::Excluded(end.as_str()));
                self.histories.range::<str, _>(range).map(|(k, _)| *k).collect()
            }
        };
        let puts = matches!(change, Change::Put { .. });
        keys.into_iter().map(|key| self.state(key, lsn, puts)).collect()
    }

    /// What one acknowledged change to one key shows of itself.
    fn state(&self, key: &str, lsn: u64, puts: bool) -> State {
        let history = self.histories.get(key);
        let above = (Bound::Excluded(lsn), Bound::Unbounded);
        let later =
            |deletes_only: bool| history.is_some_and(|h| h.acked.range(above).any(|(_, put)| !(deletes_only && *put)));
        match self.found.get(key) {
            Some(f) if f.version == lsn && puts => State::Present,
            Some(f) if f.version > lsn => State::Superseded,
            Some(_) => State::Lost,
            None if puts => {
                let excused = later(true) || history.is_some_and(|h| h.unknown_deletes);
                if excused { State::Superseded } else { State::Lost }
            }
            // Absence shows a delete only if nothing was put there afterwards.
            None if later(false) => State::Superseded,
            None => State::Present,
        }
    }

    /// Whether a put of this write can be seen. A delete shows itself by absence, which a write that
    /// never happened shows as well.
    fn put_seen(&self, a: &Attempt, lsn: u64) -> bool {
        let puts = a.changes.iter().filter(|c| matches!(c, Change::Put { .. }));
        puts.flat_map(|c| self.states(lsn, c)).any(|s| s == State::Present)
    }

    fn attempt(&mut self, a: &'a Attempt) {
        match a.told {
            Told::Refused { .. } => {}
            Told::Unknown { .. } => self.unknown(a),
            Told::Acked { lsn, .. } if self.counts(a).is_some() => {
                let states: Vec<State> = a.changes.iter().flat_map(|c| self.states(lsn, c)).collect();
                if states.contains(&State::Lost) {
                    self.out.counts.lost += 1;
                    self.out.lost.insert(a.id);
                    self.out.first_lost_lsn = Some(self.out.first_lost_lsn.map_or(lsn, |f| f.min(lsn)));
                    self.out.tell(|| format!("write {} acknowledged at LSN {lsn} is lost: {}", a.id, names(a)));
                    if self.put_seen(a, lsn) {
                        self.torn(a);
                    }
                } else if states.contains(&State::Present) {
                    self.out.counts.present += 1;
                } else {
                    self.out.counts.superseded += 1;
                }
            }
            // Beyond the target.
            Told::Acked { .. } => {}
        }
    }

    fn unknown(&mut self, a: &'a Attempt) {
        let puts = a.changes.iter().filter_map(|c| match c {
            Change::Put { key, .. } => Some(key.as_str()),
            Change::Delete { .. } | Change::DeleteRange { .. } => None,
        });
        let (mut there, mut missing) = (0, 0);
        for key in puts {
            let history = self.histories.get(key);
            // Another write may stand in front of it.
            let covered = history.is_some_and(|h| !h.acked.is_empty() || h.unknown_deletes);
            match self.found.get(key) {
                Some(f) if writer_of(&f.value) == Some(a.id) => there += 1,
                _ if covered => {}
                _ => missing += 1,
            }
        }
        if there > 0 && missing > 0 {
            self.torn(a);
        }
        if there > 0 {
            self.out.counts.unknown_landed += 1;
        } else {
            self.out.counts.unknown_absent += 1;
        }
    }

    fn torn(&mut self, a: &Attempt) {
        self.out.counts.torn += 1;
        self.out.tell(|| format!("write {} is torn: only a part of {} is there", a.id, names(a)));
    }

    /// Above the first lost write nothing of the same history may be there.
    fn prefix(&mut self, attempts: &'a [Attempt]) {
        let Some(first) = self.out.first_lost_lsn else { return };
        for a in attempts {
            let Some((epoch, lsn)) = a.acked() else { continue };
            if epoch > self.question.epoch_before || lsn <= first || self.counts(a).is_none() {
                continue;
            }
            if self.put_seen(a, lsn) {
                self.out.holes += 1;
                self.out.tell(|| format!("LSN {first} is lost and LSN {lsn} is there: a hole in history"));
            }
        }
    }
}

fn key_of(change: &Change) -> Option<&str> {
    match change {
        Change::Put { key, .. } | Change::Delete { key } => Some(key),
        Change::DeleteRange { .. } => None,
    }
}

fn names(a: &Attempt) -> String {
    let one = |c: &Change| match c {
        Change::Put { key, .. } => key.clone(),
        Change::Delete { key } => format!("delete {key}"),
        Change::DeleteRange { start, end } => format!("delete {start}..{end}"),
    };
    a.changes.iter().take(3).map(one).collect::<Vec<_>>().join(", ")
}

/// What was lost, in writes, seconds and bytes.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(super) struct Rpo {
    pub(super) writes: u64,
    /// From the acknowledgement of the first lost write to the fault; 0 when nothing is lost.
    pub(super) seconds: f64,
    pub(super) bytes: u64,
    pub(super) first_lost_lsn: Option<u64>,
    pub(super) last_lost_lsn: Option<u64>,
    /// Lost writes that were sent after the fault: the recovered system acknowledged them.
    pub(super) after_fault: u64,
}

/// Sums up the lost writes of a comparison.
pub(super) fn rpo(attempts: &[Attempt], c: &Comparison, fault_us: u64) -> Rpo {
    let lost = || attempts.iter().filter(|a| c.lost.contains(&a.id));
    let first_us = lost().map(|a| a.replied_us).min().unwrap_or(fault_us);
    Rpo {
        writes: c.counts.lost,
        seconds: fault_us.saturating_sub(first_us) as f64 / 1e6,
        bytes: lost().map(Attempt::bytes).sum(),
        first_lost_lsn: c.first_lost_lsn,
        last_lost_lsn: lost().filter_map(|a| a.acked().map(|(_, lsn)| lsn)).max(),
        after_fault: lost().filter(|a| a.sent_us > fault_us).count() as u64,
    }
}

#[cfg(test)]
mod tests;
