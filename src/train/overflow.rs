//! Whether a GPU tells that a number has left the range of 16-bit floats.

use crate::device::{Device, Precision};
use crate::error::{Error, Result};
use crate::ops::arithmetic::affine;
use crate::program::{Plan, Program, Sharing};
use crate::tape::Tape;

/// Runs numbers that 16 bits cannot hold through a tensor of 16 bits. Drivers may round them to the largest
/// finite number, and the scale of the loss would then never fall.
///
/// # Errors
/// When they do not become infinite, or the driver reports an error.
pub(super) fn check_overflow(device: &Device) -> Result<()> {
    if device.precision() != Precision::F16 {
        return Ok(());
    }
    let tape = Tape::new();
    let y = affine(&affine(&tape.stored("x", 0, [1, 2]), 1.0, 0.0), 1.0, 0.0);
    let plan = Plan::new(&tape, &[&y], device);
    let mut program = Program::compile(&plan, device, &[], Sharing::Shared)?;
    program.write("x", &[7e4_f32, -1e6])?;
    program.run()?;
    if program.read(&y)? == [f32::INFINITY, f32::NEG_INFINITY] {
        return Ok(());
    }
    let message = format!("{} does not tell when a 16-bit float overflows", device.describe());
    Err(Error::new(message).hint("train with --precision f32"))
}
