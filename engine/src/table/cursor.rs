//! Walks a table's entries in file order or backwards, lending each without a copy.
//!
//! An index that is not pinned is asked for many blocks at once and not kept: with a cursor in each of hundreds of
//! history tables their indexes together would be more than the memory. Owns: which blocks are loaded and how far
//! ahead. Never: the visibility of versions.

use std::ops::Range;
use std::sync::Arc;

use crate::error::Result;
use crate::lsn::Lsn;

use super::block::Block;
use super::format::Place;
use super::index::Index;
use super::parts::Lent;
use super::reader::{Caching, Table};
use super::run::Run;
use super::{Bounds, EntryRef};

/// Of an index that is not pinned so many blocks are taken at once, first and at most.
const STRETCH_FIRST: usize = 8;
const STRETCH_MOST: usize = 128;
/// By who passes over the cache: there are few of those at once, each goes through the whole table, and nobody keeps the index for
/// it meanwhile.
const STRETCH_BYPASS: usize = 4096;

/// A block on the way.
#[derive(Clone, Copy, Debug)]
struct Stop {
    number: usize,
    place: Place,
    /// The range may end in it.
    last: bool,
}

/// The block to load next.
#[derive(Clone, Copy, Debug)]
enum Next {
    /// The one where the range begins.
    First,
    At(usize),
    None,
}

/// Iterates a table's entries within bounds. After an error it is
/// at its end.
#[derive(Debug)]
pub(crate) struct TableCursor {
    table: Arc<Table>,
    bounds: Arc<Bounds>,
    reverse: bool,
    caching: Caching,
    /// Behind those of `ahead`.
    next_block: Next,
    /// Of an index that is not pinned: the next blocks, the nearest last.
    ahead: Vec<Stop>,
    stretch: usize,
    block: Option<Arc<Block>>,
    offset: u64,
    /// The entries of `block` that are left: `at..end`.
    at: usize,
    end: usize,
    run: Run,
    /// The present entry. `key` starts with the block's prefix.
    key: Vec<u8>,
    lsn: Lsn,
    value: Option<Range<usize>>,
    valid: bool,
}

impl TableCursor {
    /// Stands before the first entry: call [`TableCursor::advance`].
    pub(crate) fn new(table: Arc<Table>, bounds: Arc<Bounds>, reverse: bool, caching: Caching) -> Self {
        Self {
            table,
            bounds,
            reverse,
            caching,
            next_block: Next::First,
            ahead: Vec::new(),
            stretch: if caching == Caching::Bypass { STRETCH_BYPASS } else { STRETCH_FIRST },
            block: None,
            offset: 0,
            at: 0,
            end: 0,
            run: Run::default(),
            key: Vec::new(),
            lsn: Lsn::ZERO,
            value: None,
            valid: false,
        }
    }

    pub(crate) fn table(&self) -> &Table {
        &self.table
    }

    /// The present entry; `None` before the first and at the end.
    pub(crate) fn entry(&self) -> Option<EntryRef<'_>> {
        if !self.valid {
            return None;
        }
        let block = self.block.as_ref()?;
        Some(EntryRef { key: &self.key, lsn: self.lsn, value: self.value.as_ref().map(|at| block.value(at)) })
    }

    /// Goes to the next entry; false at the end.
    pub(crate) fn advance(&mut self) -> Result<bool> {
        let moved = self.step();
        self.valid = matches!(moved, Ok(true));
        if !self.valid {
            (self.block, self.next_block) = (None, Next::None);
            self.ahead.clear();
            self.run = Run::default();
            (self.at, self.end) = (0, 0);
        }
        moved
    }

    fn step(&mut self) -> Result<bool> {
        while self.at >= self.end {
            if !self.load()? {
                return Ok(false);
            }
        }
        let Some(block) = &self.block else { return Ok(false) };
        let index = if self.reverse { self.end - 1 } else { self.at };
        let entry = block.entry(index).map_err(|m| self.table.damaged(self.offset, m))?;
        self.key.truncate(block.prefix().len());
        entry.put_tail(&mut self.key);
        (self.lsn, self.value) = (self.table.lsn_of(entry.lsn), entry.value);
        if self.reverse {
            self.end -= 1;
        } else {
            self.at += 1;
        }
        Ok(true)
    }

    /// Loads the next block that may hold wanted entries; false at the end.
    fn load(&mut self) -> Result<bool> {
        let Some(stop) = self.next_stop()? else { return Ok(false) };
        let block = self.fetch(stop)?;
        let damaged = |m| self.table.damaged(stop.place.offset, m);
        let at = block.lower_bound(&self.bounds.low).map_err(damaged)?;
        let end = if stop.last { block.lower_bound(&self.bounds.high).map_err(damaged)? } else { block.len() };
        (self.at, self.end) = (at, end);
        self.key.clear();
        self.key.extend_from_slice(block.prefix());
        (self.block, self.offset) = (Some(block), stop.place.offset);
        Ok(true)
    }

    fn next_stop(&mut self) -> Result<Option<Stop>> {
        if let Some(stop) = self.ahead.pop() {
            return Ok(Some(stop));
        }
        if matches!(self.next_block, Next::None) {
            return Ok(None);
        }
        let index = self.table.index_for(self.caching)?;
        let most = if matches!(index, Lent::Pinned(_)) { 1 } else { self.stretch };
        let (first, mut next) = self.stop_in(&index, self.next_block);
        let mut ahead = std::mem::take(&mut self.ahead);
        while ahead.len() + 1 < most
            && let (Some(stop), behind) = self.stop_in(&index, next)
        {
            ahead.push(stop);
            next = behind;
        }
        drop(index);
        ahead.reverse();
        self.stretch = match self.caching {
            Caching::Keep => most.saturating_mul(4).clamp(STRETCH_FIRST, STRETCH_MOST),
            Caching::Bypass => STRETCH_BYPASS,
        };
        (self.next_block, self.ahead) = (next, ahead);
        Ok(first)
    }

    /// The block at `next` by the index, and what is behind it; `None` at the end of the range.
    fn stop_in(&self, index: &Index, next: Next) -> (Option<Stop>, Next) {
        let (low, high) = (&self.bounds.low, &self.bounds.high);
        let number = match next {
            Next::At(number) => number,
            Next::First if !self.reverse => index.find(low),
            Next::First if high.is_empty() => index.len().saturating_sub(1),
            Next::First => index.find(high).min(index.len().saturating_sub(1)),
            Next::None => return (None, Next::None),
        };
        let Some(place) = index.place(number) else { return (None, Next::None) };
        // Keys ascend from block to block: once one begins beyond the bound, all others do.
        let before = number.checked_sub(1);
        let beyond = if self.reverse {
            !index.reaches(number, low)
        } else {
            !high.is_empty() && before.is_some_and(|b| index.reaches(b, high))
        };
        if beyond {
            return (None, Next::None);
        }
        let behind = match before {
            _ if !self.reverse => Next::At(number + 1),
            Some(before) => Next::At(before),
            None => Next::None,
        };
        (Some(Stop { number, place, last: !high.is_empty() && index.reaches(number, high) }), behind)
    }

    /// Where in the file the last run that was read at once ends.
    #[cfg(all(test, feature = "sim"))]
    pub(super) fn read_to(&self) -> u64 {
        let (bytes, at) = self.run.bytes();
        at + bytes.len() as u64
    }

    fn fetch(&mut self, stop: Stop) -> Result<Arc<Block>> {
        let (place, table) = (stop.place, &self.table);
        if self.reverse {
            return table.block(place, self.caching);
        }
        if self.caching == Caching::Keep
            && let Some(block) = table.cached(place)
        {
            self.run.found_one();
            return Ok(block);
        }
        if !self.run.has(place) && !self.read_ahead(stop)? {
            let block = self.table.read_block(place)?;
            self.table.offer(place, &block);
            return Ok(block);
        }
        // What it held is used for the next one.
        self.block = None;
        let block = Arc::new(self.table.block_in(place, self.run.bytes())?);
        if self.caching == Caching::Keep {
            self.table.offer(place, &block);
        }
        Ok(block)
    }

    /// Reads the block and some behind it, if that is wanted. A reader that does not get so much asks for the block alone: what is
    /// behind it may never be asked for.
    fn read_ahead(&mut self, stop: Stop) -> Result<bool> {
        if stop.last && self.caching == Caching::Keep {
            return Ok(false);
        }
        let Some(bytes) = self.run.wanted(stop.place, self.caching, self.table.cache()) else { return Ok(false) };
        let read = match self.table.pinned_index() {
            Some(index) => {
                let high = &self.bounds.high;
                let within = |n: &usize| high.is_empty() || !index.reaches(n - 1, high);
                let next = (stop.number + 1..index.len()).take_while(within).filter_map(|n| index.place(n));
                self.table.read_ahead(&mut self.run, stop.place, next, bytes)
            }
            None => {
                let next = self.ahead.iter().rev().map(|s| s.place);
                self.table.read_ahead(&mut self.run, stop.place, next, bytes)
            }
        };
        match read {
            Err(_) if self.caching == Caching::Keep => Ok(false),
            read => read.map(|()| true),
        }
    }
}
