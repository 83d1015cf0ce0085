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

/// Where the marker stands that ends the image (ITU-T T.81, B.1.1), if no restart is missing: decoders go on
/// after a gap between two of them. Bytes after the end do not matter.
fn end_of_image(file: &[u8]) -> Result<usize, String> {
    let next = |from: usize, wanted: fn(u8) -> bool| {
        let rest = file.get(from..).unwrap_or_default();
        let at = rest.iter().position(|&byte| wanted(byte)).map(|at| from + at);
        at.ok_or("the file is cut: it has no end of image")
    };
    let (mut at, mut frame, mut scan) = (2, Frame::default(), None);
    loop {
        // Entropy-coded data; then the marker, before which any number of 0xff may stand.
        let marker = next(at, |byte| byte == 0xff)?;
        at = next(marker, |byte| byte != 0xff)?;
        let kind = file[at];
        if let 0xd0..=0xd7 = kind {
            let done = scan.get_or_insert((0, 0));
            let in_order = usize::from(kind - 0xd0) == done.0 % 8;
            done.0 += 1;
            if !in_order {
                return Err("data is missing: its restarts are not in order".to_owned());
            }
        } else if kind > 0x01 {
            // Another scan or the end: the last scan is over.
            let (done, wanted) = scan.take().unwrap_or((0, 0));
            // The height may stand after the first scan (B.2.5).
            if done != wanted && frame.height > 0 {
                return Err(format!("data is missing: {done} restarts instead of {wanted}"));
            }
        }
        at += match kind {
            0xd9 => return Ok(marker),
            // A byte of data that is 0xff, restarts: no length follows.
            0x00 | 0x01 | 0xd0..=0xd8 => 1,
            _ => {
                let word = |at| usize::from(u16_at(file, at));
                let length = word(at + 1).max(2);
                let segment = file.get(at + 3..at + 1 + length).unwrap_or_default();
                match kind {
                    0xc0..=0xc2 => frame.describe(segment),
                    0xdd => frame.interval = usize::from(u16_at(segment, 0)),
                    0xda => scan = Some((0, frame.restarts(segment))),
                    _ => {}
                }
                1 + length
            }
        };
    }
}

/// The word at a place; 0 past the end, where the file is cut.
fn u16_at(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..at + 2).map_or(0, |two| u16::from_be_bytes([two[0], two[1]]))
}

/// What a file says of its blocks of 8 x 8.
#[derive(Default)]
struct Frame {
    height: usize,
    width: usize,
    /// Number of each component, and its blocks across and down in a unit of an interleaved scan.
    components: Vec<(u8, [usize; 2])>,
    /// Units between restarts; 0: there are none.
    interval: usize,
}

impl Frame {
    /// Takes the segment of a start of frame (B.2.2).
    fn describe(&mut self, segment: &[u8]) {
        (self.height, self.width) = (usize::from(u16_at(segment, 1)), usize::from(u16_at(segment, 3)));
        let sampled = |c: &[u8]| (c[0], [c[1] >> 4, c[1] & 15].map(|factor| usize::from(factor).max(1)));
        self.components = segment.get(6..).unwrap_or_default().chunks_exact(3).map(sampled).collect();
    }

    /// Restarts in the scan that a segment starts (B.2.3; units as in A.2).
    fn restarts(&self, segment: &[u8]) -> usize {
        let count = usize::from(segment.first().copied().unwrap_or(0));
        let most = |axis: usize| self.components.iter().map(|(_, factors)| factors[axis]).max().unwrap_or(1);
        let units = |pixels: usize, axis: usize| {
            let whole = 8 * most(axis);
            match self.components.iter().find(|(id, _)| count == 1 && segment.get(1) == Some(id)) {
                // One component: its own blocks.
                Some((_, factors)) => (pixels * factors[axis]).div_ceil(most(axis)).div_ceil(8),
                None => pixels.div_ceil(whole),
            }
        };
        let all = units(self.width, 0) * units(self.height, 1);
        all.div_ceil(self.interval.max(1)).saturating_sub(1) * usize::from(self.interval > 0)
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

    /// A progressive file without some of its scans is one too, and a gap from one scan into another may
    /// leave a stream that is: JPEG has no sums.
    #[test]
    fn a_gap_is_refused() {
        let (mut taken, mut all) = (0, 0);
        for (name, file) in files() {
            let length = file.len() / 4;
            for place in (file.len() / 3..file.len() - length - 8).step_by(7) {
                let damaged = [&file[..place], &file[place + length..]].concat();
                let is_taken = decode(&damaged).is_ok();
                assert!(!is_taken || name.contains("-p1-"), "{name}: {place}");
                (taken, all) = (taken + usize::from(is_taken), all + 1);
            }
        }
        assert!(taken * 5 < all, "{taken} of {all} are taken");
    }
}
