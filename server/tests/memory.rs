//! A real node with a small memory limit, written to and read by many clients: what the operating system says that it has.

#![expect(clippy::unwrap_used, reason = "an outside observer, not the core")]

mod support;

use mainstay_client::{Client, Scan, Write};
use mainstay_engine::rng::{Rng, SeededRng};
use support::{Node, Scratch};

const LIMIT_MIB: u64 = 64;
/// What a node may have beside the limit: its code, its threads, and the messages of its clients.
const BESIDE_MIB: u64 = 64;
const CLIENTS: u64 = 8;
const BATCHES: u64 = 300;
/// Of 1 KiB values.
const BATCH: u64 = 50;
const KEYS: u64 = 60_000;

/// The most memory that a process has had, in MiB.
fn peak_mib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() >> 10
}

async fn load(endpoint: String, seed: u64) -> u64 {
    let client = Client::connect([endpoint]).unwrap();
    let rng = SeededRng::new(seed);
    let mut seen = 0;
    for n in 0..BATCHES {
        let mut write = Write::new();
        for _ in 0..BATCH {
            let value: Vec<u8> = (0..64).flat_map(|_| [rng.next_u64().to_le_bytes(), [0; 8]].concat()).collect();
            write = write.put(format!("key {:08}", rng.below(KEYS)), value);
        }
        client.write(write).await.unwrap();
        for _ in 0..20 {
            client.get(format!("key {:08}", rng.below(KEYS))).await.unwrap();
        }
        if n % 100 == 99 {
            let mut all = client.scan(Scan::all()).await.unwrap();
            while all.next().await.unwrap().is_some() {
                seen += 1;
            }
        }
    }
    seen
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_keeps_to_its_memory_limit() {
    let scratch = Scratch::new();
    let mut node = Node::new(&scratch, 1, &[]);
    node.env.push(("MAINSTAY__STORAGE__MEMORY_LIMIT".into(), format!("{LIMIT_MIB}MiB")));
    node.start();
    let clients: Vec<_> = (0..CLIENTS).map(|n| tokio::spawn(load(node.client.clone(), 11 + n))).collect();
    let mut seen = 0;
    for client in clients {
        seen += client.await.unwrap();
    }
    let peak = peak_mib(node.pid());
    println!("{peak} MiB at most, {seen} entries scanned");
    assert!(seen > CLIENTS * KEYS, "{seen} entries scanned: this tests nothing");
    assert!(peak > LIMIT_MIB / 2, "{peak} MiB: this tests nothing");
    assert!(peak <= LIMIT_MIB + BESIDE_MIB, "{peak} MiB, with a limit of {LIMIT_MIB}");
    node.stop();
}
