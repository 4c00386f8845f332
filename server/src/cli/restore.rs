//! `mainstay restore`: build a data directory from a repository.
//!
//! Owns: the target flags, showing plan, progress and outcome. Never: a step of the restore itself.
//! The plan goes to stderr, except in a dry run: a reader of stdout that goes away must not stop a
//! restore that has begun.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use clap::{ArgGroup, Args};
use mainstay_backup::restore::Phase;
use mainstay_backup::{EngineFactory, Repository, RestoreOptions, RestorePlan, Restored, Target, execute, plan};
use mainstay_engine::{ClusterId, CommitTs, Env, Lsn, TimelineId};
use serde::Serialize;

use super::backup::RepositoryArgs;
use super::output::Format;
use super::progress::Progress;
use super::{Global, output, time};
use crate::codes::Exit;

/// Build a data directory from a repository
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("target").required(true).args(["to_latest", "to_time", "to_lsn"]))]
#[command(after_help = "\
Examples:
  mainstay restore --repository file:///var/backups/mainstay --data ./restored --to-latest
  mainstay restore --repository s3://bucket/prod --data ./restored --to-time 2026-11-23T10:00:00Z
  mainstay restore --repository s3://bucket/prod --data ./restored --to-time '10 minutes ago' --dry-run
  mainstay restore --repository s3://bucket/prod --data ./restored --to-lsn 1042
  mainstay server --data ./restored          then run it

The directory must not exist or be empty; it appears only when everything in it is verified.")]
pub struct RestoreArgs {
    /// The repository.
    #[command(flatten)]
    repository: RepositoryArgs,
    /// Directory to make
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// To the end of the archive
    #[arg(long)]
    to_latest: bool,
    /// To the last record committed at or before this time: 2026-11-23T10:00:00Z, -15m, '10 minutes ago', @MICROS
    #[arg(long, value_name = "TIME", value_parser = time::parse_moment, allow_hyphen_values = true)]
    to_time: Option<u64>,
    /// To exactly this record
    #[arg(long, value_name = "LSN")]
    to_lsn: Option<u64>,
    /// The timeline meant, as `backup list` prints it; default the one begun last
    #[arg(long, value_name = "ID", value_parser = parse_timeline)]
    timeline: Option<TimelineId>,
    /// Give the result a new cluster id: the old cluster lives on, and the two must not meet
    #[arg(long)]
    new_cluster: bool,
    /// Show the plan, make nothing
    #[arg(long)]
    dry_run: bool,
}

fn parse_timeline(text: &str) -> Result<TimelineId, String> {
    let id = if text.len() == 16 { u64::from_str_radix(text, 16).ok() } else { None };
    id.map(TimelineId).ok_or_else(|| "expected 16 hexadecimal digits, as `mainstay backup list` prints them".to_owned())
}

impl RestoreArgs {
    fn target(&self) -> Target {
        match (self.to_time, self.to_lsn) {
            (Some(us), _) => Target::Time(CommitTs(us)),
            (None, Some(lsn)) => Target::Lsn(Lsn(lsn)),
            (None, None) => Target::Latest,
        }
    }
}

#[derive(Serialize)]
struct Outcome<'a> {
    plan: &'a RestorePlan,
    #[serde(flatten)]
    restored: Option<Landed>,
}

#[derive(Serialize)]
struct Landed {
    data: String,
    lsn: u64,
    commit_ts_us: u64,
    commit_time: String,
    epoch: u64,
    cluster: String,
    timeline: String,
    first_lsn: u64,
    records: u64,
    bytes: u64,
    seconds: f64,
    phases: Phases,
}

/// Seconds of each phase.
#[derive(Serialize)]
struct Phases {
    locate: f64,
    fetch: f64,
    replay: f64,
    open: f64,
}

#[expect(clippy::disallowed_methods, reason = "measures this process for its operator; nothing depends on it")]
fn clock() -> Instant {
    Instant::now()
}

pub(super) async fn run(global: &Global, args: RestoreArgs) -> anyhow::Result<Exit> {
    let begun = clock();
    let target = args.target();
    let repository = Repository::open(&args.repository.repository)?;
    let plan = plan(&repository, target, args.timeline).await?;
    let exit = if plan.problems.is_empty() { Exit::Ok } else { Exit::Warnings };
    if args.dry_run {
        output::print(global.output, &Outcome { plan: &plan, restored: None }, || {
            format!("{plan}\nnothing was made (dry run)")
        })?;
        return Ok(exit);
    }
    if global.output == Format::Table {
        output::say(plan.to_string());
    }
    let options = RestoreOptions {
        new_cluster: args.new_cluster.then(new_cluster),
        progress: show_progress(),
        locate: begun.elapsed(),
    };
    let restored = execute(&repository, &plan, &args.data, EngineFactory::default(), &options).await?;
    let outcome = Outcome { plan: &plan, restored: Some(landed(&args, &restored)) };
    output::print(global.output, &outcome, || text(&args, &restored))?;
    Ok(exit)
}

fn new_cluster() -> ClusterId {
    let env = Env::real();
    ClusterId(u128::from(env.rng.next_u64()) << 64 | u128::from(env.rng.next_u64()))
}

fn show_progress() -> Arc<dyn Fn(Phase, u64, u64) + Send + Sync> {
    let shown: Mutex<Option<(Phase, Progress)>> = Mutex::new(None);
    Arc::new(move |phase, done, total| {
        let mut shown = shown.lock().unwrap_or_else(PoisonError::into_inner);
        if shown.as_ref().is_none_or(|(p, _)| *p != phase) {
            if let Some((_, old)) = shown.take() {
                old.clear();
            }
            let progress = match phase {
                Phase::Fetch => Progress::bytes("fetch", total),
                Phase::Replay => Progress::records("replay", total),
                Phase::Finish => return,
            };
            *shown = Some((phase, progress));
        }
        if let Some((_, progress)) = shown.as_mut() {
            progress.at(done, total, String::new);
        }
    })
}

fn landed(args: &RestoreArgs, r: &Restored) -> Landed {
    Landed {
        data: args.data.display().to_string(),
        lsn: r.lsn.0,
        commit_ts_us: r.ts.0,
        commit_time: time::utc(r.ts.0),
        epoch: r.epoch.0,
        cluster: r.cluster.to_string(),
        timeline: r.timeline.to_string(),
        first_lsn: r.first_lsn.0,
        records: r.records,
        bytes: r.bytes,
        seconds: (r.locate + r.fetch + r.replay + r.finish).as_secs_f64(),
        phases: Phases {
            locate: r.locate.as_secs_f64(),
            fetch: r.fetch.as_secs_f64(),
            replay: r.replay.as_secs_f64(),
            open: r.finish.as_secs_f64(),
        },
    }
}

fn text(args: &RestoreArgs, r: &Restored) -> String {
    let l = landed(args, r);
    let Phases { locate, fetch, replay, open } = l.phases;
    format!(
        "restored {} to LSN {} ({}), {} records replayed, {} fetched, in {:.2} s \
         (locate {locate:.2}, fetch {fetch:.2}, replay {replay:.2}, open {open:.2})\n\
         new timeline {} begins at LSN {}; run it with `mainstay server --data {}`",
        l.data,
        l.lsn,
        l.commit_time,
        l.records,
        output::bytes(l.bytes),
        l.seconds,
        l.timeline,
        l.first_lsn,
        l.data
    )
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Just {
        #[command(flatten)]
        args: RestoreArgs,
    }

    fn parse(more: &[&str]) -> Result<Target, clap::Error> {
        let all = [&["x", "--repository", "file:///r", "--data", "d"], more].concat();
        Just::try_parse_from(all).map(|j| j.args.target())
    }

    #[test]
    fn exactly_one_target_is_wanted() {
        assert_eq!(parse(&["--to-latest"]).unwrap(), Target::Latest);
        assert_eq!(parse(&["--to-lsn", "7"]).unwrap(), Target::Lsn(Lsn(7)));
        assert_eq!(parse(&["--to-time", "@7"]).unwrap(), Target::Time(CommitTs(7)));
        assert!(matches!(parse(&["--to-time", "-15m"]).unwrap(), Target::Time(_)));
        assert!(parse(&[]).is_err());
        assert!(parse(&["--to-latest", "--to-lsn", "7"]).is_err());
        assert!(parse(&["--to-time", "2026-11-23T10:00:00"]).unwrap_err().to_string().contains("append Z"));
        assert!(parse(&["--to-latest", "--timeline", "xyz"]).is_err());
    }
}
