//! How often a call may be repeated: within its deadline, with full jitter, and within a budget, so
//! that retries never multiply an outage.
//!
//! Owns: pauses and the budget (Finagle's: a fifth of the calls, with a floor of ten a second).
//! Never: which errors may be retried.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

const FLOOR_PER_SECOND: f64 = 10.0;
const SHARE: f64 = 0.2;
const BALANCE_MAX: f64 = 100.0;
const PAUSE_MIN: Duration = Duration::from_millis(10);
const PAUSE_MAX: Duration = Duration::from_millis(500);

/// Tokens that retries take and calls earn.
#[derive(Debug)]
pub(crate) struct Budget {
    state: Mutex<(f64, Instant)>,
    dice: Mutex<u64>,
}

impl Budget {
    pub(crate) fn new() -> Self {
        use std::hash::{BuildHasher, Hasher};
        // Jitter needs no more than different numbers in different processes.
        let seed = std::collections::hash_map::RandomState::new().build_hasher().finish() | 1;
        Self { state: Mutex::new((BALANCE_MAX / 2.0, Instant::now())), dice: Mutex::new(seed) }
    }

    /// A call begins.
    pub(crate) fn earn(&self) {
        let mut s = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        s.0 = (s.0 + SHARE).min(BALANCE_MAX);
    }

    /// Takes a token; false when there is none.
    pub(crate) fn take(&self) -> bool {
        self.take_at(Instant::now())
    }

    fn take_at(&self, now: Instant) -> bool {
        let mut s = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        s.0 = (s.0 + now.duration_since(s.1).as_secs_f64() * FLOOR_PER_SECOND).min(BALANCE_MAX);
        s.1 = now;
        let enough = s.0 >= 1.0;
        if enough {
            s.0 -= 1.0;
        }
        enough
    }

    /// Pause before attempt `n` (from 1): anything up to a bound that doubles.
    pub(crate) fn pause(&self, n: u32) -> Duration {
        let mut x = self.dice.lock().unwrap_or_else(PoisonError::into_inner);
        *x ^= *x << 13;
        *x ^= *x >> 7;
        *x ^= *x << 17;
        let bound = PAUSE_MIN.saturating_mul(1 << n.min(10)).min(PAUSE_MAX);
        let part = (*x >> 11) as f64 / (1u64 << 53) as f64;
        bound.mul_f64(part).max(Duration::from_millis(2))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retries_are_bounded_by_calls_and_time() {
        let budget = Budget::new();
        let now = budget.state.lock().unwrap().1;
        let spend = |at| (0..1000).filter(|_| budget.take_at(at)).count();
        assert_eq!(spend(now), 50, "what was there at the start");
        (0..52).for_each(|_| budget.earn());
        assert_eq!(spend(now), 10, "a fifth of the calls");
        assert_eq!(spend(now + Duration::from_secs(2)), 20, "ten a second");
        assert_eq!(spend(now + Duration::from_secs(3600)), 100, "never more than was saved up");
    }

    #[test]
    fn pauses_grow_to_a_bound() {
        let budget = Budget::new();
        for n in 1..40 {
            assert!(budget.pause(n) <= PAUSE_MAX && budget.pause(n) >= Duration::from_millis(2));
        }
    }
}
