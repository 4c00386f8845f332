//! Tests of this module.

#![expect(clippy::disallowed_methods, reason = "tests damage and list real files")]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::*;
use crate::batch::{Batch, Keyspace, Op, ops};
use crate::exec::Progress;
use crate::lsn::{Chain, ClusterId, CommitTs, TimelineId};
use crate::record::{self, Header, Kind};
use crate::rng::{Rng, SeededRng};
use crate::table::verify_table;
use crate::value::Value;

#[cfg(feature = "sim")]
mod arriving;
#[cfg(feature = "sim")]
mod bottom;
#[cfg(feature = "sim")]
mod crash;
#[cfg(feature = "sim")]
mod held;
mod levels;
mod parts;
mod positions;
mod reads;
mod repair;

pub(super) fn env(seed: u64) -> Env {
    Env { rng: Arc::new(SeededRng::new(seed)), fatal: Arc::new(|why| panic!("fatal: {why}")), ..Env::real() }
}

/// A log's head: makes records that follow one another.
#[derive(Clone, Default)]
pub(super) struct Head(pub(super) Position);

impl Head {
    fn record(&mut self, kind: Kind, ts_step: u64, body: &[u8]) -> Vec<u8> {
        let (lsn, ts) = (self.0.lsn.next(), CommitTs(self.0.ts.0 + ts_step.max(1)));
        let header = Header { kind, epoch: self.0.epoch, lsn, ts, session: 0, sequence: 0 };
        let mut out = Vec::new();
        record::encode(&mut out, self.0.chain, &header, |b| b.extend_from_slice(body));
        self.0 = Record::decode(&out).unwrap().position();
        out
    }

    pub(super) fn batch(&mut self, ts_step: u64, batch: &Batch) -> Vec<u8> {
        let mut body = Vec::new();
        batch.encode(&mut body);
        self.record(Kind::Batch, ts_step, &body)
    }
}

pub(super) fn apply(tree: &Tree, bytes: &[u8]) {
    tree.apply(&Record::decode(bytes).unwrap()).unwrap();
}

pub(super) fn put(head: &mut Head, tree: &Tree, key: &str, value: &str) -> Lsn {
    let mut b = Batch::new();
    b.put(key.as_bytes(), value.as_bytes()).unwrap();
    apply(tree, &head.batch(1, &b));
    head.0.lsn
}

pub(super) fn get(view: &View, key: &str) -> Option<String> {
    let found = view.get(Keyspace::USER, key.as_bytes()).unwrap()?;
    Some(String::from_utf8(Value::decode(&found.envelope).unwrap().data.to_vec()).unwrap())
}

fn settle(tree: &Tree) {
    tree.flush_all().unwrap();
    while tree.compact_step().unwrap() == Progress::Worked {}
}

type Versions = BTreeMap<Vec<u8>, Vec<(Lsn, Option<Vec<u8>>)>>;

/// The whole history of the user keyspace.
#[derive(Default)]
pub(super) struct Model {
    versions: Versions,
    times: BTreeMap<Lsn, CommitTs>,
}

impl Model {
    pub(super) fn apply(&mut self, bytes: &[u8]) {
        let r = Record::decode(bytes).unwrap();
        self.times.insert(r.header.lsn, r.header.ts);
        if r.header.kind != Kind::Batch {
            return;
        }
        for op in ops(r.body) {
            match op.unwrap() {
                Op::Put { key, envelope, .. } => self.set(key, r.header.lsn, Some(envelope.to_vec())),
                Op::Delete { key, .. } => self.set(key, r.header.lsn, None),
                Op::DeleteRange { start, end, .. } => {
                    let hit = |k: &&Vec<u8>| k.as_slice() >= start && (end.is_empty() || k.as_slice() < end);
                    let keys: Vec<Vec<u8>> = self.versions.keys().filter(hit).cloned().collect();
                    keys.iter().for_each(|k| self.set(k, r.header.lsn, None));
                }
            }
        }
    }

    fn set(&mut self, key: &[u8], lsn: Lsn, value: Option<Vec<u8>>) {
        self.versions.entry(key.to_vec()).or_default().push((lsn, value));
    }

    fn at(&self, lsn: Lsn) -> Vec<(Vec<u8>, Lsn, Vec<u8>)> {
        let ts = self.times[&lsn];
        self.versions
            .iter()
            .filter_map(|(k, versions)| {
                let (found, value) = versions.iter().rev().find(|(l, _)| *l <= lsn)?;
                let value = value.as_ref().filter(|v| !Value::decode(v).unwrap().expired_at(ts))?;
                Some((k.clone(), *found, value.clone()))
            })
            .collect()
    }
}

fn scan(view: &View, start: &[u8], end: &[u8], reverse: bool) -> Vec<(Vec<u8>, Lsn, Vec<u8>)> {
    let entries = view.scan(Keyspace::USER, start, end, reverse);
    entries.map(|e| e.map(|e| (e.key, e.lsn, e.envelope))).collect::<Result<_>>().unwrap()
}

pub(super) fn check_view(view: &View, model: &Model, rng: &dyn Rng, what: &str) {
    let want = model.at(view.lsn());
    assert_eq!(view.ts(), model.times[&view.lsn()], "{what}");
    assert_eq!(scan(view, b"", b"", false), want, "{what}: forward at {}", view.lsn());
    let mut backwards = scan(view, b"", b"", true);
    backwards.reverse();
    assert_eq!(backwards, want, "{what}: reverse at {}", view.lsn());
    let (start, end) = (key(rng), key(rng));
    let part: Vec<_> = want.iter().filter(|(k, ..)| *k >= start && *k < end).cloned().collect();
    assert_eq!(scan(view, &start, &end, false), part, "{what}: part");
    let mut backwards = scan(view, &start, &end, true);
    backwards.reverse();
    assert_eq!(backwards, part, "{what}: part in reverse");
    for _ in 0..8 {
        let k = key(rng);
        let want = want.iter().find(|(w, ..)| *w == k).map(|(_, lsn, v)| Found { lsn: *lsn, envelope: v.clone() });
        assert_eq!(view.get(Keyspace::USER, &k).unwrap(), want, "{what}: get {k:?} at {}", view.lsn());
    }
}

fn key(rng: &dyn Rng) -> Vec<u8> {
    format!("{:02}", rng.below(60)).into_bytes()
}

/// Mostly keys of a region that moves with time, so that compactions leave part of level 1 alone.
fn local_key(rng: &dyn Rng, now: u64) -> Vec<u8> {
    if rng.below(20) == 0 { key(rng) } else { format!("{:02}", (now / 1_500 % 6) * 10 + rng.below(10)).into_bytes() }
}

pub(super) fn random_batch(rng: &dyn Rng, now: u64) -> Batch {
    let mut b = Batch::new();
    for _ in 0..rng.below(6) {
        let (k, value) = (local_key(rng, now), vec![rng.next_u64() as u8; rng.below(90) as usize]);
        match rng.below(12) {
            0..6 => b.put(&k, &value).unwrap(),
            6..8 => b.put_expiring(&k, &value, CommitTs(now + rng.below(3_000))).unwrap(),
            8..10 => b.delete(&k).unwrap(),
            _ => {
                let end = if rng.below(30) == 0 { Vec::new() } else { local_key(rng, now) };
                let (a, z) = (local_key(rng, now), end);
                match b.delete_range(&a, &z) {
                    Ok(b) => b,
                    Err(_) => continue,
                }
            }
        };
    }
    b
}

fn options(rng: &dyn Rng) -> Options {
    Options {
        history_window_us: [0, 300, 1_000, 20_000][rng.below(4) as usize],
        // From many levels of many tables to one.
        level_base_bytes: [200, 2_000, 12_000][rng.below(3) as usize],
        table_bytes: [300, 4_000][rng.below(2) as usize],
        ..Options::tiny()
    }
}

fn random_lsn(rng: &dyn Rng, tree: &Tree) -> Lsn {
    let (floor, top) = (tree.history_floor().0.max(1), tree.applied().lsn.0);
    Lsn(floor + rng.below(top - floor + 1))
}

/// One random run against the model; views of all ages are checked again at the end.
fn model_run(seed: u64) {
    let what = format!("seed {seed}");
    let rng = SeededRng::new(seed);
    let dir = tempfile::tempdir().unwrap();
    let options = options(&rng);
    let mut tree = Tree::create(env(seed), dir.path(), &options, Position::default()).unwrap();
    let (mut head, mut model, mut log) = (Head::default(), Model::default(), Vec::new());
    let mut views = Vec::new();
    for _ in 0..400 {
        match rng.below(40) {
            0 => tree.freeze(),
            1 => drop(tree.flush_step().unwrap()),
            // Steps of all sizes, so that writes and flushes come in between.
            2 | 7 => drop(tree.compact(rng.below(8) == 0, [1, 2_000, 1 << 20][rng.below(3) as usize]).unwrap()),
            3 if rng.below(4) == 0 => drop(tree.compact_all().unwrap()),
            4 => {
                // A reopen forgets what was not flushed; the log has it.
                drop(tree);
                tree = Tree::open(env(seed ^ rng.next_u64()), dir.path(), &options).unwrap();
                let from = tree.flushed().lsn.0 as usize;
                log.iter().skip(from).for_each(|r: &Vec<u8>| apply(&tree, r));
            }
            5 if tree.applied().lsn > Lsn::ZERO => {
                let lsn = random_lsn(&rng, &tree);
                let view = tree.view_at(lsn).unwrap();
                check_view(&view, &model, &rng, &what);
                views.push(view);
            }
            6 if tree.applied().lsn > Lsn::ZERO => views.push(tree.view()),
            _ => {
                while tree.needs_flush() {
                    tree.flush_step().unwrap();
                }
                let bytes = if rng.below(30) == 0 {
                    head.0.epoch = head.0.epoch.next();
                    head.record(Kind::EpochStart, 1, &[])
                } else {
                    head.batch(1 + rng.below(100), &random_batch(&rng, head.0.ts.0))
                };
                apply(&tree, &bytes);
                model.apply(&bytes);
                log.push(bytes);
            }
        }
    }
    for lsn in tree.history_floor().0.max(1)..=tree.applied().lsn.0 {
        check_view(&tree.view_at(Lsn(lsn)).unwrap(), &model, &rng, &what);
    }
    assert_eq!(tree.applied(), head.0, "{what}");
    views.iter().for_each(|v| check_view(v, &model, &rng, &what));
    drop(views);
    while tree.merging().0 {
        tree.compact(false, 1 << 20).unwrap();
    }
    check_files(&tree, dir.path(), &what);
}

/// Only files that count are there, and each verifies.
pub(super) fn check_files(tree: &Tree, dir: &Path, what: &str) {
    let pinned = tree.pinned_tables();
    let names = std::fs::read_dir(dir.join("tables")).unwrap().count();
    assert_eq!(names, pinned.tables.len(), "{what}: files");
    for file in &pinned.tables {
        assert_eq!(verify_table(&tree.env.fs, &tree.table_path(file.id)).unwrap(), *file, "{what}");
    }
}

#[test]
fn random_histories_equal_the_model_at_every_lsn() {
    (0..12).for_each(model_run);
}

#[test]
fn within_one_record_the_last_operation_wins() {
    let dir = tempfile::tempdir().unwrap();
    let tree = Tree::create(env(1), dir.path(), &Options::tiny(), Position::default()).unwrap();
    let mut head = Head::default();
    put(&mut head, &tree, "a", "old");
    put(&mut head, &tree, "c", "old");
    let mut b = Batch::new();
    b.put(b"a", b"1").unwrap().put(b"b", b"1").unwrap().delete_range(b"a", b"z").unwrap();
    b.put(b"b", b"2").unwrap().put(b"b", b"3").unwrap().put(b"d", b"4").unwrap().delete(b"d").unwrap();
    apply(&tree, &head.batch(1, &b));
    for _ in 0..2 {
        let view = tree.view();
        assert_eq!(["a", "b", "c", "d"].map(|k| get(&view, k)), [None, Some("3".into()), None, None]);
        assert_eq!(get(&tree.view_at(Lsn(2)).unwrap(), "c").as_deref(), Some("old"));
        settle(&tree);
    }
}

#[test]
fn records_out_of_order_or_malformed_change_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let tree = Tree::create(env(1), dir.path(), &Options::tiny(), Position::default()).unwrap();
    let mut head = Head::default();
    put(&mut head, &tree, "a", "1");
    let before = tree.applied();
    let mut skipping = head.clone();
    skipping.batch(1, &Batch::new());
    let next = skipping.batch(1, &Batch::new());
    assert!(matches!(tree.apply(&Record::decode(&next).unwrap()), Err(Error::Record(_))));
    let bad = head.clone().record(Kind::Batch, 1, b"\x07nonsense");
    let bad = tree.apply(&Record::decode(&bad).unwrap());
    assert!(matches!(bad, Err(Error::Corruption { lsn: Some(Lsn(2)), .. })));
    assert_eq!(tree.applied(), before);
    put(&mut head, &tree, "a", "2");
    assert_eq!(get(&tree.view(), "a").as_deref(), Some("2"));
}

#[test]
fn history_below_the_floor_is_refused_and_the_future_too() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options { history_window_us: 10, ..Options::tiny() };
    let tree = Tree::create(env(1), dir.path(), &options, Position::default()).unwrap();
    let mut head = Head::default();
    for n in 0..100 {
        put(&mut head, &tree, "k", &n.to_string());
    }
    tree.flush_all().unwrap();
    tree.compact_all().unwrap();
    assert_eq!(tree.history_floor(), Lsn(90));
    assert!(matches!(tree.view_at(Lsn(89)), Err(Error::HistoryGone { floor: Lsn(90), .. })));
    assert!(matches!(tree.view_at(Lsn(101)), Err(Error::NotApplied { .. })));
    assert_eq!(get(&tree.view_at(Lsn(90)).unwrap(), "k").as_deref(), Some("89"));
    assert_eq!(tree.view_at(Lsn::MAX).unwrap().lsn(), Lsn(100));
    // One more than can be read: the last of the first memtable counts as superseded by the newest of all.
    let entries: u64 = tree.pinned_tables().tables.iter().map(|t| t.entries).sum();
    assert!((11..=12).contains(&entries), "{entries}");
    drop(tree);
    assert_eq!(Tree::open(env(2), dir.path(), &options).unwrap().history_floor(), Lsn(90));
}

#[test]
fn what_nobody_can_see_is_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options { history_window_us: 10, ..Options::tiny() };
    let tree = Tree::create(env(1), dir.path(), &options, Position::default()).unwrap();
    let mut head = Head::default();
    let mut b = Batch::new();
    b.put(b"deleted", b"1").unwrap().put(b"range-1", b"1").unwrap().put(b"range-2", b"1").unwrap();
    b.put_expiring(b"expired", b"1", CommitTs(50)).unwrap().put_expiring(b"expiring", b"1", CommitTs(1000)).unwrap();
    apply(&tree, &head.batch(1, &b));
    settle(&tree);
    let mut b = Batch::new();
    b.delete(b"deleted").unwrap().delete_range(b"range", b"rangf").unwrap();
    apply(&tree, &head.batch(1, &b));
    tree.flush_all().unwrap();
    tree.compact_all().unwrap();
    apply(&tree, &head.batch(100, &Batch::new()));
    apply(&tree, &head.batch(100, &Batch::new()));
    tree.flush_all().unwrap();
    tree.compact_all().unwrap();
    let pinned = tree.pinned_tables();
    assert_eq!(pinned.tables.iter().map(|t| t.entries).sum::<u64>(), 1, "only the value that has not expired stays");
    assert_eq!(get(&tree.view(), "expiring").as_deref(), Some("1"));
    apply(&tree, &head.batch(1000, &Batch::new()));
    assert_eq!(get(&tree.view(), "expiring"), None);
}

#[test]
fn a_range_delete_is_not_dropped_before_what_it_covers() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options { history_window_us: 0, table_bytes: 1, ..Options::tiny() };
    let tree = Tree::create(env(1), dir.path(), &options, Position::default()).unwrap();
    let mut head = Head::default();
    put(&mut head, &tree, "a", "1");
    put(&mut head, &tree, "m", "1");
    tree.flush_all().unwrap();
    tree.compact_all().unwrap();
    let stats = tree.stats();
    assert_eq!((stats.tables(), stats.levels[6].tables), (2, 2), "each key has a table of its own");
    for _ in 0..options.level0_tables {
        let mut b = Batch::new();
        b.put(b"a", b"2").unwrap().delete_range(b"m", b"n").unwrap();
        apply(&tree, &head.batch(1, &b));
        tree.flush_all().unwrap();
    }
    assert_eq!(tree.compact_step().unwrap(), Progress::Worked);
    assert_eq!(tree.stats().forgotten, 1, "nobody can see anything in the table that the range covers");
    while tree.compact_step().unwrap() == Progress::Worked {
        assert_eq!(get(&tree.view(), "m"), None);
    }
    assert_eq!(get(&tree.view(), "m"), None);
    assert_eq!(tree.pinned_tables().tables.iter().map(|t| t.entries).sum::<u64>(), 1);
}

#[test]
fn a_pinned_file_stays_until_its_last_reader_goes() {
    let dir = tempfile::tempdir().unwrap();
    let tree = Tree::create(env(1), dir.path(), &Options::tiny(), Position::default()).unwrap();
    let mut head = Head::default();
    put(&mut head, &tree, "a", "1");
    tree.flush_all().unwrap();
    let (pinned, view) = (tree.pinned_tables(), tree.view());
    let path = tree.table_path(pinned.tables[0].id);
    tree.compact_all().unwrap();
    assert!(path.exists());
    drop(pinned);
    assert!(path.exists(), "the view still reads it");
    drop(view);
    assert!(!path.exists());
    assert_eq!(get(&tree.view(), "a").as_deref(), Some("1"));
}

#[test]
fn epochs_and_timeline_survive_by_manifest_and_by_replay() {
    let dir = tempfile::tempdir().unwrap();
    let tree = Tree::create(env(1), dir.path(), &Options::tiny(), Position::default()).unwrap();
    let mut head = Head::default();
    let start =
        TimelineStart { cluster: ClusterId(9), timeline: TimelineId(4), parent: TimelineId(0), fork: Lsn::ZERO };
    head.0.epoch = Epoch(1);
    apply(&tree, &head.record(Kind::TimelineStart, 1, &start.encode()));
    apply(&tree, &head.record(Kind::EpochStart, 1, &[]));
    tree.flush_all().unwrap();
    head.0.epoch = Epoch(2);
    let unflushed = head.record(Kind::EpochStart, 1, &[]);
    apply(&tree, &unflushed);
    assert_eq!(tree.epoch_history(), [(Epoch(1), Lsn(2)), (Epoch(2), Lsn(3))]);
    drop(tree);
    let tree = Tree::open(env(2), dir.path(), &Options::tiny()).unwrap();
    assert_eq!((tree.epoch_history(), tree.timeline()), (vec![(Epoch(1), Lsn(2))], Some(start)));
    apply(&tree, &unflushed);
    assert_eq!(tree.epoch_history(), [(Epoch(1), Lsn(2)), (Epoch(2), Lsn(3))]);
    assert_eq!(tree.applied(), head.0);
}

#[test]
fn a_checkpoint_is_a_tree_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    std::fs::create_dir(&from).unwrap();
    let tree = Tree::create(env(1), &from, &Options::tiny(), Position::default()).unwrap();
    let rng = SeededRng::new(11);
    let (mut head, mut model) = (Head::default(), Model::default());
    for n in 0..300 {
        let bytes = head.batch(7, &random_batch(&rng, head.0.ts.0));
        apply(&tree, &bytes);
        model.apply(&bytes);
        if n % 90 == 0 {
            settle(&tree);
        }
    }
    let made = tree.checkpoint(&to).unwrap();
    assert_eq!(made.position, head.0);
    assert!(matches!(tree.checkpoint(&to), Err(Error::Directory { .. })));
    let summary = manifest_tables(&made.manifest).unwrap();
    assert_eq!((summary.position, &summary.tables), (made.position, &made.tables));
    assert_eq!(std::fs::read(to.join("manifest/0000000000000001.manifest")).unwrap(), made.manifest);
    for _ in 0..50 {
        put(&mut head, &tree, "07", "later");
    }
    settle(&tree);
    drop(tree);
    std::fs::remove_dir_all(&from).unwrap();
    let copy = Tree::open(env(2), &to, &Options::tiny()).unwrap();
    assert_eq!(copy.applied(), made.position);
    check_view(&copy.view(), &model, &rng, "checkpoint");
    for lsn in copy.history_floor().0.max(1)..=made.position.lsn.0 {
        check_view(&copy.view_at(Lsn(lsn)).unwrap(), &model, &rng, "checkpoint history");
    }
}

fn small_tree(dir: &Path) -> (Head, Vec<u8>, PathBuf) {
    let tree = Tree::create(env(1), dir, &Options::tiny(), Position::default()).unwrap();
    let mut head = Head::default();
    for n in 0..4 {
        put(&mut head, &tree, "k", &n.to_string());
        tree.flush_all().unwrap();
    }
    let path = dir.join("manifest/0000000000000001.manifest");
    (head, std::fs::read(&path).unwrap(), path)
}

/// Where each edit of a manifest starts.
fn edit_starts(bytes: &[u8]) -> Vec<usize> {
    let mut out = vec![24];
    while let Some(len) = bytes.get(out[out.len() - 1] + 4..).and_then(|b| b.first_chunk::<4>()) {
        out.push(out[out.len() - 1] + 32 + u32::from_le_bytes(*len) as usize);
    }
    out.pop();
    out
}

#[test]
fn a_torn_last_edit_is_cut_and_other_damage_is_corruption() {
    let dir = tempfile::tempdir().unwrap();
    let (_, good, path) = small_tree(dir.path());
    let last = *edit_starts(&good).last().unwrap();
    let replayed = |bytes: &[u8]| manifest::replay(&path, bytes).map(|r| (r.len, r.state.flushed.lsn));
    assert_eq!(replayed(&good).unwrap(), (good.len() as u64, Lsn(4)));
    for len in last..good.len() {
        assert_eq!(replayed(&good[..len]).unwrap(), (last as u64, Lsn(3)), "torn at {len}");
        let mut zeros = good[..len].to_vec();
        zeros.resize(good.len() + 100, 0);
        assert_eq!(replayed(&zeros).unwrap(), (last as u64, Lsn(3)), "zeros from {len}");
    }
    for at in 0..last {
        let mut bad = good.clone();
        bad[at] ^= 1 << (at % 8);
        assert!(matches!(replayed(&bad), Err(Error::Corruption { .. })), "flip at {at}");
    }
    assert!(manifest_tables(&good[..good.len() - 1]).is_err());
    std::fs::write(&path, &good[..good.len() - 1]).unwrap();
    let tree = Tree::open(env(2), dir.path(), &Options::tiny()).unwrap();
    assert_eq!((tree.flushed().lsn, get(&tree.view(), "k").as_deref()), (Lsn(3), Some("2")));
    assert_eq!(std::fs::read(&path).unwrap(), good[..last]);
    check_files(&tree, dir.path(), "the table of the torn edit is gone");
}

#[test]
fn a_missing_table_is_corruption_and_a_stray_one_is_removed() {
    let dir = tempfile::tempdir().unwrap();
    small_tree(dir.path());
    let stray = dir.path().join("tables").join(table_name(77));
    std::fs::write(&stray, b"left by a crash").unwrap();
    let tree = Tree::open(env(2), dir.path(), &Options::tiny()).unwrap();
    assert!(!stray.exists());
    let gone = tree.table_path(tree.pinned_tables().tables[1].id);
    drop(tree);
    std::fs::remove_file(&gone).unwrap();
    let refused = Tree::open(env(2), dir.path(), &Options::tiny()).unwrap_err();
    assert!(matches!(refused, Error::Corruption { path, .. } if path == gone));
}

#[test]
fn a_newer_manifest_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let (_, mut bytes, path) = small_tree(dir.path());
    bytes[8] = 9;
    let sum = xxhash_rust::xxh3::xxh3_64(&bytes[..16]);
    bytes[16..24].copy_from_slice(&sum.to_le_bytes());
    std::fs::write(&path, &bytes).unwrap();
    let refused = Tree::open(env(2), dir.path(), &Options::tiny()).unwrap_err();
    assert!(matches!(refused, Error::Format { found: 9, .. }));
}

#[test]
fn the_manifest_rotates_and_old_ones_go() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options { history_window_us: 0, ..Options::tiny() };
    let tree = Tree::create(env(1), dir.path(), &options, Position::default()).unwrap();
    let mut head = Head::default();
    for n in 0..450 {
        put(&mut head, &tree, "k", &n.to_string());
        settle(&tree);
    }
    drop(tree);
    let names: Vec<_> =
        std::fs::read_dir(dir.path().join("manifest")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names.len(), 2, "{names:?}");
    assert!(!names.iter().any(|n| n == "0000000000000001.manifest"), "{names:?}");
    let tree = Tree::open(env(2), dir.path(), &options).unwrap();
    assert_eq!(get(&tree.view(), "k").as_deref(), Some("449"));
    assert_eq!(tree.applied(), head.0);
}

#[test]
fn a_damaged_block_fails_its_reads_only() {
    let dir = tempfile::tempdir().unwrap();
    let tree = Tree::create(env(1), dir.path(), &Options::tiny(), Position::default()).unwrap();
    let mut head = Head::default();
    let mut b = Batch::new();
    for n in 0..100 {
        b.put(format!("{n:03}").as_bytes(), b"some value").unwrap();
    }
    apply(&tree, &head.batch(1, &b));
    tree.flush_all().unwrap();
    let path = tree.table_path(tree.pinned_tables().tables[0].id);
    drop(tree);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[30] ^= 4;
    std::fs::write(&path, &bytes).unwrap();
    let tree = Tree::open(env(2), dir.path(), &Options::tiny()).unwrap();
    let view = tree.view();
    let refused = view.get(Keyspace::USER, b"000").unwrap_err();
    assert!(matches!(refused, Error::Corruption { path: p, offset: 0, .. } if p == path));
    assert_eq!(get(&view, "099").as_deref(), Some("some value"));
    assert!(view.scan(Keyspace::USER, b"", b"", false).next().unwrap().is_err());
    assert!(matches!(tree.compact_all(), Err(Error::Corruption { .. })));
    put(&mut head, &tree, "000", "written again");
    assert_eq!(get(&tree.view(), "000").as_deref(), Some("written again"));
    assert_eq!(std::fs::read_dir(dir.path().join("tables")).unwrap().count(), 1, "no output of the failed job stays");
}

#[test]
fn readers_see_whole_records_while_the_tree_works() {
    let dir = tempfile::tempdir().unwrap();
    let tree = Tree::create(env(1), dir.path(), &Options::tiny(), Position::default()).unwrap();
    let rounds = AtomicU32::new(0);
    std::thread::scope(|s| {
        s.spawn(|| {
            let mut head = Head::default();
            for n in 0..600u32 {
                let mut b = Batch::new();
                for k in 0..10 {
                    b.put(format!("k{k}").as_bytes(), &n.to_le_bytes()).unwrap();
                }
                apply(&tree, &head.batch(3, &b));
                if n % 7 == 0 {
                    settle(&tree);
                }
            }
            rounds.store(u32::MAX, Ordering::Release);
        });
        while rounds.load(Ordering::Acquire) != u32::MAX {
            let view = tree.view();
            let all: Vec<_> = scan(&view, b"", b"", false);
            let lsns: BTreeSet<Lsn> = all.iter().map(|(_, lsn, _)| *lsn).collect();
            assert!(lsns.len() <= 1 && lsns.first().is_none_or(|l| *l == view.lsn()), "{lsns:?} at {}", view.lsn());
            assert!(all.is_empty() || all.len() == 10);
        }
    });
}

#[test]
fn arbitrary_manifest_bytes_never_panic() {
    let rng = SeededRng::new(3);
    let state =
        State { epochs: vec![EpochStart { epoch: Epoch(1), lsn: Lsn(1), ts: CommitTs(1) }], ..State::default() };
    let (good, chain) = manifest_file::state_bytes(&state);
    assert_ne!(chain, Chain::default());
    for _ in 0..3_000 {
        let mut bytes = good.clone();
        for _ in 0..1 + rng.below(4) {
            let at = rng.below(bytes.len() as u64) as usize;
            bytes[at] = rng.next_u64() as u8;
        }
        bytes.truncate(rng.below(bytes.len() as u64 + 1) as usize);
        let _ = manifest_tables(&bytes);
    }
}
