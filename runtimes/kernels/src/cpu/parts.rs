//! One buffer written by many tasks, each its own part, and scratch memory that stays.

use std::{cell::RefCell, marker::PhantomData};

/// A mutable slice from which tasks take disjoint parts.
#[derive(Clone, Copy)]
pub(crate) struct Parts<'a> {
    start: *mut f32,
    length: usize,
    of: PhantomData<&'a mut [f32]>,
}

// SAFETY: it is a mutable slice of plain numbers; who takes parts of it vouches that they do not overlap.
unsafe impl Send for Parts<'_> {}
// SAFETY: as above.
unsafe impl Sync for Parts<'_> {}

impl<'a> Parts<'a> {
    pub(crate) fn new(slice: &'a mut [f32]) -> Self {
        Self { start: slice.as_mut_ptr(), length: slice.len(), of: PhantomData }
    }

    /// `length` numbers from `first` on; none if they are not all there.
    ///
    /// # Safety
    /// While the part lives, no other part of these numbers may.
    #[inline(always)]
    pub(crate) unsafe fn part(&self, first: usize, length: usize) -> &'a mut [f32] {
        if first.checked_add(length).is_none_or(|end| end > self.length) {
            return &mut [];
        }
        // SAFETY: the range lies in the slice this was made of, whose lifetime the part has; the caller vouches that
        // nothing else refers to it.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(first), length) }
    }
}

thread_local! {
    static SCRATCH: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// Lends scratch memory that the calling thread keeps, of undefined content: after the first call of a size, steps
/// allocate nothing.
pub(crate) fn scratch<R>(length: usize, use_it: impl FnOnce(&mut [f32]) -> R) -> R {
    let mut memory = SCRATCH.with(RefCell::take);
    if memory.len() < length {
        memory.resize(length, 0.0);
    }
    let result = use_it(&mut memory[..length]);
    SCRATCH.with(|kept| kept.replace(memory));
    result
}
