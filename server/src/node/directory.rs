//! The data directory before anything in it is touched: what it is, and that no other process has it.
//!
//! Owns: the refusal of a directory that is no node's, and the lock that a node holds from before its
//! first write to its end, re-seeding included. Never: changing a directory that is refused.

use std::io::ErrorKind;
use std::path::Path;

use anyhow::{Context, bail};
use mainstay_engine::fs::LockGuard;
use mainstay_engine::store::Identity;
use mainstay_engine::{Env, Error};

/// Locked by the node, so that even its promise has one writer; the store's own lock is taken later.
const LOCK: &str = "NODE.LOCK";
/// Written and synced before anything else of a node, and never removed.
const PROMISE: &str = "PROMISE";
/// What may be there although no node has lived here: an attempt that came no further, and what some
/// file systems put into their root.
const HARMLESS: [&str; 4] = [LOCK, "LOCK", "PROMISE.tmp", "lost+found"];

/// Looks at the directory. True when a node has lived here, false when it is absent or empty.
///
/// # Errors
/// No directory, one that cannot be read, one that holds something else, or a node's of a newer
/// format or with a damaged identity.
pub(super) fn inhabited(env: &Env, dir: &Path) -> anyhow::Result<bool> {
    let names = match env.fs.list(dir) {
        Ok(names) => names,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(false),
        Err(e) if e.kind() == ErrorKind::NotADirectory => {
            bail!("the data directory {} is not a directory; name another one with --data", dir.display())
        }
        Err(e) => return Err(e).context(denied("read", dir)),
    };
    if Identity::read(env, dir)?.is_some() || names.iter().any(|n| n == PROMISE) {
        return Ok(true);
    }
    // Making a store clears away what an earlier attempt left; that must never be somebody's files.
    match names.iter().find(|n| !HARMLESS.contains(&n.as_str())) {
        None => Ok(false),
        Some(found) => bail!(
            "{} is not a Mainstay data directory and holds {found:?}; name an empty or absent one with --data",
            dir.display()
        ),
    }
}

/// Takes the directory for this process, making it if it is absent.
///
/// # Errors
/// `InUse`, or the operating system's.
pub(crate) fn claim(env: &Env, dir: &Path) -> anyhow::Result<Box<dyn LockGuard>> {
    env.fs.create_dir_all(dir).with_context(|| denied("make", dir))?;
    match env.fs.lock(&dir.join(LOCK)) {
        Ok(lock) => Ok(lock),
        Err(e) if e.kind() == ErrorKind::WouldBlock => Err(Error::InUse(dir.to_owned()).into()),
        Err(e) => Err(e).context(denied("write to", dir)),
    }
}

fn denied(action: &str, dir: &Path) -> String {
    format!(
        "cannot {action} the data directory {}; run the server as the user that owns it, or name another one with --data",
        dir.display()
    )
}
