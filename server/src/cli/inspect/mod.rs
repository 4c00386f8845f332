//! `mainstay inspect`: what log, tables and manifest hold, and whether they hold what was written.
//!
//! Owns: the flags, finding the files under a path, the printed forms, the verdict of `--verify`. Never: a lock, a
//! write, or a rule about what is damage (the engine's `inspect` has them).

mod log;
mod manifest;
mod table;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Subcommand;
use mainstay_engine::batch::Keyspace;
use mainstay_engine::fs::Fs;
use mainstay_engine::fs::os::OsFs;
use mainstay_engine::inspect::Finding;
use serde::Serialize;

use super::failure::Hint;
use super::{Global, output};
use crate::codes::Exit;

/// Look into the files of a data directory, without a server and without changing anything
#[derive(Debug, Subcommand)]
#[command(after_help = "\
Examples:
  mainstay inspect log ./data --verify
  mainstay inspect table ./data/tables/0123….table --entries
  mainstay inspect manifest ./data

PATH is a data directory, a checkpoint, or a single file. Nothing is locked or written, so it may be looked at
beside a running server: what that changes meanwhile is left out. --verify ends with exit code 4 when it finds damage.")]
pub enum InspectCommand {
    /// Segments and records of the log, and cut tails
    Log(log::LogArgs),
    /// Tables: properties, blocks, entries
    Table(table::TableArgs),
    /// Which tables make up the tree, and since when
    Manifest(manifest::ManifestArgs),
}

pub(super) fn run(global: &Global, command: InspectCommand) -> anyhow::Result<Exit> {
    let fs: Arc<dyn Fs> = Arc::new(OsFs::new());
    match command {
        InspectCommand::Log(args) => log::run(global.output, &fs, &args),
        InspectCommand::Table(args) => table::run(global.output, &fs, &args),
        InspectCommand::Manifest(args) => manifest::run(global.output, &fs, &args),
    }
}

/// What a path names.
enum Place {
    /// A data directory or a checkpoint.
    Directory(PathBuf),
    File(PathBuf),
}

/// The directory that has the folder `part`, whether `path` is it or the folder itself, or the file `path`.
///
/// # Errors
/// Exit code 5 when there is nothing of the kind.
fn place(fs: &dyn Fs, path: &Path, part: &str) -> anyhow::Result<Place> {
    let missing = |what: String| Hint {
        what,
        next: format!("PATH is a data directory or a checkpoint, which has a folder `{part}`, or a file out of it"),
        exit: Exit::NotFound,
    };
    if !fs.exists(path)? {
        return Err(missing(format!("{} does not exist", path.display())).into());
    }
    if fs.list(path).is_err() {
        return Ok(Place::File(path.to_owned()));
    }
    if fs.exists(&path.join(part))? {
        return Ok(Place::Directory(path.to_owned()));
    }
    match path.parent() {
        Some(parent) if path.file_name().is_some_and(|n| n == part) => {
            let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
            Ok(Place::Directory(parent.to_owned()))
        }
        _ => Err(missing(format!("{} has no folder `{part}`", path.display())).into()),
    }
}

/// A finding as JSON.
#[derive(Serialize)]
struct Damage {
    file: String,
    offset: u64,
    lsn: Option<u64>,
    what: String,
}

impl From<&Finding> for Damage {
    fn from(f: &Finding) -> Self {
        let file = f.path.display().to_string();
        Self { file, offset: f.offset, lsn: f.lsn.map(|l| l.0), what: f.what.clone() }
    }
}

/// What `--verify` came to.
#[derive(Serialize)]
struct Verdict<T> {
    path: String,
    ok: bool,
    #[serde(flatten)]
    checked: T,
    /// What is there that is no damage, such as a write that a crash left unfinished.
    notes: Vec<String>,
    damage: Vec<Damage>,
}

/// Prints a verdict: `summary` says what was read.
fn conclude<T: Serialize>(
    format: output::Format,
    path: &Path,
    checked: T,
    summary: &str,
    notes: Vec<String>,
    findings: &[Finding],
) -> anyhow::Result<Exit> {
    let ok = findings.is_empty();
    let damage = findings.iter().map(Damage::from).collect();
    let verdict = Verdict { path: path.display().to_string(), ok, checked, notes, damage };
    output::print(format, &verdict, || {
        let mut out = format!("{summary}\n");
        out.extend(verdict.notes.iter().map(|n| format!("note: {n}\n")));
        out.extend(findings.iter().map(|f| format!("damage: {f}\n")));
        match findings.len() {
            0 => out + "ok: everything is as it was written",
            1 => out + "damaged: in 1 place",
            n => out + &format!("damaged: in {n} places"),
        }
    })?;
    Ok(if ok { Exit::Ok } else { Exit::NegativeVerdict })
}

fn keyspace(space: Keyspace) -> String {
    match space {
        Keyspace::SYSTEM => "system".to_owned(),
        Keyspace::USER => "user".to_owned(),
        Keyspace(n) => n.to_string(),
    }
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}
