//! The built-in recipes, each with the source of its numbers.

use super::{Optimizer, Recipe, System};
use crate::data::Resize;
use crate::diffusion::Variance;
use crate::models::unet::UNetConfig;
use crate::models::vae::{Reconstruction, VaeConfig, VaeKind};
use crate::optim::LrSchedule;

/// The built-in recipes; the first is the default.
pub fn built_in() -> Vec<Recipe> {
    vec![
        digits(),
        mnist(),
        celeba64(),
        cifar10(),
        diffusers_unconditional(),
        digits_vae(),
        digits_kl(),
        faces_vae(),
        celeba64_vae(),
        mnist_mlp_vae(),
        digits_ldm(),
        faces_ldm(),
        celeba64_ldm(),
    ]
}

/// Small enough to be trained in minutes on two cores.
fn digits() -> Recipe {
    Recipe {
        name: "digits".to_owned(),
        about: "pixel DDPM on generated handwriting, minutes on two CPU cores".to_owned(),
        data: "digits".to_owned(),
        image_size: 16,
        steps: 900,
        batch_size: 64,
        lr: 1e-3,
        lr_schedule: LrSchedule::Cosine,
        lr_warmup: 100,
        ema_decay: 0.995,
        sample_steps: 200,
        sample_count: 36,
        sample_every: 300,
        checkpoint_every: 300,
        unet: UNetConfig {
            norm_num_groups: 8,
            layers_per_block: 1,
            attention_head_dim: 32,
            zero_init: true,
            ..UNetConfig::with_levels(1, &[32, 64], &[false, true])
        },
        ..Recipe::default()
    }
}

/// Slides C: exactly 1,707,009 parameters, the reference library's defaults.
fn mnist() -> Recipe {
    Recipe {
        name: "mnist".to_owned(),
        about: "pixel DDPM on MNIST's file format, 28x28, 1,707,009 parameters".to_owned(),
        data: "mnist:data/mnist".to_owned(),
        image_size: 28,
        steps: 20_000,
        batch_size: 64,
        lr: 1e-3,
        lr_schedule: LrSchedule::Cosine,
        lr_warmup: 500,
        ema_decay: 0.999,
        sample_every: 1000,
        unet: UNetConfig::with_levels(1, &[32, 64, 64], &[false, true, true]),
        ..Recipe::default()
    }
}

/// Report A: 50 epochs of 202,599 aligned faces at batch 64.
fn celeba64() -> Recipe {
    Recipe {
        name: "celeba64".to_owned(),
        about: "pixel DDPM on aligned CelebA faces, 64x64, Adam 1e-4, EMA".to_owned(),
        data: "images:data/celeba".to_owned(),
        image_size: 64,
        crop: 178,
        flip: true,
        steps: 158_000,
        batch_size: 64,
        lr: 1e-4,
        unet: UNetConfig::with_levels(3, &[64, 128, 256, 256], &[false, false, true, true]),
        ..Recipe::default()
    }
}

/// Ho et al. 2020, appendix B: 35,746,307 parameters; the options of google/ddpm-cifar10-32.
fn cifar10() -> Recipe {
    Recipe {
        name: "cifar10".to_owned(),
        about: "pixel DDPM on CIFAR-10 as Ho et al. 2020, 32x32, 35,746,307 parameters".to_owned(),
        data: "cifar10:data/cifar-10-batches-bin".to_owned(),
        image_size: 32,
        flip: true,
        steps: 800_000,
        batch_size: 128,
        lr: 2e-4,
        lr_warmup: 5000,
        ema_warmup: false,
        variance: Variance::FixedLarge,
        unet: UNetConfig {
            flip_sin_to_cos: false,
            freq_shift: 1.0,
            downsample_padding: 0,
            norm_eps: 1e-6,
            attention_head_dim: 0,
            dropout: 0.1,
            zero_init: true,
            ..UNetConfig::with_levels(3, &[128, 256, 256, 256], &[false, true, false, false])
        },
        ..Recipe::default()
    }
}

/// `examples/unconditional_image_generation/train_unconditional.py` of the diffusers library with the
/// arguments of its documentation (`--center_crop --random_flip --use_ema`): every number that decides what
/// is learnt. (The script keeps all of its checkpoints, and has pictures and the model every tenth pass
/// through the data instead of at steps. The last batch of a pass is smaller there; here a batch reaches into
/// the next pass.)
fn diffusers_unconditional() -> Recipe {
    let plain = [false, false, false, false, true, false];
    Recipe {
        name: "diffusers-unconditional".to_owned(),
        about: "pixel DDPM as diffusers' train_unconditional.py trains it, 64x64, 113,673,219 parameters"
            .to_owned(),
        data: "images:data/images".to_owned(),
        image_size: 64,
        resize: Resize::Bilinear,
        flip: true,
        epochs: 100,
        // Of the flowers that the documentation trains on: 8,189 images.
        steps: 51_200,
        batch_size: 16,
        optimizer: Optimizer::Adamw,
        lr: 1e-4,
        lr_schedule: LrSchedule::Cosine,
        lr_warmup: 500,
        beta1: 0.95,
        beta2: 0.999,
        adam_eps: 1e-8,
        weight_decay: 1e-6,
        clip_norm: 1.0,
        ema_decay: 0.9999,
        ema_warmup: true,
        ema_inv_gamma: 1.0,
        ema_power: 0.75,
        sample_count: 16,
        // Ten passes through the flowers.
        sample_every: 5120,
        checkpoint_every: 500,
        unet: UNetConfig::with_levels(3, &[128, 128, 256, 256, 512, 512], &plain),
        ..Recipe::default()
    }
}

/// Shared by the VAE recipes: report A's optimiser.
fn vae(name: &str, about: &str) -> Recipe {
    Recipe {
        name: name.to_owned(),
        about: about.to_owned(),
        system: System::Vae,
        lr: 1e-4,
        ema_decay: 0.999,
        sample_count: 16,
        ..Recipe::default()
    }
}

/// Small enough for minutes on two cores.
fn digits_vae() -> Recipe {
    Recipe {
        data: "digits".to_owned(),
        image_size: 32,
        steps: 1200,
        batch_size: 32,
        lr: 2e-3,
        lr_schedule: LrSchedule::Cosine,
        lr_warmup: 100,
        ema_decay: 0.99,
        kl_weight: 0.1,
        kl_warmup: 300,
        sample_every: 400,
        checkpoint_every: 400,
        evaluate_every: 200,
        vae: VaeConfig { in_channels: 1, widths: vec![16, 32], norm_num_groups: 8, ..VaeConfig::default() },
        ..vae(
            "digits-vae",
            "convolutional VAE of generated handwriting, 32x32x1 to 8x8x4, minutes on two CPU cores",
        )
    }
}

/// The reference library's `AutoencoderKL` small enough for minutes on two cores. Its loss is that of Rombach
/// et al. 2022 without the parts that are networks; the weight of the divergence is a `digits-vae`'s, for a
/// loss that is summed over pixels as well.
fn digits_kl() -> Recipe {
    let about = "AutoencoderKL of generated handwriting, 32x32x1 to 8x8x4, minutes on two CPU cores";
    let digits = digits_vae();
    Recipe {
        name: "digits-kl".to_owned(),
        about: about.to_owned(),
        steps: 600,
        lr: 1e-3,
        sample_every: 200,
        checkpoint_every: 200,
        reconstruction: Reconstruction::L1,
        vae: VaeConfig { kind: VaeKind::Kl, widths: vec![16, 32, 32], ..digits.vae.clone() },
        ..digits
    }
}

fn faces_vae() -> Recipe {
    let about = "convolutional VAE of generated faces, 32x32x3 to 8x8x4, minutes on two CPU cores";
    let digits = digits_vae();
    Recipe {
        name: "faces-vae".to_owned(),
        about: about.to_owned(),
        data: "faces".to_owned(),
        vae: VaeConfig { in_channels: 3, ..digits.vae.clone() },
        ..digits
    }
}

/// Report A: 20 epochs of 202,599 aligned faces at batch 64.
fn celeba64_vae() -> Recipe {
    Recipe {
        data: "images:data/celeba".to_owned(),
        image_size: 64,
        crop: 178,
        flip: true,
        steps: 63_000,
        ..vae("celeba64-vae", "convolutional VAE of aligned CelebA faces, 64x64x3 to 8x8x4, Adam 1e-4")
    }
}

/// Report D: 100 epochs of 60,000 digits at batch 128.
fn mnist_mlp_vae() -> Recipe {
    Recipe {
        data: "mnist:data/mnist".to_owned(),
        image_size: 28,
        steps: 47_000,
        batch_size: 128,
        lr: 1e-3,
        reconstruction: Reconstruction::Bce,
        vae: VaeConfig {
            kind: VaeKind::Mlp,
            in_channels: 1,
            widths: vec![512, 256],
            latent: 2,
            ..VaeConfig::default()
        },
        ..vae(
            "mnist-mlp-vae",
            "VAE of linear layers with a latent of 2 numbers on MNIST, binary cross-entropy",
        )
    }
}

/// Shared by the latent diffusion recipes. Latents are cached: drawing from kept means and variances is
/// the distribution that encoding anew gives, without the encoder's work in every step. They have no bound
/// to clip samples to.
fn ldm(name: &str, about: &str) -> Recipe {
    Recipe {
        name: name.to_owned(),
        about: about.to_owned(),
        system: System::Ldm,
        clip_sample: 0.0,
        ..Recipe::default()
    }
}

fn digits_ldm() -> Recipe {
    Recipe {
        data: "digits".to_owned(),
        image_size: 32,
        steps: 2000,
        batch_size: 64,
        lr: 1e-3,
        lr_schedule: LrSchedule::Cosine,
        lr_warmup: 100,
        ema_decay: 0.995,
        sample_steps: 200,
        sample_count: 36,
        sample_every: 1000,
        checkpoint_every: 500,
        unet: UNetConfig {
            norm_num_groups: 8,
            attention_head_dim: 32,
            zero_init: true,
            ..UNetConfig::with_levels(4, &[32, 64], &[true, true])
        },
        ..ldm(
            "digits-ldm",
            "latent diffusion of generated handwriting on a digits-vae, minutes on two CPU cores",
        )
    }
}

fn faces_ldm() -> Recipe {
    Recipe {
        name: "faces-ldm".to_owned(),
        about: "latent diffusion of generated faces on a faces-vae, minutes on two CPU cores".to_owned(),
        data: "faces".to_owned(),
        ..digits_ldm()
    }
}

/// Report A: the pixel model's process on latents 8x8x4; the network of the benchmark's `ldm-unet`.
fn celeba64_ldm() -> Recipe {
    Recipe {
        data: "images:data/celeba".to_owned(),
        image_size: 64,
        crop: 178,
        flip: true,
        steps: 158_000,
        batch_size: 64,
        unet: UNetConfig::with_levels(4, &[128, 256], &[true, true]),
        ..ldm("celeba64-ldm", "latent diffusion of aligned CelebA faces on a celeba64-vae, latents 8x8x4")
    }
}
