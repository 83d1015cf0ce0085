//! The judge on pictures that are drawn, noisy and blurred, and on captions that are wrong.

use super::*;
use crate::data::shapes::{Shapes, draw};
use crate::data::{Dataset, Options, Resize, Split};
use crate::philox::{draw as words, normal};

const SIDE: usize = 32;

fn shapes(image_size: usize) -> Shapes {
    let options = Options {
        image_size,
        channels: None,
        crop: None,
        resize: Resize::Bicubic,
        seed: 7,
        split: Split::HeldOut,
    };
    Shapes::new(&options).unwrap()
}

/// Normal noise of 4 percent of the range.
fn noisy(picture: &[f32], index: u32) -> Vec<f32> {
    let noise = (0..).flat_map(|block| normal(words(1, 0, 0, index, block)));
    picture.iter().zip(noise).map(|(v, noise)| v + 0.08 * noise).collect()
}

/// Each pixel with a quarter of its neighbours in either direction.
fn blurred(picture: &[f32], side: usize) -> Vec<f32> {
    let mut out = picture.to_vec();
    for step in [[1, 0], [0, 1]] {
        let before = out.clone();
        for (i, v) in out.iter_mut().enumerate() {
            let (x, y, k) = (i / 3 % side, i / 3 / side, i % 3);
            let end = side - 1;
            let at = |x: usize, y: usize| before[(y.min(end) * side + x.min(end)) * 3 + k];
            *v = (at(x.saturating_sub(step[0]), y.saturating_sub(step[1]))
                + 2.0 * at(x, y)
                + at(x + step[0], y + step[1]))
                / 4.0;
        }
    }
    out
}

/// Another one of the words, the next.
fn wrong(thing: Thing) -> [Thing; 2] {
    let color = Color::ALL[(thing.color as usize + 1) % 5];
    let kind = match thing.kind {
        Kind::Circle => Kind::Square,
        Kind::Square => Kind::Triangle,
        _ => Kind::Circle,
    };
    [Thing { color, ..thing }, Thing { kind, ..thing }]
}

#[test]
fn the_judge_is_right_of_what_was_drawn_and_of_captions_made_wrong() {
    let data = shapes(SIDE);
    let count = 1000;
    // Found in the picture as it was drawn, with noise, soft, and both.
    let mut right = [0; 4];
    // Captions made wrong in one thing that were refused for it; and how many there were.
    let mut refused = [[0; 2]; 4];
    let mut refuse = |k: usize, says_no: bool| {
        refused[k][0] += usize::from(says_no);
        refused[k][1] += 1;
    };
    // Captions of the next picture whose colours are there, and that are true: what chance gives.
    let mut shuffled = [0; 2];
    for index in 0..count {
        let mut picture = vec![0.0; SIDE * SIDE * 3];
        data.read(index, &mut picture).unwrap();
        let caption = data.caption(index);
        let (noise, soft) = (noisy(&picture, index as u32), blurred(&picture, SIDE));
        let both = noisy(&soft, index as u32);
        let found = [picture, noise, soft, both].map(|picture| find_shapes(&picture, [SIDE; 2]));
        for (right, found) in right.iter_mut().zip(&found) {
            *right += usize::from(Verdict::new(found, &caption).all());
        }

        let others = Verdict::new(&found[3], &data.caption(index + 1));
        shuffled[0] += usize::from(others.colours);
        shuffled[1] += usize::from(others.all());
        let verdict = |caption: Caption| Verdict::new(&found[3], &caption);
        let [color, kind] = wrong(caption.first);
        refuse(0, verdict(Caption { first: color, ..caption }) == Verdict::default());
        let other = verdict(Caption { first: kind, ..caption });
        refuse(1, other.colours && !other.kinds);
        if let Some(size) = caption.first.size {
            let size = if size == Size::Small { Size::Large } else { Size::Small };
            let first = Thing { size: Some(size), ..caption.first };
            let other = verdict(Caption { first, ..caption });
            refuse(2, other.colours && !other.sizes);
        }
        if let Some((relation, second)) = caption.second {
            let turned = if relation == Relation::Above { Relation::LeftOf } else { Relation::Above };
            for (first, relation, second) in
                [(second, relation, caption.first), (caption.first, turned, second)]
            {
                let other = verdict(Caption { first, second: Some((relation, second)) });
                refuse(3, other.colours && !other.arrangement);
            }
            // Two shapes are not one.
            refuse(0, verdict(Caption { second: None, ..caption }) == Verdict::default());
        }
    }
    eprintln!("right of {count}: {right:?}; refused: {refused:?}; shuffled: {shuffled:?}");
    assert!(shuffled[0] < 100 && shuffled[1] < 10, "{shuffled:?}");
    assert!(right.iter().all(|&n| n >= 990), "drawn, noisy, soft, both: {right:?} of {count}");
    let refuses = |[no, of]: &[usize; 2]| *of > 500 && *no as f64 >= 0.99 * *of as f64;
    assert!(refused.iter().all(refuses), "colour, kind, size, arrangement: {refused:?}");
}

#[test]
fn a_taught_kind_and_other_sizes_are_judged_too() {
    for side in [16, 24, 64, 97] {
        let mut right = 0;
        for seed in 0..100 {
            let of = [
                "a large white cross",
                "a blue cross left of a red square",
                "a yellow circle above a green cross",
            ];
            let caption = of[seed % 3].parse().unwrap();
            let mut picture = vec![0.0; side * side * 3];
            draw(&caption, seed as u64, side, &mut picture);
            right += usize::from(judge_shapes(&picture, [side; 2], &caption).all());
        }
        assert!(right >= if side < 24 { 90 } else { 99 }, "{right} of 100 at {side}");
    }
}

#[test]
fn what_is_no_picture_of_shapes_shows_none() {
    let caption: Caption = "a red circle".parse().unwrap();
    for value in [f32::NAN, f32::NEG_INFINITY, -0.8, -1.0] {
        assert!(find_shapes(&[value; 48], [4, 4]).is_empty(), "{value}");
    }
    let noise = noisy(&vec![-0.8; SIDE * SIDE * 3], 0);
    assert_eq!(judge_shapes(&noise, [SIDE; 2], &caption), Verdict::default());
    // White from edge to edge is an area, of no kind but a square; a bar is of none.
    let bar: Vec<f32> =
        (0..SIDE * SIDE * 3).map(|i| if i / 3 / SIDE / 4 == 2 { 0.9 } else { -0.8 }).collect();
    let found = find_shapes(&bar, [SIDE; 2]);
    assert!(matches!(found[..], [Found { color: Color::White, kind: None, .. }]), "{found:?}");
}
