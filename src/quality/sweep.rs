//! Every row of one set against every row of another: the loop behind distances and kernels.

use std::array::from_fn;

use rayon::prelude::*;

use super::Features;
use crate::simd::vectorized;

/// Points side by side in a panel, and queries that meet a panel's values in registers: with AVX2 eight
/// registers of sums.
const LANES: usize = 8;
const ROWS: usize = 4;
/// Queries of a task: with a panel they stay in the first cache.
const BLOCK: usize = 32;

/// What one pair of rows comes to, a sum over the features.
pub(super) trait Pair: Sync {
    /// The sum with the next feature of the query and of the point.
    fn add(sum: f64, query: f64, point: f64) -> f64;
}

/// The squared distance; of equal rows exactly 0.
pub(super) struct Squared;
/// The product.
pub(super) struct Dot;

impl Pair for Squared {
    #[inline(always)]
    fn add(sum: f64, query: f64, point: f64) -> f64 {
        let difference = query - point;
        difference.mul_add(difference, sum)
    }
}

impl Pair for Dot {
    #[inline(always)]
    fn add(sum: f64, query: f64, point: f64) -> f64 {
        query.mul_add(point, sum)
    }
}

/// Of each query the state that `visit(state, query, point, value of the pair)` leaves, when it has seen all
/// points in rising order. A pair's value does not depend on the threads, nor on what else is in the sets.
pub(super) fn sweep<P: Pair, S: Send>(
    queries: &Features,
    points: &Features,
    start: impl Fn() -> S + Sync,
    visit: impl Fn(&mut S, usize, usize, f64) + Sync,
) -> Vec<S> {
    queries.assert_fits(points);
    let (panels, width) = (pack(points), points.width());
    let task = |(block, queries): (usize, &[f64])| {
        let mut states: Vec<S> = (0..queries.len() / width).map(|_| start()).collect();
        let mut sums = vec![[0.0; LANES]; states.len().next_multiple_of(ROWS)];
        for (p, panel) in panels.chunks_exact(width * LANES).enumerate() {
            let live = LANES.min(points.len() - p * LANES);
            vectorized(
                #[inline(always)]
                || block_sums::<P>(queries, panel, width, &mut sums),
            );
            for (i, (state, sums)) in states.iter_mut().zip(&sums).enumerate() {
                for (lane, &sum) in sums[..live].iter().enumerate() {
                    visit(state, block * BLOCK + i, p * LANES + lane, sum);
                }
            }
        }
        states
    };
    queries.values().par_chunks(BLOCK * width).enumerate().flat_map_iter(task).collect()
}

/// `[queries, LANES]` sums of rows of queries `[.., width]` with a panel. Rows of `sums` beyond the queries,
/// to a multiple of `ROWS`, repeat the last one.
#[inline(always)]
fn block_sums<P: Pair>(queries: &[f64], panel: &[f64], width: usize, sums: &mut [[f64; LANES]]) {
    let (lanes, _) = panel.as_chunks::<LANES>();
    let last = queries.len() / width - 1;
    for (g, out) in sums.chunks_exact_mut(ROWS).enumerate() {
        let rows: [&[f64]; ROWS] = from_fn(|r| &queries[last.min(g * ROWS + r) * width..][..width]);
        let mut sums = [[0.0; LANES]; ROWS];
        for (k, lanes) in lanes[..width].iter().enumerate() {
            for r in 0..ROWS {
                for l in 0..LANES {
                    sums[r][l] = P::add(sums[r][l], rows[r][k], lanes[l]);
                }
            }
        }
        out.copy_from_slice(&sums);
    }
}

/// Panels of `LANES` points, each `[width, LANES]`; the last is filled with zeros.
fn pack(points: &Features) -> Vec<f64> {
    let width = points.width();
    let mut panels = vec![0.0; points.len().div_ceil(LANES) * width * LANES];
    for (i, row) in points.rows().enumerate() {
        let panel = &mut panels[i / LANES * width * LANES..];
        for (k, &value) in row.iter().enumerate() {
            panel[k * LANES + i % LANES] = value;
        }
    }
    panels
}

#[cfg(test)]
mod tests {
    use super::super::features::tests::normal;
    use super::*;

    #[test]
    fn every_pair_is_met_once_and_in_order() {
        for (n, m, width) in [(1, 1, 1), (3, 9, 5), (33, 8, 2), (70, 17, 4)] {
            let (a, b) = (normal(n, width, 1), normal(m, width, 2));
            let met = sweep::<Squared, _>(&a, &b, Vec::new, |all, i, j, value| all.push((i, j, value)));
            assert_eq!(met.len(), n);
            for (i, row) in met.iter().enumerate() {
                assert_eq!(row.len(), m);
                for (j, &(query, point, value)) in row.iter().enumerate() {
                    let wanted: f64 = a.row(i).iter().zip(b.row(j)).map(|(a, b)| (a - b) * (a - b)).sum();
                    assert_eq!((query, point), (i, j));
                    assert!((value - wanted).abs() <= 1e-12 * wanted, "{value}, not {wanted}");
                }
            }
        }
    }

    #[test]
    fn equal_rows_have_no_distance() {
        let a = normal(20, 7, 3);
        let own = sweep::<Squared, _>(
            &a,
            &a,
            || f64::NAN,
            |own, i, j, value| {
                if i == j {
                    *own = value;
                }
            },
        );
        assert_eq!(own, [0.0; 20]);
    }
}
