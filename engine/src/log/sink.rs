//! How frames get into their segment's file: small pieces through a window, others by a call.
//!
//! Owns: the window, and which segment has bytes that no sync covers. Held by whoever leads. Never: order (`writer`).

use std::io;
use std::sync::Arc;

use super::segment::Segment;
use crate::fs::Window;

/// Bytes of a window. Making one costs about as much as forty calls.
const WINDOW_BYTES: u64 = 256 << 10;
/// A piece from this size on is written by a call: copying is most of the work then.
const LARGE: usize = 16 << 10;

#[derive(Debug, Default)]
pub(super) struct Sink {
    /// The segment that has written bytes which no sync covers yet.
    unsynced: Option<Arc<Segment>>,
    window: Option<Open>,
    /// This file system has none.
    no_windows: bool,
}

#[derive(Debug)]
struct Open {
    segment: Arc<Segment>,
    from: u64,
    to: u64,
    window: Box<dyn Window>,
}

impl Sink {
    /// Writes a piece. One that is to be synced at once is not worth a window: after each sync the system has to make its
    /// pages writable again.
    pub(super) fn write(&mut self, segment: &Arc<Segment>, bytes: &[u8], offset: u64, sync: bool) -> io::Result<()> {
        if sync || bytes.len() >= LARGE || self.no_windows || !self.write_mapped(segment, bytes, offset)? {
            segment.file.write_all_at(bytes, offset)?;
        }
        if self.unsynced.as_ref().is_none_or(|s| !Arc::ptr_eq(s, segment)) {
            self.unsynced = Some(Arc::clone(segment));
        }
        Ok(())
    }

    /// False when there is no window to be had.
    fn write_mapped(&mut self, segment: &Arc<Segment>, bytes: &[u8], offset: u64) -> io::Result<bool> {
        let end = offset + bytes.len() as u64;
        // After a cut offsets begin lower again.
        let inside = |o: &Open| o.from <= offset && end <= o.to && Arc::ptr_eq(&o.segment, segment);
        let fits = self.window.as_ref().is_some_and(inside);
        if !fits {
            self.window = None;
            let to = (offset + WINDOW_BYTES).min(segment.bytes);
            let len = to.checked_sub(offset).filter(|_| end <= to).and_then(|len| usize::try_from(len).ok());
            let Some(len) = len else { return Ok(false) };
            match segment.file.window(offset, len)? {
                Some(window) => self.window = Some(Open { segment: Arc::clone(segment), from: offset, to, window }),
                None => self.no_windows = true,
            }
        }
        match &mut self.window {
            Some(open) => open.window.write_at(bytes, offset).map(|()| true),
            None => Ok(false),
        }
    }

    /// The segment that needs a sync, which the caller now does.
    pub(super) fn take_unsynced(&mut self) -> Option<Arc<Segment>> {
        self.unsynced.take()
    }
}
