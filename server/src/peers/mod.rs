//! The peer door: the replication transport over gRPC, both ends.
//!
//! Owns: the mapping between the transport's types and the wire, deadlines, keep-alives. Never: a
//! decision about what a message means.

mod serve;
mod transport;
mod wire;

pub use serve::PeerDoor;
pub use transport::GrpcTransport;
