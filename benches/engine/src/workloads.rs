//! The workloads, named as in RocksDB's db_bench and in YCSB.
//!
//! Owns: what each does, how it is timed, and that what is read is what was written. Never: engines' own
//! ways.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hdrhistogram::Histogram;

use crate::Options;
use crate::engines::{self, Engine};
use crate::keys::{Random, Zipf, is_value, key, value};
use crate::report::Line;

pub const DEFAULT: &str = "fillseq,fillrandom,readrandom,readrandom-2,readmissing,seekrandom,scan,readwhilewriting,\
overwrite,deleterandom,durable-1,durable-4,durable-16,durable-64";
/// Workloads after which an engine has nothing more to do than before.
const ONLY_READ: [&str; 6] = ["readrandom", "readrandom-2", "readmissing", "seekrandom", "scan", "ycsb-c"];
/// One operation of so many is timed, or the clock would be a good part of the fast ones.
const SAMPLED: u64 = 16;
/// Checkpoints that are timed.
const CHECKPOINTS: u64 = 5;
/// Reads of a store that is larger than the cache, by each number of threads.
const LARGER_READS: u64 = 3_000_000;
/// Writes after which a process is killed: with values of 1 KiB no memtable is full by then.
const UNFLUSHED_WRITES: u64 = 15_000;
/// Entries read by a seek, and at most by a scan of YCSB.
const SEEK_ENTRIES: usize = 10;
const SCAN_ENTRIES: u64 = 100;

/// One engine's run through the workloads.
struct Run<'a> {
    options: &'a Options,
    name: &'a str,
    dir: &'a Path,
    /// Bytes on disk of an entry after a sequential fill, settled.
    settled_bytes: f64,
    /// Calls of [`Run::threads`]: each has random numbers of its own.
    calls: AtomicU64,
}

/// What the threads of a workload did.
struct Timed {
    ops: u64,
    time: Duration,
    latency: Histogram<u64>,
    /// Writes of a thread beside.
    beside: u64,
}

/// Writes to a store until the process is killed, and says on standard output when there is something to replay.
pub fn write_for_ever(options: &Options, name: &str) -> Result<()> {
    let engine = engines::open(name, &options.dir, options.cache_mib)?;
    let (mut random, mut v) = (Random::new(options.seed, 7), Vec::new());
    // Not for ever, should nobody kill it.
    for n in 0..UNFLUSHED_WRITES * 1000 {
        if n == UNFLUSHED_WRITES {
            println!("{n}");
            std::io::stdout().flush()?;
        }
        let k = n % options.keys;
        value(&mut v, k, options.value_bytes, &mut random);
        engine.put(&key(k), &v)?;
    }
    Ok(())
}

/// Whether a workload runs on the store that was filled at random.
fn on_random_keys(workload: &str) -> bool {
    !(workload.starts_with("durable-") || workload.starts_with("ycsb-") || ["fillseq", "larger"].contains(&workload))
}

/// Runs the wanted workloads and prints a line of JSON each.
pub fn run(options: &Options, name: &str) -> Result<()> {
    std::fs::create_dir_all(&options.dir)?;
    let scratch = tempfile::tempdir_in(&options.dir)?;
    let mut run = Run { options, name, dir: scratch.path(), settled_bytes: 0.0, calls: AtomicU64::new(0) };
    let wants = |w: &str| options.workloads.iter().any(|o| o == w);
    if wants("fillseq") {
        run.fill_in_order()?;
    }
    if wants("larger") {
        run.larger()?;
    }
    if options.workloads.iter().any(|w| on_random_keys(w)) {
        run.with_random_keys()?;
    }
    if options.workloads.iter().any(|w| w.starts_with("ycsb-")) {
        run.with_all_keys()?;
    }
    for workload in options.workloads.iter().filter(|w| w.starts_with("durable-")) {
        run.durable(workload)?;
    }
    Ok(())
}

impl Run<'_> {
    fn open(&self, part: &str) -> Result<Box<dyn Engine>> {
        engines::open(self.name, &self.dir.join(part), self.options.cache_mib)
    }

    fn line(&self, engine: &dyn Engine, workload: &str, timed: &Timed) -> Line {
        let seconds = timed.time.as_secs_f64();
        let us = |q| timed.latency.value_at_quantile(q) as f64 / 1e3;
        Line {
            engine: self.name.to_owned(),
            workload: workload.to_owned(),
            round: self.options.round,
            ops: timed.ops,
            seconds,
            ops_per_second: timed.ops as f64 / seconds,
            writes_beside: timed.beside as f64 / seconds,
            p50_us: us(0.5),
            p99_us: us(0.99),
            p999_us: us(0.999),
            durability: engine.durability().to_owned(),
            keys: self.options.keys,
            value_bytes: self.options.value_bytes,
            rss_mib: rss_mib("VmHWM:"),
            rss_now_mib: rss_mib("VmRSS:"),
            notes: engine.notes(),
            ..Line::default()
        }
    }

    fn print(line: &Line) -> Result<()> {
        println!("{}", serde_json::to_string(line)?);
        Ok(())
    }

    fn fill_in_order(&mut self) -> Result<()> {
        let engine = self.open("seq")?;
        let timed = self.threads(1, self.options.keys, |_, n, random, v| {
            value(v, n, self.options.value_bytes, random);
            engine.put(&key(n), v)
        })?;
        let mut line = self.line(&*engine, "fillseq", &timed);
        engine.settle()?;
        drop(engine);
        line.disk_bytes = disk_bytes(&self.dir.join("seq"))?;
        self.settled_bytes = line.disk_bytes as f64 / self.options.keys as f64;
        std::fs::remove_dir_all(self.dir.join("seq"))?;
        Self::print(&line)
    }

    /// A store that is much larger than the cache: filled, closed, opened, read.
    fn larger(&self) -> Result<()> {
        let dir = self.options.keep.as_ref().map_or_else(|| self.dir.to_owned(), |keep| keep.join(self.name));
        if !dir.join("larger").exists() {
            self.fill_larger(&dir)?;
        }
        let (keys, bytes) = (self.options.keys, self.options.value_bytes);
        let (start, mut latency) = (Instant::now(), Histogram::new(3)?);
        let engine = engines::open(self.name, &dir.join("larger"), self.options.cache_mib)?;
        ensure!(engine.get(&key(keys / 2), &mut |_| ())?, "a key is missing");
        let time = start.elapsed();
        latency.record(time.as_nanos() as u64)?;
        Self::print(&self.line(&*engine, "larger-open", &Timed { ops: 1, time, latency, beside: 0 }))?;
        for threads in [1, 2] {
            let timed = self.threads(threads, keys.min(LARGER_READS), |_, _, random, _| {
                let (n, mut whole) = (random.below(keys), false);
                engine.get(&key(n), &mut |v| whole = is_value(v, n, bytes))?;
                ensure!(whole, "key {n} is missing or has a value of another key");
                Ok(())
            })?;
            let name = if threads == 1 { "larger-read" } else { "larger-read-2" };
            Self::print(&self.line(&*engine, name, &timed))?;
        }
        self.checkpoints(&*engine, &dir)?;
        drop(engine);
        self.open_killed(&dir.join("larger"))
    }

    /// Checkpoints of a store that was written to since the one before.
    fn checkpoints(&self, engine: &dyn Engine, dir: &Path) -> Result<()> {
        let (mut time, mut latency) = (Duration::ZERO, Histogram::new(3)?);
        let (mut v, mut random) = (Vec::new(), Random::new(self.options.seed, 1));
        for n in 0..CHECKPOINTS {
            for k in 0..100 {
                value(&mut v, k, self.options.value_bytes, &mut random);
                engine.put(&key(k), &v)?;
            }
            let to = dir.join("checkpoint");
            let start = Instant::now();
            if !engine.checkpoint(&to)? {
                return Ok(());
            }
            let took = start.elapsed();
            time += took;
            latency.record(took.as_nanos() as u64)?;
            std::fs::remove_dir_all(&to).with_context(|| format!("checkpoint {n}"))?;
        }
        let timed = Timed { ops: CHECKPOINTS, time, latency, beside: 0 };
        Self::print(&self.line(engine, "larger-checkpoint", &timed))
    }

    /// Opens a store whose process was killed amid writing.
    fn open_killed(&self, dir: &Path) -> Result<()> {
        let mut writer = Command::new(std::env::current_exe()?);
        writer.args(["--write-for-ever", self.name, "--cache-mib", &self.options.cache_mib.to_string()]);
        writer.args(["--value-bytes", &self.options.value_bytes.to_string()]);
        writer.args(["--keys", &self.options.keys.to_string()]).arg("--dir").arg(dir);
        let mut writer = writer.stdout(Stdio::piped()).spawn()?;
        let mut said = String::new();
        if let Some(out) = writer.stdout.take() {
            BufReader::new(out).read_line(&mut said)?;
        }
        writer.kill()?;
        writer.wait()?;
        ensure!(said.trim() == UNFLUSHED_WRITES.to_string(), "the writer of a killed store said {said:?}");
        let (start, mut latency) = (Instant::now(), Histogram::new(3)?);
        let engine = engines::open(self.name, dir, self.options.cache_mib)?;
        ensure!(engine.get(&key(0), &mut |_| ())?, "a key is missing");
        let time = start.elapsed();
        latency.record(time.as_nanos() as u64)?;
        Self::print(&self.line(&*engine, "larger-open-killed", &Timed { ops: 1, time, latency, beside: 0 }))
    }

    fn fill_larger(&self, dir: &Path) -> Result<()> {
        let (keys, bytes) = (self.options.keys, self.options.value_bytes);
        std::fs::create_dir_all(dir)?;
        let engine = engines::open(self.name, &dir.join("larger"), self.options.cache_mib)?;
        let timed = self.fill(&*engine)?;
        let mut line = self.line(&*engine, "larger-fill", &timed);
        engine.settle()?;
        let history_bytes = engine.history_bytes();
        drop(engine);
        line.disk_bytes = disk_bytes(&dir.join("larger"))?;
        // Half of each value compresses away.
        line.history_bytes = history_bytes;
        let others = line.disk_bytes.saturating_sub(history_bytes);
        line.space_amplification = others as f64 / (keys * (key(0).len() + bytes / 2) as u64) as f64;
        Self::print(&line)
    }

    /// The workloads on a store that was filled at random.
    fn with_random_keys(&self) -> Result<()> {
        let engine = self.open("random")?;
        let (keys, bytes) = (self.options.keys, self.options.value_bytes);
        let timed = self.threads(1, keys, |_, _, random, v| {
            let n = random.below(keys);
            value(v, n, bytes, random);
            engine.put(&key(n), v)
        })?;
        let mut line = self.line(&*engine, "fillrandom", &timed);
        engine.settle()?;
        let present = engine.scan(b"", usize::MAX, &mut |_, _| ())? as u64;
        line.disk_bytes = disk_bytes(&self.dir.join("random"))?;
        line.history_bytes = engine.history_bytes();
        if self.settled_bytes > 0.0 {
            let others = line.disk_bytes.saturating_sub(line.history_bytes);
            line.space_amplification = others as f64 / (self.settled_bytes * present as f64);
        }
        if self.options.workloads.iter().any(|w| w == "fillrandom") {
            Self::print(&line)?;
        }
        let mut written = false;
        for workload in &self.options.workloads {
            if !on_random_keys(workload) || workload == "fillrandom" {
                continue;
            }
            // What one workload leaves to do in the background is not the next one's.
            if std::mem::take(&mut written) {
                engine.settle()?;
            }
            written = !ONLY_READ.contains(&workload.as_str());
            let line = match workload.as_str() {
                "sustained" => self.sustained(&*engine)?,
                w => self.line(&*engine, w, &self.on_random_keys(&*engine, w, present)?),
            };
            Self::print(&line)?;
        }
        drop(engine);
        Ok(std::fs::remove_dir_all(self.dir.join("random"))?)
    }

    /// The workloads of YCSB, on a store that has every key.
    fn with_all_keys(&self) -> Result<()> {
        let engine = self.open("ycsb")?;
        self.fill(&*engine)?;
        let mut written = true;
        for workload in self.options.workloads.iter().filter(|w| w.starts_with("ycsb-")) {
            if std::mem::take(&mut written) {
                engine.settle()?;
            }
            written = !ONLY_READ.contains(&workload.as_str());
            Self::print(&self.line(&*engine, workload, &self.ycsb(&*engine, workload)?))?;
        }
        drop(engine);
        Ok(std::fs::remove_dir_all(self.dir.join("ycsb"))?)
    }

    /// Writes every key once, in no order.
    fn fill(&self, engine: &dyn Engine) -> Result<Timed> {
        let (keys, bytes) = (self.options.keys, self.options.value_bytes);
        let step = (keys * 5 / 8..).find(|s| gcd(*s, keys) == 1).unwrap_or(1);
        self.threads(1, keys, |_, n, random, v| {
            let n = n.wrapping_mul(step) % keys;
            value(v, n, bytes, random);
            engine.put(&key(n), v)
        })
    }

    fn on_random_keys(&self, engine: &dyn Engine, workload: &str, present: u64) -> Result<Timed> {
        let (keys, bytes) = (self.options.keys, self.options.value_bytes);
        let found = AtomicU64::new(0);
        let read = |random: &mut Random| {
            let (n, mut whole) = (random.below(keys), true);
            let is_there = engine.get(&key(n), &mut |v| whole = is_value(v, n, bytes))?;
            ensure!(whole, "key {n} has a value of another key");
            found.fetch_add(u64::from(is_there), Ordering::Relaxed);
            Ok(())
        };
        let write = |random: &mut Random, v: &mut Vec<u8>| {
            let n = random.below(keys);
            value(v, n, bytes, random);
            engine.put(&key(n), v)
        };
        let timed = match workload {
            "readrandom" => self.threads(1, keys, |_, _, random, _| read(random))?,
            "readrandom-2" => self.threads(2, keys, |_, _, random, _| read(random))?,
            "readmissing" => self.threads(1, keys, |_, _, random, _| {
                let mut absent = key(random.below(keys)).to_vec();
                absent.push(b'!');
                ensure!(!engine.get(&absent, &mut |_| ())?, "a key that was never written is there");
                Ok(())
            })?,
            "seekrandom" => self.threads(1, keys / 10, |_, _, random, _| {
                let mut shown = 0;
                engine.scan(&key(random.below(keys)), SEEK_ENTRIES, &mut |_, v| shown += v.len())?;
                Ok(())
            })?,
            "scan" => self.scan(engine, present)?,
            "readwhilewriting" => self.while_writing(keys, read, write)?,
            "overwrite" => self.threads(1, keys, |_, _, random, v| write(random, v))?,
            "deleterandom" => self.threads(1, keys / 3, |_, _, random, _| engine.delete(&key(random.below(keys))))?,
            _ => anyhow::bail!("no workload {workload}"),
        };
        if workload.starts_with("readrandom") {
            // A share of 1 - 1/e of all keys was written.
            let share = found.load(Ordering::Relaxed) as f64 / timed.ops as f64;
            let there = present as f64 / keys as f64;
            ensure!((share - there).abs() < 0.05, "{share} of the reads found a value, {there} of the keys have one");
        }
        Ok(timed)
    }

    fn scan(&self, engine: &dyn Engine, present: u64) -> Result<Timed> {
        let (start, mut bytes, mut latency) = (Instant::now(), 0u64, Histogram::new(3)?);
        let count = engine.scan(b"", usize::MAX, &mut |k, v| bytes += (k.len() + v.len()) as u64)? as u64;
        let time = start.elapsed();
        ensure!(count == present && bytes >= count * self.options.value_bytes as u64, "the scan missed something");
        latency.record(time.as_nanos() as u64 / count.max(1))?;
        Ok(Timed { ops: count, time, latency, beside: 0 })
    }

    /// One thread reads, timed, while another writes as fast as it can.
    fn while_writing(
        &self,
        reads: u64,
        read: impl Fn(&mut Random) -> Result<()> + Sync,
        write: impl Fn(&mut Random, &mut Vec<u8>) -> Result<()> + Sync,
    ) -> Result<Timed> {
        let over = AtomicBool::new(false);
        std::thread::scope(|s| {
            let writer = s.spawn(|| {
                let (mut random, mut v, mut writes) = (Random::new(self.options.seed, 99), Vec::new(), 0);
                while !over.load(Ordering::Relaxed) {
                    write(&mut random, &mut v)?;
                    writes += 1;
                }
                Ok(writes)
            });
            let timed = self.threads(1, reads, |_, _, random, _| read(random));
            over.store(true, Ordering::Relaxed);
            let beside = writer.join().unwrap_or_else(|_| Err(anyhow::anyhow!("the writer panicked")))?;
            Ok(Timed { beside, ..timed? })
        })
    }

    /// Workloads A to F of YCSB, on keys with Zipf's distribution.
    fn ycsb(&self, engine: &dyn Engine, workload: &str) -> Result<Timed> {
        let (keys, bytes) = (self.options.keys, self.options.value_bytes);
        let (reads, scans) = match workload {
            "ycsb-a" | "ycsb-f" => (0.5, false),
            "ycsb-b" | "ycsb-d" => (0.95, false),
            "ycsb-c" => (1.0, false),
            "ycsb-e" => (0.95, true),
            _ => anyhow::bail!("no workload {workload}"),
        };
        let (zipf, newest) = (Zipf::new(keys), AtomicU64::new(keys));
        let ops = if scans { keys / 10 } else { keys };
        self.threads(2, ops, |_, _, random, v| {
            // D reads what was written last.
            let latest = workload == "ycsb-d";
            let n = if latest {
                newest.load(Ordering::Relaxed).saturating_sub(1 + random.below(1000))
            } else {
                zipf.next(random)
            };
            if random.unit() < reads {
                if scans {
                    let entries = 1 + random.below(SCAN_ENTRIES) as usize;
                    return engine.scan(&key(n), entries, &mut |_, _| ()).map(drop);
                }
                return engine.get(&key(n), &mut |_| ()).map(drop);
            }
            let n = if latest || scans { newest.fetch_add(1, Ordering::Relaxed) } else { n };
            if workload == "ycsb-f" {
                engine.get(&key(n), &mut |_| ())?;
            }
            value(v, n, bytes, random);
            engine.put(&key(n), v)
        })
    }

    /// Overwrites for a time, and looks at each second.
    fn sustained(&self, engine: &dyn Engine) -> Result<Line> {
        let (keys, bytes) = (self.options.keys, self.options.value_bytes);
        let (mut random, mut v) = (Random::new(self.options.seed, 5), Vec::new());
        let (mut latency, mut seconds, mut count) = (Histogram::<u64>::new(3)?, Vec::new(), 0u64);
        let start = Instant::now();
        let (mut before, mut second) = (start, 0u64);
        while seconds.len() < self.options.seconds as usize {
            let n = random.below(keys);
            value(&mut v, n, bytes, &mut random);
            engine.put(&key(n), &v)?;
            count += 1;
            second += 1;
            let now = Instant::now();
            latency.record((now - before).as_nanos() as u64)?;
            before = now;
            // A stall of several seconds counts as that many seconds with next to nothing.
            while now.duration_since(start).as_secs() > seconds.len() as u64 {
                seconds.push(std::mem::take(&mut second));
            }
        }
        let timed = Timed { ops: count, time: start.elapsed(), latency, beside: 0 };
        let mut line = self.line(engine, "sustained", &timed);
        seconds.sort_unstable();
        let median = seconds.get(seconds.len() / 2).copied().unwrap_or_default();
        line.worst_second = seconds.first().copied().unwrap_or_default() as f64 / median.max(1) as f64;
        line.disk_bytes = disk_bytes(&self.dir.join("random"))?;
        Ok(line)
    }

    fn durable(&self, workload: &str) -> Result<()> {
        let threads: u64 = workload.trim_start_matches("durable-").parse()?;
        let engine = self.open(workload)?;
        let (keys, bytes) = (self.options.keys, self.options.value_bytes);
        let end = Instant::now() + Duration::from_secs(self.options.seconds);
        let timed = self.threads(threads, u64::MAX, |_, n, random, v| {
            if Instant::now() >= end {
                return Err(Over.into());
            }
            let n = (n ^ random.next()) % keys;
            value(v, n, bytes, random);
            engine.put_synced(&key(n), v)
        })?;
        Self::print(&self.line(&*engine, workload, &timed))?;
        drop(engine);
        Ok(std::fs::remove_dir_all(self.dir.join(workload))?)
    }

    /// Calls `op` so often in all, from several threads, each with its number, a running number, random numbers
    /// and memory of its own.
    fn threads(
        &self,
        threads: u64,
        ops: u64,
        op: impl Fn(u64, u64, &mut Random, &mut Vec<u8>) -> Result<()> + Sync,
    ) -> Result<Timed> {
        let call = self.calls.fetch_add(1, Ordering::Relaxed);
        let start = Instant::now();
        let one = |thread: u64| -> Result<(u64, Histogram<u64>)> {
            let (mut random, mut v) = (Random::new(self.options.seed, call << 32 | thread), Vec::new());
            let (mut latency, mut done) = (Histogram::new(3)?, 0);
            while done < ops / threads {
                let sampled = (done % SAMPLED == 0).then(Instant::now);
                match op(thread, done, &mut random, &mut v) {
                    Err(e) if e.is::<Over>() => break,
                    other => other?,
                }
                if let Some(at) = sampled {
                    latency.record(at.elapsed().as_nanos() as u64)?;
                }
                done += 1;
            }
            Ok((done, latency))
        };
        let results: Vec<Result<_>> = std::thread::scope(|s| {
            let running: Vec<_> = (0..threads).map(|t| s.spawn(move || one(t))).collect();
            let panicked = || Err(anyhow::anyhow!("a thread panicked"));
            running.into_iter().map(|t| t.join().unwrap_or_else(|_| panicked())).collect()
        });
        let (time, mut ops, mut latency) = (start.elapsed(), 0, Histogram::new(3)?);
        for result in results {
            let (done, of_thread) = result?;
            ops += done;
            latency.add(of_thread)?;
        }
        Ok(Timed { ops, time, latency, beside: 0 })
    }
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// The time of a workload is over.
#[derive(Debug)]
struct Over;

impl std::fmt::Display for Over {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the time is over")
    }
}

impl std::error::Error for Over {}

/// Bytes that a directory's files take.
fn disk_bytes(dir: &Path) -> Result<u64> {
    let mut all = 0;
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let of = entry.metadata()?;
        // Logs count neither here nor there: they are made ahead in pieces of very different size.
        let log = ["log", "jnl", "wal"].iter().any(|e| entry.path().extension().is_some_and(|x| x == *e));
        all += if of.is_dir() {
            disk_bytes(&entry.path())?
        } else if log {
            0
        } else {
            of.len()
        };
    }
    Ok(all)
}

/// Memory of this process by a line of its status, in MiB; 0 where the system does not say.
fn rss_mib(which: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix(which));
    line.and_then(|l| l.trim().trim_end_matches(" kB").trim().parse::<u64>().ok()).unwrap_or_default() >> 10
}
