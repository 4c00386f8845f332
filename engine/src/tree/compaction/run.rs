//! Carries out what was chosen, one bounded step at a time.
//!
//! Owns: the running job, the history floor, the order outputs durable → manifest edit synced → version changed →
//! inputs let go. Never: the choice.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::error::{Error, Result};
use crate::exec::Progress;
use crate::lsn::{CommitTs, Lsn};
use crate::tree::manifest::{Edit, Placed};
use crate::tree::version::{HISTORY, LAST_LEVEL, Version};
use crate::tree::{Tree, lock};

use super::choose::{Plan, Rules, choose, choose_forgotten, choose_history, choose_main};
use super::job::Job;
use super::rule::{Dropped, Reason};
use super::shape::Shape;

/// Merged in one step, in bytes.
const STEP_BYTES: usize = 1 << 20;
/// The floor is looked for again when it can have moved by this part of the history window.
const FLOOR_PART: u64 = 64;

/// What compaction keeps between two steps.
#[derive(Debug, Default)]
pub(in crate::tree) struct Compacting {
    job: Option<Job>,
    /// Time for which the floor was last looked for, and what was found.
    floor: (CommitTs, (Lsn, CommitTs)),
}

impl Compacting {
    /// Ends the running job if it reads this table.
    pub(in crate::tree) fn drop_job_with(&mut self, id: u128) {
        if self.job.as_ref().is_some_and(|j| j.inputs.iter().any(|t| t.id() == id)) {
            self.job = None;
        }
    }

    /// The level that the running merge writes to.
    pub(in crate::tree) fn merging_into(&self) -> Option<u8> {
        self.job.as_ref().map(|j| j.outputs.level())
    }
}

impl Tree {
    /// Does one bounded piece of the compaction that is due, about a megabyte; `Idle` when nothing is, or when it
    /// waits for room on the disk.
    ///
    /// # Errors
    /// `DiskFull` (nothing is left of the output, call again when there is room), `Io`, or `Stopped` after a
    /// failed sync. A damaged table is no error: see [`Tree::damage`].
    pub fn compact_step(&self) -> Result<Progress> {
        self.compact(false, STEP_BYTES)
    }

    /// [`Tree::compact_step`] for a tree that nobody writes to: also merges what is not yet due, until little more
    /// than the newest versions is left.
    ///
    /// # Errors
    /// As [`Tree::compact_step`].
    pub fn settle_step(&self) -> Result<Progress> {
        self.compact(true, STEP_BYTES)
    }

    /// Merges all tables into the last level whatever their number: reclaims what fell below the history
    /// floor in tables that no later write touches. `Idle` when there is no table.
    ///
    /// # Errors
    /// As [`Tree::compact_step`], and `Corruption` of an input (all tables stay in place then).
    pub fn compact_all(&self) -> Result<Progress> {
        self.stop.check()?;
        let mut state = lock(&self.compacting);
        state.job = None;
        state.floor = Default::default();
        let mut worked = Progress::Idle;
        for choice in [choose_forgotten, choose_main, choose_history] {
            let version = self.version();
            let rules = self.rules(&mut state, &version, false)?;
            let Some(plan) = choice(&Shape::of(&version), &rules) else { continue };
            self.start(&mut state, &version, plan, rules.floor)?;
            while state.job.is_some() {
                self.check_room(&mut state)?;
                self.step(&mut state, usize::MAX)?;
            }
            worked = Progress::Worked;
        }
        Ok(worked)
    }

    /// A step of about so many bytes.
    pub(in crate::tree) fn compact(&self, idle: bool, bytes: usize) -> Result<Progress> {
        self.stop.check()?;
        let mut state = lock(&self.compacting);
        if state.job.is_none() {
            let version = self.version();
            let rules = self.rules(&mut state, &version, idle)?;
            let Some(plan) = choose(&Shape::of(&version), &rules) else {
                self.space.get().inspect(|s| s.no_merge());
                return Ok(Progress::Idle);
            };
            self.start(&mut state, &version, plan, rules.floor)?;
        }
        if self.check_room(&mut state).is_err() && !self.start_smaller(&mut state, idle)? {
            return Ok(Progress::Idle);
        }
        match self.step(&mut state, bytes) {
            Err(e) => self.note_error(e).map(|()| Progress::Worked),
            Ok(()) => Ok(Progress::Worked),
        }
    }

    /// Where there is no room for the merge that is due: starts one that there is room for. False if there is none.
    fn start_smaller(&self, state: &mut Compacting, idle: bool) -> Result<bool> {
        let Some(space) = self.space.get() else { return Ok(false) };
        let version = self.version();
        let rules = Rules { bytes_max: space.merge_room(), ..self.rules(state, &version, idle)? };
        let Some(plan) = choose(&Shape::of(&version), &rules) else { return Ok(false) };
        self.start(state, &version, plan, rules.floor)?;
        Ok(self.check_room(state).is_ok())
    }

    /// Bytes a second that merges may go through, unless writers wait for them.
    pub(crate) fn compaction_rate(&self) -> Option<u64> {
        Some(self.options.compaction_bytes_per_second).filter(|rate| *rate > 0)
    }

    /// Bytes a second that a scrub may read, and the time from the beginning of one pass to that of the next.
    pub(crate) const fn scrub_options(&self) -> (u64, std::time::Duration) {
        (self.options.scrub_bytes_per_second, self.options.scrub_interval)
    }

    fn rules(&self, state: &mut Compacting, version: &Version, idle: bool) -> Result<Rules> {
        Ok(Rules {
            level0_tables: self.options.level0_tables,
            base_bytes: self.options.level_base_bytes,
            floor: self.next_floor(state, version)?,
            idle,
            avoid: self.damaged.ids(),
            bytes_max: u64::MAX,
        })
    }

    /// The newest flushed record that is as old as the history window, not below the present floor.
    fn next_floor(&self, state: &mut Compacting, version: &Version) -> Result<(Lsn, CommitTs)> {
        let window = self.options.history_window_us;
        let old_enough = CommitTs(self.applied().ts.0.saturating_sub(window));
        let (then, mut floor) = state.floor;
        floor = floor.max(version.floor);
        if then == CommitTs::default() || old_enough.0 >= then.0.saturating_add(window / FLOOR_PART) {
            for table in version.all_tables() {
                match table.lsn_at(old_enough) {
                    Ok(found) => floor = found.map_or(floor, |t| floor.max(t)),
                    // Without its times the floor stays lower, which is safe.
                    Err(e @ Error::Corruption { .. }) => self.note_damaged(table, e.to_string()),
                    Err(e) => return Err(e),
                }
            }
            state.floor = (old_enough, floor);
        }
        Ok(floor)
    }

    /// Does at once what needs no merge; a merge becomes the running job.
    fn start(&self, state: &mut Compacting, version: &Version, plan: Plan, floor: (Lsn, CommitTs)) -> Result<()> {
        let found = |id: u128| version.all_tables().find(|t| t.id() == id).cloned();
        match plan {
            Plan::Forget(ids) => {
                let edit = Edit { removed: ids.clone(), floor: Some(floor), ..Edit::default() };
                self.install(&edit, &[])?;
                let mut dropped = Dropped::default();
                for table in ids.into_iter().filter_map(found) {
                    let why = if version.is_history(&table) { Reason::History } else { Reason::RangeDeleted };
                    if let Some(count) = dropped.get_mut(why as usize) {
                        *count += table.properties().entries;
                    }
                    table.mark_obsolete();
                }
                self.counters.dropped(&dropped);
                self.counters.forgotten.fetch_add(1, Ordering::Relaxed);
            }
            Plan::Move(id, level) => {
                let Some(table) = found(id) else { return Ok(()) };
                let placed = lock(&self.manifest).state().tables.iter().find(|p| p.file.id == id).copied();
                let Some(placed) = placed else { return Ok(()) };
                let added = vec![Placed { level, ..placed }];
                let edit = Edit { removed: vec![id], added, ..Edit::default() };
                self.install(&edit, &[(level, table)])?;
                self.counters.moved.fetch_add(1, Ordering::Relaxed);
            }
            Plan::Merge(ids, level) => state.job = Some(Job::new(self, version, &ids, level, floor)),
            Plan::MergeHistory(ids) => state.job = Some(Job::new(self, version, &ids, HISTORY, floor)),
        }
        Ok(())
    }

    /// Gives the running job up, with all that it wrote, if what it has still to write would leave too little room.
    fn check_room(&self, state: &mut Compacting) -> Result<()> {
        let (Some(space), Some(job)) = (self.space.get(), &state.job) else { return Ok(()) };
        space.for_merge(job.bytes_left()).inspect_err(|_| state.job = None)
    }

    /// A step of the running job; the last one makes its outputs count. After an error the job is over.
    fn step(&self, state: &mut Compacting, bytes: usize) -> Result<()> {
        let Some(mut job) = state.job.take() else { return Ok(()) };
        let before = job.processed;
        let done = job.step(bytes)?;
        self.counters.stepped_bytes.fetch_add(job.processed - before, Ordering::Relaxed);
        if !done {
            state.job = Some(job);
            return Ok(());
        }
        let tables = job.outputs.done().iter().map(|p| {
            let bottom = p.level == LAST_LEVEL;
            self.open_table(p, bottom).map(|t| (p.level, t))
        });
        let tables = tables.collect::<Result<Vec<_>>>()?;
        let edit = Edit {
            removed: job.inputs.iter().map(|t| t.id()).collect(),
            added: job.outputs.done().to_vec(),
            floor: Some(job.floor),
            ..Edit::default()
        };
        self.install(&edit, &tables)?;
        job.inputs.iter().for_each(|t| t.mark_obsolete());
        let c = &self.counters;
        c.compactions.fetch_add(1, Ordering::Relaxed);
        c.dropped(&job.dropped);
        c.merged_bytes.fetch_add(job.input_bytes(), Ordering::Relaxed);
        c.compacted_bytes.fetch_add(job.outputs.bytes(), Ordering::Relaxed);
        job.outputs.keep();
        if job.level0_bytes > 0 {
            self.pressure.merged(job.level0_bytes, self.env.clock.monotonic().saturating_sub(job.begun));
        }
        Ok(())
    }

    fn install(&self, edit: &Edit, tables: &[(u8, Arc<crate::table::reader::Table>)]) -> Result<()> {
        let mut manifest = lock(&self.manifest);
        manifest.append(edit, &self.stop)?;
        self.change_version(|version| {
            version.change_tables(&edit.removed, tables);
            version.floor = edit.floor.map_or(version.floor, |f| f.max(version.floor));
        });
        self.forget_gone_damage();
        Ok(())
    }
}
