//! What a running drill tells its operator, on stderr.
//!
//! Owns: a spinner on a terminal, plain lines elsewhere. Never: stdout.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget};

/// Speaks on stderr.
#[derive(Debug)]
pub(super) struct Voice {
    bar: Option<ProgressBar>,
}

impl Voice {
    pub(super) fn new() -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(5));
            bar.enable_steady_tick(Duration::from_millis(200));
            bar
        });
        Self { bar }
    }

    pub(super) fn line(&self, text: String) {
        match &self.bar {
            Some(bar) => {
                bar.println(&text);
                bar.set_message(text);
            }
            // A closed stderr is no reason to stop.
            None => drop(writeln!(std::io::stderr(), "{text}")),
        }
    }
}

impl Drop for Voice {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
