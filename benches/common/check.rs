//! The check that a kernel passes before the clock starts.

use denoir::device::Device;
use denoir::program::{Plan, Program, Sharing};
use denoir::tape::{Tape, Tensor};

/// Compiles what was recorded, fills in the stores that it uses, and runs it once.
pub fn compiled(device: &Device, tape: &Tape, outputs: &[&Tensor], inputs: &[(&str, &[f32])]) -> Program {
    let plan = Plan::new(tape, outputs, device);
    let mut program = Program::compile(&plan, device, &[], Sharing::Shared).expect("the program compiles");
    for (store, values) in inputs {
        if plan.stores().any(|(used, _)| used == *store) {
            program.write(store, values).expect("inputs are written");
        }
    }
    program.run().expect("the program runs");
    program
}

/// A sum, and the sum of its terms' magnitudes, which its rounding error is measured against.
pub fn sum(terms: impl Iterator<Item = f64>) -> (f64, f64) {
    terms.fold((0.0, 0.0), |(sum, size), term| (sum + term, size + term.abs()))
}

/// Compares some elements of `tensor`, the first and the last among them, with what `exact` says of each:
/// its value, and the magnitude that errors are a fraction of. All others must be finite.
pub fn check(program: &Program, what: &str, tensor: &Tensor, exact: impl Fn(usize) -> (f64, f64)) {
    const PROBES: usize = 40;
    const TOLERANCE: f64 = 4e-6;
    let got = program.read(tensor).expect("results are read");
    let on = program.device().describe();
    let bad = got.iter().position(|v| !v.is_finite());
    assert_eq!(bad, None, "{what} on {on}: the first element that is not finite");
    for probe in 0..PROBES {
        let index = probe * (got.len() - 1) / (PROBES - 1);
        let (wanted, magnitude) = exact(index);
        let err = (f64::from(got[index]) - wanted).abs() / magnitude;
        assert!(
            err <= TOLERANCE,
            "{what} on {on}: element {index} is {}, wanted {wanted}; off by {err:.1e}",
            got[index]
        );
    }
}
