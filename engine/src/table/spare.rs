//! The memory of the block that a thread dropped last, for the next one that it decodes.
//!
//! Who misses the cache brings a block and pushes out another, or drops the one that it read before: each time the
//! allocator would be asked twice, and the memory cleared. Owns: that one piece of memory. Never: more than one, or a large one.

use std::cell::Cell;

/// Larger memory goes back to the allocator, in bytes.
const MOST: usize = 16 << 10;

thread_local! {
    static SPARE: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// `len` bytes, whatever is in them. Of memory that was used before no more than an eighth is left over.
pub(super) fn take(len: usize) -> Vec<u8> {
    // A thread that ends has none any more.
    let spare = SPARE.try_with(Cell::take).unwrap_or_default();
    if spare.capacity() < len || spare.capacity() > len + len / 8 {
        return vec![0; len];
    }
    let mut memory = spare;
    memory.resize(len, 0);
    memory
}

/// Takes over memory that is needed no longer.
pub(super) fn give(memory: Vec<u8>) {
    if memory.capacity() <= MOST {
        let _ = SPARE.try_with(|spare| spare.set(memory));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_of_about_the_right_size_is_used_again_and_other_memory_is_not() {
        let mut memory = take(4000);
        assert_eq!(memory.len(), 4000);
        memory.fill(7);
        let at = memory.as_ptr();
        give(memory);
        let again = take(3900);
        assert!(again.len() == 3900 && again.as_ptr() == at && again.iter().all(|b| *b == 7));
        give(again);
        assert!(take(1000).capacity() < 2000, "a small block would keep a large one's memory");
        give(vec![0; MOST + 1]);
        assert!(take(MOST + 1).iter().all(|b| *b == 0));
    }
}
