//! Promotion: from "become primary" to the first record of the new epoch.
//!
//! Owns: the candidate's side and the choice by the dual of the commit rule \[I6\]. Never: starting
//! a reign while a committed record may be missing, unless told to accept the loss \[I8\]; nor without
//! the promises of a majority, which an operator can only replace by naming destroyed voters.

use std::collections::BTreeMap;

use mainstay_engine::{Epoch, Lsn, Position};

use super::{Core, Effect, Reigns, Role, Sealed, Terms};
use crate::rule::{Mode, NodeId};

/// Seals collected so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidacy {
    epoch: Epoch,
    terms: Terms,
    sealed: BTreeMap<NodeId, Sealed>,
}

impl Candidacy {
    /// A candidacy in which only the candidate itself has sealed.
    #[must_use]
    pub fn new(epoch: Epoch, terms: Terms, own: Sealed) -> Self {
        Self { epoch, terms, sealed: BTreeMap::from([(own.node, own)]) }
    }

    /// Its epoch.
    #[must_use]
    pub const fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Adds a voter's answer.
    pub fn add(&mut self, sealed: Sealed) {
        self.sealed.insert(sealed.node, sealed);
    }

    fn speaking(&self) -> impl Iterator<Item = &Sealed> + Clone {
        self.sealed.values().filter(|s| s.speaks)
    }
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
    /// Fewer voters than a majority answered.
    #[error(
        "only nodes {have:?} answered, fewer than a majority, so another primary could live on among {missing:?}; \
         bring back one of those, or, if they are gone for good, promote with --accept-loss --destroyed {}",
        list(missing)
    )]
    NoMajority {
        /// Who answered.
        have: Vec<u64>,
        /// Who did not.
        missing: Vec<u64>,
    },
    /// The voters that answered do not prove that nothing committed is missing.
    #[error(
        "nodes {have:?} answered, which does not prove that every committed record is here; \
         bring back one of {missing:?}, or promote with --accept-loss"
    )]
    NotProven {
        /// Whose word counts.
        have: Vec<u64>,
        /// Whose does not, or who did not answer.
        missing: Vec<u64>,
    },
    /// This node leads already.
    #[error("this node is the primary of epoch {0} already")]
    AlreadyPrimary(Epoch),
    /// The voters were asked to seal, and then it failed.
    #[error(
        "the promotion to epoch {epoch} began but is not done: {why}; node {node} goes on trying, and the promotion of \
         another node ends that"
    )]
    Unfinished {
        /// The new epoch, in which nobody leads yet.
        epoch: Epoch,
        /// The candidate.
        node: NodeId,
        /// What keeps it.
        why: Box<NotPromoted>,
    },
}

fn list(nodes: &[u64]) -> String {
    nodes.iter().map(u64::to_string).collect::<Vec<_>>().join(",")
}

impl Core {
    pub(super) fn on_promote(&mut self, last: Position, commit: Lsn, speaks: bool, terms: Terms) -> Vec<Effect> {
        if let Some(epoch) = self.leads()
            && self.can_commit()
        {
            return vec![Effect::PromotionFailed(NotPromoted::AlreadyPrimary(epoch))];
        }
        let epoch = self.promise.sealed.max(last.epoch).next();
        (self.promise.sealed, self.promise.primary) = (epoch, Some(self.me));
        let own = Sealed { node: self.me, last, commit, speaks, reigns: self.promise.reigns.clone() };
        self.role = Role::Candidate(Candidacy::new(epoch, terms, own));
        // This node seals itself first: from here on it follows nobody older.
        vec![Effect::Persist(self.promise.clone()), Effect::RoleChanged, Effect::SendSeals { epoch }]
    }

    pub(super) fn on_granted(&mut self, epoch: Epoch, sealed: Sealed) -> Vec<Effect> {
        match &mut self.role {
            Role::Candidate(c) if c.epoch == epoch => c.add(sealed),
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
        if self.leads() == Some(epoch) {
            // This reign was sealed by a majority; a voter outside it cannot depose it.
            return Vec::new();
        }
        if let Some(rival) = rival {
            // Hearsay, but that node may have won.
            self.promise.reigns.sealed_for(rival, epoch);
        }
        // An equal epoch sealed for another candidate is a draw, which this node gives way in: it
        // will not ask for the same epoch again, and only a node that won it will ever send in it.
        let mut effects = vec![Effect::PromotionFailed(NotPromoted::NewerEpoch { epoch, primary })];
        effects.extend(self.adopt(epoch, rival));
        effects
    }

    /// All answers that will come have come: decide.
    pub(super) fn on_seals_in(&mut self) -> Vec<Effect> {
        let Role::Candidate(c) = self.role.clone() else { return Vec::new() };
        let lossy = match self.judge(&c) {
            Ok(lossy) => lossy,
            Err(why) => {
                self.role = Role::Replica;
                return vec![Effect::PromotionFailed(why), Effect::RoleChanged];
            }
        };
        let Ok(rule) = self.rule.with_primary(self.me) else { return Vec::new() };
        // The new reign counts on whoever sealed; the others are re-admitted when caught up.
        let rule = rule.with_in_sync(c.sealed.keys().copied());
        vec![Effect::StartEpoch { epoch: c.epoch, rule, lossy }]
    }

    /// Whether these answers make this node primary; `Ok(true)` when committed records may be missing
    /// and the operator accepted that. Changes nothing.
    ///
    /// # Errors
    /// What stands against it.
    pub fn judge(&self, c: &Candidacy) -> Result<bool, NotPromoted> {
        let own = c.sealed.get(&self.me).map(|s| s.last).unwrap_or_default();
        let best = c.speaking().max_by_key(|s| (s.last.epoch, s.last.lsn));
        if let Some(b) = best
            && (b.last.epoch, b.last.lsn) > (own.epoch, own.lsn)
        {
            return Err(NotPromoted::Behind { node: b.node, last: b.last });
        }
        let without = |known: &[u64]| -> Vec<u64> {
            self.rule.voters().iter().map(|n| n.0).filter(|n| !known.contains(n)).collect()
        };
        // Any two changes of primary meet in a voter that remembers the higher epoch.
        let bound = self.rule.set(c.sealed.keys().chain(&c.terms.destroyed).copied());
        if !self.rule.is_majority(bound) {
            let have: Vec<u64> = c.sealed.keys().map(|n| n.0).collect();
            let missing = without(&have);
            return Err(NotPromoted::NoMajority { have, missing });
        }
        let lossy = !self.proves_all_is_here(c);
        if lossy && !c.terms.accept_loss {
            let have: Vec<u64> = c.speaking().map(|s| s.node.0).collect();
            let missing = without(&have);
            return Err(NotPromoted::NotProven { have, missing });
        }
        Ok(lossy)
    }

    /// Whether no committed record can be missing among those whose word counts.
    fn proves_all_is_here(&self, c: &Candidacy) -> bool {
        let set = self.rule.set(c.speaking().map(|s| s.node));
        // A majority, besides the dual: an in-sync set that an earlier reign made smaller was made by
        // a majority, and is met by every other one.
        self.rule.is_majority(set)
            && match self.rule.mode() {
                // The primary alone commits: all that may have led must be here.
                Mode::Async => {
                    let reigns = Reigns::join(c.speaking().map(|s| &s.reigns));
                    let mut led: Vec<NodeId> = reigns.led().map(|(node, _)| node).collect();
                    if led.is_empty() {
                        led.push(self.rule.primary());
                    }
                    led.iter().all(|node| c.sealed.get(node).is_some_and(|s| s.speaks))
                }
                // Who led last is not known for certain here.
                Mode::Sync | Mode::Quorum | Mode::SemiSync { .. } => self.rule.may_promote_whoever_led(set),
            }
    }
}
