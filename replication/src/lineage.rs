//! Where two logs part: from a replica's last position to what it must do to follow this log.
//!
//! Owns: the pure decision. Never: I/O, cutting, or deciding what to do about a divergence.
//! Source: `(epoch, lsn)` with the end offset of each epoch, as Kafka's KIP-320; the chain hash
//! makes a silent fork at equal numbers impossible (Kvrocks#462).

use mainstay_engine::{Epoch, Lsn, Position, Result};

/// What a node knows of its own log.
pub trait LogFacts {
    /// The newest record.
    fn last(&self) -> Position;
    /// The oldest LSN that can still be read.
    fn oldest(&self) -> Lsn;
    /// The position at `lsn`, if the log has that record.
    ///
    /// # Errors
    /// A record that cannot be read is not one that is absent: nothing follows from it.
    fn position_at(&self, lsn: Lsn) -> Result<Option<Position>>;
    /// First LSN of each epoch, ascending, as far back as known.
    fn epochs(&self) -> Vec<(Epoch, Lsn)>;
}

/// How a replica can join a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Join {
    /// The logs agree; records from this LSN on are missing.
    Stream {
        /// First LSN wanted.
        from: Lsn,
    },
    /// The replica has a tail that this log does not; cut above this LSN and ask again.
    Truncate {
        /// Last LSN to keep.
        to: Lsn,
    },
    /// The log does not reach back; a checkpoint is needed.
    Checkpoint,
    /// The replica holds committed records, or other records under the same numbers, that this
    /// log does not have. Nothing may be cut \[I8\].
    Diverged,
}

/// Decides how a replica whose log ends at `last`, and which knows `commit` to be committed, joins.
///
/// # Errors
/// Those of reading the log.
pub fn join(log: &dyn LogFacts, last: Position, commit: Lsn) -> Result<Join> {
    if last.lsn == Lsn::ZERO {
        return Ok(if log.oldest() <= Lsn(1) { Join::Stream { from: Lsn(1) } } else { Join::Checkpoint });
    }
    if let Some(here) = log.position_at(last.lsn)? {
        if (here.epoch, here.chain) == (last.epoch, last.chain) {
            return Ok(Join::Stream { from: last.lsn.next() });
        }
        if here.epoch == last.epoch {
            return Ok(Join::Diverged);
        }
    }
    if last.lsn < log.oldest() && last.lsn.next() != log.oldest() {
        // Older than anything kept here. It is an ordinary laggard if its epoch began here too.
        return Ok(Join::Checkpoint);
    }
    let epochs = log.epochs();
    // The end of the replica's last epoch in this log: just below the first later epoch.
    let end = epochs.iter().find(|(e, _)| *e > last.epoch).map_or(log.last().lsn, |(_, start)| start.prev());
    let to = end.min(last.lsn.prev());
    Ok(if to < commit { Join::Diverged } else { Join::Truncate { to } })
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::*;
    use mainstay_engine::batch::Keyspace;
    use mainstay_engine::bulk::{Place, TableWriter, load};
    use mainstay_engine::clock::SimClock;
    use mainstay_engine::fs::sim::SimFs;
    use mainstay_engine::store::{Identity, Store};
    use mainstay_engine::value::Value;
    use mainstay_engine::{Chain, ClusterId, CommitTs, Env, Options, TimelineId};

    /// A log described by its epochs: `[(epoch, first, last)]`; the chain is a mark per epoch.
    struct Fake {
        runs: Vec<(u64, u64, u64)>,
        oldest: u64,
    }

    fn pos(epoch: u64, lsn: u64) -> Position {
        Position { epoch: Epoch(epoch), lsn: Lsn(lsn), chain: Chain([epoch as u8; 16]), ts: CommitTs(lsn) }
    }

    impl LogFacts for Fake {
        fn last(&self) -> Position {
            self.runs.last().map(|r| pos(r.0, r.2)).unwrap()
        }
        fn oldest(&self) -> Lsn {
            Lsn(self.oldest)
        }
        fn position_at(&self, lsn: Lsn) -> Result<Option<Position>> {
            let run = self.runs.iter().find(|r| (r.1..=r.2).contains(&lsn.0));
            Ok(run.filter(|_| lsn.0 >= self.oldest).map(|run| pos(run.0, lsn.0)))
        }
        fn epochs(&self) -> Vec<(Epoch, Lsn)> {
            self.runs.iter().map(|r| (Epoch(r.0), Lsn(r.1))).collect()
        }
    }

    #[test]
    fn joins() {
        let log = Fake { runs: vec![(1, 1, 10), (3, 11, 20)], oldest: 1 };
        let cases = [
            (pos(3, 20), 20, Join::Stream { from: Lsn(21) }),
            (pos(1, 10), 5, Join::Stream { from: Lsn(11) }),
            (pos(0, 0), 0, Join::Stream { from: Lsn(1) }),
            // An old primary with an uncommitted tail of epoch 1.
            (pos(1, 14), 9, Join::Truncate { to: Lsn(10) }),
            (pos(1, 30), 10, Join::Truncate { to: Lsn(10) }),
            // A tail of an epoch that this log never had.
            (pos(2, 12), 10, Join::Truncate { to: Lsn(10) }),
            // A longer tail of the present epoch: a follower ahead of a new primary.
            (pos(3, 25), 18, Join::Truncate { to: Lsn(20) }),
            // Committed records that are not here: never cut [I8].
            (pos(1, 14), 12, Join::Diverged),
        ];
        for (last, commit, expected) in cases {
            assert_eq!(join(&log, last, Lsn(commit)).unwrap(), expected, "{last:?} {commit}");
        }
    }

    #[test]
    fn equal_numbers_with_another_chain_diverge() {
        let log = Fake { runs: vec![(1, 1, 10)], oldest: 1 };
        let other = Position { chain: Chain([9; 16]), ..pos(1, 7) };
        assert_eq!(join(&log, other, Lsn(0)).unwrap(), Join::Diverged);
    }

    #[test]
    fn a_log_that_no_longer_reaches_back_asks_for_a_checkpoint() {
        let log = Fake { runs: vec![(1, 1, 100)], oldest: 50 };
        assert_eq!(join(&log, pos(1, 20), Lsn(20)).unwrap(), Join::Checkpoint);
        assert_eq!(join(&log, pos(0, 0), Lsn(0)).unwrap(), Join::Checkpoint);
        assert_eq!(join(&log, pos(1, 60), Lsn(60)).unwrap(), Join::Stream { from: Lsn(61) });
    }

    struct Real(Store);

    impl LogFacts for Real {
        fn last(&self) -> Position {
            self.0.log().last()
        }
        fn oldest(&self) -> Lsn {
            self.0.log().oldest()
        }
        fn position_at(&self, lsn: Lsn) -> Result<Option<Position>> {
            self.0.log().position_at(lsn)
        }
        fn epochs(&self) -> Vec<(Epoch, Lsn)> {
            self.0.epochs().unwrap()
        }
    }

    /// Stores that began with ready tables stand at the same LSN and epoch whatever these held.
    #[test]
    fn a_replica_that_began_with_other_tables_has_diverged() {
        let fs = SimFs::new(1);
        ["/one", "/two"].iter().for_each(|d| fs.prepare_dir(Path::new(d)).unwrap());
        let (env, _) = Env::sim(fs, SimClock::new(CommitTs(1)), 1);
        let tables = |dir: &str, value: &[u8]| -> Vec<PathBuf> {
            let mut writer = TableWriter::new(env.clone(), Path::new(dir), &Options::tiny());
            writer.put(Keyspace::USER, b"k", &Value::plain(value)).unwrap();
            writer.finish().unwrap().into_iter().map(|t| t.path).collect()
        };
        let (one, two) = (tables("/one", b"1"), tables("/two", b"2"));
        let identity = Identity { cluster: ClusterId(7), timeline: TimelineId(9) };
        let store = |dir: &str, tables: &[PathBuf]| {
            load(&env, Path::new(dir), &Options::tiny(), identity, tables, Place::Copy).unwrap();
            Real(Store::open_embedded(env.clone(), Path::new(dir), &Options::tiny()).unwrap())
        };
        let (primary, same, other) = (store("/a", &one), store("/b", &one), store("/c", &two));
        assert_eq!(join(&primary, same.last(), Lsn(1)).unwrap(), Join::Stream { from: Lsn(2) });
        assert_eq!(join(&primary, other.last(), Lsn(1)).unwrap(), Join::Diverged);
    }
}
