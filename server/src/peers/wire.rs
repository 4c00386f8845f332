//! Transport types to wire messages and back.
//!
//! Owns: the mapping; every length from a peer is checked. Never: I/O.

use mainstay_engine::{Chain, ClusterId, CommitTs, Epoch, Lsn, Position, TimelineId};
use mainstay_proto::v1;
use mainstay_replication::core::Reigns;
use mainstay_replication::driver::{
    Ack, CheckpointPart, FromPrimary, Hello, Next, Reason, Refusal, SealReply, SealRequest, SeedRequest, Welcome,
};
use mainstay_replication::rule::NodeId;

/// A message of a peer that cannot be understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed message: {0}")]
pub(super) struct Malformed(&'static str);

fn fixed<const N: usize>(bytes: &[u8], what: &'static str) -> Result<[u8; N], Malformed> {
    bytes.try_into().map_err(|_| Malformed(what))
}

pub(super) fn cluster_bytes(c: ClusterId) -> Vec<u8> {
    if c == ClusterId(0) { Vec::new() } else { c.0.to_be_bytes().to_vec() }
}

pub(super) fn cluster(bytes: &[u8]) -> Result<ClusterId, Malformed> {
    if bytes.is_empty() {
        return Ok(ClusterId(0));
    }
    fixed::<16>(bytes, "cluster id").map(|b| ClusterId(u128::from_be_bytes(b)))
}

/// The id and the hash of a table.
pub(super) fn table(id: &[u8], blake3: &[u8]) -> Result<(u128, [u8; 32]), Malformed> {
    Ok((u128::from_be_bytes(fixed(id, "table id")?), fixed(blake3, "table hash")?))
}

fn node(id: u64) -> Option<NodeId> {
    (id != 0).then_some(NodeId(id))
}

fn from_position(p: &Position) -> v1::LogPosition {
    v1::LogPosition { epoch: p.epoch.0, lsn: p.lsn.0, chain: p.chain.0.to_vec().into(), commit_ts_us: p.ts.0 }
}

fn position(p: Option<v1::LogPosition>) -> Result<Position, Malformed> {
    let Some(p) = p else { return Ok(Position::default()) };
    let chain = if p.chain.is_empty() { Chain::default() } else { Chain(fixed(&p.chain, "chain hash")?) };
    Ok(Position { epoch: Epoch(p.epoch), lsn: Lsn(p.lsn), chain, ts: CommitTs(p.commit_ts_us) })
}

pub(super) fn from_hello(h: &Hello) -> v1::Hello {
    v1::Hello {
        protocol: h.protocol,
        cluster_id: cluster_bytes(h.cluster).into(),
        timeline: h.timeline.0,
        node_id: h.node.0,
        incarnation: h.incarnation,
        last: Some(from_position(&h.last)),
        commit_lsn: h.commit.0,
        sealed_epoch: h.sealed.0,
        client_addr: h.client_addr.clone(),
    }
}

pub(super) fn hello(h: v1::Hello) -> Result<Hello, Malformed> {
    Ok(Hello {
        protocol: h.protocol,
        cluster: cluster(&h.cluster_id)?,
        timeline: TimelineId(h.timeline),
        node: node(h.node_id).ok_or(Malformed("node id 0"))?,
        incarnation: h.incarnation,
        last: position(h.last)?,
        commit: Lsn(h.commit_lsn),
        sealed: Epoch(h.sealed_epoch),
        client_addr: h.client_addr,
    })
}

pub(super) fn from_ack(a: &Ack) -> v1::ReplicaAck {
    v1::ReplicaAck {
        epoch: a.epoch.0,
        received_lsn: a.received.0,
        durable_lsn: a.durable.0,
        applied_lsn: a.applied.0,
        sent_at_us: a.sent_at_us,
        round: a.round,
    }
}

pub(super) fn ack(a: v1::ReplicaAck) -> Ack {
    Ack {
        epoch: Epoch(a.epoch),
        received: Lsn(a.received_lsn),
        durable: Lsn(a.durable_lsn),
        applied: Lsn(a.applied_lsn),
        sent_at_us: a.sent_at_us,
        round: a.round,
    }
}

fn reason_word(r: Reason) -> &'static str {
    match r {
        Reason::NotPrimary => "not_primary",
        Reason::OtherCluster => "other_cluster",
        Reason::OtherTimeline => "other_timeline",
        Reason::Diverged => "diverged",
        Reason::Protocol => "protocol",
    }
}

fn reason(word: &str) -> Reason {
    match word {
        "other_cluster" => Reason::OtherCluster,
        "other_timeline" => Reason::OtherTimeline,
        "diverged" => Reason::Diverged,
        "protocol" => Reason::Protocol,
        _ => Reason::NotPrimary,
    }
}

pub(super) fn from_primary(m: FromPrimary) -> v1::PrimaryMessage {
    use v1::primary_message::Message;
    use v1::welcome::Next as WireNext;
    let message = match m {
        FromPrimary::Welcome(w) => Message::Welcome(v1::Welcome {
            epoch: w.epoch.0,
            cluster_id: cluster_bytes(w.cluster).into(),
            timeline: w.timeline.0,
            client_addr: w.client_addr,
            next: Some(match w.next {
                Next::Stream(from) => WireNext::StreamFrom(from.0),
                Next::Truncate(to) => WireNext::TruncateTo(to.0),
                Next::Checkpoint => WireNext::NeedCheckpoint(true),
            }),
        }),
        FromPrimary::Append { epoch, records, commit, sent_at_us, round } => Message::Append(v1::Append {
            epoch: epoch.0,
            records: records.into(),
            commit_lsn: commit.0,
            sent_at_us,
            round,
        }),
        FromPrimary::Refusal(r) => Message::Refusal(from_refusal(&r)),
    };
    v1::PrimaryMessage { message: Some(message) }
}

pub(super) fn from_refusal(r: &Refusal) -> v1::Refusal {
    v1::Refusal {
        reason: reason_word(r.reason).to_owned(),
        text: r.text.clone(),
        epoch: r.epoch.0,
        primary_id: r.primary.map_or(0, |p| p.0),
        primary_addr: String::new(),
    }
}

pub(super) fn primary_message(m: v1::PrimaryMessage) -> Result<FromPrimary, Malformed> {
    use v1::primary_message::Message;
    use v1::welcome::Next as WireNext;
    Ok(match m.message.ok_or(Malformed("empty message"))? {
        Message::Welcome(w) => FromPrimary::Welcome(Welcome {
            epoch: Epoch(w.epoch),
            cluster: cluster(&w.cluster_id)?,
            timeline: TimelineId(w.timeline),
            client_addr: w.client_addr,
            next: match w.next.ok_or(Malformed("welcome without a next step"))? {
                WireNext::StreamFrom(from) => Next::Stream(Lsn(from)),
                WireNext::TruncateTo(to) => Next::Truncate(Lsn(to)),
                WireNext::NeedCheckpoint(_) => Next::Checkpoint,
            },
        }),
        Message::Append(a) => FromPrimary::Append {
            epoch: Epoch(a.epoch),
            records: a.records.to_vec(),
            commit: Lsn(a.commit_lsn),
            sent_at_us: a.sent_at_us,
            round: a.round,
        },
        Message::Refusal(r) => FromPrimary::Refusal(Refusal {
            reason: reason(&r.reason),
            text: r.text,
            epoch: Epoch(r.epoch),
            primary: node(r.primary_id),
        }),
    })
}

pub(super) fn from_seal_request(r: &SealRequest) -> v1::SealRequest {
    v1::SealRequest {
        cluster_id: cluster_bytes(r.cluster).into(),
        epoch: r.epoch.0,
        candidate_id: r.candidate.0,
        candidate_addr: String::new(),
        fresh: r.fresh,
    }
}

pub(super) fn seal_request(r: &v1::SealRequest) -> Result<SealRequest, Malformed> {
    let candidate = node(r.candidate_id).ok_or(Malformed("candidate id 0"))?;
    Ok(SealRequest { cluster: cluster(&r.cluster_id)?, epoch: Epoch(r.epoch), candidate, fresh: r.fresh })
}

pub(super) fn from_seal_reply(r: &SealReply, me: NodeId) -> v1::SealResponse {
    v1::SealResponse {
        sealed: r.granted,
        epoch: r.epoch.0,
        last_durable: Some(from_position(&r.last)),
        commit_lsn: r.commit.0,
        timeline: r.timeline.0,
        node_id: me.0,
        cluster_id: cluster_bytes(r.cluster).into(),
        primary_id: r.primary.map_or(0, |p| p.0),
        primary_addr: String::new(),
        speaks: r.speaks,
        begun_epoch: r.reigns.begun().0,
        may_have_led: r.reigns.led().map(|(node, epoch)| v1::Reign { node_id: node.0, epoch: epoch.0 }).collect(),
    }
}

/// Most nodes that a voter may name; more than there can be voters.
const LED_MAX: usize = 64;

pub(super) fn seal_reply(r: v1::SealResponse) -> Result<SealReply, Malformed> {
    if r.may_have_led.len() > LED_MAX {
        return Err(Malformed("too many nodes that may have led"));
    }
    Ok(SealReply {
        granted: r.sealed,
        epoch: Epoch(r.epoch),
        last: position(r.last_durable)?,
        commit: Lsn(r.commit_lsn),
        cluster: cluster(&r.cluster_id)?,
        timeline: TimelineId(r.timeline),
        primary: node(r.primary_id),
        speaks: r.speaks,
        reigns: Reigns::from_parts(
            Epoch(r.begun_epoch),
            r.may_have_led.iter().map(|l| (NodeId(l.node_id), Epoch(l.epoch))),
        ),
    })
}

pub(super) fn from_seed_request(r: &SeedRequest) -> v1::OfferSeedRequest {
    v1::OfferSeedRequest {
        cluster_id: cluster_bytes(r.cluster).into(),
        node_id: r.node.0,
        incarnation: r.incarnation,
        grant: r.grant,
        accept_fewer: r.accept_fewer,
    }
}

pub(super) fn seed_request(r: &v1::OfferSeedRequest) -> Result<SeedRequest, Malformed> {
    Ok(SeedRequest {
        cluster: cluster(&r.cluster_id)?,
        node: node(r.node_id).ok_or(Malformed("node id 0"))?,
        incarnation: r.incarnation,
        grant: r.grant,
        accept_fewer: r.accept_fewer,
    })
}

pub(super) fn from_part(part: CheckpointPart) -> v1::CheckpointChunk {
    use v1::checkpoint_chunk::Chunk;
    let chunk = match part {
        CheckpointPart::Start { cluster, timeline, position, end, manifest, total_bytes } => {
            Chunk::Start(v1::CheckpointStart {
                position: Some(from_position(&position)),
                manifest: manifest.into(),
                total_bytes,
                cluster_id: cluster_bytes(cluster).into(),
                timeline: timeline.0,
                end_lsn: end.0,
            })
        }
        CheckpointPart::Table { id, bytes, blake3 } => Chunk::Table(v1::CheckpointTable {
            id: id.to_be_bytes().to_vec().into(),
            bytes,
            blake3: blake3.to_vec().into(),
        }),
        CheckpointPart::Data(data) => Chunk::Data(data.into()),
    };
    v1::CheckpointChunk { chunk: Some(chunk) }
}

pub(super) fn part(c: v1::CheckpointChunk) -> Result<CheckpointPart, Malformed> {
    use v1::checkpoint_chunk::Chunk;
    Ok(match c.chunk.ok_or(Malformed("empty chunk"))? {
        Chunk::Start(s) => CheckpointPart::Start {
            cluster: cluster(&s.cluster_id)?,
            timeline: TimelineId(s.timeline),
            position: position(s.position)?,
            end: Lsn(s.end_lsn),
            manifest: s.manifest.to_vec(),
            total_bytes: s.total_bytes,
        },
        Chunk::Table(t) => CheckpointPart::Table {
            id: u128::from_be_bytes(fixed(&t.id, "table id")?),
            bytes: t.bytes,
            blake3: fixed(&t.blake3, "table hash")?,
        },
        Chunk::Data(d) => CheckpointPart::Data(d.to_vec()),
    })
}
