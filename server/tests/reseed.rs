//! Seeding a replica anew as an operator does it: refused while it could cost data or hold writes up, one replica at a
//! time, and with a way back where the seed does not come.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "a test fails by panicking and observes real processes"
)]

mod support;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use mainstay_client::{Client, ErrorClass};
use serde_json::Value;
use support::{Cluster, PATIENCE, Scratch, check_refusal, json, mainstay, succeed};

/// Looks again until what is seen is good; panics with what was seen last.
fn eventually<T: std::fmt::Debug>(look: impl Fn() -> T, good: impl Fn(&T) -> bool) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        let seen = look();
        if good(&seen) {
            return seen;
        }
        assert!(Instant::now() < end, "{seen:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Directories of data that was set aside.
fn set_aside(data: &Path) -> Vec<PathBuf> {
    let paths = std::fs::read_dir(data).unwrap().map(|e| e.unwrap().path());
    paths.filter(|p| p.file_name().unwrap().to_string_lossy().starts_with("replaced-")).collect()
}

struct Three {
    cluster: Cluster,
    all: String,
    addr: [String; 3],
}

impl Three {
    fn start(scratch: &Scratch, mode: &str) -> Self {
        let mut cluster = Cluster::new(scratch, 3, mode, &[]);
        cluster.start();
        let all = cluster.endpoint_list();
        let addr = [1, 2, 3].map(|id| cluster.node(id).client.clone());
        succeed(&["put", "k", "v", "--endpoints", &all]);
        let three = Self { cluster, all, addr };
        three.caught_up();
        three
    }

    /// From now on the primary, node 1, cannot make a checkpoint to send: a file is in its way. Or it can again.
    fn no_seeds(&mut self, so: bool) {
        let seeds = self.cluster.node(1).data.join("seeds");
        if so {
            let _ = std::fs::remove_dir_all(&seeds);
            std::fs::write(&seeds, b"in the way").unwrap();
        } else {
            std::fs::remove_file(&seeds).unwrap();
        }
    }

    fn status(&self) -> Value {
        json(&["status", "--endpoints", &self.all], &[0, 3])
    }

    /// Every node that is up has all that is committed, and every node is up.
    fn caught_up(&self) {
        eventually(
            || self.status(),
            |status| {
                let nodes = status["nodes"].as_array().unwrap();
                let lead = nodes.iter().find(|n| n["role"] == "primary");
                let to = lead.and_then(|n| n["commit_lsn"].as_u64());
                to.is_some() && nodes.iter().all(|n| n["role"] != "joining" && n["applied_lsn"].as_u64() == to)
            },
        );
    }

    fn reseed(&self, node: u64, more: &[&str]) -> std::process::Output {
        let addr = &self.addr[node as usize - 1];
        mainstay(&[&["cluster", "reseed", "--yes", "--node", addr, "--endpoints", &self.all], more].concat())
    }
}

/// The first replica has given its data up and is not back: nobody else may, until it is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_replica_is_seeded_at_a_time_and_the_refusal_names_it() {
    let scratch = Scratch::new();
    let mut three = Three::start(&scratch, "async");
    let client = Client::connect(three.cluster.endpoints()).unwrap();
    three.no_seeds(true);
    client.reseed(&three.addr[2], false).await.unwrap();
    for more in [&[][..], &["--accept-fewer"]] {
        let refused = three.reseed(2, more);
        check_refusal(&refused, "another one is being seeded", 1, &["node 3 is being seeded", "mainstay status"]);
    }
    let refused = client.reseed(&three.addr[1], true).await.unwrap_err();
    assert_eq!((refused.code(), refused.class()), ("NOT_RESEEDED", ErrorClass::NotExecuted), "{refused}");
    assert_eq!(set_aside(&three.cluster.node(2).data).len(), 0);
    three.no_seeds(false);
    three.caught_up();
    succeed(&["cluster", "reseed", "--yes", "--node", &three.addr[1], "--endpoints", &three.all]);
    three.caught_up();
    assert_eq!(set_aside(&three.cluster.node(2).data).len(), 1);
}

/// What is left without the replica counts, by the mode's own rule, and by copies.
#[test]
fn a_replica_without_which_too_few_copies_are_left_keeps_its_data_unless_that_is_accepted() {
    for (mode, says) in [
        ("quorum", ["node 1 alone", "mode quorum needs more", "writes would wait"]),
        ("async", ["node 1 alone", "node 2", "if that fails meanwhile"]),
    ] {
        let scratch = Scratch::new();
        let mut three = Three::start(&scratch, mode);
        three.cluster.node(3).kill();
        let refused = three.reseed(2, &[]);
        check_refusal(&refused, mode, 1, &[&says[..], &["--accept-fewer", "mainstay status"]].concat());
        assert_eq!(set_aside(&three.cluster.node(2).data).len(), 0, "{mode}");
        let done = three.reseed(2, &["--accept-fewer"]);
        assert!(done.status.success(), "{mode}: {}", String::from_utf8_lossy(&done.stderr));
        assert_eq!(set_aside(&three.cluster.node(2).data).len(), 1, "{mode}");
        succeed(&["put", "k", "after", "--endpoints", &three.all]);
        three.cluster.node(3).start();
        three.caught_up();
    }
}

/// The seed does not come: the node says how its old data gets back into its place, and that works.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn data_that_was_set_aside_is_moved_back_as_the_node_says() {
    let scratch = Scratch::new();
    let mut three = Three::start(&scratch, "quorum");
    three.no_seeds(true);
    let client = Client::connect([three.addr[2].clone()]).unwrap();
    client.reseed(&three.addr[2], false).await.unwrap();
    let data = three.cluster.node(3).data.clone();
    // The manifest goes last.
    let aside = eventually(|| set_aside(&data), |found| found.iter().any(|p| p.join("manifest").exists())).remove(0);
    let back = format!("(if it is not, remove nothing); move what is in {} to {}", aside.display(), data.display());
    let status = eventually(
        || json(&["status", "--endpoints", &three.addr[2]], &[0, 3]),
        |s| s["nodes"][0]["trouble"].as_str().is_some_and(|t| t.contains("seeding from node 1") && t.contains(&back)),
    );
    assert_eq!(status["nodes"][0]["role"], "joining");
    three.cluster.node(3).kill();
    let mut parts: Vec<_> = std::fs::read_dir(&aside).unwrap().map(|e| e.unwrap().file_name()).collect();
    parts.sort_by_key(|name| name == "IDENTITY");
    for name in parts {
        std::fs::rename(aside.join(&name), data.join(&name)).unwrap();
    }
    three.cluster.node(3).start();
    three.caught_up();
    succeed(&["put", "k", "after", "--endpoints", &three.all]);
    three.caught_up();
    assert_eq!(set_aside(&data), [aside], "nothing was set aside again");
}
