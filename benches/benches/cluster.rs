//! Put, get and scan rates of one node and of three nodes in each mode, through the client library,
//! with real processes, real disks and loopback sockets.
//!
//! `cargo bench -p mainstay-benches --bench cluster -- [--quick] [--json FILE]`

#![expect(clippy::disallowed_methods, reason = "a benchmark measures real time")]

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use hdrhistogram::Histogram;
use mainstay_benches::{Nodes, figure};
use mainstay_client::{Client, Scan};

struct Plan {
    seconds: Duration,
    keys: u64,
    rounds: usize,
    json: Option<PathBuf>,
    binary: PathBuf,
}

/// The release binary, built by `cargo` on demand so that the one command suffices.
fn binary() -> anyhow::Result<PathBuf> {
    let mut build = std::process::Command::new(std::env::var("CARGO").unwrap_or_else(|_| "cargo".into()));
    build.args(["build", "--release", "-p", "mainstay", "--bin", "mainstay"]);
    // What cargo told this process about its own package would make build scripts run anew.
    for (name, _) in std::env::vars().filter(|(n, _)| n.starts_with("CARGO_PKG_") || n.starts_with("CARGO_MANIFEST_")) {
        build.env_remove(name);
    }
    let status = build.env_remove("LD_LIBRARY_PATH").status()?;
    anyhow::ensure!(status.success(), "the server does not build");
    let exe = std::env::current_exe()?;
    let dir = exe.ancestors().nth(2).context("no target directory")?;
    Ok(dir.join("mainstay"))
}

fn main() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1);
    let mut plan = Plan { seconds: Duration::from_secs(5), keys: 50_000, rounds: 3, json: None, binary: binary()? };
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--quick" => (plan.seconds, plan.keys, plan.rounds) = (Duration::from_secs(2), 10_000, 1),
            "--json" => plan.json = Some(args.next().context("--json needs a file")?.into()),
            // What cargo passes to every benchmark.
            "--bench" => {}
            other => anyhow::bail!("unknown argument {other}; use --quick or --json FILE"),
        }
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    println!("1 KiB values, 16-byte keys, medians of {} runs of {:?}", plan.rounds, plan.seconds);
    for (n, mode, name) in [
        (1, "async", "one node"),
        (3, "async", "three nodes async"),
        (3, "semi-sync:1", "three nodes semi-sync"),
        (3, "quorum", "three nodes quorum"),
        (3, "sync", "three nodes sync"),
    ] {
        let nodes = Nodes::start(&plan.binary, n, mode)?;
        runtime.block_on(measure(&plan, &nodes, name))?;
    }
    Ok(())
}

fn key(i: u64) -> Vec<u8> {
    format!("key-{i:012}").into_bytes()
}

async fn measure(plan: &Plan, nodes: &Nodes, name: &str) -> anyhow::Result<()> {
    let client = Client::connect(&nodes.endpoints)?;
    let file = plan.json.as_deref();
    for clients in [1, 16, 64] {
        let (rate, p50, p99) = rounds(plan, &client, clients, Kind::Put).await?;
        figure(file, &format!("put-{clients}"), name, rate, "op/s")?;
        figure(file, &format!("put-{clients}-p50"), name, p50, "us")?;
        figure(file, &format!("put-{clients}-p99"), name, p99, "us")?;
    }
    for clients in [1, 16] {
        let (rate, p50, p99) = rounds(plan, &client, clients, Kind::Get).await?;
        figure(file, &format!("get-{clients}"), name, rate, "op/s")?;
        figure(file, &format!("get-{clients}-p50"), name, p50, "us")?;
        figure(file, &format!("get-{clients}-p99"), name, p99, "us")?;
    }
    let start = Instant::now();
    let mut scan = client.scan(Scan::all()).await?;
    let mut entries = 0u64;
    while scan.next().await?.is_some() {
        entries += 1;
    }
    figure(file, "scan", name, entries as f64 / start.elapsed().as_secs_f64(), "entries/s")
}

#[derive(Clone, Copy)]
enum Kind {
    Put,
    Get,
}

/// Median rate in op/s, and the latencies of all rounds in microseconds.
async fn rounds(plan: &Plan, client: &Client, clients: u64, kind: Kind) -> anyhow::Result<(f64, f64, f64)> {
    let mut rates = Vec::new();
    let mut latencies = Histogram::<u64>::new(3)?;
    for _ in 0..plan.rounds {
        let next = Arc::new(AtomicU64::new(0));
        let start = Instant::now();
        let tasks: Vec<_> = (0..clients)
            .map(|_| tokio::spawn(one(client.clone(), kind, plan.keys, plan.seconds, start, Arc::clone(&next))))
            .collect();
        for t in tasks {
            latencies.add(t.await??)?;
        }
        rates.push(next.load(Ordering::Relaxed) as f64 / start.elapsed().as_secs_f64());
    }
    rates.sort_by(f64::total_cmp);
    let median = rates.get(rates.len() / 2).copied().unwrap_or_default();
    Ok((median, latencies.value_at_quantile(0.5) as f64, latencies.value_at_quantile(0.99) as f64))
}

async fn one(
    client: Client,
    kind: Kind,
    keys: u64,
    seconds: Duration,
    start: Instant,
    next: Arc<AtomicU64>,
) -> anyhow::Result<Histogram<u64>> {
    let mut latencies = Histogram::new(3)?;
    // Half of it compresses.
    let value: Vec<u8> =
        (0..1024u32).map(|i| if i % 2 == 0 { b'v' } else { (i.wrapping_mul(2_654_435_761) >> 24) as u8 }).collect();
    while start.elapsed() < seconds {
        let i = next.fetch_add(1, Ordering::Relaxed).wrapping_mul(0x9e37_79b9_7f4a_7c15) % keys;
        let before = Instant::now();
        match kind {
            Kind::Put => drop(client.put(key(i), value.as_slice()).await?),
            Kind::Get => drop(client.get(key(i)).await?),
        }
        latencies.record(u64::try_from(before.elapsed().as_micros())?)?;
    }
    Ok(latencies)
}
