//! The load: writes sent when they are due, each in the ledger before and after.
//!
//! Owns: keys, values and the schedule, all from the seed. Each client has keys of its own, so that
//! the order of its writes is the order of their effect. Never: a write that is not in the ledger.

#![expect(clippy::disallowed_methods, reason = "an observer measures real time")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use mainstay_client::{Client, ErrorClass, Write};
use mainstay_engine::rng::{Rng, SeededRng};

use super::RunArgs;
use super::ledger::{Intent, Ledger, Outcome};

/// The drill's clock: microseconds since it began.
#[derive(Clone, Copy, Debug)]
pub(super) struct Since(Instant);

impl Since {
    pub(super) fn start() -> Self {
        Self(Instant::now())
    }

    pub(super) fn us(self) -> u64 {
        u64::try_from(self.0.elapsed().as_micros()).unwrap_or(u64::MAX)
    }
}

/// A value whose text up to the colon is unique to its write.
fn value(mark: &str, bytes: usize) -> String {
    let mut v = format!("{mark}:");
    while v.len() < bytes {
        v.push_str("the quick brown fox jumps over ");
    }
    v
}

/// The mark of a value.
pub(super) fn mark(value: &[u8]) -> String {
    let text = String::from_utf8_lossy(value);
    text.split(':').next().unwrap_or_default().to_owned()
}

/// Loads the records that are there before the load; returns keys and marks.
pub(super) async fn preload(client: &Client, args: &RunArgs) -> anyhow::Result<BTreeMap<String, String>> {
    let all: Vec<(String, String)> = (0..args.preload).map(|i| (format!("d/{i:08}"), format!("p{i}"))).collect();
    for some in all.chunks(500) {
        let mut write = Write::new();
        for (key, mark) in some {
            write = write.put(key.as_str(), value(mark, 500));
        }
        client.write(write).await?;
    }
    Ok(all.into_iter().collect())
}

/// A running load.
pub(super) struct Load {
    stop: Arc<AtomicBool>,
    tasks: Vec<tokio::task::JoinHandle<anyhow::Result<()>>>,
}

struct Writer {
    client: Client,
    number: u32,
    ledger: Arc<Ledger>,
    ids: Arc<AtomicU64>,
    since: Since,
    rng: SeededRng,
    /// Own keys that were put, acknowledged and not deleted since.
    alive: Vec<String>,
}

impl Writer {
    fn choose(&mut self, id: u64) -> (String, Option<String>) {
        let n = self.number;
        match self.rng.below(10) {
            // A few hot keys, overwritten again and again.
            0..=2 => (format!("h/{n}/{}", self.rng.below(4)), Some(format!("w{id}"))),
            // A delete that must stay deleted.
            3 if !self.alive.is_empty() => {
                let at = self.rng.below(self.alive.len() as u64) as usize;
                (self.alive.swap_remove(at), None)
            }
            _ => (format!("u/{n}/{id}"), Some(format!("w{id}"))),
        }
    }

    async fn write_one(&mut self) -> anyhow::Result<()> {
        let id = self.ids.fetch_add(1, Ordering::Relaxed);
        let (key, mark) = self.choose(id);
        let intent =
            Intent { id, client: self.number, key: key.clone(), value: mark.clone(), sent_us: self.since.us() };
        self.ledger.intend(&intent).await?;
        let sent = match &mark {
            Some(m) => self.client.put(key.as_str(), value(m, 200)).await,
            None => self.client.delete(key.as_str()).await,
        };
        let reply_us = self.since.us();
        let outcome = match sent {
            Ok(w) => {
                if mark.is_some() && key.starts_with("u/") {
                    self.alive.push(key);
                }
                Outcome::Acked { epoch: w.epoch, lsn: w.lsn }
            }
            Err(e) if e.class() == ErrorClass::Indeterminate => Outcome::Unknown,
            Err(_) => Outcome::Refused,
        };
        self.ledger.conclude(intent, outcome, reply_us).await
    }
}

impl Load {
    /// Starts the clients. Each has its share of the rate and intended times for its writes.
    pub(super) fn start(
        endpoints: &[String],
        args: &RunArgs,
        ledger: &Arc<Ledger>,
        since: Since,
    ) -> anyhow::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let ids = Arc::new(AtomicU64::new(1));
        let pause = Duration::from_secs_f64(f64::from(args.clients) / f64::from(args.rate));
        let mut tasks = Vec::new();
        for number in 0..args.clients {
            let mut writer = Writer {
                client: Client::builder().endpoints(endpoints).timeout(Duration::from_secs(2)).connect()?,
                number,
                ledger: Arc::clone(ledger),
                ids: Arc::clone(&ids),
                since,
                rng: SeededRng::new(args.seed ^ (u64::from(number) << 40)),
                alive: Vec::new(),
            };
            let stop = Arc::clone(&stop);
            tasks.push(tokio::spawn(async move {
                let mut due = tokio::time::interval(pause);
                due.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Burst);
                while !stop.load(Ordering::Relaxed) {
                    due.tick().await;
                    writer.write_one().await?;
                }
                Ok(())
            }));
        }
        Ok(Self { stop, tasks })
    }

    /// Ends the load; every write sent has its outcome in the ledger then.
    pub(super) async fn stop(self) -> anyhow::Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        for t in self.tasks {
            t.await??;
        }
        Ok(())
    }
}

/// When service was seen again, in seconds after the fault.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Clocks {
    pub(super) first_read: Option<f64>,
    pub(super) first_write: Option<f64>,
    pub(super) sustained: Option<f64>,
}

/// Successes in a row, reads and writes each, that count as sustained.
const SUSTAINED: u32 = 10;

/// Probes reads and writes from outside until both have succeeded ten times in a row, or the time is
/// up. The clocks count from `fault`.
pub(super) async fn probe(endpoints: &[String], fault: Instant, patience: Duration) -> anyhow::Result<Clocks> {
    let client = Client::builder().endpoints(endpoints).timeout(Duration::from_millis(500)).connect()?;
    let mut clocks = Clocks::default();
    let (mut row, mut row_began, mut n) = (0, 0.0, 0u64);
    while fault.elapsed() < patience {
        n += 1;
        let read = client.get("s/probe").await.is_ok();
        let at = fault.elapsed().as_secs_f64();
        if read && clocks.first_read.is_none() {
            clocks.first_read = Some(at);
        }
        let wrote = client.put("s/probe", format!("s{n}:")).await.is_ok();
        let at = fault.elapsed().as_secs_f64();
        if wrote && clocks.first_write.is_none() {
            clocks.first_write = Some(at);
        }
        if read && wrote {
            if row == 0 {
                row_began = at;
            }
            row += 1;
            if row == SUSTAINED {
                clocks.sustained = Some(row_began);
                return Ok(clocks);
            }
        } else {
            row = 0;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(clocks)
}
