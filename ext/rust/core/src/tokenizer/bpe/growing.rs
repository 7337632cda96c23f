//! A table of cache lines that starts small and grows: a small job should not pay for a large one.

use super::pages::Pages;

/// What a table is made of: one cache line, all zero while nothing is in it.
pub(crate) trait Line: Copy + Default {
    /// What is put into a line.
    type Entry: Copy;
    /// Lines at first and at most, as powers of two.
    const FIRST_BITS: u32;
    const MOST_BITS: u32;
    /// The table grows after one entry for so many of its lines.
    const FULL: usize;

    /// Takes an entry, for which an older one may have to go.
    fn put(&mut self, entry: Self::Entry);

    /// What is in it, with the hash of each.
    fn entries(&self) -> impl Iterator<Item = (u32, Self::Entry)>;
}

/// The upper bits of a hash say which line an entry belongs to.
#[derive(Debug)]
pub(crate) struct Growing<L: Line> {
    lines: Pages<L>,
    bits: u32,
    /// Entries that may still come before it grows.
    room: usize,
}

impl<L: Line> Default for Growing<L> {
    fn default() -> Self {
        Self::with_bits(L::FIRST_BITS)
    }
}

impl<L: Line> Growing<L> {
    fn with_bits(bits: u32) -> Self {
        let lines = 1 << bits;
        let room = if bits < L::MOST_BITS { lines / L::FULL } else { usize::MAX };
        Self { lines: Pages::filled(L::default(), lines), bits, room }
    }

    #[inline]
    fn index(&self, hash: u32) -> usize {
        (hash >> (32 - self.bits)) as usize
    }

    /// Asks the processor for a line that will be read soon.
    #[inline]
    pub(crate) fn prefetch(&self, hash: u32) {
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            // SAFETY: a prefetch reads nothing that the program sees, and the address is that of a live line.
            unsafe { _mm_prefetch(std::ptr::from_ref(self.line(hash)).cast::<i8>(), _MM_HINT_T0) };
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = hash;
    }

    #[inline]
    pub(crate) fn line(&self, hash: u32) -> &L {
        // SAFETY: `bits` of a hash are below the number of lines.
        unsafe { self.lines.get_unchecked(self.index(hash)) }
    }

    #[inline]
    pub(crate) fn line_mut(&mut self, hash: u32) -> &mut L {
        let index = self.index(hash);
        // SAFETY: as above.
        unsafe { self.lines.get_unchecked_mut(index) }
    }

    pub(crate) fn insert(&mut self, hash: u32, entry: L::Entry) {
        if self.room == 0 {
            self.grow();
        }
        self.room -= 1;
        self.line_mut(hash).put(entry);
    }

    #[cold]
    fn grow(&mut self) {
        let old = std::mem::replace(self, Self::with_bits((self.bits + 2).min(L::MOST_BITS)));
        for (hash, entry) in old.lines.iter().flat_map(Line::entries) {
            self.line_mut(hash).put(entry);
        }
    }

    /// Lines now.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.lines.len()
    }
}
