//! The clock seam: wall time for commit timestamps, monotonic time for durations and timers.
//!
//! Owns: the trait and the real clock. Never: deciding correctness by wall time; expiry and
//! history compare commit timestamps.

use std::fmt::Debug;
use std::time::Duration;

use crate::lsn::CommitTs;

/// Where time comes from.
pub trait Clock: Send + Sync + Debug {
    /// Wall time, microseconds since the Unix epoch. May jump.
    fn wall(&self) -> CommitTs;
    /// Time since some fixed moment; never goes back.
    fn monotonic(&self) -> Duration;
}

/// The operating system's clocks.
#[derive(Debug)]
pub struct OsClock {
    start: std::time::Instant,
}

impl OsClock {
    /// A clock whose monotonic time starts now.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "this is the clock seam")]
    pub fn new() -> Self {
        Self { start: std::time::Instant::now() }
    }
}

impl Default for OsClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for OsClock {
    #[expect(clippy::disallowed_methods, reason = "this is the clock seam")]
    fn wall(&self) -> CommitTs {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        CommitTs(u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
    }

    fn monotonic(&self) -> Duration {
        self.start.elapsed()
    }
}
