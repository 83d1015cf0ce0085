//! Tests of conditions against plain values.

use super::*;
use crate::recipe::{Recipe, find};

const SHAPE: [usize; 3] = [8, 12, 3];

fn image() -> Vec<f32> {
    (0..8 * 12 * 3).map(|i| (i * 37 % 101) as f32 / 50.0 - 1.0).collect()
}

fn config(kind: ConditionKind) -> ConditionConfig {
    ConditionConfig { kind, factor: 4, ..ConditionConfig::default() }
}

fn of(kind: ConditionKind, number: u64) -> Vec<f32> {
    config(kind).of(&image(), SHAPE, &[], 5, number)
}

#[test]
fn low_resolution_is_the_bicubic_enlargement_of_means() {
    let ([h, w, c], image) = (SHAPE, image());
    // Plain sums over the whole plane, by the kernel of a distance.
    let kernel = |d: f64| match d.abs() {
        d if d < 1.0 => 1.5 * d.powi(3) - 2.5 * d * d + 1.0,
        d if d < 2.0 => -0.5 * d.powi(3) + 2.5 * d * d - 4.0 * d + 2.0,
        _ => 0.0,
    };
    let mean = |y: i64, x: i64, k: usize| -> f64 {
        let at = |p: i64, most: usize| p.clamp(0, most as i64 / 4 - 1) as usize * 4;
        let (y, x) = (at(y, h), at(x, w));
        let all = (0..16).map(|i| f64::from(image[((y + i / 4) * w + x + i % 4) * c + k]));
        all.sum::<f64>() / 16.0
    };
    let got = of(ConditionKind::LowResolution, 0);
    assert_eq!(got.len(), image.len());
    for (i, got) in got.iter().enumerate() {
        let place = |p: usize| (p as f64 + 0.5) / 4.0 - 0.5;
        let (y, x) = (place(i / (w * c)), place(i / c % w));
        let far = || -3_i64..7;
        let terms = far().flat_map(|r| far().map(move |q| (r, q)));
        let wanted: f64 =
            terms.map(|(r, q)| kernel(y - r as f64) * kernel(x - q as f64) * mean(r, q, i % c)).sum();
        assert!((f64::from(*got) - wanted).abs() < 1e-6, "element {i}: {got}, not {wanted}");
    }
}

#[test]
fn grey_is_the_mean_and_holes_hide_what_they_say() {
    let image = image();
    let grey = of(ConditionKind::Grey, 0);
    assert!(
        grey.iter().zip(image.chunks(3)).all(|(g, rgb)| (3.0 * g - rgb.iter().sum::<f32>()).abs() < 1e-6)
    );
    let holes: Vec<Vec<f32>> = (0..200).map(|number| of(ConditionKind::Mask, number)).collect();
    assert_eq!(holes[7], of(ConditionKind::Mask, 7));
    for with_hole in &holes {
        for (seen, rgb) in with_hole.chunks(4).zip(image.chunks(3)) {
            let wanted = if seen[3] == 0.0 { vec![0.0; 3] } else { rgb.to_vec() };
            assert!(seen[..3] == wanted && (seen[3] == 0.0 || seen[3] == 1.0), "{seen:?} of {rgb:?}");
        }
    }
    let is_hole = |with_hole: &Vec<f32>, i: usize| with_hole[4 * i + 3] == 0.0;
    let sizes: Vec<usize> = holes.iter().map(|h| (0..96).filter(|&i| is_hole(h, i)).count()).collect();
    let (least, most) = (sizes.iter().min().unwrap(), sizes.iter().max().unwrap());
    assert!((6..12).contains(least) && (20..=28).contains(most), "{least} to {most} of 96 pixels");
    assert!((0..96).all(|i| holes.iter().any(|h| is_hole(h, i))), "every pixel may be hidden");
    // A sample's known pixels are those of the image, to the bit.
    let mut sample = vec![9.0; image.len()];
    config(ConditionKind::Mask).keep_known(&mut sample, &holes[0], 3);
    for (i, (sample, rgb)) in sample.chunks(3).zip(image.chunks(3)).enumerate() {
        assert_eq!(sample, if is_hole(&holes[0], i) { &[9.0; 3] } else { rgb });
    }
}

#[test]
fn training_drops_and_blurs_as_often_as_it_says() {
    let kind = ConditionKind::LowResolution;
    let config = ConditionConfig { noise: 0.4, dropout: 0.25, ..config(kind) };
    let clean = config.of(&image(), SHAPE, &[], 5, 0);
    assert!(clean.len() == 8 * 12 * 4 && clean.chunks(4).all(|pixel| pixel[3] == 0.0));
    let (mut dropped, mut levels, mut worst) = (0, 0.0, 0.0_f64);
    for number in 0..2000 {
        let mut seen = clean.clone();
        config.perturb(&mut seen, 4, 5, number);
        if seen.iter().all(|&v| v == 0.0) {
            dropped += 1;
            continue;
        }
        let level = f64::from(seen[3]);
        levels += level;
        let errors =
            seen.chunks(4).zip(clean.chunks(4)).flat_map(|(a, b)| [a[0] - b[0], a[1] - b[1], a[2] - b[2]]);
        let deviation = (errors.map(|e| f64::from(e).powi(2)).sum::<f64>() / 288.0).sqrt();
        worst = worst.max((deviation / (0.4 * level) - 1.0).abs());
    }
    // Five deviations of each: 19 of 2,000 draws, 0.0075 of a mean of 1,500, 0.042 of 288 numbers.
    assert!((404..=596).contains(&dropped), "{dropped} of 2000");
    let mean = levels / f64::from(2000 - dropped);
    assert!((mean - 0.5).abs() < 0.04 && worst < 0.21, "{mean}, {worst}");
}

#[test]
fn channels_of_image_and_condition_are_told_apart() {
    use ConditionKind::{Grey, LowResolution, Mask, Pair};
    for (kind, noise, both, image) in [
        (ConditionKind::None, 0.0, 3, Some(3)),
        (Grey, 0.0, 4, Some(3)),
        (LowResolution, 0.0, 6, Some(3)),
        (LowResolution, 0.1, 7, Some(3)),
        (LowResolution, 0.0, 7, None),
        (Mask, 0.0, 3, Some(1)),
        (Pair, 0.0, 4, Some(1)),
        (Pair, 0.0, 3, None),
    ] {
        let config = ConditionConfig { noise, ..config(kind) };
        let mut recipe = Recipe { condition: config, ..find("digits").unwrap() };
        recipe.unet.in_channels = both;
        recipe.unet.out_channels = image.unwrap_or(both);
        if let Some(image) = image {
            assert_eq!(recipe.diffused()[2], image, "{kind:?} {both}");
        }
        assert_eq!(recipe.validate().is_ok(), image.is_some(), "{kind:?} {both}: {:?}", recipe.validate());
    }
}
