//! Pictures with their captions beneath.

use image::{Rgb, RgbImage};

use super::text::{self, Across, Down, INK};
use crate::data::picture::to_u8;
use crate::error::one_line;

/// Pictures are enlarged, by a whole factor, to at least this many pixels across.
const CELL: usize = 160;
/// White pixels between pictures, and around them.
const GAP: usize = 12;
const SIZE: f32 = 12.0;
/// Lines of a caption; the rest is left out.
const LINES: usize = 5;
/// Characters of a caption that are looked at.
const MOST: usize = 400;

/// The sheet of `images` `[n, H, W, C]` in [-1, 1], C 1 or 3, row by row with `columns` pictures each, and
/// beneath each its captions, of several the first ones.
///
/// # Panics
/// If `images` is not `[n, h, w, c]` for as many captions, or `columns` is 0.
#[track_caller]
pub(crate) fn with_captions(
    images: &[f32],
    captions: &[&[String]],
    [h, w, c]: [usize; 3],
    columns: usize,
) -> RgbImage {
    assert_eq!(images.len(), captions.len() * h * w * c, "with_captions: values for [{h}, {w}, {c}] each");
    let factor = CELL.div_ceil(w).max(1);
    let (high, wide) = (h * factor, w * factor);
    let texts: Vec<Vec<String>> = captions.iter().map(|of| lines(of, wide as f32)).collect();
    let line = (SIZE * text::LINE).ceil() as usize;
    // A row is as high as its longest caption needs.
    let heights =
        texts.chunks(columns).map(|row| high + GAP + line * row.iter().map(Vec::len).max().unwrap_or(0));
    let tops: Vec<usize> = std::iter::once(GAP)
        .chain(heights.scan(GAP, |top, height| {
            *top += height + GAP;
            Some(*top)
        }))
        .collect();
    let bottom = tops.last().copied().unwrap_or(GAP);
    let columns_drawn = columns.min(captions.len().max(1));
    let mut sheet =
        RgbImage::from_pixel((GAP + columns_drawn * (wide + GAP)) as u32, bottom as u32, Rgb([255; 3]));
    for (i, (image, texts)) in images.chunks_exact((h * w * c).max(1)).zip(&texts).enumerate() {
        let (left, top) = (GAP + i % columns * (wide + GAP), tops[i / columns]);
        for y in 0..high {
            for x in 0..wide {
                let pixel = &image[(y / factor * w + x / factor) * c..][..c];
                let rgb = [pixel[0], pixel[c / 2], pixel[c - 1]].map(to_u8);
                sheet.put_pixel((left + x) as u32, (top + y) as u32, Rgb(rgb));
            }
        }
        for (k, text) in texts.iter().enumerate() {
            let at = (left as f32, (top + high + GAP / 2 + k * line) as f32);
            text::draw(&mut sheet, text, SIZE, at, (Across::Left, Down::Top), false, INK);
        }
    }
    sheet
}

/// Captions in a few lines that are no wider than `limit` pixels.
fn lines(captions: &[String], limit: f32) -> Vec<String> {
    let short = |caption: &String| one_line(&caption.chars().take(MOST).collect::<String>());
    let mut lines: Vec<String> =
        captions.iter().take(LINES).flat_map(|caption| text::wrap(&short(caption), SIZE, limit)).collect();
    let is_cut = lines.len() > LINES;
    lines.truncate(LINES);
    let count = lines.len();
    for (i, line) in lines.iter_mut().enumerate() {
        // A word may be wider than a line.
        let mut cut = is_cut && i + 1 == count;
        while text::width(&format!("{line}{}", if cut { "..." } else { "" }), SIZE) > limit
            && !line.is_empty()
        {
            line.pop();
            cut = true;
        }
        line.push_str(if cut { "..." } else { "" });
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::super::text::tests::ink;
    use super::*;

    #[test]
    fn captions_stand_beneath_their_pictures_and_in_their_columns() {
        let images: Vec<f32> = (0..3).flat_map(|i| vec![i as f32 * 0.5 - 1.0; 32 * 32]).collect();
        let texts =
            ["short", &format!("{} and {}", "long words in many lines ".repeat(30), "x".repeat(9000)), ""]
                .map(|text| vec![text.to_owned()]);
        let captions: Vec<&[String]> = texts.iter().map(Vec::as_slice).collect();
        let sheet = with_captions(&images, &captions, [32, 32, 1], 2);
        let line = 16;
        assert_eq!(sheet.width(), 12 + 2 * (160 + 12));
        assert_eq!(sheet.height(), 12 + (160 + 12 + 5 * line + 12) + (160 + 12 + 12));
        let part = |x, y, w, h| ink(&image::imageops::crop_imm(&sheet, x, y, w, h).to_image());
        assert_eq!(sheet.get_pixel(12, 12).0, [0; 3]);
        assert_eq!(sheet.get_pixel(12 + 172, 12).0, [to_u8(-0.5); 3]);
        assert_eq!(sheet.get_pixel(12, 12 + 172 + 5 * line + 12).0, [to_u8(0.0); 3]);
        let [_, _, right, bottom] = part(12, 172, 160, 12 + 5 * line).unwrap();
        assert!(right < 40 && bottom < 24, "one line: {right} {bottom}");
        let [left, _, right, bottom] = part(12 + 172, 172, 172, 12 + 5 * line).unwrap();
        assert!(left < 3 && (100..=160).contains(&right) && bottom > 4 * line, "{left} {right} {bottom}");
        let wide = lines(&["W".repeat(1_000_000)], 160.0);
        assert!(
            wide.len() == 1 && wide[0].ends_with("W...") && text::width(&wide[0], SIZE) <= 160.0,
            "{wide:?}"
        );
    }
}
