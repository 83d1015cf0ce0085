//! Any bytes as a picture.
#![no_main]

use denoir::data::{Resize, read_picture};
use denoir_fuzz::{caught_panics_are_fine, put};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    caught_panics_are_fine();
    let path = put("picture.png", bytes);
    for resize in [Resize::Bicubic, Resize::Bilinear] {
        let _ = read_picture(&path, 16, 3, None, resize);
    }
});
