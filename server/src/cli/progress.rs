//! Progress on stderr: a bar on a terminal, one line in ten seconds elsewhere.
//!
//! Owns: when and how progress is shown. Never: stdout.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::time::Instant;

use super::output;

/// Time between two lines when stderr is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unit {
    Bytes,
    Records,
}

impl Unit {
    fn show(self, n: u64) -> String {
        match self {
            Unit::Bytes => output::bytes(n),
            Unit::Records => format!("{n} records"),
        }
    }

    const fn template(self, bounded: bool) -> &'static str {
        match (self, bounded) {
            (Unit::Bytes, true) => "{prefix} {bar:30} {bytes}/{total_bytes} {bytes_per_sec} ETA {eta} {msg}",
            (Unit::Bytes, false) => "{prefix} {spinner} {bytes} {bytes_per_sec} {msg}",
            (Unit::Records, true) => "{prefix} {bar:30} {pos}/{len} records {per_sec} ETA {eta} {msg}",
            (Unit::Records, false) => "{prefix} {spinner} {pos} records {per_sec} {msg}",
        }
    }
}

/// Shows how far a long command is.
#[derive(Debug)]
pub(super) struct Progress {
    bar: Option<ProgressBar>,
    unit: Unit,
    what: &'static str,
    begun: Instant,
    line_due: Instant,
}

impl Progress {
    /// Progress in bytes; `total` 0 when unknown.
    pub(super) fn bytes(what: &'static str, total: u64) -> Self {
        Self::new(what, total, Unit::Bytes)
    }

    /// Progress in records; `total` 0 when unknown.
    pub(super) fn records(what: &'static str, total: u64) -> Self {
        Self::new(what, total, Unit::Records)
    }

    fn new(what: &'static str, total: u64, unit: Unit) -> Self {
        let begun = Instant::now();
        let bar = std::io::stderr().is_terminal().then(|| {
            let bounded = total > 0;
            let bar = ProgressBar::with_draw_target(bounded.then_some(total), ProgressDrawTarget::stderr_with_hz(5));
            // The templates are constants of this file; a wrong one would only fall back to the plain bar.
            let style = ProgressStyle::with_template(unit.template(bounded));
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar.set_prefix(what);
            bar
        });
        Self { bar, unit, what, begun, line_due: begun + LINE_EVERY }
    }

    /// Now at `done` of `total`; `more` says something besides.
    pub(super) fn at(&mut self, done: u64, total: u64, more: impl FnOnce() -> String) {
        if let Some(bar) = &self.bar {
            if total > 0 {
                bar.set_length(total);
            }
            bar.set_position(done);
            bar.set_message(more());
            return;
        }
        let now = Instant::now();
        if now >= self.line_due {
            self.line_due = now + LINE_EVERY;
            let of = if total > 0 { format!(" of {}", self.unit.show(total)) } else { String::new() };
            let seconds = self.begun.elapsed().as_secs();
            output::say(format!("{}: {}{of} in {seconds} s {}", self.what, self.unit.show(done), more()));
        }
    }

    /// Seconds since it began.
    pub(super) fn seconds(&self) -> f64 {
        self.begun.elapsed().as_secs_f64()
    }

    /// Takes the bar away.
    pub(super) fn clear(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
