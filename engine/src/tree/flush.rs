//! Flush: the oldest frozen memtable becomes a table of level 0, one without entries at most a history table.
//!
//! Owns: the order file synced → directory synced → manifest edit synced → memtable let go. Never:
//! truncation; a memtable holds committed records only \[I2\].

use std::sync::atomic::Ordering;
use std::sync::{Arc, TryLockError};

use crate::error::{Error, Result};
use crate::exec::Progress;
use crate::lsn::Lsn;
use crate::table::Bounds;
use crate::table::format::Origin;
use crate::table::times::Times;

use super::compaction::job::below;
use super::compaction::outputs::Outputs;
use super::compaction::rule::{Dropped, Fate, Rule};
use super::manifest::{Edit, Placed};
use super::memtable::{Memtable, MemtableCursor};
use super::range_index::RangeIndex;
use super::version::{Frozen, LAST_LEVEL};
use super::{Tree, lock};

/// What the manifest needs for an ingested table, in bytes.
const PLACED_BYTES: u64 = 128;

impl Tree {
    /// Writes one frozen memtable to a table and makes it count; `Idle` when none is frozen.
    ///
    /// # Errors
    /// `DiskFull` (nothing is left of the table, the memtable stays readable, call again when there
    /// is room; with little room also when nobody waits for the flush, see [`crate::space`]), `TooManyFiles` (the
    /// same), `Io`, or `Stopped` after a failed sync.
    pub fn flush_step(&self) -> Result<Progress> {
        self.stop.check()?;
        let _flushing = lock(&self.flushing);
        let version = self.version();
        let space = self.space.get();
        let Some(frozen) = version.frozen.last() else {
            space.inspect(|s| s.no_flush());
            self.flush_file.clear();
            return Ok(Progress::Idle);
        };
        let memtable = &frozen.memtable;
        let bytes = memtable.bytes() as u64 + frozen.over.tables.len() as u64 * PLACED_BYTES;
        let awaited = version.frozen.len() >= self.options.frozen_memtables_max;
        let _granted = space.map(|s| s.for_flush(bytes, awaited)).transpose()?;
        if let (Some(barrier), Some(end)) = (self.barrier.0.get(), memtable.end()) {
            barrier(end.lsn)?;
        }
        let begun = self.env.clock.monotonic();
        let written = self.write_tables(memtable).and_then(|out| self.install_flush(frozen, &out).map(|()| out));
        self.flush_file.note(&written);
        let mut out = written.inspect_err(|e| {
            if let (Error::DiskFull { .. }, Some(space)) = (e, space) {
                space.flush_failed(bytes);
            }
        })?;
        out.keep();
        self.pressure.flushed(bytes, self.env.clock.monotonic().saturating_sub(begun));
        self.counters.flushed_bytes.fetch_add(out.bytes(), Ordering::Relaxed);
        self.counters.flushes.fetch_add(1, Ordering::Relaxed);
        Ok(Progress::Worked)
    }

    /// Versions that newer ones of the same memtable superseded go into a history table.
    fn write_tables(&self, memtable: &Arc<Memtable>) -> Result<Outputs> {
        let times = memtable.times();
        let ranges = memtable.ranges();
        let version = self.version();
        let ranged = Arc::new(RangeIndex::of(ranges.iter()));
        // Merges that run beside this move keys between tables, and bring none in.
        let mut rule = Rule::new(ranged, version.floor, below(&version, 0, &[]));
        let (mut read, mut dropped) = (0, Dropped::default());
        let mut out = Outputs::new(self, Origin::Flush, 0, times.last().unwrap_or_default().1);
        let mut entries = MemtableCursor::new(Arc::clone(memtable), Bounds::all(), false, Lsn::MAX);
        while entries.advance() {
            let Some(entry) = entries.entry() else { break };
            read += 1;
            match rule.judge(entry)? {
                Fate::Keep => out.add(entry)?,
                Fate::Superseded(by) => out.add_superseded(entry, by)?,
                Fate::Drop(why) => {
                    if let Some(count) = dropped.get_mut(why as usize) {
                        *count += 1;
                    }
                }
            }
        }
        // Without entries, commit times are history: a table of level 0 would hold nothing that a read of the present asks
        // for, and would be in the way of merges.
        let bare = !out.has_open_main() && ranges.is_empty();
        let (main, history) = if bare { (Times::default(), times) } else { (times, Times::default()) };
        out.finish_main(&ranges, &main)?;
        out.finish_history(&history)?;
        out.sync()?;
        let (written, gone) = (out.entries(), dropped.iter().sum::<u64>());
        if written + gone != read {
            let what = format!("a flush lost count: {read} entries read, {written} written, {gone} dropped");
            return Err(Error::corruption(&self.tables_dir, 0, None, what));
        }
        self.counters.dropped(&dropped);
        Ok(out)
    }

    /// The tables that the memtable's last record brought in count in the same edit: the record is in the tables, or
    /// all of it is in the log.
    fn install_flush(&self, frozen: &Frozen, out: &Outputs) -> Result<()> {
        let memtable = &frozen.memtable;
        let open = |p: &Placed| self.open_table(p, &self.table_path(p.file.id), false).map(|t| (p.level, t));
        let mut tables = out.done().iter().map(open).collect::<Result<Vec<_>>>()?;
        let mut added = out.done().to_vec();
        // No merge may start, or end in the same level, between the choice of levels and the edit. Nobody who writes waits
        // for who merges everything under that lock: level 0 takes any table, whatever is merged.
        let compacting = (!frozen.over.tables.is_empty()).then(|| self.compacting.try_lock());
        if let Some(compacting) = &compacting {
            let compacting = match compacting {
                Ok(compacting) => Some(&**compacting),
                Err(TryLockError::Poisoned(poisoned)) => Some(&**poisoned.get_ref()),
                Err(TryLockError::WouldBlock) => None,
            };
            for (placed, table) in self.place(compacting, &tables, &frozen.over) {
                added.push(placed);
                tables.push((placed.level, table));
            }
        }
        let mut manifest = lock(&self.manifest);
        let edit = Edit { added, flushed: memtable.end(), events: memtable.events(), ..Edit::default() };
        manifest.append(&edit, &self.stop)?;
        tables.iter().filter(|(level, _)| *level == LAST_LEVEL).for_each(|(_, t)| t.mark_bottom());
        self.change_version(|version| {
            version.frozen.retain(|f| !Arc::ptr_eq(&f.memtable, memtable));
            version.change_tables(&[], &tables);
            version.flushed = manifest.state().flushed;
        });
        Ok(())
    }
}
