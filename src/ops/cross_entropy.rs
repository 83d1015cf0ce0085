//! Cross entropy of a classifier: how unlikely it thinks the right class of each sample.

use crate::device::gpu::shader::Kernel;
use crate::kernel;
use crate::launch::launch_of;
use crate::ops::shared::derivative;
use crate::tape::Tensor;
use crate::tensor::DType;

pub(crate) static KERNEL: Kernel = kernel!("cross_entropy");

/// The cross entropy `-ln softmax(x)[label]` of each sample, in nats, and whether the label's logit is the
/// largest, 1 or 0: logits `x [N, K]`, `labels [N]` of `u32`, both results `[N]`. Of equal logits the first
/// is taken for the largest; a label past the last class means the last one.
///
/// The first result is differentiable in the logits.
///
/// # Panics
/// When the shapes do not fit.
#[track_caller]
pub fn cross_entropy(x: &Tensor, labels: &Tensor) -> [Tensor; 2] {
    let [samples, classes] = x.shape().of_rank("cross_entropy");
    assert!(
        labels.dims() == [samples] && labels.dtype() == DType::U32 && classes > 0,
        "cross_entropy: logits {} with labels {}",
        x.shape(),
        labels.shape()
    );
    let forward = launch_of(
        "cross_entropy",
        move |io| {
            let (logits, labels) = (io.read(0).chunks(classes), io.read_u32(1));
            let results = io.write(0).iter_mut().zip(io.write(1));
            for ((x, &label), (loss, right)) in logits.zip(labels).zip(results) {
                let label = (label as usize).min(classes - 1);
                // NaN is no largest element, and shows in the sum.
                let largest = |best: usize, k: usize| if x[k] > x[best] { k } else { best };
                let chosen = (1..classes).fold(0, largest);
                let total: f64 = x.iter().map(|&v| f64::from(v - x[chosen]).exp()).sum();
                *loss = (x[chosen] - x[label]) + total.ln() as f32;
                *right = if chosen == label { 1.0 } else { 0.0 };
            }
        },
        move |plan| {
            let forward = plan.add(&KERNEL, "forward").params([("samples", samples), ("classes", classes)]);
            forward.read("x", 0).read("labels", 1).write("loss", 0).write("right", 1).cover(samples, 64);
        },
    );
    let [loss, right] = x.tape().launch(forward, &[x, labels], [[samples].into(), [samples].into()]);
    let (saved_x, saved_labels, saved_loss) = (x.clone(), labels.clone(), loss.clone());
    derivative(&[x], &loss, move |dy| {
        let backward = launch_of(
            "cross_entropy backward",
            move |io| {
                let rows = io.write(0).chunks_mut(classes).zip(io.read(0).chunks(classes));
                let of_sample = io.read_u32(1).iter().zip(io.read(2)).zip(io.read(3));
                for ((dx, x), ((&label, &loss), &dy)) in rows.zip(of_sample) {
                    let label = (label as usize).min(classes - 1);
                    let log_sum = loss + x[label];
                    dx.iter_mut().zip(x).for_each(|(dx, x)| *dx = dy * (x - log_sum).exp());
                    dx[label] = dy * ((x[label] - log_sum).exp() - 1.0);
                }
            },
            move |plan| {
                let backward =
                    plan.add(&KERNEL, "backward").params([("samples", samples), ("classes", classes)]);
                backward.read("x", 0).read("labels", 1).read("saved_loss", 2).read("dy", 3);
                backward.write("dx", 0).cover(samples * classes, 64);
            },
        );
        let reads = [&saved_x, &saved_labels, &saved_loss, dy];
        dy.tape().launch(backward, &reads, [saved_x.shape().clone()]).into()
    });
    [loss, right]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::{Check, random};

    fn reference(x: &[f64], labels: &[f64]) -> Vec<f64> {
        let classes = x.len() / labels.len();
        let of_sample = |(x, label): (&[f64], &f64)| {
            let top = x.iter().copied().fold(f64::MIN, f64::max);
            let total: f64 = x.iter().map(|v| (v - top).exp()).sum();
            top + total.ln() - x[(*label as usize).min(classes - 1)]
        };
        x.chunks(classes).zip(labels).map(of_sample).collect()
    }

    #[test]
    fn losses_and_gradients_are_those_of_plain_loops() {
        for (samples, classes, spread) in [(1, 1, 1.0), (5, 3, 1.0), (70, 10, 4.0), (3, 1000, 20.0)] {
            let x = random(3, samples * classes).into_iter().map(|v| v * spread).collect();
            let labels = (0..samples).map(|n| (7 * n % (classes + 1)) as u32).collect();
            Check::new(format!("cross_entropy, {samples} of {classes} classes"))
                .tolerance(1e-5)
                .values(&[samples, classes], x)
                .words(&[samples], labels)
                .run(|x| cross_entropy(&x[0], &x[1])[0].clone(), |x| reference(&x[0], &x[1]));
        }
    }

    #[test]
    fn the_first_of_the_largest_logits_is_chosen() {
        let x = vec![1.0, 2.0, 2.0, 0.5, 0.5, -1.0, -80.0, 90.0, 3.0];
        for (labels, wanted) in [([1, 0, 1], [1.0, 1.0, 1.0]), ([2, 1, 2], [0.0; 3])] {
            let check =
                Check::new("cross_entropy, right").fixed(&[3, 3], x.clone()).words(&[3], labels.to_vec());
            check.run(|x| cross_entropy(&x[0], &x[1])[1].clone(), |_| wanted.to_vec());
        }
    }

    #[test]
    #[should_panic(expected = "cross_entropy: logits [2, 3] with labels [3]")]
    fn a_label_for_each_sample() {
        let tape = crate::tape::Tape::new();
        cross_entropy(&tape.stored("x", 0, [2, 3]), &tape.stored_u32("labels", [3]));
    }
}
