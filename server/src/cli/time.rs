//! Moments and durations as people write them.
//!
//! Owns: parsing and the echo in UTC. Never: a moment without a zone (it means another time on
//! another machine).

use std::time::Duration;

use jiff::{Span, SpanRelativeTo, Timestamp};

/// A moment in microseconds since the Unix epoch: RFC 3339 with a zone, `@MICROS`, `now`, `-15m`,
/// `10 minutes ago`.
///
/// # Errors
/// What is accepted instead.
pub(super) fn parse_moment(text: &str) -> Result<u64, String> {
    parse_moment_at(text, Timestamp::now())
}

fn parse_moment_at(text: &str, now: Timestamp) -> Result<u64, String> {
    let text = text.trim();
    if let Some(micros) = text.strip_prefix('@') {
        return micros.parse().map_err(|_| format!("{micros:?} is not a number of microseconds since the Unix epoch"));
    }
    if text == "now" {
        return micros(now);
    }
    if let Ok(at) = text.parse::<Timestamp>() {
        return micros(at);
    }
    if text.parse::<jiff::civil::DateTime>().is_ok() {
        return Err(format!("{text:?} names no time zone; append Z for UTC, or an offset such as +02:00"));
    }
    let accepted = "expected a time such as 2026-11-23T10:00:00Z, -15m, \"10 minutes ago\" or @MICROSECONDS";
    let span: Span = text.parse().map_err(|_| accepted.to_owned())?;
    let back = span.to_duration(SpanRelativeTo::days_are_24_hours());
    let back = back.map_err(|_| format!("{text:?}: months and years differ in length; give days"))?;
    if back.is_positive() {
        return Err(format!("{text:?} lies in the future; write -{text} or \"{text} ago\""));
    }
    micros(now.checked_add(back).map_err(|e| e.to_string())?)
}

fn micros(at: Timestamp) -> Result<u64, String> {
    u64::try_from(at.as_microsecond()).map_err(|_| "times before 1970 have no records".to_owned())
}

/// A moment in UTC, to the microsecond: `2026-11-23T10:00:00.000000Z`.
pub(super) fn utc(micros: u64) -> String {
    match i64::try_from(micros).ok().and_then(|us| Timestamp::from_microsecond(us).ok()) {
        Some(at) => format!("{at:.6}"),
        None => format!("@{micros}"),
    }
}

/// Microseconds since the Unix epoch, now, by this machine's clock.
pub(super) fn now_us() -> u64 {
    u64::try_from(Timestamp::now().as_microsecond()).unwrap_or(0)
}

/// A duration above zero: `500ms`, `10s`, `1m 30s`.
///
/// # Errors
/// What is accepted instead.
pub(super) fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || "expected a duration such as 500ms, 10s, 5m or 1h 30m".to_owned();
    let span: Span = text.trim().parse().map_err(|_| wrong())?;
    let d = span.to_duration(SpanRelativeTo::days_are_24_hours()).map_err(|_| wrong())?;
    let d = Duration::try_from(d).map_err(|_| wrong())?;
    if d.is_zero() { Err("must be longer than zero".to_owned()) } else { Ok(d) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_exact_and_have_a_zone() {
        let now: Timestamp = "2026-11-23T10:00:00Z".parse().unwrap();
        for (text, want) in [
            ("2026-11-23T09:45:00Z", "2026-11-23T09:45:00.000000Z"),
            ("2026-11-23T09:45Z", "2026-11-23T09:45:00.000000Z"),
            ("2026-11-23T11:45:00.25+02:00", "2026-11-23T09:45:00.250000Z"),
            ("2026-11-23 09:45:00.000007Z", "2026-11-23T09:45:00.000007Z"),
            ("-15m", "2026-11-23T09:45:00.000000Z"),
            ("10 minutes ago", "2026-11-23T09:50:00.000000Z"),
            ("-1h30m", "2026-11-23T08:30:00.000000Z"),
            ("2 days ago", "2026-11-21T10:00:00.000000Z"),
            ("now", "2026-11-23T10:00:00.000000Z"),
            ("@1", "1970-01-01T00:00:00.000001Z"),
        ] {
            assert_eq!(parse_moment_at(text, now).map(utc).as_deref(), Ok(want), "{text}");
        }
    }

    #[test]
    fn what_is_ambiguous_is_refused_with_the_remedy() {
        let now: Timestamp = "2026-11-23T10:00:00Z".parse().unwrap();
        for (text, remedy) in [
            ("2026-11-23T09:45:00", "append Z"),
            ("2026-11-23", "append Z"),
            ("15m", "-15m"),
            ("1 month ago", "give days"),
            ("yesterday", "expected a time"),
            ("@-1", "microseconds"),
            ("1960-01-01T00:00:00Z", "1970"),
            ("", "expected a time"),
        ] {
            let e = parse_moment_at(text, now).unwrap_err();
            assert!(e.contains(remedy), "{text}: {e}");
        }
    }

    #[test]
    fn durations_are_positive() {
        assert_eq!(parse_duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_duration("1h 30m"), Ok(Duration::from_secs(5400)));
        for bad in ["", "10", "-5s", "0s", "soon"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn any_number_prints() {
        assert_eq!(utc(u64::MAX), format!("@{}", u64::MAX));
    }
}
