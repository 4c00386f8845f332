//! The level of tables that come in from outside.
//!
//! They are newer than all that is in the tree, so whatever shares keys with them has to stay below. Owns: the choice,
//! a pure function. Never: a level in which a running merge may put a table across them.

use std::sync::Arc;

use super::shape::{Candidate, Shape};
use crate::table::reader::Table;
use crate::tree::version::{LEVELS, Version};

/// The levels of `tables`, which lie apart, in a tree of `version` and the `fresh` tables of level 0 that come with
/// them. `merging`: the level that a running merge writes to.
pub(in crate::tree) fn levels_of(
    version: &Version,
    fresh: &[Arc<Table>],
    tables: &[Arc<Table>],
    merging: Option<u8>,
) -> Vec<u8> {
    let mut shape = Shape::of(version);
    let [level0, ..] = &mut shape.levels;
    level0.extend(fresh.iter().map(Candidate::of));
    tables.iter().map(|t| level_of(&shape, &Candidate::of(t), merging)).collect()
}

/// The deepest level that the table reaches without meeting its keys on the way. Level 0 takes any.
fn level_of(shape: &Shape, table: &Candidate, merging: Option<u8>) -> u8 {
    let meets = |level: &usize| shape.level(*level).iter().any(|t| t.overlaps(table));
    let met = (0..LEVELS).find(meets).unwrap_or(LEVELS);
    let level = met.saturating_sub(1) as u8;
    // An output of the merge may span keys that none of its inputs holds.
    if merging == Some(level) { level.saturating_sub(1) } else { level }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(id: u128, first: u8, last: u8) -> Candidate {
        Candidate { id, keys: Some((vec![first], vec![last])), ..Candidate::default() }
    }

    #[test]
    fn a_table_goes_as_deep_as_nothing_above_shares_its_keys() {
        let mut shape = Shape::default();
        let at = |shape: &Shape, first, last, merging| level_of(shape, &table(9, first, last), merging);
        assert_eq!(at(&shape, 1, 5, None), 6);
        assert_eq!(at(&shape, 1, 5, Some(6)), 5, "beside a merge into the level");
        assert_eq!(at(&shape, 1, 5, Some(5)), 6);
        shape.levels[6] = vec![table(1, 4, 6)];
        assert_eq!((at(&shape, 1, 3, None), at(&shape, 6, 9, None), at(&shape, 1, 9, None)), (6, 5, 5));
        shape.levels[2] = vec![table(2, 20, 30)];
        assert_eq!((at(&shape, 25, 26, None), at(&shape, 1, 9, None), at(&shape, 1, 30, None)), (1, 5, 1));
        assert_eq!(at(&shape, 25, 26, Some(1)), 0);
        shape.levels[1] = vec![table(3, 40, 50)];
        shape.levels[0] = vec![table(4, 60, 70)];
        assert_eq!((at(&shape, 45, 45, None), at(&shape, 65, 99, None), at(&shape, 65, 99, Some(0))), (0, 0, 0));
    }
}
