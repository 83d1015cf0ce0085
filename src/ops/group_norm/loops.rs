//! The loops of group norm's CPU twin; those over pixels run along the channels and vectorise.

use super::Size;
use crate::ops::activation::Activation;

/// For each channel, mean and sum of squares about it over the rows of `x [rows, C]`. The mean is left as
/// its distance from the first row, which is exact where values lie close together, however far from zero.
///
/// Two passes, the second of which also finds what rounding left of the mean (the corrected algorithm of
/// Chan, Golub & LeVeque 1983): a first row that is an outlier costs nothing either.
#[inline(always)]
pub(super) fn column_moments(x: &[f32], mean: &mut [f32], squares: &mut [f32], rest: &mut [f32]) {
    let c = mean.len();
    let (first, squares, rest) = (&x[..c], &mut squares[..c], &mut rest[..c]);
    let count = (x.len() / c) as f32;
    mean.fill(0.0);
    squares.fill(0.0);
    rest.fill(0.0);
    for x in x.chunks_exact(c) {
        for i in 0..c {
            mean[i] += x[i] - first[i];
        }
    }
    for mean in &mut *mean {
        *mean /= count;
    }
    for x in x.chunks_exact(c) {
        for i in 0..c {
            let distance = x[i] - first[i] - mean[i];
            rest[i] += distance;
            squares[i] += distance * distance;
        }
    }
    for i in 0..c {
        let missing = rest[i] / count;
        mean[i] += missing;
        squares[i] -= rest[i] * missing;
    }
}

/// Puts the moments of a sample's chunks and channels together to those of its groups (Chan, Golub &
/// LeVeque 1979): the mean as its offset from the group's first element, and the reciprocal deviation.
pub(super) fn merge_moments(
    size: Size,
    eps: f32,
    x: &[f32],
    moments: &[f32],
    offset: &mut [f32],
    rstd: &mut [f32],
) {
    let (c, width, rows) = (size.c, size.width(), size.rows());
    for (g, (offset, rstd)) in offset.iter_mut().zip(rstd).enumerate() {
        let channels = g * width..(g + 1) * width;
        let origin = f64::from(x[g * width]);
        // Mean from `origin`, sum of squares and number of rows of each chunk and channel.
        let parts = || {
            moments.chunks_exact(3 * c).zip(x.chunks(rows * c)).flat_map(|(moments, x)| {
                let count = (x.len() / c) as f64;
                channels.clone().map(move |i| {
                    (f64::from(x[i]) - origin + f64::from(moments[i]), f64::from(moments[c + i]), count)
                })
            })
        };
        let total = (size.p * width) as f64;
        let mean = parts().map(|(mean, _, count)| mean * count).sum::<f64>() / total;
        let squares: f64 =
            parts().map(|(part, squares, count)| squares + count * (part - mean) * (part - mean)).sum();
        *offset = mean as f32;
        *rstd = (1.0 / (squares / total + f64::from(eps)).sqrt()) as f32;
    }
}

/// What a loop over pixels needs for each channel: `xhat = (x - first) * rstd + bias`, `z = gamma * xhat +
/// beta`.
#[derive(Clone, Copy)]
pub(super) struct Line<'a> {
    first: &'a [f32],
    rstd: &'a [f32],
    bias: &'a [f32],
    gamma: &'a [f32],
    beta: &'a [f32],
}

impl<'a> Line<'a> {
    /// Spreads the statistics of a sample's groups over its channels, into `memory [3, C]`.
    pub(super) fn new(
        size: Size,
        x: &[f32],
        offset: &[f32],
        rstd: &[f32],
        gamma: &'a [f32],
        beta: &'a [f32],
        memory: &'a mut [f32],
    ) -> Self {
        let width = size.width();
        let (firsts, rest) = memory.split_at_mut(size.c);
        let (scales, biases) = rest.split_at_mut(size.c);
        for g in 0..size.groups {
            let channels = g * width..(g + 1) * width;
            firsts[channels.clone()].fill(x[g * width]);
            scales[channels.clone()].fill(rstd[g]);
            biases[channels].fill(-offset[g] * rstd[g]);
        }
        Line { first: firsts, rstd: scales, bias: biases, gamma, beta }
    }

    /// The same with lengths that the compiler knows to be `c`.
    #[inline(always)]
    fn cut(self, c: usize) -> Self {
        Line {
            first: &self.first[..c],
            rstd: &self.rstd[..c],
            bias: &self.bias[..c],
            gamma: &self.gamma[..c],
            beta: &self.beta[..c],
        }
    }

    #[inline(always)]
    fn xhat(self, i: usize, x: f32) -> f32 {
        (x - self.first[i]) * self.rstd[i] + self.bias[i]
    }

    #[inline(always)]
    fn z(self, i: usize, xhat: f32) -> f32 {
        self.gamma[i] * xhat + self.beta[i]
    }
}

/// `y = f(z)` over rows `x`, `y [rows, C]`.
#[inline(always)]
pub(super) fn normalise(kind: Activation, x: &[f32], line: Line, y: &mut [f32]) {
    let c = line.first.len();
    let line = line.cut(c);
    for (y, x) in y.chunks_exact_mut(c).zip(x.chunks_exact(c)) {
        for i in 0..c {
            y[i] = kind.apply(line.z(i, line.xhat(i, x[i])));
        }
    }
}

/// For each channel, the sums of `dz` and of `dz * xhat` over the rows of `x`, `dy [rows, C]`.
#[inline(always)]
pub(super) fn column_sums(
    kind: Activation,
    x: &[f32],
    dy: &[f32],
    line: Line,
    s0: &mut [f32],
    s1: &mut [f32],
) {
    let c = s0.len();
    let (line, s1) = (line.cut(c), &mut s1[..c]);
    s0.fill(0.0);
    s1.fill(0.0);
    for (x, dy) in x.chunks_exact(c).zip(dy.chunks_exact(c)) {
        for i in 0..c {
            let xhat = line.xhat(i, x[i]);
            let dz = dy[i] * kind.slope(line.z(i, xhat));
            s0[i] += dz;
            s1[i] += dz * xhat;
        }
    }
}

/// The means over each group of `gamma * dz` and `gamma * dz * xhat`, from the channels' `sums [2, C]`, at
/// every channel.
pub(super) fn group_means(size: Size, gamma: &[f32], sums: &[f32], m0: &mut [f32], m1: &mut [f32]) {
    let (width, count) = (size.width(), (size.p * size.width()) as f64);
    let (s0, s1) = sums.split_at(size.c);
    for g in 0..size.groups {
        let channels = g * width..(g + 1) * width;
        let mean = |sums: &[f32]| {
            let total: f64 = channels.clone().map(|i| f64::from(gamma[i]) * f64::from(sums[i])).sum();
            (total / count) as f32
        };
        m0[channels.clone()].fill(mean(s0));
        m1[channels.clone()].fill(mean(s1));
    }
}

/// `dx = rstd * (gamma * dz - m0 - xhat * m1)` over the rows of `x`, `dy`, `dx [rows, C]`.
#[inline(always)]
pub(super) fn gradient(
    kind: Activation,
    x: &[f32],
    dy: &[f32],
    line: Line,
    m0: &[f32],
    m1: &[f32],
    dx: &mut [f32],
) {
    let c = m0.len();
    let (line, m1) = (line.cut(c), &m1[..c]);
    for ((dx, x), dy) in dx.chunks_exact_mut(c).zip(x.chunks_exact(c)).zip(dy.chunks_exact(c)) {
        for i in 0..c {
            let xhat = line.xhat(i, x[i]);
            let dz = dy[i] * kind.slope(line.z(i, xhat));
            dx[i] = line.rstd[i] * (line.gamma[i] * dz - m0[i] - xhat * m1[i]);
        }
    }
}
