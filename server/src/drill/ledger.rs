//! The ledger: what the observer tried and what it was told, on disk before it counts.
//!
//! Owns: a file of its own in a format of its own (one line per entry: checksum, blank, JSON), so
//! that it shares no code with what it judges. An intent is synced before the write is sent, an
//! outcome before the write counts as acknowledged. Never: a guess; a line that does not prove
//! itself ends the drill.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};

/// Most entries waiting for the disk.
const WAITING_MAX: usize = 16_384;
/// Most entries synced together.
const GROUP_MAX: usize = 1024;

/// FNV-1a over bytes: enough against torn and flipped lines, and nobody else's code.
pub(super) fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3))
}

/// One change of a write. Keys of the drill are ASCII.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub(super) enum Change {
    Put { key: String, hash: u64, bytes: u64 },
    Delete { key: String },
    DeleteRange { start: String, end: String },
}

/// What the observer was told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "told", rename_all = "snake_case")]
pub(super) enum Told {
    Acked {
        epoch: u64,
        lsn: u64,
        level: String,
        commit_ts_us: u64,
    },
    /// Nothing happened, says the system.
    Refused {
        code: String,
    },
    /// It may or may not have happened.
    Unknown {
        code: String,
    },
}

/// A line of the ledger. Times are microseconds on the drill's own clock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "entry", rename_all = "snake_case")]
pub(super) enum Entry {
    Intent { id: u64, client: u32, at_us: u64, changes: Vec<Change> },
    Outcome { id: u64, at_us: u64, outcome: Told },
    Mark { at_us: u64, what: String },
}

impl Entry {
    fn line(&self) -> anyhow::Result<String> {
        let body = serde_json::to_string(self)?;
        Ok(format!("{:016x} {body}\n", fnv(body.as_bytes())))
    }

    fn parse(line: &str) -> anyhow::Result<Self> {
        let (sum, body) = line.split_once(' ').context("no checksum")?;
        // Spelled exactly as it is written, so that no two lines mean the same.
        if sum != format!("{:016x}", fnv(body.as_bytes())) {
            bail!("the checksum does not match");
        }
        Ok(serde_json::from_str(body)?)
    }
}

struct Job {
    line: String,
    synced: oneshot::Sender<()>,
}

/// The open ledger. Group commit: whatever arrives while the disk is busy is synced together.
#[derive(Debug)]
pub(super) struct Ledger {
    jobs: mpsc::Sender<Job>,
    path: PathBuf,
}

impl Ledger {
    pub(super) fn create(path: &Path) -> anyhow::Result<Self> {
        let file = std::fs::File::options().write(true).create_new(true).open(path);
        let file = file.with_context(|| format!("cannot create the ledger {}", path.display()))?;
        let (jobs, waiting) = mpsc::channel(WAITING_MAX);
        tokio::task::spawn_blocking(move || keep(file, waiting));
        Ok(Self { jobs, path: path.to_owned() })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns when the entry is on the disk.
    ///
    /// # Errors
    /// The ledger could not be written: nothing that follows would prove anything.
    pub(super) async fn record(&self, entry: &Entry) -> anyhow::Result<()> {
        let (synced, done) = oneshot::channel();
        let job = Job { line: entry.line()?, synced };
        self.jobs.send(job).await.ok().context("the ledger could not be written")?;
        done.await.context("the ledger could not be written")
    }
}

/// Ends at the first error: those who wait then learn of it by the dropped channel.
fn keep(mut file: std::fs::File, mut waiting: mpsc::Receiver<Job>) {
    let mut group = Vec::new();
    while let Some(first) = waiting.blocking_recv() {
        group.push(first);
        while group.len() < GROUP_MAX
            && let Ok(job) = waiting.try_recv()
        {
            group.push(job);
        }
        let text: String = group.iter().map(|j| j.line.as_str()).collect();
        if file.write_all(text.as_bytes()).and_then(|()| file.sync_data()).is_err() {
            return;
        }
        for job in group.drain(..) {
            // Who no longer waits has given up on the whole drill.
            let _ = job.synced.send(());
        }
    }
}

/// One write as the ledger has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Attempt {
    pub(super) id: u64,
    pub(super) sent_us: u64,
    pub(super) replied_us: u64,
    pub(super) changes: Vec<Change>,
    pub(super) told: Told,
}

impl Attempt {
    /// Where it was acknowledged: epoch and LSN.
    pub(super) const fn acked(&self) -> Option<(u64, u64)> {
        match self.told {
            Told::Acked { epoch, lsn, .. } => Some((epoch, lsn)),
            Told::Refused { .. } | Told::Unknown { .. } => None,
        }
    }

    /// Bytes of its keys and values.
    pub(super) fn bytes(&self) -> u64 {
        let of = |c: &Change| match c {
            Change::Put { key, bytes, .. } => key.len() as u64 + bytes,
            Change::Delete { key } => key.len() as u64,
            Change::DeleteRange { start, end } => (start.len() + end.len()) as u64,
        };
        self.changes.iter().map(of).sum()
    }
}

/// All attempts of a ledger in the order of their ids, and a digest of the file.
#[derive(Clone, Debug, Default)]
pub(super) struct Recorded {
    pub(super) attempts: Vec<Attempt>,
    pub(super) entries: u64,
    pub(super) digest: u64,
}

/// Reads a ledger back. An intent without an outcome is unknown.
///
/// # Errors
/// Any line that does not prove itself, an outcome without its intent, an id used twice.
pub(super) fn read(path: &Path) -> anyhow::Result<Recorded> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    parse(&text).with_context(|| format!("the ledger {} is damaged", path.display()))
}

fn parse(text: &str) -> anyhow::Result<Recorded> {
    if !text.is_empty() && !text.ends_with('\n') {
        bail!("its last line is torn");
    }
    let mut attempts: BTreeMap<u64, Attempt> = BTreeMap::new();
    let mut entries = 0;
    for (n, line) in text.split_terminator('\n').enumerate() {
        entries += 1;
        match Entry::parse(line).with_context(|| format!("line {}", n + 1))? {
            Entry::Intent { id, at_us, changes, .. } => {
                let told = Told::Unknown { code: "NO_OUTCOME".to_owned() };
                let attempt = Attempt { id, sent_us: at_us, replied_us: u64::MAX, changes, told };
                if attempts.insert(id, attempt).is_some() {
                    bail!("line {}: write {id} was sent twice", n + 1);
                }
            }
            Entry::Outcome { id, at_us, outcome } => {
                let attempt = attempts.get_mut(&id).filter(|a| a.replied_us == u64::MAX);
                let attempt = attempt.with_context(|| format!("line {}: an outcome of no write ({id})", n + 1))?;
                (attempt.replied_us, attempt.told) = (at_us, outcome);
            }
            Entry::Mark { .. } => {}
        }
    }
    Ok(Recorded { attempts: attempts.into_values().collect(), entries, digest: fnv(text.as_bytes()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn intent(id: u64) -> Entry {
        let put = Change::Put { key: format!("k{id}"), hash: u64::MAX, bytes: 5 };
        Entry::Intent { id, client: 1, at_us: 10 * id, changes: vec![put, Change::Delete { key: "d".into() }] }
    }

    fn acked(id: u64) -> Entry {
        let outcome = Told::Acked { epoch: 1, lsn: id, level: "committed".into(), commit_ts_us: 7 };
        Entry::Outcome { id, at_us: 10 * id + 5, outcome }
    }

    fn text(entries: &[Entry]) -> String {
        entries.iter().map(|e| e.line().unwrap()).collect()
    }

    #[test]
    fn entries_come_back_as_attempts() {
        let mark = Entry::Mark { at_us: 1, what: "fault".into() };
        let r = parse(&text(&[intent(1), intent(2), acked(1), mark])).unwrap();
        assert_eq!((r.entries, r.attempts.len()), (4, 2));
        assert_eq!(r.attempts[0].acked(), Some((1, 1)));
        assert_eq!((r.attempts[0].sent_us, r.attempts[0].replied_us, r.attempts[0].bytes()), (10, 15, 8));
        assert_eq!(r.attempts[1].told, Told::Unknown { code: "NO_OUTCOME".into() }, "an intent without an outcome");
    }

    #[test]
    fn every_flipped_byte_and_every_cut_is_noticed() {
        let whole = text(&[intent(1), acked(1)]);
        for i in 0..whole.len() {
            let mut bytes = whole.clone().into_bytes();
            bytes[i] ^= 1;
            let flipped = String::from_utf8(bytes).unwrap();
            assert!(parse(&flipped).is_err(), "byte {i} flipped");
            let cut = &whole[..i];
            let ends_between = cut.is_empty() || cut.ends_with('\n');
            assert_eq!(parse(cut).is_ok(), ends_between, "cut to {i} bytes");
        }
    }

    #[test]
    fn what_cannot_be_is_refused() {
        assert!(parse(&text(&[acked(1)])).is_err(), "an outcome without its intent");
        assert!(parse(&text(&[intent(1), intent(1)])).is_err(), "an id used twice");
        assert!(parse(&text(&[intent(1), acked(1), acked(1)])).is_err(), "two outcomes");
    }

    #[tokio::test]
    async fn recorded_means_in_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::create(&dir.path().join("ledger")).unwrap();
        let writing = (0..100).map(|id| {
            let ledger = &ledger;
            async move {
                ledger.record(&intent(id)).await.unwrap();
                assert!(std::fs::read_to_string(ledger.path()).unwrap().contains(&format!("\"id\":{id},")));
                ledger.record(&acked(id)).await.unwrap();
            }
        });
        futures::future::join_all(writing).await;
        assert_eq!(read(ledger.path()).unwrap().attempts.len(), 100);
        assert!(Ledger::create(ledger.path()).is_err(), "a ledger is never written over");
    }
}
