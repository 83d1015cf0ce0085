//! Draws from normal distributions so that a gradient reaches their parameters: the latents of a VAE.

use rayon::prelude::*;

use crate::device::gpu::shader::Kernel;
use crate::kernel;
use crate::launch::{Launch, launch_of};
use crate::ops::shared::{Chunk, Size, assert_is_state, derivative};
use crate::philox::{Stream, fill_normal};
use crate::simd::{exp, vectorized};
use crate::state::State;
use crate::tape::Tensor;

#[cfg(test)]
mod tests;

/// One set of knobs for drawn noise, one for noise that is given.
pub(crate) static KERNEL: Kernel = kernel!("reparameterise", [[("DRAWN", "true")], [("DRAWN", "false")]]);

/// Where the standard normal numbers of [`reparameterise`] come from.
#[derive(Clone, Copy, Debug)]
pub enum Noise<'a> {
    /// Drawn in the kernel, and again in the backward pass. The step's state, `u32 [16]` (see [`State`]).
    Drawn(&'a Tensor),
    /// These, of the shape of the mean. They are data, and get no gradient.
    Given(&'a Tensor),
}

/// `mean + exp(log_var / 2) * eps` with standard normal `eps`: samples of `N(mean, exp(log_var))`. Source:
/// Kingma & Welling 2014 (arXiv:1312.6114), section 2.4.
///
/// `mean` and `log_var` of one shape `[N, ..]`, and so is the result. Drawn noise is that of stream
/// [`Stream::Posterior`] at `state.step`; sample `n` of the batch draws the numbers of sample
/// `first_sample + n`. So two calls with one state draw the same noise.
#[track_caller]
pub fn reparameterise(mean: &Tensor, log_var: &Tensor, noise: Noise) -> Tensor {
    assert!(
        mean.shape() == log_var.shape(),
        "reparameterise: expected mean and log_var of one shape [N, ..], got {} and {}",
        mean.shape(),
        log_var.shape()
    );
    let (source, drawn) = match noise {
        Noise::Drawn(state) => {
            assert_is_state("reparameterise", state);
            (state, true)
        }
        Noise::Given(eps) => {
            assert!(
                eps.shape() == mean.shape(),
                "reparameterise: expected eps of the shape of mean {}, got {}",
                mean.shape(),
                eps.shape()
            );
            (eps, false)
        }
    };
    let spec = Spec { size: Size::of("reparameterise", mean.shape()), drawn };
    let forward = spec.launch(
        "reparameterise",
        ("forward", "mean", "z"),
        #[inline(always)]
        |mean, log_var, eps| mean + exp(0.5 * log_var) * eps,
    );
    let [z] = mean.tape().launch(forward, &[mean, log_var, source], [mean.shape().clone()]);
    // The kernel binds it as an array of u32.
    let (saved, source) = (log_var.clone(), source.clone().exact());
    derivative(&[mean, log_var], &z, move |dz| {
        let backward = spec.launch(
            "reparameterise backward_log_var",
            ("backward_log_var", "dz", "dlog_var"),
            #[inline(always)]
            |dz, log_var, eps| 0.5 * exp(0.5 * log_var) * eps * dz,
        );
        let [dlog_var] = dz.tape().launch(backward, &[dz, &saved, &source], [saved.shape().clone()]);
        vec![dz.clone(), dlog_var]
    });
    z
}

#[derive(Clone, Copy)]
struct Spec {
    size: Size,
    drawn: bool,
}

const STREAM: u32 = Stream::Posterior as u32;

/// Normal numbers that the CPU twin makes at a time, on its stack.
const AT_A_TIME: usize = 256;

impl Spec {
    /// Write 0 becomes `f` of the reads, element by element: of one that the kernel's `entry` calls `a`,
    /// log_var and the noise.
    fn launch(
        self,
        name: &'static str,
        (entry, a, out): (&'static str, &'static str, &'static str),
        f: impl Fn(f32, f32, f32) -> f32 + Send + Sync + 'static,
    ) -> impl Launch {
        let Spec { size, drawn } = self;
        launch_of(
            name,
            move |io| {
                let [a, log_var, given] = [0, 1, 2].map(|i| io.read(i));
                let state = drawn.then(|| State::from_words(io.read_u32(2)));
                size.chunks(io.write(0)).for_each(|Chunk { sample, range, block, y }| {
                    vectorized(
                        #[inline(always)]
                        || {
                            let mut tile = [0.0; AT_A_TIME];
                            for (i, y) in y.chunks_mut(AT_A_TIME).enumerate() {
                                let range = range.start + i * AT_A_TIME..range.end;
                                let eps = match &state {
                                    None => &given[range.clone()],
                                    Some(state) => {
                                        let sample = state.first_sample.wrapping_add(sample as u32);
                                        let block = block + (i * (AT_A_TIME / 4)) as u32;
                                        let tile = &mut tile[..y.len()];
                                        fill_normal(tile, state.seed, STREAM, state.step, sample, block);
                                        &*tile
                                    }
                                };
                                let inputs = a[range.clone()].iter().zip(&log_var[range]).zip(eps);
                                for (y, ((a, log_var), eps)) in y.iter_mut().zip(inputs) {
                                    *y = f(*a, *log_var, *eps);
                                }
                            }
                        },
                    );
                });
            },
            move |plan| {
                plan.add(&KERNEL, entry)
                    .knobs(usize::from(!drawn))
                    .params([("samples", size.samples), ("elements", size.elements)])
                    .param("stream", STREAM)
                    .read(a, 0)
                    .read("log_var", 1)
                    .read("state", 2)
                    .write(out, 0)
                    .cover(size.blocks(), 256);
            },
        )
    }
}
