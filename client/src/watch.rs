//! Watching: committed changes in LSN order.
//!
//! Owns: the stream. Never: a silent gap; when it breaks, go on from the last LSN seen plus one.

use mainstay_proto::v1;
use tonic::Streaming;

use crate::error::{Error, Result};
use crate::session::Client;

/// One operation of a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// A key was set.
    Put {
        /// The key.
        key: Vec<u8>,
        /// Its value.
        value: Vec<u8>,
        /// Time to live from the commit timestamp on, in milliseconds; 0 = for ever.
        ttl_ms: u64,
    },
    /// A key was removed.
    Delete {
        /// The key.
        key: Vec<u8>,
    },
    /// All keys in a range were removed.
    DeleteRange {
        /// First key.
        start: Vec<u8>,
        /// First key kept; empty = to the last key.
        end: Vec<u8>,
    },
}

/// All changes of one record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// LSN of the record.
    pub lsn: u64,
    /// Its epoch.
    pub epoch: u64,
    /// Its commit timestamp, microseconds since the Unix epoch.
    pub commit_ts_us: u64,
    /// Its operations, in order.
    pub operations: Vec<Operation>,
}

/// Changes as they commit.
#[derive(Debug)]
pub struct Changes {
    events: Streaming<v1::WatchEvent>,
    endpoint: String,
}

impl Changes {
    /// The next change; `None` after the last LSN asked for, or when the node stops.
    ///
    /// # Errors
    /// The server's (`LOG_GONE`: too far behind), or a broken connection.
    pub async fn next(&mut self) -> Result<Option<Change>> {
        match self.events.message().await {
            Ok(event) => Ok(event.map(change)),
            Err(status) => Err(Error::from_status(&self.endpoint, &status, false)),
        }
    }
}

fn change(e: v1::WatchEvent) -> Change {
    use v1::operation::Op;
    let operations = e.operations.into_iter().filter_map(|o| {
        Some(match o.op? {
            Op::Put(p) => Operation::Put { key: p.key.into(), value: p.value.into(), ttl_ms: p.ttl_ms },
            Op::Delete(d) => Operation::Delete { key: d.key.into() },
            Op::DeleteRange(d) => Operation::DeleteRange { start: d.start.into(), end: d.end.into() },
        })
    });
    Change { lsn: e.lsn, epoch: e.epoch, commit_ts_us: e.commit_ts_us, operations: operations.collect() }
}

impl Client {
    /// Watches keys with a prefix from an LSN on (0: what commits from now on), to an LSN (0: for ever).
    ///
    /// # Errors
    /// `LOG_GONE` when the log no longer reaches back; see [`crate::ErrorClass`].
    pub async fn watch(&self, from_lsn: u64, prefix: impl Into<Vec<u8>>, to_lsn: u64) -> Result<Changes> {
        let request = &v1::WatchRequest { from_lsn, prefix: prefix.into().into(), to_lsn };
        self.at_primary(false, |a| async move {
            let events = a.kv().watch(request.clone()).await?.into_inner();
            Ok(Changes { events, endpoint: a.endpoint })
        })
        .await
    }
}
