//! The timesteps of a batch, where they are not drawn evenly and each on its own.

use rayon::prelude::*;

use crate::device::gpu::shader::Kernel;
use crate::kernel;
use crate::launch::launch_of;
use crate::ops::shared::assert_is_state;
use crate::philox::{Stream, below, draw, uniform};
use crate::state::State;
use crate::tape::Tensor;

pub(crate) static KERNEL: Kernel = kernel!("timesteps");

/// How timesteps below `steps` are drawn.
#[derive(Clone, Debug, PartialEq)]
pub struct Draw {
    /// T.
    pub steps: usize,
    /// Samples of a whole step, whose numbers lie in equal distances modulo 1; `None`: each has its own.
    pub spread_over: Option<usize>,
}

impl Draw {
    /// Of 2^32, from one sample to the next.
    fn stride(&self) -> u32 {
        self.spread_over.map_or(0, |samples| ((1_u64 << 32) / samples.max(2) as u64) as u32)
    }

    /// The timestep of sample `sample` of a step. `sums [T]` of the probabilities up to and with each
    /// timestep; `None`: they are alike.
    pub fn of(&self, state: &State, sample: u32, sums: Option<&[f32]>) -> usize {
        let stride = self.stride();
        let drawn = if stride == 0 { sample } else { 0 };
        let word = draw(state.seed, Stream::Timestep as u32, state.step, drawn, 0)[0];
        let word = word.wrapping_add(sample.wrapping_mul(stride));
        match sums {
            None => below(word, self.steps),
            Some(sums) => sums[..self.steps - 1].partition_point(|sum| uniform(word) >= *sum),
        }
    }
}

/// Timesteps `[N]` of the samples from `state.first_sample` on at `state.step`, whole numbers below
/// `draw.steps`. `sums [T]`: probabilities, each with all before it; `None`: they are alike.
#[track_caller]
pub fn timesteps(samples: usize, draw: &Draw, sums: Option<&Tensor>, state: &Tensor) -> Tensor {
    assert_is_state("timesteps", state);
    assert!(
        samples > 0 && draw.steps > 0 && sums.is_none_or(|sums| sums.elements() == draw.steps),
        "timesteps: {samples} samples of {} timesteps with the sums {:?}",
        draw.steps,
        sums.map(Tensor::shape)
    );
    let (drawn, weighted) = (draw.clone(), sums.is_some());
    let (steps, stride) = (draw.steps, draw.stride());
    let launch = launch_of(
        "timesteps",
        move |io| {
            let (state, sums) = (State::from_words(io.read_u32(0)), weighted.then(|| io.read(1)));
            io.write(0).par_iter_mut().enumerate().for_each(|(n, t)| {
                *t = drawn.of(&state, state.first_sample.wrapping_add(n as u32), sums) as f32;
            });
        },
        move |plan| {
            plan.add(&KERNEL, "timesteps")
                .params([("samples", samples), ("elements", 1), ("steps", steps)])
                .param("stride", stride)
                .param("weighted", weighted)
                .read("state", 0)
                .read("sums", usize::from(weighted))
                .write("t", 0)
                .cover(samples, 256);
        },
    );
    let reads: Vec<&Tensor> = [state].into_iter().chain(sums).collect();
    let [t] = state.tape().launch(launch, &reads, [[samples].into()]);
    t
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Check;

    fn some_state() -> State {
        State { seed: 0x1234_5678_9abc_def0, step: 77, first_sample: 5, ..State::default() }
    }

    fn sums_of(p: &[f32]) -> Vec<f32> {
        let total: f32 = p.iter().sum();
        p.iter()
            .scan(0.0, |sum, p| {
                *sum += p / total;
                Some(*sum)
            })
            .collect()
    }

    fn run(samples: usize, draw: &Draw, sums: Option<Vec<f32>>) {
        let mut check = Check::new(format!("timesteps {draw:?}"))
            .tolerance(0.0)
            .words(&[State::WORDS], some_state().words().to_vec());
        if let Some(sums) = &sums {
            check = check.fixed(&[sums.len()], sums.clone());
        }
        check.run(
            |x| timesteps(samples, draw, x.get(1), &x[0]),
            |_| {
                let of = |n: usize| draw.of(&some_state(), 5 + n as u32, sums.as_deref()) as f64;
                (0..samples).map(of).collect()
            },
        );
    }

    #[test]
    fn the_kernel_draws_what_the_host_draws() {
        for samples in [1, 7, 513] {
            for spread_over in [None, Some(8), Some(samples + 5)] {
                for steps in [1, 4, 1000] {
                    let draw = Draw { steps, spread_over };
                    run(samples, &draw, None);
                    run(
                        samples,
                        &draw,
                        Some(sums_of(
                            &crate::check::random(3, steps).iter().map(|p| p.abs()).collect::<Vec<_>>(),
                        )),
                    );
                }
            }
        }
    }

    /// Without probabilities and strides: as `noising` draws them.
    #[test]
    fn by_default_as_noising_draws_them() {
        let state = some_state();
        for sample in 0..100 {
            let word = draw(state.seed, Stream::Timestep as u32, state.step, sample, 0)[0];
            let wanted = (f64::from(word) / 4_294_967_296.0 * 1000.0).floor() as usize;
            assert_eq!(Draw { steps: 1000, spread_over: None }.of(&state, sample, None), wanted);
        }
    }

    /// Kingma et al.'s t of a batch of 8 are equally far from one another around the circle.
    #[test]
    fn a_spread_batch_has_one_timestep_in_each_part() {
        let draw = Draw { steps: 1000, spread_over: Some(8) };
        for step in 0..50 {
            let state = State { step, ..some_state() };
            let mut t: Vec<usize> = (0..8).map(|n| draw.of(&state, n, None)).collect();
            assert_eq!((t[1] + 1000 - t[0]) % 1000 / 5, 25, "the order is that of the samples: {t:?}");
            t.sort_unstable();
            assert!(t.iter().enumerate().all(|(n, t)| t / 125 == n), "{t:?}");
        }
    }

    #[test]
    fn probabilities_are_met() {
        let p = [0.139, 0.27775, 0.55525, 0.028];
        for spread_over in [None, Some(100_000)] {
            let (draw, sums) = (Draw { steps: 4, spread_over }, sums_of(&p));
            let mut counts = [0_usize; 4];
            (0..100_000).for_each(|n| counts[draw.of(&some_state(), n, Some(&sums))] += 1);
            for (count, p) in counts.into_iter().zip(p) {
                let tolerance = if spread_over.is_some() { 2e-5 } else { 6e-3 };
                assert!((count as f32 / 1e5 - p).abs() <= tolerance, "{counts:?}");
            }
        }
    }
}
