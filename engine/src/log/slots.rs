//! Slots: who still needs which part of the log, and for how long that is respected.
//!
//! Owns: claims and the release of segments. Never: an unbounded claim; a slot that holds more than
//! its share is lost, and its owner falls back to a checkpoint or the archive \[I12\].

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::Log;
use crate::error::{Error, Result};
use crate::lsn::Lsn;

#[derive(Clone, Debug)]
struct Claim {
    name: String,
    at: Lsn,
    lost: bool,
}

#[derive(Debug, Default)]
pub(super) struct Slots {
    claims: Mutex<(u64, BTreeMap<u64, Claim>)>,
}

impl Slots {
    fn lock(&self) -> MutexGuard<'_, (u64, BTreeMap<u64, Claim>)> {
        self.claims.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A reader's claim on the log from an LSN on. Dropping it gives the claim up.
#[derive(Debug)]
pub struct Slot {
    id: u64,
    slots: Arc<Slots>,
}

/// A slot, for status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotStatus {
    /// Whose it is.
    pub name: String,
    /// First LSN still needed.
    pub at: Lsn,
    /// It held too much and no longer counts.
    pub lost: bool,
}

impl Slot {
    /// Everything below `at` is no longer needed.
    pub fn advance(&self, at: Lsn) {
        if let Some(claim) = self.slots.lock().1.get_mut(&self.id) {
            claim.at = claim.at.max(at);
        }
    }

    /// Whether the claim was given up because it held too much.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.slots.lock().1.get(&self.id).is_none_or(|c| c.lost)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.slots.lock().1.remove(&self.id);
    }
}

impl Log {
    /// Claims the log from `at` on.
    #[must_use]
    pub fn slot(&self, name: &str, at: Lsn) -> Slot {
        let mut slots = self.slots.lock();
        slots.0 += 1;
        let id = slots.0;
        slots.1.insert(id, Claim { name: name.to_owned(), at, lost: false });
        Slot { id, slots: Arc::clone(&self.slots) }
    }

    /// All claims.
    #[must_use]
    pub fn slots(&self) -> Vec<SlotStatus> {
        let slots = self.slots.lock();
        slots.1.values().map(|c| SlotStatus { name: c.name.clone(), at: c.at, lost: c.lost }).collect()
    }

    /// Deletes segments that neither the tree (which has flushed up to `flushed`) nor any slot
    /// needs. A slot that holds more than the retained bytes is lost.
    ///
    /// # Errors
    /// The operating system's; nothing is lost by them.
    pub fn release(&self, flushed: Lsn) -> Result<()> {
        let mut removed = Vec::new();
        let mut state = self.state();
        let mut slots = self.slots.lock();
        for claim in slots.1.values_mut() {
            let held = state.segments.iter().skip(1).filter(|s| s.header.base.lsn >= claim.at);
            let bytes: u64 = held.map(|s| s.len).sum();
            claim.lost |= bytes > self.options.retained_log_bytes;
        }
        let claimed = slots.1.values().filter(|c| !c.lost).map(|c| c.at.prev()).min().unwrap_or(Lsn::MAX);
        drop(slots);
        let keep_above = flushed.min(claimed);
        // Only what is in the files and synced may go, and never the last segment.
        while let [_, next, ..] = state.segments.as_slice() {
            if next.header.base.lsn > keep_above || next.header.base.lsn > self.durable.get() {
                break;
            }
            removed.push(state.segments.remove(0).path);
        }
        drop(state);
        for path in &removed {
            self.env.fs.remove_file(path).map_err(|e| Error::io("remove", path, e))?;
        }
        if !removed.is_empty() {
            let dir = Self::dir_of(&self.dir);
            self.env.fs.sync_dir(&dir).map_err(|e| Error::io("sync", &dir, e))?;
        }
        Ok(())
    }
}
