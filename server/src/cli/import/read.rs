//! From a file of JSON Lines to batches of puts.
//!
//! Owns: decompression, bounded lines, parsing, limits, cutting batches. Never: a line longer than
//! its bound in memory, a batch after a bad line.

use std::borrow::Cow;
use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{BufRead, BufReader, Read};
use std::sync::Arc;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context;
use serde::Deserialize;
use tokio::sync::mpsc;

use crate::cli::connect::{check_key, check_value};
use crate::cli::text::unbase64;
use crate::cli::time;

/// Longest line in bytes: a value at its limit in base64, its key, and room.
const LINE_BYTES_MAX: usize = 24 << 20;
/// Most bytes of keys and values in a batch; a single larger record travels alone.
const BATCH_BYTES: u64 = 1 << 20;
/// First bytes of a zstd frame.
const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// One record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Put {
    pub(super) key: Vec<u8>,
    pub(super) value: Vec<u8>,
    pub(super) ttl: Option<Duration>,
}

/// Records that are written together.
#[derive(Debug, Default)]
pub(super) struct Batch {
    /// First line, counted from 1.
    pub(super) first_line: u64,
    /// Last line.
    pub(super) last_line: u64,
    /// Lines that count as records.
    pub(super) records: u64,
    /// Records whose time was over.
    pub(super) expired: u64,
    /// Bytes of keys and values.
    pub(super) bytes: u64,
    /// What is written: one put per key, the last one of the batch.
    pub(super) puts: Vec<Put>,
    by_key: HashMap<u64, usize>,
}

/// The input cannot be used from this line on.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Stopped {
    pub(super) line: u64,
    pub(super) what: String,
}

/// One hasher for the process, so that hashes of two batches compare.
static HASHER: LazyLock<RandomState> = LazyLock::new(RandomState::new);

fn hash(key: &[u8]) -> u64 {
    let mut hasher = HASHER.build_hasher();
    hasher.write(key);
    hasher.finish()
}

impl Batch {
    /// Hashes of its keys.
    pub(super) fn keys(&self) -> Vec<u64> {
        self.by_key.keys().copied().collect()
    }

    /// True when the put belongs to a later batch.
    fn is_full(&self, next: &Put, records_max: usize) -> bool {
        let bytes = (next.key.len() + next.value.len()) as u64;
        let clash =
            self.by_key.get(&hash(&next.key)).and_then(|i| self.puts.get(*i)).is_some_and(|p| p.key != next.key);
        self.records > 0 && (self.puts.len() >= records_max || self.bytes + bytes > BATCH_BYTES || clash)
    }

    fn add(&mut self, line: u64, put: Put) {
        if self.records == 0 {
            self.first_line = line;
        }
        self.last_line = line;
        self.records += 1;
        self.bytes += (put.key.len() + put.value.len()) as u64;
        let at = *self.by_key.entry(hash(&put.key)).or_insert(self.puts.len());
        match self.puts.get_mut(at) {
            Some(earlier) => *earlier = put,
            None => self.puts.push(put),
        }
    }
}

/// One line as written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line<'a> {
    #[serde(borrow)]
    key: Option<Cow<'a, str>>,
    key_base64: Option<Cow<'a, str>>,
    value: Option<Cow<'a, str>>,
    value_base64: Option<Cow<'a, str>>,
    ttl_ms: Option<u64>,
    expiry_us: Option<u64>,
}

/// A line as a record; `None` when its time is over.
fn parse(line: &[u8], now_us: u64) -> Result<Option<Put>, String> {
    let parsed: Line<'_> = serde_json::from_slice(line).map_err(|e| {
        let column = e.column();
        // The line number within a line is always 1 and would mislead.
        let text = e.to_string();
        let text = text.split(" at line ").next().unwrap_or_default();
        format!("{text} (column {column})")
    })?;
    let key = bytes("key", parsed.key, parsed.key_base64)?;
    let value = bytes("value", parsed.value, parsed.value_base64)?;
    check_key(&key)?;
    check_value(&value)?;
    let ttl_ms = match (parsed.ttl_ms, parsed.expiry_us) {
        (Some(_), Some(_)) => return Err("give one of \"ttl_ms\" and \"expiry_us\"".to_owned()),
        (Some(0), None) => return Err("\"ttl_ms\" must be above 0".to_owned()),
        (None, None | Some(0)) => return Ok(Some(Put { key, value, ttl: None })),
        (Some(ms), None) => ms,
        (None, Some(at)) if at <= now_us => return Ok(None),
        (None, Some(at)) => (at - now_us).div_ceil(1000),
    };
    Ok(Some(Put { key, value, ttl: Some(Duration::from_millis(ttl_ms)) }))
}

fn bytes(name: &str, text: Option<Cow<'_, str>>, base64: Option<Cow<'_, str>>) -> Result<Vec<u8>, String> {
    match (text, base64) {
        (Some(text), None) => Ok(text.into_owned().into_bytes()),
        (None, Some(b)) => unbase64(&b).ok_or_else(|| format!("\"{name}_base64\" is not base64")),
        (None, None) => Err(format!("no \"{name}\"")),
        (Some(_), Some(_)) => Err(format!("both \"{name}\" and \"{name}_base64\"")),
    }
}

/// Cuts an input into batches.
pub(super) struct Reader {
    input: Box<dyn BufRead + Send>,
    records_max: usize,
}

/// Counts what was read before decompression.
struct Counted<R> {
    inner: R,
    count: Arc<AtomicU64>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.count.fetch_add(n as u64, Ordering::Relaxed);
        Ok(n)
    }
}

impl Reader {
    /// Opens a file, or stdin for `-`; returns its size too, 0 when unknown. `consumed` counts the
    /// bytes read from it.
    ///
    /// # Errors
    /// When it cannot be opened or read.
    #[expect(clippy::disallowed_methods, reason = "a file of the user, not of a store")]
    pub(super) fn open(path: &str, records_max: usize, consumed: Arc<AtomicU64>) -> anyhow::Result<(Self, u64)> {
        let (raw, total): (Box<dyn Read + Send>, u64) = if path == "-" {
            (Box::new(std::io::stdin()), 0)
        } else {
            let file = std::fs::File::open(path).with_context(|| format!("cannot open {path}"))?;
            let total = file.metadata().map_or(0, |m| if m.is_file() { m.len() } else { 0 });
            (Box::new(file), total)
        };
        let reader = Self::new(Counted { inner: raw, count: consumed }, path.ends_with(".zst"), records_max);
        Ok((reader.with_context(|| format!("cannot read {path}"))?, total))
    }

    fn new(raw: impl Read + Send + 'static, is_zstd: bool, records_max: usize) -> std::io::Result<Self> {
        let mut raw = raw;
        let mut head = Vec::with_capacity(ZSTD_MAGIC.len());
        raw.by_ref().take(ZSTD_MAGIC.len() as u64).read_to_end(&mut head)?;
        let is_zstd = is_zstd || head == ZSTD_MAGIC;
        let raw = std::io::Cursor::new(head).chain(raw);
        let input: Box<dyn BufRead + Send> = if is_zstd {
            Box::new(BufReader::with_capacity(128 << 10, zstd::Decoder::new(raw)?))
        } else {
            Box::new(BufReader::with_capacity(128 << 10, raw))
        };
        Ok(Self { input, records_max })
    }

    /// Sends batches until the input ends, a line is bad, or nobody listens. Blocks.
    pub(super) fn run(mut self, out: &mpsc::Sender<Result<Batch, Stopped>>) {
        let mut batch = Batch::default();
        let mut line = Vec::new();
        let mut number = 0;
        loop {
            number += 1;
            let put = match self.next(&mut line) {
                Ok(false) => break,
                Ok(true) if line.iter().all(u8::is_ascii_whitespace) => continue,
                Ok(true) => parse(&line, time::now_us()),
                Err(what) => Err(what),
            };
            match put {
                Ok(Some(put)) => {
                    if batch.is_full(&put, self.records_max)
                        && out.blocking_send(Ok(std::mem::take(&mut batch))).is_err()
                    {
                        return;
                    }
                    batch.add(number, put);
                }
                Ok(None) => batch.expired += 1,
                Err(what) => {
                    let _ = out.blocking_send(Err(Stopped { line: number, what }));
                    return;
                }
            }
        }
        if batch.records > 0 || batch.expired > 0 {
            let _ = out.blocking_send(Ok(batch));
        }
    }

    /// Reads the next line without its end; false at the end of the input.
    fn next(&mut self, line: &mut Vec<u8>) -> Result<bool, String> {
        line.clear();
        let bound = LINE_BYTES_MAX as u64 + 1;
        let n = self.input.by_ref().take(bound).read_until(b'\n', line).map_err(|e| format!("cannot read: {e}"))?;
        if line.last() == Some(&b'\n') {
            line.pop();
        }
        if line.len() > LINE_BYTES_MAX {
            return Err(format!("the line is longer than {LINE_BYTES_MAX} bytes; is this a JSON Lines file?"));
        }
        Ok(n > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batches(input: Vec<u8>, is_zstd: bool, records_max: usize) -> Vec<Result<Batch, Stopped>> {
        let reader = Reader::new(std::io::Cursor::new(input), is_zstd, records_max).unwrap();
        let (tx, mut rx) = mpsc::channel(1);
        std::thread::scope(|s| {
            s.spawn(move || reader.run(&tx));
            let mut all = Vec::new();
            while let Some(b) = rx.blocking_recv() {
                all.push(b);
            }
            all
        })
    }

    fn put(key: &str, value: &str) -> Put {
        Put { key: key.into(), value: value.into(), ttl: None }
    }

    #[test]
    fn lines_become_batches_with_their_numbers() {
        let text = "{\"key\":\"a\",\"value\":\"1\"}\n\n{\"key\":\"b\",\"value_base64\":\"Mg==\"}\r\n{\"key\":\"c\",\"value\":\"3\"}";
        let all: Vec<_> = batches(text.into(), false, 2).into_iter().map(Result::unwrap).collect();
        assert_eq!(all.len(), 2);
        assert_eq!(all[0].puts, [put("a", "1"), put("b", "2")]);
        assert_eq!((all[0].first_line, all[0].last_line, all[0].records, all[0].bytes), (1, 3, 2, 4));
        assert_eq!((all[1].first_line, all[1].last_line, &all[1].puts[..]), (4, 4, &[put("c", "3")][..]));
    }

    #[test]
    fn the_last_line_of_a_key_wins_within_a_batch() {
        let text =
            "{\"key\":\"a\",\"value\":\"1\"}\n{\"key\":\"b\",\"value\":\"2\"}\n{\"key\":\"a\",\"value\":\"3\"}\n";
        let all = batches(text.into(), false, 500);
        let batch = all.into_iter().next().unwrap().unwrap();
        assert_eq!((batch.puts.clone(), batch.records), (vec![put("a", "3"), put("b", "2")], 3));
    }

    #[test]
    fn a_bad_line_is_named_and_nothing_of_its_batch_comes_out() {
        let good = "{\"key\":\"a\",\"value\":\"1\"}\n";
        for (bad, says) in [
            ("{\"key\":\"a\"}", "no \"value\""),
            ("{\"value\":\"a\"}", "no \"key\""),
            ("{\"key\":\"\",\"value\":\"a\"}", "empty"),
            ("{\"key\":\"a\",\"value\":1}", "string"),
            ("{\"key\":\"a\",\"vlaue\":\"1\"}", "unknown field `vlaue`"),
            ("{\"key\":\"a\",\"value\":\"1\"", "EOF"),
            ("nonsense", "column"),
            ("{\"key\":\"a\",\"value_base64\":\"!\"}", "not base64"),
            ("{\"key\":\"a\",\"value\":\"1\",\"ttl_ms\":0}", "above 0"),
            ("[1]", "column"),
        ] {
            let text = format!("{good}{good}{good}{bad}\n{good}");
            let mut all = batches(text.into(), false, 2);
            let stopped = all.pop().unwrap().unwrap_err();
            assert_eq!(stopped.line, 4, "{bad}");
            assert!(stopped.what.contains(says), "{bad}: {}", stopped.what);
            assert!(all.len() <= 1 && all.iter().all(|b| b.as_ref().unwrap().last_line < 3), "{bad}");
        }
        let key = format!("{{\"key\":\"{}\",\"value\":\"\"}}", "k".repeat(65_536));
        assert!(batches(key.into(), false, 2).pop().unwrap().unwrap_err().what.contains("the limit is 65535"));
    }

    #[test]
    fn a_line_without_end_is_refused_before_it_fills_the_memory() {
        let all = batches(vec![b' '; LINE_BYTES_MAX + 2], false, 2);
        assert!(all[0].as_ref().unwrap_err().what.contains("longer than"));
    }

    #[test]
    fn zstd_is_known_by_its_first_bytes() {
        let text = "{\"key\":\"a\",\"value\":\"1\"}\n";
        let packed = zstd::encode_all(text.as_bytes(), 0).unwrap();
        assert_eq!(batches(packed.clone(), false, 2)[0].as_ref().unwrap().puts, [put("a", "1")]);
        let mut cut = packed;
        cut.truncate(cut.len() - 3);
        assert!(batches(cut, true, 2)[0].as_ref().unwrap_err().what.contains("cannot read"));
        assert!(batches(Vec::new(), false, 2).is_empty());
    }

    #[test]
    fn a_batch_is_cut_at_its_bytes_and_a_large_record_travels_alone() {
        let big = "x".repeat(900 << 10);
        let line = |k: &str| format!("{{\"key\":\"{k}\",\"value\":\"{big}\"}}\n");
        let all = batches([line("a"), line("b")].concat().into(), false, 500);
        assert_eq!(all.iter().map(|b| b.as_ref().unwrap().records).collect::<Vec<_>>(), [1, 1]);
    }

    #[test]
    fn expiry_is_absolute_and_ttl_is_not() {
        let line = |rest: &str| format!("{{\"key\":\"a\",\"value\":\"1\",{rest}}}").into_bytes();
        let ttl = |rest: &str| parse(&line(rest), 1_000_000).map(|p| p.map(|p| p.ttl.map(|t| t.as_millis())));
        assert_eq!(ttl("\"ttl_ms\":5"), Ok(Some(Some(5))));
        assert_eq!(ttl("\"expiry_us\":1005000"), Ok(Some(Some(5))));
        assert_eq!(ttl("\"expiry_us\":999"), Ok(None));
        assert_eq!(ttl("\"expiry_us\":0"), Ok(Some(None)));
        assert!(ttl("\"expiry_us\":1,\"ttl_ms\":1").is_err());
    }
}
