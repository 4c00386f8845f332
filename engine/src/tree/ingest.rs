//! Taking ready tables in.
//!
//! Their record freezes the active memtable, the tables stand over it: newer than all that was applied before, older
//! than all that comes. From then on they are read; nothing of that needs the disk. The memtable's flush gives them
//! their level, in the same manifest edit that says that the record is in the tables: a crash finds either that edit,
//! or the record in the log. Entries were written before the record had its LSN, so the table's handle gives them
//! theirs, and the manifest says which. Owns: that. Never: copying files (`store::ingest`).

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::compaction::Compacting;
use super::compaction::place::levels_of;
use super::manifest::Placed;
use super::memtable::Change;
use super::{Tree, lock};
use crate::error::{Error, Result};
use crate::ingest::{Ingest, IngestedTable};
use crate::lsn::Position;
use crate::record::{Record, RecordError};
use crate::table::TableFile;
use crate::table::reader::Table;

/// The tables of one record, until they have a level.
#[derive(Debug, Default)]
pub(crate) struct Arriving {
    /// Sorted by key and apart.
    pub(crate) tables: Arc<Vec<Arc<Table>>>,
    /// What the manifest will say of each; the level is not chosen yet.
    placed: Vec<Placed>,
}

impl Arriving {
    /// Each table with what the manifest will say of its file.
    pub(super) fn files(&self) -> impl Iterator<Item = (TableFile, &Arc<Table>)> {
        self.placed.iter().map(|p| p.file).zip(self.tables.iter())
    }
}

impl Tree {
    /// Opens the tables of an ingest, which stand in `tables/`.
    ///
    /// # Errors
    /// `Corruption` when one is missing, damaged, or another than is named; `Format`, `Io`.
    pub(crate) fn open_ingested(&self, ingest: &Ingest) -> Result<Vec<Table>> {
        let open = |named: &IngestedTable| {
            let path = self.table_path(named.file.id);
            let table = Table::open(&self.env.fs, &path, &self.cache)?.living(&self.life);
            let p = table.properties();
            let keys = p.min_key == named.first_key && p.max_key == named.last_key;
            let file = table.id() == named.file.id && table.bytes() == named.file.bytes;
            if keys && file && p.entries == named.file.entries {
                return Ok(table);
            }
            Err(Error::corruption(&path, 0, None, "the file is not the table that the log names"))
        };
        ingest.tables.iter().map(open).collect()
    }

    /// Takes in the record at `at`, just appended, that brings in these tables: visible at once and together, to views
    /// made afterwards. `tables` were opened for `ingest`. It needs no disk.
    ///
    /// # Errors
    /// `Record` when it does not follow [`Tree::applied`], `Stopped`. The tree is unchanged then.
    pub(crate) fn apply_ingest(&self, at: Position, ingest: &Ingest, tables: Vec<Table>) -> Result<()> {
        self.stop.check()?;
        let _applier = lock(&self.applier);
        let (version, applied) = (self.published.load(), self.applied());
        if at.lsn != applied.lsn.next() {
            return Err(RecordError::Discontinuous { epoch: at.epoch, lsn: at.lsn, after: applied.lsn }.into());
        }
        let ingested = Some(at.lsn);
        let placed = ingest.tables.iter().map(|t| Placed { level: 0, file: t.file, ingested }).collect();
        let tables: Vec<_> = tables.into_iter().map(|t| Arc::new(t.standing_at(ingested))).collect();
        self.counters.ingested.fetch_add(tables.len() as u64, Ordering::Relaxed);
        let over = Arc::new(Arriving { tables: Arc::new(tables), placed });
        let malformed = |m: crate::codec::Malformed| Error::corruption(&self.tables_dir, 0, Some(at.lsn), m.0);
        // Its commit time, and that the flush ends with it.
        version.active.apply(at, Change::nothing()).map_err(malformed)?;
        self.freeze_under(over);
        self.published.set_applied(at);
        Ok(())
    }

    /// [`Tree::apply_ingest`] of a record that recovery found in the log.
    pub(super) fn apply_ingest_record(&self, record: &Record<'_>) -> Result<()> {
        record.follows(&self.applied())?;
        let lsn = record.header.lsn;
        let malformed = |m: crate::codec::Malformed| Error::corruption(&self.tables_dir, 0, Some(lsn), m.0);
        let ingest = Ingest::decode(record.body).map_err(malformed)?;
        let tables = self.open_ingested(&ingest)?;
        self.apply_ingest(record.position(), &ingest, tables)
    }

    /// Whether ingested tables wait for the flush that gives them a level.
    pub(crate) fn ingest_waits(&self) -> bool {
        self.published.with(|v| v.arriving().next().is_some())
    }

    /// Whether a table of this id is in the tree, or on its way into it.
    pub(crate) fn knows_table(&self, id: u128) -> bool {
        self.published.with(|v| v.known_tables().any(|t| t.id() == id))
    }

    /// Where ready tables are put.
    pub(crate) fn tables_dir(&self) -> &Path {
        &self.tables_dir
    }

    /// A failed sync ends the tree \[I3\]: what it was to make durable may be lost, and look whole.
    pub(crate) fn sync_failed(&self, path: &Path, e: &std::io::Error) -> Error {
        self.stop.fatal("sync", path, e)
    }

    /// What the manifest is to say of arriving tables: their levels beside the tables that there are, and the `fresh`
    /// ones of level 0, which are older. Level 0 where nobody knows what is merged.
    pub(super) fn place(
        &self,
        compacting: Option<&Compacting>,
        fresh: &[(u8, Arc<Table>)],
        over: &Arriving,
    ) -> Vec<(Placed, Arc<Table>)> {
        let fresh: Vec<_> = fresh.iter().filter(|(level, _)| *level == 0).map(|(_, t)| Arc::clone(t)).collect();
        let levels = match compacting {
            Some(compacting) => levels_of(&self.version(), &fresh, &over.tables, compacting.merging_into()),
            None => vec![0; over.tables.len()],
        };
        let with_level = over.placed.iter().zip(levels).map(|(placed, level)| Placed { level, ..*placed });
        with_level.zip(over.tables.iter().cloned()).collect()
    }
}
