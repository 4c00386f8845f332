//! Whose data a directory holds: cluster, timeline, and the format of everything beside it.
//!
//! Layout of the file `IDENTITY`: `magic [8] | format u32 | reserved u32 | cluster u128 | timeline
//! u64 | checksum u64 (xxh3-64 of all before)`. Written once when the directory is made and again
//! only by a restore, a forced failover, or before the first ingest. Owns: that file. Never: guessing.

use std::io;
use std::path::Path;

use xxhash_rust::xxh3::xxh3_64;

use crate::codec::Cursor;
use crate::env::Env;
use crate::error::{Error, Result};
use crate::fs;
use crate::lsn::{ClusterId, TimelineId};

const NAME: &str = "IDENTITY";
const MAGIC: [u8; 8] = *b"mainstay";
/// Format of the data directory as a whole.
const FORMAT: u32 = 1;
/// Format of a directory whose log may hold ingest records: a program that does not know them would take the first of
/// them for the end of the log.
const FORMAT_INGESTED: u32 = 2;

/// Cluster and timeline of a data directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The cluster.
    pub cluster: ClusterId,
    /// The timeline that its log continues.
    pub timeline: TimelineId,
}

impl Identity {
    /// A new cluster on its first timeline.
    #[must_use]
    pub fn random(env: &Env) -> Self {
        let word = || u128::from(env.rng.next_u64());
        Self { cluster: ClusterId((word() << 64) | word()), timeline: TimelineId(env.rng.next_u64()) }
    }

    pub(super) fn encode(&self, ingested: bool) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        let format = if ingested { FORMAT_INGESTED } else { FORMAT };
        out.extend_from_slice(&format.to_le_bytes());
        out.extend_from_slice(&0u32.to_le_bytes());
        out.extend_from_slice(&self.cluster.0.to_le_bytes());
        out.extend_from_slice(&self.timeline.0.to_le_bytes());
        let sum = xxh3_64(&out);
        out.extend_from_slice(&sum.to_le_bytes());
        out
    }

    /// Also says whether the log may hold ingest records.
    pub(super) fn decode(path: &Path, bytes: &[u8]) -> Result<(Self, bool)> {
        let bad = |what: &str| Error::corruption(path, 0, None, what);
        let mut c = Cursor::new(bytes);
        if c.array::<8>()? != MAGIC {
            return Err(Error::Directory { path: path.to_owned(), what: "not a Mainstay data directory".into() });
        }
        let format = c.u32()?;
        if format != FORMAT && format != FORMAT_INGESTED {
            return Err(Error::Format { path: path.to_owned(), found: format, known: FORMAT_INGESTED });
        }
        let reserved = c.u32()?;
        let out = Self { cluster: ClusterId(c.u128()?), timeline: TimelineId(c.u64()?) };
        let (head, _) = bytes.split_at_checked(bytes.len().saturating_sub(8)).unwrap_or((bytes, &[]));
        if c.u64()? != xxh3_64(head) || !c.is_empty() {
            return Err(bad("identity checksum does not match"));
        }
        if reserved != 0 {
            return Err(bad("the identity's reserved bytes are not zero"));
        }
        Ok((out, format == FORMAT_INGESTED))
    }

    /// Writes the file, whole or not at all, for a directory whose log holds no ingest record.
    ///
    /// # Errors
    /// The operating system's.
    pub fn write(&self, env: &Env, dir: &Path) -> Result<()> {
        self.write_with(env, dir, false)
    }

    /// [`Identity::write`] for a directory whose log may hold ingest records.
    pub(super) fn write_with(&self, env: &Env, dir: &Path, ingested: bool) -> Result<()> {
        let bytes = self.encode(ingested);
        Ok(fs::write_atomic(&*env.fs, dir, NAME, &bytes)?)
    }

    /// Reads the file; `None` when the directory has none (no store was made here).
    ///
    /// # Errors
    /// Another program's or a newer format's directory, damage, or the operating system's.
    pub fn read(env: &Env, dir: &Path) -> Result<Option<Self>> {
        Ok(Self::read_from(&*env.fs, dir)?.map(|(identity, _)| identity))
    }

    /// [`Identity::read`] for who has no environment; also whether the log may hold ingest records.
    pub(crate) fn read_from(files: &dyn fs::Fs, dir: &Path) -> Result<Option<(Self, bool)>> {
        let path = dir.join(NAME);
        match fs::read_file(files, &path, 4096) {
            Ok(bytes) => Self::decode(&path, &bytes).map(Some),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Error::io("read", &path, e)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reserved_bytes_that_say_something_are_refused() {
        let id = Identity { cluster: ClusterId(7), timeline: TimelineId(9) };
        for at in 12..16 {
            let mut bytes = id.encode(false);
            bytes[at] = 1;
            let sum = xxh3_64(&bytes[..40]);
            bytes[40..].copy_from_slice(&sum.to_le_bytes());
            let read = Identity::decode(Path::new("IDENTITY"), &bytes);
            assert!(matches!(read, Err(Error::Corruption { .. })), "byte {at}: {read:?}");
        }
    }

    #[test]
    fn an_identity_reads_back_and_refuses_every_flipped_bit() {
        let id = Identity { cluster: ClusterId(7), timeline: TimelineId(9) };
        let p = Path::new("IDENTITY");
        for ingested in [false, true] {
            let bytes = id.encode(ingested);
            assert_eq!(Identity::decode(p, &bytes).unwrap(), (id, ingested));
            for bit in 0..bytes.len() * 8 {
                let mut bad = bytes.clone();
                bad[bit / 8] ^= 1 << (bit % 8);
                assert!(Identity::decode(p, &bad).is_err(), "bit {bit}");
            }
        }
        let mut newer = id.encode(true);
        newer[8] = 3;
        assert!(matches!(Identity::decode(p, &newer), Err(Error::Format { found: 3, known: 2, .. })));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
            let _ = Identity::decode(Path::new("x"), &bytes);
        }
    }
}
