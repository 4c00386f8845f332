//! A single node under load is killed fifty times at random moments: no acknowledged write may be
//! missing, none that was deleted may come back.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "a test fails by panicking and observes real processes"
)]

mod support;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use tokio::sync::Semaphore;

use mainstay_client::{Client, ErrorClass};
use mainstay_engine::rng::{Rng, SeededRng};
use support::{Node, Scratch};

const KILLS: u64 = 50;
const WRITERS: u64 = 8;
const KEYS: u64 = 40;

/// What may be true of a key: the last acknowledged state, or any state written since whose outcome
/// is not known.
#[derive(Clone, Debug, Default)]
struct Known {
    acked: Option<String>,
    maybe: Vec<Option<String>>,
}

type Ledger = Arc<Mutex<BTreeMap<String, Known>>>;

async fn load(client: Client, writer: u64, round: u64, ledger: Ledger, acks: Arc<Semaphore>, seed: u64) {
    let rng = SeededRng::new(seed ^ (writer << 32) ^ round);
    for n in 0.. {
        // Each writer has keys of its own, so the order of its writes is the order of their effect.
        let key = format!("w{writer}/k{}", rng.below(KEYS));
        let value = (rng.below(4) != 0).then(|| format!("{round}-{n}-{}", "x".repeat(rng.below(300) as usize)));
        ledger.lock().unwrap().entry(key.clone()).or_default().maybe.push(value.clone());
        let done = match &value {
            Some(v) => client.put(key.as_bytes(), v.as_bytes()).await.map(drop),
            None => client.delete(key.as_bytes()).await.map(drop),
        };
        let mut ledger = ledger.lock().unwrap();
        let known = ledger.get_mut(&key).unwrap();
        match done {
            Ok(()) => {
                *known = Known { acked: value, maybe: Vec::new() };
                acks.add_permits(1);
            }
            Err(e) if e.class() == ErrorClass::NotExecuted => {
                known.maybe.pop();
                return;
            }
            Err(_) => return,
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_kills_lose_nothing_and_bring_nothing_back() {
    let seed = std::env::var("MAINSTAY_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(42);
    println!("MAINSTAY_SEED={seed}");
    let scratch = Scratch::new();
    // Small sizes, so that kills meet rotation, flush and compaction.
    let config = scratch.join("small.toml");
    std::fs::write(&config, "[storage]\nmemtable_bytes = 65536\nsegment_bytes = 25165824\n").unwrap();
    let mut node = Node::new(&scratch, 1, &["--config", config.to_str().unwrap()]);
    let ledger = Ledger::default();
    let rng = SeededRng::new(seed);
    let mut total = 0u64;
    for round in 0..KILLS {
        node.start();
        let endpoints = [node.client.clone()];
        let client =
            Client::builder().endpoints(&endpoints).timeout(std::time::Duration::from_secs(5)).connect().unwrap();
        check(&client, &ledger, seed, round).await;
        let acks = Arc::new(Semaphore::new(0));
        let writers: Vec<_> = (0..WRITERS)
            .map(|w| {
                let client = Client::builder().endpoints(&endpoints).no_retries().connect().unwrap();
                tokio::spawn(load(client, w, round, ledger.clone(), acks.clone(), seed))
            })
            .collect();
        let enough = 20 + rng.below(400);
        // Every acknowledgement adds a permit: the kill comes at a random number of them.
        acks.acquire_many(u32::try_from(enough).unwrap()).await.unwrap().forget();
        node.kill();
        for w in writers {
            w.await.unwrap();
        }
        total += enough + acks.available_permits() as u64;
    }
    node.start();
    let client = Client::connect([node.client.clone()]).unwrap();
    check(&client, &ledger, seed, KILLS).await;
    node.stop();
    println!("{total} acknowledged writes survived {KILLS} kills");
}

async fn check(client: &Client, ledger: &Ledger, seed: u64, round: u64) {
    let keys: Vec<String> = ledger.lock().unwrap().keys().cloned().collect();
    for key in keys {
        let found = client.get(key.as_bytes()).await.unwrap().map(|e| String::from_utf8(e.value.to_vec()).unwrap());
        let mut ledger = ledger.lock().unwrap();
        let known = ledger.get_mut(&key).unwrap();
        let legal = found == known.acked || known.maybe.contains(&found);
        assert!(legal, "seed {seed}, after kill {round}: key {key} is {found:?}, but {known:?} is known");
        // What was read is now a fact.
        *known = Known { acked: found, maybe: Vec::new() };
    }
}
