//! Merges sorted sources into one order: (key, LSN descending), or exactly backwards.
//!
//! Entries are lent where they lie. Owns: the order, and that an error of a source ends the merge.
//! Never: which version is visible.

use std::cmp::Ordering;
use std::ops::Range;
use std::sync::Arc;

use crate::error::Result;
use crate::lsn::Lsn;
use crate::table::cursor::TableCursor;
use crate::table::reader::{Caching, Table};
use crate::table::superseded::Superseded;
use crate::table::{Bounds, EntryRef, below_end, key_head};

use super::memtable::{Memtable, MemtableCursor};

/// A sorted source.
#[derive(Debug)]
pub(crate) enum Source {
    Memtable(MemtableCursor),
    Table(TableCursor),
    Level(LevelCursor),
    History(HistoryCursor),
}

impl Source {
    fn advance(&mut self) -> Result<bool> {
        match self {
            Self::Memtable(m) => Ok(m.advance()),
            Self::Table(t) => t.advance(),
            Self::Level(l) => l.advance(),
            Self::History(h) => h.advance(),
        }
    }

    fn entry(&self) -> Option<EntryRef<'_>> {
        match self {
            Self::Memtable(m) => m.entry(),
            Self::Table(t) => t.entry(),
            Self::Level(l) => l.current.as_ref().and_then(TableCursor::entry),
            Self::History(h) => h.entry(),
        }
    }
}

/// A source that stands at an entry, and the beginning of that entry's key: it mostly decides which comes first, without
/// a look at the source.
#[derive(Clone, Copy, Debug)]
struct Standing {
    head: u128,
    source: usize,
}

/// See the module. Stands before the first entry when made.
#[derive(Debug)]
pub(crate) struct Merge {
    /// They stay where they are: they are large.
    sources: Vec<Source>,
    /// Those at an entry, by their entries; the last is the merge's.
    standing: Vec<Standing>,
    reverse: bool,
    primed: bool,
}

impl Merge {
    pub(crate) const fn new(sources: Vec<Source>, reverse: bool) -> Self {
        Self { sources, standing: Vec::new(), reverse, primed: false }
    }

    fn first(&self) -> Option<&Source> {
        self.sources.get(self.standing.last()?.source)
    }

    /// The present entry; `None` before the first and at the end.
    pub(crate) fn entry(&self) -> Option<EntryRef<'_>> {
        self.first()?.entry()
    }

    /// The memtable that the present entry is in, if it is in one.
    pub(crate) fn memtable(&self) -> Option<&Memtable> {
        match self.first() {
            Some(Source::Memtable(m)) => Some(m.memtable()),
            _ => None,
        }
    }

    /// Tells the table of the present entry that scans pass over many deletes like it, or the memtable that they pass
    /// over much. False where compaction could do nothing about it.
    pub(crate) fn mark_crowded(&self) -> bool {
        let table = match self.first() {
            Some(Source::Memtable(m)) => {
                m.memtable().mark_crowded();
                return true;
            }
            Some(Source::Table(t)) => Some(t.table()),
            Some(Source::Level(l)) => l.current.as_ref().map(TableCursor::table),
            Some(Source::History(_)) | None => None,
        };
        let table = table.filter(|_| self.entry().is_some_and(|e| e.value.is_none()));
        table.inspect(|t| t.mark_crowded()).is_some()
    }

    /// Goes to the next entry; false at the end, and after an error.
    pub(crate) fn advance(&mut self) -> Result<bool> {
        let moved = if self.primed { self.step() } else { self.prime() };
        if moved.is_err() {
            self.standing.clear();
        }
        moved
    }

    fn prime(&mut self) -> Result<bool> {
        self.primed = true;
        let mut standing = Vec::with_capacity(self.sources.len());
        for (n, source) in self.sources.iter_mut().enumerate() {
            if source.advance()? {
                standing.push(Standing { head: head(source, self.reverse), source: n });
            }
        }
        standing.sort_by(|a, b| self.order(b, a));
        self.standing = standing;
        Ok(!self.standing.is_empty())
    }

    fn step(&mut self) -> Result<bool> {
        // With nothing beside it, its place needs no look at its key.
        if let [Standing { source: n, .. }] = self.standing.as_slice() {
            let moved = self.sources.get_mut(*n).map_or(Ok(false), Source::advance)?;
            if !moved {
                self.standing.clear();
            }
            return Ok(moved);
        }
        let Some(Standing { source: n, .. }) = self.standing.pop() else { return Ok(false) };
        let Some(source) = self.sources.get_mut(n) else { return Ok(false) };
        if !source.advance()? {
            return Ok(!self.standing.is_empty());
        }
        let moved = Standing { head: head(source, self.reverse), source: n };
        // Mostly the source that gave the last entry gives the next one: one comparison tells.
        let at = match self.standing.last() {
            Some(next) if self.order(next, &moved).is_lt() => {
                self.standing.partition_point(|other| self.order(other, &moved).is_gt())
            }
            _ => self.standing.len(),
        };
        self.standing.insert(at, moved);
        Ok(true)
    }

    fn order(&self, a: &Standing, b: &Standing) -> Ordering {
        let by_key = || {
            let entry = |s: &Standing| self.sources.get(s.source).and_then(Source::entry);
            let Some((a, b)) = entry(a).zip(entry(b)) else { return Ordering::Equal };
            let forward = a.key.cmp(b.key).then_with(|| b.lsn.cmp(&a.lsn));
            if self.reverse { forward.reverse() } else { forward }
        };
        a.head.cmp(&b.head).then_with(by_key)
    }
}

/// The beginning of the key that the source stands at, as a number in the merge's order.
fn head(source: &Source, reverse: bool) -> u128 {
    let head = key_head(source.entry().map_or(&[], |e| e.key));
    if reverse { !head } else { head }
}

/// One source out of tables that do not overlap and are sorted by key.
#[derive(Debug)]
pub(crate) struct LevelCursor {
    tables: Arc<Vec<Arc<Table>>>,
    /// Those of them that are still to come.
    left: Range<usize>,
    current: Option<TableCursor>,
    bounds: Arc<Bounds>,
    reverse: bool,
    caching: Caching,
}

impl LevelCursor {
    /// `tables`: those without entries first.
    pub(crate) fn new(tables: &Arc<Vec<Arc<Table>>>, bounds: Arc<Bounds>, reverse: bool, caching: Caching) -> Self {
        let before = |t: &Arc<Table>| t.properties().entries == 0 || t.properties().max_key < bounds.low;
        let not_behind =
            |t: &Arc<Table>| t.properties().entries == 0 || below_end(&t.properties().min_key, &bounds.high);
        let from = tables.partition_point(before);
        let left = from..tables.partition_point(not_behind).max(from);
        Self { tables: Arc::clone(tables), left, current: None, bounds, reverse, caching }
    }

    fn advance(&mut self) -> Result<bool> {
        loop {
            if let Some(current) = &mut self.current
                && current.advance()?
            {
                return Ok(true);
            }
            let next = if self.reverse { self.left.next_back() } else { self.left.next() };
            let Some(table) = next.and_then(|n| self.tables.get(n)) else {
                self.current = None;
                return Ok(false);
            };
            let (table, bounds) = (Arc::clone(table), Arc::clone(&self.bounds));
            self.current = Some(TableCursor::new(table, bounds, self.reverse, self.caching));
        }
    }
}

/// The versions of a history table that reads at an LSN see.
#[derive(Debug)]
pub(crate) struct HistoryCursor {
    table: TableCursor,
    lsn: Lsn,
    /// Whether the present version is a put, and where its envelope begins.
    present: (bool, usize),
}

impl HistoryCursor {
    pub(crate) const fn new(table: TableCursor, lsn: Lsn) -> Self {
        Self { table, lsn, present: (false, 0) }
    }

    fn advance(&mut self) -> Result<bool> {
        while self.table.advance()? {
            let Some(entry) = self.table.entry() else { break };
            let s = Superseded::decode(entry.value.unwrap_or_default())?;
            self.present = (s.put, s.envelope_at);
            if entry.lsn <= self.lsn && self.lsn < s.by {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn entry(&self) -> Option<EntryRef<'_>> {
        let entry = self.table.entry()?;
        let (put, at) = self.present;
        let envelope = entry.value.and_then(|v| v.get(at..));
        Some(EntryRef { value: envelope.filter(|_| put), ..entry })
    }
}
