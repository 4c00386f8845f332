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
                let seen = hasty.get_stale(b"k").await.unwrap().unwrap();
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
    let promoted = all.promote(&best, false, &[]).await.unwrap();
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
    let promoted = all.promote(&best, false, &[]).await.unwrap();
    let new = Client::connect([best.clone()]).unwrap();
    new.put(b"k", b"new reign").await.unwrap();
    cluster.node(1).signal("-CONT");
    let old = Client::builder()
        .endpoints([cluster.node(1).client.clone()])
        .timeout(Duration::from_secs(3))
        .no_retries()
        .connect()
        .unwrap();
    // [I5]: whatever it answers, it is not an acknowledgement of its old epoch. A client may have found
    // the new primary by itself; then the write counts.
    let expected: &[&[u8]] = match old.put(b"k", b"sent to the old one").await {
        Ok(w) => {
            assert_eq!(w.epoch, promoted.epoch, "the deposed primary acknowledged a write");
            &[b"sent to the old one"]
        }
        Err(e) if e.class() == ErrorClass::Indeterminate => &[b"new reign", b"sent to the old one"],
        Err(_) => &[b"new reign"],
    };
    let one = cluster.node(1).client.clone();
    let _ = until(
        "node 1 to step down",
        || all.status(&one),
        |s| s.as_ref().is_ok_and(|s| s.role == "replica" && s.epoch == promoted.epoch),
    )
    .await;
    let found = new.get(b"k").await.unwrap().unwrap().value;
    assert!(expected.contains(&found.as_slice()), "{found:?}");
}

/// A primary that slept through a promotion and wakes up alone cannot know of it, so it must not
/// answer a read from what it has.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_primary_that_is_cut_off_refuses_reads_that_could_be_stale() {
    let scratch = Scratch::new();
    let mut cluster = Cluster::new(&scratch, 3, "quorum", &[]);
    cluster.start();
    let all = client(&cluster);
    let written = all.put(b"k", b"old reign").await.unwrap();
    let (one, two, three) =
        (cluster.node(1).client.clone(), cluster.node(2).client.clone(), cluster.node(3).client.clone());
    let lonely =
        Client::builder().endpoints([one.clone()]).timeout(Duration::from_secs(10)).no_retries().connect().unwrap();
    assert_eq!(lonely.get(b"k").await.unwrap().unwrap().value, b"old reign");
    let _ = until(
        "node 1 to see the write",
        || all.status(&one),
        |s| s.as_ref().is_ok_and(|s| s.applied_lsn >= written.lsn),
    )
    .await;
    cluster.node(1).signal("-STOP");
    let best = if durable(&all, &two).await >= durable(&all, &three).await { two } else { three };
    let promoted = all.promote(&best, false, &[]).await.unwrap();
    Client::connect([best.clone()]).unwrap().put(b"k", b"new reign").await.unwrap();
    cluster.node(2).signal("-STOP");
    cluster.node(3).signal("-STOP");
    cluster.node(1).signal("-CONT");
    let refused = lonely.get(b"k").await.unwrap_err();
    assert!(matches!(refused.code(), "NOT_READY" | "NOT_PRIMARY"), "{refused}");
    // What it has is there for who asks for it.
    assert_eq!(lonely.get_stale(b"k").await.unwrap().unwrap().value, b"old reign");
    cluster.node(2).signal("-CONT");
    cluster.node(3).signal("-CONT");
    let _ = until(
        "node 1 to step down by itself",
        || all.status(&one),
        |s| s.as_ref().is_ok_and(|s| s.role == "replica" && s.epoch == promoted.epoch && s.trouble.is_empty()),
    )
    .await;
    let new = Client::connect([best.clone()]).unwrap();
    assert_eq!(new.get(b"k").await.unwrap().unwrap().value, b"new reign");
    let status = all.status(&best).await.unwrap();
    assert_eq!(status.trouble, "", "what kept it from following is over");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_mode_sync_a_promotion_goes_on_without_a_lost_node_and_says_that_it_is_degraded() {
    let scratch = Scratch::new();
    let mut cluster = Cluster::new(&scratch, 3, "sync", &[]);
    cluster.start();
    let all = client(&cluster);
    assert!(!all.put(b"k", b"all").await.unwrap().degraded);
    let one = cluster.node(1).client.clone();
    let healthy = all.promote(&one, false, &[]).await.unwrap_err();
    assert!(healthy.to_string().contains("primary of epoch 1 already"), "{healthy}");
    cluster.node(3).kill();
    let _ = until(
        "the primary to miss node 3",
        || all.status(&one),
        |s| s.as_ref().is_ok_and(|s| s.peers.iter().any(|p| !p.connected)),
    )
    .await;
    let promoted = all.promote(&one, false, &[]).await.unwrap();
    assert_eq!((promoted.epoch, promoted.lossy), (2, false));
    assert!(all.put(b"k", b"two").await.unwrap().degraded, "one copy less, and the acknowledgement says so");
    cluster.node(3).start();
    let _ =
        until("node 3 to be waited for again", || all.status(&one), |s| s.as_ref().is_ok_and(|s| !s.degraded)).await;
    assert!(!all.put(b"k", b"three").await.unwrap().degraded);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_node_goes_on_when_the_operator_names_the_others_destroyed() {
    let scratch = Scratch::new();
    let mut cluster = Cluster::new(&scratch, 3, "quorum", &[]);
    cluster.start();
    let all = client(&cluster);
    put_many(&all, 0, 200).await;
    let (two, last) = (cluster.node(2).client.clone(), all.put(b"last", b"one").await.unwrap());
    let _ = until("node 2 to hold it", || durable(&all, &two), |d| *d >= last.lsn).await;
    for id in [1, 3] {
        cluster.node(id).kill();
        std::fs::remove_dir_all(&cluster.node(id).data).unwrap();
    }
    for (accept_loss, destroyed, why) in [
        (false, &[][..], "fewer than a majority"),
        (true, &[], "fewer than a majority"),
        (true, &[7], "not another voter"),
    ] {
        let refused = all.promote(&two, accept_loss, destroyed).await.unwrap_err();
        assert!(refused.to_string().contains(why), "{refused}");
    }
    let before = all.status(&two).await.unwrap();
    assert_eq!(before.sealed_epoch, 1, "a promotion that was refused changed nothing");
    let promoted = all.promote(&two, true, &[1, 3]).await.unwrap();
    assert!(promoted.lossy && promoted.epoch == 2, "{promoted:?}");
    // Replaced disks are seeded, vote again, and commits go on.
    cluster.node(1).start();
    cluster.node(3).start();
    assert!(all.put(b"k", b"after").await.unwrap().epoch == 2);
    assert_eq!(all.get(b"last").await.unwrap().unwrap().value, b"one");
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
