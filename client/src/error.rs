//! Errors in the three classes a caller can act on.
//!
//! Owns: what may be concluded from a failed call. Never: "not executed" for a write that may have
//! been.

use mainstay_proto::v1::ErrorDetail;
use prost::Message;
use tonic::{Code, Status};

/// Result of a client call.
pub type Result<T> = std::result::Result<T, Error>;

/// What a caller may conclude.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorClass {
    /// Nothing happened; the call may be repeated.
    NotExecuted,
    /// It may or may not have happened: read before writing again.
    Indeterminate,
    /// Repeating the same call cannot succeed.
    NeverRetry,
}

/// A failed call.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    class: ErrorClass,
    code: String,
    message: String,
    primary: Option<String>,
    epoch: u64,
}

impl Error {
    pub(crate) fn new(class: ErrorClass, code: &str, message: impl Into<String>) -> Self {
        Self { class, code: code.to_owned(), message: message.into(), primary: None, epoch: 0 }
    }

    /// What may be concluded.
    #[must_use]
    pub const fn class(&self) -> ErrorClass {
        self.class
    }

    /// The stable code, such as `NOT_PRIMARY`, `CONDITION_FAILED` or `UNREACHABLE`.
    #[must_use]
    pub fn code(&self) -> &str {
        &self.code
    }

    /// Where the primary is said to answer, with the epoch it leads.
    pub(crate) fn hint(&self) -> Option<(&str, u64)> {
        self.primary.as_deref().map(|p| (p, self.epoch))
    }

    /// From a refused or broken call. `writes` says whether the call could have changed anything.
    pub(crate) fn from_status(endpoint: &str, status: &Status, writes: bool) -> Self {
        if let Ok(detail) = ErrorDetail::decode(status.details())
            && !detail.code.is_empty()
        {
            let class = match detail.class.as_str() {
                "not_executed" => ErrorClass::NotExecuted,
                "never_retry" => ErrorClass::NeverRetry,
                // Unknown words of a newer server are treated as the most careful class.
                _ => ErrorClass::Indeterminate,
            };
            let primary = (!detail.primary.is_empty()).then_some(detail.primary);
            let message = status.message().to_owned();
            return Self { class, code: detail.code, message, primary, epoch: detail.epoch };
        }
        let unknown = if writes { ErrorClass::Indeterminate } else { ErrorClass::NotExecuted };
        if is_connect_error(status) {
            let text = format!("cannot reach {endpoint}: nobody answers there");
            return Self::new(ErrorClass::NotExecuted, "UNREACHABLE", text);
        }
        match status.code() {
            Code::DeadlineExceeded | Code::Cancelled => {
                Self::new(unknown, "TIMEOUT", format!("{endpoint} did not answer in time"))
            }
            Code::InvalidArgument | Code::OutOfRange | Code::ResourceExhausted => {
                Self::new(ErrorClass::NeverRetry, "LIMIT", format!("{endpoint}: {}", status.message()))
            }
            _ => Self::new(unknown, "BROKEN", format!("the call to {endpoint} broke off: {}", status.message())),
        }
    }

    pub(crate) fn timeout(writes: bool, last: Option<&Error>) -> Self {
        let class = if writes { ErrorClass::Indeterminate } else { ErrorClass::NotExecuted };
        match last {
            // Every attempt so far was refused before it did anything.
            Some(e) if e.class == ErrorClass::NotExecuted => {
                Self { message: format!("gave up in time: {}", e.message), ..e.clone() }
            }
            _ => Self::new(class, "TIMEOUT", "no answer in time"),
        }
    }

    /// Where the last attempt says only that no answer came, the refusal before it says why.
    pub(crate) fn after(mut self, earlier: Option<&Self>) -> Self {
        if let (Some(e), "TIMEOUT") = (earlier, self.code.as_str()) {
            self.message = format!("{}; the attempt before was refused: {}", self.message, e.message);
        }
        self
    }
}

/// Whether the call failed before anything was sent: no connection came about, or it closed while the call
/// still waited to be handed to it (which is what hyper calls canceled).
fn is_connect_error(status: &Status) -> bool {
    let mut source = std::error::Error::source(status);
    while let Some(e) = source {
        if e.is::<tonic::ConnectError>() || e.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_canceled) {
            return true;
        }
        source = e.source();
    }
    false
}
