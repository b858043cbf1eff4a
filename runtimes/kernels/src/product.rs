//! Matrix products on the calling thread: `C ← β C + A B`.
//!
//! B is packed into panels as wide as the tile that is held in registers; A is read where it lies, row- or
//! column-wise, a number at a time.

use crate::{
    parts::Parts,
    simd::{Functions, Simd},
};

/// A matrix of which any element is read: `values[i · row + j · column]`.
#[derive(Clone, Copy)]
pub(crate) struct Strided<'a> {
    pub(crate) values: &'a [f32],
    pub(crate) row: usize,
    pub(crate) column: usize,
}

impl<'a> Strided<'a> {
    /// A matrix whose rows are contiguous and `row` apart.
    pub(crate) fn rows(values: &'a [f32], row: usize) -> Self {
        Self { values, row, column: 1 }
    }

    /// The transpose of a matrix whose rows are contiguous and `row` apart.
    pub(crate) fn columns(values: &'a [f32], row: usize) -> Self {
        Self { values, row: 1, column: row }
    }
}

/// A matrix that is written: rows of `columns` numbers, `row` apart, the first at `start`.
#[derive(Clone, Copy)]
pub(crate) struct Target<'a> {
    pub(crate) parts: Parts<'a>,
    pub(crate) start: usize,
    pub(crate) row: usize,
}

/// `[k, columns]` in panels of a tile's width, each `[k, width]`, padded with zeros.
#[derive(Debug, Default)]
pub(crate) struct Packed {
    values: Vec<f32>,
    depth: usize,
    columns: usize,
}

/// Columns of a panel.
const fn width<S: Simd>() -> usize {
    S::TILE.1 * S::LANES
}

impl Packed {
    /// Packs a matrix of `depth` rows, `fill` giving the numbers of a row from a column on.
    #[inline(always)]
    pub(crate) fn pack<S: Simd>(
        &mut self,
        _: S,
        depth: usize,
        columns: usize,
        mut fill: impl FnMut(usize, usize, &mut [f32]),
    ) {
        let width = width::<S>();
        self.values.clear();
        self.values.resize(columns.div_ceil(width) * width * depth, 0.0);
        (self.depth, self.columns) = (depth, columns);
        for (panel, packed) in self.values.chunks_exact_mut((width * depth).max(1)).enumerate() {
            let first = panel * width;
            for (i, row) in packed.chunks_exact_mut(width).enumerate() {
                fill(i, first, &mut row[..width.min(columns - first)]);
            }
        }
    }

    /// `C ← β C + A B`, A of `rows` rows.
    ///
    /// # Safety
    /// Nothing else refers to the target's elements meanwhile.
    #[inline(always)]
    pub(crate) unsafe fn multiply<S: Simd>(&self, simd: S, rows: usize, a: Strided<'_>, beta: f32, c: Target<'_>) {
        let width = width::<S>();
        for (panel, b) in self.values.chunks_exact((width * self.depth).max(1)).enumerate() {
            let first = panel * width;
            let count = width.min(self.columns - first);
            let c = Target { start: c.start + first, ..c };
            // SAFETY: as the caller vouches.
            unsafe {
                match S::TILE {
                    (8, 3) => panel_product::<S, 8, 3>(simd, rows, a, b, beta, c, count),
                    (4, 3) => panel_product::<S, 4, 3>(simd, rows, a, b, beta, c, count),
                    (6, 4) => panel_product::<S, 6, 4>(simd, rows, a, b, beta, c, count),
                    _ => panel_product::<S, 4, 2>(simd, rows, a, b, beta, c, count),
                }
            }
        }
    }
}

/// All rows of A with one panel.
#[inline(always)]
unsafe fn panel_product<S: Simd, const R: usize, const V: usize>(
    simd: S,
    rows: usize,
    a: Strided<'_>,
    b: &[f32],
    beta: f32,
    c: Target<'_>,
    count: usize,
) {
    let mut i = 0;
    while i < rows {
        let left = rows - i;
        let step = left.min(R);
        let a = Strided { values: &a.values[i * a.row..], ..a };
        let c = Target { start: c.start + i * c.row, ..c };
        // SAFETY: as the caller vouches.
        unsafe {
            match step {
                _ if step == R => tile::<S, R, V>(simd, a, b, beta, c, count),
                2.. => {
                    tile::<S, 2, V>(simd, a, b, beta, c, count);
                    i += 2;
                    continue;
                }
                _ => tile::<S, 1, V>(simd, a, b, beta, c, count),
            }
        }
        i += step;
    }
}

/// R rows of A with one panel: the sums stay in registers.
#[inline(always)]
unsafe fn tile<S: Simd, const R: usize, const V: usize>(
    simd: S,
    a: Strided<'_>,
    b: &[f32],
    beta: f32,
    c: Target<'_>,
    count: usize,
) {
    let mut sums = [[simd.splat(0.0); V]; R];
    let depth = b.len() / (V * S::LANES);
    // The last element that is read: one check for all.
    let reach = (R - 1) * a.row + depth.saturating_sub(1) * a.column;
    let values = &a.values[..(reach + 1).min(a.values.len())];
    for (j, row) in b.chunks_exact(V * S::LANES).enumerate() {
        let b: [S::F; V] = std::array::from_fn(|v| simd.load(&row[v * S::LANES..]));
        for (r, sums) in sums.iter_mut().enumerate() {
            let a = simd.splat(values[r * a.row + j * a.column]);
            for (sum, b) in sums.iter_mut().zip(b) {
                *sum = simd.mul_add(a, b, *sum);
            }
        }
    }
    for (r, sums) in sums.iter().enumerate() {
        // SAFETY: as the caller vouches; one row at a time.
        let row = unsafe { c.parts.part(c.start + r * c.row, count) };
        for (sum, to) in sums.iter().zip(row.chunks_mut(S::LANES)) {
            let value = if beta == 0.0 { *sum } else { simd.mul_add(simd.splat(beta), simd.load_some(to), *sum) };
            simd.store_some(to, value);
        }
    }
}
