//! The clock seam: wall time for commit timestamps, monotonic time for durations and timers.
//!
//! Owns: the trait, the real clock, and (feature `sim`) one that a test sets. Never: deciding correctness by wall time; expiry and
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

/// A clock that moves only when told to, but for 1 µs at each look at the wall time.
#[cfg(feature = "sim")]
#[derive(Debug)]
pub struct SimClock {
    wall_micros: std::sync::atomic::AtomicU64,
    monotonic_nanos: std::sync::atomic::AtomicU64,
}

#[cfg(feature = "sim")]
impl SimClock {
    /// A clock at wall time `wall` and monotonic time 0.
    #[must_use]
    pub fn new(wall: CommitTs) -> std::sync::Arc<Self> {
        std::sync::Arc::new(Self { wall_micros: wall.0.into(), monotonic_nanos: 0.into() })
    }

    /// Both times go on by `by`; past the end of time they stop.
    pub fn advance(&self, by: Duration) {
        add(&self.wall_micros, u64::try_from(by.as_micros()).unwrap_or(u64::MAX));
        add(&self.monotonic_nanos, u64::try_from(by.as_nanos()).unwrap_or(u64::MAX));
    }

    /// The wall time jumps, forwards or back; the monotonic time does not.
    pub fn set_wall(&self, wall: CommitTs) {
        self.wall_micros.store(wall.0, std::sync::atomic::Ordering::SeqCst);
    }
}

/// Adds without wrapping; the value before.
#[cfg(feature = "sim")]
fn add(to: &std::sync::atomic::AtomicU64, by: u64) -> u64 {
    use std::sync::atomic::Ordering::SeqCst;
    let sum = |now: u64| Some(now.saturating_add(by));
    to.fetch_update(SeqCst, SeqCst, sum).unwrap_or_else(|now| now)
}

#[cfg(feature = "sim")]
impl Clock for SimClock {
    fn wall(&self) -> CommitTs {
        CommitTs(add(&self.wall_micros, 1))
    }

    fn monotonic(&self) -> Duration {
        Duration::from_nanos(self.monotonic_nanos.load(std::sync::atomic::Ordering::SeqCst))
    }
}

#[cfg(all(test, feature = "sim"))]
mod tests {
    use super::*;

    #[test]
    fn simulated_time_moves_only_when_told_but_no_two_looks_at_the_wall_agree() {
        let clock = SimClock::new(CommitTs(1_000));
        assert_eq!((clock.wall(), clock.wall()), (CommitTs(1_000), CommitTs(1_001)));
        assert_eq!(clock.monotonic(), Duration::ZERO);
        clock.advance(Duration::from_millis(2));
        assert_eq!((clock.wall(), clock.monotonic()), (CommitTs(3_002), Duration::from_millis(2)));
        clock.set_wall(CommitTs(5));
        clock.advance(Duration::MAX);
        assert_eq!(clock.wall(), CommitTs(u64::MAX));
    }
}
