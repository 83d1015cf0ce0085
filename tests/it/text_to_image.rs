//! Stable Diffusion's pipelines: a folder of the library, drawn from as the library draws.

use denoir::device::Device;
use denoir::diffusers::{Extras, Unsaid};
use denoir::diffusion::Scheduler;
use denoir::recipe::Rng;
use denoir::sample::{Guidance, Options, Trained};
use serde_json::Value;

use crate::place::root;
use crate::reference::{Golden, devices, to_f32};

const PROMPT: &str = "A red circle!";
const NEGATIVE: &str = "blue";

/// A text or a list of them; null is the empty one.
fn texts(said: Option<&Value>, usual: &str) -> Vec<String> {
    match said {
        None => vec![usual.to_owned()],
        Some(Value::Null) => vec![String::new()],
        Some(Value::String(one)) => vec![one.clone()],
        Some(Value::Array(all)) => all.iter().map(|text| text.as_str().unwrap().to_owned()).collect(),
        other => panic!("{other:?}"),
    }
}

/// Bytes `[C, H, W]` of a picture as `[H, W, C]` in [-1, 1], and its height and width.
fn picture(golden: &Golden, name: &str) -> (Vec<f32>, [usize; 2]) {
    let (shape, bytes) = &golden.tensors[name];
    let [c, h, w] = shape[..] else { panic!("{shape:?}") };
    let at = |i: usize| bytes[i % c * h * w + i / c] as f32 / 127.5 - 1.0;
    ((0..c * h * w).map(at).collect(), [h, w])
}

/// The images of a case, `[N, H, W, C]` in [0, 1].
fn drawn(trained: &Trained, golden: &Golden, case: &Value) -> Vec<f32> {
    let number = |key: &str, usual: f64| case.get(key).and_then(Value::as_f64).unwrap_or(usual);
    let scheduler = Scheduler::from_config(&case["runs_as"].to_string()).unwrap();
    let mut options =
        Options::new(scheduler, number("num_inference_steps", 3.0) as usize, 0).with_rng(Rng::Torch);
    let (scale, rescale) = (number("guidance_scale", 6.0), number("guidance_rescale", 0.0));
    options.guidance = Guidance { scale, rescale, ..Guidance::default() };
    if let denoir::diffusion::Method::Ddim { eta, .. } = &mut options.scheduler.method {
        *eta = number("eta", 0.0);
    }
    let (prompts, negatives) =
        (texts(case.get("prompt"), PROMPT), texts(case.get("negative_prompt"), NEGATIVE));
    let each = number("num_images_per_prompt", 1.0) as usize;
    let told = trained.text().unwrap().texts(&prompts, &negatives, each, 0).unwrap();
    let mut source = trained.source().told(told.texts);
    if case.get("width").is_some() {
        source = source.sized([number("height", 0.0) as usize, number("width", 0.0) as usize]).unwrap();
    }
    if let Some(task) = case.get("task") {
        let (image, size) = picture(golden, "in/picture");
        let holes: Vec<bool> = golden.get("in/mask").iter().map(|&v| v >= 128.0).collect();
        let holes = (task == "inpaint").then_some(&holes[..]);
        source = source.beginning_with(&image, size, holes, number("strength", 1.0), &mut options).unwrap();
    }
    let images = source.draw(&options, each * prompts.len(), None, || Ok(())).unwrap();
    images.into_iter().map(|v| (0.5 * v + 0.5).clamp(0.0, 1.0)).collect()
}

#[test]
fn pictures_are_those_of_the_library() {
    let golden = Golden::named("tiny_sd.safetensors");
    let folder = root().join("tests/golden/tiny_sd");
    for device in devices() {
        let tolerance = if matches!(device, Device::Cpu(_)) { 1e-5 } else { 1e-4 };
        let trained = Trained::open(&folder, &device).unwrap();
        for (name, case) in golden.metadata["cases"].as_object().unwrap() {
            // Generators of their own for each image, and files that are resized, are tested elsewhere.
            let elsewhere = ["seeds", "picture"].iter().any(|key| case.get(key).is_some());
            if elsewhere {
                continue;
            }
            let wanted = golden.nhwc(&format!("{name}/image")).1;
            let got = match case.get("lora").and_then(Value::as_f64) {
                Some(scale) => {
                    let adapters = (root().join("tests/golden/tiny_sd_lora.safetensors"), scale as f32);
                    let extras = Extras { loras: vec![adapters], ..Extras::default() };
                    let adapted = Trained::open_with(&folder, &Unsaid::default(), &extras, &device).unwrap();
                    drawn(&adapted, &golden, case)
                }
                None => drawn(&trained, &golden, case),
            };
            assert_eq!(got.len(), wanted.len(), "{name}");
            let apart = got.iter().zip(to_f32(&wanted)).map(|(g, w)| (g - w).abs()).fold(0.0, f32::max);
            eprintln!("{name} on {}: {apart:.1e}", device.describe());
            assert!(apart <= tolerance, "{name} on {}: {apart:.1e} apart", device.describe());
        }
    }
}

#[test]
fn tokens_and_embeddings_are_those_of_the_library() {
    let golden = Golden::named("tiny_sd.safetensors");
    let folder = root().join("tests/golden/tiny_sd");
    let prompts = texts(Some(&golden.metadata["prompts"]), "");
    for device in devices() {
        let tolerance = if matches!(device, Device::Cpu(_)) { 1e-5 } else { 1e-4 };
        let trained = Trained::open(&folder, &device).unwrap();
        let text = trained.text().unwrap();
        let mut all = Vec::new();
        for (i, prompt) in prompts.iter().enumerate() {
            let tokens = text.tokenizer().prompt(prompt, 77);
            let wanted: Vec<u32> = golden.get(&format!("ids/{i}")).iter().map(|&v| v as u32).collect();
            assert_eq!(tokens.ids, wanted, "{prompt}");
            assert_eq!(tokens.cut.is_some(), i == 5, "{prompt}: {:?}", tokens.cut);
            all.extend(tokens.ids);
        }
        let got = text.embed(&all[..3 * 77], 77, 0).unwrap();
        let wanted = (0..3).flat_map(|i| golden.get(&format!("embeddings/{i}")).to_vec());
        let apart = got.iter().zip(wanted).map(|(g, w)| (f64::from(*g) - w).abs()).fold(0.0, f64::max);
        assert!(apart <= tolerance, "{}: {apart:.1e} apart", device.describe());
    }
}
