//! Clocks: from samples and stamps of one process to RTO, rates and latencies.
//!
//! Owns: the drill's clock and the definitions of first read, first write and sustained. Never: a
//! stamp of another process; across processes only durations count.

use serde::Serialize;
use tokio::time::Instant;

/// Consecutive successes of each kind that make service "sustained".
const STREAK: usize = 10;
/// Share of the rate before the fault that "sustained" asks for.
const SUSTAINED_SHARE: f64 = 0.9;
/// Window in which the rate must hold.
const SUSTAINED_WINDOW_US: u64 = 1_000_000;
/// Width of one step of the series in the report.
const SERIES_STEP_US: u64 = 250_000;

/// Microseconds since the drill began, monotonic.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock(Instant);

impl Clock {
    pub(super) fn start() -> Self {
        Self(Instant::now())
    }

    pub(super) fn us(self) -> u64 {
        self.us_at(Instant::now())
    }

    pub(super) fn us_at(self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.0).as_micros()).unwrap_or(u64::MAX)
    }
}

/// What a sample is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Read,
    Write,
    /// A planned write that was not sent: too many were under way.
    Shed,
}

/// One call of the load, as its client saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sample {
    pub(super) kind: Kind,
    /// When the timetable wanted it; latency counts from here.
    pub(super) intended_us: u64,
    pub(super) sent_us: u64,
    pub(super) done_us: u64,
    /// Epoch of a success (0 for reads, which do not say); `None` = no success.
    pub(super) epoch: Option<u64>,
}

impl Sample {
    const fn ok(&self) -> bool {
        self.epoch.is_some()
    }
}

/// Acknowledged writes per second between two stamps.
pub(super) fn rate(samples: &[Sample], from_us: u64, to_us: u64) -> f64 {
    let acked = samples.iter().filter(|s| s.kind == Kind::Write && s.ok() && (from_us..to_us).contains(&s.done_us));
    acked.count() as f64 / (to_us.saturating_sub(from_us).max(1) as f64 / 1e6)
}

/// End of the first successful call of a kind that was sent after `since_us`.
pub(super) fn first(samples: &[Sample], kind: Kind, since_us: u64) -> Option<u64> {
    samples.iter().filter(|s| s.kind == kind && s.ok() && s.sent_us >= since_us).map(|s| s.done_us).min()
}

/// End of the first write acknowledged in an epoch above `epoch`.
pub(super) fn first_write_of_epoch_after(samples: &[Sample], epoch: u64) -> Option<u64> {
    samples.iter().filter(|s| s.kind == Kind::Write && s.epoch.is_some_and(|e| e > epoch)).map(|s| s.done_us).min()
}

/// End of the first call that failed after `since_us`.
pub(super) fn first_failure(samples: &[Sample], since_us: u64) -> Option<u64> {
    samples.iter().filter(|s| !s.ok() && s.done_us >= since_us).map(|s| s.done_us).min()
}

/// When service was back for good: the moment by which ten writes and ten reads in a row, of those
/// sent after `since_us`, had succeeded, with at least nine tenths of `baseline` in the second that
/// began with the first of these writes. Calls that failed afterwards move it on.
pub(super) fn sustained(samples: &[Sample], since_us: u64, baseline: f64) -> Option<u64> {
    let of = |kind| {
        let mut s: Vec<&Sample> = samples.iter().filter(|s| s.kind == kind && s.sent_us >= since_us).collect();
        s.sort_by_key(|s| s.done_us);
        s
    };
    let (writes, reads) = (of(Kind::Write), of(Kind::Read));
    let mut from = since_us;
    loop {
        let (write_first, write_tenth) = streak(&writes, from)?;
        let (_, read_tenth) = streak(&reads, from)?;
        let end = write_first + SUSTAINED_WINDOW_US;
        if writes.last().is_none_or(|s| s.done_us < end) {
            return None;
        }
        let failed = writes.iter().chain(&reads).find(|s| !s.ok() && (write_first..end).contains(&s.done_us));
        if failed.is_none() && rate(samples, write_first, end) >= SUSTAINED_SHARE * baseline {
            return Some(write_tenth.max(read_tenth));
        }
        from = failed.map_or(write_first, |f| f.done_us) + 1;
    }
}

/// Longest time between `from_us` and `to_us` without an acknowledged write, in microseconds.
pub(super) fn longest_gap(samples: &[Sample], from_us: u64, to_us: u64) -> u64 {
    let acked = samples.iter().filter(|s| s.kind == Kind::Write && s.ok() && (from_us..to_us).contains(&s.done_us));
    let mut ends: Vec<u64> = acked.map(|s| s.done_us).chain([from_us, to_us]).collect();
    ends.sort_unstable();
    ends.windows(2).filter_map(|w| Some(w.last()? - w.first()?)).max().unwrap_or(0)
}

/// First and last end of the first ten successes in a row that ended at or after `from`.
fn streak(calls: &[&Sample], from: u64) -> Option<(u64, u64)> {
    let start = calls.partition_point(|s| s.done_us < from);
    let ten = calls.get(start..)?.windows(STREAK).find(|w| w.iter().all(|s| s.ok()))?;
    Some((ten.first()?.done_us, ten.last()?.done_us))
}

/// Latency of acknowledged writes from the intended time on, in milliseconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(super) struct Latency {
    pub(super) p50_ms: f64,
    pub(super) p99_ms: f64,
    pub(super) max_ms: f64,
}

/// Latency of the writes that were due between two stamps and were acknowledged.
pub(super) fn latency(samples: &[Sample], from_us: u64, to_us: u64) -> Option<Latency> {
    let due = samples.iter().filter(|s| s.kind == Kind::Write && s.ok() && (from_us..to_us).contains(&s.intended_us));
    let mut us: Vec<u64> = due.map(|s| s.done_us.saturating_sub(s.intended_us)).collect();
    us.sort_unstable();
    let at = |share: f64| {
        let i = ((us.len() as f64 * share).ceil() as usize).clamp(1, us.len()) - 1;
        us.get(i).map(|us| *us as f64 / 1e3)
    };
    if us.is_empty() {
        return None;
    }
    Some(Latency { p50_ms: at(0.5)?, p99_ms: at(0.99)?, max_ms: at(1.0)? })
}

/// One step of the series around the fault.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(super) struct Step {
    /// Begin of the step, seconds after the drill began.
    pub(super) at_s: f64,
    pub(super) acked: u64,
    pub(super) failed: u64,
    pub(super) reads_ok: u64,
    pub(super) reads_failed: u64,
    pub(super) p99_ms: Option<f64>,
}

/// The whole run in steps of a quarter second.
pub(super) fn series(samples: &[Sample]) -> Vec<Step> {
    let steps = samples.iter().map(|s| s.done_us / SERIES_STEP_US + 1).max().unwrap_or(0);
    let mut out: Vec<Step> =
        (0..steps).map(|i| Step { at_s: (i * SERIES_STEP_US) as f64 / 1e6, ..Step::default() }).collect();
    let mut late: Vec<Vec<u64>> = vec![Vec::new(); out.len()];
    for s in samples {
        let i = usize::try_from(s.done_us / SERIES_STEP_US).unwrap_or(usize::MAX);
        let Some(step) = out.get_mut(i) else { continue };
        match (s.kind, s.ok()) {
            (Kind::Write, true) => {
                step.acked += 1;
                late.iter_mut().skip(i).take(1).for_each(|l| l.push(s.done_us.saturating_sub(s.intended_us)));
            }
            (Kind::Write | Kind::Shed, _) => step.failed += 1,
            (Kind::Read, true) => step.reads_ok += 1,
            (Kind::Read, false) => step.reads_failed += 1,
        }
    }
    for (step, mut us) in out.iter_mut().zip(late) {
        us.sort_unstable();
        step.p99_ms = us.get((us.len() * 99 / 100).min(us.len().saturating_sub(1))).map(|us| *us as f64 / 1e3);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(kind: Kind, done_ms: u64, epoch: Option<u64>) -> Sample {
        let done_us = done_ms * 1000;
        Sample { kind, intended_us: done_us - 2000, sent_us: done_us - 1000, done_us, epoch }
    }

    /// 100 writes and 100 reads a second, none good between 1000 and 2000 ms.
    fn outage() -> Vec<Sample> {
        let mut out = Vec::new();
        for ms in (10..5000).step_by(10) {
            let good = !(1000..2000).contains(&ms);
            let epoch = if ms < 1000 { 1 } else { 2 };
            out.push(at(Kind::Write, ms, good.then_some(epoch)));
            out.push(at(Kind::Read, ms + 5, good.then_some(0)));
        }
        out
    }

    #[test]
    fn the_clocks_of_an_outage() {
        let s = outage();
        let fault = 998_000;
        assert_eq!(first_failure(&s, fault), Some(1_000_000));
        assert_eq!(first(&s, Kind::Read, fault), Some(2_005_000));
        assert_eq!(first(&s, Kind::Write, fault), Some(2_000_000));
        assert_eq!(first_write_of_epoch_after(&s, 1), Some(2_000_000));
        assert!((rate(&s, 0, 1_000_000) - 99.0).abs() < 1.0);
        assert_eq!(sustained(&s, fault, 100.0), Some(2_095_000), "the tenth read");
        assert_eq!(series(&s).iter().map(|s| s.failed).sum::<u64>(), 100);
        assert_eq!(latency(&s, 0, 1_000_000).unwrap().p50_ms, 2.0);
        assert_eq!(latency(&s, 1_000_000, 1_500_000), None);
        assert_eq!(longest_gap(&s, 500_000, 3_000_000), 1_010_000);
        assert_eq!(longest_gap(&s, 2_000_000, 3_000_000), 10_000);
        assert_eq!(longest_gap(&[], 5, 25), 20, "nothing at all is one long gap");
    }

    #[test]
    fn a_late_failure_or_a_low_rate_is_not_sustained() {
        let mut s = outage();
        s.push(at(Kind::Write, 2501, None));
        assert_eq!(sustained(&s, 998_000, 100.0), Some(2_600_000), "ten more after the failure");
        assert_eq!(sustained(&outage(), 998_000, 150.0), None, "half the rate is not the service of before");
        let short: Vec<_> = outage().into_iter().filter(|s| s.done_us < 2_500_000).collect();
        assert_eq!(sustained(&short, 998_000, 100.0), None, "a whole second must have been seen");
        assert_eq!(sustained(&[], 0, 0.0), None);
    }
}
