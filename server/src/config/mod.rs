//! The configuration of a node: defaults < file < environment < flags, each value knowing where it
//! came from.
//!
//! Owns: the keys (`schema`), their layers (`sources`, `origin`) and what makes sense together
//! (`check`). Never: a key that is silently ignored.

mod check;
mod origin;
mod schema;
mod sources;

pub use check::{Config, loopback_only};
pub use origin::Origin;
pub use schema::{KEYS, Key};
pub use sources::{Layers, Value};

/// A configuration that cannot be used. Always the caller's to correct: exit code 2.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// No such key.
    #[error("unknown key `{key}` ({origin}){}", nearest_text(nearest.as_deref()))]
    UnknownKey {
        /// The key as written.
        key: String,
        /// Where it stands.
        origin: Origin,
        /// The known key that looks most like it.
        nearest: Option<String>,
    },
    /// A value that its key does not take.
    #[error("`{key}` = {text:?} ({origin}): {what}")]
    Invalid {
        /// The key.
        key: String,
        /// The value as written.
        text: String,
        /// Where it stands.
        origin: Origin,
        /// What is wrong with it.
        what: String,
    },
    /// A value without which there is nothing to do.
    #[error("{0}")]
    Missing(String),
    /// The file is not TOML.
    #[error("{path} is not valid TOML: {what}")]
    Syntax {
        /// The file.
        path: String,
        /// What the parser says, with the line.
        what: String,
    },
    /// The file cannot be read.
    #[error("cannot read the configuration file {path}")]
    Read {
        /// The file.
        path: String,
        /// Why.
        source: std::io::Error,
    },
}

fn nearest_text(nearest: Option<&str>) -> String {
    nearest.map_or_else(|| "; `mainstay config print` lists all keys".to_owned(), |n| format!("; did you mean `{n}`?"))
}
