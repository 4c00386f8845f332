//! What to compact next: a pure function of the levels.
//!
//! Owns: the rules that keep every key's versions ordered from level to level: a table of level 0 goes down only
//! with all older ones that share keys with it, and whatever goes down takes all that it overlaps there. Never:
//! I/O.

use std::collections::BTreeSet;

use crate::lsn::{CommitTs, Lsn};
use crate::tree::version::{LAST_LEVEL, LEVELS};

use super::shape::{Candidate, Shape, Targets};

/// Most tables of level 0 in one job.
const LEVEL0_MAX: usize = 16;
/// One in so many entries of a table above the deepest level must be a delete for it to go down before its turn.
const DELETES_PART: u64 = 2;
/// So many small history tables become one.
const HISTORY_TABLES: usize = 16;
/// So many are merged before anything else: under steady writes, when a level is always due, they would not be at all,
/// and each is an open file.
const HISTORY_TABLES_MOST: usize = 64;
/// Such a merge ends soon, for the levels wait: no more than about so many bytes at once.
const HISTORY_STEP_BYTES: u64 = 128 << 20;
/// A history table below this size counts as small, in bytes.
pub(super) const HISTORY_SMALL_BYTES: u64 = 16 << 20;
/// As small counts one of nothing but commit times below this size, in bytes: an eighth of what a merge makes of them.
const TIMES_SMALL_BYTES: u64 = 1 << 20;
/// One in so many entries of a table at the bottom must be of no use for it to be written anew.
const USELESS_PART: u64 = 4;
/// One in so many bytes above the deepest level is too much for a tree that nobody writes to.
const SETTLED_PART: u64 = 8;

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Plan {
    /// Nobody can see anything in these tables.
    Forget(Vec<u128>),
    /// The table overlaps nothing on its way to this level.
    Move(u128, u8),
    /// Merge these into tables of this level.
    Merge(Vec<u128>, u8),
    /// Merge these history tables.
    MergeHistory(Vec<u128>),
}

/// What the choice goes by besides the tables.
#[derive(Clone, Debug)]
pub(super) struct Rules {
    /// Tables in level 0 from which on it is merged.
    pub(super) level0_tables: usize,
    /// See [`Targets::of`].
    pub(super) base_bytes: u64,
    pub(super) floor: (Lsn, CommitTs),
    /// Nobody writes: merge also what is not yet due.
    pub(super) idle: bool,
    /// Damaged tables, which stay where they are.
    pub(super) avoid: BTreeSet<u128>,
    /// No merge of more bytes: there is no room for what it writes.
    pub(super) bytes_max: u64,
}

impl Rules {
    fn avoids(&self, t: &Candidate) -> bool {
        self.avoid.contains(&t.id)
    }

    /// Whether there is room for a merge of all these.
    fn fits<'a>(&self, tables: impl IntoIterator<Item = &'a Candidate>) -> bool {
        tables.into_iter().map(|t| t.bytes).sum::<u64>() <= self.bytes_max
    }

    fn has_room(&self, shape: &Shape, plan: &Plan) -> bool {
        match plan {
            Plan::Forget(_) | Plan::Move(..) => true,
            Plan::Merge(ids, _) | Plan::MergeHistory(ids) => {
                self.fits(shape.tables().chain(&shape.history).filter(|t| ids.contains(&t.id)))
            }
        }
    }
}

pub(super) fn choose(shape: &Shape, rules: &Rules) -> Option<Plan> {
    let sizes = shape.sizes();
    let targets = Targets::of(&sizes, rules.base_bytes);
    choose_forgotten(shape, rules)
        .or_else(|| history(shape, rules, HISTORY_TABLES_MOST).filter(|p| rules.has_room(shape, p)))
        .or_else(|| {
            let mut due = scores(shape, rules, &targets);
            due.sort_by(|a, b| b.0.total_cmp(&a.0));
            due.into_iter().find_map(|(_, level)| go_down(shape, rules, &targets, level))
        })
        .or_else(|| deletes(shape, rules, &targets).filter(|p| rules.has_room(shape, p)))
        .or_else(|| history(shape, rules, HISTORY_TABLES).filter(|p| rules.has_room(shape, p)))
        .or_else(|| reclaim(shape, rules).filter(|p| rules.has_room(shape, p)))
        .or_else(|| settle(shape, rules, &targets))
}

/// Tables of which no read at the floor or above can see anything: history whose time is over, and what a range
/// delete covers whole.
pub(super) fn choose_forgotten(shape: &Shape, rules: &Rules) -> Option<Plan> {
    let floor = rules.floor.0;
    let over = shape.history.iter().filter(|t| t.superseded <= floor && t.last_time <= floor);
    let buriers: Vec<_> = shape.tables().flat_map(|t| &t.ranges).filter(|r| r.lsn <= floor).collect();
    let buried = shape
        .tables()
        .filter(|t| t.ranges.is_empty() && t.last_time <= floor && buriers.iter().any(|r| t.buried_by(r)));
    let ids: Vec<u128> = over.chain(buried).map(|t| t.id).collect();
    (!ids.is_empty()).then_some(Plan::Forget(ids))
}

/// All tables but those of history, into the last level.
pub(super) fn choose_main(shape: &Shape, _: &Rules) -> Option<Plan> {
    let ids: Vec<u128> = shape.tables().map(|t| t.id).collect();
    (!ids.is_empty()).then_some(Plan::Merge(ids, LAST_LEVEL))
}

/// All history tables.
pub(super) fn choose_history(shape: &Shape, _: &Rules) -> Option<Plan> {
    let ids: Vec<u128> = shape.history.iter().map(|t| t.id).collect();
    (!ids.is_empty()).then_some(Plan::MergeHistory(ids))
}

/// Levels that are due, by how far they are over their bounds.
fn scores(shape: &Shape, rules: &Rules, targets: &Targets) -> Vec<(f64, usize)> {
    let mut out = Vec::new();
    let waiting = shape.level(0).len();
    if waiting > 0 && waiting >= rules.level0_tables {
        out.push((waiting as f64 / rules.level0_tables.max(1) as f64, 0));
    }
    for (level, size) in shape.sizes().into_iter().enumerate().take(LEVELS - 1).skip(1) {
        let target = targets.level(level);
        if size > target {
            out.push((size as f64 / target.max(1) as f64, level));
        }
    }
    out
}

fn go_down(shape: &Shape, rules: &Rules, targets: &Targets, level: usize) -> Option<Plan> {
    match level {
        0 => level0_down(shape, rules, targets.base).or_else(|| within_level0(shape, rules)),
        _ => table_down(shape, rules, level),
    }
}

/// The oldest table of level 0 alone if it overlaps nothing, else the oldest ones with what they overlap in the
/// base level.
fn level0_down(shape: &Shape, rules: &Rules, base: usize) -> Option<Plan> {
    let oldest_first: Vec<&Candidate> = shape.level(0).iter().rev().take_while(|t| !rules.avoids(t)).collect();
    let oldest = *oldest_first.first()?;
    if let Some(to) = movable(shape, oldest, 0).filter(|to| *to >= base) {
        return Some(Plan::Move(oldest.id, to as u8));
    }
    let most = oldest_first.len().min(LEVEL0_MAX);
    let taken = (1..=most).rev().filter_map(|n| oldest_first.get(..n)).find(|taken| {
        let below = shape.overlapping(base, taken);
        rules.fits(taken.iter().chain(&below).copied())
    })?;
    merge_into(shape, rules, taken, base)
}

/// Where a damaged table blocks the way down, the newest tables of level 0 become one, so that a read asks few: all
/// that together are larger than the next older one.
fn within_level0(shape: &Shape, rules: &Rules) -> Option<Plan> {
    if rules.bytes_max < u64::MAX {
        // For want of room it would be worse: what becomes large needs more to go down.
        return None;
    }
    let (mut ids, mut bytes) = (Vec::new(), 0);
    for t in shape.level(0).iter().take_while(|t| !rules.avoids(t)) {
        if ids.len() > 1 && t.bytes > bytes {
            break;
        }
        ids.push(t.id);
        bytes += t.bytes;
    }
    (ids.len() >= rules.level0_tables.max(2)).then_some(Plan::Merge(ids, 0))
}

/// The table of a level that drags the fewest bytes of the next one along.
fn table_down(shape: &Shape, rules: &Rules, level: usize) -> Option<Plan> {
    let mut best: Option<(f64, Plan)> = None;
    for t in shape.level(level).iter().filter(|t| !rules.avoids(t)) {
        if let Some(to) = movable(shape, t, level) {
            return Some(Plan::Move(t.id, to as u8));
        }
        let dragged: u64 = shape.overlapping(level + 1, &[t]).iter().map(|o| o.bytes).sum();
        let cost = dragged as f64 / t.bytes.max(1) as f64;
        if best.as_ref().is_none_or(|(c, _)| cost < *c)
            && let Some(plan) = merge_into(shape, rules, &[t], level + 1)
        {
            best = Some((cost, plan));
        }
    }
    best.map(|(_, plan)| plan)
}

fn merge_into(shape: &Shape, rules: &Rules, taken: &[&Candidate], to: usize) -> Option<Plan> {
    let below = shape.overlapping(to, taken);
    if below.iter().any(|t| rules.avoids(t)) || !rules.fits(taken.iter().chain(&below).copied()) {
        return None;
    }
    let ids = taken.iter().chain(&below).map(|t| t.id).collect();
    Some(Plan::Merge(ids, to as u8))
}

/// The deepest level that the table reaches without meeting its keys. One with range deletes has to be merged, or
/// they would stay for ever.
fn movable(shape: &Shape, t: &Candidate, from: usize) -> Option<usize> {
    if t.keys.is_none() || !t.ranges.is_empty() {
        return None;
    }
    let meets = |level: &usize| shape.level(*level).iter().any(|o| o.overlaps(t));
    let stop = (from + 1..LEVELS).find(meets).unwrap_or(LEVELS);
    Some(stop - 1).filter(|to| *to > from)
}

/// A table full of deletes, or one with deletes that scans had to pass over in long runs, goes down to what they hide;
/// where they hide nothing they are dropped on the way.
fn deletes(shape: &Shape, rules: &Rules, targets: &Targets) -> Option<Plan> {
    let full = |t: &Candidate| t.deletes.saturating_mul(DELETES_PART) >= t.entries;
    let due = |level: usize, t: &Candidate| t.deletes > 0 && (t.crowded || (level > 0 && full(t))) && !rules.avoids(t);
    let down = |level: usize, t: &Candidate| match movable(shape, t, level) {
        // Written anew on its way: as it is, it would take the deletes along.
        Some(to) => Some(Plan::Merge(vec![t.id], to as u8)),
        None if level == LEVELS - 1 => Some(Plan::Merge(vec![t.id], LAST_LEVEL)),
        None => merge_into(shape, rules, &[t], level + 1),
    };
    (0..LEVELS).find_map(|level| {
        let mut all = shape.level(level).iter().filter(|t| due(level, t));
        if level == 0 {
            return all.next().and_then(|_| level0_down(shape, rules, targets.base));
        }
        // Damage below may keep one of them where it is.
        all.find_map(|t| down(level, t))
    })
}

/// Small history tables, if there are at least so many. Those that hold nothing but commit times are left alone unless
/// they are much smaller than what a merge makes of them: others would come out as many as they went in.
fn history(shape: &Shape, rules: &Rules, at_least: usize) -> Option<Plan> {
    let small_below = |t: &Candidate| if t.entries > 0 { HISTORY_SMALL_BYTES } else { TIMES_SMALL_BYTES };
    let is_small = |t: &&Candidate| t.bytes < small_below(t) && !rules.avoids(t);
    let small: Vec<&Candidate> = shape.history.iter().filter(is_small).collect();
    if small.len() < at_least {
        return None;
    }
    let (mut ids, mut bytes) = (Vec::new(), 0);
    for t in small {
        if bytes >= HISTORY_STEP_BYTES {
            break;
        }
        ids.push(t.id);
        bytes += t.bytes;
    }
    Some(Plan::MergeHistory(ids))
}

/// A table at the bottom with much that nobody can see, which no later write may ever reach.
fn reclaim(shape: &Shape, rules: &Rules) -> Option<Plan> {
    let level = (1..LEVELS).rev().find(|l| !shape.level(*l).is_empty())?;
    shape.level(level).iter().filter(|t| !rules.avoids(t)).find_map(|t| {
        let settled = t.max_lsn <= rules.floor.0;
        if !t.ranges.is_empty() {
            return if settled { reclaim_ranges(shape, rules, t, level) } else { None };
        }
        let useless = t.deletes + if settled { expired(t, rules.floor.1) } else { 0 };
        let much = useless > 0 && useless.saturating_mul(USELESS_PART) >= t.entries;
        much.then(|| Plan::Merge(vec![t.id], level as u8))
    })
}

/// With the tables that its range deletes cover, a table can lose them, unless older keys stand further above.
fn reclaim_ranges(shape: &Shape, rules: &Rules, t: &Candidate, level: usize) -> Option<Plan> {
    let touched = |o: &Candidate| o.id != t.id && t.ranges.iter().any(|r| o.touched_by(r));
    let elsewhere = (0..LEVELS).filter(|l| *l != level).any(|l| shape.level(l).iter().any(touched));
    let beside: Vec<&Candidate> = shape.level(level).iter().filter(|o| touched(o)).collect();
    if elsewhere {
        return None;
    }
    // With those that stand in between, or the output would overlap them.
    let all: Vec<&Candidate> = std::iter::once(t).chain(beside).collect();
    let mut ids: Vec<u128> = shape.overlapping(level, &all).iter().map(|o| o.id).collect();
    if !ids.contains(&t.id) {
        ids.push(t.id);
    }
    let avoided = ids.iter().any(|id| rules.avoid.contains(id));
    (!avoided).then_some(Plan::Merge(ids, level as u8))
}

/// How many entries have expired, about: as if their expiries were spread evenly.
fn expired(t: &Candidate, now: CommitTs) -> u64 {
    let (first, last) = t.expiry;
    if t.expiring == 0 || now.0 < first {
        return 0;
    }
    // Of all there are, there are 2^64.
    let upto = |end: u64| u128::from(end.saturating_sub(first)) + 1;
    u64::try_from(u128::from(t.expiring) * upto(now.0.min(last)) / upto(last)).unwrap_or(t.expiring)
}

/// In a tree that nobody writes to: brings down what makes it much larger than its deepest level.
fn settle(shape: &Shape, rules: &Rules, targets: &Targets) -> Option<Plan> {
    let sizes = shape.sizes();
    let deepest = (1..LEVELS).rev().find(|l| !shape.level(*l).is_empty()).unwrap_or(LEVELS - 1);
    let bottom = sizes.get(deepest).copied().unwrap_or_default();
    let above: u64 = sizes.iter().take(deepest).sum();
    if !rules.idle || above == 0 || above.saturating_mul(SETTLED_PART) < bottom {
        return None;
    }
    (0..deepest).filter(|l| !shape.level(*l).is_empty()).find_map(|l| go_down(shape, rules, targets, l))
}
