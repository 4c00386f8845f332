//! Writing: the order of appends, conditions, and the embedded write that waits for itself.
//!
//! Owns: judging conditions in LSN order before the LSN is given. Never: waiting for a disk or a
//! replica while the order is held.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use super::{Durability, Store};
use crate::batch::{self, Batch, Condition, Expect, Keyspace, Op};
use crate::error::{Error, Result};
use crate::lsn::{CommitTs, Epoch, Lsn, Position};
use crate::record::{Kind, Record, TimelineStart};
use crate::tree::View;
use crate::value::Value;

/// Bytes of [`Durability::Buffered`] records in memory at which one of their writers hands all of them to the
/// operating system.
const BUFFERED_BYTES_MAX: usize = 64 << 10;

/// Where a write landed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// Epoch and LSN of the record, its chain hash and commit timestamp.
    pub position: Position,
    /// How sure it is.
    pub durability: Durability,
}

/// The newest state of one key, tail included.
struct Current {
    version: Lsn,
    envelope: Option<Vec<u8>>,
}

impl Store {
    /// Appends a batch if its conditions hold at this point of the order. Returns before anything
    /// is durable: wait for the watermark that the acknowledgement promises.
    ///
    /// TTLs in `batch` must already be commit-time expiries; conditions judge expiry by `now`, the
    /// commit timestamp the batch gets at the earliest.
    ///
    /// # Errors
    /// `ConditionFailed`, `Limit`, `DiskFull`, `TooManyFiles`: nothing was written. `Stopped`: the store is over.
    pub fn append(&self, epoch: Epoch, batch: &Batch, conditions: &[Condition]) -> Result<Position> {
        let _order = self.order.lock().unwrap_or_else(PoisonError::into_inner);
        let last = self.log.last();
        if epoch != last.epoch {
            // Another reign's records are in the log by now \[I5\].
            let (lsn, after) = (last.lsn.next(), last.lsn);
            return Err(crate::record::RecordError::Discontinuous { epoch, lsn, after }.into());
        }
        let now = CommitTs(self.env.clock.wall().0.max(last.ts.0.saturating_add(1)));
        if !conditions.is_empty() {
            self.check(conditions, now)?;
        }
        self.check_room()?;
        let position = self.log.append_with(Kind::Batch, epoch, now, 0, 0, |out| batch.encode(out))?;
        self.wake_log.wake();
        Ok(position)
    }

    /// Appends the first record of a reign.
    ///
    /// # Errors
    /// The log's.
    pub fn append_epoch_start(&self, epoch: Epoch) -> Result<Position> {
        let _order = self.order.lock().unwrap_or_else(PoisonError::into_inner);
        let position = self.log.append(Kind::EpochStart, epoch, self.env.clock.wall(), 0, 0, &[])?;
        self.wake_log.wake();
        Ok(position)
    }

    /// Appends the first record of a timeline; its LSN may jump \[I11\].
    ///
    /// # Errors
    /// The log's.
    pub fn append_timeline_start(&self, epoch: Epoch, start: TimelineStart, lsn: Lsn) -> Result<Position> {
        let _order = self.order.lock().unwrap_or_else(PoisonError::into_inner);
        let position = self.log.append_timeline(epoch, self.env.clock.wall(), &start, lsn)?;
        self.wake_log.wake();
        Ok(position)
    }

    /// Appends records as the primary wrote them, each checked to continue this log.
    ///
    /// # Errors
    /// `Record` when they do not continue it; `ForeignIngest` for one that names tables, which are not here; `DiskFull`
    /// and `TooManyFiles` as for [`Store::append`]; the log's. Those before the one that failed are kept, and become
    /// durable like others.
    pub fn append_replicated(&self, records: &[u8]) -> Result<Position> {
        if !records.is_empty() {
            self.check_room()?;
        }
        let _order = self.order.lock().unwrap_or_else(PoisonError::into_inner);
        let appended = self.append_records(records);
        self.wake_log.wake();
        appended.map(|()| self.log.last())
    }

    fn append_records(&self, mut records: &[u8]) -> Result<()> {
        while !records.is_empty() {
            let record = Record::decode(records)?;
            crate::ingest::refuse(&record)?;
            self.log.append_record(&record)?;
            records = records.get(record.bytes.len()..).unwrap_or_default();
        }
        Ok(())
    }

    /// An embedded write: the store's own log commits it at the durability asked for, and it is visible on
    /// return. What a crash takes is always the end of the log, never a record before one that is kept.
    ///
    /// # Errors
    /// As [`Store::append`], and `Indeterminate` when [`Store::truncate_above`] took the record before it was committed.
    pub fn write(&self, batch: &Batch, conditions: &[Condition], durability: Durability) -> Result<Written> {
        // Before the LSN is given: a full disk found afterwards could no longer say "nothing was written".
        self.make_room()?;
        let position = match durability {
            Durability::Synced => {
                let cuts = self.log.cuts();
                let position = self.append(self.log.last().epoch, batch, conditions)?;
                self.sync_visibly(&position, cuts)?;
                position
            }
            Durability::Written => {
                let position = self.append_visible(batch, conditions)?;
                self.log.write_to(position.lsn)?;
                position
            }
            Durability::Buffered => {
                let position = self.append_visible(batch, conditions)?;
                if self.hand_over_buffered() {
                    self.log.write_to(position.lsn)?;
                }
                position
            }
        };
        let wait = self.pace(batch.encoded_len());
        if !wait.is_zero() {
            crate::exec::pause(wait);
        }
        Ok(Written { position, durability })
    }

    /// Makes a record of this store's own durable, committed and visible. `cuts` was read before it was appended.
    ///
    /// # Errors
    /// The log's and the tree's, and `Indeterminate` when a cut took the record.
    pub(super) fn sync_visibly(&self, position: &Position, cuts: u64) -> Result<()> {
        let synced = self.log.sync_to_and(position.lsn, |durable| self.commit_group(durable));
        if let Err(e) = synced {
            return self.check_kept(position, cuts).and(Err(e));
        }
        if self.applied.get() < position.lsn {
            self.commit_own(position, cuts)?;
            self.apply_written()?;
        }
        // What is applied stays; it may be another record, in the place of one that was cut.
        self.check_kept(position, cuts)
    }

    /// Commits a record unless a cut took it: none takes it from then on \[I8\].
    fn commit_own(&self, position: &Position, cuts: u64) -> Result<()> {
        let cutting = self.cutting.lock().unwrap_or_else(PoisonError::into_inner);
        self.check_kept(position, cuts)?;
        self.committed.raise(position.lsn);
        drop(cutting);
        self.wake_apply.wake();
        Ok(())
    }

    /// Whether the log still has the record, `cuts` cuts ago.
    fn check_kept(&self, position: &Position, cuts: u64) -> Result<()> {
        if self.log.cuts() == cuts || matches!(self.log.position_at(position.lsn), Ok(Some(p)) if p == *position) {
            return Ok(());
        }
        let why = "the log was cut meanwhile, and the record is not in it any more".to_owned();
        Err(Error::Indeterminate { lsn: position.lsn, why })
    }

    /// After a buffered record: whether its writer is to hand all of them to the operating system; otherwise the
    /// thread for that does so in a moment.
    pub(super) fn hand_over_buffered(&self) -> bool {
        if self.log.buffered_bytes() >= BUFFERED_BYTES_MAX {
            return true;
        }
        if !self.flusher_awaited.swap(true, Ordering::SeqCst) {
            self.wake_flusher.wake();
        }
        false
    }

    /// Appends, commits and applies in one go: nobody waits for a disk. Whatever came before becomes visible
    /// first, for the order of LSNs is the order of visibility.
    pub(super) fn append_visible(&self, batch: &Batch, conditions: &[Condition]) -> Result<Position> {
        let _order = self.order.lock().unwrap_or_else(PoisonError::into_inner);
        // Or records that will never be durable would be shown on the way to the same error.
        self.log.check_stopped()?;
        let last = self.log.last();
        if self.applied.get() < last.lsn {
            self.committed.raise(last.lsn);
            self.apply_upto(last.lsn)?;
        }
        let now = CommitTs(self.env.clock.wall().0.max(last.ts.0.saturating_add(1)));
        if !conditions.is_empty() {
            self.check(conditions, now)?;
        }
        // Or a writer that has just synced could apply this record in between.
        let applier = self.applier.lock().unwrap_or_else(PoisonError::into_inner);
        let fill = |out: &mut Vec<u8>| batch.encode(out);
        let position = self.log.append_with(Kind::Batch, last.epoch, now, 0, 0, fill)?;
        self.committed.raise(position.lsn);
        let waits = self.tree.apply_batch(position, batch)?;
        self.applied.raise(position.lsn);
        drop(applier);
        if waits {
            self.wake_flush.wake();
        }
        Ok(position)
    }

    fn check(&self, conditions: &[Condition], now: CommitTs) -> Result<()> {
        for c in conditions {
            let current = self.current(c.keyspace, &c.key)?;
            let value = match &current.envelope {
                Some(bytes) => Some(Value::decode(bytes)?).filter(|v| !v.expired_at(now)),
                None => None,
            };
            let holds = match &c.expect {
                Expect::Exists => value.is_some(),
                Expect::Absent => value.is_none(),
                Expect::Version(lsn) => value.is_some() && current.version == *lsn,
                Expect::Value(bytes) => value.is_some_and(|v| v.data == bytes.as_slice()),
            };
            if !holds {
                return Err(Error::ConditionFailed(Box::new(c.clone())));
            }
        }
        Ok(())
    }

    /// The key's state after every record appended so far: the tree, then the not yet applied tail.
    fn current(&self, keyspace: Keyspace, key: &[u8]) -> Result<Current> {
        loop {
            let view = self.tree.view();
            match self.current_behind(&view, keyspace, key) {
                // Applied, flushed and released meanwhile.
                Err(Error::LogGone { .. }) if self.tree.applied().lsn > view.lsn() => {}
                other => return other,
            }
        }
    }

    fn current_behind(&self, view: &View, keyspace: Keyspace, key: &[u8]) -> Result<Current> {
        let mut now = match view.get(keyspace, key)? {
            Some(found) => Current { version: found.lsn, envelope: Some(found.envelope) },
            None => Current { version: Lsn::ZERO, envelope: None },
        };
        let mut reader = self.log.reader(view.lsn().next())?;
        while let Some(chunk) = reader.next(self.log.last().lsn, 1 << 20)? {
            for record in chunk.records() {
                let record = record?;
                // One is visible as soon as it is in the log, so none stands behind a view.
                crate::ingest::refuse(&record)?;
                if record.header.kind == Kind::Batch {
                    replay_onto(&mut now, &record, keyspace, key)?;
                }
            }
        }
        Ok(now)
    }
}

fn replay_onto(now: &mut Current, record: &Record<'_>, keyspace: Keyspace, key: &[u8]) -> Result<()> {
    for op in batch::ops(record.body) {
        match op? {
            Op::Put { keyspace: ks, key: k, envelope } if ks == keyspace && k == key => {
                *now = Current { version: record.header.lsn, envelope: Some(envelope.to_vec()) };
            }
            Op::Delete { keyspace: ks, key: k } if ks == keyspace && k == key => {
                *now = Current { version: record.header.lsn, envelope: None };
            }
            Op::DeleteRange { keyspace: ks, start, end }
                if ks == keyspace && start <= key && (end.is_empty() || key < end) =>
            {
                *now = Current { version: record.header.lsn, envelope: None };
            }
            Op::Put { .. } | Op::Delete { .. } | Op::DeleteRange { .. } => {}
        }
    }
    Ok(())
}

#[cfg(all(test, feature = "sim"))]
#[allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "a test fails by panicking and runs real threads")]
mod tests {
    use std::path::Path;
    use std::sync::{Arc, mpsc};
    use std::time::Duration;

    use super::*;
    use crate::clock::SimClock;
    use crate::error::ErrorClass;
    use crate::exec::{Progress, Worker, WorkerThread};
    use crate::fs::sim::SimFs;
    use crate::store::Identity;
    use crate::{ClusterId, Env, Options, TimelineId};

    fn store() -> Arc<Store> {
        store_on(&SimFs::new(1))
    }

    fn store_on(fs: &Arc<SimFs>) -> Arc<Store> {
        let dir = Path::new("/data");
        fs.prepare_dir(dir).unwrap();
        let (env, _) = Env::sim(Arc::clone(fs), SimClock::new(CommitTs(1_000_000)), 1);
        let identity = Identity { cluster: ClusterId(1), timeline: TimelineId(1) };
        Arc::new(Store::create(env, dir, &Options::tiny(), identity).unwrap())
    }

    /// Stands for the log writer's thread: tells of each time that it is roused.
    struct Roused(mpsc::Sender<()>);

    impl Worker for Roused {
        fn step(&mut self) -> Progress {
            if self.0.send(()).is_ok() { Progress::Idle } else { Progress::Done }
        }
    }

    #[test]
    fn the_log_writer_is_roused_for_what_was_taken_of_a_chunk_that_ends_at_a_full_disk() {
        let primary = store();
        for n in 0..40u16 {
            let mut batch = put(&n.to_be_bytes());
            batch.put(b"large", &[1; 1000]).unwrap();
            primary.append(Epoch(0), &batch, &[]).unwrap();
        }
        let chunk = primary.log.reader(Lsn(1)).unwrap().next(Lsn::MAX, 1 << 20).unwrap().unwrap();
        let fs = SimFs::new(2);
        let replica = store_on(&fs);
        while replica.log.prepare_step().unwrap() == Progress::Worked {}
        fs.set_capacity(fs.allocated());
        let (tx, rx) = mpsc::channel();
        let _thread = WorkerThread::spawn("log-writer", replica.wake_log.clone(), Roused(tx)).unwrap();
        rx.recv().unwrap();
        let refused = replica.append_replicated(&chunk.bytes);
        assert!(matches!(refused, Err(Error::DiskFull { .. })), "{refused:?}");
        let last = replica.log.last().lsn;
        assert!(last > Lsn(15) && last < chunk.last, "{last} of {}", chunk.last);
        assert_eq!(rx.recv_timeout(Duration::from_secs(10)), Ok(()), "{last} records are left in memory");
    }

    fn put(key: &[u8]) -> Batch {
        let mut batch = Batch::new();
        batch.put(key, b"value").unwrap();
        batch
    }

    /// A writer has synced and waits to commit while a cut is made, as `Store::truncate_above` makes it.
    fn cut_beside(submitted: bool, write_again: bool) -> Result<Written> {
        let store = store();
        store.write(&put(b"kept"), &[], Durability::Synced).unwrap();
        let cutting = store.cutting.lock().unwrap();
        let writer = std::thread::spawn({
            let store = Arc::clone(&store);
            move || match submitted {
                false => store.write(&put(b"mine"), &[], Durability::Synced),
                true => store.submit(&put(b"mine"), &[], Durability::Synced).and_then(|c| c.wait()),
            }
        });
        assert_eq!(store.durable().wait(Lsn(2), Duration::from_secs(60)), Ok(true));
        store.log.truncate_above(Lsn(1), Lsn(1)).unwrap().unwrap();
        if write_again {
            store.append(Epoch(0), &put(b"theirs"), &[]).unwrap();
            store.log.sync_to(Lsn(2)).unwrap();
        }
        drop(cutting);
        let outcome = writer.join().unwrap();
        assert!(store.get(Keyspace::USER, b"mine").unwrap().is_none());
        outcome
    }

    #[test]
    fn a_write_that_a_cut_took_is_not_acknowledged() {
        for (submitted, write_again) in [(false, false), (true, false), (false, true), (true, true)] {
            let outcome = cut_beside(submitted, write_again);
            let told =
                matches!(&outcome, Err(e @ Error::Indeterminate { .. }) if e.class() == ErrorClass::Indeterminate);
            assert!(told, "submitted: {submitted}, another record in its place: {write_again}: {outcome:?}");
        }
    }

    #[test]
    fn a_write_beside_a_cut_that_did_not_take_it_is_acknowledged() {
        let store = store();
        store.append(Epoch(0), &put(b"a"), &[]).unwrap();
        let cutting = store.cutting.lock().unwrap();
        let writer = std::thread::spawn({
            let store = Arc::clone(&store);
            move || store.write(&put(b"mine"), &[], Durability::Synced)
        });
        assert_eq!(store.durable().wait(Lsn(2), Duration::from_secs(60)), Ok(true));
        store.append(Epoch(0), &put(b"b"), &[]).unwrap();
        store.log.truncate_above(Lsn(2), Lsn(0)).unwrap().unwrap();
        drop(cutting);
        assert_eq!(writer.join().unwrap().unwrap().position.lsn, Lsn(2));
    }
}
