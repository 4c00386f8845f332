//! `mainstay repair --data`: tables of a node that does not run, which damage may keep from starting. Also the files
//! that are given as good copies.
//!
//! Owns: finding the damage without a server, fetching copies. Never: a change to a directory that a process has open:
//! its locks are held from before the first look to the end.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use mainstay_backup::{Repository, copy_table};
use mainstay_engine::fs::os::OsFs;
use mainstay_engine::fs::{File, Fs, LockGuard, OpenMode};
use mainstay_engine::inspect::{self, Finding, SpacedKey, TableView};
use mainstay_engine::store::{Closed, Identity};
use mainstay_engine::table::{TableFile, parse_table_name};
use mainstay_engine::{Env, Error};

use super::failure::Hint;
use super::repair::{Keys, Node, Report, Table, hex, key};
use crate::codes::Exit;
use crate::node::directory::claim;
use crate::service::without_advice;

/// Sent of a file at a time, in bytes.
const PART_BYTES: u64 = 1 << 20;

/// What is to be repaired, and with what.
pub(super) struct Wanted<'a> {
    /// This table only.
    pub(super) table: Option<u128>,
    /// A good copy.
    pub(super) from: Option<&'a Path>,
    /// Change nothing.
    pub(super) dry_run: bool,
}

/// Reads all tables of `dir` and repairs what is damaged.
///
/// # Errors
/// No data directory, one that is in use, a file given that is no table, or the operating system's. A table of which no
/// good copy is to be had is in the report.
pub(super) async fn repair(dir: &Path, repository: Option<&str>, wanted: &Wanted<'_>) -> anyhow::Result<Report> {
    let env = Env::real();
    let Some(identity) = Identity::read(&env, dir)? else {
        return Err(Hint {
            what: format!("{} is no data directory of a node", dir.display()),
            next: "name with --data what the node is started with".to_owned(),
            exit: Exit::NotFound,
        }
        .into());
    };
    // Before the first look: what is found is still so when it is mended, and nobody else writes to `seeds`.
    let held = if wanted.dry_run { None } else { Some(Held::take(&env, dir)?) };
    let given = wanted.from.map(table_id).transpose()?;
    let wanted_id = wanted.table.or(given);
    let (checking, at) = (Arc::clone(&env.fs), dir.to_owned());
    let checked = tokio::task::spawn_blocking(move || inspect::check_tables(&checking, &at)).await??;
    let files: Vec<TableFile> = match inspect::read_state(&env.fs, dir) {
        Ok(view) => view.state.tables.iter().map(|t| t.file).collect(),
        Err(_) => Vec::new(),
    };
    let (mut tables, mut other) = (BTreeMap::new(), Vec::new());
    for finding in checked.findings {
        match file_of(&finding, &files) {
            Some(file) => drop(tables.entry(file.id).or_insert((file, finding))),
            None => other.push(finding.to_string()),
        }
    }
    let repository = repository.map(Repository::open).transpose()?;
    let mut rows = Vec::new();
    for (file, finding) in tables.into_values().filter(|(f, _)| wanted_id.is_none_or(|id| id == f.id)) {
        let mut row = row(&env.fs, &file, &finding);
        if let Some(held) = &held {
            match one(&env, &held.store, dir, &file, identity, wanted.from, repository.as_ref()).await? {
                Ok(source) => row.repaired_from = Some(source),
                Err(why) => row.error = Some(why),
            }
        }
        rows.push(row);
    }
    if let Some(id) = wanted_id.filter(|_| rows.is_empty()) {
        return Err(Hint {
            what: format!("{} has no table {id:032x} that is damaged", dir.display()),
            next: "`mainstay repair --data DIR --dry-run` names all that are".to_owned(),
            exit: Exit::NotFound,
        }
        .into());
    }
    let left = !other.is_empty() || rows.iter().any(|r| r.repaired_from.is_none());
    let next = left.then(|| {
        format!(
            "a node of a cluster: move {} away and start it with an empty directory, it is seeded by the primary; a \
             single node: `mainstay restore --to-latest` into another directory",
            dir.display()
        )
    });
    let node = Node { node: None, addr: dir.display().to_string(), read: None, tables: rows, other, next };
    Ok(Report { ok: !left, nodes: vec![node], silent: Vec::new() })
}

fn file_of(finding: &Finding, files: &[TableFile]) -> Option<TableFile> {
    let id = parse_table_name(finding.path.file_name()?.to_str()?)?;
    files.iter().find(|f| f.id == id).copied()
}

fn row(fs: &Arc<dyn Fs>, file: &TableFile, finding: &Finding) -> Table {
    // What the table says of itself, if that part of it is whole.
    let properties = TableView::open(fs, &finding.path).ok().map(|t| t.properties());
    let (first, last) = properties.as_ref().map_or_else(Default::default, |p| p.lsns);
    let spaced = |k: &SpacedKey| key(&[&[k.keyspace.0][..], &k.key].concat());
    let keys = properties.and_then(|p| p.keys).map(|(a, b)| Keys { first: spaced(&a), last: spaced(&b) });
    Table {
        id: format!("{:032x}", file.id),
        file: finding.path.display().to_string(),
        what: finding.to_string(),
        level: None,
        bytes: file.bytes,
        blake3: hex(&file.blake3),
        entries: file.entries,
        keys,
        min_lsn: first.0,
        max_lsn: last.0,
        repaired_from: None,
        error: None,
    }
}

/// The locks of a directory: the node's, which it has while it is being seeded too, and the store's.
struct Held {
    store: Arc<Closed>,
    _node: Box<dyn LockGuard>,
}

impl Held {
    fn take(env: &Env, dir: &Path) -> anyhow::Result<Self> {
        let node = claim(env, dir).map_err(in_use)?;
        let store = Closed::lock(env, dir).map_err(|e| in_use(e.into()))?;
        Ok(Self { store: Arc::new(store), _node: node })
    }
}

/// What to do about a directory that a process has.
fn in_use(e: anyhow::Error) -> anyhow::Error {
    match e.downcast_ref::<Error>() {
        Some(Error::InUse(_)) => Hint {
            what: e.to_string(),
            next: "the node runs: `mainstay repair --node HOST:PORT` repairs it without a stop".to_owned(),
            exit: Exit::Failed,
        }
        .into(),
        _ => e,
    }
}

/// Repairs one table; the inner error says why there is no good copy.
async fn one(
    env: &Env,
    held: &Arc<Closed>,
    dir: &Path,
    file: &TableFile,
    identity: Identity,
    from: Option<&Path>,
    repository: Option<&Repository>,
) -> anyhow::Result<Result<String, String>> {
    if let Some(from) = from {
        return put(held, file, from.to_owned(), from.display().to_string()).await;
    }
    let Some(repository) = repository else {
        return Ok(Err("no repository is given with --repository, and no copy with --from".to_owned()));
    };
    let seeds = dir.join("seeds");
    env.fs.create_dir_all(&seeds).with_context(|| format!("cannot make {}", seeds.display()))?;
    let scratch = seeds.join(format!("repair-{:016x}.table", env.rng.next_u64()));
    let fetched = copy_table(repository, identity.cluster, file, &scratch, |_| {}).await;
    let done = match fetched {
        Ok(true) => put(held, file, scratch.clone(), repository.url().to_owned()).await,
        Ok(false) => Ok(Err(format!("no base backup in {} has it", repository.url()))),
        Err(e) => Ok(Err(e.to_string())),
    };
    // What stays goes with the next start.
    let _ = env.fs.remove_file(&scratch);
    done
}

async fn put(
    held: &Arc<Closed>,
    file: &TableFile,
    from: PathBuf,
    source: String,
) -> anyhow::Result<Result<String, String>> {
    let (at, id) = (Arc::clone(held), file.id);
    let done = tokio::task::spawn_blocking(move || at.repair_table(id, &from)).await?;
    match done {
        Ok(()) => Ok(Ok(source)),
        // What was repaired before is told all the same.
        Err(e) => Ok(Err(without_advice(&e.to_string()).to_owned())),
    }
}

/// Opens a file that is given as a good copy.
pub(super) fn open(path: &Path) -> anyhow::Result<Arc<dyn File>> {
    OsFs::new().open(path, OpenMode::Read).with_context(|| format!("cannot open {}", path.display()))
}

/// The next part of it; `None` when it cannot be read.
pub(super) fn part(file: &dyn File, at: u64) -> Option<Vec<u8>> {
    let left = file.len().ok()?.saturating_sub(at);
    let mut bytes = vec![0; usize::try_from(left.min(PART_BYTES)).ok()?];
    mainstay_engine::fs::read_exact_at(file, &mut bytes, at).ok()?;
    Some(bytes)
}

/// Which table a file is a copy of.
///
/// # Errors
/// It is no table, or a damaged one.
pub(super) fn table_id(path: &Path) -> anyhow::Result<u128> {
    let fs: Arc<dyn Fs> = Arc::new(OsFs::new());
    let view = TableView::open(&fs, path).map_err(|e| Hint {
        what: format!("{} is no good copy of a table: {}", path.display(), without_advice(&e.to_string())),
        next: format!("`mainstay inspect table {} --verify` says what is wrong with it", path.display()),
        exit: Exit::Failed,
    })?;
    Ok(view.properties().id)
}
