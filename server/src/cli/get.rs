//! `mainstay get`: the value of a key on stdout.
//!
//! Owns: the raw form (exactly the bytes) and the JSON form. Never: an empty answer for a missing
//! key; that is exit code 5.

use std::io::Write;

use clap::Args;
use serde::Serialize;

use super::output::{Format, json_line};
use super::text::Text;
use super::{Global, connect, output, time};
use crate::codes::Exit;

/// Read a key; exit code 5 when it does not exist
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  mainstay get greeting
  mainstay get photo > photo.jpg          exactly the bytes that were put
  mainstay get greeting -o json           with version, and base64 if it is not UTF-8
  mainstay get greeting --at 1042         as it was at that LSN
  mainstay get greeting --stale           from any node, perhaps a little old")]
pub struct GetArgs {
    /// The key
    key: String,
    /// How to read.
    #[command(flatten)]
    read: ReadArgs,
}

/// How to read.
#[derive(Clone, Copy, Debug, Args)]
pub(super) struct ReadArgs {
    /// As of this LSN
    #[arg(long, value_name = "LSN")]
    pub(super) at: Option<u64>,
    /// From any node, as of what it has applied
    #[arg(long)]
    pub(super) stale: bool,
}

#[derive(Serialize)]
struct Found<'a> {
    key: Text<'a>,
    value: Text<'a>,
    version: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires: Option<String>,
}

pub(super) async fn run(global: &Global, args: GetArgs) -> anyhow::Result<Exit> {
    let key = connect::key(&args.key)?;
    let found = connect::client(global)?.get_with(key, connect::read_options(args.read)).await?;
    let Some(entry) = found else {
        output::say(format!("error: key {:?} not found", args.key));
        return Ok(Exit::NotFound);
    };
    let mut out = output::stdout();
    match global.output {
        Format::Json => {
            let expires = (entry.expiry_us != 0).then(|| time::utc(entry.expiry_us));
            let found = Found { key: Text(&entry.key), value: Text(&entry.value), version: entry.version, expires };
            json_line(&mut out, &found)?;
        }
        Format::Table => {
            out.write_all(&entry.value)?;
            if output::stdout_is_terminal() && !entry.value.ends_with(b"\n") {
                out.write_all(b"\n")?;
            }
        }
    }
    out.flush()?;
    Ok(Exit::Ok)
}
