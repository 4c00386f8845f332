//! Storage engines side by side: the same workloads, the same keys and values, one after another in one run.
//!
//! Each engine runs in a process of its own, so that memory and caches do not mix, and the engines take turns
//! within a round. Owns: the order of runs. Never: what a workload does (`workloads`), how an engine is used
//! (`engines`), what the figures mean (`report`).

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use clap::Parser;

mod engines;
mod keys;
mod report;
mod workloads;

use report::Line;

/// Compares storage engines; prints a line of JSON per workload, and a table of ratios at the end.
#[derive(Parser, Clone, Debug)]
struct Options {
    /// Engines to run, separated by commas: mainstay, mainstay-buffered, fjall, redb, rocksdb, lmdb
    #[arg(long, value_delimiter = ',', default_value = engines::DEFAULT)]
    engines: Vec<String>,
    /// Workloads to run, separated by commas; there are also ycsb-a to ycsb-f, sustained, larger
    #[arg(long, value_delimiter = ',', default_value = workloads::DEFAULT)]
    workloads: Vec<String>,
    /// Keys in the store
    #[arg(long, default_value_t = 3_000_000)]
    keys: u64,
    /// Bytes of a value
    #[arg(long, default_value_t = 100)]
    value_bytes: usize,
    /// Block cache of each engine, in MiB; Mainstay's limit covers its memtables too and is 128 MiB above
    #[arg(long, default_value_t = 256)]
    cache_mib: u64,
    /// Seconds that each durable workload runs, and `sustained`
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// Rounds; the table has medians
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    /// Directory for the stores
    #[arg(long, default_value = "target")]
    dir: PathBuf,
    /// Directory that keeps the stores of `larger`: one that is there already is only opened and read
    #[arg(long)]
    keep: Option<PathBuf>,
    /// File that all JSON lines are appended to
    #[arg(long)]
    json: Option<PathBuf>,
    /// Seed of all random choices
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Run this engine here, once (used by the program itself)
    #[arg(long, hide = true)]
    child: Option<String>,
    /// Write with this engine to the store in `--dir` until this process is killed (used by the program itself)
    #[arg(long, hide = true)]
    write_for_ever: Option<String>,
    /// The round that the child is in
    #[arg(long, hide = true, default_value_t = 1)]
    round: u32,
}

fn main() -> Result<()> {
    let options = Options::parse();
    if let Some(engine) = options.child.clone() {
        return workloads::run(&options, &engine);
    }
    if let Some(engine) = &options.write_for_ever {
        return workloads::write_for_ever(&options, engine);
    }
    for engine in &options.engines {
        engines::check(engine)?;
    }
    let mut lines: Vec<Line> = Vec::new();
    let mut json = options.json.as_deref().map(append).transpose()?;
    for round in 1..=options.rounds {
        for engine in &options.engines {
            for line in run_child(&options, engine, round)? {
                if let Some(file) = &mut json {
                    writeln!(file, "{}", serde_json::to_string(&line)?)?;
                }
                lines.push(line);
            }
        }
    }
    print!("{}", report::table(&lines));
    Ok(())
}

fn append(path: &Path) -> Result<File> {
    File::options().create(true).append(true).open(path).with_context(|| format!("cannot open {}", path.display()))
}

/// Runs one engine through all workloads in a process of its own.
fn run_child(options: &Options, engine: &str, round: u32) -> Result<Vec<Line>> {
    let mut command = Command::new(std::env::current_exe()?);
    // Clap takes the last of a repeated option's values together: only what the child needs is passed on.
    command.args(["--child", engine, "--round", &round.to_string()]);
    command.args(["--keys", &options.keys.to_string(), "--value-bytes", &options.value_bytes.to_string()]);
    command.args(["--cache-mib", &options.cache_mib.to_string(), "--seconds", &options.seconds.to_string()]);
    command.args(["--seed", &(options.seed + u64::from(round)).to_string()]);
    command.args(["--workloads", &options.workloads.join(",")]).arg("--dir").arg(&options.dir);
    if let Some(keep) = &options.keep {
        command.arg("--keep").arg(keep);
    }
    // The system's allocator keeps what a thread frees for that thread: with one arena, memory is what engines hold.
    command.env("MALLOC_ARENA_MAX", "1");
    // And its bound above which freed memory goes back to the system stays where it begins, for all alike.
    command.env("MALLOC_MMAP_THRESHOLD_", "131072");
    let mut child = command.stdout(Stdio::piped()).spawn()?;
    let mut lines = Vec::new();
    if let Some(out) = child.stdout.take() {
        for text in BufReader::new(out).lines() {
            let line: Line = serde_json::from_str(&text?)?;
            println!("{}", line.shown());
            lines.push(line);
        }
    }
    let status = child.wait()?;
    if !status.success() {
        bail!("{engine} ended with {status}");
    }
    Ok(lines)
}
