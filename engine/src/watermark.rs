//! Watermarks: monotone published LSNs, each with one writer (`appended → durable → committed →
//! applied → archived`). Facts go up the crates through these and through nothing else.
//!
//! Owns: publishing, blocking waits, and runtime-free async waits. Never: calls into upper layers.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use crate::lsn::Lsn;

#[derive(Debug, Default)]
struct Waiters {
    next_id: u64,
    closed: bool,
    // Ordered by LSN so that raising the watermark wakes only those it satisfies.
    wakers: BTreeMap<(u64, u64), Waker>,
    blocked: usize,
}

#[derive(Debug, Default)]
struct Inner {
    at: AtomicU64,
    /// Threads and futures that wait, so that a raise nobody waits for takes no lock. Whoever waits counts
    /// itself first and looks at `at` again afterwards; a raise does these in the other order.
    waiting: AtomicUsize,
    waiters: Mutex<Waiters>,
    raised: Condvar,
}

/// A monotone LSN that many can watch and one raises. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Watermark {
    inner: Arc<Inner>,
}

/// The watermark will never be reached: its writer has stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the writer of this watermark has stopped")]
pub struct Closed;

impl Watermark {
    /// A watermark at `lsn`.
    #[must_use]
    pub fn new(lsn: Lsn) -> Self {
        let w = Self::default();
        w.inner.at.store(lsn.0, Ordering::Release);
        w
    }

    fn waiters(&self) -> MutexGuard<'_, Waiters> {
        // A panic while holding this lock leaves the map consistent: each change is one call.
        self.inner.waiters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where it stands.
    #[must_use]
    pub fn get(&self) -> Lsn {
        Lsn(self.inner.at.load(Ordering::SeqCst))
    }

    /// Raises it to `lsn` and wakes whom that satisfies. A lower value is ignored.
    pub fn raise(&self, lsn: Lsn) {
        let before = self.inner.at.fetch_max(lsn.0, Ordering::SeqCst);
        if before >= lsn.0 || self.inner.waiting.load(Ordering::SeqCst) == 0 {
            return;
        }
        let mut w = self.waiters();
        let rest = w.wakers.split_off(&(lsn.0.saturating_add(1), 0));
        let ready = std::mem::replace(&mut w.wakers, rest);
        self.inner.waiting.fetch_sub(ready.len(), Ordering::SeqCst);
        let blocked = w.blocked > 0;
        drop(w);
        if blocked {
            self.inner.raised.notify_all();
        }
        ready.into_values().for_each(Waker::wake);
    }

    /// Sets it back, for the one event that may: an uncommitted tail was cut. Waiters above stay.
    pub fn reset_after_truncation(&self, lsn: Lsn) {
        self.inner.at.fetch_min(lsn.0, Ordering::AcqRel);
    }

    /// No raise will follow: every present and future wait above ends with [`Closed`].
    pub fn close(&self) {
        let mut w = self.waiters();
        w.closed = true;
        let ready = std::mem::take(&mut w.wakers);
        self.inner.waiting.fetch_sub(ready.len(), Ordering::SeqCst);
        drop(w);
        self.inner.raised.notify_all();
        ready.into_values().for_each(Waker::wake);
    }

    /// Blocks until the watermark is at or above `lsn`, at most `timeout`.
    ///
    /// Returns whether it was reached.
    ///
    /// # Errors
    /// [`Closed`] when it never will be.
    pub fn wait(&self, lsn: Lsn, timeout: Duration) -> Result<bool, Closed> {
        if self.get() >= lsn {
            return Ok(true);
        }
        let mut w = self.waiters();
        w.blocked += 1;
        self.inner.waiting.fetch_add(1, Ordering::SeqCst);
        let (mut w, _) = self
            .inner
            .raised
            .wait_timeout_while(w, timeout, |w| self.get() < lsn && !w.closed)
            .unwrap_or_else(PoisonError::into_inner);
        w.blocked -= 1;
        self.inner.waiting.fetch_sub(1, Ordering::SeqCst);
        let closed = w.closed;
        drop(w);
        if self.get() >= lsn {
            Ok(true)
        } else if closed {
            Err(Closed)
        } else {
            Ok(false)
        }
    }

    /// A future that ends when the watermark is at or above `lsn`. Works on any executor;
    /// dropping it takes the waiter out.
    #[must_use]
    pub fn reached(&self, lsn: Lsn) -> Reached {
        Reached { mark: self.clone(), lsn, id: None }
    }
}

/// See [`Watermark::reached`].
#[derive(Debug)]
pub struct Reached {
    mark: Watermark,
    lsn: Lsn,
    id: Option<u64>,
}

impl Future for Reached {
    type Output = Result<Lsn, Closed>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let at = self.mark.get();
        if at >= self.lsn {
            return Poll::Ready(Ok(at));
        }
        let mark = self.mark.clone();
        let mut w = mark.waiters();
        if w.closed {
            return if mark.get() >= self.lsn { Poll::Ready(Ok(mark.get())) } else { Poll::Ready(Err(Closed)) };
        }
        let id = *self.id.get_or_insert_with(|| {
            w.next_id += 1;
            w.next_id
        });
        if w.wakers.insert((self.lsn.0, id), cx.waker().clone()).is_none() {
            mark.inner.waiting.fetch_add(1, Ordering::SeqCst);
        }
        // Only now that a raise would see this waiter: one that came before is seen here.
        let at = mark.get();
        if at >= self.lsn { Poll::Ready(Ok(at)) } else { Poll::Pending }
    }
}

impl Drop for Reached {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            let mut w = self.mark.waiters();
            if w.wakers.remove(&(self.lsn.0, id)).is_some() {
                self.mark.inner.waiting.fetch_sub(1, Ordering::SeqCst);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_monotone_and_wakes_blocked_waiters() {
        let w = Watermark::new(Lsn(5));
        w.raise(Lsn(3));
        assert_eq!(w.get(), Lsn(5));
        assert_eq!(w.wait(Lsn(6), Duration::ZERO), Ok(false));
        std::thread::scope(|s| {
            let waiter = s.spawn(|| w.wait(Lsn(9), Duration::from_secs(60)));
            w.raise(Lsn(9));
            assert_eq!(waiter.join().unwrap(), Ok(true));
        });
    }

    #[test]
    fn no_raise_misses_who_begins_to_wait() {
        let (there, back) = (Watermark::default(), Watermark::default());
        std::thread::scope(|s| {
            s.spawn(|| {
                for n in 1..=5_000 {
                    assert_eq!(there.wait(Lsn(n), Duration::from_secs(60)), Ok(true));
                    back.raise(Lsn(n));
                }
            });
            for n in 1..=5_000 {
                there.raise(Lsn(n));
                assert_eq!(back.wait(Lsn(n), Duration::from_secs(60)), Ok(true));
            }
        });
        assert_eq!(there.inner.waiting.load(Ordering::SeqCst) + back.inner.waiting.load(Ordering::SeqCst), 0);
    }

    #[test]
    fn closing_ends_waits_that_cannot_succeed() {
        let w = Watermark::new(Lsn(5));
        w.close();
        assert_eq!(w.wait(Lsn(6), Duration::from_secs(60)), Err(Closed));
        assert_eq!(w.wait(Lsn(5), Duration::ZERO), Ok(true));
    }

    #[test]
    fn a_dropped_future_leaves_no_waiter() {
        let w = Watermark::new(Lsn(1));
        let mut f = Box::pin(w.reached(Lsn(2)));
        let mut cx = Context::from_waker(Waker::noop());
        assert!(f.as_mut().poll(&mut cx).is_pending());
        assert_eq!(w.waiters().wakers.len(), 1);
        drop(f);
        assert_eq!(w.waiters().wakers.len(), 0);
    }
}
