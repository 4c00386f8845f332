//! `mainstay cluster promote`: make a node the primary by hand; the way to `mainstay cluster reseed`.
//!
//! Owns: choosing the candidate with the newest log among those that answer, and the question before
//! a loss is accepted. Never: the decision whether it is safe (the candidate's seal decides).

use clap::{Args, Subcommand};
use mainstay_proto::v1::StatusResponse;
use serde::Serialize;

use super::failure::{Hint, usage};
use super::reseed::{self, ReseedArgs};
use super::status::ask;
use super::{Global, connect, output};
use crate::codes::Exit;

/// Change who is primary, and seed a node anew
#[derive(Debug, Subcommand)]
#[command(after_help = "\
Examples:
  mainstay cluster promote
  mainstay cluster promote --node 127.0.0.1:7420
  mainstay cluster reseed --node 127.0.0.1:7430")]
pub enum ClusterCommand {
    /// Make a replica the primary of a new epoch
    Promote(PromoteArgs),
    /// Have a replica set its data aside and fetch all of it anew from the primary
    Reseed(ReseedArgs),
}

/// Make a replica the primary of a new epoch
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  mainstay cluster promote --endpoints a:7400,b:7400,c:7400     the replica with the newest log
  mainstay cluster promote --node b:7400
  mainstay cluster promote --node b:7400 --accept-loss          although acknowledged writes may be missing
  mainstay cluster promote --accept-loss --destroyed 1,3        a minority is all that is left

Without --accept-loss nothing acknowledged is lost, or nothing happens.")]
pub struct PromoteArgs {
    /// Client address of the node to promote; default: the replica with the newest log that answers
    #[arg(long, value_name = "HOST:PORT")]
    node: Option<String>,
    /// Promote although acknowledged writes may be missing; starts a new timeline
    #[arg(long)]
    accept_loss: bool,
    /// Nodes that are gone for good, disks and all, when fewer than a majority is left
    #[arg(long, value_name = "ID,…", value_delimiter = ',', requires = "accept_loss")]
    destroyed: Vec<u64>,
    /// Accept the loss without being asked
    #[arg(long)]
    yes: bool,
}

#[derive(Serialize)]
struct Promoted {
    node: String,
    epoch: u64,
    start_lsn: u64,
    sealed: Vec<u64>,
    lossy: bool,
    committed: bool,
}

pub(super) async fn run(global: &Global, command: ClusterCommand) -> anyhow::Result<Exit> {
    match command {
        ClusterCommand::Promote(args) => promote(global, args).await,
        ClusterCommand::Reseed(args) => reseed::run(global, args).await,
    }
}

async fn promote(global: &Global, args: PromoteArgs) -> anyhow::Result<Exit> {
    let node = match args.node {
        Some(node) => node,
        None => {
            let answers = ask(global).await?;
            let up: Vec<_> = answers.iter().filter_map(|(e, r)| Some((e.as_str(), r.as_ref().ok()?))).collect();
            choose(&up)?.to_owned()
        }
    };
    if args.accept_loss {
        let without = match &args.destroyed[..] {
            [] => String::new(),
            gone => format!(" and nodes {gone:?} never come back with the data they had"),
        };
        let question = format!("Promote {node} although acknowledged writes may be missing for ever{without}?");
        if !output::confirm(&question, args.yes)? {
            output::say("nothing was changed");
            return Ok(Exit::Failed);
        }
    } else if args.yes {
        return Err(usage("--yes goes with --accept-loss; a promotion without loss asks nothing"));
    }
    let p = connect::client(global)?.promote(&node, args.accept_loss, &args.destroyed).await?;
    let done = Promoted {
        node,
        epoch: p.epoch,
        start_lsn: p.start_lsn,
        sealed: p.sealed,
        lossy: p.lossy,
        committed: p.committed,
    };
    output::print(global.output, &done, || {
        format!(
            "{} is primary of epoch {} from LSN {} on, sealed nodes {:?}{}{}",
            done.node,
            done.epoch,
            done.start_lsn,
            done.sealed,
            if done.lossy { "; a new timeline has begun, acknowledged writes may be missing" } else { "" },
            if done.committed { "" } else { "; it serves as soon as enough nodes are there to commit" }
        )
    })?;
    Ok(if done.committed { Exit::Ok } else { Exit::Warnings })
}

/// The replica with the newest log: highest epoch of its last record, then the highest durable LSN.
fn choose<'a>(up: &[(&'a str, &StatusResponse)]) -> anyhow::Result<&'a str> {
    let newest = up.iter().map(|(_, s)| s.epoch.max(s.sealed_epoch)).max().unwrap_or(0);
    if let Some((addr, s)) = up.iter().find(|(_, s)| s.role == "primary" && s.epoch >= newest) {
        return Err(Hint {
            what: format!("node {} at {addr} is primary of epoch {} and answers", s.node_id, s.epoch),
            next: "to hand over on purpose, name the new primary with --node HOST:PORT; to go on in mode sync without \
                   a node that is down, name the present one"
                .to_owned(),
            exit: Exit::Failed,
        }
        .into());
    }
    let able = up.iter().filter(|(_, s)| s.role != "quarantined" && s.durable_lsn > 0);
    let best = able.max_by_key(|(_, s)| (s.last_epoch, s.durable_lsn)).map(|(addr, _)| *addr);
    best.ok_or_else(|| anyhow::anyhow!("no node that answers has data to be promoted with"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(role: &str, epoch: u64, last_epoch: u64, durable_lsn: u64) -> StatusResponse {
        StatusResponse { role: role.into(), epoch, last_epoch, durable_lsn, ..StatusResponse::default() }
    }

    #[test]
    fn the_newest_log_is_chosen_by_epoch_before_length() {
        let (a, b, c) = (node("replica", 2, 1, 900), node("replica", 2, 2, 500), node("replica", 2, 2, 400));
        assert_eq!(choose(&[("a", &a), ("b", &b), ("c", &c)]).unwrap(), "b");
        let empty = node("replica", 0, 0, 0);
        assert!(choose(&[("e", &empty)]).is_err());
        assert!(choose(&[]).is_err());
    }

    #[test]
    fn a_living_primary_is_not_replaced_by_chance_but_a_deposed_one_is() {
        let (old, new) = (node("primary", 1, 1, 900), node("replica", 2, 1, 900));
        assert!(
            choose(&[("o", &node("primary", 2, 2, 9)), ("n", &new)]).unwrap_err().to_string().contains("is primary")
        );
        assert!(choose(&[("o", &old), ("n", &new)]).is_ok());
    }
}
