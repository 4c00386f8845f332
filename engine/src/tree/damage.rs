//! Which tables are damaged, and what is wrong with them.
//!
//! Its lock is held for a moment only: who asks waits for no merge and no disk. Owns: that what is told is of a file that
//! the tree reads from. Never: finding damage, or what compaction does about it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use super::{TableScrub, Tree, lock};
use crate::error::Error;
use crate::table::reader::Table;

/// What is wrong, by table. Who takes a table out of the tree, or puts another file in its place, changes the version
/// first and comes here afterwards; who adds one looks at the version under this lock. So none stays that is gone.
#[derive(Debug, Default)]
pub(super) struct Damage(Mutex<BTreeMap<u128, String>>);

impl Damage {
    pub(super) fn len(&self) -> u64 {
        lock(&self.0).len() as u64
    }

    /// The tables.
    pub(super) fn ids(&self) -> BTreeSet<u128> {
        lock(&self.0).keys().copied().collect()
    }

    /// What is wrong, by table.
    pub(super) fn all(&self) -> BTreeMap<u128, String> {
        lock(&self.0).clone()
    }

    /// The table is whole.
    pub(super) fn forget(&self, id: u128) {
        lock(&self.0).remove(&id);
    }
}

impl Tree {
    /// What is wrong with the tables that compaction or a scrub found to be damaged, in no order. Compaction leaves
    /// them alone, as do reads that do not need the damaged part.
    #[must_use]
    pub fn damage(&self) -> Vec<String> {
        lock(&self.damaged.0).values().cloned().collect()
    }

    /// Lets compaction leave a table alone of which a scrub found that it is damaged, unless its file was replaced or
    /// merged away since.
    pub(crate) fn note_damage(&self, scrub: &TableScrub, what: String) {
        if let Some(table) = scrub.table() {
            self.note_damaged(&table, what);
        }
    }

    /// A table was read whole: what was said of it before does not hold.
    pub(crate) fn forget_damage(&self, id: u128) {
        self.damaged.forget(id);
    }

    pub(super) fn note_damaged(&self, table: &Arc<Table>, what: String) {
        let mut damaged = lock(&self.damaged.0);
        if self.has_table(table) {
            damaged.insert(table.id(), what);
        }
    }

    /// Notes what the error says if it is of lost bytes of a table of the tree; else it is given back.
    pub(super) fn note_error(&self, e: Error) -> Result<(), Error> {
        if self.note_met(&e) { Ok(()) } else { Err(e) }
    }

    /// Notes what the error says if it is of lost bytes of a table of the tree; whether it is. What the disk does not
    /// give is as good as damaged: it would fail the same merge at each start.
    pub(crate) fn note_met(&self, e: &Error) -> bool {
        // The whole path: a copy elsewhere has the same name.
        let path = e.damaged_file();
        let table = path.and_then(|path| self.version().known_tables().find(|t| t.path() == path).cloned());
        let Some(table) = table else { return false };
        self.note_damaged(&table, e.to_string());
        true
    }

    /// Tables were taken out.
    pub(super) fn forget_gone_damage(&self) {
        let mut damaged = lock(&self.damaged.0);
        if !damaged.is_empty() {
            let version = self.version();
            damaged.retain(|id, _| version.known_tables().any(|t| t.id() == *id));
        }
    }
}
