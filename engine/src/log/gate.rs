//! Who leads: of all threads that wait for a sync, one writes and syncs for all.
//!
//! Owns: leadership, the queue's length, the gather step, wake-ups. Never: I/O.
//!
//! Threads queue in numbered groups. A leader takes the present group when it takes the buffer;
//! later ones queue in the next group on the other condition variable, so that ending a group does
//! not wake those who cannot go on yet.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::clock::Clock;

/// After a group is acknowledged its threads come back with new records within this time, if at
/// all. Waiting longer gains nothing; not waiting halves the groups on two cores.
const GATHER: Duration = Duration::from_micros(40);
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
    group: u64,
    /// Groups below this one have ended.
    ended: u64,
    queued: usize,
    last_group: usize,
    /// Threads that want the leadership for themselves; they go first.
    exclusive: usize,
    acked: Duration,
}

/// See the module's text.
#[derive(Debug, Default)]
pub(super) struct Gate {
    state: Mutex<State>,
    turns: [Condvar; 2],
    free: Condvar,
}

/// The leadership. Ended by [`Gate::end`], not by dropping: what the leader did decides who wakes.
#[derive(Debug)]
#[must_use]
pub(super) struct Lead {
    group: u64,
    size: usize,
}

impl Gate {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn turn(&self, group: u64) -> &Condvar {
        &self.turns[(group % 2) as usize]
    }

    /// Queues until `done` (then none) or until this thread leads a group that it has gathered.
    pub(super) fn queue(&self, clock: &dyn Clock, gather: Gather, done: impl Fn() -> bool) -> Option<Lead> {
        let mut s = self.lock();
        let mut mine = s.group;
        s.queued += 1;
        loop {
            if s.ended > mine && !done() {
                // What the group wrote was cut and written again before this thread woke: it queues anew,
                // or nobody would know that it waits.
                mine = s.group;
                s.queued += 1;
            }
            if done() {
                if mine == s.group {
                    s.queued -= 1;
                }
                // This wake-up was meant for a leader.
                if !s.leading && s.queued > 0 {
                    self.turn(s.group).notify_one();
                }
                return None;
            }
            if !s.leading && s.exclusive == 0 {
                s.leading = true;
                let mut s = if gather == Gather::Yes { self.gather(s, clock) } else { s };
                return Some(Self::take_group(&mut s));
            }
            s = self.turn(mine).wait(s).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Takes the leadership, after the present leader's.
    pub(super) fn acquire(&self) -> Lead {
        let mut s = self.lock();
        s.exclusive += 1;
        while s.leading {
            s = self.free.wait(s).unwrap_or_else(PoisonError::into_inner);
        }
        s.exclusive -= 1;
        s.leading = true;
        Self::take_group(&mut s)
    }

    fn take_group(s: &mut State) -> Lead {
        let lead = Lead { group: s.group, size: s.queued };
        s.group += 1;
        s.queued = 0;
        lead
    }

    fn gather<'a>(&'a self, mut s: MutexGuard<'a, State>, clock: &dyn Clock) -> MutexGuard<'a, State> {
        let until = s.acked + GATHER;
        for _ in 0..GATHER_LOOKS {
            if s.queued >= s.last_group || s.exclusive > 0 || clock.monotonic() >= until {
                break;
            }
            drop(s);
            std::thread::yield_now();
            s = self.lock();
        }
        s
    }

    /// Ends the leadership after the group's records became durable, or the log stopped.
    pub(super) fn end(&self, lead: &Lead, clock: &dyn Clock) {
        let mut s = self.lock();
        s.leading = false;
        s.ended = lead.group + 1;
        s.last_group = lead.size;
        s.acked = clock.monotonic();
        if lead.size > 0 {
            self.turn(lead.group).notify_all();
        }
        if s.exclusive > 0 {
            self.free.notify_one();
        } else if s.queued > 0 {
            self.turn(s.group).notify_one();
        }
    }

    /// Wakes everyone: the log has stopped.
    pub(super) fn wake_all(&self) {
        let _s = self.lock();
        self.turns.iter().for_each(Condvar::notify_all);
        self.free.notify_all();
    }
}
