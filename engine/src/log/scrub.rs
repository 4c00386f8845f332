//! Checks the sealed segments of a running log, one by one, in steps.
//!
//! Owns: which segments are sealed, and that one which is let go meanwhile is not called damaged. Never: the segment
//! that is being written; recovery judges its end.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

use super::inspect::SegmentWalk;
use super::{Log, Segment, Shared, lock};
use crate::error::{Error, Result};
use crate::inspect::Finding;
use crate::lsn::{Lsn, Position};
use crate::tree::Scrubbed;

/// A sealed segment that is to be checked.
#[derive(Debug)]
pub(crate) struct SegmentScrub {
    shared: Arc<Shared>,
    segment: Weak<Segment>,
    path: PathBuf,
    bytes: u64,
    /// Where the next segment begins.
    end: Position,
    walk: Option<SegmentWalk>,
}

impl SegmentScrub {
    /// The file.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Its length in bytes.
    pub(crate) const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Checks about so many bytes more.
    pub(crate) fn step(&mut self, bytes: u64) -> Scrubbed {
        let Some(segment) = self.segment.upgrade() else { return Scrubbed::Gone };
        let stepped = match &mut self.walk {
            Some(walk) => walk.step(bytes),
            None => {
                match SegmentWalk::open(&*self.shared.env.fs, &self.path, segment.header().into(), Lsn::MAX, None) {
                    Ok(walk) => {
                        self.walk = Some(walk);
                        return Scrubbed::Read(0);
                    }
                    Err(e) => Err(e),
                }
            }
        };
        let found = match stepped {
            Ok(Some(read)) => return Scrubbed::Read(read),
            Ok(None) => Ok(self.judge()),
            Err(e) => self.unreadable(e).map(Some),
        };
        // Let go, used again or cut meanwhile: what was read proves nothing.
        if !self.is_sealed(&segment) {
            return Scrubbed::Gone;
        }
        match found {
            Ok(found) => Scrubbed::Whole(found.into_iter().collect()),
            Err(e) => {
                self.walk = None;
                Scrubbed::Unread(e)
            }
        }
    }

    /// The frames have ended: they must have come to where the next segment begins.
    fn judge(&self) -> Option<Finding> {
        let walk = self.walk.as_ref()?;
        if walk.end == self.end {
            return None;
        }
        let breach = walk.breach();
        let why = breach.what.unwrap_or_else(|| "no record here".into());
        let what = format!("{why}; records up to LSN {} were durable, the next segment says", self.end.lsn);
        Some(Finding { path: self.path.clone(), offset: breach.offset, lsn: Some(walk.end.lsn.next()), what })
    }

    fn unreadable(&self, e: Error) -> Result<Finding> {
        if let Error::Io { source, .. } = &e
            && source.kind() == ErrorKind::NotFound
        {
            let what = "the segment is missing".to_owned();
            return Ok(Finding { path: self.path.clone(), offset: 0, lsn: None, what });
        }
        Finding::of(e, self.walk.as_ref().map_or(0, |w| w.breach().offset))
    }

    fn is_sealed(&self, segment: &Arc<Segment>) -> bool {
        let segments = lock(&self.shared.segments);
        let at = segments.iter().position(|s| Arc::ptr_eq(s, segment));
        let next = at.and_then(|n| segments.get(n + 1));
        next.is_some_and(|n| n.base == self.end)
    }
}

impl Log {
    /// The segments before the newest one: all in them was synced before the next one's header was written.
    pub(crate) fn segments_to_scrub(&self) -> Vec<SegmentScrub> {
        let segments = lock(&self.shared.segments);
        let pairs = segments.iter().zip(segments.iter().skip(1)).filter(|(_, next)| next.header_synced());
        pairs
            .map(|(s, next)| SegmentScrub {
                shared: Arc::clone(&self.shared),
                segment: Arc::downgrade(s),
                path: s.path.clone(),
                bytes: s.bytes,
                end: next.base,
                walk: None,
            })
            .collect()
    }
}
