//! What can go wrong between a cluster and its repository, in words that name the object and the
//! next step.
//!
//! Owns: the error type, and the redaction of store texts. Never: credentials in a text; logging.

use mainstay_engine::{ClusterId, CommitTs, Epoch, Lsn, TimelineId};

use crate::plan::{Missing, Window};

/// Result of a repository call.
pub type Result<T> = std::result::Result<T, Error>;

/// What kind of answer a store gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreKind {
    /// The object, bucket or directory does not exist.
    NotFound,
    /// The name is taken.
    AlreadyExists,
    /// The store refused these credentials.
    Denied,
    /// The store cannot do this at all; repeating is useless.
    Unsupported,
    /// Anything else (network, 5xx, time-out): the outcome may be unknown, repeating may help.
    Transient,
}

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The URL of a repository cannot be used.
    #[error("repository URL {url}: {what}")]
    Url {
        /// The URL, without credentials.
        url: String,
        /// What is wrong and what to write instead.
        what: String,
    },
    /// The object store answered with an error.
    #[error("cannot {action} {object} in {url}: {text}")]
    Store {
        /// What was attempted, as a verb.
        action: &'static str,
        /// Which object or prefix.
        object: String,
        /// The repository, without credentials.
        url: String,
        /// The store's own text, redacted.
        text: String,
        /// What kind of answer it is.
        kind: StoreKind,
    },
    /// The store lacks what the repository's safety stands on.
    #[error("{url} cannot hold a repository: {what}")]
    Probe {
        /// The repository, without credentials.
        url: String,
        /// What it failed to do.
        what: String,
    },
    /// The repository belongs to another cluster.
    #[error("repository {url} belongs to cluster {found}, this is cluster {expected}; use another prefix")]
    ForeignCluster {
        /// The repository.
        url: String,
        /// The cluster in `repo.json`.
        found: ClusterId,
        /// The cluster of the caller.
        expected: ClusterId,
    },
    /// The location holds no repository.
    #[error("{0} holds no repository (no repo.json); check the URL and its prefix")]
    NoRepository(String),
    /// An object is of a format that this program does not know.
    #[error("{object} is of format {found}, this program knows {known}; use a newer program")]
    NewerFormat {
        /// Name of the object.
        object: String,
        /// The format found.
        found: u32,
        /// The newest format known.
        known: u32,
    },
    /// An object is damaged.
    #[error("{object} is damaged: {what}")]
    Damaged {
        /// Name of the object.
        object: String,
        /// What does not fit.
        what: String,
    },
    /// A create-only name holds other bytes than this writer would put there: two writers are at
    /// work on one lineage. Nothing was overwritten.
    #[error("{object} in {url} exists with other content: another writer archives this lineage; archiving stops")]
    Conflict {
        /// Name of the object.
        object: String,
        /// The repository.
        url: String,
    },
    /// A newer epoch has its fence: this writer was deposed.
    #[error(
        "epoch {newer} of timeline {timeline} is fenced, this archiver is of epoch {own}: it was deposed and stops"
    )]
    Fenced {
        /// The timeline.
        timeline: TimelineId,
        /// The epoch of this writer.
        own: Epoch,
        /// The highest fenced epoch.
        newer: Epoch,
    },
    /// The log and the archive disagree about history.
    #[error("the log does not continue the archive after LSN {after} of timeline {timeline}: {what}; archiving stops")]
    Diverged {
        /// The timeline.
        timeline: TimelineId,
        /// Where the archive ends.
        after: Lsn,
        /// What does not fit.
        what: String,
    },
    /// A record above the commit LSN was about to be archived \[I9\].
    #[error("record {lsn} is above the commit LSN {committed}; archiving stops")]
    AboveCommit {
        /// LSN of the record.
        lsn: Lsn,
        /// The commit LSN.
        committed: Lsn,
    },
    /// The log no longer reaches back to where the archive ends.
    #[error(
        "the archive of timeline {timeline} ends at LSN {archived}, the log begins at {oldest}: LSN {}-{} are in no archive; \
         `mainstay backup create --accept-gap` takes a new base backup and goes on behind them", archived.next(), oldest.prev()
    )]
    LogGap {
        /// The timeline.
        timeline: TimelineId,
        /// Last LSN archived.
        archived: Lsn,
        /// First LSN still in the log.
        oldest: Lsn,
    },
    /// Log objects that the target needs are missing.
    #[error("cannot restore: the archive lacks {}", missing.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "))]
    Gap {
        /// The missing ranges.
        missing: Vec<Missing>,
    },
    /// No base backup can serve the target.
    #[error(
        "no base backup at or before the target on timeline {timeline} or its parents; take one with `backup create`"
    )]
    NoBase {
        /// The timeline.
        timeline: TimelineId,
    },
    /// The target is newer than the archive.
    #[error("target {target} is after the end of the archive; restorable: {window}")]
    AfterArchive {
        /// What was asked for.
        target: String,
        /// What can be restored.
        window: Window,
    },
    /// The target is older than the oldest base backup.
    #[error("target {target} is before the oldest base backup; restorable: {window}")]
    BeforeWindow {
        /// What was asked for.
        target: String,
        /// What can be restored.
        window: Window,
    },
    /// The LSN lies in the jump between two timelines: no record ever had it.
    #[error(
        "no record has LSN {lsn}: timeline {timeline} starts at LSN {start} and continues its parent after LSN {fork}"
    )]
    InJump {
        /// The LSN asked for.
        lsn: Lsn,
        /// The younger timeline.
        timeline: TimelineId,
        /// Last LSN of the parent in this history.
        fork: Lsn,
        /// First LSN of the younger timeline.
        start: Lsn,
    },
    /// Several timelines could be meant.
    #[error("which timeline is meant is not clear: {0}; name one with --timeline")]
    Ambiguous(String),
    /// The timeline is not in the repository.
    #[error("timeline {timeline} is not in the repository; it holds {known}")]
    UnknownTimeline {
        /// The timeline asked for.
        timeline: TimelineId,
        /// The timelines it holds.
        known: String,
    },
    /// A restore did not land where its plan said \[I11\]; the directory was not put in place.
    #[error("restore refused: {0}")]
    Unverified(String),
    /// The directory for a restore is in use or not empty.
    #[error("{path}: {what}")]
    Directory {
        /// The directory.
        path: String,
        /// What is wrong with it and what to do.
        what: String,
    },
    /// The working directory of another restore is in the way. It holds no finished restore.
    #[error(
        "{path} is left over from another restore, which did not finish; remove it, or restore into another directory"
    )]
    Leftover {
        /// The working directory.
        path: String,
    },
    /// A sync failed: the bytes may read well and be lost \[I3\]. Nothing of what was written is used.
    #[error(
        "cannot sync {path}: {source}; what was written there may be lost although it reads well, so it is not used. Look at \
         the disk first; then restore again, which writes all of it anew"
    )]
    NotSynced {
        /// The file or directory.
        path: String,
        /// The operating system's answer.
        source: std::io::Error,
    },
    /// The engine refused.
    #[error(transparent)]
    Engine(#[from] mainstay_engine::Error),
    /// The caller stopped the work.
    #[error("stopped by the caller")]
    Stopped,
    /// A background task ended without a result.
    #[error("internal task failed: {0}")]
    Task(String),
}

impl Error {
    /// Whether the same call may succeed later.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        matches!(self, Error::Store { kind: StoreKind::Transient, .. })
    }

    /// Whether the store says that the object does not exist.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        matches!(self, Error::Store { kind: StoreKind::NotFound, .. })
    }

    pub(crate) fn not_synced(path: &std::path::Path, source: std::io::Error) -> Self {
        Error::NotSynced { path: path.display().to_string(), source }
    }

    pub(crate) fn damaged(object: impl ToString, what: impl ToString) -> Self {
        Error::Damaged { object: object.to_string(), what: what.to_string() }
    }
}

impl From<mainstay_engine::record::RecordError> for Error {
    fn from(e: mainstay_engine::record::RecordError) -> Self {
        Error::Engine(e.into())
    }
}

impl From<tokio::task::JoinError> for Error {
    fn from(e: tokio::task::JoinError) -> Self {
        Error::Task(e.to_string())
    }
}

/// A moment as text, for messages: microseconds since the Unix epoch are exact, so they stay.
pub(crate) fn moment(ts: CommitTs) -> String {
    let days = ts.0 / 86_400_000_000;
    let (y, m, d) = civil(days);
    let s = ts.0 / 1_000_000 % 86_400;
    format!("{y:04}-{m:02}-{d:02}T{:02}:{:02}:{:02}.{:06}Z", s / 3600, s / 60 % 60, s % 60, ts.0 % 1_000_000)
}

/// Days since 1970-01-01 to a date (Howard Hinnant's algorithm, for days that are not negative).
fn civil(days: u64) -> (u64, u64, u64) {
    let z = days + 719_468;
    let (era, doe) = (z / 146_097, z % 146_097);
    let yoe = (doe - doe / 1_460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let m = if mp < 10 { mp + 3 } else { mp - 9 };
    (yoe + era * 400 + u64::from(m <= 2), m, doy - (153 * mp + 2) / 5 + 1)
}

/// Takes what signs or authorises a request out of a text that a store produced.
pub(crate) fn redact(text: &str) -> String {
    const SECRET: [&str; 7] =
        ["sig=", "X-Amz-Signature=", "X-Amz-Credential=", "X-Amz-Security-Token=", "access_token=", "key=", "token="];
    let mut out = text.to_owned();
    for name in SECRET {
        let mut from = 0;
        while let Some(at) = out.get(from..).and_then(|rest| rest.find(name)) {
            let start = from + at + name.len();
            let end =
                out.get(start..).and_then(|r| r.find(['&', ' ', '"', ')', '\n'])).map_or(out.len(), |e| start + e);
            out.replace_range(start..end, "***");
            from = start + 3;
        }
    }
    for var in ["AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AZURE_STORAGE_ACCOUNT_KEY"] {
        if let Ok(secret) = std::env::var(var)
            && secret.len() >= 4
        {
            out = out.replace(&secret, "***");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_read_as_dates() {
        assert_eq!(moment(CommitTs(0)), "1970-01-01T00:00:00.000000Z");
        assert_eq!(moment(CommitTs(1_709_210_096_000_007)), "2024-02-29T12:34:56.000007Z");
    }

    #[test]
    fn what_signs_a_request_is_taken_out() {
        let text = redact("GET https://x.blob/c/o?sv=2020&sig=abc%3D&se=1 (X-Amz-Credential=AK/2024) failed");
        assert_eq!(text, "GET https://x.blob/c/o?sv=2020&sig=***&se=1 (X-Amz-Credential=***) failed");
    }
}
