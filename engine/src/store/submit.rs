//! Writes whose caller does not wait: the log writer's thread syncs them in groups and says so.
//!
//! Owns: what is outstanding, its bound \[I12\] and whose turn it is, and that every completion comes to an end: by the
//! log writer's thread, by its last act, or by the call itself when there is no such thread. Never: a completion before
//! the write is as sure as was asked for and visible \[I1\]; a runtime.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
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

/// How long room is kept for a batch that was refused, from when there is enough: whoever gave it has waited for one of
/// the outstanding writes and is about to come again, or never will.
const TURN: Duration = Duration::from_millis(20);

/// How many writes are outstanding, the bytes of their batches, and who is next.
#[derive(Debug, Default)]
struct Taken {
    writes: usize,
    bytes: usize,
    turn: Option<Turn>,
}

/// A batch found too little room. Smaller ones would find some again and again, and keep it out for ever: they are
/// refused until one that is at least as large was taken, or did not come for a while although there was room.
#[derive(Clone, Copy, Debug)]
struct Turn {
    bytes: usize,
    /// Since when there is room for it.
    room_since: Option<Duration>,
}

impl Taken {
    /// Whether there is room for a batch of so many bytes; one that is alone may have any size.
    fn has_room(&self, bytes: usize, most: usize) -> bool {
        self.bytes == 0 || self.bytes.checked_add(bytes).is_some_and(|all| all <= most)
    }

    /// Takes a batch, or says that it has to come again.
    fn take(&mut self, bytes: usize, most: usize, now: Duration) -> bool {
        if let Some(turn) = self.turn
            && self.has_room(turn.bytes, most)
        {
            let since = turn.room_since.unwrap_or(now);
            let over = now.saturating_sub(since) >= TURN;
            self.turn = (!over).then_some(Turn { room_since: Some(since), ..turn });
        }
        let behind = self.turn.is_some_and(|turn| bytes < turn.bytes);
        if behind || self.writes >= OUTSTANDING_WRITES_MAX {
            return false;
        }
        if !self.has_room(bytes, most) {
            // The largest that was refused is next.
            if self.turn.is_none_or(|turn| turn.bytes < bytes) {
                self.turn = Some(Turn { bytes, room_since: None });
            }
            return false;
        }
        (self.writes, self.bytes, self.turn) = (self.writes + 1, self.bytes + bytes, None);
        true
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing behind these locks is ever half-changed.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A place among the outstanding writes.
#[derive(Debug)]
struct Place {
    taken: Arc<Mutex<Taken>>,
    bytes: usize,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = lock(&self.taken);
        taken.bytes -= self.bytes;
        taken.writes -= 1;
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
    taken: Arc<Mutex<Taken>>,
    bytes_max: usize,
}

impl Outstanding {
    pub(super) fn new(options: &Options) -> Self {
        Self { queue: Mutex::default(), taken: Arc::default(), bytes_max: options.outstanding_bytes() }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        lock(&self.queue)
    }

    /// A place for a batch of so many bytes.
    fn place(&self, bytes: usize, now: Duration) -> Result<Place> {
        let mut taken = lock(&self.taken);
        if !taken.take(bytes, self.bytes_max, now) {
            return Err(Error::Overloaded { outstanding: taken.writes, bytes: taken.bytes });
        }
        Ok(Place { taken: Arc::clone(&self.taken), bytes })
    }

    pub(super) fn stats(&self) -> SubmitStats {
        let taken = lock(&self.taken);
        let (outstanding, batch_bytes) = (taken.writes as u64, taken.bytes as u64);
        let memory_bytes = outstanding * (size_of::<Pending>() + size_of::<Slot>()) as u64;
        SubmitStats { outstanding, batch_bytes, memory_bytes }
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
    /// wait for one of them and come again. A batch of more bytes than that is taken when no other is outstanding. One that
    /// found too little room is next: smaller ones are refused until it was taken, or for 20 ms when there is room for it
    /// and it does not come. Otherwise as [`Store::append`]. Nothing was written then, except that nobody knows after
    /// `Stopped`; see [`Error::class`].
    pub fn submit(&self, batch: &Batch, conditions: &[Condition], durability: Durability) -> Result<Completion> {
        let place = self.outstanding.place(batch.encoded_len(), self.env.clock.monotonic())?;
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

#[cfg(test)]
mod tests {
    use super::*;

    const MS: fn(u64) -> Duration = Duration::from_millis;

    fn outstanding() -> (Outstanding, usize) {
        let outstanding = Outstanding::new(&Options::tiny());
        let most = outstanding.bytes_max;
        (outstanding, most)
    }

    #[test]
    fn a_batch_that_found_no_room_comes_before_smaller_ones() {
        let (o, most) = outstanding();
        // One that needs to be alone, and one that needs more room than steady small ones leave.
        for large in [2 * most, most / 4 * 3] {
            let mut small: VecDeque<Place> = (0..most / 100).map(|_| o.place(100, MS(0)).unwrap()).collect();
            let mut came = 0;
            let taken = loop {
                came += 1;
                match o.place(large, MS(0)) {
                    Ok(place) => break place,
                    Err(e) => assert!(matches!(e, Error::Overloaded { .. })),
                }
                // One ends, and the next one is there at once.
                small.pop_front();
                small.extend(o.place(100, MS(0)));
                assert!(came < 2 * most / 100, "{large} bytes are kept out");
            };
            drop(small);
            assert_eq!(o.place(100, MS(0)).is_ok(), large < most);
            drop(taken);
            assert!(o.place(100, MS(0)).is_ok());
        }
        let taken = lock(&o.taken);
        assert_eq!((taken.writes, taken.bytes), (0, 0));
    }

    /// They would take turns, and the largest would never get one.
    #[test]
    fn a_batch_comes_before_smaller_ones_that_found_no_room_either() {
        let (o, most) = outstanding();
        let mut middling: VecDeque<Place> = (0..3).map(|_| o.place(most / 16 * 5, MS(0)).unwrap()).collect();
        assert!(o.place(most / 16 * 5, MS(0)).is_err(), "it is next");
        assert!(o.place(most / 4 * 3, MS(0)).is_err(), "and now this one");
        for _ in 0..3 {
            middling.pop_front();
            middling.extend(o.place(most / 16 * 5, MS(0)));
        }
        assert!(middling.is_empty() && o.place(most / 4 * 3, MS(0)).is_ok());
    }

    #[test]
    fn room_is_not_kept_for_long_for_a_batch_that_does_not_come_again() {
        let (o, most) = outstanding();
        let first = o.place(100, MS(0)).unwrap();
        assert!(o.place(2 * most, MS(0)).is_err());
        // However long that takes.
        assert!(o.place(100, MS(60_000)).is_err());
        drop(first);
        assert!(o.place(100, MS(70_000)).is_err(), "there was no room for it before");
        assert!(o.place(100, MS(70_019)).is_err());
        assert!(o.place(100, MS(70_020)).is_ok());
        assert!(o.place(100, MS(70_020)).is_ok());
    }

    #[test]
    fn one_as_large_takes_the_turn_and_the_number_of_writes_is_bounded_as_ever() {
        let (o, most) = outstanding();
        let first = o.place(most, MS(0)).unwrap();
        assert!(o.place(most / 2, MS(0)).is_err());
        drop(first);
        let second = o.place(most, MS(0)).unwrap();
        drop(second);
        let mut third: Vec<Place> = (0..10).map(|_| o.place(1, MS(0)).unwrap()).collect();
        third.extend((10..OUTSTANDING_WRITES_MAX).map_while(|_| o.place(0, MS(0)).ok()));
        assert_eq!(third.len(), OUTSTANDING_WRITES_MAX);
        assert!(o.place(0, MS(0)).is_err());
        third.pop();
        assert!(o.place(0, MS(0)).is_ok());
    }
}
