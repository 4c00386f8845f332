//! The one implementation of each client operation; every front door calls it.
//!
//! Owns: admission, the wait for an acknowledgement, the read gate, error classes. Never: bytes of
//! a protocol, and never a role decision (it reads the driver's).

mod failure;
mod read;
mod watch;
mod write;

use std::sync::Arc;
use std::time::Duration;

use mainstay_engine::Epoch;
use mainstay_engine::store::Store;
use mainstay_engine::watermark::Watermark;
use mainstay_replication::driver::{Driver, RoleName};
use tokio::sync::Semaphore;

pub use failure::{Class, Code, Failure, without_advice};
pub use read::{Entry, Range, ReadAt};
pub use watch::{Change, Changed};
pub use write::{Ack, Operation, Write, Written};

/// Most writes waiting for their acknowledgement at once; more are refused, not queued.
const WRITES_MAX: usize = 16_384;
/// Most bytes of such writes.
const WRITE_BYTES_MAX: usize = 256 << 20;

/// Serves client operations on one node. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Service {
    driver: Arc<Driver>,
    archived: Watermark,
    archiving: bool,
    writes: Arc<Semaphore>,
    write_kib: Arc<Semaphore>,
    /// Held while a table is read whole in which a read met damage.
    checking: Arc<Semaphore>,
    /// Longest wait for an acknowledgement when the caller names none.
    timeout: Duration,
}

impl Service {
    /// A service over a driver. `archived` is raised by the archiver, if there is one.
    #[must_use]
    pub fn new(driver: Arc<Driver>, archived: Watermark, archiving: bool) -> Self {
        Self {
            driver,
            archived,
            archiving,
            writes: Arc::new(Semaphore::new(WRITES_MAX)),
            write_kib: Arc::new(Semaphore::new(WRITE_BYTES_MAX / 1024)),
            checking: Arc::new(Semaphore::new(1)),
            timeout: Duration::from_secs(30),
        }
    }

    /// The node's replication.
    #[must_use]
    pub const fn driver(&self) -> &Arc<Driver> {
        &self.driver
    }

    /// What is in the archive.
    #[must_use]
    pub const fn archived(&self) -> &Watermark {
        &self.archived
    }

    fn store(&self) -> Result<&Arc<Store>, Failure> {
        self.driver.store().ok_or_else(|| {
            let why = self.driver.role().borrow().trouble.clone().unwrap_or_else(|| "the node is starting".into());
            Failure::new(Code::NotReady, Class::NotExecuted, format!("this node has no data yet: {why}"))
        })
    }

    /// The store and the epoch, if this node leads.
    fn primary(&self) -> Result<(&Arc<Store>, Epoch, mainstay_engine::Lsn), Failure> {
        let role = self.driver.role().borrow().clone();
        if role.role == RoleName::Primary {
            return Ok((self.store()?, role.epoch, role.epoch_start));
        }
        let known = role.primary.map_or_else(String::new, |p| format!("; node {p} leads epoch {}", role.epoch));
        let trouble = role.trouble.map_or_else(String::new, |t| format!(" ({t})"));
        let mut f = Failure::new(
            Code::NotPrimary,
            Class::NotExecuted,
            format!("this node is not the primary but {}{known}{trouble}", role.role.as_str()),
        );
        f.primary = role.primary_client_addr.unwrap_or_default();
        f.epoch = role.epoch.0;
        Err(f)
    }

    async fn until_role_ends(&self, epoch: Epoch) {
        let mut role = self.driver.role();
        let _ = role.wait_for(|r| r.role != RoleName::Primary || r.epoch != epoch).await;
    }
}
