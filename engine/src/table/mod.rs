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
//! index section        separator and length of each data block
//! properties block
//! footer               48 bytes, see `format::Footer`
//! ```
//! A section is a run of blocks of one kind whose payloads are joined. The file ends with the
//! footer; every byte of it is under a checksum that knows the table's id and the byte's place.

use std::ops::Range;
use std::sync::Arc;

use crate::batch::Keyspace;
use crate::codec::Malformed;
use crate::lsn::Lsn;

use block::Block;
use superseded::Superseded;

mod admission;
pub(crate) mod block;
mod block_builder;
pub(crate) mod builder;
pub(crate) mod cache;
pub(crate) mod cursor;
#[cfg(feature = "sim")]
mod decoders;
pub(crate) mod filter;
pub(crate) mod format;
mod index;
pub(crate) mod inspect;
mod parts;
pub(crate) mod reader;
pub(crate) mod run;
mod sample;
mod spare;
pub(crate) mod superseded;
mod tally;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
pub(crate) mod times;
pub(crate) mod verify;

#[cfg(feature = "sim")]
pub(crate) use decoders::decoders;
pub(crate) use tally::Asked;
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

/// One version of one key, borrowed from where it lies. `key` starts with the keyspace byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct EntryRef<'a> {
    pub(crate) key: &'a [u8],
    pub(crate) lsn: Lsn,
    /// The envelope of a put; `None` for a delete.
    pub(crate) value: Option<&'a [u8]>,
}

/// The keys in `low..high`; an empty `high` is no bound. All cursors of one scan share them.
#[derive(Debug, Default)]
pub(crate) struct Bounds {
    pub(crate) low: Vec<u8>,
    pub(crate) high: Vec<u8>,
}

impl Bounds {
    pub(crate) fn new(low: Vec<u8>, high: Vec<u8>) -> Arc<Self> {
        Arc::new(Self { low, high })
    }

    /// All keys.
    pub(crate) fn all() -> Arc<Self> {
        Arc::default()
    }
}

/// A version that a look-up found, with what holds its value.
#[derive(Clone, Debug)]
pub(crate) struct Hit {
    pub(crate) lsn: Lsn,
    value: HitValue,
}

#[derive(Clone, Debug)]
enum HitValue {
    Deleted,
    Copied(Vec<u8>),
    InBlock(Arc<Block>, Range<usize>),
}

impl Hit {
    /// A version whose value lies where it may not stay.
    pub(crate) fn copied(lsn: Lsn, value: Option<&[u8]>) -> Self {
        Self { lsn, value: value.map_or(HitValue::Deleted, |v| HitValue::Copied(v.to_vec())) }
    }

    fn in_block(lsn: Lsn, block: Arc<Block>, value: Option<Range<usize>>) -> Self {
        Self { lsn, value: value.map_or(HitValue::Deleted, |at| HitValue::InBlock(block, at)) }
    }

    /// Out of a history table: the version, if reads at `lsn` see it.
    fn not_superseded(mut self, lsn: Lsn) -> Result<Option<Self>, Malformed> {
        let Some(bytes) = self.value() else { return Err(Malformed("superseded version without a value")) };
        let s = Superseded::decode(bytes)?;
        self.value = match self.value {
            HitValue::InBlock(block, at) if s.put => HitValue::InBlock(block, at.start + s.envelope_at..at.end),
            HitValue::Copied(bytes) if s.put => HitValue::Copied(bytes.get(s.envelope_at..).unwrap_or_default().into()),
            _ => HitValue::Deleted,
        };
        Ok((s.by > lsn).then_some(self))
    }

    /// The envelope of a put; `None` for a delete.
    pub(crate) fn value(&self) -> Option<&[u8]> {
        match &self.value {
            HitValue::Deleted => None,
            HitValue::Copied(v) => Some(v),
            HitValue::InBlock(block, at) => Some(block.value(at)),
        }
    }
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
    #[cfg(test)]
    pub(crate) fn contains(&self, key: &[u8]) -> bool {
        self.start.as_slice() <= key && below_end(key, &self.end)
    }
}

/// Whether `key` is below the exclusive bound `end`, where an empty bound is above every key.
pub(crate) fn below_end(key: &[u8], end: &[u8]) -> bool {
    end.is_empty() || key < end
}

/// The first sixteen bytes of a key as a number, zeros behind its end: of two keys the higher one never has the lower
/// number.
pub(crate) fn key_head(key: &[u8]) -> u128 {
    let head = key.first_chunk().copied().unwrap_or_else(|| {
        let mut padded = [0; 16];
        padded.iter_mut().zip(key).for_each(|(to, from)| *to = *from);
        padded
    });
    u128::from_be_bytes(head)
}

/// Longest key that [`InternalKey`] holds without an allocation, keyspace byte included.
const SHORT_KEY: usize = 64;

/// Keyspace byte and key in one, without an allocation for a key of usual length.
#[derive(Debug)]
pub(crate) enum InternalKey {
    Short([u8; SHORT_KEY], usize),
    Long(Vec<u8>),
}

impl InternalKey {
    pub(crate) fn new(keyspace: Keyspace, key: &[u8]) -> Self {
        let mut short = [0; SHORT_KEY];
        let len = key.len() + 1;
        match short.get_mut(..len).and_then(<[u8]>::split_first_mut) {
            Some((first, rest)) => {
                *first = keyspace.0;
                rest.copy_from_slice(key);
                Self::Short(short, len)
            }
            None => Self::Long(internal_key(keyspace, key)),
        }
    }
}

impl std::ops::Deref for InternalKey {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Short(bytes, len) => bytes.get(..*len).unwrap_or_default(),
            Self::Long(bytes) => bytes,
        }
    }
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

/// The exclusive internal bound of the keys that start with a prefix: the first key behind all of them.
pub(crate) fn internal_prefix_end(keyspace: Keyspace, prefix: &[u8]) -> Vec<u8> {
    // Behind `a ff ff` comes `b`. Behind nothing but `ff`, and behind the empty prefix, the keyspace ends.
    let Some(at) = prefix.iter().rposition(|byte| *byte < u8::MAX) else { return internal_end(keyspace, b"") };
    let mut end = internal_key(keyspace, prefix.get(..=at).unwrap_or(prefix));
    if let Some(last) = end.last_mut() {
        *last = last.saturating_add(1);
    }
    end
}
