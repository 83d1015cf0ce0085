//! Stable Diffusion in one file, and what is laid over a model: adapters and words.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use denoir::device::Device;
use denoir::diffusers::{Extras, Unsaid};
use denoir::error::Result;
use denoir::sample::{Options, Trained};
use denoir::weights::Weights;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::command_line::{denoir, fails};
use crate::golden_diffusers::copy;
use crate::place::root;

pub type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

fn golden(name: &str) -> PathBuf {
    root().join("tests/golden").join(name)
}

pub fn write(at: &Path, tensors: &Tensors) {
    let bytes = |values: &[f32]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
    let all: Vec<_> = tensors.iter().map(|(name, (shape, v))| (name, shape.clone(), bytes(v))).collect();
    let views =
        all.iter().map(|(name, shape, v)| (*name, TensorView::new(Dtype::F32, shape.clone(), v).unwrap()));
    fs::write(at, safetensors::serialize(views, None).unwrap()).unwrap();
}

/// A case of the library's converters: a file's shapes, and where each tensor of a folder is in the file.
fn converted(case: &str) -> Value {
    let packed = fs::File::open(golden("single_files.json.gz")).unwrap();
    let all: Value = serde_json::from_reader(flate2::read::GzDecoder::new(packed)).unwrap();
    all[case].clone()
}

/// The tensors of `tiny_sd` as CompVis names and shapes them.
pub fn single() -> Tensors {
    let places = converted("tiny_sd1");
    let mut all = Tensors::new();
    for (part, file) in
        [("unet", "diffusion_pytorch_model"), ("vae", "diffusion_pytorch_model"), ("text_encoder", "model")]
    {
        let weights = Weights::open(&golden(&format!("tiny_sd/{part}/{file}.safetensors"))).unwrap();
        for (name, shape) in weights.shapes() {
            let place =
                places[part].get(name).unwrap_or_else(|| &places[part][&format!("text_model.{name}")]);
            let source = place[0].as_str().unwrap_or_else(|| panic!("{part}: {name}"));
            let ones = if source.contains(".attn_1.") && shape.len() == 2 { 2 } else { 0 };
            let shape = [shape, &vec![1; ones]].concat();
            all.insert(source.to_owned(), (shape, weights.values(name).unwrap()));
        }
    }
    all
}

/// `tiny_sd` with the numbers that a file does not tell, as they are guessed.
fn folder(at: &Path) {
    copy(&golden("tiny_sd"), at);
    for (part, changes) in [
        ("unet", json!({"attention_head_dim": 8, "norm_num_groups": 8})),
        ("vae", json!({"norm_num_groups": 8})),
        ("text_encoder", json!({"num_attention_heads": 1})),
    ] {
        let path = at.join(part).join("config.json");
        let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        for (key, value) in changes.as_object().unwrap() {
            config[key] = value.clone();
        }
        fs::write(path, config.to_string()).unwrap();
    }
}

fn unsaid() -> Unsaid {
    Unsaid { tokenizer: Some(golden("tiny_sd/tokenizer")), prediction: None }
}

fn opened(path: &Path, unsaid: &Unsaid, extras: &Extras) -> Result<Trained> {
    Trained::open_with(path, unsaid, extras, &Device::open("cpu").unwrap())
}

fn loras(all: &[(&Path, f32)]) -> Extras {
    Extras {
        loras: all.iter().map(|(path, scale)| ((*path).to_owned(), *scale)).collect(),
        ..Extras::default()
    }
}

/// A picture of 16 x 16 pixels.
fn picture(trained: &Trained) -> Vec<f32> {
    let options = Options { steps: 3, ..Options::of(trained.recipe()).unwrap() };
    let none = [String::new()];
    let told = trained.text().unwrap().texts(&["a red circle".to_owned()], &none, 1, 0).unwrap();
    let source = trained.source().told(told.texts).sized([16, 16]).unwrap();
    source.draw(&options, 1, None, || Ok(())).unwrap()
}

fn refused(path: &Path, unsaid: &Unsaid, extras: &Extras, wanted: &str) {
    let said = opened(path, unsaid, extras).err().map(|e| e.report()).unwrap_or_default();
    assert!(said.contains(wanted), "{} should say {wanted:?}: {said}", path.display());
    assert_eq!(said.lines().filter(|line| line.starts_with("error: ")).count(), 1, "{said}");
}

#[test]
fn a_file_is_drawn_from_as_its_folder_and_imported() {
    let temporary = TempDir::new().unwrap();
    let at = temporary.path();
    folder(&at.join("folder"));
    let file = at.join("model.safetensors");
    write(&file, &single());
    let none = Extras::default();
    let wanted = picture(&opened(&at.join("folder"), &Unsaid::default(), &none).unwrap());
    assert!(picture(&opened(&file, &unsaid(), &none).unwrap()) == wanted);
    let tokenizer = golden("tiny_sd/tokenizer");
    let import = ["import", "model.safetensors", "run", "--tokenizer", tokenizer.to_str().unwrap()];
    let output = denoir(at, &import);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let run = opened(&at.join("run"), &Unsaid::default(), &none).unwrap();
    assert!(picture(&run) == wanted);
    // Trained on, of which the run keeps what the file does not say.
    let base = ["train", "text-to-image", "--base", "model.safetensors", "--tokenizer"];
    let how =
        ["--data", "shapes", "--image-size", "16", "--steps", "1", "--batch-size", "1", "--device", "cpu"];
    let set =
        ["--set", "accumulation=1", "--set", "latent_count=2", "--set", "lora_rank=1", "--out", "tuned"];
    let train = [&base[..], &[tokenizer.to_str().unwrap()], &how, &set].concat();
    let sample = ["sample", "tuned", "--prompt", "red", "--steps", "1", "--device", "cpu"];
    let resume = ["train", "--resume", "tuned", "--steps", "2", "--device", "cpu"];
    for arguments in [&train[..], &sample, &resume, &[&resume[..4], &["3", "--dry-run"]].concat()] {
        let output = denoir(at, arguments);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    fails(at, &[&base[..4], &how, &set[..6]].concat(), 2, &["--tokenizer FOLDER"]);
    // Over the weights of a run, in two halves, and over those of the file at once.
    let lora = golden("tiny_sd_lora.safetensors");
    let once = picture(&opened(&file, &unsaid(), &loras(&[(&lora, 1.0)])).unwrap());
    let halves = loras(&[(&lora, 0.25), (&lora, 0.75)]);
    let twice = picture(&opened(&at.join("run"), &Unsaid::default(), &halves).unwrap());
    let apart = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(apart(&once, &twice) < 1e-5 && apart(&once, &wanted) > 1e-3);
}

#[test]
fn files_that_cannot_be_used_are_told_in_one_line() {
    let temporary = TempDir::new().unwrap();
    let at = temporary.path();
    let (said, nothing, none) = (unsaid(), Unsaid::default(), Extras::default());
    let file = at.join("model.safetensors");
    let bias = "first_stage_model.quant_conv.bias";
    let whole = single();
    write(&file, &whole);
    refused(&file, &nothing, &none, "does not hold the vocabulary of its tokenizer");
    fails(at, &["sample", "model.safetensors", "--prompt", "x"], 2, &["--tokenizer FOLDER"]);
    fails(at, &["train", "model.safetensors"], 2, &["cannot read the recipe model.safetensors"]);
    fails(at, &["train", "--resume", "model.safetensors"], 1, &["model.safetensors is not a run"]);
    refused(&golden("tiny_sd"), &said, &none, "is no single file of Stable Diffusion");
    let changed = |change: &dyn Fn(&mut Tensors), wanted: &str| {
        let mut tensors = whole.clone();
        change(&mut tensors);
        let other = at.join("other.safetensors");
        write(&other, &tensors);
        refused(&other, &said, &none, wanted);
    };
    changed(&|all| all.get_mut(bias).unwrap().1[0] = f32::NAN, &format!("{bias} holds NaN at 0"));
    changed(&|all| _ = all.remove(bias), "missing: quant_conv.bias");
    changed(&|all| _ = all.insert(bias.to_owned(), (vec![1], vec![0.0])), "is [1] and must be [8]");
    changed(&|all| all.retain(|name, _| !name.starts_with("first_stage_model.")), "it has no VAE");
    changed(&|all| all.retain(|name, _| !name.starts_with("cond_stage")), "it has no text encoder");
    let bytes = fs::read(&file).unwrap();
    fs::write(at.join("cut.safetensors"), &bytes[..bytes.len() / 2]).unwrap();
    refused(&at.join("cut.safetensors"), &said, &none, "cut.safetensors: its tensors have");
    fs::write(at.join("cut.ckpt"), "x").unwrap();
    refused(&at.join("cut.ckpt"), &said, &none, "cut.ckpt");
    // Of version 2, which says too little.
    let shapes: BTreeMap<String, Vec<usize>> =
        serde_json::from_value(converted("tiny_sd2")["file"].clone()).unwrap();
    let two = shapes.into_iter().map(|(name, shape)| {
        let zeros = vec![0.0; shape.iter().product()];
        (name, (shape, zeros))
    });
    write(&at.join("two.safetensors"), &two.collect());
    refused(&at.join("two.safetensors"), &said, &none, "say --prediction v_prediction");

    let lora = golden("tiny_sd_lora.safetensors");
    refused(&lora, &said, &none, "it is a LoRA file, which is used on top of a model");
    refused(&golden("tiny_ddpm"), &nothing, &loras(&[(&lora, 1.0)]), "the model sees no text");
    let other = loras(&[(&golden("lora/kohya.safetensors"), 1.0)]);
    refused(&golden("tiny_sd"), &nothing, &other, "and the layer is [24, 24]");
    refused(&golden("tiny_sd"), &nothing, &loras(&[(&file, 1.0)]), "it is a whole model and no LoRA");
    let words = Extras { embeddings: vec![golden("embedding.pt")], ..Extras::default() };
    refused(&golden("tiny_sd"), &nothing, &words, "its rows have 4 numbers, and the text encoder takes 24");
}

#[test]
fn a_word_stands_for_its_rows() {
    let at = TempDir::new().unwrap();
    let nothing = Unsaid::default();
    let plain = opened(&golden("tiny_sd"), &nothing, &Extras::default()).unwrap();
    let text = plain.text().unwrap();
    let pieces = text.tokenizer().encode("red circle");
    assert!(pieces.len() > 1);
    let encoder = Weights::open(&golden("tiny_sd/text_encoder/model.safetensors")).unwrap();
    let (table, shape) = encoder.shapes().find(|(name, _)| name.ends_with("token_embedding.weight")).unwrap();
    let (width, table) = (shape[1], encoder.values(table).unwrap());
    let rows = pieces.iter().flat_map(|&id| table[id as usize * width..][..width].to_vec()).collect();
    let file = at.path().join("word.safetensors");
    write(&file, &Tensors::from([("<Thing>".to_owned(), (vec![pieces.len(), width], rows))]));
    let words = Extras { embeddings: vec![file.clone()], ..Extras::default() };
    let with = opened(&golden("tiny_sd"), &nothing, &words).unwrap();
    let embedded = |trained: &Trained, prompt: &str| {
        let text = trained.text().unwrap();
        text.embed(&text.tokenizer().prompt(prompt, 77).ids, 77, 0).unwrap()
    };
    assert!(with.remarks()[0].ends_with("word.safetensors is <Thing> in prompts"), "{:?}", with.remarks());
    let wanted = embedded(&plain, "a red circle in blue");
    assert!(embedded(&with, "a <thing> in blue") == wanted);
    assert!(embedded(&with, "a red circle in blue") == wanted);
    let first = text.tokenizer().size() as u32;
    let known = with.text().unwrap().tokenizer();
    assert_eq!(known.encode("<Thing>"), (first..first + pieces.len() as u32).collect::<Vec<_>>());
    assert_eq!(known.encode("<thing>_1"), [first + 1]);
    let twice = Extras { embeddings: vec![file.clone(), file], ..Extras::default() };
    refused(&golden("tiny_sd"), &nothing, &twice, "has the token \"<Thing>\" already");
}
