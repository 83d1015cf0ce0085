//! JPEG files, decoded strictly. Decoders commonly fill what is missing from a cut or damaged file with grey;
//! such a picture counts as unreadable here, as one of any other format does.

use image::{DynamicImage, GrayImage, RgbImage};
use zune_jpeg::JpegDecoder;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

use bits::CUT;
use scan::Frame;

mod bits;
mod scan;

/// The picture of a file, grey or RGB, not yet turned as its EXIF data says; or what is wrong in a line.
pub(super) fn decode(file: &[u8]) -> Result<DynamicImage, String> {
    check(file)?;
    let options = DecoderOptions::default().set_strict_mode(true);
    let options = options.set_max_width(usize::MAX).set_max_height(usize::MAX);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(file), options);
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

/// An error where the file, up to its end of image (ITU-T T.81, B.1.1), does not hold all of its picture.
/// Bytes after the end do not matter.
fn check(file: &[u8]) -> Result<(), &'static str> {
    let next = |from: usize, wanted: fn(u8) -> bool| {
        let rest = file.get(from..).unwrap_or_default();
        let at = rest.iter().position(|&byte| wanted(byte)).map(|at| from + at);
        at.ok_or(CUT)
    };
    let (mut at, mut frame) = (2, Frame::default());
    loop {
        // Any number of 0xff may stand before a marker.
        at = next(at, |byte| byte == 0xff)?;
        at = next(at, |byte| byte != 0xff)?;
        let kind = file[at];
        at += 1;
        match kind {
            0xd9 => return frame.is_whole(),
            // Not followed by a segment.
            0x00 | 0x01 | 0xd0..=0xd8 => continue,
            _ => {}
        }
        let segment = file.get(at..).and_then(|rest| rest.split_first_chunk::<2>());
        let length = segment.map_or(0, |(length, _)| usize::from(u16::from_be_bytes(*length)));
        let segment = file.get(at + 2..at + length).ok_or(CUT)?;
        at += length;
        match kind {
            0xc0..=0xc2 => frame.describe(kind == 0xc2, segment),
            0xc3 | 0xc5..=0xcb | 0xcd..=0xcf => {
                return Err("its kind of JPEG (lossless, hierarchical or arithmetic) is not supported");
            }
            0xc4 => frame.define_tables(segment),
            0xdd => frame.define_restarts(segment),
            0xda => at = frame.walk(segment, file, at)?,
            _ => {}
        }
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

    #[test]
    fn a_picture_that_ends_early_is_refused() {
        for (name, file) in files() {
            for end in 4..file.len() - 4 {
                let early = [&file[..end], &[0xff, 0xd9]].concat();
                assert!(decode(&early).is_err(), "{name}: {end} of {} bytes", file.len());
            }
        }
    }

    /// JPEG has no sums: codes fall into step again, and a few bytes less may leave as many blocks.
    #[test]
    fn a_gap_is_refused() {
        let (mut taken, mut all) = (0, 0);
        for (name, file) in files() {
            for length in [file.len() / 4, 64] {
                for place in (file.len() / 3..file.len() - length - 8).step_by(3) {
                    let damaged = [&file[..place], &file[place + length..]].concat();
                    let is_taken = decode(&damaged).is_ok();
                    assert!(!is_taken || length == 64, "{name}: {length} bytes at {place}");
                    (taken, all) = (taken + usize::from(is_taken), all + 1);
                }
            }
        }
        assert!(taken * 500 < all, "{taken} of {all} are taken");
    }

    /// The markers of a progressive file's scans, and of its end.
    fn scans(file: &[u8]) -> Vec<usize> {
        let is_scan = |at: &usize| file[*at] == 0xff && matches!(file[at + 1], 0xda | 0xd9);
        (2..file.len() - 1).filter(is_scan).collect()
    }

    #[test]
    fn a_picture_without_one_of_its_scans_is_refused() {
        let mut all = 0;
        for (name, file) in files().into_iter().filter(|(name, _)| name.contains("-p1-")) {
            for two in scans(&file).windows(2) {
                let damaged = [&file[..two[0]], &file[two[1]..]].concat();
                assert!(decode(&damaged).is_err(), "{name}: without the scan at {}", two[0]);
                all += 1;
            }
        }
        assert!(all > 60, "{all} scans");
    }

    #[test]
    fn a_scan_of_one_of_three_components_is_refused_unless_it_is_progressive() {
        let file = &files().into_iter().find(|(name, _)| name == "rgb-p0-s0-r0.jpg").unwrap().1;
        let at = scans(file)[0];
        let own = [&file[..at], &[0xff, 0xda, 0, 8, 1, 1, 0, 0, 63, 0], &file[at + 14..]].concat();
        assert!(decode(&own).unwrap_err().contains("scans of their own"));
    }

    #[test]
    fn colours_of_more_samples_than_the_luma_are_refused() {
        let mut file = files().into_iter().find(|(name, _)| name == "rgb-p0-s0-r0.jpg").unwrap().1;
        let frame = file.windows(2).position(|two| two == [0xff, 0xc0]).unwrap();
        // The factors of the second component.
        file[frame + 14] = 0x22;
        assert!(decode(&file).unwrap_err().contains("fewer samples"));
    }

    #[test]
    fn padding_after_the_last_block_is_accepted() {
        for (name, file) in files() {
            let padded = |padding: &[u8]| [&file[..file.len() - 2], padding, &[0xff, 0xd9]].concat();
            assert!(decode(&padded(&[0; 5])).is_ok(), "{name}");
            assert!(decode(&padded(&[7])).is_err(), "{name}");
        }
    }
}
