//! Any bytes as a file of latents, and of noise; and as the header and the tensors of one that is sound in itself.
#![no_main]

use std::path::Path;

use denoir::codec::Codec;
use denoir::device::Device;
use denoir::latent_file;
use denoir::recipe::{Recipe, find};
use denoir::sample::inversion;
use denoir_fuzz::{put, two};

/// Of the noise: so few numbers that a file can have them.
const SHAPE: [usize; 3] = [2, 1, 3];

thread_local! {
    static CODEC: Codec = {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/folders/vq");
        Codec::open(&folder, &Device::open("cpu").expect("the CPU")).expect("the tests' folder")
    };
    static RECIPE: Recipe = find("digits").expect("it is built in");
}

fn check(bytes: &[u8]) {
    let path = put("latents.safetensors", bytes);
    let sound = |values: &[f32], size: usize| {
        assert!(!values.is_empty() && values.len().is_multiple_of(size) && values.iter().all(|v| v.is_finite()));
    };
    CODEC.with(|codec| {
        let _ = latent_file::check_replaceable(&path);
        if let Ok(latents) = latent_file::read(&path, codec) {
            sound(&latents, codec.latent().iter().product());
        }
    });
    let _ = inversion::check_replaceable(&path);
    if let Ok((noise, way)) = inversion::read(&path, SHAPE) {
        sound(&noise, SHAPE.iter().product());
        // Walking so may be refused, and must not fail otherwise.
        RECIPE.with(|recipe| way.options(recipe, "ddim").map(drop).unwrap_or_default());
    }
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    check(bytes);
    let (header, data) = two(bytes);
    check(&[&(header.len() as u64).to_le_bytes(), header, data].concat());
});
