//! Drawn shapes against their captions, and what every word of the grammar is to a tokenizer.

use std::collections::HashSet;

use super::super::{open, tests::options};
use super::merges::encode;
use super::*;

fn shapes(seed: u64, split: Split) -> Shapes {
    Shapes::new(&Options { seed, split, ..options(32) }).unwrap()
}

fn read(data: &Shapes, index: u64) -> Vec<f32> {
    let mut out = vec![f32::NAN; 32 * 32 * 3];
    data.read(index, &mut out).unwrap();
    assert!(out.iter().all(|v| (-1.0..=1.0).contains(v)), "{index}");
    out
}

#[test]
fn a_picture_and_its_caption_are_a_function_of_seed_part_and_index() {
    let data = shapes(1, Split::Train);
    let opened = open("shapes", &options(32)).unwrap();
    let one = read(&data, 5);
    assert_eq!(one, read(&data, 5));
    assert_eq!(opened.describe(5), data.caption(5).to_string());
    for (other, index) in [(&data, 6), (&shapes(2, Split::Train), 5), (&shapes(1, Split::HeldOut), 5)] {
        assert_ne!(one, read(other, index));
    }
    let picture = |seed| {
        let mut out = vec![f32::NAN; 32 * 32 * 3];
        draw(&"a blue cross above a red circle".parse().unwrap(), seed, 32, &mut out);
        out
    };
    assert_eq!(picture(1), picture(1));
    assert_ne!(picture(1), picture(2));
}

/// The numbers that fix which pictures and captions the data set has, for models that have been trained.
#[test]
fn captions_stay_what_they_are() {
    let wanted = [
        "a red circle left of a large white square",
        "a small green triangle above a red circle",
        "a small red circle above a white square",
        "a small yellow square left of a yellow triangle",
    ];
    assert_eq!(prompts(4, 0), wanted);
}

#[test]
fn pairs_that_are_held_out_are_in_no_training_picture_and_in_half_of_the_prompts() {
    let train = shapes(1, Split::Train);
    let captions: Vec<Caption> = (0..10_000).map(|i| train.caption(i)).collect();
    assert!(captions.iter().all(|caption| !caption.is_held_out()));
    let share = |of: &dyn Fn(&Caption) -> bool| captions.iter().filter(|&c| of(c)).count() as f64 / 1e4;
    assert!((share(&|c| c.second.is_none()) - 0.25).abs() < 0.02);
    assert!((share(&|c| c.first.size.is_none()) - 1.0 / 3.0).abs() < 0.02);
    for color in Color::ALL {
        assert!((share(&|c| c.first.color == color) - 0.2).abs() < 0.02, "{color:?}");
    }
    for kind in [Kind::Circle, Kind::Square, Kind::Triangle] {
        assert!((share(&|c| c.first.kind == kind) - 1.0 / 3.0).abs() < 0.02, "{kind:?}");
    }
    // All other pairs are there, each in either order: 15 * 14 less 24.
    let looks = |c: &Caption| Some((c.first.look(), c.second?.1.look()));
    assert_eq!(captions.iter().filter_map(looks).collect::<HashSet<_>>().len(), 186);

    let prompts: Vec<Caption> = prompts(2000, 1).iter().map(|text| text.parse().unwrap()).collect();
    assert!(prompts.iter().step_by(2).all(Caption::is_held_out));
    assert!(!prompts.iter().skip(1).step_by(2).any(Caption::is_held_out));
    assert_eq!(
        prompts.iter().filter(|c| c.is_held_out()).filter_map(looks).collect::<HashSet<_>>().len(),
        24
    );
}

#[test]
fn captions_are_read_back_and_others_refused() {
    for index in 0..300 {
        let caption = shapes(3, Split::HeldOut).caption(index);
        assert_eq!(caption.to_string().parse::<Caption>().unwrap(), caption);
    }
    let loose: Caption = " A  red\tCIRCLE left of a small blue square\n".parse().unwrap();
    assert_eq!(loose.to_string(), "a red circle left of a small blue square");
    let long = "a red circle ".repeat(100_000);
    for text in [
        "",
        "red circle",
        "a red",
        "a circle red",
        "a red circle left a blue square",
        "a red \u{7} circle",
        "a red circle above a blue square above a red square",
        &long,
    ] {
        let message = text.parse::<Caption>().unwrap_err().to_string();
        assert!(message.contains("is no caption") && message.len() < 300, "{message}");
    }
}

#[test]
fn each_word_of_a_caption_is_one_token() {
    let merges = merges();
    assert!(merges.len() < 60, "{}", merges.len());
    assert_eq!(merges.iter().collect::<HashSet<_>>().len(), merges.len());
    // A pair joins symbols that are bytes, or made before.
    let mut made: HashSet<String> = HashSet::new();
    for (a, b) in &merges {
        for part in [a, b] {
            assert!(made.contains(part) || part.trim_end_matches("</w>").len() == 1, "{part}");
        }
        assert!(made.insert(format!("{a}{b}")), "{a}{b} is made twice");
    }
    for index in 0..300 {
        let caption = shapes(3, Split::Train).caption(index).to_string();
        for word in caption.split(' ').chain(["cross"]) {
            assert_eq!(encode(word, &merges), [format!("{word}</w>")]);
        }
    }
}

#[test]
fn other_sizes_and_colours_are_refused_in_a_line() {
    let refusal = |options: &Options| Shapes::new(options).err().unwrap().to_string();
    assert!(refusal(&options(15)).contains("in 15 pixels; use an image size of 16 or more"));
    assert!(refusal(&Options { channels: Some(1), ..options(32) }).contains("use 3 channels"));
}
