//! The evidence file: what this node knew to be durable and committed, kept beside the log so that
//! damage to its newest records is told from a torn tail \[I4\], and so that a restart does not
//! forget what must not be cut \[I8\].
//!
//! Layout of `EVIDENCE`: `magic [8] | durable u64 | committed u64 | checksum u64`. Written at most
//! once a second and at a clean stop. Owns: that file. Never: a source of truth about the log's end.

use std::io;
use std::path::Path;

use xxhash_rust::xxh3::xxh3_64;

use crate::codec::{Cursor, Malformed};
use crate::env::Env;
use crate::error::{Error, Result};
use crate::fs;
use crate::lsn::Lsn;

const NAME: &str = "EVIDENCE";
const MAGIC: [u8; 8] = *b"msevid\0\x01";

/// Removes what a store that is no longer here left: it is no evidence about the next one.
pub(crate) fn forget(env: &Env, dir: &Path) -> Result<()> {
    let path = dir.join(NAME);
    if env.fs.exists(&path).map_err(|e| Error::io("look for", &path, e))? {
        env.fs.remove_file(&path).map_err(|e| Error::io("remove", &path, e))?;
        env.fs.sync_dir(dir).map_err(|source| Error::Io { action: "sync", path: dir.to_owned(), source })?;
    }
    Ok(())
}

/// The durable and the committed LSN in the file; `None` without one.
///
/// # Errors
/// `Corruption` when it is damaged, which a store takes for no evidence; `Io`.
pub(crate) fn look_at_evidence(files: &dyn fs::Fs, dir: &Path) -> Result<Option<(Lsn, Lsn)>> {
    let path = dir.join(NAME);
    match fs::read_file(files, &path, 4096) {
        Ok(bytes) => match Evidence::decode(&bytes) {
            Ok(e) => Ok(Some((e.durable, e.committed))),
            Err(_) => Err(Error::corruption(&path, 0, None, "the evidence of what was durable is damaged")),
        },
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io("read", &path, e)),
    }
}

/// LSNs known to be durable and committed on this node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Evidence {
    pub(super) durable: Lsn,
    pub(super) committed: Lsn,
}

impl Evidence {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        out.extend_from_slice(&self.durable.0.to_le_bytes());
        out.extend_from_slice(&self.committed.0.to_le_bytes());
        let sum = xxh3_64(&out);
        out.extend_from_slice(&sum.to_le_bytes());
        out
    }

    pub(super) fn write(&self, env: &Env, dir: &Path) -> Result<()> {
        Ok(fs::write_atomic(&*env.fs, dir, NAME, &self.encode())?)
    }

    /// Reads the file; no file is no evidence, and so is a damaged one: it can only add safety.
    pub(super) fn read(env: &Env, dir: &Path) -> Result<Self> {
        let path = dir.join(NAME);
        match fs::read_file(&*env.fs, &path, 4096) {
            Ok(bytes) => Ok(Self::decode(&bytes).unwrap_or_default()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(e) => Err(Error::io("read", &path, e)),
        }
    }

    pub(super) fn decode(bytes: &[u8]) -> std::result::Result<Self, Malformed> {
        let mut c = Cursor::new(bytes);
        let magic = c.array::<8>()?;
        let out = Self { durable: Lsn(c.u64()?), committed: Lsn(c.u64()?) };
        let sum = c.u64()?;
        c.finish()?;
        let (head, _) = bytes.split_at_checked(24).unwrap_or_default();
        if magic == MAGIC && sum == xxh3_64(head) { Ok(out) } else { Err(Malformed("evidence")) }
    }
}
