//! `mainstay backup`: take and list base backups.
//!
//! Owns: the flags and the table. Never: reading a data directory; a node takes its own backup.

use clap::{Args, Subcommand};
use mainstay_backup::{BaseInfo, Repository};
use serde::Serialize;

use super::failure::Hint;
use super::progress::Progress;
use super::status::{ask, primary};
use super::{Global, connect, output, time};
use crate::codes::Exit;

/// Take and list base backups
#[derive(Debug, Subcommand)]
#[command(after_help = "\
Examples:
  mainstay backup create
  mainstay backup list --repository file:///var/backups/mainstay")]
pub enum BackupCommand {
    /// Take a base backup into the repository of the running cluster
    Create(CreateArgs),
    /// List the base backups of a repository; needs no running node
    List(ListArgs),
}

/// Take a base backup into the repository of the running cluster
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  mainstay backup create
  mainstay backup create --endpoints db1:7400 -o json
  mainstay backup create --accept-gap

Only tables that the repository lacks are uploaded. When the log had to let go of records that were not archived, the
archive ends there and `mainstay status` says so; --accept-gap goes on behind them. No restore lands between the end of the
archive and the new base.")]
pub struct CreateArgs {
    /// Client address of the node that takes it; default: the primary
    #[arg(long, value_name = "HOST:PORT")]
    node: Option<String>,
    /// Go on with an archive that ended at a gap, behind it
    #[arg(long)]
    accept_gap: bool,
}

/// Which repository.
#[derive(Clone, Debug, Args)]
pub(super) struct RepositoryArgs {
    /// URL of the repository: file:///DIR, s3://BUCKET/PREFIX, gs://…, az://…
    #[arg(long, value_name = "URL", env = "MAINSTAY_REPOSITORY")]
    pub(super) repository: String,
}

/// List the base backups of a repository; needs no running node
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  mainstay backup list --repository file:///var/backups/mainstay
  MAINSTAY_REPOSITORY=s3://bucket/prod mainstay backup list -o json")]
pub struct ListArgs {
    /// The repository.
    #[command(flatten)]
    repository: RepositoryArgs,
}

pub(super) async fn run(global: &Global, command: BackupCommand) -> anyhow::Result<Exit> {
    match command {
        BackupCommand::Create(args) => create(global, args).await,
        BackupCommand::List(args) => list(global, args).await,
    }
}

#[derive(Serialize)]
struct Created {
    base: String,
    lsn: u64,
    commit_ts_us: u64,
    commit_time: String,
    bytes: u64,
    uploaded_bytes: u64,
    /// LSNs that are in no archive, where a gap was accepted.
    #[serde(skip_serializing_if = "Option::is_none")]
    gap: Option<[u64; 2]>,
    seconds: f64,
}

async fn create(global: &Global, args: CreateArgs) -> anyhow::Result<Exit> {
    let node = match args.node {
        Some(node) => node,
        None => {
            let answers = ask(global).await?;
            let lead = primary(&answers).map(|(e, _)| e.to_owned());
            lead.ok_or_else(|| Hint {
                what: "no node that answers is primary".to_owned(),
                next: "name a node with --node HOST:PORT, or make a primary with `mainstay cluster promote`".to_owned(),
                exit: Exit::Failed,
            })?
        }
    };
    let mut progress = Progress::bytes("backup", 0);
    let mut messages = connect::client(global)?.create_backup(&node, args.accept_gap).await?;
    let mut last = None;
    while let Some(m) = messages.next().await? {
        progress.at(m.bytes_done, m.bytes_total, String::new);
        last = Some(m);
    }
    progress.clear();
    let m = last.filter(|m| !m.base_id.is_empty());
    let m = m.ok_or_else(|| anyhow::anyhow!("the node ended the backup without saying that it exists"))?;
    let created = Created {
        base: m.base_id,
        lsn: m.lsn,
        commit_ts_us: m.commit_ts_us,
        commit_time: time::utc(m.commit_ts_us),
        bytes: m.bytes_total,
        uploaded_bytes: m.uploaded_bytes,
        gap: (m.gap_first != 0).then_some([m.gap_first, m.gap_last]),
        seconds: progress.seconds(),
    };
    output::print(global.output, &created, || {
        let (bytes, uploaded) = (output::bytes(created.bytes), output::bytes(created.uploaded_bytes));
        let Created { base, lsn, commit_time, seconds, .. } = &created;
        let base = format!("base {base} at LSN {lsn} ({commit_time}), {bytes}, {uploaded} uploaded, in {seconds:.1} s");
        match created.gap {
            None => base,
            Some([first, last]) => {
                let before = first.saturating_sub(1);
                format!(
                    "{base}\narchiving goes on; LSN {first}-{last} are in no archive: restores land at LSN {before} or \
                     before it, or at {lsn} or after it"
                )
            }
        }
    })?;
    Ok(Exit::Ok)
}

#[derive(Serialize)]
struct Listed {
    repository: String,
    bases: Vec<BaseInfo>,
}

async fn list(global: &Global, args: ListArgs) -> anyhow::Result<Exit> {
    let repository = Repository::open(&args.repository.repository)?;
    let listed = Listed { bases: repository.bases().await?, repository: repository.url().to_owned() };
    output::print(global.output, &listed, || {
        if listed.bases.is_empty() {
            return format!("no base backups in {}; take one with `mainstay backup create`", listed.repository);
        }
        let rows = listed.bases.iter().map(|b| {
            vec![
                b.id.to_string(),
                time::utc(b.created_us),
                b.timeline.to_string(),
                b.epoch.to_string(),
                b.lsn.to_string(),
                time::utc(b.ts.0),
                output::bytes(b.bytes),
                b.tables.to_string(),
            ]
        });
        output::table(&["base", "created", "timeline", "epoch", "lsn", "as of", "size", "tables"], rows)
    })?;
    Ok(Exit::Ok)
}
