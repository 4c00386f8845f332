//! The command line: the tree of subcommands, dispatch, and the way from a result to an exit code.
//!
//! Owns: one file per subcommand, and what they share (`output`, `time`, `text`, `failure`). Never:
//! a decision that a server or a library should take.

mod backup;
mod closed;
mod cluster;
mod config;
mod connect;
mod delete;
mod export;
mod failure;
mod get;
mod import;
mod inspect;
pub(crate) mod output;
mod progress;
mod put;
mod repair;
mod reseed;
mod restore;
mod scan;
mod server;
mod status;
mod text;
mod time;
mod watch;

use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::codes::Exit;

pub use failure::Usage;
pub use output::Format;

/// A replicated key-value store that proves what it loses and how fast it recovers.
#[derive(Debug, Parser)]
#[command(name = "mainstay", version, propagate_version = true, max_term_width = 110)]
#[command(after_help = "\
Examples:
  mainstay server --data ./data          run one node, no configuration needed
  mainstay put greeting hello            write a key
  mainstay get greeting                  read it back
  mainstay status                        what would survive, what would be lost, right now

Exit codes: 0 done, 1 failed, 2 usage, 3 done with warnings, 4 negative verdict, 5 not found, 130 interrupted.")]
pub struct Cli {
    /// What every subcommand takes.
    #[command(flatten)]
    pub global: Global,
    /// The subcommand.
    #[command(subcommand)]
    pub command: Command,
}

/// What every subcommand takes.
#[derive(Clone, Debug, Args)]
pub struct Global {
    /// Client addresses of the cluster's nodes, HOST:PORT, separated by commas
    #[arg(long, global = true, env = "MAINSTAY_ENDPOINTS", default_value = "127.0.0.1:7400", value_delimiter = ',')]
    #[arg(value_name = "HOST:PORT", help_heading = "Global options")]
    pub endpoints: Vec<String>,
    /// How results are written; JSON carries "schema":1
    #[arg(short, long, global = true, value_enum, default_value_t = Format::Table, help_heading = "Global options")]
    pub output: Format,
    /// How long one operation may take, such as 500ms, 10s, 2m
    #[arg(long, global = true, default_value = "10s", value_name = "DURATION", value_parser = time::parse_duration)]
    #[arg(help_heading = "Global options")]
    pub timeout: Duration,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a node
    Server(server::ServerArgs),
    /// Write a key
    Put(put::PutArgs),
    /// Read a key; exit code 5 when it does not exist
    Get(get::GetArgs),
    /// Remove a key, or all keys of a range
    Delete(delete::DeleteArgs),
    /// List keys and values in key order
    Scan(scan::ScanArgs),
    /// Follow committed changes
    Watch(watch::WatchArgs),
    /// Write the records of a JSON Lines file
    Import(import::ImportArgs),
    /// Write keys and values as JSON Lines
    Export(export::ExportArgs),
    /// Show the nodes, what would survive and what would be lost now
    Status(status::StatusArgs),
    /// Read all tables and sealed log of running nodes now, and name what is damaged
    Scrub(repair::ScrubArgs),
    /// Put good copies in the place of damaged tables
    Repair(repair::RepairArgs),
    /// Take and list base backups
    #[command(subcommand)]
    Backup(backup::BackupCommand),
    /// Build a data directory from a repository
    Restore(restore::RestoreArgs),
    /// Hurt a scratch cluster and measure RPO and RTO.
    #[command(subcommand, after_help = "Examples:\n  mainstay drill run all\n  mainstay drill list")]
    Drill(crate::drill::DrillCommand),
    /// Change who is primary, and seed a node anew
    #[command(subcommand)]
    Cluster(cluster::ClusterCommand),
    /// Show and check the configuration
    #[command(subcommand)]
    Config(config::ConfigCommand),
    /// Look into log, tables and manifest of a data directory, and find damage
    #[command(subcommand)]
    Inspect(inspect::InspectCommand),
}

/// Parses the command line, runs it, reports what went wrong.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => {
            // A closed pipe under `--help` is no reason to fail louder.
            let _ = e.print();
            return ExitCode::from(if e.use_stderr() { Exit::Usage.code() } else { Exit::Ok.code() });
        }
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => return failure::report(&anyhow::Error::new(e).context("cannot start worker threads")),
    };
    let result = runtime.block_on(run(cli));
    // A thread that waits for input on stdin would otherwise hold the process.
    runtime.shutdown_background();
    match result {
        Ok(exit) => ExitCode::from(exit.code()),
        Err(e) => failure::report(&e),
    }
}

async fn run(cli: Cli) -> anyhow::Result<Exit> {
    let global = cli.global;
    match cli.command {
        // These two end in their own order when they are interrupted.
        Command::Server(args) => server::run(args).await,
        Command::Import(args) => import::run(&global, args).await,
        command => tokio::select! {
            biased;
            result = other(&global, command) => result,
            _ = tokio::signal::ctrl_c() => Ok(Exit::Interrupted),
        },
    }
}

async fn other(global: &Global, command: Command) -> anyhow::Result<Exit> {
    match command {
        Command::Server(_) | Command::Import(_) => Err(anyhow::anyhow!("dispatched before")),
        Command::Put(args) => put::run(global, args).await,
        Command::Get(args) => get::run(global, args).await,
        Command::Delete(args) => delete::run(global, args).await,
        Command::Scan(args) => scan::run(global, args).await,
        Command::Watch(args) => watch::run(global, args).await,
        Command::Export(args) => export::run(global, args).await,
        Command::Status(args) => status::run(global, args).await,
        Command::Scrub(args) => repair::scrub(global, args).await,
        Command::Repair(args) => repair::repair(global, args).await,
        Command::Backup(command) => backup::run(global, command).await,
        Command::Restore(args) => restore::run(global, args).await,
        Command::Cluster(command) => cluster::run(global, command).await,
        Command::Config(command) => config::run(global, command),
        Command::Inspect(command) => inspect::run(global, command),
        Command::Drill(command) => crate::drill::run(global.output, command).await,
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_tree_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_leaf_shows_examples() {
        fn visit(c: &clap::Command, path: &str, bare: &mut Vec<String>) {
            let help = c.clone().render_help().to_string();
            if !help.contains("Examples:") {
                bare.push(path.to_owned());
            }
            for sub in c.get_subcommands() {
                visit(sub, &format!("{path} {}", sub.get_name()), bare);
            }
        }
        let mut bare = Vec::new();
        visit(&Cli::command(), "mainstay", &mut bare);
        assert_eq!(bare, Vec::<String>::new());
    }
}
