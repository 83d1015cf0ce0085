//! Any bytes as a file for `denoir::weights::safetensors`; and as the header and the tensors of one that is sound
//! in itself.
#![no_main]

use std::io::Cursor;

use denoir::weights::safetensors::list;
use denoir_fuzz::two;

fn check(bytes: &[u8]) {
    let Ok(listing) = list(&mut Cursor::new(bytes), bytes.len() as u64) else { return };
    for (name, stored) in listing {
        let size = stored.shape.iter().product::<usize>() * stored.dtype.size();
        assert!(stored.at + size as u64 <= bytes.len() as u64, "{name:?} is {stored:?} of {}", bytes.len());
    }
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    check(bytes);
    let (header, data) = two(bytes);
    check(&[&(header.len() as u64).to_le_bytes(), header, data].concat());
});
