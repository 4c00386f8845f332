//! Building a store from fetched tables and replayed records: the local half of a restore.
//!
//! Owns: the order in which a directory becomes a store (manifest last, identity at the end), the
//! new timeline \[I11\]. Never: fetching; a directory without identity is not a store.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::env::Env;
use crate::error::{Error, Result};
use crate::limits::{Options, TIMELINE_LSN_JUMP};
use crate::log::Log;
use crate::lsn::{Epoch, Lsn, Position};
use crate::record::{Record, TimelineStart};
use crate::store::{Identity, final_if_sync};
use crate::tree::Tree;

/// A store under construction.
#[derive(Debug)]
pub struct Builder {
    env: Env,
    dir: PathBuf,
    log: Arc<Log>,
    tree: Tree,
    pending_bytes: usize,
}

impl Builder {
    /// Begins in `dir`, where `tables/{id:032x}.table` of the base are already placed and synced.
    /// `manifest` are the bytes of the base's manifest; without them the store starts empty, for a
    /// history that is replayed from its first record.
    ///
    /// # Errors
    /// `Directory` when there is a store; damage in the manifest or a table missing; the operating
    /// system's; `Stopped` after a failed sync, which ends the process.
    pub fn create(env: Env, dir: &Path, options: &Options, manifest: Option<&[u8]>) -> Result<Self> {
        Self::begin(env.clone(), dir, options, manifest).map_err(|e| final_if_sync(&env, e))
    }

    fn begin(env: Env, dir: &Path, options: &Options, manifest: Option<&[u8]>) -> Result<Self> {
        crate::fs::create_dir_synced(&*env.fs, dir)?;
        if Identity::read(&env, dir)?.is_some() {
            let what = "there is a store here already; choose another directory".into();
            return Err(Error::Directory { path: dir.to_owned(), what });
        }
        crate::store::forget_evidence(&env, dir)?;
        match manifest {
            Some(bytes) => crate::tree::install_manifest(&env, dir, bytes)?,
            None => drop(Tree::create(env.clone(), dir, options, Position::default())?),
        }
        let tree = Tree::open(env.clone(), dir, options)?;
        let base = tree.flushed();
        let (log, _) = Log::open(&env, dir, options, base.lsn, base)?;
        Ok(Self { env, dir: dir.to_owned(), log: Arc::new(log), tree, pending_bytes: 0 })
    }

    /// Where the store stands.
    #[must_use]
    pub fn position(&self) -> Position {
        self.log.last()
    }

    /// Appends and applies one record, which must continue the store.
    ///
    /// # Errors
    /// `Record` when it does not; `ForeignIngest` for one that names tables, which nobody has fetched; the log's and the
    /// tree's.
    pub fn replay(&mut self, record: &Record<'_>) -> Result<()> {
        crate::ingest::refuse(record)?;
        self.log.append_record(record)?;
        self.tree.apply(record)?;
        self.pending_bytes += record.bytes.len();
        if self.pending_bytes > 8 << 20 {
            self.settle()?;
        }
        Ok(())
    }

    /// Makes what was replayed durable, then flushes what is due: never a table ahead of the log.
    fn settle(&mut self) -> Result<()> {
        self.pending_bytes = 0;
        self.log.sync_to(self.log.last().lsn)?;
        while self.tree.flush_step()? == crate::exec::Progress::Worked {}
        self.log.release(self.tree.flushed().lsn).map(drop)
    }

    /// Ends the restore: starts the new timeline with its LSN jump, flushes, syncs, and writes the
    /// identity that makes the directory a store. Returns the position restored to and the first
    /// position of the new timeline.
    ///
    /// # Errors
    /// The operating system's; `Stopped` after a failed sync, which ends the process.
    pub fn finish(
        mut self,
        identity: Identity,
        parent: crate::TimelineId,
        epoch: Epoch,
    ) -> Result<(Position, Position)> {
        let landed = self.log.last();
        let start = TimelineStart { cluster: identity.cluster, timeline: identity.timeline, parent, fork: landed.lsn };
        let first = Lsn(landed.lsn.0.saturating_add(TIMELINE_LSN_JUMP));
        let first = self.log.append_timeline(epoch, self.env.clock.wall(), &start, first)?;
        self.settle()?;
        let mut reader = self.log.reader(first.lsn)?;
        let chunk = reader.next(first.lsn, usize::MAX)?;
        let missing = || Error::Stopped("the timeline's first record cannot be read back".into());
        for record in chunk.ok_or_else(missing)?.records() {
            self.tree.apply(&record?)?;
        }
        self.tree.freeze();
        self.settle()?;
        self.log.close()?;
        self.write_identity(identity)?;
        Ok((landed, first))
    }

    /// Ends a seeding: the directory becomes a store of an existing cluster and timeline, at the
    /// position it stands.
    ///
    /// # Errors
    /// The operating system's; `Stopped` after a failed sync, which ends the process.
    pub fn finish_seed(mut self, identity: Identity) -> Result<()> {
        self.settle()?;
        self.log.close()?;
        self.write_identity(identity)
    }

    fn write_identity(&self, identity: Identity) -> Result<()> {
        identity.write(&self.env, &self.dir).map_err(|e| final_if_sync(&self.env, e))
    }
}
