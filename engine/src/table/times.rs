//! When each record committed: pairs of LSN and commit timestamp, as delta varints.
//!
//! A version's commit time follows from its LSN through these pairs, so entries carry no time of
//! their own. A table keeps the pairs of the records it stems from, including records that left no
//! entry; a compaction drops those below the history floor. Owns: the encoding. Never: clocks.

use crate::codec::{Cursor, Malformed, put_varint};
use crate::lsn::{CommitTs, Lsn};

/// Ascending `(LSN, commit timestamp)` pairs, about three bytes each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Times {
    bytes: Vec<u8>,
    first: Option<(Lsn, CommitTs)>,
    last: Option<(Lsn, CommitTs)>,
    count: u64,
}

impl Times {
    /// Adds the pair of a record above all added so far.
    pub(crate) fn push(&mut self, lsn: Lsn, ts: CommitTs) -> Result<(), Malformed> {
        let (prev_lsn, prev_ts) = self.last.unwrap_or_default();
        let out_of_order = Malformed("commit times out of order");
        let lsn_step = lsn.0.checked_sub(prev_lsn.0).filter(|s| *s > 0).ok_or(out_of_order)?;
        let ts_step = ts.0.checked_sub(prev_ts.0).ok_or(out_of_order)?;
        put_varint(&mut self.bytes, lsn_step);
        put_varint(&mut self.bytes, ts_step);
        self.first.get_or_insert((lsn, ts));
        self.last = Some((lsn, ts));
        self.count += 1;
        Ok(())
    }

    pub(crate) const fn first(&self) -> Option<(Lsn, CommitTs)> {
        self.first
    }

    pub(crate) const fn last(&self) -> Option<(Lsn, CommitTs)> {
        self.last
    }

    pub(crate) const fn count(&self) -> u64 {
        self.count
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(crate) fn decode(bytes: Vec<u8>) -> Result<Self, Malformed> {
        let mut c = Cursor::new(&bytes);
        let (mut first, mut last, mut count) = (None, None, 0);
        while !c.is_empty() {
            let pair = step(&mut c, last)?;
            first.get_or_insert(pair);
            last = Some(pair);
            count += 1;
        }
        Ok(Self { bytes, first, last, count })
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (Lsn, CommitTs)> + '_ {
        let mut c = Cursor::new(&self.bytes);
        let mut last = None;
        std::iter::from_fn(move || {
            if c.is_empty() {
                return None;
            }
            // The bytes were made by `push` or checked whole by `decode`.
            last = step(&mut c, last).ok();
            last
        })
    }

    /// The last pair for which `holds` is true; `holds` must be true up to some pair and false after.
    pub(crate) fn last_where(&self, holds: impl Fn(Lsn, CommitTs) -> bool) -> Option<(Lsn, CommitTs)> {
        self.iter().take_while(|(l, t)| holds(*l, *t)).last()
    }
}

fn step(c: &mut Cursor<'_>, last: Option<(Lsn, CommitTs)>) -> Result<(Lsn, CommitTs), Malformed> {
    let (lsn, ts) = last.unwrap_or_default();
    let over = Malformed("commit times over 64 bits");
    let lsn_step = c.varint()?;
    if lsn_step == 0 {
        return Err(Malformed("commit times out of order"));
    }
    let next_lsn = lsn.0.checked_add(lsn_step).ok_or(over)?;
    let next_ts = ts.0.checked_add(c.varint()?).ok_or(over)?;
    Ok((Lsn(next_lsn), CommitTs(next_ts)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn pairs_come_back_and_order_is_kept() {
        let mut t = Times::default();
        for n in 1..50 {
            t.push(Lsn(n * 2), CommitTs(1_000_000 + n * 7)).unwrap();
        }
        assert!(t.push(Lsn(98), CommitTs(2_000_000)).is_err());
        assert!(t.push(Lsn(99), CommitTs(3)).is_err());
        let back = Times::decode(t.as_bytes().to_vec()).unwrap();
        assert_eq!(back, t);
        assert_eq!(back.iter().count(), 49);
        assert_eq!(back.last_where(|l, _| l <= Lsn(7)), Some((Lsn(6), CommitTs(1_000_021))));
        assert_eq!(back.last_where(|l, _| l <= Lsn(1)), None);
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
            if let Ok(t) = Times::decode(bytes) {
                prop_assert_eq!(t.iter().count() as u64, t.count());
            }
        }
    }
}
