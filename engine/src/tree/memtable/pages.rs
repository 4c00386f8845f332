//! Nodes by number, in pages that never move once they are full.
//!
//! Owns: numbers and memory of nodes. Never: freeing one before all.

use std::ops::{Index, IndexMut};

/// Nodes of a page.
const PAGE: usize = 64;

#[derive(Debug)]
pub(super) struct Pages<T> {
    pages: Vec<Vec<T>>,
    /// Nodes that there is memory for.
    capacity: usize,
}

impl<T> Default for Pages<T> {
    fn default() -> Self {
        Self { pages: Vec::new(), capacity: 0 }
    }
}

impl<T> Pages<T> {
    /// Adds a node and returns its number.
    pub(super) fn push(&mut self, node: T) -> u32 {
        if self.pages.last().is_none_or(|p| p.len() == PAGE) {
            self.pages.push(Vec::new());
        }
        let before = self.pages.len() - 1;
        // Never empty: a page was pushed if there was none.
        let page = &mut self.pages[before];
        if page.len() == page.capacity() {
            // The first page doubles from one node, so that a tiny memtable stays tiny.
            let had = page.capacity();
            page.reserve_exact(if before > 0 { PAGE } else { had.max(1) });
            self.capacity += page.capacity() - had;
        }
        page.push(node);
        (before * PAGE + page.len() - 1) as u32
    }

    /// Memory in bytes.
    pub(super) const fn bytes(&self) -> usize {
        self.capacity * size_of::<T>() + self.pages.capacity() * size_of::<Vec<T>>()
    }
}

impl<T> Index<u32> for Pages<T> {
    type Output = T;

    fn index(&self, at: u32) -> &T {
        &self.pages[at as usize / PAGE][at as usize % PAGE]
    }
}

impl<T> IndexMut<u32> for Pages<T> {
    fn index_mut(&mut self, at: u32) -> &mut T {
        &mut self.pages[at as usize / PAGE][at as usize % PAGE]
    }
}
