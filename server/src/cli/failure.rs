//! From an error to text on stderr and an exit code.
//!
//! Owns: `error:`, the chain of causes, and a `next:` line where the next step is known. Never: a
//! panic because stderr or stdout is closed.

use std::io::{ErrorKind, IsTerminal, Write};
use std::process::ExitCode;

use crate::codes::{Exit, next_step};
use crate::config::ConfigError;

/// What was asked for makes no sense; nothing was tried.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Usage(pub String);

/// An error whose next step is known where it arises.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub(super) struct Hint {
    /// What happened.
    pub(super) what: String,
    /// What to do about it.
    pub(super) next: String,
    /// How the process ends.
    pub(super) exit: Exit,
}

/// A [`Usage`] error.
pub(super) fn usage(text: impl Into<String>) -> anyhow::Error {
    Usage(text.into()).into()
}

/// The exit code and the next step of an error.
fn classify(e: &anyhow::Error) -> (Exit, Option<String>) {
    for cause in e.chain() {
        if cause.downcast_ref::<Usage>().is_some() || cause.downcast_ref::<ConfigError>().is_some() {
            return (Exit::Usage, None);
        }
        if let Some(hint) = cause.downcast_ref::<Hint>() {
            return (hint.exit, Some(hint.next.clone()));
        }
        if let Some(client) = cause.downcast_ref::<mainstay_client::Error>() {
            return (Exit::Failed, next_step(client.code()).map(str::to_owned));
        }
        if let Some(backup) = cause.downcast_ref::<mainstay_backup::Error>() {
            let exit = if matches!(backup, mainstay_backup::Error::Url { .. }) { Exit::Usage } else { Exit::Failed };
            return (exit, backup_step(backup));
        }
    }
    (Exit::Failed, None)
}

fn backup_step(e: &mainstay_backup::Error) -> Option<String> {
    use mainstay_backup::{Error as E, StoreKind as K};
    let step = match e {
        E::Gap { .. } => {
            "choose a target before the gap, or not before a base behind it; `mainstay backup list` shows the bases"
        }
        E::AfterArchive { .. } | E::BeforeWindow { .. } | E::NoBase { .. } => {
            "`mainstay backup list` shows what there is; --to-latest restores the end of the archive"
        }
        E::Leftover { path } => return Some(format!("`rm -r {path}`, then run it again")),
        E::Store { kind: K::NotFound, .. } => "create the bucket, or correct the URL",
        E::Store { kind: K::Denied, .. } => {
            "check the credentials in the environment and that they may list, read and create objects there"
        }
        E::Store { kind: K::Transient, .. } => "check the URL and its endpoint, and that the store answers there",
        _ => return None,
    };
    Some(step.to_owned())
}

fn is_closed_pipe(e: &anyhow::Error) -> bool {
    e.chain().any(|c| c.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == ErrorKind::BrokenPipe))
}

/// Prints the error and says how the process ends. A closed pipe on stdout is the reader's wish and
/// ends the process quietly.
pub(super) fn report(e: &anyhow::Error) -> ExitCode {
    if is_closed_pipe(e) {
        return ExitCode::from(Exit::Ok.code());
    }
    let (exit, next) = classify(e);
    let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
    let _ = std::io::stderr().write_all(text(e, next.as_deref(), colour).as_bytes());
    ExitCode::from(exit.code())
}

fn text(e: &anyhow::Error, next: Option<&str>, colour: bool) -> String {
    let (red, cyan, off) = if colour { ("\x1b[1;31m", "\x1b[1;36m", "\x1b[0m") } else { ("", "", "") };
    let mut out = format!("{red}error:{off} {e}\n");
    let mut said = e.to_string();
    for cause in e.chain().skip(1).map(ToString::to_string) {
        // Some libraries repeat their cause in their own text.
        if !said.contains(&cause) {
            out.push_str(&format!("  because: {cause}\n"));
        }
        said = cause;
    }
    if let Some(next) = next {
        out.push_str(&format!("{cyan}next:{off} {next}\n"));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chain_is_printed_once_and_without_colour() {
        let e = anyhow::anyhow!("disk on fire").context("cannot write: disk on fire").context("put failed");
        assert_eq!(
            text(&e, Some("run"), false),
            "error: put failed\n  because: cannot write: disk on fire\nnext: run\n"
        );
    }

    #[test]
    fn usage_and_hints_are_found_below_contexts() {
        let e = usage("no").context("while asking");
        assert_eq!(classify(&e).0, Exit::Usage);
        let hint = Hint { what: "x".into(), next: "y".into(), exit: Exit::NotFound };
        assert_eq!(classify(&anyhow::Error::new(hint).context("z")), (Exit::NotFound, Some("y".into())));
        assert!(is_closed_pipe(&anyhow::Error::new(std::io::Error::from(ErrorKind::BrokenPipe)).context("out")));
    }
}
