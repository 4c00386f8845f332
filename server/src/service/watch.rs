//! Watching: committed records from an LSN on, in order, from the log itself.
//!
//! Owns: the change feed's cursor. Never: a record above the commit LSN \[I2\], and never a silent gap:
//! when the log is gone the watcher is told.

use std::sync::Arc;

use mainstay_engine::batch::{Keyspace, Op, ops};
use mainstay_engine::log::Reader;
use mainstay_engine::record::{Kind, Record};
use mainstay_engine::store::Store;
use mainstay_engine::value::Value;
use mainstay_engine::{CommitTs, Epoch, Lsn};
use tokio::sync::mpsc;

use super::{Failure, Service};

/// One operation of a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Changed {
    /// Set.
    Put(Vec<u8>, Vec<u8>, Option<CommitTs>),
    /// Removed.
    Delete(Vec<u8>),
    /// A range was removed.
    DeleteRange(Vec<u8>, Vec<u8>),
}

/// All changes of one record that the watcher asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The record's LSN.
    pub lsn: Lsn,
    /// Its epoch.
    pub epoch: Epoch,
    /// Its commit timestamp.
    pub ts: CommitTs,
    /// Its operations, in order.
    pub operations: Vec<Changed>,
}

impl Service {
    /// Streams changes from `from` on (zero: what commits from now on) to `to` (zero: for ever).
    ///
    /// # Errors
    /// `LogGone` when the log does not reach back; later errors come through the receiver.
    pub fn watch(
        &self,
        from: Lsn,
        to: Lsn,
        prefix: Vec<u8>,
    ) -> Result<mpsc::Receiver<Result<Change, Failure>>, Failure> {
        let store = Arc::clone(self.store()?);
        let from = if from == Lsn::ZERO { store.applied().get().next() } else { from };
        let reader = store.log().reader(from)?;
        let (tx, rx) = mpsc::channel(256);
        tokio::spawn(async move {
            if let Err(f) = follow(&store, reader, from, to, &prefix, &tx).await {
                let _ = tx.send(Err(f)).await;
            }
        });
        Ok(rx)
    }
}

async fn follow(
    store: &Store,
    mut reader: Reader,
    from: Lsn,
    to: Lsn,
    prefix: &[u8],
    tx: &mpsc::Sender<Result<Change, Failure>>,
) -> Result<(), Failure> {
    let mut next = from;
    loop {
        let visible = tokio::select! {
            at = store.applied().reached(next) => match at {
                Ok(at) => at,
                Err(_) => return Ok(()),
            },
            () = tx.closed() => return Ok(()),
        };
        let upto = if to == Lsn::ZERO { visible } else { visible.min(to) };
        let chunk = tokio::task::block_in_place(|| reader.next(upto, 1 << 20))?;
        if let Some(chunk) = chunk {
            next = chunk.last.next();
            for record in chunk.records() {
                if let Some(change) = change(&record?, prefix)?
                    && tx.send(Ok(change)).await.is_err()
                {
                    return Ok(());
                }
            }
        } else {
            next = upto.next();
        }
        if to != Lsn::ZERO && next > to {
            return Ok(());
        }
    }
}

fn change(record: &Record<'_>, prefix: &[u8]) -> Result<Option<Change>, Failure> {
    // Its changes are in tables, and a node has none such: never passed over in silence.
    mainstay_engine::ingest::refuse(record)?;
    if record.header.kind != Kind::Batch {
        return Ok(None);
    }
    let malformed = |e| Failure::from(mainstay_engine::Error::from(e));
    let mut operations = Vec::new();
    for op in ops(record.body) {
        match op.map_err(malformed)? {
            Op::Put { keyspace: Keyspace::USER, key, envelope } if key.starts_with(prefix) => {
                let value = Value::decode(envelope).map_err(malformed)?;
                operations.push(Changed::Put(key.to_vec(), value.data.to_vec(), value.expiry));
            }
            Op::Delete { keyspace: Keyspace::USER, key } if key.starts_with(prefix) => {
                operations.push(Changed::Delete(key.to_vec()));
            }
            // A range is told whole: the watcher clips it to what it holds.
            Op::DeleteRange { keyspace: Keyspace::USER, start, end } => {
                operations.push(Changed::DeleteRange(start.to_vec(), end.to_vec()));
            }
            Op::Put { .. } | Op::Delete { .. } | Op::DeleteRange { .. } => {}
        }
    }
    let h = record.header;
    Ok((!operations.is_empty()).then_some(Change { lsn: h.lsn, epoch: h.epoch, ts: h.ts, operations }))
}

#[cfg(test)]
mod tests {
    use mainstay_engine::record::{Header, encode};
    use mainstay_engine::{Chain, CommitTs, Epoch};

    use super::*;

    #[test]
    fn an_ingest_is_refused_and_other_records_without_keys_are_passed_over() {
        let of = |kind| {
            let header = Header { kind, epoch: Epoch(1), lsn: Lsn(6), ts: CommitTs(1), session: 0, sequence: 0 };
            let mut bytes = Vec::new();
            encode(&mut bytes, Chain::default(), &header, |_| ());
            let record = Record::decode(&bytes).unwrap();
            change(&record, b"").map(|c| c.is_some()).map_err(|e| e.to_string())
        };
        assert_eq!(of(Kind::EpochStart), Ok(false));
        assert!(of(Kind::Ingest).unwrap_err().contains("the record at LSN 6 takes in tables"));
    }
}
