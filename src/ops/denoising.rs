//! The reverse process of diffusion: one ancestral step, recorded once and replayed for every row.

use rayon::prelude::*;

use crate::device::gpu::shader::Kernel;
use crate::kernel;
use crate::launch::{Cost, Dispatches, Io, Launch};
use crate::ops::CHUNK;
use crate::ops::shared::{Size, assert_is_state, first_block};
use crate::philox::{Stream, fill_normal};
use crate::simd::vectorized;
use crate::state::State;
use crate::tape::Tensor;

pub static KERNEL: Kernel = kernel!("denoising");

/// One reverse step, a row of the sampler's table. Source: Ho et al. 2020, equation 7 and algorithm 2.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Row {
    /// `sqrt(1 / abar)` and `sqrt(1 / abar - 1)`: the predicted `x0` is `r0 x - r1 eps`.
    pub r0: f32,
    pub r1: f32,
    /// The mean is `coef_x0 x0 + coef_x x`.
    pub coef_x0: f32,
    pub coef_x: f32,
    /// Standard deviation of the noise; no noise is drawn where it is 0.
    pub sigma: f32,
    /// `x0` is kept in `[-clip, clip]`, unless this is 0.
    pub clip: f32,
    /// What the model is told.
    pub t: f32,
}

impl Row {
    /// Elements of a row in the stored table.
    pub const COLUMNS: usize = 8;

    /// As it stands in the table.
    pub fn elements(&self) -> [f32; Self::COLUMNS] {
        [self.r0, self.r1, self.coef_x0, self.coef_x, self.sigma, self.clip, self.t, 0.0]
    }

    #[inline(always)]
    fn x0(&self, x: f32, eps: f32) -> f32 {
        let predicted = self.r0 * x - self.r1 * eps;
        let limit = if self.clip > 0.0 { self.clip } else { f32::INFINITY };
        // Not min and max, which would turn a NaN of the model into a number.
        let below = if predicted > limit { limit } else { predicted };
        if below < -limit { -limit } else { below }
    }

    /// The row that the state names. One past the end means the last, as in the kernel.
    fn named(table: &[f32], row: u32) -> Self {
        let last = table.len() / Self::COLUMNS - 1;
        let row = &table[(row as usize).min(last) * Self::COLUMNS..][..Self::COLUMNS];
        Row {
            r0: row[0],
            r1: row[1],
            coef_x0: row[2],
            coef_x: row[3],
            sigma: row[4],
            clip: row[5],
            t: row[6],
        }
    }
}

/// One ancestral step of the samples `x [N, ..]` (stored, updated in place) with the model's `eps`, by row
/// `state.row` of `table [S, 8]` (of [`Row::elements`]). The predicted clean samples are written to `x0` if
/// it is given (stored, of x's shape).
///
/// Noise is that of stream `Reverse` at step `state.row` for the samples from `state.first_sample` on, so
/// that one recorded program makes all steps: only the state changes between them.
#[track_caller]
pub fn denoise(x: &Tensor, eps: &Tensor, table: &Tensor, state: &Tensor, x0: Option<&Tensor>) {
    let rows = rows_of("denoise", table);
    assert_is_state("denoise", state);
    for other in [Some(eps), x0].into_iter().flatten() {
        assert!(
            other.elements() == x.elements(),
            "denoise: x {} with eps {} and x0 {:?}",
            x.shape(),
            eps.shape(),
            x0.map(Tensor::shape)
        );
    }
    let launch = Denoise { size: Size::of("denoise", x.shape()), rows, shows_x0: x0.is_some() };
    let writes: Vec<&Tensor> = [Some(x), x0].into_iter().flatten().collect();
    x.tape().launch_into(launch, &[eps, table, state], &writes);
}

/// The timestep of row `state.row` of `table [S, 8]`, `n` times: what the model is told, `[n]`.
#[track_caller]
pub fn timestep_of_row(n: usize, table: &Tensor, state: &Tensor) -> Tensor {
    let rows = rows_of("timestep_of_row", table);
    assert_is_state("timestep_of_row", state);
    let [t] = table.tape().launch(TimestepOfRow { n, rows }, &[table, state], [[n].into()]);
    t
}

#[track_caller]
fn rows_of(op: &str, table: &Tensor) -> usize {
    let [rows, columns] = table.shape().of_rank(op);
    assert!(rows > 0 && columns == Row::COLUMNS, "{op}: table {}, which must be [S, 8]", table.shape());
    rows
}

#[derive(Debug)]
struct Denoise {
    size: Size,
    rows: usize,
    shows_x0: bool,
}

/// Normal numbers that the CPU twin makes at a time, on its stack.
const AT_A_TIME: usize = 256;

impl Launch for Denoise {
    fn name(&self) -> &'static str {
        "denoise"
    }

    fn cost(&self, bytes: u64) -> Cost {
        // x is updated in place.
        Cost { flops: 0, bytes: bytes + (self.size.samples * self.size.elements * 4) as u64 }
    }

    fn cpu(&self, io: &Io) {
        let (x, eps, state) = (io.write(0), io.read(0), State::from_words(io.read_u32(2)));
        let row = Row::named(io.read(1), state.row);
        if self.shows_x0 {
            let inputs = x.par_chunks(CHUNK).zip(eps.par_chunks(CHUNK));
            io.write(1).par_chunks_mut(CHUNK).zip(inputs).for_each(|(x0, (x, eps))| {
                vectorized(
                    #[inline(always)]
                    || {
                        for ((x0, x), eps) in x0.iter_mut().zip(x).zip(eps) {
                            *x0 = row.x0(*x, *eps);
                        }
                    },
                );
            });
        }
        let samples = x.par_chunks_mut(self.size.elements).zip(eps.par_chunks(self.size.elements));
        samples.enumerate().for_each(|(n, (x, eps))| {
            let sample = state.first_sample.wrapping_add(n as u32);
            let pieces = x.par_chunks_mut(CHUNK).zip(eps.par_chunks(CHUNK));
            pieces.enumerate().for_each(|(piece, (x, eps))| {
                vectorized(
                    #[inline(always)]
                    || {
                        let mut z = [0.0; AT_A_TIME];
                        let mut block = first_block(piece);
                        for (x, eps) in x.chunks_mut(AT_A_TIME).zip(eps.chunks(AT_A_TIME)) {
                            if row.sigma != 0.0 {
                                let z = &mut z[..x.len()];
                                fill_normal(z, state.seed, Stream::Reverse as u32, state.row, sample, block);
                            }
                            for ((x, eps), z) in x.iter_mut().zip(eps).zip(&z) {
                                *x = row.coef_x0 * row.x0(*x, *eps) + row.coef_x * *x + row.sigma * z;
                            }
                            block += (AT_A_TIME / 4) as u32;
                        }
                    },
                );
            });
        });
    }

    fn gpu(&self, plan: &mut Dispatches) {
        let entry = if self.shows_x0 { "denoise_showing_x0" } else { "denoise" };
        let dispatch = plan
            .add(&KERNEL, entry)
            .param("samples", self.size.samples)
            .param("elements", self.size.elements)
            .param("rows", self.rows)
            .read("eps", 0)
            .read("table", 1)
            .read("state", 2)
            .write("x", 0)
            .cover(self.size.blocks(), 256);
        if self.shows_x0 {
            dispatch.write("x0", 1);
        }
    }
}

#[derive(Debug)]
struct TimestepOfRow {
    n: usize,
    rows: usize,
}

impl Launch for TimestepOfRow {
    fn name(&self) -> &'static str {
        "timestep_of_row"
    }

    fn cpu(&self, io: &Io) {
        let state = State::from_words(io.read_u32(1));
        io.write(0).fill(Row::named(io.read(0), state.row).t);
    }

    fn gpu(&self, plan: &mut Dispatches) {
        plan.add(&KERNEL, "timestep_of_row")
            .param("samples", self.n)
            .param("elements", 1_u32) // of t
            .param("rows", self.rows)
            .read("table", 0)
            .read("state", 1)
            .write("t", 0)
            .cover(self.n, 256);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::{Check, devices, random};
    use crate::device::Device;
    use crate::ops::noising::tests::noise;
    use crate::program::{Plan, Program, Sharing};
    use crate::tape::Tape;

    /// Three steps that differ in what they do: far out with noise and clipping, unclipped, and the last,
    /// without noise.
    const ROWS: [Row; 3] = [
        Row { r0: 12.5, r1: 12.46, coef_x0: 0.04, coef_x: 0.96, sigma: 0.3, clip: 1.0, t: 999.0 },
        Row { r0: 1.5, r1: 1.118, coef_x0: 0.5, coef_x: 0.45, sigma: 0.1, clip: 0.0, t: 412.5 },
        Row { r0: 1.01, r1: 0.1418, coef_x0: 1.0, coef_x: 0.0, sigma: 0.0, clip: 0.75, t: 0.0 },
    ];

    fn state(row: u32) -> State {
        State { seed: 99 << 32 | 5, step: 123_456, first_sample: 40, row, ..State::default() }
    }

    /// Equation 7 of Ho et al., element by element: x and x0.
    fn reference(x: &[f64], eps: &[f32], samples: usize, k: usize) -> (Vec<f64>, Vec<f64>) {
        let row = ROWS[k.min(2)].elements().map(f64::from);
        let elements = x.len() / samples;
        let (mut next, mut x0) = (Vec::new(), Vec::new());
        for n in 0..samples {
            let z = noise(&state(k as u32), Stream::Reverse, k as u32, n, elements);
            for e in 0..elements {
                let (x, eps) = (x[n * elements + e], f64::from(eps[n * elements + e]));
                let mut predicted = row[0] * x - row[1] * eps;
                if row[5] > 0.0 {
                    predicted = predicted.clamp(-row[5], row[5]);
                }
                x0.push(predicted);
                next.push(row[2] * predicted + row[3] * x + row[4] * z[e]);
            }
        }
        (next, x0)
    }

    fn close(got: &[f32], wanted: &[f64], what: &str) {
        for (i, (got, wanted)) in got.iter().zip(wanted).enumerate() {
            // r0 x and r1 eps cancel, which leaves the rounding of numbers near 12.
            let err = (f64::from(*got) - wanted).abs();
            assert!(err <= 4e-6, "{what} at {i} is {got}, wanted {wanted}");
        }
    }

    #[test]
    fn three_steps_of_one_program() {
        let shapes: [&[usize]; 6] = [&[1, 1], &[3, 5], &[2, 3, 4, 7], &[300, 4], &[2, 16_390], &[4, 257]];
        for (shape, shows_x0) in shapes.into_iter().zip([false, true].into_iter().cycle()) {
            let count: usize = shape.iter().product();
            let (start, eps) = (random(1, count), random(2, count));
            let mut cpu: Option<Vec<f32>> = None;
            for (name, device) in devices() {
                let tape = Tape::new();
                let (x, x0) = (tape.stored("x", 0, shape), tape.stored("x0", 0, shape));
                let table = tape.stored("table", 0, [3, Row::COLUMNS]);
                let words = tape.stored_u32("state", [State::WORDS]);
                denoise(&x, &tape.stored("eps", 0, shape), &table, &words, shows_x0.then_some(&x0));
                let plan = Plan::new(&tape, &[], device);
                let mut program = Program::compile(&plan, device, &[], Sharing::Guarded).unwrap();
                program.write("x", &start).unwrap();
                program.write("eps", &eps).unwrap();
                program.write("table", &ROWS.map(|row| row.elements()).concat()).unwrap();
                let mut wanted: Vec<f64> = start.iter().map(|&x| f64::from(x)).collect();
                // Row 7 does not exist: the last one is taken.
                for k in [0, 1, 2, 7] {
                    program.write("state", &state(k as u32).words()).unwrap();
                    program.run().unwrap();
                    let at = format!("{shape:?} on {name}, row {k}:");
                    let (next, predicted) = reference(&wanted, &eps, shape[0], k);
                    let got = program.read(&x).unwrap();
                    close(&got, &next, &format!("{at} x"));
                    if shows_x0 {
                        close(&program.read(&x0).unwrap(), &predicted, &format!("{at} x0"));
                    }
                    wanted = got.into_iter().map(f64::from).collect();
                }
                let got = program.read(&x).unwrap();
                match &cpu {
                    None => cpu = Some(got),
                    Some(cpu) if name.starts_with("cpu") => assert_eq!(cpu, &got, "threads matter"),
                    Some(cpu) => {
                        let cpu: Vec<f64> = cpu.iter().map(|&x| f64::from(x)).collect();
                        close(&got, &cpu, &format!("{shape:?} on {name}, against the CPU device:"));
                    }
                }
            }
        }
    }

    #[test]
    fn a_bad_prediction_shows() {
        for (name, device) in devices() {
            let tape = Tape::new();
            let (x, words) = (tape.stored("x", 0, [1, 3]), tape.stored_u32("state", [State::WORDS]));
            denoise(&x, &tape.stored("eps", 0, [1, 3]), &tape.stored("table", 0, [3, 8]), &words, None);
            let plan = Plan::new(&tape, &[], device);
            let mut program = Program::compile(&plan, device, &[], Sharing::Shared).unwrap();
            program.write("eps", &[0.5, f32::NAN, 0.5]).unwrap();
            program.write("table", &ROWS.map(|row| row.elements()).concat()).unwrap();
            program.write("state", &state(2).words()).unwrap();
            program.run().unwrap();
            let got = program.read(&x).unwrap();
            assert!(got[0].is_finite() && got[1].is_nan() && got[2].is_finite(), "on {name}: {got:?}");
        }
    }

    #[test]
    fn past_65535_workgroups() {
        let samples = 65_536 * 256 + 3;
        for (name, device) in devices().iter().filter(|(_, device)| matches!(device, Device::Gpu(_))) {
            let tape = Tape::new();
            let (x, words) = (tape.stored("x", 0, [samples, 1]), tape.stored_u32("state", [State::WORDS]));
            let eps = tape.stored("eps", 0, [samples, 1]);
            denoise(&x, &eps, &tape.stored("table", 0, [3, 8]), &words, None);
            let plan = Plan::new(&tape, &[], device);
            let mut program = Program::compile(&plan, device, &[], Sharing::Shared).unwrap();
            program.write("eps", &vec![0.5_f32; samples]).unwrap();
            program.write("table", &ROWS.map(|row| row.elements()).concat()).unwrap();
            program.write("state", &state(2).words()).unwrap();
            program.run().unwrap();
            assert!(program.read(&x).unwrap().iter().all(|x| (x + 0.0709).abs() < 1e-6), "on {name}");
        }
    }

    #[test]
    fn the_model_is_told_the_timestep_of_the_row() {
        for (n, row) in [(1, 0), (7, 1), (257, 2), (3, 1000)] {
            Check::new("timestep_of_row")
                .fixed(&[3, Row::COLUMNS], ROWS.map(|row| row.elements()).concat())
                .words(&[State::WORDS], state(row).words().to_vec())
                .run(
                    |x| timestep_of_row(n, &x[0], &x[1]),
                    |x| vec![x[0][(x[1][8] as usize).min(2) * 8 + 6]; n],
                );
        }
    }

    #[test]
    #[should_panic(expected = "denoise: x [2, 3] with eps [2, 4]")]
    fn shapes_must_agree() {
        let tape = Tape::new();
        let of = |name: &str, shape: [usize; 2]| tape.stored(name, 0, shape);
        let state = tape.stored_u32("state", [State::WORDS]);
        denoise(&of("x", [2, 3]), &of("eps", [2, 4]), &of("table", [3, 8]), &state, None);
    }
}
