//! The codebook's statistics and updates against plain f64, on every device.

use super::*;
use crate::check::{devices, random};
use crate::device::Device;
use crate::ops::quantise::{nearest, usage};
use crate::program::{Plan, Program, Sharing};
use crate::tape::Tape;

/// Codes, their EMA, both moments and the counts after steps on the vectors of `batches`, each split into
/// `parts` batches of the tape.
struct Steps {
    options: CodebookOptions,
    codes: Vec<f32>,
    counts: Vec<f32>,
    width: usize,
    per_sample: usize,
    parts: usize,
    norm: f32,
}

const STORES: [&str; 5] = ["codes", "ema", "m", "v", "counts"];

fn state(step: u32, first_sample: usize) -> State {
    State { seed: 5, step, first_sample: first_sample as u32, ..State::default() }
}

impl Steps {
    fn run(&self, batches: &[Vec<f32>], device: &Device) -> [Vec<f32>; 5] {
        let (width, count) = (self.width, self.counts.len());
        let vectors = batches[0].len() / width / self.parts;
        let gather = {
            let tape = Tape::new();
            let (z, codes) = (tape.stored("z", 0, [vectors, width]), tape.stored("codes", 0, [count, width]));
            let index = nearest(&z, &codes);
            let state = tape.stored_u32("state", [State::WORDS]);
            let statistics = tape.stored("statistics", 0, [statistics_of(count, width)]);
            let numbers = [self.per_sample, vectors * self.parts];
            gather_codes(&statistics, &z, [&index, &usage(&index, count)], numbers, &state);
            tape
        };
        let update = {
            let tape = Tape::new();
            let [codes, ema, m, v] = ["codes", "ema", "m", "v"].map(|s| tape.stored(s, 0, [count, width]));
            let counts = tape.stored("counts", 0, [count]);
            let statistics = tape.stored("statistics", 0, [statistics_of(count, width)]);
            let tensors = CodebookTensors { codes: &codes, ema: &ema, moments: [&m, &v], counts: &counts };
            update_codebook(self.options, tensors, &statistics, &tape.stored("norm", 0, [1]));
            tape
        };
        let mut update =
            Program::compile(&Plan::new(&update, &[], device), device, &[], Sharing::Guarded).unwrap();
        let bound = ["codes", "statistics"].map(|store| (store, update.store(store)));
        let mut gather =
            Program::compile(&Plan::new(&gather, &[], device), device, &bound, Sharing::Guarded).unwrap();
        for (store, values) in STORES.iter().zip([&self.codes, &self.codes, &self.codes, &self.codes]) {
            update.write(store, values).unwrap();
        }
        update.write("counts", &self.counts).unwrap();
        update.write("statistics", &vec![0.0_f32; statistics_of(count, width)]).unwrap();
        update.write("norm", &[self.norm]).unwrap();
        for (step, batch) in batches.iter().enumerate() {
            for (part, z) in batch.chunks_exact(vectors * width).enumerate() {
                let first = part * vectors / self.per_sample;
                gather.write("z", z).unwrap();
                gather.write("state", &state(step as u32, first).words()).unwrap();
                gather.run().unwrap();
            }
            update.run().unwrap();
        }
        assert!(update.guards_intact().unwrap() && gather.guards_intact().unwrap());
        let mut sums = vec![0.0_f32; count * (width + 1)];
        device.read(update.store("statistics"), 0, bytemuck::cast_slice_mut(&mut sums)).unwrap();
        assert!(sums.iter().all(|&v| v == 0.0), "a step leaves sums to the next");
        STORES.map(|store| {
            let elements = if store == "counts" { count } else { count * width };
            let mut values = vec![0.0_f32; elements];
            device.read(update.store(store), 0, bytemuck::cast_slice_mut(&mut values)).unwrap();
            values
        })
    }

    /// The same in f64.
    fn reference(&self, batches: &[Vec<f32>]) -> [Vec<f64>; 5] {
        let exact = |values: &[f32]| values.iter().map(|&v| f64::from(v)).collect::<Vec<f64>>();
        let (d, k) = (self.width, self.counts.len());
        let CodebookOptions { decay, restart, averages } = self.options;
        let [mut codes, mut ema, mut m, mut v] = [(); 4].map(|()| exact(&self.codes));
        // The sums that a code times its smoothed count stands for.
        let mut counts = exact(&self.counts);
        for (step, batch) in batches.iter().enumerate() {
            let z = exact(batch);
            let smooth = |counts: &[f64]| -> Vec<f64> {
                let all: f64 = counts.iter().sum();
                counts.iter().map(|n| (n + 1e-5) / (all + k as f64 * 1e-5) * all).collect()
            };
            let mut sums: Vec<f64> =
                codes.iter().enumerate().map(|(i, e)| decay * e * smooth(&counts)[i / d]).collect();
            counts.iter_mut().for_each(|n| *n *= decay);
            for z in z.chunks_exact(d) {
                let distance = |e: &[f64]| e.iter().zip(z).map(|(e, z)| (e - z).powi(2)).sum::<f64>();
                let all = codes.chunks_exact(d).map(distance).enumerate();
                let nearest = all.min_by(|a, b| a.1.total_cmp(&b.1)).unwrap().0;
                counts[nearest] += 1.0 - decay;
                sums[nearest * d..][..d].iter_mut().zip(z).for_each(|(sum, z)| *sum += (1.0 - decay) * z);
            }
            let smoothed = smooth(&counts);
            for (i, code) in codes.iter_mut().enumerate().filter(|_| averages) {
                *code = sums[i] / smoothed[i / d];
                (m[i], v[i]) = (0.0, 0.0);
            }
            for j in (0..k).filter(|&j| counts[j] < restart).collect::<Vec<_>>() {
                let [word, ..] = draw(5, Stream::Restart as u32, step as u32, j as u32, 0);
                let z = &z[below(word, z.len() / d) * d..][..d];
                codes[j * d..][..d].copy_from_slice(z);
                ema[j * d..][..d].copy_from_slice(z);
                m[j * d..][..d].fill(0.0);
                v[j * d..][..d].fill(0.0);
                counts[j] = restart;
            }
        }
        [codes, ema, m, v, counts]
    }

    fn check(&self, batches: &[Vec<f32>]) -> [Vec<f32>; 5] {
        let wanted = self.reference(batches);
        let mut first: Option<[Vec<f32>; 5]> = None;
        for (name, device) in devices() {
            let got = self.run(batches, device);
            for ((got, wanted), store) in got.iter().zip(&wanted).zip(STORES) {
                for (i, (got, wanted)) in got.iter().zip(wanted).enumerate() {
                    let err = (f64::from(*got) - wanted).abs() / wanted.abs().max(0.1);
                    assert!(err <= 3e-6, "on {name}: {store} {i} is {got}, wanted {wanted}");
                }
            }
            match &first {
                None => first = Some(got),
                Some(first) if name.starts_with("cpu") => assert_eq!(first, &got, "threads matter"),
                Some(_) => {}
            }
        }
        first.unwrap()
    }
}

/// Golden values computed in numpy, f64.
#[test]
fn golden_averages() {
    let steps = Steps {
        options: CodebookOptions { decay: 0.9, restart: 0.0, averages: true },
        codes: vec![1.0, 0.0, 0.0, 1.0, -1.0, -1.0, 3.0, 3.0],
        counts: vec![1.0; 4],
        width: 2,
        per_sample: 1,
        parts: 1,
        norm: 1.0,
    };
    let z = vec![0.9, 0.2, 0.2, 0.7, -0.6, -0.9, 0.6, 0.3, 0.1, 0.9];
    let [codes, .., counts] = steps.check(&[z]);
    let near = |got: &[f32], wanted: &[f64]| {
        got.iter().zip(wanted).all(|(got, wanted)| (f64::from(*got) - wanted).abs() <= 5e-7)
    };
    assert!(near(&counts, &[1.1, 1.1, 1.0, 0.9]), "{counts:?}");
    #[rustfmt::skip]
    let wanted = [
        0.95454609, 0.04545458, 0.02727275, 0.963637,
        -0.95999977, -0.98999976, 2.99999594, 2.99999594,
    ];
    assert!(near(&codes, &wanted), "{codes:?}");
}

/// Several steps with restarts, by averages and without; a step split into batches is the same step.
#[test]
fn steps_with_restarts() {
    let (count, width) = (37, 3);
    let batch = |salt| random(salt, 120 * width).iter().map(|v| 2.0 * v).collect::<Vec<f32>>();
    let batches: Vec<Vec<f32>> = (1..=3).map(batch).collect();
    for averages in [true, false] {
        let steps = |parts| Steps {
            options: CodebookOptions { decay: 0.8, restart: 2.5, averages },
            codes: random(7, count * width),
            counts: (0..count).map(|k| (k % 5) as f32 * 1.5).collect(),
            width,
            per_sample: 4,
            parts,
            norm: 1.0,
        };
        let whole = steps(1).check(&batches);
        // Nothing else moves their average.
        let before = random(7, count * width);
        let restarted = whole[1].iter().zip(&before).filter(|(now, before)| now != before).count();
        assert!(restarted > 0 && restarted < count * width, "{restarted} of {}", count * width);
        let split = steps(3).check(&batches);
        assert_eq!(whole[1], split[1], "restarts depend on the split");
    }
}

#[test]
fn a_norm_that_is_not_finite_changes_nothing_but_the_statistics() {
    let codes = random(3, 8);
    let steps = Steps {
        options: CodebookOptions { decay: 0.5, restart: 2.0, averages: true },
        codes: codes.clone(),
        counts: vec![1.0; 4],
        width: 2,
        per_sample: 1,
        parts: 1,
        norm: f32::NAN,
    };
    for (name, device) in devices() {
        let got = steps.run(&[random(1, 20)], device);
        assert_eq!(got, [codes.clone(), codes.clone(), codes.clone(), codes.clone(), vec![1.0; 4]], "{name}");
    }
}
