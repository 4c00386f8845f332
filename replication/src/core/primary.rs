//! The primary's side: durable acknowledgements become the commit LSN.
//!
//! Owns: the commit LSN of a reign, and which rounds of reads are confirmed. Never: committing a record of an older epoch other than through
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
    /// Newest round of reads that each replica answered.
    rounds: BTreeMap<NodeId, u64>,
    confirmed: u64,
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

    /// The newest round of reads that enough nodes answered to rule out another primary.
    fn confirmed_by(&self, rule: &Rule) -> Option<u64> {
        let mut rounds: Vec<u64> = self.rounds.values().copied().collect();
        rounds.sort_unstable_by(|a, b| b.cmp(a));
        rounds.dedup();
        rounds.into_iter().find(|round| {
            let answered = self.rounds.iter().filter(|(_, r)| *r >= round).map(|(node, _)| *node);
            rule.confirms_reads(rule.set(answered.chain([rule.primary()])))
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
    pub(super) fn on_epoch_started(&mut self, epoch: Epoch, start: Lsn) -> Vec<Effect> {
        match &self.role {
            Role::Candidate(c) if c.epoch() == epoch => {}
            // Meanwhile a newer epoch came along: the record stays uncommitted.
            Role::Candidate(_) | Role::Replica | Role::Primary(_) => return Vec::new(),
        }
        self.role = Role::Primary(Reign {
            epoch,
            start,
            commit: Lsn::ZERO,
            durable: BTreeMap::new(),
            rounds: BTreeMap::new(),
            confirmed: 0,
        });
        self.progress.clear();
        self.promise.reigns.began(self.me, epoch);
        vec![Effect::Persist(self.promise.clone()), Effect::RoleChanged]
    }

    /// Which replicas have answered this round of reads, or a later one, in the present reign: each was there after the
    /// round began, and had not sealed for a newer epoch.
    #[must_use]
    pub fn answered(&self, round: u64) -> Vec<NodeId> {
        let Role::Primary(reign) = &self.role else { return Vec::new() };
        reign.rounds.iter().filter(|(_, r)| **r >= round).map(|(node, _)| *node).collect()
    }

    /// Whether the nodes connected now could commit a record.
    #[must_use]
    pub fn can_commit(&self) -> bool {
        let connected = self.progress.iter().filter(|(_, p)| p.connected).map(|(node, _)| *node);
        self.rule.committed(self.rule.set(connected.chain([self.me])))
    }

    /// The rule under which this node now collects acknowledgements (set with `StartEpoch`).
    pub fn set_rule(&mut self, rule: Rule) {
        self.rule = rule;
    }

    pub(super) fn on_durable(&mut self, lsn: Lsn) -> Vec<Effect> {
        self.note_durable(self.me, lsn)
    }

    pub(super) fn on_ack(&mut self, node: NodeId, epoch: Epoch, durable: Lsn, round: u64) -> Vec<Effect> {
        // An acknowledgement given under another epoch says nothing about this log [I5].
        if self.leads() != Some(epoch) {
            return Vec::new();
        }
        let progress = self.progress.entry(node).or_default();
        progress.connected = true;
        progress.durable = progress.durable.max(durable);
        let mut effects = self.note_durable(node, durable);
        effects.extend(self.note_round(node, round));
        effects
    }

    /// A replica that answered a round had not sealed for a newer epoch when it did. Whoever was
    /// promoted before the round began had sealed one of those that answered \[I5\].
    fn note_round(&mut self, node: NodeId, round: u64) -> Option<Effect> {
        let Role::Primary(reign) = &mut self.role else { return None };
        let newest = reign.rounds.entry(node).or_default();
        *newest = (*newest).max(round);
        let confirmed = reign.confirmed_by(&self.rule).filter(|r| *r > reign.confirmed)?;
        reign.confirmed = confirmed;
        Some(Effect::Confirmed(confirmed))
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
