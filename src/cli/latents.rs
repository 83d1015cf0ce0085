//! `denoir encode` and `denoir decode`

use std::path::PathBuf;

use super::device_args::DeviceArgs;
use super::images::Input;
use super::output::{Target, check_folder_of};
use super::{any, print};
use crate::codec::Codec;
use crate::error::{Error, Result};
use crate::figures;
use crate::latent_file;

#[derive(clap::Args)]
pub struct EncodeArguments {
    /// A run of a VAE or of latent diffusion, or a VAE's checkpoint
    run: PathBuf,
    #[command(flatten)]
    input: Input,
    /// Write latents drawn from the posterior instead of its mean
    #[arg(long)]
    draw: bool,
    /// Of the draws
    #[arg(long, default_value_t = 0, value_parser = any::<u64>)]
    seed: u64,
    #[arg(long, default_value = "latents.safetensors")]
    out: PathBuf,
    #[command(flatten)]
    device: DeviceArgs,
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
    device: DeviceArgs,
}

pub fn encode(arguments: &EncodeArguments) -> Result<()> {
    let out = &arguments.out;
    check_folder_of(out)?;
    latent_file::check_replaceable(out)?;
    let codec = Codec::open(&arguments.run, &arguments.device.open()?)?;
    let mut posterior = crate::codec::Posterior { mean: Vec::new(), log_var: None };
    // Latents, their moments and the file.
    let numbers = 8 * codec.latent().iter().product::<usize>();
    arguments.input.for_each(codec.recipe(), codec.image(), numbers, "encoding", |images| {
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

pub fn decode(arguments: &DecodeArguments) -> Result<()> {
    let out = Target::new(&arguments.out)?;
    let codec = Codec::open(&arguments.run, &arguments.device.open()?)?;
    let images = codec.decode(&latent_file::read(&arguments.latents, &codec)?)?;
    if images.iter().any(|v| !v.is_finite()) {
        return Err(Error::new("the decoded images are not finite numbers").hint(
            "decode latents that `denoir encode` made with this run: these are far from all of its training",
        ));
    }
    let count = images.len() / codec.image().iter().product::<usize>();
    out.write(&images, count, codec.image())
}
