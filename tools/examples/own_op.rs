//! An op of your own: a WGSL kernel, its CPU twin, its derivative, and the check that denoir's own ops pass.
//!
//! `cargo run --release --example own_op`

use denoir::check::Check;
use denoir::device::gpu::shader::Kernel;
use denoir::launch::{Dispatches, Io, Launch};
use denoir::prelude::*;

static KERNEL: Kernel =
    Kernel { name: "squared_relu", source: include_str!("squared_relu.wgsl"), knob_sets: &[&[]] };

/// `max(x, 0)^2`, element by element, any shape (So et al. 2021, arXiv:2109.08668).
pub fn squared_relu(x: &Tensor) -> Tensor {
    let (tape, n) = (x.tape().clone(), x.elements());
    let [y] = tape.launch(Forward { n }, &[x], [x.shape().clone()]);
    let saved = x.clone();
    tape.derivative(&[x], &[&y], move |dy| {
        let Some(dy) = &dy[0] else { return vec![None] };
        let [dx] = saved.tape().launch(Backward { n }, &[&saved, dy], [saved.shape().clone()]);
        vec![Some(dx)]
    });
    y
}

#[derive(Debug)]
struct Forward {
    n: usize,
}

impl Launch for Forward {
    fn name(&self) -> &'static str {
        "squared_relu"
    }

    fn cpu(&self, io: &Io) {
        for (y, x) in io.write(0).iter_mut().zip(io.read(0)) {
            *y = x.max(0.0).powi(2);
        }
    }

    fn gpu(&self, plan: &mut Dispatches) {
        plan.add(&KERNEL, "forward").param("n", self.n).read("x", 0).write("y", 0).cover(self.n, 256);
    }
}

#[derive(Debug)]
struct Backward {
    n: usize,
}

impl Launch for Backward {
    fn name(&self) -> &'static str {
        "squared_relu backward"
    }

    fn cpu(&self, io: &Io) {
        for ((dx, x), dy) in io.write(0).iter_mut().zip(io.read(0)).zip(io.read(1)) {
            *dx = 2.0 * x.max(0.0) * dy;
        }
    }

    fn gpu(&self, plan: &mut Dispatches) {
        plan.add(&KERNEL, "backward")
            .param("n", self.n)
            .read("x", 0)
            .read("dy", 1)
            .write("dx", 0)
            .cover(self.n, 256);
    }
}

fn main() {
    check();
}

/// Values and gradients on every device of this machine, with guard words around every tensor, against a loop
/// in f64 and its differences.
pub fn check() {
    for shape in [&[1][..], &[3, 5], &[2, 9, 7, 33]] {
        Check::new("squared_relu")
            .input(shape)
            .run(|x| squared_relu(&x[0]), |x| x[0].iter().map(|x| x.max(0.0).powi(2)).collect());
    }
    for (device, _) in denoir::check::devices() {
        println!("squared_relu is right on {device}");
    }
}
