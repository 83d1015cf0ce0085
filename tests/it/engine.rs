//! The tape and the program: what is added, what is dropped, what is shared.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use denoir::device::Device;
use denoir::device::gpu::adapters;
use denoir::launch::{Dispatches, Io, Launch, LaunchInfo, Recorded};
use denoir::ops::activation::{Activation, activation};
use denoir::ops::arithmetic::{add, affine, mul};
use denoir::ops::concat::concat;
use denoir::ops::conv_transpose2d::conv_transpose2d;
use denoir::ops::conv2d::{Epilogue, Padding, conv2d};
use denoir::ops::dropout::dropout;
use denoir::ops::group_norm::group_norm;
use denoir::ops::matmul::{Transpose, matmul};
use denoir::ops::reduce::sum;
use denoir::philox::{Sequence, Stream};
use denoir::program::{Plan, Program, Sharing};
use denoir::state::State;
use denoir::tape::{Tape, Tensor};
use rand::RngExt as _;

use crate::reference::devices;

const X: [f32; 5] = [-2.0, -0.5, 0.0, 1.0, 3.0];

/// Runs what `record` returns for a variable with the values `X`.
fn run(device: &Device, sharing: Sharing, record: impl Fn(&Tape, &Tensor) -> Tensor) -> Vec<f32> {
    let tape = Tape::new();
    let x = tape.variable("x", 0, [5]);
    let out = record(&tape, &x);
    let plan = Plan::new(&tape, &[&out], device);
    let mut program = Program::compile(&plan, device, &[], sharing).unwrap();
    program.write("x", &X).unwrap();
    program.run().unwrap();
    program.read(&out).unwrap()
}

#[test]
fn gradients_of_a_tensor_used_many_times_are_added() {
    // y = x^3 + 2x + x, with x used five times: dy/dx = 3x^2 + 3.
    for device in devices() {
        for sharing in [Sharing::Shared, Sharing::Separate, Sharing::Guarded] {
            let slope = run(&device, sharing, |tape, x| {
                let cube = mul(&mul(x, x), x);
                let y = add(&add(&cube, &affine(x, 2.0, 0.0)), x);
                let one = affine(&tape.stored("zero", 0, [5]), 1.0, 1.0);
                tape.backward_from(&y, &one).get(x).expect("a gradient").clone()
            });
            assert_eq!(slope, X.map(|x| 3.0 * x * x + 3.0), "{sharing:?} on {}", device.describe());
        }
    }
}

#[test]
fn the_gradient_of_a_loss_begins_with_one() {
    for device in devices() {
        let slope = run(&device, Sharing::Guarded, |tape, x| {
            let loss = sum(&mul(x, x));
            tape.backward(&loss).get(x).expect("a gradient").clone()
        });
        assert_eq!(slope, X.map(|x| 2.0 * x), "on {}", device.describe());
    }
}

#[test]
#[should_panic(expected = "backward: expected a loss of one element, got [5]")]
fn a_loss_of_several_numbers_is_refused() {
    let tape = Tape::new();
    tape.backward(&activation(&tape.variable("x", 0, [5]), Activation::Silu));
}

/// A program with the stores `x` and `y`, five numbers each.
fn sum_of_two() -> Program {
    let tape = Tape::new();
    let sum = add(&tape.stored("x", 0, [5]), &tape.stored("y", 0, [5]));
    let device = Device::open("cpu").unwrap();
    Program::compile(&Plan::new(&tape, &[&sum], &device), &device, &[], Sharing::Shared).unwrap()
}

#[test]
#[should_panic(expected = "write: 4 elements for store x, which has 5")]
fn a_write_of_another_length_is_refused() {
    sum_of_two().write("x", &X[..4]).unwrap();
}

#[test]
#[should_panic(expected = "write: 4 elements from 2 on of store x, which has 5")]
fn a_write_past_the_end_is_refused() {
    sum_of_two().write_at("x", 2, &X[..4]).unwrap();
}

#[test]
#[should_panic(expected = "the program has no store called z; it has x, y")]
fn an_unknown_store_is_told_with_those_that_are_known() {
    sum_of_two().write("z", &X).unwrap();
}

#[test]
fn a_tensor_that_cannot_be_bound_is_named_before_anything_is_allocated() {
    for adapter in adapters::list() {
        let mut gpu = adapters::open(Some(&adapter.index.to_string())).unwrap();
        gpu.use_max_binding(1 << 10);
        let device = Device::Gpu(Arc::new(gpu));
        let compile = |batch: usize| {
            let tape = Tape::new();
            let x = tape.stored("x", 0, [batch, 128]);
            let y = tape.labelled("encoder.act", || activation(&x, Activation::Silu));
            Program::compile(&Plan::new(&tape, &[&y], &device), &device, &[], Sharing::Shared)
        };
        assert!(compile(2).is_ok());
        let error = compile(3).err().expect("1.5 KiB are more than 1 KiB").to_string();
        assert!(error.starts_with("activation of encoder.act binds a tensor of 1.5 KiB"), "{error}");
    }
}

#[test]
fn what_nothing_depends_on_is_dropped() {
    let tape = Tape::new();
    let device = Device::open("cpu").unwrap();
    let x = tape.stored("x", 0, [5]);
    let used = activation(&x, Activation::Silu);
    let unused = activation(&activation(&x, Activation::Exp), Activation::Tanh);
    assert_eq!(Plan::new(&tape, &[], &device).launches(), 0);
    assert_eq!(Plan::new(&tape, &[&used], &device).launches(), 1);
    assert_eq!(Plan::new(&tape, &[&used, &unused], &device).launches(), 3);
}

#[test]
fn sharing_saves_memory_and_changes_nothing() {
    let deep = |_: &Tape, x: &Tensor| {
        (0..20).fold(x.clone(), |y, _| activation(&affine(&y, 0.9, 0.1), Activation::Silu))
    };
    for device in devices() {
        let tape = Tape::new();
        let out = deep(&tape, &tape.stored("x", 0, [4096]));
        let plan = Plan::new(&tape, &[&out], &device);
        let (shared, separate) = (plan.shared_bytes(), plan.separate_bytes());
        assert_eq!(separate, 40 * 4096 * 4, "forty tensors");
        let on = device.describe();
        assert!(shared <= 3 * 4096 * 4, "two of them live at a time: {shared} bytes on {on}");
        assert!(run(&device, Sharing::Shared, deep) == run(&device, Sharing::Guarded, deep));
    }
}

#[test]
fn placed_tensors_land_in_their_store_and_batches_add_up() {
    for device in devices() {
        let tape = Tape::new();
        let x = tape.stored("x", 0, [5]);
        let doubled = affine(&x, 2.0, 0.0);
        let shown = affine(&doubled, 1.0, 0.0); // reads it, so placing must copy
        tape.place(&doubled, "placed", 64);
        tape.place(&x, "placed", 0);
        tape.accumulate_into(&tape.stored("sum", 0, [5]), &doubled);
        let plan = Plan::new(&tape, &[&shown], &device);
        let mut program = Program::compile(&plan, &device, &[], Sharing::Guarded).unwrap();
        program.write("x", &X).unwrap();
        program.run().unwrap();
        program.run().unwrap();
        let read = |store: &str, n: usize| {
            let mut out = vec![0.0_f32; n];
            device.read(program.store(store), 0, bytemuck::cast_slice_mut(&mut out)).unwrap();
            out
        };
        let placed = read("placed", 69);
        assert_eq!((&placed[..5], &placed[64..]), (&X[..], &X.map(|x| 2.0 * x)[..]), "{}", device.describe());
        assert_eq!(read("sum", 5), X.map(|x| 4.0 * x), "two runs");
        assert_eq!(program.read(&shown).unwrap(), X.map(|x| 2.0 * x));
    }
}

#[test]
fn the_first_bad_launch_is_named() {
    for device in devices() {
        let tape = Tape::new();
        let x = tape.stored("x", 0, [5]);
        let fine = tape.labelled("fine", || affine(&x, 300.0, 0.0));
        let bad = tape.labelled("culprit", || activation(&fine, Activation::Exp));
        let late = tape.labelled("victim", || affine(&bad, 2.0, 0.0));
        let plan = Plan::new(&tape, &[&late], &device);
        let mut program = Program::compile(&plan, &device, &[], Sharing::Separate).unwrap();
        program.write("x", &X).unwrap();
        program.run().unwrap();
        let name = program.first_bad().unwrap().expect("e^900 is not finite");
        assert!(name.contains("culprit") && name.contains("activation"), "{name}");
        program.write("x", &[0.0_f32; 5]).unwrap();
        program.run().unwrap();
        assert_eq!(program.first_bad().unwrap(), None);
    }
}

/// Residual blocks between skips, in the manner of a U-Net, and the bits of all gradients.
fn gradients_of_blocks(device: &Device, checkpoints: bool, recompute: bool) -> (Vec<Vec<u32>>, usize, u64) {
    const C: usize = 8;
    let tape = Tape::new();
    let state = tape.stored_u32("state", [State::WORDS]);
    let x = tape.variable("x", 0, [2, 24, 20, C]);
    let (gamma, beta) = (tape.variable("gamma", 0, [C]), tape.variable("beta", 0, [C]));
    let weights: Vec<Tensor> = (0..16).map(|i| tape.variable("w", i * 5184, [3, 3, C, C])).collect();
    let joins: Vec<Tensor> = (0..3).map(|i| tape.variable("join", i * 128, [1, 1, 2 * C, C])).collect();
    let block = |x: &Tensor, w: &[Tensor]| {
        let record = || {
            let h = group_norm(x, &gamma, &beta, 4, 1e-5, Activation::Silu);
            let h = conv2d(&h, &w[0], 1, Padding::same(1), Epilogue::default());
            let h = dropout(&activation(&h, Activation::Silu), 0.3, &state);
            conv2d(&h, &w[1], 1, Padding::same(1), Epilogue { residual: Some(x), ..Epilogue::default() })
        };
        if checkpoints { tape.checkpoint(record) } else { record() }
    };
    let mut hidden = x.clone();
    let mut skips = Vec::new();
    for w in weights.chunks(2) {
        hidden = block(&hidden, w);
        skips.push(hidden.clone());
    }
    for (skip, w) in skips.iter().rev().zip(&joins) {
        hidden = conv2d(&concat(&[&hidden, skip]), w, 1, Padding::same(0), Epilogue::default());
    }
    let dy = affine(&tape.stored("zero", 0, [2, 24, 20, C]), 1.0, 1.0);
    let gradients = tape.backward_from(&hidden, &dy);
    let wanted: Vec<Tensor> =
        [&x, &gamma, &beta].into_iter().chain(&weights).chain(&joins).cloned().collect();
    let wanted: Vec<Tensor> = wanted.iter().map(|t| gradients.get(t).expect("a gradient").clone()).collect();
    let outputs: Vec<&Tensor> = wanted.iter().collect();
    let plan = if recompute { Plan::new } else { Plan::keeping_all };
    let plan = plan(&tape, &outputs, device);
    let mut program = Program::compile(&plan, device, &[], Sharing::Shared).unwrap();
    let mut random = Sequence::new(1, Stream::Generate, 0, 0);
    for (store, bytes) in plan.stores().filter(|(store, _)| *store != "state") {
        let values: Vec<f32> = (0..bytes / 4).map(|_| random.random_range(-0.4..0.4)).collect();
        program.write(store, &values).unwrap();
    }
    program.write("state", &State { seed: 7, step: 3, ..State::default() }.words()).unwrap();
    program.run().unwrap();
    let bits = |t: &Tensor| program.read(t).unwrap().iter().map(|v| v.to_bits()).collect();
    (wanted.iter().map(bits).collect(), plan.repeated(), plan.shared_bytes())
}

#[test]
fn what_is_computed_twice_changes_no_bit_of_a_gradient() {
    for device in devices() {
        let (kept, none, most) = gradients_of_blocks(&device, true, false);
        let (cheap, few, less) = gradients_of_blocks(&device, false, true);
        let (blocks, many, least) = gradients_of_blocks(&device, true, true);
        assert!(kept.iter().flatten().any(|&bits| f32::from_bits(bits) != 0.0));
        assert!(kept.iter().flatten().all(|&bits| f32::from_bits(bits).is_finite()));
        assert!(kept == cheap && kept == blocks, "gradients differ on {}", device.describe());
        assert!(none == 0 && 0 < few && few < many, "{none}, {few} and {many} launches run twice");
        assert!(least < less && less < most, "{most}, {less} and {least} bytes on {}", device.describe());
    }
}

#[test]
fn what_changed_in_the_meantime_is_not_read_again() {
    let device = Device::open("cpu").unwrap();
    let tape = Tape::new();
    let (x, w) = (tape.variable("x", 0, [4096]), tape.stored("w", 0, [4096]));
    // `y` could be made again for the gradient of the product, but `w` is another one by then.
    let y = add(&x, &w);
    let mut z = mul(&y, &y);
    tape.accumulate_into(&w, &x);
    for _ in 0..4 {
        let a = activation(&z, Activation::Tanh);
        z = mul(&a, &a);
    }
    let gradients = tape.backward_from(&z, &tape.stored("dy", 0, [4096]));
    let dx = gradients.get(&x).expect("a gradient").clone();
    let run = |plan: Plan| {
        let mut program = Program::compile(&plan, &device, &[], Sharing::Shared).unwrap();
        for (store, value) in [("x", 0.1_f32), ("w", 0.2), ("dy", 1.0)] {
            program.write(store, &[value; 4096]).unwrap();
        }
        program.run().unwrap();
        (program.read(&dx).unwrap(), plan.repeated())
    };
    let (kept, _) = run(Plan::keeping_all(&tape, &[&dx], &device));
    let (again, repeated) = run(Plan::new(&tape, &[&dx], &device));
    assert!(repeated > 0 && kept == again, "{repeated} launches run twice; {} or {}", kept[0], again[0]);
}

/// A network of every op that keeps its weights in another order: by Winograd's method, in panels, its
/// adjoint of stride 1 and 2, products of few and of many rows, b turned or not. From stores `w` and `x`.
fn ops_that_keep_weights(tape: &Tape) -> Vec<Tensor> {
    let x = |shape: &[usize]| tape.stored("x", 0, shape);
    let w = |shape: &[usize]| tape.stored("w", 0, shape);
    let (image, same) = (x(&[1, 8, 6, 32]), Padding::same(1));
    vec![
        conv2d(&image, &w(&[3, 3, 32, 48]), 1, same, Epilogue::default()),
        conv2d(&image, &w(&[3, 3, 32, 20]), 2, same, Epilogue::default()),
        conv_transpose2d(&image, &w(&[3, 3, 32, 32]), 1, same, 0, Epilogue::default()),
        conv_transpose2d(&image, &w(&[3, 3, 20, 32]), 2, same, 1, Epilogue::default()),
        matmul(&x(&[7, 50]), &w(&[50, 70]), Transpose::NONE, None),
        matmul(&x(&[7, 50]), &w(&[70, 50]), Transpose { a: false, b: true }, None),
        matmul(&x(&[300, 5]), &w(&[5, 70]), Transpose::NONE, None),
        matmul(&x(&[50, 7]), &w(&[70, 50]), Transpose { a: true, b: true }, None),
    ]
}

#[test]
fn weights_that_are_kept_in_another_order_follow_the_store() {
    let device = Device::open("cpu").unwrap();
    let random = |seed: u64, count: usize| -> Vec<f32> {
        let mut rng = Sequence::new(seed, Stream::Init, 0, 0);
        (0..count).map(|_| rng.random_range(-1.0..1.0)).collect()
    };
    let (x_len, w_len) = (8 * 6 * 32, 9 * 32 * 48);
    let fresh = || {
        let tape = Tape::new();
        let outputs = ops_that_keep_weights(&tape);
        let plan = Plan::new(&tape, &outputs.iter().collect::<Vec<_>>(), &device);
        (Program::compile(&plan, &device, &[], Sharing::Shared).unwrap(), outputs)
    };
    let results = |(program, outputs): &mut (Program, Vec<Tensor>)| -> Vec<Vec<f32>> {
        program.run().unwrap();
        outputs.iter().map(|y| program.read(y).unwrap()).collect()
    };
    let wanted = |w: &[f32], x: &[f32]| {
        let mut once = fresh();
        once.0.write("w", w).unwrap();
        once.0.write("x", x).unwrap();
        results(&mut once)
    };
    let mut kept = fresh();
    let (first, other) = (random(1, w_len), random(2, w_len));
    kept.0.write("w", &first).unwrap();
    for seed in 3..6 {
        let x = random(seed, x_len);
        kept.0.write("x", &x).unwrap();
        assert!(results(&mut kept) == wanted(&first, &x), "run {seed} with the same weights");
    }
    let x = random(6, x_len);
    kept.0.write("x", &x).unwrap();
    kept.0.write("w", &other).unwrap();
    assert!(results(&mut kept) == wanted(&other, &x), "weights that were written");
    // As an optimiser does it: another program changes the store.
    let tape = Tape::new();
    tape.accumulate_into(&tape.stored("w", 0, [w_len]), &tape.stored("step", 0, [w_len]));
    let plan = Plan::new(&tape, &[], &device);
    let weights = kept.0.store("w").clone();
    let mut update = Program::compile(&plan, &device, &[("w", &weights)], Sharing::Shared).unwrap();
    update.write("step", &first).unwrap();
    update.run().unwrap();
    let sum: Vec<f32> = first.iter().zip(&other).map(|(a, b)| b + a).collect();
    assert!(results(&mut kept) == wanted(&sum, &x), "weights that a program updated");
    // A program that writes the store itself keeps nothing.
    let tape = Tape::new();
    let y = matmul(&tape.stored("x", 0, [7, 50]), &tape.stored("w", 0, [50, 70]), Transpose::NONE, None);
    tape.accumulate_into(&tape.stored("w", 0, [7, 70]), &y);
    let plan = Plan::new(&tape, &[&y], &device);
    let mut updates = Program::compile(&plan, &device, &[("w", &weights)], Sharing::Shared).unwrap();
    updates.write("x", &x[..7 * 50]).unwrap();
    for _ in 0..2 {
        let mut w = vec![0.0_f32; w_len];
        device.read(&weights, 0, bytemuck::cast_slice_mut(&mut w)).unwrap();
        updates.run().unwrap();
        assert!(updates.read(&y).unwrap() == wanted(&w, &x)[4], "a program that updates its own weights");
    }
}

/// Twice the weights, and the number of its runs.
#[derive(Debug)]
struct Doubled(Arc<AtomicUsize>);

impl Launch for Doubled {
    fn name(&self) -> &'static str {
        "doubled"
    }

    fn cpu(&self, io: &Io) {
        self.0.fetch_add(1, Ordering::Relaxed);
        io.write(0).iter_mut().zip(io.read(0)).for_each(|(y, x)| *y = 2.0 * x);
    }

    fn gpu(&self, _: &mut Dispatches) {
        unreachable!("a launch of the CPU device");
    }
}

#[test]
fn results_made_from_weights_are_kept_until_the_weights_are_written() {
    let device = Device::open("cpu").unwrap();
    for sharing in [Sharing::Shared, Sharing::Separate, Sharing::Guarded] {
        let (runs, tape) = (Arc::new(AtomicUsize::new(0)), Tape::new());
        let (w, x) = (tape.stored("w", 0, [16, 16]), tape.stored("x", 0, [16, 16]));
        // The memory of these is free again when y is made.
        let [a, b] = [2.0, 3.0].map(|scale| affine(&affine(&x, scale, 0.0), 1.0, 0.5));
        let info = LaunchInfo { keeps_results: true, ..LaunchInfo::default() };
        let doubled = Recorded::new(Doubled(Arc::clone(&runs)), info);
        let [v] = tape.launch(doubled, &[&w], [w.shape().clone()]);
        let y = affine(&matmul(&add(&a, &b), &v, Transpose::NONE, None), 1.0, 0.0);
        let mut program = Program::compile(&Plan::new(&tape, &[&y], &device), &device, &[], sharing).unwrap();
        let other = Tape::new();
        other.place(&affine(&other.stored("from", 0, [256]), 1.0, 0.0), "w", 0);
        let weights = [("w", program.store("w"))];
        let plan = Plan::new(&other, &[], &device);
        let mut other = Program::compile(&plan, &device, &weights, Sharing::Shared).unwrap();
        program.write("x", &[1.0_f32; 256]).unwrap();
        let check = |program: &mut Program, weight: f32, wanted: usize| {
            for _ in 0..3 {
                program.run().unwrap();
                assert_eq!(program.read(&y).unwrap(), [16.0 * 6.0 * 2.0 * weight; 256], "{sharing:?}");
            }
            // Of a guarded program nothing is left after a run.
            let wanted = if sharing == Sharing::Guarded { 3 } else { wanted };
            assert_eq!(runs.swap(0, Ordering::Relaxed), wanted, "{sharing:?}, weights {weight}");
        };
        check(&mut program, 0.0, 1);
        check(&mut program, 0.0, 0);
        program.write("w", &[0.5_f32; 256]).unwrap();
        check(&mut program, 0.5, 1);
        other.write("from", &[0.25_f32; 256]).unwrap();
        other.run().unwrap();
        check(&mut program, 0.25, 1);
        check(&mut program, 0.25, 0);
    }
}
