//! One real node, driven through the command line alone.

#![expect(clippy::unwrap_used, clippy::disallowed_methods, reason = "an outside observer, not the core")]

mod support;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use support::{BINARY, Node, Scratch, assert_same, mainstay, read_jsonl, sample, write_jsonl};

/// A running node, and commands that go to it.
struct One {
    node: Node,
    scratch: Scratch,
}

impl One {
    fn start(args: &[&str]) -> Self {
        let scratch = Scratch::new();
        let mut node = Node::new(&scratch, 1, args);
        node.start();
        Self { node, scratch }
    }

    fn with_repository() -> Self {
        let scratch = Scratch::new();
        let mut node = Node::new(&scratch, 1, &["--repository", &scratch.bucket(), "--archive-interval-ms", "50"]);
        node.start();
        Self { node, scratch }
    }

    fn run(&self, args: &[&str]) -> Output {
        mainstay(&[args, &["--endpoints", &self.node.client]].concat())
    }

    /// Standard output of a command that must end with 0.
    fn ok(&self, args: &[&str]) -> String {
        String::from_utf8(self.ok_bytes(args)).unwrap()
    }

    fn ok_bytes(&self, args: &[&str]) -> Vec<u8> {
        let out = self.run(args);
        assert_eq!(out.status.code(), Some(0), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
        out.stdout
    }

    fn json(&self, args: &[&str]) -> Value {
        let v: Value = serde_json::from_str(&self.ok(&[args, &["-o", "json"]].concat())).unwrap();
        assert_eq!(v["schema"], 1, "{args:?}: {v}");
        v
    }

    /// Asserts exit code and what stderr says.
    fn fails(&self, args: &[&str], code: i32, says: &[&str]) {
        check(&self.run(args), &format!("{args:?}"), code, says);
    }

    fn fed(&self, args: &[&str], input: &[u8]) -> Output {
        let mut c = Command::new(BINARY);
        c.args(args).args(["--endpoints", &self.node.client]);
        let mut child = c.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(input).unwrap();
        child.wait_with_output().unwrap()
    }
}

fn check(o: &Output, what: &str, code: i32, says: &[&str]) {
    let err = String::from_utf8_lossy(&o.stderr);
    assert_eq!(o.status.code(), Some(code), "{what}: {err}");
    for s in says {
        assert!(err.contains(s), "{what} does not say {s:?}: {err}");
    }
    assert!(!err.contains("panicked") && !err.contains('\x1b'), "{what}: {err}");
}

fn lsn(v: &Value) -> u64 {
    v["lsn"].as_u64().unwrap()
}

#[test]
fn what_is_put_is_read_listed_and_deleted() {
    let one = One::start(&[]);
    let first = one.json(&["put", "user/1", "Ada"]);
    assert_eq!((first["level"].as_str(), first["degraded"].as_bool()), (Some("committed"), Some(false)));
    assert!(one.ok(&["put", "user/2", "Grace"]).starts_with("lsn "));
    assert_eq!(one.ok(&["get", "user/1"]), "Ada");
    assert_eq!(one.ok(&["get", "user/1", "--stale"]), "Ada");
    let got = one.json(&["get", "user/1"]);
    assert_eq!((got["value"].as_str(), got["version"].as_u64()), (Some("Ada"), Some(lsn(&first))));
    assert_eq!(one.ok(&["scan", "user/"]), "user/1\tAda\nuser/2\tGrace\n");
    assert_eq!(one.ok(&["scan", "--reverse", "--limit", "1", "--keys-only"]), "user/2\n");
    assert_eq!(one.ok(&["scan", "--start", "user/2"]), "user/2\tGrace\n");

    let deleted = one.json(&["delete", "user/1"]);
    one.fails(&["get", "user/1"], 5, &["\"user/1\" not found"]);
    one.fails(&["get", "never"], 5, &["not found"]);
    let before = (lsn(&deleted) - 1).to_string();
    assert_eq!(one.ok(&["get", "user/1", "--at", &before]), "Ada");
    assert_eq!(one.json(&["delete", "--prefix", "user/", "--dry-run"])["keys"], 1);
    one.fails(&["delete", "--prefix", "user/"], 2, &["--yes"]);
    assert_eq!(one.ok(&["get", "user/2"]), "Grace");
    one.ok(&["delete", "--prefix", "user/", "--yes"]);
    assert_eq!(one.ok(&["scan"]), "");
}

#[test]
fn bytes_of_any_kind_come_back_as_they_were() {
    let one = One::start(&[]);
    let bytes: Vec<u8> = (0..=255u8).cycle().take(100_000).collect();
    check(&one.fed(&["put", "photo", "-"], &bytes), "put -", 0, &[]);
    assert_eq!(one.ok_bytes(&["get", "photo"]), bytes);
    assert!(one.json(&["get", "photo"])["value"]["base64"].is_string());
    one.ok(&["put", "empty", ""]);
    assert_eq!(one.ok(&["get", "empty"]), "");
}

#[test]
fn conditions_decide_and_say_why() {
    let one = One::start(&[]);
    let first = lsn(&one.json(&["put", "lock", "me", "--if-absent"])).to_string();
    one.fails(&["put", "lock", "you", "--if-absent"], 1, &["error:", "next:"]);
    one.fails(&["put", "lock", "you", "--if-value", "nobody"], 1, &["error:"]);
    let second = lsn(&one.json(&["put", "lock", "still me", "--if-version", &first])).to_string();
    one.fails(&["delete", "lock", "--if-version", &first], 1, &["error:"]);
    assert_eq!(one.ok(&["get", "lock"]), "still me");
    one.ok(&["delete", "lock", "--if-version", &second]);
    one.fails(&["get", "lock"], 5, &[]);
    one.fails(&["put", "a", "b", "--ack", "archived"], 1, &["no repository", "next:"]);
    one.fails(&["get", "a"], 5, &[]);
}

#[test]
fn a_key_with_a_ttl_says_when_it_ends() {
    let one = One::start(&[]);
    one.ok(&["put", "session", "s", "--ttl", "1h"]);
    assert!(one.json(&["get", "session"])["expires"].as_str().unwrap().ends_with('Z'));
    // The expiry travels with an export, as a moment and not as a rest.
    let line: Value = serde_json::from_str(&one.ok(&["export"])).unwrap();
    assert!(line["expiry_us"].as_u64().unwrap() > 0);
}

#[test]
fn an_import_comes_out_again_whole() {
    let one = One::start(&[]);
    let records = sample(2000);
    let path = one.scratch.join("in.jsonl");
    write_jsonl(&path, &records);
    let done = one.json(&["import", path.to_str().unwrap(), "--batch-records", "64"]);
    assert_eq!(done["records"], 2000);
    assert!(done["last_lsn"].as_u64().unwrap() >= 2000 / 64);
    assert_same(&records, &read_jsonl(&one.ok(&["export"])));
    let some: BTreeMap<_, _> = records
        .iter()
        .filter(|(k, _)| k.starts_with("debian/package-001"))
        .map(|(k, v)| (k.clone(), v.clone()))
        .collect();
    assert_same(&some, &read_jsonl(&one.ok(&["export", "debian/package-001"])));
    // A compressed stream on stdin, and bytes that are no text.
    let line = b"{\"key_base64\":\"/w==\",\"value_base64\":\"AP8=\"}\n";
    let packed = zstd::encode_all(&line[..], 0).unwrap();
    check(&one.fed(&["import", "-"], &packed), "import -", 0, &[]);
    assert!(one.ok(&["export"]).as_bytes().ends_with(line));
}

/// Batches are in flight together, and yet the last line of a key wins.
#[test]
fn the_last_line_of_a_key_wins_across_batches_in_flight() {
    let one = One::start(&[]);
    let mut lines = String::new();
    for i in 0..600 {
        lines.push_str(&format!("{{\"key\":\"k{}\",\"value\":\"{i}\"}}\n", i % 3));
    }
    let args = ["import", "-", "--batch-records", "1", "--parallel", "32"];
    check(&one.fed(&args, lines.as_bytes()), "import", 0, &[]);
    assert_eq!(one.ok(&["scan"]), "k0\t597\nk1\t598\nk2\t599\n");
}

#[test]
fn a_malformed_line_is_named_and_nothing_of_its_batch_is_applied() {
    let one = One::start(&[]);
    let mut lines: Vec<String> = (1..=9).map(|i| format!("{{\"key\":\"k{i}\",\"value\":\"{i}\"}}")).collect();
    lines[5] = "{\"key\":\"k6\",\"value\":6}".to_owned();
    let out = one.fed(&["import", "-", "--batch-records", "2"], lines.join("\n").as_bytes());
    check(&out, "import", 1, &["line 6: ", "the 4 records of the batches before it were imported"]);
    assert_eq!(one.ok(&["scan", "--keys-only"]), "k1\nk2\nk3\nk4\n");
}

#[test]
fn changes_can_be_followed_from_the_past() {
    let one = One::start(&[]);
    let first = lsn(&one.json(&["put", "a", "1"]));
    one.ok(&["put", "b", "2"]);
    one.ok(&["delete", "a"]);
    let last = lsn(&one.json(&["delete", "--range", "b", "c", "--yes"]));
    let args = ["watch", "--from", &first.to_string(), "--to", &last.to_string()];
    let seen: Vec<String> =
        one.ok(&args).lines().map(|l| l.split('\t').skip(2).collect::<Vec<_>>().join(" ")).collect();
    assert_eq!(seen, ["put a 1", "put b 2", "delete a", "delete-range b c"]);
    let only = one.ok(&[&args[..], &["--prefix", "a", "-o", "json"]].concat());
    let ops: Vec<Value> = only.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert!(ops.iter().all(|o| o["schema"] == 1), "{only}");
    assert_eq!((ops[0]["op"].as_str(), ops[0]["key"].as_str()), (Some("put"), Some("a")));
}

#[test]
fn a_reader_that_goes_away_ends_a_long_answer_quietly() {
    let one = One::start(&[]);
    let path = one.scratch.join("in.jsonl");
    write_jsonl(&path, &sample(5000));
    one.ok(&["import", path.to_str().unwrap()]);
    for command in ["scan", "export"] {
        let mut c = Command::new(BINARY);
        c.args([command, "--endpoints", &one.node.client]).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = c.spawn().unwrap();
        let mut some = [0; 10];
        child.stdout.take().unwrap().read_exact(&mut some).unwrap();
        let out = child.wait_with_output().unwrap();
        check(&out, command, 0, &[]);
        assert_eq!(String::from_utf8_lossy(&out.stderr), "", "{command}");
    }
}

#[test]
fn status_leads_with_what_would_be_lost() {
    let one = One::start(&[]);
    one.ok(&["put", "a", "1"]);
    let text = one.ok(&["status"]);
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines[0].starts_with("Survives no node failure now"), "{text}");
    assert_eq!(lines[1], "If this node died now, everything would be lost: no repository is configured.");
    assert!(text.contains("primary") && lines[3].starts_with("NODE"), "{text}");
    let v = one.json(&["status"]);
    assert_eq!((v["survives_node_failures"].as_u64(), v["nodes"][0]["role"].as_str()), (Some(0), Some("primary")));
    let out = one.run(&["cluster", "promote"]);
    check(&out, "promote", 1, &["is primary of epoch", "--node"]);
}

/// A byte of a table changes on the disk, and nobody reads it: the scrub finds it, `status` says so with file and place,
/// and the node goes on.
#[test]
fn damage_that_nobody_reads_is_found_by_the_scrub_and_told_by_status() {
    let mut one = One::start(&["--set", "storage.memtable_bytes=65536", "--set", "storage.scrub_interval_s=1"]);
    let lines: Vec<u8> = (0..3000)
        .flat_map(|n| format!("{{\"key\":\"k{n:05}\",\"value\":\"some value {n}\"}}\n").into_bytes())
        .collect();
    assert_eq!(one.fed(&["import", "-"], &lines).status.code(), Some(0));
    assert_eq!(one.json(&["status"])["nodes"][0]["trouble"], "");
    // Tables are flushed meanwhile; a stop leaves them alone.
    let end = std::time::Instant::now() + support::PATIENCE;
    while std::fs::read_dir(one.node.data.join("tables")).unwrap().count() < 2 {
        assert!(std::time::Instant::now() < end, "no table was flushed");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    one.node.kill();
    // One that the manifest names: what it does not name yet goes with the next start. The second is made when the first is named.
    let named = mainstay(&["inspect", "manifest", one.node.data.to_str().unwrap(), "-o", "json"]);
    let named: Value = serde_json::from_slice(&named.stdout).unwrap();
    let table = format!("{}.table", named["tables"][0]["id"].as_str().expect("a table is named"));
    let table = one.node.data.join("tables").join(table);
    let mut bytes = std::fs::read(&table).unwrap();
    bytes[60] ^= 4;
    std::fs::write(&table, bytes).unwrap();
    one.node.start();
    let told = loop {
        let told: Value = serde_json::from_slice(&one.run(&["status", "-o", "json"]).stdout).unwrap();
        if told["nodes"][0]["trouble"] != "" {
            break told;
        }
        assert!(std::time::Instant::now() < end, "the scrub said nothing: {told}");
        std::thread::sleep(std::time::Duration::from_millis(50));
    };
    let trouble = told["nodes"][0]["trouble"].as_str().unwrap();
    for part in ["damage on this node's disk", table.to_str().unwrap(), "at offset 0", "`mainstay repair`"] {
        assert!(trouble.contains(part), "{part:?}: {trouble}");
    }
    assert_eq!(one.run(&["status"]).status.code(), Some(3));
    one.ok(&["put", "still", "alive"]);
    assert_eq!(one.ok_bytes(&["get", "still"]), b"alive");
}

#[test]
fn a_backup_is_listed_and_restored_to_the_record_asked_for() {
    let mut one = One::with_repository();
    let bucket = one.scratch.bucket();
    one.ok(&["put", "a", "before the base"]);
    let base = one.json(&["backup", "create"]);
    let list = |args: &[&str]| mainstay(&[&["backup", "list", "--repository", &bucket], args].concat());
    let listed: Value = serde_json::from_slice(&list(&["-o", "json"]).stdout).unwrap();
    assert_eq!(listed["bases"][0]["id"], base["base"], "{listed}");
    assert!(String::from_utf8(list(&[]).stdout).unwrap().contains(base["base"].as_str().unwrap()));
    let good = one.json(&["put", "a", "good", "--ack", "archived"]);
    one.ok(&["put", "a", "by mistake", "--ack", "archived"]);
    one.node.stop();

    let data = one.scratch.join("restored");
    let data_text = data.to_str().unwrap().to_owned();
    let at = lsn(&good).to_string();
    let restore = |more: &[&str]| {
        mainstay(&[&["restore", "--repository", &bucket, "--data", &data_text, "--to-lsn", &at], more].concat())
    };
    let dry = restore(&["--dry-run"]);
    check(&dry, "dry run", 0, &[]);
    assert!(String::from_utf8_lossy(&dry.stdout).contains(&format!("lands at  LSN {at}")) && !data.exists());
    let done = restore(&["-o", "json"]);
    check(&done, "restore", 0, &[]);
    let report: Value = serde_json::from_slice(&done.stdout).unwrap();
    assert_eq!((report["schema"].as_u64(), lsn(&report)), (Some(1), lsn(&good)), "{report}");
    assert!(report["phases"]["replay"].is_number(), "{report}");
    check(&restore(&[]), "restore into a directory in use", 1, &["error:", &data_text]);

    one.node.data = data;
    one.node.start();
    assert_eq!(one.ok(&["get", "a"]), "good");
}

#[test]
fn two_servers_do_not_share_a_data_directory() {
    let one = One::start(&[]);
    let mut second = Node::new(&one.scratch, 1, &[]);
    second.data.clone_from(&one.node.data);
    let out = second.command().output().unwrap();
    check(&out, "second server", 1, &["error:", one.node.data.to_str().unwrap()]);
    one.ok(&["put", "a", "the first one lives"]);
}

/// Starts a node on a directory that it must refuse; returns nothing changed in it.
fn refused(scratch: &Scratch, data: &Path, says: &[&str]) {
    let mut node = Node::new(scratch, 1, &[]);
    node.data = data.to_owned();
    let before = listing(data);
    check(&node.command().output().unwrap(), "server", 1, says);
    assert_eq!(listing(data), before);
}

fn listing(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_directory_of_another_kind_or_a_newer_format_is_refused() {
    let mut one = One::start(&[]);
    one.ok(&["put", "a", "1"]);
    one.node.stop();
    let identity = one.node.data.join("IDENTITY");
    let mut bytes = std::fs::read(&identity).unwrap();
    // Layout: magic [8], format u32.
    bytes[8] = 200;
    std::fs::write(&identity, &bytes).unwrap();
    refused(&one.scratch, &one.node.data.clone(), &["error:", "200"]);
    bytes[0] ^= 1;
    std::fs::write(&identity, &bytes).unwrap();
    refused(&one.scratch, &one.node.data.clone(), &["error:", "not a Mainstay data directory"]);
    let file = one.scratch.join("file");
    std::fs::write(&file, "x").unwrap();
    let mut node = Node::new(&one.scratch, 1, &[]);
    node.data = file;
    check(&node.command().output().unwrap(), "server on a file", 1, &["error:"]);
}
