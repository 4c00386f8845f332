//! `mainstay inspect` on real files: what it prints, what it finds, and that it changes nothing.

#![expect(clippy::unwrap_used, clippy::disallowed_methods, reason = "an outside observer, not the core")]

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use mainstay_engine::batch::{Batch, Keyspace};
use mainstay_engine::bulk::{Place, TableWriter};
use mainstay_engine::store::{Durability, Identity, Store};
use mainstay_engine::value::Value as Plain;
use mainstay_engine::{ClusterId, Env, Options, TimelineId};
use serde_json::Value;

fn inspect(args: &[&str]) -> Output {
    let mut c = Command::new(env!("CARGO_BIN_EXE_mainstay"));
    c.arg("inspect").args(args).stdin(Stdio::null()).output().unwrap()
}

fn text(o: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&o.stdout), String::from_utf8_lossy(&o.stderr))
}

/// Asserts the exit code and that the output has all of these.
fn says(args: &[&str], code: i32, all: &[&str]) -> String {
    let o = inspect(args);
    let out = text(&o);
    assert_eq!(o.status.code(), Some(code), "{args:?}: {out}");
    for s in all {
        assert!(out.contains(s), "{args:?} does not say {s:?}: {out}");
    }
    assert!(!out.contains("panicked") && !out.contains('\x1b'), "{args:?}: {out}");
    out
}

fn json(args: &[&str]) -> Vec<Value> {
    let o = inspect(&[args, &["-o", "json"]].concat());
    let lines = String::from_utf8(o.stdout).unwrap();
    let all: Vec<Value> = lines.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert!(!all.is_empty() && all.iter().all(|v| v["schema"] == 1), "{args:?}: {lines}");
    all
}

struct Home {
    _dir: tempfile::TempDir,
    data: PathBuf,
    checkpoint: PathBuf,
    store: Store,
}

/// An open store with 41 records, of which the last is not flushed, a cut tail, and a checkpoint.
fn home() -> Home {
    let dir = tempfile::tempdir().unwrap();
    let (data, checkpoint) = (dir.path().join("data"), dir.path().join("checkpoint"));
    let identity = Identity { cluster: ClusterId(7), timeline: TimelineId(9) };
    let options = Options { segment_bytes: 64 << 10, ..Options::default() };
    let store = Store::create(Env::real(), &data, &options, identity).unwrap();
    let put = |key: String| {
        let mut batch = Batch::new();
        batch.put(key.as_bytes(), b"some value").unwrap();
        store.write(&batch, &[], Durability::Synced).unwrap();
    };
    (0..39).for_each(|n| put(format!("user/{n:02}")));
    let mut batch = Batch::new();
    batch.delete_range(b"user/10", b"user/20").unwrap();
    store.write(&batch, &[], Durability::Synced).unwrap();
    store.checkpoint(&checkpoint).unwrap();
    put("late".into());
    let committed = store.committed().get();
    let mut batch = Batch::new();
    batch.delete(b"never committed").unwrap();
    store.append(store.log().last().epoch, &batch, &[]).unwrap();
    store.truncate_above(committed).unwrap();
    Home { _dir: dir, data, checkpoint, store }
}

impl Home {
    fn data(&self) -> &str {
        self.data.to_str().unwrap()
    }

    fn only(&self, folder: &str, ending: &str) -> PathBuf {
        let all = std::fs::read_dir(self.data.join(folder)).unwrap().map(|e| e.unwrap().path());
        all.filter(|p| p.extension().is_some_and(|e| e == ending)).min().unwrap()
    }
}

fn flip(path: &Path, offset: u64) {
    let file = std::fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 4], offset).unwrap();
}

/// Every file with its length, content and time of change.
fn picture(dir: &Path) -> Vec<(PathBuf, Vec<u8>, std::time::SystemTime)> {
    let mut out = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            out.extend(picture(&path));
        } else {
            let changed = std::fs::metadata(&path).unwrap().modified().unwrap();
            out.push((path.clone(), std::fs::read(&path).unwrap(), changed));
        }
    }
    out.sort();
    out
}

#[test]
fn an_ingest_is_printed_with_its_tables_and_their_lsn() {
    let home = home();
    let ready = home.data.join("../ready");
    std::fs::create_dir(&ready).unwrap();
    let mut writer = TableWriter::new(Env::real(), &ready, &Options::default());
    for key in ["user/11", "user/12"] {
        writer.put(Keyspace::USER, key.as_bytes(), &Plain::plain(b"v")).unwrap();
    }
    let tables: Vec<PathBuf> = writer.finish().unwrap().into_iter().map(|t| t.path).collect();
    assert_eq!(home.store.ingest(&tables, Place::Copy).unwrap().position.lsn.0, 42);
    let data = home.data();
    says(&["log", data, "--from", "42"], 0, &["ingest", "2 keys  user  user/11 to user  user/12"]);
    let line = &json(&["log", data, "--from", "42"])[0];
    assert_eq!((&line["kind"], &line["tables"][0]["entries"]), (&"ingest".into(), &2.into()));
    says(&["table", data, "--verify"], 0, &["an ingest in the log names"]);
    home.store.tree().flush_all().unwrap();
    says(&["manifest", data], 0, &["format 4", "was ingested at LSN 42"]);
    says(&["manifest", data, "--edits"], 0, &["ingested at LSN 42"]);
    for part in ["log", "table", "manifest"] {
        says(&[part, data, "--verify"], 0, &[]);
    }
}

#[test]
fn log_table_and_manifest_are_printed_beside_an_open_store_and_nothing_changes() {
    let home = home();
    let before = picture(&home.data);
    let data = home.data();
    says(&["log", data], 0, &["0000000000000001.log", "FIRST LSN", "CUT TAIL"]);
    let records =
        says(&["log", data, "--from", "39", "--to", "41"], 0, &["LSN 40", "delete range  user  user/10 to user/20"]);
    assert!(!records.contains("LSN 38 ") && records.contains("put  user  late  10 B"), "{records}");
    let lines = json(&["log", data, "--records"]);
    assert_eq!(lines.len(), 41);
    assert_eq!(
        (&lines[0]["lsn"], &lines[0]["kind"], &lines[0]["ops"][0]["key"]),
        (&1.into(), &"batch".into(), &"user/00".into())
    );
    assert_eq!(lines[40]["durable_lsn"], 40);
    let cut = home.only("diverged", "records");
    says(&["log", cut.to_str().unwrap(), "--records"], 0, &["LSN 42", "delete  user  never committed"]);

    says(&["manifest", data], 0, &["flushed: epoch", "LSN 40", "LEVEL", "cluster 00000000000000000000000000000007"]);
    says(&["manifest", data, "--edits"], 0, &["edit at offset 24", "    add "]);
    assert_eq!(json(&["manifest", data])[0]["flushed"]["lsn"], 40);

    says(&["table", data], 0, &["user:user/00", "user:user/38"]);
    let table = home.only("tables", "table");
    let table = table.to_str().unwrap();
    says(&["table", table], 0, &["entries: 39", "range delete: user:user/10 to user:user/20 below LSN 40", "footer"]);
    says(&["table", table, "--blocks"], 0, &["block 0  offset 0", "39 entries"]);
    let some = says(
        &["table", table, "--entries", "--start", "user/05", "--end", "user/07"],
        0,
        &["user/05\t6\tput\tsome value"],
    );
    assert_eq!(some.lines().count(), 2, "{some}");
    assert_eq!(json(&["table", table, "--entries", "--limit", "3"])[2]["lsn"], 3);

    for part in ["log", "table", "manifest"] {
        says(&[part, data, "--verify"], 0, &["ok: everything is as it was written"]);
        assert_eq!(json(&[part, data, "--verify"])[0]["ok"], true);
    }
    let checkpoint = home.checkpoint.to_str().unwrap();
    says(&["table", checkpoint, "--verify"], 0, &["1 tables"]);
    says(&["manifest", checkpoint, "--verify"], 0, &["1 tables named"]);
    assert!(picture(&home.data) == before, "looking changed something");
    assert_eq!(home.store.committed().get().0, 41);
}

/// The JSON of every edit, in order, adds up to the state that is printed without `--edits`.
#[test]
fn the_edits_of_a_manifest_are_whole_in_json() {
    let home = home();
    home.store.tree().flush_all().unwrap();
    home.store.tree().compact_all().unwrap();
    let data = home.data();
    let (edits, state) = (json(&["manifest", data, "--edits"]), &json(&["manifest", data])[0]);
    let (mut tables, mut at) = (Vec::new(), 24);
    let (mut flushed, mut removed) = (Vec::new(), 0);
    for edit in &edits {
        assert_eq!(edit["offset"], at, "{edit}");
        at += edit["bytes"].as_u64().unwrap();
        for id in edit["removed"].as_array().unwrap() {
            let here = tables.iter().position(|t: &Value| t["id"] == *id);
            tables.remove(here.unwrap_or_else(|| panic!("{id} is not there: {edit}")));
            removed += 1;
        }
        for table in edit["added"].as_array().unwrap() {
            assert!(table["bytes"].as_u64() > Some(0) && table["entries"].is_u64() && table["ingested_lsn"].is_null());
            assert_eq!(table["blake3"].as_str().map(str::len), Some(64), "{table}");
            tables.push(table.clone());
        }
        flushed.extend(edit["flushed"]["lsn"].as_u64());
        assert!(edit["epochs"].is_array() && edit["timeline"].is_null(), "{edit}");
    }
    assert_eq!((edits.len() as u64, at), (state["edits"].as_u64().unwrap(), state["bytes"].as_u64().unwrap()));
    assert_eq!((&Value::from(tables), &flushed[..]), (&state["tables"], &[0, 40, 41][..]), "{edits:?}");
    assert!(removed > 0, "no merge: {edits:?}");
    assert_eq!(edits.last().unwrap()["flushed"], Value::Null);
}

/// Every block in JSON, without a gap, and together what the properties count.
#[test]
fn the_blocks_of_a_table_are_whole_in_json() {
    let home = home();
    let mut batch = Batch::new();
    for n in 0..400 {
        batch.put(format!("v/{n:03}").as_bytes(), format!("{n}").repeat(20).as_bytes()).unwrap();
    }
    home.store.write(&batch, &[], Durability::Synced).unwrap();
    home.store.tree().flush_all().unwrap();
    home.store.tree().compact_all().unwrap();
    let listed = &json(&["table", home.data()])[0]["tables"];
    let present = listed.as_array().unwrap().iter().find(|t| t["max_key"] == "user:v/399").unwrap();
    let table = home.data.join("tables").join(format!("{}.table", present["id"].as_str().unwrap()));
    let table = table.to_str().unwrap();
    let (blocks, all) = (json(&["table", table, "--blocks"]), &json(&["table", table])[0]);
    assert!(blocks.len() > 3, "{blocks:?}");
    let (mut at, mut raw, mut entries, mut up_to) = (0, 0, 0, String::new());
    for (n, block) in blocks.iter().enumerate() {
        assert_eq!((&block["number"], &block["offset"]), (&n.into(), &at.into()));
        let count = |field: &str| block[field].as_u64().unwrap();
        (at, raw, entries) = (at + count("bytes"), raw + count("raw_bytes"), entries + count("entries"));
        assert!(block["codec"] == "lz4" || block["codec"] == "raw", "{block}");
        let separator = block["separator"].as_str().unwrap();
        assert!(separator.starts_with("user:") && separator > up_to.as_str(), "{separator} after {up_to}");
        up_to = separator.to_owned();
    }
    assert_eq!((&all["sections"][0]["name"], &all["sections"][0]["bytes"]), (&"data".into(), &at.into()));
    assert_eq!((&all["entries"], &all["data_blocks"]), (&entries.into(), &blocks.len().into()));
    assert_eq!(all["raw_bytes"], raw);
    // A damaged one is said on the side, and the others are printed all the same.
    flip(Path::new(table), blocks[1]["offset"].as_u64().unwrap() + 20);
    let o = inspect(&["table", table, "--blocks", "-o", "json"]);
    assert_eq!((o.status.code(), String::from_utf8(o.stdout).unwrap().lines().count()), (Some(1), blocks.len() - 1));
    assert!(String::from_utf8_lossy(&o.stderr).contains("1 blocks are damaged"));
}

#[test]
fn entries_of_one_keyspace_are_listed_alone() {
    let home = home();
    let mut batch = Batch::new();
    for (space, key) in [(0, "own"), (0, "user/00"), (1, "user/00"), (9, "other")] {
        batch.put_with(Keyspace(space), key.as_bytes(), &Plain::plain(b"of each")).unwrap();
    }
    batch.delete_in(Keyspace::SYSTEM, b"gone").unwrap();
    batch.delete_range_in(Keyspace::SYSTEM, b"a", b"b").unwrap();
    let lsn = home.store.write(&batch, &[], Durability::Synced).unwrap().position.lsn.0;
    says(
        &["log", home.data(), "--from", "42"],
        0,
        &["put  9  other", "delete  system  gone", "delete range  system  a to b"],
    );
    home.store.tree().flush_all().unwrap();
    let listed = &json(&["table", home.data()])[0]["tables"];
    let of_all = listed.as_array().unwrap().iter().find(|t| t["max_lsn"] == lsn).unwrap();
    assert_eq!((&of_all["min_key"], &of_all["max_key"]), (&"system:own".into(), &"9:other".into()));
    let table = home.data.join("tables").join(format!("{}.table", of_all["id"].as_str().unwrap()));
    let table = table.to_str().unwrap();
    says(&["table", table], 0, &["range delete: system:a to system:b below LSN"]);
    let entries = |more: &[&str]| -> Vec<(String, String)> {
        let o = inspect(&[&["table", table, "--entries", "-o", "json"], more].concat());
        assert_eq!(o.status.code(), Some(0), "{more:?}: {}", text(&o));
        let lines = String::from_utf8(o.stdout).unwrap();
        let lines = lines.lines().map(|l| serde_json::from_str::<Value>(l).unwrap());
        lines.map(|l| (l["keyspace"].as_str().unwrap().to_owned(), l["key"].as_str().unwrap().to_owned())).collect()
    };
    let line = |space: &str, key: &str| (space.to_owned(), key.to_owned());
    // The delete hid nothing, so the flush left it out.
    let system = [line("system", "own"), line("system", "user/00")];
    let users = [line("user", "late"), line("user", "user/00")];
    let other = [line("9", "other")];
    assert_eq!(entries(&[]), [&system[..], &users, &other].concat());
    assert_eq!(entries(&["--keyspace", "0"]), system);
    assert_eq!(entries(&["--keyspace", "1"]), users);
    assert_eq!(entries(&["--keyspace", "9"]), other);
    assert_eq!(entries(&["--keyspace", "7"]), []);
    assert_eq!(entries(&["--keyspace", "0", "--start", "own", "--end", "user"]), system[..1]);
    assert_eq!(entries(&["--start", "m"]), users[1..], "with a bound and no keyspace: the users'");
    says(&["table", table, "--entries", "--keyspace", "0"], 0, &["system\town\t42\tput\tof each"]);
    says(&["table", table, "--keyspace", "0"], 2, &["--entries"]);
    says(&["table", table, "--entries", "--keyspace", "256"], 2, &["--keyspace"]);
}

#[test]
fn damage_is_named_with_file_and_place_and_ends_with_a_negative_verdict() {
    let home = home();
    home.store.close().unwrap();
    let (segment, table) = (home.only("log", "log"), home.only("tables", "table"));
    let (manifest, cut) = (home.only("manifest", "manifest"), home.only("diverged", "records"));
    for (part, path, offset, place) in [
        ("log", &segment, 4096 + 60, "offset 4096 (LSN 1)"),
        ("table", &table, 60, "offset 0"),
        ("manifest", &manifest, 30, "offset 24"),
        ("log", &cut, 90, "offset 0 (LSN 42)"),
        ("manifest", &home.data.join("IDENTITY"), 20, "offset 0"),
        ("log", &home.data.join("EVIDENCE"), 20, "offset 0"),
    ] {
        flip(path, offset);
        let name = path.to_str().unwrap();
        says(&[part, home.data(), "--verify"], 4, &[&format!("damage: {name} at {place}"), "damaged: in 1 place"]);
        let verdict = &json(&[part, home.data(), "--verify"])[0];
        assert_eq!((&verdict["ok"], &verdict["damage"][0]["file"]), (&false.into(), &name.into()));
        flip(path, offset);
        says(&[part, home.data(), "--verify"], 0, &["ok:"]);
    }
    flip(&segment, 4096 + 60);
    // The file alone: later frames say that the first record was durable.
    says(&["log", segment.to_str().unwrap(), "--verify"], 4, &["was durable"]);
    says(&["log", home.data(), "--records"], 1, &["corruption in", "0000000000000001.log at offset 4096"]);
    std::fs::remove_file(&table).unwrap();
    says(&["table", home.data(), "--verify"], 4, &["the table file is missing"]);
    says(&["manifest", home.data(), "--verify"], 4, &["the table file is missing"]);
}

#[test]
fn a_torn_tail_is_told_from_damage() {
    let home = home();
    let segment = home.only("log", "log");
    let mut end = 0;
    for line in json(&["log", home.data(), "--records"]) {
        end = line["offset"].as_u64().unwrap();
    }
    // Nothing says yet that the newest record is durable.
    flip(&segment, end + 60);
    let note = format!("torn tail, or a write in progress: {} at offset {end} (LSN 41)", segment.display());
    says(&["log", home.data(), "--verify"], 0, &[&note, "ok:"]);
    flip(&segment, end + 60);
    home.store.close().unwrap();
    flip(&segment, end + 60);
    says(&["log", home.data(), "--verify"], 4, &[&format!("offset {end} (LSN 41)"), "was durable"]);
}

#[test]
fn what_is_not_there_is_not_found_and_nonsense_is_usage() {
    let home = home();
    let empty = tempfile::tempdir().unwrap();
    for part in ["log", "table", "manifest"] {
        says(&[part, "/nonexistent/data"], 5, &["does not exist", "next:"]);
        says(&[part, empty.path().to_str().unwrap()], 5, &["has no folder"]);
    }
    says(&["log", home.checkpoint.to_str().unwrap()], 5, &["has no folder `log`"]);
    says(&["log", home.data(), "--from", "9", "--to", "3"], 2, &["--from 9 is above --to 3"]);
    says(&["log", home.data(), "--verify", "--records"], 2, &["cannot be used with"]);
    says(&["table", home.data(), "--entries"], 2, &["name its file"]);
    let segment = home.only("log", "log");
    says(&["table", segment.to_str().unwrap()], 1, &["not a table file"]);
}
