//! `mainstay inspect table`: properties, blocks and entries of tables.
//!
//! Owns: the printed forms. Never: more than a block in memory.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use mainstay_engine::Lsn;
use mainstay_engine::batch::Keyspace;
use mainstay_engine::fs::Fs;
use mainstay_engine::inspect::{self, EntryView, Finding, SpacedKey, TableOrigin, TableView, TablesCheck};
use mainstay_engine::table::table_name;
use mainstay_engine::value::Value;
use serde::Serialize;

use super::super::output::{self, Format, json_line};
use super::super::text::{Text, escaped};
use super::super::{failure, time};
use super::manifest::level;
use super::{Place, conclude, keyspace, name, place};
use crate::codes::Exit;

/// Tables: properties, blocks, entries
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  mainstay inspect table ./data                          all tables
  mainstay inspect table ./data/tables/ID.table          properties and sections of one
  mainstay inspect table ./data/tables/ID.table --blocks
  mainstay inspect table ./data/tables/ID.table --entries --start user/1 --end user/2 --limit 20
  mainstay inspect table ./data --verify                 reads every byte

--verify reads every block, index and filter, the order of entries, and compares the whole file with what the
manifest says. Exit code 4 with damage, 5 when there is no table.")]
pub struct TableArgs {
    /// A data directory, a checkpoint, or a table file
    #[arg(value_name = "PATH")]
    path: PathBuf,
    /// List the data blocks of a table file
    #[arg(long, conflicts_with_all = ["entries", "verify"])]
    blocks: bool,
    /// List the entries of a table file: every version of every key
    #[arg(long, conflicts_with = "verify")]
    entries: bool,
    /// First key to list
    #[arg(long, value_name = "KEY", requires = "entries")]
    start: Option<String>,
    /// Stop before this key
    #[arg(long, value_name = "KEY", requires = "entries")]
    end: Option<String>,
    /// Keyspace of the keys listed: 0 the system's, 1 the users'; with --start or --end 1, else all
    #[arg(long, value_name = "N", requires = "entries")]
    keyspace: Option<u8>,
    /// Most entries to list
    #[arg(long, value_name = "N", requires = "entries")]
    limit: Option<u64>,
    /// Read everything and say whether it holds
    #[arg(long)]
    verify: bool,
}

pub(super) fn run(format: Format, fs: &Arc<dyn Fs>, args: &TableArgs) -> anyhow::Result<Exit> {
    let found = place(&**fs, &args.path, "tables")?;
    match &found {
        _ if args.verify => verify(format, fs, &found),
        Place::Directory(_) if args.blocks || args.entries => {
            Err(failure::usage("--blocks and --entries are of one table: name its file"))
        }
        Place::Directory(dir) => list(format, fs, dir),
        Place::File(path) if args.blocks => blocks(format, &TableView::open(fs, path)?),
        Place::File(path) if args.entries => entries(format, &TableView::open(fs, path)?, args),
        Place::File(path) => properties(format, path, &TableView::open(fs, path)?),
    }
}

#[derive(Serialize)]
struct Listed {
    path: String,
    tables: Vec<Row>,
}

#[derive(Serialize)]
struct Row {
    id: String,
    level: Option<u8>,
    origin: Option<&'static str>,
    bytes: u64,
    entries: u64,
    deletes: u64,
    range_deletes: u64,
    min_lsn: u64,
    max_lsn: u64,
    min_key: Option<String>,
    max_key: Option<String>,
    damage: Option<String>,
}

const fn origin(origin: TableOrigin) -> &'static str {
    match origin {
        TableOrigin::Flush => "flush",
        TableOrigin::Compaction => "compaction",
        TableOrigin::History => "history",
    }
}

fn printed(key: &SpacedKey) -> String {
    format!("{}:{}", keyspace(key.keyspace), escaped(&key.key))
}

fn list(format: Format, fs: &Arc<dyn Fs>, dir: &Path) -> anyhow::Result<Exit> {
    let mut placed = inspect::read_state(fs, dir)?.state.tables;
    placed.sort_by_key(|t| t.level.unwrap_or(u8::MAX));
    let mut tables = Vec::new();
    for t in placed {
        let path = dir.join("tables").join(table_name(t.file.id));
        let mut row = Row {
            id: format!("{:032x}", t.file.id),
            level: t.level,
            origin: None,
            bytes: t.file.bytes,
            entries: t.file.entries,
            deletes: 0,
            range_deletes: 0,
            min_lsn: 0,
            max_lsn: 0,
            min_key: None,
            max_key: None,
            damage: None,
        };
        match TableView::open(fs, &path) {
            Ok(view) => {
                let p = view.properties();
                (row.deletes, row.range_deletes) = (p.deletes, p.range_deletes);
                (row.min_lsn, row.max_lsn) = (p.lsns.0.0, p.lsns.1.0);
                row.origin = Some(origin(p.origin));
                (row.min_key, row.max_key) = p.keys.map(|(low, high)| (printed(&low), printed(&high))).unzip();
            }
            Err(e) => row.damage = Some(e.to_string()),
        }
        tables.push(row);
    }
    let listed = Listed { path: dir.display().to_string(), tables };
    output::print(format, &listed, || {
        let head = ["table", "level", "size", "entries", "deletes", "ranges", "lsn", "first key", "last key"];
        let rows = listed.tables.iter().map(|t| {
            let lsns = format!("{}-{}", t.min_lsn, t.max_lsn);
            let key = |k: &Option<String>| t.damage.clone().or_else(|| k.clone()).unwrap_or_else(|| "-".into());
            let (size, low, high) = (output::bytes(t.bytes), key(&t.min_key), key(&t.max_key));
            let counts = [t.entries, t.deletes, t.range_deletes].map(|n| n.to_string());
            let [entries, deletes, ranges] = counts;
            vec![t.id.clone(), level(t.level), size, entries, deletes, ranges, lsns, low, high]
        });
        output::table(&head, rows)
    })?;
    Ok(Exit::Ok)
}

#[derive(Serialize)]
struct Properties {
    file: String,
    id: String,
    format: u32,
    bytes: u64,
    origin: &'static str,
    entries: u64,
    deletes: u64,
    expiring: u64,
    range_deletes: u64,
    data_blocks: u64,
    raw_bytes: u64,
    min_lsn: u64,
    max_lsn: u64,
    newest_us: u64,
    newest_time: String,
    min_key: Option<String>,
    max_key: Option<String>,
    superseded_lsn: Option<u64>,
    sections: Vec<Part>,
    ranges: Vec<RangeLine>,
}

#[derive(Serialize)]
struct Part {
    name: &'static str,
    offset: u64,
    bytes: u64,
}

#[derive(Serialize)]
struct RangeLine {
    start: String,
    end: Option<String>,
    lsn: u64,
}

fn properties(format: Format, path: &Path, view: &TableView) -> anyhow::Result<Exit> {
    let p = view.properties();
    let (min_key, max_key) = p.keys.as_ref().map(|(low, high)| (printed(low), printed(high))).unzip();
    let all = Properties {
        file: path.display().to_string(),
        id: format!("{:032x}", p.id),
        format: p.format,
        bytes: p.bytes,
        origin: origin(p.origin),
        entries: p.entries,
        deletes: p.deletes,
        expiring: p.expiring,
        range_deletes: p.range_deletes,
        data_blocks: p.data_blocks,
        raw_bytes: p.raw_bytes,
        min_lsn: p.lsns.0.0,
        max_lsn: p.lsns.1.0,
        newest_us: p.newest.0,
        newest_time: time::utc(p.newest.0),
        min_key,
        max_key,
        superseded_lsn: Some(p.superseded.0).filter(|l| *l > 0),
        sections: p.sections.iter().map(|s| Part { name: s.name, offset: s.offset, bytes: s.bytes }).collect(),
        ranges: view.ranges().iter().map(range).collect(),
    };
    output::print(format, &all, || text(&all))?;
    Ok(Exit::Ok)
}

fn range(r: &inspect::RangeView) -> RangeLine {
    RangeLine { start: printed(&r.start), end: r.end.as_ref().map(printed), lsn: r.lsn.0 }
}

fn text(p: &Properties) -> String {
    let keys = p.min_key.as_deref().zip(p.max_key.as_deref());
    let keys = keys.map_or_else(|| "none".to_owned(), |(low, high)| format!("{low} to {high}"));
    let (entries, deletes, expiring) = (p.entries, p.deletes, p.expiring);
    let (blocks, raw, bytes) = (p.data_blocks, output::bytes(p.raw_bytes), output::bytes(p.bytes));
    let mut out = format!("{}: format {}, {bytes}, made by {}\n", name(Path::new(&p.file)), p.format, p.origin);
    out.push_str(&format!("entries: {entries}, {deletes} of them deletes, {expiring} expire\n"));
    out.push_str(&format!("keys: {keys}\n"));
    out.push_str(&format!("LSNs: {} to {}, newest record {}\n", p.min_lsn, p.max_lsn, p.newest_time));
    if let Some(lsn) = p.superseded_lsn {
        out.push_str(&format!("superseded: by records up to LSN {lsn}\n"));
    }
    out.push_str(&format!("data: {blocks} blocks, {raw} before compression\n"));
    for r in &p.ranges {
        let end = r.end.as_deref().unwrap_or("the end");
        out.push_str(&format!("range delete: {} to {end} below LSN {}\n", r.start, r.lsn));
    }
    let rows = p.sections.iter().map(|s| vec![s.name.to_owned(), s.offset.to_string(), s.bytes.to_string()]);
    out.push_str(&format!("\n{}", output::table(&["section", "offset", "bytes"], rows)));
    out
}

#[derive(Serialize)]
struct BlockLine {
    number: u64,
    offset: u64,
    bytes: u64,
    raw_bytes: u64,
    codec: &'static str,
    entries: u64,
    separator: String,
}

fn blocks(format: Format, view: &TableView) -> anyhow::Result<Exit> {
    let mut out = output::stdout();
    let mut damaged = 0;
    for block in view.blocks()? {
        let b = match block {
            Ok(b) => b,
            Err(e) => {
                damaged += 1;
                output::say(format!("{e}"));
                continue;
            }
        };
        let line = BlockLine {
            number: b.number,
            offset: b.offset,
            bytes: b.bytes,
            raw_bytes: b.raw_bytes,
            codec: if b.packed { "lz4" } else { "raw" },
            entries: b.entries,
            separator: printed(&b.separator),
        };
        match format {
            Format::Json => json_line(&mut out, &line)?,
            Format::Table => {
                let BlockLine { number, offset, bytes, raw_bytes, codec, entries, separator } = line;
                writeln!(
                    out,
                    "block {number}  offset {offset}  {bytes} B  {codec} {raw_bytes} B  {entries} entries  up to {separator}"
                )?;
            }
        }
    }
    out.flush()?;
    if damaged > 0 {
        anyhow::bail!("{damaged} blocks are damaged");
    }
    Ok(Exit::Ok)
}

#[derive(Serialize)]
struct EntryLine<'a> {
    keyspace: String,
    key: Text<'a>,
    lsn: u64,
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<Text<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    value_bytes: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expiry_us: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    superseded_by: Option<u64>,
}

fn entries(format: Format, view: &TableView, args: &TableArgs) -> anyhow::Result<Exit> {
    let (start, end) = (args.start.as_deref().unwrap_or_default(), args.end.as_deref().unwrap_or_default());
    if !end.is_empty() && end <= start {
        return Err(failure::usage("--end is not above --start"));
    }
    let bounded = args.keyspace.is_some() || !start.is_empty() || !end.is_empty();
    let space = Keyspace(args.keyspace.unwrap_or(Keyspace::USER.0));
    let mut entries = view.entries(bounded.then_some((space, start.as_bytes()..end.as_bytes())));
    let mut out = output::stdout();
    let mut left = args.limit.unwrap_or(u64::MAX);
    while left > 0 {
        left -= 1;
        match entries.next() {
            Ok(Some(e)) => entry(&mut out, format, e)?,
            Ok(None) => break,
            Err(e) => {
                out.flush()?;
                return Err(e.into());
            }
        }
    }
    out.flush()?;
    Ok(Exit::Ok)
}

fn entry(out: &mut impl Write, format: Format, e: EntryView<'_>) -> anyhow::Result<()> {
    let value = e.envelope.and_then(|envelope| Value::decode(envelope).ok());
    let line = EntryLine {
        keyspace: keyspace(e.keyspace),
        key: Text(e.key),
        lsn: e.lsn.0,
        kind: if e.envelope.is_some() { "put" } else { "delete" },
        value: value.map(|v| Text(v.data)),
        value_bytes: value.map(|v| v.data.len()),
        expiry_us: value.and_then(|v| v.expiry).map(|t| t.0),
        superseded_by: e.superseded_by.map(|l| l.0),
    };
    if format == Format::Json {
        return json_line(out, &line);
    }
    let by = e.superseded_by.map(|Lsn(l)| format!("\tsuperseded by {l}")).unwrap_or_default();
    let value = line.value.map(|v| format!("\t{}", escaped(v.0))).unwrap_or_default();
    writeln!(out, "{}\t{}\t{}\t{}{value}{by}", line.keyspace, escaped(e.key), line.lsn, line.kind)?;
    Ok(())
}

#[derive(Serialize)]
struct Checked {
    tables: u64,
    bytes: u64,
    unnamed: u64,
}

fn verify(format: Format, fs: &Arc<dyn Fs>, at: &Place) -> anyhow::Result<Exit> {
    let (path, check): (&Path, TablesCheck) = match at {
        Place::Directory(dir) => (dir, inspect::check_tables(fs, dir)?),
        Place::File(path) => {
            let (bytes, findings): (u64, Vec<Finding>) = inspect::check_table(fs, path, None)?;
            (path, TablesCheck { tables: 1, bytes, findings, ..TablesCheck::default() })
        }
    };
    let mut notes = Vec::new();
    if check.unnamed > 0 {
        notes.push(format!("{} table files that the manifest does not name; a start removes them, but for those that an ingest in the log names", check.unnamed));
    }
    let summary = format!("{}: {} tables, {} read", path.display(), check.tables, output::bytes(check.bytes));
    let checked = Checked { tables: check.tables, bytes: check.bytes, unnamed: check.unnamed };
    conclude(format, path, checked, &summary, notes, &check.findings)
}
