//! How frames get into their segment's file: small pieces through a window, those to be synced past the page cache, others
//! by a call.
//!
//! Owns: the window, the direct handle, and which segment has bytes that no sync covers. Held by whoever leads. Never:
//! order (`writer`).

use std::io;
use std::sync::Arc;

use super::ahead::{Ahead, Open};
use super::segment::Segment;
use crate::env::Env;
use crate::error::too_many_files;
use crate::fault::{Bug, planted};
use crate::fs::{Blocks, DIRECT_BYTES, File, read_exact_at};

/// Bytes of a window. Making one costs about as much as forty calls.
const WINDOW_BYTES: u64 = 256 << 10;
/// A piece from this size on is written by a call: copying is most of the work then.
const LARGE: usize = 16 << 10;
/// Larger groups go through the page cache, so that the buffer stays small.
const DIRECT_MAX: usize = 512 << 10;
/// So many groups in a row have been synced before the next one is written past the page cache: pages that a window
/// has been on would have to go first.
const DIRECT_AFTER: u32 = 4;

#[derive(Debug, Default)]
pub(super) struct Sink {
    /// The segment that has written bytes which no sync covers yet.
    unsynced: Option<Arc<Segment>>,
    window: Option<Open>,
    /// The window behind that.
    ahead: Arc<Ahead>,
    /// This file system has none, or one was refused: it is not asked again.
    no_windows: bool,
    direct: Option<Direct>,
    /// As for windows.
    no_direct: bool,
    /// Groups since one that was not synced.
    synced_groups: u32,
}

/// Bytes for a place in a segment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece<'a> {
    pub(super) segment: &'a Arc<Segment>,
    pub(super) bytes: &'a [u8],
    /// So many of them are frames: the next piece begins behind those.
    pub(super) len: usize,
    pub(super) offset: u64,
}

/// A segment that is written in whole blocks. The last one is written again with what comes behind: its bytes so far do
/// not change by that, whatever part of it a power loss lets through.
#[derive(Debug)]
struct Direct {
    segment: Arc<Segment>,
    file: Arc<dyn File>,
    /// What the file has from `from` on, up to the end of the log; less than a block. None when it has to be read.
    last: Blocks,
    from: Option<u64>,
}

impl Sink {
    pub(super) fn new(ahead: &Arc<Ahead>) -> Self {
        Self { ahead: Arc::clone(ahead), ..Self::default() }
    }

    /// Writes a piece. With `sync` it is the last of a group that is to be synced now; returns whether it was.
    pub(super) fn write(&mut self, env: &Env, piece: &Piece<'_>, sync: bool) -> io::Result<bool> {
        let Piece { segment, bytes, offset, .. } = *piece;
        self.synced_groups = if sync { self.synced_groups.saturating_add(1) } else { 0 };
        // A direct write makes nothing durable but itself.
        let alone = self.unsynced.is_none() && self.synced_groups >= DIRECT_AFTER;
        if sync && (alone || planted(Bug::DirectPastUnsynced)) && self.write_direct(env, piece)? {
            self.unsynced = None;
            return Ok(true);
        }
        if let Some(direct) = &mut self.direct {
            direct.from = None;
        }
        // After each sync the system has to make a window's pages writable again.
        if sync || bytes.len() >= LARGE || self.no_windows || !self.write_mapped(segment, bytes, offset)? {
            segment.file.write_all_at(bytes, offset)?;
        }
        if self.unsynced.as_ref().is_none_or(|s| !Arc::ptr_eq(s, segment)) {
            self.unsynced = Some(Arc::clone(segment));
        }
        Ok(false)
    }

    /// False when there is no window to be had.
    fn write_mapped(&mut self, segment: &Arc<Segment>, bytes: &[u8], offset: u64) -> io::Result<bool> {
        let end = offset + bytes.len() as u64;
        if !self.window.as_ref().is_some_and(|w| w.holds(segment, offset, end))
            && !self.next_window(segment, offset, end)?
        {
            return Ok(false);
        }
        match &mut self.window {
            Some(open) => open.write_at(bytes, offset).map(|()| true),
            None => Ok(false),
        }
    }

    /// Goes on to a window that holds `offset..end`. False when there is none to be had.
    fn next_window(&mut self, segment: &Arc<Segment>, offset: u64, end: u64) -> io::Result<bool> {
        let used = self.window.take();
        self.window = self.ahead.take(segment, offset, end);
        if self.window.is_none() {
            let to = (offset + WINDOW_BYTES).min(segment.bytes);
            if end <= to {
                self.window = Open::new(segment, offset, to)?;
                self.no_windows = self.window.is_none();
            }
        }
        let Some(window) = &self.window else {
            // Without a window there is none ahead of it: a direct write counts on that.
            self.ahead.clear();
            return Ok(false);
        };
        // The piece that does not fit any more begins less than its own length before the end.
        let from = window.to().saturating_sub(LARGE as u64);
        let to = (window.to() + WINDOW_BYTES).min(segment.bytes);
        if to > window.to() {
            self.ahead.want(segment, from, to, used);
        }
        Ok(true)
    }

    /// Writes a whole group durably past the page cache. False, with nothing written, when that is not to be had.
    fn write_direct(&mut self, env: &Env, piece: &Piece<'_>) -> io::Result<bool> {
        let Piece { segment, bytes, offset, .. } = *piece;
        let end = (offset + bytes.len() as u64).next_multiple_of(DIRECT_BYTES as u64);
        if self.no_direct || bytes.len() > DIRECT_MAX || end > segment.bytes {
            return Ok(false);
        }
        if self.window.take().is_some() {
            self.ahead.clear();
        }
        if self.direct.as_ref().is_none_or(|d| !Arc::ptr_eq(&d.segment, segment)) {
            let last = self.direct.take().map(|d| d.last).unwrap_or_default();
            // Another handle may be refused, which is no harm: the one that is open does as well.
            let file = match env.fs.open_direct(&segment.path) {
                Ok(Some(file)) => file,
                // There may be fewer open the next time.
                Err(e) if too_many_files(&e) => return Ok(false),
                Ok(None) | Err(_) => {
                    self.no_direct = true;
                    return Ok(false);
                }
            };
            self.direct = Some(Direct { segment: Arc::clone(segment), file, last, from: None });
        }
        let Some(direct) = &mut self.direct else { return Ok(false) };
        match direct.append(piece) {
            // Refused before anything was written: a disk with larger blocks.
            Err(e) if matches!(e.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported) => {
                (self.direct, self.no_direct) = (None, true);
                Ok(false)
            }
            other => other.map(|()| true),
        }
    }

    /// The segment that needs a sync, which the caller now does.
    pub(super) fn take_unsynced(&mut self) -> Option<Arc<Segment>> {
        self.unsynced.take()
    }

    /// Memory of the blocks that are written past the page cache, in bytes. Pages of a window are the system's.
    pub(super) fn memory(&self) -> usize {
        self.direct.as_ref().map_or(0, |d| d.last.memory())
    }

    /// The last group was written past the page cache.
    #[cfg(test)]
    pub(super) fn is_direct(&self) -> bool {
        self.direct.as_ref().is_some_and(|d| d.from.is_some())
    }

    /// The log was cut: what is in the files is no longer what was written here last.
    pub(super) fn cut(&mut self) {
        self.window = None;
        self.ahead.clear();
        self.direct = None;
    }
}

impl Direct {
    fn append(&mut self, &Piece { bytes, len, offset, .. }: &Piece<'_>) -> io::Result<()> {
        let block = DIRECT_BYTES as u64;
        let from = offset / block * block;
        let had = (offset - from) as usize;
        if self.from != Some(from) || self.last.len() != had {
            let mut last = vec![0; had];
            read_exact_at(&*self.segment.file, &mut last, from)?;
            self.last.clear();
            self.last.push(&last);
        }
        self.from = None;
        self.last.push(bytes);
        let end = had + len;
        self.last.pad();
        self.file.write_all_at(self.last.as_slice(), from)?;
        let whole = end / DIRECT_BYTES * DIRECT_BYTES;
        self.last.keep(whole..end);
        self.from = Some(from + whole as u64);
        Ok(())
    }
}
