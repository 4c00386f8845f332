//! Writes: atomic batches with conditions, and what an acknowledgement says.
//!
//! Owns: building and sending. Never: repeating a write whose outcome is unknown.

use std::time::Duration;

use mainstay_proto::v1;
use mainstay_proto::v1::condition::Expect;
use mainstay_proto::v1::operation::Op;

use prost::Message;

use crate::error::{Error, ErrorClass, Result};
use crate::session::{Client, MESSAGE_BYTES_MAX};

/// How sure a write must be before it is acknowledged. It never changes when it becomes visible.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ack {
    /// By the cluster's mode.
    #[default]
    Committed,
    /// On the primary's disk only; a failover may lose it.
    Local,
    /// Committed and in the archive.
    Archived,
}

/// What must hold for a write to happen.
#[derive(Clone, Debug, PartialEq)]
pub struct Condition(v1::Condition);

impl Condition {
    fn new(key: impl Into<Vec<u8>>, expect: Expect) -> Self {
        Self(v1::Condition { key: key.into().into(), expect: Some(expect) })
    }

    /// The key has a value.
    #[must_use]
    pub fn exists(key: impl Into<Vec<u8>>) -> Self {
        Self::new(key, Expect::Exists(true))
    }

    /// The key has no value.
    #[must_use]
    pub fn absent(key: impl Into<Vec<u8>>) -> Self {
        Self::new(key, Expect::Exists(false))
    }

    /// The key was last written by this LSN.
    #[must_use]
    pub fn version(key: impl Into<Vec<u8>>, lsn: u64) -> Self {
        Self::new(key, Expect::Version(lsn))
    }

    /// The key's value is exactly this.
    #[must_use]
    pub fn value(key: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) -> Self {
        Self::new(key, Expect::Value(value.into().into()))
    }
}

/// Operations that happen together or not at all.
#[derive(Clone, Debug, Default)]
pub struct Write {
    request: v1::WriteRequest,
}

impl Write {
    /// A write without operations.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn op(mut self, op: Op) -> Self {
        self.request.operations.push(v1::Operation { op: Some(op) });
        self
    }

    /// Sets a key.
    #[must_use]
    pub fn put(self, key: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) -> Self {
        self.op(Op::Put(v1::Put { key: key.into().into(), value: value.into().into(), ttl_ms: 0 }))
    }

    /// Sets a key for a time, counted from the commit timestamp (rounded up to milliseconds).
    #[must_use]
    pub fn put_ttl(self, key: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>, ttl: Duration) -> Self {
        let ttl_ms = u64::try_from(ttl.as_micros().div_ceil(1000)).unwrap_or(u64::MAX).max(1);
        self.op(Op::Put(v1::Put { key: key.into().into(), value: value.into().into(), ttl_ms }))
    }

    /// Removes a key.
    #[must_use]
    pub fn delete(self, key: impl Into<Vec<u8>>) -> Self {
        self.op(Op::Delete(v1::Delete { key: key.into().into() }))
    }

    /// Removes all keys in `start..end`; an empty `end` means to the last key.
    #[must_use]
    pub fn delete_range(self, start: impl Into<Vec<u8>>, end: impl Into<Vec<u8>>) -> Self {
        self.op(Op::DeleteRange(v1::DeleteRange { start: start.into().into(), end: end.into().into() }))
    }

    /// Adds a condition; all must hold.
    #[must_use]
    pub fn condition(mut self, condition: Condition) -> Self {
        self.request.conditions.push(condition.0);
        self
    }

    /// Sets how sure it must be.
    #[must_use]
    pub fn ack(mut self, ack: Ack) -> Self {
        let ack = match ack {
            Ack::Committed => v1::Ack::Committed,
            Ack::Local => v1::Ack::Local,
            Ack::Archived => v1::Ack::Archived,
        };
        self.request.ack = ack.into();
        self
    }
}

/// An acknowledged write.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// Epoch of the record.
    pub epoch: u64,
    /// LSN of the record: the version of every key it wrote.
    pub lsn: u64,
    /// The level achieved: `local`, `committed` or `archived`.
    pub level: String,
    /// The commit rule was weakened by a recorded decision.
    pub degraded: bool,
    /// Commit timestamp in microseconds since the Unix epoch.
    pub commit_ts_us: u64,
}

impl Client {
    /// Applies a batch atomically if its conditions hold.
    ///
    /// # Errors
    /// See [`crate::ErrorClass`].
    pub async fn write(&self, write: Write) -> Result<Written> {
        let request = &write.request;
        let bytes = request.encoded_len();
        if bytes > MESSAGE_BYTES_MAX {
            // Sent, it would break the connection off half way, and look like an unknown outcome.
            let text = format!(
                "a write of {bytes} bytes is over the limit of {MESSAGE_BYTES_MAX} bytes for one message; split the batch"
            );
            return Err(Error::new(ErrorClass::NeverRetry, "LIMIT", text));
        }
        let done = self
            .at_primary(true, |a| async move { a.kv().write(a.request(request.clone())).await })
            .await?
            .into_inner();
        let v1::WriteResponse { epoch, lsn, level, degraded, commit_ts_us } = done;
        Ok(Written { epoch, lsn, level, degraded, commit_ts_us })
    }

    /// Sets a key.
    ///
    /// # Errors
    /// As [`Client::write`].
    pub async fn put(&self, key: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) -> Result<Written> {
        self.write(Write::new().put(key, value)).await
    }

    /// Removes a key.
    ///
    /// # Errors
    /// As [`Client::write`].
    pub async fn delete(&self, key: impl Into<Vec<u8>>) -> Result<Written> {
        self.write(Write::new().delete(key)).await
    }
}
