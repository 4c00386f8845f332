//! One flipped bit in every structure of every kind of file that the engine writes: it is found and named by file
//! and place, or it is in bytes that nobody reads, and then it changes nothing.
//!
//! [`Kind`] is the list of kinds. A file of none of them, made while the scenario runs, fails the test; so does a
//! kind that the sweep did not get to, or a structure of [`FLIPPED`].

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use mainstay_engine::batch::{Batch, Keyspace};
use mainstay_engine::bulk::{Place, TableWriter};
use mainstay_engine::clock::SimClock;
use mainstay_engine::exec::Progress;
use mainstay_engine::fault::{Bug, plant};
use mainstay_engine::fs::sim::{FaultKind, SimFs};
use mainstay_engine::fs::{File, Fs, LockGuard, OpenMode};
use mainstay_engine::inspect::{self, Known, LogFile, RecordFile, SegmentReader, TableView};
use mainstay_engine::rng::{Rng, SeededRng};
use mainstay_engine::store::{Durability, Identity, Store};
use mainstay_engine::value::Value;
use mainstay_engine::{ClusterId, CommitTs, Env, Epoch, Error, Lsn, Options, TimelineId};

use super::reads::read;
use super::world::State;

const SEED: u64 = 20_260;
const DATA: &str = "/data";
const CHECKPOINT: &str = "/checkpoint";
const READY: &str = "/ready";
const IDENTITY: Identity = Identity { cluster: ClusterId(7), timeline: TimelineId(9) };
/// Bytes at the beginning of a segment, of which the header takes [`HEADER`].
const FRAMES_AT: u64 = 4096;
const HEADER: u64 = 88;
/// In front of a record in its frame.
const FRAME: u64 = 24;

/// Kinds of files. A new one needs an arm in [`structures`] and in [`check`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Identity,
    Evidence,
    Segment,
    CutIntent,
    CutTail,
    Table,
    Manifest,
    Current,
    /// Empty; only its lock counts.
    Lock,
    /// A segment that was let go and waits to be used again: its frames have another salt than those that will be
    /// written over them.
    Spare,
    /// Not read before it is written anew, or renamed to one of the others.
    Temporary,
}

const SWEPT: [Kind; 8] = [
    Kind::Identity,
    Kind::Evidence,
    Kind::Segment,
    Kind::CutIntent,
    Kind::CutTail,
    Kind::Table,
    Kind::Manifest,
    Kind::Current,
];

/// What must be among the structures that are flipped, beside one of every kind of file: a part of their names.
const FLIPPED: [&str; 18] = [
    "Batch record",
    "EpochStart record",
    "Ingest record",
    "mark",
    "Flush table: block",
    "Compaction table: block",
    "History table: block",
    "table: ranges",
    "table: times",
    "table: filter",
    "table: index",
    "edit: state",
    "edit: flush",
    "edit: merge",
    "edit: move",
    "edit: forget",
    "ingested",
    "epoch",
];

fn kind(path: &Path) -> Option<Kind> {
    let name = path.file_name()?.to_str()?;
    let folder = path.parent()?.file_name()?.to_str()?;
    Some(match (folder, name.rsplit_once('.').map_or(name, |(_, ending)| ending)) {
        ("data", "IDENTITY") => Kind::Identity,
        ("data", "EVIDENCE") => Kind::Evidence,
        // Neither holds a byte.
        ("data", "LOCK" | "CREATING") => Kind::Lock,
        ("log", "log") => Kind::Segment,
        ("log", "spare") => Kind::Spare,
        ("log", "cut") => Kind::CutIntent,
        ("diverged", "records") => Kind::CutTail,
        ("tables", "table") => Kind::Table,
        ("manifest", "manifest") => Kind::Manifest,
        ("manifest", "CURRENT") => Kind::Current,
        (_, "tmp") => Kind::Temporary,
        _ => return None,
    })
}

/// Notes every name that is made, even if it goes again.
#[derive(Debug)]
struct Recording {
    disk: Arc<SimFs>,
    names: Mutex<BTreeSet<PathBuf>>,
}

impl Recording {
    fn note(&self, path: &Path) {
        self.names.lock().unwrap().insert(path.to_owned());
    }
}

impl Fs for Recording {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn File>> {
        if mode == OpenMode::CreateNew {
            self.note(path);
        }
        self.disk.open(path, mode)
    }
    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        self.disk.create_dir_all(path)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.note(to);
        self.disk.rename(from, to)
    }
    fn hard_link(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.note(to);
        self.disk.hard_link(from, to)
    }
    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.disk.remove_file(path)
    }
    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        self.disk.remove_dir_all(path)
    }
    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        self.disk.list(path)
    }
    fn exists(&self, path: &Path) -> io::Result<bool> {
        self.disk.exists(path)
    }
    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.disk.sync_dir(path)
    }
    fn lock(&self, path: &Path) -> io::Result<Box<dyn LockGuard>> {
        self.note(path);
        self.disk.lock(path)
    }
    fn free_bytes(&self, path: &Path) -> io::Result<u64> {
        self.disk.free_bytes(path)
    }
}

struct Made {
    disk: Arc<SimFs>,
    fs: Arc<dyn Fs>,
    env: Env,
    /// What the store holds.
    state: State,
    names: BTreeSet<PathBuf>,
}

fn options() -> Options {
    Options { segment_bytes: 8 << 10, ..Options::tiny() }
}

fn put(store: &Store, range: Range<u64>) {
    for n in range {
        let mut batch = Batch::new();
        batch.put(format!("key-{:03}", n % 24).as_bytes(), format!("value {n}").repeat(6).as_bytes()).unwrap();
        if n % 7 == 0 {
            batch.delete(format!("key-{:03}", (n + 5) % 24).as_bytes()).unwrap();
        }
        store.write(&batch, &[], Durability::Synced).unwrap();
    }
}

/// Of the two ingests one has its level by the end; of the other only the log speaks where the process ends in the cut.
fn ingest_twice(store: &Store, disk: &Arc<SimFs>, env: &Env, clock: &SimClock) {
    for (from, place) in [(0, Place::Link), (40, Place::Copy)] {
        // Written by others: where they stand is not the engine's.
        let others = Env { fs: Arc::clone(disk) as Arc<dyn Fs>, ..env.clone() };
        let mut writer = TableWriter::new(others, Path::new(READY), &options());
        for n in from..from + 60 {
            writer.put(Keyspace::USER, format!("ready-{n:03}").as_bytes(), &Value::plain(&[n; 40])).unwrap();
        }
        let tables: Vec<PathBuf> = writer.finish().unwrap().into_iter().map(|t| t.path).collect();
        store.ingest(&tables, place).unwrap();
        // A link's other name would be a way around the checks.
        tables.iter().for_each(|t| disk.remove_file(t).unwrap());
        if place == Place::Link {
            // The manifest is a new one since the first ingest: there is work of every kind for it.
            store.tree().flush_all().unwrap();
            store.tree().compact_all().unwrap();
            for round in 0..3 {
                // What was superseded before is older than the history window.
                clock.advance(Duration::from_millis(2));
                // A key beside all others: its table is moved as it is, if it is the first to go down.
                let mut batch = Batch::new();
                batch.put(format!("zz-{round}").as_bytes(), b"beside").unwrap();
                store.write(&batch, &[], Durability::Synced).unwrap();
                store.tree().flush_all().unwrap();
                for half in 0..2 {
                    let from = 180 + 8 * round + 4 * half;
                    put(store, from..from + 4);
                    store.tree().flush_all().unwrap();
                    while store.maintain_step().unwrap() == Progress::Worked {}
                }
            }
        }
    }
}

/// A store that was used for all that makes files, and a checkpoint of it. With `crash_in_cut` the process ends at
/// that I/O of its cut; else it is closed.
fn make(crash_in_cut: Option<u64>) -> Made {
    let disk = SimFs::new(SEED);
    [DATA, READY].iter().for_each(|d| disk.prepare_dir(Path::new(d)).unwrap());
    let clock = SimClock::new(CommitTs(1_000_000));
    let (env, _) = Env::sim(Arc::clone(&disk), Arc::clone(&clock), SEED);
    let recording = Arc::new(Recording { disk: Arc::clone(&disk), names: Mutex::default() });
    let env = Env { fs: Arc::clone(&recording) as Arc<dyn Fs>, ..env };
    let store = Store::create(env.clone(), Path::new(DATA), &options(), IDENTITY).unwrap();
    let slot = store.log().slot("kept", Lsn::ZERO);
    let settle = || while store.maintain_step().unwrap() == Progress::Worked {};
    for round in 0..4 {
        put(&store, round * 40..round * 40 + 40);
        store.tree().flush_all().unwrap();
        settle();
    }
    let first = store.append_epoch_start(Epoch(2)).unwrap();
    store.log().sync_to(first.lsn).unwrap();
    let mut batch = Batch::new();
    batch.delete_range(b"key-003", b"key-006").unwrap();
    batch.put_expiring(b"short", b"lived", CommitTs(u64::MAX / 2)).unwrap();
    store.write(&batch, &[], Durability::Synced).unwrap();
    put(&store, 160..170);
    store.tree().flush_all().unwrap();
    slot.advance(Lsn(110));
    settle();
    store.checkpoint(Path::new(CHECKPOINT)).unwrap();
    put(&store, 170..180);
    ingest_twice(&store, &disk, &env, &clock);
    let state = read(&store.view()).unwrap();
    let committed = store.committed().get();
    for n in 0..3u8 {
        let mut batch = Batch::new();
        batch.put(&[n], b"never committed").unwrap();
        store.append(store.log().last().epoch, &batch, &[]).unwrap();
    }
    store.log().sync_to(store.log().last().lsn).unwrap();
    if let Some(k) = crash_in_cut {
        disk.fail_at_io(disk.io_count() + k, FaultKind::CrashAfter);
        let _ = store.truncate_above(committed);
        drop((slot, store));
        disk.clear_faults();
        disk.kill();
    } else {
        store.truncate_above(committed).unwrap();
        settle();
        store.close().unwrap();
        drop((slot, store));
    }
    let names = recording.names.lock().unwrap().clone();
    Made { fs: Arc::clone(&disk) as Arc<dyn Fs>, disk, env, state, names }
}

/// The same, stopped where an intent to cut is on the disk.
fn make_cutting() -> Made {
    let made = (1..200).map(|k| make(Some(k)));
    let cutting = |m: &Made| m.disk.files().iter().any(|f| kind(f) == Some(Kind::CutIntent));
    made.into_iter().find(cutting).expect("a cut writes its intent down")
}

/// What becomes of a flip in a structure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// Named at this offset.
    Named(u64),
    /// Nobody reads these bytes, and this is why.
    Harmless(&'static str),
}

#[derive(Debug)]
struct Structure {
    name: String,
    bytes: Range<u64>,
    fate: Fate,
}

fn named(name: impl Into<String>, bytes: Range<u64>) -> Structure {
    Structure { name: name.into(), fate: Fate::Named(bytes.start), bytes }
}

fn harmless(name: &str, bytes: Range<u64>, why: &'static str) -> Structure {
    Structure { name: name.to_owned(), bytes, fate: Fate::Harmless(why) }
}

/// What a file is made of, to its last byte.
fn structures(fs: &Arc<dyn Fs>, path: &Path, kind: Kind) -> Vec<Structure> {
    let len = fs.open(path, OpenMode::Read).unwrap().len().unwrap();
    match kind {
        Kind::Identity | Kind::Evidence | Kind::CutIntent | Kind::Current => vec![named("all", 0..len)],
        Kind::Segment => segment(fs, path, len),
        Kind::CutTail => {
            let mut records = RecordFile::open(&**fs, path).unwrap();
            let mut out = Vec::new();
            let mut from = 0;
            while records.next().unwrap().is_some() {
                out.push(named("record", from..records.offset()));
                from = records.offset();
            }
            out
        }
        Kind::Table => {
            let table = TableView::open(fs, path).unwrap();
            let blocks = table.blocks().unwrap().map(Result::unwrap);
            let properties = table.properties();
            let of = |part: &str| format!("{:?} table: {part}", properties.origin);
            let mut out: Vec<_> =
                blocks.map(|b| named(of(&format!("block {}", b.number)), b.offset..b.offset + b.bytes)).collect();
            let sections = properties.sections.iter().filter(|s| s.name != "data" && s.bytes > 0);
            out.extend(sections.map(|s| named(of(s.name), s.offset..s.offset + s.bytes)));
            out
        }
        Kind::Manifest => {
            let mut out = vec![named("header", 0..24)];
            let see = |e: inspect::ManifestEdit| out.push(named(edit(&e), e.offset..e.offset + e.bytes));
            let view = inspect::read_manifest(fs, path, see).unwrap();
            assert!(view.finding.is_none() && view.torn.is_none(), "{view:?}");
            out
        }
        Kind::Lock | Kind::Spare | Kind::Temporary => panic!("{kind:?} is not swept"),
    }
}

/// What an edit does.
fn edit(e: &inspect::ManifestEdit) -> String {
    let moved = e.added.iter().all(|t| e.removed.contains(&t.file.id));
    let does = match (e.offset, e.flushed.is_some(), e.added.is_empty()) {
        (24, ..) => "state",
        (_, true, _) => "flush",
        (_, false, true) => "forget",
        (_, false, false) if moved => "move",
        _ => "merge",
    };
    let ingested = if e.added.iter().any(|t| t.ingested.is_some()) { ", ingested" } else { "" };
    let epoch = if e.epochs.is_empty() { "" } else { ", epoch" };
    format!("edit: {does}{ingested}{epoch}")
}

fn segment(fs: &Arc<dyn Fs>, path: &Path, len: u64) -> Vec<Structure> {
    let file = LogFile::read(&**fs, path).unwrap();
    let Some(header) = file.header() else {
        return vec![harmless(
            "blank",
            0..len,
            "a segment made ahead: it is no part of the log before it has a header",
        )];
    };
    let mut out = vec![
        named("header", 0..HEADER),
        harmless("rest of the header's block", HEADER..FRAMES_AT, "nothing is kept there"),
    ];
    let mut frames = SegmentReader::open(&**fs, path, &header).unwrap();
    while let Some(f) = frames.next().unwrap() {
        let record = f.record.map_or(0, |r| r.bytes.len() as u64);
        let (start, end) = (f.offset, f.offset + FRAME + record);
        let name = f.record.as_ref().map_or("mark".to_owned(), |r| format!("frame with a {:?} record", r.header.kind));
        out.push(named(name, start..end));
        out.push(harmless("padding of a frame", end..f.offset + f.bytes, "it only fills up to eight bytes"));
    }
    let tail = "behind the last frame: a frame there would need a checksum and the segment's salt";
    out.push(harmless("zeros", frames.offset()..len, tail));
    out
}

/// What the checks say of a file: places named, as file and offset.
fn check(made: &Made, path: &Path, kind: Kind) -> Vec<(PathBuf, u64)> {
    let (fs, root) = (&made.fs, if path.starts_with(CHECKPOINT) { CHECKPOINT } else { DATA });
    let dir = Path::new(root);
    let found = match kind {
        Kind::Identity | Kind::Evidence => inspect::state_files(fs, dir).unwrap().findings,
        Kind::Segment | Kind::CutIntent | Kind::CutTail => {
            let log = inspect::check_log(&**fs, dir, known(made)).unwrap();
            let mut found = log.findings;
            // Behind the end of the log there is nothing to lose; that there is something is said all the same.
            found.extend(log.unfinished.filter(|u| u.offset > FRAMES_AT).map(|u| inspect::Finding {
                path: u.path,
                offset: u.offset,
                lsn: None,
                what: "unfinished".into(),
            }));
            found
        }
        Kind::Table => inspect::check_table(fs, path, None).unwrap().1,
        Kind::Manifest | Kind::Current => {
            let checked = inspect::check_manifest(fs, dir).unwrap();
            let mut found = checked.findings;
            let torn = |offset| inspect::Finding { path: path.to_owned(), offset, lsn: None, what: "torn".into() };
            found.extend(checked.torn.map(torn));
            found
        }
        Kind::Lock | Kind::Spare | Kind::Temporary => panic!("{kind:?} is not swept"),
    };
    found.into_iter().map(|f| (f.path, f.offset)).collect()
}

fn known(made: &Made) -> Known {
    let dir = Path::new(DATA);
    let evidence = inspect::state_files(&made.fs, dir).unwrap().evidence;
    let base = inspect::read_state(&made.fs, dir).unwrap().state.flushed;
    Known { durable: evidence.map_or(Lsn::ZERO, |(durable, _)| durable), base: Some(base) }
}

/// Whether a flip in this file may be named by another one: `CURRENT` has no bytes but the name it gives.
fn speaks_for(kind: Kind, path: &Path, said: &Path) -> bool {
    path == said || (kind == Kind::Current && said.parent() == path.parent())
}

/// Offsets to flip in a structure: all of a small one, ends and some places of a large one.
fn places(bytes: &Range<u64>, rng: &SeededRng, most: u64) -> Vec<u64> {
    let len = bytes.end - bytes.start;
    if len <= most {
        return bytes.clone().collect();
    }
    let ends = (0..most / 4).flat_map(|n| [bytes.start + n, bytes.end - 1 - n]);
    ends.chain((0..most / 2).map(|_| bytes.start + rng.below(len))).collect()
}

/// Flips bits in a file and says what went unnoticed, or noticed where it does not count.
fn sweep_file(made: &Made, path: &Path, kind: Kind, rng: &SeededRng, flipped: &mut BTreeSet<String>) -> Vec<String> {
    let mut wrong = Vec::new();
    let before = check(made, path, kind);
    assert!(before.is_empty(), "{} before any flip: {before:?}", path.display());
    for s in structures(&made.fs, path, kind).into_iter().filter(|s| !s.bytes.is_empty()) {
        for offset in places(&s.bytes, rng, 40) {
            let bit = (offset % 8) as u8;
            made.disk.flip_bit(path, offset, bit).unwrap();
            let found = check(made, path, kind);
            made.disk.flip_bit(path, offset, bit).unwrap();
            flipped.insert(s.name.clone());
            let good = match s.fate {
                Fate::Named(at) => {
                    found.iter().any(|(p, o)| speaks_for(kind, path, p) && (*o == at || kind == Kind::Current))
                }
                // Behind the end of the log a flipped bit looks like a write that was not finished.
                Fate::Harmless(_) => {
                    found.is_empty() || (s.name == "zeros" && found == [(path.to_owned(), s.bytes.start)])
                }
            };
            if !good {
                let (file, name, fate) = (path.display(), &s.name, s.fate);
                wrong.push(format!("{file}: byte {offset} bit {bit} of {name} ({fate:?}): found {found:?}"));
            }
        }
    }
    wrong
}

fn sweep() -> Vec<String> {
    let rng = SeededRng::new(SEED);
    let mut wrong = Vec::new();
    let (mut swept, mut flipped) = (BTreeSet::new(), BTreeSet::new());
    for (made, only) in [(make(None), None), (make_cutting(), Some(Kind::CutIntent))] {
        for path in made.names.iter().chain(&made.disk.files()) {
            if kind(path).is_none() {
                wrong.push(format!("{}: a file of a kind that no sweep knows", path.display()));
            }
        }
        for path in made.disk.files() {
            let Some(kind) = kind(&path).filter(|k| SWEPT.contains(k) && only.is_none_or(|o| o == *k)) else {
                continue;
            };
            swept.insert(kind);
            wrong.extend(sweep_file(&made, &path, kind, &rng, &mut flipped));
        }
    }
    if swept != BTreeSet::from(SWEPT) {
        wrong.push(format!("swept only {swept:?}"));
    }
    for part in FLIPPED.iter().filter(|part| !flipped.iter().any(|name| name.contains(*part))) {
        wrong.push(format!("nothing was flipped in any {part:?}, only in {flipped:?}"));
    }
    wrong
}

#[test]
fn a_flipped_bit_in_any_kind_of_file_is_named_or_harmless() {
    let wrong = sweep();
    assert!(wrong.is_empty(), "seed {SEED}: {} flips:\n{}", wrong.len(), wrong.join("\n"));
}

/// The rule broken on purpose: bytes whose checksum does not fit are believed.
#[test]
fn without_checksums_the_sweep_fails() {
    let _bug = plant(Bug::IgnoreChecksum);
    assert!(!sweep().is_empty());
}

#[test]
fn a_file_of_an_unknown_kind_is_noticed() {
    for path in ["/data/NOVEL", "/data/log/0000000000000001.index", "/data/tables/1.filter", "/data/extra/x.table"] {
        assert_eq!(kind(Path::new(path)), None, "{path}");
    }
}

/// What opening does about a flip: it refuses and names a file, or everything that was acknowledged is there, or the
/// reads that need the place say so. And where the checks see damage of the log, recovery does, and the other way round.
#[test]
fn a_store_with_a_flipped_bit_refuses_or_reads_right() {
    let rng = SeededRng::new(SEED);
    let first = make(None);
    let mut flips = Vec::new();
    for path in first.disk.files().into_iter().filter(|p| p.starts_with(DATA)) {
        let Some(kind) = kind(&path).filter(|k| SWEPT.contains(k)) else { continue };
        let all = structures(&first.fs, &path, kind);
        let few = all.len().div_ceil(12);
        for s in all.into_iter().step_by(few).filter(|s| !s.bytes.is_empty()) {
            flips.push((path.clone(), kind, s.bytes.start + rng.below(s.bytes.end - s.bytes.start)));
        }
    }
    assert!(flips.len() > 50, "{}", flips.len());
    for (path, kind, offset) in flips {
        let made = make(None);
        made.disk.flip_bit(&path, offset, (offset % 8) as u8).unwrap();
        let what = format!("seed {SEED}: byte {offset} of {}", path.display());
        let checked = (kind == Kind::Segment).then(|| {
            let known = known(&made);
            (known.base.unwrap().lsn, inspect::check_log(&*made.fs, Path::new(DATA), known).unwrap().findings)
        });
        let opened = Store::open_embedded(made.env.clone(), Path::new(DATA), &options());
        if let Some((flushed, found)) = checked {
            // Of log that is in the tables recovery need not read more than the headers.
            let needed = found.iter().any(|f| f.lsn.is_none_or(|l| l > flushed));
            let differ = if opened.is_err() { found.is_empty() } else { needed };
            assert!(!differ, "{what}: the check found {found:?}, recovery {:?}", opened.err());
        }
        let refused = |e: Error| {
            let said = matches!(
                e,
                Error::Corruption { .. } | Error::Directory { .. } | Error::Format { .. } | Error::Malformed(_)
            );
            assert!(said, "{what}: {e}");
        };
        match opened.and_then(|store| read(&store.view())) {
            Ok(state) => assert_eq!(state, made.state, "{what}"),
            Err(e) => refused(e),
        }
    }
}

/// Whatever stands in a file, looking at it ends, and not with a panic.
#[test]
fn arbitrary_bytes_in_any_file_end_no_check_with_a_panic() {
    let rng = SeededRng::new(SEED);
    let made = make(None);
    let files: Vec<PathBuf> = made.disk.files().into_iter().filter(|f| kind(f).is_some()).collect();
    let data = Path::new(DATA);
    for _ in 0..400 {
        let path = &files[rng.below(files.len() as u64) as usize];
        let before = made.disk.read_all(path).unwrap();
        let file = made.fs.open(path, OpenMode::Write).unwrap();
        for _ in 0..=rng.below(4) {
            let junk: Vec<u8> = (0..rng.below(64)).map(|_| rng.next_u64() as u8).collect();
            file.write_all_at(&junk, rng.below(before.len() as u64 + 10)).unwrap();
        }
        if rng.below(4) == 0 {
            file.set_len(rng.below(before.len() as u64 + 100)).unwrap();
        }
        let _ = inspect::check_log(&*made.fs, data, Known::default());
        let _ = inspect::check_tables(&made.fs, data);
        let _ = inspect::check_manifest(&made.fs, data);
        let _ = inspect::state_files(&made.fs, data);
        let _ = inspect::check_segment(&*made.fs, path);
        if let Ok(table) = TableView::open(&made.fs, path) {
            let _ = table.blocks().map(Iterator::count);
            let mut entries = table.entries(Some((Keyspace::USER, &b"key-004"[..]..&b"key-009"[..])));
            while matches!(entries.next(), Ok(Some(_))) {}
        }
        file.set_len(0).unwrap();
        file.write_all_at(&before, 0).unwrap();
    }
    assert_eq!(inspect::check_log(&*made.fs, data, known(&made)).unwrap().findings, []);
}

/// Each kind of evidence alone tells damage at the end of the log from a torn tail.
#[test]
fn the_end_of_the_log_is_judged_by_each_kind_of_evidence() {
    let disk = SimFs::new(SEED);
    disk.prepare_dir(Path::new(DATA)).unwrap();
    let (env, _) = Env::sim(Arc::clone(&disk), SimClock::new(CommitTs(1_000_000)), SEED);
    let store = Store::create(env, Path::new(DATA), &options(), IDENTITY).unwrap();
    put(&store, 0..10);
    drop(store);
    let (data, log) = (Path::new(DATA), PathBuf::from("/data/log/0000000000000001.log"));
    let file = LogFile::read(&*disk, &log).unwrap();
    let mut frames = SegmentReader::open(&*disk, &log, &file.header().unwrap()).unwrap();
    let mut starts = Vec::new();
    while let Some(f) = frames.next().unwrap() {
        starts.push(f.offset);
    }
    let [.., before, last] = starts[..] else { panic!("{starts:?}") };
    let found = |at: u64, known: Known| {
        disk.flip_bit(&log, at + FRAME + 30, 2).unwrap();
        let check = inspect::check_log(&*disk, data, known).unwrap();
        let alone = inspect::check_segment(&*disk, &log).unwrap();
        disk.flip_bit(&log, at + FRAME + 30, 2).unwrap();
        if known == Known::default() {
            assert_eq!((&alone.findings, &alone.unfinished), (&check.findings, &check.unfinished));
        }
        let named: Vec<_> = check.findings.iter().map(|f| (f.offset, f.lsn)).collect();
        (named, check.unfinished.map(|u| (u.offset, u.lsn)))
    };
    // Nothing says that the last record was durable; its own frame says it of the one before.
    assert_eq!(found(last, Known::default()), (vec![], Some((last, Lsn(10)))));
    assert_eq!(found(before, Known::default()), (vec![(before, Some(Lsn(9)))], None));
    let known = Known { durable: Lsn(10), base: None };
    assert_eq!(found(last, known), (vec![(last, Some(Lsn(10)))], None));
    assert_eq!(found(last, Known { durable: Lsn(9), base: None }), (vec![], Some((last, Lsn(10)))));
}
