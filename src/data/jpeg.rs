//! JPEG files, decoded strictly. Decoders commonly fill what is missing from a cut or damaged file with grey;
//! such a picture counts as unreadable here, as one of any other format does.

use image::{DynamicImage, GrayImage, RgbImage};
use zune_jpeg::JpegDecoder;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

/// The picture of a file, grey or RGB, not yet turned as its EXIF data says; or what is wrong in a line.
pub(super) fn decode(file: &[u8]) -> Result<DynamicImage, String> {
    let end = end_of_image(file)?;
    // Where data runs out decoders go on with zeros, which are codes. Ones alone are none (T.81, C.2): before
    // the end they change nothing in a whole picture, and stop the decoder in one with a gap.
    let file = [&file[..end], &[0xff, 0x00].repeat(8), &[0xff, 0xd9]].concat();
    let options = DecoderOptions::default().set_strict_mode(true);
    let options = options.set_max_width(usize::MAX).set_max_height(usize::MAX);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(&file[..]), options);
    decoder.decode_headers().map_err(|e| e.to_string())?;
    let grey = decoder.input_colorspace() == Some(ColorSpace::Luma);
    let space = if grey { ColorSpace::Luma } else { ColorSpace::RGB };
    decoder.set_options(options.jpeg_set_out_colorspace(space));
    let pixels = decoder.decode().map_err(|e| e.to_string())?;
    let (w, h) = decoder.dimensions().ok_or("it has no pixels")?;
    let (w, h) = (w as u32, h as u32);
    let image = if grey {
        GrayImage::from_raw(w, h, pixels).map(DynamicImage::ImageLuma8)
    } else {
        RgbImage::from_raw(w, h, pixels).map(DynamicImage::ImageRgb8)
    };
    image.ok_or_else(|| format!("its data is not {w} x {h} pixels"))
}

/// Where the marker stands that ends the image (ITU-T T.81, B.1.1). Bytes after it do not matter. Restarts are
/// numbered from 0 to 7 in turn: some decoders go on after a gap between two of them.
fn end_of_image(file: &[u8]) -> Result<usize, String> {
    let next = |from: usize, wanted: fn(u8) -> bool| {
        let rest = file.get(from..).unwrap_or_default();
        let at = rest.iter().position(|&byte| wanted(byte)).map(|at| from + at);
        at.ok_or("the file is cut: it has no end of image")
    };
    let (mut at, mut restarts) = (2, 0);
    loop {
        // Entropy-coded data; then the marker, before which any number of 0xff may stand.
        let marker = next(at, |byte| byte == 0xff)?;
        at = next(marker, |byte| byte != 0xff)?;
        let kind = file[at];
        match kind {
            0xd9 => return Ok(marker),
            0xd0..=0xd7 if kind - 0xd0 != restarts => {
                return Err("data is missing: its restarts are not in order".to_owned());
            }
            0xd0..=0xd7 => restarts = (restarts + 1) % 8,
            0xda => restarts = 0,
            _ => {}
        }
        at += match kind {
            // A byte of data that is 0xff, restarts: no length follows.
            0x00 | 0x01 | 0xd0..=0xd8 => 1,
            _ => {
                let [high, low] = [at + 1, at + 2].map(|at| file.get(at).copied().unwrap_or(0));
                1 + usize::from(u16::from_be_bytes([high, low])).max(2)
            }
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Files of `tools/reference/jpeg_golden.py`.
    fn files() -> Vec<(String, Vec<u8>)> {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/jpeg");
        let entries = std::fs::read_dir(folder).unwrap().map(Result::unwrap);
        let files = entries.map(|e| (e.file_name().into_string().unwrap(), std::fs::read(e.path()).unwrap()));
        let files: Vec<_> = files.collect();
        assert_eq!(files.len(), 16);
        files
    }

    #[test]
    fn a_whole_picture_is_what_the_image_crate_makes_of_it() {
        for (name, mut file) in files() {
            let wanted = image::load_from_memory(&file).unwrap();
            assert_eq!(decode(&file).unwrap(), wanted, "{name}");
            file.extend([0xff, 0xd8, 7, 7, 7]);
            assert_eq!(decode(&file).unwrap(), wanted, "{name}: bytes after the end");
        }
    }

    #[test]
    fn a_cut_picture_is_refused_wherever_it_ends() {
        for (name, file) in files() {
            for end in 0..file.len() {
                assert!(decode(&file[..end]).is_err(), "{name}: {end} of {} bytes", file.len());
            }
        }
    }

    /// A progressive file may end after any of its scans, but a baseline one has none to lose.
    #[test]
    fn a_picture_that_ends_early_is_refused() {
        for (name, file) in files().into_iter().filter(|(name, _)| name.contains("-p0-")) {
            for end in 4..file.len() - 4 {
                let early = [&file[..end], &[0xff, 0xd9]].concat();
                assert!(decode(&early).is_err(), "{name}: {end} of {} bytes", file.len());
            }
        }
    }

    #[test]
    fn a_gap_is_refused() {
        for (name, file) in files() {
            let (place, length) = (file.len() / 2, file.len() / 4);
            let damaged = [&file[..place], &file[place + length..]].concat();
            assert!(decode(&damaged).is_err(), "{name}");
        }
    }
}
