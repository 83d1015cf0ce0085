//! Any bytes as a file for `denoir::weights::torch`.
#![no_main]

use std::io::Cursor;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = denoir::weights::torch::list(&mut Cursor::new(bytes), bytes.len() as u64);
});
