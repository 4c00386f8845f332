//! Data directories that earlier programs wrote: each opens with all that is in it, or is refused by the name of the
//! format that is no longer read, and stays as it is.
//!
//! `engine/tests/fixtures` has one directory for each combination of on-disk format versions that ever was. Whoever
//! changes a version writes the next with `MAINSTAY_WRITE_FIXTURE=1 cargo test -p mainstay-engine --test formats`.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "a test fails by panicking and reads real files")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use mainstay_engine::batch::{Batch, Keyspace};
use mainstay_engine::bulk::{Place, TableWriter};
use mainstay_engine::exec::Progress;
use mainstay_engine::inspect;
use mainstay_engine::store::{Durability, Identity, Store};
use mainstay_engine::table::verify_table;
use mainstay_engine::value::Value;
use mainstay_engine::{ClusterId, CommitTs, Env, Epoch, Error, Lsn, Options, TimelineId};

type State = BTreeMap<Vec<u8>, Vec<u8>>;

/// Versions of the formats in a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Versions {
    identity: u32,
    segment: u32,
    manifest: u32,
    table: u32,
    evidence: u8,
    /// Of the records in cut tails; `None` without one.
    cut_tail: Option<u8>,
}

/// What is expected of a fixture.
enum Then {
    Opens,
    /// Refused for a file with this extension, of this version.
    Refused(&'static str, u32),
}

const FIXTURES: [(&str, Versions, Then); 6] = [
    ("tables-1", versions_of([1, 1, 1, 1], None), Then::Refused("manifest", 1)),
    ("tables-2", versions_of([1, 1, 1, 2], None), Then::Refused("manifest", 1)),
    ("tables-3", versions_of([1, 1, 2, 3], None), Then::Refused("manifest", 2)),
    ("tables-4", versions_of([1, 1, 3, 4], None), Then::Opens),
    (CUT, versions_of([1, 1, 3, 4], Some(1)), Then::Opens),
    (INGESTED, versions_of([2, 1, 4, 4], None), Then::Opens),
];

/// Of identity, segments, manifest and tables. The evidence has had one format only.
const fn versions_of([identity, segment, manifest, table]: [u32; 4], cut_tail: Option<u8>) -> Versions {
    Versions { identity, segment, manifest, table, evidence: 1, cut_tail }
}

/// The one from whose log a tail was cut.
const CUT: &str = "tables-4-cut";

/// The one that has ingested: a table that the manifest names, and one that only the log does.
const INGESTED: &str = "tables-4-ingested";

/// What `fill` did in LSN order, as a reader sees it in the end.
fn filled() -> State {
    let key = |n: u32| format!("key-{n:02}").into_bytes();
    let mut state: State = (0..30).map(|n| (key(n), format!("value {n}").into_bytes())).collect();
    state.extend((5..10).map(|n| (key(n), format!("newer {n}").into_bytes())));
    state.remove(&key(11));
    state.retain(|k, _| !(key(20)..key(25)).contains(k));
    state.insert(b"later".to_vec(), b"kept".to_vec());
    state.extend((0..5).map(|n| (format!("log-{n}").into_bytes(), b"only in the log".to_vec())));
    state
}

/// A store with puts, overwritten and removed keys, a range delete and expiries in tables, and some records behind
/// them in the log, the first of a reign among them.
fn fill(dir: &Path) {
    let identity = Identity { cluster: ClusterId(7), timeline: TimelineId(9) };
    let store = Store::create(Env::real(), dir, &Options::tiny(), identity).unwrap();
    let write = |make: &dyn Fn(&mut Batch)| {
        let mut batch = Batch::new();
        make(&mut batch);
        store.write(&batch, &[], Durability::Synced).unwrap();
    };
    let put = |key: String, value: String| write(&|b| _ = b.put(key.as_bytes(), value.as_bytes()).unwrap());
    (0..30).for_each(|n| put(format!("key-{n:02}"), format!("value {n}")));
    store.tree().flush_all().unwrap();
    (5..10).for_each(|n| put(format!("key-{n:02}"), format!("newer {n}")));
    write(&|b| _ = b.delete(b"key-11").unwrap().delete_range(b"key-20", b"key-25").unwrap());
    write(&|b| _ = b.put_expiring(b"past", b"gone", CommitTs(1)).unwrap());
    write(&|b| _ = b.put_expiring(b"later", b"kept", CommitTs(u64::MAX / 2)).unwrap());
    store.tree().flush_all().unwrap();
    while store.maintain_step().unwrap() == Progress::Worked {}
    let first = store.append_epoch_start(Epoch(4)).unwrap();
    store.log().sync_to(first.lsn).unwrap();
    (0..5).for_each(|n| put(format!("log-{n}"), "only in the log".to_owned()));
    store.close().unwrap();
}

/// The same, and then `later` as an ingested table of the manifest, and the last records as one that the log names.
fn fill_ingesting(dir: &Path) {
    fill(dir);
    let store = Store::open_embedded(Env::real(), dir, &Options::tiny()).unwrap();
    let ingest = |pairs: &[(String, Value<'_>)]| {
        let ready = tempfile::tempdir().unwrap();
        let mut writer = TableWriter::new(Env::real(), ready.path(), &Options::tiny());
        pairs.iter().for_each(|(key, value)| writer.put(Keyspace::USER, key.as_bytes(), value).unwrap());
        let tables: Vec<PathBuf> = writer.finish().unwrap().into_iter().map(|t| t.path).collect();
        store.ingest(&tables, Place::Copy).unwrap();
    };
    ingest(&[("later".to_owned(), Value { expiry: Some(CommitTs(u64::MAX / 2)), metadata: &[], data: b"kept" })]);
    store.tree().flush_all().unwrap();
    let log: Vec<_> = (0..5).map(|n| (format!("log-{n}"), Value::plain(b"only in the log"))).collect();
    ingest(&log);
    store.log().close().unwrap();
    assert_eq!(store.tree().stats().arriving_tables, 1);
}

/// The same, and two records behind the last that were cut.
fn fill_cutting(dir: &Path) {
    fill(dir);
    let store = Store::open_embedded(Env::real(), dir, &Options::tiny()).unwrap();
    let committed = store.committed().get();
    for n in 0..2 {
        let mut batch = Batch::new();
        batch.put(format!("cut-{n}").as_bytes(), b"never committed").unwrap();
        store.append(Epoch(4), &batch, &[]).unwrap();
    }
    store.truncate_above(committed).unwrap();
    store.close().unwrap();
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let (entry, name) = (entry.as_ref().unwrap().path(), entry.as_ref().unwrap().file_name());
        if entry.is_dir() {
            copy(&entry, &to.join(name))
        } else {
            _ = std::fs::copy(entry, to.join(name)).unwrap();
        }
    }
}

fn contents(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut out = BTreeMap::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            out.extend(contents(&path));
        } else if path.file_name().unwrap() != "LOCK" {
            out.insert(path.clone(), std::fs::read(path).unwrap());
        }
    }
    out
}

/// The versions that are written in a directory's files, found without the program's own decoders.
fn versions(dir: &Path) -> Versions {
    let files = contents(dir);
    let version = |extension: &str, at: &dyn Fn(&[u8]) -> usize| {
        let found = files.iter().filter(|(p, bytes)| p.extension().is_some_and(|e| e == extension) && bytes[0] > 0);
        let mut found: Vec<u32> = found.map(|(_, b)| u32::from_le_bytes(*b[at(b)..].first_chunk().unwrap())).collect();
        found.dedup();
        assert_eq!(found.len(), 1, "one version of {extension} files in {}: {found:?}", dir.display());
        found[0]
    };
    let (identity, evidence) = (&files[&dir.join("IDENTITY")], &files[&dir.join("EVIDENCE")]);
    assert!(evidence.starts_with(b"msevid\0"), "{evidence:02x?}");
    let mut cut: Vec<u8> =
        files.iter().filter(|(p, _)| p.extension().is_some_and(|e| e == "records")).map(|(_, b)| b[28]).collect();
    cut.dedup();
    assert!(cut.len() < 2, "versions of cut records in {}: {cut:?}", dir.display());
    Versions {
        identity: u32::from_le_bytes(*identity[8..].first_chunk().unwrap()),
        segment: version("log", &|_| 8),
        manifest: version("manifest", &|_| 8),
        table: version("table", &|bytes| bytes.len() - 12),
        evidence: evidence[7],
        cut_tail: cut.first().copied(),
    }
}

fn read(store: &Store) -> State {
    let all = store.view().scan(Keyspace::USER, b"", b"", false).map(|f| f.unwrap());
    all.map(|f| (f.key, Value::decode(&f.envelope).unwrap().data.to_vec())).collect()
}

#[test]
fn every_data_directory_of_an_earlier_program_opens_or_is_refused_by_name() {
    for (name, written, then) in FIXTURES {
        let fixture = fixtures().join(name);
        assert_eq!(versions(&fixture), written, "{name}");
        let scratch = tempfile::tempdir().unwrap();
        let dir = scratch.path().join("data");
        copy(&fixture, &dir);
        let before = contents(&dir);
        // Both are read whether the directory opens or not.
        let fs = Env::real().fs;
        assert_eq!(inspect::state_files(&fs, &dir).unwrap().evidence, Some((Lsn(44), Lsn(44))), "{name}");
        let tails = inspect::cut_tails(&*fs, &dir).unwrap();
        let checked: Vec<_> = tails.iter().map(|t| (t.epoch, t.from, t.to, t.check(&*fs).unwrap())).collect();
        let cut = [(Epoch(4), Lsn(45), Lsn(46), (2, None))];
        assert_eq!(checked, if written.cut_tail.is_some() { &cut[..] } else { &[] }, "{name}");
        let opened = Store::open_embedded(Env::real(), &dir, &Options::tiny());
        match (then, opened) {
            (Then::Opens, Ok(store)) => {
                assert_eq!(read(&store), filled(), "{name}");
                assert_eq!(store.epochs().unwrap(), [(Epoch(4), Lsn(39))], "{name}");
                if name == INGESTED {
                    let version = |key: &[u8]| store.get(Keyspace::USER, key).unwrap().map(|found| found.lsn);
                    assert_eq!((version(b"later"), version(b"log-3")), (Some(Lsn(45)), Some(Lsn(46))));
                }
                let mut batch = Batch::new();
                batch.put(b"and", b"on").unwrap();
                store.write(&batch, &[], Durability::Synced).unwrap();
            }
            (Then::Refused(extension, version), Err(Error::Format { path, found, .. })) => {
                assert!(path.extension().is_some_and(|e| e == extension) && found == version, "{path:?} {found}");
                assert!(before == contents(&dir), "{name} was changed by the refusal");
                // Its tables would be refused as well.
                for table in before.keys().filter(|p| p.extension().is_some_and(|e| e == "table")) {
                    let refused = verify_table(&Env::real().fs, table);
                    assert!(
                        matches!(refused, Err(Error::Format { found, .. }) if found == written.table),
                        "{refused:?}"
                    );
                }
            }
            (_, other) => panic!("{name}: {other:?}"),
        }
    }
}

/// A version that is written now has its fixture from the first day, or nobody will have one later.
#[test]
fn what_is_written_today_is_among_the_fixtures() {
    check_todays(fill, |v| format!("tables-{}", v.table));
    check_todays(fill_cutting, |v| format!("tables-{}-cut", v.table));
    check_todays(fill_ingesting, |v| format!("tables-{}-ingested", v.table));
}

fn check_todays(fill: fn(&Path), name: impl Fn(Versions) -> String) {
    let scratch = tempfile::tempdir().unwrap();
    fill(scratch.path());
    let now = versions(scratch.path());
    let store = Store::open_embedded(Env::real(), scratch.path(), &Options::tiny()).unwrap();
    assert_eq!(read(&store), filled());
    drop(store);
    if std::env::var_os("MAINSTAY_WRITE_FIXTURE").is_some() {
        let to = fixtures().join(name(now));
        if to.exists() {
            // One that was written by an earlier program stays as it is.
            return;
        }
        let fresh = tempfile::tempdir().unwrap();
        fill(fresh.path());
        copy(fresh.path(), &to);
        return;
    }
    let known = FIXTURES.iter().any(|(_, v, then)| *v == now && matches!(then, Then::Opens));
    assert!(known, "{now:?} is written and has no fixture: see the head of this file");
}
