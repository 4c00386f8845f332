//! The bytes of a memtable's entries, each copied once, in chunks that never move or shrink.
//!
//! Owns: the layout of an entry and its address. Never: order, and never a change to an entry that
//! was written.
//!
//! ```text
//!  0  lsn        u64
//!  8  key_len    u32
//! 12  value_len  u32   top bit: a put; else a delete, without a value
//! 16  key, value, padding to a multiple of 8
//! ```

use crate::lsn::Lsn;

use super::spare::Spare;

/// Bytes of a chunk that holds many entries. A chunk's place fits 16 bits of [`UNIT`]s.
const CHUNK: usize = UNIT << 16;
/// First size of the first chunk: a tiny memtable shall not cost a whole one.
const FIRST: usize = 256;
/// Entries above get a chunk of their own, so that at most this much of a chunk's end stays empty.
const LARGE: usize = CHUNK / 4;
/// Entries start at multiples of this.
const UNIT: usize = 8;
/// Most chunks: an address has 16 bits for the chunk. At the least 8 GiB of entries.
const CHUNKS_MAX: usize = 1 << 16;
/// Bytes in front of an entry's key.
pub(super) const HEADER: usize = 16;
/// Most bytes of an entry beside key and value.
pub(super) const OVERHEAD: usize = HEADER + UNIT;
const PUT: u32 = 1 << 31;

/// Where an entry lies: chunk in the upper half, place in units of 8 bytes in the lower.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Addr(u32);

impl Addr {
    /// Fills slots that are not in use.
    pub(super) const NONE: Self = Self(u32::MAX);
}

/// An entry, borrowed from its arena.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry<'a> {
    pub(super) lsn: Lsn,
    pub(super) key: &'a [u8],
    /// The envelope of a put; `None` for a delete.
    pub(super) value: Option<&'a [u8]>,
}

#[derive(Debug, Default)]
pub(super) struct Arena {
    chunks: Vec<Vec<u8>>,
    /// The chunk that the next entry of usual size goes to.
    open: Option<usize>,
    /// Capacity of all chunks.
    bytes: usize,
    spare: Spare,
}

impl Arena {
    /// An empty one, that takes chunks from `spare` and leaves them there.
    pub(super) fn new(spare: Spare) -> Self {
        Self { chunks: Vec::new(), open: None, bytes: 0, spare }
    }

    /// For arenas of `bytes` at a time.
    pub(super) fn spare(bytes: usize) -> Spare {
        Spare::of(bytes, CHUNK)
    }

    /// Whether entries of `bytes` in all, [`OVERHEAD`] included, surely find addresses.
    pub(super) const fn has_room(&self, bytes: usize) -> bool {
        // A chunk is added for a large entry, or after at least three quarters of one were filled.
        self.chunks.len() + bytes / LARGE + 2 < CHUNKS_MAX
    }

    /// Memory in bytes: what was allocated, not only what is in use.
    pub(super) const fn bytes(&self) -> usize {
        self.bytes + self.chunks.capacity() * size_of::<Vec<u8>>()
    }

    /// Copies an entry in; the key may come with its first byte apart. The caller asked [`Arena::has_room`].
    pub(super) fn push(&mut self, lsn: Lsn, key: (Option<u8>, &[u8]), value: Option<&[u8]>) -> Addr {
        let key_len = usize::from(key.0.is_some()) + key.1.len();
        let bytes = value.unwrap_or_default();
        let put = if value.is_some() { PUT } else { 0 };
        let at = self.place((HEADER + key_len + bytes.len()).next_multiple_of(UNIT));
        let chunk = &mut self.chunks[at];
        let addr = Addr((at as u32) << 16 | (chunk.len() / UNIT) as u32);
        chunk.extend_from_slice(&lsn.0.to_le_bytes());
        chunk.extend_from_slice(&(key_len as u32).to_le_bytes());
        chunk.extend_from_slice(&(bytes.len() as u32 | put).to_le_bytes());
        chunk.extend(key.0);
        chunk.extend_from_slice(key.1);
        chunk.extend_from_slice(bytes);
        chunk.resize(chunk.len().next_multiple_of(UNIT), 0);
        addr
    }

    /// A chunk with room for `bytes`.
    fn place(&mut self, bytes: usize) -> usize {
        if bytes > LARGE {
            return self.add_chunk(bytes);
        }
        if let Some(open) = self.open
            && let Some(chunk) = self.chunks.get_mut(open)
            && chunk.len() + bytes <= CHUNK
        {
            let had = chunk.capacity();
            if chunk.len() + bytes > had {
                // Only the first chunk grows: all others have their full size from the start.
                let size = (had * 2).max(chunk.len() + bytes).min(CHUNK);
                chunk.reserve_exact(size - chunk.len());
                self.bytes += chunk.capacity() - had;
            }
            return open;
        }
        let first = self.open.is_none();
        let added = self.add_chunk(if first { FIRST.max(bytes) } else { CHUNK });
        self.open = Some(added);
        added
    }

    fn add_chunk(&mut self, size: usize) -> usize {
        let spare = if size == CHUNK { self.spare.take() } else { None };
        let chunk = spare.unwrap_or_else(|| Vec::with_capacity(size));
        self.bytes += chunk.capacity();
        self.chunks.push(chunk);
        self.chunks.len() - 1
    }

    /// The entry at an address that `push` returned.
    pub(super) fn entry(&self, addr: Addr) -> Entry<'_> {
        let chunk = &self.chunks[(addr.0 >> 16) as usize];
        let bytes = &chunk[(addr.0 & 0xffff) as usize * UNIT..];
        let (lsn, rest) = word(bytes);
        let (lens, rest) = word(rest);
        let value_len = (lens >> 32) as u32;
        let (key, rest) = rest.split_at(lens as u32 as usize);
        let value = (value_len & PUT != 0).then(|| &rest[..(value_len & !PUT) as usize]);
        Entry { lsn: Lsn(lsn), key, value }
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        self.spare.keep(std::mem::take(&mut self.chunks), |c| c.capacity() == CHUNK);
    }
}

/// The next eight bytes; an entry's header is always whole.
fn word(bytes: &[u8]) -> (u64, &[u8]) {
    bytes.split_first_chunk::<8>().map_or((0, &[]), |(word, rest)| (u64::from_le_bytes(*word), rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(arena: &Arena, addr: Addr, lsn: u64, key: &[u8], value: Option<&[u8]>) {
        let e = arena.entry(addr);
        assert_eq!((e.lsn, e.key.len(), e.value.map(<[u8]>::len)), (Lsn(lsn), key.len(), value.map(<[u8]>::len)));
        assert!(e.key == key && e.value == value);
    }

    #[test]
    fn entries_of_all_sizes_come_back() {
        let mut arena = Arena::default();
        let sizes = [0, 1, 7, 8, 9, 300, 5_000, 65_536, LARGE - HEADER - 1, LARGE, CHUNK, 3 * CHUNK + 5];
        let mut made = Vec::new();
        for n in 0..200_u64 {
            let key = vec![n as u8; sizes[n as usize % 8]];
            let value = vec![!n as u8; sizes[n as usize * 5 % 12]];
            let value = (n % 7 != 0).then_some(value);
            let parts = if n % 2 == 0 { (None, &key[..]) } else { (key.first().copied(), key.get(1..).unwrap_or(&[])) };
            let addr = arena.push(Lsn(n << 40 | n), parts, value.as_deref());
            made.push((addr, n << 40 | n, key, value));
        }
        for (addr, lsn, key, value) in &made {
            check(&arena, *addr, *lsn, key, value.as_deref());
        }
    }

    #[test]
    fn memory_is_what_was_allocated() {
        let mut arena = Arena::default();
        assert_eq!(arena.bytes(), 0);
        arena.push(Lsn(1), (None, b"k"), Some(b"v"));
        assert!(arena.bytes() < 512, "{}", arena.bytes());
        for n in 0..100_000_u64 {
            arena.push(Lsn(n), (None, b"some key of 20 bytes"), Some(&[7; 100]));
        }
        let (used, all) = (136 * 100_000, arena.bytes());
        assert!(all >= used && all < used + used / 20 + CHUNK, "{all} bytes for {used}");
        let real: usize = arena.chunks.iter().map(Vec::capacity).sum();
        assert_eq!(arena.bytes, real);
        arena.push(Lsn(9), (None, b"k"), Some(&[0; 2 * CHUNK]));
        assert_eq!(arena.bytes - real, HEADER + 8 + 2 * CHUNK);
    }

    #[test]
    fn chunks_are_used_again_and_their_number_is_bounded() {
        let spare = Arena::spare(2 * CHUNK);
        let fill = || {
            let mut arena = Arena::new(spare.clone());
            (0..40_000).for_each(|n| _ = arena.push(Lsn(n), (None, b"key"), Some(&[7; 100])));
            arena
        };
        let arena = fill();
        assert!(arena.chunks.len() > 5);
        drop(arena);
        let (first, second) = (spare.take().unwrap(), spare.take().unwrap());
        assert!(spare.take().is_none(), "more than the bound");
        let kept = [first.as_ptr(), second.as_ptr()];
        spare.keep(vec![first, second], |_| true);
        let mut arena = fill();
        assert_eq!(arena.chunks.iter().filter(|c| kept.contains(&c.as_ptr())).count(), 2);
        assert!(spare.take().is_none(), "not taken");
        let addr = arena.push(Lsn(9), (None, b"key"), None);
        check(&arena, addr, 9, b"key", None);
    }

    #[test]
    fn addresses_end_before_they_wrap() {
        let arena = Arena::default();
        assert!(arena.has_room(4 << 30));
        assert!(!arena.has_room(CHUNKS_MAX * LARGE));
    }
}
