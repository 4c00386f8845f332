//! Comparison: what the ledger says was acknowledged against what the recovered cluster holds.
//!
//! Owns: the classes (lost, resurrected, phantom, wrong), the prefix rule, RPO. Pure. Never: a loss
//! explained away; a write of unknown outcome may be there or not, an acknowledged one may not.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::ledger::{Operation, Outcome};

/// What was found, by class.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(super) struct Comparison {
    pub(super) attempted: u64,
    pub(super) acked: u64,
    pub(super) unknown: u64,
    pub(super) refused: u64,
    /// Acknowledged writes whose effect is missing.
    pub(super) lost: u64,
    /// Acknowledged deletes whose key is back.
    pub(super) resurrected: u64,
    /// Keys that nobody wrote.
    pub(super) phantom: u64,
    /// Values that nobody wrote to that key.
    pub(super) wrong: u64,
    /// Smallest LSN lost.
    pub(super) first_lost_lsn: Option<u64>,
    /// When the first lost write was acknowledged, microseconds since the drill began.
    pub(super) first_lost_reply_us: Option<u64>,
    /// Whether everything acknowledged below the first loss is there and nothing from it on is.
    pub(super) prefix_holds: bool,
    /// Examples for the reader.
    pub(super) examples: Vec<String>,
}

impl Comparison {
    /// Whether nothing acknowledged is missing and nothing is there that should not be.
    #[cfg(test)]
    const fn is_exact(&self) -> bool {
        self.lost == 0 && self.resurrected == 0 && self.phantom == 0 && self.wrong == 0
    }

    fn example(&mut self, text: String) {
        if self.examples.len() < 5 {
            self.examples.push(text);
        }
    }
}

/// The effect a key shows: the mark of a value, or absence.
type Shown<'a> = Option<&'a str>;

/// Compares. `preload` are keys and marks loaded before the ledger began; `up_to` limits what counts
/// as acknowledged to LSNs at or below it (for a restore to that point); `found` is all there is.
pub(super) fn compare(
    operations: &[Operation],
    preload: &BTreeMap<String, String>,
    up_to: u64,
    found: &BTreeMap<String, String>,
) -> Comparison {
    let mut out = Comparison { attempted: operations.len() as u64, prefix_holds: true, ..Comparison::default() };
    let mut by_key: BTreeMap<&str, Vec<&Operation>> = BTreeMap::new();
    for o in operations {
        match o.outcome {
            Outcome::Acked { lsn, .. } if lsn <= up_to => out.acked += 1,
            // Acknowledged after the point asked for: must not be there.
            Outcome::Acked { .. } => continue,
            Outcome::Refused => {
                out.refused += 1;
                continue;
            }
            Outcome::Unknown => out.unknown += 1,
        }
        by_key.entry(&o.intent.key).or_default().push(o);
    }
    let keys: BTreeSet<&str> = by_key
        .keys()
        .copied()
        .chain(preload.keys().map(String::as_str))
        .chain(found.keys().map(String::as_str))
        .collect();
    let mut lost: Vec<&Operation> = Vec::new();
    let mut present: Vec<u64> = Vec::new();
    for key in keys {
        let shown = found.get(key).map(String::as_str);
        let history = by_key.get(key).map(Vec::as_slice).unwrap_or_default();
        key_verdict(&mut out, key, shown, preload.get(key).map(String::as_str), history, &mut lost, &mut present);
    }
    let first = lost.iter().filter_map(|o| lsn(o).map(|l| (l, o.reply_us))).min();
    out.first_lost_lsn = first.map(|f| f.0);
    out.first_lost_reply_us = lost.iter().map(|o| o.reply_us).min();
    if let Some((l, _)) = first {
        out.prefix_holds = present.iter().all(|p| *p < l);
    }
    out
}

const fn lsn(o: &Operation) -> Option<u64> {
    match o.outcome {
        Outcome::Acked { lsn, .. } => Some(lsn),
        Outcome::Refused | Outcome::Unknown => None,
    }
}

/// Judges one key, whose writes come from one client, one after the other.
fn key_verdict<'a>(
    out: &mut Comparison,
    key: &str,
    shown: Shown<'_>,
    before: Shown<'_>,
    history: &[&'a Operation],
    lost: &mut Vec<&'a Operation>,
    present: &mut Vec<u64>,
) {
    let effect = |o: &'a Operation| o.intent.value.as_deref();
    // The newest write whose effect is what is shown; marks are unique, so only absence can have several.
    let at = history.iter().rposition(|o| effect(o) == shown);
    let last_acked = history.iter().rposition(|o| lsn(o).is_some());
    let legal = match (at, last_acked) {
        (Some(at), Some(last)) => at >= last,
        (Some(_), None) => true,
        (None, None) => shown == before,
        (None, Some(_)) => false,
    };
    if let Some(at) = at {
        present.extend(history.get(at).and_then(|o| lsn(o)));
    }
    if legal {
        return;
    }
    if history.is_empty() && before.is_none() {
        out.phantom += 1;
        out.example(format!("key {key} was never written but is there"));
        return;
    }
    if at.is_none() && shown.is_some() && shown != before {
        out.wrong += 1;
        out.example(format!("key {key} has a value that nobody wrote to it"));
        return;
    }
    // Everything acknowledged after what is shown is missing.
    let missing: Vec<&Operation> =
        history.iter().skip(at.map_or(0, |a| a + 1)).copied().filter(|o| lsn(o).is_some()).collect();
    if missing.is_empty() {
        // Loaded before the ledger began, and gone or changed without a write.
        out.lost += 1;
        out.example(format!("key {key} was loaded before the fault and is gone or changed"));
        return;
    }
    let deletes = missing.iter().filter(|o| o.intent.value.is_none()).count() as u64;
    out.resurrected += u64::from(deletes > 0 && shown.is_some());
    out.lost += missing.len() as u64;
    out.example(format!(
        "key {key}: {} acknowledged writes are missing, first LSN {:?}",
        missing.len(),
        missing.first().and_then(|o| lsn(o))
    ));
    lost.extend(missing);
}

#[cfg(test)]
mod tests {
    use super::super::ledger::Intent;
    use super::*;

    fn op(id: u64, key: &str, value: Option<&str>, outcome: Outcome) -> Operation {
        let intent = Intent { id, client: 0, key: key.into(), value: value.map(Into::into), sent_us: id };
        Operation { intent, outcome, reply_us: id * 10 }
    }

    fn acked(lsn: u64) -> Outcome {
        Outcome::Acked { epoch: 1, lsn }
    }

    fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn what_is_whole_is_exact() {
        let ops = [
            op(1, "a", Some("1"), acked(1)),
            op(2, "a", Some("2"), acked(2)),
            op(3, "b", Some("3"), acked(3)),
            op(4, "b", None, acked(4)),
        ];
        let c = compare(&ops, &map(&[("p", "0")]), u64::MAX, &map(&[("a", "2"), ("p", "0")]));
        assert!(c.is_exact() && c.prefix_holds, "{c:?}");
        assert_eq!(c.acked, 4);
    }

    #[test]
    fn an_unknown_outcome_may_show_either_way() {
        let ops = [op(1, "a", Some("1"), acked(1)), op(2, "a", Some("2"), Outcome::Unknown)];
        for shown in ["1", "2"] {
            assert!(compare(&ops, &map(&[]), u64::MAX, &map(&[("a", shown)])).is_exact());
        }
        assert_eq!(compare(&ops, &map(&[]), u64::MAX, &map(&[])).lost, 1);
        let ops = [op(1, "a", Some("1"), Outcome::Unknown)];
        assert!(compare(&ops, &map(&[]), u64::MAX, &map(&[])).is_exact());
    }

    #[test]
    fn losses_are_counted_and_a_hole_is_no_prefix() {
        let ops: Vec<_> = (1..=5).map(|i| op(i, &format!("k{i}"), Some("v"), acked(i))).collect();
        let tail = compare(&ops, &map(&[]), u64::MAX, &map(&[("k1", "v"), ("k2", "v"), ("k3", "v")]));
        assert_eq!((tail.lost, tail.first_lost_lsn, tail.prefix_holds), (2, Some(4), true));
        assert_eq!(tail.first_lost_reply_us, Some(40));
        let hole = compare(&ops, &map(&[]), u64::MAX, &map(&[("k1", "v"), ("k2", "v"), ("k4", "v"), ("k5", "v")]));
        assert_eq!((hole.lost, hole.prefix_holds), (1, false));
    }

    #[test]
    fn phantoms_wrong_values_and_resurrections_are_told_apart() {
        let ops = [op(1, "a", Some("1"), acked(1)), op(2, "a", None, acked(2)), op(3, "b", Some("3"), acked(3))];
        let c = compare(&ops, &map(&[]), u64::MAX, &map(&[("a", "1"), ("b", "x"), ("c", "y")]));
        assert_eq!((c.resurrected, c.wrong, c.phantom), (1, 1, 1), "{c:?}");
    }

    #[test]
    fn what_came_after_the_point_asked_for_must_not_be_there() {
        let ops = [op(1, "a", Some("1"), acked(1)), op(2, "a", Some("2"), acked(2)), op(3, "b", Some("3"), acked(3))];
        assert!(compare(&ops, &map(&[]), 1, &map(&[("a", "1")])).is_exact());
        assert_eq!(compare(&ops, &map(&[]), 1, &map(&[("a", "2")])).wrong, 1);
        assert_eq!(compare(&ops, &map(&[]), 1, &map(&[("a", "1"), ("b", "3")])).phantom, 1);
    }

    #[test]
    fn preloaded_data_counts() {
        assert_eq!(compare(&[], &map(&[("p", "0")]), 0, &map(&[])).lost, 1);
        assert_eq!(compare(&[], &map(&[("p", "0")]), 0, &map(&[("p", "1")])).wrong, 1);
    }
}
