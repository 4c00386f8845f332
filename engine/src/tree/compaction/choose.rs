//! Which tables to merge: a pure function of the levels.
//!
//! Owns: the rule that makes dropping safe: with a table, a job takes every older table that
//! shares keys with it or has keys that its range deletes cover. So a job's output is the bottom
//! of all its keys. Never: I/O.

use std::sync::Arc;

use crate::table::below_end;
use crate::table::reader::Table;

/// Keys from `low` to below `high`; an empty `high` is above every key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) low: Vec<u8>,
    pub(super) high: Vec<u8>,
}

impl Span {
    fn overlaps(&self, other: &Self) -> bool {
        below_end(&self.low, &other.high) && below_end(&other.low, &self.high)
    }

    fn widen(&mut self, other: &Self) {
        if other.low < self.low {
            self.low.clone_from(&other.low);
        }
        if !self.high.is_empty() && (other.high.is_empty() || other.high > self.high) {
            self.high.clone_from(&other.high);
        }
    }
}

/// A table as the choice sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Candidate {
    pub(super) id: u128,
    /// Keys of its entries and of its range deletes; `None` when it has neither.
    pub(super) span: Option<Span>,
}

impl Candidate {
    pub(super) fn of(table: &Arc<Table>) -> Self {
        let p = table.properties();
        let mut high = p.max_key.clone();
        high.push(0);
        let entries = (p.entries > 0).then(|| Span { low: p.min_key.clone(), high });
        let ranges = table.ranges().iter().map(|r| Span { low: r.start.clone(), high: r.end.clone() });
        let span = entries.into_iter().chain(ranges).reduce(|mut all, s| {
            all.widen(&s);
            all
        });
        Self { id: table.id(), span }
    }
}

/// Tables to merge into level 1.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Job {
    pub(super) level0: Vec<u128>,
    pub(super) level1: Vec<u128>,
}

/// All of level 0 with what it overlaps in level 1, once level 0 has `trigger` tables.
pub(super) fn choose(level0: &[Candidate], level1: &[Candidate], trigger: usize) -> Option<Job> {
    if level0.is_empty() || level0.len() < trigger {
        return None;
    }
    let mut hull: Option<Span> = None;
    level0.iter().for_each(|c| widen(&mut hull, c));
    let mut job = Job { level0: level0.iter().map(|c| c.id).collect(), level1: Vec::new() };
    // A table that joins may widen the hull, which may reach another one.
    loop {
        let joins = |c: &&Candidate| !job.level1.contains(&c.id) && touches(hull.as_ref(), c);
        let Some(next) = level1.iter().find(joins) else { return Some(job) };
        job.level1.push(next.id);
        widen(&mut hull, next);
    }
}

/// All tables, if there are any.
pub(super) fn choose_all(level0: &[Candidate], level1: &[Candidate]) -> Option<Job> {
    let ids = |level: &[Candidate]| level.iter().map(|c| c.id).collect();
    let job = Job { level0: ids(level0), level1: ids(level1) };
    (job != Job::default()).then_some(job)
}

fn widen(hull: &mut Option<Span>, c: &Candidate) {
    match (hull.as_mut(), &c.span) {
        (Some(h), Some(s)) => h.widen(s),
        (None, Some(s)) => *hull = Some(s.clone()),
        (_, None) => {}
    }
}

/// A table without keys holds commit times only; it joins any job, so that such tables do not pile up.
fn touches(hull: Option<&Span>, c: &Candidate) -> bool {
    c.span.as_ref().is_none_or(|s| hull.is_some_and(|h| h.overlaps(s)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(id: u128, low: &str, high: &str) -> Candidate {
        Candidate { id, span: Some(Span { low: low.into(), high: high.into() }) }
    }

    #[test]
    fn nothing_below_the_trigger() {
        assert_eq!(choose(&[table(1, "a", "b")], &[], 2), None);
        assert_eq!(choose(&[], &[], 0), None);
    }

    #[test]
    fn level_0_joins_with_what_it_overlaps() {
        let level1 = [table(11, "a", "c"), table(12, "c", "f"), table(13, "f", "k"), table(14, "x", "y")];
        let job = choose(&[table(1, "d", "e"), table(2, "b", "c")], &level1, 2).unwrap();
        assert_eq!(job, Job { level0: vec![1, 2], level1: vec![11, 12] });
    }

    #[test]
    fn tables_between_two_far_parts_join_too() {
        let level1 = [table(11, "f", "g"), table(12, "z", "zz")];
        let job = choose(&[table(1, "a", "b"), table(2, "x", "y")], &level1, 2).unwrap();
        assert_eq!(job.level1, vec![11]);
    }

    #[test]
    fn a_range_delete_of_level_1_pulls_in_what_it_covers() {
        let level1 = [table(11, "a", ""), table(12, "m", "n"), table(13, "x", "z")];
        let job = choose(&[table(1, "b", "c")], &level1, 1).unwrap();
        assert_eq!(job.level1, vec![11, 12, 13]);
    }

    #[test]
    fn tables_without_keys_always_join() {
        let keyless = Candidate { id: 9, span: None };
        let level1 = [Candidate { id: 10, span: None }, table(11, "a", "b")];
        let job = choose(&[keyless], &level1, 1).unwrap();
        assert_eq!(job, Job { level0: vec![9], level1: vec![10] });
    }
}
