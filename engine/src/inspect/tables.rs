//! Whether the tables of a directory are whole.
//!
//! Owns: which files are looked at, and what the manifest says of each. Never: repair, and never a file that the
//! tree no longer names.

use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;

use super::{Finding, read_state};
use crate::error::{Error, Result};
use crate::fs::Fs;
use crate::table::verify::TableCheck;
use crate::table::{TableFile, parse_table_name, table_name};

/// Read at a time, in bytes.
const STEP_BYTES: u64 = 1 << 20;

/// What a check of tables found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TablesCheck {
    /// Tables read whole.
    pub tables: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Tables that were merged away meanwhile.
    pub vanished: u64,
    /// Table files that the manifest does not name: the next start removes them, but for those that an ingest record
    /// in the log names.
    pub unnamed: u64,
    /// Damage.
    pub findings: Vec<Finding>,
}

/// Reads a table file whole; returns its size and what does not fit. With `expected`, also that it is this file.
///
/// # Errors
/// `Io` when the file is missing or may not be read.
pub fn check_table(fs: &Arc<dyn Fs>, path: &Path, expected: Option<&TableFile>) -> Result<(u64, Vec<Finding>)> {
    // Opening a table takes a missing file for damage, which is for the caller to say.
    let file = fs.open(path, crate::fs::OpenMode::Read).map_err(|e| Error::io("open", path, e))?;
    let bytes = file.len().map_err(|e| Error::io("measure", path, e))?;
    drop(file);
    let mut check = match TableCheck::open(fs, path) {
        Ok(check) => check,
        Err(e) => return Ok((bytes, vec![Finding::of(e, 0)?])),
    };
    while check.step(STEP_BYTES).is_some() {}
    Ok((bytes, conclude(check, path, expected)?))
}

/// What a check that has come to its end found.
///
/// # Errors
/// What kept it from reading on, if nothing was found before.
pub(crate) fn conclude(check: TableCheck, path: &Path, expected: Option<&TableFile>) -> Result<Vec<Finding>> {
    match check.finish() {
        Err(found) => {
            let (mut findings, mut other) = (Vec::new(), None);
            for e in found {
                match Finding::of(e, 0) {
                    Ok(finding) => findings.push(finding),
                    Err(e) => other = Some(e),
                }
            }
            other.filter(|_| findings.is_empty()).map_or(Ok(findings), Err)
        }
        Ok(file) if expected.is_some_and(|e| *e != file) => {
            let what = "a whole table, but not the one that the manifest names".to_owned();
            Ok(vec![Finding { path: path.to_owned(), offset: 0, lsn: None, what }])
        }
        Ok(_) => Ok(Vec::new()),
    }
}

/// Checks every table that the manifest of `dir` names; all of `dir/tables` if the manifest cannot be read.
///
/// # Errors
/// `Io` when a file may not be read. A missing table is a finding.
pub fn check_tables(fs: &Arc<dyn Fs>, dir: &Path) -> Result<TablesCheck> {
    let mut out = TablesCheck::default();
    let tables_dir = dir.join("tables");
    let names = fs.list(&tables_dir).map_err(|e| Error::io("list", &tables_dir, e))?;
    let present: Vec<u128> = names.iter().filter_map(|n| parse_table_name(n)).collect();
    let named = named(fs, dir, &mut out.findings)?;
    let unexpected: Vec<u128> = match &named {
        Some(named) => {
            out.unnamed = present.iter().filter(|id| !named.iter().any(|f| f.id == **id)).count() as u64;
            Vec::new()
        }
        None => present,
    };
    let wanted = named.unwrap_or_default().into_iter().map(|f| (f.id, Some(f)));
    for (id, expected) in wanted.chain(unexpected.into_iter().map(|id| (id, None))) {
        let path = tables_dir.join(table_name(id));
        match check_table(fs, &path, expected.as_ref()) {
            Ok((bytes, found)) => {
                out.tables += 1;
                out.bytes += bytes;
                out.findings.extend(found);
            }
            Err(Error::Io { source, .. }) if source.kind() == ErrorKind::NotFound => {
                if still_named(fs, dir, id)? {
                    let what = "the table file is missing".to_owned();
                    out.findings.push(Finding { path, offset: 0, lsn: None, what });
                } else {
                    out.vanished += 1;
                }
            }
            Err(e) => return Err(e),
        }
    }
    Ok(out)
}

/// The tables that the manifest names; `None`, with a finding, if it cannot be read.
fn named(fs: &Arc<dyn Fs>, dir: &Path, findings: &mut Vec<Finding>) -> Result<Option<Vec<TableFile>>> {
    let view = match read_state(fs, dir) {
        Ok(view) => view,
        Err(e) => {
            findings.push(Finding::of(e, 0)?);
            return Ok(None);
        }
    };
    match view.finding {
        Some(finding) => {
            findings.push(finding);
            Ok(None)
        }
        None => Ok(Some(view.state.tables.iter().map(|t| t.file).collect())),
    }
}

/// Whether the manifest, read again, names the table.
pub(super) fn still_named(fs: &Arc<dyn Fs>, dir: &Path, id: u128) -> Result<bool> {
    Ok(read_state(fs, dir)?.state.tables.iter().any(|t| t.file.id == id))
}
