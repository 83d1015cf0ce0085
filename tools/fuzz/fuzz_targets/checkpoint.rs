//! Any bytes as a checkpoint; and as the header and the tensors of one that is sound in itself.
#![no_main]

use denoir::checkpoint::{self, SETS};
use denoir::recipe::params_of;
use denoir_fuzz::{put, two};

fn check(bytes: &[u8]) {
    let Ok(loaded) = checkpoint::load(&put("step-00000001.safetensors", bytes)) else { return };
    if loaded.recipe.validate().is_ok() {
        let params = params_of(&loaded.recipe);
        // As many numbers as the recipe's model has are asked for.
        if params.borrow().elements() < 1 << 20 {
            for set in SETS {
                let _ = loaded.set(set, &params.borrow());
            }
        }
    }
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    check(bytes);
    let (header, data) = two(bytes);
    check(&[&(header.len() as u64).to_le_bytes(), header, data].concat());
});
