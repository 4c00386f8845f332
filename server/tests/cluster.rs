//! Three real nodes: the modes, catching up from the log and from a checkpoint, promotion by hand,
//! the way back of a deposed primary with an uncommitted tail.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "a test fails by panicking and observes real processes"
)]

mod support;

use std::time::Duration;

use mainstay_client::{Client, ErrorClass, Write};
use support::{Cluster, Node, Scratch, until};

fn client(cluster: &Cluster) -> Client {
    Client::connect(cluster.endpoints()).unwrap()
}

/// A client of one node only.
fn client_of(node: &Node) -> Client {
    Client::connect([node.client.clone()]).unwrap()
}

async fn put_many(client: &Client, from: u32, to: u32) {
    for chunk in (from..to).collect::<Vec<_>>().chunks(100) {
        let mut write = Write::new();
        for i in chunk {
            write = write.put(format!("k{i:06}").as_bytes(), format!("value {i} {}", "x".repeat(200)).as_bytes());
        }
        client.write(write).await.unwrap();
    }
}

async fn durable(client: &Client, endpoint: &str) -> u64 {
    client.status(endpoint).await.map_or(0, |s| s.durable_lsn)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_mode_acknowledges_when_its_rule_is_met_and_not_before() {
    for (mode, survives_one_replica_down, survives_two) in
        [("quorum", true, false), ("sync", false, false), ("semi-sync:1", true, false), ("async", true, true)]
    {
        let scratch = Scratch::new();
        let mut cluster = Cluster::new(&scratch, 3, mode, &[]);
        cluster.start();
        let all = client(&cluster);
        let written = all.put(b"k", b"all up").await.unwrap();
        assert_eq!(written.level, "committed", "{mode}");
        for (down, goes_on) in [(3, survives_one_replica_down), (2, survives_two)] {
            cluster.node(down).kill();
            let hasty = Client::builder()
                .endpoints([cluster.node(1).client.clone()])
                .timeout(Duration::from_secs(if goes_on { 20 } else { 2 }))
                .no_retries()
                .connect()
                .unwrap();
            let put = hasty.put(b"k", format!("without {down}").as_bytes()).await;
            if goes_on {
                put.unwrap_or_else(|e| panic!("{mode} without node {down}: {e}"));
            } else {
                // [I1]: waiting in vain is indeterminate, never "failed"; and [I2]: not visible.
                assert_eq!(put.unwrap_err().class(), ErrorClass::Indeterminate, "{mode} without node {down}");
                let seen = hasty.get(b"k").await.unwrap().unwrap();
                assert_ne!(seen.value, format!("without {down}").as_bytes(), "{mode}");
                break;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_was_away_catches_up_from_the_log_and_serves_stale_reads() {
    let scratch = Scratch::new();
    let mut cluster = Cluster::new(&scratch, 3, "quorum", &[]);
    cluster.start();
    let all = client(&cluster);
    put_many(&all, 0, 1000).await;
    cluster.node(3).kill();
    put_many(&all, 1000, 2000).await;
    cluster.node(3).start();
    let last = all.put(b"last", b"one").await.unwrap();
    let third = cluster.node(3).client.clone();
    let _ = until("node 3 to catch up", || all.status(&third), |s| s.as_ref().is_ok_and(|s| s.applied_lsn >= last.lsn))
        .await;
    let direct = client_of(cluster.node(3));
    let stale = direct.get_stale(b"k001999").await.unwrap().unwrap();
    assert!(stale.value.starts_with(b"value 1999"));
    let status = all.status(&third).await.unwrap();
    assert_eq!((status.role.as_str(), status.primary_id), ("replica", 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_whose_log_is_gone_is_seeded_from_a_checkpoint() {
    let scratch = Scratch::new();
    let config = scratch.join("small.toml");
    std::fs::write(
        &config,
        "[storage]\nmemtable_bytes = 65536\nsegment_bytes = 25165824\nretained_log_bytes = 1048576\n",
    )
    .unwrap();
    let mut cluster = Cluster::new(&scratch, 3, "quorum", &["--config", config.to_str().unwrap()]);
    cluster.start();
    let all = client(&cluster);
    put_many(&all, 0, 500).await;
    cluster.node(3).kill();
    // Far more than is retained for an absent replica.
    for round in 0..8 {
        put_many(&all, round * 40_000, round * 40_000 + 40_000).await;
    }
    let one = cluster.node(1).client.clone();
    let _ = until(
        "the primary to let go of old log",
        || all.status(&one),
        |s| s.as_ref().is_ok_and(|s| s.storage.as_ref().is_some_and(|s| s.oldest_log_lsn > 100)),
    )
    .await;
    cluster.node(3).start();
    let last = all.put(b"last", b"one").await.unwrap();
    let third = cluster.node(3).client.clone();
    let _ = until("node 3 to be seeded", || durable(&all, &third), |d| *d >= last.lsn).await;
    let _ =
        until("node 3 to apply", || all.status(&third), |s| s.as_ref().is_ok_and(|s| s.applied_lsn >= last.lsn)).await;
    let found = client_of(cluster.node(3)).get_stale(b"k000007").await.unwrap().unwrap();
    assert!(found.value.starts_with(b"value 7 "));
    // The old data was kept aside, not deleted.
    let kept = std::fs::read_dir(&cluster.node(3).data).unwrap().filter_map(Result::ok);
    assert!(kept.into_iter().any(|e| e.file_name().to_string_lossy().starts_with("replaced-")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn promotion_by_hand_loses_nothing_and_the_old_primary_comes_back_as_a_replica() {
    let scratch = Scratch::new();
    let mut cluster = Cluster::new(&scratch, 3, "quorum", &[]);
    cluster.start();
    let all = client(&cluster);
    put_many(&all, 0, 1000).await;
    let (one, last) = (cluster.node(1).client.clone(), all.put(b"settled", b"").await.unwrap());
    let _ = until(
        "both replicas to hold everything",
        || all.status(&one),
        |s| s.as_ref().is_ok_and(|s| s.peers.iter().filter(|p| p.durable_lsn >= last.lsn).count() == 2),
    )
    .await;
    // An uncommitted tail on the primary alone: both replicas are down while it is written.
    cluster.node(2).kill();
    cluster.node(3).kill();
    let lonely = Client::builder()
        .endpoints([cluster.node(1).client.clone()])
        .timeout(Duration::from_secs(1))
        .no_retries()
        .connect()
        .unwrap();
    assert_eq!(lonely.put(b"k000000", b"never committed").await.unwrap_err().class(), ErrorClass::Indeterminate);
    cluster.node(1).kill();
    cluster.node(2).start();
    cluster.node(3).start();
    let (two, three) = (cluster.node(2).client.clone(), cluster.node(3).client.clone());
    for endpoint in [&two, &three] {
        until("a node to open its data", || durable(&all, endpoint), |d| *d > 0).await;
    }
    // The one with the longer log must lead; the other one says so.
    let (a, b) = (durable(&all, &two).await, durable(&all, &three).await);
    let best = if a >= b { two } else { three };
    let promoted = all.promote(&best, false).await.unwrap();
    assert!(promoted.epoch > 1, "{promoted:?}");
    put_many(&all, 1000, 1500).await;
    assert!(all.get(b"k000999").await.unwrap().is_some());

    cluster.node(1).start();
    let one = cluster.node(1).client.clone();
    let last = all.put(b"last", b"one").await.unwrap();
    let status = until(
        "node 1 to follow",
        || all.status(&one),
        |s| s.as_ref().is_ok_and(|s| s.applied_lsn >= last.lsn && s.role == "replica"),
    )
    .await
    .unwrap();
    assert_eq!(status.epoch, promoted.epoch);
    let value = client_of(cluster.node(1)).get_stale(b"k000000").await.unwrap().unwrap().value;
    assert!(value.starts_with(b"value 0 "), "the uncommitted tail was cut");
    // [I8]: what was cut is kept.
    let cut = std::fs::read_dir(cluster.node(1).data.join("diverged")).unwrap().count();
    assert_eq!(cut, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_paused_primary_is_deposed_and_acknowledges_nothing_afterwards() {
    let scratch = Scratch::new();
    let mut cluster = Cluster::new(&scratch, 3, "quorum", &[]);
    cluster.start();
    let all = client(&cluster);
    put_many(&all, 0, 200).await;
    cluster.node(1).signal("-STOP");
    let two = cluster.node(2).client.clone();
    let three = cluster.node(3).client.clone();
    let best = if durable(&all, &two).await >= durable(&all, &three).await { two } else { three };
    let promoted = all.promote(&best, false).await.unwrap();
    let new = Client::connect([best.clone()]).unwrap();
    new.put(b"k", b"new reign").await.unwrap();
    cluster.node(1).signal("-CONT");
    let old = Client::builder()
        .endpoints([cluster.node(1).client.clone()])
        .timeout(Duration::from_secs(3))
        .no_retries()
        .connect()
        .unwrap();
    // [I5]: whatever it answers, it is not an acknowledgement of its old epoch.
    if let Ok(w) = old.put(b"k", b"old reign").await {
        assert_eq!(w.epoch, promoted.epoch, "the deposed primary acknowledged a write");
    }
    let one = cluster.node(1).client.clone();
    let _ = until(
        "node 1 to step down",
        || all.status(&one),
        |s| s.as_ref().is_ok_and(|s| s.role == "replica" && s.epoch == promoted.epoch),
    )
    .await;
    assert_eq!(new.get(b"k").await.unwrap().unwrap().value, b"new reign");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_start_in_any_order_and_survive_a_stop_of_all() {
    let scratch = Scratch::new();
    let mut cluster = Cluster::new(&scratch, 3, "quorum", &[]);
    for id in [3, 2, 1] {
        cluster.node(id).start();
    }
    let all = client(&cluster);
    put_many(&all, 0, 300).await;
    for id in [1, 2, 3] {
        cluster.node(id).stop();
    }
    for id in [2, 3, 1] {
        cluster.node(id).start();
    }
    assert!(all.get(b"k000299").await.unwrap().is_some());
    let written = all.put(b"k", b"again").await.unwrap();
    assert!(written.epoch >= 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watcher_sees_every_committed_change_in_order() {
    let scratch = Scratch::new();
    let mut cluster = Cluster::new(&scratch, 3, "quorum", &[]);
    cluster.start();
    let all = client(&cluster);
    let first = all.put(b"a/0", b"0").await.unwrap();
    for i in 1..50u32 {
        all.put(format!("a/{i}").as_bytes(), i.to_string().as_bytes()).await.unwrap();
        all.put(b"b", b"other prefix").await.unwrap();
    }
    let mut watch = all.watch(first.lsn, b"a/", 0).await.unwrap();
    let mut before = 0;
    for i in 0..50u32 {
        let change = watch.next().await.unwrap().unwrap();
        assert!(change.lsn > before, "{change:?}");
        before = change.lsn;
        assert_eq!(change.operations.len(), 1, "{i}: {change:?}");
    }
}
