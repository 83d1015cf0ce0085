//! `denoir encode` and `denoir decode`

use std::path::{Path, PathBuf};

use super::on::On;
use super::output::{Target, check_folder_of};
use super::{bar, note, print};
use crate::codec::Codec;
use crate::data::{Split, open_for, read_picture};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::figures;
use crate::latent_file;

#[derive(clap::Args)]
pub struct EncodeArguments {
    /// A run of a VAE or of latent diffusion, or a VAE's checkpoint
    run: PathBuf,
    /// Pictures, or data: digits, faces, mnist:DIR, cifar10:DIR or images:DIR [default: the VAE's own]
    input: Vec<String>,
    /// How many images of the data [default: all, or 64 of data without end]
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    count: Option<u64>,
    /// Write latents drawn from the posterior instead of its mean
    #[arg(long)]
    draw: bool,
    /// Of the draws
    #[arg(long, default_value_t = 0)]
    seed: u64,
    #[arg(long, default_value = "latents.safetensors")]
    out: PathBuf,
    #[command(flatten)]
    on: On,
}

#[derive(clap::Args)]
pub struct DecodeArguments {
    /// A run of a VAE or of latent diffusion, or a VAE's checkpoint
    run: PathBuf,
    /// A file that `denoir encode` wrote
    latents: PathBuf,
    /// A grid (FILE.png; the bare image when there is one), or a folder for a file an image
    #[arg(long, default_value = "decoded.png")]
    out: PathBuf,
    #[command(flatten)]
    on: On,
}

/// Images read between two reports of progress.
const BLOCK: usize = 64;

pub fn encode(arguments: &EncodeArguments) -> Result<()> {
    let out = &arguments.out;
    check_folder_of(out)?;
    if out.is_dir() {
        return Err(Error::new(format!("{} is a folder", out.display())).hint("name a file"));
    }
    latent_file::check_replaceable(out)?;
    let codec = Codec::open(&arguments.run, &arguments.on.open()?)?;
    let mut posterior = crate::codec::Posterior { mean: Vec::new(), log_var: None };
    for_images(arguments, &codec, |images| {
        let part = codec.encode(images)?;
        posterior.mean.extend(part.mean);
        if let Some(log_var) = part.log_var {
            posterior.log_var.get_or_insert_default().extend(log_var);
        }
        Ok(())
    })?;
    let latents = match (arguments.draw, &posterior.log_var) {
        (true, Some(_)) => figures::draw(&codec, &posterior, arguments.seed),
        (true, None) => {
            return Err(Error::usage("--draw: an autoencoder has nothing to draw from").hint("leave it out"));
        }
        (false, _) => posterior.mean.clone(),
    };
    latent_file::write(out, &codec, &latents, &posterior)?;
    print(&format!("{}\n", out.display()))
}

/// Hands over the images in blocks.
fn for_images(
    arguments: &EncodeArguments,
    codec: &Codec,
    mut take: impl FnMut(&[f32]) -> Result<()>,
) -> Result<()> {
    let recipe = codec.recipe();
    let [side, _, channels] = codec.image();
    let crop = (recipe.crop > 0).then_some(recipe.crop);
    let is_file = |input: &String| Path::new(input).is_file();
    if !arguments.input.is_empty() && arguments.input.iter().all(is_file) {
        if arguments.count.is_some() {
            return Err(Error::usage("--count goes with data, not with pictures").hint("leave it out"));
        }
        for input in &arguments.input {
            take(&read_picture(Path::new(input), side, channels, crop, recipe.resize)?)?;
        }
        return Ok(());
    }
    let spec = match &arguments.input[..] {
        [] => &recipe.data,
        [spec] => spec,
        several => {
            let missing = several.iter().find(|i| !is_file(i)).unwrap_or(&several[0]);
            return Err(
                Error::usage(format!("{missing} is no picture")).hint("give picture files, or one data SPEC")
            );
        }
    };
    let data = open_for(spec, recipe.pictures(channels), Split::Train)?;
    let count = match (data.len(), arguments.count) {
        (Some(len), wanted) => {
            if wanted.is_some_and(|wanted| wanted > len) {
                note(&format!("note: the data holds {len} images"));
            }
            wanted.unwrap_or(len).min(len)
        }
        (None, wanted) => wanted.unwrap_or(64),
    };
    // Latents, their moments and the file, and a block of images.
    let numbers = 8 * count * codec.latent().iter().product::<usize>() as u64;
    Device::open("cpu")?.check_memory(4 * (numbers + (BLOCK * side * side * channels) as u64))?;
    let progress = bar(count, "encoding {bar:30} {pos}/{len} {eta} left");
    let pixels = side * side * channels;
    let mut images = vec![0.0; BLOCK * pixels];
    let mut first = 0;
    while first < count {
        let n = (count - first).min(BLOCK as u64) as usize;
        for (i, out) in images[..n * pixels].chunks_exact_mut(pixels).enumerate() {
            data.read(first + i as u64, out)?;
        }
        take(&images[..n * pixels])?;
        first += n as u64;
        progress.set_position(first);
    }
    progress.finish_and_clear();
    for warning in data.warnings() {
        note(&format!("warning: {warning}"));
    }
    Ok(())
}

pub fn decode(arguments: &DecodeArguments) -> Result<()> {
    let out = Target::new(&arguments.out)?;
    let codec = Codec::open(&arguments.run, &arguments.on.open()?)?;
    let images = codec.decode(&latent_file::read(&arguments.latents, &codec)?)?;
    if images.iter().any(|v| !v.is_finite()) {
        return Err(Error::new("the decoded images are not finite numbers")
            .hint("the latents are far from any that the VAE was trained on"));
    }
    let count = images.len() / codec.image().iter().product::<usize>();
    out.write(&images, count, codec.image())
}
