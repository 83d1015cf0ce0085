//! Picture files, decoded.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits};

use super::jpeg;
use super::loader::panic_text;
use super::picture::fit;
use super::{Options, Resize};
use crate::files;

/// Memory that decoding one picture may take: 80 megapixels of RGB. It is needed once for each loader thread.
const MAX_DECODED: u64 = 256 << 20;
/// Bytes of a file that may be one picture; others are not begun, as they may have no end.
pub(super) const MAX_FILE: u64 = 1 << 30;

/// The format of a file by its first bytes, and its decoder.
pub(super) fn decoder(path: &Path) -> std::result::Result<(Option<ImageFormat>, impl ImageDecoder), String> {
    let there = fs::metadata(path).map_err(|e| e.to_string())?;
    if !there.is_file() {
        return Err("it is no file".to_owned());
    }
    if there.len() > MAX_FILE {
        let [bytes, allowed] = [there.len() >> 20, MAX_FILE >> 20];
        return Err(format!("it has {bytes} MB, more than the {allowed} allowed"));
    }
    let reader = ImageReader::open(path).and_then(ImageReader::with_guessed_format);
    let mut reader = reader.map_err(|e| e.to_string())?;
    let format = reader.format();
    let mut limits = Limits::default();
    limits.max_alloc = Some(MAX_DECODED);
    reader.limits(limits);
    Ok((format, reader.into_decoder().map_err(|e| e.to_string())?))
}

/// A picture as it is meant to be seen, turned as its EXIF data says; the first frame of an animation.
fn decode(path: &Path) -> std::result::Result<DynamicImage, String> {
    let (format, mut decoder) = decoder(path)?;
    let ((w, h), bytes) = (decoder.dimensions(), decoder.total_bytes());
    if w == 0 || h == 0 {
        return Err("it has no pixels".to_owned());
    }
    // Not every decoder keeps the limits itself.
    if bytes > MAX_DECODED {
        let [needed, allowed] = [bytes >> 20, MAX_DECODED >> 20];
        return Err(format!("{w} x {h} pixels need {needed} MB, more than the {allowed} allowed"));
    }
    let orientation = decoder.orientation().map_err(|e| e.to_string())?;
    let mut image = if format == Some(ImageFormat::Jpeg) {
        jpeg::decode(&files::read(path, MAX_FILE).map_err(|e| e.to_string())?)?
    } else {
        DynamicImage::from_decoder(decoder).map_err(|e| e.to_string())?
    };
    image.apply_orientation(orientation);
    Ok(image)
}

/// An error where `nearest` is to keep numbers of classes, and the picture has colours, or grey levels of
/// which 8 bits are not all.
fn check_is_map(image: &DynamicImage, options: &Options) -> std::result::Result<(), String> {
    let color = image.color();
    match options.resize {
        Resize::Nearest if color.bytes_per_pixel() > color.channel_count() => {
            Err("it has more than 8 bits, and numbers of classes (resize = nearest) have 8".to_owned())
        }
        Resize::Nearest if options.channels == Some(1) && color.has_color() => {
            Err("it has colours, and numbers of classes (resize = nearest) are grey levels".to_owned())
        }
        _ => Ok(()),
    }
}

/// `[size, size, channels]` bytes of a picture file, or what is wrong with it in a line.
pub(super) fn decode_and_fit(path: &Path, options: &Options) -> std::result::Result<Vec<u8>, String> {
    guarded(|| {
        let image = decode(path)?;
        check_is_map(&image, options).map(|()| fit(image, options))
    })
}

/// A picture file as it is.
pub(super) fn decode_safely(path: &Path) -> std::result::Result<DynamicImage, String> {
    guarded(|| decode(path))
}

/// Decoders are foreign code: a panic there is one more picture that cannot be read.
fn guarded<T>(read: impl FnOnce() -> std::result::Result<T, String>) -> std::result::Result<T, String> {
    catch_unwind(AssertUnwindSafe(read))
        .unwrap_or_else(|panic| Err(format!("its decoder failed: {}", panic_text(panic.as_ref()))))
        .map_err(|wrong| wrong.lines().next().unwrap_or_default().to_owned())
}
