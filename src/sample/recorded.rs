//! All that sampling runs, recorded for a device that is elsewhere, with the weights.

use super::step::{record_start, record_step};
use super::{Guidance, Options, Source};
use crate::device::{Buffer, Device};
use crate::diffusion::{Clip, SamplerPlan};
use crate::error::{Error, Result, need};
use crate::nn::{self, Flat, Params};
use crate::ops::arithmetic::affine;
use crate::tape::Tape;
use crate::text_model::TextModel;

/// Store of a VAE's parameters beside those of the model.
const VAE: &str = "vae";
/// Store of a text encoder's parameters, unless they are among those of the model.
const TEXT_ENCODER: &str = "text encoder";
/// Texts that are embedded together: a prompt and a negative one.
const TEXTS: usize = 2;

/// A flat store of parameters: its name and values.
type Weights = (&'static str, Vec<f32>);

/// The programs of sampling. They share stores: the samples `x [N, h, w, c]`, whose prediction lies first in
/// `kept`, `state`, the table `denoising`, and `labels`, `text` or `condition` where the model takes some.
pub(crate) struct Recorded {
    /// Writes the noise into `x`, times a factor (launch `affine`) unless that is 1 for all walks.
    pub start: Tape,
    /// A reverse step.
    pub step: Tape,
    /// The same with guidance, of models that know it: `labels [2 N]`, the second half without a class; so
    /// `condition`; and `text [2 N, ..]`, the second half of the negative text.
    pub guided: Option<Tape>,
    /// From latents `latents` to images `picture`.
    pub decode: Option<Tape>,
    /// From the tokens `ids [2, tokens]` of two texts to `texts`, what the model sees of them.
    pub text: Option<Tape>,
    pub weights: Vec<Weights>,
    /// Of the model, its VAE and its text encoder.
    pub parameters: usize,
    /// The tables of the walks, each of so many rows.
    pub tables: Vec<(usize, Vec<f32>)>,
    /// The factors of their noise.
    pub starts: Vec<f64>,
}

impl Source<'_> {
    /// Records sampling of `count` samples by any of the `walks`; `text`: the encoder of a model that sees
    /// texts.
    ///
    /// # Errors
    /// When the model cannot be asked so, or the walks cannot share a program.
    pub(crate) fn record_all(
        &self,
        walks: &[Options],
        count: usize,
        text: Option<&TextModel>,
    ) -> Result<Recorded> {
        let plans = walks.iter().map(Options::plan).collect::<Result<Vec<_>>>()?;
        for walk in walks {
            self.denoiser(walk)?;
        }
        let (denoiser, [h, w, c]) = (&self.denoiser, self.denoiser.shape);
        // A recording takes of a plan how many rows and slots it has, whether quantiles clip, and whether a
        // variance is learned, which a row without one may leave alone.
        let most = |of: fn(&SamplerPlan) -> usize| plans.iter().map(of).max().unwrap_or(0);
        let (rows, slots) = (most(|plan| plan.steps.len()), most(SamplerPlan::slots));
        let shared = plans.iter().find(|plan| plan.learns_variance()).or(plans.first());
        let Some(mut shared) = shared.cloned() else { return Err(Error::usage("no sampler to record")) };
        let quantiles = |plan: &SamplerPlan| matches!(plan.clip, Clip::Dynamic { .. }).then_some(plan.clip);
        let alike = plans.iter().all(|plan| quantiles(plan) == quantiles(&shared));
        need(alike, "the run's sampler clips by quantiles, the other does not", "choose another --sampler")?;
        shared.steps = shared.steps.iter().cycle().take(rows).cloned().collect();
        let network = denoiser.network();
        let record = |guidance| record_step(&network, &shared, slots, count, guidance).0;
        // The factor is a parameter of one launch, which is set before a run.
        let guidance = Guidance { scale: 2.0, ..walks[0].guidance };
        let start = plans.iter().any(|plan| plan.start != 1.0).then_some(1.0);
        let decode = self.codec.map(|codec| {
            let tape = Tape::new();
            let factor = (1.0 / self.recipe.scaling_factor) as f32;
            let latents = affine(&tape.stored("latents", 0, [count, h, w, c]), factor, 0.0);
            let picture = codec.recorded_decoder(&latents, VAE);
            tape.place(&picture, "picture", 0);
            tape
        });
        let store = match text {
            Some(text) if text.is_among(&denoiser.params) => nn::STORE,
            _ => TEXT_ENCODER,
        };
        let encode = text.map(|text| {
            let tape = Tape::new();
            tape.place(&text.recorded(&tape, TEXTS, store), "texts", 0);
            tape
        });
        // A recording asks for the parameters.
        let dropped = denoiser.condition.as_ref().is_some_and(|condition| condition.dropped);
        let guides = denoiser.null.is_some() || text.is_some() || dropped;
        let (step, guided) = (record(None), guides.then(|| record(Some(&guidance))));
        let (params, mut weights) = (denoiser.params.borrow(), Vec::new());
        weights.push((nn::STORE, values(&denoiser.device, &denoiser.weights, &params)?));
        let mut parameters = params.count();
        if let Some(codec) = self.codec {
            let params = codec.params().borrow();
            weights.push((VAE, values(codec.device(), codec.weights(), &params)?));
            parameters += params.count();
        }
        if let Some((device, params, buffer)) = text.filter(|_| store != nn::STORE).map(TextModel::parts) {
            weights.push((store, values(device, buffer, &params.borrow())?));
            parameters += params.borrow().count();
        }
        Ok(Recorded {
            start: record_start(denoiser.shape, count, start),
            step,
            guided,
            decode,
            text: encode,
            weights,
            parameters,
            tables: plans.iter().map(|plan| (plan.steps.len(), plan.table(false))).collect(),
            starts: plans.iter().map(|plan| plan.start).collect(),
        })
    }
}

fn values(device: &Device, weights: &Buffer, params: &Params) -> Result<Vec<f32>> {
    Ok(Flat::download(device, weights, params, 0..params.elements())?.into_f32())
}
