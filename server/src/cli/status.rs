//! `mainstay status`: the nodes, preceded by what would survive and what would be lost right now.
//!
//! Owns: the two sentences, the table, the verdict. Never: a figure that no node reported.

use clap::Args;
use mainstay_engine::limits::records_between;
use mainstay_proto::v1::{ArchiveStatus, StatusResponse};
use serde::Serialize;

use super::failure::Hint;
use super::{Global, connect, output};
use crate::codes::Exit;

/// Show the nodes, what would survive and what would be lost now
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  mainstay status
  mainstay status --endpoints 10.0.0.1:7400,10.0.0.2:7400,10.0.0.3:7400
  mainstay status -o json | jq .survives_node_failures

Exit code 3 when a node, a connection or the archive needs attention, 1 when no node answers.")]
pub struct StatusArgs {}

/// One endpoint and its answer.
type Answer = (String, Result<StatusResponse, String>);

#[derive(Debug, Serialize)]
struct Report {
    survives_node_failures: Option<u32>,
    primary_loss: Option<String>,
    archive_lag_ms: Option<u64>,
    archive_lag_records: Option<u64>,
    /// Log that the archive still needs, and how much of it is kept at most.
    archive_needs_log_bytes: Option<u64>,
    archive_needs_log_bytes_max: Option<u64>,
    sentences: [String; 2],
    attention: Vec<String>,
    cluster: String,
    timeline: String,
    nodes: Vec<Node>,
}

#[derive(Debug, Default, Serialize)]
struct Node {
    id: Option<u64>,
    addr: String,
    role: String,
    epoch: u64,
    durable_lsn: u64,
    commit_lsn: u64,
    applied_lsn: u64,
    archived_lsn: u64,
    lag_records: u64,
    lag_ms: u64,
    damaged_files: u64,
    trouble: String,
}

pub(super) async fn run(global: &Global, _: StatusArgs) -> anyhow::Result<Exit> {
    let answers = ask(global).await?;
    let report = report(&answers);
    output::print(global.output, &report, || text(&report))?;
    Ok(if report.attention.is_empty() { Exit::Ok } else { Exit::Warnings })
}

/// Asks every endpoint.
///
/// # Errors
/// When none answers.
pub(super) async fn ask(global: &Global) -> anyhow::Result<Vec<Answer>> {
    let all = connect::client(global)?.status_all().await;
    let answers: Vec<Answer> = all.into_iter().map(|(e, r)| (e, r.map_err(|e| chain(&e)))).collect();
    if answers.iter().any(|(_, r)| r.is_ok()) {
        return Ok(answers);
    }
    let each: Vec<_> =
        answers.iter().map(|(e, r)| format!("{e}: {}", r.as_ref().err().map_or("", String::as_str))).collect();
    Err(Hint {
        what: format!("no node answers ({})", each.join("; ")),
        next: "is `mainstay server` running there? name the nodes with --endpoints HOST:PORT,… or MAINSTAY_ENDPOINTS"
            .into(),
        exit: Exit::Failed,
    }
    .into())
}

fn chain(e: &dyn std::error::Error) -> String {
    let mut out = e.to_string();
    let mut cause = e.source();
    while let Some(c) = cause {
        let text = c.to_string();
        if !out.contains(&text) {
            out = format!("{out}: {text}");
        }
        cause = c.source();
    }
    out
}

/// The reachable primary of the highest epoch.
pub(super) fn primary(answers: &[Answer]) -> Option<(&str, &StatusResponse)> {
    let up = answers.iter().filter_map(|(e, r)| Some((e.as_str(), r.as_ref().ok()?)));
    up.filter(|(_, s)| s.role == "primary").max_by_key(|(_, s)| s.epoch)
}

fn report(answers: &[Answer]) -> Report {
    let first = answers.iter().find_map(|(_, r)| r.as_ref().ok());
    let lead = primary(answers).map(|(_, s)| s);
    let archive = lead.and_then(|s| s.archive.as_ref()).filter(|a| !a.repository.is_empty());
    let unarchived = |s: &StatusResponse| records_between(s.archived_lsn, s.commit_lsn);
    let mut nodes: Vec<_> = answers.iter().map(|(e, r)| node(e, r, lead)).collect();
    nodes.extend(lead.into_iter().flat_map(|l| unasked(l, answers)));
    Report {
        survives_node_failures: lead.map(|s| s.tolerated_failures),
        primary_loss: lead.map(primary_loss),
        archive_lag_ms: archive.map(|a| a.lag_ms),
        archive_lag_records: archive.and(lead).map(unarchived),
        archive_needs_log_bytes: archive.map(|a| a.needed_log_bytes),
        archive_needs_log_bytes_max: archive.map(|a| a.needed_log_bytes_max),
        sentences: [survival(lead), loss(lead)],
        attention: attention(answers, lead),
        cluster: lead.or(first).map(|s| s.cluster_id.clone()).unwrap_or_default(),
        timeline: lead.or(first).map(|s| s.timeline.clone()).unwrap_or_default(),
        nodes,
    }
}

fn survival(lead: Option<&StatusResponse>) -> String {
    let Some(s) = lead else {
        return "No node that answers is primary: writes are refused until one is promoted.".to_owned();
    };
    let all = s.peers.len() + 1;
    let up = s.peers.iter().filter(|p| p.connected).count() + 1;
    let degraded = if s.degraded { ", degraded" } else { "" };
    let state = format!("mode {}{degraded}, {up} of {all} nodes connected", s.mode);
    match s.tolerated_failures {
        0 => format!("Survives no node failure now ({state})."),
        // Nobody is promoted without an operator: what is said here must hold for the primary, too.
        1 => format!("Survives the failure of any 1 node now without loss; a stop ends with a promotion ({state})."),
        n => format!("Survives the failure of any {n} nodes now without loss; a stop ends with a promotion ({state})."),
    }
}

/// What would be gone with the primary.
fn primary_loss(s: &StatusResponse) -> String {
    if s.peers.is_empty() {
        return "there is no replica".to_owned();
    }
    if s.mode != "async" && !s.degraded {
        return "no acknowledged write would be lost".to_owned();
    }
    let copied = s.peers.iter().map(|p| p.durable_lsn).max().unwrap_or(0);
    match records_between(copied, s.commit_lsn) {
        0 => "no acknowledged write would be lost".to_owned(),
        n => format!("the last {n} records would be lost"),
    }
}

/// What would be gone with all nodes.
fn site_loss(s: &StatusResponse) -> String {
    let Some(archive) = s.archive.as_ref().filter(|a| !a.repository.is_empty()) else {
        return "everything would be lost: no repository is configured".to_owned();
    };
    if archive.no_base {
        return "everything would be lost: there is no base backup to restore from".to_owned();
    }
    let base = format!(" (archive: {})", archive.repository);
    if s.archived_lsn == 0 && s.commit_lsn > 0 {
        return format!("everything may be lost: nothing is known to be in the archive yet{base}");
    }
    match records_between(s.archived_lsn, s.commit_lsn) {
        0 => format!("nothing acknowledged would be lost{base}"),
        n => format!("the last {} would be lost, {n} records{base}", output::millis(archive.lag_ms)),
    }
}

fn loss(lead: Option<&StatusResponse>) -> String {
    let Some(s) = lead else {
        return "What would be lost is unknown without a primary.".to_owned();
    };
    if s.peers.is_empty() {
        return format!("If this node died now, {}.", site_loss(s));
    }
    format!("If the primary died now, {}; if all nodes died now, {}.", primary_loss(s), site_loss(s))
}

fn attention(answers: &[Answer], lead: Option<&StatusResponse>) -> Vec<String> {
    let mut out = Vec::new();
    for (endpoint, answer) in answers {
        match answer {
            Err(e) => out.push(format!("{endpoint} does not answer: {e}")),
            Ok(s) if !s.trouble.is_empty() => out.push(format!("node {}: {}", s.node_id, s.trouble)),
            Ok(_) => {}
        }
    }
    let Some(lead) = lead else {
        out.push("no primary".to_owned());
        return out;
    };
    if lead.degraded {
        out.push(
            "degraded: writes wait for fewer copies than there are nodes, since a promotion went on without one"
                .to_owned(),
        );
    }
    out.extend(
        lead.peers
            .iter()
            .filter(|p| !p.connected)
            .map(|p| format!("node {} is not connected to the primary", p.node_id)),
    );
    if lead.archive.as_ref().is_some_and(|a| a.no_base) {
        let what =
            "archive: there is no base backup, so nothing can be restored; take one with `mainstay backup create`";
        out.push(what.to_owned());
    }
    if let Some(a) = lead.archive.as_ref().filter(|a| !a.last_error.is_empty()) {
        out.push(format!("archive: {}", a.last_error));
    }
    out.extend(lead.archive.as_ref().and_then(much_log));
    out
}

/// A word in time: when the log must let go of what is not archived, the archive has a gap.
fn much_log(a: &ArchiveStatus) -> Option<String> {
    let (needed, max) = (a.needed_log_bytes, a.needed_log_bytes_max);
    (needed > max / 2).then(|| {
        format!(
            "archive: it still needs {} of the log, which keeps at most {} for it (storage.retained_log_bytes); beyond \
             that it gets a gap: see to the repository, or raise the bound and restart the nodes",
            output::bytes(needed),
            output::bytes(max)
        )
    })
}

fn node(endpoint: &str, answer: &Result<StatusResponse, String>, lead: Option<&StatusResponse>) -> Node {
    let s = match answer {
        Ok(s) => s,
        Err(e) => {
            return Node {
                addr: endpoint.to_owned(),
                role: "unreachable".into(),
                trouble: e.clone(),
                ..Node::default()
            };
        }
    };
    let seen = lead.and_then(|l| l.peers.iter().find(|p| p.node_id == s.node_id));
    Node {
        id: Some(s.node_id),
        addr: endpoint.to_owned(),
        role: s.role.clone(),
        epoch: s.epoch,
        durable_lsn: s.durable_lsn,
        commit_lsn: s.commit_lsn,
        applied_lsn: s.applied_lsn,
        archived_lsn: s.archived_lsn,
        lag_records: seen.map_or(0, |p| p.lag_records),
        lag_ms: seen.map_or(0, |p| p.lag_ms),
        damaged_files: s.damaged_files,
        trouble: s.trouble.clone(),
    }
}

/// Nodes that the primary knows and nobody asked.
fn unasked<'a>(lead: &'a StatusResponse, answers: &'a [Answer]) -> impl Iterator<Item = Node> + 'a {
    let asked = |id| answers.iter().any(|(_, r)| r.as_ref().is_ok_and(|s| s.node_id == id));
    lead.peers.iter().filter(move |p| !asked(p.node_id)).map(|p| Node {
        id: Some(p.node_id),
        addr: p.addr.clone(),
        role: format!("({})", p.state),
        durable_lsn: p.durable_lsn,
        lag_records: p.lag_records,
        lag_ms: p.lag_ms,
        ..Node::default()
    })
}

fn text(r: &Report) -> String {
    let rows = r.nodes.iter().map(|n| {
        let lag = if n.lag_records == 0 && n.lag_ms == 0 {
            "-".to_owned()
        } else {
            format!("{} rec {}", n.lag_records, output::millis(n.lag_ms))
        };
        vec![
            n.id.map_or_else(|| "?".to_owned(), |id| id.to_string()),
            n.addr.clone(),
            n.role.clone(),
            n.epoch.to_string(),
            n.durable_lsn.to_string(),
            n.commit_lsn.to_string(),
            n.applied_lsn.to_string(),
            n.archived_lsn.to_string(),
            lag,
            if n.trouble.is_empty() { "-".to_owned() } else { n.trouble.clone() },
        ]
    });
    let head = ["node", "addr", "role", "epoch", "durable", "commit", "applied", "archived", "lag", "trouble"];
    let [survival, loss] = &r.sentences;
    let mut out = format!("{survival}\n{loss}\n\n{}\n", output::table(&head, rows));
    for a in &r.attention {
        out.push_str(&format!("\nattention: {a}"));
    }
    out
}

#[cfg(test)]
mod tests {
    use mainstay_proto::v1::PeerStatus;

    use super::*;

    fn lead(mode: &str, peers: u64) -> StatusResponse {
        let peer = |node_id| PeerStatus { node_id, connected: true, durable_lsn: 90, ..PeerStatus::default() };
        StatusResponse {
            node_id: 1,
            role: "primary".into(),
            mode: mode.into(),
            epoch: 2,
            commit_lsn: 100,
            archived_lsn: 80,
            tolerated_failures: peers.div_ceil(2) as u32,
            peers: (2..2 + peers).map(peer).collect(),
            archive: Some(ArchiveStatus { repository: "file:///r".into(), lag_ms: 850, ..ArchiveStatus::default() }),
            ..StatusResponse::default()
        }
    }

    fn of(s: StatusResponse) -> Report {
        report(&[("a:1".to_owned(), Ok(s))])
    }

    #[test]
    fn the_sentences_say_what_survives_and_what_is_lost() {
        let r = of(lead("quorum", 2));
        assert_eq!(
            r.sentences[0],
            "Survives the failure of any 1 node now without loss; a stop ends with a promotion (mode quorum, 3 of 3 nodes connected)."
        );
        assert_eq!(
            r.sentences[1],
            "If the primary died now, no acknowledged write would be lost; if all nodes died now, the last 850 ms would be lost, 20 records (archive: file:///r)."
        );
        let new = of(StatusResponse { archived_lsn: 0, ..lead("async", 0) });
        assert_eq!(
            new.sentences[1],
            "If this node died now, everything may be lost: nothing is known to be in the archive yet (archive: file:///r)."
        );
        let no_base = ArchiveStatus { repository: "file:///r".into(), no_base: true, ..ArchiveStatus::default() };
        let alone_without = of(StatusResponse { archive: Some(no_base), ..lead("async", 0) });
        assert!(alone_without.sentences[1].contains("no base backup to restore from"), "{:?}", alone_without.sentences);
        assert!(alone_without.attention[0].contains("mainstay backup create"), "{:?}", alone_without.attention);
        assert!(of(lead("async", 2)).sentences[1].contains("the last 10 records would be lost"));
        let alone = of(StatusResponse { archive: None, ..lead("async", 0) });
        assert_eq!(alone.sentences[0], "Survives no node failure now (mode async, 1 of 1 nodes connected).");
        assert_eq!(alone.sentences[1], "If this node died now, everything would be lost: no repository is configured.");
        assert!(alone.attention.is_empty());
    }

    #[test]
    fn an_archive_that_needs_more_than_half_of_the_log_kept_for_it_is_named() {
        let with = |needed_log_bytes, needed_log_bytes_max| {
            let archive = ArchiveStatus {
                repository: "file:///r".into(),
                needed_log_bytes,
                needed_log_bytes_max,
                ..ArchiveStatus::default()
            };
            of(StatusResponse { archive: Some(archive), ..lead("quorum", 2) })
        };
        for (needed, max) in [(0, 0), (0, 1), (512 << 20, 1 << 30)] {
            assert!(with(needed, max).attention.is_empty(), "{needed} of {max}");
        }
        for (needed, max) in [(1, 0), (1, 1), (2 << 30, 1 << 30)] {
            assert_eq!(with(needed, max).attention.len(), 1, "{needed} of {max}");
        }
        let r = with((512 << 20) + 1, 1 << 30);
        let what = "archive: it still needs 512.00 MiB of the log, which keeps at most 1.00 GiB for it";
        assert!(r.attention[0].starts_with(what), "{:?}", r.attention);
        assert_eq!((r.archive_needs_log_bytes, r.archive_needs_log_bytes_max), (Some((512 << 20) + 1), Some(1 << 30)));
        assert!(text(&r).contains(&format!("\nattention: {what}")));
    }

    #[test]
    fn trouble_is_named_and_old_primaries_do_not_lead() {
        let old = StatusResponse { epoch: 1, node_id: 3, trouble: "fenced".into(), ..lead("quorum", 2) };
        let mut new = lead("quorum", 2);
        new.peers[0].connected = false;
        let answers =
            [("c:1".to_owned(), Ok(old)), ("a:1".to_owned(), Ok(new)), ("b:1".to_owned(), Err("refused".to_owned()))];
        assert_eq!(primary(&answers).unwrap().0, "a:1");
        let r = report(&answers);
        assert_eq!(
            r.attention,
            ["node 3: fenced", "b:1 does not answer: refused", "node 2 is not connected to the primary"]
        );
        assert_eq!(r.nodes.iter().map(|n| n.id).collect::<Vec<_>>(), [Some(3), Some(1), None, Some(2)]);
    }

    #[test]
    fn without_a_primary_nothing_is_claimed() {
        let r = of(StatusResponse { role: "replica".into(), ..lead("quorum", 2) });
        assert!(r.sentences[0].contains("writes are refused") && r.survives_node_failures.is_none());
        assert_eq!(r.attention, ["no primary"]);
    }
}
