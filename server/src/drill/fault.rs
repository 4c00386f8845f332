//! Faults, and the sabotage that shows that a verdict can be negative.
//!
//! Owns: doing damage, from outside: signals, files, ordinary client calls. Never: a path that the
//! drill did not make itself.

#![expect(clippy::disallowed_methods, reason = "the drill is an outside observer; damage is its task")]

use std::path::{Path, PathBuf};

use anyhow::Context;
use mainstay_client::Client;

use super::cluster::Cluster;

/// Ways to make a drill fail on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Sabotage {
    /// Some writes are sent that the ledger does not know
    SkipLedgerWrites,
    /// A log object vanishes from the bucket before the restore
    DropArchiveObject,
    /// An acknowledged key is deleted behind the drill's back after the recovery
    LoseAcked,
}

/// SIGKILL to all nodes at once, then all their data directories are removed.
pub(super) async fn lose_region(cluster: &mut Cluster) -> anyhow::Result<()> {
    futures::future::try_join_all(cluster.nodes.iter_mut().map(super::cluster::Node::kill)).await?;
    for node in &cluster.nodes {
        std::fs::remove_dir_all(&node.data).with_context(|| format!("cannot remove {}", node.data.display()))?;
    }
    Ok(())
}

/// Removes the first log object whose records all lie above `above`; returns its name.
pub(super) fn drop_archive_object(bucket: &Path, above: u64) -> anyhow::Result<String> {
    let mut objects = Vec::new();
    log_objects(&bucket.join("wal"), &mut objects)?;
    objects.sort();
    let (_, path) =
        objects.into_iter().find(|(first, _)| *first > above).context("there is no log object to remove")?;
    std::fs::remove_file(&path)?;
    Ok(path.strip_prefix(bucket).unwrap_or(&path).display().to_string())
}

fn log_objects(dir: &Path, out: &mut Vec<(u64, PathBuf)>) -> anyhow::Result<()> {
    for entry in std::fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            log_objects(&entry.path(), out)?;
            continue;
        }
        let name = entry.file_name();
        let range = name.to_str().and_then(|n| n.strip_suffix(".wal")).and_then(|n| n.split_once('-'));
        if let Some(first) = range.and_then(|(first, _)| u64::from_str_radix(first, 16).ok()) {
            out.push((first, entry.path()));
        }
    }
    Ok(())
}

/// Number and bytes of the log objects in the bucket.
pub(super) fn archive_size(bucket: &Path) -> (u64, u64) {
    let mut objects = Vec::new();
    if log_objects(&bucket.join("wal"), &mut objects).is_err() {
        return (0, 0);
    }
    let bytes = objects.iter().filter_map(|(_, p)| std::fs::metadata(p).ok()).map(|m| m.len()).sum();
    (objects.len() as u64, bytes)
}

/// Deletes a key without telling the ledger.
pub(super) async fn lose_acked(client: &Client, key: &str) -> anyhow::Result<()> {
    client.delete(key).await.map(drop).context("the sabotage itself failed")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_object_after_the_base_is_the_one_removed() {
        let dir = tempfile::tempdir().unwrap();
        let epoch = dir.path().join("wal/t/0000000000000001");
        std::fs::create_dir_all(&epoch).unwrap();
        for (first, last) in [(1, 9), (10, 19), (20, 29)] {
            std::fs::write(epoch.join(format!("{first:016x}-{last:016x}.wal")), b"xy").unwrap();
        }
        std::fs::write(epoch.join("other.json"), b"").unwrap();
        assert_eq!(archive_size(dir.path()), (3, 6));
        let gone = drop_archive_object(dir.path(), 5).unwrap();
        assert!(gone.ends_with("000000000000000a-0000000000000013.wal"), "{gone}");
        assert_eq!(archive_size(dir.path()), (2, 4));
        assert!(drop_archive_object(dir.path(), 20).is_err());
    }
}
