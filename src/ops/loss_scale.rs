//! Scales a loss so that its gradients stay within the range of 16-bit floats, by a power of two that follows
//! them (Micikevicius et al. 2018, arXiv:1710.03740; the numbers of `torch.amp.GradScaler`).

use crate::device::gpu::shader::Kernel;
use crate::kernel;
use crate::launch::launch_of;
use crate::ops::shared::assert_is_state;
use crate::state::State;
use crate::tape::Tensor;

pub(crate) static KERNEL: Kernel = kernel!("loss_scale");

/// Elements of a scaler: the exponent of the scale less 16, good steps in a row, skipped steps. Zeros are the
/// start.
pub const SCALER: usize = 3;

/// The exponent of the first scale, 65,536.
const START: f32 = 16.0;
/// Good steps in a row after which the scale is doubled.
const GROWTH: f32 = 2000.0;
/// Least and largest exponent.
const EXPONENTS: [f32; 2] = [-100.0, 100.0];

/// The first element of a scaler that gives this scale.
pub(crate) fn scaler_at(scale: f32) -> f32 {
    scale.log2().round() - START
}

fn exponent(scaler: &[f32]) -> i32 {
    (START + scaler[0]) as i32
}

#[track_caller]
fn assert_fits(op: &str, number: &Tensor, scaler: &Tensor) {
    let fits = number.elements() == 1 && scaler.elements() == SCALER;
    assert!(fits, "{op}: {} by a scaler {}", number.shape(), scaler.shape());
}

/// `[share * scale, scale, skipped steps]`, each `[1]`: what to begin the backward pass of a loss with,
/// instead of `share [1]`.
#[track_caller]
pub fn scale_loss(share: &Tensor, scaler: &Tensor) -> [Tensor; 3] {
    assert_fits("scale_loss", share, scaler);
    let launch = launch_of(
        "scale_loss",
        |io| {
            let scale = 2.0_f32.powi(exponent(io.read(1)));
            io.write(0)[0] = io.read(0)[0] * scale;
            io.write(1)[0] = scale;
            io.write(2)[0] = io.read(1)[2];
        },
        |plan| {
            let begin = plan.add(&KERNEL, "scale_loss").read("share", 0).read("scaler_in", 1);
            begin.write("y", 0).write("scale", 1).write("skipped", 2);
        },
    );
    share.tape().launch(launch, &[share, scaler], [(); 3].map(|()| [1].into()))
}

/// The norm `[1]` of the gradients themselves, by that of the scaled ones.
#[track_caller]
pub fn unscale_norm(norm: &Tensor, scaler: &Tensor) -> Tensor {
    assert_fits("unscale_norm", norm, scaler);
    let launch = launch_of(
        "unscale_norm",
        |io| {
            let norm = io.read(0)[0];
            io.write(0)[0] = if norm.is_finite() { norm * 2.0_f32.powi(-exponent(io.read(1))) } else { norm };
        },
        |plan| {
            plan.add(&KERNEL, "unscale_norm").read("norm", 0).read("scaler_in", 1).write("true_norm", 0);
        },
    );
    let [norm] = norm.tape().launch(launch, &[norm, scaler], [[1].into()]);
    norm
}

/// Ends a step: gives the words by which [`adam`](crate::ops::adam::adam) undoes the scale and corrects its
/// moments by the steps that were taken, `words [16]` of u32, and updates the scaler. A step whose `norm [1]`
/// is not finite is skipped, and halves the scale; 2,000 others in a row double it. Nothing of this is read
/// by the host.
///
/// `betas`: Adam's.
#[track_caller]
pub fn update_scale(betas: [f64; 2], norm: &Tensor, state: &Tensor, words: &Tensor, scaler: &Tensor) {
    assert_fits("update_scale", norm, scaler);
    [state, words].into_iter().for_each(|words| assert_is_state("update_scale", words));
    let launch = launch_of(
        "update_scale",
        move |io| {
            let (norm, state) = (io.read(0)[0], State::from_words(io.read_u32(1)));
            let scaler = io.write(1);
            let taken = (f64::from(state.step) + 1.0 - f64::from(scaler[2])).max(1.0);
            let [correction1, correction2] = betas.map(|beta| (1.0 / (1.0 - beta.powf(taken))) as f32);
            let words = State { correction1, correction2, loss_exponent: exponent(scaler), ..state }.words();
            bytemuck::cast_slice_mut(io.write(0)).copy_from_slice(&words);
            let [least, most] = EXPONENTS.map(|exponent| exponent - START);
            let good = scaler[1] + 1.0;
            (scaler[0], scaler[1], scaler[2]) = match norm.is_finite() {
                false => ((scaler[0] - 1.0).max(least), 0.0, scaler[2] + 1.0),
                true if good >= GROWTH => ((scaler[0] + 1.0).min(most), 0.0, scaler[2]),
                true => (scaler[0], good, scaler[2]),
            };
        },
        move |plan| {
            // Of 0 too: exp(-100) is 0 beside 1.
            let [log_beta1, log_beta2] = betas.map(|beta| beta.ln().max(-100.0) as f32);
            let end =
                plan.add(&KERNEL, "update_scale").param("log_beta1", log_beta1).param("log_beta2", log_beta2);
            end.read("norm", 0).read("state", 1).write("words", 0).write("scaler", 1);
        },
    );
    norm.tape().launch_into(launch, &[norm, state], &[words, scaler]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::devices;
    use crate::program::{Plan, Program, Sharing};
    use crate::tape::Tape;

    const BETAS: [f64; 2] = [0.9, 0.999];

    /// The scaler, the words and the true norm after a step of this norm.
    fn after(scaler: [f32; SCALER], norm: f32, step: u32) -> Vec<(&'static str, Vec<f32>, State, f32)> {
        after_with(BETAS, scaler, norm, step)
    }

    fn after_with(
        betas: [f64; 2],
        scaler: [f32; SCALER],
        norm: f32,
        step: u32,
    ) -> Vec<(&'static str, Vec<f32>, State, f32)> {
        let run = move |(name, device): &'static (String, crate::device::Device)| {
            let tape = Tape::new();
            let (norms, scale) = (tape.stored("norm", 0, [1]), tape.stored("scaler", 0, [SCALER]));
            let [state, words] = ["state", "words"].map(|name| tape.stored_u32(name, [State::WORDS]));
            let [share, ..] = scale_loss(&tape.stored("share", 0, [1]), &scale);
            let unscaled = unscale_norm(&norms, &scale);
            update_scale(betas, &norms, &state, &words, &scale);
            let plan = Plan::new(&tape, &[&share, &unscaled], device);
            let mut program = Program::compile(&plan, device, &[], Sharing::Guarded).unwrap();
            let before = State { step, lr: 0.5, ..State::default() };
            program.write("state", &before.words()).unwrap();
            program.write("scaler", &scaler).unwrap();
            program.write("norm", &[norm]).unwrap();
            program.write("share", &[0.25_f32]).unwrap();
            program.run().unwrap();
            let share = program.read(&share).unwrap()[0];
            assert_eq!(share, 0.25 * 2.0_f32.powi(16 + scaler[0] as i32), "{name}");
            let bits: Vec<u32> = program.read(&words).unwrap().iter().map(|w| w.to_bits()).collect();
            let after = program.read(&scale).unwrap();
            (name.as_str(), after, State::from_words(&bits), program.read(&unscaled).unwrap()[0])
        };
        devices().iter().map(run).collect()
    }

    #[test]
    fn the_scale_follows_the_gradients() {
        let cases = [
            ([0.0, 5.0, 3.0], 2.0, [0.0, 6.0, 3.0]),
            ([2.0, 1999.0, 3.0], 2.0, [3.0, 0.0, 3.0]),
            ([24.0, 7.0, 3.0], f32::INFINITY, [23.0, 0.0, 4.0]),
            ([-3.0, 7.0, 3.0], f32::NAN, [-4.0, 0.0, 4.0]),
            ([84.0, 1999.0, 0.0], 2.0, [84.0, 0.0, 0.0]),
            ([-116.0, 0.0, 0.0], f32::NAN, [-116.0, 0.0, 1.0]),
        ];
        for (scaler, norm, wanted) in cases {
            for (name, got, words, true_norm) in after(scaler, norm, 9) {
                assert_eq!(got, wanted, "{scaler:?} and {norm} on {name}");
                assert_eq!((words.loss_exponent, words.lr), (16 + scaler[0] as i32, 0.5), "{name}");
                let unscaled = norm / 2.0_f32.powi(words.loss_exponent);
                assert!(true_norm == unscaled || norm.is_nan(), "{true_norm} on {name}");
            }
        }
    }

    #[test]
    fn a_decay_of_0_needs_no_correction() {
        for (name, _, words, _) in after_with([0.0, 0.999], [0.0; SCALER], 1.0, 4) {
            assert_eq!(words.correction1, 1.0, "{name}");
        }
    }

    #[test]
    fn adams_corrections_count_the_steps_that_were_taken() {
        for (step, skipped) in [(0, 0.0), (1, 1.0), (9, 3.0), (99, 0.0), (4_999, 17.0), (200_000, 5.0)] {
            let taken = f64::from(step) + 1.0 - f64::from(skipped);
            for (name, _, words, _) in after([0.0, 0.0, skipped], 1.0, step) {
                for (got, beta) in [words.correction1, words.correction2].into_iter().zip(BETAS) {
                    let wanted = 1.0 / (1.0 - beta.powf(taken));
                    let error = (f64::from(got) / wanted - 1.0).abs();
                    assert!(error < 1e-6, "step {step} on {name}: {got} instead of {wanted}");
                }
            }
        }
    }
}
