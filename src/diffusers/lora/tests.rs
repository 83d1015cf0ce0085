//! Against what the library makes of the same files (`tools/reference/lora_golden.py`), and what is refused.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, TensorView};
use serde_json::Value;

use super::*;

type Numbers = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/lora")
}

fn golden() -> Value {
    serde_json::from_slice(include_bytes!("../../../tests/golden/lora/golden.json")).unwrap()
}

fn layers() -> Layers {
    let golden = golden();
    let of = |part: Part| {
        let own: BTreeMap<String, Vec<usize>> =
            serde_json::from_value(golden["layers"][part.folder()].clone()).unwrap();
        own.into_iter().map(move |(name, shape)| (part, name, shape))
    };
    let all: Vec<_> = of(Part::Unet).chain(of(Part::TextEncoder)).collect();
    Layers::new(all.iter().map(|(part, name, shape)| (*part, name.as_str(), shape.as_slice())))
}

fn read_golden(name: &str) -> Vec<Adapter> {
    read(&Weights::open(&folder().join(format!("{name}.safetensors"))).unwrap(), &layers()).unwrap()
}

/// A file of these tensors.
fn written(at: &Path, tensors: &Numbers, notes: &BTreeMap<String, String>) -> Weights {
    let bytes: BTreeMap<&str, Vec<u8>> = tensors
        .iter()
        .map(|(name, (_, v))| (name.as_str(), v.iter().flat_map(|v| v.to_le_bytes()).collect()))
        .collect();
    let views = tensors.iter().map(|(name, (shape, _))| {
        (name, TensorView::new(Dtype::F32, shape.clone(), &bytes[name.as_str()]).unwrap())
    });
    // The crate writes no file of metadata alone that it can read.
    let notes = (!notes.is_empty()).then(|| notes.clone().into_iter().collect());
    std::fs::write(at, safetensors::serialize(views, notes).unwrap()).unwrap();
    Weights::open(at).unwrap()
}

fn numbers(name: &str) -> Numbers {
    let weights = Weights::open(&folder().join(format!("{name}.safetensors"))).unwrap();
    let all = weights
        .shapes()
        .map(|(name, shape)| (name.to_owned(), (shape.to_vec(), weights.values(name).unwrap())));
    all.collect()
}

#[test]
fn five_spellings_are_the_adapters_that_the_library_reads() {
    let golden: BTreeMap<String, (f32, Vec<f32>, Vec<f32>)> =
        serde_json::from_value(golden()["adapters"].clone()).unwrap();
    let found = |name: &str| -> BTreeMap<_, _> {
        let adapters = read_golden(name).into_iter();
        adapters.map(|a| (format!("{}.{}", a.part.folder(), a.layer), (a.scale, a.a, a.b))).collect()
    };
    for spelling in ["peft", "diffusers", "oldest", "kohya", "kohya_ldm"] {
        assert_eq!(found(spelling), golden, "{spelling}");
    }
    let without: BTreeMap<_, _> = golden.into_iter().map(|(name, (_, a, b))| (name, (1.0, a, b))).collect();
    assert_eq!(found("no_alpha"), without);
    // peft's own file, whose settings lie beside it.
    let at = tempfile::tempdir().unwrap();
    let own: Numbers = numbers("peft")
        .into_iter()
        .filter_map(|(name, t)| Some((format!("base_model.model.{}", name.strip_prefix("unet.")?), t)))
        .collect();
    let weights = written(&at.path().join("adapter_model.safetensors"), &own, &BTreeMap::new());
    let scales = || -> Vec<f32> { read(&weights, &layers()).unwrap().iter().map(|a| a.scale).collect() };
    assert_eq!(scales(), [1.0; 4]);
    let settings = r#"{"r": 1, "rank_pattern": {"proj_in": 2, "to_q": 2, "to_out.0": 2, "conv1": 2},
        "lora_alpha": 3, "alpha_pattern": {"to_q": 8}, "use_rslora": false}"#;
    std::fs::write(at.path().join("adapter_config.json"), settings).unwrap();
    assert_eq!(scales(), [4.0, 1.5, 1.5, 1.5]);
    std::fs::write(at.path().join("adapter_config.json"), settings.replace("false", "true")).unwrap();
    assert_eq!(scales()[1], (3.0 / 2.0_f64.sqrt()) as f32);
}

/// Every setting of peft's set to null, in a file's metadata and in the file beside it.
#[test]
fn null_means_in_settings_what_it_means_to_peft() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/nulls.json");
    let golden: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let at = tempfile::tempdir().unwrap();
    let mut counts = [0; 2];
    for case in golden["adapters"].as_array().unwrap() {
        let by_part = case["by_part"] == true;
        let named = |name: &str| match by_part {
            true => Some(name.to_owned()).filter(|name| name.starts_with("unet.")),
            false => Some(format!("base_model.model.{}", name.strip_prefix("unet.")?)),
        };
        let own: Numbers =
            numbers("peft").into_iter().filter_map(|(name, t)| Some((named(&name)?, t))).collect();
        let scales = |settings: &Map<String, Value>| -> Result<Value> {
            let file = at.path().join("adapter_model.safetensors");
            let mut notes = BTreeMap::new();
            if by_part {
                let of_part = settings.iter().map(|(key, value)| (format!("unet.{key}"), value));
                notes.insert(METADATA.to_owned(), json!(of_part.collect::<BTreeMap<_, _>>()).to_string());
            } else {
                std::fs::write(at.path().join("adapter_config.json"), json!(settings).to_string()).unwrap();
            }
            let adapters = read(&written(&file, &own, &notes), &layers())?;
            Ok(json!(adapters.iter().map(|adapter| adapter.scale).collect::<Vec<_>>()))
        };
        let rounded = |all: &Value| -> Value {
            let all = all.as_array().unwrap().iter();
            json!(all.map(|scale| scale.as_f64().unwrap() as f32).collect::<Vec<_>>())
        };
        let settings = case["settings"].as_object().unwrap();
        for (key, wanted) in case["nulls"].as_object().unwrap() {
            let mut settings = settings.clone();
            settings[key] = Value::Null;
            let got = scales(&settings);
            counts[usize::from(got.is_err())] += 1;
            match wanted.get("error") {
                Some(_) => assert!(got.unwrap_err().report().contains(&**key), "{key}: {wanted}"),
                None => {
                    let scales = wanted.get("scales").unwrap_or(&case["scales"]);
                    assert_eq!(got.unwrap(), rounded(scales), "{key}: {wanted}");
                }
            }
        }
    }
    assert_eq!(counts, [70, 22]);
}

#[test]
fn what_is_written_is_the_librarys_own_file() {
    let adapters = read_golden("kohya");
    let named: Numbers = tensors(&adapters)
        .into_iter()
        .map(|(name, shape, values)| (name, (shape, values.to_vec())))
        .collect();
    // The library at version 5 of transformers leaves out the prefix; it reads both, others need it.
    let without: Numbers =
        named.iter().map(|(name, t)| (name.replace(".text_model.", "."), t.clone())).collect();
    assert_eq!(without, numbers("diffusers"));
    let theirs = Weights::open(&folder().join("diffusers.safetensors")).unwrap().notes().unwrap();
    assert_eq!(metadata(&adapters), theirs);
    assert_eq!(metadata(&read_golden("no_alpha")), BTreeMap::from([("format".to_owned(), "pt".to_owned())]));
    // Ranks and alphas that differ come back from a file.
    let mut odd = adapters;
    odd[1].scale = 0.25;
    let half = |values: &[f32]| values[..values.len() / 2].to_vec();
    odd[2] = Adapter { rank: 1, a: half(&odd[2].a), b: half(&odd[2].b), ..odd[2].clone() };
    let at = tempfile::tempdir().unwrap();
    let named: Numbers =
        tensors(&odd).into_iter().map(|(name, shape, values)| (name, (shape, values.to_vec()))).collect();
    let weights = written(&at.path().join("odd.safetensors"), &named, &metadata(&odd));
    assert_eq!(read(&weights, &layers()).unwrap(), odd);
}

#[test]
fn other_methods_and_other_models_are_told_in_one_line() {
    let at = tempfile::tempdir().unwrap();
    let says = |change: &dyn Fn(&mut Numbers), wanted: &str| {
        let mut tensors = numbers("kohya");
        change(&mut tensors);
        let weights = written(&at.path().join("a.safetensors"), &tensors, &BTreeMap::new());
        let said = read(&weights, &layers()).unwrap_err().report();
        assert!(said.contains(wanted) && said.contains("a.safetensors"), "should say {wanted:?}: {said}");
        assert_eq!(said.lines().count(), 1, "{said}");
    };
    let first = "lora_te_text_model_encoder_layers_1_self_attn_q_proj";
    let one = || (vec![1], vec![1.0]);
    let put = |tensors: &mut Numbers, name: &str| _ = tensors.insert(name.to_owned(), one());
    for (name, wanted) in [
        ("lora_unet_x.dora_scale", "DoRA"),
        ("lora_unet_x.hada_w1_a", "LoHa"),
        ("lora_unet_x.lokr_w1", "LoKr"),
        ("lora_te2_x.lora_down.weight", "Diffusion XL"),
        (
            "diffusion_model.input_blocks.1.1.x.lora_A.weight",
            "does not have, the first diffusion_model.input",
        ),
        ("lora_unet_double_blocks_0_img_attn_proj.lora_down.weight", "diffusion transformer"),
        ("unet.mid_block.attentions.0.proj_in.lora_B.bias", "biases"),
        ("fc.weight", "holds fc.weight, which is no part of a LoRA"),
        (
            "lora_unet_down_blocks_9_attentions_0_proj_in.lora_up.weight",
            "1 of its 19 tensors are of layers that this model does not have, the first lora_unet_down",
        ),
        ("text_encoder.encoder.layers.1.self_attn.q_proj.lora_B.weight", "in two spellings"),
        ("lora_unet_mid_block_attentions_0_proj_out.alpha", "only one of the two matrices of mid_block"),
    ] {
        says(&|tensors| put(tensors, name), wanted);
    }
    says(&|tensors| _ = tensors.remove(&format!("{first}.lora_up.weight")), "only one of the two matrices");
    says(&|tensors| put(tensors, &format!("{first}.lora_up.weight")), "is [1], and the layer is [6, 6]");
    says(
        &|tensors| _ = tensors.insert(format!("{first}.alpha"), (vec![2], vec![1.0; 2])),
        "is not one number",
    );
    says(&|tensors| _ = tensors.insert(format!("{first}.alpha"), (vec![], vec![f32::NAN])), "holds NaN");
    says(&|tensors| tensors.clear(), "it is empty");
    for (settings, wanted) in [
        (r#"{"unet.r": 3}"#, "says rank 3"),
        (r#"{"unet.lora_alpha": "x"}"#, "is \"x\""),
        (r#"{"unet.use_dora": true}"#, "DoRA"),
        ("[1]", "no JSON object"),
    ] {
        let notes = BTreeMap::from([(METADATA.to_owned(), settings.to_owned())]);
        let weights = written(&at.path().join("a.safetensors"), &numbers("peft"), &notes);
        let said = read(&weights, &layers()).unwrap_err().report();
        assert!(said.contains(wanted), "should say {wanted:?}: {said}");
    }
}
