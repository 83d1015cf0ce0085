//! A sheet of pictures in rows and columns, with a title, and labels above and to the left.

use std::num::NonZero;

use image::{Rgb, RgbImage};

use super::text::{self, Across, Down, INK};
use crate::data::picture::to_u8;

/// Pictures are enlarged, by a whole factor, to at least this many pixels across, unless the caller wants
/// another size.
const CELL: usize = 64;
/// White pixels between a label and the pictures.
const SPACE: f32 = 6.0;
/// White pixels around a sheet with labels.
const MARGIN: f32 = 6.0;
/// White pixels between groups of rows, in gaps.
const GROUP_GAPS: usize = 4;
/// A title is broken into lines where it would make the sheet wider than this many pixels.
const TITLE_WIDTH: f32 = 280.0;

/// Pictures in rows and columns with labels; without labels, the bare grid.
#[derive(Clone, Debug, Default)]
pub struct Sheet {
    /// Pictures of a row, above 0.
    pub columns: usize,
    /// Pictures are enlarged, by a whole factor, to at least so many pixels across.
    pub cell: Option<usize>,
    /// More room after every so many rows.
    pub group: Option<NonZero<usize>>,
    /// Over everything; broken into lines where it is too long.
    pub title: String,
    /// Over each column. Where they would touch, only every second, third, ... is drawn.
    pub column_labels: Vec<String>,
    /// To the left of each row.
    pub row_labels: Vec<String>,
    /// Name of the quantity along a row, over the labels.
    pub column_axis: &'static str,
    /// Name of the quantity along a column, to the left of the labels; turned unless it is a letter or two.
    pub row_axis: &'static str,
}

impl Sheet {
    /// A sheet of `columns` pictures a row.
    ///
    /// # Panics
    /// If `columns` is 0.
    #[track_caller]
    pub fn new(columns: usize) -> Self {
        assert!(columns > 0, "Sheet: 0 columns");
        Sheet { columns, ..Sheet::default() }
    }

    /// The sheet of `images` `[n, H, W, C]` in [-1, 1], row by row, C 1 or 3; values outside are clamped. A
    /// last row may be incomplete; with fewer images than columns there are only as many columns.
    ///
    /// # Panics
    /// If `images` is not `[n, h, w, c]`, `c` is neither 1 nor 3, a picture is empty, or there are labels
    /// but fewer than rows or columns.
    #[track_caller]
    pub fn draw(&self, images: &[f32], n: usize, [h, w, c]: [usize; 3]) -> RgbImage {
        assert!(c == 1 || c == 3, "Sheet: {c} channels, not 1 or 3");
        assert!(h > 0 && w > 0, "Sheet: pictures of {w} by {h} pixels");
        assert_eq!(images.len(), n * h * w * c, "Sheet: values for [{n}, {h}, {w}, {c}]");
        let factor = self.cell.unwrap_or(CELL).div_ceil(w).max(1);
        let cells = Cells {
            rows: n.div_ceil(self.columns).max(1),
            columns: self.columns.min(n.max(1)),
            height: h * factor,
            width: w * factor,
            gap: (w * factor / 32).clamp(2, 4),
            group: self.group.map_or(usize::MAX, NonZero::get),
        };
        for (labels, count, what) in
            [(&self.column_labels, cells.columns, "columns"), (&self.row_labels, cells.rows, "rows")]
        {
            assert!(labels.is_empty() || labels.len() >= count, "Sheet: {} labels of {what}", labels.len());
        }
        let (writing, [left, top, right, bottom]) = self.layout(&cells);
        let mut sheet = RgbImage::from_pixel((right - left) as u32, (bottom - top) as u32, Rgb([255; 3]));
        for (i, image) in images.chunks_exact(h * w * c).enumerate() {
            let corner = (cells.left(i % self.columns), cells.top(i / self.columns));
            let corner = (corner.0 as u32 + -left as u32, corner.1 as u32 + -top as u32);
            for y in 0..cells.height {
                for x in 0..cells.width {
                    let pixel = &image[(y / factor * w + x / factor) * c..][..c];
                    let rgb = [pixel[0], pixel[c / 2], pixel[c - 1]].map(to_u8);
                    sheet.put_pixel(corner.0 + x as u32, corner.1 + y as u32, Rgb(rgb));
                }
            }
        }
        for Written { text, size, at: (x, y), anchor, upwards } in writing {
            text::draw(&mut sheet, &text, size, (x - left, y - top), anchor, upwards, INK);
        }
        sheet
    }

    /// Everything written, in pixels from the corner of the first picture, and the left, top, right and
    /// bottom of the sheet.
    fn layout(&self, cells: &Cells) -> (Vec<Written>, [f32; 4]) {
        let (wide, high) = (cells.right(cells.columns - 1) as f32, cells.bottom(cells.rows - 1) as f32);
        let (mut writing, mut bounds) = (Vec::new(), [0.0, 0.0, wide, high]);
        let mut write = |bounds: &mut [f32; 4], text: &str, size: f32, at, anchor, upwards| {
            let [l, t, r, b] = text::bounds(text, size, at, anchor, upwards);
            *bounds = [bounds[0].min(l), bounds[1].min(t), bounds[2].max(r), bounds[3].max(b)];
            writing.push(Written { text: text.to_owned(), size, at, anchor, upwards });
        };
        let size = (10.0 + (cells.width / 32) as f32).clamp(12.0, 14.0);
        let line = text::height(size);

        // Left of the pictures: labels, then the name of the rows.
        let centre = |row: usize| (cells.top(row) + cells.bottom(row)) as f32 / 2.0;
        let labels = &self.row_labels[..self.row_labels.len().min(cells.rows)];
        let places: Vec<(f32, f32)> = (0..labels.len()).map(|row| (centre(row), line)).collect();
        for row in (0..labels.len()).step_by(thin(&places, 1.0)) {
            let at = (-SPACE, centre(row));
            write(&mut bounds, &labels[row], size, at, (Across::Right, Down::Middle), false);
        }
        if !self.row_axis.is_empty() {
            let upwards = text::width(self.row_axis, size) > 1.5 * size;
            let anchor = if upwards { (Across::Centre, Down::Bottom) } else { (Across::Right, Down::Middle) };
            let at = (bounds[0] - SPACE, high / 2.0);
            write(&mut bounds, self.row_axis, size, at, anchor, upwards);
        }

        // Above them: labels, the name of the columns, the title.
        let mut y = -SPACE / 2.0;
        let centre = |column: usize| (cells.left(column) + cells.right(column)) as f32 / 2.0;
        let labels = &self.column_labels[..self.column_labels.len().min(cells.columns)];
        let places: Vec<(f32, f32)> =
            labels.iter().enumerate().map(|(i, label)| (centre(i), text::width(label, size))).collect();
        let above = (Across::Centre, Down::Bottom);
        for column in (0..labels.len()).step_by(thin(&places, SPACE)) {
            write(&mut bounds, &labels[column], size, (centre(column), y), above, false);
        }
        if !labels.is_empty() {
            y -= line + 2.0;
        }
        if !self.column_axis.is_empty() {
            write(&mut bounds, self.column_axis, size, (wide / 2.0, y), above, false);
            y -= line + 2.0;
        }
        let (size, [left, _, right, _]) = (size + 2.0, bounds);
        let mut lines = text::wrap(&self.title, size, TITLE_WIDTH.max(right - left));
        y -= if lines.is_empty() { 0.0 } else { SPACE / 2.0 };
        while let Some(text) = lines.pop() {
            // Over the pictures, but rather over the labels beside them than over the edge.
            let half = text::width(&text, size) / 2.0;
            let fits = 2.0 * half <= right - left;
            let x = if fits { (wide / 2.0).clamp(left + half, right - half) } else { (left + right) / 2.0 };
            write(&mut bounds, &text, size, (x, y), above, false);
            y -= size * text::LINE;
        }

        if !writing.is_empty() {
            let [l, t, r, b] = bounds;
            bounds = [(l - MARGIN).floor(), (t - MARGIN).floor(), (r + MARGIN).ceil(), (b + MARGIN).ceil()];
        }
        (writing, bounds)
    }
}

/// Where the pictures are, in pixels from the first one's corner.
struct Cells {
    rows: usize,
    columns: usize,
    height: usize,
    width: usize,
    gap: usize,
    group: usize,
}

impl Cells {
    fn left(&self, column: usize) -> usize {
        column * (self.width + self.gap)
    }

    fn right(&self, column: usize) -> usize {
        self.left(column) + self.width
    }

    fn top(&self, row: usize) -> usize {
        row * (self.height + self.gap) + row / self.group * (GROUP_GAPS - 1) * self.gap
    }

    fn bottom(&self, row: usize) -> usize {
        self.top(row) + self.height
    }
}

/// A line of text at its place.
struct Written {
    text: String,
    size: f32,
    at: (f32, f32),
    anchor: (Across, Down),
    upwards: bool,
}

/// The least k so that every k-th of the labels, given as (centre, extent), leaves `space` to the next;
/// a little more where that shows the last one too.
fn thin(labels: &[(f32, f32)], space: f32) -> usize {
    let fits = |k: &usize| {
        let shown: Vec<_> = labels.iter().step_by(*k).collect();
        shown.windows(2).all(|pair| pair[1].0 - pair[0].0 >= (pair[0].1 + pair[1].1) / 2.0 + space)
    };
    let count = labels.len().max(1);
    let least = (1..count).find(fits).unwrap_or(count);
    (least..=(2 * least).min(count)).find(|k| (count - 1).is_multiple_of(*k) && fits(k)).unwrap_or(least)
}

#[cfg(test)]
mod tests {
    use super::super::text::tests::ink;
    use super::*;
    use crate::data::picture::{enlarge, grid};

    /// Pictures of one value each, none of them white.
    fn flat(n: usize, pixels: usize) -> Vec<f32> {
        (0..n).flat_map(|i| vec![-1.0 + i as f32 / n as f32; pixels]).collect()
    }

    /// The part of a sheet right of `x` and below `y`.
    fn from(sheet: &RgbImage, x: u32, y: u32, w: u32, h: u32) -> RgbImage {
        image::imageops::crop_imm(sheet, x, y, w, h).to_image()
    }

    #[test]
    fn without_labels_it_is_the_bare_grid() {
        let large = flat(7, 65 * 66 * 3);
        assert_eq!(Sheet::new(3).draw(&large, 7, [65, 66, 3]), grid(&large, 7, [65, 66, 3], 3, 2));
        let small: Vec<f32> = (0..2 * 32 * 32).map(|i| (i % 97) as f32 / 48.5 - 1.0).collect();
        let sheet = Sheet::new(1).draw(&small, 2, [32, 32, 1]);
        assert_eq!(sheet.dimensions(), (64, 130));
        assert_eq!(from(&sheet, 0, 0, 64, 64), enlarge(grid(&small[..1024], 1, [32, 32, 1], 1, 0), 32));
        assert_eq!(from(&sheet, 0, 66, 64, 64), enlarge(grid(&small[1024..], 1, [32, 32, 1], 1, 0), 32));
        assert_eq!(
            Sheet::new(9).draw(&[], 0, [28, 28, 1]).dimensions(),
            (84, 84),
            "nothing is one white cell"
        );
        assert_eq!(
            Sheet::new(9).draw(&[0.0; 20], 2, [1, 10, 1]).dimensions(),
            (142, 7),
            "no wider than needed"
        );
    }

    #[test]
    fn labels_stand_beside_the_pictures_and_change_none() {
        let images = flat(8, 64 * 64);
        let bare = Sheet::new(4).draw(&images, 8, [64, 64, 1]);
        let labelled = Sheet {
            title: "Title".to_owned(),
            column_labels: ["0", "1", "2", "3"].map(str::to_owned).to_vec(),
            row_labels: ["first", "second"].map(str::to_owned).to_vec(),
            column_axis: "t",
            row_axis: "λ",
            ..Sheet::new(4)
        };
        let sheet = labelled.draw(&images, 8, [64, 64, 1]);
        let (left, top) = (sheet.width() - bare.width() - 6, sheet.height() - bare.height() - 6);
        assert!((50..90).contains(&left) && (45..70).contains(&top), "{left} {top}");
        assert_eq!(from(&sheet, left, top, bare.width(), bare.height()), bare);
        // A label over the middle of the second column, and one beside the middle of the second row.
        let [l, _, r, b] = ink(&from(&sheet, left + 66, top - 16, 64, 16)).unwrap();
        assert!((26..33).contains(&l) && (32..38).contains(&r) && b < 14, "{l} {r} {b}");
        let [_, t, r, b] = ink(&from(&sheet, 20, top + 66, left - 20, 64)).unwrap();
        assert!(
            (24..32).contains(&t) && (32..40).contains(&b) && (left - 28..left - 20).contains(&r),
            "{t} {b} {r}"
        );
        // The letters keep off the edge.
        let [l, t, r, b] = ink(&sheet).unwrap();
        let (right, bottom) = (sheet.width() - 6, sheet.height() - 6);
        assert!((5..10).contains(&l) && (5..10).contains(&t) && (r, b) == (right, bottom), "{l} {t} {r} {b}");
    }

    #[test]
    fn a_text_that_is_wider_than_the_pictures_is_not_cut() {
        let wide = Sheet {
            title: "a title that is much longer than one picture is wide and goes on and on".to_owned(),
            column_labels: vec!["a label wider than it".to_owned()],
            row_axis: "and the name of the only row, also longer than the picture",
            ..Sheet::new(1)
        };
        let sheet = wide.draw(&flat(1, 64 * 64), 1, [64, 64, 1]);
        let [l, t, r, b] = ink(&sheet).unwrap();
        let (w, h) = sheet.dimensions();
        assert!(l >= 5 && t >= 5 && r + 5 <= w && b + 5 <= h, "{l} {t} {r} {b} of {w} {h}");
        assert!(w < 340, "{w}");
    }

    #[test]
    fn groups_of_rows_stand_apart() {
        let sheet = Sheet { group: NonZero::new(2), ..Sheet::new(1) }.draw(&flat(4, 64 * 64), 4, [64, 64, 1]);
        assert_eq!(sheet.height(), 4 * 64 + 2 + 8 + 2);
        assert_eq!(sheet.get_pixel(0, 137).0, [255; 3]);
        assert_eq!(sheet.get_pixel(0, 138).0, [to_u8(-0.5); 3]);
    }

    #[test]
    fn labels_that_would_touch_are_thinned_out() {
        let labels = |n: usize, extent: f32| (0..n).map(|i| (i as f32 * 10.0, extent)).collect::<Vec<_>>();
        assert_eq!(thin(&labels(10, 8.0), 2.0), 1);
        assert_eq!(thin(&labels(10, 9.0), 2.0), 3, "every second would not show the last");
        assert_eq!(thin(&labels(11, 9.0), 2.0), 2);
        assert_eq!(thin(&labels(10, 1e6), 2.0), 10, "only the first");
        assert_eq!((thin(&[], 2.0), thin(&labels(1, 99.0), 2.0)), (1, 1));
    }

    #[test]
    #[should_panic(expected = "Sheet: 3 labels of columns")]
    fn too_few_labels_are_refused() {
        let column_labels = ["a", "b", "c"].map(str::to_owned).to_vec();
        Sheet { column_labels, ..Sheet::new(4) }.draw(&[0.0; 4], 4, [1, 1, 1]);
    }
}
