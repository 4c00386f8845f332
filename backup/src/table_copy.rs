//! Copies of single tables out of a repository, for a restore and for the repair of a damaged table.
//!
//! Owns: the transfer and the check against size and hash. Never: a file that is called good before both hold.

use std::path::Path;
use std::sync::Arc;

use mainstay_engine::ClusterId;
use mainstay_engine::fs::{Fs, OpenMode};
use mainstay_engine::store::final_if_sync;
use mainstay_engine::table::TableFile;

use crate::base::{PART_BYTES, blocking};
use crate::error::{Error, Result};
use crate::repository::Repository;
use crate::repository::access::Access;
use crate::repository::names::{ContentHash, ObjectName};

/// Copies `table` out of the repository to the new file `to`, synced and with the hash that it must have. False when
/// the repository does not hold it: no base backup since has had this very table.
///
/// # Errors
/// `NoRepository`, `ForeignCluster` for another cluster's repository, `Damaged` when the object is not what its name
/// says, the store's, the file's. Remove `to` then. The engine's `Stopped` after a failed sync, which ends the process: it
/// is one that has a store open on this disk \[I3\].
pub async fn copy_table(
    repository: &Repository,
    cluster: ClusterId,
    table: &TableFile,
    to: &Path,
    progress: impl Fn(u64),
) -> Result<bool> {
    repository.check(Some(cluster)).await?;
    let access = repository.access().await?;
    let hash = ContentHash(table.blake3);
    if access.size(&ObjectName::Table(hash)).await?.is_none() {
        return Ok(false);
    }
    let env = repository.env();
    match fetch(&access, Arc::clone(&env.fs), to, hash, table.bytes, &progress).await {
        Ok(()) => Ok(true),
        Err(Error::NotSynced { source, .. }) => {
            Err(final_if_sync(env, mainstay_engine::Error::failed_sync(to, source)).into())
        }
        Err(e) => Err(e),
    }
}

/// Fetches the object of this hash and size into the new file `path`, and syncs it.
pub(crate) async fn fetch(
    access: &Access,
    fs: Arc<dyn Fs>,
    path: &Path,
    blake3: ContentHash,
    bytes: u64,
    advance: &impl Fn(u64),
) -> Result<()> {
    let (name, path) = (ObjectName::Table(blake3), path.to_owned());
    let found = access.size(&name).await?;
    if found != Some(bytes) {
        let what = found
            .map_or("it is not in the repository".to_owned(), |n| format!("it has {n} bytes, the table has {bytes}"));
        return Err(Error::damaged(name, what));
    }
    let file = blocking({
        let path = path.clone();
        move || fs.open(&path, OpenMode::CreateNew).map_err(|e| mainstay_engine::Error::io("create", &path, e).into())
    })
    .await?;
    let mut hash = blake3::Hasher::new();
    let mut offset = 0;
    while offset < bytes {
        let end = bytes.min(offset + PART_BYTES as u64);
        let part = access.get_range(&name, offset..end).await?;
        if part.len() as u64 != end - offset {
            return Err(Error::damaged(name, "a range read gave another number of bytes"));
        }
        let (file, path) = (Arc::clone(&file), path.clone());
        hash = blocking(move || {
            hash.update(&part);
            file.write_all_at(&part, offset).map_err(|e| mainstay_engine::Error::io("write", &path, e))?;
            Ok(hash)
        })
        .await?;
        advance(end - offset);
        offset = end;
    }
    if hash.finalize() != blake3.0 {
        return Err(Error::damaged(name, "its bytes do not have the hash in its name"));
    }
    blocking(move || file.sync_data().map_err(|e| Error::not_synced(&path, e))).await
}
