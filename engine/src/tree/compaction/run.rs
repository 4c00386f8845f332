//! Carries out what was chosen, one bounded step at a time.
//!
//! No lock is held while a part is merged: other threads may merge other parts, and who ends the job meanwhile makes
//! what comes back be thrown away. Owns: the running job, the history floor, the order outputs durable → manifest edit
//! synced → version changed → inputs let go. Never: the choice.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard};

use crate::error::Result;
use crate::exec::Progress;
use crate::lsn::{CommitTs, Lsn};
use crate::tree::manifest::{Edit, Placed};
use crate::tree::version::{HISTORY, LAST_LEVEL, Version};
use crate::tree::{Tree, lock};

use super::choose::{Plan, Rules, choose, choose_forgotten, choose_history, choose_main};
use super::job::Job;
use super::part::Part;
use super::rule::{Dropped, Reason};
use super::shape::Shape;

/// Merged in one step, in bytes.
const STEP_BYTES: usize = 1 << 20;
/// Of the room that there is for a merge, this part is left for others when a smaller one is chosen.
const ROOM_PART: u64 = 8;
/// The floor is looked for again when it can have moved by this part of the history window.
const FLOOR_PART: u64 = 64;

/// What compaction keeps between two steps.
#[derive(Debug, Default)]
pub(in crate::tree) struct Compacting {
    running: Option<Running>,
    /// Jobs begun so far.
    begun: u64,
    /// Who steps merges in turn found no part: what comes back next is theirs, whatever helps.
    wanting: bool,
    /// Time for which the floor was last looked for, and what was found.
    floor: (CommitTs, (Lsn, CommitTs)),
}

/// A job and those of its parts that no thread works at.
#[derive(Debug)]
struct Running {
    /// Tells it from other jobs.
    number: u64,
    job: Arc<Job>,
    waiting: VecDeque<Part>,
    merged: Vec<Part>,
    /// Bytes that each part had written when it was last here.
    written: Vec<u64>,
}

/// A part that a thread works at.
struct AtHand {
    /// Its job's.
    number: u64,
    part: Part,
}

impl Running {
    /// Most bytes that the outputs may still take.
    fn bytes_left(&self) -> u64 {
        self.job.input_bytes().saturating_sub(self.written.iter().sum())
    }

    fn is_merged(&self) -> bool {
        self.merged.len() == self.written.len()
    }

    /// A part comes back from a step.
    fn put_back(&mut self, part: Part, merged: bool) {
        if let Some(written) = self.written.get_mut(part.number) {
            *written = part.outputs.written_bytes();
        }
        if merged {
            self.merged.push(part);
        } else {
            self.waiting.push_back(part);
        }
    }

    /// All parts in their order, once they are merged, for the one who asks first.
    fn take_merged(&mut self) -> Option<Vec<Part>> {
        self.is_merged().then(|| {
            self.merged.sort_by_key(|p| p.number);
            std::mem::take(&mut self.merged)
        })
    }
}

impl Compacting {
    /// Ends the running job if it reads this table.
    pub(in crate::tree) fn drop_job_with(&mut self, id: u128) {
        if self.running.as_ref().is_some_and(|r| r.job.inputs.iter().any(|t| t.id() == id)) {
            self.running = None;
        }
    }

    /// The level that the running merge writes to.
    pub(in crate::tree) fn merging_into(&self) -> Option<u8> {
        self.running.as_ref().map(|r| r.job.level)
    }

    fn run(&mut self, (job, parts): (Job, Vec<Part>)) {
        self.begun += 1;
        self.wanting = false;
        let (written, waiting) = (vec![0; parts.len()], parts.into());
        self.running = Some(Running { number: self.begun, job: Arc::new(job), waiting, merged: Vec::new(), written });
    }

    /// Whether who steps merges in turn went away and there is something to do by now.
    fn owes_a_step(&self) -> bool {
        let ready = |r: &Running| self.wanting && (!r.waiting.is_empty() || r.is_merged());
        self.running.as_ref().is_none_or(ready)
    }

    fn take_part(&mut self) -> Option<AtHand> {
        let running = self.running.as_mut()?;
        let part = running.waiting.pop_front()?;
        Some(AtHand { number: running.number, part })
    }

    /// The running job, if it is still this one.
    fn job(&mut self, number: u64) -> Option<&mut Running> {
        self.running.as_mut().filter(|r| r.number == number)
    }
}

impl Tree {
    /// Does one bounded piece of the compaction that is due, about a megabyte; `Idle` when nothing is, or when it
    /// waits for room on the disk.
    ///
    /// # Errors
    /// `DiskFull` and `TooManyFiles` (nothing is left of the output, call again when there is room), `Io`, or `Stopped`
    /// after a failed sync. A damaged table is no error: see [`Tree::damage`].
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

    /// Merges a piece of a part of the running merge that no other thread works at, about a megabyte; `Idle` when there
    /// is none. For threads beside the one that calls [`Tree::compact_step`], which alone begins and ends merges, and has
    /// the last part: a helper may get next to no time where processors are short, and shall hold nothing then that others
    /// wait for.
    ///
    /// # Errors
    /// As [`Tree::compact_step`].
    pub(crate) fn help_step(&self) -> Result<Progress> {
        self.stop.check()?;
        let mut state = lock(&self.compacting);
        if self.check_room(&mut state).is_err() {
            return Ok(Progress::Idle);
        }
        if state.wanting && state.running.as_ref().is_some_and(|r| r.waiting.len() < 2) {
            return Ok(Progress::Idle);
        }
        let Some(at_hand) = state.take_part() else { return Ok(Progress::Idle) };
        drop(state);
        self.merge_at_hand(at_hand, STEP_BYTES).inspect_err(|e| self.merge_file.refused(e))
    }

    /// Whether the thread that calls [`Tree::compact_step`] found nothing to do, and there is something by now.
    pub(crate) fn owes_a_step(&self) -> bool {
        lock(&self.compacting).owes_a_step()
    }

    /// Whether a merge runs, and whether a part of it waits for a thread.
    pub(crate) fn merging(&self) -> (bool, bool) {
        let state = lock(&self.compacting);
        let running = state.running.as_ref();
        (running.is_some(), running.is_some_and(|r| !r.waiting.is_empty()))
    }

    /// Merges all tables into the last level whatever their number: reclaims what fell below the history
    /// floor in tables that no later write touches. `Idle` when there is no table.
    ///
    /// # Errors
    /// As [`Tree::compact_step`], and `Corruption` of an input (all tables stay in place then).
    pub fn compact_all(&self) -> Result<Progress> {
        self.stop.check()?;
        let mut state = lock(&self.compacting);
        state.running = None;
        state.floor = Default::default();
        let mut worked = Progress::Idle;
        for choice in [choose_forgotten, choose_main, choose_history] {
            let version = self.version();
            let rules = self.rules(&mut state, &version, false)?;
            let Some(plan) = choice(&Shape::of(&version), &rules) else { continue };
            self.start(&mut state, &version, plan, rules.floor)?;
            self.check_room(&mut state)?;
            if let Some(Running { job, waiting, .. }) = state.running.take() {
                let mut parts = Vec::from(waiting);
                for part in &mut parts {
                    while !self.merge_some(part, STEP_BYTES)? {}
                }
                job.finish(&mut parts)?;
                self.install_job(&job, &mut parts)?;
            }
            worked = Progress::Worked;
        }
        Ok(worked)
    }

    /// A step of about so many bytes.
    pub(in crate::tree) fn compact(&self, idle: bool, bytes: usize) -> Result<Progress> {
        self.compact_now(idle, bytes).inspect_err(|e| self.merge_file.refused(e))
    }

    fn compact_now(&self, idle: bool, bytes: usize) -> Result<Progress> {
        self.stop.check()?;
        let mut state = lock(&self.compacting);
        if state.running.is_some() {
            if self.check_room(&mut state).is_err() {
                // What it has given up it does not begin again at once.
                return Ok(Progress::Idle);
            }
            return self.step(state, bytes);
        }
        let version = self.version();
        let rules = self.rules(&mut state, &version, idle)?;
        let Some(plan) = choose(&Shape::of(&version), &rules) else {
            self.space.get().inspect(|s| s.no_merge());
            self.merge_file.clear();
            return Ok(Progress::Idle);
        };
        self.start(&mut state, &version, plan, rules.floor)?;
        if self.check_room(&mut state).is_err() && !self.start_smaller(&mut state, idle)? {
            return Ok(Progress::Idle);
        }
        if state.running.is_none() {
            // It needed no merge.
            return Ok(Progress::Worked);
        }
        self.step(state, bytes)
    }

    /// Where there is no room for the merge that is due: starts one that there is room for. False if there is none.
    fn start_smaller(&self, state: &mut Compacting, idle: bool) -> Result<bool> {
        let Some(space) = self.space.get() else { return Ok(false) };
        let version = self.version();
        // What flushes and the log take meanwhile shall not end it.
        let room = space.merge_room();
        let rules = Rules { bytes_max: room - room / ROOM_PART, ..self.rules(state, &version, idle)? };
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
                    Err(e) => self.note_error(e)?,
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
                let moved = Arc::clone(&table);
                self.install(&edit, &[(level, table)])?;
                if level == LAST_LEVEL {
                    moved.mark_bottom();
                }
                self.counters.moved.fetch_add(1, Ordering::Relaxed);
            }
            Plan::Merge(ids, level) => state.run(Job::new(self, version, &ids, level, floor)),
            Plan::MergeHistory(ids) => state.run(Job::new(self, version, &ids, HISTORY, floor)),
        }
        Ok(())
    }

    /// Gives the running job up, with all that it wrote, if what it has still to write would leave too little room.
    fn check_room(&self, state: &mut Compacting) -> Result<()> {
        let (Some(space), Some(running)) = (self.space.get(), &state.running) else { return Ok(()) };
        if running.waiting.is_empty() {
            // What is at hand is looked at when it comes back; what is merged needs nothing more.
            return Ok(());
        }
        space.for_merge(running.bytes_left()).inspect_err(|_| state.running = None)
    }

    /// A step of a part of the running job that waits, `Idle` if none does; and what makes the outputs count, once all are
    /// merged. After an error the job is over.
    fn step(&self, mut state: MutexGuard<'_, Compacting>, bytes: usize) -> Result<Progress> {
        let at_hand = state.take_part();
        state.wanting = at_hand.is_none();
        drop(state);
        let merged = at_hand.map_or(Ok(Progress::Idle), |at_hand| self.merge_at_hand(at_hand, bytes))?;
        let finished = self.finish()?;
        Ok(if finished == Progress::Idle { merged } else { finished })
    }

    fn merge_at_hand(&self, mut at_hand: AtHand, bytes: usize) -> Result<Progress> {
        let merged = self.merge_some(&mut at_hand.part, bytes);
        self.give_back(at_hand, merged)
    }

    /// A part comes back from a step that said `merged`.
    fn give_back(&self, AtHand { number, part }: AtHand, merged: Result<bool>) -> Result<Progress> {
        let mut state = lock(&self.compacting);
        // Another job, or none: somebody ended this one, and an error tells nothing any more.
        let Some(running) = state.job(number) else { return Ok(Progress::Worked) };
        match merged {
            Ok(merged) => running.put_back(part, merged),
            Err(e) => {
                state.running = None;
                return self.note_error(e).map(|()| Progress::Worked);
            }
        }
        Ok(Progress::Worked)
    }

    /// Ends the running job if all its parts are merged; `Idle` if they are not.
    fn finish(&self) -> Result<Progress> {
        let mut state = lock(&self.compacting);
        let Some(running) = &mut state.running else { return Ok(Progress::Idle) };
        let Some(mut parts) = running.take_merged() else { return Ok(Progress::Idle) };
        let (number, job) = (running.number, Arc::clone(&running.job));
        drop(state);
        let finished = job.finish(&mut parts);
        let mut state = lock(&self.compacting);
        if state.job(number).is_none() {
            return Ok(Progress::Worked);
        }
        state.running = None;
        let done = finished.and_then(|()| self.install_job(&job, &mut parts));
        done.or_else(|e| self.note_error(e)).map(|()| Progress::Worked)
    }

    fn merge_some(&self, part: &mut Part, bytes: usize) -> Result<bool> {
        let before = part.processed;
        let merged = part.step(bytes);
        self.counters.stepped_bytes.fetch_add(part.processed - before, Ordering::Relaxed);
        merged
    }

    /// Makes the outputs of a finished job count. The caller holds the lock under which jobs begin and end.
    fn install_job(&self, job: &Job, parts: &mut [Part]) -> Result<()> {
        let added: Vec<Placed> = parts.iter().flat_map(|p| p.outputs.done()).copied().collect();
        let open =
            |p: &Placed| self.open_table(p, &self.table_path(p.file.id), p.level == LAST_LEVEL).map(|t| (p.level, t));
        let tables = added.iter().map(open).collect::<Result<Vec<_>>>()?;
        let removed = job.inputs.iter().map(|t| t.id()).collect();
        self.install(&Edit { removed, added, floor: Some(job.floor), ..Edit::default() }, &tables)?;
        job.inputs.iter().for_each(|t| t.mark_obsolete());
        let c = &self.counters;
        c.compactions.fetch_add(1, Ordering::Relaxed);
        c.merged_bytes.fetch_add(job.input_bytes(), Ordering::Relaxed);
        for part in parts {
            c.dropped(&part.dropped);
            c.compacted_bytes.fetch_add(part.outputs.bytes(), Ordering::Relaxed);
            part.outputs.keep();
        }
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
        self.merge_file.clear();
        self.forget_gone_damage();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;
    use crate::limits::Options;
    use crate::tree::tests::{Head, check_files, env, get, put};

    /// Tables that together are worth several parts, and the merge of them begun.
    fn merging(dir: &std::path::Path) -> Tree {
        let (table_bytes, memtable_bytes) = (300, 1 << 20);
        let options = Options { table_bytes, memtable_bytes, merge_threads: 3, ..Options::tiny() };
        let tree = Tree::create(env(1), dir, &options, crate::lsn::Position::default()).unwrap();
        let mut head = Head::default();
        for round in 0..3 {
            for n in 0..200 {
                put(&mut head, &tree, &format!("{n:03}"), &format!("{round} {n} {:x<40}", ""));
            }
            tree.flush_all().unwrap();
        }
        while !tree.merging().0 {
            assert_eq!(tree.compact(false, 1).unwrap(), Progress::Worked);
        }
        tree
    }

    fn inputs(tree: &Tree) -> Vec<Arc<crate::table::reader::Table>> {
        lock(&tree.compacting).running.as_ref().unwrap().job.inputs.clone()
    }

    #[test]
    fn a_part_that_comes_back_after_its_merge_was_ended_is_thrown_away() {
        for (finished, merged_before) in [(false, 0), (true, 0), (true, 2)] {
            let dir = tempfile::tempdir().unwrap();
            let tree = merging(dir.path());
            let mut state = lock(&tree.compacting);
            assert_eq!(state.running.as_ref().map(|r| r.waiting.len()), Some(3));
            let mut at_hand = state.take_part().unwrap();
            drop(state);
            for _ in 0..merged_before {
                let mut other = lock(&tree.compacting).take_part().unwrap();
                let merged = tree.merge_some(&mut other.part, usize::MAX);
                tree.give_back(other, merged).unwrap();
            }
            let merged = tree.merge_some(&mut at_hand.part, if finished { usize::MAX } else { 1 });
            assert!(matches!(merged, Ok(done) if done == finished));
            let input = inputs(&tree).first().map(|t| t.id()).unwrap();
            lock(&tree.compacting).drop_job_with(input);
            // Another merge of the same tables is under way by then.
            assert_eq!(tree.compact(false, 1).unwrap(), Progress::Worked);
            assert_eq!(tree.give_back(at_hand, merged).unwrap(), Progress::Worked);
            while tree.compact_step().unwrap() == Progress::Worked {}
            assert_eq!(get(&tree.view(), "199").as_deref(), Some(&*format!("2 199 {:x<40}", "")));
            assert_eq!(tree.stats().compactions, 1);
            check_files(&tree, dir.path(), "after the end");
        }
    }

    /// A thread that only gets spare time must not have what others wait for.
    #[test]
    fn helpers_neither_end_a_merge_nor_keep_its_last_part_from_the_thread_whose_merge_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let tree = merging(dir.path());
        let mut theirs = lock(&tree.compacting).take_part().unwrap();
        while tree.help_step().unwrap() == Progress::Worked {}
        assert!(!tree.owes_a_step());
        // Nothing waits: it goes away.
        assert_eq!(tree.compact(false, 1).unwrap(), Progress::Idle);
        assert!(!tree.owes_a_step());
        assert!(matches!(tree.merge_some(&mut theirs.part, 1), Ok(false)));
        tree.give_back(theirs, Ok(false)).unwrap();
        assert!(tree.owes_a_step());
        assert_eq!(tree.help_step().unwrap(), Progress::Idle, "the last part is not a helper's");
        assert_eq!(tree.compact(false, 1).unwrap(), Progress::Worked);
        // While it is at work, whoever comes may have the part.
        while tree.help_step().unwrap() == Progress::Worked {}
        assert_eq!((tree.merging().0, tree.stats().compactions), (true, 0), "a helper ended the merge");
        assert_eq!(tree.compact(false, 1).unwrap(), Progress::Worked);
        assert_eq!((tree.merging().0, tree.stats().compactions), (false, 1));
        check_files(&tree, dir.path(), "at the end");
    }

    #[test]
    fn an_error_of_one_part_ends_the_merge_and_names_what_is_damaged() {
        let dir = tempfile::tempdir().unwrap();
        let tree = merging(dir.path());
        let at_hand = lock(&tree.compacting).take_part().unwrap();
        let input = inputs(&tree).first().map(|t| t.path().to_owned()).unwrap();
        let other = lock(&tree.compacting).take_part().unwrap();
        let damaged = Error::corruption(&input, 7, None, "a planted error");
        assert_eq!(tree.give_back(at_hand, Err(damaged)).unwrap(), Progress::Worked);
        assert_eq!(tree.merging(), (false, false));
        assert_eq!(tree.give_back(other, Ok(true)).unwrap(), Progress::Worked);
        assert!(tree.damage().iter().any(|d| d.contains("a planted error")));
        check_files(&tree, dir.path(), "after the error");
    }
}
