//! Reads: single keys, several keys at one position, scans in pages.
//!
//! Owns: building, sending, paging. Never: mixing positions within one call.

use mainstay_proto::v1;
use tonic::Streaming;

use crate::error::{Error, Result};
use crate::session::{Attempt, Client};

/// Which nodes may answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Consistency {
    /// The primary: everything acknowledged before.
    #[default]
    Primary,
    /// Any node, as of what it has applied.
    Stale,
}

/// Where and when to read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReadOptions {
    /// Which nodes may answer.
    pub consistency: Consistency,
    /// Read as of this LSN; 0 = newest.
    pub at_lsn: u64,
}

impl ReadOptions {
    fn wire(self) -> i32 {
        match self.consistency {
            Consistency::Primary => v1::Consistency::Primary.into(),
            Consistency::Stale => v1::Consistency::Stale.into(),
        }
    }
}

/// A key and its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: Vec<u8>,
    /// The value; empty in a scan of keys only.
    pub value: Vec<u8>,
    /// LSN that wrote it.
    pub version: u64,
    /// When it expires, in microseconds since the Unix epoch; 0 = never.
    pub expiry_us: u64,
}

impl From<v1::KeyValue> for Entry {
    fn from(e: v1::KeyValue) -> Self {
        Self { key: e.key.into(), value: e.value.into(), version: e.version, expiry_us: e.expiry_us }
    }
}

/// What to scan.
#[derive(Clone, Debug, Default)]
pub struct Scan {
    request: v1::ScanRequest,
    options: ReadOptions,
}

impl Scan {
    /// Everything.
    #[must_use]
    pub fn all() -> Self {
        Self::default()
    }

    /// Keys in `start..end`; an empty `end` means to the last key.
    #[must_use]
    pub fn range(start: impl Into<Vec<u8>>, end: impl Into<Vec<u8>>) -> Self {
        let request =
            v1::ScanRequest { start: start.into().into(), end: end.into().into(), ..v1::ScanRequest::default() };
        Self { request, options: ReadOptions::default() }
    }

    /// Keys with a prefix.
    #[must_use]
    pub fn prefix(prefix: impl Into<Vec<u8>>) -> Self {
        let start = prefix.into();
        let mut end = start.clone();
        // The first key that does not have it: the last byte that can grow, grown.
        while let Some(last) = end.pop() {
            if last < 0xff {
                end.push(last + 1);
                break;
            }
        }
        Self::range(start, end)
    }

    /// At most this many entries; 0 = all.
    #[must_use]
    pub const fn limit(mut self, limit: u64) -> Self {
        self.request.limit = limit;
        self
    }

    /// From the last key to the first.
    #[must_use]
    pub const fn reverse(mut self) -> Self {
        self.request.reverse = true;
        self
    }

    /// Leaves the values out.
    #[must_use]
    pub const fn keys_only(mut self) -> Self {
        self.request.keys_only = true;
        self
    }

    /// Where and when to read.
    #[must_use]
    pub const fn read(mut self, options: ReadOptions) -> Self {
        self.options = options;
        self
    }
}

/// The entries of a scan, as they arrive.
#[derive(Debug)]
pub struct Entries {
    pages: Streaming<v1::ScanPage>,
    page: std::vec::IntoIter<v1::KeyValue>,
    endpoint: String,
    lsn: u64,
}

impl Entries {
    /// The next entry; `None` at the end.
    ///
    /// # Errors
    /// The server's, or a broken connection. Start the scan again then.
    pub async fn next(&mut self) -> Result<Option<Entry>> {
        loop {
            if let Some(e) = self.page.next() {
                return Ok(Some(e.into()));
            }
            match self.pages.message().await {
                Ok(Some(page)) => {
                    self.lsn = page.lsn;
                    self.page = page.entries.into_iter();
                }
                Ok(None) => return Ok(None),
                Err(status) => return Err(Error::from_status(&self.endpoint, &status, false)),
            }
        }
    }

    /// The position scanned at, once the first page is there.
    #[must_use]
    pub const fn lsn(&self) -> u64 {
        self.lsn
    }
}

impl Client {
    /// Reads a key from the primary.
    ///
    /// # Errors
    /// See [`crate::ErrorClass`]; an absent key is no error.
    pub async fn get(&self, key: impl Into<Vec<u8>>) -> Result<Option<Entry>> {
        self.get_with(key, ReadOptions::default()).await
    }

    /// Reads a key from any node, as of what it has applied.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn get_stale(&self, key: impl Into<Vec<u8>>) -> Result<Option<Entry>> {
        self.get_with(key, ReadOptions { consistency: Consistency::Stale, at_lsn: 0 }).await
    }

    /// Reads a key.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn get_with(&self, key: impl Into<Vec<u8>>, options: ReadOptions) -> Result<Option<Entry>> {
        Ok(self.get_many([key], options).await?.pop())
    }

    /// Reads keys at one position; absent ones are left out, the order is kept.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn get_many<K: Into<Vec<u8>>>(
        &self,
        keys: impl IntoIterator<Item = K>,
        options: ReadOptions,
    ) -> Result<Vec<Entry>> {
        let keys = keys.into_iter().map(|k| k.into().into()).collect();
        let request = &v1::GetRequest { keys, consistency: options.wire(), at_lsn: options.at_lsn };
        let call = |a: Attempt| async move { a.kv().get(a.request(request.clone())).await };
        let found = match options.consistency {
            Consistency::Primary => self.at_primary(false, call).await?,
            Consistency::Stale => self.at_any(call).await?,
        };
        Ok(found.into_inner().found.into_iter().map(Entry::from).collect())
    }

    /// Scans a range at one position, in key order.
    ///
    /// # Errors
    /// As [`Client::get`]; later ones come through [`Entries::next`].
    pub async fn scan(&self, scan: Scan) -> Result<Entries> {
        let mut request = scan.request;
        request.consistency = scan.options.wire();
        request.at_lsn = scan.options.at_lsn;
        let request = &request;
        // The deadline covers the first answer; a long scan may take as long as it needs.
        let call = |a: Attempt| async move {
            let pages = a.kv().scan(request.clone()).await?.into_inner();
            Ok(Entries { pages, page: Vec::new().into_iter(), endpoint: a.endpoint, lsn: 0 })
        };
        match scan.options.consistency {
            Consistency::Primary => self.at_primary(false, call).await,
            Consistency::Stale => self.at_any(call).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_ends_before_the_first_key_without_it() {
        let end = |p: &[u8]| Scan::prefix(p).request.end.to_vec();
        assert_eq!(end(b"ab"), b"ac");
        assert_eq!(end(&[1, 0xff]), [2]);
        assert_eq!(end(&[0xff, 0xff]), Vec::<u8>::new());
        assert_eq!(end(b""), Vec::<u8>::new());
    }
}
