//! Animations: pictures one after the other, as a GIF that never stops.

use std::io::Write;
use std::path::Path;

use image::codecs::gif::{GifEncoder, Repeat};
use image::{Delay, DynamicImage, Frame, RgbImage};

use crate::checkpoint::write_whole;
use crate::error::{Error, Result};

/// Of 1 (best) to 30: which part of the pixels the palette of a frame is learned from. Frames of up to 256
/// colours, such as grey ones, are exact at any speed.
const SPEED: i32 = 10;

/// Writes `frames` as a GIF that repeats for ever, `delay_ms` milliseconds a frame (the format knows steps
/// of 10), under a temporary name first.
///
/// # Panics
/// If there is no frame, or they differ in size.
#[track_caller]
pub fn write_gif(path: &Path, frames: &[RgbImage], delay_ms: u32) -> Result<()> {
    assert!(!frames.is_empty(), "write_gif: no frames");
    for frame in frames {
        let (size, first) = (frame.dimensions(), frames[0].dimensions());
        assert_eq!(size, first, "write_gif: frames of different sizes");
    }
    let bytes = encode(frames, delay_ms).map_err(|e| {
        Error::new(format!("cannot make the animation {}", path.display()))
            .hint("choose fewer or smaller pictures")
            .caused_by(e)
    })?;
    write_whole(path, |file| file.write_all(&bytes))
}

fn encode(frames: &[RgbImage], delay_ms: u32) -> image::ImageResult<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut encoder = GifEncoder::new_with_speed(&mut bytes, SPEED);
    encoder.set_repeat(Repeat::Infinite)?;
    let delay = Delay::from_numer_denom_ms(delay_ms, 1);
    for frame in frames {
        let rgba = DynamicImage::ImageRgb8(frame.clone()).into_rgba8();
        encoder.encode_frame(Frame::from_parts(rgba, 0, 0, delay))?;
    }
    drop(encoder);
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::codecs::gif::GifDecoder;
    use image::{AnimationDecoder, Rgb};

    fn decoded(bytes: &[u8]) -> Vec<Frame> {
        GifDecoder::new(std::io::Cursor::new(bytes)).unwrap().into_frames().collect_frames().unwrap()
    }

    #[test]
    fn frames_come_back_and_repeat_for_ever() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("steps.gif");
        let frames: Vec<RgbImage> = (0..5u8)
            .map(|i| RgbImage::from_fn(20, 12, |x, y| Rgb([x as u8 * 12, y as u8 * (i + 1), 40 * i])))
            .collect();
        write_gif(&path, &frames, 120).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "no temporary file is left");
        let at = bytes.windows(11).position(|w| w == b"NETSCAPE2.0").expect("how often it repeats");
        assert_eq!(bytes[at + 11..at + 16], [3, 1, 0, 0, 0], "0 is for ever");
        let back = decoded(&bytes);
        assert_eq!(back.len(), 5);
        for (frame, wanted) in back.iter().zip(&frames) {
            assert_eq!(frame.delay().numer_denom_ms(), (120, 1));
            let rgb = DynamicImage::ImageRgba8(frame.buffer().clone()).into_rgb8();
            assert!(&rgb == wanted, "up to 256 colours are kept");
        }
    }

    #[test]
    fn colours_stay_close_where_there_are_more_than_a_palette() {
        let frame = RgbImage::from_fn(200, 200, |x, y| Rgb([x as u8, y as u8, ((x + y) / 2) as u8]));
        let bytes = encode(std::slice::from_ref(&frame), 50).unwrap();
        let back = decoded(&bytes).remove(0).into_buffer();
        let pairs = back.pixels().zip(frame.pixels());
        let off = pairs.flat_map(|(a, b)| (0..3).map(|k| f64::from(a[k].abs_diff(b[k])))).sum::<f64>();
        let mean = off / (3.0 * 200.0 * 200.0);
        assert!(mean < 6.0, "{mean}");
    }

    #[test]
    fn a_place_that_cannot_be_written_is_an_error() {
        let frame = RgbImage::new(2, 2);
        let error = write_gif(Path::new("/nowhere/at/all.gif"), &[frame], 50).unwrap_err();
        assert!(error.to_string().contains("/nowhere/at/all.gif"), "{error}");
        let wide = write_gif(Path::new("/nowhere/wide.gif"), &[RgbImage::new(70_000, 1)], 50).unwrap_err();
        assert!(wide.to_string().contains("animation"), "{wide}");
    }

    #[test]
    #[should_panic(expected = "different sizes")]
    fn frames_of_different_sizes_are_refused() {
        let _ = write_gif(Path::new("x.gif"), &[RgbImage::new(2, 2), RgbImage::new(2, 3)], 50);
    }
}
