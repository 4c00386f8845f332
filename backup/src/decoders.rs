//! The repository's decoders for fuzzing, see [`mainstay_engine::decoders`].
//!
//! Owns: the list. Never: part of a build without feature `sim`.

use mainstay_engine::decoders::Decoder;
use mainstay_engine::lsn::{Chain, ClusterId, CommitTs, Epoch, Lsn, Position, TimelineId};
use mainstay_engine::record::{Header, Kind, Record, encode};
use ulid::Ulid;

use crate::repository::documents::{
    BaseDoc, BlobRef, Cause, Document, FORMAT, FenceDoc, RepoDoc, TableId, TableRef, TimelineDoc,
};
use crate::repository::names::{ContentHash, ObjectName, WalName};
use crate::wal_object::{Draft, HEADER_BYTES, WalHeader, WalObject, Writer};

const CLUSTER: ClusterId = ClusterId(7);
const TIMELINE: TimelineId = TimelineId(9);

/// All decoders of this crate.
#[must_use]
pub fn all() -> Vec<Decoder> {
    vec![
        Decoder::new("wal_object", wal_object, || vec![sample_object()]),
        Decoder::new("wal_object_header", wal_object_header, || vec![sample_object()[..HEADER_BYTES].to_vec()]),
        Decoder::new("object_name", object_name, object_name_seeds),
        Decoder::new("repo_document", document::<RepoDoc>, || vec![encoded(&repo())]),
        Decoder::new("timeline_document", document::<TimelineDoc>, || vec![encoded(&timeline())]),
        Decoder::new("fence_document", document::<FenceDoc>, || vec![encoded(&fence())]),
        Decoder::new("base_document", document::<BaseDoc>, || vec![encoded(&base())]),
    ]
}

/// Makes the sum at `at` right.
fn mend(bytes: &mut [u8], at: usize) {
    if let Some((head, rest)) = bytes.split_at_mut_checked(at)
        && let Some(to) = rest.first_chunk_mut::<32>()
    {
        *to = *blake3::hash(head).as_bytes();
    }
}

fn wal_object(bytes: &[u8]) -> bool {
    let mut mended = bytes.to_vec();
    // The length of the body, so that it is not only one length that gets any further.
    if let Some(stored) = bytes.len().checked_sub(HEADER_BYTES + 32) {
        mended[152..160].copy_from_slice(&(stored as u64).to_le_bytes());
    }
    mend(&mut mended, HEADER_BYTES - 32);
    mend(&mut mended, bytes.len().saturating_sub(32));
    walk(&mended);
    walk(bytes)
}

fn walk(bytes: &[u8]) -> bool {
    let Ok(object) = WalObject::decode(bytes) else { return false };
    assert_eq!(object.raw.len() as u64, object.header.raw_bytes);
    assert!(object.same_content(&object));
    let mut records = 0;
    let walked = object.each::<mainstay_engine::Error>(|_| {
        records += 1;
        Ok(())
    });
    assert!(records <= object.raw.len());
    walked.is_ok()
}

fn wal_object_header(bytes: &[u8]) -> bool {
    let mut mended = bytes.to_vec();
    mend(&mut mended, HEADER_BYTES - 32);
    let _ = WalHeader::decode(&mended).map(|h| h.end());
    WalHeader::decode(bytes).is_ok()
}

fn sample_object() -> Vec<u8> {
    let writer = Writer { cluster: CLUSTER, timeline: TIMELINE, epoch: Epoch(1), node: 1, incarnation: 2 };
    let mut draft = Draft::new(Position::default(), 1 << 20);
    let mut chain = Chain::default();
    for n in 1..=12 {
        let kind = if n == 1 { Kind::EpochStart } else { Kind::Batch };
        let header = Header { kind, epoch: Epoch(1), lsn: Lsn(n), ts: CommitTs(100 + n), session: 0, sequence: 0 };
        let (mut bytes, body) = (Vec::new(), if n == 1 { Vec::new() } else { format!("record {n}").into_bytes() });
        chain = encode(&mut bytes, chain, &header, |out| out.extend_from_slice(&body));
        let pushed = Record::decode(&bytes).and_then(|r| draft.push(&r));
        assert_eq!(pushed, Ok(true), "each record continues the one before");
    }
    draft.finish(&writer).map(|(_, bytes)| bytes.to_vec()).unwrap_or_default()
}

fn object_name(bytes: &[u8]) -> bool {
    let Some(name) = std::str::from_utf8(bytes).ok().and_then(ObjectName::parse) else { return false };
    assert_eq!((name.to_string().as_bytes(), name.path().as_ref().as_bytes()), (bytes, bytes));
    true
}

fn object_name_seeds() -> Vec<Vec<u8>> {
    let wal = WalName { timeline: TIMELINE, epoch: Epoch(3), first: Lsn(1), last: Lsn(u64::MAX) };
    let (hash, ulid) = (ContentHash([0xab; 32]), Ulid(1 << 120));
    [
        ObjectName::Repo,
        ObjectName::Timeline(TIMELINE),
        ObjectName::Fence(TIMELINE, Epoch(3)),
        ObjectName::Wal(wal),
        ObjectName::Table(hash),
        ObjectName::Manifest(hash),
        ObjectName::Base(ulid),
        ObjectName::Probe(ulid),
    ]
    .map(|n| n.to_string().into_bytes())
    .into()
}

fn document<D: Document>(bytes: &[u8]) -> bool {
    let Ok(doc) = D::decode(&ObjectName::Repo, bytes) else { return false };
    assert!(doc.encode(&ObjectName::Repo).is_ok_and(|again| again == bytes));
    true
}

fn encoded(doc: &impl Document) -> Vec<u8> {
    doc.encode(&ObjectName::Repo).unwrap_or_default()
}

fn repo() -> RepoDoc {
    RepoDoc { format: FORMAT, cluster: CLUSTER, created_us: 1_000_000, hash: "blake3".into() }
}

fn timeline() -> TimelineDoc {
    TimelineDoc {
        format: FORMAT,
        cluster: CLUSTER,
        timeline: TIMELINE,
        parent: TimelineId(8),
        fork_lsn: Lsn(400),
        fork_chain: Some(Chain([5; 16])),
        start_lsn: Lsn(1 << 32),
        created_us: 1_000_000,
        cause: Cause::LossyFailover,
    }
}

fn position() -> Position {
    Position { epoch: Epoch(3), lsn: Lsn(400), chain: Chain([5; 16]), ts: CommitTs(1_000_000) }
}

fn fence() -> FenceDoc {
    FenceDoc {
        format: FORMAT,
        cluster: CLUSTER,
        timeline: TIMELINE,
        epoch: Epoch(4),
        start_lsn: Lsn(401),
        prev: position().into(),
        node: 1,
        incarnation: 2,
        created_us: 1_000_000,
    }
}

fn base() -> BaseDoc {
    let blake3 = ContentHash([0xab; 32]);
    BaseDoc {
        format: FORMAT,
        id: Ulid(1 << 120),
        cluster: CLUSTER,
        timeline: TIMELINE,
        at: position().into(),
        manifest: BlobRef { blake3, bytes: 300 },
        tables: vec![TableRef { id: TableId(7), bytes: 4096, blake3, entries: 30 }],
        node: 1,
        tool: "mainstay 0.1.0".into(),
        created_us: 1_000_000,
    }
}
