//! The loops of group norm's CPU twin; those over pixels run along the channels and vectorise.

use super::size::{Part, Size};
use crate::launch::Io;
use crate::ops::activation::Activation;

/// x, in its parts.
#[derive(Clone, Copy)]
pub(super) struct Source<'a> {
    size: Size,
    parts: [&'a [f32]; 2],
}

impl<'a> Source<'a> {
    /// The first reads of a launch.
    pub fn new(size: Size, io: &Io<'a>) -> Self {
        let mut parts = [&[][..]; 2];
        size.parts().for_each(|part| parts[part.index] = io.read(part.index));
        Source { size, parts }
    }

    pub fn sample(self, n: usize) -> Sample<'a> {
        let mut parts = self.parts;
        for part in self.size.parts() {
            let elements = self.size.p * part.width;
            parts[part.index] = &parts[part.index][n * elements..][..elements];
        }
        Sample { size: self.size, parts }
    }
}

/// One sample of x, in its parts.
#[derive(Clone, Copy)]
pub(super) struct Sample<'a> {
    size: Size,
    parts: [&'a [f32]; 2],
}

impl<'a> Sample<'a> {
    fn at(self, row: usize, channel: usize) -> f32 {
        let Size { c, left, .. } = self.size;
        match channel.checked_sub(left) {
            None => self.parts[0][row * left + channel],
            Some(channel) => self.parts[1][row * (c - left) + channel],
        }
    }

    /// The rows that a task takes.
    pub fn chunk(self, chunk: usize) -> impl Iterator<Item = (Part, &'a [f32])> {
        self.size.parts().map(move |part| (part, self.chunk_of(part, chunk)))
    }

    pub fn chunk_of(self, part: Part, chunk: usize) -> &'a [f32] {
        let (rows, p) = (self.size.rows(), self.size.p);
        &self.parts[part.index][chunk * rows * part.width..((chunk + 1) * rows).min(p) * part.width]
    }
}

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

/// Puts the moments of a sample's chunks and channels together to the statistics of its groups (Chan, Golub &
/// LeVeque 1979): their first elements, the means as their distance from those, and the reciprocal
/// deviations.
pub(super) fn merge_moments(size: Size, eps: f32, x: Sample, moments: &[f32], statistics: &mut [f32]) {
    let (c, width, rows) = (size.c, size.width(), size.rows());
    let (origins, rest) = statistics.split_at_mut(size.groups);
    let (offsets, rstds) = rest.split_at_mut(size.groups);
    for (g, ((origin, offset), rstd)) in origins.iter_mut().zip(offsets).zip(rstds).enumerate() {
        let channels = g * width..(g + 1) * width;
        *origin = x.at(0, channels.start);
        let from = f64::from(*origin);
        // Mean from the origin, sum of squares and number of rows of each chunk and channel.
        let parts = || {
            moments.chunks_exact(3 * c).zip((0..size.p).step_by(rows)).flat_map(|(moments, row)| {
                let count = rows.min(size.p - row) as f64;
                channels.clone().map(move |i| {
                    let mean = f64::from(x.at(row, i)) - from + f64::from(moments[i]);
                    (mean, f64::from(moments[c + i]), count)
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
        statistics: &[f32],
        gamma: &'a [f32],
        beta: &'a [f32],
        memory: &'a mut [f32],
    ) -> Self {
        let (width, groups) = (size.width(), size.groups);
        let (origins, rest) = statistics.split_at(groups);
        let (offsets, rstds) = rest.split_at(groups);
        let (firsts, rest) = memory.split_at_mut(size.c);
        let (scales, biases) = rest.split_at_mut(size.c);
        for g in 0..groups {
            let channels = g * width..(g + 1) * width;
            firsts[channels.clone()].fill(origins[g]);
            scales[channels.clone()].fill(rstds[g]);
            biases[channels].fill(-offsets[g] * rstds[g]);
        }
        Line { first: firsts, rstd: scales, bias: biases, gamma, beta }
    }

    /// That of a part, with lengths that the compiler knows to be the same.
    #[inline(always)]
    fn cut(self, part: Part) -> Self {
        let Part { first, width, .. } = part;
        Line {
            first: &self.first[first..][..width],
            rstd: &self.rstd[first..][..width],
            bias: &self.bias[first..][..width],
            gamma: &self.gamma[first..][..width],
            beta: &self.beta[first..][..width],
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

/// `y = f(z)` over rows of `x [rows, part]`, `y [rows, C]`.
#[inline(always)]
pub(super) fn normalise(kind: Activation, x: &[f32], part: Part, line: Line, y: &mut [f32]) {
    let (c, width) = (line.first.len(), part.width);
    let line = line.cut(part);
    for (y, x) in y.chunks_exact_mut(c).zip(x.chunks_exact(width)) {
        let y = &mut y[part.first..][..width];
        for i in 0..width {
            y[i] = kind.apply(line.z(i, line.xhat(i, x[i])));
        }
    }
}

/// For each channel of a part, the sums of `dz` and of `dz * xhat` over the rows of `x [rows, part]`,
/// `dy [rows, C]`.
#[inline(always)]
pub(super) fn column_sums(
    kind: Activation,
    x: &[f32],
    dy: &[f32],
    part: Part,
    line: Line,
    s0: &mut [f32],
    s1: &mut [f32],
) {
    let (c, Part { first, width, .. }) = (s0.len(), part);
    let (line, s0, s1) = (line.cut(part), &mut s0[first..][..width], &mut s1[first..][..width]);
    s0.fill(0.0);
    s1.fill(0.0);
    for (x, dy) in x.chunks_exact(width).zip(dy.chunks_exact(c)) {
        let dy = &dy[first..][..width];
        for i in 0..width {
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

/// `dx = rstd * (gamma * dz - m0 - xhat * m1)` over the rows of `x`, `dx [rows, part]`, `dy [rows, C]`; plus
/// `accum`, as large, where that is given.
#[inline(always)]
#[allow(clippy::too_many_arguments, reason = "the formula's")]
pub(super) fn gradient(
    kind: Activation,
    x: &[f32],
    dy: &[f32],
    part: Part,
    line: Line,
    m0: &[f32],
    m1: &[f32],
    accum: Option<&[f32]>,
    dx: &mut [f32],
) {
    let (c, Part { first, width, .. }) = (m0.len(), part);
    let (line, m0, m1) = (line.cut(part), &m0[first..][..width], &m1[first..][..width]);
    let rows = dx.chunks_exact_mut(width).zip(x.chunks_exact(width)).zip(dy.chunks_exact(c));
    for ((dx, x), dy) in rows {
        let dy = &dy[first..][..width];
        for i in 0..width {
            let xhat = line.xhat(i, x[i]);
            let dz = dy[i] * kind.slope(line.z(i, xhat));
            dx[i] = line.rstd[i] * (line.gamma[i] * dz - m0[i] - xhat * m1[i]);
        }
    }
    for (dx, accum) in dx.iter_mut().zip(accum.unwrap_or_default()) {
        *dx += accum;
    }
}
