//! Promotion: from "become primary" to the first record of the new epoch.
//!
//! Owns: the candidate's side and the choice by the dual of the commit rule \[I6\]. Never: starting
//! a reign while a committed record may be missing, unless told to accept the loss \[I8\].

use std::collections::BTreeMap;

use mainstay_engine::{Epoch, Lsn, Position};

use super::{Core, Effect, Promise, Role, Sealed};
use crate::rule::{Mode, NodeId};

/// Seals collected so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidacy {
    epoch: Epoch,
    accept_loss: bool,
    sealed: BTreeMap<NodeId, Sealed>,
}

/// Why a promotion did not come about.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotPromoted {
    /// Another node has records that this one lacks.
    #[error("node {node} has newer records (epoch {}, LSN {}); promote that node", last.epoch, last.lsn)]
    Behind {
        /// The node that is ahead.
        node: NodeId,
        /// What it has.
        last: Position,
    },
    /// A voter is in a later epoch.
    #[error("epoch {epoch} is in force{}; this node follows", primary.map(|p| format!(", led by node {p}")).unwrap_or_default())]
    NewerEpoch {
        /// That epoch.
        epoch: Epoch,
        /// Who leads it.
        primary: Option<NodeId>,
    },
    /// Too few voters answered.
    #[error(
        "only nodes {have:?} answered, which does not prove that every committed record is here; \
         bring back one of {missing:?}, or promote with --accept-loss"
    )]
    NotEnough {
        /// Who sealed.
        have: Vec<u64>,
        /// Who did not.
        missing: Vec<u64>,
    },
    /// This node leads already.
    #[error("this node is the primary of epoch {0} already")]
    AlreadyPrimary(Epoch),
}

impl Core {
    pub(super) fn on_promote(&mut self, last: Position, commit: Lsn, accept_loss: bool) -> Vec<Effect> {
        if let Some(epoch) = self.leads() {
            return vec![Effect::PromotionFailed(NotPromoted::AlreadyPrimary(epoch))];
        }
        let epoch = self.promise.sealed.max(last.epoch).next();
        self.promise = Promise { sealed: epoch, primary: Some(self.me) };
        let own = Sealed { node: self.me, last, commit };
        self.role = Role::Candidate(Candidacy { epoch, accept_loss, sealed: BTreeMap::from([(self.me, own)]) });
        // This node seals itself first: from here on it follows nobody older.
        vec![Effect::Persist(self.promise), Effect::RoleChanged, Effect::SendSeals { epoch }]
    }

    pub(super) fn on_granted(&mut self, epoch: Epoch, sealed: Sealed) -> Vec<Effect> {
        match &mut self.role {
            Role::Candidate(c) if c.epoch == epoch => {
                c.sealed.insert(sealed.node, sealed);
            }
            // An answer to a candidacy that is over.
            Role::Candidate(_) | Role::Replica | Role::Primary(_) => {}
        }
        Vec::new()
    }

    pub(super) fn on_refused(&mut self, epoch: Epoch, primary: Option<NodeId>) -> Vec<Effect> {
        let rival = primary.filter(|p| *p != self.me);
        if epoch < self.promise.sealed || (epoch == self.promise.sealed && rival.is_none()) {
            return Vec::new();
        }
        // An equal epoch sealed for another candidate is a draw, which this node gives way in: it
        // will not ask for the same epoch again, and only a node that won it will ever send in it.
        let mut effects = vec![Effect::PromotionFailed(NotPromoted::NewerEpoch { epoch, primary })];
        if self.leads() == Some(epoch) {
            // This reign was sealed by a majority; a voter outside it cannot depose it.
            return Vec::new();
        }
        effects.extend(self.adopt(epoch, rival));
        effects
    }

    /// All answers that will come have come: decide.
    pub(super) fn on_seals_in(&mut self) -> Vec<Effect> {
        let Role::Candidate(c) = self.role.clone() else { return Vec::new() };
        let own = c.sealed.get(&self.me).map(|s| s.last).unwrap_or_default();
        let best = c.sealed.values().max_by_key(|s| (s.last.epoch, s.last.lsn));
        let fail = |core: &mut Self, why| {
            core.role = Role::Replica;
            vec![Effect::PromotionFailed(why), Effect::RoleChanged]
        };
        if let Some(b) = best
            && (b.last.epoch, b.last.lsn) > (own.epoch, own.lsn)
        {
            let why = NotPromoted::Behind { node: b.node, last: b.last };
            return fail(self, why);
        }
        let set = self.rule.set(c.sealed.keys().copied());
        // Who led last is not known for certain here; async, which loses by definition when its
        // primary is gone, goes by the primary that this node knows.
        let proven = match self.rule.mode() {
            Mode::Async => self.rule.may_promote(set),
            Mode::Sync | Mode::Quorum | Mode::SemiSync { .. } => self.rule.may_promote_whoever_led(set),
        };
        let enough = self.rule.is_majority(set) && proven;
        if !enough && !c.accept_loss {
            let have = c.sealed.keys().map(|n| n.0).collect();
            let missing = self.rule.voters().iter().filter(|n| !c.sealed.contains_key(n)).map(|n| n.0).collect();
            return fail(self, NotPromoted::NotEnough { have, missing });
        }
        let Ok(rule) = self.rule.with_primary(self.me) else { return Vec::new() };
        // The new reign counts on whoever sealed; the others are re-admitted when caught up.
        let rule = rule.with_in_sync(c.sealed.keys().copied());
        vec![Effect::StartEpoch { epoch: c.epoch, rule, lossy: !enough }]
    }
}
