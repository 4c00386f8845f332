//! The log's decoders for fuzzing, see [`crate::decoders`].
//!
//! Owns: the list, the mending of checksums. Never: part of a build without feature `sim`.

use std::path::Path;
use std::sync::Arc;

use xxhash_rust::xxh3::xxh3_64;

use super::inspect::parse_cut_tail_name;
use super::segment::{self, FRAMES_AT, Found, Header};
use super::truncate::{Intent, cut_tail_name};
use super::{Log, frame};
use crate::clock::SimClock;
use crate::decoders::{Decoder, mend, some_records, twice};
use crate::env::Env;
use crate::fs::sim::SimFs;
use crate::fs::{Fs, OpenMode};
use crate::limits::Options;
use crate::lsn::{Chain, CommitTs, Epoch, Lsn, Position};

/// Bytes of a segment's header that say something, its checksum included.
const HEADER: usize = 88;
const SALT: u32 = 7;

/// Of this module.
pub(crate) fn decoders() -> Vec<Decoder> {
    vec![
        Decoder::new("log_frame", one_frame, frame_seeds),
        Decoder::new("log_segment_header", segment_header, segment_header_seeds),
        Decoder::new("log_segment", whole_segment, segment_seeds),
        Decoder::new("log_cut_intent", cut_intent, cut_intent_seeds),
        Decoder::new("log_cut_tail_name", cut_tail, || vec![cut_tail_name(2, 7, 0x1b).into_bytes()]),
        Decoder::new("log_file_name", file_name, || vec![b"0000000000000001.log".to_vec()]),
    ]
}

fn one_frame(bytes: &[u8]) -> bool {
    let decode = |bytes: &[u8]| {
        let _ = frame::evidence(bytes, SALT);
        let _ = frame::decode(bytes, None);
        let Ok(found) = frame::decode(bytes, Some(SALT)) else { return false };
        let mut again = vec![0; frame::HEADER_BYTES];
        again.extend_from_slice(found.record);
        frame::seal(&mut again, 0, SALT, found.durable);
        assert!(again.len() == found.len && bytes.starts_with(&again[..frame::HEADER_BYTES + found.record.len()]));
        true
    };
    let mut mended = bytes.to_vec();
    mend_frame(&mut mended);
    decode(&mended);
    decode(bytes)
}

/// Gives the frame in front its salt and checksum; returns its length.
fn mend_frame(bytes: &mut [u8]) -> Option<usize> {
    let record_len = u32::from_le_bytes(*bytes.first_chunk()?) as usize;
    bytes.get_mut(4..8)?.copy_from_slice(&SALT.to_le_bytes());
    let mut input = [0; 24];
    input[..16].copy_from_slice(bytes.get(..16)?);
    if record_len > 0 {
        input[16..].copy_from_slice(bytes.get(frame::HEADER_BYTES..frame::HEADER_BYTES + 8)?);
    }
    bytes.get_mut(16..24)?.copy_from_slice(&xxh3_64(&input).to_le_bytes());
    Some(frame::frame_len(record_len))
}

/// Four records, the last with a mark behind it.
fn frames() -> Vec<Vec<u8>> {
    let mut out: Vec<Vec<u8>> = some_records()
        .iter()
        .enumerate()
        .map(|(n, record)| {
            let mut one = [&[0; frame::HEADER_BYTES], record.as_slice()].concat();
            frame::seal(&mut one, 0, SALT, Lsn(n as u64));
            one
        })
        .collect();
    let mut mark = vec![0; frame::HEADER_BYTES];
    frame::seal(&mut mark, 0, SALT, Lsn(4));
    out.push(mark);
    out
}

fn frame_seeds() -> Vec<Vec<u8>> {
    frames()
}

fn segment_header(bytes: &[u8]) -> bool {
    let decode = |bytes: &[u8]| match Header::decode(bytes) {
        Found::Header(header) => {
            assert!(bytes.starts_with(&header.encode()));
            true
        }
        Found::Nothing | Found::Newer(_) => false,
    };
    decode(&mend(bytes, HEADER - 8, xxh3_64));
    decode(bytes)
}

fn header(base: Position, bytes: u64) -> Header {
    Header { seq: 1, bytes, salt: SALT, base }
}

fn segment_header_seeds() -> Vec<Vec<u8>> {
    let base = Position { epoch: Epoch(2), lsn: Lsn(7), chain: Chain([3; 16]), ts: CommitTs(9) };
    vec![header(Position::default(), 16 << 10).encode(), header(base, 24 << 20).encode()]
}

/// The bytes are a header and the frames behind it, without the room between; the file is made from them.
fn whole_segment(bytes: &[u8]) -> bool {
    let Some((head, frames)) = bytes.split_at_checked(HEADER) else { return false };
    let whole = frames.len().next_multiple_of(8) + 64;
    let mut head = head.to_vec();
    head[24..32].copy_from_slice(&(FRAMES_AT + whole as u64).to_le_bytes());
    let mut mended = frames.to_vec();
    let mut rest = mended.as_mut_slice();
    while let Some(len) = mend_frame(rest) {
        rest = std::mem::take(&mut rest).get_mut(len..).unwrap_or_default();
    }
    let head = mend(&head, HEADER - 8, xxh3_64);
    recover(&head, &mended, whole);
    recover(&head, frames, whole)
}

fn recover(head: &[u8], frames: &[u8], whole: usize) -> bool {
    twice(|| {
        let mut file = head.to_vec();
        file.resize(FRAMES_AT as usize, 0);
        file.extend_from_slice(frames);
        file.resize(FRAMES_AT as usize + whole, 0);
        let (fs, dir) = (SimFs::new(1), Path::new("/data"));
        let path = segment::path(&dir.join("log"), 1);
        let written = fs.prepare_dir(&dir.join("log")).and_then(|()| fs.open(&path, OpenMode::CreateNew));
        assert!(written.is_ok_and(|f| f.write_all_at(&file, 0).is_ok()), "the simulated disk takes it");
        let (env, _) = Env::sim(Arc::clone(&fs), SimClock::new(CommitTs(1)), 1);
        let Ok((log, found)) = Log::open(&env, dir, &Options::tiny(), Lsn::ZERO, Position::default()) else {
            return false;
        };
        let Ok(mut reader) = log.reader(found.oldest) else { return true };
        while let Ok(Some(chunk)) = reader.next(found.end.lsn, 1 << 20) {
            let _ = chunk.records().filter(|r| r.is_ok()).count();
        }
        true
    })
}

fn segment_seeds() -> Vec<Vec<u8>> {
    let head = header(Position::default(), 0).encode();
    let frames = frames();
    vec![[head.clone(), frames.concat()].concat(), [head, frames[..2].concat(), vec![1; 40]].concat()]
}

fn cut_intent(bytes: &[u8]) -> bool {
    let decode = |bytes: &[u8]| {
        let Ok(intent) = Intent::decode(bytes) else { return false };
        assert_eq!(intent.encode(), bytes);
        true
    };
    decode(&mend(bytes, bytes.len().saturating_sub(8), xxh3_64));
    decode(bytes)
}

fn cut_intent_seeds() -> Vec<Vec<u8>> {
    let end = Position { epoch: Epoch(2), lsn: Lsn(7), chain: Chain([3; 16]), ts: CommitTs(9) };
    vec![Intent { end, first_cut: Chain([4; 16]) }.encode()]
}

fn cut_tail(bytes: &[u8]) -> bool {
    let Some(name) = std::str::from_utf8(bytes).ok() else { return false };
    let Some((epoch, from, to)) = parse_cut_tail_name(name) else { return false };
    assert_eq!(cut_tail_name(epoch, from, to), name);
    true
}

fn file_name(bytes: &[u8]) -> bool {
    let Some(name) = std::str::from_utf8(bytes).ok() else { return false };
    let _ = segment::is_spare_name(name);
    let Some(seq) = segment::parse_name(name) else { return false };
    assert_eq!(segment::path(Path::new(""), seq), Path::new(name));
    true
}
