//! How samples begin with a picture, and keep a part of it.

use super::begin::{Begin, Kept};
use super::{Options, Sampler, Source};
use crate::data::ConditionKind;
use crate::error::{Result, need};
use crate::philox::{Stream, fill_normal};
use crate::state::State;

impl Source<'_> {
    /// The same, whose samples begin with a `picture` `[H, W, C]` of any size that the model has, `[H, W]` of
    /// it. `holes`, of so many pixels: where it is made anew. Of the steps a share `strength` is taken, which
    /// the options are told.
    ///
    /// # Errors
    /// When the model does not begin with pictures, no step is left, or memory is too small.
    pub fn beginning_with(
        self,
        picture: &[f32],
        size: [usize; 2],
        holes: Option<&[bool]>,
        strength: f64,
        options: &mut Options,
    ) -> Result<Self> {
        let kind = self.recipe.condition.kind;
        let fills = kind == ConditionKind::MaskedLatents;
        let hint = "give the picture as a condition";
        need(fills || kind == ConditionKind::None, "the model draws from conditions", hint)?;
        let hint = "say by a mask where they are";
        need(holes.is_some() || !fills, "the model fills holes of a picture", hint)?;
        let message = format!("a strength of {strength}");
        need((0.0..=1.0).contains(&strength), message, "it must be from 0 to 1")?;
        // As in the library.
        let taken = ((options.steps as f64 * strength) as usize).min(options.steps);
        let message = format!("a strength of {strength} takes none of {} steps", options.steps);
        need(taken > 0, message, "raise one of them")?;
        options.first = options.steps - taken;
        let mut source = self.resized(size);
        if source.recipe.unet.sees_text() {
            let [h, w, _] = source.denoiser.shape;
            source.recipe.unet.validate([h, w])?;
        }
        let known = |is_kept: bool, v: f32| if is_kept { v } else { 0.0 };
        let masked = holes.filter(|_| fills).map(|holes| {
            let channels = picture.len() / holes.len();
            let pixels = picture.chunks_exact(channels).zip(holes);
            let known = pixels.flat_map(|(pixel, hole)| pixel.iter().map(move |v| known(!hole, *v)));
            source.latents_of(&known.collect::<Vec<f32>>())
        });
        let [h, w, _] = source.denoiser.shape;
        let nearest = |holes: &[bool], i: usize| holes[i / w * size[0] / h * size[1] + i % w * size[1] / w];
        let mask = holes.map(|holes| (0..h * w).map(|i| f32::from(nearest(holes, i))).collect());
        let (latents, masked) = (source.latents_of(picture)?, masked.transpose()?);
        source.codec.inspect(|codec| codec.free_programs());
        let from_noise = holes.is_some() && options.first == 0;
        source.denoiser.begin = Some(Begin { latents, mask, masked, from_noise });
        Ok(source)
    }
}

impl Sampler {
    /// Writes what samples number `first` and on begin with.
    pub(super) fn begin(&mut self, first: u32) -> Result<()> {
        self.kept = None;
        if let Some(torch) = &mut self.torch {
            torch.generator = crate::torch::Generator::new(self.state.seed);
        }
        let Some(begin) = self.begin.clone() else {
            if self.torch.is_none() {
                return self.draw_start(first);
            }
            let noise = self.normal(first, Stream::Start)?;
            return self.write_scaled(&noise, self.plan.start);
        };
        // In the order of the library's draws.
        let sees = begin.masked.is_some();
        let size = self.x.elements() / self.batch;
        let mut latents = None;
        if !(begin.from_noise && sees) {
            let eps = self.posterior(first, Stream::Posterior, begin.latents.mean.len() / size)?;
            latents = Some(begin.latents.at(first as usize, size, &eps));
        }
        let noise = self.normal(first, Stream::Start)?;
        if let Some(mask) = &begin.mask {
            let eps = self.posterior(first, Stream::Condition, begin.latents.mean.len() / size)?;
            if let (Some(masked), Some(condition)) = (&begin.masked, &mut self.condition) {
                let known = masked.at(first as usize, size, &eps);
                let c = size / mask.len();
                // The mask, then the latents, of each pixel.
                let pixels = known.chunks_exact(c).zip(mask.iter().cycle());
                let values = pixels.flat_map(|(pixel, m)| std::iter::once(m).chain(pixel)).copied();
                condition.values = values.collect();
                condition.first = first as usize;
            }
        }
        match &latents {
            Some(latents) if !begin.from_noise => {
                let [a, b] = levels(self.plan.steps[0].alpha_bar);
                let x: Vec<f32> = latents.iter().zip(&noise).map(|(z, n)| a * z + b * n).collect();
                self.step.write("x", &x)?;
            }
            _ => self.write_scaled(&noise, self.plan.start)?,
        }
        // A model that sees the picture needs none of it brought back.
        let kept = latents.filter(|_| begin.mask.is_some() && !sees);
        self.kept = kept.map(|latents| Kept { latents, noise });
        Ok(())
    }

    /// Brings the latents that the mask keeps back, at the noise level of the row after `row`.
    pub(super) fn keep(&mut self, row: usize) -> Result<()> {
        let (Some(kept), Some(mask)) = (&self.kept, self.begin.as_ref().and_then(|b| b.mask.as_ref())) else {
            return Ok(());
        };
        let [a, b] = self.plan.steps.get(row + 1).map_or([1.0, 0.0], |step| levels(step.alpha_bar));
        let mut x = self.current()?;
        let c = x.len() / self.batch / mask.len();
        for (i, x) in x.iter_mut().enumerate() {
            let m = mask[i / c % mask.len()];
            *x = (1.0 - m) * (a * kept.latents[i] + b * kept.noise[i]) + m * *x;
        }
        self.step.write("x", &x)
    }

    /// The next normal numbers for the latents of `pictures` that samples from `first` on begin with in turn.
    fn posterior(&mut self, first: u32, stream: Stream, pictures: usize) -> Result<Vec<f32>> {
        let Some(torch) = &mut self.torch else { return self.normal(first, stream) };
        // The library draws for each picture, and repeats its latents.
        let (all, size) = (torch.draw_of(pictures), self.x.elements() / self.batch);
        let of = |i: usize| &all[(first as usize + i) % pictures * size..][..size];
        Ok((0..self.batch).flat_map(of).copied().collect())
    }

    /// The next normal numbers of samples from `first` on, `[N, h, w, c]`.
    fn normal(&mut self, first: u32, stream: Stream) -> Result<Vec<f32>> {
        if let Some(torch) = &mut self.torch {
            return Ok(torch.draw(first as usize, self.batch));
        }
        if stream as u32 == Stream::Start as u32 {
            self.draw_start(first)?;
            let start = self.plan.start as f32;
            return Ok(self.current()?.into_iter().map(|v| v / start).collect());
        }
        let size = self.x.elements() / self.batch;
        let mut all = vec![0.0; self.x.elements()];
        for (sample, values) in (first..).zip(all.chunks_exact_mut(size)) {
            fill_normal(values, self.state.seed, stream as u32, 0, sample, 0);
        }
        Ok(all)
    }

    /// Has the device draw the noise.
    fn draw_start(&mut self, first: u32) -> Result<()> {
        self.noise.write("state", &State { first_sample: first, ..self.state }.words())?;
        self.noise.run()
    }

    fn write_scaled(&mut self, noise: &[f32], start: f64) -> Result<()> {
        let start = start as f32;
        self.step.write("x", &noise.iter().map(|v| v * start).collect::<Vec<f32>>())
    }
}

/// Factors of an image and of noise at this level.
fn levels(alpha_bar: f64) -> [f32; 2] {
    [alpha_bar.sqrt() as f32, (1.0 - alpha_bar).sqrt() as f32]
}
