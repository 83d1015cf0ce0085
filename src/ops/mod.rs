//! The ops, one room each: contract, launches, derivative, CPU twin, reference and tests. The kernel is the file of the same
//! name in `kernels/`.

pub mod activation;
pub mod concat;
pub mod group_norm;
pub mod resample;

use crate::device::gpu::shader::Kernel;

/// Elements that one task of an elementwise CPU twin takes: enough to pay for the task, few enough to stay in the L2 cache.
pub(crate) const CHUNK: usize = 16_384;

/// Every kernel of the program, for the tests that compile them all.
pub static KERNELS: &[&Kernel] =
    &[&crate::tape::KERNEL, &activation::KERNEL, &concat::KERNEL, &group_norm::KERNEL, &resample::KERNEL];
