//! The engines behind one trait, each used as its documentation advises.
//!
//! Owns: names, and what each is opened with. Never: a workload.

use std::path::Path;

use anyhow::{Result, bail};

mod fjall;
#[cfg(feature = "lmdb")]
mod lmdb;
mod mainstay;
mod redb;
#[cfg(feature = "rocksdb")]
mod rocksdb;

#[cfg(feature = "rocksdb")]
pub const DEFAULT: &str = "mainstay,mainstay-buffered,rocksdb,fjall,redb";
#[cfg(not(feature = "rocksdb"))]
pub const DEFAULT: &str = "mainstay,mainstay-buffered,fjall,redb";

/// A store of keys and values. All calls may be made from several threads.
pub trait Engine: Send + Sync {
    /// What a plain write survives when its call returns.
    fn durability(&self) -> &'static str;
    /// Sets a key.
    fn put(&self, key: &[u8], value: &[u8]) -> Result<()>;
    /// Sets a key; it survives a loss of power when the call returns.
    fn put_synced(&self, key: &[u8], value: &[u8]) -> Result<()>;
    /// Removes a key.
    fn delete(&self, key: &[u8]) -> Result<()>;
    /// Shows a key's value; false if it has none.
    fn get(&self, key: &[u8], see: &mut dyn FnMut(&[u8])) -> Result<bool>;
    /// Shows up to `limit` keys with their values from `from` on, and returns how many there were.
    fn scan(&self, from: &[u8], limit: usize, see: &mut dyn FnMut(&[u8], &[u8])) -> Result<usize>;
    /// Returns when nothing is left to do in the background, all of it merged.
    fn settle(&self) -> Result<()>;
    /// Makes a store of its own out of all that was written, in the new directory `to` on the same disk; false if it cannot.
    fn checkpoint(&self, to: &Path) -> Result<bool> {
        let _ = to;
        Ok(false)
    }
    /// Bytes on disk that hold versions which newer ones have taken the place of, kept so that the past can be read.
    fn history_bytes(&self) -> u64 {
        0
    }
    /// What the engine says of its own work, if it can.
    fn notes(&self) -> String {
        String::new()
    }
}

/// Whether there is such an engine in this build.
///
/// # Errors
/// When there is none.
pub fn check(name: &str) -> Result<()> {
    match name {
        "mainstay" | "mainstay-buffered" | "fjall" | "redb" => Ok(()),
        "rocksdb" if cfg!(feature = "rocksdb") => Ok(()),
        "lmdb" if cfg!(feature = "lmdb") => Ok(()),
        "rocksdb" | "lmdb" => bail!("{name} is not in this build; build with --features {name}"),
        _ => bail!("no engine {name}"),
    }
}

/// Opens the store in a directory, new or not.
pub fn open(name: &str, dir: &Path, cache_mib: u64) -> Result<Box<dyn Engine>> {
    let cache = cache_mib << 20;
    Ok(match name {
        "mainstay" => Box::new(mainstay::Mainstay::open(dir, cache, false)?),
        "mainstay-buffered" => Box::new(mainstay::Mainstay::open(dir, cache, true)?),
        "fjall" => Box::new(fjall::Fjall::open(dir, cache)?),
        "redb" => Box::new(redb::Redb::open(dir, cache)?),
        #[cfg(feature = "rocksdb")]
        "rocksdb" => Box::new(rocksdb::Rocks::open(dir, cache)?),
        #[cfg(feature = "lmdb")]
        "lmdb" => Box::new(lmdb::Lmdb::open(dir)?),
        _ => bail!("no engine {name} in this build"),
    })
}
