//! Puts a good copy in the place of a damaged table.
//!
//! A table never changes, so a copy out of a checkpoint or a base backup with the id, length and hash that the
//! manifest says is the table. Order: the copy is written beside it under a name that no open takes for a table →
//! synced → read back whole → opened → renamed over the damaged file → directory synced → readers are given it. A
//! crash at any point leaves the damaged table or the good one. Owns: that order. Never: a copy that was not verified,
//! and never the manifest.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::manifest_file::Manifest;
use super::stop::Stop;
use super::version::LEVELS;
use super::{Tree, lock, manifest_dir, tables_dir};
use crate::env::Env;
use crate::error::{Error, Result};
use crate::fault::{Bug, planted};
use crate::fs::{Fs, OpenMode, read_exact_at};
use crate::table::reader::Table;
use crate::table::{TableFile, table_name, verify_table};

/// Copied at a time, in bytes.
const COPY_BYTES: u64 = 1 << 20;
const ENDING: &str = "repair.tmp";

impl Tree {
    /// Replaces the file of table `id` by a copy of `source`, another file of the same table. Reads that the damage
    /// stopped go on, and so does compaction of the table. Readers that are under way keep the file they have.
    ///
    /// # Errors
    /// `Directory` when the tree has no such table, or it waits for its level ([`Tree::flush_all`] gives it one);
    /// `Corruption` naming `source` when that is damaged or another table. `DiskFull`, `Io`. The tree is unchanged then.
    /// `Stopped` after a failed sync.
    pub fn repair_table(&self, id: u128, source: &Path) -> Result<()> {
        self.stop.check()?;
        let file = self.named(id)?;
        let copy = copy_verified(&self.env, &self.tables_dir, &file, source, &self.stop)?;
        // From here on no merge starts, moves the table or lets it go.
        let mut compacting = lock(&self.compacting);
        if let Err(e) = self.named(id) {
            let _ = self.env.fs.remove_file(&copy);
            return Err(e);
        }
        compacting.drop_job_with(id);
        // Behind the rename nothing may fail that leaves readers with the damaged file: the handle is had before.
        let table = self.open_copy(id, &copy).inspect_err(|_| {
            let _ = self.env.fs.remove_file(&copy);
        })?;
        put_in_place(&self.env.fs, &self.tables_dir, id, &copy, &self.stop)?;
        self.change_version(|version| version.replace_table(&table));
        self.damaged.forget(id);
        Ok(())
    }

    /// Opens the copy that will be the table's file.
    fn open_copy(&self, id: u128, copy: &Path) -> Result<Arc<Table>> {
        let placed = lock(&self.manifest).state().tables.iter().find(|p| p.file.id == id).copied();
        let placed = placed.ok_or_else(|| unknown(&self.tables_dir, id))?;
        let bottom = placed.level > 0 && usize::from(placed.level) + 1 == LEVELS;
        self.open_table(&placed, copy, bottom)
    }

    /// What the manifest says of a table.
    fn named(&self, id: u128) -> Result<TableFile> {
        let manifest = lock(&self.manifest);
        let found = manifest.state().tables.iter().find(|p| p.file.id == id).map(|p| p.file);
        found.ok_or_else(|| {
            if !self.knows_table(id) {
                return unknown(&self.tables_dir, id);
            }
            let what = format!("table {id:032x} was just ingested and has no level yet: flush, then repair it");
            Error::Directory { path: self.tables_dir.clone(), what }
        })
    }
}

fn unknown(dir: &Path, id: u128) -> Error {
    Error::Directory { path: dir.to_owned(), what: format!("the tree has no table {id:032x}; it may be merged away") }
}

/// [`Tree::repair_table`] for the tree in the data directory `dir` that no process has open, which a damaged footer or a
/// missing file may keep from opening. The caller holds the directory's lock.
///
/// # Errors
/// As [`Tree::repair_table`], and those of reading the manifest.
pub(crate) fn repair_closed(env: &Env, dir: &Path, id: u128, source: &Path) -> Result<()> {
    let stop = Stop::new(Arc::clone(&env.fatal));
    let manifest = Manifest::open(&env.fs, &manifest_dir(dir))?;
    let tables = tables_dir(dir);
    let file = manifest.state().tables.iter().find(|p| p.file.id == id).map(|p| p.file);
    let file = file.ok_or_else(|| unknown(&tables, id))?;
    remove_leftovers(&*env.fs, &tables)?;
    let copy = copy_verified(env, &tables, &file, source, &stop)?;
    put_in_place(&env.fs, &tables, id, &copy, &stop)
}

/// Copies `source` beside the tables, synced, and reads the copy back whole. Nothing of it is left after an error. Its
/// name is its own: another repair of the table may be under way.
fn copy_verified(env: &Env, dir: &Path, file: &TableFile, source: &Path, stop: &Stop) -> Result<PathBuf> {
    let fs = &env.fs;
    let path = dir.join(format!("{:032x}.{:016x}.{ENDING}", file.id, env.rng.next_u64()));
    let done = copy(fs, source, &path, file.bytes, stop).and_then(|()| {
        if planted(Bug::RepairUnverified) {
            return Ok(());
        }
        match verify_table(fs, &path) {
            Ok(copied) if copied == *file => Ok(()),
            Ok(_) => Err(Error::corruption(source, 0, None, "a whole table, but not the one to be repaired")),
            // It is the copy that was read, and the source that is to blame.
            Err(Error::Corruption { offset, lsn, what, .. }) => Err(Error::corruption(source, offset, lsn, what)),
            Err(e) => Err(e),
        }
    });
    match done {
        Ok(()) => Ok(path),
        Err(e) => {
            let _ = fs.remove_file(&path);
            Err(e)
        }
    }
}

fn copy(fs: &Arc<dyn Fs>, source: &Path, to: &Path, bytes: u64, stop: &Stop) -> Result<()> {
    let from = fs.open(source, OpenMode::Read).map_err(|e| Error::io("open", source, e))?;
    let len = from.len().map_err(|e| Error::io("measure", source, e))?;
    if len != bytes {
        let what = format!("has {len} bytes, the table to be repaired has {bytes}");
        return Err(Error::corruption(source, 0, None, what));
    }
    let file = fs.open(to, OpenMode::CreateNew).map_err(|e| Error::io("create", to, e))?;
    let mut buffer = Vec::new();
    let mut at = 0;
    while at < bytes {
        buffer.resize(usize::try_from((bytes - at).min(COPY_BYTES)).unwrap_or_default(), 0);
        read_exact_at(&*from, &mut buffer, at).map_err(|e| Error::io("read", source, e))?;
        file.write_all_at(&buffer, at).map_err(|e| Error::io("write", to, e))?;
        at += buffer.len() as u64;
    }
    file.sync_data().map_err(|e| stop.fatal("sync", to, &e))
}

fn put_in_place(fs: &Arc<dyn Fs>, dir: &Path, id: u128, copy: &Path, stop: &Stop) -> Result<()> {
    let path = dir.join(table_name(id));
    fs.rename(copy, &path).map_err(|e| {
        let _ = fs.remove_file(copy);
        Error::io("rename", copy, e)
    })?;
    fs.sync_dir(dir).map_err(|e| stop.fatal("sync", dir, &e))
}

/// Removes copies that a crash left.
pub(super) fn remove_leftovers(fs: &dyn Fs, dir: &Path) -> Result<()> {
    let names = fs.list(dir).map_err(|e| Error::io("list", dir, e))?;
    for name in names.iter().filter(|n| n.ends_with(ENDING)) {
        let path = dir.join(name);
        fs.remove_file(&path).map_err(|e| Error::io("remove", &path, e))?;
    }
    Ok(())
}
