//! Writing: from a checked batch to an acknowledgement that says exactly what it means \[I1\].
//!
//! Owns: the wait. Never: "failed" for a write whose outcome is unknown, and never an
//! acknowledgement for a record that another reign replaced.

use std::time::Duration;

use mainstay_engine::batch::{Batch, Condition, Keyspace};
use mainstay_engine::value::Value;
use mainstay_engine::{CommitTs, Epoch, Lsn, Position};
use tokio::sync::OwnedSemaphorePermit;

use super::{Class, Code, Failure, Service};

/// How sure a write must be before it is acknowledged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ack {
    /// By the cluster's mode.
    #[default]
    Committed,
    /// On the primary's disk only.
    Local,
    /// Committed and in the archive.
    Archived,
}

impl Ack {
    const fn as_str(self) -> &'static str {
        match self {
            Ack::Committed => "committed",
            Ack::Local => "local",
            Ack::Archived => "archived",
        }
    }
}

/// One operation with a relative time to live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation<'a> {
    /// Sets a key, for ever or for a time.
    Put(&'a [u8], &'a [u8], Option<Duration>),
    /// Removes a key.
    Delete(&'a [u8]),
    /// Removes `start..end`.
    DeleteRange(&'a [u8], &'a [u8]),
}

/// A write under construction.
#[derive(Debug, Default)]
pub struct Write {
    batch: Batch,
    conditions: Vec<Condition>,
    ack: Ack,
    /// Longest wait; the service's default when `None`.
    timeout: Option<Duration>,
}

impl Write {
    /// A write without operations.
    #[must_use]
    pub fn new(conditions: Vec<Condition>, ack: Ack, timeout: Option<Duration>) -> Self {
        Self { batch: Batch::new(), conditions, ack, timeout }
    }

    /// Adds an operation. Times to live count from `now`, a timestamp not after the commit's.
    ///
    /// # Errors
    /// A limit, named.
    pub fn add(&mut self, op: Operation<'_>, now: CommitTs) -> Result<(), Failure> {
        let added = match op {
            Operation::Put(key, value, ttl) => {
                let expiry = ttl.map(|t| {
                    let us = u64::try_from(t.as_micros()).unwrap_or(u64::MAX);
                    CommitTs(now.0.saturating_add(us))
                });
                self.batch.put_with(Keyspace::USER, key, &Value { expiry, metadata: &[], data: value }).map(drop)
            }
            Operation::Delete(key) => self.batch.delete(key).map(drop),
            Operation::DeleteRange(start, end) => self.batch.delete_range(start, end).map(drop),
        };
        added.map_err(|e| Failure::new(Code::Limit, Class::NeverRetry, e.to_string()))
    }
}

/// An acknowledged write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// Epoch, LSN, commit timestamp.
    pub position: Position,
    /// The level achieved.
    pub level: &'static str,
    /// Fewer copies were waited for than there are voters, by decision of a promotion.
    pub degraded: bool,
}

impl Service {
    /// The earliest commit timestamp that a write arriving now can get.
    #[must_use]
    pub fn now(&self) -> CommitTs {
        self.driver.store().map_or(CommitTs(0), |s| CommitTs(s.env().clock.wall().0.max(s.log().last().ts.0 + 1)))
    }

    /// Writes a batch and waits for the acknowledgement asked for.
    ///
    /// # Errors
    /// See [`Failure`]; class `Indeterminate` once the record may exist.
    pub async fn write(&self, write: Write) -> Result<Written, Failure> {
        if write.batch.is_empty() {
            return Err(Failure::bad("a write needs at least one operation"));
        }
        if write.ack == Ack::Archived && !self.archiving {
            return Err(Failure::new(
                Code::NoRepository,
                Class::NeverRetry,
                "no repository is configured, so no write can be archived; start the server with --repository",
            ));
        }
        let _permits = self.admit(&write)?;
        let (store, epoch, _) = self.primary()?;
        // Where flush and compaction are behind, all writers are slowed before any would have to stop.
        let wait = store.pace(write.batch.encoded_len());
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
        // Cheap in memory; waits for the disk only when the log's buffers are full. Conditions are read from tables.
        let position = store.append(epoch, &write.batch, &write.conditions).map_err(|e| self.read_failed(e))?;
        let timeout = write.timeout.unwrap_or(self.timeout);
        match tokio::time::timeout(timeout, self.acknowledged(epoch, &position, write.ack)).await {
            Ok(done) => done,
            Err(_) => Err(self.unknown(&position, "no acknowledgement in time")),
        }
    }

    fn admit(&self, write: &Write) -> Result<(OwnedSemaphorePermit, OwnedSemaphorePermit), Failure> {
        let full =
            |_| Failure::new(Code::Overloaded, Class::NotExecuted, "too many writes are waiting; try again shortly");
        let kib = u32::try_from(write.batch.encoded_len() / 1024 + 1).unwrap_or(u32::MAX);
        let one = self.writes.clone().try_acquire_owned().map_err(full)?;
        let bytes = self.write_kib.clone().try_acquire_many_owned(kib).map_err(full)?;
        Ok((one, bytes))
    }

    fn unknown(&self, position: &Position, why: &str) -> Failure {
        let text = format!(
            "the outcome of the write at epoch {}, LSN {} is unknown: {why}; read before writing again",
            position.epoch, position.lsn
        );
        Failure::new(Code::Indeterminate, Class::Indeterminate, text)
    }

    async fn acknowledged(&self, epoch: Epoch, position: &Position, ack: Ack) -> Result<Written, Failure> {
        let store = self.store()?;
        let lsn = position.lsn;
        let level = ack.as_str();
        let done = || Written { position: *position, level, degraded: self.driver.rule().is_degraded() };
        let wait = async {
            if ack == Ack::Local {
                return store.durable().reached(lsn).await.map(drop);
            }
            store.committed().reached(lsn).await?;
            if ack == Ack::Archived {
                self.archived.reached(lsn).await?;
            }
            // Who was told "committed" must be able to read it.
            store.applied().reached(lsn).await.map(drop)
        };
        let ended = tokio::select! {
            biased;
            waited = wait => waited.map_err(|_| "the node is stopping"),
            () = self.until_role_ends(epoch) => Err("this node is no longer the primary"),
        };
        match ended {
            Ok(()) if self.still_there(epoch, position).await => Ok(done()),
            Ok(()) => Err(self.unknown(position, "another primary took over")),
            Err(why) => Err(self.unknown(position, why)),
        }
    }

    /// The watermark passed the LSN; was it with this record? A later reign may have written another
    /// one under the same number.
    async fn still_there(&self, epoch: Epoch, position: &Position) -> bool {
        if self.primary().is_ok_and(|(_, now, _)| now == epoch) {
            return true;
        }
        let Ok(store) = self.store().cloned() else { return false };
        let lsn = position.lsn;
        let found = tokio::task::spawn_blocking(move || store.log().position_at(lsn).ok().flatten()).await;
        found.ok().flatten().is_some_and(|p| p.epoch == position.epoch && p.chain == position.chain)
    }
}

impl Service {
    /// Waits until everything committed now is archived.
    ///
    /// # Errors
    /// No repository, or not the primary, or the wait took longer than `timeout`.
    pub async fn wait_archived(&self, timeout: Duration) -> Result<Lsn, Failure> {
        if !self.archiving {
            return Err(Failure::new(Code::NoRepository, Class::NeverRetry, "no repository is configured"));
        }
        let (store, _, _) = self.primary()?;
        let target = store.committed().get();
        match tokio::time::timeout(timeout, self.archived.reached(target)).await {
            Ok(Ok(at)) => Ok(at),
            _ => Err(Failure::new(
                Code::Archive,
                Class::NotExecuted,
                format!("the archive has reached LSN {}, not yet {target}; see `mainstay status`", self.archived.get()),
            )),
        }
    }
}
