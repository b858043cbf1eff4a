//! Matrix products on the calling thread: `C ← β C + A B`.
//!
//! Both factors are packed in the order in which the tile of sums in registers reads them: B in panels of columns, A in
//! blocks of rows, where the elements of one step of the sum are adjacent.

use super::{
    parts::Parts,
    simd::{Functions, Simd},
};

/// A matrix that is written: its first row begins at `start`, and rows are `row` elements apart.
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
    /// Packs a matrix of `depth` rows, where `fill(row, column, to)` writes the elements of a row from a column on.
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

    /// `C ← β C + A B`.
    ///
    /// # Safety
    /// Nothing else may refer to the target's elements during the call.
    #[inline(always)]
    pub(crate) unsafe fn multiply<S: Simd>(&self, simd: S, a: &Left, beta: f32, c: Target<'_>) {
        let width = width::<S>();
        for (panel, b) in self.values.chunks_exact((width * self.depth).max(1)).enumerate() {
            let first = panel * width;
            let c = Target { start: c.start + first, ..c };
            let columns = width.min(self.columns - first);
            // SAFETY: the caller guarantees it.
            unsafe {
                match S::TILE {
                    (8, 3) => panel_product::<S, 8, 3>(simd, a, b, beta, c, columns),
                    (6, 2) => panel_product::<S, 6, 2>(simd, a, b, beta, c, columns),
                    (6, 4) => panel_product::<S, 6, 4>(simd, a, b, beta, c, columns),
                    _ => panel_product::<S, 4, 2>(simd, a, b, beta, c, columns),
                }
            }
        }
    }
}

/// `[rows, k]` in blocks of a tile's rows, each `[k, height]`, padded with zeros.
#[derive(Debug, Default)]
pub(crate) struct Left {
    values: Vec<f32>,
    depth: usize,
    rows: usize,
}

impl Left {
    /// Packs a matrix of `rows` rows, where `fill(row, j, to)` writes the elements of column j from a row on.
    #[inline(always)]
    pub(crate) fn pack<S: Simd>(
        &mut self,
        _: S,
        rows: usize,
        depth: usize,
        mut fill: impl FnMut(usize, usize, &mut [f32]),
    ) {
        let height = S::TILE.0;
        self.values.clear();
        self.values.resize(rows.div_ceil(height) * height * depth, 0.0);
        (self.depth, self.rows) = (depth, rows);
        for (block, packed) in self.values.chunks_exact_mut((height * depth).max(1)).enumerate() {
            let first = block * height;
            for (j, step) in packed.chunks_exact_mut(height).enumerate() {
                fill(first, j, &mut step[..height.min(rows - first)]);
            }
        }
    }
}

/// All of A with one panel of B.
///
/// # Safety
/// Nothing else may refer to the target's elements during the call.
#[inline(always)]
unsafe fn panel_product<S: Simd, const R: usize, const V: usize>(
    simd: S,
    a: &Left,
    b: &[f32],
    beta: f32,
    c: Target<'_>,
    columns: usize,
) {
    for (block, a_block) in a.values.chunks_exact((R * a.depth).max(1)).enumerate() {
        let first = block * R;
        let sums = tile::<S, R, V>(simd, a_block, b);
        for (r, sums) in sums.iter().enumerate().take(a.rows - first) {
            // SAFETY: the caller guarantees it; one row at a time.
            let row = unsafe { c.parts.part(c.start + (first + r) * c.row, columns) };
            for (sum, to) in sums.iter().zip(row.chunks_mut(S::LANES)) {
                let value = if beta == 0.0 { *sum } else { simd.mul_add(simd.splat(beta), simd.load_some(to), *sum) };
                simd.store_some(to, value);
            }
        }
    }
}

/// R rows of A with V vectors of B's columns: the sums stay in registers.
#[inline(always)]
fn tile<S: Simd, const R: usize, const V: usize>(simd: S, a: &[f32], b: &[f32]) -> [[S::F; V]; R] {
    let mut sums = [[simd.splat(0.0); V]; R];
    for (a, b) in a.chunks_exact(R).zip(b.chunks_exact(V * S::LANES)) {
        let b: [S::F; V] = std::array::from_fn(|v| simd.load(&b[v * S::LANES..]));
        for (sums, a) in sums.iter_mut().zip(a) {
            let a = simd.splat(*a);
            for (sum, b) in sums.iter_mut().zip(b) {
                *sum = simd.mul_add(a, b, *sum);
            }
        }
    }
    sums
}
