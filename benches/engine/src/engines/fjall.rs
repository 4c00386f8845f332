//! fjall: a log-structured engine in Rust. Bloom filters and LZ4 are its defaults.

use std::path::Path;

use anyhow::Result;
use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode};

use super::Engine;

pub struct Fjall {
    database: Database,
    keys: Keyspace,
}

impl Fjall {
    pub fn open(dir: &Path, cache: u64) -> Result<Self> {
        let database = Database::builder(dir).cache_size(cache).open()?;
        let keys = database.keyspace("keys", KeyspaceCreateOptions::default)?;
        Ok(Self { database, keys })
    }
}

impl Engine for Fjall {
    fn durability(&self) -> &'static str {
        "survives the process's end"
    }

    fn put(&self, key: &[u8], value: &[u8]) -> Result<()> {
        Ok(self.keys.insert(key, value)?)
    }

    fn put_synced(&self, key: &[u8], value: &[u8]) -> Result<()> {
        self.keys.insert(key, value)?;
        Ok(self.database.persist(PersistMode::SyncData)?)
    }

    fn delete(&self, key: &[u8]) -> Result<()> {
        Ok(self.keys.remove(key)?)
    }

    fn get(&self, key: &[u8], see: &mut dyn FnMut(&[u8])) -> Result<bool> {
        let found = self.keys.get(key)?;
        if let Some(value) = &found {
            see(value);
        }
        Ok(found.is_some())
    }

    fn scan(&self, from: &[u8], limit: usize, see: &mut dyn FnMut(&[u8], &[u8])) -> Result<usize> {
        let mut count = 0;
        for entry in self.keys.range(from..).take(limit) {
            let (key, value) = entry.into_inner()?;
            see(&key, &value);
            count += 1;
        }
        Ok(count)
    }

    fn settle(&self) -> Result<()> {
        self.keys.rotate_memtable_and_wait()?;
        Ok(self.keys.major_compact()?)
    }
}
