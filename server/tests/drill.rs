//! The drill on real processes: it passes when nothing is broken, and fails when something is.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "a test fails by panicking and observes real processes"
)]

mod support;

use support::{Scratch, mainstay};

fn drill(args: &[&str]) -> (i32, serde_json::Value) {
    let scratch = Scratch::new();
    let dir = scratch.join("report");
    let mut all = vec!["drill", "run"];
    all.extend(args);
    all.extend(["--records", "500", "--duration", "2s", "--report", dir.to_str().unwrap()]);
    let out = mainstay(&all);
    let text = std::fs::read_to_string(dir.join("report.json"))
        .unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&out.stderr)));
    (out.status.code().unwrap(), serde_json::from_str(&text).unwrap())
}

fn passes(args: &[&str]) {
    let (code, report) = drill(args);
    let run = &report["runs"][0];
    assert_eq!((code, run["verdict"].as_str()), (0, Some("pass")), "{run:#}");
    assert!(run["acked"].as_u64().unwrap() > 50 && run["rto"]["first_write_s"].as_f64().unwrap() > 0.0, "{run:#}");
    assert_eq!((run["counts"]["torn"].as_u64(), run["counts"]["wrong"].as_u64()), (Some(0), Some(0)), "{run:#}");
    assert_eq!(report["schema"], 1);
}

/// The drill fails, for one of these reasons.
fn fails(args: &[&str], why: &[&str]) {
    let (code, report) = drill(args);
    let run = &report["runs"][0];
    assert_eq!((code, run["verdict"].as_str()), (4, Some("fail")), "{run:#}");
    let reasons = run["reasons"].to_string();
    assert!(why.iter().any(|why| reasons.contains(why)), "{run:#}");
}

#[test]
fn a_primary_crash_loses_nothing_in_quorum_and_sync() {
    passes(&["primary-crash"]);
    passes(&["primary-crash", "--mode", "sync"]);
}

#[test]
fn a_fat_finger_is_undone_exactly() {
    passes(&["fat-finger"]);
}

#[test]
fn a_lost_region_comes_back_from_the_bucket() {
    passes(&["region-loss"]);
}

#[test]
fn a_lost_acknowledged_write_fails_the_drill() {
    fails(&["primary-crash", "--sabotage", "lose-acked"], &["acknowledged writes are lost"]);
}

#[test]
fn a_key_that_nobody_wrote_fails_the_drill() {
    fails(&["fat-finger", "--sabotage", "skip-ledger-writes"], &["nobody wrote"]);
}

#[test]
fn a_hole_in_the_archive_fails_the_drill() {
    // Where the object that was removed is the newest one, there is no hole but an archive that ends too early.
    let reasons = ["the archive lacks", "was archived before the fault, the restore landed at"];
    fails(&["region-loss", "--sabotage", "drop-archive-object"], &reasons);
}
