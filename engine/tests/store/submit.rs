//! Writes that are submitted: their completions end when the write is as sure as was asked for and visible, on any
//! executor or none, and however the store ends.

use std::collections::BTreeMap;
use std::future::Future;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use mainstay_engine::batch::{Batch, Condition, Expect, Keyspace};
use mainstay_engine::clock::SimClock;
use mainstay_engine::env::SimFatal;
use mainstay_engine::error::ErrorClass;
use mainstay_engine::fs::sim::{FaultKind, OpClass, SimFs};
use mainstay_engine::limits::OUTSTANDING_WRITES_MAX;
use mainstay_engine::store::{Completion, Durability, Identity, Store};
use mainstay_engine::value::Value;
use mainstay_engine::{ClusterId, CommitTs, Env, Error, Lsn, Options, TimelineId};

use crate::world::DIR;

const IDENTITY: Identity = Identity { cluster: ClusterId(7), timeline: TimelineId(9) };
const WORDS: [Durability; 3] = [Durability::Synced, Durability::Written, Durability::Buffered];

struct World {
    fs: Arc<SimFs>,
    env: Env,
    fatal: SimFatal,
    store: Arc<Store>,
}

fn world(seed: u64) -> World {
    let fs = SimFs::new(seed);
    fs.prepare_dir(Path::new(DIR)).unwrap();
    let (env, fatal) = Env::sim(Arc::clone(&fs), SimClock::new(CommitTs(1_000_000)), seed);
    let store = Arc::new(Store::create(env.clone(), Path::new(DIR), &options(), IDENTITY).unwrap());
    World { fs, env, fatal, store }
}

/// A segment that no test fills: making the next one needs a sync, and some tests have these hang.
fn options() -> Options {
    Options { segment_bytes: 4 << 20, ..Options::with_memory_limit(64 << 20) }
}

fn put(key: &[u8], value: &[u8]) -> Batch {
    let mut batch = Batch::new();
    batch.put(key, value).unwrap();
    batch
}

fn get(store: &Store, key: &[u8]) -> Option<Vec<u8>> {
    let found = store.get(Keyspace::USER, key).unwrap()?;
    Some(Value::decode(&found.envelope).unwrap().data.to_vec())
}

/// An executor of one future: parks its thread until it is woken.
fn block_on<F: Future>(future: F) -> F::Output {
    struct Unpark(std::thread::Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(out) => return out,
            Poll::Pending => std::thread::park(),
        }
    }
}

#[test]
fn a_submitted_write_is_visible_when_its_completion_ends_on_any_executor_and_without_threads() {
    for threads in [true, false] {
        let w = world(1);
        let workers = threads.then(|| w.store.start_background().unwrap());
        for n in 0..60_u64 {
            let durability = WORDS[n as usize % 3];
            let value = n.to_le_bytes();
            let completion = w.store.submit(&put(b"k", &value), &[], durability).unwrap();
            assert_eq!(completion.position().lsn, Lsn(n + 1));
            assert!(threads || matches!(completion.outcome(), Some(Ok(_))), "nobody else would complete it");
            let written = if n % 2 == 0 { completion.wait() } else { block_on(completion) }.unwrap();
            assert_eq!((written.position.lsn, written.durability), (Lsn(n + 1), durability));
            assert_eq!(get(&w.store, b"k").unwrap(), value);
            if durability == Durability::Synced {
                assert!(w.store.durable().get() >= written.position.lsn);
            }
        }
        drop(workers);
        w.store.close().unwrap();
    }
}

#[test]
fn conditions_and_limits_refuse_before_anything_is_written() {
    let w = world(2);
    let _workers = w.store.start_background().unwrap();
    w.store.submit(&put(b"k", b"1"), &[], Durability::Synced).unwrap().wait().unwrap();
    let absent = Condition { keyspace: Keyspace::USER, key: b"k".to_vec(), expect: Expect::Absent };
    let refused = w.store.submit(&put(b"k", b"2"), std::slice::from_ref(&absent), Durability::Synced).unwrap_err();
    assert_eq!(refused.class(), ErrorClass::NeverRetry);
    // A condition also sees what was submitted before it and is not complete.
    let stall = w.fs.stall_syncs();
    let first = w.store.submit(&put(b"new", b"1"), &[], Durability::Synced).unwrap();
    let absent = Condition { key: b"new".to_vec(), ..absent };
    assert!(matches!(
        w.store.submit(&put(b"new", b"2"), &[absent], Durability::Synced),
        Err(Error::ConditionFailed(_))
    ));
    assert!(first.outcome().is_none());
    drop(stall);
    first.wait().unwrap();
    assert_eq!(w.store.log().last().lsn, Lsn(2));
}

#[test]
fn many_threads_submit_and_what_completed_survives_a_power_loss() {
    let w = world(3);
    let workers = w.store.start_background().unwrap();
    let ended = Arc::new(AtomicUsize::new(0));
    std::thread::scope(|s| {
        for t in 0..4_u8 {
            let (store, ended) = (&w.store, &ended);
            s.spawn(move || {
                for round in 0..10_u32 {
                    let submit = |n: u32| {
                        let value = (round * 40 + n).to_le_bytes();
                        store.submit(&put(&[b'k', t, n as u8], &value), &[], Durability::Synced).unwrap()
                    };
                    let all: Vec<Completion> = (0..40).map(submit).collect();
                    assert!(all.windows(2).all(|w| w[0].position().lsn < w[1].position().lsn));
                    // The last one's end is the end of those before it.
                    all[39].wait().unwrap();
                    for (n, c) in all.iter().enumerate() {
                        assert!(matches!(c.outcome(), Some(Ok(_))), "{n} is later than 39");
                        let value = (round * 40 + n as u32).to_le_bytes();
                        assert_eq!(get(store, &[b'k', t, n as u8]).unwrap(), value);
                        ended.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    assert_eq!(ended.load(Ordering::Relaxed), 1600);
    let state = |store: &Store| -> BTreeMap<Vec<u8>, Vec<u8>> {
        let view = store.view();
        view.scan(Keyspace::USER, b"", b"", false).map(|e| e.map(|e| (e.key, e.envelope)).unwrap()).collect()
    };
    let before = state(&w.store);
    drop(workers);
    drop(w.store);
    w.fs.crash_losing_unsynced();
    let store = Store::open_embedded(w.env, Path::new(DIR), &options()).unwrap();
    assert_eq!((store.log().last().lsn, state(&store)), (Lsn(1600), before));
}

#[test]
fn one_more_than_the_bound_is_refused_and_there_is_room_when_one_has_ended() {
    let w = world(4);
    let _workers = w.store.start_background().unwrap();
    let stall = w.fs.stall_syncs();
    let submit = || w.store.submit(&put(b"k", b"v"), &[], Durability::Synced);
    let all: Vec<Completion> = (0..OUTSTANDING_WRITES_MAX).map(|_| submit().unwrap()).collect();
    let last = w.store.log().last().lsn;
    let refused = submit().unwrap_err();
    assert!(matches!(refused, Error::Overloaded { .. }), "{refused}");
    assert_eq!((refused.class(), w.store.log().last().lsn), (ErrorClass::NotExecuted, last));
    assert!(all.iter().all(|c| c.outcome().is_none()), "completed before the sync");
    assert!(get(&w.store, b"k").is_none());
    drop(stall);
    all.iter().for_each(|c| assert!(c.wait().is_ok()));
    submit().unwrap().wait().unwrap();
}

#[test]
fn when_the_log_fails_all_that_is_outstanding_ends_with_the_error() {
    for (seed, kind) in [FaultKind::Eio, FaultKind::NoSpace, FaultKind::CrashBefore].into_iter().enumerate() {
        let w = world(5 + seed as u64);
        let workers = w.store.start_background().unwrap();
        w.store.submit(&put(b"k", b"kept"), &[], Durability::Synced).unwrap().wait().unwrap();
        let stall = w.fs.stall_syncs();
        let all: Vec<Completion> =
            (0..200).map(|_| w.store.submit(&put(b"k", b"lost"), &[], Durability::Synced).unwrap()).collect();
        // More than one: the sync of a segment made ahead may come first, and goes without if there is no room.
        (1..20).for_each(|nth| w.fs.fail_nth(OpClass::SyncData, nth, kind));
        drop(stall);
        // Some poll, some block; nobody waits for ever.
        let (blocking, polling) = all.split_at(100);
        for c in blocking.iter().map(Completion::wait).chain(polling.iter().map(Completion::wait)) {
            let e = c.unwrap_err();
            assert!(matches!(e, Error::Indeterminate { .. }), "{e}");
            assert_eq!(e.class(), ErrorClass::Indeterminate);
        }
        assert!(block_on(all.into_iter().next().unwrap()).is_err());
        assert_eq!(get(&w.store, b"k").unwrap(), b"kept");
        assert!(matches!(w.store.submit(&put(b"k", b"v"), &[], Durability::Synced), Err(Error::Stopped(_))));
        assert!(!w.fatal.take().is_empty());
        drop(workers);
    }
}

#[test]
fn the_end_of_the_workers_completes_what_is_outstanding() {
    for power_loss in [false, true] {
        let w = world(8);
        let workers = w.store.start_background().unwrap();
        let stall = w.fs.stall_syncs();
        let all: Vec<Completion> =
            (0..100).map(|_| w.store.submit(&put(b"k", b"v"), &[], Durability::Synced).unwrap()).collect();
        let stopper = std::thread::spawn(move || drop(workers));
        if power_loss {
            w.fs.crash_losing_unsynced();
        }
        drop(stall);
        stopper.join().unwrap();
        for c in &all {
            let outcome = c.outcome().expect("left behind");
            assert_eq!(outcome.is_ok(), !power_loss, "{outcome:?}");
        }
        if !power_loss {
            // And from here on the calls do it themselves.
            let c = w.store.submit(&put(b"k", b"w"), &[], Durability::Synced).unwrap();
            assert!(matches!(c.outcome(), Some(Ok(_))));
        }
    }
}

#[test]
fn a_dropped_completion_takes_nothing_with_it_and_keeps_nothing() {
    struct Counted(AtomicUsize);
    impl Wake for Counted {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }
    let w = world(9);
    let _workers = w.store.start_background().unwrap();
    let woken = Arc::new(Counted(AtomicUsize::new(0)));
    let waker = Waker::from(Arc::clone(&woken));
    let stall = w.fs.stall_syncs();
    for n in 0..100_u8 {
        let mut c = w.store.submit(&put(&[n], b"v"), &[], Durability::Synced).unwrap();
        assert!(std::pin::Pin::new(&mut c).poll(&mut Context::from_waker(&waker)).is_pending());
        assert!(Arc::strong_count(&woken) == 3);
    }
    assert_eq!(Arc::strong_count(&woken), 2, "the waker of a dropped completion is still held");
    drop(stall);
    // Far more than may be outstanding, and nobody looks at any.
    for n in 0..3 * OUTSTANDING_WRITES_MAX {
        match w.store.submit(&put(&[n as u8], b"w"), &[], Durability::Written) {
            Ok(c) => drop(c),
            Err(Error::Overloaded { .. }) => {
                // One that ends now ends behind all before it.
                assert!(w.store.write(&put(b"x", b"x"), &[], Durability::Synced).is_ok());
                std::thread::yield_now();
            }
            Err(e) => panic!("{e}"),
        }
    }
    loop {
        match w.store.submit(&put(b"last", b"v"), &[], Durability::Synced) {
            Ok(c) => {
                c.wait().unwrap();
                break;
            }
            Err(Error::Overloaded { .. }) => std::thread::yield_now(),
            Err(e) => panic!("{e}"),
        }
    }
    assert!((0..100_u8).all(|n| get(&w.store, &[n]).is_some()), "a dropped completion took its write back");
    assert_eq!(woken.0.load(Ordering::SeqCst), 0);
}

#[test]
fn the_bytes_that_are_outstanding_are_bounded_as_their_number_is() {
    let fs = SimFs::new(10);
    fs.prepare_dir(Path::new(DIR)).unwrap();
    let (env, _) = Env::sim(Arc::clone(&fs), SimClock::new(CommitTs(1_000_000)), 10);
    let options = Options { segment_bytes: 64 << 20, ..Options::with_memory_limit(64 << 20) };
    let store = Arc::new(Store::create(env, Path::new(DIR), &options, IDENTITY).unwrap());
    let _workers = store.start_background().unwrap();
    let (bound, len) = (options.memory_limit as usize / 16, 256 << 10);
    let submit = |len: usize| store.submit(&put(b"k", &vec![7; len]), &[], Durability::Synced);
    let stall = fs.stall_syncs();
    let mut all = Vec::new();
    let refused = loop {
        match submit(len) {
            Ok(c) => all.push(c),
            Err(e) => break e,
        }
        // Less than that at which a writer writes for itself, and so would hang.
        assert!(all.len() < 100, "{} MiB are outstanding", all.len() / 4);
    };
    assert_eq!(all.len(), bound / (len + 20), "{refused}");
    let last = store.log().last().lsn;
    assert!(matches!(refused, Error::Overloaded { .. }) && refused.to_string().contains("MiB"), "{refused}");
    assert_eq!((refused.class(), last), (ErrorClass::NotExecuted, Lsn(all.len() as u64)));
    // What is smaller would fit, and comes after the one that was refused.
    assert!(matches!(submit(1 << 10), Err(Error::Overloaded { .. })));
    drop(stall);
    all.iter().for_each(|c| assert!(c.wait().is_ok()));
    submit(len).unwrap().wait().unwrap();
    submit(1 << 10).unwrap().wait().unwrap();
    // One alone may be larger than the bound.
    submit(8 << 20).unwrap().wait().unwrap();
    submit(len).unwrap().wait().unwrap();
}

#[test]
fn steady_small_writes_do_not_keep_out_one_that_has_to_be_alone() {
    let fs = SimFs::new(11);
    fs.prepare_dir(Path::new(DIR)).unwrap();
    let (env, _) = Env::sim(Arc::clone(&fs), SimClock::new(CommitTs(1_000_000)), 11);
    let options = Options { segment_bytes: 16 << 20, ..options() };
    let store = Arc::new(Store::create(env, Path::new(DIR), &options, IDENTITY).unwrap());
    let _workers = store.start_background().unwrap();
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|s| {
        for t in 0..3_u8 {
            let (store, done) = (&store, &done);
            s.spawn(move || {
                let mut all = std::collections::VecDeque::new();
                while !done.load(Ordering::Relaxed) {
                    match store.submit(&put(&[t], &[7; 1000]), &[], Durability::Synced) {
                        Ok(c) => all.push_back(c),
                        Err(Error::Overloaded { .. }) => std::thread::yield_now(),
                        Err(e) => panic!("{e}"),
                    }
                    // Some are outstanding at all times.
                    if all.len() > 50 {
                        all.pop_front().unwrap().wait().unwrap();
                    }
                }
            });
        }
        let large = put(b"large", &vec![7; 5 << 20]);
        // The simulated clock stands still, so its turn does not end.
        let mut taken = Vec::new();
        for _ in 0..1_000_000 {
            match store.submit(&large, &[], Durability::Synced) {
                Ok(c) => taken.push(c.wait()),
                Err(Error::Overloaded { .. }) => std::thread::yield_now(),
                Err(e) => taken.push(Err(e)),
            }
            if taken.len() == 3 {
                break;
            }
        }
        done.store(true, Ordering::Relaxed);
        assert!(taken.len() == 3 && taken.iter().all(Result::is_ok), "{taken:?}");
    });
}
