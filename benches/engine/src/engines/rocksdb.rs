//! RocksDB: ten-bit Bloom filters, LZ4, pinned top-level filters and indexes, as its tuning guide advises.

use std::path::Path;

use anyhow::Result;
use rocksdb::checkpoint::Checkpoint;
use rocksdb::{BlockBasedOptions, Cache, DB, DBCompressionType, FlushOptions, Options, WriteOptions};

use super::Engine;

pub struct Rocks(DB);

impl Rocks {
    pub fn open(dir: &Path, cache: u64) -> Result<Self> {
        let mut table = BlockBasedOptions::default();
        table.set_block_cache(&Cache::new_lru_cache(usize::try_from(cache)?));
        table.set_bloom_filter(10.0, false);
        let mut options = Options::default();
        options.create_if_missing(true);
        options.set_block_based_table_factory(&table);
        options.set_compression_type(DBCompressionType::Lz4);
        options.increase_parallelism(2);
        Ok(Self(DB::open(&options, dir)?))
    }
}

impl Engine for Rocks {
    fn durability(&self) -> &'static str {
        "survives the process's end"
    }

    fn put(&self, key: &[u8], value: &[u8]) -> Result<()> {
        Ok(self.0.put(key, value)?)
    }

    fn put_synced(&self, key: &[u8], value: &[u8]) -> Result<()> {
        let mut options = WriteOptions::default();
        options.set_sync(true);
        Ok(self.0.put_opt(key, value, &options)?)
    }

    fn delete(&self, key: &[u8]) -> Result<()> {
        Ok(self.0.delete(key)?)
    }

    fn get(&self, key: &[u8], see: &mut dyn FnMut(&[u8])) -> Result<bool> {
        let found = self.0.get_pinned(key)?;
        if let Some(value) = &found {
            see(value);
        }
        Ok(found.is_some())
    }

    fn scan(&self, from: &[u8], limit: usize, see: &mut dyn FnMut(&[u8], &[u8])) -> Result<usize> {
        let mut entries = self.0.raw_iterator();
        entries.seek(from);
        let mut count = 0;
        while count < limit
            && let Some((key, value)) = entries.item()
        {
            see(key, value);
            count += 1;
            entries.next();
        }
        entries.status()?;
        Ok(count)
    }

    fn checkpoint(&self, to: &Path) -> Result<bool> {
        Checkpoint::new(&self.0)?.create_checkpoint(to)?;
        Ok(true)
    }

    fn settle(&self) -> Result<()> {
        let mut flush = FlushOptions::default();
        flush.set_wait(true);
        self.0.flush_opt(&flush)?;
        self.0.compact_range(None::<&[u8]>, None::<&[u8]>);
        Ok(())
    }
}
