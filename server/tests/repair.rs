//! The repair of a damaged table as an operator does it: a byte flipped on the disk of a running node is met by a read,
//! named by `status` and `scrub`, and mended by `repair`, or, where nobody has the same table, by seeding the node anew.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "a test fails by panicking and observes real processes"
)]

mod support;

use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mainstay_client::{Client, Condition, ErrorClass, Write};
use mainstay_engine::fs::Fs;
use mainstay_engine::fs::os::OsFs;
use mainstay_engine::inspect::TableView;
use serde_json::Value;
use support::{
    Cluster, Node, PATIENCE, Scratch, assert_same, check_refusal, json, mainstay, read_jsonl, sample, succeed,
    write_jsonl,
};

/// A table with a flipped byte, and what it takes to notice and to mend it.
struct Hurt {
    id: String,
    path: PathBuf,
    /// The damaged block.
    offset: u64,
    /// A key in that block, and one of the same table in another block.
    inside: String,
    outside: String,
    /// What the file was.
    good: Vec<u8>,
}

fn flip(path: &Path, offset: u64) {
    let file = std::fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 4], offset).unwrap();
}

/// The names of a node's tables.
fn tables(data: &Path) -> Vec<String> {
    let names = std::fs::read_dir(data.join("tables")).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.filter(|n| n.ends_with(".table")).collect();
    names.sort();
    names
}

/// Waits until merges have nothing more to do: the tables are the same for a while.
fn settle(data: &Path) {
    let (end, mut since, mut before) = (Instant::now() + PATIENCE, Instant::now(), tables(data));
    while since.elapsed() < Duration::from_secs(1) {
        assert!(Instant::now() < end, "merges do not come to an end");
        std::thread::sleep(Duration::from_millis(20));
        let now = tables(data);
        if now != before {
            (since, before) = (Instant::now(), now);
        }
    }
}

/// Flips a byte in the middle block of the node's largest table.
fn hurt(data: &Path) -> Hurt {
    settle(data);
    let listed = json(&["inspect", "table", data.to_str().unwrap()], &[0]);
    let rows = listed["tables"].as_array().unwrap().iter().filter(|t| !t["level"].is_null());
    let row = rows.max_by_key(|t| t["entries"].as_u64()).unwrap();
    let id = row["id"].as_str().unwrap().to_owned();
    let path = data.join("tables").join(format!("{id}.table"));
    let fs: Arc<dyn Fs> = Arc::new(OsFs::new());
    let view = TableView::open(&fs, &path).unwrap();
    let blocks: Vec<_> = view.blocks().unwrap().map(Result::unwrap).collect();
    assert!(blocks.len() >= 3, "{} blocks", blocks.len());
    let middle = blocks.len() / 2;
    let skip: u64 = blocks[..middle].iter().map(|b| b.entries).sum();
    let mut entries = view.entries(None);
    let (mut inside, mut outside) = (None, None);
    for n in 0..=skip {
        let key = String::from_utf8(entries.next().unwrap().unwrap().key.to_vec()).unwrap();
        if n == 0 {
            outside = Some(key.clone());
        }
        inside = Some(key);
    }
    let (offset, good) = (blocks[middle].offset, std::fs::read(&path).unwrap());
    flip(&path, offset + 30);
    Hurt { id, path, offset, inside: inside.unwrap(), outside: outside.unwrap(), good }
}

/// The one node in a report of `scrub` or `repair`.
fn only(report: &Value) -> &Value {
    assert_eq!(report["schema"], 1, "{report}");
    assert_eq!(report["nodes"].as_array().unwrap().len(), 1, "{report}");
    &report["nodes"][0]
}

/// Waits until `status` knows of the damage that a read met, or of none.
fn until_status(endpoint: &str, damaged: u64) -> Value {
    let end = Instant::now() + PATIENCE;
    loop {
        let status = json(&["status", "--endpoints", endpoint], &[0, 3]);
        if status["nodes"][0]["damaged_files"] == damaged {
            return status;
        }
        assert!(Instant::now() < end, "{status}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The read that needs the place fails and names it, another of the same table does not.
fn is_met(endpoint: &str, h: &Hurt, stale: &[&str]) {
    let get = |key: &str| mainstay(&[&["get", key, "--endpoints", endpoint], stale].concat());
    let place = format!("{} at offset {}", h.path.display(), h.offset);
    check_refusal(&get(&h.inside), "a read of the damaged block", 1, &[&place, "next: `mainstay repair`"]);
    let other = get(&h.outside);
    assert!(other.status.success(), "{}", String::from_utf8_lossy(&other.stderr));
    let status = until_status(endpoint, 1);
    let said = status["attention"].to_string();
    assert!(said.contains(&place) && said.contains("mainstay repair"), "{said}");
}

fn export(endpoint: &str, stale: &[&str]) -> BTreeMap<String, String> {
    read_jsonl(&succeed(&[&["export", "--endpoints", endpoint], stale].concat()))
}

/// One node with a repository: damaged, named, mended out of the base backup.
fn mend_from_the_repository(scratch: &Scratch, input: &Path, records: &BTreeMap<String, String>) {
    let bucket = scratch.bucket();
    let mut node = Node::new(scratch, 1, &["--repository", &bucket]);
    node.start();
    let at = node.client.clone();
    let data = node.data.clone();
    succeed(&["import", input.to_str().unwrap(), "--endpoints", &at]);
    succeed(&["backup", "create", "--endpoints", &at]);
    settle(&data);
    // Merges behind the first base made other tables of its tables.
    succeed(&["backup", "create", "--endpoints", &at]);
    let whole = json(&["scrub", "--endpoints", &at], &[0]);
    assert!(whole["ok"] == true && only(&whole)["read"]["files"].as_u64() > Some(0), "{whole}");
    let nothing = json(&["repair", "--endpoints", &at], &[0]);
    assert_eq!((&nothing["ok"], only(&nothing)["tables"].as_array().unwrap().len()), (&true.into(), 0));

    let h = hurt(&data);
    is_met(&at, &h, &[]);
    let found = json(&["scrub", "--endpoints", &at, "--rate", "0"], &[4]);
    let table = &only(&found)["tables"][0];
    assert_eq!((&found["ok"], &table["id"]), (&false.into(), &h.id.as_str().into()), "{found}");
    let (first, last) = (table["keys"]["first"].as_str().unwrap(), table["keys"]["last"].as_str().unwrap());
    assert!((first..=last).contains(&h.inside.as_str()), "{found}");
    json(&["repair", "--endpoints", &at, "--dry-run"], &[4]);
    assert_ne!(std::fs::read(&h.path).unwrap(), h.good, "a dry run changed something");

    let done = json(&["repair", "--endpoints", &at], &[0]);
    assert_eq!((&done["ok"], &only(&done)["tables"][0]["id"]), (&true.into(), &h.id.as_str().into()), "{done}");
    assert!(only(&done)["tables"][0]["repaired_from"].as_str().unwrap().starts_with("file://"), "{done}");
    assert_eq!(std::fs::read(&h.path).unwrap(), h.good);
    assert!(mainstay(&["get", &h.inside, "--endpoints", &at]).status.success());
    assert_same(records, &export(&at, &[]));
    let status = until_status(&at, 0);
    assert_eq!(status["attention"].as_array().unwrap().len(), 0, "{status}");
    json(&["scrub", "--endpoints", &at], &[0]);
    node.stop();
    let left: Vec<_> = std::fs::read_dir(data.join("seeds")).map_or(vec![], Iterator::collect);
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_damaged_table_of_a_running_node_is_mended_out_of_its_repository() {
    let scratch = Scratch::new();
    let (path, records) = (scratch.join("sample.jsonl"), sample(3000));
    write_jsonl(&path, &records);
    mend_from_the_repository(&scratch, &path, &records);
}

/// The same with the full package index, see `end_to_end.rs`.
#[test]
fn a_damaged_table_of_the_package_index_is_mended_out_of_its_repository() {
    let Some(path) = std::env::var_os("MAINSTAY_DEBIAN_DATA").map(PathBuf::from).filter(|p| p.exists()) else {
        assert!(
            std::env::var_os("MAINSTAY_REQUIRE_DATA").is_none(),
            "MAINSTAY_DEBIAN_DATA must name the package index"
        );
        println!("absent: set MAINSTAY_DEBIAN_DATA to the package index (JSON lines, zstd) to run this test");
        return;
    };
    let text = zstd::decode_all(std::fs::File::open(&path).unwrap()).unwrap();
    let records = read_jsonl(std::str::from_utf8(&text).unwrap());
    mend_from_the_repository(&Scratch::new(), &path, &records);
}

/// One node without a repository, whose only good copy is a file: all others are refused, and nothing is changed.
/// As after a bad sector: the disk does not give bytes that it had. The read has failed and changed nothing, a condition
/// that needs the place is refused, and the rest goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_disk_does_not_give_is_a_failed_read_that_names_the_file() {
    let scratch = Scratch::new();
    let path = scratch.join("sample.jsonl");
    write_jsonl(&path, &sample(3000));
    let config = scratch.join("small.toml");
    std::fs::write(&config, "[storage]\nmemtable_bytes = 65536\n").unwrap();
    let mut node = Node::new(&scratch, 1, &["--config", config.to_str().unwrap()]);
    node.start();
    let at = node.client.clone();
    succeed(&["import", path.to_str().unwrap(), "--endpoints", &at]);
    let h = hurt(&node.data);
    flip(&h.path, h.offset + 30);
    std::fs::OpenOptions::new().write(true).open(&h.path).unwrap().set_len(h.offset).unwrap();
    let name = h.path.to_str().unwrap();
    let read = mainstay(&["get", &h.inside, "--endpoints", &at]);
    check_refusal(&read, "a read that the disk fails", 1, &["cannot read", name, "mainstay repair"]);
    let client = Client::connect([at.clone()]).unwrap();
    let got = client.get(h.inside.as_bytes()).await.unwrap_err();
    let put = Write::new().put(h.inside.as_bytes(), "value").condition(Condition::absent(h.inside.as_bytes()));
    let put = client.write(put).await.unwrap_err();
    for e in [got, put] {
        assert_eq!((e.code(), e.class()), ("READ_FAILED", ErrorClass::NotExecuted), "{e}");
        assert!(!e.to_string().contains("gave up"), "tried again in vain: {e}");
    }
    let status = until_status(&at, 1);
    assert!(status["attention"].to_string().contains(name), "{status}");
    let good = scratch.join("good");
    std::fs::write(&good, &h.good).unwrap();
    json(&["repair", "--endpoints", &at, "--from", good.to_str().unwrap()], &[0]);
    succeed(&["get", &h.inside, "--endpoints", &at]);
}

#[test]
fn without_a_repository_a_file_mends_and_what_is_no_good_copy_is_refused() {
    let scratch = Scratch::new();
    let (path, records) = (scratch.join("sample.jsonl"), sample(3000));
    write_jsonl(&path, &records);
    let config = scratch.join("small.toml");
    std::fs::write(&config, "[storage]\nmemtable_bytes = 65536\n").unwrap();
    let mut node = Node::new(&scratch, 1, &["--config", config.to_str().unwrap()]);
    node.start();
    let at = node.client.clone();
    succeed(&["import", path.to_str().unwrap(), "--endpoints", &at]);
    let h = hurt(&node.data);
    is_met(&at, &h, &[]);
    let damaged = std::fs::read(&h.path).unwrap();

    let none = mainstay(&["repair", "--endpoints", &at]);
    let says = ["still damaged: 1 tables", "no replicas and no base backup", "--from", "can be read (before "];
    check_refusal(&none, "nobody has a copy", 1, &says);
    assert!(String::from_utf8_lossy(&none.stdout).contains("no repository is configured"), "{none:?}");
    let (good, bad, cut) = (scratch.join("good.table"), scratch.join("bad.table"), scratch.join("cut.table"));
    std::fs::write(&good, &h.good).unwrap();
    std::fs::write(&bad, &h.good).unwrap();
    flip(&bad, h.offset + 31);
    std::fs::write(&cut, &h.good[..h.good.len() - 1]).unwrap();
    let from = |file: &Path, more: &[&str]| {
        mainstay(&[&["repair", "--endpoints", &at, "--from", file.to_str().unwrap()], more].concat())
    };
    let refused = from(&bad, &[]);
    check_refusal(&refused, "a damaged copy", 1, &["still damaged"]);
    assert!(String::from_utf8_lossy(&refused.stdout).contains("is not good"), "{refused:?}");
    check_refusal(&from(&cut, &[]), "a cut copy", 1, &["is no good copy of a table", "mainstay inspect"]);
    check_refusal(&from(&path, &[]), "another kind of file", 1, &["is no good copy of a table"]);
    check_refusal(&from(&scratch.join("absent"), &[]), "no file", 1, &["absent"]);
    check_refusal(&from(&good, &["--table", &"0".repeat(32)]), "another table's", 2, &["is a copy of table"]);
    let strange = ["repair", "--endpoints", &at, "--table", "00000000000000000000000000000007"];
    check_refusal(&mainstay(&strange), "a table that is not damaged", 5, &["mainstay scrub"]);
    assert_eq!(std::fs::read(&h.path).unwrap(), damaged, "a repair that was refused changed the table");

    let done = from(&good, &[]);
    assert!(done.status.success(), "{done:?}");
    assert_same(&records, &export(&at, &[]));
    until_status(&at, 0);
}

/// A file that does not open is not damaged, and nobody has seen that it is whole.
#[test]
fn a_scrub_that_could_not_read_a_file_names_it_and_does_not_end_well() {
    let scratch = Scratch::new();
    let (path, records) = (scratch.join("sample.jsonl"), sample(3000));
    write_jsonl(&path, &records);
    let config = scratch.join("small.toml");
    std::fs::write(&config, "[storage]\nmemtable_bytes = 65536\n").unwrap();
    let mut node = Node::new(&scratch, 1, &["--config", config.to_str().unwrap()]);
    node.start();
    let at = node.client.clone();
    succeed(&["import", path.to_str().unwrap(), "--endpoints", &at]);
    settle(&node.data);
    let table = node.data.join("tables").join(&tables(&node.data)[0]);
    let away = scratch.join("away");
    std::fs::rename(&table, &away).unwrap();
    // A link to itself: whoever opens it is refused, root too.
    std::os::unix::fs::symlink(&table, &table).unwrap();
    let name = table.to_str().unwrap();
    let unread = mainstay(&["scrub", "--endpoints", &at, "--rate", "0"]);
    check_refusal(&unread, "a file that does not open", 1, &["that could not be read: 1", name, "next: "]);
    assert!(String::from_utf8_lossy(&unread.stdout).contains(name), "{unread:?}");
    let report = json(&["scrub", "--endpoints", &at, "--rate", "0"], &[1]);
    assert_eq!((&report["ok"], only(&report)["tables"].as_array().unwrap().len()), (&false.into(), 0), "{report}");
    let named = only(&report)["read"]["unread"].as_array().unwrap();
    assert!(named.len() == 1 && named[0].as_str().unwrap().contains(name), "{report}");
    // Damage counts more, and does not hide it.
    let other = node.data.join("tables").join(&tables(&node.data)[1]);
    flip(&other, 40);
    let both = json(&["scrub", "--endpoints", &at, "--rate", "0"], &[4]);
    assert_eq!(only(&both)["read"]["unread"].as_array().unwrap().len(), 1, "{both}");
    flip(&other, 40);
    std::fs::remove_file(&table).unwrap();
    std::fs::rename(&away, &table).unwrap();
    json(&["scrub", "--endpoints", &at, "--rate", "0"], &[0]);
}

#[test]
fn a_node_that_does_not_start_is_mended_where_it_stands() {
    let scratch = Scratch::new();
    let (path, records) = (scratch.join("sample.jsonl"), sample(2000));
    write_jsonl(&path, &records);
    let bucket = scratch.bucket();
    let mut node = Node::new(&scratch, 1, &["--repository", &bucket]);
    node.start();
    let (at, data) = (node.client.clone(), node.data.to_str().unwrap().to_owned());
    succeed(&["import", path.to_str().unwrap(), "--endpoints", &at]);
    settle(&node.data);
    succeed(&["backup", "create", "--endpoints", &at]);
    let h = hurt(&node.data);
    // In the footer: no start without it.
    flip(&h.path, h.good.len() as u64 - 20);
    // The base backup left an empty one.
    let seeds = node.data.join("seeds");
    std::fs::remove_dir(&seeds).unwrap();
    let running = mainstay(&["repair", "--data", &data, "--repository", &bucket]);
    check_refusal(&running, "a directory in use", 1, &["in use", "repair --node"]);
    assert!(!seeds.exists(), "a repair that was refused wrote to a running node's directory");
    node.kill();
    let refused = node.command().output().unwrap();
    check_refusal(&refused, "a start", 1, &["corruption in", h.path.to_str().unwrap()]);
    json(&["repair", "--data", &data, "--dry-run"], &[4]);
    let without = mainstay(&["repair", "--data", &data]);
    check_refusal(&without, "nobody has a copy", 1, &["still damaged: 1 tables", "seeded", "restore"]);
    check_refusal(&mainstay(&["repair", "--data", "/nonexistent"]), "no directory", 5, &["no data directory"]);
    let strange = ["repair", "--data", &data, "--table", "00000000000000000000000000000007"];
    check_refusal(&mainstay(&strange), "a table that is not damaged", 5, &["--dry-run"]);
    let done = json(&["repair", "--data", &data, "--repository", &bucket], &[0]);
    assert_eq!(only(&done)["tables"][0]["id"], h.id.as_str(), "{done}");
    node.start();
    assert_same(&records, &export(&at, &[]));
    // A file that is gone is damage, too.
    node.kill();
    std::fs::remove_file(&h.path).unwrap();
    json(&["repair", "--data", &data, "--repository", &bucket], &[0]);
    node.start();
    assert_same(&records, &export(&at, &[]));
}

/// Three nodes without a repository, with what was written to them.
struct Three {
    cluster: Cluster,
    all: String,
    addr: [String; 3],
    records: BTreeMap<String, String>,
}

impl Three {
    fn start(scratch: &Scratch) -> Self {
        let (path, records) = (scratch.join("sample.jsonl"), sample(3000));
        write_jsonl(&path, &records);
        let config = scratch.join("small.toml");
        std::fs::write(&config, "[storage]\nmemtable_bytes = 65536\n").unwrap();
        let mut cluster = Cluster::new(scratch, 3, "quorum", &["--config", config.to_str().unwrap()]);
        cluster.start();
        let all = cluster.endpoint_list();
        let addr = [1, 2, 3].map(|id| cluster.node(id).client.clone());
        succeed(&["import", path.to_str().unwrap(), "--endpoints", &all]);
        Self { cluster, all, addr, records }
    }

    fn put(&mut self, key: &str, value: &str) {
        succeed(&["put", key, value, "--endpoints", &self.all]);
        self.records.insert(key.to_owned(), value.to_owned());
    }

    fn data(&mut self, id: u64) -> PathBuf {
        self.cluster.node(id).data.clone()
    }

    /// A verb with `--node`, as JSON.
    fn json(&self, verb: &[&str], node: &str, codes: &[i32]) -> Value {
        json(&[verb, &["--node", node, "--endpoints", &self.all]].concat(), codes)
    }

    fn run(&self, verb: &[&str], node: &str) -> Output {
        mainstay(&[verb, &["--node", node, "--endpoints", &self.all]].concat())
    }

    /// Everything is whole at every node.
    fn is_whole(&self) {
        caught_up(&self.all);
        for node in &self.addr {
            until_status(node, 0);
            self.json(&["scrub"], node, &[0]);
            assert_same(&self.records, &export(node, &["--stale"]));
        }
        assert_same(&self.records, &export(&self.all, &[]));
        json(&["status", "--endpoints", &self.all], &[0]);
    }
}

/// Directories of data that was set aside.
fn set_aside(data: &Path) -> usize {
    let names = std::fs::read_dir(data).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    names.filter(|n| n.starts_with("replaced-")).count()
}

/// Nobody has the same table as the damaged one of the replica: it is seeded anew. Its tables are the primary's then,
/// so the next damage is mended from there.
#[test]
fn a_damaged_replica_is_seeded_anew_and_nothing_is_lost() {
    let scratch = Scratch::new();
    let mut three = Three::start(&scratch);
    let [_, two, node] = three.addr.clone();
    let (data, primary) = (three.data(3), three.data(1));
    let h = hurt(&data);
    is_met(&node, &h, &["--stale"]);
    let elsewhere = mainstay(&["get", &h.inside, "--stale", "--endpoints", &two]);
    assert!(elsewhere.status.success(), "another node has the key whole: {elsewhere:?}");
    let none = three.run(&["repair"], &node);
    let reseed = format!("mainstay cluster reseed --node {node}");
    check_refusal(&none, "nobody has the same table", 1, &["still damaged: 1 tables", &reseed, "nothing is lost"]);
    let said = String::from_utf8_lossy(&none.stdout).into_owned();
    assert!(said.contains("node 1: ") && said.contains("has no such table"), "{said}");
    let unasked = three.run(&["cluster", "reseed"], &node);
    check_refusal(&unasked, "without a yes", 2, &["--yes"]);
    assert_eq!(set_aside(&data), 0);
    three.put("zz/before", "the reseed");
    let done = three.json(&["cluster", "reseed", "--yes"], &node, &[0]);
    assert_eq!((&done["done"], &done["node"], &done["primary"]), (&true.into(), &3.into(), &1.into()), "{done}");
    assert_eq!(set_aside(&data), 1, "what was there is kept");
    three.put("zz/after", "the reseed");
    three.is_whole();

    let h = hurt(&data);
    let shared = tables(&primary).contains(&format!("{}.table", h.id));
    three.json(&["scrub"], &node, &[4]);
    assert!(shared, "no merge is due, so the seed has the primary's tables");
    let done = three.json(&["repair"], &node, &[0]);
    assert_eq!(only(&done)["tables"][0]["repaired_from"], "node 1", "{done}");
    assert_eq!(std::fs::read(&h.path).unwrap(), h.good);
    three.is_whole();
}

/// The primary is damaged: it cannot be seeded, nor seed others. Another one is promoted, and seeds it.
#[test]
fn a_damaged_primary_hands_over_and_is_seeded_anew_and_nothing_is_lost() {
    let scratch = Scratch::new();
    let mut three = Three::start(&scratch);
    let [one, two, third] = three.addr.clone();
    let data = three.data(1);
    let h = hurt(&data);
    is_met(&one, &h, &[]);
    let none = three.run(&["repair"], &one);
    check_refusal(&none, "nobody has the same table", 1, &["is the primary", "cluster promote", "cluster reseed"]);
    let primary = three.run(&["cluster", "reseed", "--yes"], &one);
    check_refusal(&primary, "the primary", 1, &["is the primary", "mainstay cluster promote"]);
    let from_damaged = three.run(&["cluster", "reseed", "--yes"], &third);
    check_refusal(&from_damaged, "a seed of a damaged primary", 1, &["has damaged tables itself", &h.id]);
    // The nodes themselves see to it as well.
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let by_itself = runtime.block_on(async { Client::connect([third.clone()]).unwrap().reseed(&third, false).await });
    let why = by_itself.unwrap_err().to_string();
    assert!(why.contains(&format!("its table {} is damaged", h.id)), "{why}");
    three.put("zz/before", "the promotion");
    caught_up(&three.all);
    succeed(&["cluster", "promote", "--node", &two, "--endpoints", &three.all]);
    follows(&one, &three.all);
    assert_eq!(set_aside(&data), 0);
    three.json(&["cluster", "reseed", "--yes"], &one, &[0]);
    assert_eq!(set_aside(&data), 1);
    three.put("zz/last", "after the reseed");
    three.is_whole();
}

/// A primary that does not know of its damage: the seed says whose disk it is, and another primary can give one.
#[test]
fn a_seed_that_meets_damage_at_the_primary_says_so_and_another_primary_gives_one() {
    let scratch = Scratch::new();
    let mut three = Three::start(&scratch);
    let [one, two, third] = three.addr.clone();
    let (primary, replica) = (three.data(1), three.data(3));
    settle(&replica);
    let h = hurt(&primary);
    let waits = three.json(&["cluster", "reseed", "--yes", "--wait", "5s"], &third, &[3]);
    assert_eq!((&waits["done"], set_aside(&replica)), (&false.into(), 1), "{waits}");
    let trouble = waits["trouble"].as_str().unwrap();
    assert!(trouble.contains("seeding from node 1") && trouble.contains(h.path.to_str().unwrap()), "{trouble}");
    until_status(&one, 1);
    succeed(&["cluster", "promote", "--node", &two, "--endpoints", &three.all]);
    caught_up(&three.all);
    follows(&one, &three.all);
    three.json(&["cluster", "reseed", "--yes"], &one, &[0]);
    three.put("zz/last", "after the reseeds");
    three.is_whole();
}

/// A primary never gives its data up, nor does a replica that nobody could seed, whoever asks.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn data_that_nobody_else_could_give_back_is_not_given_up() {
    let scratch = Scratch::new();
    let mut cluster = Cluster::new(&scratch, 3, "quorum", &[]);
    cluster.start();
    let all = Client::connect(cluster.endpoints()).unwrap();
    let [one, two, three] = [1, 2, 3].map(|id| cluster.node(id).client.clone());
    all.put(b"k", b"v").await.unwrap();
    caught_up(&cluster.endpoint_list());
    let refused = all.reseed(&one, false).await.unwrap_err();
    assert_eq!((refused.code(), refused.class()), ("NOT_RESEEDED", ErrorClass::NotExecuted));
    assert!(refused.to_string().contains("promote another one first"), "{refused}");
    // Silent, and nobody has noticed yet: its word is asked for, now.
    cluster.node(1).signal("-STOP");
    let refused = all.reseed(&three, false).await.unwrap_err();
    assert_eq!((refused.code(), refused.class()), ("NOT_RESEEDED", ErrorClass::NotExecuted), "{refused}");
    cluster.node(1).kill();
    for replica in [&two, &three] {
        let refused = all.reseed(replica, false).await.unwrap_err();
        assert_eq!(refused.code(), "NOT_RESEEDED", "{refused}");
        let verb = mainstay(&["cluster", "reseed", "--node", replica, "--yes"]);
        check_refusal(&verb, "nobody could seed it", 1, &["does not answer", "mainstay cluster promote"]);
    }
    let lone = Client::connect([two.clone()]).unwrap();
    assert_eq!(lone.get_stale(b"k").await.unwrap().unwrap().value, b"v");
    for id in [1, 2, 3] {
        let names = std::fs::read_dir(&cluster.node(id).data).unwrap().map(|e| e.unwrap().file_name());
        assert!(names.into_iter().all(|n| !n.to_string_lossy().starts_with("replaced-")), "node {id}");
    }
    all.promote(&two, false, &[]).await.unwrap();
    assert_eq!(all.get(b"k").await.unwrap().unwrap().value, b"v");
}

/// Waits until every node has applied what is committed at the primary.
fn caught_up(endpoints: &str) {
    let end = Instant::now() + PATIENCE;
    loop {
        let status = json(&["status", "--endpoints", endpoints], &[0, 3]);
        let nodes = status["nodes"].as_array().unwrap();
        let committed = nodes.iter().filter(|n| n["role"] == "primary").filter_map(|n| n["commit_lsn"].as_u64()).max();
        if committed.is_some() && nodes.iter().all(|n| n["applied_lsn"].as_u64() == committed) {
            return;
        }
        assert!(Instant::now() < end, "{status}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Waits until the node follows the primary.
fn follows(node: &str, endpoints: &str) {
    let end = Instant::now() + PATIENCE;
    loop {
        let status = json(&["status", "--endpoints", endpoints], &[0, 3]);
        let nodes = status["nodes"].as_array().unwrap();
        let it = nodes.iter().find(|n| n["addr"] == node).unwrap();
        let connected = !status["attention"].to_string().contains("not connected");
        if it["role"] == "replica" && connected {
            return;
        }
        assert!(Instant::now() < end, "{status}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
