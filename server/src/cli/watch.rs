//! `mainstay watch`: committed changes as they happen.
//!
//! Owns: the line forms. Never: buffering that holds a change back.

use std::io::Write;

use clap::Args;
use mainstay_client::{Change, Operation};
use serde::Serialize;

use super::output::{Format, json_line};
use super::text::{Text, escaped};
use super::{Global, connect, output, time};
use crate::codes::Exit;

/// Follow committed changes
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  mainstay watch                           everything from now on, until Ctrl-C
  mainstay watch --prefix user/ -o json
  mainstay watch --from 1000 --to 1100     a piece of the past")]
pub struct WatchArgs {
    /// First LSN; without it, what commits from now on
    #[arg(long, value_name = "LSN")]
    from: Option<u64>,
    /// Stop after this LSN
    #[arg(long, value_name = "LSN")]
    to: Option<u64>,
    /// Only keys that begin with this
    #[arg(long)]
    prefix: Option<String>,
}

#[derive(Serialize)]
struct Line<'a> {
    lsn: u64,
    epoch: u64,
    commit_ts_us: u64,
    commit_time: &'a str,
    #[serde(flatten)]
    operation: Shown<'a>,
}

#[derive(Serialize)]
#[serde(tag = "op", rename_all = "snake_case")]
enum Shown<'a> {
    Put {
        key: Text<'a>,
        value: Text<'a>,
        #[serde(skip_serializing_if = "Option::is_none")]
        ttl_ms: Option<u64>,
    },
    Delete {
        key: Text<'a>,
    },
    DeleteRange {
        start: Text<'a>,
        end: Text<'a>,
    },
}

pub(super) async fn run(global: &Global, args: WatchArgs) -> anyhow::Result<Exit> {
    let prefix = args.prefix.unwrap_or_default().into_bytes();
    let client = connect::client(global)?;
    let mut changes = client.watch(args.from.unwrap_or(0), prefix, args.to.unwrap_or(0)).await?;
    while let Some(change) = changes.next().await? {
        show(global.output, &change)?;
    }
    Ok(Exit::Ok)
}

fn shown(operation: &Operation) -> Shown<'_> {
    match operation {
        Operation::Put { key, value, ttl_ms } => {
            Shown::Put { key: Text(key), value: Text(value), ttl_ms: (*ttl_ms != 0).then_some(*ttl_ms) }
        }
        Operation::Delete { key } => Shown::Delete { key: Text(key) },
        Operation::DeleteRange { start, end } => Shown::DeleteRange { start: Text(start), end: Text(end) },
    }
}

fn show(format: Format, change: &Change) -> anyhow::Result<()> {
    let mut out = output::stdout();
    let commit_time = time::utc(change.commit_ts_us);
    for operation in change.operations.iter().map(shown) {
        if format == Format::Json {
            let (lsn, epoch, commit_ts_us) = (change.lsn, change.epoch, change.commit_ts_us);
            json_line(&mut out, &Line { lsn, epoch, commit_ts_us, commit_time: &commit_time, operation })?;
            continue;
        }
        write!(out, "{}\t{commit_time}\t", change.lsn)?;
        match operation {
            Shown::Put { key, value, .. } => writeln!(out, "put\t{}\t{}", escaped(key.0), escaped(value.0))?,
            Shown::Delete { key } => writeln!(out, "delete\t{}", escaped(key.0))?,
            Shown::DeleteRange { start, end } => {
                writeln!(out, "delete-range\t{}\t{}", escaped(start.0), escaped(end.0))?;
            }
        }
    }
    out.flush()?;
    Ok(())
}
