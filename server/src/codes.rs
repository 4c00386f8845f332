//! Exit codes of the binary, and the next step for each error code on the wire.
//!
//! Owns: the two tables. Never: formatting or printing.

/// How the process ends. The numbers are part of the interface and never change meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Done.
    Ok,
    /// Failed; what was asked for did not happen, or not completely.
    Failed,
    /// The command line or the configuration makes no sense; nothing was tried.
    Usage,
    /// Done, and something needs attention.
    Warnings,
    /// A drill or a verification came to a negative verdict.
    NegativeVerdict,
    /// The key does not exist.
    NotFound,
    /// Stopped by a signal.
    Interrupted,
}

impl Exit {
    /// The process exit code.
    #[must_use]
    pub const fn code(self) -> u8 {
        match self {
            Exit::Ok => 0,
            Exit::Failed => 1,
            Exit::Usage => 2,
            Exit::Warnings => 3,
            Exit::NegativeVerdict => 4,
            Exit::NotFound => 5,
            Exit::Interrupted => 130,
        }
    }
}

/// What to do next about an error code of the wire, where that is known.
#[must_use]
pub fn next_step(code: &str) -> Option<&'static str> {
    Some(match code {
        "NOT_PRIMARY" | "NOT_READY" => "`mainstay status` shows who is primary; `mainstay cluster promote` makes one",
        "OVERLOADED" => "send less at once, or try again shortly",
        "CONDITION_FAILED" => "read the key again (`mainstay get KEY -o json` shows its version) and decide anew",
        "INDETERMINATE" => "read the key back before writing it again: the write may have happened",
        "DISK_FULL" => "make room on the disk of the data directory; the node goes on by itself",
        "STOPPED" => "read the node's log for the cause, then restart it",
        "LOG_GONE" => "start from a newer LSN, or export the data and watch from the export's LSN on",
        "HISTORY_GONE" => "read at a newer LSN, or restore the older state with `mainstay restore --to-lsn`",
        "NO_REPOSITORY" => "start the servers with --repository URL",
        "ARCHIVE" => "`mainstay status` shows the archive's last error",
        "CORRUPTION" => "`mainstay repair` puts a good copy in the place of a damaged table, or says what else to do",
        "READ_FAILED" => {
            "`mainstay status` says whether the node's disk lost it, then `mainstay repair`; with --stale another node may \
             answer"
        }
        "NO_COPY" => "seed the node anew with `mainstay cluster reseed`, or restore it; see `mainstay repair --help`",
        "NOT_RESEEDED" => {
            "the message says what stands in the way; `mainstay status` shows who is primary and who follows it"
        }
        "NOT_PROMOTED" => {
            "bring back the nodes that are named; `mainstay cluster promote --help` says what accepting a loss means"
        }
        _ => return None,
    })
}
