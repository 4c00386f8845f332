//! `mainstay inspect manifest`: the state of the tree and the edits that made it.
//!
//! Owns: the printed forms. Never: what an edit means.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use mainstay_engine::fs::Fs;
use mainstay_engine::inspect::{self, ManifestEdit, ManifestView, PlacedTable};
use mainstay_engine::{CommitTs, Epoch, Lsn, Position};
use serde::Serialize;

use super::super::output::{self, Format, json_line};
use super::super::time;
use super::{Damage, Place, conclude, place};
use crate::codes::Exit;

/// Which tables make up the tree, and since when
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  mainstay inspect manifest ./data              positions, epochs, tables by level
  mainstay inspect manifest ./data --edits      every flush and merge, in order
  mainstay inspect manifest ./checkpoint --verify
  mainstay inspect manifest ./data -o json | jq '.tables | length'

--verify also looks whether every table is there with its length, and reads IDENTITY and EVIDENCE. Exit code 4 with
damage, 5 when there is no manifest.")]
pub struct ManifestArgs {
    /// A data directory, a checkpoint, or a manifest file
    #[arg(value_name = "PATH")]
    path: PathBuf,
    /// List the edits
    #[arg(long)]
    edits: bool,
    /// Read everything and say whether it holds
    #[arg(long, conflicts_with = "edits")]
    verify: bool,
}

pub(super) fn run(format: Format, fs: &Arc<dyn Fs>, args: &ManifestArgs) -> anyhow::Result<Exit> {
    let found = place(&**fs, &args.path, "manifest")?;
    if args.verify {
        return verify(format, fs, &found);
    }
    let mut out = output::stdout();
    let mut written = Ok(());
    let mut see = |e: ManifestEdit| {
        if args.edits && written.is_ok() {
            written = edit(&mut out, format, &e);
        }
    };
    let view = match &found {
        Place::File(path) => inspect::read_manifest(fs, path, &mut see)?,
        Place::Directory(dir) if args.edits => {
            let path = inspect::current_manifest(fs, &dir.join("manifest"))?;
            inspect::read_manifest(fs, &path, &mut see)?
        }
        Place::Directory(dir) => inspect::read_state(fs, dir)?,
    };
    written?;
    out.flush()?;
    drop(out);
    if !args.edits {
        let identity = match &found {
            Place::Directory(dir) => inspect::state_files(fs, dir)?.identity,
            Place::File(_) => None,
        };
        let who = identity.map(|i| (i.cluster.to_string(), i.timeline.to_string()));
        state(format, &view, who)?;
    }
    match view.finding {
        None => Ok(Exit::Ok),
        Some(f) => Err(anyhow::anyhow!("damage: {f}; what stands before it is printed")),
    }
}

#[derive(Serialize)]
struct At {
    epoch: u64,
    lsn: u64,
    commit_ts_us: u64,
    commit_time: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    chain: Option<String>,
}

impl From<Position> for At {
    fn from(p: Position) -> Self {
        let chain = Some(p.chain.to_string());
        Self { epoch: p.epoch.0, lsn: p.lsn.0, commit_ts_us: p.ts.0, commit_time: time::utc(p.ts.0), chain }
    }
}

fn at((epoch, lsn, ts): (Epoch, Lsn, CommitTs)) -> At {
    At { epoch: epoch.0, lsn: lsn.0, commit_ts_us: ts.0, commit_time: time::utc(ts.0), chain: None }
}

#[derive(Serialize)]
struct Table {
    level: Option<u8>,
    id: String,
    bytes: u64,
    entries: u64,
    blake3: String,
    /// Of an ingested table: the version of all its keys, whatever its file says.
    #[serde(skip_serializing_if = "Option::is_none")]
    ingested_lsn: Option<u64>,
}

impl From<&PlacedTable> for Table {
    fn from(t: &PlacedTable) -> Self {
        let blake3 = t.file.blake3.iter().map(|b| format!("{b:02x}")).collect();
        let (bytes, entries, ingested_lsn) = (t.file.bytes, t.file.entries, t.ingested.map(|l| l.0));
        Self { level: t.level, id: id(t.file.id), bytes, entries, blake3, ingested_lsn }
    }
}

fn id(id: u128) -> String {
    format!("{id:032x}")
}

pub(super) fn level(level: Option<u8>) -> String {
    level.map_or_else(|| "history".to_owned(), |l| l.to_string())
}

#[derive(Serialize)]
struct State {
    file: String,
    cluster: Option<String>,
    timeline: Option<String>,
    format: u32,
    bytes: u64,
    edits: u64,
    flushed: At,
    history_floor_lsn: u64,
    history_floor_time: String,
    epochs: Vec<At>,
    timeline_start: Option<Timeline>,
    tables: Vec<Table>,
    torn_at: Option<u64>,
    damage: Option<Damage>,
}

#[derive(Serialize)]
struct Timeline {
    timeline: String,
    parent: String,
    fork_lsn: u64,
}

fn state(format: Format, v: &ManifestView, who: Option<(String, String)>) -> anyhow::Result<()> {
    let s = &v.state;
    let (cluster, timeline) = who.unzip();
    let state = State {
        file: v.path.display().to_string(),
        cluster,
        timeline,
        format: v.format,
        bytes: v.bytes,
        edits: v.edits,
        flushed: s.flushed.into(),
        history_floor_lsn: s.floor.0.0,
        history_floor_time: time::utc(s.floor.1.0),
        epochs: s.epochs.iter().copied().map(at).collect(),
        timeline_start: s.timeline.map(|t| Timeline {
            timeline: t.timeline.to_string(),
            parent: t.parent.to_string(),
            fork_lsn: t.fork.0,
        }),
        tables: s.tables.iter().map(Table::from).collect(),
        torn_at: v.torn,
        damage: v.finding.as_ref().map(Damage::from),
    };
    output::print(format, &state, || text(&state))
}

fn text(s: &State) -> String {
    let mut out = format!("{}: format {}, {} edits, {}", s.file, s.format, s.edits, output::bytes(s.bytes));
    if let Some((cluster, timeline)) = s.cluster.as_ref().zip(s.timeline.as_ref()) {
        out.push_str(&format!("\ncluster {cluster}, timeline {timeline}"));
    }
    let f = &s.flushed;
    out.push_str(&format!("\nflushed: epoch {}, LSN {} ({})", f.epoch, f.lsn, f.commit_time));
    out.push_str(&format!("\nreadable from: LSN {} ({})", s.history_floor_lsn, s.history_floor_time));
    for e in &s.epochs {
        out.push_str(&format!("\nepoch {} from LSN {} ({})", e.epoch, e.lsn, e.commit_time));
    }
    if let Some(t) = &s.timeline_start {
        out.push_str(&format!("\ntimeline {} from {} at LSN {}", t.timeline, t.parent, t.fork_lsn));
    }
    if let Some(torn) = s.torn_at {
        out.push_str(&format!("\nan unfinished edit at offset {torn}, which a start leaves out"));
    }
    let mut tables: Vec<&Table> = s.tables.iter().collect();
    tables.sort_by_key(|t| t.level.unwrap_or(u8::MAX));
    for t in tables.iter().filter(|t| t.ingested_lsn.is_some()) {
        out.push_str(&format!("\ntable {} was ingested at LSN {}", t.id, t.ingested_lsn.unwrap_or_default()));
    }
    let row = |t: &&Table| vec![level(t.level), t.id.clone(), output::bytes(t.bytes), t.entries.to_string()];
    out.push_str(&format!("\n\n{}", output::table(&["level", "table", "size", "entries"], tables.iter().map(row))));
    out
}

#[derive(Serialize)]
struct Edit {
    offset: u64,
    bytes: u64,
    added: Vec<Table>,
    removed: Vec<String>,
    flushed: Option<At>,
    epochs: Vec<At>,
    timeline: Option<String>,
    history_floor_lsn: Option<u64>,
}

fn edit(out: &mut impl Write, format: Format, e: &ManifestEdit) -> anyhow::Result<()> {
    let edit = Edit {
        offset: e.offset,
        bytes: e.bytes,
        added: e.added.iter().map(Table::from).collect(),
        removed: e.removed.iter().map(|i| id(*i)).collect(),
        flushed: e.flushed.map(At::from),
        epochs: e.epochs.iter().copied().map(at).collect(),
        timeline: e.timeline.map(|t| t.timeline.to_string()),
        history_floor_lsn: e.floor.map(|(lsn, _)| lsn.0),
    };
    if format == Format::Json {
        return json_line(out, &edit);
    }
    writeln!(out, "edit at offset {}, {} bytes", edit.offset, edit.bytes)?;
    for t in &edit.removed {
        writeln!(out, "    remove {t}")?;
    }
    for t in &edit.added {
        let at = t.ingested_lsn.map(|l| format!(", ingested at LSN {l}")).unwrap_or_default();
        let (level, bytes) = (level(t.level), output::bytes(t.bytes));
        writeln!(out, "    add {} level {level}, {bytes}, {} entries{at}", t.id, t.entries)?;
    }
    if let Some(f) = &edit.flushed {
        writeln!(out, "    flushed: epoch {}, LSN {} ({})", f.epoch, f.lsn, f.commit_time)?;
    }
    for e in &edit.epochs {
        writeln!(out, "    epoch {} from LSN {}", e.epoch, e.lsn)?;
    }
    if let Some(t) = &edit.timeline {
        writeln!(out, "    timeline {t}")?;
    }
    if let Some(lsn) = edit.history_floor_lsn {
        writeln!(out, "    readable from LSN {lsn}")?;
    }
    Ok(())
}

#[derive(Serialize)]
struct Checked {
    edits: u64,
    tables: u64,
    torn_at: Option<u64>,
}

fn verify(format: Format, fs: &Arc<dyn Fs>, at: &Place) -> anyhow::Result<Exit> {
    let (path, checked, findings): (&Path, _, _) = match at {
        Place::Directory(dir) => {
            let mut check = inspect::check_manifest(fs, dir)?;
            check.findings.extend(inspect::state_files(fs, dir)?.findings);
            (dir, Checked { edits: check.edits, tables: check.tables, torn_at: check.torn }, check.findings)
        }
        Place::File(path) => {
            let view = inspect::read_manifest(fs, path, |_| ())?;
            let tables = view.state.tables.len() as u64;
            (path, Checked { edits: view.edits, tables, torn_at: view.torn }, view.finding.into_iter().collect())
        }
    };
    let notes = checked.torn_at.map(|at| {
        format!("the last edit, at offset {at}, is not whole: an unfinished write that a start leaves out, or damage")
    });
    let summary = format!("{}: {} edits, {} tables named", path.display(), checked.edits, checked.tables);
    conclude(format, path, checked, &summary, notes.into_iter().collect(), &findings)
}
