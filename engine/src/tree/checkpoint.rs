//! Checkpoints: the tree at one position as a directory of hard links, and pins for a reader that
//! copies table files.
//!
//! Owns: that a checkpoint opens as a tree and equals it at its position. Never: copying data, and
//! never a partial checkpoint that opens: `CURRENT` is written last.

use std::path::Path;
use std::sync::Arc;

use crate::env::Env;
use crate::error::{Error, Result};
use crate::exec::Progress;
use crate::lsn::Position;
use crate::table::{TableFile, table_name};

use super::manifest::{Placed, State, whole_state};
use super::manifest_file::{Manifest, state_bytes};
use super::stop::Stop;
use super::version::{LAST_LEVEL, Version};
use super::{Tree, lock, manifest_dir, tables_dir};

/// A checkpoint that was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// What it contains: all records at or below.
    pub position: Position,
    /// Its table files.
    pub tables: Vec<TableFile>,
    /// The bytes of its manifest, see [`super::manifest_tables`].
    pub manifest: Vec<u8>,
}

/// The flushed tables of a tree at one position; their files stay until this is dropped.
#[derive(Clone)]
pub struct PinnedTables {
    /// All records at or below are in the tables.
    pub position: Position,
    /// The table files; see [`Tree::table_path`].
    pub tables: Vec<TableFile>,
    /// The manifest that a tree of just these tables would have.
    pub manifest: Vec<u8>,
    _pin: Arc<Version>,
}

impl std::fmt::Debug for PinnedTables {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PinnedTables").field("position", &self.position).field("tables", &self.tables.len()).finish()
    }
}

impl Tree {
    /// Flushes every record applied before the call.
    ///
    /// # Errors
    /// As [`Tree::flush_step`].
    pub fn flush_all(&self) -> Result<()> {
        let target = self.applied().lsn;
        while self.flushed().lsn < target {
            if self.flush_step()? == Progress::Idle {
                self.freeze();
            }
        }
        Ok(())
    }

    /// The present tables, pinned. Does not flush.
    #[must_use]
    pub fn pinned_tables(&self) -> PinnedTables {
        let (state, pin) = self.flushed_state();
        let (manifest, _) = state_bytes(&state);
        let tables = state.tables.iter().map(|t| t.file).collect();
        PinnedTables { position: state.flushed, tables, manifest, _pin: pin }
    }

    /// The manifest's state with a version that holds the same tables.
    fn flushed_state(&self) -> (State, Arc<Version>) {
        let manifest = lock(&self.manifest);
        (manifest.state().clone(), self.version())
    }

    /// Flushes, then makes the directory `to` a tree of its own, equal to this one at the returned
    /// position. Table files are hard links, so `to` must be on the same file system, in a directory that
    /// exists. Durable when it returns. After a crash on the way, `to` may exist without being a tree
    /// ([`Tree::exists`]): remove it before another try.
    ///
    /// # Errors
    /// `Directory` when `to` exists, `DiskFull`, `Io` (nothing of `to` is left), `Stopped`.
    pub fn checkpoint(&self, to: &Path) -> Result<Checkpoint> {
        self.stop.check()?;
        let fs = &self.env.fs;
        if fs.exists(to).map_err(|e| Error::io("look for", to, e))? {
            let what = "exists already; a checkpoint needs a directory of its own".into();
            return Err(Error::Directory { path: to.to_owned(), what });
        }
        self.flush_all()?;
        let (state, _pin) = self.flushed_state();
        if let Err(e) = self.link_tables(to, &state) {
            // Best effort: without CURRENT the rest is no tree.
            let _ = fs.remove_dir_all(to);
            return Err(e);
        }
        let (manifest, _) = state_bytes(&state);
        let tables = state.tables.iter().map(|t| t.file).collect();
        Ok(Checkpoint { position: state.flushed, tables, manifest })
    }

    fn link_tables(&self, to: &Path, state: &State) -> Result<()> {
        let fs = &self.env.fs;
        let sync = |dir: &Path| fs.sync_dir(dir).map_err(|e| self.stop.fatal("sync", dir, &e));
        let (tables, manifest) = (tables_dir(to), manifest_dir(to));
        for dir in [&tables, &manifest] {
            fs.create_dir_all(dir).map_err(|e| Error::io("create", dir, e))?;
        }
        for placed in &state.tables {
            let link = tables.join(table_name(placed.file.id));
            fs.hard_link(&self.table_path(placed.file.id), &link).map_err(|e| Error::io("link", &link, e))?;
        }
        sync(&tables)?;
        sync(to)?;
        let parent = to.parent().unwrap_or(to);
        sync(if parent.as_os_str().is_empty() { Path::new(".") } else { parent })?;
        Manifest::create(fs, &manifest, state.clone(), &self.stop).map(drop)
    }
}

/// Makes the bytes of a checkpoint's manifest the manifest of the data directory `dir`, whose tables
/// are in place and synced already. From then on `dir` holds a tree.
///
/// # Errors
/// `Corruption` when the bytes are damaged, `DiskFull`, `Io`, `Stopped`.
pub fn install_manifest(env: &Env, dir: &Path, bytes: &[u8]) -> Result<()> {
    let stop = Stop::new(Arc::clone(&env.fatal));
    let state = whole_state(bytes)?;
    let manifest = manifest_dir(dir);
    env.fs.create_dir_all(&manifest).map_err(|e| Error::io("create", &manifest, e))?;
    env.fs.sync_dir(dir).map_err(|e| stop.fatal("sync", dir, &e))?;
    Manifest::create(&env.fs, &manifest, state, &stop).map(drop)
}

/// The bytes of the manifest of a tree that is nothing but these tables, whose keys lie apart, at this position.
pub(crate) fn manifest_of(tables: &[TableFile], position: Position) -> Vec<u8> {
    let placed = tables.iter().map(|file| Placed::own(LAST_LEVEL, *file));
    let floor = (position.lsn, position.ts);
    let state = State { tables: placed.collect(), flushed: position, floor, ..State::default() };
    state_bytes(&state).0
}
