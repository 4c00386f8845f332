//! The ledger: every attempted write before it is sent, every outcome before it counts, each on disk
//! first. A ledger that dies with what it watches proves nothing, so it has a file of its own.
//!
//! One JSON object a line: an intent `{"id","client","key","value","sent_us"}` (no value: a delete), an
//! outcome `{"id","outcome":"acked|refused|unknown","epoch","lsn","reply_us"}`. Owns: that file, in
//! groups with one sync each. Never: guesses.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use anyhow::Context;
use serde::Serialize;
use tokio::sync::{mpsc, oneshot};

/// A write about to be sent.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Intent {
    pub(super) id: u64,
    pub(super) client: u32,
    pub(super) key: String,
    /// The value's mark (its text up to the first colon); none for a delete.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) value: Option<String>,
    /// Microseconds since the drill began.
    pub(super) sent_us: u64,
}

/// What became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "outcome", rename_all = "lowercase")]
pub(super) enum Outcome {
    /// Acknowledged.
    Acked {
        /// Epoch of the record.
        epoch: u64,
        /// LSN of the record.
        lsn: u64,
    },
    /// Certainly not executed.
    Refused,
    /// It may or may not have been.
    Unknown,
}

#[derive(Serialize)]
struct OutcomeLine {
    id: u64,
    #[serde(flatten)]
    outcome: Outcome,
    reply_us: u64,
}

/// One write with its outcome.
#[derive(Clone, Debug)]
pub(super) struct Operation {
    pub(super) intent: Intent,
    pub(super) outcome: Outcome,
    pub(super) reply_us: u64,
}

type Line = (Vec<u8>, oneshot::Sender<()>);

/// An open ledger.
#[derive(Debug)]
pub(super) struct Ledger {
    lines: mpsc::Sender<Line>,
    operations: Mutex<Vec<Operation>>,
}

/// Writes lines in groups: what has queued up while the last sync ran goes into the next.
fn write_groups(mut file: File, mut lines: mpsc::Receiver<Line>) {
    while let Some((first, done)) = lines.blocking_recv() {
        let (mut bytes, mut waiting) = (first, vec![done]);
        while let Ok((more, done)) = lines.try_recv() {
            bytes.extend_from_slice(&more);
            waiting.push(done);
        }
        if file.write_all(&bytes).and_then(|()| file.sync_data()).is_err() {
            // Nobody is told: writes that are not in the ledger never count.
            return;
        }
        for done in waiting {
            let _ = done.send(());
        }
    }
}

impl Ledger {
    /// Makes the file.
    pub(super) fn create(path: &Path) -> anyhow::Result<Self> {
        let file = File::create_new(path).with_context(|| format!("cannot make the ledger {}", path.display()))?;
        let (lines, rx) = mpsc::channel(4096);
        tokio::task::spawn_blocking(move || write_groups(file, rx));
        Ok(Self { lines, operations: Mutex::default() })
    }

    async fn put(&self, line: &impl Serialize) -> anyhow::Result<()> {
        let mut bytes = serde_json::to_vec(line)?;
        bytes.push(b'\n');
        let (tx, rx) = oneshot::channel();
        self.lines.send((bytes, tx)).await.context("the ledger has ended")?;
        rx.await.context("the ledger could not be written")
    }

    /// Makes an intent durable; only then may the write be sent.
    pub(super) async fn intend(&self, intent: &Intent) -> anyhow::Result<()> {
        self.put(intent).await
    }

    /// Makes an outcome durable; only then does the write count.
    pub(super) async fn conclude(&self, intent: Intent, outcome: Outcome, reply_us: u64) -> anyhow::Result<()> {
        self.put(&OutcomeLine { id: intent.id, outcome, reply_us }).await?;
        let mut operations = self.operations.lock().unwrap_or_else(PoisonError::into_inner);
        operations.push(Operation { intent, outcome, reply_us });
        Ok(())
    }

    /// Everything concluded so far, in the order of the writes' numbers.
    pub(super) fn operations(&self) -> Vec<Operation> {
        let mut all = self.operations.lock().unwrap_or_else(PoisonError::into_inner).clone();
        all.sort_unstable_by_key(|o| o.intent.id);
        all
    }
}
