//! `mainstay put`: write a key, if its conditions hold.
//!
//! Owns: the flags, and how a write's outcome is shown (also for `delete`). Never: a retry.

use std::time::Duration;

use clap::{Args, ValueEnum};
use mainstay_client::{Ack, Condition, Write, Written};
use serde::Serialize;

use super::{Global, connect, output, time};
use crate::codes::Exit;

/// Write a key
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  mainstay put greeting hello
  mainstay put session/42 token --ttl 30m
  mainstay put lock/job me --if-absent
  mainstay put config/a new --if-version 1042
  mainstay put photo - < photo.jpg
  mainstay put order/7 paid --ack archived")]
pub struct PutArgs {
    /// The key
    key: String,
    /// The value; - reads it from stdin
    #[arg(allow_hyphen_values = true)]
    value: String,
    /// Let the key expire after this time, such as 10s or 2h
    #[arg(long, value_name = "DURATION", value_parser = time::parse_duration)]
    ttl: Option<Duration>,
    /// When to write.
    #[command(flatten)]
    conditions: ConditionArgs,
    /// How sure the write must be before it is acknowledged
    #[arg(long, value_enum, default_value_t = AckLevel::Committed)]
    ack: AckLevel,
}

/// Conditions on the key that is written.
#[derive(Clone, Debug, Default, Args)]
#[group(multiple = false)]
pub(super) struct ConditionArgs {
    /// Only if the key has no value
    #[arg(long)]
    if_absent: bool,
    /// Only if the key was last written by this LSN
    #[arg(long, value_name = "LSN")]
    if_version: Option<u64>,
    /// Only if the key has exactly this value
    #[arg(long, value_name = "VALUE", allow_hyphen_values = true)]
    if_value: Option<String>,
}

/// Words for acknowledgement levels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum AckLevel {
    /// By the cluster's mode
    Committed,
    /// On the primary's disk only; a failover may lose it
    Local,
    /// By the cluster's mode, and in the archive
    Archived,
}

impl ConditionArgs {
    /// Whether any was given.
    pub(super) const fn is_some(&self) -> bool {
        self.if_absent || self.if_version.is_some() || self.if_value.is_some()
    }

    /// The condition on `key`, if one was asked for.
    pub(super) fn condition(&self, key: &[u8]) -> Option<Condition> {
        let key = key.to_vec();
        if self.if_absent {
            return Some(Condition::absent(key));
        }
        if let Some(lsn) = self.if_version {
            return Some(Condition::version(key, lsn));
        }
        self.if_value.as_ref().map(|v| Condition::value(key, v.as_bytes()))
    }
}

impl AckLevel {
    /// As the client calls it.
    pub(super) const fn ack(self) -> Ack {
        match self {
            AckLevel::Committed => Ack::Committed,
            AckLevel::Local => Ack::Local,
            AckLevel::Archived => Ack::Archived,
        }
    }
}

#[derive(Serialize)]
struct Outcome<'a> {
    lsn: u64,
    epoch: u64,
    level: &'a str,
    degraded: bool,
    commit_ts_us: u64,
    commit_time: String,
}

/// Shows where a write landed; a degraded cluster is a warning.
pub(super) fn show(global: &Global, w: &Written) -> anyhow::Result<Exit> {
    let commit_time = time::utc(w.commit_ts_us);
    let outcome = Outcome {
        lsn: w.lsn,
        epoch: w.epoch,
        level: &w.level,
        degraded: w.degraded,
        commit_ts_us: w.commit_ts_us,
        commit_time,
    };
    output::print(global.output, &outcome, || {
        let degraded = if w.degraded { ", degraded" } else { "" };
        format!("lsn {} epoch {} {}{degraded} at {}", w.lsn, w.epoch, w.level, outcome.commit_time)
    })?;
    Ok(if w.degraded { Exit::Warnings } else { Exit::Ok })
}

pub(super) async fn run(global: &Global, args: PutArgs) -> anyhow::Result<Exit> {
    let key = connect::key(&args.key)?;
    let value = connect::value(args.value)?;
    let mut write = match args.ttl {
        Some(ttl) => Write::new().put_ttl(key, value, ttl),
        None => Write::new().put(key, value),
    };
    if let Some(condition) = args.conditions.condition(key) {
        write = write.condition(condition);
    }
    let written = connect::client(global)?.write(write.ack(args.ack.ack())).await?;
    show(global, &written)
}
