//! The launches of the tape itself: sums of gradients, and copies of them into stores.

use crate::kernel;
use crate::launch::{Dispatch, Dispatches, Io, Launch, LaunchInfo, Recorded, pack};

pub(crate) static KERNEL: crate::device::gpu::shader::Kernel = kernel!("accumulate", pack::KNOBS);

/// One over `n` numbers.
fn dispatch<'a>(plan: &'a mut Dispatches, entry: &'static str, n: usize) -> &'a mut Dispatch {
    let pack = pack::of(&[n]);
    plan.add(&KERNEL, entry).knobs(pack::set(pack)).param("n", n / pack).cover(n / pack, 256)
}

/// The sum of two gradients of one tensor.
#[derive(Debug)]
pub(super) struct Accumulate {
    pub n: usize,
}

impl Launch for Accumulate {
    fn name(&self) -> &'static str {
        "accumulate"
    }

    fn cpu(&self, io: &Io) {
        use rayon::prelude::*;
        let (a, b, sum) = (io.read(0), io.read(1), io.write(0));
        const CHUNK: usize = 16_384;
        sum.par_chunks_mut(CHUNK).zip(a.par_chunks(CHUNK)).zip(b.par_chunks(CHUNK)).for_each(
            |((sum, a), b)| {
                for ((sum, a), b) in sum.iter_mut().zip(a).zip(b) {
                    *sum = a + b;
                }
            },
        );
    }

    fn gpu(&self, plan: &mut Dispatches) {
        dispatch(plan, "forward", self.n).read("a", 0).read("b", 1).write("sum", 0);
    }
}

/// The gradient that a backward pass begins with.
#[derive(Debug)]
pub(super) struct One;

impl Launch for One {
    fn name(&self) -> &'static str {
        "one"
    }

    fn cpu(&self, io: &Io) {
        io.write(0).fill(1.0);
    }

    fn gpu(&self, plan: &mut Dispatches) {
        dispatch(plan, "one", 1).write("sum", 0);
    }
}

/// Moves a gradient that is not this program's own into a store.
#[derive(Debug)]
pub(super) struct Copy {
    pub n: usize,
}

impl Launch for Copy {
    fn name(&self) -> &'static str {
        "copy"
    }

    fn cpu(&self, io: &Io) {
        io.write(0).copy_from_slice(io.read(0));
    }

    fn gpu(&self, plan: &mut Dispatches) {
        dispatch(plan, "copy", self.n).read("a", 0).write("sum", 0);
    }
}

/// Adds a flat store of gradients to another.
#[derive(Debug)]
pub(super) struct AddInto {
    pub n: usize,
}

impl Launch for AddInto {
    fn name(&self) -> &'static str {
        "accumulate into"
    }

    fn cpu(&self, io: &Io) {
        use rayon::prelude::*;
        const CHUNK: usize = 16_384;
        io.write(0).par_chunks_mut(CHUNK).zip(io.read(0).par_chunks(CHUNK)).for_each(|(sum, a)| {
            sum.iter_mut().zip(a).for_each(|(sum, a)| *sum += a);
        });
    }

    fn gpu(&self, plan: &mut Dispatches) {
        dispatch(plan, "add_into", self.n).read("a", 0).write("sum", 0);
    }
}

impl AddInto {
    pub fn recorded(self) -> Recorded {
        let info = LaunchInfo {
            // The sum is read as well as written.
            extra_bytes: self.n as i64 * 4,
            ..LaunchInfo::default()
        };
        Recorded::new(self, info)
    }
}
