//! A disk that fills up: what waits and in which order, what is refused before the disk itself refuses, and that
//! everything goes on by itself when there is room again.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use mainstay_engine::batch::{Batch, Keyspace};
use mainstay_engine::clock::SimClock;
use mainstay_engine::env::SimFatal;
use mainstay_engine::exec::Progress;
use mainstay_engine::fault::{Bug, plant};
use mainstay_engine::fs::sim::SimFs;
use mainstay_engine::fs::{Fs, OpenMode};
use mainstay_engine::rng::{Rng, SeededRng};
use mainstay_engine::space::Room;
use mainstay_engine::store::{Durability, Identity, Store};
use mainstay_engine::value::Value;
use mainstay_engine::{ClusterId, CommitTs, Env, Epoch, Error, Lsn, Options, TimelineId};

use crate::world::DIR;

const IDENTITY: Identity = Identity { cluster: ClusterId(7), timeline: TimelineId(9) };
const OTHERS: &str = "/others";

/// An embedded store beside what it acknowledged.
pub(crate) struct World {
    pub(crate) fs: Arc<SimFs>,
    env: Env,
    pub(crate) fatal: SimFatal,
    pub(crate) store: Option<Store>,
    rng: SeededRng,
    model: BTreeMap<Vec<u8>, Vec<u8>>,
    others: u64,
}

impl World {
    pub(crate) fn new(seed: u64) -> Self {
        let fs = SimFs::new(seed);
        fs.prepare_dir(Path::new(DIR)).unwrap();
        let (env, fatal) = Env::sim(Arc::clone(&fs), SimClock::new(CommitTs(1_000_000)), seed);
        let store = Some(Store::create(env.clone(), Path::new(DIR), &Options::tiny(), IDENTITY).unwrap());
        fs.open(Path::new(OTHERS), OpenMode::CreateNew).unwrap();
        let (rng, model) = (SeededRng::new(seed), BTreeMap::new());
        Self { fs, env, fatal, store, rng, model, others: 0 }
    }

    pub(crate) fn store(&self) -> &Store {
        self.store.as_ref().unwrap()
    }

    fn room(&self) -> Room {
        self.store().stats().space.room
    }

    /// One write of about a kilobyte that does not pack; an error must have changed nothing.
    pub(crate) fn write(&mut self) -> Result<(), Error> {
        let key = format!("key-{:03}", self.rng.below(150)).into_bytes();
        let value: Vec<u8> = (0..1000).map(|_| self.rng.next_u64() as u8).collect();
        let mut batch = Batch::new();
        batch.put(&key, &value).unwrap();
        let durability = [Durability::Synced, Durability::Written, Durability::Buffered][self.rng.below(3) as usize];
        let before = self.store().log().last();
        match self.store().write(&batch, &[], durability) {
            Ok(written) => {
                assert_eq!(self.store().view().lsn(), written.position.lsn, "acknowledged and not visible");
                self.model.insert(key, value);
                Ok(())
            }
            Err(e) => {
                assert_eq!(self.store().log().last(), before, "refused, it says: {e}");
                Err(e)
            }
        }
    }

    /// All that the background would do, until it has nothing to do, or no room or file for it.
    pub(crate) fn maintain(&self) {
        loop {
            match self.store().maintain_step() {
                Ok(Progress::Worked) => {}
                Ok(_) => return,
                Err(e) if e.is_shortage() => return,
                Err(e) => panic!("{e}"),
            }
        }
    }

    /// Writes until a write is refused again and again; returns how many were taken.
    pub(crate) fn fill(&mut self, what: &str) -> u32 {
        let (mut taken, mut refused) = (0, 0);
        while refused < 4 {
            self.maintain();
            match self.write() {
                Ok(()) => (taken, refused) = (taken + 1, 0),
                Err(e) if e.is_shortage() => refused += 1,
                Err(e) => panic!("{what}: {e}"),
            }
            assert!(taken < 3_000, "{what}: it never fills up");
        }
        taken
    }

    /// So many writes, with all that the background would do.
    pub(crate) fn fill_some(&mut self, writes: u32) {
        for _ in 0..writes {
            self.write().unwrap();
            self.maintain();
        }
    }

    pub(crate) fn check(&self, what: &str) {
        let view = self.store().view();
        let all = view.scan(Keyspace::USER, b"", b"", false).map(|e| e.unwrap());
        let all: BTreeMap<_, _> = all.map(|e| (e.key, Value::decode(&e.envelope).unwrap().data.to_vec())).collect();
        assert!(all == self.model, "{what}: the store does not hold what it acknowledged");
        assert_eq!(self.fatal.messages(), Vec::<String>::new(), "{what}");
    }

    pub(crate) fn reopen(&mut self, what: &str) {
        self.store = None;
        self.fs.kill();
        let opened = Store::open_embedded(self.env.clone(), Path::new(DIR), &Options::tiny());
        self.store = Some(opened.unwrap_or_else(|e| panic!("{what}: it does not open: {e}")));
        self.check(what);
    }

    /// Others on the disk take this many bytes in all.
    fn others_take(&mut self, bytes: u64) {
        let file = self.fs.open(Path::new(OTHERS), OpenMode::Write).unwrap();
        if bytes > self.others {
            file.write_all_at(&vec![7; (bytes - self.others) as usize], self.others).unwrap();
        } else {
            file.set_len(bytes).unwrap();
        }
        self.others = bytes;
    }
}

/// Fills disks of many sizes; returns how often the disk itself had to refuse.
fn fill_disks() -> u64 {
    let mut times_full = 0;
    // The smallest has room for the file of evidence and its next one, and nothing else.
    for (n, spare) in (1_100u64..200 << 10).step_by(1_777).enumerate() {
        let what = format!("{spare} bytes to spare");
        let mut world = World::new(n as u64);
        world.fs.set_capacity(world.fs.allocated() + spare);
        world.fill(&what);
        let space = world.store().stats().space;
        assert_eq!(space.room, Room::WritesRefused, "{what}");
        assert!(space.trouble().is_some_and(|t| t.contains("refused")), "{what}");
        times_full += world.fs.times_full();
        world.check(&what);
        // A full disk is no reason not to start; nor is what was written for the process alone lost.
        world.store().log().write_to(world.store().log().last().lsn).unwrap();
        world.reopen(&what);
        world.fill(&what);
        world.check(&what);
        // The very next write finds the room.
        world.fs.set_capacity(world.fs.allocated() + (256 << 10));
        world.write().unwrap_or_else(|e| panic!("{what}: there is room again: {e}"));
        world.maintain();
        assert_eq!(world.room(), Room::Enough, "{what}");
        for _ in 0..40 {
            world.write().unwrap();
        }
        world.store().close().unwrap();
        world.store = None;
        world.fs.crash_losing_unsynced();
        world.reopen(&what);
    }
    times_full
}

#[test]
fn a_disk_that_fills_up_refuses_writes_before_it_is_full_and_takes_them_again_when_there_is_room() {
    assert_eq!(fill_disks(), 0, "the disk itself had to refuse");
}

#[test]
fn writing_on_until_the_disk_itself_refuses_is_noticed() {
    let _planted = plant(Bug::IgnoreReserve);
    assert!(!matches!(std::panic::catch_unwind(fill_disks), Ok(0)));
}

#[test]
fn compaction_waits_first_then_flushes_then_writes_are_refused() {
    let mut world = World::new(3);
    world.fs.set_capacity(1 << 20);
    for _ in 0..60 {
        world.write().unwrap();
        world.maintain();
    }
    let mut seen = vec![world.room()];
    let mut flushes_when_compaction_waited = 0;
    while *seen.last().unwrap() != Room::WritesRefused {
        // Others fill the disk a little faster than the store does.
        let free = world.store().stats().space.free_bytes;
        let take = world.others + free.saturating_sub(70 << 10).max(512).min(free);
        world.others_take(take);
        let before = world.store().stats().tree.flushes;
        for _ in 0..2 {
            let _ = world.write();
            world.maintain();
        }
        let room = world.room();
        if room == Room::CompactionWaits {
            flushes_when_compaction_waited += world.store().stats().tree.flushes - before;
        }
        if seen.last() != Some(&room) {
            seen.push(room);
        }
        assert!(seen.len() < 40, "{seen:?}");
    }
    let first = |room| seen.iter().position(|r| *r == room).unwrap_or_else(|| panic!("no {room:?} in {seen:?}"));
    assert!(first(Room::CompactionWaits) < first(Room::WritesRefused), "{seen:?}");
    assert!(flushes_when_compaction_waited > 0, "flushes go on while compaction waits: {seen:?}");
    assert_eq!(world.fs.times_full(), 0);
    world.check("full");
    world.others_take(0);
    world.write().unwrap();
    world.maintain();
    assert_eq!(world.room(), Room::Enough);
    world.check("room again");
}

/// What a checkpoint holds on to is given back by removing it, whatever else is refused.
#[test]
fn removing_a_checkpoint_relieves_a_full_disk() {
    let mut world = World::new(4);
    world.fs.set_capacity(400 << 10);
    for _ in 0..150 {
        world.write().unwrap();
        world.maintain();
    }
    let checkpoint = Path::new("/data/checkpoint");
    let made = world.store().checkpoint(checkpoint).unwrap();
    assert!(made.tables.iter().map(|t| t.bytes).sum::<u64>() > 100 << 10);
    world.fill("with a checkpoint");
    world.check("with a checkpoint");
    world.fs.remove_dir_all(checkpoint).unwrap();
    for _ in 0..30 {
        world.write().unwrap();
        world.maintain();
    }
    assert_ne!(world.room(), Room::WritesRefused);
    world.check("without it");
}

/// A node appends first and applies later: it must not take what it could not show.
#[test]
fn a_node_refuses_what_no_memtable_could_take() {
    let world = World::new(5);
    let store = world.store();
    let append = |n: u64| {
        let mut batch = Batch::new();
        batch.put(format!("key-{n}").as_bytes(), &[n as u8; 1000]).unwrap();
        let position = store.append(Epoch(0), &batch, &[])?;
        store.log().sync_to(position.lsn)?;
        store.set_committed(position.lsn);
        while store.apply_step()? == Progress::Worked {}
        Ok::<_, Error>(position.lsn)
    };
    world.fs.set_capacity(world.fs.allocated() + (2 << 10));
    let mut n = 0;
    let refused = loop {
        world.maintain();
        match append(n) {
            Ok(_) => n += 1,
            Err(e) => break e,
        }
        assert!(n < 100);
    };
    assert!(refused.is_kept_back() && refused.to_string().contains("needed with the reserve"), "{refused}");
    assert_eq!((store.applied().get(), store.log().last().lsn), (Lsn(n), Lsn(n)), "all that was taken is visible");
    // As a replica, it does not even look at the records.
    assert!(matches!(store.append_replicated(b"records"), Err(Error::DiskFull { .. })));
    world.fs.set_capacity(1 << 20);
    world.maintain();
    append(n).unwrap();
    assert_eq!(store.applied().get(), Lsn(n + 1));
}

/// Records that others appended fill the memtables behind a write's back, and their flush finds no room: the
/// write is durable by then, so it is acknowledged, and it is visible.
#[test]
fn a_write_that_is_durable_is_visible_although_a_flush_finds_no_room() {
    let world = World::new(7);
    let store = world.store();
    let batch = |key: &[u8]| {
        let mut batch = Batch::new();
        batch.put(key, &[1; 1000]).unwrap();
        batch
    };
    // More than is applied at once.
    for n in 0..1200u16 {
        store.append(Epoch(0), &batch(&n.to_be_bytes()), &[]).unwrap();
    }
    while store.log().prepare_step().unwrap() == Progress::Worked {}
    world.fs.set_capacity(world.fs.allocated());
    let written = store.write(&batch(b"mine"), &[], Durability::Synced).unwrap();
    assert_eq!(store.view().lsn(), written.position.lsn);
    assert!(store.view().get(Keyspace::USER, b"mine").unwrap().is_some());
    assert!(store.tree().needs_flush());
    assert!(store.write(&batch(b"more"), &[], Durability::Synced).is_err_and(|e| e.is_kept_back()));
    world.fs.set_capacity(8 << 20);
    world.maintain();
    assert!(!store.tree().needs_flush());
    assert_eq!(store.view().scan(Keyspace::USER, b"", b"", false).count(), 1201);
}

/// Writers and the background threads meet the full disk together: none of them dies of it, the disk itself never
/// refuses, and all go on by themselves when there is room.
#[test]
fn background_threads_outlive_a_full_disk() {
    let mut world = World::new(8);
    world.fs.set_capacity(world.fs.allocated() + (120 << 10));
    let store = Arc::new(world.store.take().unwrap());
    let workers = store.start_background().unwrap();
    let write = |thread: u64, n: u64| {
        let rng = SeededRng::new(thread << 32 | n);
        let value: Vec<u8> = (0..1000).map(|_| rng.next_u64() as u8).collect();
        let mut batch = Batch::new();
        batch.put(format!("{thread}-{n:06}").as_bytes(), &value).unwrap();
        match store.write(&batch, &[], Durability::Synced) {
            Ok(_) => true,
            Err(Error::DiskFull { .. }) => false,
            Err(e) => panic!("{e}"),
        }
    };
    let fill = |thread: u64| {
        let (mut taken, mut refused) = (0, 0);
        while refused < 50 {
            if write(thread, taken) {
                (taken, refused) = (taken + 1, 0);
            } else {
                refused += 1;
                std::thread::yield_now();
            }
            assert!(taken < 1_000, "it never fills up");
        }
        taken
    };
    let all = |work: &(dyn Fn(u64) -> u64 + Sync)| -> Vec<u64> {
        std::thread::scope(|s| {
            let threads: Vec<_> = (0..3).map(|t| s.spawn(move || work(t))).collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect()
        })
    };
    let taken = all(&fill);
    assert_eq!(store.view().scan(Keyspace::USER, b"", b"", false).count() as u64, taken.iter().sum::<u64>());
    world.fs.set_capacity(8 << 20);
    let more = all(&|thread| {
        let (first, mut n) = (taken[thread as usize], 0);
        while n < 100 {
            // Refused only as long as the threads for flushes have not looked again.
            n += u64::from(write(thread, first + n));
        }
        n
    });
    let count = taken.iter().chain(&more).sum::<u64>();
    assert_eq!(store.view().scan(Keyspace::USER, b"", b"", false).count() as u64, count);
    drop(workers);
    store.close().unwrap();
    assert_eq!((world.fs.times_full(), world.fatal.messages()), (0, Vec::new()));
}

#[test]
fn no_flush_is_made_for_room_that_it_cannot_give() {
    let world = World::new(4);
    // Not enough for another segment, enough for a flush out of the reserve; all log is in the segment in use.
    world.fs.set_capacity(world.fs.allocated() + (12 << 10));
    world.maintain();
    for n in 0..40_u32 {
        let mut batch = Batch::new();
        batch.put(&n.to_be_bytes(), b"v").unwrap();
        world.store().write(&batch, &[], Durability::Written).unwrap();
        world.maintain();
    }
    let stats = world.store().stats();
    assert_ne!(stats.space.room, Room::Enough, "this tests nothing");
    // So much fills no memtable.
    assert!(stats.tree.flushes <= 1, "{} flushes of next to nothing", stats.tree.flushes);
}

/// Where `log/` and `tables/` are on disks of their own, each is held to the room that it has there.
#[test]
fn room_is_measured_where_the_bytes_go() {
    let mut world = World::new(11);
    world.fs.set_capacity(16 << 20);
    let plenty = 8 << 20;
    for _ in 0..30 {
        world.write().unwrap();
        world.maintain();
    }
    assert_eq!(world.room(), Room::Enough);
    world.fs.set_room(Path::new("/data/log"), 5 << 10);
    // Flushes have room all the time; nobody lets log go.
    let refused = loop {
        match world.write() {
            Ok(()) => assert!(world.store().log().disk_usage().1 < 100, "it never fills up"),
            Err(e) => break e,
        }
    };
    assert!(matches!(&refused, Error::DiskFull { path, .. } if path == Path::new("/data/log")), "{refused}");
    assert_eq!((world.room(), world.store().stats().space.free_bytes), (Room::WritesRefused, 5 << 10));
    world.fs.set_room(Path::new("/data/log"), plenty);
    world.write().unwrap();
    world.maintain();
    assert_eq!(world.room(), Room::Enough);
    world.fs.set_room(Path::new("/data/tables"), 1 << 10);
    world.fill("the tables' disk is full");
    assert_eq!((world.room(), world.store().stats().space.free_bytes), (Room::WritesRefused, 1 << 10));
    let refused = world.write().unwrap_err();
    assert!(matches!(&refused, Error::DiskFull { path, .. } if path == Path::new("/data/tables")), "{refused}");
    world.fs.set_room(Path::new("/data/tables"), plenty);
    world.maintain();
    world.write().unwrap();
    world.maintain();
    assert_eq!(world.room(), Room::Enough);
    world.check("room again");
}

/// Files of the log that wait to be used again.
fn spares(world: &World) -> usize {
    world.fs.files().into_iter().filter(|f| f.extension().is_some_and(|e| e == "spare")).count()
}

/// Level 0 full of tables that share all their keys, above a bottom of all keys, and a spare segment or two.
fn deep(seed: u64) -> World {
    let world = World::new(seed);
    let rng = SeededRng::new(seed);
    let write = |keys: u32| {
        for n in 0..keys {
            let value: Vec<u8> = (0..1000).map(|_| rng.next_u64() as u8).collect();
            let mut batch = Batch::new();
            batch.put(format!("key-{:04}", n * 37 % 200).as_bytes(), &value).unwrap();
            world.store().write(&batch, &[], Durability::Written).unwrap();
        }
        world.store().tree().flush_all().unwrap();
        world.store().log().release(world.store().tree().flushed().lsn).unwrap();
    };
    write(200);
    world.store().tree().compact_all().unwrap();
    write(400);
    while world.store().log().prepare_step().unwrap() == Progress::Worked {}
    world
}

fn level0(world: &World) -> u64 {
    world.store().stats().tree.levels[0].tables
}

#[test]
fn spare_segments_stay_where_the_merge_that_waits_would_not_fit_with_their_room() {
    let world = deep(12);
    let had = spares(&world);
    assert!(had > 0, "this tests nothing");
    world.fs.set_capacity(world.fs.allocated() + (8 << 10));
    world.maintain();
    assert_eq!((world.room(), spares(&world)), (Room::CompactionWaits, had), "gone for nothing");
}

#[test]
fn a_merge_too_large_for_the_room_does_not_keep_smaller_ones_from_being_done() {
    let world = deep(13);
    let before = level0(&world);
    assert!(before > 40, "this tests nothing");
    // Of level 0 sixteen tables are taken at once, 64 KiB with what they overlap; 28 KiB are kept back.
    world.fs.set_capacity(world.fs.allocated() + (73 << 10));
    world.maintain();
    assert!(level0(&world) + 30 < before, "{} of {before} tables are still in level 0", level0(&world));
    assert_eq!(world.store().view().scan(Keyspace::USER, b"", b"", false).count(), 200);
    assert_eq!(world.fs.times_full(), 0);
}
