//! Tests of plots: where the lines, their names and the gaps in them are.

use super::super::text::tests::ink;
use super::*;

/// Where pixels of a colour are: left, top, right, bottom, the last two exclusive.
fn of(picture: &RgbImage, colour: [u8; 3]) -> Option<[u32; 4]> {
    let mask = RgbImage::from_fn(picture.width(), picture.height(), |x, y| {
        Rgb([if picture.get_pixel(x, y).0 == colour { 0 } else { 255 }; 3])
    });
    ink(&mask)
}

/// The plot, and left, top, right, bottom of its frame.
fn framed(plot: &Plot, width: u32, height: u32) -> (RgbImage, [u32; 4]) {
    let area = Panel::new(plot, width as f32, height as f32).area.map(|v| v as u32);
    let picture = plot.draw(width, height);
    assert_eq!(picture.get_pixel(area[0], area[1]).0, FRAME);
    assert_eq!(picture.get_pixel(area[2], area[3]).0, FRAME);
    (picture, area)
}

const RED: [u8; 3] = [250, 0, 0];
const BLUE: [u8; 3] = [0, 0, 250];

fn red(points: &[(f64, f64)]) -> Line {
    Line { colour: Some(RED), width: 3.0, ..Line::new("red", points.iter().copied()) }
}

#[test]
fn a_line_runs_through_its_points() {
    let plot = Plot { y_label: "y", ..Plot::new("t", "x", vec![red(&[(0.0, 0.0), (1.0, 2.0)])]) };
    let (picture, [left, top, right, bottom]) = framed(&plot, 300, 200);
    let [l, t, r, b] = of(&picture, RED).unwrap();
    // The range is 6 % wider than the data.
    let (w, h) = (right - left, bottom - top);
    assert!(l.abs_diff(left + w * 3 / 106) <= 2 && r.abs_diff(right - w * 3 / 106) <= 2, "{l} {r}");
    assert!(t.abs_diff(top + h * 3 / 106) <= 2 && b.abs_diff(bottom - h * 3 / 106) <= 2, "{t} {b}");
    assert_eq!(picture.get_pixel((left + right) / 2, (top + bottom) / 2).0, RED);
    // Texts on all sides that they belong to, none at the edge.
    let [l, t, r, b] = ink(&picture).unwrap();
    assert!((6..12).contains(&l) && (6..12).contains(&t) && (288..295).contains(&r), "{l} {t} {r}");
    assert!((188..195).contains(&b) && left > 30 && top > 20 && bottom < 165, "{b} {left} {top} {bottom}");
}

#[test]
fn a_line_is_broken_where_there_is_no_value() {
    let nan = f64::NAN;
    let broken = [(0.0, 1.0), (4.0, 1.0), (5.0, nan), (6.0, 1.0), (f64::INFINITY, 1.0), (10.0, 1.0)];
    let (picture, [left, top, right, bottom]) = framed(&Plot::new("", "", vec![red(&broken)]), 300, 100);
    let middle = (top + bottom) / 2;
    let at = |x: f64| {
        let place = (x / 10.0 + 0.03) / 1.06;
        picture.get_pixel(left + (place * f64::from(right - left)).round() as u32, middle).0
    };
    assert_eq!([0.1, 3.9, 6.0, 10.0].map(at), [RED; 4]);
    assert!([4.6, 5.5, 7.0, 9.0].iter().all(|&x| at(x) != RED), "nothing is made up");
}

#[test]
fn what_a_logarithmic_axis_cannot_show_is_left_out() {
    let line = red(&[(0.0, -5.0), (1.0, 0.0), (2.0, 1.0), (3.0, 100.0), (4.0, 10.0), (6.0, 10.0)]);
    let (picture, [left, top, right, bottom]) = framed(&Plot::new("", "", vec![line]).log_y(true), 300, 200);
    let [l, _, _, _] = of(&picture, RED).unwrap();
    assert!(l < left + 15, "the range of x is that of the points that can be seen: {l} {left}");
    let x = left + (right - left) * 7 / 8;
    assert_eq!(picture.get_pixel(x, (top + bottom) / 2).0, RED, "10 is half way from 1 to 100");
}

#[test]
fn odd_data_give_a_plot_too() {
    let wild = [(0.0, 1.0), (1.0, 1e300), (2.0, -1e300), (3.0, 0.5), (4.0, 1e30), (5.0, 0.5)];
    for points in [&[][..], &[(3.0, 5.0)], &[(0.0, 0.0), (1.0, 0.0)], &[(1.0, f64::NAN)], &wild] {
        for log in [false, true] {
            let plot = Plot::new("odd", "", vec![red(points), red(points)]).log_y(log);
            let picture = plot.draw(200, 150);
            assert!(of(&picture, RED).is_some(), "at least in the legend: {points:?}");
            plot.draw(12, 9);
        }
    }
    let single = Plot::new("", "", vec![red(&[(3.0, 5.0)])]).draw(200, 150);
    let [l, t, r, b] = of(&single, RED).unwrap();
    assert!((4..9).contains(&(r - l)) && r - l == b - t, "a dot: {l} {t} {r} {b}");
}

#[test]
fn the_legend_avoids_the_lines_and_needs_two() {
    let rising = [(0.0, 0.0), (1.0, 1.0)];
    let falling = [(0.0, 1.0), (1.0, 0.0)];
    let sample = |points: &[(f64, f64)]| {
        let other = Line { name: "blue".into(), colour: Some(BLUE), ..red(points) };
        let picture = Plot::new("", "", vec![Line { width: 0.0, ..red(points) }, other]).draw(300, 200);
        let blue = |x: u32, y: u32| picture.get_pixel(x, y).0 == BLUE;
        // The sample of a line is the only part of it that is level.
        let level = |&(x, y): &(u32, u32)| (0..8).all(|k| blue(x + k, y));
        (0..290).flat_map(|x| (0..200).map(move |y| (x, y))).find(level)
    };
    let (left, right) = (sample(&rising).unwrap(), sample(&falling).unwrap());
    assert!(left.0 < 100 && left.1 < 60, "{left:?}");
    assert!(right.0 > 180 && right.1 < 60, "{right:?}");
    let alone = Plot::new("", "", vec![red(&[(0.0, 0.0), (1.0, 1.0)])]).draw(300, 200);
    let named = Plot::new("", "", vec![Line { name: "else".into(), ..red(&[(0.0, 0.0), (1.0, 1.0)]) }]);
    assert_eq!(alone, named.draw(300, 200), "one line has no legend");
}

#[test]
fn edges_are_smooth() {
    let slope = Plot::new("", "", vec![red(&[(0.0, 0.0), (1.0, 1.0)])]).draw(400, 200);
    let between = |p: &Rgb<u8>| p.0[0] > 245 && (40..200).contains(&p.0[1]) && p.0[1] == p.0[2];
    assert!(slope.pixels().filter(|p| between(p)).count() > 200);
}

#[test]
fn of_many_points_in_a_column_the_extremes_stay() {
    let points: Vec<(f32, f32)> = (0..1000).map(|i| (i as f32 / 100.0, ((i * 37) % 101) as f32)).collect();
    let kept = thinned(points.iter());
    assert_eq!(kept.len(), 40);
    for column in kept.chunks(4) {
        let ys: Vec<f32> = column.iter().map(|p| p.1).collect();
        assert!(ys.contains(&0.0) || ys.contains(&1.0) || ys.contains(&2.0), "{ys:?}");
        assert!(column.is_sorted_by(|a, b| a.0 <= b.0) && ys.iter().any(|&y| y >= 98.0), "{column:?}");
    }
    assert_eq!(thinned(points[..3].iter()), &points[..3]);
}

#[test]
fn pictures_stand_side_by_side() {
    let (a, b) = (RgbImage::from_pixel(3, 5, Rgb(RED)), RgbImage::from_pixel(4, 2, Rgb(BLUE)));
    let both = beside(&[a, b], 2);
    assert_eq!(both.dimensions(), (9, 5));
    let colours = [(2, 4), (3, 0), (5, 0), (8, 1), (8, 2)].map(|(x, y)| both.get_pixel(x, y).0);
    assert_eq!(colours, [RED, [255; 3], BLUE, BLUE, [255; 3]]);
    assert_eq!(beside(&[], 5).dimensions(), (0, 0));
}
