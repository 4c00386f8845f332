//! Entries that own their bytes, for tests of this module and the tree's.

use crate::error::Result;
use crate::lsn::Lsn;

use super::cursor::TableCursor;
use super::{EntryRef, Hit};

/// What one record did to one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Stored {
    /// Set it; the bytes are a value envelope.
    Put(Vec<u8>),
    /// Removed it.
    Delete,
}

/// One version of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Item {
    pub(crate) key: Vec<u8>,
    pub(crate) lsn: Lsn,
    pub(crate) op: Stored,
}

fn stored(value: Option<&[u8]>) -> Stored {
    value.map_or(Stored::Delete, |v| Stored::Put(v.to_vec()))
}

impl Item {
    pub(crate) fn of(entry: EntryRef<'_>) -> Self {
        Self { key: entry.key.to_vec(), lsn: entry.lsn, op: stored(entry.value) }
    }

    pub(crate) fn entry(&self) -> EntryRef<'_> {
        let value = match &self.op {
            Stored::Put(v) => Some(v.as_slice()),
            Stored::Delete => None,
        };
        EntryRef { key: &self.key, lsn: self.lsn, value }
    }
}

/// A look-up's result as a pair that compares.
pub(crate) fn owned(hit: Option<Hit>) -> Option<(Lsn, Stored)> {
    hit.map(|h| (h.lsn, stored(h.value())))
}

pub(crate) fn collect(mut cursor: TableCursor) -> Result<Vec<Item>> {
    let mut out = Vec::new();
    while cursor.advance()? {
        out.extend(cursor.entry().map(Item::of));
    }
    assert!(cursor.entry().is_none() && !cursor.advance()?, "the end stays the end");
    Ok(out)
}
