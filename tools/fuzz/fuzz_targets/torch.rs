//! Any bytes as a file for `denoir::weights::torch`; and as the pickle and the storage of an archive that is
//! sound in itself.
#![no_main]

use std::io::Cursor;

use denoir::weights::torch::list;
use denoir_fuzz::{two, zip_file};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = list(&mut Cursor::new(bytes), bytes.len() as u64);
    let (pickle, storage) = two(bytes);
    let whole = zip_file(&[("a/data.pkl", pickle), ("a/data/0", storage), ("a/data/1", &storage[storage.len() / 2..])], 0);
    let Ok(listing) = list(&mut Cursor::new(&whole[..]), whole.len() as u64) else { return };
    for (name, stored) in listing {
        let span = stored.shape.iter().zip(&stored.strides).map(|(size, stride)| (size.max(&1) - 1) * stride);
        let end = stored.at + (span.sum::<usize>() * stored.dtype.size()) as u64;
        assert!(end <= whole.len() as u64, "{name:?} ends at {end} of {}", whole.len());
    }
});
