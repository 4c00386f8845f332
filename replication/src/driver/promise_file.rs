//! The file `PROMISE`: what this node promised as a voter, durable before it is given \[I5\], and what
//! else must outlive its data: the number of its life, and what it owes.
//!
//! Layout: `magic [8] | sealed epoch u64 | primary u64 (0 = none) | incarnation u64 | held u64 (0 or 1) |
//! owed LSN u64 | begun epoch u64 | count u64 | count × (node u64, epoch u64) | checksum u64 (xxh3-64)`. Owns: that
//! file. Never: anything that the log knows.

use std::path::Path;

use mainstay_engine::codec::Cursor;
use mainstay_engine::{Env, Epoch, Error, Lsn, Result, fs};
use xxhash_rust::xxh3::xxh3_64;

use crate::core::{Promise, Reigns};
use crate::rule::NodeId;

const NAME: &str = "PROMISE";
const MAGIC: [u8; 8] = *b"mspromi\x02";
/// Most nodes that may have led; more than there can be voters.
const LED_MAX: u64 = 64;

/// What outlives a node's data besides its promise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Life {
    /// Number of this life.
    pub incarnation: u64,
    /// A seed's word counts once its log has reached this: what it held before it was seeded may be
    /// what a commit relied on. Zero: nothing is owed.
    pub owes: Lsn,
    /// This node has had data, or may have had: without any it cannot say that it never held some.
    pub held: bool,
}

/// Reads the promise and this node's previous life.
///
/// # Errors
/// A damaged file is refused: forgetting a promise could let two primaries live.
pub(super) fn read(env: &Env, dir: &Path) -> Result<(Promise, Life)> {
    let path = dir.join(NAME);
    let bytes = match fs::read_file(&*env.fs, &path, 4096) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok((Promise::default(), Life::default())),
        Err(e) => return Err(Error::io("read", &path, e)),
    };
    decode(&bytes).ok_or_else(|| Error::corruption(&path, 0, None, "the node's promise is damaged"))
}

fn decode(bytes: &[u8]) -> Option<(Promise, Life)> {
    let (head, sum) = bytes.split_at_checked(bytes.len().checked_sub(8)?)?;
    let mut c = Cursor::new(head);
    if c.array::<8>().ok()? != MAGIC || Cursor::new(sum).u64().ok()? != xxh3_64(head) {
        return None;
    }
    let (sealed, primary) = (Epoch(c.u64().ok()?), c.u64().ok()?);
    let (incarnation, held) = (c.u64().ok()?, c.u64().ok().filter(|h| *h <= 1)? == 1);
    let life = Life { incarnation, held, owes: Lsn(c.u64().ok()?) };
    let (begun, count) = (Epoch(c.u64().ok()?), c.u64().ok().filter(|n| *n <= LED_MAX)?);
    let mut led = Vec::new();
    for _ in 0..count {
        led.push((NodeId(c.u64().ok()?), Epoch(c.u64().ok()?)));
    }
    let promise =
        Promise { sealed, primary: (primary != 0).then_some(NodeId(primary)), reigns: Reigns::from_parts(begun, led) };
    c.is_empty().then_some((promise, life))
}

fn encode(promise: &Promise, life: Life) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    let led: Vec<_> = promise.reigns.led().collect();
    let head = [
        promise.sealed.0,
        promise.primary.map_or(0, |p| p.0),
        life.incarnation,
        u64::from(life.held),
        life.owes.0,
        promise.reigns.begun().0,
        led.len() as u64,
    ];
    for word in head.into_iter().chain(led.into_iter().flat_map(|(node, epoch)| [node.0, epoch.0])) {
        out.extend_from_slice(&word.to_le_bytes());
    }
    let sum = xxh3_64(&out);
    out.extend_from_slice(&sum.to_le_bytes());
    out
}

/// For fuzzing: the bytes as they are, and with their checksum made right.
#[cfg(any(test, feature = "sim"))]
pub(crate) fn decode_promise(bytes: &[u8]) -> bool {
    let accepted = |bytes: &[u8]| {
        let Some((promise, life)) = decode(bytes) else { return false };
        let again = encode(&promise, life);
        // The same node twice in the list, or one before the epoch that has begun, is written once or not at all.
        assert!(again.len() <= bytes.len());
        assert_eq!(decode(&again), Some((promise, life)));
        true
    };
    let mut mended = bytes.to_vec();
    if let Some((head, sum)) = mended.split_last_chunk_mut::<8>() {
        *sum = xxh3_64(head).to_le_bytes();
    }
    accepted(&mended);
    accepted(bytes)
}

/// For fuzzing: files of a new node, of a voter, and of a seeded node.
#[cfg(any(test, feature = "sim"))]
pub(crate) fn promise_seeds() -> Vec<Vec<u8>> {
    let led = [(NodeId(1), Epoch(6)), (NodeId(3), Epoch(7))];
    let reigns = Reigns::from_parts(Epoch(6), led);
    let promise = Promise { sealed: Epoch(7), primary: Some(NodeId(3)), reigns };
    vec![
        encode(&Promise::default(), Life::default()),
        encode(&promise, Life { incarnation: 5, owes: Lsn::ZERO, held: true }),
        encode(&promise, Life { incarnation: 6, owes: Lsn(77), held: false }),
    ]
}

/// Makes the promise durable.
///
/// # Errors
/// The operating system's; the promise must not be given then.
pub(super) fn write(env: &Env, dir: &Path, promise: &Promise, life: Life) -> Result<()> {
    Ok(fs::write_atomic(&*env.fs, dir, NAME, &encode(promise, life))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_promise_reads_back_and_refuses_every_flipped_bit() {
        let life = Life { incarnation: 5, owes: Lsn(77), held: true };
        for (primary, led) in [(None, vec![]), (Some(NodeId(3)), vec![(NodeId(1), Epoch(6)), (NodeId(3), Epoch(7))])] {
            let promise = Promise { sealed: Epoch(7), primary, reigns: Reigns::from_parts(Epoch(6), led) };
            let bytes = encode(&promise, life);
            assert_eq!(decode(&bytes), Some((promise, life)));
            for bit in 0..bytes.len() * 8 {
                let mut bad = bytes.clone();
                bad[bit / 8] ^= 1 << (bit % 8);
                assert_eq!(decode(&bad), None, "bit {bit}");
            }
            for cut in 0..bytes.len() {
                assert_eq!(decode(&bytes[..cut]), None, "cut at {cut}");
            }
        }
    }
}
