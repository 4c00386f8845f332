//! The life of the log in a store: how much of it there is, what opening reads of it, and that a checkpoint costs
//! names and no data.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use mainstay_engine::batch::{Batch, Keyspace};
use mainstay_engine::clock::SimClock;
use mainstay_engine::exec::Progress;
use mainstay_engine::fs::Fs;
use mainstay_engine::fs::sim::SimFs;
use mainstay_engine::record::Record;
use mainstay_engine::store::{Durability, Identity, Store};
use mainstay_engine::tree::{ReadOnly, View};
use mainstay_engine::value::Value;
use mainstay_engine::{ClusterId, CommitTs, Env, Error, Lsn, Options, TimelineId};

use crate::world::DIR;

/// Keys and values.
type State = BTreeMap<Vec<u8>, Vec<u8>>;

const IDENTITY: Identity = Identity { cluster: ClusterId(7), timeline: TimelineId(9) };

fn store(seed: u64, options: &Options) -> (Arc<SimFs>, Env, Arc<Store>) {
    let fs = SimFs::new(seed);
    fs.prepare_dir(Path::new(DIR)).unwrap();
    let (env, _) = Env::sim(Arc::clone(&fs), SimClock::new(CommitTs(1_000_000)), seed);
    let store = Store::create(env.clone(), Path::new(DIR), options, IDENTITY).unwrap();
    (fs, env, Arc::new(store))
}

fn put(key: &[u8], len: usize) -> Batch {
    let mut batch = Batch::new();
    batch.put(key, &vec![b'v'; len]).unwrap();
    batch
}

fn maintain(store: &Store) {
    while store.maintain_step().unwrap() == Progress::Worked {}
}

fn flush(store: &Store) {
    store.tree().flush_all().unwrap();
    maintain(store);
}

/// Bytes that opening reads after so many records were flushed and kept for a reader, and a few more were not.
fn read_at_open(records: u32) -> (u64, u64) {
    let options = Options { retained_log_bytes: 1 << 30, table_bytes: 1 << 20, ..Options::tiny() };
    let (fs, env, store) = store(1, &options);
    let slot = store.log().slot("reader", Lsn::ZERO);
    for n in 0..records {
        store.write(&put(&(n % 500).to_be_bytes(), 300), &[], Durability::Written).unwrap();
        if n % 50 == 0 {
            maintain(&store);
        }
    }
    flush(&store);
    for n in 0..20_u32 {
        store.write(&put(&n.to_be_bytes(), 100), &[], Durability::Synced).unwrap();
    }
    let (log, _) = store.log().disk_usage();
    assert_eq!(store.log().oldest(), Lsn(1), "the slot keeps all");
    drop(slot);
    store.close().unwrap();
    drop(store);
    fs.crash();
    let before = fs.transferred().0;
    let store = Store::open_embedded(env, Path::new(DIR), &options).unwrap();
    let read = fs.transferred().0 - before;
    assert_eq!(store.applied().get(), Lsn(u64::from(records) + 20));
    // The older log is still there, and is proven when it is read.
    let mut reader = store.log().reader(Lsn(1)).unwrap();
    let mut next = Lsn(1);
    while let Some(chunk) = reader.next(Lsn::MAX, 64 << 10).unwrap() {
        for record in chunk.records() {
            assert_eq!(record.unwrap().header.lsn, next);
            next = next.next();
        }
    }
    assert_eq!(next, Lsn(u64::from(records) + 21));
    (read, log)
}

#[test]
fn opening_reads_the_log_behind_the_tables_and_not_what_readers_hold() {
    let (few, little) = read_at_open(400);
    let (many, much) = read_at_open(4_000);
    assert!(much > 8 * little, "{little} {much}");
    // More segments, of each its header, and a longer manifest.
    assert!(many < few + much / 64 && many < much / 8, "opening read {few} of {little} and {many} of {much} bytes");
}

/// An idle keyspace beside a busy one, and records without entries: neither keeps the log from being let go.
#[test]
fn the_log_stays_bounded_whatever_is_written() {
    let options = Options::tiny();
    let bound = 6 * options.segment_bytes.max(options.memtable_bytes as u64);
    let system = Keyspace::SYSTEM;
    let mut idle = Batch::new();
    idle.put_with(system, b"once", &Value::plain(b"and never again")).unwrap();
    let mut delete = Batch::new();
    delete.delete(b"x").unwrap();
    for (what, batch) in [("puts", put(b"k", 200)), ("deletes", delete), ("nothing", Batch::new())] {
        let (_, _, store) = store(2, &options);
        store.write(&idle, &[], Durability::Synced).unwrap();
        let mut most = 0;
        for n in 0..6_000_u32 {
            store.write(&batch, &[], Durability::Written).unwrap();
            if n % 20 == 0 {
                maintain(&store);
                most = most.max(store.log().disk_usage().0);
            }
        }
        assert!(most <= bound, "{what}: {most} bytes of log, {bound} are allowed");
        assert!(store.log().stats().segments_recycled > 5, "{what}: {:?}", store.log().stats());
        assert!(store.view().get(system, b"once").unwrap().is_some());
    }
}

fn all(view: &View) -> State {
    let entries = view.scan(Keyspace::USER, b"", b"", false).map(Result::unwrap);
    entries.map(|e| (e.key, Value::decode(&e.envelope).unwrap().data.to_vec())).collect()
}

/// Four writers as fast as they can, all background threads, and checkpoints meanwhile: each opens where it stands
/// and is what the log says at its LSN.
#[test]
fn a_checkpoint_at_full_speed_is_the_state_at_its_lsn() {
    let options = Options { retained_log_bytes: 1 << 30, ..Options::tiny() };
    let (fs, env, store) = store(3, &options);
    let _slot = store.log().slot("the judge", Lsn::ZERO);
    let workers = store.start_background().unwrap();
    let done = AtomicBool::new(false);
    let made: Mutex<Vec<(Lsn, State)>> = Mutex::default();
    std::thread::scope(|s| {
        let writers: Vec<_> = (0..4_u8)
            .map(|t| {
                let store = &store;
                s.spawn(move || {
                    for n in 0..1_500_u32 {
                        let durability =
                            [Durability::Written, Durability::Synced, Durability::Buffered][n as usize % 3];
                        let mut batch = Batch::new();
                        // The key's own writer or any: overwrites, deletes, and two keys at once.
                        batch.put(&[b'k', (n % 40) as u8], &[&[t][..], &n.to_be_bytes()].concat()).unwrap();
                        if n % 7 == 0 {
                            batch.delete(&[b'k', (n % 11) as u8]).unwrap();
                        } else {
                            batch.put(&[b'o', t, (n % 90) as u8], &n.to_be_bytes()).unwrap();
                        }
                        store.write(&batch, &[], durability).unwrap();
                    }
                })
            })
            .collect();
        s.spawn(|| {
            for n in 0.. {
                let last = done.load(Ordering::Acquire);
                let to = PathBuf::from(format!("{DIR}/checkpoint-{n}"));
                let at = store.checkpoint(&to).unwrap().position.lsn;
                let opened = ReadOnly::open(env.clone(), &to, &options).unwrap();
                assert_eq!(opened.position().lsn, at);
                made.lock().unwrap().push((at, all(&opened.view())));
                drop(opened);
                fs.remove_dir_all(&to).unwrap();
                if last {
                    break;
                }
            }
        });
        let results: Vec<_> = writers.into_iter().map(|w| w.join()).collect();
        done.store(true, Ordering::Release);
        results.into_iter().for_each(|r| r.unwrap());
    });
    drop(workers);
    // The log, record by record, is the judge.
    let mut made = made.into_inner().unwrap();
    made.reverse();
    let checkpoints = made.len();
    let mut state = State::new();
    let mut reader = store.log().reader(Lsn(1)).unwrap();
    while let Some(chunk) = reader.next(Lsn::MAX, 64 << 10).unwrap() {
        for record in chunk.records() {
            let record = record.unwrap();
            apply(&mut state, &record);
            while let Some((lsn, found)) = made.pop_if(|(lsn, _)| *lsn <= record.header.lsn) {
                assert!(lsn == record.header.lsn && found == state, "the checkpoint at LSN {lsn} is another state");
            }
        }
    }
    assert!(made.is_empty() && checkpoints > 2, "{checkpoints} checkpoints, {} above the end", made.len());
}

fn apply(state: &mut State, record: &Record<'_>) {
    use mainstay_engine::batch::{Op, ops};
    for op in ops(record.body) {
        match op.unwrap() {
            Op::Put { key, envelope, .. } => {
                let value = Value::decode(envelope).unwrap().data.to_vec();
                state.insert(key.to_vec(), value);
            }
            Op::Delete { key, .. } => drop(state.remove(key)),
            Op::DeleteRange { .. } => unreachable!("no writer does"),
        }
    }
}

/// What a checkpoint does to the disk: calls, bytes read and bytes written.
fn checkpoint_cost(entries: u32, len: usize) -> (usize, u64, u64, u64) {
    // One table whatever is in it.
    let options = Options {
        memtable_bytes: 64 << 20,
        table_bytes: 64 << 20,
        segment_bytes: 4 << 20,
        ..Options::with_memory_limit(256 << 20)
    };
    let (fs, _, store) = store(4, &options);
    for n in 0..entries {
        store.write(&put(&n.to_be_bytes(), len), &[], Durability::Buffered).unwrap();
    }
    flush(&store);
    let (calls, (read, written)) = (fs.io_count(), fs.transferred());
    let made = store.checkpoint(&Path::new(DIR).join("checkpoint")).unwrap();
    let (now_read, now_written) = fs.transferred();
    (made.tables.len(), fs.io_count() - calls, now_read - read, now_written - written)
}

#[test]
fn a_checkpoint_links_tables_and_copies_nothing() {
    let small = checkpoint_cost(200, 20);
    let large = checkpoint_cost(4_000, 1_500);
    let (tables, calls, read, written) = large;
    assert_eq!((tables, calls, read), (small.0, small.1, small.2), "the cost depends on what is in the tables");
    // The manifest's numbers have more digits.
    assert!(tables == 1 && calls < 20 && read == 0 && written < small.3 + 16, "{small:?} {large:?}");
}

/// A reader holds the log until it lags too far; then it is told, the log goes, and the store goes on.
#[test]
fn a_slot_holds_log_up_to_its_cap_and_its_reader_is_told() {
    let options = Options::tiny();
    let (_, _, store) = store(5, &options);
    let slot = store.log().slot("stuck", Lsn::ZERO);
    let mut reader = store.log().reader(Lsn(1)).unwrap();
    assert!(reader.next(Lsn::MAX, 1).unwrap().is_none());
    let mut lost_at = None;
    for n in 0..3_000_u32 {
        store.write(&put(&n.to_be_bytes(), 100), &[], Durability::Written).unwrap();
        if n % 20 == 0 {
            maintain(&store);
            let (bytes, _) = store.log().disk_usage();
            assert!(bytes <= options.retained_log_bytes + 6 * options.segment_bytes, "{bytes} bytes at {n}");
            if slot.lost() && lost_at.is_none() {
                lost_at = Some(bytes);
            }
        }
    }
    assert!(lost_at.is_some(), "the slot held on for ever");
    assert!(matches!(reader.next(Lsn::MAX, 1), Err(Error::LogGone { .. })));
}
