//! The reverse process of diffusion: one step of any solver, recorded once and replayed for every row.

use rayon::prelude::*;

use crate::device::gpu::shader::Kernel;
use crate::kernel;
use crate::launch::{Dispatch, Dispatches, LaunchInfo, Recorded, launch_of};
use crate::ops::shared::{Chunk, Size, assert_is_state};
use crate::philox::{Stream, fill_normal};
use crate::shared::Shared;
use crate::simd::{exp, vectorized};
use crate::state::State;
use crate::tape::Tensor;

pub(crate) static KERNEL: Kernel = kernel!("denoising");

/// Most tensors that are kept from step to step beside the sample and its prediction.
pub const SLOTS: usize = 6;

/// A linear form: coefficients of x0, of x, of the model's output, and of each slot.
pub type Form = [f32; 3 + SLOTS];

/// One step, a row of the sampler's table. For ancestral sampling see Ho et al. 2020, equation 7 and
/// algorithm 2.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Row {
    /// The timestep that the model is given.
    pub t: f32,
    /// The predicted x0: coefficients of x and of the model's output.
    pub x0: [f32; 2],
    /// `x0` is kept in `[-clip, clip]`, unless this is 0.
    pub clip: f32,
    /// Standard deviation of the noise; no noise is drawn where it is 0.
    pub sigma: f32,
    /// Of a learned variance: sigma is multiplied by `exp((c + h v) / 2)`.
    pub log_variance: [f32; 2],
    /// Of a classifier's gradient, in units of the model's output.
    pub guide: f32,
    /// Of the next x.
    pub next: Form,
    /// Of what the next step finds in each slot.
    pub keep: [Form; SLOTS],
}

impl Row {
    /// Elements of a row in the stored table.
    pub const COLUMNS: usize = 72;
    /// Column of the first form.
    const FORMS: usize = 8;

    /// As it stands in the table.
    pub fn elements(&self) -> [f32; Self::COLUMNS] {
        let mut elements = [0.0; Self::COLUMNS];
        let [c, h] = self.log_variance;
        elements[..8]
            .copy_from_slice(&[self.t, self.x0[0], self.x0[1], self.clip, self.sigma, c, h, self.guide]);
        let forms = std::iter::once(&self.next).chain(&self.keep);
        for (to, form) in elements[Self::FORMS..].chunks_mut(3 + SLOTS).zip(forms) {
            to.copy_from_slice(form);
        }
        elements
    }

    #[inline(always)]
    fn raw_x0(&self, x: f32, out: f32) -> f32 {
        self.x0[0] * x + self.x0[1] * out
    }

    /// The row that the state names. One past the end means the last, as in the kernel.
    fn named(table: &[f32], row: u32) -> Self {
        let last = table.len() / Self::COLUMNS - 1;
        let row = &table[(row as usize).min(last) * Self::COLUMNS..][..Self::COLUMNS];
        let form =
            |which: usize| -> Form { std::array::from_fn(|i| row[Self::FORMS + which * (3 + SLOTS) + i]) };
        Row {
            t: row[0],
            x0: [row[1], row[2]],
            clip: row[3],
            sigma: row[4],
            log_variance: [row[5], row[6]],
            guide: row[7],
            next: form(0),
            keep: std::array::from_fn(|slot| form(slot + 1)),
        }
    }
}

/// `value` in `[-limit, limit]`. Not min and max, which would turn a NaN of the model into a number.
#[inline(always)]
fn within(value: f32, limit: f32) -> f32 {
    let below = if value > limit { limit } else { value };
    if below < -limit { -limit } else { below }
}

/// Its value, where a coefficient that is 0 leaves out what it belongs to, be that NaN.
#[inline(always)]
fn value(form: &Form, x0: f32, x: f32, out: f32, kept: &[f32]) -> f32 {
    let mut sum = form[0] * x0 + form[1] * x;
    if form[2] != 0.0 {
        sum += form[2] * out;
    }
    for (coefficient, kept) in form[3..].iter().zip(kept) {
        if *coefficient != 0.0 {
            sum += coefficient * kept;
        }
    }
    sum
}

/// One step of the samples `x [N, ..]` (stored, updated in place) with the model's output `out`, by row
/// `state.row` of `table [S, 72]` (of [`Row::elements`]). `kept [1 + K, N, ..]` (stored): the predicted clean
/// samples, then what the K slots keep from step to step. `bound [N]` ([`bounds`]): what `x0` is kept within
/// and divided by, in place of the row's clip. `variance [N, ..]`: what the model says of a learned variance.
///
/// Noise is that of stream `Reverse` at step `state.row` for the samples from `state.first_sample` on, so
/// that one recorded program makes all steps: only the state changes between them.
#[track_caller]
pub fn denoise(
    x: &Tensor,
    out: &Tensor,
    table: &Tensor,
    state: &Tensor,
    kept: &Tensor,
    bound: Option<&Tensor>,
    variance: Option<&Tensor>,
) {
    let rows = rows_of("denoise", table);
    assert_is_state("denoise", state);
    let slots = kept.dims().first().map_or(0, |&first| first.saturating_sub(1));
    assert!(
        out.elements() == x.elements()
            && kept.elements() == (1 + slots) * x.elements()
            && slots <= SLOTS
            && variance.is_none_or(|variance| variance.elements() == x.elements())
            && bound.is_none_or(|bound| Some(&bound.elements()) == x.dims().first()),
        "denoise: x {} with output {}, kept {}, bound {:?} and variance {:?}",
        x.shape(),
        out.shape(),
        kept.shape(),
        bound.map(Tensor::shape),
        variance.map(Tensor::shape)
    );
    let (size, bounded, learned) = (Size::of("denoise", x.shape()), bound.is_some(), variance.is_some());
    let (place_of_bound, place_of_variance) = (3, 3 + usize::from(bounded));
    let launch = launch_of(
        "denoise",
        move |io| {
            let (x, out, state) = (io.write(0), io.read(0), State::from_words(io.read_u32(2)));
            let row = Row::named(io.read(1), state.row);
            let bound = bounded.then(|| io.read(place_of_bound));
            let variance = learned.then(|| io.read(place_of_variance));
            let (total, shared) = (x.len(), Shared::new(io.write(1)));
            size.chunks(x).for_each(|chunk| {
                let (first, count) = (chunk.range.start, chunk.y.len());
                let mut kept: [&mut [f32]; 1 + SLOTS] = Default::default();
                for (slot, kept_slot) in kept[..=slots].iter_mut().enumerate() {
                    // SAFETY: every task has a range of its own, the same of each tensor.
                    *kept_slot = unsafe { shared.part(slot * total + first, count) };
                }
                let bound = bound.map(|bound| bound[chunk.sample]);
                let out = &out[chunk.range.clone()];
                let variance = variance.map(|variance| &variance[chunk.range.clone()]);
                vectorized(
                    #[inline(always)]
                    || advance(chunk, (out, variance), &mut kept[..=slots], &row, bound, &state),
                );
            });
        },
        move |plan| {
            dispatch(
                plan,
                "denoise",
                size,
                [rows, slots, 0, usize::from(bounded), usize::from(learned)],
                [0.0; 2],
            )
            .read("out", 0)
            .read("table", 1)
            .read("state", 2)
            .read("bound", if bounded { place_of_bound } else { 0 })
            .read("variance", if learned { place_of_variance } else { 0 })
            .write("x", 0)
            .write("kept", 1)
            .cover(size.blocks(), 256);
        },
    );
    let reads: Vec<&Tensor> = [out, table, state].into_iter().chain(bound).chain(variance).collect();
    // x and the slots are updated in place.
    let extra_bytes = ((1 + slots) * x.elements() * 4) as i64;
    let launch = Recorded::new(launch, LaunchInfo { extra_bytes, ..LaunchInfo::default() });
    x.tape().launch_into(launch, &reads, &[x, kept]);
}

/// Each sample's bound of the predicted `x0`, `[N]`: the quantile `ratio` of its absolute values,
/// linear between neighbours, at least 1 and at most `most`. Other arguments as for [`denoise`].
#[track_caller]
pub fn bounds(x: &Tensor, out: &Tensor, table: &Tensor, state: &Tensor, ratio: f64, most: f32) -> Tensor {
    let rows = rows_of("bounds", table);
    assert_is_state("bounds", state);
    assert!(
        out.elements() == x.elements() && (0.0..=1.0).contains(&ratio),
        "bounds: x {} with output {}, ratio {ratio}",
        x.shape(),
        out.shape()
    );
    let size = Size::of("bounds", x.shape());
    let place = ratio * (size.elements - 1) as f64;
    let (rank, fraction) = (place.floor() as usize, place.fract() as f32); // of the lower neighbour
    let launch = launch_of(
        "bounds",
        move |io| {
            let (x, out, elements) = (io.read(0), io.read(1), size.elements);
            let row = Row::named(io.read(2), State::from_words(io.read_u32(3)).row);
            let samples = x.par_chunks(elements).zip(out.par_chunks(elements));
            let sizes = io.scratch(0).par_chunks_mut(elements).zip(io.write(0));
            samples.zip(sizes).for_each(|((x, out), (sizes, bound))| {
                for ((size, x), out) in sizes.iter_mut().zip(x).zip(out) {
                    *size = row.raw_x0(*x, *out).abs();
                }
                let (_, low, above) = sizes.select_nth_unstable_by(rank, f32::total_cmp);
                let mut quantile = *low;
                if fraction > 0.0 {
                    let high = above.iter().copied().min_by(f32::total_cmp).unwrap_or(*low);
                    quantile += (high - quantile) * fraction;
                }
                *bound = quantile.max(1.0).min(most);
            });
        },
        move |plan| {
            dispatch(plan, "find_bounds", size, [rows, 0, rank, 0, 0], [fraction, most])
                .read("x", 0)
                .read("out", 1)
                .read("table", 2)
                .read("state", 3)
                .write("bounds", 0)
                .cover(size.samples, 1);
        },
    );
    let launch =
        Recorded::new(launch, LaunchInfo { cpu_scratch: vec![x.elements()], ..LaunchInfo::default() });
    let [bound] = x.tape().launch(launch, &[x, out, table, state], [[size.samples].into()]);
    bound
}

/// The timestep of row `state.row` of `table [S, 72]`, `n` times: what the model is told, `[n]`.
#[track_caller]
pub fn timestep_of_row(n: usize, table: &Tensor, state: &Tensor) -> Tensor {
    column_of_row("timestep_of_row", 0, n, table, state)
}

/// What a classifier's gradient is multiplied by in row `state.row` of `table [S, 72]`, `n` times, `[n]`.
#[track_caller]
pub fn guide_of_row(n: usize, table: &Tensor, state: &Tensor) -> Tensor {
    column_of_row("guide_of_row", 7, n, table, state)
}

#[track_caller]
fn column_of_row(op: &'static str, column: usize, n: usize, table: &Tensor, state: &Tensor) -> Tensor {
    let rows = rows_of(op, table);
    assert_is_state(op, state);
    let launch = launch_of(
        op,
        move |io| {
            let row = State::from_words(io.read_u32(1)).row;
            io.write(0).fill(Row::named(io.read(0), row).elements()[column]);
        },
        move |plan| {
            let size = Size { samples: n, elements: 1 };
            let dispatch = dispatch(plan, "column_of_row", size, [rows, 0, column, 0, 0], [0.0; 2]);
            dispatch.read("table", 0).read("state", 1).write("t", 0).cover(n, 256);
        },
    );
    let [t] = table.tape().launch(launch, &[table, state], [[n].into()]);
    t
}

#[track_caller]
fn rows_of(op: &str, table: &Tensor) -> usize {
    let [rows, columns] = table.shape().of_rank(op);
    assert!(rows > 0 && columns == Row::COLUMNS, "{op}: table {}, which must be [S, 72]", table.shape());
    rows
}

/// A dispatch with what an entry does not use left 0.
fn dispatch<'a>(
    plan: &'a mut Dispatches,
    entry: &'static str,
    size: Size,
    [rows, slots, rank, bounded, learned]: [usize; 5],
    [fraction, most]: [f32; 2],
) -> &'a mut Dispatch {
    plan.add(&KERNEL, entry)
        .params([("samples", size.samples), ("elements", size.elements)])
        .params([("rows", rows), ("slots", slots), ("rank", rank), ("bounded", bounded)])
        .params([("learned", learned)])
        .param("fraction", fraction)
        .param("most", most)
}

/// Normal numbers that the CPU twin makes at a time, on its stack.
const AT_A_TIME: usize = 256;

/// The step of a chunk of x, with the model's output, what it says of the variance, and `kept` of the same
/// elements: x0, then the slots.
#[inline(always)]
fn advance(
    x: Chunk,
    (out, variance): (&[f32], Option<&[f32]>),
    kept: &mut [&mut [f32]],
    row: &Row,
    bound: Option<f32>,
    state: &State,
) {
    let Chunk { sample, block, y: x, .. } = x;
    let clip = if row.clip > 0.0 { row.clip } else { f32::INFINITY };
    let (limit, divisor) = bound.map_or((clip, 1.0), |bound| (bound, bound));
    let sample = state.first_sample.wrapping_add(sample as u32);
    let mut z = [0.0; AT_A_TIME];
    for first in (0..x.len()).step_by(AT_A_TIME) {
        let count = AT_A_TIME.min(x.len() - first);
        if row.sigma != 0.0 {
            let block = block + (first / 4) as u32;
            fill_normal(&mut z[..count], state.seed, Stream::Reverse as u32, state.row, sample, block);
            if let Some(variance) = variance {
                let [c, h] = row.log_variance;
                for (z, v) in z.iter_mut().zip(&variance[first..first + count]) {
                    *z *= exp(0.5 * (c + h * v));
                }
            }
        }
        for (i, z) in (first..first + count).zip(&z) {
            let (noisy, out) = (x[i], out[i]);
            let x0 = within(row.raw_x0(noisy, out), limit) / divisor;
            let mut values = [0.0; SLOTS];
            for (value, slot) in values.iter_mut().zip(&kept[1..]) {
                *value = slot[i];
            }
            kept[0][i] = x0;
            x[i] = value(&row.next, x0, noisy, out, &values) + row.sigma * z;
            for (slot, form) in kept[1..].iter_mut().zip(&row.keep) {
                slot[i] = value(form, x0, noisy, out, &values);
            }
        }
    }
}

#[cfg(test)]
mod tests;
