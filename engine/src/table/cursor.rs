//! Walks a table's entries in file order or backwards, lending each without a copy.
//!
//! Owns: which blocks are loaded and how far ahead. Never: the visibility of versions.

use std::ops::Range;
use std::sync::Arc;

use crate::error::Result;
use crate::lsn::Lsn;

use super::block::Block;
use super::format::Place;
use super::reader::{Caching, Table};
use super::{Bounds, EntryRef};

/// Read at once by who passes over the cache, in bytes.
const RUN_BYTES: u64 = 256 << 10;

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
    next_block: Next,
    block: Option<Arc<Block>>,
    offset: u64,
    /// The entries of `block` that are left: `at..end`.
    at: usize,
    end: usize,
    /// Bytes read ahead and where they start.
    run: (Vec<u8>, u64),
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
            block: None,
            offset: 0,
            at: 0,
            end: 0,
            run: (Vec::new(), 0),
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
        let table = Arc::clone(&self.table);
        let index = table.index()?;
        let number = match self.next_block {
            Next::At(number) => number,
            Next::First if !self.reverse => index.find(&self.bounds.low),
            Next::First if self.bounds.high.is_empty() => index.len().saturating_sub(1),
            Next::First => index.find(&self.bounds.high).min(index.len().saturating_sub(1)),
            Next::None => return Ok(false),
        };
        let Some(place) = index.place(number) else { return Ok(false) };
        // Keys ascend from block to block: once one begins beyond the bound, all others do.
        let before = number.checked_sub(1);
        let beyond = if self.reverse {
            !index.reaches(number, &self.bounds.low)
        } else {
            !self.bounds.high.is_empty() && before.is_some_and(|b| index.reaches(b, &self.bounds.high))
        };
        if beyond {
            return Ok(false);
        }
        let block = self.fetch(number, place)?;
        let damaged = |m| table.damaged(place.offset, m);
        self.at = block.lower_bound(&self.bounds.low).map_err(damaged)?;
        self.end = if self.bounds.high.is_empty() || !index.reaches(number, &self.bounds.high) {
            block.len()
        } else {
            block.lower_bound(&self.bounds.high).map_err(damaged)?
        };
        self.key.clear();
        self.key.extend_from_slice(block.prefix());
        (self.block, self.offset) = (Some(block), place.offset);
        self.next_block = match before {
            _ if !self.reverse => Next::At(number + 1),
            Some(before) => Next::At(before),
            None => Next::None,
        };
        Ok(true)
    }

    fn fetch(&mut self, number: usize, place: Place) -> Result<Arc<Block>> {
        if self.caching == Caching::Keep || self.reverse {
            return self.table.block(place, self.caching);
        }
        let (run, run_at) = &self.run;
        if place.offset < *run_at || place.offset + place.len > run_at + run.len() as u64 {
            self.run = self.table.read_run(number, RUN_BYTES)?.unwrap_or_default();
        }
        self.table.block_in(place, &self.run.0, self.run.1)
    }
}
