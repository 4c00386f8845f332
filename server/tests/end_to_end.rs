//! The main job: import into three nodes, back up, damage a tenth, restore to the moment before,
//! compare every record. On a sample of its own, and on the full package index where it is present.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "a test fails by panicking and observes real processes"
)]

mod support;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use mainstay_client::{Client, Write};
use support::{Cluster, Node, Scratch, assert_same, read_jsonl, s3_repository, sample, succeed, write_jsonl};

/// Imports `input`, backs up, overwrites and deletes a tenth, restores to before, compares.
async fn round_trip(scratch: &Scratch, bucket: &str, input: &Path, records: &BTreeMap<String, String>) {
    let mut cluster = Cluster::new(scratch, 3, "quorum", &["--repository", bucket]);
    cluster.start();
    let endpoints = cluster.endpoint_list();

    let half = scratch.join("second-half.jsonl");
    let second: BTreeMap<_, _> = records.iter().step_by(2).map(|(k, v)| (k.clone(), v.clone())).collect();
    write_jsonl(&half, &second);

    succeed(&["import", input.to_str().unwrap(), "--endpoints", &endpoints]);
    succeed(&["backup", "create", "--endpoints", &endpoints]);
    // More history after the base, so that the restore replays the archive: the same values again.
    succeed(&["import", half.to_str().unwrap(), "--endpoints", &endpoints]);

    let client = Client::connect(cluster.endpoints()).unwrap();
    let before = client.put(b"zz-marker", b"the last good write").await.unwrap();
    damage_a_tenth(&client, records).await;
    client.wait_archived().await.unwrap();
    let damaged = read_jsonl(&succeed(&["export", "debian/", "--endpoints", &endpoints]));
    assert!(damaged.len() < records.len(), "the damage did nothing");
    for node in &mut cluster.nodes {
        node.kill();
        std::fs::remove_dir_all(&node.data).unwrap();
    }

    let restored = scratch.join("restored");
    let lsn = before.lsn.to_string();
    let out = succeed(&[
        "restore",
        "--repository",
        bucket,
        "--data",
        restored.to_str().unwrap(),
        "--to-lsn",
        &lsn,
        "-o",
        "json",
    ]);
    let report: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(report["lsn"].as_u64(), Some(before.lsn), "{report}");

    let mut node = Node::new(scratch, 9, &[]);
    node.data = restored;
    node.start();
    let mut found = read_jsonl(&succeed(&["export", "--endpoints", &node.client]));
    assert_eq!(found.remove("zz-marker").as_deref(), Some("the last good write"));
    assert_same(records, &found);
    // The new history goes on, above everything the old one used.
    let client = Client::connect([node.client.clone()]).unwrap();
    let after = client.put(b"zz-after", b"restored").await.unwrap();
    assert!(after.lsn > before.lsn + (1 << 32) && after.epoch > before.epoch, "{after:?}");
    node.stop();
}

async fn damage_a_tenth(client: &Client, records: &BTreeMap<String, String>) {
    let tenth: Vec<&String> = records.keys().step_by(10).collect();
    for some in tenth.chunks(500) {
        let mut write = Write::new();
        for (i, key) in some.iter().enumerate() {
            write = if i % 2 == 0 {
                write.put(key.as_bytes(), b"overwritten by mistake")
            } else {
                write.delete(key.as_bytes())
            };
        }
        client.write(write).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sample_comes_back_whole_after_losing_everything() {
    let scratch = Scratch::new();
    let (path, records) = (scratch.join("sample.jsonl"), sample(3000));
    write_jsonl(&path, &records);
    round_trip(&scratch, &scratch.bucket(), &path, &records).await;
}

/// The same through a real S3 API, by the binary alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sample_comes_back_whole_from_s3_after_losing_everything() {
    let Some(bucket) = s3_repository("end-to-end") else { return };
    let scratch = Scratch::new();
    let (path, records) = (scratch.join("sample.jsonl"), sample(1500));
    write_jsonl(&path, &records);
    round_trip(&scratch, &bucket, &path, &records).await;
}

/// The full index: 63,440 records. `MAINSTAY_DEBIAN_DATA` names the file; continuous integration
/// requires it (`MAINSTAY_REQUIRE_DATA=1`), elsewhere its absence is said.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_package_index_comes_back_whole_after_losing_everything() {
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
    assert!(records.len() > 60_000, "{} records", records.len());
    let scratch = Scratch::new();
    round_trip(&scratch, &scratch.bucket(), &path, &records).await;
}
