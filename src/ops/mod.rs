//! The ops, one room each: contract, launches, derivative, CPU twin, reference and tests. The kernel is the
//! file of the same name in `kernels/`; products have theirs in `kernels/product`.

pub mod activation;
pub mod adam;
pub mod arithmetic;
pub mod attention;
pub mod codebook;
pub mod concat;
pub mod conv2d;
pub mod conv_transpose2d;
pub mod cross_entropy;
pub mod denoising;
pub mod dropout;
pub mod embedding;
mod epilogue;
pub mod fold_upsample;
pub mod fourier_embedding;
pub mod fourier_features;
pub mod gather;
pub mod gaussian_kl;
pub mod grad_norm;
pub mod group_norm;
pub mod guidance;
pub mod layer_norm;
pub mod loss;
pub mod loss_history;
pub mod loss_scale;
pub mod matmul;
pub mod noising;
pub mod positions;
pub mod quantise;
pub mod reduce;
pub mod reparameterise;
pub mod resample;
mod shared;
pub mod swap;
pub mod timestep_embedding;
pub mod timesteps;
pub mod variational_bound;

use crate::device::gpu::shader::Kernel;

/// Every kernel of the program, for the tests that compile them all.
pub static KERNELS: &[&Kernel] = &[
    &crate::product::gpu::ADJOINT_WEIGHTS,
    &crate::product::gpu::NAIVE,
    &crate::product::gpu::PARTIALS,
    &crate::product::gpu::TILED,
    &crate::product::gpu::WINOGRAD,
    &crate::tape::KERNEL,
    &activation::KERNEL,
    &adam::KERNEL,
    &arithmetic::KERNEL,
    &attention::KERNEL,
    &attention::PRODUCTS,
    &attention::HEADS,
    &codebook::KERNEL,
    &concat::KERNEL,
    &cross_entropy::KERNEL,
    &denoising::KERNEL,
    &dropout::KERNEL,
    &embedding::KERNEL,
    &fold_upsample::KERNEL,
    &fourier_embedding::KERNEL,
    &fourier_features::KERNEL,
    &gather::KERNEL,
    &gaussian_kl::KERNEL,
    &grad_norm::KERNEL,
    &group_norm::KERNEL,
    &guidance::KERNEL,
    &layer_norm::KERNEL,
    &loss::KERNEL,
    &loss_history::KERNEL,
    &loss_scale::KERNEL,
    &noising::KERNEL,
    &positions::KERNEL,
    &quantise::KERNEL,
    &reduce::KERNEL,
    &reparameterise::KERNEL,
    &resample::KERNEL,
    &swap::KERNEL,
    &timestep_embedding::KERNEL,
    &timesteps::KERNEL,
    &variational_bound::KERNEL,
];
