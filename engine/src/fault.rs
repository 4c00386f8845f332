//! Planted bugs: each breaks one safety rule on purpose, so that a test can show that it would be
//! noticed.
//!
//! Owns: the list and the switches. In builds without feature `sim` there are no switches:
//! [`planted`] is the constant `false` and the call site costs nothing. Never: behaviour of its own;
//! the broken branch stands where the rule stands.

/// A safety rule to break.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Bug {
    /// Report records durable before the sync \[I3\].
    AckBeforeSync,
    /// Leave out the directory sync after creating or renaming a file.
    SkipDirectorySync,
    /// Show readers records above the commit LSN.
    VisibleAboveCommit,
    /// Archive records above the commit LSN.
    ArchiveAboveCommit,
    /// Accept records of an older epoch.
    AcceptOlderEpoch,
    /// Cut the log below the commit LSN \[I8\].
    CutBelowCommit,
    /// Believe bytes whose checksum does not fit.
    IgnoreChecksum,
    /// Believe a record whose chain hash does not continue the log.
    IgnoreChain,
    /// End a restore one record early.
    RestoreStopsEarly,
    /// Believe a frame that was written for another use of its file.
    IgnoreSalt,
    /// Give a released segment its new name with its old header in it.
    KeepOldHeader,
    /// Leave the old bytes behind a cut in place.
    SkipZeroAfterCut,
    /// Drop a delete while an older version of its key stands further below.
    DropHidingDeletes,
    /// Leave one entry out of a compaction's output.
    LoseInCompaction,
    /// Write on until the operating system says that the disk is full.
    IgnoreReserve,
    /// Write a group past the page cache although what a group before it wrote is in the page cache alone.
    DirectPastUnsynced,
    /// Put a copy in a damaged table's place without reading it first.
    RepairUnverified,
    /// Read the entries of an ingested table at the LSN they carry, not at their record's.
    ForgetIngestLsn,
    /// Remove the tables of an ingest that is in the log and not in the manifest yet when the store opens.
    TidyIngested,
    /// Let who still holds a table of a store that has ended remove its file, whosever that is by then.
    RemoveAfterEnd,
    /// Take what stands in a directory without an identity for an attempt to make a store, whatever it is.
    ClearAnything,
}

#[cfg(feature = "sim")]
pub use switches::{Guard, plant, plant_in_process, planted};

/// Whether a bug is planted: never, in this build.
#[cfg(not(feature = "sim"))]
#[inline(always)]
#[must_use]
pub const fn planted(_: Bug) -> bool {
    false
}

#[cfg(feature = "sim")]
mod switches {
    use std::cell::Cell;
    use std::marker::PhantomData;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::sync::{Mutex, MutexGuard, PoisonError};

    use super::Bug;

    thread_local! {
        static HERE: Cell<u32> = const { Cell::new(0) };
    }
    static EVERYWHERE: AtomicU32 = AtomicU32::new(0);
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

    const fn bit(bug: Bug) -> u32 {
        1 << bug as u8
    }

    /// Keeps a bug planted until dropped. It stays on the thread that planted.
    #[derive(Debug)]
    pub struct Guard {
        bug: Bug,
        whole_process: Option<MutexGuard<'static, ()>>,
        was_planted: bool,
        stays_here: PhantomData<*const ()>,
    }

    /// Plants a bug for code run on this thread, so that tests beside it in the same process keep
    /// clean: for simulations, which run everything inline.
    #[must_use]
    pub fn plant(bug: Bug) -> Guard {
        let before = HERE.replace(HERE.get() | bit(bug));
        Guard { bug, whole_process: None, was_planted: before & bit(bug) != 0, stays_here: PhantomData }
    }

    /// Plants a bug for every thread: for tests with real workers. Waits while another such guard
    /// lives (two of them on one thread never end), and strikes all tests of the process, so it
    /// belongs in a test binary of its own.
    #[must_use]
    pub fn plant_in_process(bug: Bug) -> Guard {
        let alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        EVERYWHERE.fetch_or(bit(bug), Ordering::SeqCst);
        Guard { bug, whole_process: Some(alone), was_planted: false, stays_here: PhantomData }
    }

    impl Drop for Guard {
        fn drop(&mut self) {
            if self.whole_process.is_some() {
                EVERYWHERE.fetch_and(!bit(self.bug), Ordering::SeqCst);
            } else if !self.was_planted {
                HERE.set(HERE.get() & !bit(self.bug));
            }
        }
    }

    /// Whether a bug is planted here.
    #[must_use]
    pub fn planted(bug: Bug) -> bool {
        (HERE.get() | EVERYWHERE.load(Ordering::SeqCst)) & bit(bug) != 0
    }
}

#[cfg(all(test, feature = "sim"))]
mod tests {
    use super::*;

    #[test]
    fn a_bug_is_planted_on_this_thread_while_its_guard_lives() {
        assert!(!planted(Bug::IgnoreChain));
        let outer = plant(Bug::IgnoreChain);
        let inner = plant(Bug::IgnoreChain);
        assert!(planted(Bug::IgnoreChain) && !planted(Bug::IgnoreChecksum));
        std::thread::scope(|s| {
            let elsewhere = s.spawn(|| planted(Bug::IgnoreChain)).join();
            assert!(!elsewhere.unwrap(), "planted on another thread");
        });
        drop(inner);
        assert!(planted(Bug::IgnoreChain));
        drop(outer);
        assert!(!planted(Bug::IgnoreChain));
    }

    #[test]
    fn a_bug_planted_in_the_process_is_seen_by_every_thread() {
        // No other test of this binary looks at this bug without planting it itself.
        let guard = plant_in_process(Bug::RestoreStopsEarly);
        std::thread::scope(|s| {
            assert!(s.spawn(|| planted(Bug::RestoreStopsEarly)).join().unwrap());
        });
        drop(guard);
        assert!(!planted(Bug::RestoreStopsEarly));
    }
}
