//! Any bytes as a Parquet file of pictures and captions: as they are, and as the end and the pages of one.
#![no_main]

use denoir::data::{Options, Resize, Split, open};
use denoir_fuzz::{caught_panics_are_fine, put, two};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    // Those of the pictures' decoders: one that nobody catches is still a finding.
    caught_panics_are_fine();
    let resize = Resize::Bicubic;
    let options = Options { image_size: 8, channels: None, crop: None, resize, seed: 0, split: Split::Train };
    let (end, pages) = two(bytes);
    let size = (end.len() as u32).to_le_bytes();
    let whole = [pages, end, &size[..], b"PAR1"].concat();
    // Where the first part is empty the second is a file as it is.
    let path = put("a.parquet", if end.is_empty() { pages } else { &whole });
    if let Ok(data) = open(&format!("parquet:{}", path.display()), &options) {
        let mut picture = vec![0.0; data.shape().iter().product()];
        for index in 0..data.len().unwrap_or(0).min(4) {
            let _ = data.read(index, &mut picture);
        }
        let _ = data.captions();
    }
});
