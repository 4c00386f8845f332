//! Writes whose caller does not wait: the log writer's thread syncs them in groups and says so.
//!
//! Owns: what is outstanding, its bound \[I12\], and that every completion comes to an end: by the log writer's
//! thread, by its last act, or by the call itself when there is no such thread. Never: a completion before the
//! write is as sure as was asked for and visible \[I1\]; a runtime.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use super::{Durability, Store, SubmitStats, Written};
use crate::batch::{Batch, Condition};
use crate::error::{Error, Result};
use crate::exec::{Progress, Worker};
use crate::limits::{OUTSTANDING_WRITES_MAX, Options};
use crate::lsn::Position;

/// A write that has its LSN and may not be as sure yet as was asked for. It is a future for any executor; without
/// one, [`Completion::wait`] blocks. Dropping it does not take the write back.
#[derive(Debug)]
#[must_use = "the write may still fail"]
pub struct Completion {
    position: Position,
    slot: Arc<Slot>,
}

/// Where an outcome is left for its completion.
#[derive(Debug, Default)]
struct Slot {
    state: Mutex<State>,
    ended: Condvar,
}

#[derive(Debug, Default)]
struct State {
    outcome: Option<Outcome>,
    waker: Option<Waker>,
}

#[derive(Clone, Debug)]
enum Outcome {
    Written(Durability),
    Unknown(String),
}

impl Slot {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self, outcome: Outcome) {
        let mut state = self.state();
        if state.outcome.is_none() {
            state.outcome = Some(outcome);
        }
        let waker = state.waker.take();
        drop(state);
        self.ended.notify_all();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl Completion {
    /// Where the write stands in the log. Known from the beginning, and no promise yet.
    #[must_use]
    pub const fn position(&self) -> Position {
        self.position
    }

    /// The outcome, if there is one yet.
    #[must_use]
    pub fn outcome(&self) -> Option<Result<Written>> {
        self.slot.state().outcome.clone().map(|o| self.result(o))
    }

    /// Blocks until there is an outcome. Not for a thread that executes futures.
    ///
    /// # Errors
    /// `Indeterminate` when the store stopped before the write was as sure as was asked for.
    pub fn wait(&self) -> Result<Written> {
        let mut state = self.slot.state();
        loop {
            if let Some(outcome) = state.outcome.clone() {
                return self.result(outcome);
            }
            state = self.slot.ended.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn result(&self, outcome: Outcome) -> Result<Written> {
        match outcome {
            Outcome::Written(durability) => Ok(Written { position: self.position, durability }),
            Outcome::Unknown(why) => Err(Error::Indeterminate { lsn: self.position.lsn, why }),
        }
    }
}

impl Future for Completion {
    type Output = Result<Written>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.slot.state();
        match state.outcome.clone() {
            Some(outcome) => Poll::Ready(self.result(outcome)),
            None => {
                state.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl Drop for Completion {
    fn drop(&mut self) {
        // Whoever would have been woken may be long gone.
        self.slot.state().waker = None;
    }
}

/// How many writes are outstanding, and the bytes of their batches.
#[derive(Debug, Default)]
struct Taken {
    writes: AtomicUsize,
    bytes: AtomicUsize,
}

/// A place among the outstanding writes.
#[derive(Debug)]
struct Place {
    taken: Arc<Taken>,
    bytes: usize,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.taken.bytes.fetch_sub(self.bytes, Ordering::SeqCst);
        self.taken.writes.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A write to be completed. Dropped without an outcome, its outcome is unknown.
#[derive(Debug)]
pub(super) struct Pending {
    position: Position,
    /// Cuts of the log before the record was appended.
    cuts: u64,
    durability: Durability,
    bytes: usize,
    /// How long the pace asks for, where the write itself needs no completing: those behind it wait so long.
    hold: Duration,
    slot: Arc<Slot>,
    /// Free before the completion ends: who waited for it may submit again.
    place: Option<Place>,
}

impl Pending {
    fn end(mut self, outcome: Outcome) {
        self.place = None;
        self.slot.end(outcome);
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.place = None;
        self.slot.end(Outcome::Unknown("the thread that completes writes has ended".to_owned()));
    }
}

#[derive(Debug, Default)]
struct Queue {
    /// Threads that complete what is queued. Without one nothing is.
    attendants: usize,
    waiting: VecDeque<Pending>,
}

/// The outstanding writes of a store.
#[derive(Debug)]
pub(super) struct Outstanding {
    queue: Mutex<Queue>,
    taken: Arc<Taken>,
    bytes_max: usize,
}

impl Outstanding {
    pub(super) fn new(options: &Options) -> Self {
        Self { queue: Mutex::default(), taken: Arc::default(), bytes_max: options.outstanding_bytes() }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for a batch of so many bytes; one that is alone may have any size.
    fn place(&self, bytes: usize) -> Result<Place> {
        let Taken { writes, bytes: taken } = &*self.taken;
        // A write that is refused counts at no time, or others could be refused for its sake.
        let add = |others: usize| others.checked_add(bytes).filter(|all| others == 0 || *all <= self.bytes_max);
        let refused = |outstanding, bytes| Error::Overloaded { outstanding, bytes };
        taken
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, add)
            .map_err(|others| refused(writes.load(Ordering::SeqCst), others))?;
        let one_more = |n: usize| (n < OUTSTANDING_WRITES_MAX).then_some(n + 1);
        if let Err(all) = writes.fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_more) {
            let before = taken.fetch_sub(bytes, Ordering::SeqCst);
            return Err(refused(all, before.saturating_sub(bytes)));
        }
        Ok(Place { taken: Arc::clone(&self.taken), bytes })
    }

    pub(super) fn stats(&self) -> SubmitStats {
        let Taken { writes, bytes } = &*self.taken;
        let outstanding = writes.load(Ordering::SeqCst) as u64;
        let memory_bytes = outstanding * (size_of::<Pending>() + size_of::<Slot>()) as u64;
        SubmitStats { outstanding, batch_bytes: bytes.load(Ordering::SeqCst) as u64, memory_bytes }
    }

    /// Queues a write; gives it back when nobody would complete it.
    fn push(&self, pending: Pending) -> std::result::Result<(), Pending> {
        let mut queue = self.queue();
        if queue.attendants == 0 {
            return Err(pending);
        }
        queue.waiting.push_back(pending);
        Ok(())
    }

    fn take(&self) -> VecDeque<Pending> {
        std::mem::take(&mut self.queue().waiting)
    }

    /// The caller does not attend any more; what is queued, if nobody else does.
    fn leave(&self) -> VecDeque<Pending> {
        let mut queue = self.queue();
        queue.attendants -= 1;
        if queue.attendants > 0 { VecDeque::new() } else { std::mem::take(&mut queue.waiting) }
    }
}

impl Store {
    /// [`Store::write`] without the wait: the write has its LSN on return, and the [`Completion`] ends when it is as
    /// sure as was asked for, and visible. The log writer's thread of [`Store::start_background`] sees to that;
    /// without it the call does it all itself. Writes of one thread that ask for the same end in their order while that
    /// thread runs, but for `Buffered` ones: each is as sure as asked on return, and ends when the pace allows.
    ///
    /// No disk is waited for, with two exceptions that hold up every writer: memtables that wait for their flush, and
    /// a next log segment that is not made yet. Where writes are slowed because flush or compaction is behind,
    /// completions come later instead.
    ///
    /// # Errors
    /// `Overloaded` when [`OUTSTANDING_WRITES_MAX`] writes are outstanding, or a sixteenth of the memory limit in bytes:
    /// wait for one of them. A batch of more bytes than that is taken when no other is outstanding. Otherwise as
    /// [`Store::append`]. Nothing was written then, except that nobody knows after `Stopped`; see
    /// [`Error::class`].
    pub fn submit(&self, batch: &Batch, conditions: &[Condition], durability: Durability) -> Result<Completion> {
        let place = self.outstanding.place(batch.encoded_len())?;
        self.make_room()?;
        let cuts = self.log.cuts();
        let position = match durability {
            Durability::Synced => self.append(self.log.last().epoch, batch, conditions)?,
            Durability::Written | Durability::Buffered => self.append_visible(batch, conditions)?,
        };
        let slot = Arc::new(Slot::default());
        let completion = Completion { position, slot: Arc::clone(&slot) };
        let (bytes, hold) = (batch.encoded_len(), Duration::ZERO);
        let mut pending = Pending { position, cuts, durability, bytes, hold, slot, place: Some(place) };
        if durability == Durability::Buffered {
            // As sure as was asked for already; what is left is the pace.
            let done = if self.hand_over_buffered() { self.log.write_to(position.lsn) } else { Ok(()) };
            (pending.bytes, pending.hold) = (0, self.pace(bytes));
            let ended =
                if done.is_err() || pending.hold.is_zero() { Err(pending) } else { self.outstanding.push(pending) };
            match ended {
                Err(pending) => end_all(vec![pending], |_| done.as_ref().err().map(ToString::to_string)),
                Ok(()) => self.wake_completer.wake(),
            }
        } else if let Err(pending) = self.outstanding.push(pending) {
            self.complete(VecDeque::from([pending]));
        } else {
            self.wake_completer.wake();
        }
        Ok(completion)
    }

    /// Makes a group of writes as sure as was asked for and visible, and ends their completions. Returns their bytes.
    fn complete(&self, group: VecDeque<Pending>) -> usize {
        let bytes = group.iter().map(|p| p.bytes).sum();
        let mut group: Vec<Pending> = group.into();
        group.sort_by_key(|p| p.position.lsn);
        let (synced, written): (Vec<_>, Vec<_>) = group.into_iter().partition(|p| p.durability == Durability::Synced);
        // Those who wait for less do not wait for the sync.
        if let Some(last) = written.last() {
            let done = self.log.write_to(last.position.lsn);
            end_all(written, |_| done.as_ref().err().map(ToString::to_string));
        }
        if let Some(last) = synced.last() {
            let done = self.sync_visibly(&last.position, last.cuts);
            let (durable, applied) = (self.log.durable().get(), self.applied.get());
            end_all(synced, |p| match &done {
                // A cut took some, and perhaps not this one: each is asked for by itself.
                _ if self.log.cuts() != p.cuts => self.sync_visibly(&p.position, p.cuts).err().map(|e| e.to_string()),
                Err(e) if durable < p.position.lsn || applied < p.position.lsn => Some(e.to_string()),
                Ok(()) | Err(_) => None,
            });
        }
        bytes
    }

    /// The worker that completes submitted writes.
    pub(super) fn completer(self: &Arc<Self>) -> Completer {
        self.outstanding.queue().attendants += 1;
        self.log.rouse_preparer(&self.wake_completer);
        Completer { store: Arc::clone(self), not_before: Duration::ZERO }
    }
}

/// Ends the completions of a group in order; `failed` says why one has no known outcome.
fn end_all(group: Vec<Pending>, failed: impl Fn(&Pending) -> Option<String>) {
    for pending in group {
        let outcome = failed(&pending).map_or(Outcome::Written(pending.durability), Outcome::Unknown);
        pending.end(outcome);
    }
}

/// The log writer's thread: completes what was given to [`Store::submit`], and makes the next segment ahead. Its end
/// completes what is outstanding.
pub(super) struct Completer {
    store: Arc<Store>,
    /// The writes completed so far have used the time until then, by the pace that is asked of writers.
    not_before: Duration,
}

impl Worker for Completer {
    fn step(&mut self) -> Progress {
        let now = self.store.env.clock.monotonic();
        if now < self.not_before {
            return Progress::Sleep(self.not_before - now);
        }
        let group = self.store.outstanding.take();
        if group.is_empty() {
            // A flush may take longer than a segment lasts. On an error the thread for flushes tries again, and tells.
            return self.store.log.prepare_step().unwrap_or(Progress::Idle);
        }
        let hold = group.iter().map(|p| p.hold).max().unwrap_or_default();
        let bytes = self.store.complete(group);
        self.not_before = self.store.env.clock.monotonic() + self.store.pace(bytes).max(hold);
        Progress::Worked
    }
}

impl Drop for Completer {
    fn drop(&mut self) {
        // Whoever submits from here on completes by itself, so that this comes to an end.
        let group = self.store.outstanding.leave();
        if std::thread::panicking() {
            drop(group);
        } else {
            self.store.complete(group);
        }
    }
}
