//! The memtable against an ordered map of the standard library, and how long its calls take.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;

use super::*;
use crate::batch::ops;
use crate::batch::{Batch, Keyspace};
use crate::clock::{Clock, OsClock};
use crate::record::Record;
use crate::rng::{Rng, SeededRng};
use crate::table::testing::{Item, Stored, owned};
use crate::table::{Bounds, below_end, internal_end, internal_key};
use crate::tree::tests::Head;
use crate::value::Value;

impl Iterator for MemtableCursor {
    type Item = Item;

    fn next(&mut self) -> Option<Item> {
        if self.advance() { self.entry().map(Item::of) } else { None }
    }
}

/// What a memtable must hold, kept the plain way.
#[derive(Default)]
struct Model {
    entries: BTreeMap<(Vec<u8>, Reverse<Lsn>), Stored>,
    ranges: Vec<RangeDelete>,
}

impl Model {
    fn apply(&mut self, record: &Record<'_>) {
        let lsn = record.header.lsn;
        let mut of_record = BTreeMap::new();
        for op in ops(record.body) {
            match op.unwrap() {
                Op::Put { keyspace, key, envelope } => {
                    of_record.insert(internal_key(keyspace, key), Stored::Put(envelope.to_vec()));
                }
                Op::Delete { keyspace, key } => {
                    of_record.insert(internal_key(keyspace, key), Stored::Delete);
                }
                Op::DeleteRange { keyspace, start, end } => {
                    let (start, end) = (internal_key(keyspace, start), internal_end(keyspace, end));
                    let range = RangeDelete { start, end, lsn };
                    of_record.retain(|k, _| !range.contains(k));
                    self.ranges.push(range);
                }
            }
        }
        self.entries.extend(of_record.into_iter().map(|(k, v)| ((k, Reverse(lsn)), v)));
    }

    fn get(&self, key: &[u8], lsn: Lsn) -> Option<(Lsn, Stored)> {
        let from = (key.to_vec(), Reverse(lsn));
        let ((k, l), v) = self.entries.range(from..).next()?;
        (k == key).then(|| (l.0, v.clone()))
    }

    fn scan(&self, low: &[u8], high: &[u8], reverse: bool, lsn: Lsn) -> Vec<Item> {
        let inside = |k: &[u8]| k >= low && below_end(k, high);
        let entries = self.entries.iter().filter(|((k, l), _)| l.0 <= lsn && inside(k));
        let items = entries.map(|((k, l), op)| Item { key: k.clone(), lsn: l.0, op: op.clone() });
        if reverse { items.rev().collect() } else { items.collect() }
    }
}

/// How the keys of a run look.
#[derive(Clone, Copy, Debug)]
enum Shape {
    /// Few symbols, the lowest and highest byte among them; keys are prefixes of others.
    Short,
    /// Long common prefixes of several lengths.
    Deep,
    /// Digits, random, ascending, descending, or ascending in several places at once.
    Random,
    Ascending,
    Descending,
    Streams,
    /// Few keys with many versions.
    Hot,
    /// Keys of 0 and 65,535 bytes and a few between.
    Extreme,
}

const SHAPES: [Shape; 8] = [
    Shape::Short,
    Shape::Deep,
    Shape::Random,
    Shape::Ascending,
    Shape::Descending,
    Shape::Streams,
    Shape::Hot,
    Shape::Extreme,
];

impl Shape {
    fn key(self, rng: &dyn Rng, n: u64) -> Vec<u8> {
        let symbols =
            |count: u64| -> Vec<u8> { (0..count).map(|_| [0, b'a', b'b', 255][rng.below(4) as usize]).collect() };
        match self {
            Shape::Short => symbols(rng.below(7)),
            Shape::Deep => {
                let mut key = vec![b'p'; [3, 8, 100, 300][rng.below(4) as usize]];
                key.extend(symbols(rng.below(12)));
                key
            }
            Shape::Random => format!("user{:012}", rng.below(100_000)).into_bytes(),
            Shape::Ascending => format!("user{n:012}").into_bytes(),
            Shape::Descending => format!("user{:012}", 1_000_000 - n).into_bytes(),
            Shape::Streams => format!("stream{}/{n:012}", n % 3).into_bytes(),
            Shape::Hot => vec![b'h', rng.below(3) as u8],
            Shape::Extreme => {
                let mut key = vec![b'x'; [0, 0, 1, 8, 65_530, 65_535][rng.below(6) as usize]];
                if let Some(last) = key.last_mut() {
                    *last = rng.below(3) as u8;
                }
                key
            }
        }
    }

    fn records(self) -> u64 {
        if matches!(self, Shape::Extreme) { 120 } else { 2_500 }
    }
}

fn random_batch(shape: Shape, rng: &dyn Rng, n: &mut u64, ranges: bool) -> Batch {
    let mut b = Batch::new();
    for _ in 0..[1, 1, 1, 2, 5][rng.below(5) as usize] {
        *n += 1;
        let key = shape.key(rng, *n);
        match rng.below(20) {
            0 if ranges => {
                // Refused when the bounds are the wrong way round.
                let _ = b.delete_range(&key, &shape.key(rng, *n + 3));
            }
            1..4 => drop(b.delete(&key).unwrap()),
            // The same key twice in one record: the later one wins.
            4 => drop(b.put(&key, b"first").unwrap().put(&key, b"second, longer").unwrap()),
            5 => drop(b.put_with(Keyspace::SYSTEM, &key, &Value::plain(b"sys")).unwrap()),
            _ => drop(b.put(&key, &vec![*n as u8; rng.below(20) as usize]).unwrap()),
        }
    }
    b
}

struct Run {
    shape: Shape,
    rng: SeededRng,
    head: Head,
    memtable: Arc<Memtable>,
    model: Model,
    n: u64,
}

impl Run {
    fn new(shape: Shape, seed: u64) -> Self {
        let memtable = Arc::new(Memtable::new([1 << 10, 64 << 10, 32 << 20][seed as usize % 3], &Spare::default()));
        Self { shape, rng: SeededRng::new(seed), head: Head::default(), memtable, model: Model::default(), n: 0 }
    }

    fn apply(&mut self, batch: &Batch) {
        let bytes = self.head.batch(1, batch);
        let record = Record::decode(&bytes).unwrap();
        self.memtable.apply(record.position(), Change::of(&record).unwrap()).unwrap();
        self.model.apply(&record);
    }

    fn step(&mut self) {
        let batch = random_batch(self.shape, &self.rng, &mut self.n, true);
        self.apply(&batch);
    }

    fn random_lsn(&self) -> Lsn {
        if self.rng.below(3) == 0 { Lsn::MAX } else { Lsn(self.rng.below(self.head.0.lsn.0 + 2)) }
    }

    /// A key that is there, one beside it, or any.
    fn random_key(&self) -> Vec<u8> {
        let n = 1 + self.rng.below(self.n + 2);
        let mut key = internal_key(Keyspace(self.rng.below(3) as u8), &self.shape.key(&self.rng, n));
        match self.rng.below(8) {
            0 => drop(key.pop()),
            1 => key.push(0),
            2 => key.push(255),
            _ => {}
        }
        key
    }

    fn check_gets(&self, what: &str) {
        for _ in 0..30 {
            let (key, lsn) = (self.random_key(), self.random_lsn());
            let got = self.memtable.get(&key, key_hash(&key), lsn);
            assert_eq!(owned(got), self.model.get(&key, lsn), "{what}: get of {} bytes at {lsn}", key.len());
            let covers = |r: &&RangeDelete| r.lsn <= lsn && r.contains(&key);
            let hidden = self.model.ranges.iter().filter(covers).map(|r| r.lsn).max().unwrap_or_default();
            assert_eq!(self.memtable.covering(&key, lsn), hidden, "{what}: cover at {lsn}");
        }
    }

    fn check_all_gets(&self, what: &str) {
        for ((key, Reverse(lsn)), op) in &self.model.entries {
            let hash = key_hash(key);
            assert_eq!(
                owned(self.memtable.get(key, hash, *lsn)),
                Some((*lsn, op.clone())),
                "{what}: at its own LSN {lsn}"
            );
            let before = owned(self.memtable.get(key, hash, lsn.prev()));
            assert_eq!(before, self.model.get(key, lsn.prev()), "{what}: between versions, before LSN {lsn}");
        }
    }

    fn scan(&self, low: &[u8], high: &[u8], reverse: bool, lsn: Lsn) -> Vec<Item> {
        let iter =
            MemtableCursor::new(Arc::clone(&self.memtable), Bounds::new(low.to_vec(), high.to_vec()), reverse, lsn);
        iter.collect()
    }

    fn check_scans(&self, what: &str) {
        for round in 0..4 {
            let (low, high) = if round == 0 { Default::default() } else { (self.random_key(), self.random_key()) };
            let lsn = self.random_lsn();
            for reverse in [false, true] {
                let equal = self.scan(&low, &high, reverse, lsn) == self.model.scan(&low, &high, reverse, lsn);
                assert!(equal, "{what}: scan {low:?}..{high:?} at {lsn}, reverse {reverse}");
            }
        }
    }
}

#[test]
fn equals_an_ordered_map_at_every_lsn() {
    for (seed, shape) in (0..SHAPES.len() as u64 * 3).map(|s| (s, SHAPES[s as usize % SHAPES.len()])) {
        let what = format!("{shape:?}, seed {seed}");
        let mut run = Run::new(shape, seed);
        run.check_gets(&what);
        run.check_scans(&what);
        for n in 0..shape.records() {
            run.step();
            if n < 60 || n % 50 == 0 {
                run.check_gets(&what);
            }
            if n < 10 || n % 250 == 0 {
                run.check_scans(&what);
            }
        }
        run.check_all_gets(&what);
        run.check_scans(&what);
        assert!(run.memtable.ranges() == run.model.ranges, "{what}");
    }
}

/// Both sides of every entry, in a tree of several levels: a place after the last slot of a leaf is
/// before the first of the next.
#[test]
fn seeks_find_the_next_leaf() {
    for shape in [Shape::Random, Shape::Ascending, Shape::Hot, Shape::Deep] {
        let mut run = Run::new(shape, 77);
        (0..2_000).for_each(|_| run.step());
        let inner = run.memtable.read();
        assert!(inner.tree.shape().0 >= 3, "{shape:?}: {:?}", inner.tree.shape());
        for (key, Reverse(lsn)) in run.model.entries.keys() {
            for lsn in [*lsn, lsn.prev(), lsn.next(), Lsn::ZERO, Lsn::MAX] {
                let place = |addr| {
                    let e = inner.arena.entry(addr);
                    (e.key.to_vec(), Reverse(e.lsn))
                };
                let probe = Probe { key, lsn };
                let mut want = run.model.entries.range((key.clone(), Reverse(lsn))..).map(|(k, _)| k.clone());
                let mut got = inner.tree.walk(&inner.arena, Some(&probe), false).map(place);
                assert!(got.next() == want.next() && got.next() == want.next(), "{shape:?}: forward at {lsn}");
                let mut want = run.model.entries.range(..(key.clone(), Reverse(lsn))).rev().map(|(k, _)| k.clone());
                let mut got = inner.tree.walk(&inner.arena, Some(&probe), true).map(place);
                assert!(got.next() == want.next() && got.next() == want.next(), "{shape:?}: backward at {lsn}");
            }
        }
    }
}

#[test]
fn an_iterator_stays_at_its_lsn_while_records_come() {
    for (seed, shape) in (100..).zip(SHAPES) {
        let mut run = Run::new(shape, seed);
        (0..shape.records() / 3).for_each(|_| run.step());
        let lsn = run.head.0.lsn;
        for reverse in [false, true] {
            let want = run.model.scan(&[], &[], reverse, lsn);
            let mut iter = MemtableCursor::new(Arc::clone(&run.memtable), Bounds::all(), reverse, lsn);
            for item in want {
                run.step();
                assert!(iter.next().unwrap() == item, "{shape:?}, reverse {reverse}");
            }
            assert!(iter.next().is_none(), "{shape:?}, reverse {reverse}");
        }
    }
}

#[test]
fn a_large_record_is_taken_in_whole_and_refused_whole() {
    let mut run = Run::new(Shape::Random, 5);
    let mut b = Batch::new();
    for n in 0..10_000_u64 {
        b.put(&Shape::Random.key(&run.rng, n), &n.to_le_bytes()).unwrap();
    }
    run.apply(&b);
    run.check_all_gets("large");
    assert!(run.scan(&[], &[], false, Lsn::MAX) == run.model.scan(&[], &[], false, Lsn::MAX));

    let before = (run.memtable.bytes(), run.memtable.end());
    let bytes = run.head.batch(1, &b);
    let record = Record::decode(&bytes).unwrap();
    let old = Position { ts: CommitTs(0), ..record.position() };
    assert!(run.memtable.apply(old, Change::of(&record).unwrap()).is_err());
    let change = Change { bytes: 64 << 30, ..Change::of(&record).unwrap() };
    assert!(run.memtable.apply(record.position(), change).is_err());
    assert_eq!((run.memtable.bytes(), run.memtable.end()), before);
    assert!(run.scan(&[], &[], false, Lsn::MAX) == run.model.scan(&[], &[], false, Lsn::MAX));
}

#[test]
fn memory_is_honest_and_leaves_are_full() {
    for (shape, least) in [(Shape::Ascending, 99), (Shape::Streams, 90), (Shape::Random, 60), (Shape::Descending, 90)] {
        let mut run = Run::new(shape, 9);
        run.memtable = Arc::new(Memtable::new(3 << 20, &Spare::default()));
        assert!(run.memtable.bytes() == 0);
        let mut user = 0;
        for n in 0..20_000 {
            let mut b = Batch::new();
            let key = shape.key(&run.rng, n);
            b.put(&key, &[7; 100]).unwrap();
            user += key.len() + 100;
            let bytes = run.head.batch(1, &b);
            let record = Record::decode(&bytes).unwrap();
            run.memtable.apply(record.position(), Change::of(&record).unwrap()).unwrap();
        }
        let (_, full) = run.memtable.read().tree.shape();
        assert!(full >= least, "{shape:?}: leaves are {full} % full");
        let per_user_byte = run.memtable.bytes() as f64 / user as f64;
        assert!((1.2..1.6).contains(&per_user_byte), "{shape:?}: {per_user_byte} bytes per byte");
    }
}

const TIMED: usize = 500_000;

/// Records with one put each of a 16-byte key, which `key` makes, and a 100-byte value.
fn timed_records(key: impl Fn(u64) -> u64) -> (Vec<Vec<u8>>, Vec<Vec<u8>>) {
    let mut head = Head::default();
    (0..TIMED as u64)
        .map(|n| {
            let k = format!("{:016}", key(n)).into_bytes();
            let mut b = Batch::new();
            b.put(&k, &[n as u8; 100]).unwrap();
            (internal_key(Keyspace::USER, &k), head.batch(1, &b))
        })
        .unzip()
}

/// Time of this thread on a processor, which others on the machine disturb less than wall time.
fn thread_ns(clock: &OsClock) -> u128 {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").ok();
    let ran = stat.and_then(|s| s.split(' ').next()?.parse().ok());
    ran.unwrap_or_else(|| clock.monotonic().as_nanos())
}

fn ns_each(clock: &OsClock, count: usize, work: impl FnOnce()) -> u128 {
    let start = thread_ns(clock);
    work();
    (thread_ns(clock) - start) / count as u128
}

/// One dependent read somewhere in 64 MiB: what a cache miss costs just now.
fn miss_ns(clock: &OsClock, rng: &dyn Rng) -> u128 {
    let words: Vec<u64> = (0..8 << 20).map(|_| rng.below(8 << 20)).collect();
    let mut at = 0;
    let out = ns_each(clock, TIMED, || (0..TIMED as u64).for_each(|n| at = (words[at as usize] ^ n) % (8 << 20)));
    assert!(at < 8 << 20);
    out
}

fn median(mut of: Vec<u128>) -> u128 {
    of.sort_unstable();
    of[of.len() / 2]
}

/// Prints nanoseconds per call; run with `--release -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement, not a check"]
fn timings() {
    let (clock, rng) = (OsClock::new(), SeededRng::new(1));
    let order: Vec<u64> = (0..TIMED as u64).map(|_| rng.below(100_000_000)).collect();
    for (name, (keys, records)) in
        [("ascending", timed_records(|n| n)), ("random", timed_records(|n| order[n as usize]))]
    {
        let decoded: Vec<Record<'_>> = records.iter().map(|r| Record::decode(r).unwrap()).collect();
        let mut rows: [Vec<u128>; 8] = Default::default();
        for _ in 0..5 {
            let m = Arc::new(Memtable::new(32 << 20, &Spare::default()));
            rows[0].push(ns_each(&clock, TIMED, || {
                for r in &decoded {
                    m.apply(r.position(), Change::of(r).unwrap()).unwrap();
                }
            }));
            let mut alone = Inner::default();
            rows[7].push(ns_each(&clock, TIMED, || {
                for (k, r) in keys.iter().zip(&decoded) {
                    let addr = alone.arena.push(r.header.lsn, (None, k), r.body.get(..103));
                    alone.tree.insert(&alone.arena, addr);
                }
            }));
            drop(alone);
            let sought: Vec<Vec<u8>> = (0..TIMED).map(|_| keys[rng.below(TIMED as u64) as usize].clone()).collect();
            let found = |keys: &[Vec<u8>]| keys.iter().filter(|k| m.get(k, key_hash(k), Lsn::MAX).is_some()).count();
            rows[1].push(ns_each(&clock, TIMED, || assert_eq!(found(&sought), TIMED)));
            let absent: Vec<Vec<u8>> = sought.iter().map(|k| [k.as_slice(), b"!"].concat()).collect();
            rows[2].push(ns_each(&clock, TIMED, || assert_eq!(found(&absent), 0)));
            let scan = || MemtableCursor::new(Arc::clone(&m), Bounds::all(), false, Lsn::MAX).count();
            rows[3].push(ns_each(&clock, TIMED, || assert_eq!(scan(), TIMED)));
            rows[4].push((m.bytes() / TIMED) as u128);
            rows[6].push(miss_ns(&clock, &rng));
            let mut plain = BTreeMap::new();
            rows[5].push(ns_each(&clock, TIMED, || {
                for (k, r) in keys.iter().zip(&decoded) {
                    plain.insert((k.clone(), Reverse(r.header.lsn)), r.body.to_vec());
                }
            }));
        }
        let [apply, get, absent, scan, bytes, plain, miss, insert] = rows.map(median);
        println!("{name}: insert {insert} ns, a record's apply {apply} ns, get {get} ns, absent {absent} ns");
        println!("{name}: scan {scan} ns per entry");
        println!("{name}: {bytes} bytes per entry; a standard map's insert {plain} ns; a cache miss {miss} ns");
    }
}
