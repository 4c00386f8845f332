//! The same operations into Mainstay and into redb, on real files: every answer must be the same. redb is a
//! copy-on-write B-tree and shares no code and no idea with this engine, so what both get wrong in the same way is
//! not an oversight of ours.
//!
//! Owns: the stream of operations and the comparison. Never: speed; the harness beside measures that.

use std::path::PathBuf;
use std::sync::Arc;

use mainstay_engine::batch::{Batch, Keyspace};
use mainstay_engine::exec::Progress;
use mainstay_engine::fault::{Bug, plant};
use mainstay_engine::limits::{KEY_BYTES_MAX, VALUE_BYTES_MAX};
use mainstay_engine::rng::{Rng, SeededRng};
use mainstay_engine::store::{Durability, Identity, Store, Workers};
use mainstay_engine::tree::{ReadOnly, Scan, View};
use mainstay_engine::value::Value;
use mainstay_engine::{ClusterId, Env, Options, TimelineId};
use redb::{Database, ReadTransaction, ReadableDatabase, TableDefinition};

const KEYS: TableDefinition<&[u8], &[u8]> = TableDefinition::new("keys");

/// Operations of a run; about eight times as many keys are written.
const STEPS: u64 = 1_000;

type Key = Vec<u8>;
type Answer = Vec<(Key, Vec<u8>)>;

/// One operation of a batch.
enum Op {
    Put(Key, Vec<u8>),
    Delete(Key),
    DeleteRange(Key, Key),
}

/// How often each thing was done: a stream that leaves one out proves nothing about it.
#[derive(Debug, Default)]
struct Counts {
    puts: u64,
    deletes: u64,
    range_deletes: u64,
    keys_twice: u64,
    gets: u64,
    found: u64,
    multi_gets: u64,
    scans: [u64; 2],
    prefixes: u64,
    views: u64,
    checkpoints: u64,
    reopened: u64,
    large_values: u64,
    long_keys: u64,
    empty_keys: u64,
    empty_values: u64,
    flushes: u64,
    compactions: u64,
}

struct Both {
    rng: SeededRng,
    options: Options,
    store: Option<Arc<Store>>,
    workers: Option<Workers>,
    background: bool,
    redb: Option<Database>,
    held: Vec<(View, ReadTransaction)>,
    counts: Counts,
    // Last: it goes when the background threads have ended.
    dir: tempfile::TempDir,
}

fn options() -> Options {
    Options {
        segment_bytes: 4 << 20,
        memtable_bytes: 32 << 10,
        block_bytes: 1 << 10,
        table_bytes: 32 << 10,
        level0_tables: 2,
        level_base_bytes: 48 << 10,
        // So that compaction drops what nobody can read any more.
        history_window_us: 10,
        ..Options::with_memory_limit(8 << 20)
    }
}

impl Both {
    fn new(seed: u64, options: Options, background: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let identity = Identity { cluster: ClusterId(1), timeline: TimelineId(1) };
        drop(Store::create(Env::real(), &dir.path().join("mainstay"), &options, identity).unwrap());
        let (rng, counts) = (SeededRng::new(seed), Counts::default());
        let mut both =
            Self { rng, options, store: None, workers: None, background, redb: None, held: vec![], counts, dir };
        both.open();
        let write = both.redb().begin_write().unwrap();
        write.open_table(KEYS).unwrap();
        write.commit().unwrap();
        both
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn open(&mut self) {
        let store = Arc::new(Store::open_embedded(Env::real(), &self.path("mainstay"), &self.options).unwrap());
        self.workers = self.background.then(|| store.start_background().unwrap());
        self.store = Some(store);
        self.redb = Some(Database::builder().set_cache_size(8 << 20).create(self.path("redb")).unwrap());
    }

    fn store(&self) -> &Store {
        self.store.as_ref().unwrap()
    }

    fn redb(&self) -> &Database {
        self.redb.as_ref().unwrap()
    }

    fn chance(&self, of: u64) -> bool {
        self.rng.below(of) == 0
    }

    /// Few enough keys to meet again, of every shape.
    fn key(&mut self) -> Key {
        let n = self.rng.below(3_000);
        match self.rng.below(200) {
            0..=4 => Vec::new(),
            5..=9 => vec![0xff; 1 + n as usize % 3],
            10 => {
                self.counts.long_keys += 1;
                let mut key = vec![b'L'; KEY_BYTES_MAX - 1];
                key.push(n as u8 % 4);
                key
            }
            11..=49 => (0..self.rng.below(4)).map(|_| self.rng.below(3) as u8).collect(),
            50..=99 => format!("a prefix that many share/{:03}/{n}", n % 50).into_bytes(),
            _ => n.to_be_bytes()[6..].to_vec(),
        }
    }

    fn value(&mut self) -> Vec<u8> {
        let len = match self.rng.below(400) {
            0 => 300_000,
            1..=4 => 20_000,
            5..=40 => 0,
            _ => self.rng.below(150) as usize,
        };
        self.counts.empty_values += u64::from(len == 0);
        self.counts.large_values += u64::from(len == 300_000);
        // Nothing that packs well: levels are to fill.
        let mut value: Vec<u8> = (0..len.div_ceil(8)).flat_map(|_| self.rng.next_u64().to_le_bytes()).collect();
        value.truncate(len);
        value
    }

    fn ops(&mut self) -> Vec<Op> {
        let mut out = Vec::new();
        for _ in 0..1 + self.rng.below(12) {
            let key = self.key();
            self.counts.empty_keys += u64::from(key.is_empty());
            match self.rng.below(60) {
                0 => {
                    // Mostly what starts with the key; a range between two keys is half of everything.
                    let end = if self.chance(10) { self.key() } else { after_prefix(&key) };
                    // Now and then to the end of everything.
                    if end > key || (end.is_empty() && self.chance(20)) {
                        out.push(Op::DeleteRange(key, end));
                    }
                }
                1..=12 => out.push(Op::Delete(key)),
                13..=16 => {
                    self.counts.keys_twice += 1;
                    out.push(Op::Put(key.clone(), self.value()));
                    out.push(if self.chance(2) { Op::Delete(key) } else { Op::Put(key, self.value()) });
                }
                _ => out.push(Op::Put(key, self.value())),
            }
        }
        out
    }

    fn write(&mut self) -> Vec<Key> {
        let ops = self.ops();
        let mut batch = Batch::new();
        let mut write = self.redb().begin_write().unwrap();
        write.set_durability(redb::Durability::None).unwrap();
        let mut touched = Vec::new();
        {
            let mut table = write.open_table(KEYS).unwrap();
            for op in &ops {
                match op {
                    Op::Put(key, value) => {
                        batch.put(key, value).unwrap();
                        table.insert(key.as_slice(), value.as_slice()).unwrap();
                        self.counts.puts += 1;
                        touched.push(key.clone());
                    }
                    Op::Delete(key) => {
                        batch.delete(key).unwrap();
                        table.remove(key.as_slice()).unwrap();
                        self.counts.deletes += 1;
                        touched.push(key.clone());
                    }
                    Op::DeleteRange(start, end) => {
                        batch.delete_range(start, end).unwrap();
                        match end.as_slice() {
                            [] => table.retain_in::<&[u8], _>(start.as_slice().., |_, _| false).unwrap(),
                            end => table.retain_in::<&[u8], _>(start.as_slice()..end, |_, _| false).unwrap(),
                        }
                        self.counts.range_deletes += 1;
                        touched.extend([start.clone(), end.clone()]);
                    }
                }
            }
        }
        write.commit().unwrap();
        let durability = [Durability::Written, Durability::Buffered, Durability::Written, Durability::Synced];
        let durability = durability[if self.chance(10) { 3 } else { self.rng.below(3) as usize }];
        self.store().write(&batch, &[], durability).unwrap();
        touched
    }

    fn check_keys(&mut self, keys: &[Key]) -> Result<(), String> {
        let table = self.redb().begin_read().unwrap().open_table(KEYS).unwrap();
        let all = self.store().view().multi_get(Keyspace::USER, keys).unwrap();
        self.counts.multi_gets += 1;
        for (key, several) in keys.iter().zip(all) {
            let theirs = table.get(key.as_slice()).unwrap().map(|v| v.value().to_vec());
            let one = self.store().get(Keyspace::USER, key).unwrap();
            if one != several {
                return Err(format!("get and multi-get differ on {}", shown(key)));
            }
            let ours = one.map(|f| Value::decode(&f.envelope).unwrap().data.to_vec());
            if ours != theirs {
                let len = |v: &Option<Vec<u8>>| v.as_ref().map(Vec::len);
                return Err(format!("{}: value lengths {:?} and {:?}", shown(key), len(&ours), len(&theirs)));
            }
            self.counts.gets += 1;
            self.counts.found += u64::from(theirs.is_some());
        }
        Ok(())
    }

    fn check_scan(&mut self) -> Result<(), String> {
        let (mut start, mut end) = (self.key(), self.key());
        let of_prefix = self.chance(3);
        if of_prefix {
            self.counts.prefixes += 1;
            start.truncate(self.rng.below(27) as usize);
        } else if self.chance(4) {
            end.clear();
        } else if end < start {
            std::mem::swap(&mut start, &mut end);
        }
        let (reverse, limit) = (self.chance(2), 1 + self.rng.below(200) as usize);
        self.counts.scans[usize::from(reverse)] += 1;
        let view = self.store().view();
        let read = self.redb().begin_read().unwrap();
        if of_prefix {
            same_prefix(&view, &read, &start, reverse, limit)
        } else {
            same_range(&view, &read, (&start, &end), reverse, limit)
        }
    }

    /// Everything, forwards and backwards, in what is now and in a moment that was held.
    fn check_all(&mut self) -> Result<(), String> {
        let now = (self.store().view(), self.redb().begin_read().unwrap());
        let held = (!self.held.is_empty()).then(|| self.held.remove(0));
        self.counts.views += u64::from(held.is_some());
        for (view, read) in held.iter().chain([&now]) {
            for reverse in [false, true] {
                same_range(view, read, (b"", b""), reverse, usize::MAX)?;
            }
        }
        self.held.push(now);
        Ok(())
    }

    fn check_checkpoint(&mut self) -> Result<(), String> {
        let to = self.path("checkpoint");
        self.store().checkpoint(&to).unwrap();
        let tree = ReadOnly::open(Env::real(), &to, &self.options).unwrap();
        let read = self.redb().begin_read().unwrap();
        self.counts.checkpoints += 1;
        let same = same_range(&tree.view(), &read, (b"", b""), false, usize::MAX);
        drop(tree);
        std::fs::remove_dir_all(&to).unwrap();
        same
    }

    fn count_work(&mut self) {
        let stats = self.store().tree().stats();
        self.counts.flushes += stats.flushes;
        self.counts.compactions += stats.compactions;
    }

    fn reopen(&mut self) {
        self.held.clear();
        self.workers = None;
        self.count_work();
        if self.chance(2) {
            self.store().close().unwrap();
        } else {
            // As a process that is killed; what was only buffered would be lost.
            self.store().log().write_to(self.store().log().last().lsn).unwrap();
        }
        self.store = None;
        let mut write = self.redb().begin_write().unwrap();
        write.set_durability(redb::Durability::Immediate).unwrap();
        write.commit().unwrap();
        self.redb = None;
        self.open();
        self.counts.reopened += 1;
    }

    fn step(&mut self, n: u64) -> Result<(), String> {
        let touched = self.write();
        self.check_keys(&touched)?;
        if !self.background && self.store().maintain_step().unwrap() == Progress::Worked && self.chance(3) {
            while self.store().maintain_step().unwrap() == Progress::Worked {}
        }
        let others: Vec<Key> = (0..4).map(|_| self.key()).collect();
        self.check_keys(&others)?;
        self.check_scan()?;
        match n % 400 {
            101 => self.check_all()?,
            301 => self.check_checkpoint()?,
            399 => {
                self.reopen();
                self.check_all()?;
            }
            _ => {}
        }
        Ok(())
    }
}

/// The first key behind all that start with `prefix`, for a range delete; empty when there is none.
fn after_prefix(prefix: &[u8]) -> Key {
    let mut end = prefix.to_vec();
    while end.last() == Some(&0xff) {
        end.pop();
    }
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    end
}

fn shown(key: &[u8]) -> String {
    format!("key {:02x?} of {} bytes", &key[..key.len().min(40)], key.len())
}

fn ours(scan: Scan, limit: usize) -> Answer {
    let owned = scan.take(limit).map(|e| e.unwrap());
    owned.map(|e| (e.key, Value::decode(&e.envelope).unwrap().data.to_vec())).collect()
}

/// What both say about `start..end` (an empty end is that of everything).
fn same_range(
    view: &View,
    read: &ReadTransaction,
    (start, end): (&[u8], &[u8]),
    reverse: bool,
    limit: usize,
) -> Result<(), String> {
    let table = read.open_table(KEYS).unwrap();
    let range = if end.is_empty() { table.range::<&[u8]>(start..) } else { table.range::<&[u8]>(start..end) }.unwrap();
    let all = range.map(|e| e.map(|(key, value)| (key.value().to_vec(), value.value().to_vec())).unwrap());
    let theirs: Answer = if reverse { all.rev().take(limit).collect() } else { all.take(limit).collect() };
    let ours = ours(view.scan(Keyspace::USER, start, end, reverse), limit);
    same(&ours, &theirs).map_err(|e| format!("reverse {reverse}, from {} to {}: {e}", shown(start), shown(end)))
}

/// What both say about the keys that start with `prefix`. redb has no such read: it has to look at all from there on.
fn same_prefix(view: &View, read: &ReadTransaction, prefix: &[u8], reverse: bool, limit: usize) -> Result<(), String> {
    let table = read.open_table(KEYS).unwrap();
    let from = table.range::<&[u8]>(prefix..).unwrap();
    let from = from.map(|e| e.map(|(key, value)| (key.value().to_vec(), value.value().to_vec())).unwrap());
    let mut all: Answer = from.take_while(|(key, _)| key.starts_with(prefix)).collect();
    if reverse {
        all.reverse();
    }
    all.truncate(limit);
    let ours = ours(view.scan_prefix(Keyspace::USER, prefix, reverse), limit);
    same(&ours, &all).map_err(|e| format!("reverse {reverse}, what starts with {}: {e}", shown(prefix)))
}

fn same(ours: &Answer, theirs: &Answer) -> Result<(), String> {
    if ours == theirs {
        return Ok(());
    }
    let at = ours.iter().zip(theirs).take_while(|(a, b)| a == b).count();
    let key = |a: &Answer| a.get(at).map_or("nothing".to_owned(), |(k, v)| format!("{} with {}", shown(k), v.len()));
    Err(format!("{} and {} entries; entry {at} is {} and {}", ours.len(), theirs.len(), key(ours), key(theirs)))
}

/// So many steps; the first difference ends it.
fn run(seed: u64, steps: u64, background: bool) -> Result<Counts, String> {
    let mut both = Both::new(seed, options(), background);
    for n in 0..steps {
        both.step(n).map_err(|e| format!("seed {seed}, step {n}, background {background}: {e}"))?;
    }
    both.check_all()?;
    both.count_work();
    Ok(both.counts)
}

#[test]
fn the_same_operations_give_the_same_answers_as_in_redb() {
    for (seed, background) in [(1, false), (2, true), (3, false), (4, true)] {
        let c = run(seed, STEPS, background).unwrap_or_else(|e| panic!("{e}"));
        println!("seed {seed}: {c:?}");
        let all = [c.puts, c.deletes, c.range_deletes, c.keys_twice, c.gets, c.found, c.multi_gets, c.prefixes];
        let rare = [c.views, c.checkpoints, c.reopened, c.large_values, c.long_keys, c.empty_keys, c.empty_values];
        let work = [c.flushes, c.compactions];
        assert!(all.iter().chain(&c.scans).all(|n| *n > 9), "{c:?}");
        assert!(rare.iter().chain(&work).all(|n| *n > 1), "{c:?}");
    }
}

#[test]
fn the_largest_key_and_value_come_back_from_both() {
    let mut both = Both::new(1, Options::default(), false);
    let (key, value) = (vec![b'k'; KEY_BYTES_MAX], vec![b'v'; VALUE_BYTES_MAX]);
    let mut batch = Batch::new();
    batch.put(&key, &value).unwrap();
    both.store().write(&batch, &[], Durability::Written).unwrap();
    let write = both.redb().begin_write().unwrap();
    write.open_table(KEYS).unwrap().insert(key.as_slice(), value.as_slice()).unwrap();
    write.commit().unwrap();
    both.check_keys(std::slice::from_ref(&key)).unwrap();
    both.reopen();
    both.store().tree().flush_all().unwrap();
    both.check_keys(&[key]).unwrap();
    both.check_all().unwrap();
}

/// The comparison can fail: a compaction that drops a delete too early brings old values back.
#[test]
fn a_broken_compaction_is_noticed() {
    let _planted = plant(Bug::DropHidingDeletes);
    let noticed = (10..14).find_map(|seed| run(seed, STEPS, false).err());
    println!("{noticed:?}");
    assert!(noticed.is_some(), "went unnoticed");
}
