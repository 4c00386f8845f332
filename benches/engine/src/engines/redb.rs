//! redb: a copy-on-write B-tree in Rust. A write is a transaction; one that is not synced becomes durable
//! with the next that is.

use std::path::Path;

use anyhow::Result;
use redb::{Builder, Database, Durability, ReadableDatabase, TableDefinition};

use super::Engine;

const KEYS: TableDefinition<&[u8], &[u8]> = TableDefinition::new("keys");

pub struct Redb(Database);

impl Redb {
    pub fn open(dir: &Path, cache: u64) -> Result<Self> {
        std::fs::create_dir_all(dir)?;
        let cache = usize::try_from(cache)?;
        let database = Builder::new().set_cache_size(cache).create(dir.join("keys.redb"))?;
        let write = database.begin_write()?;
        write.open_table(KEYS)?;
        write.commit()?;
        Ok(Self(database))
    }

    fn write(&self, durability: Durability, key: &[u8], value: Option<&[u8]>) -> Result<()> {
        let mut write = self.0.begin_write()?;
        write.set_durability(durability)?;
        {
            let mut table = write.open_table(KEYS)?;
            match value {
                Some(value) => drop(table.insert(key, value)?),
                None => drop(table.remove(key)?),
            }
        }
        Ok(write.commit()?)
    }
}

impl Engine for Redb {
    fn durability(&self) -> &'static str {
        "in memory until the next synced transaction"
    }

    fn put(&self, key: &[u8], value: &[u8]) -> Result<()> {
        self.write(Durability::None, key, Some(value))
    }

    fn put_synced(&self, key: &[u8], value: &[u8]) -> Result<()> {
        self.write(Durability::Immediate, key, Some(value))
    }

    fn delete(&self, key: &[u8]) -> Result<()> {
        self.write(Durability::None, key, None)
    }

    fn get(&self, key: &[u8], see: &mut dyn FnMut(&[u8])) -> Result<bool> {
        let table = self.0.begin_read()?.open_table(KEYS)?;
        let found = table.get(key)?;
        if let Some(value) = &found {
            see(value.value());
        }
        Ok(found.is_some())
    }

    fn scan(&self, from: &[u8], limit: usize, see: &mut dyn FnMut(&[u8], &[u8])) -> Result<usize> {
        let table = self.0.begin_read()?.open_table(KEYS)?;
        let mut count = 0;
        for entry in table.range(from..)?.take(limit) {
            let (key, value) = entry?;
            see(key.value(), value.value());
            count += 1;
        }
        Ok(count)
    }

    fn settle(&self) -> Result<()> {
        let mut write = self.0.begin_write()?;
        write.set_durability(Durability::Immediate)?;
        Ok(write.commit()?)
    }
}
