//! The replica's side: whose messages count, and how far its commit LSN may follow.
//!
//! Owns: the epoch check on every message of a primary. Never: committing beyond its own log.

use mainstay_engine::fault::{Bug, planted};
use mainstay_engine::{Epoch, Lsn};

use super::{Core, Effect, Role};
use crate::rule::NodeId;

impl Core {
    pub(super) fn on_from_primary(&mut self, epoch: Epoch, primary: NodeId, commit: Lsn, last: Lsn) -> Vec<Effect> {
        let p = &self.promise;
        let rival = epoch == p.sealed && p.primary.is_some_and(|known| known != primary);
        if (epoch < p.sealed || rival) && !planted(Bug::AcceptOlderEpoch) {
            return vec![Effect::Refuse { epoch: p.sealed, primary: p.primary }];
        }
        let mut effects = Vec::new();
        if epoch > p.sealed || p.primary.is_none() {
            self.promise.reigns.began(primary, epoch);
            effects.extend(self.adopt(epoch, Some(primary)));
        } else if !matches!(self.role, Role::Replica) {
            // A primary or candidate never takes records of its own epoch from someone else.
            return vec![Effect::Refuse { epoch: p.sealed, primary: p.primary }];
        } else if self.promise.reigns.began(primary, epoch) {
            // The candidate that this node sealed for did win.
            effects.push(Effect::Persist(self.promise.clone()));
        }
        effects.push(Effect::Accept);
        let commit = commit.min(last);
        if commit > Lsn::ZERO {
            effects.push(Effect::Commit(commit));
        }
        effects
    }
}
