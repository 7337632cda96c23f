//! A slice that lies on large pages where the system gives them: tables that are read all over cost a walk through the page
//! tables for most reads otherwise, and in a virtual machine that walk is twice as long.

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

/// A large page.
const LARGE: usize = 2 << 20;

/// A boxed slice of plain values.
pub(crate) struct Pages<T: Copy> {
    first: NonNull<T>,
    len: usize,
}

// SAFETY: it owns its values, as a box does.
unsafe impl<T: Copy + Send> Send for Pages<T> {}
// SAFETY: as above; shared references give shared references only.
unsafe impl<T: Copy + Sync> Sync for Pages<T> {}

impl<T: Copy> Pages<T> {
    /// `len` values; `len` may not be 0. Less than half a large page comes from the ordinary heap.
    #[must_use]
    pub(crate) fn filled(value: T, len: usize) -> Self {
        let layout = Self::layout(len);
        assert!(layout.size() > 0, "an empty table");
        // SAFETY: the size is not zero.
        let Some(first) = NonNull::new(unsafe { alloc(layout) }.cast::<T>()) else { handle_alloc_error(layout) };
        #[cfg(target_os = "linux")]
        if layout.align() == LARGE {
            // Before the first touch: a page that is there stays small. What it answers does not matter.
            // SAFETY: advice about memory that is ours, from its first byte to its last.
            unsafe { libc::madvise(first.as_ptr().cast(), layout.size(), libc::MADV_HUGEPAGE) };
        }
        for i in 0..len {
            // SAFETY: `i < len`, and there is room for `len` values.
            unsafe { first.add(i).write(value) };
        }
        Self { first, len }
    }

    fn layout(len: usize) -> Layout {
        let Ok(layout) = Layout::array::<T>(len) else { handle_alloc_error(Layout::new::<T>()) };
        // Whole pages, so that no other value shares the last.
        let large = layout.align_to(LARGE).map(|layout| layout.pad_to_align());
        if layout.size() < LARGE / 2 { layout } else { large.unwrap_or(layout) }
    }
}

impl<T: Copy> Drop for Pages<T> {
    fn drop(&mut self) {
        // SAFETY: allocated with the same layout; plain values need no drop.
        unsafe { dealloc(self.first.as_ptr().cast(), Self::layout(self.len)) };
    }
}

impl<T: Copy> Deref for Pages<T> {
    type Target = [T];

    #[inline]
    fn deref(&self) -> &[T] {
        // SAFETY: `len` values were written.
        unsafe { std::slice::from_raw_parts(self.first.as_ptr(), self.len) }
    }
}

impl<T: Copy> DerefMut for Pages<T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: `len` values were written, and this is the only reference.
        unsafe { std::slice::from_raw_parts_mut(self.first.as_ptr(), self.len) }
    }
}

impl<T: Copy> fmt::Debug for Pages<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} values", self.len)
    }
}
