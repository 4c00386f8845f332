//! The file `PROMISE`: what this node promised as a voter, durable before it is given \[I5\].
//!
//! Layout: `magic [8] | sealed epoch u64 | primary u64 (0 = none) | incarnation u64 | checksum u64
//! (xxh3-64)`. Owns: that file. Never: anything that the log knows.

use std::path::Path;

use mainstay_engine::codec::Cursor;
use mainstay_engine::{Env, Epoch, Error, Result, fs};
use xxhash_rust::xxh3::xxh3_64;

use crate::core::Promise;
use crate::rule::NodeId;

const NAME: &str = "PROMISE";
const MAGIC: [u8; 8] = *b"mspromi\x01";

/// Reads the promise and the number of this node's previous life.
///
/// # Errors
/// A damaged file is refused: forgetting a promise could let two primaries live.
pub(super) fn read(env: &Env, dir: &Path) -> Result<(Promise, u64)> {
    let path = dir.join(NAME);
    let bytes = match fs::read_file(&*env.fs, &path, 4096) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok((Promise::default(), 0)),
        Err(e) => return Err(Error::io("read", &path, e)),
    };
    decode(&bytes).ok_or_else(|| Error::corruption(&path, 0, None, "the node's promise is damaged"))
}

fn decode(bytes: &[u8]) -> Option<(Promise, u64)> {
    let (head, _) = bytes.split_at_checked(32)?;
    let mut c = Cursor::new(bytes);
    let magic = c.array::<8>().ok()?;
    let (sealed, primary, incarnation, sum) = (c.u64().ok()?, c.u64().ok()?, c.u64().ok()?, c.u64().ok()?);
    (magic == MAGIC && c.is_empty() && sum == xxh3_64(head)).then(|| {
        let primary = (primary != 0).then_some(NodeId(primary));
        (Promise { sealed: Epoch(sealed), primary }, incarnation)
    })
}

fn encode(promise: Promise, incarnation: u64) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    for word in [promise.sealed.0, promise.primary.map_or(0, |p| p.0), incarnation] {
        out.extend_from_slice(&word.to_le_bytes());
    }
    let sum = xxh3_64(&out);
    out.extend_from_slice(&sum.to_le_bytes());
    out
}

/// Makes the promise durable.
///
/// # Errors
/// The operating system's; the promise must not be given then.
pub(super) fn write(env: &Env, dir: &Path, promise: Promise, incarnation: u64) -> Result<()> {
    fs::write_atomic(&*env.fs, dir, NAME, &encode(promise, incarnation))
        .map_err(|e| Error::io("write", &dir.join(NAME), e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_promise_reads_back_and_refuses_every_flipped_bit() {
        for primary in [None, Some(NodeId(3))] {
            let promise = Promise { sealed: Epoch(7), primary };
            let bytes = encode(promise, 5);
            assert_eq!(decode(&bytes), Some((promise, 5)));
            for bit in 0..bytes.len() * 8 {
                let mut bad = bytes.clone();
                bad[bit / 8] ^= 1 << (bit % 8);
                assert_eq!(decode(&bad), None, "bit {bit}");
            }
            assert_eq!(decode(&bytes[..20]), None);
        }
    }
}
