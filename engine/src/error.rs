//! What can go wrong in the engine, named with the file, offset and LSN where there are any.
//!
//! Owns: the error type and what its kinds mean to a caller. Never: logging; an error is reported
//! by whoever stops it.

use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use crate::batch::{Condition, LimitError};
use crate::codec::Malformed;
use crate::lsn::Lsn;

/// Result of an engine call.
pub type Result<T> = std::result::Result<T, Error>;

/// An engine error. Its text says what happened, to what, and what to do next.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused; nothing more is known.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was attempted, as a verb.
        action: &'static str,
        /// To which file.
        path: PathBuf,
        /// The operating system's answer.
        source: io::Error,
    },
    /// No room on the disk; nothing of this call was kept. Free space and try again.
    #[error(
        "disk full while writing {}{}; free space, nothing acknowledged is lost",
        path.display(), kept_back.map(|s| s.to_string()).unwrap_or_default()
    )]
    DiskFull {
        /// The file that could not grow; the directory where writing was not tried.
        path: PathBuf,
        /// Refused before the operating system did, because of this.
        kept_back: Option<Shortage>,
    },
    /// The process, or the machine, has as many files open as it may; nothing of this call was done, and it may succeed
    /// later. Only of calls that need one more: a write or a sync that fails so is like any other that fails.
    #[error(
        "cannot {action} {}: {source}; raise the limit of open files (`ulimit -n`, LimitNOFILE=), nothing acknowledged \
         is lost", path.display()
    )]
    TooManyFiles {
        /// What was attempted, as a verb.
        action: &'static str,
        /// Which file.
        path: PathBuf,
        /// The operating system's answer.
        source: io::Error,
    },
    /// Bytes that were durable are damaged or missing. Nothing was changed.
    #[error("corruption in {} at offset {offset}{}: {what}; restore this node from a replica or a backup", path.display(), lsn.map(|l| format!(" (LSN {l})")).unwrap_or_default())]
    Corruption {
        /// The damaged file.
        path: PathBuf,
        /// Where in it, in bytes.
        offset: u64,
        /// Which record, where known.
        lsn: Option<Lsn>,
        /// What does not fit.
        what: String,
    },
    /// The store has stopped after an error that may have lost data under it \[I3\].
    #[error("the store has stopped: {0}; restart the process, recovery decides what was durable")]
    Stopped(String),
    /// A write has its LSN, and the store stopped before it was as sure as was asked for.
    #[error("nobody knows whether the write at LSN {lsn} was kept: {why}; read before writing again")]
    Indeterminate {
        /// The write.
        lsn: Lsn,
        /// What ended it.
        why: String,
    },
    /// Too many writes were submitted and are not completed; nothing was written.
    #[error("{outstanding} writes of {} are outstanding; wait for one of them and try again, nothing was written", crate::error::bytes(*bytes as u64))]
    Overloaded {
        /// Their number.
        outstanding: usize,
        /// Bytes of their batches.
        bytes: usize,
    },
    /// A limit; nothing was written.
    #[error(transparent)]
    Limit(#[from] LimitError),
    /// A condition of the batch does not hold; nothing was written.
    #[error("condition on a key of {} bytes does not hold (expected {:?})", .0.key.len(), .0.expect)]
    ConditionFailed(Box<Condition>),
    /// Bytes from outside do not follow the format.
    #[error("{0}")]
    Malformed(#[from] Malformed),
    /// A record from a peer or an archive does not continue this log.
    #[error("{0}")]
    Record(#[from] crate::record::RecordError),
    /// A record that brings tables in came from another store, whose tables are not here.
    #[error(
        "the record at LSN {lsn} takes in tables that only the embedded store has which wrote it; begin from a \
         checkpoint of that store"
    )]
    ForeignIngest {
        /// The record.
        lsn: Lsn,
    },
    /// The log no longer reaches back that far.
    #[error("the log before LSN {oldest} is gone (asked for {asked}); start from a checkpoint or the archive")]
    LogGone {
        /// The LSN asked for.
        asked: Lsn,
        /// The oldest LSN still in the log.
        oldest: Lsn,
    },
    /// Versions that old are no longer kept.
    #[error(
        "versions at LSN {asked} are no longer kept (history reaches back to LSN {floor}); restore from a backup instead"
    )]
    HistoryGone {
        /// The LSN asked for.
        asked: Lsn,
        /// The oldest LSN that can still be read at.
        floor: Lsn,
    },
    /// Asked to read above what the tree has taken in.
    #[error("LSN {asked} is not applied here yet (applied up to {applied}); wait for it or read at a lower LSN")]
    NotApplied {
        /// The LSN asked for.
        asked: Lsn,
        /// The newest LSN that can be read at.
        applied: Lsn,
    },
    /// Asked to cut records that are committed here \[I8\].
    #[error("refusing to cut the log at LSN {asked}: records up to {committed} are committed here")]
    BelowCommit {
        /// Where the cut was asked for.
        asked: Lsn,
        /// The local commit LSN.
        committed: Lsn,
    },
    /// Another process has the data directory.
    #[error("data directory {} is in use by another process; stop it or choose another directory", .0.display())]
    InUse(PathBuf),
    /// A file is of a format that this program does not know.
    #[error("{} is of format {found}, this program knows {known}; use a newer program", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// The format found.
        found: u32,
        /// The newest format known.
        known: u32,
    },
    /// The directory holds something else, or is not what the caller expected.
    #[error("{}: {what}", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What is wrong with it and what to do.
        what: String,
    },
}

/// Whether a file was refused because the process or the machine has too many open.
pub(crate) fn too_many_files(e: &io::Error) -> bool {
    matches!(Errno::from_io_error(e), Some(Errno::MFILE | Errno::NFILE))
}

/// What may be concluded from a write's error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorClass {
    /// Nothing was written; the same call may succeed later.
    NotExecuted,
    /// The write may or may not have been kept: read before writing again.
    Indeterminate,
    /// Nothing was written, and repeating the same call cannot succeed.
    NeverRetry,
}

/// What was free and what was needed, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shortage {
    /// Free.
    pub free: u64,
    /// Needed, with what is kept back.
    pub needed: u64,
}

impl std::fmt::Display for Shortage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, " ({} free, {} needed with the reserve)", bytes(self.free), bytes(self.needed))
    }
}

/// A number of bytes for a person.
pub(crate) fn bytes(n: u64) -> String {
    if n < 1 << 20 { format!("{:.1} KiB", n as f64 / 1024.0) } else { format!("{:.1} MiB", n as f64 / 1_048_576.0) }
}

impl From<crate::fs::NotReplaced> for Error {
    fn from(e: crate::fs::NotReplaced) -> Self {
        match e {
            crate::fs::NotReplaced::Create { path, source } => Error::io("create", &path, source),
            crate::fs::NotReplaced::Write { path, source } => Error::io("write", &path, source),
            // Whatever the system says: nobody may try again.
            crate::fs::NotReplaced::Sync { path, source } => Error::Io { action: "sync", path, source },
        }
    }
}

impl Error {
    /// What may be concluded when a write fails with this.
    #[must_use]
    pub const fn class(&self) -> ErrorClass {
        match self {
            Error::DiskFull { .. } | Error::TooManyFiles { .. } | Error::Overloaded { .. } => ErrorClass::NotExecuted,
            Error::ConditionFailed(_) | Error::Limit(_) | Error::Malformed(_) | Error::Directory { .. } => {
                ErrorClass::NeverRetry
            }
            _ => ErrorClass::Indeterminate,
        }
    }

    /// The file whose bytes are damaged, or which the disk does not give, by this error. `None` when it says nothing of
    /// a file's bytes, as when the process has too many files open or too little memory.
    #[must_use]
    pub fn damaged_file(&self) -> Option<&Path> {
        match self {
            Error::Corruption { path, .. } => Some(path),
            Error::Io { path, source, .. } if crate::inspect::bytes_are_lost(source) => Some(path),
            _ => None,
        }
    }

    /// Wraps an operating-system error; a full disk gets its own kind, and so does one more open file that was refused
    /// where `action` says that it was for one ("open", "create", "list", "lock").
    pub fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        if matches!(action, "open" | "create" | "list" | "lock") && too_many_files(&source) {
            return Error::TooManyFiles { action, path: path.to_owned(), source };
        }
        if source.kind() == io::ErrorKind::StorageFull || source.kind() == io::ErrorKind::QuotaExceeded {
            Error::DiskFull { path: path.to_owned(), kept_back: None }
        } else {
            Error::Io { action, path: path.to_owned(), source }
        }
    }

    /// A sync that failed, which is final whatever the operating system says \[I3\]: never a shortage that passes.
    #[must_use]
    pub fn failed_sync(path: &Path, source: io::Error) -> Self {
        Error::Io { action: "sync", path: path.to_owned(), source }
    }

    /// Whether this is a failed sync: the file may read well and be lost, and no second sync of it proves anything.
    #[must_use]
    pub fn is_failed_sync(&self) -> bool {
        matches!(self, Error::Io { action: "sync", .. })
    }

    /// Whether room or another open file was wanting: nothing of the work was done, and it is worth trying again by
    /// itself after a while.
    #[must_use]
    pub const fn is_shortage(&self) -> bool {
        matches!(self, Error::DiskFull { .. } | Error::TooManyFiles { .. })
    }

    /// Whether room was refused that the operating system would still have given.
    #[must_use]
    pub const fn is_kept_back(&self) -> bool {
        matches!(self, Error::DiskFull { kept_back: Some(_), .. })
    }

    /// A damaged place.
    pub fn corruption(path: &Path, offset: u64, lsn: Option<Lsn>, what: impl Into<String>) -> Self {
        Error::Corruption { path: path.to_owned(), offset, lsn, what: what.into() }
    }
}
