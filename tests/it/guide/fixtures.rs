//! What the guide takes for granted: pictures, data sets, and models of others, as small as they can be.

use std::fs;
use std::path::Path;

use denoir::weights::Weights;
use image::{Luma, Rgb, RgbImage};

use crate::golden_diffusers::copy;
use crate::place::root;
use crate::text_files::{Tensors, single, write};

/// Makes all of them in a folder.
pub fn prepare(at: &Path) {
    for folder in ["photos", "sketches", "my-cat"] {
        let folder = at.join(folder);
        fs::create_dir(&folder).unwrap();
        for i in 0..12_u8 {
            picture(i).save(folder.join(format!("{i}.png"))).unwrap();
            fs::write(folder.join(format!("{i}.txt")), format!("a red circle of size {i}")).unwrap();
        }
    }
    picture(3).save(at.join("photo.png")).unwrap();
    let holes = image::GrayImage::from_fn(32, 32, |x, _| Luma([if x < 12 { 255 } else { 0 }]));
    holes.save(at.join("holes.png")).unwrap();
    fs::write(at.join("prompts.txt"), "a red circle\na blue square\n").unwrap();
    digits(&at.join("data/mnist"));
    digits(&at.join("data/fashion"));

    let golden = root().join("tests/golden");
    copy(&golden.join("parquet"), &at.join("folder"));
    copy(&golden.join("tiny_ddpm"), &at.join("some-ddpm-folder"));
    copy(&golden.join("tiny_sd"), &at.join("sd-folder"));
    fs::copy(golden.join("tiny_sd_lora.safetensors"), at.join("adapters.safetensors")).unwrap();
    write(&at.join("model.safetensors"), &single());
    let encoder = Weights::open(&at.join("sd-folder/text_encoder/model.safetensors")).unwrap();
    let (_, table) = encoder.shapes().find(|(name, _)| name.ends_with("token_embedding.weight")).unwrap();
    let word = Tensors::from([("<cat>".to_owned(), (vec![1, table[1]], vec![0.1; table[1]]))]);
    write(&at.join("cat.safetensors"), &word);
}

fn picture(i: u8) -> RgbImage {
    let pixel = |x: u32, y: u32| Rgb([if x > y { 250 } else { 20 * i }, (8 * x) as u8, 255 - 20 * i]);
    RgbImage::from_fn(32, 32, pixel)
}

/// A data set in MNIST's format, of both parts.
fn digits(at: &Path) {
    fs::create_dir_all(at).unwrap();
    let header = |numbers: &[u32]| numbers.iter().flat_map(|word| word.to_be_bytes()).collect::<Vec<u8>>();
    for (part, count) in [("train", 40_u32), ("t10k", 20)] {
        let pixels = (0..count * 28 * 28).map(|i| (i * i / 7) as u8);
        let images: Vec<u8> = header(&[0x803, count, 28, 28]).into_iter().chain(pixels).collect();
        fs::write(at.join(format!("{part}-images-idx3-ubyte")), images).unwrap();
        let labels = (0..count).map(|i| (i % 10) as u8);
        let labels: Vec<u8> = header(&[0x801, count]).into_iter().chain(labels).collect();
        fs::write(at.join(format!("{part}-labels-idx1-ubyte")), labels).unwrap();
    }
}
