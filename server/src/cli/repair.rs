//! `mainstay scrub` and `mainstay repair`: find damage on the disks of running nodes, and put good copies in the place
//! of damaged tables.
//!
//! Owns: the flags, the printed forms, and what to do next about a table of which nobody has a good copy. Never: a
//! decision whether a copy is good (the node reads it whole first).

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use clap::Args;
use futures::Stream;
use mainstay_client::{Client, DamagedTable, ListDamageResponse, StatusResponse};
use serde::Serialize;

use super::failure::{Hint, usage};
use super::progress::Progress;
use super::status::ask;
use super::text::escaped;
use super::{Global, closed, connect, output};
use crate::codes::Exit;

/// Read all tables and sealed log segments of running nodes now, and name what is damaged
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  mainstay scrub                                    the node at the default endpoint
  mainstay scrub --endpoints a:7400,b:7400,c:7400   one node after the other
  mainstay scrub --node b:7400 --rate 20            at 20 MiB a second

A node does the same once a day by itself, slowly. Reads what the operating system gives: a page that is still in its
memory is read as it was. Exit code 4 when something is damaged; `mainstay repair` is what comes next. Exit code 1 when
files could not be read or the scrub ended early: then nobody knows whether all is whole.")]
pub struct ScrubArgs {
    /// Client address of the node to read; default: all endpoints
    #[arg(long, value_name = "HOST:PORT")]
    node: Option<String>,
    /// MiB to read a second; 0 for as fast as the disk gives them
    #[arg(long, value_name = "MIB", default_value_t = 100)]
    rate: u64,
}

/// Put good copies in the place of damaged tables
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  mainstay repair                               every table that the node knows to be damaged
  mainstay repair --node b:7400 --dry-run       only name them
  mainstay repair --from /old-disk/tables/0123….table
  mainstay repair --data ./data --repository s3://bucket/prod     a node that is stopped, or does not start

A good copy is a file with the same hash: out of a base backup in the node's repository, from another node that was
seeded with this very table, or the FILE that you give. It is read whole before anything is changed, and the node goes
on throughout. Nodes merge tables each in its own way, so often nobody else has the same one. Then nothing is changed,
exit code 1, and what comes next is said for each node:
  a replica      mainstay cluster reseed --node HOST:PORT    fetches all data from the primary; nothing is lost
  the primary    mainstay cluster promote --node OTHER, then reseed it
  a single node  mainstay restore --to-latest into another directory; what is archived is there
What is damaged is what reads, merges and scrubs came across: `mainstay scrub` reads everything.")]
pub struct RepairArgs {
    /// Client address of the node to repair; default: all endpoints
    #[arg(long, value_name = "HOST:PORT", conflicts_with = "data")]
    node: Option<String>,
    /// The table's id, as `mainstay scrub` prints it; default: all that are damaged
    #[arg(long, value_name = "ID", value_parser = parse_id)]
    table: Option<u128>,
    /// A file that is a good copy of the table
    #[arg(long, value_name = "FILE")]
    from: Option<PathBuf>,
    /// Repair the data directory of a node that does not run
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// With --data: URL of the repository to take copies from
    #[arg(long, value_name = "URL", env = "MAINSTAY_REPOSITORY")]
    repository: Option<String>,
    /// Name what is damaged, change nothing
    #[arg(long)]
    dry_run: bool,
}

fn parse_id(text: &str) -> Result<u128, String> {
    let id = if text.len() == 32 { u128::from_str_radix(text, 16).ok() } else { None };
    id.ok_or_else(|| "expected 32 hexadecimal digits, as `mainstay scrub` prints them".to_owned())
}

/// What a scrub or a repair came to.
#[derive(Serialize)]
pub(super) struct Report {
    /// Nothing is damaged, or nothing any more; and a scrub read everything.
    pub(super) ok: bool,
    pub(super) nodes: Vec<Node>,
    /// Endpoints that do not answer: nothing is known of them.
    pub(super) silent: Vec<String>,
}

impl Report {
    fn of(nodes: Vec<Node>, silent: Vec<String>) -> Self {
        Self { ok: nodes.iter().all(|n| !n.damaged() && n.seen()), nodes, silent }
    }
}

#[derive(Serialize)]
pub(super) struct Node {
    /// None of a directory that no node runs on.
    pub(super) node: Option<u64>,
    /// Its address, or the directory.
    pub(super) addr: String,
    /// Read by a scrub.
    pub(super) read: Option<Read>,
    pub(super) tables: Vec<Table>,
    /// Damage to the log or the manifest, which no copy mends.
    pub(super) other: Vec<String>,
    /// What to do about damage that is still there.
    pub(super) next: Option<String>,
}

#[derive(Default, Serialize)]
pub(super) struct Read {
    files: u64,
    /// Files that went before they were read: merged away, repaired, released or cut.
    files_gone: u64,
    bytes: u64,
    /// Files that could not be read, which says nothing of their bytes.
    unread_files: u64,
    /// Why, of the first of them.
    unread: Vec<String>,
    /// Why the scrub ended before everything was read.
    ended: Option<String>,
}

#[derive(Serialize)]
pub(super) struct Table {
    pub(super) id: String,
    pub(super) file: String,
    pub(super) what: String,
    pub(super) level: Option<u32>,
    pub(super) bytes: u64,
    pub(super) blake3: String,
    pub(super) entries: u64,
    pub(super) keys: Option<Keys>,
    pub(super) min_lsn: u64,
    pub(super) max_lsn: u64,
    /// Where a good copy came from; none: it is still damaged.
    pub(super) repaired_from: Option<String>,
    /// Why it is still damaged.
    pub(super) error: Option<String>,
}

#[derive(Serialize)]
pub(super) struct Keys {
    pub(super) first: String,
    pub(super) last: String,
}

/// A key as people and JSON read it; those of the system's own keyspace are marked.
pub(super) fn key(with_space: &[u8]) -> String {
    match with_space.split_first() {
        Some((1, key)) => escaped(key),
        Some((space, key)) => format!("(keyspace {space}) {}", escaped(key)),
        None => String::new(),
    }
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut out, b| {
        let _ = write!(out, "{b:02x}");
        out
    })
}

impl From<&DamagedTable> for Table {
    fn from(t: &DamagedTable) -> Self {
        let keys = Keys { first: key(&t.min_key), last: key(&t.max_key) };
        Self {
            id: hex(&t.id),
            file: t.path.clone(),
            what: t.what.clone(),
            level: t.level,
            bytes: t.bytes,
            blake3: hex(&t.blake3),
            entries: t.entries,
            keys: (t.entries > 0).then_some(keys),
            min_lsn: t.min_lsn,
            max_lsn: t.max_lsn,
            repaired_from: None,
            error: None,
        }
    }
}

impl Node {
    fn damaged(&self) -> bool {
        !self.other.is_empty() || self.tables.iter().any(|t| t.repaired_from.is_none())
    }

    /// A scrub, if there was one, read everything.
    fn seen(&self) -> bool {
        self.read.as_ref().is_none_or(|r| r.unread_files == 0 && r.ended.is_none())
    }

    fn text(&self) -> String {
        let who = self.node.map_or_else(String::new, |n| format!("node {n} at "));
        let mut out = format!("{who}{}: ", self.addr);
        if let Some(Read { files, files_gone, bytes, unread_files, .. }) = &self.read {
            out += &format!("{files} files read, {}; ", output::bytes(*bytes));
            if *files_gone > 0 {
                out += &format!("no longer in use: {files_gone}; ");
            }
            if *unread_files > 0 {
                out += &format!("could not be read: {unread_files}; ");
            }
        }
        out += &match (self.tables.len(), self.other.len()) {
            (0, 0) => "no damage known".to_owned(),
            (t, 0) => format!("damaged tables: {t}"),
            (t, l) => format!("damaged tables: {t}, other damaged files: {l}"),
        };
        for t in &self.tables {
            let keys =
                t.keys.as_ref().map_or_else(|| "no keys".to_owned(), |k| format!("keys {} to {}", k.first, k.last));
            let level = t.level.map_or_else(|| "history".to_owned(), |l| format!("level {l}"));
            let (id, size) = (&t.id, output::bytes(t.bytes));
            out += &format!(
                "\n  table {id}  {level}  {size}  {} entries, {keys}, LSN {} to {}",
                t.entries, t.min_lsn, t.max_lsn
            );
            out += &format!("\n    {}", t.what);
            if let Some(source) = &t.repaired_from {
                out += &format!("\n    repaired: a good copy from {source} is in its place");
            }
            if let Some(error) = &t.error {
                out += &format!("\n    not repaired: {error}");
            }
        }
        self.other.iter().for_each(|o| out += &format!("\n  {o}"));
        if let Some(read) = &self.read {
            read.unread.iter().for_each(|u| out += &format!("\n  not read: {u}"));
            read.ended.iter().for_each(|e| out += &format!("\n  not everything was read: {e}"));
        }
        out
    }
}

pub(super) fn print(global: &Global, report: &Report) -> anyhow::Result<()> {
    output::print(global.output, report, || report.nodes.iter().map(Node::text).collect::<Vec<_>>().join("\n"))
}

pub(super) async fn scrub(global: &Global, args: ScrubArgs) -> anyhow::Result<Exit> {
    let client = connect::client(global)?;
    let mut nodes = Vec::new();
    let (asked, silent) = nodes_of(global, &client, args.node).await?;
    for (addr, status) in asked {
        let mut read = Read::default();
        if let Err(e) = read_all(&client, &addr, status.node_id, args.rate, &mut read).await {
            read.ended = Some(e.to_string());
        }
        // One that does not answer keeps nothing of the others back.
        let found = client.damage(&addr).await.unwrap_or_else(|e| {
            read.ended.get_or_insert(e.to_string());
            ListDamageResponse::default()
        });
        nodes.push(node(&addr, &status, Some(read), &found));
    }
    let report = Report::of(nodes, silent);
    print(global, &report)?;
    if report.nodes.iter().any(Node::damaged) {
        return Ok(Exit::NegativeVerdict);
    }
    if !report.ok {
        return Err(unseen(&report).into());
    }
    Ok(if report.silent.is_empty() { Exit::Ok } else { Exit::Warnings })
}

/// A scrub of one node to its end.
async fn read_all(client: &Client, addr: &str, id: u64, rate: u64, read: &mut Read) -> anyhow::Result<()> {
    let mut progress = Progress::bytes("scrub", 0);
    let mut messages = client.scrub(addr, rate.saturating_mul(1 << 20)).await?;
    let mut total = None;
    loop {
        let next = messages.next().await;
        let Ok(Some(m)) = next else {
            progress.clear();
            next?;
            break;
        };
        progress.at(m.bytes_done, m.bytes_total, || format!("of node {id}"));
        read.files = m.files_done.saturating_sub(m.files_gone);
        (read.files_gone, read.bytes, read.unread_files) = (m.files_gone, m.bytes_done, m.unread_files);
        read.unread = m.unread;
        total = Some(m.files_total);
    }
    // The node may have been stopped meanwhile.
    let seen = read.files + read.files_gone + read.unread_files;
    match total {
        Some(total) if seen >= total => Ok(()),
        Some(total) => anyhow::bail!("the scrub ended after {seen} of {total} files"),
        None => anyhow::bail!("the scrub ended before it began"),
    }
}

/// Nothing known is damaged, and not everything was read.
fn unseen(report: &Report) -> Hint {
    let mut what: Vec<String> = Vec::new();
    for n in &report.nodes {
        let Some(read) = &n.read else { continue };
        let why = read.unread.first().map_or_else(String::new, |why| format!(" ({why})"));
        if read.unread_files > 0 {
            what.push(format!("files of {} that could not be read: {}{why}", n.addr, read.unread_files));
        }
        if let Some(e) = &read.ended {
            what.push(format!("{}: {e}", n.addr));
        }
    }
    Hint {
        what: format!("nobody knows whether all is whole: {}", what.join("; ")),
        next: "do away with what is named (`mainstay status`, the node's log), then `mainstay scrub` again".to_owned(),
        exit: Exit::Failed,
    }
}

fn node(addr: &str, status: &StatusResponse, read: Option<Read>, found: &ListDamageResponse) -> Node {
    let tables = found.tables.iter().map(Table::from).collect();
    Node { node: Some(status.node_id), addr: addr.to_owned(), read, tables, other: found.log.clone(), next: None }
}

/// The node named, or all endpoints, each with its answer; and those that do not answer.
async fn nodes_of(
    global: &Global,
    client: &Client,
    node: Option<String>,
) -> anyhow::Result<(Vec<(String, StatusResponse)>, Vec<String>)> {
    if let Some(addr) = node {
        let status = client.status(&addr).await?;
        return Ok((vec![(addr, status)], Vec::new()));
    }
    let (mut all, mut silent) = (Vec::new(), Vec::new());
    for (addr, answer) in ask(global).await? {
        match answer {
            Ok(status) => all.push((addr, status)),
            Err(e) => {
                output::say(format!("{addr} does not answer and is left out: {e}"));
                silent.push(addr);
            }
        }
    }
    Ok((all, silent))
}

pub(super) async fn repair(global: &Global, args: RepairArgs) -> anyhow::Result<Exit> {
    if let Some(dir) = &args.data {
        let repository = args.repository.as_deref();
        let wanted = closed::Wanted { table: args.table, from: args.from.as_deref(), dry_run: args.dry_run };
        let report = closed::repair(dir, repository, &wanted).await?;
        print(global, &report)?;
        return conclude(&report, args.dry_run);
    }
    let from = args.from.as_deref().map(Copy::open).transpose()?;
    if let (Some(copy), Some(table)) = (&from, args.table)
        && copy.id != table
    {
        return Err(usage(format!("{} is a copy of table {:032x}, not of {table:032x}", copy.path.display(), copy.id)));
    }
    let wanted = args.table.or(from.as_ref().map(|c| c.id));
    let client = connect::client(global)?;
    let (asked, silent) = nodes_of(global, &client, args.node).await?;
    let mut nodes = Vec::new();
    for (addr, status) in &asked {
        let found = client.damage(addr).await?;
        let mut it = node(addr, status, None, &found);
        if let Some(id) = wanted {
            let id = format!("{id:032x}");
            it.tables.retain(|t| t.id == id);
        }
        for table in it.tables.iter_mut().filter(|_| !args.dry_run) {
            let id = parse_id(&table.id).map_err(anyhow::Error::msg)?;
            let copy = from.as_ref().map(Copy::parts).transpose()?;
            match client.repair_table(addr, id, copy).await {
                Ok(done) => table.repaired_from = Some(done.source),
                Err(e) => table.error = Some(e.to_string()),
            }
        }
        if it.damaged() {
            it.next = Some(next_step(addr, status, &it));
        }
        nodes.push(it);
    }
    if let Some(id) = wanted.filter(|_| nodes.iter().all(|n| n.tables.is_empty())) {
        return Err(Hint {
            what: format!("no node asked knows its table {id:032x} to be damaged"),
            next: "`mainstay scrub` reads everything and names what is damaged".to_owned(),
            exit: Exit::NotFound,
        }
        .into());
    }
    let report = Report::of(nodes, silent);
    print(global, &report)?;
    conclude(&report, args.dry_run)
}

/// What is left is an error that says what comes next, but for a dry run, in which that was not the question.
fn conclude(report: &Report, dry_run: bool) -> anyhow::Result<Exit> {
    if report.ok {
        return Ok(if report.silent.is_empty() { Exit::Ok } else { Exit::Warnings });
    }
    if dry_run {
        return Ok(Exit::NegativeVerdict);
    }
    let left: usize = report.nodes.iter().map(|n| n.tables.iter().filter(|t| t.repaired_from.is_none()).count()).sum();
    let other: usize = report.nodes.iter().map(|n| n.other.len()).sum();
    let other = if other > 0 { format!(", {other} other files") } else { String::new() };
    let next: Vec<String> = report.nodes.iter().filter_map(|n| n.next.clone()).collect();
    Err(Hint { what: format!("still damaged: {left} tables{other}"), next: next.join("\n      "), exit: Exit::Failed }
        .into())
}

/// What the operator can do about damage that no copy mends.
fn next_step(addr: &str, s: &StatusResponse, it: &Node) -> String {
    let me = s.node_id;
    if s.role == "replica" {
        return format!(
            "node {me} is a replica: `mainstay cluster reseed --node {addr}` fetches all its data from the primary; \
             nothing is lost"
        );
    }
    if s.role != "primary" {
        return format!(
            "node {me} is {}: `mainstay status` says why; once it follows, seed it anew with `mainstay cluster reseed \
             --node {addr}`",
            s.role
        );
    }
    if !s.peers.is_empty() {
        let loses = if s.mode == "async" {
            "in mode async a promotion is refused while it could lose something: wait until `status` shows no lag"
        } else {
            "nothing is lost"
        };
        let best = s.peers.iter().filter(|p| p.connected).max_by_key(|p| p.durable_lsn);
        return match best {
            Some(p) => format!(
                "node {me} is the primary: `mainstay cluster promote --node {}` makes another one, then \
                 `mainstay cluster reseed --node {addr}` fetches all data of node {me} from that; {loses}",
                p.addr
            ),
            None => format!(
                "node {me} is the primary and no replica is connected: bring one back, wait until it has caught up, \
                 promote it with `mainstay cluster promote --node`, then `mainstay cluster reseed --node {addr}`"
            ),
        };
    }
    alone(s, it)
}

/// One node, nobody else: the repository has it all, or a part is lost.
fn alone(s: &StatusResponse, it: &Node) -> String {
    let me = s.node_id;
    let archive = s.archive.as_ref().filter(|a| !a.repository.is_empty());
    match archive {
        Some(a) if !a.no_base => format!(
            "node {me} has no replicas: wait until `mainstay status` has ARCHIVED at COMMIT, stop the node, \
             `mainstay restore --repository {} --data NEW --to-latest`, and start the node with --data NEW; all that \
             is archived is there",
            a.repository
        ),
        _ => format!(
            "node {me} has no replicas and no base backup: look for the file in a copy of the disk and give it with \
             --from; what no table at fault holds can be read ({}) and written out with `mainstay scan --start … \
             --end …`",
            intact(it)
        ),
    }
}

/// The keys for which reads do not fail.
fn intact(it: &Node) -> String {
    let ranges: Vec<_> = it
        .tables
        .iter()
        .filter(|t| t.repaired_from.is_none())
        .filter_map(|t| t.keys.as_ref())
        .map(|k| format!("before {} and after {}", k.first, k.last))
        .collect();
    if ranges.is_empty() { "all keys".to_owned() } else { ranges.join("; ") }
}

/// A file given as a good copy.
struct Copy {
    path: PathBuf,
    id: u128,
}

impl Copy {
    /// Which table it is a copy of stands in the file itself.
    fn open(path: &Path) -> anyhow::Result<Self> {
        let id = closed::table_id(path)?;
        Ok(Self { path: path.to_owned(), id })
    }

    /// The file in parts. One that cannot be read on ends early, and the node refuses it.
    fn parts(&self) -> anyhow::Result<impl Stream<Item = Vec<u8>> + Send + 'static> {
        let file = closed::open(&self.path)?;
        Ok(futures::stream::unfold((file, 0), |(file, at)| async move {
            let (part, file) = tokio::task::spawn_blocking(move || (closed::part(&*file, at), file)).await.ok()?;
            let part = part.filter(|p| !p.is_empty())?;
            let next = at + part.len() as u64;
            Some((part, (file, next)))
        }))
    }
}
