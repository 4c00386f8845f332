//! Reading: the position a read is served at, and the reads themselves.
//!
//! Owns: the read gate. Never: a value above the commit LSN \[I2\].

use std::sync::Arc;
use std::time::Duration;

use mainstay_engine::batch::Keyspace;
use mainstay_engine::table::parse_table_name;
use mainstay_engine::tree::{DamagedTable, View};
use mainstay_engine::value::Value;
use mainstay_engine::{Epoch, Error, Lsn};
use tokio::sync::mpsc;

use super::{Class, Code, Failure, Service, without_advice};

/// Where and when to read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReadAt {
    /// Any node may answer, as of what it has applied.
    pub stale: bool,
    /// Read as of this LSN; `None` = newest.
    pub lsn: Option<Lsn>,
}

/// A key and its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: Vec<u8>,
    /// The value.
    pub value: Vec<u8>,
    /// LSN that wrote it.
    pub version: Lsn,
    /// Microseconds since the Unix epoch; 0 = never.
    pub expiry_us: u64,
}

/// What to scan.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Range {
    /// First key.
    pub start: Vec<u8>,
    /// First key not wanted; empty = the end of the keyspace.
    pub end: Vec<u8>,
    /// Most entries; 0 = all.
    pub limit: u64,
    /// Descending order.
    pub reverse: bool,
    /// Leave the values out.
    pub keys_only: bool,
}

/// How long a read waits for the proof that this node still leads; then another node may be asked.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(3);
/// Bytes of keys and values after which a page is handed on.
const PAGE_BYTES: usize = 256 << 10;

fn entry(key: Vec<u8>, version: Lsn, envelope: &[u8], keys_only: bool) -> Result<Entry, Failure> {
    let value = Value::decode(envelope).map_err(|e| Failure::from(Error::from(e)))?;
    let data = if keys_only { Vec::new() } else { value.data.to_vec() };
    Ok(Entry { key, value: data, version, expiry_us: value.expiry.map_or(0, |e| e.0) })
}

impl Service {
    /// A view at the position asked for, and the epoch it was taken in.
    async fn view(&self, at: ReadAt) -> Result<(View, Epoch), Failure> {
        let (store, epoch) = if at.stale {
            (self.store()?, self.driver.role().borrow().epoch)
        } else {
            let (store, epoch, start) = self.primary()?;
            // Nothing is read before the reign's first record is visible: an older commit LSN may
            // be stale here. What is committed now is what others may have been told.
            let floor = start.max(store.committed().get());
            // Nor unless it is proved that nobody else was promoted before the read arrived.
            let current = async {
                let (leads, applied) = tokio::join!(self.driver.confirm_reign(epoch), store.applied().reached(floor));
                leads && applied.is_ok()
            };
            let confirmed = tokio::select! {
                in_time = tokio::time::timeout(CONFIRM_TIMEOUT, current) => matches!(in_time, Ok(true)),
                () = self.until_role_ends(epoch) => false,
            };
            if !confirmed {
                return Err(Failure::new(
                    Code::NotReady,
                    Class::NotExecuted,
                    "this node cannot confirm that it still leads, for too few replicas answer it; see `mainstay \
                     status`, or read with --stale",
                ));
            }
            (store, epoch)
        };
        let view = match at.lsn {
            Some(lsn) => {
                if lsn > store.applied().get() {
                    return Err(Failure::bad(format!("LSN {lsn} is not visible here yet")));
                }
                store.view_at(lsn)?
            }
            None => store.view(),
        };
        Ok((view, epoch))
    }

    /// Reads keys at one position; absent ones are left out.
    ///
    /// # Errors
    /// See [`Failure`].
    pub async fn get(&self, keys: &[impl AsRef<[u8]>], at: ReadAt) -> Result<(Vec<Entry>, Lsn, Epoch), Failure> {
        let (view, epoch) = self.view(at).await?;
        let mut found = Vec::new();
        for key in keys {
            let key = key.as_ref();
            if let Some(f) = view.get(Keyspace::USER, key).map_err(|e| self.read_failed(e))? {
                found.push(entry(key.to_vec(), f.lsn, &f.envelope, false)?);
            }
        }
        Ok((found, view.lsn(), epoch))
    }

    /// Scans a range at one position, in pages. The receiver ends after the last page; dropping it
    /// ends the scan.
    ///
    /// # Errors
    /// See [`Failure`]; later ones come through the receiver.
    pub async fn scan(
        &self,
        range: Range,
        at: ReadAt,
    ) -> Result<(mpsc::Receiver<Result<Vec<Entry>, Failure>>, Lsn), Failure> {
        let (view, _) = self.view(at).await?;
        let lsn = view.lsn();
        let (tx, rx) = mpsc::channel(4);
        let service = self.clone();
        tokio::task::spawn_blocking(move || {
            if let Err(f) = scan_into(&service, &view, &range, &tx) {
                let _ = tx.blocking_send(Err(f));
            }
        });
        Ok((rx, lsn))
    }

    /// A read that a table failed did nothing, whatever the error's class is where writes are concerned. If the table's
    /// bytes are damaged or lost, it is read whole behind the answer, so that `status` and a repair know of it before
    /// the next scrub comes by.
    pub(super) fn read_failed(&self, e: Error) -> Failure {
        let table = match &e {
            Error::Corruption { path, .. } | Error::Io { path, .. } => path.file_name().and_then(|n| n.to_str()),
            _ => None,
        };
        let Some(id) = table.and_then(parse_table_name) else { return e.into() };
        let failure = failed_at_table(&e);
        if e.damaged_file().is_some()
            && let Ok(store) = self.store().cloned()
            && let Ok(one) = Arc::clone(&self.checking).try_acquire_owned()
        {
            tokio::task::spawn_blocking(move || {
                let _one = one;
                let known = |t: &DamagedTable| t.file.id == id;
                if !store.tree().damaged_tables().iter().any(known) && store.scrub_after(&e) {
                    tracing::error!(table = %format!("{id:032x}"), "a read met damage");
                }
            });
        }
        failure
    }
}

/// The answer to a read, or to the look at a write's conditions, that a table failed: before anything was done.
fn failed_at_table(e: &Error) -> Failure {
    let text = e.to_string();
    match e {
        Error::Corruption { .. } => Failure::new(Code::Corruption, Class::NeverRetry, without_advice(&text)),
        _ => Failure::new(Code::ReadFailed, Class::NotExecuted, text),
    }
}

fn scan_into(
    service: &Service,
    view: &View,
    range: &Range,
    tx: &mpsc::Sender<Result<Vec<Entry>, Failure>>,
) -> Result<(), Failure> {
    let limit = if range.limit == 0 { u64::MAX } else { range.limit };
    let (mut page, mut bytes, mut count) = (Vec::new(), 0, 0);
    for found in view.scan(Keyspace::USER, &range.start, &range.end, range.reverse) {
        let found = found.map_err(|e| service.read_failed(e))?;
        bytes += found.key.len() + found.envelope.len() + 32;
        page.push(entry(found.key, found.lsn, &found.envelope, range.keys_only)?);
        count += 1;
        if bytes >= PAGE_BYTES || count >= limit {
            bytes = 0;
            if tx.blocking_send(Ok(std::mem::take(&mut page))).is_err() || count >= limit {
                return Ok(());
            }
        }
    }
    if !page.is_empty() {
        let _ = tx.blocking_send(Ok(page));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::path::Path;

    use super::*;

    #[test]
    fn what_a_table_did_not_give_is_a_failed_read_that_names_it_and_changed_nothing() {
        let path = Path::new("tables").join("0000000000000000000000000000002a.table");
        for (number, says) in [(5, "Input/output error"), (24, "Too many open files"), (12, "Cannot allocate memory")] {
            let f = failed_at_table(&Error::io("read", &path, io::Error::from_raw_os_error(number)));
            assert_eq!((f.code, f.class), (Code::ReadFailed, Class::NotExecuted), "{f}");
            assert!(f.message.contains(says) && f.message.contains("2a.table"), "{f}");
            assert!(crate::codes::next_step(f.code.as_str()).is_some());
        }
        let f = failed_at_table(&Error::corruption(&path, 7, None, "torn"));
        assert_eq!((f.code, f.class), (Code::Corruption, Class::NeverRetry), "{f}");
        assert!(f.message.ends_with("torn"), "{f}");
    }
}
