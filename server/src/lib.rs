//! Library half of the `mainstay` binary, so that tests can assemble a node and the binary stays thin.
//!
//! Owns: the list of parts. `cli` and `config` face the operator, `doors` the clients, `peers` the
//! other nodes; `service` is the one implementation of each operation; `node` wires them.

pub mod cli;
pub mod codes;
pub mod config;
pub mod doors;
pub mod drill;
pub mod node;
pub mod peers;
pub mod service;
