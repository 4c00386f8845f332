//! What must be refused, through the binary: the exit code, one sentence that names what and which
//! and what to do, and that nothing changed.
//!
//! `cli.rs` has what needs no server (flags, keys of the configuration), `s3.rs` has buckets. Owns:
//! data directories, disks, limits, damaged logs, restores in the way. Never: a fixed wait.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "a test fails by panicking and observes real processes"
)]

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use mainstay_client::{Client, ErrorClass, Write};
use serde_json::Value;
use support::{BINARY, Cluster, Node, PATIENCE, Scratch, check_refusal, json, mainstay, read_jsonl, succeed, until};

/// Small segments, so that they are made fast and fit a small disk.
const SMALL: [&str; 2] = ["--set", "storage.segment_bytes=21MiB"];

/// Every file below `dir` with its bytes.
fn contents(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut all = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            all.extend(contents(&path));
            all.insert(path, Vec::new());
        } else {
            let bytes = fs::read(&path).unwrap();
            all.insert(path, bytes);
        }
    }
    all
}

/// Asserts that two snapshots agree, but for the number of the node's life; never prints contents.
fn assert_unchanged(before: &BTreeMap<PathBuf, Vec<u8>>, dir: &Path, what: &str) {
    let (mut before, mut after) = (before.clone(), contents(dir));
    for all in [&mut before, &mut after] {
        all.remove(&dir.join("PROMISE"));
    }
    let names = |all: &BTreeMap<PathBuf, Vec<u8>>| all.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&before), names(&after), "{what}");
    let differ: Vec<_> = before.iter().filter(|(path, bytes)| after[*path] != **bytes).map(|(path, _)| path).collect();
    assert!(differ.is_empty(), "{what} changed {differ:?}");
}

/// A server on `node`'s directory must end with 1 and say this.
fn refused(node: &Node, what: &str, says: &[&str]) {
    let mut server = node.command().stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let end = Instant::now() + PATIENCE;
    while server.try_wait().unwrap().is_none() {
        if Instant::now() > end {
            server.kill().unwrap();
            panic!("{what} was not refused: the server ran on");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    check_refusal(&server.wait_with_output().unwrap(), what, 1, says);
}

fn started(scratch: &Scratch, args: &[&str]) -> Node {
    let mut node = Node::new(scratch, 1, args);
    node.start();
    node
}

fn put(node: &Node, key: &str, value: &str) -> u64 {
    json(&["put", key, value, "--endpoints", &node.client], &[0])["lsn"].as_u64().unwrap()
}

fn get(node: &Node, key: &str) -> String {
    succeed(&["get", key, "--endpoints", &node.client])
}

fn commit_lsn(node: &Node) -> u64 {
    json(&["status", "--endpoints", &node.client], &[0])["nodes"][0]["commit_lsn"].as_u64().unwrap()
}

#[test]
fn a_data_directory_that_is_none_is_refused() {
    let scratch = Scratch::new();
    let mut node = Node::new(&scratch, 1, &SMALL);
    let file = scratch.join("file");
    fs::write(&file, "precious").unwrap();
    node.data.clone_from(&file);
    refused(&node, "a file", &["error: the data directory", file.to_str().unwrap(), "not a directory", "--data"]);
    node.data = file.join("below");
    refused(&node, "below a file", &[file.to_str().unwrap(), "not a directory", "--data"]);
    assert_eq!(fs::read(&file).unwrap(), b"precious");

    // A store is made of `log`, `tables` and `manifest`; other people's directories have such names, too.
    node.data = scratch.join("var");
    fs::create_dir_all(node.data.join("log")).unwrap();
    fs::write(node.data.join("log/syslog"), "precious").unwrap();
    let before = contents(&node.data);
    refused(&node, "somebody's directory", &["is not a Mainstay data directory", "\"log\"", "--data"]);
    assert_unchanged(&before, &node.data, "a refusal");

    node.data = scratch.join("odd");
    fs::create_dir_all(node.data.join("IDENTITY")).unwrap();
    refused(&node, "a directory for a file", &["cannot read", "IDENTITY"]);
    assert_eq!(contents(&node.data).len(), 1);
}

#[test]
fn a_data_directory_that_cannot_be_read_or_written_is_refused() {
    let scratch = Scratch::new();
    // The scratch directory itself lets everybody through.
    fs::set_permissions(scratch.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let mut node = Node::new(&scratch, 1, &SMALL);
    node.data = scratch.join("closed");
    fs::create_dir(&node.data).unwrap();
    let root = fs::metadata(&node.data).unwrap().uid() == 0;
    for (mode, action) in [(0o500, "read"), (0o555, "write to")] {
        let mode = if root || action == "write to" { mode } else { 0 };
        fs::set_permissions(&node.data, fs::Permissions::from_mode(mode)).unwrap();
        let mut command = node.command();
        if root {
            // Nothing is closed to root: be nobody.
            command.uid(65_534).gid(65_534);
        }
        let out = match command.output() {
            Ok(out) => out,
            Err(e) => return println!("skipped: nobody may not run the binary ({e})"),
        };
        let what = format!("cannot {action} the data directory {}", node.data.display());
        check_refusal(&out, "closed", 1, &[&what, "Permission denied", "the user that owns it", "--data"]);
        fs::set_permissions(&node.data, fs::Permissions::from_mode(0o700)).unwrap();
        assert!(contents(&node.data).is_empty());
    }
}

#[test]
fn a_directory_in_use_is_said_before_the_port_is_and_not_even_its_promise_changes() {
    let scratch = Scratch::new();
    let node = started(&scratch, &SMALL);
    let promise = fs::read(node.data.join("PROMISE")).unwrap();
    let mut elsewhere = Node::new(&scratch, 2, &SMALL);
    elsewhere.data.clone_from(&node.data);
    // Once as it was started, ports and all, and once on other ports.
    for second in [&node, &elsewhere] {
        refused(second, "a second server", &[node.data.to_str().unwrap(), "in use by another process"]);
        assert_eq!(fs::read(node.data.join("PROMISE")).unwrap(), promise);
    }
    put(&node, "a", "the first one lives");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn data_of_another_cluster_is_refused_and_where_it_gets_in_it_deposes_nobody() {
    let scratch = Scratch::new();
    let other = Scratch::new();
    let mut stranger = Node::new(&other, 1, &SMALL);
    // Each start begins an epoch: it comes with a higher one than the cluster's.
    for _ in 0..4 {
        stranger.start();
        put(&stranger, "theirs", "precious");
        stranger.kill();
    }
    let mut cluster = Cluster::new(&scratch, 3, "quorum", &SMALL);
    cluster.start();
    let endpoints = cluster.endpoint_list();
    let lead = async || json(&["status", "--endpoints", &endpoints], &[0, 3]);
    // A node that has joined no cluster yet would join the stranger's.
    let joined = |s: &Value| (0..3).all(|n| s["nodes"][n]["durable_lsn"].as_u64() > Some(0));
    until("all to have joined", lead, joined).await;
    let theirs = cluster_id(&stranger.data);
    for id in [3, 1] {
        cluster.node(id).kill();
        let own = std::mem::replace(&mut cluster.node(id).data, stranger.data.clone());
        let before = contents(&stranger.data);
        let says = ["holds data of cluster", &theirs, "belongs to cluster", stranger.data.to_str().unwrap(), "--data"];
        refused(cluster.node(id), "a stranger", &says);
        assert_unchanged(&before, &stranger.data, "a refusal");
        cluster.node(id).data = own;
        cluster.node(id).start();
    }
    let is_led = |s: &Value| s["nodes"][0]["role"] == "primary" && s["nodes"][2]["role"] == "replica";
    let epoch = until("a primary", lead, is_led).await["nodes"][0]["epoch"].clone();

    // While nobody answers, it cannot know; when they do, they know it.
    cluster.node(3).stop();
    cluster.node(3).data.clone_from(&stranger.data);
    let third = cluster.node(3).client.clone();
    for id in [1, 2] {
        cluster.node(id).signal("-STOP");
    }
    cluster.node(3).start();
    let alone = async || json(&["status", "--endpoints", &third], &[0, 3]);
    until("node 3 to open its data", alone, |s| s["nodes"][0]["durable_lsn"].as_u64() > Some(0)).await;
    for id in [1, 2] {
        cluster.node(id).signal("-CONT");
    }
    let told = until("node 3 to be kept out", lead, |s| s["nodes"][2]["role"] == "quarantined").await;
    let trouble = told["nodes"][2]["trouble"].as_str().unwrap();
    for part in [told["cluster"].as_str().unwrap(), &theirs, "another data directory"] {
        assert!(trouble.contains(part), "{trouble}");
    }
    succeed(&["put", "ours", "1", "--endpoints", &endpoints]);
    let now = json(&["status", "--endpoints", &endpoints], &[3]);
    assert_eq!((&now["nodes"][0]["role"], &now["nodes"][0]["epoch"]), (&Value::from("primary"), &epoch), "{now}");
    cluster.node(3).stop();
    // Alone it still is what it was.
    stranger.start();
    assert_eq!(get(&stranger, "theirs"), "precious");
}

#[test]
fn another_nodes_directory_is_refused_by_a_node_alone() {
    let scratch = Scratch::new();
    let mut seventh = Node::new(&scratch, 7, &SMALL);
    seventh.start();
    seventh.stop();
    let mut first = Node::new(&scratch, 1, &SMALL);
    first.data.clone_from(&seventh.data);
    let before = contents(&first.data);
    refused(
        &first,
        "node 1",
        &[first.data.to_str().unwrap(), "follows node 7", "this is node 1", "--node-id", "--peers"],
    );
    assert_unchanged(&before, &first.data, "a refusal");
}

/// Whose data a directory holds.
fn cluster_id(data: &Path) -> String {
    let id = fs::read(data.join("IDENTITY")).unwrap();
    format!("{:032x}", u128::from_le_bytes(id[16..32].try_into().unwrap()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repository_of_another_cluster_is_refused_and_not_written_to() {
    let scratch = Scratch::new();
    let bucket = scratch.bucket();
    let args = [&SMALL[..], &["--repository", &bucket, "--archive-interval-ms", "50"]].concat();
    let mut owner = started(&scratch, &args);
    put(&owner, "a", "1");
    json(&["backup", "create", "--endpoints", &owner.client], &[0]);
    succeed(&["put", "a", "2", "--ack", "archived", "--endpoints", &owner.client]);
    owner.stop();
    let before = contents(&scratch.join("bucket"));
    let other = Scratch::new();
    let second = started(&other, &args);
    put(&second, "b", "1");
    let (theirs, own) = (cluster_id(&owner.data), cluster_id(&second.data));
    let says = [bucket.as_str(), &theirs, &own, "another prefix"];
    let out = mainstay(&["backup", "create", "--endpoints", &second.client]);
    check_refusal(&out, "backup create", 1, &says);
    let ask = async || json(&["status", "--endpoints", &second.client], &[0, 3]);
    let told = until("status to say so", ask, |s| s["attention"].to_string().contains("belongs to cluster")).await;
    for part in says {
        assert!(told["attention"].to_string().contains(part), "{told}");
    }
    put(&second, "b", "writes go on");
    assert_unchanged(&before, &scratch.join("bucket"), "another cluster's node");
}

/// A program that gives the node a disk of its own at `dir`; none where that is not allowed.
fn own_disk(dir: &Path, size: &str) -> Option<Vec<String>> {
    fs::create_dir(dir).unwrap();
    let script = format!("mount -t tmpfs -o size={size} none \"$0\" && exec \"$@\"");
    let root = fs::metadata(dir).unwrap().uid() == 0;
    let user: &[&str] = if root { &[] } else { &["--user", "--map-root-user"] };
    let words = [&["unshare", "--mount"], user, &["sh", "-c", &script, dir.to_str().unwrap()]].concat();
    let tried = Command::new(words[0]).args(&words[1..]).arg("true").stderr(Stdio::null()).status();
    if !tried.is_ok_and(|s| s.success()) {
        println!("skipped: this machine lets the test mount no small disk");
        assert!(std::env::var_os("MAINSTAY_REQUIRE_MOUNT").is_none(), "MAINSTAY_REQUIRE_MOUNT is set");
        return None;
    }
    Some(words.into_iter().map(str::to_owned).collect())
}

#[test]
fn a_disk_too_small_to_begin_on_is_named() {
    let scratch = Scratch::new();
    let mut node = Node::new(&scratch, 1, &SMALL);
    let Some(under) = own_disk(&node.data, "8m") else { return };
    node.under = under;
    refused(&node, "a full disk", &["disk full", node.data.to_str().unwrap(), "free space"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_fills_up_refuses_writes_whole_and_takes_them_again_when_there_is_room() {
    let scratch = Scratch::new();
    // A memtable larger than the disk: flushed and packed, these values would leave room for ever.
    // A small reserve: behind the ballast there must be room for a segment ahead, too.
    let sizes = ["--set", "storage.memtable_bytes=256MiB", "--set", "storage.disk_reserve=8MiB"];
    let mut node = Node::new(&scratch, 1, &[&SMALL[..2], &sizes].concat());
    // The segments that the node makes at once, and a ballast as large as two more.
    let Some(under) = own_disk(&node.data, "96m") else { return };
    node.under = under;
    node.start();
    // The disk is the node's alone; this is how the outside reaches it.
    let disk = Path::new("/proc").join(node.pid().to_string()).join("root").join(node.data.strip_prefix("/").unwrap());
    let ballast = disk.join("ballast");
    // Text that does not pack.
    let mut word = 1u64;
    let mut hex = || {
        word = word.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        format!("{:016x}", word ^ (word >> 29))
    };
    let value: String = (0..1 << 16).map(|_| hex()).collect();
    let file = scratch.join("value");
    fs::write(&file, &value).unwrap();
    let write = |key: &str| {
        // The client asks a full disk again until its time is over.
        let args = ["put", key, "-", "--timeout", "3s", "--endpoints", &node.client];
        Command::new(BINARY).args(args).stdin(fs::File::open(&file).unwrap()).output().unwrap()
    };
    assert!(write("first").status.success());
    // Whatever the node makes ahead by itself, in the end there is no room for a segment.
    let mut filling = fs::File::create(&ballast).unwrap();
    while filling.write_all(&[0; 64 << 10]).is_ok() {}
    filling.set_len(filling.metadata().unwrap().len() - (512 << 10)).unwrap();
    drop(filling);
    let mut taken = vec!["first".to_owned()];
    let refused = loop {
        let key = format!("k{:03}", taken.len());
        let out = write(&key);
        if !out.status.success() {
            break (key, out);
        }
        taken.push(key);
        assert!(taken.len() < 100, "the disk never filled up");
    };
    let (key, out) = refused;
    let says = ["disk full while writing", node.data.to_str().unwrap(), "next: make room"];
    check_refusal(&out, "a write to a full disk", 1, &says);
    // Nothing of the refused write is there, everything acknowledged is.
    let missing = mainstay(&["get", &key, "--endpoints", &node.client]);
    assert_eq!(missing.status.code(), Some(5));
    // It was refused before the disk itself had to, and status says so while it lasts.
    assert!(String::from_utf8_lossy(&out.stderr).contains("needed with the reserve"), "{out:?}");
    let trouble = |s: &Value| s["nodes"][0]["trouble"].as_str().unwrap_or_default().to_owned();
    let ask = async || json(&["status", "--endpoints", &node.client], &[0, 3]);
    let told = until("status to say so", ask, |s| !trouble(s).is_empty()).await;
    assert!(trouble(&told).contains("little room on the disk") && trouble(&told).contains("refused"), "{told}");
    for key in &taken {
        assert_eq!(get(&node, key), value, "{key}");
    }
    fs::remove_file(&ballast).unwrap();
    let again = until("the node to go on", async || write(&key), |o| o.status.success()).await;
    assert!(again.status.success());
    assert_eq!(get(&node, &key), value);
    until("status to be content", ask, |s| trouble(s).is_empty()).await;
    node.stop();
}

/// Beyond the command line's own checks (`cli.rs`): a client that sends too much is refused by the
/// server, which writes nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_too_large_is_refused_by_the_server_and_nothing_is_written() {
    let scratch = Scratch::new();
    let node = started(&scratch, &[]);
    let client = Client::connect([node.client.clone()]).unwrap();
    let before = commit_lsn(&node);
    let mib = |n: usize| vec![b'x'; n << 20];
    let key = vec![b'k'; 64 << 10];
    let many = (0..100_001u32).fold(Write::new(), |w, i| w.put(i.to_be_bytes(), b""));
    for (what, write, limit) in [
        ("key", Write::new().put("good", "1").put(key.clone(), "1"), "limit of 65535 bytes"),
        ("key to delete", Write::new().put("good", "1").delete(key), "limit of 65535 bytes"),
        ("value", Write::new().put("good", "1").put("big", [mib(16), vec![0]].concat()), "16777216 bytes (16 MiB)"),
        ("batch", Write::new().put("good", "1").put("a", mib(10)).put("b", mib(11)), "20971520 bytes (20 MiB)"),
        ("operations", many, "100000 operations"),
        ("message", Write::new().put("good", "1").put("a", mib(13)).put("b", mib(13)), "25165824 bytes"),
    ] {
        let refused = client.write(write).await.unwrap_err();
        assert_eq!((refused.class(), refused.code()), (ErrorClass::NeverRetry, "LIMIT"), "{what}: {refused}");
        assert!(refused.to_string().contains(limit), "{what}: {refused}");
        assert_eq!(commit_lsn(&node), before, "{what}");
    }
    assert_eq!(succeed(&["scan", "--endpoints", &node.client]), "");
}

#[test]
fn an_import_with_a_record_too_large_names_its_line_and_applies_nothing_of_its_batch() {
    let scratch = Scratch::new();
    let node = started(&scratch, &[]);
    let file = scratch.join("in.jsonl");
    let good = |i: u32| format!("{{\"key\":\"k{i}\",\"value\":\"{i}\"}}\n");
    let big_key = format!("{{\"key\":\"{}\",\"value\":\"1\"}}\n", "k".repeat(64 << 10));
    let big_value = format!("{{\"key\":\"k\",\"value\":\"{}\"}}\n", "v".repeat((16 << 20) + 1));
    for (bad, limit) in [(big_key, "the limit is 65535"), (big_value, "the limit is 16777216 (16 MiB)")] {
        fs::write(&file, [good(1), good(2), good(3), bad, good(5)].concat()).unwrap();
        let args = ["import", file.to_str().unwrap(), "--batch-records", "2", "--endpoints", &node.client];
        check_refusal(&mainstay(&args), "import", 1, &["line 4: ", limit, "2 records of the batches before"]);
        assert_eq!(succeed(&["scan", "--keys-only", "--endpoints", &node.client]), "k1\nk2\n");
    }
}

/// The first segment of a stopped node's log, and where its last frame ends.
fn log_of(node: &Node) -> (PathBuf, usize) {
    let path = node.data.join("log/0000000000000001.log");
    let bytes = fs::read(&path).unwrap();
    let end = bytes.iter().rposition(|b| *b != 0).unwrap() + 1;
    (path, end.next_multiple_of(8))
}

fn overwrite(path: &Path, at: usize, with: &[u8]) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at..at + with.len()].copy_from_slice(with);
    fs::write(path, bytes).unwrap();
}

#[test]
fn damage_below_the_durable_lsn_is_refused_with_file_and_offset_and_above_it_is_cut_and_reported() {
    let scratch = Scratch::new();
    let mut node = started(&scratch, &SMALL);
    for i in 0..20 {
        put(&node, &format!("k{i:02}"), "value");
    }
    node.kill();

    // Above: a write that a crash left half done. It is cut, the cut is said, nothing else is lost.
    let (path, end) = log_of(&node);
    overwrite(&path, end, &[0xab; 100]);
    node.start();
    let log = node.log();
    let report = log.lines().find(|l| l.contains("cut unfinished writes"));
    let report = report.unwrap_or_else(|| panic!("the cut is not reported:\n{log}"));
    // Of what stands there only the place of the zeros that end a log counts: behind it an older use of the file may show.
    for part in [format!("file={}", path.display()), format!("offset={end}"), "bytes=24".to_owned()] {
        assert!(report.contains(&part), "{report}");
    }
    assert_eq!(read_jsonl(&succeed(&["export", "--endpoints", &node.client])).len(), 20);
    assert!(put(&node, "k20", "value") > 20);
    node.kill();

    // Below: one bit of one record in the middle. Nothing is served and nothing is changed.
    let (_, end) = log_of(&node);
    let good = fs::read(&path).unwrap();
    let middle = 4096 + (end - 4096) / 2;
    overwrite(&path, middle, &[good[middle] ^ 1]);
    let before = contents(&node.data);
    let out = node.command().output().unwrap();
    check_refusal(
        &out,
        "damage",
        1,
        &["corruption in", path.to_str().unwrap(), "at offset ", "restore this node from"],
    );
    let err = String::from_utf8(out.stderr).unwrap();
    let said: usize = err.split("at offset ").nth(1).unwrap().split([' ', ':']).next().unwrap().parse().unwrap();
    assert!(said <= middle && middle < said + 256, "damage at {middle}, said {said}: {err}");
    assert_unchanged(&before, &node.data, "a refusal");

    // With the bit put right the node is whole again.
    fs::write(&path, &good).unwrap();
    node.start();
    assert_eq!(read_jsonl(&succeed(&["export", "--endpoints", &node.client])).len(), 21);
}

/// A repository with a base and some log behind it; the LSNs of three writes behind the base.
fn repository(scratch: &Scratch) -> (String, [u64; 3]) {
    let bucket = scratch.bucket();
    let args = [&SMALL[..], &["--repository", &bucket, "--archive-interval-ms", "10"]].concat();
    let mut node = started(scratch, &args);
    put(&node, "a", "0");
    json(&["backup", "create", "--endpoints", &node.client], &[0]);
    let archived = |value: &str| {
        let args = ["put", "a", value, "--ack", "archived", "--endpoints", &node.client];
        json(&args, &[0])["lsn"].as_u64().unwrap()
    };
    let lsns = ["1", "2", "3"].map(archived);
    node.kill();
    (bucket, lsns)
}

fn restore(bucket: &str, data: &Path, lsn: u64) -> std::process::Output {
    let lsn = lsn.to_string();
    mainstay(&["restore", "--repository", bucket, "--data", data.to_str().unwrap(), "--to-lsn", &lsn])
}

#[test]
fn a_restore_into_something_is_refused() {
    let scratch = Scratch::new();
    let (bucket, [lsn, ..]) = repository(&scratch);
    let data = scratch.join("there");
    fs::create_dir(&data).unwrap();
    fs::write(data.join("precious"), "mine").unwrap();
    let before = contents(&data);
    check_refusal(
        &restore(&bucket, &data, lsn),
        "not empty",
        1,
        &[data.to_str().unwrap(), "not empty", "choose another directory"],
    );
    assert_unchanged(&before, &data, "a refused restore");
    check_refusal(&restore(&bucket, &data.join("precious"), lsn), "a file", 1, &["precious", "not a directory"]);
    assert_unchanged(&before, &data, "a refused restore");
    assert!(!scratch.join("there.restoring").exists());
    // An empty directory is as good as none.
    let empty = scratch.join("empty");
    fs::create_dir(&empty).unwrap();
    assert!(restore(&bucket, &empty, lsn).status.success());
}

#[test]
fn what_a_broken_restore_leaves_is_named_with_what_to_do() {
    let scratch = Scratch::new();
    let (bucket, [first, _, last]) = repository(&scratch);
    let data = scratch.join("restored");
    let work = scratch.join("restored.restoring");
    let objects = contents(&scratch.join("bucket"));
    let is_log = |p: &&PathBuf| p.components().any(|c| c.as_os_str() == "wal") && p.is_file();
    let newest = objects.keys().rfind(is_log).expect("an archive without log objects").clone();
    let good = objects[&newest].clone();
    overwrite(&newest, good.len() - 1, &[good[good.len() - 1] ^ 1]);
    let name = newest.file_name().unwrap().to_str().unwrap();
    check_refusal(&restore(&bucket, &data, last), "a damaged object", 1, &["is damaged", name]);
    assert!(!data.exists() && work.exists());

    let leftover = contents(&work);
    let remedy = format!("next: `rm -r {}`, then run it again", work.display());
    let says = [work.to_str().unwrap(), "left over from another restore", "did not finish", &remedy];
    check_refusal(&restore(&bucket, &data, first), "a leftover", 1, &says);
    assert!(!data.exists());
    assert_unchanged(&leftover, &work, "a refused restore");

    // The same restore again takes its own leftover's place; another one after the remedy.
    fs::write(&newest, good).unwrap();
    assert!(restore(&bucket, &data, last).status.success());
    assert!(!work.exists());
    fs::remove_dir_all(&data).unwrap();
    fs::create_dir(&work).unwrap();
    fs::write(work.join("precious"), "mine").unwrap();
    let says = [work.to_str().unwrap(), "in the way", "move it away"];
    check_refusal(&restore(&bucket, &data, first), "no restore's directory", 1, &says);
    assert_eq!(fs::read(work.join("precious")).unwrap(), b"mine");
    fs::remove_dir_all(&work).unwrap();
    assert!(restore(&bucket, &data, first).status.success());
}

#[test]
fn a_repository_url_that_names_no_store_is_usage_and_makes_nothing() {
    let scratch = Scratch::new();
    let url = "s3://bucket/prefix?endpont=http://127.0.0.1:1";
    let node = Node::new(&scratch, 1, &["--repository", url]);
    let says = ["s3://bucket/prefix", "\"endpont\"", "endpoint"];
    check_refusal(&node.command().output().unwrap(), "server", 2, &says);
    assert!(!node.data.exists());
    check_refusal(&mainstay(&["backup", "list", "--repository", url]), "backup list", 2, &says);
    let data = node.data.to_str().unwrap();
    check_refusal(&mainstay(&["restore", "--to-latest", "--repository", url, "--data", data]), "restore", 2, &says);
    assert!(!node.data.exists());
}

#[test]
fn a_damaged_promise_is_refused() {
    let scratch = Scratch::new();
    let mut node = started(&scratch, &SMALL);
    node.stop();
    let promise = node.data.join("PROMISE");
    overwrite(&promise, 9, &[0xff]);
    let before = contents(&node.data);
    refused(&node, "server", &["corruption in", promise.to_str().unwrap(), "promise is damaged"]);
    assert_unchanged(&before, &node.data, "a refusal");
}

#[test]
fn a_log_segment_larger_than_the_log_takes_is_refused_with_the_limit() {
    let scratch = Scratch::new();
    let config = scratch.join("m.toml");
    fs::write(&config, "[storage]\nsegment_bytes = \"2GiB\"\n").unwrap();
    let mut node = Node::new(&scratch, 1, &["--config", config.to_str().unwrap()]);
    node.data = scratch.join("data");
    let says = ["storage.segment_bytes", "2GiB", "m.toml", "1073741824 (1.00 GiB)"];
    check_refusal(&node.command().output().unwrap(), "server", 2, &says);
    check_refusal(&mainstay(&["config", "check", config.to_str().unwrap()]), "config check", 2, &says);
    assert!(!node.data.exists());
}

#[test]
fn a_configuration_that_is_no_file_is_refused() {
    let scratch = Scratch::new();
    let dir = scratch.path().to_str().unwrap();
    check_refusal(&mainstay(&["config", "check", dir]), "config check", 2, &["cannot read", dir, "directory"]);
}
