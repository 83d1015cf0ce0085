//! The tape and the program: what is added, what is dropped, what is shared.

use denoir::device::Device;
use denoir::ops::activation::{Activation, activation};
use denoir::ops::arithmetic::{add, affine, mul};
use denoir::program::{Plan, Program, Sharing};
use denoir::tape::{Tape, Tensor};

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
                tape.backward(&y, &one).get(x).expect("a gradient").clone()
            });
            assert_eq!(slope, X.map(|x| 3.0 * x * x + 3.0), "{sharing:?} on {}", device.describe());
        }
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
        let out = deep(&tape, &tape.stored("x", 0, [5]));
        let plan = Plan::new(&tape, &[&out], &device);
        assert!(
            plan.shared_bytes() * 8 < plan.separate_bytes() * 64,
            "forty tensors, of which two live at a time"
        );
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
