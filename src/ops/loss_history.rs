//! The last losses of each timestep, and the law by which timesteps are drawn in proportion to them (Nichol &
//! Dhariwal 2021, arXiv:2102.09672, section 3.3).

use crate::device::gpu::shader::Kernel;
use crate::kernel;
use crate::launch::launch_of;
use crate::tape::Tensor;

pub(crate) static KERNEL: Kernel = kernel!("loss_history");

/// Losses that are kept of a timestep.
const KEPT: usize = 10;
/// Part of the draws that is even, so that no timestep is forgotten.
const EVEN: f64 = 1e-3;

/// Numbers that a history has for each timestep: losses, and the number of the next one.
pub const ROW: usize = KEPT + 1;

/// `[sums [T], weights [T, 1]]` by a `history [T, ROW]`: the probabilities of the timesteps, each with all
/// before it, and `1 / (T p)` of each, by which a loss is multiplied so that its expectation is that of even
/// draws. Probabilities are in proportion to the root of the mean square of the losses; alike as long as a
/// timestep has less than ten.
#[track_caller]
pub fn timestep_law(history: &Tensor) -> [Tensor; 2] {
    let [steps, row] = history.shape().of_rank("timestep_law");
    assert_eq!(row, ROW, "timestep_law: a history {}", history.shape());
    let launch = launch_of(
        "timestep_law",
        move |io| {
            let rows = || io.read(0).chunks_exact(ROW);
            let root = |row: &[f32]| {
                let squares = row[..KEPT].iter().map(|&loss| f64::from(loss) * f64::from(loss));
                (squares.sum::<f64>() / KEPT as f64).sqrt()
            };
            let (total, even): (f64, f64) = (rows().map(root).sum(), 1.0 / steps as f64);
            let drawn = total > 0.0 && rows().all(|row| row[KEPT] >= KEPT as f32);
            let of = |row| if drawn { (1.0 - EVEN) * root(row) / total + EVEN * even } else { even };
            let mut sum = 0.0;
            for ((row, up_to), weight) in rows().zip(io.write(0)).zip(io.write(1)) {
                sum += of(row);
                *up_to = sum as f32;
                *weight = (even / of(row)) as f32;
            }
        },
        move |plan| {
            plan.add(&KERNEL, "law")
                .params([("steps", steps), ("samples", 0)])
                .read("old", 0)
                .write("sums", 0)
                .write("weights", 1);
        },
    );
    history.tape().launch(launch, &[history], [[steps].into(), [steps, 1].into()])
}

/// Adds the `losses [N]` of samples at the timesteps `t [N]` to a `history [T, ROW]`, in the order of the
/// samples. One that is not finite is left out.
#[track_caller]
pub fn record_losses(history: &Tensor, t: &Tensor, losses: &Tensor) {
    let ([steps, row], samples) = (history.shape().of_rank("record_losses"), losses.elements());
    assert!(
        row == ROW && t.elements() == samples,
        "record_losses: losses {} at {} in a history {}",
        losses.shape(),
        t.shape(),
        history.shape()
    );
    let launch = launch_of(
        "record_losses",
        move |io| {
            let history = io.write(0);
            for (&t, &loss) in io.read(0).iter().zip(io.read(1)).filter(|(_, loss)| loss.is_finite()) {
                let row = &mut history[t as usize * ROW..][..ROW];
                let number = row[KEPT] as usize;
                row[number % KEPT] = loss;
                row[KEPT] = if number == 2 * KEPT - 1 { KEPT } else { number + 1 } as f32;
            }
        },
        move |plan| {
            plan.add(&KERNEL, "record")
                .params([("steps", steps), ("samples", samples)])
                .read("t", 0)
                .read("losses", 1)
                .write("history", 0)
                .cover(steps, 256);
        },
    );
    history.tape().launch_into(launch, &[t, losses], &[history]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::{devices, random};
    use crate::program::{Plan, Program, Sharing};
    use crate::tape::Tape;

    /// A history after batches of `(t, loss)`, and the law that follows.
    fn after(batches: &[Vec<(f32, f32)>], steps: usize) -> Vec<(&'static str, [Vec<f32>; 3])> {
        let run = |device| {
            let (tape, samples) = (Tape::new(), batches[0].len());
            let history = tape.stored("history", 0, [steps, ROW]);
            record_losses(&history, &tape.stored("t", 0, [samples]), &tape.stored("losses", 0, [samples]));
            let [sums, weights] = timestep_law(&history);
            let plan = Plan::new(&tape, &[&sums, &weights], device);
            let mut program = Program::compile(&plan, device, &[], Sharing::Guarded).unwrap();
            program.write("history", &vec![0.0_f32; steps * ROW]).unwrap();
            for batch in batches {
                let (t, losses): (Vec<f32>, Vec<f32>) = batch.iter().copied().unzip();
                program.write("t", &t).unwrap();
                program.write("losses", &losses).unwrap();
                program.run().unwrap();
            }
            [&history, &sums, &weights].map(|tensor| program.read(tensor).unwrap())
        };
        devices().iter().map(|(name, device)| (name.as_str(), run(device))).collect()
    }

    /// Values of the program, in f64.
    #[test]
    fn golden_law() {
        let batch = [0.5, 1.0, 2.0, 0.1].iter().enumerate().map(|(t, &loss)| (t as f32, loss)).collect();
        let batches: Vec<Vec<(f32, f32)>> = vec![batch; 10];
        let wanted =
            [[0.139, 0.41675, 0.972, 1.0], [1.798_561_151, 0.900_090_009, 0.450_247_636, 8.928_571_429]];
        for (name, [_, sums, weights]) in after(&batches, 4) {
            for (got, wanted) in sums.iter().chain(&weights).zip(wanted.iter().flatten()) {
                assert!((f64::from(*got) / wanted - 1.0).abs() < 3e-6, "{name}: {sums:?} {weights:?}");
            }
        }
        for (name, [_, sums, weights]) in after(&batches[..9], 4) {
            assert_eq!(
                (sums, weights),
                (vec![0.25, 0.5, 0.75, 1.0], vec![1.0; 4]),
                "{name}: nine are too few"
            );
        }
    }

    /// The last ten losses of each timestep, whatever their number, and those that are no numbers left out.
    #[test]
    fn the_last_losses_are_kept() {
        let steps = 300;
        let values = random(3, 40 * 700);
        let batches: Vec<Vec<(f32, f32)>> = values
            .chunks(700)
            .map(|batch| {
                let of = |(i, v): (usize, &f32)| {
                    let t = (v.abs() * 997.0) as usize % steps;
                    (t as f32, if i % 50 == 7 { f32::NAN } else { *v })
                };
                batch.iter().enumerate().map(of).collect()
            })
            .collect();
        let mut kept: Vec<Vec<f32>> = vec![Vec::new(); steps];
        batches
            .iter()
            .flatten()
            .filter(|(_, loss)| !loss.is_nan())
            .for_each(|&(t, loss)| kept[t as usize].push(loss));
        let fewest = kept.iter().map(Vec::len).min().unwrap();
        assert!(fewest > 10, "{fewest}");
        for (name, [history, sums, weights]) in after(&batches, steps) {
            for (row, kept) in history.chunks(ROW).zip(&kept) {
                let mut last: Vec<f32> = kept[kept.len() - KEPT..].to_vec();
                last.rotate_right(kept.len() % KEPT);
                assert_eq!(row[..KEPT], last, "{name}");
            }
            let root = |kept: &Vec<f32>| {
                let last = &kept[kept.len() - KEPT..];
                (last.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / KEPT as f64).sqrt()
            };
            let total: f64 = kept.iter().map(root).sum();
            let mut sum = 0.0;
            for (kept, (up_to, weight)) in kept.iter().zip(sums.iter().zip(&weights)) {
                let p = 0.999 * root(kept) / total + 0.001 / steps as f64;
                sum += p;
                assert!((f64::from(*up_to) - sum).abs() < 1e-5, "{name}: {up_to}, not {sum}");
                assert!((f64::from(*weight) * p * steps as f64 - 1.0).abs() < 1e-4, "{name}");
            }
        }
    }
}
