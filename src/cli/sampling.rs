//! How samples are drawn: the flags of every command that draws some.

use super::{any, named};
use crate::diffusion::{self, Method, Sigmas, Spacing};
use crate::error::{Error, Result};
use crate::recipe::{Recipe, Rng};
use crate::sample::inversion::InversionConfig;
use crate::sample::{Guidance, Options};

/// Sampler, steps, random numbers and guidance.
#[derive(clap::Args)]
pub struct Sampling {
    /// The same seed gives the same samples; the recipe's own otherwise
    #[arg(long, value_parser = any::<u64>)]
    seed: Option<u64>,
    /// How to walk back: ddpm (with the recipe's variance), ddpm-small, ddpm-large, ddim, euler, euler-a,
    /// heun, lms, dpmpp-2m, dpmpp-2m-sde, dpmpp-3m, pndm, plms, unipc or unipc-3 [default: the recipe's,
    /// which is ddpm where it has no table `[scheduler]`; the folder's own]
    #[arg(long)]
    sampler: Option<String>,
    /// Steps down [default: all timesteps for ddpm, 50 for the others]
    #[arg(long, value_parser = any::<usize>)]
    steps: Option<usize>,
    /// How much noise ddim adds: 0 none, 1 as much as ddpm
    #[arg(long)]
    eta: Option<f64>,
    /// Which timesteps are visited: leading, trailing or linspace [default: the sampler's own]
    #[arg(long, value_parser = named::<Spacing>)]
    spacing: Option<Spacing>,
    /// Noise levels of euler, euler-a, heun, lms, dpmpp and unipc: karras or exponential [default: those of
    /// the timesteps]
    #[arg(long, value_parser = ["karras", "exponential"])]
    sigmas: Option<String>,
    /// Random numbers: denoir's, or those of torch's CPU generator with the reference library's rounding, so
    /// that a seed gives the reference's pictures
    #[arg(long, default_value = "denoir", value_parser = named::<Rng>)]
    rng: Rng,
    /// Classifier-free guidance: u + S (c - u) of the predictions c with the class and u without, so that 1
    /// is none and 0 is without the class (the w of the paper is S - 1) [default: the recipe's]
    #[arg(long, value_name = "S")]
    guidance: Option<f64>,
    /// Bring guided predictions back to the deviation of those that are not: 0 not at all, 1 wholly [default:
    /// the recipe's]
    #[arg(long, value_name = "PHI")]
    guidance_rescale: Option<f64>,
    /// Guide only where the noise's deviation, in units of the image, is above LOW and at most HIGH
    #[arg(long, value_name = "LOW:HIGH")]
    guidance_interval: Option<String>,
}

impl Sampling {
    /// The options that the flags make of a recipe's own. `config`: how the noise was found that samples
    /// begin with.
    ///
    /// # Errors
    /// When a flag does not fit the recipe.
    pub fn options(&self, recipe: &Recipe, config: Option<&InversionConfig>) -> Result<Options> {
        let mut scheduler = match (self.sampler.as_deref(), config) {
            // `--sampler ddim` is what --noise means anyway.
            (None | Some("ddim"), Some(config)) => config.options(recipe, "ddim")?.scheduler,
            (Some(name), _) => recipe.sampler(name)?,
            (None, None) => recipe.scheduler()?,
        };
        if !scheduler.draws_samples() {
            return Err(Error::usage("--sampler ddim-inverse goes from a picture to its noise")
                .hint(format!("to draw samples choose {}", diffusion::names().join(", "))));
        }
        if let Some(given) = self.eta {
            let Method::Ddim { eta, .. } = &mut scheduler.method else {
                let own = recipe.scheduler_keys().sampler();
                let sampler = self.sampler.as_ref().unwrap_or(&own);
                return Err(Error::usage(format!("--eta has no meaning for {sampler}"))
                    .hint("it goes with --sampler ddim"));
            };
            if !(0.0..=1.0).contains(&given) {
                return Err(Error::usage(format!("--eta {given}")).hint("it must be from 0 to 1"));
            }
            *eta = given;
        }
        scheduler.spacing = self.spacing.unwrap_or(scheduler.spacing);
        match self.sigmas.as_deref() {
            Some("karras") => scheduler.sigmas = Sigmas::Karras,
            Some(_) => scheduler.sigmas = Sigmas::Exponential,
            None => {}
        }
        let timesteps = recipe.timesteps;
        // A pipeline of texts has its own number, whichever the sampler.
        let own = if recipe.text_width() > 0 { recipe.sample_steps } else { scheduler.usual_steps() };
        let usual = || config.map_or(own, |config| config.steps);
        let steps = self.steps.unwrap_or_else(usual);
        if steps == 0 || steps > timesteps {
            return Err(
                Error::usage(format!("--steps {steps}")).hint(format!("it must be from 1 to {timesteps}"))
            );
        }
        let seed = self.seed.unwrap_or(recipe.seed);
        let guidance = self.guidance(recipe, config.is_some())?;
        let options = Options { guidance, ..Options::new(scheduler, steps, seed) }.with_rng(self.rng);
        // An error appears before the work begins.
        options.scheduler.plan(steps)?;
        Ok(options)
    }

    fn guidance(&self, recipe: &Recipe, found: bool) -> Result<Guidance> {
        let mut recipe = recipe.clone();
        if found {
            // It was found without.
            recipe.guidance = 1.0;
        }
        recipe.guidance = self.guidance.unwrap_or(recipe.guidance);
        recipe.guidance_rescale = self.guidance_rescale.unwrap_or(recipe.guidance_rescale);
        // The keys' own limits, and what the model must have been trained with.
        recipe.validate()?;
        let Guidance { scale, rescale, sigmas } = Guidance::of(&recipe);
        let bad = |text: &str| {
            Error::usage(format!("--guidance-interval {text}"))
                .hint("give two noise levels, such as 0.3:5: from 0 on, and the second above the first")
        };
        let sigmas = match &self.guidance_interval {
            None => sigmas,
            Some(text) => {
                let (low, high) = text.split_once(':').ok_or_else(|| bad(text))?;
                let sigma = |part: &str| part.trim().parse::<f64>().map_err(|_| bad(text));
                let (low, high) = (sigma(low)?, sigma(high)?);
                if !(0.0..high).contains(&low) {
                    return Err(bad(text));
                }
                [low, high]
            }
        };
        let guided = (scale != 0.0 && scale != 1.0)
            || self.guidance_interval.is_none() && self.guidance_rescale.is_none_or(|rescale| rescale == 0.0);
        if !guided {
            return Err(Error::usage("--guidance-rescale and --guidance-interval say how to guide")
                .hint("give --guidance too, such as --guidance 2, or leave them out"));
        }
        Ok(Guidance { scale, rescale, sigmas })
    }
}
