//! Any text as the `config.json` of a folder of diffusers with weights, and as its scheduler.
#![no_main]

use std::sync::Once;

use denoir_fuzz::{put, scratch, two};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    static WEIGHTS: Once = Once::new();
    WEIGHTS.call_once(|| {
        let weights = include_bytes!("../../../tests/golden/tiny_ddpm/unet/diffusion_pytorch_model.safetensors");
        put("folder/diffusion_pytorch_model.safetensors", weights);
    });
    let (config, scheduler) = two(bytes);
    put("folder/config.json", config);
    put("folder/scheduler_config.json", scheduler);
    let _ = denoir::diffusers::open(&scratch().join("folder"));
});
