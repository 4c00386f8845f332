//! The value envelope: flags, optional expiry, optional metadata, then the user's bytes.
//!
//! Layout: `flags u8 | [expiry u64 LE, microseconds] | [metadata varint length + bytes] | data`.
//! Bit 0 of the flags says that an expiry is present, bit 1 that metadata is; other bits are
//! reserved and refused. Metadata is reserved for front doors that need per-key facts.
//! Owns: encode and decode. Never: clocks; expiry is judged by commit timestamps only.

use crate::codec::{Cursor, Malformed, put_slice, varint_len};
use crate::limits::{METADATA_BYTES_MAX, VALUE_BYTES_MAX};
use crate::lsn::CommitTs;

const HAS_EXPIRY: u8 = 1;
const HAS_METADATA: u8 = 2;

/// A value as stored, borrowed from its encoded form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Value<'a> {
    /// Invisible to reads whose commit time is at or after this.
    pub expiry: Option<CommitTs>,
    /// Reserved for front doors; empty when absent.
    pub metadata: &'a [u8],
    /// The user's bytes.
    pub data: &'a [u8],
}

impl<'a> Value<'a> {
    /// A plain value without expiry.
    #[must_use]
    pub const fn plain(data: &'a [u8]) -> Self {
        Self { expiry: None, metadata: &[], data }
    }

    /// Length of the encoded form in bytes.
    #[must_use]
    pub const fn encoded_len(&self) -> usize {
        let expiry = if self.expiry.is_some() { 8 } else { 0 };
        let metadata =
            if self.metadata.is_empty() { 0 } else { varint_len(self.metadata.len() as u64) + self.metadata.len() };
        1 + expiry + metadata + self.data.len()
    }

    /// Appends the encoded form.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let mut flags = 0;
        if self.expiry.is_some() {
            flags |= HAS_EXPIRY;
        }
        if !self.metadata.is_empty() {
            flags |= HAS_METADATA;
        }
        out.push(flags);
        if let Some(ts) = self.expiry {
            out.extend_from_slice(&ts.0.to_le_bytes());
        }
        if !self.metadata.is_empty() {
            put_slice(out, self.metadata);
        }
        out.extend_from_slice(self.data);
    }

    /// Reads an envelope that fills `bytes`.
    ///
    /// # Errors
    /// `Malformed` for unknown flags, an early end, or a part over its limit.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let mut c = Cursor::new(bytes);
        let flags = c.u8()?;
        if flags & !(HAS_EXPIRY | HAS_METADATA) != 0 {
            return Err(Malformed("value envelope has flags of a newer format"));
        }
        let expiry = if flags & HAS_EXPIRY != 0 { Some(CommitTs(c.u64()?)) } else { None };
        let metadata = if flags & HAS_METADATA != 0 { c.slice(METADATA_BYTES_MAX)? } else { &[] };
        if flags & HAS_METADATA != 0 && metadata.is_empty() {
            return Err(Malformed("empty metadata block"));
        }
        let data = c.take_rest();
        if data.len() > VALUE_BYTES_MAX {
            return Err(Malformed("value over 16 MiB"));
        }
        Ok(Self { expiry, metadata, data })
    }

    /// Whether the value is invisible to a read at commit time `now`.
    #[must_use]
    pub fn expired_at(&self, now: CommitTs) -> bool {
        self.expiry.is_some_and(|e| e <= now)
    }
}
