//! `mainstay cluster reseed`: a replica's data is set aside and fetched anew from the primary.
//!
//! Owns: the question, what must hold before it, and the wait. Never: setting data aside (the node does, and deletes
//! nothing).

use std::time::Duration;

use clap::Args;
use mainstay_client::{Client, StatusResponse};
use serde::Serialize;
use tokio::time::Instant;

use super::failure::Hint;
use super::{Global, connect, output, time};
use crate::codes::Exit;

/// Pause between two looks at the node.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Have a replica set its data aside and fetch all of it anew from the primary
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  mainstay cluster reseed --node c:7400
  mainstay cluster reseed --node c:7400 --yes --wait 2h

For a replica whose disk is damaged, where `mainstay repair` finds no good copy. Nothing acknowledged is lost and the
others go on; until it is done, this node is no copy of anything. Its old data is kept in `replaced-…` in its data
directory; delete that when you are sure. Nothing is changed when the primary offers no seed, or the disk has no room
for both; when another replica is being seeded; or when without this node too few hold what is committed, which
--accept-fewer accepts. A primary is not seeded: promote another node first with `mainstay cluster promote --node`.
Exit code 3 when it is not done within --wait; it goes on then, and `mainstay status` says how to go back to the old
data.")]
pub struct ReseedArgs {
    /// Client address of the replica
    #[arg(long, value_name = "HOST:PORT")]
    node: String,
    /// Do it although meanwhile writes would wait, or the primary alone would hold what is committed
    #[arg(long)]
    accept_fewer: bool,
    /// Do it without being asked
    #[arg(long)]
    yes: bool,
    /// How long to wait until it holds everything again, such as 30s, 10m, 2h
    #[arg(long, default_value = "10m", value_name = "DURATION", value_parser = time::parse_duration)]
    wait: Duration,
}

#[derive(Serialize)]
struct Reseeded {
    node: u64,
    addr: String,
    primary: u64,
    /// It holds what was committed when it was asked for.
    done: bool,
    applied_lsn: u64,
    seconds: f64,
    trouble: String,
}

pub(super) async fn run(global: &Global, args: ReseedArgs) -> anyhow::Result<Exit> {
    let client = connect::client(global)?;
    let addr = args.node;
    let before = client.status(&addr).await?;
    let lead = lead(&client, &addr, &before).await?;
    let survives = match lead.tolerated_failures {
        0 => "meanwhile writes may wait for it".to_owned(),
        n => format!("the cluster survives the failure of {} nodes meanwhile", n - 1),
    };
    let bytes = output::bytes(lead.storage.as_ref().map_or(0, |s| s.table_bytes));
    let question = format!(
        "Set the data of node {} at {addr} aside and fetch all of it anew from node {} ({bytes} of tables)? {survives}.",
        before.node_id, lead.node_id
    );
    if !output::confirm(&question, args.yes)? {
        output::say("nothing was changed");
        return Ok(Exit::Failed);
    }
    let begun = Instant::now();
    let accepted = client.reseed(&addr, args.accept_fewer).await?;
    let (done, last) = wait(&client, &addr, accepted.incarnation, lead.commit_lsn, begun + args.wait).await;
    let outcome = Reseeded {
        node: before.node_id,
        addr,
        primary: accepted.primary_id,
        done,
        applied_lsn: last.applied_lsn,
        seconds: begun.elapsed().as_secs_f64(),
        trouble: last.trouble,
    };
    output::print(global.output, &outcome, || text(&outcome))?;
    Ok(if done { Exit::Ok } else { Exit::Warnings })
}

/// The primary that is to seed the node, whole as far as it knows.
async fn lead(client: &Client, addr: &str, node: &StatusResponse) -> anyhow::Result<StatusResponse> {
    let refused = |what: String, next: String| anyhow::Error::new(Hint { what, next, exit: Exit::Failed });
    if node.role == "primary" {
        return Err(refused(
            format!("node {} at {addr} is the primary, and all the others have they have from it", node.node_id),
            format!(
                "`mainstay cluster promote --node` makes another one; then `mainstay cluster reseed --node {addr}`"
            ),
        ));
    }
    let next = || "`mainstay status` shows who is primary; `mainstay cluster promote` makes one".to_owned();
    if node.primary_addr.is_empty() {
        return Err(refused(format!("node {} at {addr} knows no primary that could seed it", node.node_id), next()));
    }
    let lead = match client.status(&node.primary_addr).await {
        Ok(lead) if lead.role == "primary" => lead,
        Ok(other) => {
            return Err(refused(format!("node {} is {}, not the primary", other.node_id, other.role), next()));
        }
        Err(e) => return Err(refused(format!("the primary, node {}, does not answer: {e}", node.primary_id), next())),
    };
    let damaged = client.damage(&node.primary_addr).await?.tables;
    if let Some(table) = damaged.first() {
        return Err(refused(
            format!(
                "node {}, the primary, has damaged tables itself, and a seed has all tables: {}",
                lead.node_id, table.what
            ),
            format!(
                "`mainstay repair --node {}`; or promote a node that is whole, then seed the others from that",
                node.primary_addr
            ),
        ));
    }
    Ok(lead)
}

/// Waits for the node's next life to hold everything up to `lsn`; what it last said.
async fn wait(client: &Client, addr: &str, incarnation: u64, lsn: u64, until: Instant) -> (bool, StatusResponse) {
    let mut last = StatusResponse::default();
    while Instant::now() < until {
        tokio::time::sleep(LOOK_EVERY).await;
        // Between two lives nobody answers.
        let Ok(now) = client.status(addr).await else { continue };
        if now.trouble != last.trouble && !now.trouble.is_empty() && now.incarnation > incarnation {
            output::say(format!("node {}: {}", now.node_id, now.trouble));
        }
        last = now;
        if last.incarnation > incarnation && last.role != "joining" && last.applied_lsn >= lsn {
            return (true, last);
        }
    }
    (false, last)
}

fn text(r: &Reseeded) -> String {
    let Reseeded { node, addr, primary, applied_lsn, seconds, trouble, .. } = r;
    if r.done {
        return format!(
            "node {node} at {addr} was seeded by node {primary} in {seconds:.1} s and has applied LSN {applied_lsn}; its \
             old data is in `replaced-…` in its data directory, delete it when you are sure"
        );
    }
    let why = if trouble.is_empty() { String::new() } else { format!(" ({trouble})") };
    format!("node {node} at {addr} is not done after {seconds:.0} s{why}; it goes on, `mainstay status` shows it")
}
