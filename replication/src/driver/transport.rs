//! What nodes say to each other, as plain types, and the trait that carries it.
//!
//! Owns: the messages' meaning. Never: their encoding (the server maps them to its wire format) and
//! never retries; a driver decides what an error means.

use std::fmt;

use async_trait::async_trait;
use mainstay_engine::{ClusterId, Epoch, Lsn, Position, TimelineId};
use tokio::sync::mpsc;

use crate::core::Reigns;
use crate::rule::NodeId;

/// Version of the peer protocol.
pub const PROTOCOL: u32 = 1;

/// A replica introduces itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Protocol version it speaks.
    pub protocol: u32,
    /// Its cluster.
    pub cluster: ClusterId,
    /// Its timeline.
    pub timeline: TimelineId,
    /// Itself.
    pub node: NodeId,
    /// Number of its life.
    pub incarnation: u64,
    /// End of its log.
    pub last: Position,
    /// What it knows to be committed.
    pub commit: Lsn,
    /// The epoch it sealed for.
    pub sealed: Epoch,
    /// Where it answers clients.
    pub client_addr: String,
}

/// A replica's acknowledgement: everything up to `durable` is on its disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ack {
    /// The epoch it follows.
    pub epoch: Epoch,
    /// In its memory.
    pub received: Lsn,
    /// On its disk.
    pub durable: Lsn,
    /// Visible there.
    pub applied: Lsn,
    /// The primary's clock as it came with the newest message, microseconds.
    pub sent_at_us: u64,
    /// The newest round of reads that came with a message of this epoch.
    pub round: u64,
}

/// What the primary tells a replica first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Welcome {
    /// The primary's epoch.
    pub epoch: Epoch,
    /// Its cluster.
    pub cluster: ClusterId,
    /// Its timeline.
    pub timeline: TimelineId,
    /// Where it answers clients.
    pub client_addr: String,
    /// What the replica does next.
    pub next: Next,
}

/// How a replica goes on after its hello.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Records from this LSN on follow.
    Stream(Lsn),
    /// Cut the log above this LSN and say hello again.
    Truncate(Lsn),
    /// Fetch a checkpoint.
    Checkpoint,
}

/// A message from the primary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FromPrimary {
    /// The answer to the hello.
    Welcome(Welcome),
    /// Records and the commit LSN.
    Append {
        /// The primary's epoch.
        epoch: Epoch,
        /// Whole records, possibly none.
        records: Vec<u8>,
        /// The primary's commit LSN.
        commit: Lsn,
        /// The primary's clock, microseconds.
        sent_at_us: u64,
        /// The newest round of reads that waits for an answer.
        round: u64,
    },
    /// This node will not serve the replica.
    Refusal(Refusal),
}

/// Why a node does not serve a replica.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct Refusal {
    /// The kind.
    pub reason: Reason,
    /// In words, for the operator.
    pub text: String,
    /// The epoch in force at the refusing node.
    pub epoch: Epoch,
    /// Who leads it.
    pub primary: Option<NodeId>,
}

/// Kinds of refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Ask the primary.
    NotPrimary,
    /// Another cluster.
    OtherCluster,
    /// Another line of history.
    OtherTimeline,
    /// The replica holds committed records that the primary does not.
    Diverged,
    /// The protocol versions do not meet.
    Protocol,
}

/// A candidate's request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SealRequest {
    /// The candidate's cluster; zero when it has none yet.
    pub cluster: ClusterId,
    /// The epoch to seal for; zero only asks who is there.
    pub epoch: Epoch,
    /// Who asks.
    pub candidate: NodeId,
    /// Nothing can have been committed on the candidate's timeline yet.
    pub fresh: bool,
}

impl SealRequest {
    /// A question that seals nobody.
    #[must_use]
    pub const fn who_is_there(candidate: NodeId) -> Self {
        Self { cluster: ClusterId(0), epoch: Epoch(0), candidate, fresh: false }
    }
}

/// A voter's answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SealReply {
    /// Whether it sealed.
    pub granted: bool,
    /// The epoch in force there.
    pub epoch: Epoch,
    /// Its newest durable record.
    pub last: Position,
    /// What it knows to be committed.
    pub commit: Lsn,
    /// Its cluster; zero when it has no data.
    pub cluster: ClusterId,
    /// Its timeline.
    pub timeline: TimelineId,
    /// Who leads the epoch in force, as far as it knows.
    pub primary: Option<NodeId>,
    /// Whether its word about its log counts.
    pub speaks: bool,
    /// Who may have led, as far as it knows.
    pub reigns: Reigns,
}

/// Parts of a checkpoint on their way to a new replica, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CheckpointPart {
    /// First.
    Start {
        /// Cluster and timeline to adopt.
        cluster: ClusterId,
        /// The timeline.
        timeline: TimelineId,
        /// Where the log goes on.
        position: Position,
        /// End of the primary's log when it was asked.
        end: Lsn,
        /// The manifest's bytes.
        manifest: Vec<u8>,
        /// Bytes of all tables.
        total_bytes: u64,
    },
    /// A table begins.
    Table {
        /// Its id.
        id: u128,
        /// Its length in bytes.
        bytes: u64,
        /// Its BLAKE3 hash.
        blake3: [u8; 32],
    },
    /// Bytes of the table that began last.
    Data(Vec<u8>),
}

/// A replica asks its primary whether it would get a seed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SeedRequest {
    /// Its cluster.
    pub cluster: ClusterId,
    /// Itself.
    pub node: NodeId,
    /// Its life that ends with the seed.
    pub incarnation: u64,
    /// Whether it gives its data up when this is answered; else it only asks.
    pub grant: bool,
    /// Also when without it too few nodes hold what is committed.
    pub accept_fewer: bool,
}

/// What a seed would be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SeedOffer {
    /// Bytes of tables, and of what is not in tables yet.
    pub bytes: u64,
}

/// A peer could not be reached or broke off.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("peer {node}: {what}")]
pub struct TransportError {
    /// Which peer.
    pub node: NodeId,
    /// What happened.
    pub what: String,
}

/// Carries messages between nodes. Implementations set deadlines on every call and keep-alives on
/// every connection.
#[async_trait]
pub trait Transport: Send + Sync + fmt::Debug + 'static {
    /// Opens a replication stream to `peer`: acknowledgements go in, messages come out.
    async fn replicate(
        &self,
        peer: NodeId,
        hello: Hello,
    ) -> Result<(mpsc::Sender<Ack>, mpsc::Receiver<Result<FromPrimary, TransportError>>), TransportError>;

    /// Asks `peer` to seal.
    async fn seal(&self, peer: NodeId, request: SealRequest) -> Result<SealReply, TransportError>;

    /// Asks `peer` to become primary.
    async fn promote(&self, peer: NodeId) -> Result<(), TransportError>;

    /// Asks `peer` for a seed; an error with its reason if it would give none.
    async fn offer_seed(&self, peer: NodeId, request: SeedRequest) -> Result<SeedOffer, TransportError>;

    /// Fetches a checkpoint from `peer` for this node, `me`.
    async fn fetch_checkpoint(
        &self,
        peer: NodeId,
        cluster: ClusterId,
        me: NodeId,
    ) -> Result<mpsc::Receiver<Result<CheckpointPart, TransportError>>, TransportError>;

    /// Fetches the table with this id and hash from `peer`, in parts; an error if it has none.
    async fn fetch_table(
        &self,
        peer: NodeId,
        cluster: ClusterId,
        id: u128,
        blake3: [u8; 32],
    ) -> Result<mpsc::Receiver<Result<Vec<u8>, TransportError>>, TransportError>;
}
