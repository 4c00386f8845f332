//! What [`Durability::Written`] promises, on a real process that is really killed: so this is a binary of its own,
//! which starts itself again as the process that writes.

#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test fails by panicking and works on real processes and files"
)]

use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use mainstay_engine::batch::{Batch, Keyspace};
use mainstay_engine::rng::{Rng, SeededRng};
use mainstay_engine::store::{Durability, Identity, Store};
use mainstay_engine::value::Value;
use mainstay_engine::{ClusterId, Env, Options, TimelineId};

const CHILD: &str = "MAINSTAY_TEST_WRITE_IN";
const KILLS: u64 = 12;

fn options() -> Options {
    // Small segments and memtables: kills fall between segments and into flushes, too.
    Options { segment_bytes: 1 << 20, memtable_bytes: 256 << 10, ..Options::with_memory_limit(8 << 20) }
}

/// Mostly small, some larger than what goes through a window on the log, few as large as that.
fn value_len(n: u64) -> usize {
    match n % 97 {
        0 => 20_000 + (n % 10_000) as usize,
        1 if n.is_multiple_of(5) => 300_000,
        r => 20 + r as usize * 8,
    }
}

fn value(n: u64) -> Vec<u8> {
    let mut value = vec![n as u8; value_len(n)];
    value[..8].copy_from_slice(&n.to_le_bytes());
    value
}

/// Writes for ever, and says of each write that it was acknowledged.
fn child(dir: &Path, from: u64) {
    let store = Arc::new(Store::open_embedded(Env::real(), dir, &options()).unwrap());
    let _workers = store.start_background().unwrap();
    let mut out = std::io::stdout().lock();
    for n in from.. {
        let mut batch = Batch::new();
        batch.put(&n.to_be_bytes(), &value(n)).unwrap();
        // A sync in between makes the system protect the pages of the window anew.
        let durability = if n % 501 == 0 { Durability::Synced } else { Durability::Written };
        store.write(&batch, &[], durability).unwrap();
        out.write_all(&n.to_le_bytes()).unwrap();
        out.flush().unwrap();
    }
}

#[test]
fn what_was_written_survives_the_end_of_the_process() {
    if let Some(dir) = std::env::var_os(CHILD) {
        let (dir, from) = dir.to_str().unwrap().rsplit_once(',').unwrap();
        return child(Path::new(dir), from.parse().unwrap());
    }
    let seed = std::env::var("MAINSTAY_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(11);
    println!("seed {seed}");
    let rng = SeededRng::new(seed);
    let dir = tempfile::tempdir().unwrap();
    let identity = Identity { cluster: ClusterId(1), timeline: TimelineId(1) };
    drop(Store::create(Env::real(), dir.path(), &options(), identity).unwrap());
    let mut next = 0;
    for kill in 0..KILLS {
        let more = 1 + rng.next_u64() % 4_000;
        let acked = write_and_kill(dir.path(), next, more);
        let store = Store::open_embedded(Env::real(), dir.path(), &options()).unwrap();
        for n in 0..acked {
            let found = store.get(Keyspace::USER, &n.to_be_bytes()).unwrap();
            let found = found.unwrap_or_else(|| panic!("write {n} of {acked} is lost after kill {kill}, seed {seed}"));
            assert_eq!(Value::decode(&found.envelope).unwrap().data, value(n), "write {n}, seed {seed}");
        }
        // What was not acknowledged may be there or not, but nothing behind it.
        next = acked + u64::from(store.get(Keyspace::USER, &acked.to_be_bytes()).unwrap().is_some());
        assert!(store.get(Keyspace::USER, &(next + 1).to_be_bytes()).unwrap().is_none(), "seed {seed}");
    }
    assert!(next > KILLS * 500, "only {next} writes: this tests nothing");
}

/// Kills a process that writes once it has acknowledged `more` writes from `from` on; how many there were in all.
fn write_and_kill(dir: &Path, from: u64, more: u64) -> u64 {
    let test = "what_was_written_survives_the_end_of_the_process";
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture", "-q"])
        .env(CHILD, format!("{},{from}", dir.display()))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut out = child.stdout.take().unwrap();
    // What the test's harness says first.
    let mut first = from.to_le_bytes().to_vec();
    let mut seen = Vec::new();
    while !seen.ends_with(&first) {
        let mut byte = [0];
        out.read_exact(&mut byte).unwrap();
        seen.push(byte[0]);
    }
    first.clear();
    let (mut word, mut acked) = ([0; 8], from + 1);
    while acked < from + more {
        out.read_exact(&mut word).unwrap();
        assert_eq!(u64::from_le_bytes(word), acked);
        acked += 1;
    }
    child.kill().unwrap();
    // What it said before it died counts as well.
    while out.read_exact(&mut word).is_ok() {
        assert_eq!(u64::from_le_bytes(word), acked);
        acked += 1;
    }
    child.wait().unwrap();
    acked
}
