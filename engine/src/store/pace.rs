//! Pace: writers that are faster than flush and compaction are slowed, a little at first, long before they would
//! have to stop; each delay has a cause.
//!
//! All writers share one schedule: every byte is given its time, and a writer waits for the time of its own. At
//! pressure `p` (see `tree::pressure`) bytes get `1 / p²` of the rate that the background manages: at a half four
//! times that rate, at one as much. Short waits are saved up, for a sleep has a coarse grain. Owns: the schedule and
//! its account. Never: a lock held while waiting.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use super::Store;
use crate::tree::Cause;

/// Waits below this are saved up.
const GRAIN: Duration = Duration::from_millis(1);
/// No writer waits longer for what others wrote.
const LONGEST: Duration = Duration::from_millis(100);
/// Nor longer than this in all, however large its batch is.
const LONGEST_OWN: Duration = Duration::from_secs(1);

/// Time that writers were held back for one cause.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stalls {
    /// Delays.
    pub count: u64,
    /// Their sum, in microseconds.
    pub total_us: u64,
    /// The longest, in microseconds.
    pub max_us: u64,
}

/// Why and how long writers were held back, since the store was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StallStats {
    /// Memtables waited for their flush.
    pub flush: Stalls,
    /// Tables of level 0 waited for their merge.
    pub level0: Stalls,
    /// Deeper levels were over their sizes.
    pub levels: Stalls,
    /// As many memtables waited as may: writers stopped until one was flushed.
    pub stopped: Stalls,
}

#[derive(Debug, Default)]
struct Account {
    count: AtomicU64,
    total_us: AtomicU64,
    max_us: AtomicU64,
}

impl Account {
    fn add(&self, wait: Duration) {
        let us = u64::try_from(wait.as_micros()).unwrap_or(u64::MAX);
        self.count.fetch_add(1, Ordering::Relaxed);
        self.total_us.fetch_add(us, Ordering::Relaxed);
        self.max_us.fetch_max(us, Ordering::Relaxed);
    }

    fn stalls(&self) -> Stalls {
        let load = |n: &AtomicU64| n.load(Ordering::Relaxed);
        Stalls { count: load(&self.count), total_us: load(&self.total_us), max_us: load(&self.max_us) }
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// Without background threads waiting would change nothing.
    on: AtomicBool,
    /// Up to this time, in nanoseconds of the monotonic clock, the bytes written so far have used it.
    used_ns: AtomicU64,
    accounts: [Account; 4],
}

impl Pace {
    pub(super) fn turn_on(&self) {
        self.on.store(true, Ordering::Relaxed);
    }

    /// A writer stood still for so long.
    pub(super) fn stopped(&self, wait: Duration) {
        let [.., stopped] = &self.accounts;
        stopped.add(wait);
    }

    pub(super) fn stats(&self) -> StallStats {
        let [flush, level0, levels, stopped] = &self.accounts;
        StallStats {
            flush: flush.stalls(),
            level0: level0.stalls(),
            levels: levels.stalls(),
            stopped: stopped.stalls(),
        }
    }

    /// Gives `cost` its time after all that was given before; the wait that this means at `now`. What is booked for
    /// others to wait for reaches no further than [`LONGEST`]: a debt that no single wait pays would hold up small
    /// writes long after those who made it.
    fn schedule(&self, now: Duration, cost: Duration) -> Duration {
        let ns = |d: Duration| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX);
        let (now, cost) = (ns(now), ns(cost));
        // Time that nobody used is lost: a pause earns no burst.
        let add = |used: u64| Some(used.max(now).saturating_add(cost).min(now.saturating_add(ns(LONGEST))));
        let before = self.used_ns.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add).unwrap_or(now);
        Duration::from_nanos(before.max(now).saturating_add(cost) - now)
    }
}

impl Store {
    /// How long the writer of so many bytes should wait before it writes again, because flush and compaction are
    /// behind. Mostly zero, and then cheap. Nothing waits here: the caller does.
    pub fn pace(&self, bytes: usize) -> Duration {
        if !self.pace.on.load(Ordering::Relaxed) {
            return Duration::ZERO;
        }
        let Some(slow) = self.tree.slow() else { return Duration::ZERO };
        let cost = Duration::from_secs_f64(bytes as f64 * slow.by * slow.by / slow.rate.max(1) as f64);
        let wait = self.pace.schedule(self.env.clock.monotonic(), cost);
        if wait < GRAIN {
            return Duration::ZERO;
        }
        let wait = wait.min(LONGEST_OWN);
        let [flush, level0, levels, _] = &self.pace.accounts;
        match slow.cause {
            Cause::Flush => flush.add(wait),
            Cause::Level0 => level0.add(wait),
            Cause::Levels => levels.add(wait),
        }
        wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(feature = "sim")]
    mod sim {
        use std::path::Path;
        use std::sync::Arc;

        use super::*;
        use crate::batch::Batch;
        use crate::clock::SimClock;
        use crate::exec::Progress;
        use crate::fs::sim::SimFs;
        use crate::rng::{Rng, SeededRng};
        use crate::store::{Durability, Identity};
        use crate::{ClusterId, CommitTs, Env, Options, TimelineId};

        pub(super) struct Sim {
            pub(super) fs: Arc<SimFs>,
            pub(super) clock: Arc<SimClock>,
            pub(super) store: Store,
        }

        impl Sim {
            pub(super) fn new(options: &Options) -> Self {
                let (fs, dir) = (SimFs::new(1), Path::new("/data"));
                fs.prepare_dir(dir).unwrap();
                let clock = SimClock::new(CommitTs(1_000_000));
                let (env, _) = Env::sim(Arc::clone(&fs), Arc::clone(&clock), 1);
                let identity = Identity { cluster: ClusterId(1), timeline: TimelineId(1) };
                let store = Store::create(env, dir, options, identity).unwrap();
                Self { fs, clock, store }
            }

            /// The same directory opened with other options.
            fn again(self, options: &Options) -> Self {
                let Self { fs, clock, store } = self;
                let env = store.env().clone();
                drop(store);
                let store = Store::open_embedded(env, Path::new("/data"), options).unwrap();
                Self { fs, clock, store }
            }

            fn put(&self, key: u64, random: &SeededRng) {
                let value: Vec<u8> = (0..10).flat_map(|_| random.next_u64().to_be_bytes()).collect();
                let mut batch = Batch::new();
                batch.put(&key.to_be_bytes(), &value).unwrap();
                self.store.write(&batch, &[], Durability::Written).unwrap();
            }

            fn wait_until_two_memtables_wait(&self) {
                let random = SeededRng::new(1);
                while self.store.stats().tree.frozen_memtables < 2 {
                    self.put(random.below(1 << 40), &random);
                }
            }
        }

        /// A delay of a writer that asks how long it should wait.
        fn one_delay(store: &Store) -> Stalls {
            assert_eq!(store.pace(1 << 20), Duration::ZERO, "nobody flushes or compacts, so waiting is of no use");
            assert_eq!(store.stats().stalls, StallStats::default());
            store.pace.turn_on();
            let wait = store.pace(1 << 20).as_micros() as u64;
            assert!(wait > 0);
            Stalls { count: 1, total_us: wait, max_us: wait }
        }

        #[test]
        fn a_delay_for_memtables_that_wait_for_their_flush_counts_as_that() {
            let sim = Sim::new(&Options::tiny());
            sim.wait_until_two_memtables_wait();
            let flush = one_delay(&sim.store);
            assert_eq!(sim.store.stats().stalls, StallStats { flush, ..StallStats::default() });
            // The longest is kept beside the sum.
            sim.clock.advance(Duration::from_secs(9));
            let more = sim.store.pace(1 << 19).as_micros() as u64;
            assert!(more > 0 && more < flush.max_us);
            let both = Stalls { count: 2, total_us: flush.total_us + more, ..flush };
            assert_eq!(sim.store.stats().stalls.flush, both);
            sim.store.tree().flush_all().unwrap();
            assert_eq!((sim.store.pace(1 << 20), sim.store.stats().stalls.flush), (Duration::ZERO, both));
        }

        #[test]
        fn a_delay_for_levels_over_their_sizes_counts_as_that() {
            let options = Options { level_base_bytes: 2 << 10, table_bytes: 1 << 10, ..Options::tiny() };
            let (sim, random) = (Sim::new(&options), SeededRng::new(2));
            for n in 0..1_500 {
                sim.put(n * 7_919 % 1_500, &random);
                while sim.store.maintain_step().unwrap() == Progress::Worked {}
            }
            sim.store.tree().flush_all().unwrap();
            while sim.store.maintain_step().unwrap() == Progress::Worked {}
            let [_, middle @ .., _] = sim.store.stats().tree.levels;
            assert!(middle.iter().map(|l| l.bytes).sum::<u64>() > 12 << 10, "{middle:?}");
            // With these there should be no level between the first and the last.
            let options = Options { level_base_bytes: 1 << 30, memtable_bytes: 1 << 10, level0_tables: 1, ..options };
            let sim = sim.again(&options);
            let levels = one_delay(&sim.store);
            assert_eq!(sim.store.stats().stalls, StallStats { levels, ..StallStats::default() });
            while sim.store.maintain_step().unwrap() == Progress::Worked {}
            assert_eq!(sim.store.pace(1 << 20), Duration::ZERO);
        }

        #[test]
        fn a_writer_that_stands_still_until_a_memtable_is_flushed_counts_with_its_time() {
            let sim = Sim::new(&Options::tiny());
            for round in 1..=2 {
                sim.wait_until_two_memtables_wait();
                let stall = sim.fs.stall_syncs();
                std::thread::scope(|s| {
                    let writer = s.spawn(|| sim.put(0, &SeededRng::new(3)));
                    stall.wait_for(1);
                    sim.clock.advance(Duration::from_millis(5 * round));
                    drop(stall);
                    writer.join().unwrap();
                });
                let (count, max_us) = (round, 5_000 * round);
                let stopped = Stalls { count, total_us: [5_000, 15_000][round as usize - 1], max_us };
                assert_eq!(sim.store.stats().stalls, StallStats { stopped, ..StallStats::default() });
            }
        }
    }

    #[cfg(feature = "sim")]
    #[test]
    fn writers_are_slowed_the_more_the_further_compaction_is_behind_and_not_after_it() {
        use crate::Options;
        use crate::batch::Batch;
        use crate::exec::{Progress, Worker};
        use crate::store::Durability;

        let sim::Sim { store, .. } = sim::Sim::new(&Options::tiny());
        let mut by = Vec::new();
        for n in 0..24u32 {
            let mut batch = Batch::new();
            batch.put(&n.to_be_bytes(), b"value").unwrap().put(b"k", b"value").unwrap();
            store.write(&batch, &[], Durability::Written).unwrap();
            store.tree().flush_all().unwrap();
            by.push(store.tree().slow().map_or(0.0, |s| s.by));
        }
        assert_eq!(by[..4], [0.0; 4], "level 0 is not merged before it is full");
        assert!(by.windows(2).all(|w| w[0] <= w[1] && w[1] - w[0] < 0.2), "no jumps: {by:?}");
        assert!(by.last().is_some_and(|b| (b - 2.0).abs() < 0.01), "{by:?}");
        assert_eq!(store.pace(1 << 20), Duration::ZERO, "nobody compacts, so waiting is of no use");
        store.pace.turn_on();
        let wait = store.pace(1 << 20);
        assert!(wait > GRAIN && wait <= LONGEST_OWN, "{wait:?}");
        let stalls = store.stats().stalls;
        assert_eq!((stalls.level0.count, stalls.flush.count, stalls.levels.count), (1, 0, 0));
        // A submitted write does not wait; its completion does, and those behind it.
        let store = std::sync::Arc::new(store);
        let mut completer = store.completer();
        let submit = || store.submit(Batch::new().put(b"k", b"v").unwrap(), &[], Durability::Buffered).unwrap();
        let first = submit();
        assert!(first.outcome().is_none());
        assert_eq!(completer.step(), Progress::Worked);
        assert!(first.outcome().is_some_and(|o| o.is_ok()));
        let second = submit();
        assert!(matches!(completer.step(), Progress::Sleep(_)) && second.outcome().is_none());
        drop(completer);
        assert!(second.outcome().is_some_and(|o| o.is_ok()));
        while store.maintain_step().unwrap() == Progress::Worked {}
        assert_eq!(store.pace(1 << 20), Duration::ZERO);
    }

    #[test]
    fn bytes_get_their_time_one_after_the_other_and_a_pause_earns_nothing() {
        let (pace, ms) = (Pace::default(), Duration::from_millis);
        assert_eq!(pace.schedule(ms(1000), ms(4)), ms(4));
        assert_eq!(pace.schedule(ms(1001), ms(4)), ms(7));
        assert_eq!(pace.schedule(ms(1008), ms(4)), ms(4));
        assert_eq!(pace.schedule(ms(9000), ms(4)), ms(4));
    }

    #[test]
    fn what_large_batches_leave_behind_holds_no_later_write_up_for_long() {
        let (pace, ms) = (Pace::default(), Duration::from_millis);
        assert_eq!(pace.schedule(ms(1000), ms(60_000)), ms(60_000));
        let wait = pace.schedule(ms(1010), ms(1));
        assert!(wait <= LONGEST + ms(1), "{wait:?}");
        assert_eq!(pace.schedule(ms(1200), ms(1)), ms(1));
    }
}
