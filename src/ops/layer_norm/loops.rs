//! The loops of layer norm's CPU twin over one row, which vectorise.

/// Sums side by side.
const LANES: usize = 16;

/// The sum over i of `f(a[i], b[i])`, in a fixed order.
#[inline(always)]
fn sum_of(a: &[f32], b: &[f32], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut sums = [0.0_f32; LANES];
    let ((a, last_a), (b, last_b)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    for (a, b) in a.iter().zip(b) {
        for i in 0..LANES {
            sums[i] += f(a[i], b[i]);
        }
    }
    for ((sum, a), b) in sums.iter_mut().zip(last_a).zip(last_b) {
        *sum += f(*a, *b);
    }
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            sums[i] += sums[i + width];
        }
        width /= 2;
    }
    sums[0]
}

/// A row's scale and shift.
#[derive(Clone, Copy)]
pub(super) struct Gain<'a> {
    pub scale: &'a [f32],
    pub shift: &'a [f32],
    /// Added to the scale.
    pub more: f32,
}

/// Writes a row of y; gives its mean, as the offset from its first element, and its reciprocal deviation.
#[inline(always)]
pub(super) fn forward_row(x: &[f32], gain: Option<Gain>, eps: f32, y: &mut [f32]) -> [f32; 2] {
    let (first, count) = (x[0], x.len() as f32);
    let mean = sum_of(x, x, |x, _| x - first) / count;
    // What rounding left of the mean (Chan, Golub & LeVeque 1983).
    let missing = sum_of(x, x, |x, _| x - first - mean) / count;
    let offset = mean + missing;
    let variance = sum_of(x, x, |x, _| (x - first - offset) * (x - first - offset)) / count;
    let rstd = 1.0 / (variance + eps).sqrt();
    match gain {
        Some(Gain { scale, shift, more }) => {
            for (((y, x), scale), shift) in y.iter_mut().zip(x).zip(scale).zip(shift) {
                *y = (scale + more) * ((x - first - offset) * rstd) + shift;
            }
        }
        None => {
            for (y, x) in y.iter_mut().zip(x) {
                *y = (x - first - offset) * rstd;
            }
        }
    }
    [offset, rstd]
}

/// Writes a row of dx from x and dy, and adds the row's part to the `sums` of `dy * xhat` and of `dy`.
/// `scale`: of the row, and what is added to it.
#[inline(always)]
pub(super) fn backward_row(
    [x, dy]: [&[f32]; 2],
    [offset, rstd]: [f32; 2],
    scale: Option<(&[f32], f32)>,
    sums: Option<(&mut [f32], &mut [f32])>,
    dx: &mut [f32],
) {
    let (first, count) = (x[0], x.len() as f32);
    if let Some((dscale, dshift)) = sums {
        for (((dscale, dshift), x), dy) in dscale.iter_mut().zip(dshift).zip(x).zip(dy) {
            *dscale += dy * ((x - first - offset) * rstd);
            *dshift += dy;
        }
    }
    match scale {
        Some((scale, more)) => {
            for ((dx, dy), scale) in dx.iter_mut().zip(dy).zip(scale) {
                *dx = (scale + more) * dy;
            }
        }
        None => dx.copy_from_slice(dy),
    }
    let m0 = sum_of(dx, dx, |g, _| g) / count;
    let m1 = sum_of(dx, x, |g, x| g * ((x - first - offset) * rstd)) / count;
    for (dx, x) in dx.iter_mut().zip(x) {
        *dx = rstd * (*dx - m0 - (x - first - offset) * rstd * m1);
    }
}
