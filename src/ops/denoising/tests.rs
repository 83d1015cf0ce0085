//! The steps and the bounds of the reverse process against plain f64.

use super::*;
use crate::check::{Check, devices, random};
use crate::device::Device;
use crate::philox::{draw, normal_f64};
use crate::program::{Plan, Program, Sharing};
use crate::tape::Tape;

const NONE: Form = [0.0; 3 + SLOTS];

/// Three steps that differ in what they do: far out with noise and clipping; unclipped, with all that a
/// solver may look at; and the last, without noise.
fn rows() -> [Row; 3] {
    let plain = |x0: f32, x: f32| {
        let mut form = NONE;
        (form[0], form[1]) = (x0, x);
        form
    };
    let mixed = |shift: usize| -> Form { std::array::from_fn(|i| 0.3 - 0.11 * ((i + shift) % 5) as f32) };
    let (keep, log_variance) = (std::array::from_fn(mixed), [-0.3, 0.7]);
    [
        Row {
            t: 999.0,
            x0: [12.5, -12.46],
            clip: 1.0,
            sigma: 0.3,
            log_variance,
            guide: 0.7,
            next: plain(0.04, 0.96),
            keep,
        },
        Row {
            t: 412.5,
            x0: [1.5, -1.118],
            clip: 0.0,
            sigma: 0.1,
            log_variance,
            guide: -2.5,
            next: mixed(3),
            keep,
        },
        Row {
            t: 0.0,
            x0: [1.01, -0.1418],
            clip: 0.75,
            sigma: 0.0,
            log_variance,
            guide: 0.0,
            next: plain(1.0, 0.0),
            keep: [NONE; SLOTS],
        },
    ]
}

fn table() -> Vec<f32> {
    rows().map(|row| row.elements()).concat()
}

fn state(row: u32) -> State {
    State { seed: 99 << 32 | 5, step: 123_456, first_sample: 40, row, ..State::default() }
}

/// The quantile of absolute values by sorting.
fn quantile(values: &[f64], ratio: f64, most: f64) -> f64 {
    let mut sorted: Vec<f64> = values.iter().map(|v| v.abs()).collect();
    sorted.sort_by(f64::total_cmp);
    let place = ratio * (sorted.len() - 1) as f64;
    let (low, high) = (sorted[place.floor() as usize], sorted[place.ceil() as usize]);
    (low + (high - low) * place.fract()).max(1.0).min(most)
}

/// The formula element by element: the next x, and x0 with the slots.
fn reference(
    x: &[f64],
    out: &[f32],
    kept: &[f64],
    samples: usize,
    k: usize,
    bound: Option<(f64, f64)>,
    variance: Option<&[f32]>,
) -> (Vec<f64>, Vec<f64>) {
    let row = rows()[k.min(2)];
    let (total, elements) = (x.len(), x.len() / samples);
    let slots = kept.len() / total - 1;
    let (mut next, mut now) = (vec![0.0; total], vec![0.0; kept.len()]);
    for n in 0..samples {
        let sample = state(k as u32).first_sample + n as u32;
        let block = |i: usize| {
            normal_f64(draw(state(0).seed, Stream::Reverse as u32, k as u32, sample, i as u32 / 4))
        };
        let z: Vec<f64> = (0..elements).map(|i| block(i)[i % 4]).collect();
        let range = n * elements..(n + 1) * elements;
        let [a, b] = row.x0.map(f64::from);
        let raw: Vec<f64> = range.clone().map(|i| a * x[i] + b * f64::from(out[i])).collect();
        let s = bound.map(|(ratio, most)| quantile(&raw, ratio, most));
        for (i, raw) in range.zip(raw) {
            let x0 = match s {
                Some(s) => raw.clamp(-s, s) / s,
                None if row.clip > 0.0 => raw.clamp(f64::from(-row.clip), f64::from(row.clip)),
                None => raw,
            };
            let at = |form: &Form| -> f64 {
                let known = [x0, x[i], f64::from(out[i])];
                let earlier = (1..=slots).map(|slot| kept[slot * total + i]);
                form.iter().zip(known.into_iter().chain(earlier)).map(|(c, v)| f64::from(*c) * v).sum()
            };
            let [c, h] = row.log_variance.map(f64::from);
            let factor = variance.map_or(1.0, |v| (0.5 * (c + h * f64::from(v[i]))).exp());
            next[i] = at(&row.next) + factor * f64::from(row.sigma) * z[i % elements];
            now[i] = x0;
            for slot in 1..=slots {
                now[slot * total + i] = at(&row.keep[slot - 1]);
            }
        }
    }
    (next, now)
}

fn close(got: &[f32], wanted: &[f64], what: &str) {
    for (i, (got, wanted)) in got.iter().zip(wanted).enumerate() {
        // a x and b out cancel, which leaves the rounding of numbers near 12.
        let err = (f64::from(*got) - wanted).abs();
        assert!(err <= 5e-6, "{what} at {i} is {got}, wanted {wanted}");
    }
}

fn doubles(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&v| f64::from(v)).collect()
}

/// Records and runs three steps of one program, each held against the formula from where the last one left.
fn steps(shape: &[usize], slots: usize, bound: Option<(f64, f64)>, learned: bool) {
    let count: usize = shape.iter().product();
    let (start, out, variance) = (random(1, count), random(2, count), random(3, count));
    let mut cpu: Option<Vec<f32>> = None;
    for (name, device) in devices() {
        let tape = Tape::new();
        let x = tape.stored("x", 0, shape);
        let kept = tape.stored("kept", 0, [1 + slots, count]);
        let rows = tape.stored("table", 0, [3, Row::COLUMNS]);
        let (said, words) = (tape.stored("out", 0, shape), tape.stored_u32("state", [State::WORDS]));
        let limit = bound.map(|(ratio, most)| bounds(&x, &said, &rows, &words, ratio, most as f32));
        let v = learned.then(|| tape.stored("variance", 0, shape));
        denoise(&x, &said, &rows, &words, &kept, limit.as_ref(), v.as_ref());
        let plan = Plan::new(&tape, &[], device);
        let mut program = Program::compile(&plan, device, &[], Sharing::Guarded).unwrap();
        program.write("x", &start).unwrap();
        program.write("out", &out).unwrap();
        if learned {
            program.write("variance", &variance).unwrap();
        }
        program.write("table", &table()).unwrap();
        let mut now = (doubles(&start), vec![0.0; (1 + slots) * count]);
        // Row 7 does not exist: the last one is taken.
        for k in [0, 1, 2, 7] {
            program.write("state", &state(k as u32).words()).unwrap();
            program.run().unwrap();
            let at = format!("{shape:?} with {slots} slots on {name}, row {k}:");
            let wanted = reference(&now.0, &out, &now.1, shape[0], k, bound, learned.then_some(&variance));
            let got = [program.read(&x).unwrap(), program.read(&kept).unwrap()];
            close(&got[0], &wanted.0, &format!("{at} x"));
            close(&got[1], &wanted.1, &format!("{at} kept"));
            now = (doubles(&got[0]), doubles(&got[1]));
        }
        let got = program.read(&x).unwrap();
        match &cpu {
            None => cpu = Some(got),
            Some(cpu) if name.starts_with("cpu") => assert_eq!(cpu, &got, "threads matter"),
            Some(cpu) => close(&got, &doubles(cpu), &format!("{shape:?} on {name}, against the CPU device:")),
        }
    }
}

const SHAPES: [&[usize]; 6] = [&[1, 1], &[3, 5], &[2, 3, 4, 7], &[300, 4], &[2, 16_390], &[4, 257]];

#[test]
fn three_steps_of_one_program() {
    for (shape, slots) in SHAPES.into_iter().zip([0, 1, 6, 2, 3, 0]) {
        steps(shape, slots, None, false);
        steps(shape, slots, None, true);
    }
}

#[test]
fn three_steps_within_bounds() {
    for (i, shape) in SHAPES.into_iter().enumerate() {
        let (ratio, most) = [(0.995, 2.0), (0.5, 100.0), (1.0, 100.0), (0.9, 1.2), (0.8, 7.0), (0.0, 1.0)][i];
        steps(shape, i % 3, Some((ratio, most)), i % 2 == 1);
    }
}

#[test]
fn a_bound_between_equal_values() {
    // Every rank falls on a tie or beside one.
    let x = [2.0, -2.0, 2.0, 5.0, 5.0, -7.0, 7.0, 1.0, 3.0];
    for place in 0..=32 {
        let ratio = f64::from(place) / 32.0;
        let mut row = rows()[1];
        row.x0 = [1.0, 0.0];
        Check::new(format!("bounds at {ratio}"))
            .fixed(&[1, 9], x.to_vec())
            .fixed(&[1, 9], vec![0.0; 9])
            .fixed(&[1, Row::COLUMNS], row.elements().to_vec())
            .words(&[State::WORDS], state(0).words().to_vec())
            .run(|t| bounds(&t[0], &t[1], &t[2], &t[3], ratio, 6.5), |t| vec![quantile(&t[0], ratio, 6.5)]);
    }
}

#[test]
fn a_bad_prediction_shows() {
    for (name, device) in devices() {
        let tape = Tape::new();
        let (x, words) = (tape.stored("x", 0, [1, 3]), tape.stored_u32("state", [State::WORDS]));
        let (out, rows) = (tape.stored("out", 0, [1, 3]), tape.stored("table", 0, [3, Row::COLUMNS]));
        denoise(&x, &out, &rows, &words, &tape.stored("kept", 0, [1, 1, 3]), None, None);
        let plan = Plan::new(&tape, &[], device);
        let mut program = Program::compile(&plan, device, &[], Sharing::Shared).unwrap();
        program.write("out", &[0.5, f32::NAN, 0.5]).unwrap();
        program.write("table", &table()).unwrap();
        program.write("state", &state(2).words()).unwrap();
        program.run().unwrap();
        let got = program.read(&x).unwrap();
        assert!(got[0].is_finite() && got[1].is_nan() && got[2].is_finite(), "on {name}: {got:?}");
    }
}

#[test]
fn past_65535_workgroups() {
    let samples = 65_536 * 256 + 3;
    for (name, device) in devices().iter().filter(|(_, device)| matches!(device, Device::Gpu(_))) {
        let tape = Tape::new();
        let (x, words) = (tape.stored("x", 0, [samples, 1]), tape.stored_u32("state", [State::WORDS]));
        let (out, rows) = (tape.stored("out", 0, [samples, 1]), tape.stored("table", 0, [3, Row::COLUMNS]));
        denoise(&x, &out, &rows, &words, &tape.stored("kept", 0, [1, samples, 1]), None, None);
        let plan = Plan::new(&tape, &[], device);
        let mut program = Program::compile(&plan, device, &[], Sharing::Shared).unwrap();
        program.write("out", &vec![0.5_f32; samples]).unwrap();
        program.write("table", &table()).unwrap();
        program.write("state", &state(2).words()).unwrap();
        program.run().unwrap();
        assert!(program.read(&x).unwrap().iter().all(|x| (x + 0.0709).abs() < 1e-6), "on {name}");
    }
}

#[test]
fn the_model_is_told_the_timestep_of_the_row() {
    for (n, row) in [(1, 0), (7, 1), (257, 2), (3, 1000)] {
        let ops: [(&str, fn(usize, &Tensor, &Tensor) -> Tensor, usize); 2] =
            [("timestep_of_row", timestep_of_row, 0), ("guide_of_row", guide_of_row, 7)];
        for (name, op, column) in ops {
            Check::new(name)
                .fixed(&[3, Row::COLUMNS], table())
                .words(&[State::WORDS], state(row).words().to_vec())
                .run(
                    |x| op(n, &x[0], &x[1]),
                    |x| vec![x[0][(x[1][8] as usize).min(2) * Row::COLUMNS + column]; n],
                );
        }
    }
}

#[test]
#[should_panic(expected = "denoise: x [2, 3] with output [2, 4]")]
fn shapes_must_agree() {
    let tape = Tape::new();
    let of = |name: &str, shape: &[usize]| tape.stored(name, 0, shape);
    let state = tape.stored_u32("state", [State::WORDS]);
    denoise(
        &of("x", &[2, 3]),
        &of("out", &[2, 4]),
        &of("table", &[3, 72]),
        &state,
        &of("kept", &[1, 2, 3]),
        None,
        None,
    );
}
