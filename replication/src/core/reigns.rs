//! Who may have led: the last reign known to have begun, and the candidates sealed for since.
//!
//! Owns: that set, and how the sets of several voters are joined. Never: a guess; a candidate that may
//! have won is counted as one that did. Needed where the primary alone commits: then every node that
//! may have led must be among the sealed ones, or its records may be missing.

use std::collections::BTreeMap;

use mainstay_engine::Epoch;

use crate::rule::NodeId;

/// Nodes that may have led, each with the newest epoch it may have led.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reigns {
    begun: Epoch,
    led: BTreeMap<NodeId, Epoch>,
}

impl Reigns {
    /// From parts that were stored or sent: the newest epoch known to have begun, and the nodes.
    #[must_use]
    pub fn from_parts(begun: Epoch, led: impl IntoIterator<Item = (NodeId, Epoch)>) -> Self {
        let led = led.into_iter().filter(|(_, e)| *e >= begun).collect();
        Self { begun, led }
    }

    /// The newest epoch known to have begun; zero when none is.
    #[must_use]
    pub const fn begun(&self) -> Epoch {
        self.begun
    }

    /// Who may have led since, ascending, with the epoch.
    pub fn led(&self) -> impl Iterator<Item = (NodeId, Epoch)> + '_ {
        self.led.iter().map(|(n, e)| (*n, *e))
    }

    /// A voter sealed for this candidate, which may win without the voter hearing of it.
    pub(super) fn sealed_for(&mut self, candidate: NodeId, epoch: Epoch) {
        let newest = self.led.entry(candidate).or_default();
        *newest = (*newest).max(epoch);
    }

    /// The reign of `primary` has begun: it had everything that was committed before, so older
    /// reigns are of no more interest. Returns whether that was news.
    pub(super) fn began(&mut self, primary: NodeId, epoch: Epoch) -> bool {
        if epoch <= self.begun {
            return false;
        }
        self.begun = epoch;
        self.led.retain(|_, e| *e >= epoch);
        self.led.insert(primary, epoch);
        true
    }

    /// What several voters know together.
    #[must_use]
    pub fn join<'a>(all: impl Iterator<Item = &'a Reigns> + Clone) -> Reigns {
        let begun = all.clone().map(|r| r.begun).max().unwrap_or_default();
        let mut joined = Reigns { begun, led: BTreeMap::new() };
        for (node, epoch) in all.flat_map(Reigns::led).filter(|(_, e)| *e >= begun) {
            joined.sealed_for(node, epoch);
        }
        joined
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_begun_reign_supersedes_older_ones_and_not_later_candidacies() {
        let mut r = Reigns::default();
        r.sealed_for(NodeId(1), Epoch(1));
        r.sealed_for(NodeId(3), Epoch(3));
        assert!(r.began(NodeId(2), Epoch(2)));
        assert!(!r.began(NodeId(2), Epoch(2)), "no news");
        assert_eq!(r.led().collect::<Vec<_>>(), [(NodeId(2), Epoch(2)), (NodeId(3), Epoch(3))]);
    }

    #[test]
    fn what_voters_know_together_starts_at_the_newest_begun_reign() {
        let mut old = Reigns::default();
        old.sealed_for(NodeId(1), Epoch(1));
        old.sealed_for(NodeId(2), Epoch(7));
        let mut new = Reigns::default();
        new.began(NodeId(3), Epoch(5));
        let joined = Reigns::join([&old, &new].into_iter());
        assert_eq!(joined.begun(), Epoch(5));
        assert_eq!(joined.led().collect::<Vec<_>>(), [(NodeId(2), Epoch(7)), (NodeId(3), Epoch(5))]);
    }
}
