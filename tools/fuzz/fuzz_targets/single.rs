//! Any names and shapes, a line each, as those of a Stable Diffusion model in one file; and any header and data
//! as a LoRA file and as an embedding.
#![no_main]

use std::sync::OnceLock;

use denoir::diffusers::single::{self, Part};
use denoir::diffusers::{inversion, lora};
use denoir::weights::Weights;
use denoir_fuzz::{put, two};

fn named(text: &str) -> Vec<(String, Vec<usize>)> {
    let line = |line: &str| {
        let mut words = line.split_whitespace();
        let name = words.next()?.to_owned();
        // As the parsers of files have them: no tensor has more elements than the file has bytes.
        Some((name, words.take(4).map_while(|word| word.parse().ok()).filter(|&size: &usize| size < 1 << 14).collect()))
    };
    text.lines().filter_map(line).collect()
}

fn check(text: &str) {
    let file = named(text);
    let Ok(found) = single::split(file.iter().map(|(name, shape)| (name.as_str(), shape.as_slice()))) else { return };
    for entry in &found.entries {
        let source = &file.iter().rev().find(|(name, _)| *name == entry.source).expect("a name of the file").1;
        let row: usize = entry.shape.iter().skip(1).product();
        let end = entry.first_row * row + entry.shape.iter().product::<usize>();
        assert!(end <= source.iter().product(), "{entry:?} of {source:?}");
        assert!(found.to_compvis(entry.part, &entry.name).is_some(), "{entry:?}");
    }
}

fn layers() -> &'static lora::Layers {
    static LAYERS: OnceLock<lora::Layers> = OnceLock::new();
    LAYERS.get_or_init(|| {
        let attention = "transformer_blocks.0.attn1.to_q";
        let names = ["down_blocks.0.attentions.0", "up_blocks.1.attentions.1"].map(|block| format!("{block}.{attention}"));
        let all = names.iter().map(|name| (Part::Unet, name.as_str(), &[8, 8][..]));
        let text = (Part::TextEncoder, "text_model.encoder.layers.1.self_attn.q_proj", &[6, 6][..]);
        let more = [("mid_block.attentions.0.proj_in", &[16, 16, 1, 1][..]), ("down_blocks.1.resnets.0.conv1", &[16, 8, 3, 3])];
        lora::Layers::new(all.chain(more.map(|(name, shape)| (Part::Unet, name, shape))).chain([text]))
    })
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    check(&String::from_utf8_lossy(bytes));
    let (header, data) = two(bytes);
    let path = put("lora.safetensors", &[&(header.len() as u64).to_le_bytes(), header, data].concat());
    let Ok(weights) = Weights::open(&path) else { return };
    for adapter in lora::read(&weights, layers()).unwrap_or_default() {
        let inputs: usize = adapter.shape[1..].iter().product();
        assert_eq!([adapter.a.len(), adapter.b.len()], [adapter.rank * inputs, adapter.rank * adapter.shape[0]]);
    }
    let _ = inversion::read(&weights, 4);
});
