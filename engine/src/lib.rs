//! Mainstay's storage engine: one write-ahead log of dense, checksummed, hash-chained records, and
//! the tree that materialises its committed prefix.
//!
//! Owns: log, tree, store, and the seams (files, clock, randomness, execution) they stand on.
//! Never: starts a runtime, opens a socket, reads an environment variable, or logs; it returns
//! errors and counts.

pub mod batch;
pub mod bulk;
pub mod clock;
pub mod codec;
#[cfg(feature = "sim")]
pub mod decoders;
pub mod env;
pub mod error;
pub mod exec;
pub mod fault;
pub mod fs;
pub mod ingest;
pub mod inspect;
pub mod limits;
pub mod log;
pub mod lsn;
pub mod open_files;
pub mod record;
pub mod restore;
pub mod rng;
pub mod space;
pub mod store;
pub mod table;
pub mod tree;
pub mod value;
pub mod watermark;

pub use env::Env;
pub use error::{Error, Result};
pub use limits::Options;
pub use lsn::{Chain, ClusterId, CommitTs, Epoch, Lsn, Position, TimelineId};
