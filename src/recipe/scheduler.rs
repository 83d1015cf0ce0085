//! The process of a recipe and the sampler that walks it back.

use super::{Backbone, Recipe, System};
use crate::data::ConditionKind;
use crate::device::Precision;
use crate::diffusion::{Keys, Learned, Prediction, Process, Rounding, Schedule, Scheduler};
use crate::error::{Error, Result, need};

/// Sampler of a recipe that names none.
const DEFAULT: &str = "DDPMScheduler";

impl Recipe {
    fn process(&self) -> Process {
        Process {
            timesteps: self.timesteps,
            betas: self.betas(),
            beta_start: self.beta_start,
            beta_end: self.beta_end,
            zero_terminal_snr: self.rescale_betas_zero_snr,
            prediction: self.prediction_type,
        }
    }

    /// Takes over what a `scheduler_config.json` says, and as many steps as are usual for it.
    ///
    /// # Errors
    /// As [`Keys::scheduler`].
    pub fn set_scheduler(&mut self, keys: &Keys) -> Result<()> {
        let Learned { process, variance, clip } = keys.learned()?;
        self.sample_steps = keys.scheduler()?.usual_steps();
        self.timesteps = process.timesteps;
        self.beta_schedule = process.betas;
        self.beta_start = process.beta_start;
        self.beta_end = process.beta_end;
        self.rescale_betas_zero_snr = process.zero_terminal_snr;
        self.prediction_type = process.prediction;
        self.variance = variance;
        self.clip_sample = clip;
        self.class_defaults = keys.class_defaults();
        self.scheduler = keys.without_process();
        Ok(())
    }

    /// All that the recipe says of its sampler and process, as a `scheduler_config.json` has it.
    pub fn scheduler_keys(&self) -> Keys {
        let class = self.scheduler.class().unwrap_or(DEFAULT);
        let learned = Learned { process: self.process(), variance: self.variance, clip: self.clip_sample };
        self.scheduler.with_class(class).with_process(&learned).without(&self.class_defaults)
    }

    /// What training decides is no class's default from then on: the noise that the model learned.
    pub(crate) fn trains_on_its_schedule(&mut self) {
        self.class_defaults.retain(|key| !key.starts_with("beta_"));
    }

    /// The sampler of the run's own pictures.
    ///
    /// # Errors
    /// Names the key that is wrong; a valid recipe has none.
    pub fn scheduler(&self) -> Result<Scheduler> {
        self.scheduler_keys().scheduler()
    }

    /// The sampler of this name for the run's process. What the recipe says of its own goes on to hold where
    /// it means something.
    ///
    /// # Errors
    /// When no sampler is called so, or it cannot walk this process.
    pub fn sampler(&self, name: &str) -> Result<Scheduler> {
        self.scheduler_keys().with_sampler(name)?.scheduler()
    }

    /// The noise schedule.
    pub fn schedule(&self) -> Schedule {
        self.process().schedule(Rounding::Exact)
    }

    /// The noise schedule before `rescale_betas_zero_snr` moves it.
    pub(crate) fn schedule_without_rescaling(&self) -> Schedule {
        Process { zero_terminal_snr: false, ..self.process() }.schedule(Rounding::Exact)
    }

    /// Says that the model can be used but not trained, if so.
    pub(crate) fn check_trainable(&self) -> Result<()> {
        match self.system {
            System::Vae if self.has_codebook() => self.check_codebook(),
            System::Vae | System::Classifier => Ok(()),
            _ if self.condition.kind == ConditionKind::MaskedLatents => {
                Err(Error::usage("condition.kind is masked_latents: such a model can only be drawn from")
                    .hint("denoir fills holes of images that it trains on with condition.kind = mask"))
            }
            _ if self.learns_schedule() && self.precision != Precision::F32 => {
                let precision = self.precision.name();
                Err(Error::usage(format!(
                    "precision = {precision} is too coarse for a learned noise schedule"
                ))
                .hint("leave it out, or set learned_schedule = none"))
            }
            _ if self.rescale_betas_zero_snr && self.prediction_type == Prediction::Epsilon => {
                let message =
                    "rescale_betas_zero_snr ends in pure noise, and predicting noise teaches nothing there";
                Err(Error::usage(message).hint("set prediction_type = v_prediction (or sample)"))
            }
            _ if self.model == Backbone::Dit => {
                let ([_, _, channels], [_, out]) = (self.diffused(), self.model_channels());
                let message =
                    format!("dit.out_channels is {out} for {channels} channels: a learned variance");
                let fits = out == channels || self.variance.is_learned();
                need(fits, message, "set variance = learned_range to train it too")
            }
            _ if self.model == Backbone::Conv => Ok(()),
            _ => self.unet.check_trainable(self.timesteps),
        }
    }

    /// Says what is wrong with the schedule and the sampler.
    pub(crate) fn validate_process(&self) -> Result<()> {
        let schedule = self.schedule();
        let (timesteps, betas) = (self.timesteps, schedule.steps());
        let message = format!("beta_schedule has {betas} numbers and timesteps is {timesteps}");
        need(betas == timesteps, message, "it needs one for each timestep")?;
        let (first, last) = (schedule.alpha_bars[0], schedule.alpha_bars[timesteps - 1]);
        let message = format!("the schedule begins at alpha_bar = {first}, without any noise");
        need(first < 1.0, message, "the first beta must be above 0")?;
        let message = format!("the schedule ends at alpha_bar = {last:e}, which is nothing but noise in f32");
        let ends = last >= 1e-12 || self.rescale_betas_zero_snr && !last.is_nan();
        need(ends, message, "lower beta_end or timesteps")?;
        if let Some(key) = self.scheduler.of_process() {
            let message = format!("scheduler.{key}: the recipe has keys of its own for the process");
            return Err(Error::usage(message).hint(
                "they are timesteps, beta_start, beta_end, beta_schedule, rescale_betas_zero_snr, \
                 prediction_type, variance and clip_sample",
            ));
        }
        let named = |e: Error| Error::usage("the recipe's sampler is none that denoir has").caused_by(e);
        let scheduler = self.scheduler().map_err(named)?;
        let left = self.scheduler_keys().learned().map_err(named)?;
        need(
            self.class_defaults.is_empty() || (left.process, left.clip) == (self.process(), self.clip_sample),
            "class_defaults names keys that the recipe sets to other values than its sampler's class",
            "leave those keys out of class_defaults",
        )?;
        need(
            scheduler.draws_samples(),
            "DDIMInverseScheduler goes from a picture to its noise",
            "name the class that draws samples, DDIMScheduler for example",
        )?;
        // No sample is drawn of a classifier.
        if self.system == System::Classifier { Ok(()) } else { scheduler.plan(self.sample_steps).map(drop) }
    }
}

#[cfg(test)]
mod tests {
    use crate::diffusion::{Betas, Clip, Keys, Method, Prediction, Spacing, Variance};
    use crate::recipe::{Recipe, find, parse};

    fn with(config: &str) -> Recipe {
        let mut recipe = find("digits").unwrap();
        recipe.set_scheduler(&Keys::parse(config).unwrap()).unwrap();
        recipe.validate().unwrap();
        recipe
    }

    #[test]
    fn a_recipe_holds_what_a_file_says() {
        for config in [
            r#"{"_class_name": "DDPMScheduler"}"#,
            r#"{"_class_name": "DDPMScheduler", "variance_type": "fixed_large", "clip_sample_range": 2.5}"#,
            r#"{"_class_name": "DDIMScheduler", "trained_betas": [0.01, 0.02, 0.5], "set_alpha_to_one": false}"#,
            r#"{"_class_name": "DDIMScheduler", "beta_schedule": "squaredcos_cap_v2", "thresholding": true,
                "prediction_type": "v_prediction", "rescale_betas_zero_snr": true, "trained_betas": null}"#,
            r#"{"_class_name": "HeunDiscreteScheduler", "use_karras_sigmas": true}"#,
            r#"{"_class_name": "DPMSolverMultistepScheduler", "lambda_min_clipped": -Infinity, "solver_order": 3}"#,
            r#"{"_class_name": "UniPCMultistepScheduler", "disable_corrector": [0, 2], "sigma_min": 0.1}"#,
        ] {
            let keys = Keys::parse(config).unwrap();
            let mut wanted = keys.scheduler().unwrap();
            let recipe = with(config);
            assert_eq!(recipe.sample_steps, wanted.usual_steps());
            if config.contains("Heun") {
                // The class has other betas by default.
                assert_eq!([recipe.beta_start, recipe.beta_end], [0.000_85, 0.012]);
            }
            for recipe in [parse(&recipe.to_toml(), "test").unwrap(), recipe] {
                assert_eq!(recipe.scheduler().unwrap(), wanted, "{config}");
                // As a file of the same class, whoever reads it.
                let written = Keys::parse(&recipe.scheduler_keys().complete().unwrap().text()).unwrap();
                assert_eq!(written.scheduler().unwrap(), wanted, "{config}");
                assert_eq!(written.learned().unwrap(), keys.learned().unwrap(), "{config}");
                wanted.precision = crate::diffusion::Rounding::Exact;
            }
        }
        let plain = find("digits").unwrap();
        assert!(!plain.to_toml().contains("[scheduler]"), "ancestral sampling needs no table");
    }

    /// As `OtherScheduler.from_config(scheduler.config)` in the library.
    #[test]
    fn another_sampler_keeps_what_the_file_says() {
        let recipe = with(
            r#"{"_class_name": "PNDMScheduler", "beta_schedule": "scaled_linear", "beta_start": 0.00085,
            "beta_end": 0.012, "skip_prk_steps": true, "steps_offset": 1, "clip_sample": false,
            "prediction_type": "v_prediction", "timestep_spacing": "leading", "set_alpha_to_one": false}"#,
        );
        let ddim = recipe.sampler("ddim").unwrap();
        assert_eq!((ddim.clip, ddim.steps_offset, ddim.spacing), (Clip::None, 1, Spacing::Leading));
        assert_eq!((&ddim.process.betas, ddim.process.prediction), (&Betas::ScaledLinear, Prediction::V));
        assert_eq!(ddim.method, Method::Ddim { eta: 0.0, alpha_to_one: false, reclip: false });
        assert_eq!(recipe.sampler("euler").unwrap().spacing, Spacing::Leading);
        // What the file does not say has the default of the new class.
        let bare = with(r#"{"_class_name": "PNDMScheduler"}"#);
        assert_eq!(bare.sampler("euler").unwrap().spacing, Spacing::Linspace);
        assert_eq!(bare.sampler("ddim").unwrap().clip, Clip::At(1.0));
        let large = with(r#"{"_class_name": "DDIMScheduler", "variance_type": "fixed_large"}"#);
        assert_eq!(large.sampler("ddpm").unwrap().method, Method::Ddpm { variance: Variance::FixedLarge });
    }

    /// A file of one class that leaves clipping and betas to it, as the library reads it with another; until
    /// training, or `--set`, decides.
    #[test]
    fn what_a_file_leaves_to_its_class_another_class_decides() {
        let found = with(r#"{"_class_name": "DPMSolverMultistepScheduler"}"#);
        assert_eq!(found.class_defaults, ["beta_start", "beta_end", "clip_sample", "clip_sample_range"]);
        let heun = |recipe: &Recipe| {
            let recipe = parse(&recipe.to_toml(), "test").unwrap();
            let heun = recipe.sampler("heun").unwrap();
            ([heun.process.beta_start, heun.process.beta_end], heun.clip)
        };
        assert_eq!(heun(&found), ([0.000_85, 0.012], Clip::None));
        let mut trained = found.clone();
        trained.trains_on_its_schedule();
        assert_eq!(heun(&trained), ([1e-4, 0.02], Clip::None));
        for (assignment, wanted) in [
            ("clip_sample=1", ([0.000_85, 0.012], Clip::At(1.0))),
            ("clip_sample=0.5", ([0.000_85, 0.012], Clip::At(0.5))),
            ("beta_start=0.0002", ([0.0002, 0.012], Clip::None)),
            ("beta_end=0.03", ([0.000_85, 0.03], Clip::None)),
            ("beta_schedule=scaled_linear", ([0.000_85, 0.012], Clip::None)),
        ] {
            let mut recipe = found.clone();
            recipe.set(assignment).unwrap();
            assert_eq!(heun(&recipe), wanted, "{assignment}");
        }
        let edited = Recipe { beta_end: 0.03, ..found };
        assert!(edited.validate().unwrap_err().to_string().contains("class_defaults names keys"));
        let mut unclipped = with(r#"{"_class_name": "DDPMScheduler"}"#);
        unclipped.set("clip_sample=0").unwrap();
        assert_eq!(unclipped.scheduler().unwrap().clip, Clip::None);
        assert_eq!(unclipped.sampler("ddim").unwrap().clip, Clip::None);
    }

    #[test]
    fn what_no_sampler_can_do_is_refused() {
        for (assignment, wanted) in [
            ("rescale_betas_zero_snr=true", "cannot be left by predicting noise"),
            ("beta_schedule=quad", "does not fit"),
            ("beta_schedule=[0.1, 0.2]", "beta_schedule has 2 numbers and timesteps is 1000"),
            ("prediction_type=flow", "does not fit"),
        ] {
            let mut recipe = find("digits").unwrap();
            let error = recipe.set(assignment).and_then(|()| recipe.validate()).unwrap_err();
            assert!(error.to_string().contains(wanted), "{assignment}: {error}");
        }
        for (table, wanted) in [
            ("_class_name = \"DDIMInverseScheduler\"", "DDIMInverseScheduler goes from a picture"),
            ("_class_name = \"KDPM2DiscreteScheduler\"", "KDPM2DiscreteScheduler"),
            ("timestep_spacing = \"odd\"", "timestep_spacing"),
            ("beta_start = 0.1", "scheduler.beta_start: the recipe has keys of its own"),
        ] {
            let recipe = parse(&format!("{}[scheduler]\n{table}\n", "image_size = 16\n"), "test").unwrap();
            let error = recipe.validate().unwrap_err();
            assert!(error.report().contains(wanted), "{table}: {}", error.report());
        }
        let mut recipe = find("digits").unwrap();
        recipe.rescale_betas_zero_snr = true;
        assert!(recipe.check_trainable().unwrap_err().to_string().contains("teaches nothing"));
        let mut recipe = find("digits").unwrap();
        recipe.set("prediction_type=mean").unwrap();
        recipe.validate().unwrap();
        assert!(recipe.sampler("ddim").unwrap().plan(10).unwrap_err().to_string().contains("ancestral"));
    }
}
