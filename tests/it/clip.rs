//! CLIP's text model: against the transformers library, and as a folder. `tools/reference/clip_golden.py`
//! makes the files.

use std::cell::RefCell;
use std::fs;
use std::path::Path;
use std::rc::Rc;

use denoir::device::Device;
use denoir::diffusers::config::text_model;
use denoir::diffusers::{TextEncoder, open_text_encoder, text_params, write_text_encoder};
use denoir::models::clip::{HiddenAct, TextConfig, clip_text};
use denoir::nn::{self, Init, Params, Scope};
use denoir::program::{Plan, Program, Sharing};
use denoir::state::State;
use denoir::tape::Tape;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::Value;
use tempfile::TempDir;

use crate::reference::{Golden, Judge, devices, files, flat_gradients, flat_parameters, names, relative};

fn config_of(json: &Value) -> TextConfig {
    text_model(&json.to_string()).unwrap()
}

#[test]
fn clips_with_all_gradients() {
    let names = files("clip_");
    assert_eq!(names.len(), 2, "{names:?}");
    for device in devices() {
        for name in &names {
            let golden = Golden::named(name);
            check(name, &golden, &device);
        }
    }
}

fn check(name: &str, golden: &Golden, device: &Device) {
    let config = config_of(&golden.metadata["config"]);
    let skip = golden.metadata["skip"].as_u64().unwrap() as usize;
    let shape = golden.tensors["in/ids"].0.clone();
    let (tape, params): (_, Rc<RefCell<Params>>) = (Tape::new(), Rc::default());
    let state = tape.stored_u32("state", [State::WORDS]);
    let ids = tape.stored_u32("ids", [shape[0], shape[1]]);
    let y = clip_text(&config, &Scope::training(&tape, &params, &state), &ids, skip);
    let gradients = tape.backward_from(&y, &tape.stored("dy", 0, y.shape().clone()));
    nn::place_gradients(&tape, &gradients);
    let plan = Plan::new(&tape, &[&y], device);
    let mut program = Program::compile(&plan, device, &[], Sharing::Shared).unwrap();

    let params = params.borrow();
    nn::write_parameters(&program, &flat_parameters(name, golden, &params)).unwrap();
    let words: Vec<u32> = golden.get("in/ids").iter().map(|&v| v as u32).collect();
    program.write("ids", &words).unwrap();
    program.write("dy", &golden.f32("in/dy")).unwrap();
    program.run().unwrap();
    let mut judge = Judge::new(name, golden, device);
    let out = relative(&program.read(&y).unwrap(), golden.get("f64/out"));
    let pytorch = judge.error_of(&["out"]);
    judge.error("out", out, pytorch);
    judge.gradients(&params, &flat_gradients(&program, &params), pytorch);
    judge.verdict();
}

/// The first values have the library's deviations, as far as its own model shows them.
#[test]
fn first_values_are_the_librarys() {
    let golden = Golden::named(&files("clip_")[0]);
    let initial = &golden.metadata["initial"];
    let mut keys = initial["config"].clone();
    keys["model_type"] = "clip_text_model".into();
    let params = text_params(&config_of(&keys));
    for spec in params.borrow().specs() {
        let wanted = initial["of"][spec.name.strip_prefix("text_model.").unwrap()].as_f64().unwrap();
        let got = match spec.init {
            Init::Normal(deviation) => f64::from(deviation),
            Init::Ones => 1.0,
            Init::Zeros => 0.0,
            other => panic!("{}: {other:?}", spec.name),
        };
        assert!((got - wanted).abs() <= 0.05 * wanted, "{}: {got}, {wanted}", spec.name);
    }
}

/// Of Stable Diffusion 1 and 2.
#[test]
fn numbers_of_parameters() {
    let one = TextConfig {
        hidden_size: 768,
        intermediate_size: 3072,
        num_attention_heads: 12,
        ..TextConfig::default()
    };
    let two = TextConfig {
        hidden_size: 1024,
        intermediate_size: 4096,
        num_hidden_layers: 23,
        num_attention_heads: 16,
        hidden_act: HiddenAct::Gelu,
        ..TextConfig::default()
    };
    for (config, tensors, wanted) in [(one, 196, 123_060_480), (two, 372, 340_387_840)] {
        let params = text_params(&config);
        let params = params.borrow();
        assert_eq!((params.specs().len(), params.count()), (tensors, wanted));
    }
}

/// The model of the sheet: its weights are sines.
fn sheet(hidden_act: HiddenAct) -> TextEncoder {
    let config = TextConfig {
        vocab_size: 522,
        hidden_size: 24,
        intermediate_size: 48,
        num_hidden_layers: 2,
        num_attention_heads: 4,
        hidden_act,
        ..TextConfig::default()
    };
    let params = text_params(&config);
    let params = params.borrow();
    let mut specs: Vec<_> = params.specs().iter().collect();
    specs.sort_by(|a, b| a.name.cmp(&b.name));
    let mut weights = vec![0.0; params.elements()];
    for (k, spec) in specs.into_iter().enumerate() {
        let shape = spec.file_shape();
        let of_row = shape[1..].iter().product::<usize>() as f64;
        let is_gain = spec.name.contains("norm") && spec.name.ends_with("weight");
        let [factor, base] = match (shape.len(), is_gain) {
            (1, true) => [0.1, 1.0],
            (1, false) => [0.1, 0.0],
            _ => [1.0 / of_row.sqrt(), 0.0],
        };
        spec.for_each_index(|here, there| {
            weights[spec.first + here] = (base + factor * (0.7 * there as f64 + k as f64).sin()) as f32;
        });
    }
    TextEncoder { config, weights: weights.into() }
}

/// "A red circle!" in the sheet's tokenizer.
fn prompt() -> Vec<u32> {
    let mut ids = vec![520, 320, 514, 519, 256];
    ids.resize(77, 521);
    ids
}

#[test]
fn embeddings_of_a_prompt() {
    let book = names("clip_sheet.json");
    for device in devices() {
        let tolerance = if matches!(device, Device::Cpu(_)) { 1e-5 } else { 1e-4 };
        for (act, hidden_act) in [("quick_gelu", HiddenAct::QuickGelu), ("gelu", HiddenAct::Gelu)] {
            let TextEncoder { config, weights } = sheet(hidden_act);
            for skip in [0, 1] {
                let (tape, params) = (Tape::new(), text_params(&config));
                let ids = tape.stored_u32("ids", [1, 77]);
                let scope = Scope::new(&tape, &params).sub("text_model");
                let y = clip_text(&config, &scope, &ids, skip);
                let plan = Plan::new(&tape, &[&y], &device);
                let mut program = Program::compile(&plan, &device, &[], Sharing::Shared).unwrap();
                nn::write_parameters(&program, &weights.f32()).unwrap();
                program.write("ids", &prompt()).unwrap();
                program.run().unwrap();
                let y = program.read(&y).unwrap();
                let wanted = &book[&format!("{act} {skip}")];
                let numbers =
                    |key: &str| -> Vec<f64> { serde_json::from_value(wanted[key].clone()).unwrap() };
                let found = y[24..28].iter().chain(&y[76 * 24 + 22..]).map(|&v| f64::from(v));
                for (got, wanted) in found.zip([numbers("first"), numbers("last")].concat()) {
                    let close = (got - wanted).abs() <= tolerance;
                    assert!(close, "{act}, {skip} skipped, on {}: {got}, {wanted}", device.describe());
                }
                let squares: f64 = y.iter().map(|&v| f64::from(v).powi(2)).sum();
                let wanted = wanted["squares"].as_f64().unwrap();
                let close = (squares - wanted).abs() <= tolerance * wanted;
                assert!(close, "{act}, {skip} skipped, on {}: {squares}, {wanted}", device.describe());
            }
        }
    }
}

/// Tensors as they lie in a file: name, shape, 32-bit words or 64-bit ones.
type Stored = (String, Vec<usize>, Dtype, Vec<u8>);

fn save(path: &Path, tensors: &[Stored]) {
    let views = tensors
        .iter()
        .map(|(name, shape, dtype, bytes)| (name, TensorView::new(*dtype, shape.clone(), bytes).unwrap()));
    safetensors::serialize_to_file(views, None, path).unwrap();
}

#[test]
fn folders_of_every_version_hold_the_same_model() {
    let folder = TempDir::new().unwrap();
    let at = |name: &str| folder.path().join(name);
    let encoder = sheet(HiddenAct::Gelu);
    write_text_encoder(&at("four"), &encoder, [520, 521, 521]).unwrap();
    let config = fs::read_to_string(at("four/config.json")).unwrap();
    let json: Value = serde_json::from_str(&config).unwrap();
    assert_eq!(json["architectures"], serde_json::json!(["CLIPTextModel"]));
    assert_eq!((&json["bos_token_id"], &json["pad_token_id"]), (&520.into(), &521.into()));

    let bytes = fs::read(at("four/model.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let stored = |name: String, view: &TensorView| -> Stored {
        (name, view.shape().to_vec(), view.dtype(), view.data().to_vec())
    };
    let four: Vec<Stored> = file.tensors().iter().map(|(name, view)| stored(name.clone(), view)).collect();
    assert!(four.len() == 36 && four.iter().all(|(name, ..)| name.starts_with("text_model.")));
    let five: Vec<Stored> = four
        .iter()
        .map(|(name, shape, dtype, bytes)| {
            (name.replace("text_model.", ""), shape.clone(), *dtype, bytes.clone())
        })
        .collect();
    let numbers: Vec<u8> = (0..77_i64).flat_map(i64::to_le_bytes).collect();
    let mut old = four.clone();
    old.push(("text_model.embeddings.position_ids".into(), vec![1, 77], Dtype::I64, numbers));
    for other in ["vision_model.embeddings.class_embedding", "logit_scale", "text_projection.weight"] {
        old.push((other.into(), vec![2], Dtype::F32, vec![0; 8]));
    }
    let mut surplus = four.clone();
    surplus.push(("text_model.encoder.layers.2.mlp.fc1.bias".into(), vec![48], Dtype::F32, vec![0; 192]));
    for (name, tensors) in [("five", &five), ("old", &old), ("surplus", &surplus)] {
        fs::create_dir(at(name)).unwrap();
        fs::write(at(name).join("config.json"), &config).unwrap();
        save(&at(name).join("model.safetensors"), tensors);
    }
    for name in ["four", "five", "old"] {
        let again = open_text_encoder(&at(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(again.config, encoder.config, "{name}");
        assert!(again.weights == encoder.weights, "{name}: other weights");
    }
    let refused = |name: &str| open_text_encoder(&at(name)).err().unwrap().report();
    let said = refused("surplus");
    assert!(said.contains("left over: text_model.encoder.layers.2.mlp.fc1.bias"), "{said}");
    for (key, value, wanted) in [
        ("num_attention_heads", 5, "text.num_attention_heads = 5 does not divide 24 channels"),
        ("num_hidden_layers", 0, "text.num_hidden_layers is 0"),
        ("max_position_embeddings", 76, "position_embedding.weight is [77, 24] and must be [76, 24]"),
    ] {
        let mut json = json.clone();
        json[key] = value.into();
        fs::write(at("four/config.json"), json.to_string()).unwrap();
        let said = refused("four");
        assert!(said.contains(wanted) && said.contains("four"), "{said}");
    }
}
