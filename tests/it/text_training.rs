//! Fine-tuning of Stable Diffusion against PyTorch: the loss and the gradients of the U-Net, of the text
//! encoder trained with it, of low-rank adapters of both, and of the rows of a new word.

use std::cell::RefCell;
use std::rc::Rc;

use denoir::device::Device;
use denoir::diffusers::inversion::Embedding;
use denoir::diffusers::{self, text_params};
use denoir::diffusion::Told;
use denoir::models::clip::{Word, clip_text_with};
use denoir::models::unet::unet;
use denoir::nn::{self, Adapters, Init, Layout, Params, Scope};
use denoir::ops::loss::mse;
use denoir::program::{Plan, Program, Sharing};
use denoir::recipe::params_of;
use denoir::state::State;
use denoir::tape::Tape;
use serde_json::Value;

use crate::place::root;
use crate::reference::{Golden, devices, flat_gradients, to_f32};

const TARGETS: [&str; 8] =
    [".to_q", ".to_k", ".to_v", ".to_out.0", ".q_proj", ".k_proj", ".v_proj", ".out_proj"];

/// Numbers `[N, C, H, W]` as `[N, H, W, C]`.
fn channels_last(golden: &Golden, name: &str) -> Vec<f32> {
    to_f32(&golden.nhwc(name).1)
}

/// The noisy latents and what is to be predicted of them, `[4, 8, 8, 4]`.
fn noised(golden: &Golden, prediction: &str) -> [Vec<f32>; 2] {
    let betas: Vec<f64> = (0..1000)
        .map(|i| {
            let [a, b] = [0.00085_f64, 0.012].map(f64::sqrt);
            (a + (b - a) * f64::from(i) / 999.0).powi(2)
        })
        .collect();
    let bars: Vec<f64> = betas
        .iter()
        .scan(1.0, |bar, beta| {
            *bar *= 1.0 - beta;
            Some(*bar)
        })
        .collect();
    let (x0, noise) = (channels_last(golden, "f64/latents"), channels_last(golden, "in/noise"));
    let size = x0.len() / 4;
    let at = |i: usize| bars[golden.get("in/t")[i / size] as usize];
    let both = |i: usize| [f64::from(x0[i]), f64::from(noise[i])];
    let x_t = |i: usize| {
        let [x, e] = both(i);
        (at(i).sqrt() * x + (1.0 - at(i)).sqrt() * e) as f32
    };
    let target = |i: usize| {
        let [x, e] = both(i);
        if prediction == "epsilon" { e as f32 } else { (at(i).sqrt() * e - (1.0 - at(i)).sqrt() * x) as f32 }
    };
    [(0..x0.len()).map(x_t).collect(), (0..x0.len()).map(target).collect()]
}

fn check(name: &str, case: &Value, golden: &Golden, device: &Device) {
    let folder = diffusers::open(&root().join("tests/golden/tiny_sd")).unwrap();
    let (recipe, mut text) = (folder.model.recipe, folder.text.unwrap());
    let learns = case.get("word").is_some_and(|v| v == true);
    let mut ids: Vec<u32> = golden.get("in/ids").iter().map(|&v| v as u32).collect();
    if learns {
        text.add_word(&Embedding { token: "<cat>".to_owned(), width: 24, values: vec![0.0; 48] }).unwrap();
        let captions = golden.metadata["word_captions"].as_array().unwrap();
        let of = |caption: &Value| text.tokenizer.prompt(caption.as_str().unwrap(), 77).ids;
        ids = captions.iter().flat_map(of).collect();
        let wanted: Vec<u32> = golden.get("in/word_ids").iter().map(|&v| v as u32).collect();
        assert_eq!(ids, wanted, "the tokens of a word");
    }
    let scale = case.get("lora").and_then(Value::as_f64);
    let trains_text = case.get("text").is_some_and(|v| v == true);
    let (tape, params): (Tape, Rc<RefCell<Params>>) = (Tape::new(), Rc::default());
    let state = tape.stored_u32("state", [State::WORDS]);
    let own = Scope::training(&tape, &params, &state);
    let [of_unet, of_text] = [params_of(&recipe), text_params(&text.encoder.config)];
    let frozen = |params: &Rc<RefCell<Params>>, store: &str| {
        let frozen = Scope::frozen(&tape, params, store);
        match scale {
            Some(scale) => {
                let scope = own.clone();
                frozen.adapted_by(Adapters { scope, rank: 4, scale: scale as f32, targets: &TARGETS })
            }
            None => frozen,
        }
    };
    let net = if scale.is_some() || learns { frozen(&of_unet, "unet") } else { own.clone() };
    let reader = if trains_text { own.clone() } else { frozen(&of_text, "text") };
    let x = tape.stored("x", 0, [4, 8, 8, 4]);
    let (t, target) = (tape.stored("t", 0, [4]), tape.stored("target", 0, [4, 8, 8, 4]));
    // Recorded before the text, so that its parameters come first, as in a folder's weights.
    if trains_text {
        let [x, t] = [tape.stored("x", 0, [1, 8, 8, 4]), tape.stored("t", 0, [1])];
        let text = tape.stored("none", 0, [1, 1, recipe.unet.text_width()]);
        unet(&recipe.unet, &Scope::new(&tape, &params), &x, &t, Told { labels: None, text: Some(&text) });
    }
    let words = tape.stored_u32("ids", [4, 77]);
    let places = tape.stored_u32("places", [4, 77]);
    let rows = || own.sub("text_model.embeddings.word").param("weight", [2, 24], Layout::Plain, Init::Zeros);
    let rows = learns.then(rows);
    let word = rows.as_ref().map(|rows| Word { rows, places: &places });
    let seen = clip_text_with(&text.encoder.config, &reader.sub("text_model"), &words, word, 0);
    let out = unet(&recipe.unet, &net, &x, &t, Told { labels: None, text: Some(&seen) });
    let loss = mse(&out, &target, None);
    nn::place_gradients(&tape, &tape.backward(&loss));
    let plan = Plan::new(&tape, &[&loss, &out], device);
    let mut program = Program::compile(&plan, device, &[], Sharing::Shared).unwrap();

    let params = params.borrow();
    let mut flat = vec![0.0_f32; params.elements()];
    if scale.is_some() {
        let adapters = Golden::named("tiny_sd_lora.safetensors");
        for spec in params.specs() {
            let part = if spec.name.starts_with("text_model.") { "text_encoder" } else { "unet" };
            let values = adapters.get(&format!("{part}.{}", spec.name));
            spec.for_each_index(|here, there| flat[spec.first + here] = values[there] as f32);
        }
        program.write("unet", &folder.model.weights.f32()[..program.elements("unet")]).unwrap();
    } else if learns {
        flat[..48].copy_from_slice(&golden.f32("in/word_rows"));
        program.write("unet", &folder.model.weights.f32()[..program.elements("unet")]).unwrap();
        let first = text.tokenizer.size() as u32 - 2;
        program.write("places", &ids.iter().map(|id| id.wrapping_sub(first)).collect::<Vec<u32>>()).unwrap();
    } else {
        let all = [&folder.model.weights.f32()[..], &text.encoder.weights.f32()].concat();
        let count = flat.len();
        flat.copy_from_slice(&all[..count]);
    }
    if !trains_text {
        program.write("text", &text.encoder.weights.f32()[..program.elements("text")]).unwrap();
    }
    nn::write_parameters(&program, &flat).unwrap();
    let [x_t, wanted] = noised(golden, case.get("prediction").and_then(Value::as_str).unwrap_or("epsilon"));
    program.write("x", &x_t).unwrap();
    program.write("target", &wanted).unwrap();
    program.write("t", &golden.f32("in/t")).unwrap();
    program.write("ids", &ids).unwrap();
    program.run().unwrap();

    let factor = if matches!(device, Device::Cpu(_)) { 2.0 } else { 10.0 };
    let at = format!("{name} on {}", device.describe());
    let got = f64::from(program.read(&loss).unwrap()[0]);
    let loss = case["loss"].as_f64().unwrap();
    assert!((got / loss - 1.0).abs() < factor * 1e-6, "{at}: a loss of {got}, not {loss}");
    // Sorted by name, those of the text encoder last.
    let all = flat_gradients(&program, &params);
    let mut specs: Vec<_> = params.specs().iter().collect();
    specs.sort_by_key(|spec| (spec.name.starts_with("text_model."), &spec.name));
    let wanted = golden.get(&format!("{name}/grad")).chunks_exact(4);
    assert_eq!(wanted.len(), specs.len(), "{at}");
    let mut worst = (0.0, String::new());
    for (spec, wanted) in specs.iter().zip(wanted) {
        let mut got = vec![0.0_f32; spec.shape.elements()];
        spec.for_each_index(|here, there| got[there] = all[spec.first + here]);
        let (sum, absolute) =
            got.iter().fold((0.0, 0.0), |(s, a), v| (s + f64::from(*v), a + f64::from(v.abs())));
        let four = [sum, absolute, got[0].into(), got[got.len() - 1].into()];
        // Some gradients, those of keys' biases, are zero but for rounding.
        let norm = case["norm"].as_f64().unwrap();
        if wanted[1] < 1e-9 * norm {
            assert!(absolute < 1e-5 * norm, "{at}: {} should be zero: {absolute:.1e}", spec.name);
            continue;
        }
        let scale = wanted[1].max(1e-4 * norm);
        let apart = four.iter().zip(wanted).map(|(g, w)| (g - w).abs()).fold(0.0, f64::max) / scale;
        if apart.is_nan() || apart > worst.0 {
            worst = (apart, spec.name.clone());
        }
    }
    eprintln!("{at}: gradients at most {:.1e} apart, {}", worst.0, worst.1);
    assert!(worst.0 <= factor * 3e-5, "{at}: {} is off by {:.1e}", worst.1, worst.0);
}

#[test]
fn losses_and_gradients_are_pytorchs() {
    let golden = Golden::named("text_training.safetensors");
    let cases = golden.metadata["cases"].as_object().unwrap();
    for device in devices() {
        // What weighs samples, or adds to the noise, is tested where it is made.
        for name in ["epsilon", "v", "text", "lora", "word"] {
            check(name, &cases[name], &golden, &device);
        }
    }
}
