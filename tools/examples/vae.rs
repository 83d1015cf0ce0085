//! A variational autoencoder of generated digits: images to 8 numbers and back, and new digits from noise.
//!
//! `cargo run --release --example vae` writes `vae.png`.

use std::path::Path;

use denoir::data::{Resize, Split};
use denoir::figures::Sheet;
use denoir::prelude::*;

const SIDE: usize = 16;
const LATENT: usize = 8;
/// Digits of a batch, and of a row of the picture.
const BATCH: usize = 64;
const ROW: usize = 12;
const IMAGES: Input<f32, 4> = Input::new("images", [BATCH, SIDE, SIDE, 1]);

fn silu(x: &Tensor) -> Tensor {
    activation(x, Activation::Silu)
}

/// Mean and log-variance `[N, LATENT]` of images `[N, SIDE, SIDE, 1]`.
fn encode(s: &Scope, x: &Tensor) -> [Tensor; 2] {
    let halved = |out| Conv { stride: 2, ..Conv::same(out) };
    let h = silu(&conv(&s.sub("conv1"), x, halved(32), None, None));
    let h = silu(&conv(&s.sub("conv2"), &h, halved(64), None, None));
    let flat = h.reshape([x.dims()[0], h.elements() / x.dims()[0]]);
    [linear(&s.sub("mean"), &flat, LATENT), linear(&s.sub("log_var"), &flat, LATENT)]
}

/// Logits of pixels `[N, SIDE, SIDE, 1]` from latents `[N, LATENT]`.
fn decode(s: &Scope, z: &Tensor) -> Tensor {
    let small = SIDE / 4;
    let h = silu(&linear(&s.sub("in"), z, small * small * 64)).reshape([z.dims()[0], small, small, 64]);
    let h = silu(&conv(&s.sub("conv1"), &h, Conv::upsampled(32), None, None));
    conv(&s.sub("conv2"), &h, Conv::upsampled(1), None, None)
}

/// Kingma & Welling 2014 (arXiv:1312.6114), equation 7, per image.
fn evidence(s: &Scope, batch: &Batch) -> Loss {
    let images = batch.input(IMAGES);
    let [mean, log_var] = encode(&s.sub("encoder"), &images);
    let z = reparameterise(&mean, &log_var, Noise::Drawn(batch.state()));
    let logits = decode(&s.sub("decoder"), &z);
    let error = bce_with_logits(&logits, &affine(&images, 0.5, 0.5), None);
    let error = affine(&error, (SIDE * SIDE) as f32, 0.0);
    let kl = gaussian_kl(&mean, &log_var);
    Loss::from(add(&error, &kl)).with("reconstruction", &error).with("kl", &kl)
}

fn main() -> Result<()> {
    run(1500, "vae.png".as_ref())
}

/// Trains for so many steps, and draws digits, their reconstructions, and new ones.
pub fn run(steps: u64, picture: &Path) -> Result<()> {
    let options = TrainOptions { lr: 2e-3, steps, batch_size: BATCH, ..TrainOptions::default() };
    let mut trainer = Trainer::new(&Device::open("cpu")?, options, evidence)?;
    let digits = data::Options {
        image_size: SIDE,
        channels: Some(1),
        crop: None,
        resize: Resize::Bicubic,
        seed: 0,
        split: Split::Train,
    };
    let mut loader = Loader::new(data::open("digits", &digits)?, BATCH, 0, false, 0)?;
    while trainer.done() < steps {
        let digits = loader.next()?;
        match trainer.step(|batch| batch.write(IMAGES, &digits.images))? {
            Some(outcome) if outcome.step % 250 == 0 => println!("{outcome}"),
            _ => {}
        }
    }

    // The trained halves on a tape of their own, with the moving average of the weights.
    let tape = Tape::new();
    let scope = Scope::new(&tape, trainer.params());
    let images = tape.stored("images", 0, [ROW, SIDE, SIDE, 1]);
    let state = tape.stored_u32("state", [State::WORDS]);
    let [mean, _] = encode(&scope.sub("encoder"), &images);
    let noise = gaussian([ROW, LATENT], Stream::Start, &state);
    let logits = [mean, noise].map(|z| decode(&scope.sub("decoder"), &z));
    // 2 sigmoid(x) - 1 = tanh(x / 2)
    let decoded = logits.map(|logits| activation(&affine(&logits, 0.5, 0.0), Activation::Tanh));
    let [reconstructed, drawn] = &decoded;
    let plan = Plan::new(&tape, &[reconstructed, drawn], trainer.device());
    let weights = [(denoir::nn::STORE, trainer.ema())];
    let mut program = Program::compile(&plan, trainer.device(), &weights, Sharing::Shared)?;
    let mut rows = loader.next()?.images[..ROW * SIDE * SIDE].to_vec();
    program.write("images", &rows)?;
    program.write("state", &State { seed: 1, ..State::default() }.words())?;
    program.run()?;
    rows.extend(program.read(reconstructed)?);
    rows.extend(program.read(drawn)?);
    let row_labels = ["digits", "decoded", "drawn"].map(str::to_owned).to_vec();
    let sheet = Sheet { row_labels, ..Sheet::new(ROW) };
    save_png(picture, &sheet.draw(&rows, 3 * ROW, [SIDE, SIDE, 1]))?;
    println!("digits, their reconstructions, and digits from noise: {}", picture.display());
    Ok(())
}
