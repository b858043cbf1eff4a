//! The order in which the elements of a strided view are read.
//!
//! The positions of a view's elements are distinct and nested: an axis steps over everything that the axes of smaller
//! strides span. So visiting the axes by stride, the largest outermost, visits the positions in ascending order.

use std::{cmp::Reverse, ops::Range};

/// A block of a view that has gaps is read whole if more than one in this many of its elements is wanted.
const MAX_GAP_RATIO: usize = 8;

/// The smallest box of a view that holds a range of its elements, in row-major order.
pub(crate) struct Windows {
    /// The axes of the box, by descending stride.
    axes: Vec<Axis>,
    /// The elements that are wanted.
    wanted: Range<usize>,
    /// The first element of the box, and its position.
    first: (usize, usize),
    /// The number of elements in a block that is read whole, and the number of positions from its first to its last.
    block: (usize, usize),
}

struct Axis {
    size: usize,
    /// Positions between neighbours along the axis.
    stride: usize,
    /// Elements between neighbours along the axis.
    step: usize,
}

/// An element that is wanted.
pub(crate) struct Visit {
    /// Its row-major index in the view.
    pub(crate) element: usize,
    /// Its position in the storage, counted from the view's first element.
    pub(crate) position: usize,
    /// The position after the block that it belongs to.
    pub(crate) block_end: usize,
}

impl Windows {
    /// Plans to read `count` elements, which is not 0, from `start` on, of a view of this shape with these strides.
    pub(crate) fn new(shape: &[usize], strides: &[usize], start: usize, count: usize) -> Self {
        let (mut axes, mut element, mut position) = (Vec::new(), 0, 0);
        let (mut first, mut last) = (start, start + count - 1);
        let mut step: usize = shape.iter().product();
        for (&size, &stride) in shape.iter().zip(strides) {
            step /= size;
            if axes.is_empty() {
                let (from, to) = (first / step, last / step);
                element += from * step;
                position += from * stride;
                (first, last) = (first - from * step, last - from * step);
                if from < to {
                    axes.push(Axis { size: to - from + 1, stride, step });
                }
            } else {
                axes.push(Axis { size, stride, step });
            }
        }
        axes.sort_by_key(|axis| Reverse(axis.stride));
        let block = block(&axes);
        Self { axes, wanted: start..start + count, first: (element, position), block }
    }

    /// Returns the number of elements that a buffer for one read needs, at most `most`.
    pub(crate) fn longest(&self, most: usize) -> usize {
        most.min(self.block.1)
    }

    /// Iterates over the wanted elements in the order of their positions.
    pub(crate) fn visits(&self) -> impl Iterator<Item = Visit> {
        let (mut element, mut position) = self.first;
        let (count, span) = self.block;
        let mut block_end = 0;
        let mut index = vec![0; self.axes.len()];
        let total: usize = self.axes.iter().map(|axis| axis.size).product();
        (0..total).filter_map(move |visited| {
            if visited % count == 0 {
                block_end = position + span;
            }
            let visit = self.wanted.contains(&element).then_some(Visit { element, position, block_end });
            for (axis, index) in self.axes.iter().zip(&mut index).rev() {
                if *index + 1 < axis.size {
                    *index += 1;
                    element += axis.step;
                    position += axis.stride;
                    break;
                }
                element -= *index * axis.step;
                position -= *index * axis.stride;
                *index = 0;
            }
            visit
        })
    }
}

/// Returns the number of elements and of positions of the largest blocks without large gaps.
fn block(axes: &[Axis]) -> (usize, usize) {
    let (mut largest, mut count, mut span) = ((1, 1), 1, 1);
    for axis in axes.iter().rev() {
        count *= axis.size;
        span += (axis.size - 1) * axis.stride;
        if span / count < MAX_GAP_RATIO {
            largest = (count, span);
        }
    }
    largest
}
