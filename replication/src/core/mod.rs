//! The replication core: a state machine without I/O. Events go in, effects come out.
//!
//! Owns: roles, epochs, the commit LSN of a primary, what a voter promised. Never: waits, time,
//! files or sockets; the same events give the same effects, byte for byte. Each transition family
//! has its own file; this one only dispatches.

mod primary;
mod promote;
mod reigns;
mod replica;
mod seal;

use std::collections::BTreeMap;

use mainstay_engine::{Epoch, Lsn, Position};

pub use primary::ReplicaProgress;
pub use promote::{Candidacy, NotPromoted};
pub use reigns::Reigns;
pub use seal::SealAnswer;

use crate::rule::{NodeId, Rule};

/// What a node must remember across restarts, written before anything that relies on it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Promise {
    /// Every message of an epoch below this one is refused \[I5\].
    pub sealed: Epoch,
    /// The node that leads, or tries to lead, the sealed epoch.
    pub primary: Option<NodeId>,
    /// Who may have led since the last reign that is known to have begun.
    pub reigns: Reigns,
}

/// A candidate's view of one sealed voter (or of itself).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sealed {
    /// The voter.
    pub node: NodeId,
    /// Its newest durable record.
    pub last: Position,
    /// What it knows to be committed.
    pub commit: Lsn,
    /// Whether its word about its log counts: false for one that cannot say what it held before (a
    /// replaced disk, data not open yet, a seed that has not caught up). Its promise counts anyway.
    pub speaks: bool,
    /// Whom it knows to have led, or sealed for.
    pub reigns: Reigns,
}

/// How an operator wants a promotion.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Terms {
    /// Go on although committed records may be missing.
    pub accept_loss: bool,
    /// Voters that will never come back with the data and the promises they had: the operator's word
    /// stands for theirs.
    pub destroyed: Vec<NodeId>,
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// This node's log is durable up to here.
    Durable(Lsn),
    /// A candidate asks this node to refuse older epochs.
    SealRequest {
        /// The epoch to seal for.
        epoch: Epoch,
        /// Who asks.
        candidate: NodeId,
        /// This node's newest durable record.
        last: Position,
        /// What this node knows to be committed.
        commit: Lsn,
    },
    /// This node is to become primary.
    Promote {
        /// This node's newest durable record.
        last: Position,
        /// What this node knows to be committed.
        commit: Lsn,
        /// Whether this node's own word about its log counts, see [`Sealed::speaks`].
        speaks: bool,
        /// On what terms.
        terms: Terms,
    },
    /// A voter sealed for this candidate.
    SealGranted {
        /// The epoch it sealed for.
        epoch: Epoch,
        /// What it has.
        sealed: Sealed,
    },
    /// A voter refused: it has sealed for this or a later epoch.
    SealRefused {
        /// The epoch in force there.
        epoch: Epoch,
        /// Who leads it, as far as it knows.
        primary: Option<NodeId>,
    },
    /// No further seal replies will come.
    SealsIn,
    /// The `EpochStart` record of this node's new reign is in its log.
    EpochStarted {
        /// The epoch.
        epoch: Epoch,
        /// Its place.
        start: Lsn,
    },
    /// A replica reports progress.
    Ack {
        /// The replica.
        node: NodeId,
        /// The epoch it follows.
        epoch: Epoch,
        /// Durable there up to here.
        durable: Lsn,
        /// The newest round of reads it has answered.
        round: u64,
    },
    /// A replica's stream ended.
    Disconnected {
        /// The replica.
        node: NodeId,
    },
    /// A primary's message reached this replica.
    FromPrimary {
        /// Its epoch.
        epoch: Epoch,
        /// Who it is.
        primary: NodeId,
        /// Its commit LSN.
        commit: Lsn,
        /// End of this replica's log.
        last: Lsn,
    },
}

/// Something the driver must do, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Make this durable before carrying out what follows.
    Persist(Promise),
    /// The answer to a `SealRequest`.
    Answer(SealAnswer),
    /// Ask all other voters to seal.
    SendSeals {
        /// The epoch.
        epoch: Epoch,
    },
    /// Append the `EpochStart` record, then report `EpochStarted`.
    StartEpoch {
        /// The new epoch.
        epoch: Epoch,
        /// The rule of the new reign.
        rule: Rule,
        /// Committed records may be missing: start a new timeline \[I8\].
        lossy: bool,
    },
    /// The promotion did not come about.
    PromotionFailed(NotPromoted),
    /// Raise this node's commit LSN.
    Commit(Lsn),
    /// When this round of reads began, no other node had been promoted.
    Confirmed(u64),
    /// Accept the records that came with the message.
    Accept,
    /// Refuse the message: a newer epoch is in force.
    Refuse {
        /// The epoch in force.
        epoch: Epoch,
        /// Who leads it.
        primary: Option<NodeId>,
    },
    /// The role changed; waiters of a fenced primary become indeterminate.
    RoleChanged,
}

/// What a node is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    /// Follows, or looks for, a primary.
    Replica,
    /// Collects seals.
    Candidate(Candidacy),
    /// Orders writes.
    Primary(primary::Reign),
}

/// The state machine of one node.
#[derive(Clone, Debug)]
pub struct Core {
    me: NodeId,
    /// Mode, voters and the in-sync set of the newest epoch known; its primary is that epoch's.
    rule: Rule,
    promise: Promise,
    role: Role,
    progress: BTreeMap<NodeId, ReplicaProgress>,
}

impl Core {
    /// A node that follows until told otherwise. `promise` is what it persisted last.
    #[must_use]
    pub fn new(me: NodeId, rule: Rule, promise: Promise) -> Self {
        Self { me, rule, promise, role: Role::Replica, progress: BTreeMap::new() }
    }

    /// This node.
    #[must_use]
    pub const fn me(&self) -> NodeId {
        self.me
    }

    /// The rule in force, as far as known.
    #[must_use]
    pub const fn rule(&self) -> &Rule {
        &self.rule
    }

    /// What this node promised.
    #[must_use]
    pub const fn promise(&self) -> &Promise {
        &self.promise
    }

    /// What this node is.
    #[must_use]
    pub const fn role(&self) -> &Role {
        &self.role
    }

    /// The epoch this node leads, once its `EpochStart` record is in the log.
    #[must_use]
    pub fn leads(&self) -> Option<Epoch> {
        match &self.role {
            Role::Primary(r) => Some(r.epoch()),
            Role::Replica | Role::Candidate(_) => None,
        }
    }

    /// What the replicas of this primary reported.
    #[must_use]
    pub const fn progress(&self) -> &BTreeMap<NodeId, ReplicaProgress> {
        &self.progress
    }

    /// Takes one event; the effects are to be carried out in order.
    pub fn step(&mut self, event: Event) -> Vec<Effect> {
        match event {
            Event::Durable(lsn) => self.on_durable(lsn),
            Event::SealRequest { epoch, candidate, last, commit } => self.on_seal(epoch, candidate, last, commit),
            Event::Promote { last, commit, speaks, terms } => self.on_promote(last, commit, speaks, terms),
            Event::SealGranted { epoch, sealed } => self.on_granted(epoch, sealed),
            Event::SealRefused { epoch, primary } => self.on_refused(epoch, primary),
            Event::SealsIn => self.on_seals_in(),
            Event::EpochStarted { epoch, start } => self.on_epoch_started(epoch, start),
            Event::Ack { node, epoch, durable, round } => self.on_ack(node, epoch, durable, round),
            Event::Disconnected { node } => self.on_disconnected(node),
            Event::FromPrimary { epoch, primary, commit, last } => self.on_from_primary(epoch, primary, commit, last),
        }
    }
}

#[cfg(test)]
mod tests;
