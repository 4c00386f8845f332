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
    /// `ConditionFailed`, `Limit`, `DiskFull`: nothing was written. `Stopped`: the store is over.
    pub fn append(&self, epoch: Epoch, batch: &Batch, conditions: &[Condition]) -> Result<Position> {
        let _order = self.order.lock().unwrap_or_else(PoisonError::into_inner);
        let last = self.log.last();
        if epoch != last.epoch {
            // Another reign's records are in the log by now \[I5\].
            let (lsn, after) = (last.lsn.next(), last.lsn);
            return Err(crate::record::RecordError::Discontinuous { epoch, lsn, after }.into());
        }
        let now = CommitTs(self.env.clock.wall().0.max(last.ts.0 + 1));
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
    /// as for [`Store::append`]; the log's.
    pub fn append_replicated(&self, mut records: &[u8]) -> Result<Position> {
        if !records.is_empty() {
            self.check_room()?;
        }
        let _order = self.order.lock().unwrap_or_else(PoisonError::into_inner);
        while !records.is_empty() {
            let record = Record::decode(records)?;
            crate::ingest::refuse(&record)?;
            self.log.append_record(&record)?;
            records = records.get(record.bytes.len()..).unwrap_or_default();
        }
        self.wake_log.wake();
        Ok(self.log.last())
    }

    /// An embedded write: the store's own log commits it at the durability asked for, and it is visible on
    /// return. What a crash takes is always the end of the log, never a record before one that is kept.
    ///
    /// # Errors
    /// As [`Store::append`].
    pub fn write(&self, batch: &Batch, conditions: &[Condition], durability: Durability) -> Result<Written> {
        // Before the LSN is given: a full disk found afterwards could no longer say "nothing was written".
        self.make_room()?;
        let position = match durability {
            Durability::Synced => {
                let position = self.append(self.log.last().epoch, batch, conditions)?;
                self.log.sync_to_and(position.lsn, |durable| self.commit_group(durable))?;
                if self.applied.get() < position.lsn {
                    self.set_committed(position.lsn);
                    self.apply_written()?;
                }
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
        let last = self.log.last();
        if self.applied.get() < last.lsn {
            self.committed.raise(last.lsn);
            self.apply_upto(last.lsn)?;
        }
        let now = CommitTs(self.env.clock.wall().0.max(last.ts.0 + 1));
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
