//! LMDB: a memory-mapped copy-on-write B-tree. It has no cache of its own but the operating system's.

use std::ops::Bound;
use std::path::Path;

use anyhow::Result;
use heed::types::Bytes;
use heed::{CommitOrAbort, Database, Env, EnvFlags, EnvOpenOptions};

use super::Engine;

/// Address space for the map.
const MAP_BYTES: usize = 64 << 30;

pub struct Lmdb {
    env: Env,
    keys: Database<'static, Bytes, Bytes>,
}

impl Lmdb {
    pub fn open(dir: &Path) -> Result<Self> {
        std::fs::create_dir_all(dir)?;
        let mut options = EnvOpenOptions::new();
        options.map_size(MAP_BYTES);
        // SAFETY: the directory is this process's own, and no other opens it; without sync a crash of the
        // machine may lose the store, which is made anew for each run.
        let env = unsafe { options.flags(EnvFlags::NO_SYNC).open(dir)? };
        let made = env.create_databases_and_commit(env.write_txn()?, |opener, write| {
            opener.create_database(write, None).map(CommitOrAbort::<_, ()>::Commit)
        })?;
        let keys = made.unwrap_commit();
        Ok(Self { env, keys })
    }
}

impl Engine for Lmdb {
    fn durability(&self) -> &'static str {
        "survives the process's end"
    }

    fn put(&self, key: &[u8], value: &[u8]) -> Result<()> {
        let mut write = self.env.write_txn()?;
        self.keys.put(&mut write, key, value)?;
        Ok(write.commit()?)
    }

    fn put_synced(&self, key: &[u8], value: &[u8]) -> Result<()> {
        self.put(key, value)?;
        Ok(self.env.force_sync()?)
    }

    fn delete(&self, key: &[u8]) -> Result<()> {
        let mut write = self.env.write_txn()?;
        self.keys.delete(&mut write, key)?;
        Ok(write.commit()?)
    }

    fn get(&self, key: &[u8], see: &mut dyn FnMut(&[u8])) -> Result<bool> {
        let read = self.env.read_txn()?;
        let found = self.keys.get(&read, key)?;
        if let Some(value) = found {
            see(value);
        }
        Ok(found.is_some())
    }

    fn scan(&self, from: &[u8], limit: usize, see: &mut dyn FnMut(&[u8], &[u8])) -> Result<usize> {
        let read = self.env.read_txn()?;
        // It has no empty keys, not even as a bound.
        let low = if from.is_empty() { Bound::Unbounded } else { Bound::Included(from) };
        let mut count = 0;
        for entry in self.keys.range(&read, &(low, Bound::Unbounded))?.take(limit) {
            let (key, value) = entry?;
            see(key, value);
            count += 1;
        }
        Ok(count)
    }

    fn settle(&self) -> Result<()> {
        Ok(self.env.force_sync()?)
    }
}
