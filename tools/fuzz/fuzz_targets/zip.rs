//! Any bytes as a file for `denoir::weights::zip`.
#![no_main]

use std::io::Cursor;

use denoir::weights::zip::{check_sums, entries};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let mut source = Cursor::new(bytes);
    if let Ok(entries) = entries(&mut source, bytes.len() as u64) {
        let held: u64 = entries.iter().map(|entry| entry.size).sum();
        assert!(held <= bytes.len() as u64, "{held} bytes out of {}", bytes.len());
        let _ = check_sums(&mut source, &entries);
    }
});
