//! How much memory the decoders ask for, whatever lengths and counts their input claims. Counted by the allocator, so it
//! is alone in its binary.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "a test fails by panicking and reads real files")]
#![allow(unsafe_code, reason = "an allocator that counts has to be one")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::path::Path;

use mainstay_engine::decoders::{Decoder, all};

/// Counts what the thread that asks has, and had at most.
struct Counting;

thread_local! {
    static NOW: Cell<isize> = const { Cell::new(0) };
    static MOST: Cell<isize> = const { Cell::new(0) };
}

fn count(bytes: isize) {
    // A thread that ends frees what it has when its counters are gone.
    let _ = NOW.try_with(|now| {
        now.set(now.get() + bytes);
        let _ = MOST.try_with(|most| most.set(most.get().max(now.get())));
    });
}

// SAFETY: every call is handed on to the system's allocator as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: as the caller says.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: as the caller says.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // While it copies, both are there.
        count(size as isize);
        count(-(layout.size() as isize));
        // SAFETY: as the caller says.
        unsafe { System.realloc(at, layout, size) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: as the caller says.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// The most that `work` had at a time beyond what was there before it, in bytes.
fn most(work: impl FnOnce()) -> u64 {
    let before = NOW.get();
    MOST.set(before);
    work();
    u64::try_from(MOST.get() - before).unwrap()
}

/// What a decoder may have at a time, in bytes: so many for each byte of its input, and so many in any case.
fn bound(name: &str) -> (u64, u64) {
    match name {
        // What is packed with LZ4 may be 255 times as large as it looks.
        "table_frame" => (320, 4 << 10),
        // With a simulated disk, a cache, a log's buffers.
        "table_file" => (320, 128 << 10),
        "log_segment" => (64, 128 << 10),
        _ => (64, 4 << 10),
    }
}

/// The input with lengths and counts in it that are out of all bounds, or just within the larger ones.
fn hostile(bytes: &[u8]) -> Vec<Vec<u8>> {
    let words: [&[u8]; 11] = [
        &[0xff; 8],
        &[0xff; 4],
        &[0xff, 0xff, 0xff, 0x7f],
        &[0, 0, 0, 0x40],
        &[0, 0, 0, 1],
        &[0xff; 2],
        &[0, 0x20],
        // Varints.
        &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1],
        &[0xff, 0xff, 0xff, 0xff, 0x0f],
        &[0xff, 0xff, 0xff, 0x3f],
        &[0xff, 0xff, 0x7f],
    ];
    let mut out = vec![bytes.to_vec()];
    let step = bytes.len().div_ceil(400).max(1);
    for word in words {
        for at in (0..bytes.len()).step_by(step) {
            let mut over = bytes.to_vec();
            over.iter_mut().skip(at).zip(word).for_each(|(to, from)| *to = *from);
            out.push(over);
        }
        // A length of one byte becomes a longer varint.
        for at in (0..bytes.len()).step_by(4 * step) {
            let mut longer = bytes.to_vec();
            longer.splice(at..at + 1, word.iter().copied());
            out.push(longer);
        }
    }
    out
}

/// Inputs out of whose lengths a decoder had more memory than it may, each with what it had.
fn over_bound(decoder: &Decoder, inputs: &[Vec<u8>]) -> (u64, Vec<String>) {
    let (per_byte, any) = bound(decoder.name);
    let (mut worst, mut over) = (0, Vec::new());
    for bytes in inputs.iter().flat_map(|b| hostile(b)) {
        let had = most(|| {
            (decoder.run)(&bytes);
        });
        worst = worst.max(had);
        if had > per_byte * bytes.len() as u64 + any {
            over.push(format!("{}: {had} bytes for an input of {}: {bytes:02x?}", decoder.name, bytes.len()));
        }
    }
    (worst, over)
}

fn inputs(decoder: &Decoder) -> Vec<Vec<u8>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(decoder.name);
    let mut names: Vec<_> = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
    names.sort();
    let files = names.iter().map(|p| std::fs::read(p).unwrap());
    (decoder.seeds)().into_iter().chain(files).filter(|b| b.len() <= 2048).collect()
}

#[test]
fn no_decoder_has_memory_for_a_length_that_its_input_only_claims() {
    let mut over = Vec::new();
    for decoder in all() {
        let (worst, found) = over_bound(&decoder, &inputs(&decoder));
        println!("{}: {worst} bytes at most", decoder.name);
        over.extend(found.into_iter().next());
    }
    assert!(over.is_empty(), "{}", over.join("\n"));
}

/// The rule broken on purpose: decoders that believe a count, and one that keeps what it does not need.
#[test]
fn a_decoder_that_believes_a_length_is_noticed() {
    let believes = |bytes: &[u8]| {
        let n = bytes.first_chunk().map_or(0, |b| u32::from_le_bytes(*b));
        let out: Vec<u8> = Vec::with_capacity((n as usize).min(1 << 28));
        out.capacity() > 0
    };
    let input = [vec![3, 0, 0, 0, 1, 2, 3]];
    assert!(!over_bound(&Decoder::new("believes", believes, Vec::new), &input).1.is_empty());
    let checks = |bytes: &[u8]| {
        let n = bytes.first_chunk().map_or(0, |b| u32::from_le_bytes(*b)) as usize;
        let out: Vec<u8> = Vec::with_capacity(n.min(bytes.len()));
        out.capacity() > 0
    };
    assert!(over_bound(&Decoder::new("checks", checks, Vec::new), &input).1.is_empty());
}
