//! Every way to read, beside the model: keys, ranges in both directions, positions in the past, and what stays open
//! while the store goes on.
//!
//! Owns: reads and what is held. Never: changes of the store.

use std::vec::IntoIter;

use mainstay_engine::batch::{Batch, Keyspace};
use mainstay_engine::store::Durability;
use mainstay_engine::tree::{Scan, View};
use mainstay_engine::value::Value;
use mainstay_engine::{CommitTs, Error, Lsn, Result};

use crate::world::{Act, SPACES, Spaces, State, World, key};

/// A read of a trace.
#[derive(Clone, Debug)]
pub(crate) enum Read {
    Get(Keyspace, u8),
    MultiGet(Keyspace, Vec<u8>),
    /// From a key to another, in either order; a multiple of five is no bound.
    Range {
        space: Keyspace,
        from: u8,
        to: u8,
        reverse: bool,
    },
    /// What starts with so many bytes of a key.
    Prefix {
        space: Keyspace,
        of: u8,
        length: usize,
        reverse: bool,
    },
    /// Everything as it was at an LSN below the newest, or at a time.
    AtLsn(u16),
    AtTime(u16),
    /// Opens a scan, reads a little, and leaves it open.
    HoldScan {
        space: Keyspace,
        reverse: bool,
        taken: u8,
    },
    /// Reads what is left of a held scan.
    FinishScan,
    HoldView,
    /// Reads a held view again, which must not have changed.
    CheckView,
}

type Triple = (Vec<u8>, Lsn, Vec<u8>);

/// What stays open while the store goes on.
#[derive(Debug, Default)]
pub(crate) struct Held {
    scans: Vec<(Scan, IntoIter<Triple>)>,
    views: Vec<(View, Spaces)>,
}

/// Most that is held of a kind.
const HELD_MAX: usize = 3;

fn take(scan: &mut Scan, most: usize) -> Result<Vec<Triple>> {
    let mut out = Vec::new();
    while out.len() < most {
        let Some(e) = scan.next_entry()? else { break };
        out.push((e.key.to_vec(), e.lsn, Value::decode(e.envelope)?.data.to_vec()));
    }
    Ok(out)
}

fn triples<'a>(
    state: impl DoubleEndedIterator<Item = (&'a Vec<u8>, &'a (Lsn, Vec<u8>))>,
    reverse: bool,
) -> Vec<Triple> {
    let all = state.map(|(key, (lsn, data))| (key.clone(), *lsn, data.clone()));
    if reverse { all.rev().collect() } else { all.collect() }
}

/// Everything that users wrote in a view, read in all ways, which must agree.
pub(crate) fn read(view: &View) -> Result<State> {
    read_space(view, Keyspace::USER)
}

/// Everything in a view.
pub(crate) fn read_spaces(view: &View) -> Result<Spaces> {
    let mut all = Spaces::new();
    for space in SPACES {
        let state = read_space(view, space)?;
        if !state.is_empty() {
            all.insert(space, state);
        }
    }
    Ok(all)
}

fn read_space(view: &View, space: Keyspace) -> Result<State> {
    let forward = take(&mut view.scan(space, b"", b"", false), usize::MAX)?;
    let mut backward = take(&mut view.scan(space, b"", b"", true), usize::MAX)?;
    backward.reverse();
    assert_eq!(forward, backward, "the two directions of a scan differ");
    for (key, lsn, data) in &forward {
        let found = view.get(space, key)?.expect("a scanned key is found by get");
        assert_eq!((Value::decode(&found.envelope)?.data, found.lsn), (data.as_slice(), *lsn));
    }
    Ok(forward.into_iter().map(|(key, lsn, data)| (key, (lsn, data))).collect())
}

impl World {
    pub(crate) fn read(&mut self, read: &Read) -> Result<()> {
        match read {
            Read::Get(space, k) => self.get(*space, &key(*k)),
            Read::MultiGet(space, keys) => self.multi_get(*space, &keys.iter().map(|k| key(*k)).collect::<Vec<_>>()),
            Read::Range { space, from, to, reverse } => {
                let bound = |k: u8| if k.is_multiple_of(5) { Vec::new() } else { key(k) };
                self.range(*space, &bound(*from), &bound(*to), *reverse)
            }
            Read::Prefix { space, of, length, reverse } => self.prefix(*space, &key(*of)[..*length], *reverse),
            Read::AtLsn(n) => self.at_lsn(*n),
            Read::AtTime(n) => self.at_time(*n),
            Read::HoldScan { space, reverse, taken } => self.hold_scan(*space, *reverse, usize::from(*taken)),
            Read::FinishScan => self.finish_scan(),
            Read::HoldView => {
                let view = self.store().view();
                let state = self.at(usize::try_from(view.lsn().0).unwrap());
                self.held.views.push((view, state));
                self.held.views.truncate(HELD_MAX);
                Ok(())
            }
            Read::CheckView => self.check_held_view(),
        }
    }

    fn now(&self, space: Keyspace) -> (View, State) {
        let view = self.store().view();
        let mut all = self.at(usize::try_from(view.lsn().0).unwrap());
        (view, all.remove(&space).unwrap_or_default())
    }

    fn get(&self, space: Keyspace, key: &[u8]) -> Result<()> {
        let found = self.store().get(space, key)?;
        let found = found.map(|f| (f.lsn, Value::decode(&f.envelope).unwrap().data.to_vec()));
        assert_eq!(found, self.now(space).1.remove(key), "get");
        Ok(())
    }

    fn multi_get(&self, space: Keyspace, keys: &[Vec<u8>]) -> Result<()> {
        let (view, state) = self.now(space);
        let found = view.multi_get(space, keys)?;
        assert_eq!(found.len(), keys.len());
        for (key, found) in keys.iter().zip(found) {
            let found = found.map(|f| (f.lsn, Value::decode(&f.envelope).unwrap().data.to_vec()));
            assert_eq!(found.as_ref(), state.get(key), "multi-get");
        }
        Ok(())
    }

    fn range(&self, space: Keyspace, start: &[u8], end: &[u8], reverse: bool) -> Result<()> {
        let (view, state) = self.now(space);
        let inside = |k: &Vec<u8>| k.as_slice() >= start && (end.is_empty() || k.as_slice() < end);
        let expected = triples(state.iter().filter(|(k, _)| inside(k)), reverse);
        let found = take(&mut view.scan(space, start, end, reverse), usize::MAX)?;
        assert_eq!(found, expected, "{space:?} from {start:?} to {end:?}, reverse: {reverse}");
        Ok(())
    }

    fn prefix(&self, space: Keyspace, prefix: &[u8], reverse: bool) -> Result<()> {
        let (view, state) = self.now(space);
        let expected = triples(state.iter().filter(|(k, _)| k.starts_with(prefix)), reverse);
        let found = take(&mut view.scan_prefix(space, prefix, reverse), usize::MAX)?;
        assert_eq!(found, expected, "what starts with {prefix:?} in {space:?}, reverse: {reverse}");
        Ok(())
    }

    fn applied(&self) -> usize {
        usize::try_from(self.store().view().lsn().0).unwrap()
    }

    /// Commit time of record `n`; 0 before the first.
    fn time(&self, n: usize) -> CommitTs {
        n.checked_sub(1).map_or(CommitTs(0), |at| self.records[at].1)
    }

    fn floor(&self) -> usize {
        usize::try_from(self.store().tree().history_floor().0).unwrap()
    }

    fn at_lsn(&mut self, n: u16) -> Result<()> {
        let n = usize::from(n) % (self.applied() + 1);
        let gone = n < self.floor();
        match self.store().view_at(Lsn(n as u64)) {
            Ok(view) => {
                assert!(!gone, "LSN {n} is below the history floor {}", self.floor());
                assert_eq!(read_spaces(&view)?, self.at(n), "as of LSN {n}");
                self.count(if n < self.applied() { "read at an older LSN" } else { "read at the newest LSN" });
            }
            Err(Error::HistoryGone { .. }) if gone => self.check_gone(n),
            Err(e) => return Err(e),
        }
        let above = Lsn(self.applied() as u64 + 1);
        assert!(matches!(self.store().view_at(above), Err(Error::NotApplied { .. })), "not applied yet");
        Ok(())
    }

    /// At, just before and just after the commit time of a record.
    fn at_time(&mut self, n: u16) -> Result<()> {
        let time =
            CommitTs((self.time(usize::from(n / 3) % (self.applied() + 1)).0 + u64::from(n % 3)).saturating_sub(1));
        let n = (0..=self.applied()).rev().find(|n| self.time(*n) <= time).unwrap_or(0);
        let gone = n < self.floor();
        match self.store().view_at_time(time) {
            Ok(view) => {
                assert!(!gone, "{time} is before the history floor {}", self.floor());
                assert_eq!(view.lsn(), Lsn(n as u64), "as of {time}");
                assert_eq!(read_spaces(&view)?, self.at(n), "as of {time}");
                self.count(if n < self.applied() { "read at an older time" } else { "read at the newest time" });
                Ok(())
            }
            Err(Error::HistoryGone { .. }) if gone => {
                self.check_gone(n);
                Ok(())
            }
            Err(e) => Err(e),
        }
    }

    /// What is refused must be older than the history window.
    fn check_gone(&mut self, n: usize) {
        let window = self.options.history_window_us;
        let next = self.time(n + 1).0;
        assert!(next + window <= self.newest_ts.0, "record {n} was the newest until {next}: within the history window");
        self.count("history gone");
    }

    fn hold_scan(&mut self, space: Keyspace, reverse: bool, taken: usize) -> Result<()> {
        if self.held.scans.len() == HELD_MAX {
            return self.finish_scan();
        }
        let (view, state) = self.now(space);
        let mut rest = triples(state.iter(), reverse);
        let mut scan = view.scan(space, b"", b"", reverse);
        let taken = taken % (rest.len() + 1);
        assert_eq!(take(&mut scan, taken)?, rest.drain(..taken).collect::<Vec<_>>(), "the beginning of a scan");
        self.held.scans.push((scan, rest.into_iter()));
        Ok(())
    }

    fn finish_scan(&mut self) -> Result<()> {
        if self.held.scans.is_empty() {
            return Ok(());
        }
        let (mut scan, rest) = self.held.scans.remove(0);
        assert_eq!(take(&mut scan, usize::MAX)?, rest.collect::<Vec<_>>(), "the rest of a scan that was held open");
        self.count("finished a held scan");
        Ok(())
    }

    fn check_held_view(&mut self) -> Result<()> {
        if self.held.views.is_empty() {
            return Ok(());
        }
        let (view, then) = self.held.views.remove(0);
        assert_eq!(read_spaces(&view)?, then, "a view changed under its reader");
        self.count("checked a held view");
        Ok(())
    }
}

/// In a memtable, in tables, and with keys on both sides of every bound there is.
#[test]
fn a_prefix_has_all_keys_that_start_with_it_and_no_others() {
    let mut world = World::new(6);
    let (a, f) = (b'a', 0xff);
    let parts: [&[u8]; 12] =
        [&[], &[0], &[a], &[a, 0], &[a, f], &[a, f, 0], &[a, f, f], b"b", &[0xfe, f], &[f], &[f, 0], &[f, f]];
    let spaces = [0, 1, 2, 0xfe, 0xff].map(Keyspace);
    for settled in [false, true] {
        let mut batch = Batch::new();
        for space in spaces {
            parts.iter().for_each(|k| _ = batch.put_with(space, k, &Value::plain(&[space.0])).unwrap());
        }
        world.store().write(&batch, &[], Durability::Synced).unwrap();
        if settled {
            world.store().tree().flush_all().unwrap();
            world.act(&Act::Maintain).unwrap();
        }
        let view = world.store().view();
        for (space, prefix) in spaces.iter().flat_map(|s| parts.iter().map(move |p| (*s, *p))) {
            for reverse in [false, true] {
                let mut expected: Vec<Vec<u8>> =
                    parts.iter().filter(|k| k.starts_with(prefix)).map(|k| k.to_vec()).collect();
                if reverse {
                    expected.reverse();
                }
                let found = view.scan_prefix(space, prefix, reverse).map(|e| e.unwrap());
                let found: Vec<Vec<u8>> = found
                    .map(|e| {
                        assert_eq!(Value::decode(&e.envelope).unwrap().data, [space.0], "of another keyspace");
                        e.key
                    })
                    .collect();
                assert_eq!(found, expected, "{space:?}, {prefix:02x?}, reverse: {reverse}, in tables: {settled}");
            }
        }
    }
}
