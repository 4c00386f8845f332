//! One immutable sorted file: its format, how it is built, read and verified.
//!
//! Owns: the bytes of `<data>/tables/{id:032x}.table`. Never: which tables make up a tree, levels,
//! views, or the decision to delete a file before its last reader is gone.
//!
//! ```text
//! data blocks          entries sorted by (keyspace byte ‖ key ascending, LSN descending)
//! range-delete section
//! times section        (LSN, commit timestamp) of the records the table stems from
//! filter section
//! index section        first and last key, offset and length of each data block
//! properties block
//! footer               48 bytes, see `format::Footer`
//! ```
//! A section is a run of blocks of one kind whose payloads are joined. The file ends with the
//! footer; every byte of it is under a checksum that knows the table's id and the byte's place.

use crate::batch::Keyspace;
use crate::lsn::Lsn;

pub(crate) mod block;
pub(crate) mod builder;
pub(crate) mod cache;
pub(crate) mod filter;
pub(crate) mod format;
pub(crate) mod reader;
#[cfg(test)]
mod tests;
pub(crate) mod times;
pub(crate) mod verify;

pub use verify::verify_table;

/// A table file by its random id, its size and the BLAKE3 hash of its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TableFile {
    /// Random name, also inside the file.
    pub id: u128,
    /// Length of the file in bytes.
    pub bytes: u64,
    /// BLAKE3 of the whole file; a repository names the object by it.
    pub blake3: [u8; 32],
    /// Versions of keys in it, deletes included, range deletes not.
    pub entries: u64,
}

/// The file name of a table.
#[must_use]
pub fn table_name(id: u128) -> String {
    format!("{id:032x}.table")
}

/// The id in a table's file name; `None` for any other name.
#[must_use]
pub fn parse_table_name(name: &str) -> Option<u128> {
    let hex = name.strip_suffix(".table")?;
    let id = u128::from_str_radix(hex, 16).ok()?;
    (table_name(id) == name).then_some(id)
}

/// What one record did to one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Stored {
    /// Set it; the bytes are a value envelope.
    Put(Vec<u8>),
    /// Removed it.
    Delete,
}

/// One version of one key. `key` starts with the keyspace byte.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Item {
    pub(crate) key: Vec<u8>,
    pub(crate) lsn: Lsn,
    pub(crate) op: Stored,
}

/// Removes every version below `lsn` of the keys in `start..end`. Both bounds start with the
/// keyspace byte; an empty `end` is above every key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RangeDelete {
    pub(crate) start: Vec<u8>,
    pub(crate) end: Vec<u8>,
    pub(crate) lsn: Lsn,
}

impl RangeDelete {
    pub(crate) fn contains(&self, key: &[u8]) -> bool {
        self.start.as_slice() <= key && below_end(key, &self.end)
    }
}

/// Whether `key` is below the exclusive bound `end`, where an empty bound is above every key.
pub(crate) fn below_end(key: &[u8], end: &[u8]) -> bool {
    end.is_empty() || key < end
}

/// The highest LSN, at most `at`, of a range delete that covers `key`; `ZERO` without one.
pub(crate) fn covering(ranges: &[RangeDelete], key: &[u8], at: Lsn) -> Lsn {
    ranges.iter().filter(|r| r.lsn <= at && r.contains(key)).map(|r| r.lsn).max().unwrap_or_default()
}

/// Keyspace byte and key in one.
pub(crate) fn internal_key(keyspace: Keyspace, key: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(key.len() + 1);
    out.push(keyspace.0);
    out.extend_from_slice(key);
    out
}

/// The exclusive internal bound of a user's range end, where an empty end is the keyspace's.
pub(crate) fn internal_end(keyspace: Keyspace, end: &[u8]) -> Vec<u8> {
    if !end.is_empty() {
        return internal_key(keyspace, end);
    }
    keyspace.0.checked_add(1).map(|next| vec![next]).unwrap_or_default()
}
