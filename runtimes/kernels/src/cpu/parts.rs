//! A buffer of which each task writes a part of its own, and scratch memory that is kept between calls.

use std::{cell::RefCell, marker::PhantomData};

/// A mutable slice from which tasks take disjoint parts.
#[derive(Clone, Copy)]
pub(crate) struct Parts<'a> {
    start: *mut f32,
    length: usize,
    of: PhantomData<&'a mut [f32]>,
}

// SAFETY: it is a mutable slice of plain numbers, and callers of `part` guarantee that parts do not overlap.
unsafe impl Send for Parts<'_> {}
// SAFETY: as above.
unsafe impl Sync for Parts<'_> {}

impl<'a> Parts<'a> {
    pub(crate) fn new(slice: &'a mut [f32]) -> Self {
        Self { start: slice.as_mut_ptr(), length: slice.len(), of: PhantomData }
    }

    /// `length` elements from `first` on; an empty slice if they are out of range.
    ///
    /// # Safety
    /// No other part of these elements may exist while this one does.
    #[inline(always)]
    pub(crate) unsafe fn part(&self, first: usize, length: usize) -> &'a mut [f32] {
        if first.checked_add(length).is_none_or(|end| end > self.length) {
            return &mut [];
        }
        // SAFETY: the range lies in the slice this was made of, whose lifetime the part has; the caller guarantees
        // that nothing else refers to it.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(first), length) }
    }
}

thread_local! {
    static SCRATCH: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// Lends scratch memory of unspecified content. The calling thread keeps it, so that only the first call of a size
/// allocates.
pub(crate) fn scratch<R>(length: usize, compute: impl FnOnce(&mut [f32]) -> R) -> R {
    let mut memory = SCRATCH.with(RefCell::take);
    if memory.len() < length {
        memory.resize(length, 0.0);
    }
    let result = compute(&mut memory[..length]);
    SCRATCH.with(|kept| kept.replace(memory));
    result
}
