//! Merges sorted sources into one order: (key, LSN descending), or exactly backwards.
//!
//! Owns: the order and that an error of a source ends the merge. Never: which version is visible.

use std::cmp::Ordering;
use std::collections::VecDeque;
use std::sync::Arc;

use crate::error::Result;
use crate::table::reader::{Caching, Table, TableIter};
use crate::table::{Item, below_end};

/// A sorted source. Sources are few (memtables, level 0, one for level 1): a linear choice is
/// enough.
pub(crate) type Source = Box<dyn Iterator<Item = Result<Item>> + Send>;

pub(crate) struct Merge {
    sources: Vec<(Option<Item>, Source)>,
    reverse: bool,
    primed: bool,
}

impl Merge {
    pub(crate) fn new(sources: Vec<Source>, reverse: bool) -> Self {
        Self { sources: sources.into_iter().map(|s| (None, s)).collect(), reverse, primed: false }
    }

    fn advance(&mut self) -> Result<Option<Item>> {
        if !self.primed {
            self.primed = true;
            for (head, source) in &mut self.sources {
                *head = source.next().transpose()?;
            }
        }
        let reverse = self.reverse;
        let best = self
            .sources
            .iter_mut()
            .filter(|(head, _)| head.is_some())
            .min_by(|(a, _), (b, _)| order(a.as_ref(), b.as_ref(), reverse));
        let Some((head, source)) = best else { return Ok(None) };
        let next = source.next().transpose()?;
        Ok(std::mem::replace(head, next))
    }
}

fn order(a: Option<&Item>, b: Option<&Item>, reverse: bool) -> Ordering {
    let Some((a, b)) = a.zip(b) else { return Ordering::Equal };
    let forward = a.key.cmp(&b.key).then_with(|| b.lsn.cmp(&a.lsn));
    if reverse { forward.reverse() } else { forward }
}

impl Iterator for Merge {
    type Item = Result<Item>;

    fn next(&mut self) -> Option<Self::Item> {
        let out = self.advance().transpose();
        if matches!(out, Some(Err(_))) {
            self.sources.clear();
        }
        out
    }
}

impl std::fmt::Debug for Merge {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Merge").field("sources", &self.sources.len()).finish_non_exhaustive()
    }
}

/// One source out of tables that do not overlap and are sorted by key.
#[derive(Debug)]
pub(crate) struct LevelIter {
    tables: VecDeque<Arc<Table>>,
    current: Option<TableIter>,
    low: Vec<u8>,
    high: Vec<u8>,
    reverse: bool,
    caching: Caching,
}

impl LevelIter {
    pub(crate) fn new(tables: &[Arc<Table>], low: Vec<u8>, high: Vec<u8>, reverse: bool, caching: Caching) -> Self {
        let wanted = |t: &&Arc<Table>| {
            let p = t.properties();
            p.entries > 0 && p.max_key >= low && below_end(&p.min_key, &high)
        };
        let tables = tables.iter().filter(wanted).cloned().collect();
        Self { tables, current: None, low, high, reverse, caching }
    }
}

impl Iterator for LevelIter {
    type Item = Result<Item>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(item) = self.current.as_mut().and_then(Iterator::next) {
                return Some(item);
            }
            let table = if self.reverse { self.tables.pop_back() } else { self.tables.pop_front() }?;
            let (low, high) = (self.low.clone(), self.high.clone());
            self.current = Some(TableIter::new(table, low, high, self.reverse, self.caching));
        }
    }
}
