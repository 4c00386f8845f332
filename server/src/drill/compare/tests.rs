//! Each class can be told from the others, and the prefix rule from a mere number.

use super::*;
use crate::drill::ledger::fnv;

const SEED: u64 = 7;

fn put(id: u64, key: &str) -> Change {
    let value = content(SEED, id, key);
    Change::Put { key: key.to_owned(), hash: fnv(&value), bytes: value.len() as u64 }
}

fn delete(key: &str) -> Change {
    Change::Delete { key: key.to_owned() }
}

fn told(id: u64, changes: Vec<Change>, told: Told) -> Attempt {
    Attempt { id, sent_us: id * 1000, replied_us: id * 1000 + 500, changes, told }
}

/// Acknowledged in epoch 1 at LSN = id.
fn acked(id: u64, changes: Vec<Change>) -> Attempt {
    told(id, changes, Told::Acked { epoch: 1, lsn: id, level: "committed".into(), commit_ts_us: 0 })
}

fn unknown(id: u64, changes: Vec<Change>) -> Attempt {
    told(id, changes, Told::Unknown { code: "BROKEN".into() })
}

fn there(found: &mut Contents, key: &str, id: u64, version: u64) {
    found.insert(key.to_owned(), Found { value: content(SEED, id, key), version });
}

fn judge(attempts: &[Attempt], found: &Contents) -> Comparison {
    compare(attempts, found, Question { seed: SEED, upto: None, epoch_before: 1 })
}

/// `k1`..`k9`, one write each, all there.
fn nine() -> (Vec<Attempt>, Contents) {
    let attempts: Vec<_> = (1..10).map(|i| acked(i, vec![put(i, &format!("k{i}"))])).collect();
    let mut found = Contents::new();
    (1..10).for_each(|i| there(&mut found, &format!("k{i}"), i, i));
    (attempts, found)
}

#[test]
fn all_there_is_clean() {
    let (attempts, found) = nine();
    let c = judge(&attempts, &found);
    assert_eq!(c.counts, Counts { present: 9, ..Counts::default() });
    assert!(c.prefix_rule_holds() && c.findings.is_empty());
    assert_eq!(rpo(&attempts, &c, 100_000), Rpo::default());
}

#[test]
fn a_lost_suffix_is_loss_and_a_lost_middle_is_a_hole() {
    let (attempts, mut found) = nine();
    found.remove("k8");
    found.remove("k9");
    let c = judge(&attempts, &found);
    assert_eq!((c.counts.lost, c.first_lost_lsn, c.holes), (2, Some(8), 0));
    assert!(c.prefix_rule_holds());
    let r = rpo(&attempts, &c, 20_000);
    assert_eq!((r.writes, r.seconds, r.first_lost_lsn, r.last_lost_lsn), (2, 0.0115, Some(8), Some(9)));
    assert_eq!((r.bytes, r.after_fault), (attempts[7].bytes() + attempts[8].bytes(), 0));
    found.remove("k3");
    let c = judge(&attempts, &found);
    assert_eq!((c.counts.lost, c.first_lost_lsn, c.holes), (3, Some(3), 4));
    assert!(!c.prefix_rule_holds());
}

#[test]
fn writes_of_the_next_epoch_are_no_holes_and_losing_them_is_told_apart() {
    let (mut attempts, mut found) = nine();
    found.remove("k9");
    attempts.push(told(
        20,
        vec![put(20, "n")],
        Told::Acked { epoch: 2, lsn: 1 << 32, level: String::new(), commit_ts_us: 0 },
    ));
    there(&mut found, "n", 20, 1 << 32);
    let c = judge(&attempts, &found);
    assert_eq!((c.counts.lost, c.holes), (1, 0));
    assert_eq!(rpo(&attempts, &c, 15_000).after_fault, 0);
    found.remove("n");
    let c = judge(&attempts, &found);
    assert_eq!(rpo(&attempts, &c, 15_000).after_fault, 1);
}

#[test]
fn overwritten_values_need_not_be_seen_but_an_older_one_is_loss() {
    let attempts = [acked(1, vec![put(1, "hot")]), acked(2, vec![put(2, "hot")]), acked(3, vec![put(3, "hot")])];
    let mut found = Contents::new();
    there(&mut found, "hot", 3, 3);
    assert_eq!(judge(&attempts, &found).counts, Counts { present: 1, superseded: 2, ..Counts::default() });
    there(&mut found, "hot", 1, 1);
    let c = judge(&attempts, &found);
    assert_eq!((c.counts.lost, c.counts.present, c.first_lost_lsn), (2, 1, Some(2)));
}

#[test]
fn what_was_deleted_must_stay_deleted() {
    let attempts = [acked(1, vec![put(1, "d")]), acked(2, vec![delete("d")]), acked(3, vec![put(3, "k")])];
    let mut found = Contents::new();
    there(&mut found, "k", 3, 3);
    assert_eq!(judge(&attempts, &found).counts, Counts { present: 2, superseded: 1, ..Counts::default() });
    there(&mut found, "d", 1, 1);
    let c = judge(&attempts, &found);
    assert_eq!((c.counts.resurrected, c.counts.lost, c.holes), (1, 1, 1));
}

#[test]
fn unknown_outcomes_may_go_either_way_but_not_halfway() {
    let attempts =
        [acked(1, vec![put(1, "a")]), unknown(2, vec![put(2, "x"), put(2, "y")]), unknown(3, vec![delete("a")])];
    let mut found = Contents::new();
    there(&mut found, "a", 1, 1);
    assert_eq!(judge(&attempts, &found).counts, Counts { present: 1, unknown_absent: 2, ..Counts::default() });
    found.remove("a");
    assert_eq!(judge(&attempts, &found).counts.lost, 0, "the unknown delete may have happened");
    there(&mut found, "x", 2, 5);
    there(&mut found, "y", 2, 5);
    assert_eq!(judge(&attempts, &found).counts.unknown_landed, 1);
    found.remove("y");
    let c = judge(&attempts, &found);
    assert_eq!(c.counts.torn, 1);
    assert!(!c.prefix_rule_holds());
}

#[test]
fn an_unknown_write_does_not_excuse_the_loss_of_a_later_acknowledged_one() {
    let attempts = [unknown(1, vec![put(1, "hot")]), acked(5, vec![put(5, "hot")])];
    let mut found = Contents::new();
    there(&mut found, "hot", 1, 3);
    assert_eq!(judge(&attempts, &found).counts.lost, 1);
    // The other way round it came later, and covers the acknowledged one.
    there(&mut found, "hot", 1, 9);
    assert_eq!(judge(&attempts, &found).counts.lost, 0);
}

#[test]
fn half_an_acknowledged_batch_is_torn() {
    let attempts = [acked(1, vec![put(1, "a"), put(1, "b")])];
    let mut found = Contents::new();
    there(&mut found, "a", 1, 1);
    let c = judge(&attempts, &found);
    assert_eq!((c.counts.lost, c.counts.torn), (1, 1));
}

#[test]
fn strangers_refused_writes_and_foreign_values_are_found() {
    let refused = told(2, vec![put(2, "r")], Told::Refused { code: "NOT_PRIMARY".into() });
    let attempts = [acked(1, vec![put(1, "a")]), refused, acked(3, vec![put(3, "c")])];
    let mut found = Contents::new();
    there(&mut found, "a", 1, 1);
    there(&mut found, "c", 3, 3);
    assert_eq!(judge(&attempts, &found).counts, Counts { present: 2, ..Counts::default() });
    let with =
        |key: &str, f: Found| judge(&attempts, &found.clone().into_iter().chain([(key.to_owned(), f)]).collect());
    assert_eq!(with("z", Found { value: content(SEED, 1, "z"), version: 1 }).counts.phantom, 1, "nobody wrote z");
    assert_eq!(with("r", Found { value: content(SEED, 2, "r"), version: 2 }).counts.phantom, 1, "it was refused");
    assert_eq!(with("a", Found { value: content(SEED, 3, "a"), version: 1 }).counts.wrong, 1, "3 never wrote a");
    let mut flipped = content(SEED, 1, "a");
    *flipped.last_mut().unwrap() ^= 1;
    assert_eq!(with("a", Found { value: flipped, version: 1 }).counts.wrong, 1, "one bit");
    assert_eq!(with("a", Found { value: content(SEED, 1, "a"), version: 2 }).counts.wrong, 1, "not where it was acked");
}

#[test]
fn a_state_at_an_lsn_is_exact() {
    let range = Change::DeleteRange { start: "k1".into(), end: "k4".into() };
    let (mut attempts, mut found) = nine();
    attempts.push(acked(10, vec![range]));
    attempts.push(acked(11, vec![put(11, "late")]));
    let at = |found: &Contents, upto| compare(&attempts, found, Question { seed: SEED, upto, epoch_before: 1 });
    // Before the mistake: everything is there, nothing of later.
    assert_eq!(at(&found, Some(9)).counts, Counts { present: 9, ..Counts::default() });
    there(&mut found, "late", 11, 11);
    assert_eq!(at(&found, Some(9)).counts.phantom, 1, "beyond the target");
    assert_eq!(at(&found, None).counts.resurrected, 3, "and now the range is deleted");
    let gone = |k: &String| !("k1"..="k3").contains(&k.as_str());
    let after: Contents = found.into_iter().filter(|(k, _)| gone(k)).collect();
    let c = at(&after, None);
    assert_eq!((c.counts.lost, c.counts.present, c.counts.superseded), (0, 8, 3), "{:?}", c.findings);
    assert_eq!(at(&after, Some(9)).counts.lost, 3, "missing before the mistake");
}
