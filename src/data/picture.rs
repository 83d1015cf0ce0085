//! Pixels: bytes to [-1, 1] and back, cutting and resizing to a square, mirroring, and contact sheets.

use image::imageops::{self, FilterType};
use image::{DynamicImage, GrayImage, ImageBuffer, Pixel, Rgb, RgbImage};

use super::{Options, Resize};

/// A value in [-1, 1] as a byte, `round(255 * clamp(v / 2 + 1/2, 0, 1))`; NaN becomes 0.
pub(crate) fn to_u8(v: f32) -> u8 {
    ((v * 0.5 + 0.5).clamp(0.0, 1.0) * 255.0).round() as u8
}

/// A byte as a value in [-1, 1]; `to_u8` gives the byte back.
pub fn from_u8(b: u8) -> f32 {
    f32::from(b) * (2.0 / 255.0) - 1.0
}

/// Mirrors a picture, left becomes right. `pixels` `[H, W, C]`.
pub(crate) fn mirror(pixels: &mut [f32], [h, w, c]: [usize; 3]) {
    assert_eq!(pixels.len(), h * w * c, "mirror: pixels for [{h}, {w}, {c}]");
    for row in pixels.chunks_exact_mut(w * c) {
        for x in 0..w / 2 {
            for k in 0..c {
                row.swap(x * c + k, (w - 1 - x) * c + k);
            }
        }
    }
}

/// Pictures side by side, row by row, with a white line of `gap` pixels between them.
///
/// `images` `[N, H, W, C]` in [-1, 1], C 1 or 3; values outside are clamped. A last row may be incomplete.
///
/// # Panics
/// If `images` is not `[n, h, w, c]`, or `c` is neither 1 nor 3, or `columns` is 0.
#[track_caller]
pub fn grid(images: &[f32], n: usize, [h, w, c]: [usize; 3], columns: usize, gap: usize) -> RgbImage {
    assert!(c == 1 || c == 3, "grid: {c} channels, not 1 or 3");
    assert!(columns > 0, "grid: 0 columns");
    assert_eq!(images.len(), n * h * w * c, "grid: values for [{n}, {h}, {w}, {c}]");
    let columns = columns.min(n.max(1));
    let rows = n.div_ceil(columns).max(1);
    let extent = |count: usize, side: usize| (count * side + (count - 1) * gap) as u32;
    let mut sheet = RgbImage::from_pixel(extent(columns, w), extent(rows, h), Rgb([255; 3]));
    for (i, image) in images.chunks_exact((h * w * c).max(1)).enumerate() {
        let (left, top) = (i % columns * (w + gap), i / columns * (h + gap));
        for (j, pixel) in image.chunks_exact(c).enumerate() {
            let rgb = [pixel[0], pixel[c / 2], pixel[c - 1]].map(to_u8);
            sheet.put_pixel((left + j % w) as u32, (top + j / w) as u32, Rgb(rgb));
        }
    }
    sheet
}

/// One picture as a file holds it, grey where it has one channel. `pixels` `[H, W, C]` in [-1, 1], C 1 or 3;
/// values outside are clamped.
#[track_caller]
pub(crate) fn picture(pixels: &[f32], [h, w, c]: [usize; 3]) -> DynamicImage {
    assert_eq!(pixels.len(), h * w * c, "picture: values for [{h}, {w}, {c}]");
    let bytes = pixels.iter().map(|&v| to_u8(v)).collect();
    let (width, height) = (w as u32, h as u32);
    let made = match c {
        1 => GrayImage::from_raw(width, height, bytes).map(DynamicImage::ImageLuma8),
        3 => RgbImage::from_raw(width, height, bytes).map(DynamicImage::ImageRgb8),
        _ => panic!("picture: {c} channels, not 1 or 3"),
    };
    made.unwrap_or_else(|| unreachable!("{w} x {h} pixels"))
}

/// The centred square of a picture, `crop` pixels wide (or as wide as the picture allows), as `[image_size,
/// image_size, channels]` bytes, 3 channels where the options name none. Transparency shows white, as on a
/// page.
///
/// The filter of [`Resize::Bicubic`] is PIL's, which Parmar et al. 2022 ("On aliased resizing and surprising
/// subtleties in GAN evaluation") recommend; a triangle blurs more, Lanczos rings more.
pub(super) fn fit(image: DynamicImage, options: &Options) -> Vec<u8> {
    let Options { image_size, channels, crop, resize, .. } = *options;
    let has_color = image.color().has_color();
    let image = if image.color().has_alpha() { on_white(image) } else { image };
    let largest = image.width().min(image.height());
    let side = crop.map_or(largest, |c| largest.min(u32::try_from(c).unwrap_or(u32::MAX)));
    let size = image_size as u32;
    // Resizing every channel of a grey picture, or colours that become grey, would be work for nothing.
    let grey = channels == Some(1) || !has_color;
    let filter = if resize == Resize::Lanczos { FilterType::Lanczos3 } else { FilterType::Triangle };
    let bytes = match (resize, grey) {
        (Resize::Bicubic, true) => square(image.into_luma8(), side, size),
        (Resize::Bicubic, false) => square(image.into_rgb8(), side, size),
        (Resize::Bilinear | Resize::Lanczos, true) => {
            whole(image.into_luma8(), crop.map(|_| side), size, filter)
        }
        (Resize::Nearest, true) => nearest(&image.into_luma8(), side, size),
        (Resize::Nearest, false) => nearest(&image.into_rgb8(), side, size),
        (Resize::Bilinear | Resize::Lanczos, false) => {
            whole(image.into_rgb8(), crop.map(|_| side), size, filter)
        }
    };
    if grey && channels != Some(1) { bytes.into_iter().flat_map(|v| [v; 3]).collect() } else { bytes }
}

type Bytes<P> = ImageBuffer<P, Vec<u8>>;

/// The centred square of `side` pixels, resized to `size`, as `[size, size, c]`.
fn square<P: Pixel<Subpixel = u8> + 'static>(image: Bytes<P>, side: u32, size: u32) -> Vec<u8> {
    // A photograph is first brought to four times the size by plain averages, which differs from the filter
    // alone by little more than rounding and takes a tenth of its time (Pillow's `reducing_gap` is the same).
    let factor = (side / (4 * size)).max(1);
    let small = side / factor;
    let corner = [image.width(), image.height()].map(|extent| ((extent - small * factor) / 2) as usize);
    let small = average(&image, corner, factor as usize, small);
    if small.width() == size {
        return small.into_raw();
    }
    imageops::resize(&small, size, size, FilterType::CatmullRom).into_raw()
}

/// The centred square of `side` pixels, of which each pixel takes the nearest.
fn nearest<P: Pixel<Subpixel = u8> + 'static>(image: &Bytes<P>, side: u32, size: u32) -> Vec<u8> {
    let [x, y] = [image.width(), image.height()].map(|extent| (extent - side) / 2);
    let square = imageops::crop_imm(image, x, y, side, side).to_image();
    imageops::resize(&square, size, size, FilterType::Nearest).into_raw()
}

/// As torchvision has it: the picture (or its centred square of `side` pixels) with its shorter side at
/// `size`, the longer one cut off to a whole number; of that, the square in the middle, half pixels going to
/// the even one.
fn whole<P: Pixel<Subpixel = u8> + 'static>(
    mut image: Bytes<P>,
    side: Option<u32>,
    size: u32,
    filter: FilterType,
) -> Vec<u8> {
    if let Some(side) = side {
        image = middle(&image, side);
    }
    let (w, h) = image.dimensions();
    // Of a strip only the middle is resized: as a whole it could take any amount of memory.
    let [most_w, most_h] = [w.min(h.saturating_mul(4)), h.min(w.saturating_mul(4))];
    if [most_w, most_h] != [w, h] {
        image = imageops::crop_imm(&image, (w - most_w) / 2, (h - most_h) / 2, most_w, most_h).to_image();
    }
    let (w, h) = image.dimensions();
    let long = |long: u32, short: u32| (u64::from(size) * u64::from(long) / u64::from(short)) as u32;
    let [new_w, new_h] = if w <= h { [size, long(h, w)] } else { [long(w, h), size] };
    let resized =
        if [new_w, new_h] == [w, h] { image } else { imageops::resize(&image, new_w, new_h, filter) };
    middle(&resized, size).into_raw()
}

/// The square in the middle of a picture that is no smaller.
fn middle<P: Pixel<Subpixel = u8> + 'static>(image: &Bytes<P>, side: u32) -> Bytes<P> {
    let [x, y] =
        [image.width(), image.height()].map(|n| (f64::from(n - side) / 2.0).round_ties_even() as u32);
    imageops::crop_imm(image, x, y, side, side).to_image()
}

/// The averages of `factor` x `factor` pixels, `size` x `size` of them, from corner `[left, top]` on.
fn average<P: Pixel<Subpixel = u8>>(
    image: &Bytes<P>,
    [left, top]: [usize; 2],
    factor: usize,
    size: u32,
) -> Bytes<P> {
    let c = usize::from(P::CHANNEL_COUNT);
    let (row, count) = (image.width() as usize * c, (factor * factor) as u32);
    let mut out = Vec::new();
    let mut sums = vec![0u32; size as usize * c];
    for y in 0..size as usize {
        sums.fill(0);
        for source in image.as_raw()[(top + y * factor) * row..].chunks(row).take(factor) {
            let blocks = source[left * c..].chunks_exact(factor * c);
            for (sum, block) in sums.chunks_exact_mut(c).zip(blocks) {
                for pixel in block.chunks_exact(c) {
                    for (s, &v) in sum.iter_mut().zip(pixel) {
                        *s += u32::from(v);
                    }
                }
            }
        }
        out.extend(sums.iter().map(|s| ((s + count / 2) / count) as u8));
    }
    Bytes::from_raw(size, size, out).unwrap_or_else(|| unreachable!("{size} pixels square"))
}

/// Lays a transparent picture on white.
fn on_white(image: DynamicImage) -> DynamicImage {
    let over = |v: u8, alpha: u8| {
        ((u32::from(v) * u32::from(alpha) + 255 * (255 - u32::from(alpha)) + 127) / 255) as u8
    };
    let rgba = image.into_rgba8();
    DynamicImage::ImageRgb8(RgbImage::from_fn(rgba.width(), rgba.height(), |x, y| {
        let [r, g, b, a] = rgba.get_pixel(x, y).0;
        Rgb([r, g, b].map(|v| over(v, a)))
    }))
}

/// The picture with every pixel as a square, so that images of `side` pixels are some 64 or more wide:
/// small ones are hard to look at. Pictures of larger images come back as they are.
pub(crate) fn enlarge(picture: RgbImage, side: usize) -> RgbImage {
    let factor = (64 / side.max(1)).max(1) as u32;
    match (picture.width().checked_mul(factor), picture.height().checked_mul(factor)) {
        (Some(w), Some(h)) => RgbImage::from_fn(w, h, |x, y| *picture.get_pixel(x / factor, y / factor)),
        _ => picture,
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::options;
    use super::*;
    use image::{LumaA, Rgba};

    fn fitted(
        image: DynamicImage,
        crop: Option<usize>,
        resize: Resize,
        size: usize,
        channels: usize,
    ) -> Vec<u8> {
        fit(image, &Options { crop, resize, channels: Some(channels), ..options(size) })
    }

    #[test]
    fn bytes_survive_the_round_trip_and_values_are_clamped() {
        for b in 0..=255 {
            assert_eq!(to_u8(from_u8(b)), b);
        }
        assert_eq!([-1.0, 1.0, -7.0, 7.0, 0.0, f32::NAN].map(to_u8), [0, 255, 0, 255, 128, 0]);
        assert_eq!((from_u8(0), from_u8(255)), (-1.0, 1.0));
    }

    #[test]
    fn mirroring_swaps_columns_and_keeps_channels() {
        let mut pixels: Vec<f32> = (0..12).map(|v| v as f32).collect();
        mirror(&mut pixels, [2, 3, 2]);
        assert_eq!(pixels, [4.0, 5.0, 2.0, 3.0, 0.0, 1.0, 10.0, 11.0, 8.0, 9.0, 6.0, 7.0]);
    }

    #[test]
    fn a_grid_places_each_picture() {
        let images: Vec<f32> = [-1.0, 0.0, 1.0].iter().flat_map(|&v| [v; 4]).collect();
        let sheet = grid(&images, 3, [2, 2, 1], 2, 1);
        assert_eq!(sheet.dimensions(), (5, 5));
        assert_eq!(sheet.get_pixel(1, 1).0, [0; 3]);
        assert_eq!(sheet.get_pixel(2, 0).0, [255; 3], "the gap is white");
        assert_eq!(sheet.get_pixel(3, 0).0, [128; 3]);
        let colour = grid(&[-1.0, 0.0, 1.0], 1, [1, 1, 3], 4, 2);
        assert_eq!((colour.dimensions(), colour.get_pixel(0, 0).0), ((1, 1), [0, 128, 255]));
    }

    #[test]
    fn one_channel_makes_a_grey_picture() {
        let grey = picture(&[-1.0, 0.0, 1.0, 7.0], [2, 2, 1]);
        assert_eq!((grey.color(), grey.as_bytes()), (image::ColorType::L8, &[0, 128, 255, 255][..]));
        let colour = picture(&[-1.0, 0.0, 1.0], [1, 1, 3]);
        assert_eq!((colour.color(), colour.as_bytes()), (image::ColorType::Rgb8, &[0, 128, 255][..]));
    }

    #[test]
    fn fit_cuts_the_centre() {
        let wide = RgbImage::from_fn(30, 10, |x, _| Rgb([x as u8, 0, 7]));
        let square = fitted(DynamicImage::ImageRgb8(wide.clone()), None, Resize::Bicubic, 10, 3);
        assert_eq!((&square[..3], &square[27..30]), (&[10, 0, 7][..], &[19, 0, 7][..]));
        let cut = fitted(DynamicImage::ImageRgb8(wide.clone()), Some(8), Resize::Bicubic, 8, 3);
        assert_eq!(cut[0], 11);
        assert_eq!(
            fitted(DynamicImage::ImageRgb8(wide), Some(99), Resize::Bicubic, 10, 3),
            square,
            "no wider than the picture"
        );
    }

    #[test]
    fn shrinking_averages_instead_of_dropping_pixels() {
        let stripes = GrayImage::from_fn(64, 64, |x, _| image::Luma([if x % 2 == 0 { 0 } else { 255 }]));
        let small = fitted(DynamicImage::ImageLuma8(stripes), None, Resize::Bicubic, 8, 1);
        assert!(small.iter().all(|v| (115..=140).contains(v)), "{small:?}");
    }

    #[test]
    fn a_strip_takes_no_more_memory_than_a_picture() {
        // As a whole it would be 256 x 51,200,000 pixels.
        let strip = GrayImage::from_fn(1, 200_000, |_, y| image::Luma([if y < 100_000 { 0 } else { 255 }]));
        let square = fitted(DynamicImage::ImageLuma8(strip), None, Resize::Bilinear, 256, 1);
        assert!(square.len() == 256 * 256 && square[0] <= 2 && square[256 * 256 - 1] >= 253);
    }

    #[test]
    fn the_whole_picture_is_resized_as_torchvision_does_it() {
        // CenterCrop(8)(Resize(8, interpolation)(PIL.Image)): the first and the last row.
        let value = |x: u32, y: u32| image::Luma([((x * 37 + y * 91 + x * y * 13) % 256) as u8]);
        for (resize, first, last) in [
            (
                Resize::Lanczos,
                [140, 142, 113, 113, 167, 66, 157, 119_u8],
                [83, 100, 75, 52, 29, 45, 149, 133_u8],
            ),
            (Resize::Bilinear, [138, 136, 121, 113, 159, 86, 144, 122], [87, 100, 78, 57, 37, 62, 137, 134]),
        ] {
            let image = DynamicImage::ImageLuma8(GrayImage::from_fn(24, 18, value));
            let rows = fitted(image, None, resize, 8, 1);
            let near = |row: &[u8], wanted: [u8; 8]| row.iter().zip(wanted).all(|(a, b)| a.abs_diff(b) <= 1);
            assert!(near(&rows[..8], first) && near(&rows[56..], last), "{resize:?}: {rows:?}");
        }
    }

    #[test]
    fn averaging_first_changes_only_the_rounding() {
        let wave =
            |x: u32, y: u32| ((x as f32 / 37.0).sin() * 60.0 + (y as f32 / 23.0).cos() * 60.0 + 128.0) as u8;
        let photo = RgbImage::from_fn(640, 512, |x, y| Rgb([wave(x, y), wave(y, x), (x % 256) as u8 / 2]));
        let cut = imageops::crop_imm(&photo, 64, 0, 512, 512).to_image();
        let exact = imageops::resize(&cut, 16, 16, FilterType::CatmullRom).into_raw();
        let fast = fitted(DynamicImage::ImageRgb8(photo), None, Resize::Bicubic, 16, 3);
        let worst = exact.iter().zip(&fast).map(|(&a, &b)| a.abs_diff(b)).max().unwrap();
        assert!(exact.len() == fast.len() && worst <= 3, "{worst}");
    }

    #[test]
    fn transparency_is_white_and_depths_agree() {
        let clear = image::RgbaImage::from_pixel(8, 8, Rgba([200, 0, 0, 0]));
        assert!(
            fitted(DynamicImage::ImageRgba8(clear), None, Resize::Bicubic, 8, 3).iter().all(|&v| v == 255)
        );
        let half = image::GrayAlphaImage::from_pixel(8, 8, LumaA([0, 128]));
        assert!(
            fitted(DynamicImage::ImageLumaA8(half), None, Resize::Bicubic, 8, 3).iter().all(|&v| v == 127)
        );
        let deep = image::ImageBuffer::from_pixel(8, 8, image::Luma([0x8080_u16]));
        assert!(
            fitted(DynamicImage::ImageLuma16(deep), None, Resize::Bicubic, 8, 3).iter().all(|&v| v == 128)
        );
        let green = RgbImage::from_pixel(8, 8, Rgb([0, 255, 0]));
        let grey = fitted(DynamicImage::ImageRgb8(green), None, Resize::Bicubic, 8, 1);
        assert!(grey.len() == 64 && grey.iter().all(|v| (150..=190).contains(v)), "{grey:?}");
    }
}
