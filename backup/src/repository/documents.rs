//! The small JSON objects of a repository: their bytes, bounds and checks.
//!
//! Owns: text forms of typed ids, the strict document codec (decode into typed ids, encode again,
//! compare). Never: paths or names of files in a document; accepting a field it does not know.

use mainstay_engine::{Chain, ClusterId, CommitTs, Epoch, Lsn, Position, TimelineId};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use ulid::Ulid;

use super::names::{ContentHash, ObjectName, hex_bytes};
use crate::error::{Error, Result};

/// Format number of all documents.
pub const FORMAT: u32 = 1;
/// Largest document in bytes: a base of some 200 000 tables.
pub const DOCUMENT_BYTES_MAX: usize = 32 << 20;

/// A JSON object of a repository.
pub trait Document: Serialize + DeserializeOwned {
    /// Its bytes.
    ///
    /// # Errors
    /// `Damaged` naming `name` when it is larger than any reader would accept.
    fn encode(&self, name: &ObjectName) -> Result<Vec<u8>> {
        let mut bytes = serde_json::to_vec_pretty(self).map_err(|e| Error::damaged(name, e))?;
        bytes.push(b'\n');
        if bytes.len() > DOCUMENT_BYTES_MAX {
            return Err(Error::damaged(name, format!("{} bytes are over the bound of a document", bytes.len())));
        }
        Ok(bytes)
    }

    /// Reads bytes: bounded, known format, no unknown field, and encoding again gives the same bytes.
    ///
    /// # Errors
    /// `NewerFormat` or `Damaged`, naming `name`.
    fn decode(name: &ObjectName, bytes: &[u8]) -> Result<Self> {
        #[derive(Deserialize)]
        struct Head {
            format: u32,
        }
        if bytes.len() > DOCUMENT_BYTES_MAX {
            return Err(Error::damaged(name, "over the bound of a document"));
        }
        let head: Head = serde_json::from_slice(bytes).map_err(|e| Error::damaged(name, e))?;
        if head.format > FORMAT {
            return Err(Error::NewerFormat { object: name.to_string(), found: head.format, known: FORMAT });
        }
        let doc: Self = serde_json::from_slice(bytes).map_err(|e| Error::damaged(name, e))?;
        if doc.encode(name)? != bytes {
            return Err(Error::damaged(name, "its bytes are not what this program writes for its content"));
        }
        Ok(doc)
    }
}

/// `repo.json`: which cluster the repository belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RepoDoc {
    /// Format of the layout.
    pub format: u32,
    /// The owner.
    #[serde(with = "text")]
    pub cluster: ClusterId,
    /// When it was created, microseconds since the Unix epoch.
    pub created_us: u64,
    /// Hash of content-addressed objects; always `blake3`.
    pub hash: String,
}

/// `timeline/<id>.json`: where a line of history comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TimelineDoc {
    /// Format.
    pub format: u32,
    /// The cluster.
    #[serde(with = "text")]
    pub cluster: ClusterId,
    /// The timeline.
    #[serde(with = "text")]
    pub timeline: TimelineId,
    /// The timeline it continues; zero for the first one of a cluster.
    #[serde(with = "text")]
    pub parent: TimelineId,
    /// Last LSN of the parent that belongs to this history.
    #[serde(with = "number")]
    pub fork_lsn: Lsn,
    /// Chain of the parent at the fork, where the writer knew it.
    #[serde(with = "text_option")]
    pub fork_chain: Option<Chain>,
    /// First LSN of this timeline.
    #[serde(with = "number")]
    pub start_lsn: Lsn,
    /// When this document was written, microseconds since the Unix epoch.
    pub created_us: u64,
    /// What began it.
    pub cause: Cause,
}

/// Why a timeline began.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cause {
    /// The cluster was created.
    Created,
    /// A restore.
    Restore,
    /// A failover that gave up acknowledged writes.
    LossyFailover,
    /// A restore or a lossy failover: the log does not tell which.
    Forked,
    /// The archive was attached to a log whose beginning was gone; the parent is not known.
    Attached,
}

/// `fence/<timeline>/<epoch>.json`: a reign on a timeline; readers clip older epochs here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FenceDoc {
    /// Format.
    pub format: u32,
    /// The cluster.
    #[serde(with = "text")]
    pub cluster: ClusterId,
    /// The timeline.
    #[serde(with = "text")]
    pub timeline: TimelineId,
    /// The epoch.
    #[serde(with = "number")]
    pub epoch: Epoch,
    /// LSN of its first record in the archive.
    #[serde(with = "number")]
    pub start_lsn: Lsn,
    /// The position before that record.
    pub prev: PositionDoc,
    /// The node that wrote this document.
    pub node: u64,
    /// That node's incarnation.
    pub incarnation: u64,
    /// When, microseconds since the Unix epoch.
    pub created_us: u64,
}

/// A position in a document.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PositionDoc {
    /// Epoch.
    #[serde(with = "number")]
    pub epoch: Epoch,
    /// LSN.
    #[serde(with = "number")]
    pub lsn: Lsn,
    /// Chain.
    #[serde(with = "text")]
    pub chain: Chain,
    /// Commit timestamp.
    #[serde(with = "number")]
    pub ts: CommitTs,
}

impl From<Position> for PositionDoc {
    fn from(p: Position) -> Self {
        Self { epoch: p.epoch, lsn: p.lsn, chain: p.chain, ts: p.ts }
    }
}

impl From<PositionDoc> for Position {
    fn from(p: PositionDoc) -> Self {
        Self { epoch: p.epoch, lsn: p.lsn, chain: p.chain, ts: p.ts }
    }
}

/// `base/<ulid>.json`: a base backup. Only ids, hashes and sizes; never a path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BaseDoc {
    /// Format.
    pub format: u32,
    /// Name of the base.
    #[serde(with = "text")]
    pub id: Ulid,
    /// The cluster.
    #[serde(with = "text")]
    pub cluster: ClusterId,
    /// The timeline it was taken on.
    #[serde(with = "text")]
    pub timeline: TimelineId,
    /// The cut: everything up to here is in the tables.
    pub at: PositionDoc,
    /// The engine's manifest.
    pub manifest: BlobRef,
    /// The tables, in the order of the checkpoint.
    pub tables: Vec<TableRef>,
    /// The node that took it.
    pub node: u64,
    /// The program that wrote it.
    pub tool: String,
    /// When, microseconds since the Unix epoch.
    pub created_us: u64,
}

/// A content-addressed object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlobRef {
    /// Its content.
    #[serde(with = "text")]
    pub blake3: ContentHash,
    /// Its size.
    pub bytes: u64,
}

/// A table of a base.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TableRef {
    /// The engine's id; names the file in a data directory.
    #[serde(with = "text")]
    pub id: TableId,
    /// Size in bytes.
    pub bytes: u64,
    /// Its content.
    #[serde(with = "text")]
    pub blake3: ContentHash,
    /// Entries in it.
    pub entries: u64,
}

/// The engine's random id of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TableId(pub u128);

impl Document for RepoDoc {}
impl Document for TimelineDoc {}
impl Document for FenceDoc {}
impl Document for BaseDoc {}

/// A typed id with one text form.
pub(crate) trait TextForm: Sized {
    fn to_text(&self) -> String;
    fn from_text(text: &str) -> Option<Self>;
}

impl TextForm for ClusterId {
    fn to_text(&self) -> String {
        self.to_string()
    }
    fn from_text(text: &str) -> Option<Self> {
        hex_bytes::<16>(text).map(|b| Self(u128::from_be_bytes(b)))
    }
}

impl TextForm for TimelineId {
    fn to_text(&self) -> String {
        self.to_string()
    }
    fn from_text(text: &str) -> Option<Self> {
        hex_bytes::<8>(text).map(|b| Self(u64::from_be_bytes(b)))
    }
}

impl TextForm for TableId {
    fn to_text(&self) -> String {
        format!("{:032x}", self.0)
    }
    fn from_text(text: &str) -> Option<Self> {
        hex_bytes::<16>(text).map(|b| Self(u128::from_be_bytes(b)))
    }
}

impl TextForm for Chain {
    fn to_text(&self) -> String {
        self.to_string()
    }
    fn from_text(text: &str) -> Option<Self> {
        hex_bytes::<16>(text).map(Self)
    }
}

impl TextForm for ContentHash {
    fn to_text(&self) -> String {
        self.to_string()
    }
    fn from_text(text: &str) -> Option<Self> {
        Self::parse(text)
    }
}

impl TextForm for Ulid {
    fn to_text(&self) -> String {
        self.to_string()
    }
    fn from_text(text: &str) -> Option<Self> {
        Self::from_string(text).ok()
    }
}

/// Serde form of ids as text.
pub(crate) mod text {
    use super::TextForm;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(crate) fn serialize<T: TextForm, S: Serializer>(v: &T, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&v.to_text())
    }

    pub(crate) fn deserialize<'de, T: TextForm, D: Deserializer<'de>>(d: D) -> Result<T, D::Error> {
        T::from_text(&String::deserialize(d)?).ok_or_else(|| D::Error::custom("an id that is not in its text form"))
    }
}

/// Serde form of optional ids as text.
pub(crate) mod text_option {
    use super::TextForm;
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

    #[expect(clippy::ref_option, reason = "serde's `with` passes a reference to the field")]
    pub(crate) fn serialize<T: TextForm, S: Serializer>(v: &Option<T>, s: S) -> Result<S::Ok, S::Error> {
        v.as_ref().map(TextForm::to_text).serialize(s)
    }

    pub(crate) fn deserialize<'de, T: TextForm, D: Deserializer<'de>>(d: D) -> Result<Option<T>, D::Error> {
        let Some(text) = Option::<String>::deserialize(d)? else { return Ok(None) };
        T::from_text(&text).map(Some).ok_or_else(|| D::Error::custom("an id that is not in its text form"))
    }
}

/// Serde form of the engine's number newtypes.
pub(crate) mod number {
    use mainstay_engine::{CommitTs, Epoch, Lsn};
    use serde::{Deserialize, Deserializer, Serializer};

    pub(crate) trait Number: Copy {
        fn get(self) -> u64;
        fn make(v: u64) -> Self;
    }

    macro_rules! number {
        ($($t:ident)*) => {$(
            impl Number for $t {
                fn get(self) -> u64 {
                    self.0
                }
                fn make(v: u64) -> Self {
                    Self(v)
                }
            }
        )*};
    }
    number!(Lsn Epoch CommitTs);

    pub(crate) fn serialize<T: Number, S: Serializer>(v: &T, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_u64(v.get())
    }

    pub(crate) fn deserialize<'de, T: Number, D: Deserializer<'de>>(d: D) -> Result<T, D::Error> {
        u64::deserialize(d).map(T::make)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn base() -> BaseDoc {
        let hash = ContentHash([0xab; 32]);
        BaseDoc {
            format: FORMAT,
            id: Ulid(77),
            cluster: ClusterId(1),
            timeline: TimelineId(2),
            at: PositionDoc { epoch: Epoch(3), lsn: Lsn(4), chain: Chain([5; 16]), ts: CommitTs(6) },
            manifest: BlobRef { blake3: hash, bytes: 7 },
            tables: vec![TableRef { id: TableId(8), bytes: 9, blake3: hash, entries: 10 }],
            node: 11,
            tool: "mainstay 0.1.0".into(),
            created_us: 12,
        }
    }

    #[test]
    fn documents_round_trip_and_hold_no_path() {
        let name = ObjectName::Base(Ulid(77));
        let bytes = base().encode(&name).unwrap();
        assert_eq!(BaseDoc::decode(&name, &bytes).unwrap(), base());
        assert!(!String::from_utf8(bytes).unwrap().contains('/'));
    }

    #[test]
    fn a_newer_format_is_told_apart_from_damage() {
        let name = ObjectName::Repo;
        let newer = br#"{"format": 2, "cluster": "x", "something": []}"#;
        assert!(matches!(RepoDoc::decode(&name, newer), Err(Error::NewerFormat { found: 2, known: 1, .. })));
        assert!(matches!(RepoDoc::decode(&name, b"{}"), Err(Error::Damaged { .. })));
    }

    #[test]
    fn bytes_that_this_program_would_not_write_are_refused() {
        let name = ObjectName::Base(Ulid(77));
        let text = String::from_utf8(base().encode(&name).unwrap()).unwrap();
        for bad in [
            text.replace("  ", " "),
            text.replace("\"node\"", "\"extra\": 1, \"node\""),
            text.replace("abab", "ABAB"),
            format!("{text} "),
        ] {
            assert!(BaseDoc::decode(&name, bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_flipped_bit_never_decodes_to_the_same_document() {
        let name = ObjectName::Base(Ulid(77));
        let good = base().encode(&name).unwrap();
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(BaseDoc::decode(&name, &bad).map_or(true, |d| d != base()), "bit {bit}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
            let name = ObjectName::Repo;
            prop_assert!(RepoDoc::decode(&name, &bytes).is_err());
            prop_assert!(FenceDoc::decode(&name, &bytes).is_err());
        }
    }
}
