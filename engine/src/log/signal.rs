//! A place to wait at that is left without taking a lock.
//!
//! With a mutex and a condition variable all threads of a group wake to queue up for the mutex, one after
//! the other, each with a switch between threads. Here they wake and go. Owns: the waiting. Never: what is
//! waited for; wake-ups without a reason happen, the caller looks again.

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Signal(imp::Signal);

/// What a signal had seen at some moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen(u32);

impl Signal {
    /// Taken before the reason to wait is looked at.
    pub(super) fn seen(&self) -> Seen {
        Seen(self.0.value())
    }

    /// Waits for a wake-up since `seen` was taken; returns at once if there was one.
    pub(super) fn wait(&self, seen: Seen) {
        self.0.wait(seen.0);
    }

    /// Wakes one waiter.
    pub(super) fn wake_one(&self) {
        self.0.wake(false);
    }

    /// Wakes all waiters.
    pub(super) fn wake_all(&self) {
        self.0.wake(true);
    }
}

#[cfg(target_os = "linux")]
mod imp {
    use std::sync::atomic::{AtomicU32, Ordering};

    use rustix::thread::futex::{self, Flags};

    #[derive(Debug, Default)]
    pub(super) struct Signal(AtomicU32);

    impl Signal {
        pub(super) fn value(&self) -> u32 {
            self.0.load(Ordering::SeqCst)
        }

        pub(super) fn wait(&self, value: u32) {
            // Whatever ends the wait, also a signal to the process, the caller looks again.
            let _ = futex::wait(&self.0, Flags::PRIVATE, value, None);
        }

        pub(super) fn wake(&self, all: bool) {
            self.0.fetch_add(1, Ordering::SeqCst);
            // It fails for a bad address only.
            let _ = futex::wake(&self.0, Flags::PRIVATE, if all { i32::MAX as u32 } else { 1 });
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod imp {
    use std::sync::{Condvar, Mutex, PoisonError};

    #[derive(Debug, Default)]
    pub(super) struct Signal(Mutex<u32>, Condvar);

    impl Signal {
        pub(super) fn value(&self) -> u32 {
            *self.0.lock().unwrap_or_else(PoisonError::into_inner)
        }

        pub(super) fn wait(&self, value: u32) {
            let now = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            drop(self.1.wait_while(now, |now| *now == value).unwrap_or_else(PoisonError::into_inner));
        }

        pub(super) fn wake(&self, all: bool) {
            let mut now = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            *now = now.wrapping_add(1);
            drop(now);
            if all { self.1.notify_all() } else { self.1.notify_one() }
        }
    }
}
