//! `mainstay scan`: keys and values in key order.
//!
//! Owns: the line forms (tab-separated with escapes, or JSON Lines). Never: more than one page in
//! memory.

use std::io::Write;

use clap::Args;
use mainstay_client::{Entry, Scan};
use serde::Serialize;

use super::get::ReadArgs;
use super::output::{Format, json_line};
use super::text::{Text, escaped, prefix_end};
use super::{Global, connect, output};
use crate::codes::Exit;

/// List keys and values in key order
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  mainstay scan                            everything
  mainstay scan user/ --limit 10
  mainstay scan --start user/100 --end user/200 --keys-only
  mainstay scan log/ --reverse --limit 1   the last one
  mainstay scan user/ -o json | jq .key")]
pub struct ScanArgs {
    /// Only keys that begin with this
    #[arg(conflicts_with_all = ["start", "end"])]
    prefix: Option<String>,
    /// First key
    #[arg(long, value_name = "KEY")]
    start: Option<String>,
    /// Stop before this key
    #[arg(long, value_name = "KEY")]
    end: Option<String>,
    /// Most entries to list
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
    /// From the last key to the first
    #[arg(long)]
    reverse: bool,
    /// Keys without values
    #[arg(long)]
    keys_only: bool,
    /// How to read.
    #[command(flatten)]
    read: ReadArgs,
}

#[derive(Serialize)]
struct Line<'a> {
    key: Text<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<Text<'a>>,
    version: u64,
}

pub(super) async fn run(global: &Global, args: ScanArgs) -> anyhow::Result<Exit> {
    let (start, end) = match args.prefix {
        Some(prefix) => (prefix.as_bytes().to_vec(), prefix_end(prefix.as_bytes())),
        None => (args.start.unwrap_or_default().into_bytes(), args.end.unwrap_or_default().into_bytes()),
    };
    let mut scan = Scan::range(start, end).read(connect::read_options(args.read));
    if let Some(limit) = args.limit {
        scan = scan.limit(limit);
    }
    if args.reverse {
        scan = scan.reverse();
    }
    if args.keys_only {
        scan = scan.keys_only();
    }
    let mut entries = connect::client(global)?.scan(scan).await?;
    let mut out = output::stdout();
    while let Some(entry) = entries.next().await? {
        line(&mut out, global.output, &entry, args.keys_only)?;
    }
    out.flush()?;
    Ok(Exit::Ok)
}

fn line(out: &mut impl Write, format: Format, e: &Entry, keys_only: bool) -> anyhow::Result<()> {
    match format {
        Format::Json => {
            let value = (!keys_only).then_some(Text(&e.value));
            json_line(out, &Line { key: Text(&e.key), value, version: e.version })?;
        }
        Format::Table if keys_only => writeln!(out, "{}", escaped(&e.key))?,
        Format::Table => writeln!(out, "{}\t{}", escaped(&e.key), escaped(&e.value))?,
    }
    Ok(())
}
