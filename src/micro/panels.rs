//! The tiles of the inner loops, and matrices laid out for them.

use std::sync::OnceLock;

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use crate::simd::vectorized;

/// Rows of the tallest tile of any machine.
pub(super) const MOST_ROWS: usize = 12;

/// Columns of the widest panel of any machine.
pub const WIDEST: usize = 32;

/// Rows of a gathered tile: as many as the registers hold beside two vectors of weights.
pub(super) const fn rows_of<S: Simd>() -> usize {
    if S::REGISTER_COUNT >= 32 { MOST_ROWS } else { 6 }
}

/// Rows and columns of the largest tile of this machine: two vectors wide.
fn tile() -> (usize, usize) {
    struct Ask;
    impl WithSimd for Ask {
        type Output = (usize, usize);
        #[inline(always)]
        fn with_simd<S: Simd>(self, _: S) -> (usize, usize) {
            (rows_of::<S>(), 2 * S::F32_LANES)
        }
    }
    static TILE: OnceLock<(usize, usize)> = OnceLock::new();
    *TILE.get_or_init(|| Arch::new().dispatch(Ask))
}

/// Rows that are computed together at most.
pub fn height() -> usize {
    tile().0
}

/// Columns that are computed together, of `cols` in all: those of a panel.
pub fn panel(cols: usize) -> usize {
    let (_, widest) = tile();
    if cols <= widest / 2 { widest / 2 } else { widest }
}

/// Elements that [`Panels`] of a matrix of this size take.
pub fn panel_elements(rows: usize, cols: usize) -> usize {
    rows * cols.next_multiple_of(panel(cols))
}

/// A matrix `[rows, cols]` in panels of columns, each panel `[rows, width]`, the last padded with zeros:
/// read in order by the tiles of a product.
#[derive(Clone, Copy)]
pub struct Panels<'a> {
    data: &'a [f32],
    rows: usize,
    cols: usize,
    width: usize,
}

impl<'a> Panels<'a> {
    /// Fills `data` with the panels of a matrix of which `pack` writes parts: `pack(piece, first, count, out,
    /// width)` writes the piece's `rows / pieces` rows of the columns `first .. first + count` to rows of
    /// `out` that begin `width` elements apart. In parallel over panels and pieces.
    pub fn fill(
        data: &'a mut [f32],
        rows: usize,
        cols: usize,
        pieces: usize,
        pack: impl Fn(usize, usize, usize, &mut [f32], usize) + Sync,
    ) -> Panels<'a> {
        let width = panel(cols);
        assert!(rows.is_multiple_of(pieces), "panels: {rows} rows in {pieces} pieces");
        if rows > 0 {
            let piece_rows = rows / pieces;
            data.par_chunks_mut(piece_rows * width).enumerate().for_each(|(i, out)| {
                let (panel, piece) = (i / pieces, i % pieces);
                fill_piece(out, cols, panel, |first, count, out, width| {
                    pack(piece, first, count, out, width)
                });
            });
        }
        Panels::new(data, rows, cols)
    }

    /// As [`Panels::fill`] in one piece, on this thread alone.
    pub fn fill_here(
        data: &'a mut [f32],
        rows: usize,
        cols: usize,
        pack: impl Fn(usize, usize, &mut [f32], usize),
    ) -> Panels<'a> {
        for (panel, out) in data.chunks_mut((rows * panel(cols)).max(1)).enumerate() {
            fill_piece(out, cols, panel, &pack);
        }
        Panels::new(data, rows, cols)
    }

    /// Some panels of a matrix whose panels are `width` wide, of `cols` columns together; `pack` writes what is
    /// not padding, where it is not there already.
    pub fn some(
        data: &'a mut [f32],
        rows: usize,
        cols: usize,
        width: usize,
        pack: Option<impl FnOnce(&mut [f32])>,
    ) -> Panels<'a> {
        assert_eq!(data.len(), rows * cols.next_multiple_of(width), "panels of [{rows}, {cols}]");
        if let Some(pack) = pack {
            if !cols.is_multiple_of(width) {
                data[cols / width * width * rows..].fill(0.0);
            }
            pack(data);
        }
        Panels { data, rows, cols, width }
    }

    /// Views what [`Panels::fill`] filled.
    pub fn new(data: &'a [f32], rows: usize, cols: usize) -> Panels<'a> {
        assert_eq!(data.len(), panel_elements(rows, cols), "panels of [{rows}, {cols}]");
        Panels { data, rows, cols, width: panel(cols) }
    }

    /// The data, the matrix's rows, and the columns of a panel.
    pub(super) fn parts(self) -> (&'a [f32], usize, usize) {
        (self.data, self.rows, self.width)
    }

    /// Rows of the matrix.
    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    /// Columns of a panel.
    pub(super) fn width(&self) -> usize {
        self.width
    }

    /// Columns of the matrix.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Panels of it.
    pub fn count(&self) -> usize {
        self.cols.div_ceil(self.width)
    }

    /// Share number `index` of `shares`, at most one for each panel; and its first column.
    pub fn share(self, index: usize, shares: usize) -> (Self, usize) {
        let [from, to] = [index, index + 1].map(|i| i * self.count() / shares);
        let first = from * self.width;
        let data = &self.data[first * self.rows..to * self.width * self.rows];
        (Panels { data, cols: (to * self.width).min(self.cols) - first, ..self }, first)
    }

    pub(super) fn panel(&self, index: usize) -> &'a [f32] {
        &self.data[index * self.rows * self.width..][..self.rows * self.width]
    }
}

/// Copies a row of a panel: such short ones are done before a call of `memcpy` has begun.
#[inline(always)]
pub fn copy_short(out: &mut [f32], x: &[f32]) {
    #[inline(always)]
    fn exactly<const N: usize>(out: &mut [f32], x: &[f32]) -> bool {
        match (out.as_chunks_mut::<N>(), x.as_chunks::<N>()) {
            (([out], []), ([x], [])) => {
                *out = *x;
                true
            }
            _ => false,
        }
    }
    if !(exactly::<8>(out, x) || exactly::<16>(out, x) || exactly::<32>(out, x)) {
        out.copy_from_slice(x);
    }
}

/// `out[i][j] = b[j][i]` for `cols` rows of `b`, which begin `stride` elements apart, and the rows of `out`.
pub fn copy_turned(b: &[f32], stride: usize, cols: usize, out: &mut [f32], width: usize) {
    vectorized(
        #[inline(always)]
        || {
            // In squares, of which a row is read, and written, by one instruction.
            const SIDE: usize = 4;
            let rows = out.len() / width;
            for (square, out) in out.chunks_mut(SIDE * width).enumerate() {
                let from = square * SIDE;
                let mut col = 0;
                while from + SIDE <= rows && col + SIDE <= cols {
                    let mut x = [[0.0; SIDE]; SIDE];
                    for (j, x) in x.iter_mut().enumerate() {
                        x.copy_from_slice(&b[(col + j) * stride + from..][..SIDE]);
                    }
                    let [p, q, r, s] = x;
                    for i in 0..SIDE {
                        out[i * width + col..][..SIDE].copy_from_slice(&[p[i], q[i], r[i], s[i]]);
                    }
                    col += SIDE;
                }
                for (i, out) in out.chunks_exact_mut(width).enumerate() {
                    for col in col..cols {
                        out[col] = b[col * stride + from + i];
                    }
                }
            }
        },
    );
}

/// Some rows of panel number `panel`.
fn fill_piece(out: &mut [f32], cols: usize, index: usize, pack: impl Fn(usize, usize, &mut [f32], usize)) {
    let width = panel(cols);
    let first = index * width;
    let filled = width.min(cols - first);
    if filled < width {
        out.fill(0.0);
    }
    pack(first, filled, out, width);
}
