//! The bytes of one simulated file: what is on the medium, what is only in the cache.
//!
//! Owns: the data half of the crash model. Invariant: bytes that a sync covered and no later write
//! touched survive every crash. Never: names, handles, faults.

use std::mem;
use std::ops::Range;

use super::dice::Fate;

/// The unit that is written whole or not at all, and the unit of allocation, in bytes.
pub(super) const SECTOR: usize = 512;

#[derive(Debug, Hash)]
enum Change {
    Write { offset: usize, bytes: Vec<u8> },
    SetLen(usize),
}

/// A file's content.
#[derive(Debug, Default, Hash)]
pub(super) struct Content {
    /// What readers see.
    current: Vec<u8>,
    /// What is on the medium.
    durable: Vec<u8>,
    /// Changes since the last sync, in order. `current` is not always `durable` plus these: a
    /// failed sync forgets changes that the cache still shows.
    pending: Vec<Change>,
    /// Which sectors of `current` have room on the medium; a hole has none.
    allocated: Vec<bool>,
}

impl Content {
    pub(super) fn len(&self) -> usize {
        self.current.len()
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.current
    }

    /// Room taken, in bytes: whole sectors, holes excluded.
    pub(super) fn allocated(&self) -> u64 {
        self.allocated.iter().filter(|a| **a).count() as u64 * SECTOR as u64
    }

    /// How many of `len` bytes at `offset` can be written when `room` bytes are free.
    pub(super) fn fitting(&self, offset: usize, len: usize, room: u64) -> usize {
        let mut sectors_left = room / SECTOR as u64;
        for piece in pieces(offset, len) {
            if !self.allocated.get(piece.start / SECTOR).copied().unwrap_or(false) {
                if sectors_left == 0 {
                    return piece.start - offset;
                }
                sectors_left -= 1;
            }
        }
        len
    }

    pub(super) fn write(&mut self, offset: usize, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        put(&mut self.current, offset, bytes);
        self.allocated.resize(self.current.len().div_ceil(SECTOR), false);
        for piece in pieces(offset, bytes.len()) {
            self.allocated[piece.start / SECTOR] = true;
        }
        self.pending.push(Change::Write { offset, bytes: bytes.to_vec() });
    }

    pub(super) fn set_len(&mut self, len: usize) {
        self.current.resize(len, 0);
        self.allocated.resize(len.div_ceil(SECTOR), false);
        self.pending.push(Change::SetLen(len));
    }

    /// A sync that succeeds.
    pub(super) fn sync(&mut self) {
        for change in mem::take(&mut self.pending) {
            match change {
                Change::Write { offset, bytes } => put(&mut self.durable, offset, &bytes),
                Change::SetLen(len) => self.durable.resize(len, 0),
            }
        }
    }

    /// What stands in `range` gets to the medium, and nothing else does; earlier changes there are outdone by it.
    pub(super) fn sync_range(&mut self, range: Range<usize>) {
        let bytes = self.current.get(range.clone()).unwrap_or_default().to_vec();
        put(&mut self.durable, range.start, &bytes);
        self.pending.retain_mut(|change| {
            let Change::Write { offset, bytes: old } = change else { return true };
            let end = *offset + old.len();
            let (from, to) = (range.start.max(*offset), range.end.min(end));
            if from < to {
                old[from - *offset..to - *offset].copy_from_slice(&bytes[from - range.start..to - range.start]);
            }
            !(range.start <= *offset && end <= range.end)
        });
    }

    /// A sync that fails: the changes will never reach the medium, and the next sync has nothing
    /// to complain about. With `evict`, the cache forgets them at once too.
    pub(super) fn lose_dirty(&mut self, evict: bool) {
        self.pending.clear();
        if evict {
            self.current = self.durable.clone();
            self.recount();
        }
    }

    /// A power cut.
    pub(super) fn crash(&mut self, fate: &mut Fate) {
        for change in mem::take(&mut self.pending) {
            match change {
                Change::Write { offset, bytes } => crash_write(&mut self.durable, offset, &bytes, fate),
                Change::SetLen(len) => {
                    if fate.survives() {
                        self.durable.resize(len, 0);
                    }
                }
            }
        }
        self.current = self.durable.clone();
        self.recount();
    }

    /// Flips one bit wherever this byte is kept. False when the file is not that long.
    pub(super) fn flip(&mut self, offset: usize, bit: u8) -> bool {
        let mask = 1_u8 << (bit % 8);
        let mut found = false;
        for copy in [&mut self.current, &mut self.durable] {
            if let Some(b) = copy.get_mut(offset) {
                *b ^= mask;
                found = true;
            }
        }
        for change in &mut self.pending {
            if let Change::Write { offset: start, bytes } = change
                && let Some(b) = offset.checked_sub(*start).and_then(|at| bytes.get_mut(at))
            {
                *b ^= mask;
            }
        }
        found
    }

    /// After the cache was replaced: what was allotted stays so, and data needs room.
    fn recount(&mut self) {
        self.allocated.resize(self.current.len().div_ceil(SECTOR), false);
        for (room, sector) in self.allocated.iter_mut().zip(self.current.chunks(SECTOR)) {
            *room |= sector.iter().any(|b| *b != 0);
        }
    }
}

/// Writes, growing with zeros.
fn put(to: &mut Vec<u8>, offset: usize, bytes: &[u8]) {
    let end = offset + bytes.len();
    if to.len() < end {
        to.resize(end, 0);
    }
    to[offset..end].copy_from_slice(bytes);
}

/// What a power cut leaves of an unsynced write: any subset of its sectors, in a file that may have
/// grown to any kept sector or to the full length, with zeros or junk in place of what is lost.
fn crash_write(medium: &mut Vec<u8>, offset: usize, bytes: &[u8], fate: &mut Fate) {
    let old_len = medium.len();
    let end = offset + bytes.len();
    let kept: Vec<_> = pieces(offset, bytes.len()).filter(|_| fate.survives()).collect();
    let mut len = kept.last().map_or(old_len, |piece| piece.end.max(old_len));
    if len < end && fate.coin() {
        len = end;
    }
    if len > old_len {
        medium.resize(len, 0);
        if fate.coin() {
            // A gap before the write was never allotted: it reads as zeros on every file system.
            if let Some(grown) = medium.get_mut(old_len.max(offset)..) {
                fate.junk(grown);
            }
        }
    }
    for piece in kept {
        let from = piece.start - offset..piece.end - offset;
        medium[piece].copy_from_slice(&bytes[from]);
    }
}

/// The range cut at sector boundaries.
fn pieces(offset: usize, len: usize) -> impl Iterator<Item = Range<usize>> {
    let end = offset + len;
    let mut at = offset;
    std::iter::from_fn(move || {
        if at >= end {
            return None;
        }
        let next = ((at / SECTOR + 1) * SECTOR).min(end);
        let piece = at..next;
        at = next;
        Some(piece)
    })
}
