//! Who may give its data up: one replica at a time, and only where enough others hold what is committed.
//!
//! Owns: until when a seed that was granted counts as under way, and the question whether the mode's rule can do without
//! a replica. Never: more than this primary's own memory. A new primary knows of no grant, but it sees who is not there.

use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use mainstay_engine::store::Store;
use mainstay_engine::{Epoch, Lsn};
use tokio::time::Instant;

use super::{Driver, SeedRequest};
use crate::rule::NodeId;

/// Silence of a replica that was granted a seed, after which it counts as away like others: longer than a node takes from
/// one life to the next. One that takes parts of a checkpoint is not silent.
const LAPSE: Duration = Duration::from_secs(120);
/// How long replicas may take to answer the question, and to acknowledge what was committed when it came.
const CATCH_UP: Duration = Duration::from_secs(2);
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// The answer of a node that does not lead.
pub(super) const NOT_PRIMARY: &str = "it is not the primary any more; `mainstay status` shows who is";
const UNCONFIRMED: &str = "it cannot tell whether it is still the primary, for too few nodes answer it; `mainstay status` \
                           shows who is away, or who leads by now";

/// A seed that was granted.
#[derive(Clone, Copy, Debug)]
struct Grant {
    node: NodeId,
    /// The life that ends; in a later one the seed is there.
    incarnation: u64,
    /// What was committed then: with that durable the node is a copy again.
    until: Lsn,
    /// When it was last heard of.
    heard: Duration,
}

/// What a primary knows of seeds under way.
#[derive(Debug, Default)]
pub(super) struct Seeds {
    grant: Option<Grant>,
}

impl Seeds {
    fn under_way(&self, now: Duration) -> Option<NodeId> {
        let heard_of = |g: &&Grant| now.saturating_sub(g.heard) < LAPSE;
        self.grant.as_ref().filter(heard_of).map(|g| g.node)
    }

    fn only(&self, node: NodeId, now: Duration) -> Result<(), String> {
        match self.under_way(now).filter(|other| *other != node) {
            None => Ok(()),
            Some(other) => Err(format!(
                "node {other} is being seeded, and one is at a time: wait until `mainstay status` shows it as a replica \
                 that has applied what is committed; if it is lost, try again {} s after it was last heard of",
                LAPSE.as_secs()
            )),
        }
    }
}

impl Driver {
    fn seeds(&self) -> MutexGuard<'_, Seeds> {
        self.seeds.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The replica that was granted a seed and is not back, unless nothing was heard of it for long.
    fn being_seeded(&self) -> Option<NodeId> {
        self.seeds().under_way(self.env.clock.monotonic())
    }

    /// Refuses whoever asks while another one is being seeded.
    pub(super) fn one_at_a_time(&self, node: NodeId) -> Result<(), String> {
        self.seeds().only(node, self.env.clock.monotonic())
    }

    /// From now on `request.node` is being seeded, until it has everything up to `until` again.
    pub(super) fn grant(&self, request: &SeedRequest, until: Lsn) -> Result<(), String> {
        let (heard, mut seeds) = (self.env.clock.monotonic(), self.seeds());
        // Somebody else may have come between.
        seeds.only(request.node, heard)?;
        seeds.grant = Some(Grant { node: request.node, incarnation: request.incarnation, until, heard });
        Ok(())
    }

    /// A replica's word: in a new life, with what was committed when its seed was granted, it is a copy again.
    pub(super) fn heard_of_seed(&self, node: NodeId, incarnation: u64, durable: Lsn) {
        let now = self.env.clock.monotonic();
        let mut seeds = self.seeds();
        // The life that is to end says nothing of a seed: perhaps it was never told that it was granted one.
        if let Some(grant) = seeds.grant.as_mut().filter(|g| g.node == node && g.incarnation < incarnation) {
            grant.heard = now;
            if durable >= grant.until {
                seeds.grant = None;
            }
        }
    }

    /// A checkpoint is on its way to `node`.
    pub(super) fn sending(self: &Arc<Self>, node: NodeId) -> Sending {
        let sending = Sending { driver: Arc::clone(self), node };
        sending.goes_on();
        sending
    }

    /// Whether the replica that asks may give its data up now: this node still leads `epoch`, by the word of enough nodes
    /// to rule another primary out, and, unless fewer are accepted, what is committed now is held without that replica
    /// by as many as the mode asks for, and by another one than this primary. Only who answers a question of now counts: a
    /// node without power looks connected for a while. All get a moment for that.
    ///
    /// # Errors
    /// In words, with what to do.
    pub(super) async fn can_spare(&self, request: &SeedRequest, store: &Store, epoch: Epoch) -> Result<(), String> {
        let (committed, end) = (store.committed().get(), Instant::now() + CATCH_UP);
        let (node, round) = (request.node, self.begin_round());
        loop {
            let (leads, answered, rule) = {
                let core = self.core();
                (core.leads(), core.answered(round), core.rule().clone())
            };
            if leads != Some(epoch) {
                return Err(NOT_PRIMARY.into());
            }
            let confirmed = rule.confirms_reads(rule.set(answered.iter().copied().chain([self.settings.me])));
            let holders = self.holders_without(node, store, committed, &answered);
            let commits = rule.committed(rule.set(holders.iter().copied()));
            let enough = commits && holders.iter().any(|n| *n != self.settings.me);
            if confirmed && (enough || request.accept_fewer) {
                return Ok(());
            }
            if Instant::now() >= end {
                let few = || too_few(node, &holders, commits, &rule.mode().to_string());
                return Err(if confirmed { few() } else { UNCONFIRMED.into() });
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Who is known to have everything up to `lsn` durable now: this node, and replicas that are among those that
    /// `answered` and are connected.
    fn holders_without(&self, node: NodeId, store: &Store, lsn: Lsn, answered: &[NodeId]) -> Vec<NodeId> {
        let away = self.being_seeded();
        let peers = self.peers();
        let there = |n: &NodeId| *n != node && Some(*n) != away && answered.contains(n);
        let replicas = peers.iter().filter(|(n, p)| there(n) && p.connected && p.durable >= lsn);
        let own = (store.durable().get() >= lsn).then_some(self.settings.me);
        replicas.map(|(n, _)| *n).chain(own).collect()
    }
}

fn too_few(node: NodeId, holders: &[NodeId], commits: bool, mode: &str) -> String {
    let held = match holders {
        [] => "nobody".to_owned(),
        [one] => format!("node {one} alone"),
        several => {
            let mut names: Vec<_> = several.iter().map(ToString::to_string).collect();
            names.sort();
            format!("nodes {}", names.join(", "))
        }
    };
    let then = if commits {
        "if that fails meanwhile, what was written is lost".to_owned()
    } else {
        format!("mode {mode} needs more, so writes would wait until node {node} is back")
    };
    format!(
        "without node {node}, {held} would hold what is committed: {then}. Bring the others back first (`mainstay status` \
         shows who is away or behind), or accept that with --accept-fewer"
    )
}

/// See [`Driver::sending`].
#[derive(Debug)]
pub(super) struct Sending {
    driver: Arc<Driver>,
    node: NodeId,
}

impl Sending {
    /// The node asked for it, or took a part. Else the grant lapses although there is a transfer: the disk that it goes
    /// to may hang for ever.
    pub(super) fn goes_on(&self) {
        let now = self.driver.env.clock.monotonic();
        if let Some(grant) = self.driver.seeds().grant.as_mut().filter(|g| g.node == self.node) {
            grant.heard = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use mainstay_engine::clock::SimClock;
    use mainstay_engine::fs::sim::SimFs;
    use mainstay_engine::{ClusterId, CommitTs, Env};

    use super::super::Settings;
    use super::super::fake::Nobody;
    use super::*;
    use crate::rule::{Mode, Rule};

    fn primary() -> (Arc<Driver>, Arc<SimClock>) {
        let (fs, clock) = (SimFs::new(1), SimClock::new(CommitTs(1)));
        let (env, _) = Env::sim(fs, Arc::clone(&clock), 1);
        let voters = [1, 2, 3, 4, 5].map(NodeId).to_vec();
        let settings = Settings {
            me: NodeId(1),
            configured_primary: NodeId(1),
            rule: Rule::new(Mode::Quorum, voters, NodeId(1), 1).unwrap(),
            dir: Path::new("data").to_owned(),
            options: mainstay_engine::Options::tiny(),
            client_addr: String::new(),
        };
        (Driver::new(env, settings, Arc::new(Nobody::default())).unwrap(), clock)
    }

    const fn asks(node: u64) -> SeedRequest {
        SeedRequest { cluster: ClusterId(7), node: NodeId(node), incarnation: 4, grant: true, accept_fewer: false }
    }

    #[test]
    fn a_granted_seed_is_under_way_until_the_next_life_has_all_that_was_committed() {
        let (primary, _) = primary();
        primary.grant(&asks(2), Lsn(10)).unwrap();
        assert!(primary.grant(&asks(3), Lsn(10)).unwrap_err().contains("node 2 is being seeded"));
        primary.grant(&asks(2), Lsn(12)).unwrap();
        // The life that ends, another node, and a seed that has not caught up.
        for (node, incarnation, durable) in [(2, 4, 50), (3, 5, 50), (2, 5, 11)] {
            primary.heard_of_seed(NodeId(node), incarnation, Lsn(durable));
            assert!(primary.one_at_a_time(NodeId(3)).is_err(), "{node} {incarnation} {durable}");
        }
        primary.heard_of_seed(NodeId(2), 5, Lsn(12));
        primary.grant(&asks(3), Lsn(12)).unwrap();
    }

    #[test]
    fn a_seed_lapses_when_nothing_is_heard_of_it_and_no_part_is_taken() {
        let (primary, clock) = primary();
        let short = LAPSE - Duration::from_millis(1);
        primary.grant(&asks(2), Lsn(10)).unwrap();
        let sending = primary.sending(NodeId(2));
        for _ in 0..3 {
            clock.advance(short);
            assert!(primary.grant(&asks(3), Lsn(10)).is_err(), "it is being sent");
            sending.goes_on();
        }
        clock.advance(short);
        primary.heard_of_seed(NodeId(2), 5, Lsn(1));
        clock.advance(short);
        assert!(primary.grant(&asks(3), Lsn(10)).is_err(), "it catches up");
        // Another one, new and with no end of it, keeps the grant from nobody. Nor does the one that takes nothing more.
        primary.sending(NodeId(4)).goes_on();
        clock.advance(Duration::from_millis(1));
        primary.grant(&asks(3), Lsn(10)).unwrap();
        assert!(primary.grant(&asks(2), Lsn(10)).unwrap_err().contains("node 3 is being seeded"));
        // The disk is back, and another one's turn by now.
        sending.goes_on();
        clock.advance(LAPSE);
        primary.grant(&asks(2), Lsn(10)).unwrap();
        drop(sending);
    }

    /// The answer was lost on its way: the replica goes on as before.
    #[test]
    fn a_grant_that_was_not_used_lapses_although_the_replica_is_heard_of() {
        let (primary, clock) = primary();
        primary.grant(&asks(2), Lsn(10)).unwrap();
        clock.advance(LAPSE - Duration::from_millis(1));
        primary.heard_of_seed(NodeId(2), 4, Lsn(50));
        assert!(primary.one_at_a_time(NodeId(3)).is_err());
        clock.advance(Duration::from_millis(1));
        primary.grant(&asks(3), Lsn(10)).unwrap();
    }
}
