//! The built-in recipes, each with the source of its numbers.

use super::Recipe;
use crate::diffusion::Variance;
use crate::models::unet::UNetConfig;
use crate::optim::LrSchedule;

/// The built-in recipes; the first is the default.
pub fn built_in() -> Vec<Recipe> {
    vec![digits(), mnist(), celeba64(), cifar10()]
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
