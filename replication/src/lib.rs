//! Replication: the commit rule, epochs, log shipping and catch-up.
//!
//! Owns: a core without I/O (`rule`, `lineage`, `core`: events in, effects out) and the drivers that
//! carry its effects out behind the `Transport` trait. Never: gRPC, backup, or client protocols.

pub mod core;
#[cfg(any(test, feature = "sim"))]
pub mod decoders;
pub mod driver;
pub mod lineage;
pub mod rule;
