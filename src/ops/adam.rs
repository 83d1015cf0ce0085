//! One step of Adam over all parameters at once.

use rayon::prelude::*;

use crate::device::gpu::shader::Kernel;
use crate::kernel;
use crate::launch::{CHUNK, LaunchInfo, Recorded, Slot, launch_of, pack};
use crate::ops::shared::{FlatRange, MOST_BOUND, assert_is_state, flat_ranges};
use crate::simd::vectorized;
use crate::state::State;
use crate::tape::Tensor;

pub(crate) static KERNEL: Kernel = kernel!("adam", pack::KNOBS);

/// The options of Adam that do not change from step to step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamOptions {
    /// Decay of the moving average of the gradients.
    pub beta1: f64,
    /// Decay of the moving average of their squares.
    pub beta2: f64,
    /// Added to the root of the squares.
    pub eps: f64,
    /// Decoupled (AdamW): a step takes `lr * weight_decay` of the parameter itself.
    pub weight_decay: f64,
    /// Gradients are scaled down so that their norm is at most this, as `torch.nn.utils.clip_grad_norm_`
    /// does.
    pub clip: Option<f64>,
    /// Leave zeros in the gradients, for programs that add to them.
    pub zero_grads: bool,
}

/// The flat stored tensors that a step updates, all `[P]`. Padding between parameters is zero everywhere,
/// and stays so.
#[derive(Clone, Copy, Debug)]
pub struct AdamTensors<'a> {
    /// Parameters.
    pub params: &'a Tensor,
    /// Their gradients.
    pub grads: &'a Tensor,
    /// Moving average of the gradients.
    pub m: &'a Tensor,
    /// Moving average of the squares of the gradients.
    pub v: &'a Tensor,
    /// Moving average of the parameters.
    pub ema: &'a Tensor,
}

/// One step of Adam on `tensors`, given `norm [1]` of their gradients (of
/// [`grad_norm`](crate::ops::grad_norm::grad_norm)) and the `state`, which holds learning rate, bias
/// corrections, EMA decay and the scale of the loss (which the norm is without). If the norm is not finite,
/// nothing but the gradients changes, so that no bad step can spoil the parameters.
///
/// Sources: `torch.optim.AdamW`, `torch.nn.utils.clip_grad_norm_`, and `EMAModel` of diffusers.
#[track_caller]
pub fn adam(options: AdamOptions, tensors: AdamTensors, norm: &Tensor, state: &Tensor) {
    adam_in_ranges(options, tensors, norm, state, MOST_BOUND);
}

/// `most`: elements of one dispatch.
#[track_caller]
fn adam_in_ranges(options: AdamOptions, tensors: AdamTensors, norm: &Tensor, state: &Tensor, most: usize) {
    let AdamTensors { params, grads, m, v, ema } = tensors;
    let n = params.elements();
    assert!(
        n > 0 && [grads, m, v, ema].iter().all(|t| t.elements() == n) && norm.elements() == 1,
        "adam: params {}, grads {}, m {}, v {}, ema {}, norm {}",
        params.shape(),
        grads.shape(),
        m.shape(),
        v.shape(),
        ema.shape(),
        norm.shape()
    );
    assert_is_state("adam", state);
    let betas = [options.beta1, options.beta2];
    let [beta1, beta2] = betas.map(|beta| beta as f32);
    let [rest1, rest2] = betas.map(|beta| (1.0 - beta) as f32);
    let (eps, weight_decay) = (options.eps as f32, options.weight_decay as f32);
    let launch = launch_of(
        "adam",
        move |io| {
            let (norm, state) = (io.read(0)[0], State::from_words(io.read_u32(1)));
            if !norm.is_finite() {
                if options.zero_grads {
                    io.write(1).fill(0.0);
                }
                return;
            }
            let clip = options.clip.map_or(1.0, |clip| (clip as f32 / (norm + 1e-6)).min(1.0));
            let scale = clip * 2.0_f32.powi(-state.loss_exponent);
            let rest_ema = 1.0 - state.ema_decay;
            let [p, g, m, v, ema] = [0, 1, 2, 3, 4].map(|i| io.write(i).par_chunks_mut(CHUNK));
            p.zip(g).zip(m).zip(v).zip(ema).for_each(|((((p, g), m), v), ema)| {
                vectorized(
                    #[inline(always)]
                    || {
                        for ((((p, g), m), v), ema) in p.iter_mut().zip(&*g).zip(m).zip(v).zip(ema) {
                            let g = g * scale;
                            *m = beta1 * *m + rest1 * g;
                            *v = beta2 * *v + rest2 * g * g;
                            let direction = *m * state.correction1 / ((*v * state.correction2).sqrt() + eps);
                            *p -= state.lr * (direction + weight_decay * *p);
                            *ema -= rest_ema * (*ema - *p);
                        }
                    },
                );
                if options.zero_grads {
                    g.fill(0.0);
                }
            });
        },
        move |plan| {
            for FlatRange { first, count, quads } in flat_ranges(n, most) {
                let pack = if quads { 4 } else { 1 };
                let update = plan.add(&KERNEL, "update").knobs(pack::set(pack));
                update
                    .param("n", count / pack)
                    .param("beta1", beta1)
                    .param("beta2", beta2)
                    .param("rest1", rest1)
                    .param("rest2", rest2)
                    .param("eps", eps)
                    .param("weight_decay", weight_decay)
                    .param("clip", options.clip.unwrap_or(0.0) as f32)
                    .param("zero_grads", options.zero_grads)
                    .read("norm", 0)
                    .read("state", 1)
                    .cover(count / pack, PER_GROUP);
                for (i, name) in NAMES.into_iter().enumerate() {
                    update.range(name, Slot::Write(i), first, count);
                }
            }
        },
    );
    // Parameters, both moments and the EMA are read as well as written; the gradients are read, and written
    // where they are cleared.
    let extra_bytes = (if options.zero_grads { 5 } else { 4 }) * n as i64 * 4;
    let launch = Recorded::new(launch, LaunchInfo { extra_bytes, ..LaunchInfo::default() });
    params.tape().launch_into(launch, &[norm, state], &[params, grads, m, v, ema]);
}

/// The tensors as the kernel calls them, in the order of the writes.
const NAMES: [&str; 5] = ["params", "grads", "m", "v", "ema"];

/// Elements of a workgroup, WG * ITEMS of the kernel.
const PER_GROUP: usize = 256 * 4;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::{devices, random};
    use crate::device::Device;
    use crate::ops::grad_norm::grad_norm;
    use crate::program::{Plan, Program, Sharing};
    use crate::tape::Tape;

    const OPTIONS: AdamOptions = AdamOptions {
        beta1: 0.9,
        beta2: 0.999,
        eps: 1e-8,
        weight_decay: 0.01,
        clip: Some(1.0),
        zero_grads: true,
    };

    /// A program of norm and step, and its five tensors.
    fn record(n: usize, most: usize, options: AdamOptions, device: &Device) -> (Program, [Tensor; 5]) {
        let tape = Tape::new();
        let all = NAMES.map(|name| tape.stored(name, 0, [n]));
        let [params, grads, m, v, ema] = &all;
        let state = tape.stored_u32("state", [State::WORDS]);
        let tensors = AdamTensors { params, grads, m, v, ema };
        adam_in_ranges(options, tensors, &grad_norm(grads), &state, most);
        let plan = Plan::new(&tape, &[], device);
        (Program::compile(&plan, device, &[], Sharing::Guarded).unwrap(), all)
    }

    /// The state of step `t`, which counts from 1.
    fn state(t: i32) -> State {
        State {
            lr: 1e-2 / t as f32,
            correction1: (1.0 / (1.0 - OPTIONS.beta1.powi(t))) as f32,
            correction2: (1.0 / (1.0 - OPTIONS.beta2.powi(t))) as f32,
            ema_decay: (1 + t) as f32 / (10 + t) as f32,
            ..State::default()
        }
    }

    fn gradients(n: usize, t: i32) -> Vec<f32> {
        // From far too large to tiny, so that clipping sets in and stops.
        random(10 + t as u32, n).into_iter().map(|g| g * 10.0_f32.powi(1 - t)).collect()
    }

    /// One step in f64 on `[params, m, v, ema]`, as the documentation of PyTorch writes it.
    fn reference([p, m, v, ema]: &mut [Vec<f64>; 4], grads: &[f32], t: i32, options: &AdamOptions) {
        let s = state(t);
        let lr = f64::from(s.lr);
        let norm = grads.iter().map(|&g| f64::from(g).powi(2)).sum::<f64>().sqrt();
        let scale = options.clip.map_or(1.0, |clip| (clip / (norm + 1e-6)).min(1.0));
        for i in 0..p.len() {
            let g = f64::from(grads[i]) * scale;
            p[i] -= lr * options.weight_decay * p[i];
            m[i] = options.beta1 * m[i] + (1.0 - options.beta1) * g;
            v[i] = options.beta2 * v[i] + (1.0 - options.beta2) * g * g;
            let m_hat = m[i] / (1.0 - options.beta1.powi(t));
            let v_hat = v[i] / (1.0 - options.beta2.powi(t));
            p[i] -= lr * m_hat / (v_hat.sqrt() + options.eps);
            ema[i] -= (1.0 - f64::from(s.ema_decay)) * (ema[i] - p[i]);
        }
    }

    fn check(n: usize, most: usize, options: AdamOptions) {
        let start = random(1, n);
        let exact = |values: &[f32]| values.iter().map(|&v| f64::from(v)).collect::<Vec<f64>>();
        let mut wanted = [exact(&start), vec![0.0; n], vec![0.0; n], exact(&start)];
        (1..=4).for_each(|t| reference(&mut wanted, &gradients(n, t), t, &options));
        let mut cpu: Option<Vec<Vec<f32>>> = None;
        for (name, device) in devices() {
            let (mut program, tensors) = record(n, most, options, device);
            program.write("params", &start).unwrap();
            program.write("ema", &start).unwrap();
            for t in 1..=4 {
                program.write("grads", &gradients(n, t)).unwrap();
                program.write("state", &state(t).words()).unwrap();
                program.run().unwrap();
            }
            let got: Vec<Vec<f32>> = tensors.iter().map(|tensor| program.read(tensor).unwrap()).collect();
            let left = if options.zero_grads { vec![0.0; n] } else { gradients(n, 4) };
            assert_eq!(got[1], left, "{n} elements on {name}: gradients");
            for (which, wanted) in [0, 2, 3, 4].into_iter().zip(&wanted) {
                let scale = wanted.iter().map(|w| w.abs()).fold(0.0, f64::max);
                for (i, (got, wanted)) in got[which].iter().zip(wanted).enumerate() {
                    let err = (f64::from(*got) - wanted).abs() / scale;
                    let what = NAMES[which];
                    assert!(
                        err <= 1e-6,
                        "{n} elements in ranges of {most} with {options:?} on {name}: \
                         {what} {i} is {got}, wanted {wanted}; off by {err:.2e} of {scale:e}"
                    );
                }
            }
            match &cpu {
                None => cpu = Some(got),
                Some(cpu) if name.starts_with("cpu") => assert_eq!(cpu, &got, "threads matter"),
                Some(_) => {}
            }
            assert!(program.guards_intact().unwrap(), "{n} elements on {name}: wrote outside its tensors");
        }
    }

    #[test]
    fn four_steps_with_every_option() {
        check(1, MOST_BOUND, OPTIONS);
        check(16_387, MOST_BOUND, OPTIONS);
        check(1021, MOST_BOUND, AdamOptions { clip: None, zero_grads: false, ..OPTIONS });
        check(257, MOST_BOUND, AdamOptions { weight_decay: 0.0, eps: 1e-3, clip: Some(0.1), ..OPTIONS });
    }

    #[test]
    fn in_several_ranges() {
        check(64 * 9 + 5, 128, OPTIONS);
    }

    #[test]
    fn a_norm_that_is_not_finite_changes_nothing_but_the_gradients() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 3e38] {
            // The CPU twin adds in f64: two of the largest numbers are needed to leave f32.
            let grads = [0.5, bad, 1.0, bad, 0.25];
            for (name, device) in devices() {
                let (mut program, tensors) = record(5, MOST_BOUND, OPTIONS, device);
                for store in NAMES {
                    program.write(store, &[0.5_f32; 5]).unwrap();
                }
                program.write("grads", &grads).unwrap();
                program.write("state", &state(1).words()).unwrap();
                program.run().unwrap();
                for (tensor, store) in tensors.iter().zip(NAMES) {
                    let got = program.read(tensor).unwrap();
                    let wanted = [if store == "grads" { 0.0_f32 } else { 0.5 }; 5];
                    let same = got.iter().zip(wanted).all(|(a, b)| a.to_bits() == b.to_bits());
                    assert!(same, "{bad} on {name}: {store} is {got:?}");
                }
            }
        }
    }

    #[test]
    fn padding_stays_zero() {
        for (name, device) in devices() {
            let (mut program, tensors) = record(64, MOST_BOUND, OPTIONS, device);
            program.write_at("grads", 0, &[1.0_f32; 3]).unwrap();
            for t in 1..=3 {
                program.write("state", &state(t).words()).unwrap();
                program.run().unwrap();
            }
            for tensor in &tensors {
                assert!(program.read(tensor).unwrap()[3..].iter().all(|&v| v == 0.0), "on {name}");
            }
        }
    }

    #[test]
    fn sixteen_million_parameters() {
        let n = 65_536 * 256 + 3;
        for (name, device) in devices().iter().filter(|(_, device)| matches!(device, Device::Gpu(_))) {
            let (mut program, tensors) = record(n, MOST_BOUND, AdamOptions { clip: None, ..OPTIONS }, device);
            program.write("grads", &vec![0.25_f32; n]).unwrap();
            program.write("state", &state(1).words()).unwrap();
            program.run().unwrap();
            // The first step of Adam is lr against the gradient's sign.
            let params = program.read(&tensors[0]).unwrap();
            assert!(params.iter().all(|p| (p + 1e-2).abs() < 1e-8), "on {name}");
        }
    }
}
