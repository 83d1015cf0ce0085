//! Text on pictures: how wide it is, and drawing it smoothly, level or upwards.

use std::sync::LazyLock;

use ab_glyph::{Font, FontRef, Glyph, GlyphId, Point, PxScale, ScaleFont, point};
use image::{Rgb, RgbImage};

/// Letters above the base line, from the base line to the top of a `d`, in sizes.
const ASCENT: f32 = 0.76;
/// Letters below the base line, to the bottom of a `g`, in sizes.
const DESCENT: f32 = 0.24;
/// Half the height of a capital letter, in sizes: where the middle of a line seems to be.
const MIDDLE: f32 = 0.365;
/// From one line to the next, in sizes.
pub const LINE: f32 = 1.3;

/// The colour of all labels: dark grey on white.
pub const INK: [u8; 3] = [51; 3];

/// DejaVu Sans: ASCII, Latin-1, Greek, and the few signs that labels of plots need.
static FONT: LazyLock<FontRef<'static>> = LazyLock::new(|| {
    FontRef::try_from_slice(include_bytes!("dejavu-sans.ttf"))
        .unwrap_or_else(|e| unreachable!("the font in the program: {e}"))
});

/// Which part of a text, in the direction of reading, lies at the given place.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Across {
    Left,
    Centre,
    Right,
}

/// Which part of a line of text, from its top to its bottom, lies at the given place.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Down {
    /// The top of the tallest letters.
    Top,
    /// Half the height of a capital letter.
    Middle,
    /// The bottom of the letters that hang below the line.
    Bottom,
}

/// How wide a text is, in pixels, at `size` pixels to the em (capital letters are 0.73 of that high).
pub fn width(text: &str, size: f32) -> f32 {
    set(text, size).1
}

/// How high a line of text is, in pixels, from the top of `d` to the bottom of `g`.
pub fn height(size: f32) -> f32 {
    (ASCENT + DESCENT) * size
}

/// Draws a text with its `anchor` at `at` (x, y); what lies outside the picture is cut off. `upwards`: turned
/// by 90 degrees, to be read from the bottom up, and the anchor with it: `Left` is below, `Top` on the left.
pub fn draw(
    picture: &mut RgbImage,
    text: &str,
    size: f32,
    at: (f32, f32),
    anchor: (Across, Down),
    upwards: bool,
    colour: [u8; 3],
) {
    let (along, down) = offsets(text, size, anchor);
    let (x, y) = if upwards { (at.0 + down, at.1 - along) } else { (at.0 + along, at.1 + down) };
    // Letters on whole pixels are sharper.
    let (x, y) = (x.round() as i64, y.round() as i64);
    cover(text, size, |dx, dy, part| {
        let (x, y) = if upwards { (x + dy, y - dx - 1) } else { (x + dx, y + dy) };
        blend(picture, x, y, colour, part);
    });
}

/// Left, top, right, bottom of a text that [`draw`] draws.
pub fn bounds(text: &str, size: f32, (x, y): (f32, f32), anchor: (Across, Down), upwards: bool) -> [f32; 4] {
    let (along, down) = offsets(text, size, anchor);
    let (wide, top) = (width(text, size), down - ASCENT * size);
    if upwards {
        [x + top, y - along - wide, x + top + height(size), y - along]
    } else {
        [x + along, y + top, x + along + wide, y + top + height(size)]
    }
}

/// A text in lines no wider than `limit` pixels; a single word that is wider stays whole.
pub fn wrap(text: &str, size: f32, limit: f32) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if width(&format!("{line} {word}"), size) <= limit => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

/// Lays `colour` over a pixel that it covers in part; a pixel outside the picture is none.
pub(super) fn blend(picture: &mut RgbImage, x: i64, y: i64, colour: [u8; 3], part: f32) {
    let (Ok(x), Ok(y)) = (u32::try_from(x), u32::try_from(y)) else { return };
    if let Some(Rgb(below)) = picture.get_pixel_mut_checked(x, y) {
        for (b, c) in below.iter_mut().zip(colour) {
            *b = (f32::from(*b) + (f32::from(c) - f32::from(*b)) * part).round() as u8;
        }
    }
}

/// From the anchor to the start of the base line: along the text, and down.
fn offsets(text: &str, size: f32, (across, down): (Across, Down)) -> (f32, f32) {
    let along = match across {
        Across::Left => 0.0,
        Across::Centre => -width(text, size) / 2.0,
        Across::Right => -width(text, size),
    };
    let down = match down {
        Down::Top => ASCENT,
        Down::Middle => MIDDLE,
        Down::Bottom => -DESCENT,
    };
    (along, down * size)
}

/// The glyphs of a text from (0, 0) on, and its width.
fn set(text: &str, size: f32) -> (Vec<Glyph>, f32) {
    // ab_glyph measures a font from its highest to its lowest point, typography by the em.
    let units = FONT.units_per_em().unwrap_or_else(|| unreachable!("the font in the program has an em"));
    let font = FONT.as_scaled(PxScale::from(size * FONT.height_unscaled() / units));
    let (mut glyphs, mut x): (Vec<Glyph>, f32) = (Vec::new(), 0.0);
    let mut last: Option<GlyphId> = None;
    for letter in text.chars() {
        let id = font.glyph_id(letter);
        let place = |position: Point| id.with_scale_and_position(font.scale(), position);
        if let (true, Some(base)) = (matches!(letter, '\u{304}' | '\u{305}'), glyphs.last()) {
            // A stroke over a letter: centred above it, and clear of what it already reaches.
            let (over, mark) = (font.outline_glyph(base.clone()), font.outline_glyph(place(point(0.0, 0.0))));
            if let (Some(over), Some(mark)) = (over.map(|g| g.px_bounds()), mark.map(|g| g.px_bounds())) {
                let centre = (over.min.x + over.max.x - mark.min.x - mark.max.x) / 2.0;
                let lift = (over.min.y - size * 0.08 - mark.max.y).min(0.0);
                glyphs.push(place(point(centre, lift)));
            }
            continue;
        }
        x += last.map_or(0.0, |last| font.kern(last, id));
        glyphs.push(place(point(x, 0.0)));
        x += font.h_advance(id);
        last = Some(id);
    }
    (glyphs, x)
}

/// Calls `ink` with every pixel of a text that starts at (0, 0) of its base line, and the part of the pixel
/// that is covered.
fn cover(text: &str, size: f32, mut ink: impl FnMut(i64, i64, f32)) {
    for outline in set(text, size).0.into_iter().filter_map(|glyph| FONT.outline_glyph(glyph)) {
        let corner = outline.px_bounds().min;
        outline.draw(|x, y, part| {
            if part > 0.0 {
                ink(corner.x as i64 + i64::from(x), corner.y as i64 + i64::from(y), part.min(1.0));
            }
        });
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Left, top, right and bottom of what is not white, the last two exclusive.
    pub(crate) fn ink(picture: &RgbImage) -> Option<[u32; 4]> {
        let dark = || picture.enumerate_pixels().filter(|(_, _, p)| p.0 != [255; 3]);
        Some([
            dark().map(|p| p.0).min()?,
            dark().map(|p| p.1).min()?,
            dark().map(|p| p.0).max()? + 1,
            dark().map(|p| p.1).max()? + 1,
        ])
    }

    fn white() -> RgbImage {
        RgbImage::from_pixel(100, 80, Rgb([255; 3]))
    }

    fn near(bounds: [u32; 4], wanted: [f32; 4]) {
        let far = bounds.iter().zip(wanted).any(|(&b, w)| (b as f32 - w).abs() > 2.0);
        assert!(!far, "{bounds:?}, not {wanted:?}");
    }

    #[test]
    fn text_lies_at_its_anchor() {
        let (text, size) = ("Hxdg", 20.0);
        let (wide, high) = (width(text, size), height(size));
        let cases = [
            ((Across::Left, Down::Top), 30.0, 40.0),
            ((Across::Centre, Down::Top), 30.0 - wide / 2.0, 40.0),
            ((Across::Right, Down::Bottom), 30.0 - wide, 40.0 - high),
            ((Across::Left, Down::Middle), 30.0, 40.0 - (ASCENT - MIDDLE) * size),
        ];
        for (anchor, left, top) in cases {
            let mut picture = white();
            draw(&mut picture, text, size, (30.0, 40.0), anchor, false, INK);
            let expected = [left, top, left + wide, top + high].map(|v| v.max(0.0));
            near(ink(&picture).unwrap(), expected);
        }
    }

    #[test]
    fn turned_text_is_the_same_text() {
        let (mut level, mut upwards) = (white(), white());
        let anchor = (Across::Left, Down::Middle);
        draw(&mut level, "Loss L²", 14.0, (10.0, 30.0), anchor, false, [200, 0, 0]);
        draw(&mut upwards, "Loss L²", 14.0, (30.0, 70.0), anchor, true, [200, 0, 0]);
        let (a, b) = (ink(&level).unwrap(), ink(&upwards).unwrap());
        let turned = image::imageops::rotate90(&upwards);
        let cut = |p: &RgbImage| {
            let [l, t, r, b] = ink(p).unwrap();
            image::imageops::crop_imm(p, l, t, r - l, b - t).to_image()
        };
        assert_eq!(cut(&level), cut(&turned));
        assert_eq!((a[0] - 10, a[1]), (70 - b[3], b[0]), "{a:?} {b:?}");
    }

    #[test]
    fn the_letters_of_labels_are_in_the_font() {
        let all = (' '..='~').chain("αβγδεηθλμσωᾱ\u{304}\u{305}⁰¹²³⁴⁵⁶⁷⁸⁹⁻−×₀₁₉ₜ±·→≤√∞é–…".chars());
        for letter in all {
            assert_ne!(FONT.glyph_id(letter).0, 0, "{letter:?}");
        }
        assert!(width("mm", 12.0) > 2.0 * width("i", 12.0) && width("", 12.0) == 0.0);
        assert!((width("loss", 24.0) - 2.0 * width("loss", 12.0)).abs() < 1e-3);
    }

    #[test]
    fn a_stroke_stands_over_its_letter_and_needs_no_room() {
        let (mut plain, mut marked) = (white(), white());
        let anchor = (Across::Left, Down::Bottom);
        draw(&mut plain, "α", 40.0, (20.0, 60.0), anchor, false, INK);
        draw(&mut marked, "α\u{304}", 40.0, (20.0, 60.0), anchor, false, INK);
        let ([left, top, right, _], [l, t, r, _]) = (ink(&plain).unwrap(), ink(&marked).unwrap());
        assert!(t + 5 < top && l + 1 >= left && r <= right + 1, "{t} over {top}");
        assert_eq!(width("α\u{304}", 40.0), width("α", 40.0));
    }

    #[test]
    fn a_long_text_is_wrapped_and_outside_is_cut_off() {
        assert_eq!(wrap("one two three", 10.0, width("one two", 10.0) + 1.0), ["one two", "three"]);
        assert_eq!(wrap("incomprehensible a", 10.0, 5.0), ["incomprehensible", "a"]);
        assert!(wrap("", 10.0, 5.0).is_empty());
        let mut picture = white();
        draw(&mut picture, "cut", 30.0, (-10.0, 78.0), (Across::Left, Down::Top), false, INK);
        draw(&mut picture, "cut", 30.0, (99.0, 5.0), (Across::Left, Down::Top), true, INK);
    }
}
