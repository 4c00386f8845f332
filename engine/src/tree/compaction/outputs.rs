//! The tables that a flush or a merge makes: main tables, and history tables for what they supersede.
//!
//! Owns: the files until they are kept; dropped before, they are removed. Never: which entry goes where.

use std::path::PathBuf;

use crate::env::Env;
use crate::error::{Error, Result};
use crate::fault::{Bug, planted};
use crate::lsn::{CommitTs, Lsn};
use crate::table::builder::{BuildError, TableBuilder};
use crate::table::format::Origin;
use crate::table::times::Times;
use crate::table::{EntryRef, RangeDelete, TableFile, table_name};
use crate::tree::Tree;
use crate::tree::manifest::Placed;
use crate::tree::stop::Stop;
use crate::tree::version::HISTORY;

/// A history table gets no larger than this, in bytes: its index and filter are in memory until it is finished.
const HISTORY_BYTES: u64 = 64 << 20;

/// See the module.
#[derive(Debug)]
pub(crate) struct Outputs {
    env: Env,
    dir: PathBuf,
    stop: Stop,
    block_bytes: usize,
    table_bytes: u64,
    /// Made the main tables, and their level.
    origin: Origin,
    level: u8,
    max_ts: CommitTs,
    main: Option<TableBuilder>,
    history: Option<TableBuilder>,
    done: Vec<Placed>,
    keep: bool,
}

impl Outputs {
    /// For main tables of `level`, which a flush or a compaction makes. `max_ts` is the commit time of the newest
    /// record that the entries stem from.
    pub(crate) fn new(tree: &Tree, origin: Origin, level: u8, max_ts: CommitTs) -> Self {
        Self {
            env: tree.env.clone(),
            dir: tree.tables_dir.clone(),
            stop: tree.stop.clone(),
            block_bytes: tree.options.block_bytes,
            // What was flushed at once stays together: level 0 is ordered by table.
            table_bytes: if level == 0 { u64::MAX } else { tree.options.table_bytes },
            origin,
            level,
            max_ts,
            main: None,
            history: None,
            done: Vec::new(),
            keep: false,
        }
    }

    /// Adds the newest version of a key to the main tables.
    pub(crate) fn add(&mut self, entry: EntryRef<'_>) -> Result<()> {
        // All versions of a key stay in one table: tables of a level must not overlap.
        let full = |b: &TableBuilder| b.bytes() >= self.table_bytes && b.last_key() != entry.key;
        if self.main.as_ref().is_some_and(full) {
            self.end_main(&[], &Times::default())?;
        }
        if planted(Bug::LoseInCompaction) && self.origin == Origin::Compaction {
            return Ok(());
        }
        self.main()?.add(entry)
    }

    /// Adds a version to the history tables that reads at `by` and above do not see.
    pub(crate) fn add_superseded(&mut self, entry: EntryRef<'_>, by: Lsn) -> Result<()> {
        self.history()?.add_superseded(entry, by)
    }

    /// Adds an entry of a history table as it is.
    pub(crate) fn add_history(&mut self, entry: EntryRef<'_>) -> Result<()> {
        self.history()?.add(entry)
    }

    fn main(&mut self) -> Result<&mut TableBuilder> {
        let builder = match self.main.take() {
            Some(b) => b,
            None => self.create(self.origin)?,
        };
        Ok(self.main.insert(builder))
    }

    fn history(&mut self) -> Result<&mut TableBuilder> {
        if self.history.as_ref().is_some_and(|b| b.bytes() >= HISTORY_BYTES) {
            self.end_history(&Times::default())?;
        }
        let builder = match self.history.take() {
            Some(b) => b,
            None => self.create(Origin::History)?,
        };
        Ok(self.history.insert(builder))
    }

    fn create(&self, origin: Origin) -> Result<TableBuilder> {
        TableBuilder::create(&self.env.fs, &self.dir, Tree::random_id(&self.env), self.block_bytes, origin)
    }

    fn end_main(&mut self, ranges: &[RangeDelete], times: &Times) -> Result<()> {
        let Some(builder) = self.main.take() else { return Ok(()) };
        let file = builder.finish(ranges, times, self.max_ts).map_err(|e| self.build_error(e))?;
        self.done.push(Placed::own(self.level, file));
        Ok(())
    }

    fn end_history(&mut self, times: &Times) -> Result<()> {
        let Some(builder) = self.history.take() else { return Ok(()) };
        let file = builder.finish(&[], times, self.max_ts).map_err(|e| self.build_error(e))?;
        self.done.push(Placed::own(HISTORY, file));
        Ok(())
    }

    /// A failed sync of a table ends the tree \[I3\].
    fn build_error(&self, e: BuildError) -> Error {
        match e {
            BuildError::Failed(e) => e,
            BuildError::Sync(path, e) => self.stop.fatal("sync", &path, &e),
        }
    }

    /// Ends the main tables: range deletes and commit times go into the last one, which is made for them if need be.
    pub(crate) fn finish_main(&mut self, ranges: &[RangeDelete], times: &Times) -> Result<()> {
        if !ranges.is_empty() || times.count() > 0 {
            self.main()?;
        }
        self.end_main(ranges, times)
    }

    /// Ends the history table that is being made: commit times go into it, or into one that is made for them.
    pub(crate) fn finish_history(&mut self, times: &Times) -> Result<()> {
        if times.count() > 0 {
            self.history()?;
        }
        self.end_history(times)
    }

    /// All tables are ended: makes them durable by name.
    pub(crate) fn sync(&self) -> Result<()> {
        self.env.fs.sync_dir(&self.dir).map_err(|e| self.stop.fatal("sync", &self.dir, &e))
    }

    /// The finished tables.
    pub(crate) fn done(&self) -> &[Placed] {
        &self.done
    }

    /// Whether a main table is being made.
    pub(crate) const fn has_open_main(&self) -> bool {
        self.main.is_some()
    }

    /// Bytes of the finished tables.
    pub(crate) fn bytes(&self) -> u64 {
        self.done.iter().map(|p| p.file.bytes).sum()
    }

    /// Bytes of all tables so far.
    pub(crate) fn written_bytes(&self) -> u64 {
        self.bytes() + self.main.iter().chain(&self.history).map(TableBuilder::bytes).sum::<u64>()
    }

    /// Entries of the finished tables.
    pub(crate) fn entries(&self) -> u64 {
        self.done.iter().map(|p: &Placed| p.file).map(|f: TableFile| f.entries).sum()
    }

    /// They are part of a tree now.
    pub(crate) fn keep(&mut self) {
        self.keep = true;
    }
}

impl Drop for Outputs {
    fn drop(&mut self) {
        // After a failed sync nobody knows whether the edit that names them is on disk.
        if self.keep || self.stop.check().is_err() {
            return;
        }
        for placed in &self.done {
            // A file that stays is removed at the next open.
            let _ = self.env.fs.remove_file(&self.dir.join(table_name(placed.file.id)));
        }
    }
}
