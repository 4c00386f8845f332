//! The archive across the ends of its archivers: a restart of all nodes and the loss of the primary leave no gap in it,
//! however much log waits to be archived.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "a test fails by panicking and observes real processes"
)]

mod support;

use std::collections::BTreeMap;

use mainstay_client::{Client, Write};
use mainstay_proto::v1::StatusResponse;
use support::{
    Cluster, Node, PATIENCE, Scratch, assert_same, check_refusal, json, mainstay, read_jsonl, succeed, until,
};

const VALUE_BYTES: usize = 32 << 10;
const BATCH: usize = 16;
/// More than a segment and all that memtables hold: the tables reach beyond the first segment.
const BATCHES: usize = 56;

/// Small segments and memtables; the archiver makes a round at the start of a reign, and the next one never.
fn arguments(scratch: &Scratch, retained: &str) -> Vec<String> {
    let config = scratch.join("small.toml");
    let text = format!(
        "[storage]\nmemory_limit = '32MiB'\nmemtable_bytes = '1MiB'\nsegment_bytes = '21MiB'\nretained_log_bytes = '{retained}'\n"
    );
    std::fs::write(&config, text).unwrap();
    let args =
        ["--repository", &scratch.bucket(), "--archive-interval-ms", "600000", "--config", config.to_str().unwrap()];
    args.map(str::to_owned).to_vec()
}

/// A value that does not compress by much, the same for the same key.
fn value(key: &str) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let seed = key.bytes().fold(0x9e37_79b9_7f4a_7c15_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
    let mut x = seed | 1;
    let mut out = String::with_capacity(VALUE_BYTES);
    while out.len() < VALUE_BYTES {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        (0..10).for_each(|i| out.push(char::from(LETTERS[(x >> (6 * i)) as usize % 64])));
    }
    out
}

/// What was acknowledged.
#[derive(Default)]
struct Written {
    records: BTreeMap<String, String>,
    lsn: u64,
}

impl Written {
    async fn batch(&mut self, client: &Client) {
        let from = self.records.len();
        let mut write = Write::new();
        for key in (from..from + BATCH).map(|i| format!("k{i:06}")) {
            let value = value(&key);
            write = write.put(key.as_bytes(), value.as_bytes());
            self.records.insert(key, value);
        }
        self.lsn = client.write(write).await.unwrap().lsn;
    }

    async fn batches(&mut self, client: &Client, n: usize) {
        for _ in 0..n {
            self.batch(client).await;
        }
    }

    /// Waits until the node knows that all of it is committed, and has little of it outside of tables.
    async fn flushed(&self, client: &Client, endpoint: &str) {
        let few = |s: &StatusResponse| s.storage.as_ref().is_some_and(|s| s.memtable_bytes < 3 << 20);
        let _ = until(
            "a node to flush",
            || client.status(endpoint),
            |s| s.as_ref().is_ok_and(|s| s.commit_lsn >= self.lsn && s.applied_lsn >= self.lsn && few(s)),
        )
        .await;
    }
}

/// How far the archive of this node reaches, and what keeps it from going on.
async fn archived(client: &Client, endpoint: &str) -> (u64, String) {
    let status = client.status(endpoint).await.ok();
    let archive = status.and_then(|s| s.archive).unwrap_or_default();
    (archive.archived_lsn, archive.last_error)
}

/// Waits for the first round of the archiver of a reign, which has to get beyond `before`.
async fn goes_on(client: &Client, endpoints: &[String], before: u64) {
    let ask = || async {
        let mut all = Vec::new();
        for endpoint in endpoints {
            all.push(archived(client, endpoint).await);
        }
        all
    };
    let is_over = |all: &Vec<(u64, String)>| all.iter().any(|(lsn, error)| *lsn > before || !error.is_empty());
    let all = until("the archive to go on", ask, is_over).await;
    assert!(all.iter().all(|(_, error)| error.is_empty()), "the archive ended at LSN {before}: {all:?}");
    let status = json(&["status", "--endpoints", &endpoints.join(",")], &[0, 3]);
    assert!(!status["attention"].to_string().contains("archive"), "{status:#}");
}

fn three(scratch: &Scratch) -> Cluster {
    let args = arguments(scratch, "1GiB");
    Cluster::new(scratch, 3, "quorum", &args.iter().map(String::as_str).collect::<Vec<_>>())
}

/// A cluster with a base backup and an archive that reaches little further, and much that is flushed and not archived.
/// The LSN where the archive ends.
async fn with_much_to_archive(cluster: &mut Cluster) -> (Client, Written, u64) {
    cluster.start();
    let endpoints = cluster.endpoints();
    let all = Client::builder().endpoints(endpoints.clone()).timeout(PATIENCE).connect().unwrap();
    let _ = until("the first round", || archived(&all, &endpoints[0]), |(lsn, _)| *lsn > 0).await;
    succeed(&["backup", "create", "--endpoints", &endpoints.join(",")]);
    let mut written = Written::default();
    written.batches(&all, BATCHES).await;
    for endpoint in &endpoints {
        written.flushed(&all, endpoint).await;
    }
    let (end, _) = archived(&all, &endpoints[0]).await;
    assert!(end < written.lsn - BATCHES as u64 / 2, "the archiver made another round: {end} of {}", written.lsn);
    (all, written, end)
}

/// Stops all nodes in order, which archives what is committed, and compares a restore of the newest state.
fn restore_and_compare(scratch: &Scratch, cluster: &mut Cluster, expected: &BTreeMap<String, String>) {
    for node in cluster.nodes.iter_mut().filter(|n| n.is_running()) {
        node.stop();
    }
    let restored = scratch.join("restored");
    let (bucket, data) = (scratch.bucket(), restored.to_str().unwrap());
    succeed(&["restore", "--repository", &bucket, "--data", data, "--to-latest"]);
    let mut node = Node::new(scratch, 9, &[]);
    node.data = restored;
    node.start();
    assert_same(expected, &read_jsonl(&succeed(&["export", "--endpoints", &node.client])));
    node.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_archive_goes_on_without_a_gap_after_all_nodes_were_killed() {
    let scratch = Scratch::new();
    let mut cluster = three(&scratch);
    let (all, written, end) = with_much_to_archive(&mut cluster).await;
    for node in &mut cluster.nodes {
        node.kill();
    }
    cluster.start();
    goes_on(&all, &cluster.endpoints(), end).await;
    restore_and_compare(&scratch, &mut cluster, &written.records);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_archive_goes_on_without_a_gap_at_a_new_primary() {
    let scratch = Scratch::new();
    let mut cluster = three(&scratch);
    let (all, mut written, end) = with_much_to_archive(&mut cluster).await;
    cluster.node(1).kill();
    let (two, three) = (cluster.node(2).client.clone(), cluster.node(3).client.clone());
    all.promote(&two, false, &[]).await.unwrap();
    goes_on(&all, &[two, three], end).await;
    written.batch(&all).await;
    restore_and_compare(&scratch, &mut cluster, &written.records);
}

/// A running node, alone, whose archive has a base backup and has come to the end of its first round.
async fn alone(scratch: &Scratch, args: &[String]) -> (Node, Client, u64) {
    let mut node = Node::new(scratch, 1, &args.iter().map(String::as_str).collect::<Vec<_>>());
    node.start();
    let client = Client::builder().endpoints([node.client.clone()]).timeout(PATIENCE).connect().unwrap();
    let (end, _) = until("the first round", || archived(&client, &node.client), |(lsn, _)| *lsn > 0).await;
    succeed(&["backup", "create", "--endpoints", &node.client]);
    (node, client, end)
}

/// What needs attention, and how much log the archive still needs.
fn attention(node: &Node) -> (String, u64) {
    let status = json(&["status", "--endpoints", &node.client], &[0, 3]);
    (status["attention"].to_string(), status["archive_needs_log_bytes"].as_u64().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn status_warns_before_the_log_lets_go_of_what_is_not_archived() {
    let scratch = Scratch::new();
    let (node, client, end) = alone(&scratch, &arguments(&scratch, "4MiB")).await;
    let mut written = Written::default();
    // The segment that the archive ends in does not count: no warning before it is full.
    let warning = loop {
        let (said, needed) = attention(&node);
        if needed > 2 << 20 {
            break said;
        }
        assert_eq!(said, "[]", "at {needed} bytes");
        assert!(written.records.len() < 2 * BATCHES * BATCH, "no warning");
        written.batch(&client).await;
    };
    assert!(warning.contains("storage.retained_log_bytes") && warning.contains("4.00 MiB"), "{warning}");
    let text = mainstay(&["status", "--endpoints", &node.client]);
    assert_eq!(text.status.code(), Some(3));
    assert!(String::from_utf8_lossy(&text.stdout).contains("\nattention: archive: it still needs 2."), "{text:?}");
    // It came in time.
    let storage = client.status(&node.client).await.unwrap().storage.unwrap();
    assert!(storage.oldest_log_lsn <= end + 1, "{storage:?}, the archive ends at {end}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_archive_that_ended_at_a_gap_goes_on_behind_it_when_that_is_accepted() {
    let scratch = Scratch::new();
    let (mut node, client, end) = alone(&scratch, &arguments(&scratch, "1MiB")).await;
    let endpoint = node.client.clone();
    let listed = json(&["backup", "list", "--repository", &scratch.bucket()], &[0]);
    let accept = ["backup", "create", "--accept-gap", "--endpoints", &endpoint];
    check_refusal(&mainstay(&accept), "no gap to accept", 1, &["not ended at a gap"]);

    let mut written = Written::default();
    let oldest =
        || async { client.status(&endpoint).await.map_or(0, |s| s.storage.unwrap_or_default().oldest_log_lsn) };
    while oldest().await <= end + 1 {
        assert!(written.records.len() < 2 * BATCHES * BATCH, "the log keeps everything");
        written.batch(&client).await;
    }
    node.kill();
    node.start();
    let (_, why) = until("the gap", || archived(&client, &endpoint), |(_, error)| !error.is_empty()).await;
    assert!(why.contains("are in no archive") && why.contains("`mainstay backup create --accept-gap`"), "{why}");
    assert!(attention(&node).0.contains(&format!("LSN {}-", end + 1)), "{}", attention(&node).0);

    // Another base alone accepts nothing.
    succeed(&["backup", "create", "--endpoints", &endpoint]);
    assert_eq!(archived(&client, &endpoint).await, (end, why));

    let base = json(&accept, &[0]);
    let lsn = |v: &serde_json::Value| v.as_u64().unwrap();
    let (cut, first, last) = (lsn(&base["lsn"]), lsn(&base["gap"][0]), lsn(&base["gap"][1]));
    assert!(first == end + 1 && first <= last && last < cut, "{base}, the archive ended at {end}");
    assert_eq!(attention(&node).0, "[]");
    // It is accepted for good: the next archiver finds no gap.
    let (before, _) = archived(&client, &endpoint).await;
    written.batch(&client).await;
    node.kill();
    node.start();
    goes_on(&client, std::slice::from_ref(&endpoint), before).await;
    let (then, at) = (written.records.clone(), written.lsn.to_string());
    written.batch(&client).await;
    node.stop();

    let bucket = scratch.bucket();
    let restore = |name: &str, target: &[&str]| {
        let data = scratch.join(name);
        mainstay(&[&["restore", "--repository", &bucket, "--data", data.to_str().unwrap()], target].concat())
    };
    // The first base may be a record or two ahead of the archive.
    let reachable = end.max(lsn(&listed["bases"][0]["lsn"]));
    for inside in [reachable + 1, last, cut - 1] {
        let refused = restore("inside", &["--to-lsn", &inside.to_string()]);
        check_refusal(&refused, &format!("LSN {inside}"), 1, &["the archive lacks", &format!("-{inside} of timeline")]);
    }
    assert!(restore("behind", &["--to-lsn", &at]).status.success());
    let mut restored = Node::new(&scratch, 9, &[]);
    restored.data = scratch.join("behind");
    restored.start();
    assert_same(&then, &read_jsonl(&succeed(&["export", "--endpoints", &restored.client])));
    restored.stop();
    for (name, at) in [("cut", cut), ("before", reachable)] {
        assert!(restore(name, &["--to-lsn", &at.to_string()]).status.success(), "{name}");
    }
}
