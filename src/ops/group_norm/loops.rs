//! The loops of group norm's CPU twin; those over rows run along the channels and vectorise.

use rayon::prelude::*;

use super::norm::{Input, Norm};
use crate::launch::Io;
use crate::ops::activation::Activation;

/// One sample of x, in its inputs.
#[derive(Clone, Copy)]
pub(super) struct Sample<'a> {
    norm: Norm,
    inputs: [&'a [f32]; 2],
}

/// The samples of the first reads of a launch.
pub(super) fn samples<'a>(norm: Norm, io: &Io<'a>) -> impl IndexedParallelIterator<Item = Sample<'a>> {
    let mut x = [&[][..]; 2];
    norm.inputs().for_each(|input| x[input.index] = io.read(input.index));
    (0..norm.n).into_par_iter().map(move |n| {
        let mut inputs = x;
        for Input { index, width, .. } in norm.inputs() {
            inputs[index] = &x[index][n * norm.p * width..][..norm.p * width];
        }
        Sample { norm, inputs }
    })
}

impl<'a> Sample<'a> {
    /// First element of a channel.
    fn first(self, c: usize) -> f32 {
        c.checked_sub(self.norm.left).map_or_else(|| self.inputs[0][c], |c| self.inputs[1][c])
    }

    /// First elements of an input's channels.
    pub fn firsts(self, input: Input) -> &'a [f32] {
        &self.inputs[input.index][..input.width]
    }

    /// The rows of a chunk.
    pub fn chunk(self, input: Input, chunk: usize) -> &'a [f32] {
        let elements = self.norm.cpu_rows() * input.width;
        self.inputs[input.index].chunks(elements).nth(chunk).expect("as many chunks as rows make")
    }

    /// Merges the `moments [chunks, 2, C]` of chunks and channels to the `statistics [2, C]` of groups (Chan,
    /// Golub & LeVeque 1979).
    pub fn merge_moments(self, moments: &[f32], statistics: &mut [f32]) {
        let Norm { p, c, eps, .. } = self.norm;
        let (width, rows) = (self.norm.width(), self.norm.cpu_rows());
        let (offsets, rstds) = statistics.split_at_mut(c);
        for group in (0..c).step_by(width).map(|first| first..first + width) {
            let origin = f64::from(self.first(group.start));
            let from_origin = |i: usize| f64::from(self.first(i)) - origin;
            // Mean from the origin, sum of squares and number of rows of each chunk and channel.
            let all = || {
                moments.chunks_exact(2 * c).zip((0..p).step_by(rows)).flat_map(|(moments, row)| {
                    let [mean, squares] = [0, c].map(|row| move |i: usize| f64::from(moments[row + i]));
                    let count = rows.min(p - row) as f64;
                    group.clone().map(move |i| (from_origin(i) + mean(i), squares(i), count))
                })
            };
            let total = (p * width) as f64;
            let mean = all().map(|(mean, _, count)| mean * count).sum::<f64>() / total;
            let squares: f64 =
                all().map(|(of, squares, count)| squares + count * (of - mean) * (of - mean)).sum();
            rstds[group.clone()].fill((1.0 / (squares / total + f64::from(eps)).sqrt()) as f32);
            for i in group {
                offsets[i] = (mean - from_origin(i)) as f32;
            }
        }
    }
}

/// For each channel of an input, its mean, as the offset from its `first` element, and the sum of `squares`
/// about that, over the rows `x` of a chunk.
#[inline(always)]
pub(super) fn column_moments(x: &[f32], first: &[f32], mean: &mut [f32], squares: &mut [f32]) {
    let mut at = 0;
    while at < first.len() {
        at += match first.len() - at {
            32.. => tile_moments::<32>(x, at, first, mean, squares),
            8.. => tile_moments::<8>(x, at, first, mean, squares),
            _ => tile_moments::<1>(x, at, first, mean, squares),
        };
    }
}

/// The moments of `T` channels from `at` on, whose sums stay in registers; returns `T`.
///
/// Two passes, the second of which also finds what rounding left of the mean (the corrected algorithm of
/// Chan, Golub & LeVeque 1983): a first element that is an outlier costs nothing.
#[inline(always)]
fn tile_moments<const T: usize>(
    x: &[f32],
    at: usize,
    first: &[f32],
    mean: &mut [f32],
    squares: &mut [f32],
) -> usize {
    let width = first.len();
    let count = (x.len() / width) as f32;
    let [mut means, mut rest, mut sums] = [[0.0; T]; 3];
    let mut firsts = [0.0; T];
    firsts.copy_from_slice(&first[at..][..T]);
    for x in x.chunks_exact(width) {
        let x = &x[at..][..T];
        for i in 0..T {
            means[i] += x[i] - firsts[i];
        }
    }
    for mean in &mut means {
        *mean /= count;
    }
    for x in x.chunks_exact(width) {
        let x = &x[at..][..T];
        for i in 0..T {
            let distance = x[i] - firsts[i] - means[i];
            rest[i] += distance;
            sums[i] += distance * distance;
        }
    }
    for i in 0..T {
        let missing = rest[i] / count;
        mean[at + i] = means[i] + missing;
        squares[at + i] = sums[i] - rest[i] * missing;
    }
    T
}

/// Statistics and parameters of an input's channels: `xhat = (x - first - offset) * rstd`, `z = gamma * xhat
/// + beta`.
#[derive(Clone, Copy)]
pub(super) struct ChannelAffine<'a> {
    input: Input,
    /// Of all inputs.
    c: usize,
    first: &'a [f32],
    offset: &'a [f32],
    rstd: &'a [f32],
    gamma: &'a [f32],
    beta: &'a [f32],
}

impl<'a> ChannelAffine<'a> {
    /// `statistics [2, C]` of the sample, `gamma`, `beta [C]`. Its slices have lengths that the compiler
    /// knows to be the same.
    #[inline(always)]
    pub fn new(
        x: Sample<'a>,
        input: Input,
        statistics: &'a [f32],
        gamma: &'a [f32],
        beta: &'a [f32],
    ) -> Self {
        let Input { first, width, .. } = input;
        let c = x.norm.c;
        ChannelAffine {
            input,
            c,
            first: &x.firsts(input)[..width],
            offset: &statistics[first..][..width],
            rstd: &statistics[c + first..][..width],
            gamma: &gamma[first..][..width],
            beta: &beta[first..][..width],
        }
    }

    #[inline(always)]
    fn xhat(self, i: usize, x: f32) -> f32 {
        (x - self.first[i] - self.offset[i]) * self.rstd[i]
    }

    #[inline(always)]
    fn z(self, i: usize, xhat: f32) -> f32 {
        self.gamma[i] * xhat + self.beta[i]
    }

    /// `y = f(z)` over rows of `x [rows, width]`, `y [rows, C]`.
    #[inline(always)]
    pub fn normalise(self, f: Activation, x: &[f32], y: &mut [f32]) {
        let Input { first, width, .. } = self.input;
        for (y, x) in y.chunks_exact_mut(self.c).zip(x.chunks_exact(width)) {
            let y = &mut y[first..][..width];
            for i in 0..width {
                y[i] = f.apply(self.z(i, self.xhat(i, x[i])));
            }
        }
    }

    /// The sums of `dz` and of `dz * xhat` over the rows of `x [rows, width]`, `dy [rows, C]`, into `s0` and
    /// `s1 [C]`.
    #[inline(always)]
    pub fn column_sums(self, f: Activation, x: &[f32], dy: &[f32], s0: &mut [f32], s1: &mut [f32]) {
        let Input { first, width, .. } = self.input;
        let (s0, s1) = (&mut s0[first..][..width], &mut s1[first..][..width]);
        s0.fill(0.0);
        s1.fill(0.0);
        for (x, dy) in x.chunks_exact(width).zip(dy.chunks_exact(self.c)) {
            let dy = &dy[first..][..width];
            for i in 0..width {
                let xhat = self.xhat(i, x[i]);
                let dz = dy[i] * f.derivative(self.z(i, xhat));
                s0[i] += dz;
                s1[i] += dz * xhat;
            }
        }
    }

    /// `dx = rstd * (gamma * dz - m0 - xhat * m1)` over the rows of `x`, `dx [rows, width]`, `dy [rows, C]`,
    /// with `means [2, C]`; plus `accum`, of dx's shape, where that is given.
    #[inline(always)]
    pub fn gradient(
        self,
        f: Activation,
        x: &[f32],
        dy: &[f32],
        means: &[f32],
        accum: Option<&[f32]>,
        dx: &mut [f32],
    ) {
        let Input { first, width, .. } = self.input;
        let (m0, m1) = (&means[first..][..width], &means[self.c + first..][..width]);
        let rows = dx.chunks_exact_mut(width).zip(x.chunks_exact(width)).zip(dy.chunks_exact(self.c));
        for ((dx, x), dy) in rows {
            let dy = &dy[first..][..width];
            for i in 0..width {
                let xhat = self.xhat(i, x[i]);
                let dz = dy[i] * f.derivative(self.z(i, xhat));
                dx[i] = self.rstd[i] * (self.gamma[i] * dz - m0[i] - xhat * m1[i]);
            }
        }
        for (dx, accum) in dx.iter_mut().zip(accum.unwrap_or_default()) {
            *dx += accum;
        }
    }
}

/// The means over each group of `gamma * dz` and `gamma * dz * xhat`, from the channels' `sums [2, C]`, at
/// every channel of `means [2, C]`.
pub(super) fn group_means(norm: Norm, gamma: &[f32], sums: &[f32], means: &mut [f32]) {
    let (c, width) = (norm.c, norm.width());
    for first in (0..2 * c).step_by(width) {
        let products = gamma[first % c..].iter().zip(&sums[first..][..width]);
        let total: f64 = products.map(|(&gamma, &sum)| f64::from(gamma) * f64::from(sum)).sum();
        means[first..][..width].fill((total / (norm.p * width) as f64) as f32);
    }
}
