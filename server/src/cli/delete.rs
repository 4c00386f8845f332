//! `mainstay delete`: remove a key, or everything in a range.
//!
//! Owns: the question before a range goes. Never: a range without `--yes` or an answer.

use clap::{ArgGroup, Args};
use mainstay_client::{Scan, Write};
use serde::Serialize;

use super::put::{AckLevel, ConditionArgs, show};
use super::text::prefix_end;
use super::{Global, connect, output};
use crate::cli::failure::usage;
use crate::codes::Exit;

/// Remove a key, or all keys of a range
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("what").required(true).args(["key", "prefix", "range"]))]
#[command(after_help = "\
Examples:
  mainstay delete greeting
  mainstay delete lock/job --if-value me
  mainstay delete --prefix session/ --dry-run     count the keys first
  mainstay delete --prefix session/ --yes
  mainstay delete --range user/100 user/200 --yes")]
pub struct DeleteArgs {
    /// The key
    key: Option<String>,
    /// All keys that begin with this
    #[arg(long)]
    prefix: Option<String>,
    /// All keys from START up to, but without, END; an empty END is the end of the keyspace
    #[arg(long, num_args = 2, value_names = ["START", "END"])]
    range: Option<Vec<String>>,
    /// When to remove the key.
    #[command(flatten)]
    conditions: ConditionArgs,
    /// Remove a range without being asked
    #[arg(long)]
    yes: bool,
    /// Count the keys, remove nothing
    #[arg(long)]
    dry_run: bool,
    /// How sure the removal must be before it is acknowledged
    #[arg(long, value_enum, default_value_t = AckLevel::Committed)]
    ack: AckLevel,
}

#[derive(Serialize)]
struct Counted {
    dry_run: bool,
    keys: u64,
}

pub(super) async fn run(global: &Global, args: DeleteArgs) -> anyhow::Result<Exit> {
    let client = connect::client(global)?;
    let (write, start, end) = match (&args.key, &args.prefix, args.range.as_deref()) {
        (Some(key), None, None) => {
            let key = connect::key(key)?;
            let mut write = Write::new().delete(key);
            if let Some(condition) = args.conditions.condition(key) {
                write = write.condition(condition);
            }
            (write, key.to_vec(), [key, &[0]].concat())
        }
        (None, Some(prefix), None) => {
            let (start, end) = (prefix.as_bytes().to_vec(), prefix_end(prefix.as_bytes()));
            (Write::new().delete_range(&start[..], &end[..]), start, end)
        }
        (None, None, Some([start, end])) => {
            if !end.is_empty() && end <= start {
                return Err(usage(format!("--range: END {end:?} is not after START {start:?}")));
            }
            (Write::new().delete_range(start.as_bytes(), end.as_bytes()), start.clone().into(), end.clone().into())
        }
        _ => return Err(usage("give one of KEY, --prefix and --range")),
    };
    if args.key.is_none() && args.conditions.is_some() {
        return Err(usage("conditions go with one KEY, not with a range"));
    }
    if args.dry_run {
        let keys = count(&client, start, end).await?;
        output::print(global.output, &Counted { dry_run: true, keys }, || format!("would remove {keys} keys"))?;
        return Ok(Exit::Ok);
    }
    let what = match (&args.prefix, args.range.as_deref()) {
        (Some(p), _) if p.is_empty() => "Remove ALL keys?".to_owned(),
        (Some(p), _) => format!("Remove all keys that begin with {p:?}?"),
        (_, Some([start, end])) => format!("Remove all keys from {start:?} up to {end:?}?"),
        _ => String::new(),
    };
    if !what.is_empty() && !output::confirm(&what, args.yes)? {
        output::say("nothing was removed");
        return Ok(Exit::Failed);
    }
    show(global, &client.write(write.ack(args.ack.ack())).await?)
}

async fn count(client: &mainstay_client::Client, start: Vec<u8>, end: Vec<u8>) -> anyhow::Result<u64> {
    let mut keys = 0;
    let mut entries = client.scan(Scan::range(start, end).keys_only()).await?;
    while entries.next().await?.is_some() {
        keys += 1;
    }
    Ok(keys)
}
