//! Backup and point-in-time restore on a real S3 server, and what happens when the store is missing,
//! forbids, or is away: everything through the binary, real processes and real disks.
//!
//! The server is the one that `MAINSTAY_TEST_S3_URL` names; see `support::stores`. Owns: these
//! stories. Never: how a repository looks inside.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "a test fails by panicking and observes real processes"
)]

mod support;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use mainstay_client::{Ack, Client, Write};
use serde_json::Value;
use support::stores::{Gate, S3, forbidding, shown, unique};
use support::{
    BINARY, Cluster, Node, Scratch, assert_same, check_refusal, json, mainstay, read_jsonl, sample, succeed, until,
};

/// What `docs/backup.md` promises for a command whose store does not answer.
const GIVES_UP_WITHIN: Duration = Duration::from_secs(30);
const FAST: [&str; 2] = ["--archive-interval-ms", "50"];

/// What the database held after one acknowledged write.
#[derive(Clone, Debug, Default)]
struct Moment {
    lsn: u64,
    ts: u64,
    all: BTreeMap<String, String>,
}

/// Everything written, moment by moment.
struct History {
    client: Client,
    moments: Vec<Moment>,
}

impl History {
    fn new(endpoints: &[String]) -> Self {
        Self { client: Client::connect(endpoints).unwrap(), moments: vec![Moment::default()] }
    }

    fn last(&self) -> &Moment {
        self.moments.last().unwrap()
    }

    /// One atomic write: `None` deletes.
    async fn write<K: Into<String>>(&mut self, changes: impl IntoIterator<Item = (K, Option<String>)>) {
        let (mut write, mut all) = (Write::new(), self.last().all.clone());
        for (key, value) in changes {
            let key = key.into();
            match value {
                Some(value) => {
                    write = write.put(key.as_bytes(), value.as_bytes());
                    all.insert(key, value);
                }
                None => {
                    write = write.delete(key.as_bytes());
                    all.remove(&key);
                }
            }
        }
        let done = self.client.write(write).await.unwrap();
        self.moments.push(Moment { lsn: done.lsn, ts: done.commit_ts_us, all });
    }

    /// The first data: `n` records in a few batches.
    async fn load(&mut self, n: usize) {
        let records: Vec<_> = sample(n).into_iter().map(|(k, v)| (k, Some(v))).collect();
        for batch in records.chunks(100) {
            self.write(batch.to_vec()).await;
        }
    }

    /// `rounds` writes, each with overwritten, deleted and new keys.
    async fn churn(&mut self, name: &str, rounds: usize) {
        for round in 0..rounds {
            let keys: Vec<String> = self.last().all.keys().skip(round).step_by(17).take(12).cloned().collect();
            let mut changes: Vec<(String, Option<String>)> = Vec::new();
            for (i, key) in keys.into_iter().enumerate() {
                changes.push((key, (i % 3 != 0).then(|| format!("{name} {round}.{i}"))));
            }
            changes.push((format!("new/{name}/{round}"), Some("é\n\"new\"".repeat(round))));
            self.write(changes).await;
        }
    }
}

/// Restores to `target` and compares what a server on the result has; returns that server's node.
fn restore_and_compare(scratch: &Scratch, url: &str, name: &str, target: &[&str], expected: &Moment) -> Node {
    let data = scratch.join(name);
    let args = ["restore", "--repository", url, "--data", data.to_str().unwrap()];
    let report = json(&[&args, target].concat(), &[0]);
    assert_eq!(report["lsn"].as_u64(), Some(expected.lsn), "{target:?}: {report}");
    let mut node = Node::new(scratch, 1, &[]);
    node.data = data;
    node.start();
    assert_same(&expected.all, &read_jsonl(&succeed(&["export", "--endpoints", &node.client])));
    node
}

fn create_base(endpoints: &str) -> Value {
    json(&["backup", "create", "--endpoints", endpoints], &[0])
}

fn bases(url: &str) -> Vec<Value> {
    json(&["backup", "list", "--repository", url], &[0])["bases"].as_array().unwrap().clone()
}

fn status(endpoints: &str) -> Value {
    json(&["status", "--endpoints", endpoints], &[0, 3])
}

/// Waits until the primary's archive is, or is not, in trouble that says all of this.
async fn until_attention(endpoints: &str, says: &[&str]) -> Value {
    let told = |s: &Value| {
        let text = s["attention"].to_string();
        says.iter().all(|part| text.contains(part)) && text.contains("archive: cannot") != says.is_empty()
    };
    until(&format!("status to say {says:?}"), async || status(endpoints), told).await
}

/// Runs a subcommand that must give up in the time the documents promise.
fn gives_up(args: &[&str], env: &[(&str, &str)]) -> Output {
    let begun = Instant::now();
    let out = Command::new(BINARY).args(args).envs(env.iter().copied()).output().unwrap();
    assert!(begun.elapsed() < GIVES_UP_WITHIN, "{args:?} took {:?}", begun.elapsed());
    out
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bucket_gives_back_every_value_at_an_lsn_at_a_time_and_at_its_end() {
    let scratch = Scratch::new();
    let Some(s3) = S3::of(&scratch) else { return };
    let url = s3.url();
    let args = [&["--repository", &url], &FAST[..]].concat();
    let mut node = Node::new(&scratch, 1, &args);
    node.start();
    let mut history = History::new(&[node.client.clone()]);
    history.load(400).await;
    let first = create_base(&node.client);
    assert_eq!(first["lsn"].as_u64(), Some(history.last().lsn));
    let at_first = history.last().clone();
    history.churn("between", 20).await;
    let second = create_base(&node.client);
    history.churn("after", 10).await;
    history.client.wait_archived().await.unwrap();

    let listed = bases(&url);
    let named: Vec<_> = listed.iter().map(|b| (b["id"].clone(), b["lsn"].clone())).collect();
    let made = [&first, &second].map(|b| (b["base"].clone(), b["lsn"].clone()));
    assert_eq!(named, made);
    node.stop();

    let n = history.moments.len();
    let (between, after, before_after) = (&history.moments[n - 20], &history.moments[n - 4], &history.moments[n - 5]);
    let lsn = |m: &Moment| m.lsn.to_string();
    restore_and_compare(&scratch, &url, "base", &["--to-lsn", &lsn(&at_first)], &at_first).kill();
    restore_and_compare(&scratch, &url, "lsn", &["--to-lsn", &lsn(between)], between).kill();
    restore_and_compare(&scratch, &url, "time", &["--to-time", &format!("@{}", after.ts)], after).kill();
    // A moment before a write is the state that the write before it left.
    restore_and_compare(&scratch, &url, "idle", &["--to-time", &format!("@{}", after.ts - 1)], before_after).kill();
    let mut latest = restore_and_compare(&scratch, &url, "latest", &["--to-latest"], history.last());
    latest.stop();

    // The restored node goes on in the same bucket, on a timeline of its own.
    node.data = latest.data.clone();
    node.start();
    let mut onward = History::new(&[node.client.clone()]);
    onward.moments = vec![history.last().clone()];
    create_base(&node.client);
    onward.churn("onward", 3).await;
    onward.client.wait_archived().await.unwrap();
    node.stop();
    restore_and_compare(&scratch, &url, "onward", &["--to-latest"], onward.last()).kill();
    let old = first_timeline(&listed);
    let target = ["--to-lsn", &lsn(after), "--timeline", &old];
    restore_and_compare(&scratch, &url, "old", &target, after).kill();
}

fn first_timeline(bases: &[Value]) -> String {
    bases[0]["timeline"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_lost_whole_after_a_failover_comes_back_from_the_bucket() {
    let scratch = Scratch::new();
    let Some(s3) = S3::of(&scratch) else { return };
    let url = s3.url();
    let args = [&["--repository", &url], &FAST[..]].concat();
    let mut cluster = Cluster::new(&scratch, 3, "quorum", &args);
    cluster.start();
    let endpoints = cluster.endpoint_list();
    let mut history = History::new(&cluster.endpoints());
    history.load(200).await;
    create_base(&endpoints);
    history.churn("first reign", 5).await;
    let before = history.last().clone();
    cluster.node(1).kill();
    // The candidate may not have heard yet that the others are there.
    let promote = async || mainstay(&["cluster", "promote", "--endpoints", &endpoints]);
    let _ = until("a promotion", promote, |o| o.status.success()).await;
    history.churn("second reign", 5).await;
    let last = history.client.write(Write::new().put("last", "one").ack(Ack::Archived)).await.unwrap();
    assert_eq!(last.level, "archived");
    let mut end = history.last().clone();
    end.lsn = last.lsn;
    end.all.insert("last".into(), "one".into());
    for node in &mut cluster.nodes {
        node.kill();
        std::fs::remove_dir_all(&node.data).unwrap();
    }
    restore_and_compare(&scratch, &url, "latest", &["--to-latest"], &end).kill();
    restore_and_compare(&scratch, &url, "before", &["--to-lsn", &before.lsn.to_string()], &before).kill();
}

/// The three commands that need a repository, all of which must fail; nothing may come of them.
fn commands_fail(scratch: &Scratch, endpoints: &str, url: &str, env: &[(&str, &str)], says: &[&str]) {
    let data = scratch.join("never");
    let restore = ["restore", "--to-latest", "--data", data.to_str().unwrap(), "--repository", url];
    for args in
        [&["backup", "create", "--endpoints", endpoints][..], &["backup", "list", "--repository", url], &restore]
    {
        let out = gives_up(args, env);
        check_refusal(&out, &format!("{args:?}"), 1, &[&[shown(url), "next: "], says].concat());
        assert!(out.stdout.is_empty(), "{args:?} printed {}", String::from_utf8_lossy(&out.stdout));
    }
    assert!(nothing_of(&data), "a failed restore left something behind");
}

/// Neither the directory nor a working directory beside it.
fn nothing_of(data: &Path) -> bool {
    let name = data.file_name().unwrap().to_string_lossy().into_owned();
    let there = std::fs::read_dir(data.parent().unwrap()).unwrap();
    there.flatten().all(|e| !e.file_name().to_string_lossy().starts_with(&name))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bucket_that_does_not_exist_is_named_and_archiving_begins_when_it_does() {
    let scratch = Scratch::new();
    let Some(s3) = S3::of(&scratch) else { return };
    let bucket = format!("mainstay-{}-{}", std::process::id(), unique(&scratch));
    let url = s3.url_in(&bucket);
    let mut node = Node::new(&scratch, 1, &[&["--repository", &url], &FAST[..]].concat());
    node.start();
    let mut history = History::new(&[node.client.clone()]);
    history.load(100).await;
    let said = until_attention(&node.client, &[shown(&url), "NoSuchBucket"]).await;
    assert_eq!(said["nodes"][0]["archived_lsn"], 0, "{said}");
    commands_fail(&scratch, &node.client, &url, &[], &["NoSuchBucket"]);

    if !s3.create_bucket(&bucket) {
        println!("skipped the rest: this S3 server makes no bucket for an unsigned request");
        return;
    }
    history.churn("later", 3).await;
    until_attention(&node.client, &[]).await;
    history.client.wait_archived().await.unwrap();
    assert_eq!(bases(&url), Vec::<Value>::new(), "the backup that failed is in the catalog");
    create_base(&node.client);
    assert_eq!(bases(&url).len(), 1);
    restore_and_compare(&scratch, &url, "restored", &["--to-latest"], history.last()).kill();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_forbids_is_named_with_its_answer_and_writes_go_on() {
    let scratch = Scratch::new();
    let url = format!("s3://private/backups?endpoint=http://{}&region=us-east-1", forbidding());
    let env = [("AWS_ACCESS_KEY_ID", "nobody"), ("AWS_SECRET_ACCESS_KEY", "a-secret-that-stays-one")];
    let mut node = Node::new(&scratch, 1, &[&["--repository", &url], &FAST[..]].concat());
    node.env = env.map(|(k, v)| (k.to_owned(), v.to_owned())).to_vec();
    node.start();
    let mut history = History::new(&[node.client.clone()]);
    history.load(100).await;
    let said = until_attention(&node.client, &[shown(&url), "403"]).await;
    assert!(!said.to_string().contains("a-secret"), "{said}");
    commands_fail(&scratch, &node.client, &url, &env, &["AccessDenied"]);
    assert_same(&history.last().all, &read_jsonl(&succeed(&["export", "--endpoints", &node.client])));
    assert!(!node.log().contains("a-secret"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_nobody_answers_for_ends_commands_in_time_and_writes_go_on() {
    let scratch = Scratch::new();
    // Port 1 of the loopback has no listener on any machine these tests run on.
    let url = "s3://away/backups?endpoint=http://127.0.0.1:1&region=us-east-1";
    let env = [("AWS_ACCESS_KEY_ID", "ci"), ("AWS_SECRET_ACCESS_KEY", "ci-secret")];
    let mut node = Node::new(&scratch, 1, &[&["--repository", url], &FAST[..]].concat());
    node.env = env.map(|(k, v)| (k.to_owned(), v.to_owned())).to_vec();
    node.start();
    let mut history = History::new(&[node.client.clone()]);
    history.load(100).await;
    commands_fail(&scratch, &node.client, url, &env, &["127.0.0.1:1"]);
    let said = until_attention(&node.client, &[shown(url), "127.0.0.1:1"]).await;
    let sentence = said["sentences"][1].as_str().unwrap();
    assert!(sentence.contains("everything may be lost: nothing is known to be in the archive"), "{said}");
    assert!(said["archive_lag_records"].as_u64().unwrap() >= history.last().lsn, "{said}");
    assert!(said["archive_lag_ms"].as_u64().unwrap() > 0, "{said}");
    history.churn("meanwhile", 3).await;
    assert_same(&history.last().all, &read_jsonl(&succeed(&["export", "--endpoints", &node.client])));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_archive_that_was_away_is_behind_and_catches_up_without_a_gap() {
    let scratch = Scratch::new();
    let Some(s3) = S3::of(&scratch) else { return };
    let gate = Gate::before(&s3.endpoint);
    let url = s3.through(&gate.address);
    let mut node = Node::new(&scratch, 1, &[&["--repository", &url], &FAST[..]].concat());
    node.start();
    let mut history = History::new(&[node.client.clone()]);
    history.load(200).await;
    create_base(&node.client);
    history.churn("before", 5).await;
    history.client.wait_archived().await.unwrap();
    let archived = history.last().clone();

    gate.shut();
    history.churn("during", 10).await;
    let said = until_attention(&node.client, &[shown(&url)]).await;
    assert_eq!(said["nodes"][0]["archived_lsn"], archived.lsn, "{said}");
    assert_eq!(said["archive_lag_records"], history.last().lsn - archived.lsn, "{said}");
    let sentence = said["sentences"][1].as_str().unwrap();
    assert!(sentence.contains("would be lost") && !sentence.contains("last 0 ms"), "{said}");

    gate.open();
    history.churn("after", 3).await;
    history.client.wait_archived().await.unwrap();
    until_attention(&node.client, &[]).await;
    node.kill();
    restore_and_compare(&scratch, &url, "latest", &["--to-latest"], history.last()).kill();
    let during = history.moments[history.moments.len() - 7].clone();
    restore_and_compare(&scratch, &url, "during", &["--to-lsn", &during.lsn.to_string()], &during).kill();
}
