//! Carries out a compaction: merges the chosen tables in one stream into new tables of level 1.
//!
//! The history floor is fixed when the job starts: the newest flushed record whose commit time is
//! at least the history window old. Of each key, the job keeps every version above the floor and
//! the newest at or below it, unless that one is a delete, is covered by a range delete at or
//! below the floor, or has expired by the floor's commit time. Reads below the floor are refused
//! from then on. Owns: dropping, and the proof that nothing else went missing. Never: wall clocks,
//! the block cache, or more memory than one block per input, the range deletes, and the packed
//! commit times above the floor.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::error::{Error, Result};
use crate::exec::Progress;
use crate::lsn::{CommitTs, Lsn};
use crate::table::builder::TableBuilder;
use crate::table::cursor::TableCursor;
use crate::table::format::Origin;
use crate::table::reader::{Caching, Table};
use crate::table::times::Times;
use crate::table::{EntryRef, RangeDelete, TableFile, table_name};
use crate::value::Value;

use super::choose::{Candidate, Job, choose, choose_all};
use crate::tree::manifest::{Edit, Placed};
use crate::tree::merge::{LevelCursor, Merge, Source};
use crate::tree::version::Version;
use crate::tree::{Tree, lock, sort_level1};

type Floor = (Lsn, CommitTs);

impl Tree {
    /// Merges level 0 into level 1 when it has `level0_tables` tables; `Idle` when it has not.
    ///
    /// # Errors
    /// `DiskFull` (nothing is left of the output, call again when there is room), `Corruption` of an
    /// input (it stays in place), `Io`, or `Stopped` after a failed sync.
    pub fn compact_step(&self) -> Result<Progress> {
        self.compact(|level0, level1| choose(level0, level1, self.options.level0_tables))
    }

    /// Merges all tables into level 1 whatever their number: reclaims what fell below the history
    /// floor in tables that no later write touches. `Idle` when there is no table.
    ///
    /// # Errors
    /// As [`Tree::compact_step`].
    pub fn compact_all(&self) -> Result<Progress> {
        self.compact(choose_all)
    }

    fn compact(&self, choice: impl FnOnce(&[Candidate], &[Candidate]) -> Option<Job>) -> Result<Progress> {
        self.stop.check()?;
        let _compacting = lock(&self.compacting);
        let version = self.version();
        let candidates = |tables: &[Arc<Table>]| tables.iter().map(Candidate::of).collect::<Vec<_>>();
        let Some(job) = choice(&candidates(&version.level0), &candidates(&version.level1)) else {
            return Ok(Progress::Idle);
        };
        let inputs = Inputs::of(&version, &job);
        let floor = self.next_floor(&version)?;
        let outputs = self.merge_tables(&inputs, floor)?;
        let tables = outputs.done.iter().map(|f| self.open_table(f.id, true)).collect::<Result<Vec<_>>>()?;
        self.install_compaction(&inputs, &outputs, tables, floor)?;
        self.counters.compactions.fetch_add(1, Ordering::Relaxed);
        self.counters.dropped.fetch_add(outputs.dropped, Ordering::Relaxed);
        outputs.keep();
        Ok(Progress::Worked)
    }

    /// The newest flushed record that is as old as the history window, not below the present floor.
    fn next_floor(&self, version: &Version) -> Result<Floor> {
        let old_enough = CommitTs(self.applied().ts.0.saturating_sub(self.options.history_window_us));
        let mut floor = version.floor;
        for table in version.tables() {
            floor = table.lsn_at(old_enough)?.map_or(floor, |t| floor.max(t));
        }
        Ok(floor)
    }

    fn merge_tables(&self, inputs: &Inputs, floor: Floor) -> Result<Outputs<'_>> {
        let all_ranges: Vec<RangeDelete> = inputs.tables().flat_map(|t| t.ranges().iter().cloned()).collect();
        let expected: u64 = inputs.tables().map(|t| t.properties().entries).sum();
        let mut rule = DropRule::new(&all_ranges, floor);
        let max_ts = inputs.tables().map(|t| t.properties().max_ts).max().unwrap_or_default();
        let mut out = Outputs::new(self, max_ts);
        let mut read = 0;
        let mut merge = inputs.merge();
        while merge.advance()? {
            let Some(entry) = merge.entry() else { break };
            read += 1;
            if rule.keeps(entry)? {
                out.add(entry)?;
            } else {
                out.dropped += 1;
            }
        }
        let ranges: Vec<RangeDelete> = all_ranges.into_iter().filter(|r| r.lsn > floor.0).collect();
        out.finish(&ranges, &inputs.times(floor)?)?;
        let written: u64 = out.done.iter().map(|f| f.entries).sum();
        if read != expected || written + out.dropped != expected {
            let what = format!(
                "compaction lost count: {expected} entries expected, {read} read, {written} written, {} dropped",
                out.dropped
            );
            return Err(Error::corruption(&self.tables_dir, 0, None, what));
        }
        self.sync_tables_dir()?;
        Ok(out)
    }

    fn install_compaction(
        &self,
        inputs: &Inputs,
        outputs: &Outputs<'_>,
        tables: Vec<Arc<Table>>,
        floor: Floor,
    ) -> Result<()> {
        let mut manifest = lock(&self.manifest);
        let edit = Edit {
            removed: inputs.tables().map(|t| t.id()).collect(),
            added: outputs.done.iter().map(|f| Placed { level: 1, file: *f }).collect(),
            floor: Some(floor),
            ..Edit::default()
        };
        manifest.append(&edit, &self.stop)?;
        self.change_version(|version| {
            let stays = |t: &Arc<Table>| !edit.removed.contains(&t.id());
            version.level0.retain(stays);
            version.level1.retain(stays);
            version.level1.extend(tables);
            sort_level1(&mut version.level1);
            version.tables_changed();
            version.floor = floor;
        });
        inputs.tables().for_each(|t| t.mark_obsolete());
        Ok(())
    }
}

struct Inputs {
    level0: Vec<Arc<Table>>,
    level1: Vec<Arc<Table>>,
}

impl Inputs {
    fn of(version: &Version, job: &Job) -> Self {
        let pick =
            |tables: &[Arc<Table>], ids: &[u128]| tables.iter().filter(|t| ids.contains(&t.id())).cloned().collect();
        Self { level0: pick(&version.level0, &job.level0), level1: pick(&version.level1, &job.level1) }
    }

    fn tables(&self) -> impl Iterator<Item = &Arc<Table>> {
        self.level0.iter().chain(&self.level1)
    }

    fn merge(&self) -> Merge {
        let mut sources: Vec<Source> = Vec::new();
        for t in &self.level0 {
            let cursor = TableCursor::new(Arc::clone(t), Vec::new(), Vec::new(), false, Caching::Bypass);
            sources.push(Source::Table(cursor));
        }
        let level = LevelCursor::new(&self.level1, Vec::new(), Vec::new(), false, Caching::Bypass);
        sources.push(Source::Level(level));
        Merge::new(sources, false)
    }

    /// The commit times from the floor on, of all inputs.
    fn times(&self, floor: Floor) -> Result<Times> {
        let all = self.tables().map(|t| t.times()).collect::<Result<Vec<_>>>()?;
        let above = all.iter().map(|t| t.iter().filter(|(l, _)| *l >= floor.0));
        let mut heads: Vec<_> = above.map(|mut pairs| (pairs.next(), pairs)).collect();
        let mut out = Times::default();
        loop {
            let next = heads.iter_mut().filter(|(head, _)| head.is_some()).min_by_key(|(head, _)| *head);
            let Some((head, pairs)) = next else { return Ok(out) };
            let Some((lsn, ts)) = std::mem::replace(head, pairs.next()) else { return Ok(out) };
            out.push(lsn, ts)?;
        }
    }
}

/// Decides on the versions of each key as they come, from new to old.
struct DropRule<'a> {
    /// Range deletes at or below the floor.
    ranges: Vec<&'a RangeDelete>,
    floor: Floor,
    key: Vec<u8>,
    /// The newest version of `key` at or below the floor has come.
    settled: bool,
}

impl<'a> DropRule<'a> {
    fn new(ranges: &'a [RangeDelete], floor: Floor) -> Self {
        let ranges = ranges.iter().filter(|r| r.lsn <= floor.0).collect();
        // Keys start with a keyspace byte, so no key equals the empty one.
        Self { ranges, floor, key: Vec::new(), settled: false }
    }

    fn keeps(&mut self, entry: EntryRef<'_>) -> Result<bool> {
        if entry.key != self.key {
            self.key.clear();
            self.key.extend_from_slice(entry.key);
            self.settled = false;
        }
        if entry.lsn > self.floor.0 {
            return Ok(true);
        }
        if std::mem::replace(&mut self.settled, true) {
            return Ok(false);
        }
        let covered = self.ranges.iter().any(|r| r.lsn > entry.lsn && r.contains(entry.key));
        match entry.value {
            Some(envelope) => Ok(!covered && !Value::decode(envelope)?.expired_at(self.floor.1)),
            None => Ok(false),
        }
    }
}

/// The job's new tables. Dropped before `keep`, it removes their files.
struct Outputs<'a> {
    tree: &'a Tree,
    builder: Option<TableBuilder>,
    done: Vec<TableFile>,
    max_ts: CommitTs,
    dropped: u64,
    keep: bool,
}

impl<'a> Outputs<'a> {
    fn new(tree: &'a Tree, max_ts: CommitTs) -> Self {
        let (builder, done) = (None, Vec::new());
        Self { tree, builder, done, max_ts, dropped: 0, keep: false }
    }

    fn add(&mut self, entry: EntryRef<'_>) -> Result<()> {
        // All versions of a key stay in one table: level 1 must not overlap.
        let full = |b: &TableBuilder| b.bytes() >= self.tree.options.table_bytes && b.last_key() != entry.key;
        if self.builder.as_ref().is_some_and(full) {
            self.finish_table(&[], &Times::default())?;
        }
        self.builder()?.add(entry)
    }

    fn builder(&mut self) -> Result<&mut TableBuilder> {
        let builder = match self.builder.take() {
            Some(b) => b,
            None => {
                let (tree, id) = (self.tree, self.tree.new_id());
                TableBuilder::create(&tree.env.fs, &tree.tables_dir, id, tree.options.block_bytes, Origin::Compaction)?
            }
        };
        Ok(self.builder.insert(builder))
    }

    fn finish_table(&mut self, ranges: &[RangeDelete], times: &Times) -> Result<()> {
        let Some(builder) = self.builder.take() else { return Ok(()) };
        let file = builder.finish(ranges, times, self.max_ts).map_err(|e| self.tree.build_error(e))?;
        self.done.push(file);
        Ok(())
    }

    /// Range deletes and commit times that stay go into the last table, which is made for them if
    /// need be.
    fn finish(&mut self, ranges: &[RangeDelete], times: &Times) -> Result<()> {
        if !ranges.is_empty() || times.count() > 0 {
            self.builder()?;
        }
        self.finish_table(ranges, times)
    }

    fn keep(mut self) {
        self.keep = true;
    }
}

impl Drop for Outputs<'_> {
    fn drop(&mut self) {
        // After a failed sync nobody knows whether the edit that names them is on disk.
        if self.keep || self.tree.stop.check().is_err() {
            return;
        }
        for file in &self.done {
            // A file that stays is removed at the next open.
            let _ = self.tree.env.fs.remove_file(&self.tree.tables_dir.join(table_name(file.id)));
        }
    }
}
