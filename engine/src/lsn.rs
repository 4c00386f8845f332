//! The numbers that name a place in the log: `Lsn`, `Epoch`, `CommitTs`, `Chain`, `TimelineId`.
//!
//! Owns: newtypes, their order and their text form. Never: arithmetic between two kinds, I/O.

use std::fmt;

/// Log sequence number of a record. Dense within a timeline; the first record has LSN 1, so
/// [`Lsn::ZERO`] means "before everything". A write's LSN is also the *version* of each key it wrote.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lsn(pub u64);

impl Lsn {
    /// The position before the first record.
    pub const ZERO: Lsn = Lsn(0);
    /// Above every LSN; as a read position it means "newest".
    pub const MAX: Lsn = Lsn(u64::MAX);

    /// The LSN after this one (saturating: a log never gets near `u64::MAX`).
    #[must_use]
    pub const fn next(self) -> Lsn {
        Lsn(self.0.saturating_add(1))
    }

    /// The LSN before this one; `ZERO` stays `ZERO`.
    #[must_use]
    pub const fn prev(self) -> Lsn {
        Lsn(self.0.saturating_sub(1))
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Number of a primary's reign; strictly increasing. Epochs fence \[I5\].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(pub u64);

impl Epoch {
    /// The epoch after this one.
    #[must_use]
    pub const fn next(self) -> Epoch {
        Epoch(self.0.saturating_add(1))
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Commit timestamp of a record in microseconds since the Unix epoch (UTC). Strictly increasing
/// along a timeline: the primary takes `max(previous + 1, wall clock)`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CommitTs(pub u64);

impl fmt::Display for CommitTs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}us", self.0)
    }
}

/// Running hash over all records up to and including one: `chain = H(previous chain, record hash)`.
/// Two logs that agree on `(epoch, lsn, chain)` agree on everything before \[I4\].
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Chain(pub [u8; 16]);

impl fmt::Display for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl fmt::Debug for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Chain({self})")
    }
}

/// Random name of a line of history. A restore or a forced (lossy) failover starts a new timeline;
/// an ordinary failover only starts an [`Epoch`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TimelineId(pub u64);

impl fmt::Display for TimelineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// Random name of a cluster. Nodes of different clusters refuse each other, and so do data
/// directories and repositories.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClusterId(pub u128);

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// The end of a log, or any place in it, with the proof of what lies before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Position {
    /// Epoch of the record at `lsn`.
    pub epoch: Epoch,
    /// LSN of the record.
    pub lsn: Lsn,
    /// Chain hash up to and including the record.
    pub chain: Chain,
    /// Commit timestamp of the record.
    pub ts: CommitTs,
}
