//! Dropout, whose mask is drawn again in the backward pass instead of stored.

use rayon::prelude::*;

use crate::device::gpu::shader::Kernel;
use crate::kernel;
use crate::launch::{Recorded, launch_of};
use crate::ops::shared::{Chunk, Size, assert_is_state, derivative, replayed};
use crate::philox::{Stream, draw, uniform};
use crate::state::State;
use crate::tape::Tensor;

pub(crate) static KERNEL: Kernel = kernel!("dropout");

/// Zeroes each element with probability `p` and scales the others by `1 / (1 - p)` (Srivastava et al.
/// 2014). `x` of `[N, ..]`; `state`: the step's state, `u32 [16]` (see [`State`]). The mask depends on
/// seed, step, sample and on how many dropouts were recorded before, not on the device or the batch. With
/// `p = 0`, `x` itself.
///
/// # Panics
/// When `p` is not in `[0, 1)`.
#[track_caller]
pub fn dropout(x: &Tensor, p: f32, state: &Tensor) -> Tensor {
    assert!((0.0..1.0).contains(&p), "dropout: p is {p}, it must be in [0, 1)");
    assert!(!x.dims().is_empty(), "dropout: expected x of [N, ..], got {}", x.shape());
    assert_is_state("dropout", state);
    if p == 0.0 {
        return x.clone();
    }
    let size = Size::of("dropout", x.shape());
    let stream = Stream::Dropout as u32 + x.tape().next_dropout();
    let [y] = x.tape().launch(mask("dropout", size, stream, p), &[x, state], [x.shape().clone()]);
    let (shape, state) = (x.shape().clone(), state.clone());
    derivative(&[x], &y, move |dy| {
        dy.tape().launch(mask("dropout backward_x", size, stream, p), &[dy, &state], [shape]).into()
    });
    y
}

/// Applies the mask of `stream` to `x`, or to `dy`.
fn mask(name: &'static str, size: Size, stream: u32, p: f32) -> Recorded {
    let (threshold, scale) = (threshold(p), 1.0 / (1.0 - p));
    replayed(launch_of(
        name,
        move |io| {
            let (x, state) = (io.read(0), State::from_words(io.read_u32(1)));
            size.chunks(io.write(0)).for_each(|Chunk { sample, range, block, y }| {
                let sample = state.first_sample.wrapping_add(sample as u32);
                for ((block, y), x) in (block..).zip(y.chunks_mut(4)).zip(x[range].chunks(4)) {
                    let words = draw(state.seed, stream, state.step, sample, block);
                    for ((y, x), word) in y.iter_mut().zip(x).zip(words) {
                        *y = if word >= threshold { scale * x } else { 0.0 };
                    }
                }
            });
        },
        move |plan| {
            let (entry, x, y) = match size.elements.is_multiple_of(4) {
                true => ("forward_vec4", "x4", "y4"),
                false => ("forward", "x", "y"),
            };
            plan.add(&KERNEL, entry)
                .params([("samples", size.samples), ("elements", size.elements)])
                .param("stream", stream)
                .param("threshold", threshold)
                .param("scale", scale)
                .read(x, 0)
                .read("state", 1)
                .write(y, 0)
                .cover(size.blocks(), 256);
        },
    ))
}

/// The least word with `uniform(word) >= p`. Comparing integers is the same everywhere.
fn threshold(p: f32) -> u32 {
    // Words below `dropped` are dropped, words from `kept` on are kept; the largest word is, since p < 1.
    let (mut dropped, mut kept) = (0, u32::MAX);
    while dropped < kept {
        let middle = dropped.midpoint(kept);
        if uniform(middle) >= p {
            kept = middle;
        } else {
            dropped = middle + 1;
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::{Check, devices};
    use crate::launch::CHUNK;
    use crate::program::{Plan, Program, Sharing};
    use crate::tape::Tape;

    const STATE: State = State {
        seed: 0x1234_5678_9abc,
        step: 7,
        first_sample: 1000,
        lr: 0.0,
        correction1: 0.0,
        correction2: 0.0,
        ema_decay: 0.0,
        row: 0,
        loss_exponent: 0,
    };

    /// What each element is multiplied by: 0, or 1 / (1 - p).
    fn factors(shape: &[usize], p: f32, number: u32) -> Vec<f64> {
        let size = shape[1..].iter().product::<usize>();
        let mut factors = Vec::new();
        for sample in 0..shape[0] {
            for i in 0..size {
                let (sample, block) = (1000 + sample as u32, i as u32 / 4);
                let words = draw(STATE.seed, 256 + number, STATE.step, sample, block);
                let keep = uniform(words[i % 4]) >= p;
                factors.push(if keep { 1.0 / (1.0 - f64::from(p)) } else { 0.0 });
            }
        }
        factors
    }

    fn check(shape: &[usize], p: f32) {
        let factors = factors(shape, p, 0);
        Check::new(format!("dropout, p = {p}"))
            .probes(8)
            .input(shape)
            .words(&[16], STATE.words().to_vec())
            .run(
                |x| dropout(&x[0], p, &x[1]),
                |x| x[0].iter().zip(&factors).map(|(x, factor)| x * factor).collect(),
            );
    }

    #[test]
    fn shapes() {
        let shapes: [&[usize]; 9] = [
            &[1],
            &[5],
            &[3, 1],
            &[3, 2],
            &[2, 3, 5, 7],
            &[3, 5, 4, 12],
            &[2, 1021],
            &[2, 4 * 257],
            &[2, CHUNK + 1],
        ];
        for shape in shapes {
            check(shape, 0.3);
        }
    }

    #[test]
    fn probabilities() {
        for p in [1e-9, 0.1, 0.5, 0.999] {
            check(&[5, 203], p);
        }
    }

    #[test]
    fn past_65535_workgroups() {
        check(&[65_536 * 256 + 3, 1], 0.5); // one block each
    }

    #[test]
    fn second_dropout_has_its_own_mask() {
        let shape = [2, 3, 4, 5];
        let (first, second) = (factors(&shape, 0.5, 0), factors(&shape, 0.25, 1));
        Check::new("dropout of dropout").input(&shape).words(&[16], STATE.words().to_vec()).run(
            |x| dropout(&dropout(&x[0], 0.5, &x[1]), 0.25, &x[1]),
            |x| x[0].iter().zip(&first).zip(&second).map(|((x, a), b)| x * a * b).collect(),
        );
    }

    #[test]
    fn same_bits_on_every_device() {
        let (samples, size, p) = (3, 40_003, 0.1);
        let mut first: Option<Vec<u32>> = None;
        for (name, device) in devices() {
            let tape = Tape::new();
            let (x, state) = (tape.stored("x", 0, [samples, size]), tape.stored_u32("state", [16]));
            let y = dropout(&x, p, &state);
            let plan = Plan::new(&tape, &[&y], device);
            let mut program = Program::compile(&plan, device, &[], Sharing::Guarded).expect("compiles");
            program.write("x", &crate::check::random(0, samples * size)).expect("writes");
            program.write("state", &STATE.words()).expect("writes");
            program.run().expect("runs");
            let bits: Vec<u32> = program.read(&y).expect("reads").into_iter().map(f32::to_bits).collect();
            let dropped = bits.iter().filter(|&&b| b == 0).count() as f64 / bits.len() as f64;
            assert!((dropped - f64::from(p)).abs() < 0.005, "{name}: {dropped} are dropped");
            assert!(*first.get_or_insert_with(|| bits.clone()) == bits, "{name}: other bits");
        }
    }

    #[test]
    fn thresholds_decide_as_uniform_numbers_do() {
        for p in [f32::MIN_POSITIVE, 1e-7, 0.1, 1.0 / 3.0, 0.5, 0.9, 1.0 - f32::EPSILON / 2.0] {
            let t = threshold(p);
            assert!(uniform(t) >= p, "{p}");
            assert!(t == 0 || uniform(t - 1) < p, "{p}");
        }
    }

    #[test]
    fn zero_is_the_identity() {
        let tape = Tape::new();
        let (x, state) = (tape.stored("x", 0, [2, 3]), tape.stored_u32("state", [16]));
        assert_eq!(dropout(&x, 0.0, &state).id(), x.id());
    }

    #[test]
    #[should_panic(expected = "dropout: p is 1")]
    fn one_panics() {
        let tape = Tape::new();
        let (x, state) = (tape.stored("x", 0, [2, 3]), tape.stored_u32("state", [16]));
        dropout(&x, 1.0, &state);
    }
}
