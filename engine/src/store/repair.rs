//! Putting good copies in the place of damaged tables, in an open store and in one that does not open.
//!
//! Owns: the lock of a closed directory, and that what the scrub said of the table is forgotten. Never: the order of
//! the files (`tree::repair`).

use std::path::{Path, PathBuf};

use super::{Store, lock_directory};
use crate::env::Env;
use crate::error::{Error, Result};
use crate::fs::LockGuard;
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
        Closed::lock(env, dir)?.repair_table(id, source)
    }
}

/// The data directory of a store that is not open, and that nobody else opens while this lives.
#[derive(Debug)]
pub struct Closed {
    env: Env,
    dir: PathBuf,
    _lock: Box<dyn LockGuard>,
}

impl Closed {
    /// Takes the lock of `dir`. Nothing else of it is read or changed.
    ///
    /// # Errors
    /// `Directory` where there is none, `InUse` while a process has it open, `Io`.
    pub fn lock(env: &Env, dir: &Path) -> Result<Self> {
        if !env.fs.exists(dir).map_err(|e| Error::io("open", dir, e))? {
            return Err(Error::Directory { path: dir.to_owned(), what: "there is no store here".into() });
        }
        let lock = lock_directory(env, dir)?;
        Ok(Self { env: env.clone(), dir: dir.to_owned(), _lock: lock })
    }

    /// [`Store::repair_closed`] under the lock that is held.
    ///
    /// # Errors
    /// As [`Store::repair_table`].
    pub fn repair_table(&self, id: u128, source: &Path) -> Result<()> {
        repair_closed(&self.env, &self.dir, id, source)
    }
}
