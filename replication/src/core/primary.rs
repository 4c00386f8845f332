//! The primary's side: durable acknowledgements become the commit LSN.
//!
//! Owns: the commit LSN of a reign. Never: committing a record of an older epoch other than through
//! this epoch's `EpochStart` (Raft §5.4.2), or by the word of a replica of another epoch \[I5\].

use std::collections::BTreeMap;

use mainstay_engine::{Epoch, Lsn};

use super::{Core, Effect, Role};
use crate::rule::{NodeId, Rule};

/// A reign under way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reign {
    epoch: Epoch,
    start: Lsn,
    commit: Lsn,
    durable: BTreeMap<NodeId, Lsn>,
}

impl Reign {
    /// The epoch.
    #[must_use]
    pub const fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// LSN of its `EpochStart` record.
    #[must_use]
    pub const fn start(&self) -> Lsn {
        self.start
    }

    /// Highest LSN known to be committed under this reign; zero before its `EpochStart` is.
    #[must_use]
    pub const fn commit(&self) -> Lsn {
        self.commit
    }

    /// The highest LSN that the rule commits, given what is durable where.
    fn committed_by(&self, rule: &Rule) -> Option<Lsn> {
        let mut marks: Vec<Lsn> = self.durable.values().copied().collect();
        marks.sort_unstable_by(|a, b| b.cmp(a));
        marks.dedup();
        marks.into_iter().find(|mark| {
            let holders = self.durable.iter().filter(|(_, lsn)| *lsn >= mark).map(|(node, _)| *node);
            rule.committed(rule.set(holders))
        })
    }
}

/// What a replica reported last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReplicaProgress {
    /// Durable there up to here.
    pub durable: Lsn,
    /// Whether its stream is up.
    pub connected: bool,
}

impl Core {
    pub(super) fn on_epoch_started(&mut self, start: Lsn) -> Vec<Effect> {
        let Role::Candidate(_) = self.role else { return Vec::new() };
        let reign = Reign { epoch: self.promise.sealed, start, commit: Lsn::ZERO, durable: BTreeMap::new() };
        self.role = Role::Primary(reign);
        self.progress.clear();
        vec![Effect::RoleChanged]
    }

    /// The rule under which this node now collects acknowledgements (set with `StartEpoch`).
    pub fn set_rule(&mut self, rule: Rule) {
        self.rule = rule;
    }

    pub(super) fn on_durable(&mut self, lsn: Lsn) -> Vec<Effect> {
        self.note_durable(self.me, lsn)
    }

    pub(super) fn on_ack(&mut self, node: NodeId, epoch: Epoch, durable: Lsn) -> Vec<Effect> {
        // An acknowledgement given under another epoch says nothing about this log [I5].
        if self.leads() != Some(epoch) {
            return Vec::new();
        }
        let progress = self.progress.entry(node).or_default();
        progress.connected = true;
        progress.durable = progress.durable.max(durable);
        self.note_durable(node, durable)
    }

    pub(super) fn on_disconnected(&mut self, node: NodeId) -> Vec<Effect> {
        if let Some(p) = self.progress.get_mut(&node) {
            p.connected = false;
        }
        Vec::new()
    }

    fn note_durable(&mut self, node: NodeId, lsn: Lsn) -> Vec<Effect> {
        let Role::Primary(reign) = &mut self.role else { return Vec::new() };
        let mark = reign.durable.entry(node).or_default();
        *mark = (*mark).max(lsn);
        // A caught-up replica is counted again. Growing the in-sync set only makes commits
        // stricter, so it needs no agreement.
        if *mark >= reign.start && *mark >= reign.commit && self.rule.set([node]).len() == 1 {
            let in_sync = self.rule.in_sync();
            if !in_sync.contains(&node) {
                self.rule = self.rule.with_in_sync(in_sync.into_iter().chain([node]));
            }
        }
        match reign.committed_by(&self.rule) {
            Some(commit) if commit >= reign.start && commit > reign.commit => {
                reign.commit = commit;
                vec![Effect::Commit(commit)]
            }
            _ => Vec::new(),
        }
    }
}
