//! The commit rule: when a set of durable holders makes a record committed, and its dual: when a
//! sealed set of nodes may promote one of its members.
//!
//! Owns: `C(S)` as one monotone function for every mode \[I6\], used in both directions. Never: I/O,
//! time, or knowledge of who is alive. Source: the protocol of quorum intersection as in PacificA's
//! configuration invariant and Restate's f-majority.

use std::fmt;
use std::str::FromStr;

/// Number of a node in its cluster; chosen by the operator, unique, above 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub u64);

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Most voters in a cluster; bounds the exhaustive tests and the bitset.
pub const VOTERS_MAX: usize = 9;

/// When a write is committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mode {
    /// Durable on every in-sync replica.
    Sync,
    /// Durable on a majority of the voters.
    Quorum,
    /// Durable on the primary and any `k` replicas.
    SemiSync {
        /// Replicas besides the primary.
        k: u8,
    },
    /// Durable on the primary.
    Async,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Mode::Sync => f.write_str("sync"),
            Mode::Quorum => f.write_str("quorum"),
            Mode::SemiSync { k } => write!(f, "semi-sync:{k}"),
            Mode::Async => f.write_str("async"),
        }
    }
}

/// A mode that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown mode {0:?}; use sync, quorum, semi-sync:K (K replicas besides the primary) or async")]
pub struct UnknownMode(pub String);

impl FromStr for Mode {
    type Err = UnknownMode;

    fn from_str(s: &str) -> Result<Self, UnknownMode> {
        match s {
            "sync" => Ok(Mode::Sync),
            "quorum" => Ok(Mode::Quorum),
            "async" => Ok(Mode::Async),
            _ => match s.strip_prefix("semi-sync:").and_then(|k| k.parse::<u8>().ok()) {
                Some(k) if k >= 1 && usize::from(k) < VOTERS_MAX => Ok(Mode::SemiSync { k }),
                _ => Err(UnknownMode(s.to_owned())),
            },
        }
    }
}

/// A set of voters, as bits over their index in [`Rule::voters`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct NodeSet(u16);

impl NodeSet {
    /// No node.
    pub const EMPTY: NodeSet = NodeSet(0);

    /// Number of nodes in it.
    #[must_use]
    pub const fn len(self) -> usize {
        self.0.count_ones() as usize
    }

    /// True without nodes.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    const fn contains_all(self, other: NodeSet) -> bool {
        self.0 & other.0 == other.0
    }
}

/// The commit rule in force in one epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    mode: Mode,
    voters: Vec<NodeId>,
    primary: NodeId,
    in_sync: NodeSet,
    min_in_sync: usize,
}

/// A rule that cannot work.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RuleError {
    /// No or too many voters, or one twice.
    #[error("a cluster has 1 to {VOTERS_MAX} voters, each named once; got {0}")]
    Voters(usize),
    /// The primary does not vote.
    #[error("node {0} is not among the voters")]
    NotAVoter(NodeId),
    /// The mode asks for more copies than there are nodes.
    #[error("mode {mode} needs {needs} nodes, the cluster has {has}")]
    TooFew {
        /// The mode.
        mode: Mode,
        /// Nodes it needs.
        needs: usize,
        /// Nodes there are.
        has: usize,
    },
}

impl Rule {
    /// A rule in which all voters are in sync.
    ///
    /// # Errors
    /// See [`RuleError`].
    pub fn new(mode: Mode, mut voters: Vec<NodeId>, primary: NodeId, min_in_sync: usize) -> Result<Self, RuleError> {
        voters.sort_unstable();
        let named = voters.len();
        voters.dedup();
        if voters.is_empty() || voters.len() > VOTERS_MAX || voters.len() != named {
            return Err(RuleError::Voters(named));
        }
        if !voters.contains(&primary) {
            return Err(RuleError::NotAVoter(primary));
        }
        let needs = match mode {
            Mode::SemiSync { k } => usize::from(k) + 1,
            Mode::Sync => min_in_sync,
            Mode::Quorum | Mode::Async => 1,
        };
        if needs > voters.len() {
            return Err(RuleError::TooFew { mode, needs, has: voters.len() });
        }
        let in_sync = NodeSet((1u16 << voters.len()) - 1);
        Ok(Self { mode, voters, primary, in_sync, min_in_sync })
    }

    /// The mode.
    #[must_use]
    pub const fn mode(&self) -> Mode {
        self.mode
    }

    /// All voters, ascending.
    #[must_use]
    pub fn voters(&self) -> &[NodeId] {
        &self.voters
    }

    /// The primary of this reign.
    #[must_use]
    pub const fn primary(&self) -> NodeId {
        self.primary
    }

    /// The in-sync set as node ids, ascending.
    #[must_use]
    pub fn in_sync(&self) -> Vec<NodeId> {
        self.voters.iter().copied().filter(|n| self.in_sync.contains_all(self.set([*n]))).collect()
    }

    /// The same rule with another primary.
    ///
    /// # Errors
    /// `NotAVoter`.
    pub fn with_primary(&self, primary: NodeId) -> Result<Self, RuleError> {
        if !self.voters.contains(&primary) {
            return Err(RuleError::NotAVoter(primary));
        }
        Ok(Self { primary, ..self.clone() })
    }

    /// The same rule with another in-sync set. Only a new epoch may shrink it; growing it only
    /// makes commits stricter, so a primary may do that within its epoch.
    #[must_use]
    pub fn with_in_sync(&self, in_sync: impl IntoIterator<Item = NodeId>) -> Self {
        Self { in_sync: self.set(in_sync), ..self.clone() }
    }

    /// The set of those of `nodes` that vote.
    #[must_use]
    pub fn set(&self, nodes: impl IntoIterator<Item = NodeId>) -> NodeSet {
        let mut bits = 0;
        for n in nodes {
            if let Ok(i) = self.voters.binary_search(&n) {
                bits |= 1 << i;
            }
        }
        NodeSet(bits)
    }

    /// `C(S)`: whether a record durable on exactly these voters is committed \[I6\]. Monotone: more
    /// holders never undo a commit.
    #[must_use]
    pub fn committed(&self, holders: NodeSet) -> bool {
        let primary = self.set([self.primary]);
        match self.mode {
            // A majority in any case: an in-sync set below one could be forgotten by the next promotion.
            Mode::Sync => {
                holders.contains_all(self.in_sync) && holders.len() >= self.min_in_sync && self.is_majority(holders)
            }
            Mode::Quorum => holders.len() > self.voters.len() / 2,
            Mode::SemiSync { k } => holders.contains_all(primary) && holders.len() > usize::from(k),
            Mode::Async => holders.contains_all(primary),
        }
    }

    /// The dual: whether a sealed set may promote, that is, whether the voters outside it can no
    /// longer commit anything among themselves, so that every committed record is in the set \[I6\].
    #[must_use]
    pub fn may_promote(&self, sealed: NodeSet) -> bool {
        let all = (1u16 << self.voters.len()) - 1;
        !sealed.is_empty() && !self.committed(NodeSet(all & !sealed.0))
    }

    /// [`Rule::may_promote`] for a rule whose last primary is not known for certain: no voter outside
    /// the set may have been able to commit with the others outside it.
    #[must_use]
    pub fn may_promote_whoever_led(&self, sealed: NodeSet) -> bool {
        self.voters.iter().all(|p| Rule { primary: *p, ..self.clone() }.may_promote(sealed))
    }

    /// A majority of the voters. With static roles every change of primary needs one, so that any
    /// two changes meet in a node that remembers the higher epoch.
    #[must_use]
    pub fn is_majority(&self, nodes: NodeSet) -> bool {
        nodes.len() > self.voters.len() / 2
    }

    /// Whether nodes that have not sealed for a newer epoch rule out another primary: each promotion
    /// seals a majority, and leaves outside it nobody who could commit \[I6\]. A read lease is a commit
    /// of nothing, so the same predicate serves.
    #[must_use]
    pub fn confirms_reads(&self, nodes: NodeSet) -> bool {
        self.is_majority(nodes) || self.committed(nodes)
    }

    /// Whether fewer copies are waited for than there are voters, by decision of a promotion.
    #[must_use]
    pub fn is_degraded(&self) -> bool {
        self.mode == Mode::Sync && self.in_sync.len() < self.voters.len()
    }

    /// How many more voters, whichever they are, may fail without losing committed records and so
    /// that commits go on (after a promotion, where one is needed), given those that are up now.
    #[must_use]
    pub fn tolerated_failures(&self, up: NodeSet) -> usize {
        let nodes: Vec<u16> = (0..self.voters.len() as u16).map(|i| 1 << i).filter(|b| up.0 & b != 0).collect();
        (0..=nodes.len())
            .take_while(|&f| {
                (0u32..1 << nodes.len()).filter(|lost| lost.count_ones() as usize == f).all(|lost| {
                    let left =
                        nodes.iter().enumerate().filter(|(i, _)| lost & (1 << i) == 0).fold(0, |s, (_, b)| s | b);
                    self.survives(NodeSet(left))
                })
            })
            .count()
            .saturating_sub(1)
    }

    /// Whether the cluster can go on with just these nodes: commit under some primary among them,
    /// having all that was committed.
    fn survives(&self, left: NodeSet) -> bool {
        let primary_left = left.contains_all(self.set([self.primary]));
        let can_commit = match self.mode {
            Mode::Sync => left.len() >= self.min_in_sync && self.is_majority(left),
            Mode::Quorum => left.len() > self.voters.len() / 2,
            Mode::SemiSync { k } => left.len() > usize::from(k),
            Mode::Async => !left.is_empty(),
        };
        can_commit && (primary_left || (self.may_promote(left) && self.is_majority(left)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn modes(n: usize) -> Vec<Mode> {
        let mut all = vec![Mode::Sync, Mode::Quorum, Mode::Async];
        all.extend((1..n as u8).map(|k| Mode::SemiSync { k }));
        all
    }

    /// Calls `check` for every cluster size, mode, primary and in-sync set that contains the primary.
    fn for_all_rules(n_max: usize, mut check: impl FnMut(&Rule, u16)) {
        for n in 1..=n_max {
            let voters: Vec<NodeId> = (1..=n as u64).map(NodeId).collect();
            for mode in modes(n) {
                for &primary in &voters {
                    let base = Rule::new(mode, voters.clone(), primary, 1).unwrap();
                    let sets: Vec<u16> = if mode == Mode::Sync { (1..1 << n).collect() } else { vec![(1 << n) - 1] };
                    for in_sync in sets.into_iter().filter(|s| NodeSet(*s).contains_all(base.set([primary]))) {
                        check(&Rule { in_sync: NodeSet(in_sync), ..base.clone() }, 1 << n);
                    }
                }
            }
        }
    }

    #[test]
    fn committing_is_monotone_for_every_rule_up_to_nine_voters() {
        for_all_rules(9, |rule, sets| {
            for s in 0..sets {
                if rule.committed(NodeSet(s)) {
                    for more in (0..rule.voters.len()).map(|i| 1 << i) {
                        assert!(rule.committed(NodeSet(s | more)), "{rule:?} {s:b} {more:b}");
                    }
                }
            }
        });
    }

    /// [I6]: a promotable set meets every committing set, so the newest log in it has every
    /// committed record; a set that is not promotable misses at least one committing set.
    #[test]
    fn a_promotable_set_meets_every_committing_set_and_no_other_does() {
        for_all_rules(6, |rule, sets| {
            for x in 1..sets {
                let meets_all = (0..sets).filter(|s| rule.committed(NodeSet(*s))).all(|s| s & x != 0);
                assert_eq!(rule.may_promote(NodeSet(x)), meets_all, "{rule:?} sealed {x:b}");
            }
        });
    }

    #[test]
    fn the_dual_holds_for_nine_voters() {
        for_all_rules(9, |rule, sets| {
            for x in 1..sets {
                // By monotonicity the largest set that avoids x decides.
                let avoids = NodeSet((sets - 1) & !x);
                assert_eq!(rule.may_promote(NodeSet(x)), !rule.committed(avoids), "{rule:?} sealed {x:b}");
            }
        });
    }

    /// Whoever confirms reads is met by every promotion without loss, so it knows of it.
    #[test]
    fn nodes_that_confirm_reads_meet_every_promotion() {
        for_all_rules(6, |rule, sets| {
            let me = rule.set([rule.primary]).0;
            let promotes = |x: &u16| {
                let x = NodeSet(*x);
                let proven = match rule.mode {
                    Mode::Async => rule.may_promote(x),
                    Mode::Sync | Mode::Quorum | Mode::SemiSync { .. } => rule.may_promote_whoever_led(x),
                };
                rule.is_majority(x) && proven
            };
            for x in (1..sets).filter(promotes) {
                for answered in (0..sets).filter(|s| s & me != 0 && rule.confirms_reads(NodeSet(*s))) {
                    assert_ne!(x & answered, 0, "{rule:?}: sealed {x:b}, answered {answered:b}");
                }
            }
        });
    }

    #[test]
    fn three_nodes_mean_what_the_table_says() {
        let v = || vec![NodeId(1), NodeId(2), NodeId(3)];
        let rule = |m| Rule::new(m, v(), NodeId(1), 2).unwrap();
        let set = |r: &Rule, ids: &[u64]| r.set(ids.iter().map(|i| NodeId(*i)));
        let quorum = rule(Mode::Quorum);
        assert!(quorum.committed(set(&quorum, &[2, 3])) && !quorum.committed(set(&quorum, &[1])));
        let semi = rule(Mode::SemiSync { k: 1 });
        assert!(semi.committed(set(&semi, &[1, 3])) && !semi.committed(set(&semi, &[2, 3])));
        // Both survivors are needed when the primary is gone (CloudNativePG#8679).
        assert!(semi.may_promote(set(&semi, &[2, 3])) && !semi.may_promote(set(&semi, &[3])));
        let sync = rule(Mode::Sync);
        assert!(sync.may_promote(set(&sync, &[3])) && !sync.committed(set(&sync, &[1, 2])));
        let asyn = rule(Mode::Async);
        assert!(!asyn.may_promote(set(&asyn, &[2, 3])) && asyn.may_promote(set(&asyn, &[1])));
    }

    #[test]
    fn tolerated_failures_are_counted_for_the_worst_case() {
        let v = |n: u64| (1..=n).map(NodeId).collect::<Vec<_>>();
        let t = |m, n, up: &[u64]| {
            let r = Rule::new(m, v(n), NodeId(1), 1).unwrap();
            r.tolerated_failures(r.set(up.iter().map(|i| NodeId(*i))))
        };
        assert_eq!(t(Mode::Quorum, 3, &[1, 2, 3]), 1);
        assert_eq!(t(Mode::Quorum, 3, &[1, 2]), 0);
        assert_eq!(t(Mode::Quorum, 5, &[1, 2, 3, 4, 5]), 2);
        assert_eq!(t(Mode::Async, 3, &[1, 2, 3]), 0);
        assert_eq!(t(Mode::Quorum, 1, &[1]), 0);
    }

    #[test]
    fn a_mode_reads_back_as_it_prints() {
        for m in modes(9) {
            assert_eq!(m.to_string().parse(), Ok(m));
        }
        for bad in ["", "Sync", "semi-sync", "semi-sync:0", "semi-sync:9", "semi-sync:x", "majority"] {
            assert!(bad.parse::<Mode>().is_err(), "{bad}");
        }
    }

    #[test]
    fn impossible_rules_are_refused() {
        let v = vec![NodeId(1), NodeId(2)];
        assert_eq!(Rule::new(Mode::Quorum, v.clone(), NodeId(3), 1).err(), Some(RuleError::NotAVoter(NodeId(3))));
        assert!(matches!(Rule::new(Mode::SemiSync { k: 2 }, v.clone(), NodeId(1), 1), Err(RuleError::TooFew { .. })));
        assert!(matches!(Rule::new(Mode::Quorum, vec![NodeId(1); 2], NodeId(1), 1), Err(RuleError::Voters(2))));
        assert!(matches!(Rule::new(Mode::Quorum, vec![], NodeId(1), 1), Err(RuleError::Voters(0))));
    }
}
