//! `mainstay inspect log`: segments, records in a range, and whether the log proves itself.
//!
//! Owns: the printed forms. Never: more than a record in memory.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use mainstay_engine::batch::{Keyspace, Op, ops};
use mainstay_engine::fs::Fs;
use mainstay_engine::ingest::{Ingest, IngestedTable};
use mainstay_engine::inspect::{self, CutTailFile, Known, LogCheck, LogFile, RecordFile, SegmentReader, SegmentState};
use mainstay_engine::record::{Kind, Record};
use mainstay_engine::value::Value;
use mainstay_engine::{Lsn, Position};
use serde::Serialize;

use super::super::output::{self, Format, json_line};
use super::super::text::{Text, escaped};
use super::super::{failure, time};
use super::{Place, conclude, keyspace, name, place};
use crate::codes::Exit;

/// Segments and records of the log, and cut tails
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  mainstay inspect log ./data                      segments, evidence, cut tails
  mainstay inspect log ./data --from 100 --to 120  these records
  mainstay inspect log ./data/diverged/FILE.records --records
  mainstay inspect log ./data --verify             checksums, dense LSNs, the hash chain
  mainstay inspect log ./data --records -o json | jq 'select(.kind == \"epoch start\")'

--verify says where the log breaks and whether that is a torn tail, which a start cuts off and which loses nothing
acknowledged, or damage. Exit code 4 with damage, 5 when there is no log.")]
pub struct LogArgs {
    /// A data directory, a segment, or a file of cut records
    #[arg(value_name = "PATH")]
    path: PathBuf,
    /// List the records
    #[arg(long)]
    records: bool,
    /// List the records from this LSN on
    #[arg(long, value_name = "LSN")]
    from: Option<u64>,
    /// List the records up to this LSN
    #[arg(long, value_name = "LSN")]
    to: Option<u64>,
    /// Read everything and say whether it holds
    #[arg(long, conflicts_with_all = ["records", "from", "to"])]
    verify: bool,
}

pub(super) fn run(format: Format, fs: &Arc<dyn Fs>, args: &LogArgs) -> anyhow::Result<Exit> {
    let found = place(&**fs, &args.path, "log")?;
    if args.verify {
        return verify(format, fs, &found);
    }
    if args.records || args.from.is_some() || args.to.is_some() {
        return records(format, &**fs, &found, args);
    }
    summary(format, fs, &found)
}

#[derive(Serialize)]
struct Summary {
    path: String,
    durable_lsn: Option<u64>,
    committed_lsn: Option<u64>,
    segments: Vec<Segment>,
    cut_tails: Vec<Tail>,
}

#[derive(Serialize)]
struct Segment {
    file: String,
    bytes: u64,
    /// `log`, `blank` (made ahead, or damaged) or `newer`.
    state: &'static str,
    first_lsn: Option<u64>,
    /// Where the next segment says that this one ends.
    last_lsn: Option<u64>,
    base_epoch: Option<u64>,
    base_chain: Option<String>,
    base_time: Option<String>,
    salt: Option<u32>,
}

#[derive(Serialize)]
struct Tail {
    file: String,
    bytes: u64,
    epoch: u64,
    from_lsn: u64,
    to_lsn: u64,
}

impl From<&CutTailFile> for Tail {
    fn from(t: &CutTailFile) -> Self {
        let file = t.path.display().to_string();
        Self { file, bytes: t.bytes, epoch: t.epoch.0, from_lsn: t.from.0, to_lsn: t.to.0 }
    }
}

fn segment(file: &LogFile, next: Option<Position>) -> Segment {
    let header = file.header();
    Segment {
        file: name(&file.path),
        bytes: file.bytes,
        state: match file.state {
            SegmentState::Used(_) => "log",
            SegmentState::Blank => "blank",
            SegmentState::Newer(_) => "newer",
        },
        first_lsn: header.map(|h| h.base.lsn.next().0),
        last_lsn: header.and(next).map(|p| p.lsn.0),
        base_epoch: header.map(|h| h.base.epoch.0),
        base_chain: header.map(|h| h.base.chain.to_string()),
        base_time: header.map(|h| time::utc(h.base.ts.0)),
        salt: header.map(|h| h.salt),
    }
}

fn summary(format: Format, fs: &Arc<dyn Fs>, at: &Place) -> anyhow::Result<Exit> {
    let (path, files, tails, evidence) = match at {
        Place::Directory(dir) => {
            let files = inspect::log_files(&**fs, &dir.join("log"))?;
            (dir, files, inspect::cut_tails(&**fs, dir)?, inspect::state_files(fs, dir)?.evidence)
        }
        Place::File(path) => match CutTailFile::read(&**fs, path)? {
            Some(tail) => (path, Vec::new(), vec![tail], None),
            None => (path, vec![LogFile::read(&**fs, path)?], Vec::new(), None),
        },
    };
    let next = |n: usize| files.get(n + 1).and_then(LogFile::header).map(|h| h.base);
    let summary = Summary {
        path: path.display().to_string(),
        durable_lsn: evidence.map(|(durable, _)| durable.0),
        committed_lsn: evidence.map(|(_, committed)| committed.0),
        segments: files.iter().enumerate().map(|(n, f)| segment(f, next(n))).collect(),
        cut_tails: tails.iter().map(Tail::from).collect(),
    };
    output::print(format, &summary, || text(&summary))?;
    Ok(Exit::Ok)
}

fn text(s: &Summary) -> String {
    let number = |n: Option<u64>| n.map_or_else(|| "-".to_owned(), |n| n.to_string());
    let mut out = Vec::new();
    if !s.segments.is_empty() {
        let rows = s.segments.iter().map(|g| {
            let chain = g.base_chain.clone().unwrap_or_else(|| "-".into());
            let (first, last, epoch) = (number(g.first_lsn), number(g.last_lsn), number(g.base_epoch));
            vec![g.file.clone(), g.state.into(), output::bytes(g.bytes), first, last, epoch, chain]
        });
        let head = ["segment", "state", "size", "first lsn", "last lsn", "epoch before", "chain before"];
        out.push(output::table(&head, rows));
    }
    if let Some((durable, committed)) = s.durable_lsn.zip(s.committed_lsn) {
        out.push(format!("known durable: LSN {durable}, known committed: LSN {committed}"));
    }
    if !s.cut_tails.is_empty() {
        let row = |t: &Tail| {
            let (from, to) = (t.from_lsn.to_string(), t.to_lsn.to_string());
            vec![name(Path::new(&t.file)), output::bytes(t.bytes), t.epoch.to_string(), from, to]
        };
        out.push(output::table(&["cut tail", "size", "epoch", "first lsn", "last lsn"], s.cut_tails.iter().map(row)));
    }
    if out.is_empty() {
        out.push(format!("{} has no segment of a log", s.path));
    }
    out.join("\n\n")
}

#[derive(Serialize)]
struct RecordLine<'a> {
    lsn: u64,
    epoch: u64,
    kind: &'static str,
    commit_ts_us: u64,
    commit_time: String,
    chain: String,
    bytes: usize,
    session: u64,
    sequence: u64,
    /// The highest LSN that the node knew to be durable when it wrote the record; a cut record has none.
    durable_lsn: Option<u64>,
    file: String,
    offset: u64,
    ops: Vec<OpLine<'a>>,
    /// Of an ingest: what it takes in.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tables: Vec<TableLine<'a>>,
}

#[derive(Serialize)]
struct TableLine<'a> {
    id: String,
    bytes: u64,
    entries: u64,
    keyspace: String,
    first_key: Text<'a>,
    last_keyspace: String,
    last_key: Text<'a>,
}

impl<'a> From<&'a IngestedTable> for TableLine<'a> {
    fn from(t: &'a IngestedTable) -> Self {
        let split = |key: &'a [u8]| {
            let (space, key) = key.split_first().unwrap_or((&0, &[]));
            (keyspace(Keyspace(*space)), Text(key))
        };
        let ((keyspace, first_key), (last_keyspace, last_key)) = (split(&t.first_key), split(&t.last_key));
        let (id, bytes, entries) = (format!("{:032x}", t.file.id), t.file.bytes, t.file.entries);
        Self { id, bytes, entries, keyspace, first_key, last_keyspace, last_key }
    }
}

#[derive(Serialize)]
struct OpLine<'a> {
    op: &'static str,
    keyspace: String,
    key: Text<'a>,
    /// Of a range delete: the first key kept; empty for the end of the keyspace.
    #[serde(skip_serializing_if = "Option::is_none")]
    end: Option<Text<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    value_bytes: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expiry_us: Option<u64>,
}

fn op(op: Op<'_>) -> OpLine<'_> {
    let line = |op, space, key| OpLine {
        op,
        keyspace: keyspace(space),
        key: Text(key),
        end: None,
        value_bytes: None,
        expiry_us: None,
    };
    match op {
        Op::Put { keyspace, key, envelope } => {
            let value = Value::decode(envelope).ok();
            let (bytes, expiry) = value.map_or((envelope.len(), None), |v| (v.data.len(), v.expiry));
            OpLine { value_bytes: Some(bytes), expiry_us: expiry.map(|t| t.0), ..line("put", keyspace, key) }
        }
        Op::Delete { keyspace, key } => line("delete", keyspace, key),
        Op::DeleteRange { keyspace, start, end } => {
            OpLine { end: Some(Text(end)), ..line("delete range", keyspace, start) }
        }
    }
}

struct Lines<W> {
    out: W,
    format: Format,
    from: Lsn,
    to: Lsn,
}

impl<W: Write> Lines<W> {
    fn record(&mut self, r: &Record<'_>, durable: Option<Lsn>, file: &Path, offset: u64) -> anyhow::Result<()> {
        let h = r.header;
        if h.lsn < self.from || h.lsn > self.to {
            return Ok(());
        }
        let kind = match h.kind {
            Kind::Batch => "batch",
            Kind::EpochStart => "epoch start",
            Kind::TimelineStart => "timeline start",
            Kind::Ingest => "ingest",
        };
        let ingest = if h.kind == Kind::Ingest { Ingest::decode(r.body)?.tables } else { Vec::new() };
        let body = if h.kind == Kind::Batch { r.body } else { &[] };
        let all = ops(body).map(|o| o.map(op)).collect::<Result<Vec<_>, _>>()?;
        let line = RecordLine {
            lsn: h.lsn.0,
            epoch: h.epoch.0,
            kind,
            commit_ts_us: h.ts.0,
            commit_time: time::utc(h.ts.0),
            chain: r.chain.to_string(),
            bytes: r.bytes.len(),
            session: h.session,
            sequence: h.sequence,
            durable_lsn: durable.map(|l| l.0),
            file: name(file),
            offset,
            ops: all,
            tables: ingest.iter().map(TableLine::from).collect(),
        };
        match self.format {
            Format::Json => json_line(&mut self.out, &line),
            Format::Table => self.text(&line),
        }
    }

    fn text(&mut self, l: &RecordLine<'_>) -> anyhow::Result<()> {
        let RecordLine { lsn, epoch, kind, commit_time, bytes, file, offset, .. } = l;
        let durable = l.durable_lsn.map(|d| format!("  durable {d}")).unwrap_or_default();
        let session = if l.session == 0 { String::new() } else { format!("  session {} #{}", l.session, l.sequence) };
        let place = format!("{file}+{offset}");
        writeln!(
            self.out,
            "LSN {lsn}  epoch {epoch}  {commit_time}  {kind}  {bytes} B{durable}{session}  chain {}  {place}",
            l.chain
        )?;
        for o in &l.ops {
            let end = o.end.map(|e| format!(" to {}", if e.0.is_empty() { "the end".into() } else { escaped(e.0) }));
            let value = o.value_bytes.map(|n| format!("  {n} B")).unwrap_or_default();
            let expiry = o.expiry_us.map(|t| format!("  expires {}", time::utc(t))).unwrap_or_default();
            let (op, space, key, end) = (o.op, &o.keyspace, escaped(o.key.0), end.unwrap_or_default());
            writeln!(self.out, "    {op}  {space}  {key}{end}{value}{expiry}")?;
        }
        for t in &l.tables {
            let (first, last) = (escaped(t.first_key.0), escaped(t.last_key.0));
            let keys = format!("{}  {first} to {}  {last}", t.keyspace, t.last_keyspace);
            writeln!(self.out, "    table {}  {}  {} keys  {keys}", t.id, output::bytes(t.bytes), t.entries)?;
        }
        Ok(())
    }
}

fn records(format: Format, fs: &dyn Fs, at: &Place, args: &LogArgs) -> anyhow::Result<Exit> {
    let (from, to) = (Lsn(args.from.unwrap_or(0)), Lsn(args.to.unwrap_or(u64::MAX)));
    if from > to {
        return Err(failure::usage(format!("--from {from} is above --to {to}")));
    }
    let mut lines = Lines { out: output::stdout(), format, from, to };
    match at {
        Place::File(path) if CutTailFile::read(fs, path)?.is_some() => {
            let mut records = RecordFile::open(fs, path)?;
            let mut offset = 0;
            while let Some(r) = records.next()? {
                let bytes = r.bytes.len() as u64;
                lines.record(&r, None, path, offset)?;
                offset += bytes;
            }
        }
        Place::File(path) => segment_records(fs, &mut lines, &LogFile::read(fs, path)?)?,
        Place::Directory(dir) => {
            let files = inspect::log_files(fs, &dir.join("log"))?;
            for (n, file) in files.iter().enumerate() {
                let ends = files.get(n + 1).and_then(LogFile::header).map_or(Lsn::MAX, |h| h.base.lsn);
                if ends >= from && file.header().is_some_and(|h| h.base.lsn < to) {
                    segment_records(fs, &mut lines, file)?;
                }
            }
        }
    }
    lines.out.flush()?;
    Ok(Exit::Ok)
}

fn segment_records(fs: &dyn Fs, lines: &mut Lines<impl Write>, file: &LogFile) -> anyhow::Result<()> {
    let Some(header) = file.header() else { return Ok(()) };
    let mut frames = SegmentReader::open(fs, &file.path, &header)?;
    loop {
        let frame = match frames.next() {
            Ok(Some(frame)) => frame,
            Ok(None) => return Ok(()),
            Err(e) => {
                lines.out.flush()?;
                return Err(e.into());
            }
        };
        if let Some(r) = frame.record {
            if r.header.lsn > lines.to {
                return Ok(());
            }
            lines.record(&r, Some(frame.durable), &file.path, frame.offset)?;
        }
    }
}

#[derive(Serialize)]
struct Checked {
    segments: usize,
    records: u64,
    bytes: u64,
    first_lsn: Option<u64>,
    last_lsn: Option<u64>,
    last_epoch: Option<u64>,
    last_chain: Option<String>,
    torn_tail: Option<Torn>,
    cut_tails: usize,
}

#[derive(Serialize)]
struct Torn {
    file: String,
    offset: u64,
    bytes: u64,
    lsn: u64,
}

fn verify(format: Format, fs: &Arc<dyn Fs>, at: &Place) -> anyhow::Result<Exit> {
    let (path, check) = match at {
        Place::Directory(dir) => {
            // First what is known of the log, then the log: it may grow meanwhile.
            let state = inspect::state_files(fs, dir)?;
            let manifest = inspect::read_state(fs, dir);
            let known = Known {
                durable: state.evidence.map_or(Lsn::ZERO, |(durable, _)| durable),
                base: manifest.ok().filter(|m| m.finding.is_none()).map(|m| m.state.flushed),
            };
            let mut check = inspect::check_log(&**fs, dir, known)?;
            check.findings.extend(state.findings.into_iter().filter(|f| f.path.ends_with("EVIDENCE")));
            (dir, check)
        }
        Place::File(path) => match CutTailFile::read(&**fs, path)? {
            Some(tail) => {
                let (records, finding) = tail.check(&**fs)?;
                let check = LogCheck { findings: finding.into_iter().collect(), ..LogCheck::default() };
                (path, LogCheck { tails: vec![(tail, records)], ..check })
            }
            None => (path, inspect::check_segment(&**fs, path)?),
        },
    };
    let bytes = check.segments.iter().map(|s| s.file.bytes).chain(check.tails.iter().map(|(t, _)| t.bytes)).sum();
    let end = check.end();
    let checked = Checked {
        segments: check.segments.len(),
        records: check.records() + if check.segments.is_empty() { check.tails.iter().map(|t| t.1).sum() } else { 0 },
        bytes,
        first_lsn: check.segments.iter().find_map(|s| s.file.header()).map(|h| h.base.lsn.next().0),
        last_lsn: end.map(|p| p.lsn.0),
        last_epoch: end.map(|p| p.epoch.0),
        last_chain: end.map(|p| p.chain.to_string()),
        torn_tail: check.unfinished.as_ref().map(|u| Torn {
            file: u.path.display().to_string(),
            offset: u.offset,
            bytes: u.bytes,
            lsn: u.lsn.0,
        }),
        cut_tails: check.tails.len(),
    };
    let summary = sentence(&checked, path);
    conclude(format, path, checked, &summary, notes(&check), &check.findings)
}

fn sentence(c: &Checked, path: &Path) -> String {
    let range = c.first_lsn.zip(c.last_lsn).filter(|(first, last)| first <= last);
    let range = range.map(|(first, last)| format!(", LSN {first} to {last}")).unwrap_or_default();
    let (segments, records, tails, bytes) = (c.segments, c.records, c.cut_tails, output::bytes(c.bytes));
    format!("{}: {segments} segments, {tails} cut tails, {records} records{range}, {bytes} read", path.display())
}

fn notes(check: &LogCheck) -> Vec<String> {
    let mut out = Vec::new();
    if let Some(u) = &check.unfinished {
        out.push(format!(
            "torn tail, or a write in progress: {} at offset {} (LSN {}), {} bytes that were never acknowledged",
            u.path.display(),
            u.offset,
            u.lsn,
            u.bytes
        ));
    }
    if let Some(cut) = check.cut {
        out.push(format!("a cut is in progress: the next start ends the log at LSN {}", cut.lsn));
    }
    out
}
