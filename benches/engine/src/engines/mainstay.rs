//! Mainstay's engine on its own.
//!
//! Its memory limit covers memtables, indexes and filters as well as the cache: it gets 128 MiB above the
//! cache size, what the others' write buffers take by default.

use std::path::Path;
use std::sync::Arc;

use anyhow::Result;
use mainstay_engine::batch::{Batch, Keyspace};
use mainstay_engine::store::{Durability, Identity, Store, Workers};
use mainstay_engine::value::Value;
use mainstay_engine::{ClusterId, Env, Options, TimelineId};

use super::Engine;

const WRITE_BUFFERS: u64 = 128 << 20;

pub struct Mainstay {
    // Stopped before the store is closed.
    workers: Option<Workers>,
    store: Arc<Store>,
    durability: Durability,
}

impl Mainstay {
    pub fn open(dir: &Path, cache: u64, buffered: bool) -> Result<Self> {
        let options = Options::with_memory_limit(cache + WRITE_BUFFERS);
        let identity = Identity { cluster: ClusterId(1), timeline: TimelineId(1) };
        let store = if dir.join("IDENTITY").exists() {
            Store::open_embedded(Env::real(), dir, &options)?
        } else {
            Store::create(Env::real(), dir, &options, identity)?
        };
        let store = Arc::new(store);
        let workers = Some(store.start_background()?);
        let durability = if buffered { Durability::Buffered } else { Durability::Written };
        Ok(Self { workers, store, durability })
    }
}

impl Drop for Mainstay {
    fn drop(&mut self) {
        self.workers = None;
        if let Err(e) = self.store.close() {
            eprintln!("mainstay: cannot close: {e}");
        }
    }
}

impl Engine for Mainstay {
    fn durability(&self) -> &'static str {
        match self.durability {
            Durability::Buffered => "64 KiB or 5 ms may be lost when the process ends",
            Durability::Written | Durability::Synced => "survives the process's end",
        }
    }

    fn put(&self, key: &[u8], value: &[u8]) -> Result<()> {
        let mut batch = Batch::new();
        batch.put(key, value)?;
        self.store.write(&batch, &[], self.durability)?;
        Ok(())
    }

    fn put_synced(&self, key: &[u8], value: &[u8]) -> Result<()> {
        let mut batch = Batch::new();
        batch.put(key, value)?;
        self.store.write(&batch, &[], Durability::Synced)?;
        Ok(())
    }

    fn delete(&self, key: &[u8]) -> Result<()> {
        let mut batch = Batch::new();
        batch.delete(key)?;
        self.store.write(&batch, &[], self.durability)?;
        Ok(())
    }

    fn get(&self, key: &[u8], see: &mut dyn FnMut(&[u8])) -> Result<bool> {
        let found =
            self.store.get_with(Keyspace::USER, key, |_, envelope| Value::decode(envelope).map(|v| see(v.data)))?;
        Ok(found.transpose()?.is_some())
    }

    fn scan(&self, from: &[u8], limit: usize, see: &mut dyn FnMut(&[u8], &[u8])) -> Result<usize> {
        let mut scan = self.store.view().scan(Keyspace::USER, from, b"", false);
        let mut count = 0;
        while count < limit
            && let Some(entry) = scan.next_entry()?
        {
            see(entry.key, Value::decode(entry.envelope)?.data);
            count += 1;
        }
        Ok(count)
    }

    fn settle(&self) -> Result<()> {
        self.store.tree().flush_all()?;
        self.store.tree().compact_all()?;
        Ok(())
    }

    fn checkpoint(&self, to: &Path) -> Result<bool> {
        self.store.checkpoint(to)?;
        Ok(true)
    }

    fn history_bytes(&self) -> u64 {
        self.store.stats().tree.history.bytes
    }

    fn notes(&self) -> String {
        let s = self.store.stats();
        let levels: Vec<String> = s.tree.levels.iter().map(|l| l.tables.to_string()).collect();
        let stall = |s: mainstay_engine::store::Stalls| {
            format!("{} ms in {} (most {})", s.total_us / 1000, s.count, s.max_us / 1000)
        };
        format!(
            "tables {} + {} of history, amplification: space {:.2}, writes {:.2}, reads {:.2}; stalls: flush {}, level 0 {}, levels \
             {}, stopped {}; MiB: memtables {}, pinned {}, cache {}",
            levels.join(" "),
            s.tree.history.tables,
            s.tree.space_amplification(),
            s.tree.write_amplification(),
            s.tree.read_amplification(),
            stall(s.stalls.flush),
            stall(s.stalls.level0),
            stall(s.stalls.levels),
            stall(s.stalls.stopped),
            s.tree.memtable_bytes >> 20,
            s.tree.pinned_bytes >> 20,
            s.tree.cache_bytes >> 20,
        )
    }
}
