//! A batch: the operations that one record makes durable, visible and replicated at once.
//!
//! Body layout: `varint op count`, then per operation `tag u8 | keyspace u8 | key (varint length +
//! bytes)` followed by the value envelope (put; varint length + bytes) or the end key (range
//! delete). The position of an operation is its sub-index under the record's one LSN; the last
//! operation on a key wins. Owns: building, checking limits, encode and decode. Never: LSNs, I/O.

use crate::codec::{Cursor, Malformed, put_slice, put_varint, varint_len};
use crate::limits::{BATCH_BYTES_MAX, BATCH_OPS_MAX, KEY_BYTES_MAX, METADATA_BYTES_MAX, VALUE_BYTES_MAX};
use crate::lsn::{CommitTs, Lsn};
use crate::value::Value;

/// A separate space of keys; one byte in front of every key in the tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Keyspace(pub u8);

impl Keyspace {
    /// The system's own records (sessions, restore marks); not readable through front doors.
    pub const SYSTEM: Keyspace = Keyspace(0);
    /// What users write.
    pub const USER: Keyspace = Keyspace(1);
}

const TAG_PUT: u8 = 1;
const TAG_DELETE: u8 = 2;
const TAG_DELETE_RANGE: u8 = 3;

/// One operation, borrowed from a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op<'a> {
    /// Sets a key.
    Put {
        /// Space of the key.
        keyspace: Keyspace,
        /// The key.
        key: &'a [u8],
        /// The encoded [`Value`] envelope.
        envelope: &'a [u8],
    },
    /// Removes a key.
    Delete {
        /// Space of the key.
        keyspace: Keyspace,
        /// The key.
        key: &'a [u8],
    },
    /// Removes all keys in `start..end` (`end` exclusive; an empty `end` means the end of the keyspace).
    DeleteRange {
        /// Space of the keys.
        keyspace: Keyspace,
        /// First key removed.
        start: &'a [u8],
        /// First key kept; empty for "to the end of the keyspace".
        end: &'a [u8],
    },
}

/// What must hold for a batch to be written. Evaluated by the primary in LSN order, before the
/// batch gets its LSN; never stored in the log and never evaluated again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// Space of the key.
    pub keyspace: Keyspace,
    /// The key looked at.
    pub key: Vec<u8>,
    /// What must be true of it.
    pub expect: Expect,
}

/// The right-hand side of a [`Condition`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expect {
    /// The key has a value.
    Exists,
    /// The key has no value.
    Absent,
    /// The key was last written by this LSN.
    Version(Lsn),
    /// The key's value is exactly these bytes.
    Value(Vec<u8>),
}

/// Why a batch was refused before anything was written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LimitError {
    /// The key is too long.
    #[error("key of {0} bytes is over the limit of {KEY_BYTES_MAX} bytes; shorten the key")]
    Key(usize),
    /// The value is too long.
    #[error("value of {0} bytes is over the limit of {VALUE_BYTES_MAX} bytes (16 MiB); split the value")]
    Value(usize),
    /// The metadata is too long.
    #[error("metadata of {0} bytes is over the limit of {METADATA_BYTES_MAX} bytes; put it into the value")]
    Metadata(usize),
    /// The batch is too large in bytes.
    #[error("batch of {0} bytes is over the limit of {BATCH_BYTES_MAX} bytes (20 MiB); split the batch")]
    Bytes(usize),
    /// The batch has too many operations.
    #[error("batch of over {BATCH_OPS_MAX} operations; split the batch")]
    Ops,
    /// A range whose end is not above its start.
    #[error("range delete whose end is not above its start removes nothing; check the bounds")]
    EmptyRange,
}

/// Operations that become one record.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    ops: Vec<u8>,
    count: usize,
    ranges: bool,
}

impl Batch {
    /// An empty batch.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Number of operations.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.count
    }

    /// True without operations.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Size of the encoded body in bytes (upper bound by a few bytes).
    #[must_use]
    pub const fn encoded_len(&self) -> usize {
        self.ops.len() + 5
    }

    fn check_key(key: &[u8]) -> Result<(), LimitError> {
        if key.len() > KEY_BYTES_MAX { Err(LimitError::Key(key.len())) } else { Ok(()) }
    }

    fn check_room(&self, extra: usize) -> Result<(), LimitError> {
        if self.count >= BATCH_OPS_MAX {
            return Err(LimitError::Ops);
        }
        let total = self.ops.len() + extra + 32;
        if total > BATCH_BYTES_MAX { Err(LimitError::Bytes(total)) } else { Ok(()) }
    }

    /// Adds a put of a plain value in the user keyspace.
    ///
    /// # Errors
    /// A limit, named; the batch is unchanged then.
    pub fn put(&mut self, key: &[u8], value: &[u8]) -> Result<&mut Self, LimitError> {
        self.put_with(Keyspace::USER, key, &Value::plain(value))
    }

    /// Adds a put whose value becomes invisible at `expiry`.
    ///
    /// # Errors
    /// A limit, named; the batch is unchanged then.
    pub fn put_expiring(&mut self, key: &[u8], value: &[u8], expiry: CommitTs) -> Result<&mut Self, LimitError> {
        self.put_with(Keyspace::USER, key, &Value { expiry: Some(expiry), metadata: &[], data: value })
    }

    /// Adds a put in any keyspace with a full envelope.
    ///
    /// # Errors
    /// A limit, named; the batch is unchanged then.
    pub fn put_with(&mut self, keyspace: Keyspace, key: &[u8], value: &Value<'_>) -> Result<&mut Self, LimitError> {
        Self::check_key(key)?;
        if value.data.len() > VALUE_BYTES_MAX {
            return Err(LimitError::Value(value.data.len()));
        }
        if value.metadata.len() > METADATA_BYTES_MAX {
            return Err(LimitError::Metadata(value.metadata.len()));
        }
        self.check_room(key.len() + value.data.len() + value.metadata.len())?;
        let envelope = value.encoded_len();
        if self.ops.is_empty() {
            // Most batches have one operation.
            self.ops
                .reserve_exact(2 + varint_len(key.len() as u64) + key.len() + varint_len(envelope as u64) + envelope);
        }
        self.ops.extend_from_slice(&[TAG_PUT, keyspace.0]);
        put_slice(&mut self.ops, key);
        put_varint(&mut self.ops, envelope as u64);
        value.encode(&mut self.ops);
        self.count += 1;
        Ok(self)
    }

    /// Adds a delete in the user keyspace.
    ///
    /// # Errors
    /// A limit, named; the batch is unchanged then.
    pub fn delete(&mut self, key: &[u8]) -> Result<&mut Self, LimitError> {
        self.delete_in(Keyspace::USER, key)
    }

    /// Adds a delete in any keyspace.
    ///
    /// # Errors
    /// A limit, named; the batch is unchanged then.
    pub fn delete_in(&mut self, keyspace: Keyspace, key: &[u8]) -> Result<&mut Self, LimitError> {
        Self::check_key(key)?;
        self.check_room(key.len())?;
        self.ops.extend_from_slice(&[TAG_DELETE, keyspace.0]);
        put_slice(&mut self.ops, key);
        self.count += 1;
        Ok(self)
    }

    /// Adds a delete of all user keys in `start..end` (empty `end`: to the end of the keyspace).
    ///
    /// # Errors
    /// A limit, named, or an empty range; the batch is unchanged then.
    pub fn delete_range(&mut self, start: &[u8], end: &[u8]) -> Result<&mut Self, LimitError> {
        self.delete_range_in(Keyspace::USER, start, end)
    }

    /// Adds a delete of all keys of a keyspace in `start..end` (empty `end`: to its end). No other keyspace is touched.
    ///
    /// # Errors
    /// A limit, named, or an empty range; the batch is unchanged then.
    pub fn delete_range_in(&mut self, keyspace: Keyspace, start: &[u8], end: &[u8]) -> Result<&mut Self, LimitError> {
        Self::check_key(start)?;
        Self::check_key(end)?;
        if !end.is_empty() && end <= start {
            return Err(LimitError::EmptyRange);
        }
        self.check_room(start.len() + end.len())?;
        self.ops.extend_from_slice(&[TAG_DELETE_RANGE, keyspace.0]);
        put_slice(&mut self.ops, start);
        put_slice(&mut self.ops, end);
        self.count += 1;
        self.ranges = true;
        Ok(self)
    }

    /// Appends the encoded body.
    pub fn encode(&self, out: &mut Vec<u8>) {
        put_varint(out, self.count as u64);
        out.extend_from_slice(&self.ops);
    }

    /// The operations in order.
    pub fn iter(&self) -> impl Iterator<Item = Op<'_>> {
        raw_ops(&self.ops)
    }

    /// The encoded operations, see [`raw_ops`].
    pub(crate) fn raw(&self) -> &[u8] {
        &self.ops
    }

    /// Whether an operation deletes a range.
    pub(crate) const fn deletes_ranges(&self) -> bool {
        self.ranges
    }

    /// Reads a body and checks all of it.
    ///
    /// # Errors
    /// `Malformed` for anything outside the format or its limits.
    pub fn decode(body: &[u8]) -> Result<Self, Malformed> {
        let mut ranges = false;
        let (ops, count) = check(body, |op| ranges |= matches!(op, Op::DeleteRange { .. }))?;
        Ok(Self { ops: ops.to_vec(), count, ranges })
    }
}

/// Iterates encoded operations of our own: built by a [`Batch`], or checked whole by [`check`].
pub(crate) fn raw_ops(raw: &[u8]) -> impl Iterator<Item = Op<'_>> {
    let mut c = Cursor::new(raw);
    std::iter::from_fn(move || if c.is_empty() { None } else { decode_op(&mut c).ok() })
}

/// Checks all of a body without copying it, showing each operation to `see`; returns the encoded
/// operations and their number.
///
/// # Errors
/// `Malformed` for anything outside the format or its limits.
pub(crate) fn check<'a>(body: &'a [u8], mut see: impl FnMut(Op<'a>)) -> Result<(&'a [u8], usize), Malformed> {
    let mut c = Cursor::new(body);
    let count = usize::try_from(c.varint()?).map_err(|_| Malformed("operation count over bound"))?;
    if count > BATCH_OPS_MAX || body.len() > BATCH_BYTES_MAX {
        return Err(Malformed("batch over its limits"));
    }
    let mut ops = c;
    for _ in 0..count {
        let op = decode_op(&mut c)?;
        if let Op::Put { envelope, .. } = op {
            Value::decode(envelope)?;
        }
        see(op);
    }
    c.finish()?;
    Ok((ops.take_rest(), count))
}

/// Iterates a body without copying it. The body must have passed [`Batch::decode`] or carry a
/// verified record checksum; a malformed operation ends the iteration with an error.
pub fn ops(body: &[u8]) -> impl Iterator<Item = Result<Op<'_>, Malformed>> {
    let mut c = Cursor::new(body);
    let mut left = c.varint().unwrap_or(0);
    std::iter::from_fn(move || {
        if left == 0 {
            return None;
        }
        let op = decode_op(&mut c);
        left = if op.is_ok() { left - 1 } else { 0 };
        Some(op)
    })
}

fn decode_op<'a>(c: &mut Cursor<'a>) -> Result<Op<'a>, Malformed> {
    let tag = c.u8()?;
    let keyspace = Keyspace(c.u8()?);
    let key = c.slice(KEY_BYTES_MAX)?;
    match tag {
        TAG_PUT => Ok(Op::Put { keyspace, key, envelope: c.slice(VALUE_BYTES_MAX + 8192)? }),
        TAG_DELETE => Ok(Op::Delete { keyspace, key }),
        TAG_DELETE_RANGE => {
            let end = c.slice(KEY_BYTES_MAX)?;
            if !end.is_empty() && end <= key {
                return Err(Malformed("empty range"));
            }
            Ok(Op::DeleteRange { keyspace, start: key, end })
        }
        _ => Err(Malformed("unknown operation")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn limits_are_named_and_leave_the_batch_unchanged() {
        let mut b = Batch::new();
        assert_eq!(b.put(&vec![0; KEY_BYTES_MAX + 1], b"").err(), Some(LimitError::Key(KEY_BYTES_MAX + 1)));
        assert_eq!(b.put(b"k", &vec![0; VALUE_BYTES_MAX + 1]).err(), Some(LimitError::Value(VALUE_BYTES_MAX + 1)));
        // What a read refuses must not be written.
        let metadata = vec![0; METADATA_BYTES_MAX + 1];
        let value = Value { expiry: None, metadata: &metadata, data: b"" };
        let refused = b.put_with(Keyspace::USER, b"k", &value).err();
        assert_eq!(refused, Some(LimitError::Metadata(METADATA_BYTES_MAX + 1)));
        assert_eq!(b.delete_range(b"b", b"b").err(), Some(LimitError::EmptyRange));
        assert!(b.is_empty());
        assert!(b.put(&vec![0; KEY_BYTES_MAX], &vec![0; VALUE_BYTES_MAX]).is_ok());
        assert!(matches!(b.put(b"k", &vec![0; VALUE_BYTES_MAX]).err(), Some(LimitError::Bytes(_))));
        assert_eq!(b.len(), 1);
    }

    fn bytes(most: usize) -> impl Strategy<Value = Vec<u8>> {
        proptest::collection::vec(any::<u8>(), 0..most)
    }

    proptest! {
        #[test]
        fn decode_accepts_what_encode_wrote(ops in proptest::collection::vec((0u8..3, any::<u8>(), bytes(20), bytes(40)), 0..20)) {
            let mut b = Batch::new();
            for (kind, space, k, v) in &ops {
                let space = Keyspace(*space);
                let _ = match kind {
                    0 => b.put_with(space, k, &Value::plain(v)),
                    1 => b.delete_in(space, k),
                    _ => b.delete_range_in(space, k, v),
                };
            }
            let mut out = Vec::new();
            b.encode(&mut out);
            let back = Batch::decode(&out).unwrap();
            prop_assert_eq!(back.iter().count(), b.len());
            prop_assert_eq!(&back, &b);
        }

        #[test]
        fn arbitrary_bytes_never_panic_and_re_encode_to_themselves(bytes: Vec<u8>) {
            if let Ok(b) = Batch::decode(&bytes) {
                let mut out = Vec::new();
                b.encode(&mut out);
                prop_assert_eq!(&out, &bytes);
            }
            let _ = ops(&bytes).count();
        }
    }
}
