//! The forward process of diffusion: random timesteps and noise for clean samples; and plain normal noise.

use rayon::prelude::*;

use crate::device::gpu::shader::Kernel;
use crate::kernel;
use crate::launch::{CHUNK, Dispatch, Dispatches, launch_of};
use crate::ops::shared::{Chunk, Size, assert_is_state};
use crate::philox::{Stream, below, draw, fill_normal};
use crate::simd::vectorized;
use crate::state::State;
use crate::tape::Tensor;
use crate::tensor::Shape;

pub(crate) static KERNEL: Kernel = kernel!("noising");

/// Noisy samples, what a model is to predict of them, and their timesteps: `(x_t, target, t)`, where `x_t = a
/// x0 + b eps` and `target = c x0 + d eps` with `(a, b, c, d) = table[t]` and standard normal `eps`. `t [N]`
/// are the given timesteps, whole numbers, of which one past the end means the last; or drawn evenly from
/// `0..T`.
///
/// `x0 [N, ..]`, `table [T, 4]` with `sqrt(abar)` and `sqrt(1 - abar)`, then 0 and 1 where the noise is the
/// target; `state` the sixteen words of [`State`]: sample `n` of the batch draws the numbers of sample
/// `first_sample + n` at `step`. `x0` gets no gradient: it is data, or latents of a model that is not trained
/// here. Source: Ho et al. 2020, equation 4 and algorithm 1.
#[track_caller]
pub fn noising(x0: &Tensor, table: &Tensor, state: &Tensor, t: Option<&Tensor>) -> (Tensor, Tensor, Tensor) {
    let [steps, columns] = table.shape().of_rank("noising");
    let size = Size::of("noising", x0.shape());
    assert!(
        steps > 0 && columns == 4 && t.is_none_or(|t| t.elements() == size.samples),
        "noising: x0 {} with table {}, which must be [T, 4], and timesteps {:?}",
        x0.shape(),
        table.shape(),
        t.map(Tensor::shape)
    );
    assert_is_state("noising", state);
    let given = t.is_some();
    let shapes = [x0.shape().clone(), x0.shape().clone(), [size.samples].into()];
    let launch = launch_of(
        "noising",
        move |io| {
            let (x0, table, state) = (io.read(0), io.read(1), State::from_words(io.read_u32(2)));
            let x_t = io.write(0).par_chunks_mut(size.elements).zip(x0.par_chunks(size.elements));
            let given = given.then(|| io.read(3));
            let samples = x_t.zip(io.write(1).par_chunks_mut(size.elements)).zip(io.write(2));
            samples.enumerate().for_each(|(n, (((x_t, x0), target), t))| {
                let sample = state.first_sample.wrapping_add(n as u32);
                let word = draw(state.seed, Stream::Timestep as u32, state.step, sample, 0)[0];
                let step = given.map_or_else(|| below(word, steps), |t| (t[n] as usize).min(steps - 1));
                let [a, b, c, d] = std::array::from_fn(|i| table[4 * step + i]);
                *t = step as f32;
                let chunks = x_t.par_chunks_mut(CHUNK).zip(target.par_chunks_mut(CHUNK));
                chunks.zip(x0.par_chunks(CHUNK)).enumerate().for_each(|(chunk, ((x_t, target), x0))| {
                    vectorized(
                        #[inline(always)]
                        || {
                            let (stream, block) = (Stream::Noise as u32, (chunk * (CHUNK / 4)) as u32);
                            fill_normal(target, state.seed, stream, state.step, sample, block);
                            for ((x_t, target), x0) in x_t.iter_mut().zip(target).zip(x0) {
                                let eps = *target;
                                *x_t = a * x0 + b * eps;
                                *target = c * x0 + d * eps;
                            }
                        },
                    );
                });
            });
        },
        move |plan| {
            let noising = dispatch(plan, "noising", size, steps, Stream::Noise).read("x0", 0);
            noising.param("given", given).read("given_t", if given { 3 } else { 0 });
            noising.read("table", 1).read("state", 2).write("x_t", 0).write("target_values", 1).write("t", 2);
        },
    );
    let reads: Vec<&Tensor> = [x0, table, state].into_iter().chain(t).collect();
    let [x_t, target, t] = x0.tape().launch(launch, &reads, shapes).map(Tensor::exact);
    (x_t, target, t)
}

/// Standard normal numbers of `stream` for the samples from `state.first_sample` on at `state.step`.
/// `shape` is `[N, ..]`.
#[track_caller]
pub fn gaussian(shape: impl Into<Shape>, stream: Stream, state: &Tensor) -> Tensor {
    let shape = shape.into();
    assert_is_state("gaussian", state);
    let size = Size::of("gaussian", &shape);
    let launch = launch_of(
        "gaussian",
        move |io| {
            let state = State::from_words(io.read_u32(0));
            size.chunks(io.write(0)).for_each(|Chunk { sample, block, y, .. }| {
                let sample = state.first_sample.wrapping_add(sample as u32);
                vectorized(
                    #[inline(always)]
                    || fill_normal(y, state.seed, stream as u32, state.step, sample, block),
                );
            });
        },
        move |plan| {
            // Draws no timestep.
            dispatch(plan, "gaussian", size, 0, stream)
                .param("given", false)
                .read("state", 0)
                .write("eps", 0);
        },
    );
    let [z] = state.tape().launch(launch, &[state], [shape]);
    z.exact()
}

fn dispatch<'a>(
    plan: &'a mut Dispatches,
    entry: &'static str,
    size: Size,
    steps: usize,
    stream: Stream,
) -> &'a mut Dispatch {
    plan.add(&KERNEL, entry)
        .params([("samples", size.samples), ("elements", size.elements), ("steps", steps)])
        .param("stream", stream as u32)
        .cover(size.blocks(), 256)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::check::{Check, devices};
    use crate::device::Device;
    use crate::philox::normal_f64;
    use crate::program::{Plan, Program, Sharing};
    use crate::tape::Tape;

    fn some_state() -> State {
        State { seed: 0x1234_5678_9abc_def0, step: 77, first_sample: 1000, ..State::default() }
    }

    /// Normal numbers of one sample by the formula.
    pub(crate) fn noise(state: &State, stream: Stream, step: u32, n: usize, elements: usize) -> Vec<f64> {
        let sample = state.first_sample.wrapping_add(n as u32);
        let block = |e: usize| normal_f64(draw(state.seed, stream as u32, step, sample, e as u32 / 4));
        (0..elements).map(|e| block(e)[e % 4]).collect()
    }

    pub(crate) fn state_of(words: &[f64]) -> State {
        State::from_words(&words.iter().map(|&w| w as u32).collect::<Vec<_>>())
    }

    /// `x_t`, the target or `t`, as `which` says, from x0, table, state, and timesteps where they are given.
    fn reference(x: &[Vec<f64>], samples: usize, which: usize) -> Vec<f64> {
        let (elements, steps, state) = (x[0].len() / samples, x[1].len() / 4, state_of(&x[2]));
        let mut outputs = [Vec::new(), Vec::new(), Vec::new()];
        for n in 0..samples {
            let sample = state.first_sample + n as u32;
            let word = draw(state.seed, Stream::Timestep as u32, state.step, sample, 0)[0];
            let drawn = (f64::from(word) / 4_294_967_296.0 * steps as f64).floor();
            let t = x.get(3).map_or(drawn, |given| given[n]);
            let eps = noise(&state, Stream::Noise, state.step, n, elements);
            for e in 0..elements {
                let row = &x[1][4 * t as usize..][..4];
                outputs[0].push(row[0] * x[0][n * elements + e] + row[1] * eps[e]);
                outputs[1].push(row[2] * x[0][n * elements + e] + row[3] * eps[e]);
            }
            outputs[2].push(t);
        }
        outputs[which].clone()
    }

    fn table(steps: usize) -> Vec<f32> {
        (0..steps)
            .flat_map(|t| {
                let abar = 1.0 - (t as f32 + 0.5) / steps as f32;
                let (a, b) = (abar.sqrt(), (1.0 - abar).sqrt());
                if t % 2 == 0 { [a, b, 0.0, 1.0] } else { [a, b, -b, a] }
            })
            .collect()
    }

    fn check(shape: &[usize], steps: usize, state: State, which: usize) {
        Check::new(format!("noising, output {which}"))
            .tolerance(if which == 2 { 0.0 } else { 4e-7 })
            .fixed(shape, crate::check::random(1, shape.iter().product()))
            .fixed(&[steps, 4], table(steps))
            .words(&[State::WORDS], state.words().to_vec())
            .run(
                |x| {
                    let (x_t, target, t) = noising(&x[0], &x[1], &x[2], None);
                    [x_t, target, t][which].clone()
                },
                |x| reference(x, shape[0], which),
            );
    }

    #[test]
    fn every_output_over_hostile_shapes() {
        for (shape, steps) in [
            (&[1, 1][..], 1),
            (&[3, 5], 7),
            (&[2, 4, 6, 3], 1000),
            (&[257, 3], 1000),
            (&[2, 16_385], 10),
            (&[5], 3),
        ] {
            for which in 0..3 {
                check(shape, steps, some_state(), which);
            }
        }
    }

    #[test]
    fn at_given_timesteps() {
        for which in 0..3 {
            Check::new(format!("noising at given timesteps, output {which}"))
                .tolerance(if which == 2 { 0.0 } else { 4e-7 })
                .fixed(&[3, 5, 2], crate::check::random(1, 30))
                .fixed(&[7, 4], table(7))
                .words(&[State::WORDS], some_state().words().to_vec())
                .fixed(&[3], vec![6.0, 0.0, 3.0])
                .run(
                    |x| {
                        let (x_t, target, t) = noising(&x[0], &x[1], &x[2], Some(&x[3]));
                        [x_t, target, t][which].clone()
                    },
                    |x| reference(x, 3, which),
                );
        }
    }

    #[test]
    fn timesteps_reach_both_ends() {
        check(&[5000, 1], 4, some_state(), 2);
        check(&[5000, 1], 100_003, some_state(), 2);
    }

    #[test]
    fn past_65535_workgroups() {
        // On GPUs alone, and a few samples of it: all of them would take the f64 formula half a minute.
        let (samples, state) = (65_536 * 256 + 3, some_state());
        for (name, device) in devices().iter().filter(|(_, device)| matches!(device, Device::Gpu(_))) {
            let tape = Tape::new();
            let z = gaussian([samples, 1], Stream::Start, &tape.stored_u32("state", [State::WORDS]));
            let mut program =
                Program::compile(&Plan::new(&tape, &[&z], device), device, &[], Sharing::Guarded).unwrap();
            program.write("state", &state.words()).unwrap();
            program.run().unwrap();
            let got = program.read(&z).unwrap();
            assert!(program.guards_intact().unwrap(), "on {name}");
            for n in [0, 65_535 * 256 - 1, 65_535 * 256, 65_536 * 256 - 1, samples - 1] {
                let wanted = noise(&state, Stream::Start, state.step, n, 1)[0];
                assert!((f64::from(got[n]) - wanted).abs() <= 2e-6, "on {name}: sample {n} is {}", got[n]);
            }
            assert!(got.iter().all(|z| z.is_finite()), "on {name}");
        }
    }

    #[test]
    fn gaussian_is_normal_and_accurate_and_follows_the_state() {
        let elements = 100_003;
        let run = |stream: Stream, state: State| {
            Check::new(format!("gaussian {stream:?}"))
                .tolerance(4e-7)
                .words(&[State::WORDS], state.words().to_vec())
                .run(
                    |x| gaussian([2, elements], stream, &x[0]),
                    |x| {
                        let state = state_of(&x[0]);
                        (0..2).flat_map(|n| noise(&state, stream, state.step, n, elements)).collect()
                    },
                );
        };
        let state = some_state();
        run(Stream::Start, state);
        run(Stream::Reverse, State { step: 0, first_sample: u32::MAX, ..state });
        let z: Vec<f64> =
            (0..2).flat_map(|n| noise(&state, Stream::Start, state.step, n, elements)).collect();
        let mean = z.iter().sum::<f64>() / z.len() as f64;
        let variance = z.iter().map(|z| (z - mean).powi(2)).sum::<f64>() / z.len() as f64;
        assert!(mean.abs() < 0.01 && (variance - 1.0).abs() < 0.015, "mean {mean}, variance {variance}");
    }
}
