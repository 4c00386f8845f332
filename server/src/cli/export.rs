//! `mainstay export`: keys and values as JSON Lines on stdout, in the shape that `import` reads.
//!
//! Owns: the shape. Never: more than one page in memory; anything but records on stdout.

use std::io::Write;

use clap::Args;
use mainstay_client::{Entry, Scan};
use serde::Serialize;

use super::get::ReadArgs;
use super::progress::Progress;
use super::text::{base64, prefix_end};
use super::{Global, connect, output};
use crate::codes::Exit;

/// Write keys and values as JSON Lines
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  mainstay export > all.jsonl
  mainstay export user/ | zstd > users.jsonl.zst
  mainstay export --at 1042 > then.jsonl

All records are of one moment. `mainstay import FILE` reads them back.")]
pub struct ExportArgs {
    /// Only keys that begin with this
    prefix: Option<String>,
    /// How to read.
    #[command(flatten)]
    read: ReadArgs,
}

/// One record; what is not UTF-8 goes into the `_base64` fields.
#[derive(Serialize)]
struct Line<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key_base64: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    value_base64: Option<String>,
    #[serde(skip_serializing_if = "is_zero")]
    expiry_us: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it with a reference")]
fn is_zero(n: &u64) -> bool {
    *n == 0
}

fn split(bytes: &[u8]) -> (Option<&str>, Option<String>) {
    match std::str::from_utf8(bytes) {
        Ok(text) => (Some(text), None),
        Err(_) => (None, Some(base64(bytes))),
    }
}

fn write_line(out: &mut impl Write, e: &Entry) -> std::io::Result<()> {
    let ((key, key_base64), (value, value_base64)) = (split(&e.key), split(&e.value));
    let line = Line { key, key_base64, value, value_base64, expiry_us: e.expiry_us };
    serde_json::to_writer(&mut *out, &line)?;
    out.write_all(b"\n")
}

pub(super) async fn run(global: &Global, args: ExportArgs) -> anyhow::Result<Exit> {
    let prefix = args.prefix.unwrap_or_default().into_bytes();
    let end = prefix_end(&prefix);
    let scan = Scan::range(prefix, end).read(connect::read_options(args.read));
    let mut entries = connect::client(global)?.scan(scan).await?;
    let mut out = output::stdout();
    let mut progress = Progress::bytes("export", 0);
    let (mut records, mut bytes) = (0u64, 0u64);
    while let Some(entry) = entries.next().await? {
        write_line(&mut out, &entry)?;
        records += 1;
        bytes += (entry.key.len() + entry.value.len()) as u64;
        if records.is_multiple_of(1024) {
            progress.at(bytes, 0, || format!("{records} records"));
        }
    }
    out.flush()?;
    progress.clear();
    let at = entries.lsn();
    output::say(format!("exported {records} records, {}, as of LSN {at}", output::bytes(bytes)));
    Ok(Exit::Ok)
}
