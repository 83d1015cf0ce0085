//! Autoencoders against PyTorch: image, latent, both terms of the loss and all gradients.
//! `tools/reference` makes the files.

use std::cell::RefCell;
use std::path::Path;
use std::rc::Rc;

use denoir::device::Device;
use denoir::models::codebook::quantise;
use denoir::models::vae::{Reconstruction, VaeConfig, decode, encode, image_of, loss};
use denoir::nn::{self, Params, Scope};
use denoir::ops::arithmetic::{add, affine};
use denoir::ops::gaussian_kl::gaussian_kl;
use denoir::ops::reparameterise::{Noise, reparameterise};
use denoir::program::{Plan, Program, Sharing};
use denoir::state::State;
use denoir::tape::{Tape, Tensor};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::reference::{
    Golden, Judge, check_names, devices, files, flat_gradients, flat_parameters, names, relative, to_f32,
};

fn parsed<T: DeserializeOwned>(value: &Value) -> T {
    serde_json::from_value(value.clone()).unwrap_or_else(|e| panic!("{value}: {e}"))
}

/// A tensor of the file as it lies here: images and image-like latents `[N, H, W, C]`, vectors as they are.
fn as_ours(golden: &Golden, name: &str) -> Vec<f64> {
    match golden.tensors[name].0.len() {
        4 => golden.nhwc(name).1,
        _ => golden.get(name).to_vec(),
    }
}

/// What a result is computed from besides itself: a few numbers, or one sum, can be right by luck in
/// PyTorch, but no more than what went in can be counted on.
fn depends_on(what: &str) -> &'static [&'static str] {
    match what {
        "mean" | "log_var" => &["mean", "log_var"],
        "z" => &["mean", "log_var", "z"],
        "reconstruction" => &["reconstruction", "out"],
        "kl" => &["kl", "mean", "log_var"],
        "loss" => &["loss", "reconstruction", "out", "kl", "mean", "log_var"],
        _ => &["out"],
    }
}

/// Everything that the file holds, computed from its parameters, images and noise.
fn check_vae(name: &str, golden: &Golden, device: &Device) {
    let config: VaeConfig = parsed(&golden.metadata["config"]);
    let reconstruction: Reconstruction = parsed(&golden.metadata["loss"]["reconstruction"]);
    let kl_weight: f32 = parsed(&golden.metadata["loss"]["kl_weight"]);
    let ([n, h, w, c], x) = golden.nhwc("in/x");

    let params: Rc<RefCell<Params>> = Rc::default();
    let tape = Tape::new();
    let state = tape.stored_u32("state", [State::WORDS]);
    let scope = Scope::training(&tape, &params, &state);
    let x_in = tape.stored("x", 0, [n, h, w, c]);
    let (mean, log_var) = encode(&config, &scope, &x_in);
    assert_eq!(log_var.is_some(), config.variational, "{name}: an autoencoder has no variance");
    let gaussian = log_var.map(|log_var| {
        let eps = tape.stored("eps", 0, mean.shape().clone());
        let z = reparameterise(&mean, &log_var, Noise::Given(&eps));
        let kl = gaussian_kl(&mean, &log_var);
        (log_var, z, kl)
    });
    let z = gaussian.as_ref().map_or(&mean, |(_, z, _)| z);
    let raw = decode(&config, &scope, z, [h, w, c]);
    let out = image_of(&config, &raw, reconstruction);
    let of_images = loss(&config, &raw, &x_in, reconstruction);
    let total = match &gaussian {
        Some((_, _, kl)) => add(&of_images, &affine(kl, kl_weight, 0.0)),
        None => of_images.clone(),
    };
    let dy = tape.stored("dy", 0, [1]);
    nn::place_gradients(&tape, &tape.backward_from(&total, &dy));

    // Without a posterior z is the mean, and the loss all that there is.
    let mut results: Vec<(&str, &Tensor)> =
        vec![("mean", &mean), ("out", &out), ("reconstruction", &of_images)];
    if let Some((log_var, z, kl)) = &gaussian {
        results.extend([("log_var", log_var), ("z", z), ("kl", kl), ("loss", &total)]);
    }
    let outputs: Vec<&Tensor> = results.iter().map(|(_, tensor)| *tensor).collect();
    let plan = Plan::new(&tape, &outputs, device);
    let mut program = Program::compile(&plan, device, &[], Sharing::Shared).unwrap();

    let params = params.borrow();
    nn::write_parameters(&program, &flat_parameters(name, golden, &params)).unwrap();
    program.write("x", &to_f32(&x)).unwrap();
    program.write("dy", &[1.0_f32]).unwrap();
    if config.variational {
        program.write("eps", &to_f32(&as_ours(golden, "in/eps"))).unwrap();
    }
    program.run().unwrap();

    let mut judge = Judge::new(name, golden, device);
    for (what, tensor) in results {
        let err = relative(&program.read(tensor).unwrap(), &as_ours(golden, &format!("f64/{what}")));
        judge.error(what, err, judge.error_of(depends_on(what)));
    }
    judge.gradients(&params, &flat_gradients(&program, &params), judge.error_of(&["out"]));
    judge.verdict();
}

#[test]
fn vaes_of_every_kind_with_all_gradients() {
    let files = files("vae_");
    assert!(files.len() >= 8, "{files:?}");
    for device in devices() {
        for name in &files {
            check_vae(name, &Golden::named(name), &device);
        }
    }
}

/// A VQModel in training: which codes its latents have, both halves of the loss and all gradients: those of
/// the codes too, and those of the encoder straight through the codebook.
#[test]
fn a_codebook_with_all_gradients() {
    let golden = Golden::named("vq_gradients.safetensors");
    let config: VaeConfig = parsed(&golden.metadata["config"]);
    let [weight, commitment]: [f32; 2] =
        ["weight", "commitment"].map(|key| parsed(&golden.metadata["loss"][key]));
    let ([n, h, w, c], x) = golden.nhwc("in/x");
    for device in devices() {
        let params: Rc<RefCell<Params>> = Rc::default();
        let tape = Tape::new();
        let state = tape.stored_u32("state", [State::WORDS]);
        let scope = Scope::training(&tape, &params, &state);
        let x_in = tape.stored("x", 0, [n, h, w, c]);
        let (z, _) = encode(&config, &scope, &x_in);
        let codes = quantise(&config, &scope, &z);
        let out = decode(&config, &scope, &codes.latents, [h, w, c]);
        let reconstruction = loss(&config, &out, &x_in, Reconstruction::Mse);
        let of_codes = affine(&codes.of_codes, weight, 0.0);
        let terms = add(&of_codes, &affine(&codes.commitment, weight * commitment, 0.0));
        let total = add(&reconstruction, &terms);
        nn::place_gradients(&tape, &tape.backward_from(&total, &tape.stored("dy", 0, [1])));
        let results = [
            ("z", &z),
            ("index", &codes.rows[1]),
            ("codebook", &codes.commitment),
            ("out", &out),
            ("reconstruction", &reconstruction),
            ("loss", &total),
        ];
        let plan = Plan::new(&tape, &results.map(|(_, tensor)| tensor), &device);
        let mut program = Program::compile(&plan, &device, &[], Sharing::Shared).unwrap();
        let params = params.borrow();
        nn::write_parameters(&program, &flat_parameters("vq_gradients", &golden, &params)).unwrap();
        program.write("x", &to_f32(&x)).unwrap();
        program.write("dy", &[1.0_f32]).unwrap();
        program.run().unwrap();
        let mut judge = Judge::new("vq_gradients", &golden, &device);
        for (what, tensor) in results {
            let err = relative(&program.read(tensor).unwrap(), &as_ours(&golden, &format!("f64/{what}")));
            let typical: &[&str] = match what {
                "index" => &[],
                "codebook" => &["codebook", "z"],
                _ => &["out", "z"],
            };
            judge.error(what, err, judge.error_of(typical).max(judge.error_of(&[what])));
        }
        judge.gradients(&params, &flat_gradients(&program, &params), judge.error_of(&["out"]));
        judge.verdict();
    }
}

/// For full sizes, whose files are not committed: `DENOIR_GOLDEN_VAE=FILE cargo test large_vae --
/// --ignored --nocapture`, with a file of `tools/reference/large_vae.py`.
#[test]
#[ignore = "needs a file of tools/reference/large_vae.py"]
fn large_vae() {
    let path = std::env::var_os("DENOIR_GOLDEN_VAE").expect("DENOIR_GOLDEN_VAE names the file");
    let golden = Golden::read(Path::new(&path));
    for device in devices() {
        check_vae(&path.to_string_lossy(), &golden, &device);
    }
}

#[test]
fn names_shapes_and_numbers_of_parameters() {
    let models = names("vae_names.json");
    for (model, entry) in &models {
        let config: VaeConfig = parsed(&entry["config"]);
        let side: usize = parsed(&entry["image_size"]);
        let image = [side, side, config.in_channels];
        let params: Rc<RefCell<Params>> = Rc::default();
        let tape = Tape::new();
        let scope = Scope::new(&tape, &params);
        let (mean, _) = encode(&config, &scope, &tape.stored("x", 0, [1, side, side, config.in_channels]));
        decode(&config, &scope, &mean, image);
        check_names(&models, model, &params.borrow());
    }
    assert_eq!(models["conv64"]["parameters"], 4_039_115);
    assert_eq!(models["mlp"]["parameters"], 1_068_820);
}
