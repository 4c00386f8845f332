//! The decoders of a data directory's small files for fuzzing, see [`crate::decoders`].
//!
//! Owns: the list. Never: part of a build without feature `sim`.

use std::path::Path;

use xxhash_rust::xxh3::xxh3_64;

use super::evidence::Evidence;
use super::identity::Identity;
use crate::decoders::{Decoder, mend};
use crate::lsn::{ClusterId, Lsn, TimelineId};

/// Of this module.
pub(crate) fn decoders() -> Vec<Decoder> {
    vec![Decoder::new("identity", identity, identity_seeds), Decoder::new("evidence", evidence, evidence_seeds)]
}

fn identity(bytes: &[u8]) -> bool {
    let path = Path::new("IDENTITY");
    let decode = |bytes: &[u8]| {
        let Ok((identity, ingested)) = Identity::decode(path, bytes) else { return false };
        assert_eq!(identity.encode(ingested), bytes);
        true
    };
    decode(&mend(bytes, bytes.len().saturating_sub(8), xxh3_64));
    decode(bytes)
}

fn identity_seeds() -> Vec<Vec<u8>> {
    let identity = Identity { cluster: ClusterId(7), timeline: TimelineId(9) };
    vec![identity.encode(false), identity.encode(true)]
}

fn evidence(bytes: &[u8]) -> bool {
    let decode = |bytes: &[u8]| {
        let Ok(evidence) = Evidence::decode(bytes) else { return false };
        assert_eq!(evidence.encode(), bytes);
        true
    };
    decode(&mend(bytes, bytes.len().saturating_sub(8), xxh3_64));
    decode(bytes)
}

fn evidence_seeds() -> Vec<Vec<u8>> {
    vec![Evidence::default().encode(), Evidence { durable: Lsn(900), committed: Lsn(800) }.encode()]
}
