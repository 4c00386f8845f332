//! The manifest's decoders for fuzzing, see [`crate::decoders`].
//!
//! Owns: the list. Never: part of a build without feature `sim`.

use std::path::Path;

use super::manifest::{Edit, EpochStart, Event, Placed, State, VERSION, framed, put_header, replay, whole_state};
use super::manifest_file::{manifest_name, parse_manifest_name, state_bytes};
use super::version::HISTORY;
use crate::codec::Cursor;
use crate::decoders::Decoder;
use crate::lsn::{Chain, ClusterId, CommitTs, Epoch, Lsn, Position, TimelineId};
use crate::record::TimelineStart;
use crate::table::TableFile;

/// Of this module.
pub(crate) fn decoders() -> Vec<Decoder> {
    vec![
        Decoder::new("manifest_edit", edit, edit_seeds),
        Decoder::new("manifest_edits", edits, edits_seeds),
        Decoder::new("manifest_file", file, file_seeds),
        Decoder::new("manifest_file_name", file_name, || vec![manifest_name(12).into_bytes()]),
    ]
}

fn edit(bytes: &[u8]) -> bool {
    let Ok(edit) = Edit::decode(bytes) else { return false };
    assert_eq!(Edit::decode(&edit.encode()).as_ref(), Ok(&edit));
    let mut state = State::default();
    if state.apply(&edit).is_ok() {
        let mut again = State::default();
        assert_eq!(again.apply(&state.whole_edit()), Ok(()));
        assert_eq!(again, state);
    }
    true
}

/// Each of a run of slices is the body of an edit, framed here: what checksums and chain would keep out.
fn edits(bytes: &[u8]) -> bool {
    let (mut c, mut file, mut chain) = (Cursor::new(bytes), Vec::new(), Chain::default());
    put_header(&mut file, VERSION);
    while let Ok(body) = c.slice(bytes.len()) {
        chain = framed(&mut file, chain, body);
    }
    file.extend_from_slice(c.take_rest());
    self::file(&file)
}

fn file(bytes: &[u8]) -> bool {
    let Ok(replayed) = replay(Path::new("m"), bytes) else { return false };
    assert!(replayed.len <= bytes.len() as u64 && replayed.state_bytes <= replayed.len);
    let (again, _) = state_bytes(&replayed.state);
    assert_eq!(whole_state(&again).ok(), Some(replayed.state));
    true
}

fn some_edits() -> Vec<Edit> {
    let table = |id, level| Placed::own(level, TableFile { id, bytes: 4096, blake3: [9; 32], entries: 30 });
    let (epoch, lsn, ts) = (Epoch(3), Lsn(400), CommitTs(1_000_000));
    let timeline = TimelineStart {
        cluster: ClusterId(7),
        timeline: TimelineId(9),
        parent: TimelineId::default(),
        fork: Lsn::default(),
    };
    vec![
        Edit {
            added: vec![table(1, 0), table(2, HISTORY)],
            flushed: Some(Position { epoch, lsn, chain: Chain([5; 16]), ts }),
            events: vec![Event::Epoch(EpochStart { epoch, lsn, ts }), Event::Timeline(timeline)],
            ..Edit::default()
        },
        Edit { removed: vec![1], added: vec![table(3, 6)], floor: Some((lsn, ts)), ..Edit::default() },
        Edit { added: vec![Placed { ingested: Some(Lsn(401)), ..table(4, 5) }], ..Edit::default() },
    ]
}

fn edit_seeds() -> Vec<Vec<u8>> {
    some_edits().iter().map(Edit::encode).collect()
}

fn edits_seeds() -> Vec<Vec<u8>> {
    let mut out = Vec::new();
    edit_seeds().iter().for_each(|body| crate::codec::put_slice(&mut out, body));
    vec![out]
}

fn file_seeds() -> Vec<Vec<u8>> {
    let (mut file, mut chain) = (Vec::new(), Chain::default());
    put_header(&mut file, VERSION);
    edit_seeds().iter().for_each(|body| chain = framed(&mut file, chain, body));
    let torn = [&file[..], b"MSed half of an edit"].concat();
    vec![file, torn, state_bytes(&State::default()).0]
}

fn file_name(bytes: &[u8]) -> bool {
    let Some(name) = std::str::from_utf8(bytes).ok() else { return false };
    parse_manifest_name(name).map(|n| assert_eq!(manifest_name(n), name)).is_some()
}
