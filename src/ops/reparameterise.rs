//! Draws from normal distributions so that a gradient reaches their parameters: the latents of a VAE.

use rayon::prelude::*;

use crate::device::gpu::shader::Kernel;
use crate::kernel;
use crate::launch::{Dispatch, Dispatches, Io, Launch};
use crate::ops::CHUNK;
use crate::ops::shared::{Size, assert_is_state, derivative, first_block};
use crate::philox::{Stream, fill_normal};
use crate::simd::{exp, vectorized};
use crate::state::State;
use crate::tape::Tensor;

#[cfg(test)]
mod tests;

pub static KERNEL: Kernel = kernel!("reparameterise");

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
    let [z] = mean.tape().launch(Forward(spec), &[mean, log_var, source], [mean.shape().clone()]);
    let (saved, source) = (log_var.clone(), source.clone());
    derivative(&[mean, log_var], &z, move |dz| {
        let reads = [dz, &saved, &source];
        let [dlog_var] = dz.tape().launch(BackwardLogVar(spec), &reads, [saved.shape().clone()]);
        vec![dz.clone(), dlog_var]
    });
    z
}

#[derive(Clone, Copy, Debug)]
struct Spec {
    size: Size,
    drawn: bool,
}

const STREAM: u32 = Stream::Posterior as u32;

/// Normal numbers that the CPU twin makes at a time, on its stack.
const AT_A_TIME: usize = 256;

/// The noise on the CPU.
enum Source<'a> {
    Drawn(State),
    Given(&'a [f32]),
}

impl Spec {
    /// `out = f(a, log_var, eps)`, element by element, where `a`, `log_var` and the noise are the reads.
    fn map(self, io: &Io, f: impl Fn(f32, f32, f32) -> f32 + Sync) {
        let elements = self.size.elements;
        let source = match self.drawn {
            true => Source::Drawn(State::from_words(io.read_u32(2))),
            false => Source::Given(io.read(2)),
        };
        let inputs = io.read(0).par_chunks(elements).zip(io.read(1).par_chunks(elements));
        io.write(0).par_chunks_mut(elements).zip(inputs).enumerate().for_each(|(n, (out, (a, log_var)))| {
            let inputs = a.par_chunks(CHUNK).zip(log_var.par_chunks(CHUNK));
            let chunks = out.par_chunks_mut(CHUNK).zip(inputs).enumerate();
            chunks.for_each(|(chunk, (out, (a, log_var)))| match &source {
                Source::Given(eps) => vectorized(
                    #[inline(always)]
                    || {
                        let eps = &eps[n * elements + chunk * CHUNK..];
                        for (((out, a), log_var), eps) in out.iter_mut().zip(a).zip(log_var).zip(eps) {
                            *out = f(*a, *log_var, *eps);
                        }
                    },
                ),
                Source::Drawn(state) => vectorized(
                    #[inline(always)]
                    || {
                        let sample = state.first_sample.wrapping_add(n as u32);
                        let mut tile = [0.0; AT_A_TIME];
                        let mut block = first_block(chunk);
                        let inputs = a.chunks(AT_A_TIME).zip(log_var.chunks(AT_A_TIME));
                        for (out, (a, log_var)) in out.chunks_mut(AT_A_TIME).zip(inputs) {
                            let eps = &mut tile[..out.len()];
                            fill_normal(eps, state.seed, STREAM, state.step, sample, block);
                            for (((out, a), log_var), eps) in out.iter_mut().zip(a).zip(log_var).zip(eps) {
                                *out = f(*a, *log_var, *eps);
                            }
                            block += (AT_A_TIME / 4) as u32;
                        }
                    },
                ),
            });
        });
    }

    /// Adds a dispatch of the first entry if the noise is drawn, else of the second.
    fn dispatch<'a>(
        self,
        plan: &'a mut Dispatches,
        drawn: &'static str,
        given: &'static str,
    ) -> &'a mut Dispatch {
        let Size { samples, elements } = self.size;
        let (entry, noise, items) = match self.drawn {
            true => (drawn, "state", self.size.blocks()),
            false => (given, "eps", samples * elements),
        };
        plan.add(&KERNEL, entry)
            .params([("samples", samples), ("elements", elements)])
            .param("stream", STREAM)
            .read("log_var", 1)
            .read(noise, 2)
            .cover(items, 256)
    }
}

/// Reads mean, log_var and the noise.
#[derive(Debug)]
struct Forward(Spec);

impl Launch for Forward {
    fn name(&self) -> &'static str {
        "reparameterise"
    }

    fn cpu(&self, io: &Io) {
        self.0.map(
            io,
            #[inline(always)]
            |mean, log_var, eps| mean + exp(0.5 * log_var) * eps,
        );
    }

    fn gpu(&self, plan: &mut Dispatches) {
        self.0.dispatch(plan, "forward", "forward_given").read("mean", 0).write("z", 0);
    }
}

/// Reads dz, log_var and the noise.
#[derive(Debug)]
struct BackwardLogVar(Spec);

impl Launch for BackwardLogVar {
    fn name(&self) -> &'static str {
        "reparameterise backward_log_var"
    }

    fn cpu(&self, io: &Io) {
        self.0.map(
            io,
            #[inline(always)]
            |dz, log_var, eps| 0.5 * exp(0.5 * log_var) * eps * dz,
        );
    }

    fn gpu(&self, plan: &mut Dispatches) {
        let dispatch = self.0.dispatch(plan, "backward_log_var", "backward_log_var_given");
        dispatch.read("dz", 0).write("dlog_var", 0);
    }
}
