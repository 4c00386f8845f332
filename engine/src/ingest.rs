//! The body of an ingest record: which table files a running embedded store takes in at once.
//!
//! ```text
//! count varint (1 to 4096), then per table, ascending by key:
//! id u128 | bytes varint | blake3 [32] | entries varint | first key slice | last key slice
//! ```
//! Keys begin with their keyspace byte, and no key of one table is between those of another. The entries of the tables
//! carry an LSN that means nothing: the record's own takes its place wherever they are read, as nobody knows it while
//! tables are written. Owns: encode and decode. Never: files (`store::ingest` places them, `tree::ingest` reads them).

use crate::codec::{Cursor, Malformed, put_slice, put_varint};
use crate::error::Error;
use crate::limits::{INGEST_TABLES_MAX, KEY_BYTES_MAX};
use crate::record::{Header, Kind, Record};
use crate::table::TableFile;

/// A table that is taken in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IngestedTable {
    /// The file in `tables/`.
    pub file: TableFile,
    /// Its lowest key, keyspace byte first.
    pub first_key: Vec<u8>,
    /// Its highest key.
    pub last_key: Vec<u8>,
}

/// All tables of one record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ingest {
    /// Ascending by key; at least one, at most [`INGEST_TABLES_MAX`].
    pub tables: Vec<IngestedTable>,
}

impl Ingest {
    /// Appends the encoded body.
    pub fn encode(&self, out: &mut Vec<u8>) {
        put_varint(out, self.tables.len() as u64);
        for t in &self.tables {
            out.extend_from_slice(&t.file.id.to_le_bytes());
            put_varint(out, t.file.bytes);
            out.extend_from_slice(&t.file.blake3);
            put_varint(out, t.file.entries);
            put_slice(out, &t.first_key);
            put_slice(out, &t.last_key);
        }
    }

    /// Reads a body.
    ///
    /// # Errors
    /// `Malformed` when it ends early or late, is over a bound, or its tables are not apart and in order.
    pub fn decode(body: &[u8]) -> Result<Self, Malformed> {
        let mut c = Cursor::new(body);
        let count = c.varint()?;
        if count == 0 || count > INGEST_TABLES_MAX as u64 {
            return Err(Malformed("number of ingested tables out of bounds"));
        }
        let mut tables: Vec<IngestedTable> = Vec::new();
        for _ in 0..count {
            let file = TableFile { id: c.u128()?, bytes: c.varint()?, blake3: c.array()?, entries: c.varint()? };
            let first_key = c.slice(KEY_BYTES_MAX + 1)?.to_vec();
            let last_key = c.slice(KEY_BYTES_MAX + 1)?.to_vec();
            let apart = tables.last().is_none_or(|before| before.last_key < first_key);
            if !apart || first_key.is_empty() || first_key > last_key || file.entries == 0 {
                return Err(Malformed("ingested tables out of order"));
            }
            tables.push(IngestedTable { file, first_key, last_key });
        }
        c.finish()?;
        Ok(Self { tables })
    }
}

/// Refuses a record that brings tables in: for all who have a record and not the tables. Passing over it would lose
/// its keys without a word.
///
/// # Errors
/// `ForeignIngest`.
pub fn refuse(record: &Record<'_>) -> Result<(), Error> {
    let Header { kind, lsn, .. } = record.header;
    if kind == Kind::Ingest { Err(Error::ForeignIngest { lsn }) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn table(id: u128, first: &[u8], last: &[u8]) -> IngestedTable {
        let file = TableFile { id, bytes: 4096, blake3: [7; 32], entries: 3 };
        IngestedTable { file, first_key: first.to_vec(), last_key: last.to_vec() }
    }

    fn bytes(tables: Vec<IngestedTable>) -> Vec<u8> {
        let mut out = Vec::new();
        Ingest { tables }.encode(&mut out);
        out
    }

    #[test]
    fn tables_come_back_and_only_apart_and_in_order() {
        let good = vec![table(1, b"\x00k", b"\x00k"), table(2, b"\x01a", b"\x01c"), table(3, b"\x01d", b"\x01e")];
        assert_eq!(Ingest::decode(&bytes(good.clone())).unwrap().tables, good);
        let refused = |tables| assert!(Ingest::decode(&bytes(tables)).is_err());
        refused(Vec::new());
        refused(vec![table(1, b"\x01b", b"\x01a")]);
        refused(vec![table(1, b"", b"\x01a")]);
        refused(vec![table(1, b"\x01a", b"\x01c"), table(2, b"\x01c", b"\x01d")]);
        refused(vec![table(1, b"\x01d", b"\x01e"), table(2, b"\x01a", b"\x01b")]);
        refused((0..=INGEST_TABLES_MAX as u32).map(|n| table(1, &n.to_be_bytes(), &n.to_be_bytes())).collect());
        let whole = bytes(vec![table(1, b"\x01a", b"\x01b")]);
        assert!(Ingest::decode(&[&whole[..], b"x"].concat()).is_err());
        (0..whole.len()).for_each(|n| assert!(Ingest::decode(&whole[..n]).is_err(), "{n} bytes"));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
            let _ = Ingest::decode(&bytes);
        }
    }
}
