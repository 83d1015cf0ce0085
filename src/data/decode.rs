//! Picture files, decoded.

use std::fs;
use std::io::{BufRead, Cursor, Seek};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits};

use super::jpeg;
use super::loader::panic_text;
use super::picture::{fit, from_u8};
use super::{Options, Resize, Split, check};
use crate::error::{Error, Result};
use crate::files;

/// Memory that decoding one picture may take: 80 megapixels of RGB. It is needed once for each loader thread.
const MAX_DECODED: u64 = 256 << 20;
/// Bytes of a file that may be one picture; others are not begun, as they may have no end.
pub(super) const MAX_FILE: u64 = 1 << 30;

/// A picture as a file holds it.
pub(super) enum Encoded {
    File(PathBuf),
    /// Within another file.
    Bytes(Arc<[u8]>),
}

trait Source: BufRead + Seek {}
impl<T: BufRead + Seek> Source for T {}

impl Encoded {
    fn reader(&self) -> std::result::Result<ImageReader<Box<dyn Source + '_>>, String> {
        let path = match self {
            Encoded::File(path) => path,
            Encoded::Bytes(bytes) => return Ok(ImageReader::new(Box::new(Cursor::new(bytes)))),
        };
        let there = fs::metadata(path).map_err(|e| e.to_string())?;
        if !there.is_file() {
            return Err("it is no file".to_owned());
        }
        if there.len() > MAX_FILE {
            let [bytes, allowed] = [there.len() >> 20, MAX_FILE >> 20];
            return Err(format!("it has {bytes} MB, more than the {allowed} allowed"));
        }
        let reader = ImageReader::open(path).map_err(|e| e.to_string())?;
        // Some formats are told by their ending alone.
        let format = reader.format();
        let mut reader = ImageReader::<Box<dyn Source>>::new(Box::new(reader.into_inner()));
        if let Some(format) = format {
            reader.set_format(format);
        }
        Ok(reader)
    }

    fn jpeg(&self) -> std::result::Result<DynamicImage, String> {
        match self {
            Encoded::File(path) => jpeg::decode(&files::read(path, MAX_FILE).map_err(|e| e.to_string())?),
            Encoded::Bytes(bytes) => jpeg::decode(bytes),
        }
    }
}

/// The format of a picture by its first bytes, and its decoder.
pub(super) fn decoder(
    picture: &Encoded,
) -> std::result::Result<(Option<ImageFormat>, impl ImageDecoder + '_), String> {
    let mut reader = picture.reader()?.with_guessed_format().map_err(|e| e.to_string())?;
    let format = reader.format();
    let mut limits = Limits::default();
    limits.max_alloc = Some(MAX_DECODED);
    reader.limits(limits);
    Ok((format, reader.into_decoder().map_err(|e| e.to_string())?))
}

/// A picture as it is meant to be seen, turned as its EXIF data says; the first frame of an animation.
fn decode(picture: &Encoded) -> std::result::Result<DynamicImage, String> {
    let (format, mut decoder) = decoder(picture)?;
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
        picture.jpeg()?
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

/// The square of `crop` pixels (or as large as the picture allows) at a place from 0 to 1 across and down.
fn cut(image: &DynamicImage, crop: Option<usize>, place: [f32; 2]) -> DynamicImage {
    let largest = image.width().min(image.height());
    let side = crop.map_or(largest, |c| largest.min(u32::try_from(c).unwrap_or(u32::MAX)));
    let corner = |extent: u32, place: f32| (((extent - side + 1) as f32 * place) as u32).min(extent - side);
    image.crop_imm(corner(image.width(), place[0]), corner(image.height(), place[1]), side, side)
}

/// `[size, size, channels]` bytes of a picture, or what is wrong with it in a line. `place`: of the square
/// that is cut out, from 0 to 1 across and down; `None`: the middle.
pub(super) fn decode_and_fit(
    picture: &Encoded,
    options: &Options,
    place: Option<[f32; 2]>,
) -> std::result::Result<Vec<u8>, String> {
    guarded(|| {
        let image = decode(picture)?;
        check_is_map(&image, options)?;
        let image = match place {
            Some(place) => cut(&image, options.crop, place),
            None => image,
        };
        Ok(fit(image, options))
    })
}

/// A picture file as it is.
pub(super) fn decode_safely(path: &Path) -> std::result::Result<DynamicImage, String> {
    guarded(|| decode(&Encoded::File(path.to_owned())))
}

/// Decoders are foreign code: a panic there is one more picture that cannot be read.
fn guarded<T>(read: impl FnOnce() -> std::result::Result<T, String>) -> std::result::Result<T, String> {
    catch_unwind(AssertUnwindSafe(read))
        .unwrap_or_else(|panic| Err(format!("its decoder failed: {}", panic_text(panic.as_ref()))))
        .map_err(|wrong| wrong.lines().next().unwrap_or_default().to_owned())
}

/// One picture file of any format that `images:` reads, cut and resized as there: `[size, size, channels]`,
/// row-major in [-1, 1].
///
/// `size`, `channels`, `crop` and `resize` are those of [`Options`]; `crop` is the side in pixels of the
/// centred square that is cut out first, `None` the largest.
///
/// # Errors
/// A size, number of channels or crop that cannot be used, or a file that is missing or no picture.
pub fn read_picture(
    path: &Path,
    size: usize,
    channels: usize,
    crop: Option<usize>,
    resize: Resize,
) -> Result<Vec<f32>> {
    let split = Split::Train; // neither it nor the seed matters to a single file
    let options = Options { image_size: size, channels: Some(channels), crop, resize, seed: 0, split };
    check(&options)?;
    if !path.is_file() {
        let wrong = if path.exists() { "is not a file" } else { "does not exist" };
        return Err(Error::new(format!("picture {} {wrong}", path.display()))
            .hint("give the path of a picture, such as a png or a jpeg"));
    }
    let bytes = decode_and_fit(&Encoded::File(path.to_owned()), &options, None).map_err(|wrong| {
        Error::new(format!("picture {} cannot be read", path.display()))
            .hint("check the file, or convert it to png or jpeg")
            .caused_by(wrong)
    })?;
    Ok(bytes.into_iter().map(from_u8).collect())
}
