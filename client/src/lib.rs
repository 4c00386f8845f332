//! The client library of Mainstay: finds the primary, follows it, retries what may be retried, and
//! says exactly what became of a write.
//!
//! Owns: routing, deadlines, retries within a budget, error classes. Never: a retry of a write whose
//! outcome is unknown.
//!
//! ```no_run
//! # async fn example() -> Result<(), mainstay_client::Error> {
//! use mainstay_client::{Client, Write};
//!
//! let client = Client::connect(["127.0.0.1:7400"])?;
//! client.put("greeting", "hello").await?;
//! let written = client.write(Write::new().put("a", "1").delete("b")).await?;
//! println!("committed at LSN {} of epoch {}", written.lsn, written.epoch);
//! # Ok(())
//! # }
//! ```

mod admin;
mod error;
mod read;
mod retry;
mod session;
mod watch;
mod write;

pub use admin::{BackupProgress, Scrubbing};
pub use error::{Error, ErrorClass, Result};
pub use mainstay_proto::v1::{
    CreateBackupProgress, DamagedTable, ListDamageResponse, PromoteResponse, RepairTableResponse, ReseedResponse,
    ScrubProgress, StatusResponse,
};
pub use read::{Consistency, Entries, Entry, ReadOptions, Scan};
pub use session::{Builder, Client};
pub use watch::{Change, Changes, Operation};
pub use write::{Ack, Condition, Write, Written};
