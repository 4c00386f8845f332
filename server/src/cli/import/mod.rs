//! `mainstay import`: the records of a JSON Lines file, in atomic batches, several in flight.
//!
//! Owns: the order (for each key the last line of the file wins), stopping at the first error, and
//! saying exactly how far it came. Never: the whole file in memory.

mod read;

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use clap::Args;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use mainstay_client::{Client, Error, Write, Written};
use serde::Serialize;
use tokio::sync::mpsc;

use self::read::{Batch, Reader, Stopped};
use super::progress::Progress;
use super::put::AckLevel;
use super::{Global, connect, output};
use crate::codes::Exit;

/// Write the records of a JSON Lines file
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  mainstay import users.jsonl
  mainstay import users.jsonl.zst --parallel 16
  mainstay export --endpoints old:7400 | mainstay import - --endpoints new:7400

One record a line: {\"key\":\"a\",\"value\":\"1\"}. Bytes that are not UTF-8 go into \"key_base64\" and
\"value_base64\"; \"ttl_ms\" or \"expiry_us\" let a record expire. A batch is applied whole or not at all; at the
first error nothing more is sent, and the line is named. Running an import again is safe.")]
pub struct ImportArgs {
    /// The file, plain or zstd; - reads stdin
    #[arg(value_name = "FILE")]
    file: String,
    /// Most records in one batch
    #[arg(long, value_name = "N", default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    batch_records: u32,
    /// Most batches in flight
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=256))]
    parallel: u16,
    /// How sure a batch must be before it counts
    #[arg(long, value_enum, default_value_t = AckLevel::Committed)]
    ack: AckLevel,
}

/// What has been acknowledged.
#[derive(Clone, Copy, Debug, Default, Serialize)]
struct Tally {
    records: u64,
    expired: u64,
    bytes: u64,
    last_lsn: u64,
    degraded: bool,
}

#[derive(Serialize)]
struct Summary {
    #[serde(flatten)]
    tally: Tally,
    seconds: f64,
    records_per_second: f64,
}

/// Why an import ended early.
enum Trouble {
    /// The file, from this line on.
    Input(Stopped),
    /// A batch that was refused or whose outcome is unknown.
    Refused { first_line: u64, last_line: u64, error: Error },
    /// Ctrl-C.
    Interrupted,
}

/// A batch in flight.
struct Sent {
    first_line: u64,
    last_line: u64,
    tally: Tally,
    keys: Vec<u64>,
    result: Result<Written, Error>,
}

async fn send(client: Client, batch: Batch, ack: AckLevel) -> Sent {
    let tally = Tally { records: batch.records, expired: batch.expired, bytes: batch.bytes, ..Tally::default() };
    let keys = batch.keys();
    let mut write = Write::new().ack(ack.ack());
    let empty = batch.puts.is_empty();
    for put in batch.puts {
        write = match put.ttl {
            Some(ttl) => write.put_ttl(put.key, put.value, ttl),
            None => write.put(put.key, put.value),
        };
    }
    let result = match empty {
        // Every record had expired; there is nothing to write.
        true => Ok(Written::default()),
        false => client.write(write).await,
    };
    Sent { first_line: batch.first_line, last_line: batch.last_line, tally, keys, result }
}

pub(super) async fn run(global: &Global, args: ImportArgs) -> anyhow::Result<Exit> {
    let client = connect::client(global)?;
    let consumed = Arc::new(AtomicU64::new(0));
    let (reader, total) = Reader::open(&args.file, args.batch_records as usize, Arc::clone(&consumed))?;
    let (tx, rx) = mpsc::channel(1);
    tokio::task::spawn_blocking(move || reader.run(&tx));
    let mut progress = Progress::bytes("import", total);
    let import = Import { client, ack: args.ack, parallel: usize::from(args.parallel), input: rx };
    let (tally, trouble) =
        import.run(|t| progress.at(consumed.load(Ordering::Relaxed), total, || format!("{} records", t.records))).await;
    progress.clear();
    match trouble {
        None => {
            let seconds = progress.seconds();
            let summary = Summary { tally, seconds, records_per_second: tally.records as f64 / seconds.max(1e-9) };
            output::print(global.output, &summary, || text(&summary))?;
            Ok(if tally.degraded { Exit::Warnings } else { Exit::Ok })
        }
        Some(Trouble::Interrupted) => {
            output::say(format!("interrupted: {} records were imported; run it again to import all", tally.records));
            Ok(Exit::Interrupted)
        }
        Some(Trouble::Input(stopped)) => {
            let imported = tally.records;
            anyhow::bail!(
                "line {}: {} (the {imported} records of the batches before it were imported, nothing of its own batch)",
                stopped.line,
                stopped.what
            )
        }
        Some(Trouble::Refused { first_line, last_line, error }) => {
            let imported = tally.records;
            let what = format!(
                "lines {first_line} to {last_line} were not acknowledged; all lines before {first_line} are imported, {imported} records altogether"
            );
            Err(anyhow::Error::new(error).context(what))
        }
    }
}

fn text(s: &Summary) -> String {
    let t = &s.tally;
    let expired = if t.expired > 0 { format!(", {} had expired", t.expired) } else { String::new() };
    let degraded = if t.degraded { "; the cluster is degraded" } else { "" };
    format!(
        "imported {} records{expired}, {}, in {:.1} s, {:.0} records/s, last LSN {}{degraded}",
        t.records,
        output::bytes(t.bytes),
        s.seconds,
        s.records_per_second,
        t.last_lsn
    )
}

struct Import {
    client: Client,
    ack: AckLevel,
    parallel: usize,
    input: mpsc::Receiver<Result<Batch, Stopped>>,
}

impl Import {
    /// Sends batches until the input ends or something goes wrong; then waits for those in flight.
    async fn run(mut self, mut progress: impl FnMut(&Tally)) -> (Tally, Option<Trouble>) {
        let mut tally = Tally::default();
        let mut trouble: Option<Trouble> = None;
        let mut in_flight = FuturesUnordered::new();
        // Hashes of the keys in flight. A batch that shares one waits, so that two writes of one
        // key never overtake each other; a collision of hashes only waits for nothing.
        let mut busy: HashSet<u64> = HashSet::new();
        let mut held: Option<Batch> = None;
        let mut ended = false;
        let mut tick = tokio::time::interval(Duration::from_millis(200));
        let mut interrupt = std::pin::pin!(tokio::signal::ctrl_c());
        loop {
            let stopped = trouble.is_some();
            if let Some(batch) = held.take_if(|b| !stopped && b.keys().iter().all(|k| !busy.contains(k))) {
                busy.extend(batch.keys());
                in_flight.push(send(self.client.clone(), batch, self.ack));
            }
            if in_flight.is_empty() && (stopped || (ended && held.is_none())) {
                return (tally, trouble);
            }
            let room = !stopped && !ended && held.is_none() && in_flight.len() < self.parallel;
            tokio::select! {
                Some(sent) = in_flight.next(), if !in_flight.is_empty() => {
                    sent.keys.iter().for_each(|k| { busy.remove(k); });
                    settle(sent, &mut tally, &mut trouble);
                }
                next = self.input.recv(), if room => match next {
                    Some(Ok(batch)) => held = Some(batch),
                    Some(Err(stopped)) => trouble = Some(Trouble::Input(stopped)),
                    None => ended = true,
                },
                _ = &mut interrupt, if !stopped => trouble = Some(Trouble::Interrupted),
                _ = tick.tick() => progress(&tally),
            }
        }
    }
}

/// Counts an acknowledged batch; of several refused ones the earliest is kept.
fn settle(sent: Sent, tally: &mut Tally, trouble: &mut Option<Trouble>) {
    match sent.result {
        Ok(written) => {
            tally.records += sent.tally.records;
            tally.expired += sent.tally.expired;
            tally.bytes += sent.tally.bytes;
            tally.last_lsn = tally.last_lsn.max(written.lsn);
            tally.degraded |= written.degraded;
        }
        Err(error) => {
            let earlier = match trouble {
                Some(Trouble::Refused { first_line, .. }) => *first_line < sent.first_line,
                _ => false,
            };
            if !earlier {
                let (first_line, last_line) = (sent.first_line, sent.last_line);
                *trouble = Some(Trouble::Refused { first_line, last_line, error });
            }
        }
    }
}
