//! Why an operation failed, in the three classes a caller can act on, with a stable code.
//!
//! Owns: the mapping from engine errors to codes. Never: keys or values in a message.

use mainstay_engine::Error;

/// What a caller may conclude.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Nothing happened; the call may be repeated.
    NotExecuted,
    /// It may or may not have happened \[I1\].
    Indeterminate,
    /// Repeating the same call cannot succeed.
    NeverRetry,
}

impl Class {
    /// The word on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Class::NotExecuted => "not_executed",
            Class::Indeterminate => "indeterminate",
            Class::NeverRetry => "never_retry",
        }
    }
}

/// Stable codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// Ask the primary.
    NotPrimary,
    /// The node is starting.
    NotReady,
    /// Too much work is waiting.
    Overloaded,
    /// A condition does not hold.
    ConditionFailed,
    /// A limit is exceeded.
    Limit,
    /// The outcome is unknown.
    Indeterminate,
    /// No room on the disk.
    DiskFull,
    /// The store has stopped.
    Stopped,
    /// The log no longer reaches back.
    LogGone,
    /// Versions that old are gone.
    HistoryGone,
    /// The request makes no sense.
    BadRequest,
    /// No repository is configured.
    NoRepository,
    /// The archive or the backup failed.
    Archive,
    /// Damaged data.
    Corruption,
    /// The disk or the operating system did not give what a read needs.
    ReadFailed,
    /// The promotion did not come about.
    NotPromoted,
    /// Nobody has a good copy of a damaged table.
    NoCopy,
    /// This node's data cannot be given up and seeded anew now.
    NotReseeded,
}

impl Code {
    /// The word on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Code::NotPrimary => "NOT_PRIMARY",
            Code::NotReady => "NOT_READY",
            Code::Overloaded => "OVERLOADED",
            Code::ConditionFailed => "CONDITION_FAILED",
            Code::Limit => "LIMIT",
            Code::Indeterminate => "INDETERMINATE",
            Code::DiskFull => "DISK_FULL",
            Code::Stopped => "STOPPED",
            Code::LogGone => "LOG_GONE",
            Code::HistoryGone => "HISTORY_GONE",
            Code::BadRequest => "BAD_REQUEST",
            Code::NoRepository => "NO_REPOSITORY",
            Code::Archive => "ARCHIVE",
            Code::Corruption => "CORRUPTION",
            Code::ReadFailed => "READ_FAILED",
            Code::NotPromoted => "NOT_PROMOTED",
            Code::NoCopy => "NO_COPY",
            Code::NotReseeded => "NOT_RESEEDED",
        }
    }
}

/// A failed operation.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// Stable code.
    pub code: Code,
    /// What the caller may conclude.
    pub class: Class,
    /// What happened and what to do.
    pub message: String,
    /// Where the primary answers clients, if known.
    pub primary: String,
    /// The epoch in force, if known.
    pub epoch: u64,
}

impl Failure {
    /// A failure without a hint.
    #[must_use]
    pub fn new(code: Code, class: Class, message: impl Into<String>) -> Self {
        Self { code, class, message: message.into(), primary: String::new(), epoch: 0 }
    }

    pub(crate) fn bad(message: impl Into<String>) -> Self {
        Self::new(Code::BadRequest, Class::NeverRetry, message)
    }
}

/// The engine's text of damage without its own advice, for where more is known of what can be done.
#[must_use]
pub fn without_advice(text: &str) -> &str {
    text.strip_suffix("; restore this node from a replica or a backup").unwrap_or(text)
}

impl From<Error> for Failure {
    fn from(e: Error) -> Self {
        let (code, class) = match &e {
            Error::ConditionFailed(_) => (Code::ConditionFailed, Class::NeverRetry),
            Error::Limit(_) => (Code::Limit, Class::NeverRetry),
            Error::Malformed(_) => (Code::BadRequest, Class::NeverRetry),
            Error::DiskFull { .. } => (Code::DiskFull, Class::NotExecuted),
            Error::Overloaded { .. } | Error::TooManyFiles { .. } => (Code::Overloaded, Class::NotExecuted),
            Error::Indeterminate { .. } => (Code::Indeterminate, Class::Indeterminate),
            Error::LogGone { .. } => (Code::LogGone, Class::NeverRetry),
            Error::HistoryGone { .. } => (Code::HistoryGone, Class::NeverRetry),
            Error::Corruption { .. } => (Code::Corruption, Class::NeverRetry),
            _ => (Code::Stopped, Class::Indeterminate),
        };
        Self::new(code, class, e.to_string())
    }
}

#[cfg(test)]
mod tests {
    use mainstay_engine::Lsn;
    use mainstay_engine::error::ErrorClass;
    use mainstay_proto::v1::ErrorDetail;
    use prost::Message;
    use tonic::Code as Grpc;

    use super::*;

    fn wire(e: Error) -> (Grpc, ErrorDetail) {
        let status = crate::doors::status(e.into());
        (status.code(), ErrorDetail::decode(status.details()).unwrap())
    }

    #[test]
    fn what_the_engine_does_not_know_is_indeterminate_and_what_it_refuses_is_not() {
        let (grpc, detail) = wire(Error::Indeterminate { lsn: Lsn(7), why: "the disk failed".into() });
        assert_eq!(
            (grpc, detail.code.as_str(), detail.class.as_str()),
            (Grpc::Unknown, "INDETERMINATE", "indeterminate")
        );
        let (grpc, detail) = wire(Error::Overloaded { outstanding: 16_384, bytes: 1 });
        assert_eq!(
            (grpc, detail.code.as_str(), detail.class.as_str()),
            (Grpc::ResourceExhausted, "OVERLOADED", "not_executed")
        );
    }

    /// A write's failure never says more than the engine knows: what the engine calls indeterminate must not look
    /// like a clean failure, whatever its code.
    #[test]
    fn no_failure_of_a_write_is_cleaner_than_the_engine_says() {
        let io = || std::io::Error::other("disk");
        let all = [
            Error::Indeterminate { lsn: Lsn(7), why: String::new() },
            Error::Overloaded { outstanding: 1, bytes: 1 },
            Error::DiskFull { path: "x".into(), kept_back: None },
            Error::io("create", std::path::Path::new("x"), std::io::Error::from_raw_os_error(24)),
            Error::Stopped(String::new()),
            Error::io("write", std::path::Path::new("x"), io()),
            Error::Malformed(mainstay_engine::codec::Malformed("x")),
        ];
        for e in all {
            let (engine, text) = (e.class(), e.to_string());
            let class = Failure::from(e).class;
            let same = match engine {
                ErrorClass::NotExecuted => class == Class::NotExecuted,
                ErrorClass::Indeterminate => class == Class::Indeterminate,
                ErrorClass::NeverRetry => class == Class::NeverRetry,
            };
            assert!(same, "{text}: {class:?}, the engine says {engine:?}");
        }
    }
}
