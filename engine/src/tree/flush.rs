//! Flush: the oldest frozen memtable becomes a table of level 0.
//!
//! Owns: the order file synced → directory synced → manifest edit synced → memtable let go. Never:
//! truncation; a memtable holds committed records only \[I2\].

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::error::{Error, Result};
use crate::exec::Progress;
use crate::lsn::Lsn;
use crate::table::TableFile;
use crate::table::builder::{BuildError, TableBuilder};
use crate::table::format::Origin;
use crate::table::reader::Table;

use super::manifest::{Edit, Placed};
use super::memtable::{Memtable, MemtableCursor};
use super::{Tree, lock};

impl Tree {
    /// Writes one frozen memtable to a table and makes it count; `Idle` when none is frozen.
    ///
    /// # Errors
    /// `DiskFull` (nothing is left of the table, the memtable stays readable, call again when there
    /// is room), `Io`, or `Stopped` after a failed sync.
    pub fn flush_step(&self) -> Result<Progress> {
        self.stop.check()?;
        let _flushing = lock(&self.flushing);
        let version = self.version();
        let Some(memtable) = version.frozen.last() else { return Ok(Progress::Idle) };
        if let (Some(barrier), Some(end)) = (self.barrier.0.get(), memtable.end()) {
            barrier(end.lsn)?;
        }
        let file = self.write_table(memtable)?;
        let table = self.open_table(file.id, false)?;
        if let Err(e) = self.install_flush(memtable, file, &table) {
            // After a failed sync nobody knows whether the edit that names the file is on disk.
            if self.stop.check().is_ok() {
                table.mark_obsolete();
            }
            return Err(e);
        }
        self.counters.flushes.fetch_add(1, Ordering::Relaxed);
        Ok(Progress::Worked)
    }

    fn write_table(&self, memtable: &Arc<Memtable>) -> Result<TableFile> {
        let id = self.new_id();
        let block_bytes = self.options.block_bytes;
        let mut builder = TableBuilder::create(&self.env.fs, &self.tables_dir, id, block_bytes, Origin::Flush)?;
        let mut entries = MemtableCursor::new(Arc::clone(memtable), Vec::new(), Vec::new(), false, Lsn::MAX);
        while entries.advance() {
            let Some(entry) = entries.entry() else { break };
            builder.add(entry)?;
        }
        let times = memtable.times();
        let max_ts = times.last().unwrap_or_default().1;
        let file = builder.finish(&memtable.ranges(), &times, max_ts).map_err(|e| self.build_error(e))?;
        self.sync_tables_dir()?;
        Ok(file)
    }

    /// A failed sync of a table ends the tree \[I3\].
    pub(super) fn build_error(&self, e: BuildError) -> Error {
        match e {
            BuildError::Failed(e) => e,
            BuildError::Sync(path, e) => self.stop.fatal("sync", &path, &e),
        }
    }

    fn install_flush(&self, memtable: &Arc<Memtable>, file: TableFile, table: &Arc<Table>) -> Result<()> {
        let mut manifest = lock(&self.manifest);
        let edit = Edit {
            added: vec![Placed { level: 0, file }],
            flushed: memtable.end(),
            events: memtable.events(),
            ..Edit::default()
        };
        manifest.append(&edit, &self.stop)?;
        self.change_version(|version| {
            version.frozen.retain(|m| !Arc::ptr_eq(m, memtable));
            version.level0.insert(0, Arc::clone(table));
            version.tables_changed();
            version.flushed = manifest.state().flushed;
        });
        Ok(())
    }
}
