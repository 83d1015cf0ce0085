//! Attention of every width, length and number of heads against plain loops.

use std::sync::Arc;

use super::*;
use crate::check::{Check, random};
use crate::device::Device;
use crate::device::gpu::adapters;
use crate::device::gpu::tuning::Tuning as TuningFile;
use crate::product::gpu::Schedule;
use crate::program::{Picked, Plan, Program, Sharing};
use crate::tape::Tape;

/// One query after the other: scores, their softmax, the weighted sum of values.
fn reference(size: Size, x: &[Vec<f64>]) -> Vec<f64> {
    let Size { n, heads, d, queries, keys, causal } = size;
    let (q, k, v) = (&x[0], &x[1], &x[2]);
    let c = heads * d;
    let mut y = vec![0.0; n * queries * c];
    for item in 0..n {
        for head in 0..heads {
            for t in 0..queries {
                let at_query = (item * queries + t) * c + head * d;
                let at_key = |j: usize| (item * keys + j) * c + head * d;
                let score = |j: usize| -> f64 {
                    (0..d).map(|i| q[at_query + i] * k[at_key(j) + i]).sum::<f64>() / (d as f64).sqrt()
                };
                let seen = if causal { t + 1 } else { keys };
                let scores: Vec<f64> = (0..seen).map(score).collect();
                let top = scores.iter().copied().fold(f64::MIN, f64::max);
                let sum: f64 = scores.iter().map(|s| (s - top).exp()).sum();
                for (j, s) in scores.iter().enumerate() {
                    for i in 0..d {
                        y[at_query + i] += (s - top).exp() / sum * v[at_key(j) + i];
                    }
                }
            }
        }
    }
    y
}

fn check(n: usize, heads: usize, d: usize, [queries, keys]: [usize; 2], spread: f32, tolerance: f64) {
    check_form(Size { n, heads, d, queries, keys, causal: false }, spread, tolerance);
}

/// Random inputs whose q and k spread over `(-spread, spread)`.
fn check_form(size: Size, spread: f32, tolerance: f64) {
    let Size { n, heads, d, queries, keys, causal } = size;
    // Each probe runs the reference twice; several, so that one of them is no small difference of large
    // numbers.
    let probes = if queries * keys * n * heads * d > 40_000 { 2 } else { 20 };
    let values = |salt, rows, spread: f32| -> Vec<f32> {
        random(salt, n * rows * heads * d).into_iter().map(|v| v * spread).collect()
    };
    let of = |rows| [n, rows, heads * d];
    Check::new(format!("attention, causal {causal}, {heads} heads of {d}, spread {spread}"))
        .tolerance(tolerance)
        // Where one key takes all, the derivatives are differences: of dP and of y . dy, and y is rounded.
        .half_rounding(if spread > 10.0 { 2e-2 } else { 1e-3 })
        // A score is rounded by a share of itself, and its weight is wrong by as much.
        .bf16_rounding(if spread > 4.0 { 0.2 } else { 8e-3 })
        .probes(probes)
        .values(&of(queries), values(0, queries, spread))
        .values(&of(keys), values(1, keys, spread))
        .values(&of(keys), values(2, keys, 1.0))
        .run(|x| record(&x[0], &x[1], &x[2], heads, causal), |x| reference(size, x));
}

#[test]
fn variants_are_sets_of_knobs_that_hold_a_head() {
    for d in 1..=WIDEST {
        let size = Size { n: 1, heads: 1, d, queries: 1, keys: 1, causal: false };
        let variants = size.online_variants();
        assert!(!variants.is_empty() && (d <= 4 || variants.len() > 1), "{d}: {variants:?}");
        for Variant { name, index, .. } in variants {
            let [lanes, quads] = [0, 1].map(|knob| KERNEL.knob_sets[index][knob].1.trim_end_matches('u'));
            assert_eq!(name, format!("{lanes} lanes of {quads} vec4"));
            let [lanes, quads] = [lanes, quads].map(|number| number.parse::<usize>().unwrap());
            assert_eq!(lanes, lanes_of(index));
            assert!(4 * lanes * quads >= d, "{d}: {name}");
        }
    }
}

#[test]
fn products_are_offered_where_scores_are_neither_many_nor_a_handful() {
    let adapters = [true, false].map(|software| Traits {
        software,
        broadcasts: true,
        halves: false,
        keeps_halves: false,
        matrices: None,
    });
    for (size, offered) in [
        (Size { n: 64, heads: 1, d: 128, queries: 64, keys: 64, causal: false }, 3),
        (Size { n: 1, heads: 1, d: 64, queries: 4096, keys: 4096, causal: false }, 3),
        (Size { n: 1, heads: 2, d: 64, queries: 4096, keys: 4096, causal: false }, 0),
        (Size { n: 65_537, heads: 1, d: 2, queries: 1, keys: 2, causal: false }, 0),
    ] {
        for adapter in &adapters {
            let variants = size.variants(adapter);
            let schedules: Vec<Schedule> =
                variants.iter().filter_map(|v| products::schedule_of(v.index)).collect();
            assert_eq!(schedules.len(), offered, "{size:?}: {variants:?}");
            let first_is_tiled = schedules.first().is_some_and(|of| of.uses_workgroup_memory());
            assert_eq!(first_is_tiled, offered > 0 && !adapter.software, "{size:?}: {variants:?}");
            assert!(
                products::schedule_of(variants[0].index).is_none(),
                "the default stores no scores: {variants:?}"
            );
        }
    }
}

/// In tests of their own, since each width compiles kernels of its own, and SwiftShader keeps what compiling
/// took.
fn head_widths(widths: &[usize]) {
    for &d in widths {
        check(2, 2, d, [7, 5], 2.0, 4e-6);
    }
}

#[test]
fn heads_of_up_to_4() {
    head_widths(&[1, 3, 4]);
}

#[test]
fn heads_of_6_to_12() {
    head_widths(&[6, 8, 12]);
}

#[test]
fn heads_of_32_to_64() {
    head_widths(&[32, 40, 64]);
}

#[test]
fn heads_of_128_and_256() {
    head_widths(&[128, 256]);
}

#[test]
fn heads_of_512() {
    head_widths(&[512]);
}

#[test]
fn every_length() {
    for lengths in [[1, 9], [65, 65], [63, 130], [130, 64]] {
        check(2, 1, 8, lengths, 2.0, 4e-6);
        check(1, 2, 20, lengths, 2.0, 4e-6);
    }
    // With a single key dq and dk are 0, which dy.v - dy.y is only to the last place of dy.v.
    for lengths in [[1, 1], [64, 1]] {
        check(2, 2, 20, lengths, 1.0, 2e-5);
    }
}

#[test]
fn many_heads() {
    check(3, 5, 3, [13, 11], 2.0, 4e-6);
    check(2, 5, 16, [7, 9], 2.0, 4e-6);
    check(7, 8, 2, [2, 3], 2.0, 4e-6);
}

#[test]
fn sizes_of_real_models() {
    check(1, 8, 8, [196, 196], 2.0, 4e-6);
    check(2, 1, 64, [49, 49], 2.0, 4e-6);
    check(1, 1, 256, [64, 64], 1.0, 4e-6);
}

/// One key, blocks of a GPU and of the CPU twin that are full or not, heads that are copied, the length of
/// CLIP, a first product of less than a tile.
#[test]
fn causal() {
    for (n, heads, d, t) in [(2, 2, 20, 1), (2, 2, 3, 6), (1, 1, 4, 24), (2, 3, 6, 77), (1, 2, 8, 65)] {
        let size = Size { n, heads, d, queries: t, keys: t, causal: true };
        check_form(size, 2.0, if t == 1 { 2e-5 } else { 4e-6 });
    }
    check_form(Size { n: 1, heads: 1, d: 64, queries: 130, keys: 130, causal: true }, 1.0, 4e-6);
    check_form(Size { n: 1, heads: 2, d: 8, queries: 17, keys: 17, causal: true }, 15.0, 2e-5);
}

/// Both forms have the same variants, and not the same one need be the best of both.
#[test]
fn the_causal_form_is_tuned_by_itself() {
    let [full, causal] = [false, true].map(|causal| {
        let size = Size { n: 1, heads: 1, d: 64, queries: 64, keys: 64, causal };
        (size.tuning().class().to_owned(), size.product())
    });
    assert!(full.0 != causal.0, "{causal:?}");
    assert_eq!((full.1, causal.1), (2 * 64 * 64 * 64, 2 * 65 * 32 * 64));
}

#[test]
#[should_panic(expected = "attention_causal: as many keys as queries: q [1, 2, 8], k [1, 3, 8]")]
fn causal_of_another_length() {
    let tape = Tape::new();
    let [q, k] = [2, 3].map(|t| tape.stored("x", 0, [1, t, 8]));
    attention_causal(&q, &k, &k, 2);
}

#[test]
fn large_scores() {
    // A score of some hundreds is rounded by 3e-5, and its weight is wrong by as much: here the largest
    // error allowed.
    for (d, spread) in [(3, 30.0), (8, 15.0), (64, 5.0)] {
        check(2, 2, d, [9, 17], spread, 2e-5);
    }
}

#[test]
fn the_largest_scores_stay_finite_and_pick_one_key() {
    // Key j is 30 times unit vector j times 30, so that query t picks key t and no other.
    let (t, d) = (16, 16);
    let unit: Vec<f32> = (0..t * d).map(|i| if i / d == i % d { 30.0 * 30.0 } else { 0.0 }).collect();
    let size = Size { n: 1, heads: 1, d, queries: t, keys: t, causal: false };
    Check::new("attention, one-hot")
        .fixed(&[1, t, d], unit.clone())
        .fixed(&[1, t, d], unit)
        .input(&[1, t, d])
        .run(|x| attention(&x[0], &x[1], &x[2], 1), |x| reference(size, x));
}

#[test]
fn past_65535_workgroups() {
    check(65_537, 1, 2, [1, 2], 1.0, 4e-6);
}

#[test]
#[should_panic(expected = "10 channels do not divide into heads")]
fn heads_that_do_not_divide() {
    let tape = crate::tape::Tape::new();
    let x = tape.stored("x", 0, [1, 2, 10]);
    attention(&x, &x, &x, 3);
}

/// A derivative counts on what the forward pass has made: tuning must time it on that, or refuse what is
/// right.
#[test]
fn tuning_refuses_no_variant_of_the_derivative() {
    let gpu =
        Arc::new(adapters::open(None).expect("an adapter: run tools/test, which installs a software driver"));
    let folder = tempfile::tempdir().unwrap();
    gpu.tune_with(Some(TuningFile::in_file(&gpu, &folder.path().join("t.json"), true, |_| {}).unwrap()));
    let tape = Tape::new();
    let [q, k, v] = [0, 1, 2].map(|i| tape.variable("x", i * 512, [2, 16, 16]));
    let gradients = tape.backward_from(&attention(&q, &k, &v, 2), &tape.stored("dy", 0, [2, 16, 16]));
    let outputs = [&q, &k, &v].map(|x| gradients.get(x).expect("it is a variable"));
    let device = Device::Gpu(gpu);
    let plan = Plan::new(&tape, &outputs, &device);
    let program = Program::compile(&plan, &device, &[], Sharing::Guarded).unwrap();
    let choice_of = |picked: &Picked| picked.choice.clone().expect("it was timed");
    let choices: Vec<_> =
        program.compiled().iter().filter_map(|l| l.picked.as_ref()).map(choice_of).collect();
    assert!(choices.iter().any(|choice| choice.key.launch == "attention backward"), "{choices:?}");
    choices.iter().for_each(|choice| assert!(choice.refused.is_empty(), "{choice:?}"));
}
