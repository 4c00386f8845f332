//! Who leads: of all threads that wait for a sync, one writes and syncs for all.
//!
//! Owns: leadership, the queue's length, the gather step, wake-ups. Never: I/O.
//!
//! Threads queue in numbered groups. A leader takes the present group when it takes the buffer;
//! later ones queue in the next group at the other signal, so that ending a group does not wake those
//! who cannot go on yet. Who wakes and finds its group ended goes on without taking the lock.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::signal::Signal;
use crate::clock::Clock;
use crate::limits::Options;

/// After a group is acknowledged its threads come back with new records within a moment, if at all. Waiting
/// for them is worth a third of what the last group's work took, within these bounds; not waiting halves the
/// groups on two cores.
const GATHER_MIN: Duration = Duration::from_micros(40);
const GATHER_MAX: Duration = Duration::from_micros(100);
/// Bound for a clock that stands still.
const GATHER_LOOKS: usize = 1000;

/// Whether a leader waits a moment for others to share its work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Gather {
    Yes,
    No,
}

#[derive(Debug, Default)]
struct State {
    leading: bool,
    /// Groups below this one have ended.
    ended: u64,
    /// How many may be in the next group.
    expected: usize,
    acked: Duration,
    /// How long a leader waits for them after that.
    patience: Duration,
}

/// See the module's text.
#[derive(Debug, Default)]
pub(super) struct Gate {
    /// Whether leaders gather at all, see [`Options::gather_syncs`].
    gathers: bool,
    state: Mutex<State>,
    // These change under the lock only.
    /// The group that queues now; all below were taken by a leader.
    group: AtomicU64,
    /// Its size.
    queued: AtomicUsize,
    /// Threads that want the leadership for themselves; they go first.
    exclusive: AtomicUsize,
    turns: [Signal; 2],
    free: Condvar,
}

/// The leadership. Ended by [`Gate::end`], which `writer::Leading` calls, after a panic too.
#[derive(Debug)]
#[must_use]
pub(super) struct Lead {
    group: u64,
    /// Members of the group, and those of them who wait.
    size: usize,
    waiting: usize,
    /// When the leadership began, if that counts for how long the next leader gathers.
    since: Option<Duration>,
}

impl Gate {
    pub(super) fn of(options: &Options) -> Self {
        Self { gathers: options.gather_syncs, ..Self::default() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn turn(&self, group: u64) -> &Signal {
        &self.turns[(group % 2) as usize]
    }

    fn group(&self) -> u64 {
        self.group.load(Ordering::SeqCst)
    }

    fn queued(&self) -> usize {
        self.queued.load(Ordering::SeqCst)
    }

    fn exclusive(&self) -> usize {
        self.exclusive.load(Ordering::SeqCst)
    }

    /// Joins the group that queues now. The caller holds the lock.
    fn join(&self) -> u64 {
        self.queued.fetch_add(1, Ordering::SeqCst);
        self.group()
    }

    /// Queues until `done` (then none) or until this thread leads a group that it has gathered.
    pub(super) fn queue(&self, clock: &dyn Clock, gather: Gather, done: impl Fn() -> bool) -> Option<Lead> {
        let mut s = self.lock();
        let mut mine = self.join();
        loop {
            if s.ended > mine && !done() {
                // What the group wrote was cut and written again before this thread woke: it queues anew,
                // or nobody would know that it waits.
                mine = self.join();
            }
            if done() {
                if mine == self.group() {
                    self.queued.fetch_sub(1, Ordering::SeqCst);
                }
                // This wake-up was meant for a leader.
                if !s.leading && self.queued() > 0 {
                    self.turn(self.group()).wake_one();
                }
                return None;
            }
            if !s.leading && self.exclusive() == 0 {
                s.leading = true;
                if gather == Gather::Yes && self.gathers {
                    let (expected, until) = (s.expected, s.acked + s.patience);
                    drop(s);
                    self.gather(expected, until, clock);
                    s = self.lock();
                }
                let since = (gather == Gather::Yes).then(|| clock.monotonic());
                return Some(self.take_group(&s, 1, since));
            }
            // Seen under the lock: whoever ends the group does so after.
            let (turn, seen) = (self.turn(mine), self.turn(mine).seen());
            drop(s);
            turn.wait(seen);
            if self.group() > mine && done() {
                return None;
            }
            s = self.lock();
        }
    }

    /// Takes the leadership, after the present leader's.
    pub(super) fn acquire(&self, clock: &dyn Clock) -> Lead {
        let mut s = self.lock();
        self.exclusive.fetch_add(1, Ordering::SeqCst);
        while s.leading {
            s = self.free.wait(s).unwrap_or_else(PoisonError::into_inner);
        }
        self.exclusive.fetch_sub(1, Ordering::SeqCst);
        s.leading = true;
        self.take_group(&s, 0, Some(clock.monotonic()))
    }

    /// `own` of the group's members is the leader itself.
    fn take_group(&self, _held: &MutexGuard<'_, State>, own: usize, since: Option<Duration>) -> Lead {
        let size = self.queued.swap(0, Ordering::SeqCst);
        let group = self.group.fetch_add(1, Ordering::SeqCst);
        Lead { group, size, waiting: size.saturating_sub(own), since }
    }

    /// Waits for as many as are expected. The lock is not held, or nobody could come.
    fn gather(&self, expected: usize, until: Duration, clock: &dyn Clock) {
        for _ in 0..GATHER_LOOKS {
            if self.queued() >= expected || self.exclusive() > 0 || clock.monotonic() >= until {
                break;
            }
            std::thread::yield_now();
        }
    }

    /// Ends the leadership after the group's records became durable, or the log stopped.
    pub(super) fn end(&self, lead: &Lead, clock: &dyn Clock) {
        let mut s = self.lock();
        s.leading = false;
        s.ended = lead.group + 1;
        if let Some(since) = lead.since {
            s.acked = clock.monotonic();
            s.patience = (s.acked.saturating_sub(since) / 3).clamp(GATHER_MIN, GATHER_MAX);
        }
        let (next, queued, exclusive) = (self.group(), self.queued(), self.exclusive());
        // Those who came meanwhile and those who come back, or two halves would take turns for ever.
        s.expected = lead.size + queued;
        drop(s);
        if exclusive > 0 {
            self.free.notify_one();
        } else if queued > 0 {
            self.turn(next).wake_one();
        }
        if lead.waiting > 0 {
            self.turn(lead.group).wake_all();
        }
    }

    /// Wakes everyone: the log has stopped.
    pub(super) fn wake_all(&self) {
        let _s = self.lock();
        self.turns.iter().for_each(Signal::wake_all);
        self.free.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lsn::CommitTs;

    /// Stands still and counts how often it is looked at.
    #[derive(Debug, Default)]
    struct Still(AtomicUsize);

    impl Clock for Still {
        fn wall(&self) -> CommitTs {
            CommitTs(0)
        }

        fn monotonic(&self) -> Duration {
            self.0.fetch_add(1, Ordering::Relaxed);
            Duration::ZERO
        }
    }

    /// How often somebody who leads looks at the clock before and after its group is taken, where two are expected.
    fn looks(gather_syncs: bool, gather: Gather) -> usize {
        let gate = Gate::of(&Options { gather_syncs, ..Options::tiny() });
        let clock = Still::default();
        gate.lock().expected = 2;
        gate.lock().patience = GATHER_MIN;
        let lead = gate.queue(&clock, gather, || false).unwrap();
        assert_eq!((lead.size, lead.waiting), (1, 0));
        let looks = clock.0.load(Ordering::Relaxed);
        gate.end(&lead, &clock);
        looks
    }

    #[test]
    fn who_commits_for_a_group_gathers_unless_it_only_writes_or_the_options_say_no() {
        assert_eq!(looks(true, Gather::Yes), GATHER_LOOKS + 1);
        assert_eq!(looks(true, Gather::No), 0);
        assert_eq!(looks(false, Gather::Yes), 1, "when it began to lead, and no more");
    }
}
