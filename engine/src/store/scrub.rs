//! The scrub: reads everything that is at rest, in small steps, and says what is no longer as it was written.
//!
//! A pass goes through all tables and all sealed log segments that there are when it begins. It holds no lock that
//! a writer, a flush or a compaction would wait for, and nothing of what it reads stays in a cache of the store.
//! Damage is told ([`Store::scrub_findings`], [`Store::damage`]), compaction leaves the table alone, and the store
//! goes on. Owns: the pass, the pace of its worker. Never: repair, and never the end of the process.

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::Store;
use crate::error::Error;
use crate::exec::{Progress, Worker};
use crate::inspect::Finding;
use crate::log::SegmentScrub;
use crate::lsn::{CommitTs, Lsn};
use crate::table::parse_table_name;
use crate::tree::{Scrubbed, TableScrub};

/// Read in one step of the worker at most, in bytes.
const STEP_BYTES: u64 = 1 << 20;
/// The worker reads so often a second, so that a low rate does not mean long pauses between large reads.
const STEPS_A_SECOND: u64 = 8;
/// A file that could not be read, for a reason that says nothing of its bytes, is tried so often in a pass: again when
/// all others are done.
const TRIES_MAX: u32 = 3;
/// Files of which is remembered why they could not be read.
const UNREAD_MAX: usize = 16;
/// Damaged files that are remembered: more of them say nothing new.
const FILES_MAX: usize = 1024;
/// A store that was just opened has other things to do.
const FIRST_AFTER: Duration = Duration::from_secs(60);

/// How far the scrub is. Counters begin at zero when the store is opened.
///
/// When a pass has come to its end, `files_done`, `files_gone` and `unread_files` together are `files_total`; where they
/// are not, and none is running, it was given up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScrubStats {
    /// Whether a pass is on its way: from its first step to its end, or until it is given up ([`Store::scrub_give_up`]).
    pub running: bool,
    /// Files of the present or last pass that were read whole.
    pub files_done: u64,
    /// Files of that pass that went before they were read whole: merged away, replaced by a repair, released or cut. What
    /// stands in their place was written while the pass was on its way; the next one reads it.
    pub files_gone: u64,
    /// Files of that pass.
    pub files_total: u64,
    /// Bytes of the files done or gone, and of the present one so far.
    pub bytes_done: u64,
    /// Bytes of all files of the pass.
    pub bytes_total: u64,
    /// Passes that came to their end, those that left files unread included.
    pub passes: u64,
    /// When the last pass ended that left no file unread, by the wall clock; zero before the first.
    pub last_whole_at: CommitTs,
    /// The durable LSN when that one began.
    pub last_whole_lsn: Lsn,
    /// Files found damaged and not seen whole, repaired or gone since.
    pub damaged_files: u64,
    /// Files of the present or last pass that could not be read for want of something else than their bytes. The next
    /// pass tries them again.
    pub unread_files: u64,
}

/// A pass that came to its end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ScrubPass {
    /// As they were at its end.
    pub stats: ScrubStats,
    /// Why files could not be read (of a few).
    pub unread: Vec<String>,
}

impl ScrubPass {
    /// Whether it left no file unread: only then do no findings mean that nothing is damaged.
    #[must_use]
    pub const fn is_whole(&self) -> bool {
        self.stats.unread_files == 0
    }
}

#[derive(Debug)]
enum Item {
    Table(Box<TableScrub>),
    Segment(Box<SegmentScrub>),
}

impl Item {
    fn path(&self) -> &Path {
        match self {
            Self::Table(t) => t.path(),
            Self::Segment(s) => s.path(),
        }
    }

    const fn bytes(&self) -> u64 {
        match self {
            Self::Table(t) => t.bytes(),
            Self::Segment(s) => s.bytes(),
        }
    }
}

/// A pass on its way.
#[derive(Debug)]
struct Pass {
    /// With how often each was tried in vain.
    left: VecDeque<(u32, Item)>,
    lsn: Lsn,
    /// Read of the first of `left`.
    read: u64,
    bytes_before: u64,
    /// The store's own scrub is at work at it, and goes on to its end.
    by_worker: bool,
}

/// What the store keeps of its scrub.
#[derive(Debug, Default)]
pub(super) struct Scrub {
    /// Held throughout a step, so while the disk is read.
    pass: Mutex<Option<Pass>>,
    /// Held for a moment only: who asks does not wait for the disk.
    told: Mutex<Told>,
}

#[derive(Debug, Default)]
struct Told {
    stats: ScrubStats,
    found: BTreeMap<PathBuf, Vec<Finding>>,
    /// Why files could not be read.
    unread: Vec<String>,
    last: Option<ScrubPass>,
}

impl Told {
    /// What a check of a file came to.
    fn keep(&mut self, path: &Path, found: Vec<Finding>) {
        if found.is_empty() {
            self.found.remove(path);
        } else if self.found.len() < FILES_MAX {
            self.found.insert(path.to_owned(), found);
        }
    }
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Store {
    /// Reads about `bytes` more of the pass under way, at least a block; begins one if there is none. `Idle` when a
    /// pass has come to its end: the next call begins another one. Whether it read everything, [`Store::last_scrub`] says.
    /// Who stops before the end says so with [`Store::scrub_give_up`].
    pub fn scrub_step(&self, bytes: u64) -> Progress {
        self.scrub_some(bytes, false).map_or(Progress::Idle, |_| Progress::Worked)
    }

    /// For who takes no more steps: the pass under way is over and does not count as one. What it found stays. A pass at
    /// which the store's own scrub works as well goes on.
    pub fn scrub_give_up(&self) {
        self.give_up(false);
    }

    fn give_up(&self, by_worker: bool) {
        let mut under_way = lock(&self.scrub.pass);
        if under_way.take_if(|pass| pass.by_worker == by_worker).is_some() {
            lock(&self.scrub.told).stats.running = false;
        }
    }

    /// Reads one table whole, now, beside any pass: for a table in which a read met damage. True when it is damaged;
    /// then it is told as if a pass had found it.
    pub fn scrub_table(&self, id: u128) -> bool {
        self.check_table(id) == Some(true)
    }

    /// A read failed with this: if it says that a table is damaged, that table is read whole, as by
    /// [`Store::scrub_table`]. Where it cannot be read whole for want of something else than its bytes, what the read
    /// met is told, until a pass has seen it. True when damage is told.
    pub fn scrub_after(&self, met: &Error) -> bool {
        let table = met.damaged_file().and_then(Path::file_name).and_then(|n| n.to_str()).and_then(parse_table_name);
        let Some(id) = table else { return false };
        self.check_table(id).unwrap_or_else(|| self.tree.note_met(met))
    }

    /// Whether a table is damaged; `None` when it could not be read, which says nothing of its bytes.
    fn check_table(&self, id: u128) -> Option<bool> {
        let Some(mut table) = self.tree.table_to_scrub(id) else { return Some(false) };
        loop {
            // For a step only: neither a pass nor a repair waits for the whole table.
            let _pass = lock(&self.scrub.pass);
            match table.step(&self.tree, STEP_BYTES) {
                Scrubbed::Read(_) => {}
                Scrubbed::Gone => return Some(false),
                Scrubbed::Unread(_) => return None,
                Scrubbed::Whole(found) => {
                    let damaged = !found.is_empty();
                    self.tell_tree(&table, &found);
                    lock(&self.scrub.told).keep(table.path(), found);
                    return Some(damaged);
                }
            }
        }
    }

    /// How far the scrub is.
    #[must_use]
    pub fn scrub_stats(&self) -> ScrubStats {
        let told = lock(&self.scrub.told);
        ScrubStats { damaged_files: told.found.len() as u64, ..told.stats }
    }

    /// The last pass that came to its end, whatever a later one has seen by now; `None` before the first.
    #[must_use]
    pub fn last_scrub(&self) -> Option<ScrubPass> {
        lock(&self.scrub.told).last.clone()
    }

    /// Why files could not be read by the present or last pass (of a few), where that says nothing of their bytes: too many open
    /// files, no memory, no right. They are not called damaged, and the next pass tries again.
    #[must_use]
    pub fn scrub_unread(&self) -> Vec<String> {
        lock(&self.scrub.told).unread.clone()
    }

    /// What the scrub found that was not seen whole, repaired or gone since, by file.
    #[must_use]
    pub fn scrub_findings(&self) -> Vec<Finding> {
        lock(&self.scrub.told).found.values().flatten().cloned().collect()
    }

    /// Damage of files of the log, as text.
    #[must_use]
    pub fn damaged_log(&self) -> Vec<String> {
        let told = lock(&self.scrub.told);
        let log = told.found.iter().filter(|(path, _)| path.extension().is_some_and(|e| e == "log"));
        log.filter_map(|(_, found)| found.first().map(text)).collect()
    }

    /// Forgets what was found in a file that was replaced. A check of the old one that is on its way ends without a
    /// word, as the tree no longer reads from it.
    pub(super) fn scrub_forgets(&self, path: &Path) {
        let _pass = lock(&self.scrub.pass);
        lock(&self.scrub.told).found.remove(path);
    }

    /// A step; how many bytes it read, `None` when the pass is over.
    fn scrub_some(&self, bytes: u64, by_worker: bool) -> Option<u64> {
        let mut under_way = lock(&self.scrub.pass);
        let pass = under_way.get_or_insert_with(|| self.begin_pass());
        pass.by_worker |= by_worker;
        let Some((tries, item)) = pass.left.front_mut() else {
            let lsn = pass.lsn;
            *under_way = None;
            self.end_pass(lsn);
            return None;
        };
        let stepped = match item {
            Item::Table(t) => t.step(&self.tree, bytes),
            Item::Segment(s) => s.step(bytes),
        };
        let found = match stepped {
            Scrubbed::Read(n) => {
                pass.read += n;
                lock(&self.scrub.told).stats.bytes_done = pass.bytes_before + pass.read.min(item.bytes());
                return Some(n);
            }
            Scrubbed::Whole(found) => Some(found),
            Scrubbed::Gone => None,
            Scrubbed::Unread(e) => {
                *tries += 1;
                pass.read = 0;
                let mut told = lock(&self.scrub.told);
                told.stats.bytes_done = pass.bytes_before;
                if *tries < TRIES_MAX {
                    pass.left.rotate_left(1);
                } else {
                    // What an earlier pass found in it still stands.
                    told.stats.unread_files += 1;
                    if told.unread.len() < UNREAD_MAX {
                        told.unread.push(e.to_string());
                    }
                    pass.left.pop_front();
                }
                return Some(0);
            }
        };
        // A good copy stands under the name of the file that it replaced, and may have been found damaged since.
        let forget = !matches!(&*item, Item::Table(t) if self.tree.knows_table(t.id()));
        if let (Item::Table(t), Some(found)) = (&*item, &found) {
            self.tell_tree(t, found);
        }
        pass.bytes_before += item.bytes();
        pass.read = 0;
        let mut told = lock(&self.scrub.told);
        told.stats.bytes_done = pass.bytes_before;
        match found {
            Some(found) => {
                told.stats.files_done += 1;
                told.keep(item.path(), found);
            }
            None => {
                told.stats.files_gone += 1;
                if forget {
                    told.found.remove(item.path());
                }
            }
        }
        pass.left.pop_front();
        Some(0)
    }

    fn begin_pass(&self) -> Pass {
        let lsn = self.log.durable().get();
        let tables = self.tree.tables_to_scrub().into_iter().map(|t| Item::Table(Box::new(t)));
        let segments = self.log.segments_to_scrub().into_iter().map(|s| Item::Segment(Box::new(s)));
        // The log first: its segments go sooner than tables do.
        let left: VecDeque<(u32, Item)> = segments.chain(tables).map(|item| (0, item)).collect();
        let mut told = lock(&self.scrub.told);
        // What is no longer in use is no longer damaged.
        told.found.retain(|path, _| left.iter().any(|(_, i)| i.path() == path));
        told.unread.clear();
        let stats = &mut told.stats;
        stats.running = true;
        (stats.files_done, stats.files_gone, stats.unread_files) = (0, 0, 0);
        stats.files_total = left.len() as u64;
        (stats.bytes_done, stats.bytes_total) = (0, left.iter().map(|(_, item)| item.bytes()).sum());
        Pass { left, lsn, read: 0, bytes_before: 0, by_worker: false }
    }

    fn end_pass(&self, lsn: Lsn) {
        let mut told = lock(&self.scrub.told);
        told.stats.running = false;
        told.stats.passes += 1;
        if told.stats.unread_files == 0 {
            told.stats.last_whole_at = self.env.clock.wall();
            told.stats.last_whole_lsn = lsn;
        }
        let stats = ScrubStats { damaged_files: told.found.len() as u64, ..told.stats };
        told.last = Some(ScrubPass { stats, unread: told.unread.clone() });
    }

    /// Lets compaction leave a damaged table alone, and take a whole one again.
    fn tell_tree(&self, table: &TableScrub, found: &[Finding]) {
        match found.first() {
            Some(f) => self.tree.note_damage(table, text(f)),
            None => self.tree.forget_damage(table.id()),
        }
    }
}

/// As an error says it.
fn text(f: &Finding) -> String {
    Error::corruption(&f.path, f.offset, f.lsn, f.what.clone()).to_string()
}

/// Runs a pass now and then, at the rate that the options allow.
pub(super) struct Scrubber {
    store: Arc<Store>,
    rate: u64,
    interval: Duration,
    next_pass: Duration,
    /// The bytes read so far have used the time until then.
    not_before: Duration,
}

impl Scrubber {
    /// `None` when the options ask for no scrub.
    pub(super) fn new(store: &Arc<Store>) -> Option<Self> {
        let (rate, interval) = store.tree.scrub_options();
        let now = store.env.clock.monotonic();
        let next_pass = now + interval.min(FIRST_AFTER);
        (rate > 0).then(|| Self { store: Arc::clone(store), rate, interval, next_pass, not_before: now })
    }
}

impl Worker for Scrubber {
    fn step(&mut self) -> Progress {
        let now = self.store.env.clock.monotonic();
        let wait = self.next_pass.max(self.not_before);
        if now < wait {
            return Progress::Sleep(wait - now);
        }
        let bytes = (self.rate / STEPS_A_SECOND).clamp(1, STEP_BYTES);
        match self.store.scrub_some(bytes, true) {
            Some(read) => self.not_before = now + Duration::from_secs_f64(read as f64 / self.rate as f64),
            None => self.next_pass = now.max(self.next_pass + self.interval),
        }
        Progress::Worked
    }
}

impl Drop for Scrubber {
    fn drop(&mut self) {
        self.store.give_up(true);
    }
}

#[cfg(all(test, feature = "sim"))]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::batch::Batch;
    use crate::clock::{Clock, SimClock};
    use crate::env::Env;
    use crate::error::Result;
    use crate::fs::sim::SimFs;
    use crate::limits::Options;
    use crate::lsn::{ClusterId, TimelineId};
    use crate::store::{Durability, Identity};

    const RATE: u64 = 64 << 10;

    fn fill(store: &Store) -> Result<()> {
        for n in 0..2_000u32 {
            let mut batch = Batch::new();
            let value: Vec<u8> = (0..90u32).map(|i| (n.wrapping_mul(31).wrapping_add(i * i) >> 3) as u8).collect();
            batch.put(&n.to_be_bytes(), &value)?;
            store.write(&batch, &[], Durability::Written)?;
        }
        while store.maintain_step()? == Progress::Worked {}
        Ok(())
    }

    fn store(options: &Options) -> Result<(Arc<Store>, Arc<SimClock>)> {
        let clock = SimClock::new(CommitTs(1));
        let (env, _) = Env::sim(SimFs::new(1), Arc::clone(&clock), 1);
        let identity = Identity { cluster: ClusterId(1), timeline: TimelineId(1) };
        let store = Store::create(env, Path::new("/data"), options, identity)?;
        fill(&store)?;
        Ok((Arc::new(store), clock))
    }

    #[test]
    fn the_worker_keeps_its_rate_and_begins_a_pass_an_interval() {
        let interval = Duration::from_secs(100);
        let options = Options { scrub_bytes_per_second: RATE, scrub_interval: interval, ..Options::tiny() };
        let (store, clock) = store(&options).unwrap();
        let mut worker = Scrubber::new(&store).unwrap();
        let mut ends = Vec::new();
        let mut begins = Vec::new();
        while ends.len() < 2 {
            let before = store.scrub_stats();
            let progress = worker.step();
            let (now, after) = (clock.monotonic(), store.scrub_stats());
            if after.running && !before.running {
                begins.push(now);
            }
            if after.passes > before.passes {
                ends.push((now, after.bytes_total));
            }
            if let Progress::Sleep(pause) = progress {
                assert!(pause <= interval.max(Duration::from_secs(1)), "{pause:?}");
                clock.advance(pause);
            }
        }
        assert_eq!(begins[0], FIRST_AFTER);
        assert_eq!(begins[1], FIRST_AFTER + interval);
        let (end, bytes) = ends[0];
        let took = (end - begins[0]).as_secs_f64();
        // Of each file about as much is read as it has; a log segment's zeros are not.
        assert!(bytes > 100 << 10 && took > bytes as f64 * 0.5 / RATE as f64, "{bytes} bytes in {took} s");
        assert!(took < bytes as f64 * 1.5 / RATE as f64, "{bytes} bytes in {took} s");
    }

    /// Who asked for a scrub may go at any time; what nobody reads must not look as if it were on its way.
    #[test]
    fn a_pass_goes_on_after_who_gives_it_up_only_where_the_worker_is_at_it() {
        let options = Options { scrub_bytes_per_second: RATE, ..Options::tiny() };
        let (store, clock) = store(&options).unwrap();
        let mut worker = Scrubber::new(&store).unwrap();
        assert_eq!(store.scrub_step(1), Progress::Worked);
        assert!(matches!(worker.step(), Progress::Sleep(_)) && store.scrub_stats().running);
        store.scrub_give_up();
        assert!(!store.scrub_stats().running, "the worker sleeps");
        assert_eq!(store.scrub_step(1), Progress::Worked);
        clock.advance(FIRST_AFTER);
        assert_eq!(worker.step(), Progress::Worked);
        assert_eq!(store.scrub_step(1), Progress::Worked);
        store.scrub_give_up();
        assert!(store.scrub_stats().running, "the worker is at it");
        drop(worker);
        assert_eq!((store.scrub_stats().running, store.scrub_stats().passes), (false, 0));
    }

    #[test]
    fn without_a_rate_there_is_no_worker() {
        assert!(Scrubber::new(&store(&Options::tiny()).unwrap().0).is_none());
    }
}
