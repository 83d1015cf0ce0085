//! Diffusion transformers: against the diffusers library, and trained, sampled and exported.
//! `tools/reference/dit_golden.py` makes the files.

use std::cell::RefCell;
use std::fs;
use std::path::Path;
use std::rc::Rc;

use denoir::diffusers::config::{self, Model};
use denoir::models::dit::{DitConfig, dit};
use denoir::nn::{self, Params, Scope};
use denoir::program::{Plan, Program, Sharing};
use denoir::recipe::{Backbone, Recipe, Rng, initial_of, model_of, params_of};
use denoir::sample::{Denoiser, Guidance, Options, Sampler};
use denoir::tape::Tape;
use denoir::tensor::DType;
use denoir::torch::Generator;
use serde_json::Value;
use tempfile::TempDir;

use crate::command_line::fails;
use crate::golden::check_network;
use crate::golden_diffusers::{copy, succeeds};
use crate::precision::half_devices;
use crate::reference::{Golden, check_names, devices, files, names};

fn config_of(json: &Value) -> DitConfig {
    match config::model(&json.to_string()).unwrap().model {
        Model::Dit(config) => *config,
        other => panic!("{other:?}"),
    }
}

#[test]
fn dits_with_all_gradients() {
    let names = files("dit_");
    assert_eq!(names.len(), 2, "{names:?}");
    for device in devices().into_iter().chain(half_devices()) {
        for name in &names {
            let golden = Golden::with_halves(name);
            let config = config_of(&golden.metadata["config"]);
            check_network(name, &golden, &device, config.class(), &move |s, x, t, told| {
                dit(&config, s, x, t, told.labels)
            });
        }
    }
}

/// The transformer of the library's own pipeline test, from its seed.
#[test]
fn the_librarys_seed_makes_the_librarys_transformer() {
    let book = names("dit_published.json");
    let config = config_of(&book["config"]);
    let recipe = Recipe {
        model: Backbone::Dit,
        rng: Rng::Torch,
        image_size: 16,
        dit: DitConfig { zero_init: false, ..config.clone() },
        ..Recipe::default()
    };
    recipe.validate().unwrap();
    let params = params_of(&recipe);
    let entry = serde_json::json!({ "parameters": book["parameters"], "tensors": book["tensors"] });
    check_names(&[("published".to_owned(), entry)].into(), "published", &params.borrow());
    // [2, 4, 16, 16] of the library, as [2, 16, 16, 4].
    let mut drawn = vec![0.0; 2048];
    Generator::new(7).fill_normal(&mut drawn);
    let x: Vec<f32> = (0..2048).map(|i| drawn[i / 1024 * 1024 + i % 4 * 256 + i / 4 % 256]).collect();
    let numbers = |key: &str| -> Vec<f64> { serde_json::from_value(book["forward"][key].clone()).unwrap() };
    for device in devices() {
        let (tape, params) = (Tape::new(), Rc::clone(&params));
        let (x_in, t) = (tape.stored("x", 0, [2, 16, 16, 4]), tape.stored("t", 0, [2]));
        let labels = config.class().tensor(&tape, 2);
        let scope = Scope::new(&tape, &params);
        let out = dit(&config, &scope, &x_in, &t, labels.as_ref());
        let plan = Plan::new(&tape, &[&out], &device);
        let mut program = Program::compile(&plan, &device, &[], Sharing::Shared).unwrap();
        nn::write_parameters(&program, &initial_of(&recipe, &params.borrow())).unwrap();
        program.write("x", &x).unwrap();
        program.write("t", &[500.0_f32, 3.0]).unwrap();
        program.write("labels", &[1_u32, 1000]).unwrap();
        program.run().unwrap();
        let out = program.read(&out).unwrap();
        let at = |n: usize, c: usize, y: usize, x: usize| f64::from(out[((n * 16 + y) * 16 + x) * 8 + c]);
        let close = |got: f64, wanted: f64| {
            let fine = (got - wanted).abs() <= 1e-5 * wanted.abs().max(1.0);
            assert!(fine, "{got}, wanted {wanted}, on {}", device.describe());
        };
        for i in 0..4 {
            close(at(0, 0, 0, i), numbers("first")[i]);
            close(at(1, 7, 15, 12 + i), numbers("last")[i]);
        }
        close(out.iter().map(|&v| f64::from(v).powi(2)).sum(), book["forward"]["squares"].as_f64().unwrap());

        // Its pipeline's picture of class 1 at scale 4, before the VAE: the last row of each channel.
        let scheduler = recipe.sampler("ddim").unwrap();
        let guidance = Guidance { scale: 4.0, ..Guidance::default() };
        let options = Options { guidance, ..Options::new(scheduler, 2, 0).with_rng(Rng::Torch) };
        let weights = program.store(nn::STORE).clone();
        let (model, shape, labels) = (model_of(&recipe), [16, 16, 4], Some(DType::U32));
        let (params, null) = (Rc::clone(&params), Some(1000));
        let denoiser =
            Denoiser { labels, null, ..Denoiser::new(device.clone(), &*model, params, weights, shape) };
        let mut sampler = Sampler::new(&denoiser, &options, 1).unwrap();
        let latents = sampler.run(0, &[1], |_, _, _| Ok(())).unwrap();
        let wanted: Vec<f64> = serde_json::from_value(book["guided_latents"].clone()).unwrap();
        for (i, wanted) in wanted.into_iter().enumerate() {
            close(f64::from(latents[(15 * 16 + 12 + i % 4) * 4 + i / 4]), wanted);
        }
    }
}

/// Every row of the table of the library's positions: `get_2d_sincos_pos_embed(16, 4)[1]`, the patch of row 0
/// and column 1.
#[test]
fn a_patch_knows_its_column_before_its_row() {
    let config = DitConfig {
        num_attention_heads: 1,
        attention_head_dim: 16,
        in_channels: 1,
        num_layers: 1,
        patch_size: 1,
        num_embeds_ada_norm: 0,
        ..DitConfig::default()
    };
    // With weights of zero nothing but positions, normalised, comes to the last layer, which takes one each.
    let wanted = [
        0.841471, 0.099833, 0.01, 0.001, 0.540302, 0.995004, 0.99995, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0,
        1.0,
    ];
    let mean = wanted.iter().sum::<f64>() / 16.0;
    let variance = wanted.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / 16.0;
    for device in devices() {
        for (channel, wanted) in wanted.iter().enumerate() {
            let (tape, params): (_, Rc<RefCell<Params>>) = (Tape::new(), Rc::default());
            let (x, t) = (tape.stored("x", 0, [1, 4, 4, 1]), tape.stored("t", 0, [1]));
            let out = dit(&config, &Scope::new(&tape, &params), &x, &t, None);
            let plan = Plan::new(&tape, &[&out], &device);
            let mut program = Program::compile(&plan, &device, &[], Sharing::Shared).unwrap();
            let params = params.borrow();
            let mut flat = vec![0.0; params.elements()];
            flat[params.find("proj_out_2.weight").unwrap().first + channel] = 1.0;
            nn::write_parameters(&program, &flat).unwrap();
            program.write("x", &[0.0_f32; 16]).unwrap();
            program.write("t", &[0.0_f32]).unwrap();
            program.run().unwrap();
            let got = f64::from(program.read(&out).unwrap()[1]);
            let wanted = (wanted - mean) / (variance + 1e-6).sqrt();
            assert!((got - wanted).abs() < 1e-5, "{channel}: {got}, {wanted}, on {}", device.describe());
        }
    }
}

const TINY: [&str; 22] = [
    "--set",
    "model=dit",
    "--set",
    "dit.num_layers=2",
    "--set",
    "dit.num_attention_heads=2",
    "--set",
    "dit.attention_head_dim=8",
    "--set",
    "batch_size=4",
    "--set",
    "sample_count=2",
    "--set",
    "sample_steps=2",
    "--set",
    "checkpoint_every=2",
    "--set",
    "dit.dropout=0.1",
    "--set",
    "dit.num_embeds_ada_norm=10",
    "--device",
    "cpu",
];

fn sample(at: &Path, of: &str, out: &str, more: &[&str]) -> Vec<u8> {
    let options = ["--steps", "2", "--count", "2", "--seed", "3", "--device", "cpu"];
    succeeds(at, &[&["sample", of, "--out", out][..], &options, more].concat());
    fs::read(at.join(out)).unwrap()
}

#[test]
fn a_dit_of_pixels_is_trained_sampled_exported_and_imported() {
    let folder = TempDir::new().unwrap();
    let at = folder.path();
    let train = ["train", "digits", "--steps", "2", "--out", "run"];
    let set = ["--set", "dit.in_channels=1", "--set", "dit.zero_init=false"];
    succeeds(at, &[&train[..], &TINY, &set].concat());
    succeeds(at, &["train", "--resume", "run", "--steps", "4", "--device", "cpu"]);
    let recipe = fs::read_to_string(at.join("run/recipe.toml")).unwrap();
    assert!(recipe.contains("model = \"dit\"") && !recipe.contains("[unet]"), "{recipe}");
    let three = sample(at, "run", "three.png", &["--class", "3"]);
    assert!(three != sample(at, "run", "four.png", &["--class", "4"]), "the class changes nothing");

    succeeds(at, &["export", "run", "out"]);
    assert!(sample(at, "out", "out.png", &["--class", "3"]) == three, "an exported folder samples otherwise");
    succeeds(at, &["import", "out", "again"]);
    assert!(
        sample(at, "again", "again.png", &["--class", "3"]) == three,
        "an imported run samples otherwise"
    );
    // Under the name of its older class.
    let config = at.join("out/config.json");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text.replace("DiTTransformer2DModel", "Transformer2DModel")).unwrap();
    assert!(sample(at, "out", "old.png", &["--class", "3"]) == three, "the older class samples otherwise");

    let fails_with = |set: &[&str], wanted: &str| {
        let set: Vec<&str> = set.iter().flat_map(|set| ["--set", *set]).collect();
        fails(
            at,
            &[&["train", "digits", "--out", "no", "--set", "model=dit"][..], &set].concat(),
            2,
            &[wanted],
        );
    };
    fails_with(&["dit.patch_size=3"], "images of 16x16 pixels are not made of patches of 3x3");
    fails_with(&["unet.dropout=0.1"], "unet has no meaning for model = dit");
    fails_with(
        &["dit.in_channels=1", "dit.attention_head_dim=3", "dit.num_attention_heads=2"],
        "is 6; it must be",
    );
    fails_with(&["dit.in_channels=1", "dit.out_channels=2"], "dit.out_channels is 2 for 1 channels");
    fails_with(&["dit.in_channels=1"], "dit.num_embeds_ada_norm is 1000 and the data has 10 classes");
    fs::write(at.join("both.toml"), "model = \"dit\"\n[unet]\ndropout = 0.1\n").unwrap();
    fails(at, &["train", "both.toml", "--out", "no"], 2, &["unet has no meaning for model = dit"]);
    assert!(!at.join("no").exists());
}

#[test]
fn a_dit_of_latents_becomes_the_librarys_pipeline() {
    let folder = TempDir::new().unwrap();
    let at = folder.path();
    let vae =
        ["train", "digits-kl", "--steps", "2", "--out", "vae", "--device", "cpu", "--set", "batch_size=2"];
    let small = ["vae.widths=[8,8,8]", "sample_count=2", "evaluate_count=2", "checkpoint_every=2"];
    let set: Vec<&str> = small.iter().flat_map(|set| ["--set", *set]).collect();
    succeeds(at, &[&vae[..], &set].concat());
    let train = ["train", "digits-ldm", "--vae", "vae", "--steps", "2", "--out", "run"];
    succeeds(
        at,
        &[
            &train[..],
            &TINY,
            &["--set", "dit.patch_size=4", "--set", "latent_count=4", "--set", "dit.zero_init=false"],
        ]
        .concat(),
    );
    succeeds(at, &["export", "run", "out"]);
    let index: Value =
        serde_json::from_str(&fs::read_to_string(at.join("out/model_index.json")).unwrap()).unwrap();
    assert_eq!(index["_class_name"], "DiTPipeline");
    assert_eq!(index["transformer"], serde_json::json!(["diffusers", "DiTTransformer2DModel"]));
    assert_eq!(index["vae"], serde_json::json!(["diffusers", "AutoencoderKL"]));
    assert_eq!(index["id2label"]["7"], "7");
    let three = sample(at, "run", "run.png", &["--class", "3"]);
    assert!(sample(at, "out", "out.png", &["--class", "3"]) == three, "an exported folder samples otherwise");
    succeeds(at, &["import", "out", "again"]);
    assert!(
        sample(at, "again", "again.png", &["--class", "3"]) == three,
        "an imported run samples otherwise"
    );
    let recipe = fs::read_to_string(at.join("again/recipe.toml")).unwrap();
    assert!(recipe.contains("class_names = ["), "{recipe}");

    // Twice the channels: the second half, a learned variance, is left out.
    copy(&at.join("out"), &at.join("learned"));
    let config = at.join("learned/transformer/config.json");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text.replace("\"out_channels\": 4", "\"out_channels\": 8")).unwrap();
    fails(at, &["sample", "learned", "--device", "cpu"], 1, &["proj_out_2.weight is [64, 16]"]);
    fs::remove_dir_all(at.join("learned/vae")).unwrap();
    let index = at.join("learned/model_index.json");
    let mut json: Value = serde_json::from_str(&fs::read_to_string(&index).unwrap()).unwrap();
    json.as_object_mut().unwrap().remove("vae");
    fs::write(&index, json.to_string()).unwrap();
    fails(at, &["sample", "learned", "--device", "cpu"], 1, &["it has no vae"]);
}

/// Report D's network, which has no counterpart in the library.
#[test]
fn a_plain_convolutional_net_is_trained_and_sampled() {
    let folder = TempDir::new().unwrap();
    let at = folder.path();
    let small = [
        "conv.width=8",
        "conv.norm_num_groups=4",
        "conv.num_layers=1",
        "conv.num_class_embeds=10",
        "batch_size=4",
    ];
    let small = small.into_iter().chain(["sample_count=2", "sample_steps=2"]);
    let set: Vec<&str> = small.flat_map(|set| ["--set", set]).collect();
    let train = ["train", "digits-conv", "--steps", "3", "--out", "run", "--device", "cpu"];
    succeeds(at, &[&train[..], &set].concat());
    let three = sample(at, "run", "three.png", &["--class", "3"]);
    assert!(three != sample(at, "run", "four.png", &["--class", "4"]), "the class changes nothing");
    succeeds(at, &["train", "--resume", "run", "--steps", "4", "--device", "cpu"]);
    fails(at, &["export", "run", "out"], 1, &["its network is one of denoir's own"]);
    let fails_with = |set, wanted: &str| {
        fails(at, &["train", "digits-conv", "--out", "no", "--set", set], 2, &[wanted]);
    };
    fails_with("conv.kernel_size=4", "conv.kernel_size is 4; it must be odd");
    fails_with("conv.width=12", "conv.norm_num_groups = 8 does not divide conv.width = 12");
    fails_with("conv.num_class_embeds=3", "conv.num_class_embeds is 3 and the data has 10 classes");
}
