//! The launches of the tape itself: sums of gradients, and copies of them into stores.

use crate::device::gpu::shader::Kernel;
use crate::kernel;
use crate::launch::{CHUNK, Dispatch, Dispatches, Launch, LaunchInfo, Recorded, launch_of, pack};

pub(crate) static KERNEL: Kernel = kernel!("accumulate", pack::KNOBS);

/// One over `n` numbers, which it writes.
fn dispatch<'a>(plan: &'a mut Dispatches, entry: &'static str, n: usize) -> &'a mut Dispatch {
    let pack = pack::of(&[n]);
    let dispatch = plan.add(&KERNEL, entry).knobs(pack::set(pack)).param("n", n / pack);
    dispatch.write("sum", 0).cover(n / pack, 256)
}

/// The sum of two gradients of one tensor.
pub(super) fn accumulate(n: usize) -> impl Launch {
    launch_of(
        "accumulate",
        |io| {
            io.map2(
                #[inline(always)]
                |y, a, b| {
                    for ((y, a), b) in y.iter_mut().zip(a).zip(b) {
                        *y = a + b;
                    }
                },
            );
        },
        move |plan| {
            dispatch(plan, "forward", n).read("a", 0).read("b", 1);
        },
    )
}

/// The gradient that a backward pass begins with.
pub(super) fn one() -> impl Launch {
    launch_of(
        "one",
        |io| io.write(0).fill(1.0),
        |plan| {
            dispatch(plan, "one", 1);
        },
    )
}

/// Copies a gradient that is not this program's own into a store.
pub(super) fn copy(n: usize) -> impl Launch {
    launch_of(
        "copy",
        |io| io.write(0).copy_from_slice(io.read(0)),
        move |plan| {
            dispatch(plan, "copy", n).read("a", 0);
        },
    )
}

/// Adds a flat store of gradients to another.
pub(super) fn add_into(n: usize) -> Recorded {
    let launch = launch_of(
        "accumulate into",
        |io| {
            use rayon::prelude::*;
            let chunks = io.write(0).par_chunks_mut(CHUNK).zip(io.read(0).par_chunks(CHUNK));
            chunks.for_each(|(sum, a)| sum.iter_mut().zip(a).for_each(|(sum, a)| *sum += a));
        },
        move |plan| {
            dispatch(plan, "add_into", n).read("a", 0);
        },
    );
    // The sum is read as well as written.
    Recorded::new(launch, LaunchInfo { extra_bytes: n as i64 * 4, ..LaunchInfo::default() })
}
