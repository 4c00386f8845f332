//! The small files of a directory: identity, evidence, and the manifest with what it names.
//!
//! Owns: reading them beside a process that may change them. Never: what they mean to a store.

use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;

use super::tables::still_named;
use super::{Finding, ManifestView, current_manifest, read_manifest};
use crate::error::{Error, Result};
use crate::fs::{Fs, OpenMode};
use crate::lsn::Lsn;
use crate::store::{Identity, look_at_evidence};
use crate::table::table_name;

/// A manifest that is rotated between two looks is read again at most so often.
const TRIES: u32 = 10;

/// What identity and evidence say. A checkpoint has neither.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StateFiles {
    /// Whose data it is.
    pub identity: Option<Identity>,
    /// LSNs known to be durable and committed here.
    pub evidence: Option<(Lsn, Lsn)>,
    /// Damage.
    pub findings: Vec<Finding>,
}

/// Reads `IDENTITY` and `EVIDENCE` of a data directory.
///
/// # Errors
/// `Io` when a file is there and may not be read.
pub fn state_files(fs: &Arc<dyn Fs>, dir: &Path) -> Result<StateFiles> {
    let mut out = StateFiles::default();
    match Identity::read_from(&**fs, dir) {
        Ok(found) => out.identity = found.map(|(identity, _)| identity),
        Err(e @ Error::Io { .. }) => return Err(e),
        Err(e) => {
            let path = dir.join("IDENTITY");
            out.findings.push(Finding { path, ..Finding::of(e, 0)? });
        }
    }
    match look_at_evidence(&**fs, dir) {
        Ok(evidence) => out.evidence = evidence,
        Err(e) => out.findings.push(Finding::of(e, 0)?),
    }
    Ok(out)
}

/// Reads the manifest in force in a data directory or a checkpoint. Damage in it is told in the result.
///
/// # Errors
/// `Directory` without one, `Corruption` when `CURRENT` names none, `Format`, `Io`.
pub fn read_state(fs: &Arc<dyn Fs>, dir: &Path) -> Result<ManifestView> {
    let manifest_dir = dir.join("manifest");
    let mut path = current_manifest(fs, &manifest_dir)?;
    for _ in 0..TRIES {
        let read = read_manifest(fs, &path, |_| ());
        let now = current_manifest(fs, &manifest_dir)?;
        // A rotation wrote another one meanwhile, and may have removed this one.
        if now == path {
            return read;
        }
        path = now;
    }
    read_manifest(fs, &path, |_| ())
}

/// What a check of the manifest found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManifestCheck {
    /// Whole edits.
    pub edits: u64,
    /// Tables named.
    pub tables: u64,
    /// Where an unfinished last edit begins.
    pub torn: Option<u64>,
    /// Damage, missing tables and those of another length.
    pub findings: Vec<Finding>,
}

/// Checks `CURRENT`, the manifest it names, and that each table is there with its length.
///
/// # Errors
/// `Directory` without a manifest, `Io`.
pub fn check_manifest(fs: &Arc<dyn Fs>, dir: &Path) -> Result<ManifestCheck> {
    let mut out = ManifestCheck { edits: 0, tables: 0, torn: None, findings: Vec::new() };
    let view = match read_state(fs, dir) {
        Ok(view) => view,
        Err(e @ Error::Directory { .. }) => return Err(e),
        Err(e) => {
            out.findings.push(Finding::of(e, 0)?);
            return Ok(out);
        }
    };
    (out.edits, out.tables, out.torn) = (view.edits, view.state.tables.len() as u64, view.torn);
    if let Some(finding) = view.finding {
        out.findings.push(finding);
        return Ok(out);
    }
    for table in &view.state.tables {
        let path = dir.join("tables").join(table_name(table.file.id));
        let what = match fs.open(&path, OpenMode::Read).and_then(|f| f.len()) {
            Ok(bytes) if bytes == table.file.bytes => continue,
            Ok(bytes) => format!("the file has {bytes} bytes, the manifest says {}", table.file.bytes),
            Err(e) if e.kind() == ErrorKind::NotFound && !still_named(fs, dir, table.file.id)? => continue,
            Err(e) if e.kind() == ErrorKind::NotFound => "the table file is missing".to_owned(),
            Err(e) => return Err(Error::io("open", &path, e)),
        };
        out.findings.push(Finding { path, offset: 0, lsn: None, what });
    }
    Ok(out)
}
