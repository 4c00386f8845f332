//! Sealing: a voter's durable promise to refuse all epochs below one \[I5\].
//!
//! Owns: the voter's side. Never: answering before the promise is persisted.

use mainstay_engine::{Epoch, Lsn, Position};

use super::{Core, Effect, Role};
use crate::rule::NodeId;

/// A voter's answer to a candidate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SealAnswer {
    /// Sealed; from now on older epochs are refused here.
    Granted {
        /// Newest durable record here.
        last: Position,
        /// What is known to be committed here.
        commit: Lsn,
    },
    /// This or a later epoch is sealed already, for someone else.
    Refused {
        /// The epoch in force.
        epoch: Epoch,
        /// Who leads it.
        primary: Option<NodeId>,
    },
}

impl Core {
    pub(super) fn on_seal(&mut self, epoch: Epoch, candidate: NodeId, last: Position, commit: Lsn) -> Vec<Effect> {
        let granted = Effect::Answer(SealAnswer::Granted { last, commit });
        if epoch == self.promise.sealed && self.promise.primary == Some(candidate) {
            // The same candidate asks again: its first answer was lost.
            return vec![granted];
        }
        if epoch <= self.promise.sealed {
            let (epoch, primary) = (self.promise.sealed, self.promise.primary);
            return vec![Effect::Answer(SealAnswer::Refused { epoch, primary })];
        }
        self.promise.reigns.sealed_for(candidate, epoch);
        let mut effects = self.adopt(epoch, Some(candidate));
        effects.push(granted);
        effects
    }

    /// Moves to a newer epoch led by somebody else. The promise comes first.
    pub(super) fn adopt(&mut self, epoch: Epoch, primary: Option<NodeId>) -> Vec<Effect> {
        (self.promise.sealed, self.promise.primary) = (epoch, primary);
        let was_replica = matches!(self.role, Role::Replica);
        self.role = Role::Replica;
        self.progress.clear();
        let mut effects = vec![Effect::Persist(self.promise.clone())];
        if !was_replica || primary.is_some() {
            effects.push(Effect::RoleChanged);
        }
        effects
    }
}
