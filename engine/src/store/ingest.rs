//! Taking ready tables into an open embedded store, as one record.
//!
//! Order: tables copied or linked into `tables/`, synced, read whole → directory synced → identity says that the log
//! may hold such records → record appended, committed and applied as one step of the order → record synced. A crash
//! before the record is whole in the log leaves nothing of the ingest: opening removes tables that neither manifest
//! nor log name. A crash after it leaves all. Owns: that order, and who may not ingest. Never: a record whose tables
//! are not durable, and never one that is in the log and not committed, so that a cut can take one away \[I8\].

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use super::Store;
use crate::bulk::{Checked, Place, check_apart, refused, take_in};
use crate::error::{Error, Result};
use crate::fault::{Bug, planted};
use crate::ingest::{Ingest, IngestedTable};
use crate::limits::INGEST_TABLES_MAX;
use crate::log::Log;
use crate::lsn::{CommitTs, Lsn, Position};
use crate::record::Kind;
use crate::table::cache::BlockCache;
use crate::table::reader::Table;
use crate::table::table_name;

/// What was taken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ingested {
    /// The record; its LSN is the version of every key in the tables.
    pub position: Position,
    /// Tables.
    pub tables: u64,
    /// Keys.
    pub entries: u64,
    /// Bytes of the tables.
    pub bytes: u64,
}

/// Table files that are in `tables/` and that no record names: removed when dropped.
struct Guests<'a> {
    store: &'a Store,
    ids: Vec<u128>,
}

impl Drop for Guests<'_> {
    fn drop(&mut self) {
        for id in &self.ids {
            // A file that stays is removed at the next open.
            let _ = self.store.env.fs.remove_file(&self.store.tree.table_path(*id));
        }
    }
}

impl Store {
    /// Takes tables that a [`TableWriter`](crate::bulk::TableWriter) wrote into this store, which goes on meanwhile:
    /// their keys appear at once and together, at the LSN of one record, above whatever the store holds of them and
    /// below whatever is written later. Durable when it returns. The tables' keys must lie apart, their order does not
    /// matter; every file is read and checked whole where it will stand. One call at a time; another one waits, and so
    /// does one before whose record the flush of an earlier ingest is missing.
    ///
    /// The log only names the tables, and nobody else has them: a store that runs as a node refuses, and one that has
    /// ingested cannot be opened as a node.
    ///
    /// # Errors
    /// `Directory` from a node, and when a table may not be taken in (made by a store, across another one, in this
    /// store already, too many); `Corruption` naming a damaged one; `DiskFull` also when a flush or the log waits for
    /// room; `Format`, `Limit`, `Io`. Nothing of the tables is in the store then, and they are left as they are.
    /// `Stopped` and `Indeterminate` after a failed sync: opening the store tells.
    pub fn ingest(&self, tables: &[PathBuf], place: Place) -> Result<Ingested> {
        let _alone = self.ingesting.lock().unwrap_or_else(PoisonError::into_inner);
        if self.node.load(Ordering::Relaxed) {
            let what = "a node takes no tables in, its replicas and its archive would not have them; write the keys \
                        instead (`import`), or open the store with Store::open_embedded";
            return Err(refused(&self.dir, what));
        }
        if tables.is_empty() || tables.len() > INGEST_TABLES_MAX {
            let what = format!("asked to ingest {} tables; give 1 to {INGEST_TABLES_MAX} at once", tables.len());
            return Err(refused(&self.dir, what));
        }
        // As a write does: a flush that was refused for want of room is tried again.
        self.make_room()?;
        let mut guests = Guests { store: self, ids: Vec::new() };
        let checked = self.place_tables(tables, place, &mut guests)?;
        let named =
            |t: &Checked| IngestedTable { file: t.file, first_key: t.min_key.clone(), last_key: t.max_key.clone() };
        let ingest = Ingest { tables: checked.iter().map(named).collect() };
        let mut body = Vec::new();
        ingest.encode(&mut body);
        self.log.check_body(body.len())?;
        // Whatever applying needs is at hand before the record is in the log.
        let opened = self.tree.open_ingested(&ingest)?;
        while self.tree.ingest_waits() {
            self.tree.flush_step()?;
        }
        self.make_room()?;
        let said = self.say_ingested()?;
        let appended = self.append_ingest((&ingest, &body), opened, &mut guests);
        if said && appended.is_err() && !guests.ids.is_empty() {
            self.unsay_ingested();
        }
        let position = appended?;
        self.wake_flush.wake();
        self.log.sync_to(position.lsn)?;
        let sum = |of: fn(&Checked) -> u64| checked.iter().map(of).sum();
        let (entries, bytes) = (sum(|t| t.file.entries), sum(|t| t.file.bytes));
        Ok(Ingested { position, tables: checked.len() as u64, entries, bytes })
    }

    /// Gives each table its place among the store's and proves what stands there; durable, also by name, on return.
    fn place_tables(&self, tables: &[PathBuf], place: Place, guests: &mut Guests<'_>) -> Result<Vec<Checked>> {
        let (fs, cache) = (&self.env.fs, Arc::new(BlockCache::new(0, 4096)));
        let found = tables.iter().map(|from| Table::open(fs, from, &cache).map(|t| (from, t.id(), t.bytes())));
        let found = found.collect::<Result<Vec<_>>>()?;
        let copied = found.iter().map(|(_, _, bytes)| bytes).sum();
        self.space.for_ingest(if place == Place::Copy { copied } else { 0 })?;
        let into = self.tree.tables_dir();
        let mut checked = Vec::new();
        for (from, id, _) in found {
            let to = into.join(table_name(id));
            if self.tree.knows_table(id) || fs.exists(&to).map_err(|e| Error::io("look for", &to, e))? {
                return Err(refused(from, "is in the store already, or is given twice"));
            }
            guests.ids.push(id);
            checked.push(take_in(&self.env, from, into, place).map_err(|e| self.final_if_sync(e))?);
        }
        check_apart(&mut checked)?;
        if !planted(Bug::SkipDirectorySync) {
            fs.sync_dir(into).map_err(|e| self.tree.sync_failed(into, &e))?;
        }
        Ok(checked)
    }

    /// A file whose sync failed may look whole ever after, and may not be \[I3\].
    pub(super) fn final_if_sync(&self, e: Error) -> Error {
        match e {
            Error::Io { action: "sync", path, source } => self.tree.sync_failed(&path, &source),
            other => other,
        }
    }

    /// From now on no program opens the directory that does not know such records, and no node does. False if that was
    /// said before.
    fn say_ingested(&self) -> Result<bool> {
        let identity = self.identity.lock().unwrap_or_else(PoisonError::into_inner);
        if self.ingested.load(Ordering::Relaxed) {
            return Ok(false);
        }
        identity.write_with(&self.env, &self.dir, true).map_err(|e| self.final_if_sync(e))?;
        self.ingested.store(true, Ordering::Relaxed);
        Ok(true)
    }

    /// Takes back what this call said, for its record did not get into the log: as long as the tables are guests nothing
    /// names them, before it was said there was no such record, and one call runs at a time.
    fn unsay_ingested(&self) {
        // What a stopped log holds shows when it is opened.
        if self.log.check_stopped().is_err() {
            return;
        }
        let identity = self.identity.lock().unwrap_or_else(PoisonError::into_inner);
        match identity.write_with(&self.env, &self.dir, false) {
            Ok(()) => self.ingested.store(false, Ordering::Relaxed),
            // It stays then, which is no harm but to who wants to run a node; a failed sync is final all the same.
            Err(e) => drop(self.final_if_sync(e)),
        }
    }

    /// Appends, commits and applies in one go, as [`Store::append_visible`] does: no cut and no condition ever finds
    /// the record in the log without its tables in the tree.
    fn append_ingest(
        &self,
        (ingest, body): (&Ingest, &[u8]),
        opened: Vec<Table>,
        guests: &mut Guests<'_>,
    ) -> Result<Position> {
        let _order = self.order.lock().unwrap_or_else(PoisonError::into_inner);
        let last = self.log.last();
        if self.applied.get() < last.lsn {
            self.committed.raise(last.lsn);
            self.apply_upto(last.lsn)?;
        }
        self.check_room()?;
        let now = CommitTs(self.env.clock.wall().0.max(last.ts.0.saturating_add(1)));
        let _applier = self.applier.lock().unwrap_or_else(PoisonError::into_inner);
        let position = self.log.append(Kind::Ingest, last.epoch, now, 0, 0, body)?;
        // They are the record's now.
        guests.ids.clear();
        self.committed.raise(position.lsn);
        let unknown = |e: Error| Error::Indeterminate { lsn: position.lsn, why: e.to_string() };
        self.tree.apply_ingest(position, ingest, opened).map_err(unknown)?;
        self.applied.raise(position.lsn);
        Ok(position)
    }

    /// The store is to run as a node from now on.
    pub(super) fn become_node(&self) -> Result<()> {
        let _alone = self.ingesting.lock().unwrap_or_else(PoisonError::into_inner);
        refuse_node(&self.dir, self.ingested.load(Ordering::Relaxed))?;
        self.node.store(true, Ordering::Relaxed);
        Ok(())
    }
}

/// Refuses to run a node on a store that has ingested.
pub(super) fn refuse_node(dir: &Path, ingested: bool) -> Result<()> {
    if !ingested {
        return Ok(());
    }
    let what = "is an embedded store that has ingested tables or was about to: its log may only name them, so no replica \
                and no archive could follow it; open it with Store::open_embedded, or begin a node on a checkpoint of it \
                (docs/bulk-load.md)";
    Err(refused(dir, what))
}

/// The tables that ingest records behind `flushed` bring in.
pub(super) fn named_in(log: &Log, flushed: Lsn) -> Result<BTreeSet<u128>> {
    let (mut out, end) = (BTreeSet::new(), log.last().lsn);
    let mut reader = log.reader(flushed.next())?;
    while let Some(chunk) = reader.next(end, 1 << 20)? {
        for record in chunk.records() {
            let record = record?;
            if record.header.kind == Kind::Ingest {
                out.extend(Ingest::decode(record.body)?.tables.iter().map(|t| t.file.id));
            }
        }
    }
    Ok(out)
}
