//! Putting good copies in the place of damaged tables, in an open store and in one that does not open.
//!
//! Owns: the lock of a closed directory, and that what the scrub said of the table is forgotten. Never: the order of
//! the files (`tree::repair`).

use std::path::Path;

use super::{Store, lock_directory};
use crate::env::Env;
use crate::error::{Error, Result};
use crate::tree::repair_closed;

impl Store {
    /// Replaces a damaged table by a copy of `source`: a file of the same table out of a checkpoint, a base backup or
    /// another node that was seeded from this one. The copy is verified whole before anything is changed.
    ///
    /// # Errors
    /// `Directory` when the store has no such table; `Corruption` naming `source` when that is damaged or another
    /// table. `DiskFull`, `Io`. Nothing is changed then. `Stopped` after a failed sync.
    pub fn repair_table(&self, id: u128, source: &Path) -> Result<()> {
        self.tree.repair_table(id, source)?;
        self.scrub_forgets(&self.tree.table_path(id));
        Ok(())
    }

    /// [`Store::repair_table`] in the data directory `dir` of a store that is not open, which damage to a table's
    /// footer or properties, or a missing file, keeps from opening.
    ///
    /// # Errors
    /// As [`Store::repair_table`]; `InUse` while a process has it open.
    pub fn repair_closed(env: &Env, dir: &Path, id: u128, source: &Path) -> Result<()> {
        if !env.fs.exists(dir).map_err(|e| Error::io("open", dir, e))? {
            return Err(Error::Directory { path: dir.to_owned(), what: "there is no store here".into() });
        }
        let _lock = lock_directory(env, dir)?;
        repair_closed(env, dir, id, source)
    }
}
