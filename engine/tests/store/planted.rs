//! The same tests with a rule broken on purpose: each must notice. (Acknowledging before the sync is
//! noticed by the log's own tests, which lose power during the sync.)

use std::panic::{AssertUnwindSafe, catch_unwind};

use mainstay_engine::batch::Keyspace;
use mainstay_engine::bulk::Place;
use mainstay_engine::fault::{Bug, plant};
use mainstay_engine::rng::{Rng, SeededRng};

use crate::world::{Act, World};

/// Runs random traces with power losses until one notices something, quietly.
fn noticed(bug: Bug) -> bool {
    let _planted = plant(bug);
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| ()));
    let found = (0..200).any(|seed| catch_unwind(AssertUnwindSafe(|| trace(seed))).is_err());
    std::panic::set_hook(hook);
    found
}

fn trace(seed: u64) {
    let rng = SeededRng::new(seed);
    let mut world = World::new(seed);
    for _ in 0..120 {
        let act = match rng.below(17) {
            0..=6 => Act::Put(Keyspace::USER, (0..6).map(|_| (rng.next_u64() as u8, rng.next_u64() as u16)).collect()),
            7 => Act::Delete(Keyspace::USER, rng.next_u64() as u8),
            8 | 9 => Act::Sync,
            10 => Act::Commit,
            11 => Act::Apply,
            12 => Act::Freeze,
            13 => Act::Maintain,
            14 => Act::Cut(rng.below(5) as u8),
            15 => Act::Ingest((0..4).map(|_| (rng.next_u64() as u8, rng.next_u64() as u16)).collect(), Place::Link),
            _ => {
                world.store = None;
                world.fs.crash();
                world.reopen();
                continue;
            }
        };
        world.act(&act).unwrap();
        world.check_visible();
    }
}

#[test]
fn without_a_planted_bug_the_traces_pass() {
    for seed in 0..200 {
        trace(seed);
    }
}

#[test]
fn showing_records_above_the_commit_lsn_is_noticed() {
    assert!(noticed(Bug::VisibleAboveCommit), "[I2]");
}

#[test]
fn leaving_out_the_directory_sync_is_noticed() {
    assert!(noticed(Bug::SkipDirectorySync), "[I3]");
}

#[test]
fn cutting_below_the_commit_lsn_is_noticed() {
    assert!(noticed(Bug::CutBelowCommit), "[I8]");
}

#[test]
fn reading_ingested_tables_at_another_lsn_than_their_records_is_noticed() {
    assert!(noticed(Bug::ForgetIngestLsn));
}

#[test]
fn removing_the_tables_of_an_ingest_that_only_the_log_names_is_noticed() {
    assert!(noticed(Bug::TidyIngested), "[I3]");
}

#[test]
fn leaving_old_bytes_behind_a_cut_is_noticed() {
    assert!(noticed(Bug::SkipZeroAfterCut), "[I4]");
}
