//! Ports for nodes that are killed and started again at the same address.
//!
//! Owns: the choice. Never: a port of the range from which systems give local ports to outgoing
//! connections: one of those could take a node's port while the node is down.

use std::collections::BTreeSet;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::net::TcpListener;

/// Below the ranges of Linux (from 32768) and of the others (from 49152), above the well-known ones.
const FIRST: u16 = 12_000;
const COUNT: u64 = 20_000;
/// Looks at ports before giving up.
const LOOKS: usize = 1_000;

/// Ports of the loopback address on which nobody listened a moment ago, all different.
///
/// # Errors
/// Too many are taken.
pub fn unused(count: usize) -> std::io::Result<Vec<u16>> {
    let mut found = BTreeSet::new();
    for _ in 0..LOOKS {
        if found.len() == count {
            break;
        }
        // Keyed anew each time by the system's randomness: processes that start together differ.
        let drawn = RandomState::new().build_hasher().finish() % COUNT;
        let port = FIRST + u16::try_from(drawn).unwrap_or_default();
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            found.insert(port);
        }
    }
    if found.len() < count {
        return Err(std::io::Error::other("no free ports on the loopback address"));
    }
    Ok(found.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_different_free_and_not_those_of_outgoing_connections() {
        let ports = unused(50).unwrap();
        assert_eq!(ports.iter().collect::<BTreeSet<_>>().len(), 50);
        assert!(ports.iter().all(|p| (12_000..32_000).contains(p)), "{ports:?}");
        let taken = TcpListener::bind(("127.0.0.1", ports[0])).unwrap();
        assert!(!unused(200).unwrap().contains(&taken.local_addr().unwrap().port()));
    }
}
