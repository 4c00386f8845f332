//! Every decoder of this crate under its name, for the fuzz targets and for the test that replays what they found.
//!
//! Owns: the list, and what must hold where a decoder accepts. Never: part of a build without feature `sim`.
//!
//! A checksum keeps a fuzzer out of everything behind it, so most of these decode twice: the bytes as they are, and
//! with their checksums made right (or believed, see [`Bug::IgnoreChecksum`]).

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use crate::batch::{Batch, ops};
use crate::fault::{Bug, plant};
use crate::fs::os::OsFs;
use crate::fs::{Fs, read_file, write_atomic};
use crate::ingest::{Ingest, IngestedTable};
use crate::lsn::{Chain, ClusterId, CommitTs, Epoch, Lsn, Position, TimelineId};
use crate::record::{Header, Kind, Record, TimelineStart, encode};
use crate::rng::{Rng, SeededRng};
use crate::table::TableFile;
use crate::value::Value;

/// One decoder.
#[derive(Clone, Copy, Debug)]
pub struct Decoder {
    /// Also the name of its fuzz target and of the directory with its corpus.
    pub name: &'static str,
    /// Decodes, and panics when something does not hold that must; whether the bytes were accepted.
    pub run: fn(&[u8]) -> bool,
    /// What the encoders write: each must be accepted.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

impl Decoder {
    /// A decoder for a list.
    #[must_use]
    pub const fn new(name: &'static str, run: fn(&[u8]) -> bool, seeds: fn() -> Vec<Vec<u8>>) -> Self {
        Self { name, run, seeds }
    }

    /// Decodes each file and `variations` variations of it. Returns how many of the files were accepted.
    ///
    /// # Errors
    /// The first panic, with the bytes that led to it.
    pub fn replay(&self, files: &[(String, Vec<u8>)], variations: usize) -> Result<usize, String> {
        let decode = |name: &str, bytes: &[u8]| {
            catch_unwind(AssertUnwindSafe(|| (self.run)(bytes)))
                .map_err(|_| format!("{}: {name} made it panic; the bytes are {bytes:02x?}", self.name))
        };
        let mut accepted = 0;
        for (n, (name, bytes)) in files.iter().enumerate() {
            accepted += usize::from(decode(name, bytes)?);
            let rng = SeededRng::new(n as u64);
            for v in 0..variations {
                decode(&format!("{name}, variation {v}"), &variation(bytes, &rng))?;
            }
        }
        Ok(accepted)
    }
}

/// The bytes with a few random changes.
fn variation(bytes: &[u8], rng: &SeededRng) -> Vec<u8> {
    let mut out = bytes.to_vec();
    for _ in 0..=rng.below(3) {
        let place = |out: &Vec<u8>| usize::try_from(rng.below(out.len() as u64 + 1)).unwrap_or_default();
        let at = place(&out);
        match rng.below(6) {
            0 => out.truncate(at),
            1 => drop(out.splice(at..at, rng.next_u64().to_le_bytes())),
            2 => out.extend_from_within(at..),
            3 => drop(out.drain(at.min(place(&out))..at)),
            4 => {
                // A length or a count that is out of all bounds, or just beside one.
                let word = [u64::MAX, 0, 1, 1 << 31, 0x7f, 0x80][rng.below(6) as usize].to_le_bytes();
                out.iter_mut().skip(at).zip(word).for_each(|(to, from)| *to = from);
            }
            _ => out.iter_mut().skip(at).take(1).for_each(|b| *b ^= 1 << rng.below(8)),
        }
    }
    out
}

/// All decoders of this crate.
#[must_use]
pub fn all() -> Vec<Decoder> {
    let own = vec![
        Decoder::new("record", record, record_seeds),
        Decoder::new("timeline_start", timeline_start, timeline_start_seeds),
        Decoder::new("ingest", ingest, ingest_seeds),
        Decoder::new("batch", batch, batch_seeds),
        Decoder::new("value", value, value_seeds),
    ];
    [own, crate::log::decoders(), crate::table::decoders(), crate::tree::decoders(), crate::store::decoders()].concat()
}

/// Most files in one decoder's corpus, and the largest of them in bytes: it is a sample that every test run reads.
const FILES_MAX: usize = 40;
const FILE_BYTES_MAX: u64 = 8 << 10;

/// Replays what is in the directory `{corpus}/{name}` of each decoder of a list.
///
/// # Errors
/// The first panic, file or seed that is not as it should be; a decoder without a corpus, or with one of which
/// nothing is accepted.
pub fn replay_corpus(list: &[Decoder], corpus: &Path, variations: usize) -> Result<(), String> {
    let fs = OsFs::new();
    for decoder in list {
        let (name, dir) = (decoder.name, corpus.join(decoder.name));
        let mut names = fs.list(&dir).unwrap_or_default();
        names.sort();
        if names.is_empty() || names.len() > FILES_MAX {
            let n = names.len();
            return Err(match n {
                0 => format!("the decoder {name} has no corpus in {}; see docs/testing.md", dir.display()),
                _ => format!("{} has {n} files, at most {FILES_MAX} are kept", dir.display()),
            });
        }
        let read = |file: String| {
            let bytes = read_file(&fs, &dir.join(&file), FILE_BYTES_MAX);
            bytes.map(|b| (file.clone(), b)).map_err(|e| format!("{name}/{file}: {e}"))
        };
        let files = names.into_iter().map(read).collect::<Result<Vec<_>, _>>()?;
        if decoder.replay(&files, variations)? == 0 {
            return Err(format!("the decoder {name} accepts nothing of its corpus"));
        }
        let seeds: Vec<_> = (decoder.seeds)().into_iter().map(|s| ("a seed".to_owned(), s)).collect();
        if decoder.replay(&seeds, 0)? != seeds.len() {
            return Err(format!("the decoder {name} refuses what its encoder wrote"));
        }
    }
    Ok(())
}

/// Writes the seeds of a list's decoders that are small enough beside what is in their corpus.
///
/// # Errors
/// The operating system's.
pub fn write_seeds(list: &[Decoder], corpus: &Path) -> std::io::Result<()> {
    let fs = OsFs::new();
    for decoder in list {
        let dir = corpus.join(decoder.name);
        fs.create_dir_all(&dir)?;
        for (n, seed) in (decoder.seeds)().iter().enumerate().filter(|(_, s)| s.len() as u64 <= FILE_BYTES_MAX) {
            write_atomic(&fs, &dir, &format!("seed-{n}"), seed)?;
        }
    }
    Ok(())
}

/// Runs the decoder called `name` of a list, for a fuzz target.
///
/// # Panics
/// When there is none, and when the decoder does.
pub fn run(list: &[Decoder], name: &str, bytes: &[u8]) {
    let Some(decoder) = list.iter().find(|d| d.name == name) else { panic!("there is no decoder {name}") };
    (decoder.run)(bytes);
}

/// Runs `decode` once as things are, and once believing every checksum. What the first run says counts.
pub(crate) fn twice(decode: impl Fn() -> bool) -> bool {
    let accepted = decode();
    let _believed = (plant(Bug::IgnoreChecksum), plant(Bug::IgnoreChain));
    decode();
    accepted
}

/// Replaces the eight bytes at `at` with `sum` of those before.
pub(crate) fn mend(bytes: &[u8], at: usize, sum: impl FnOnce(&[u8]) -> u64) -> Vec<u8> {
    let mut out = bytes.to_vec();
    if let Some((head, rest)) = out.split_at_mut_checked(at)
        && let Some(to) = rest.first_chunk_mut::<8>()
    {
        *to = sum(head).to_le_bytes();
    }
    out
}

fn record(bytes: &[u8]) -> bool {
    twice(|| {
        let Ok(record) = Record::decode(bytes) else { return false };
        assert!(bytes.starts_with(record.bytes) && record.bytes.ends_with(record.body));
        let _ = record.follows(&Position::default());
        if record.header.kind == Kind::Batch {
            let _ = Batch::decode(record.body);
        }
        true
    })
}

/// Records of every kind, one after the other.
pub(crate) fn some_records() -> Vec<Vec<u8>> {
    let [batch, other] = [batch_seeds().remove(0), batch_seeds().remove(1)];
    let bodies = [timeline_start_seeds().remove(0), batch, Vec::new(), other, ingest_seeds().remove(0)];
    let kinds = [Kind::TimelineStart, Kind::Batch, Kind::EpochStart, Kind::Batch, Kind::Ingest];
    let (mut chain, mut out) = (Chain::default(), Vec::new());
    for (n, (kind, body)) in (1..).zip(kinds.into_iter().zip(bodies)) {
        let epoch = Epoch(u64::from(n > 2));
        let header = Header { kind, epoch, lsn: Lsn(n), ts: CommitTs(1_000 + n), session: 0, sequence: 0 };
        let mut bytes = Vec::new();
        chain = encode(&mut bytes, chain, &header, |out| out.extend_from_slice(&body));
        out.push(bytes);
    }
    out
}

fn record_seeds() -> Vec<Vec<u8>> {
    some_records()
}

fn timeline_start(bytes: &[u8]) -> bool {
    TimelineStart::decode(bytes).map(|t| assert_eq!(t.encode(), bytes)).is_ok()
}

fn timeline_start_seeds() -> Vec<Vec<u8>> {
    let start = TimelineStart {
        cluster: ClusterId(7),
        timeline: TimelineId(9),
        parent: TimelineId::default(),
        fork: Lsn::default(),
    };
    vec![start.encode()]
}

fn ingest(bytes: &[u8]) -> bool {
    let Ok(ingest) = Ingest::decode(bytes) else { return false };
    let mut again = Vec::new();
    ingest.encode(&mut again);
    assert_eq!(again, bytes);
    true
}

fn ingest_seeds() -> Vec<Vec<u8>> {
    let table = |id, first: &[u8], last: &[u8]| IngestedTable {
        file: TableFile { id, bytes: 70_000, blake3: [9; 32], entries: 300 },
        first_key: first.to_vec(),
        last_key: last.to_vec(),
    };
    let both = vec![table(1, b"\x00name", b"\x00name"), table(2, b"\x01a", b"\x01a2"), table(3, b"\x01b", b"\x01c")];
    let one = vec![table(u128::MAX, &[1], &[1; 200])];
    let encoded = |tables: Vec<IngestedTable>| {
        let mut out = Vec::new();
        Ingest { tables }.encode(&mut out);
        out
    };
    vec![encoded(both), encoded(one)]
}

fn batch(bytes: &[u8]) -> bool {
    let walked = ops(bytes).try_fold(0, |n, op| op.map(|_| n + 1));
    let Ok(batch) = Batch::decode(bytes) else { return false };
    assert_eq!(walked, Ok(batch.len()));
    assert_eq!(batch.iter().count(), batch.len());
    let mut again = Vec::new();
    batch.encode(&mut again);
    assert_eq!(again, bytes);
    true
}

fn batch_seeds() -> Vec<Vec<u8>> {
    let (mut small, mut all) = (Batch::new(), Batch::new());
    let filled = small.put(b"key", b"value").is_ok()
        && all.put(b"", b"").is_ok()
        && all.put_expiring(b"soon", b"gone", CommitTs(77)).is_ok()
        && all.delete(b"key").is_ok()
        && all.delete_range(b"a", b"b").is_ok()
        && all.delete_range(b"x", b"").is_ok()
        && all.put(&[b'k'; 200], &[b'v'; 300]).is_ok();
    assert!(filled, "within all limits");
    [small, all, Batch::new()]
        .iter()
        .map(|b| {
            let mut out = Vec::new();
            b.encode(&mut out);
            out
        })
        .collect()
}

fn value(bytes: &[u8]) -> bool {
    let Ok(value) = Value::decode(bytes) else { return false };
    let mut again = Vec::new();
    value.encode(&mut again);
    assert_eq!((again.as_slice(), value.encoded_len()), (bytes, bytes.len()));
    true
}

fn value_seeds() -> Vec<Vec<u8>> {
    let soon = Some(CommitTs(1_000_000));
    [
        Value::plain(b""),
        Value::plain(b"data"),
        Value { expiry: soon, metadata: &[], data: b"data" },
        Value { expiry: soon, metadata: b"metadata", data: b"" },
    ]
    .iter()
    .map(|v| {
        let mut out = Vec::new();
        v.encode(&mut out);
        out
    })
    .collect()
}
