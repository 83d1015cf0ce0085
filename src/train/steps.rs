//! The loop over a session's steps: data, metrics, checkpoints, pictures, interruption.

use std::time::{Duration, Instant};

use super::codes::{DISTANCE, PERPLEXITY};
use super::diffusion_loss::{BOUND, Quarters};
use super::encoded::Encoded;
use super::follower::{check_weights, saves};
use super::objective::{ACCURACY, KL, RECONSTRUCTION};
use super::outcome::{Ended, Outcome};
use super::session::{FORWARD, Session, Watch};
use super::step::{LOSS_SCALE, SKIPPED};
use super::times::Times;
use crate::checkpoint;
use crate::device::resident_memory;
use crate::error::Result;
use crate::recipe::{SampleEvery, System};
use crate::run::{Log, Metrics, seen};

/// Fewest steps between evaluations: a few dozen pictures are seen in one.
const SHORTEST_EPOCH: u64 = 100;
/// Steps between evaluations where data has no end.
const ENDLESS_EPOCH: u64 = 1000;
/// Evaluations of a run that is long enough: what is plotted is a curve.
const FEWEST_EVALUATIONS: u64 = 8;

/// State of a session's log besides the steps' outcomes.
struct Progress {
    log: Log,
    began: Instant,
    /// Steps done before.
    first: u64,
    /// Images of a step.
    per_step: u64,
    quarters: Option<Quarters>,
    /// What the run took before: seconds in all, images, and the seconds that they took.
    seconds: f64,
    images: u64,
    busy: f64,
}

impl Progress {
    /// Of a session that begins after `first` steps. A resumed run goes on from its last metrics.
    fn new(session: &Session, first: u64) -> Result<Progress> {
        let last = session.run.metrics()?.pop().filter(|last| last.images_per_s > 0.0);
        let images = last.as_ref().map_or(0, |last| seen(&session.batches, last.step));
        Ok(Progress {
            log: session.run.log()?,
            began: Instant::now(),
            first,
            per_step: session.recipe.images_of_a_step(),
            quarters: Quarters::of(&session.recipe),
            seconds: last.as_ref().map_or(0.0, |last| last.seconds),
            images,
            busy: last.map_or(0.0, |last| images as f64 / last.images_per_s),
        })
    }
}

impl Session {
    /// Trains to the recipe's last step.
    ///
    /// # Errors
    /// When a loss is not finite, or data, disk or driver report an error. The last checkpoint is kept.
    pub fn train(&mut self, watch: &mut dyn Watch) -> Result<Ended> {
        let trained = self.train_steps(watch);
        // The other ranks wait until this one is through.
        let ranks = self.data.ranks.as_ref().filter(|ranks| !ranks.have_failed());
        let trained = match ranks {
            Some(ranks) => ranks.agree(trained, |_| Vec::new()).map(|(ended, told)| {
                // What the others have to say of their data.
                let told = told.concat();
                String::from_utf8_lossy(&told).lines().for_each(|line| watch.message(line));
                ended
            }),
            None => trained,
        };
        trained.map_err(|error| {
            // A checkpoint may be on its way. The first error is the one to tell.
            while self.writer.finish(|_| ()).is_err() {}
            error.caused_by(match self.run.checkpoints().as_deref() {
                Ok([.., (step, _)]) => format!("the checkpoint of step {step} is kept"),
                Ok([]) => "there is no checkpoint yet".to_owned(),
                Err(unknown) => unknown.to_string(),
            })
        })
    }

    fn train_steps(&mut self, watch: &mut dyn Watch) -> Result<Ended> {
        let recipe = self.recipe.clone();
        let first = self.trainer.done();
        let mut progress = Progress::new(self, first)?;
        self.board = recipe.tensorboard.then(|| self.run.board(first, &recipe)).transpose()?;
        let per_step = progress.per_step;
        let epoch = match (recipe.evaluate_every, self.data.dataset.len()) {
            (0, images) => {
                let pass = images.map_or(ENDLESS_EPOCH, |images| images.div_ceil(per_step));
                // At most a few hundredths of the time, where an image of training costs three.
                let cheap = (11 * recipe.evaluate_count as u64).div_ceil(per_step);
                pass.min(recipe.steps / FEWEST_EVALUATIONS).max(SHORTEST_EPOCH).max(cheap)
            }
            (every, _) => every,
        };
        self.notes.drain(..).for_each(|note| watch.message(&note));
        self.finish_last_step(watch)?;
        if self.is_stopped(watch) {
            self.written(watch)?;
            return Ok(Ended::Interrupted(first));
        }
        while self.trainer.done() < recipe.steps {
            let stepped = self.step(&mut progress, watch);
            let step = self.trainer.done();
            let stop = self.is_stopped(watch);
            let last = step == recipe.steps;
            let saves = saves(&recipe, step, stop);
            let draws = recipe.system != System::Classifier;
            let samples = draws && recipe.sample_every.is_due(step, recipe.steps);
            let evaluates = last || step.is_multiple_of(epoch);
            // Whatever is done with the weights of a step waits for the step's numbers.
            let all = stepped.is_err() || saves || samples || evaluates;
            let collected = if all { self.collect(&mut progress, watch) } else { Ok(()) };
            collected.and(stepped)?;
            for warning in self.data.dataset.warnings() {
                if self.warned.insert(warning.clone()) {
                    watch.message(&format!("warning: {warning}"));
                }
            }
            if self.write_latents() {
                self.data.load(&recipe, seen(&self.batches, step), self.trainer.is_resident())?;
            }
            if step == 1 && recipe.system.diffuses() && recipe.sample_every != SampleEvery::Never {
                self.forward_strip()?;
            }
            if let (Some(ranks), true) = (&self.data.ranks, saves) {
                check_weights(ranks, &self.trainer)?;
            }
            let evaluated = if evaluates { self.evaluate(watch) } else { Ok(()) };
            if saves || evaluated.is_err() {
                self.save(watch)?;
            }
            evaluated?;
            if samples && !stop {
                self.pictures(watch, last)?;
            }
            if self.is_stopped(watch) {
                self.collect(&mut progress, watch)?;
                if !saves {
                    self.save(watch)?;
                }
                self.written(watch)?;
                return Ok(Ended::Interrupted(step));
            }
        }
        let skipped = self.data.dataset.skipped();
        if skipped > 0 {
            watch.message(&format!("unreadable pictures: {skipped} (others stood in for them)"));
        }
        self.complete_latents(watch)?;
        self.written(watch)?;
        Ok(Ended::Done)
    }

    /// Whether training stops after this step: the user wants it, or, of several ranks, all know that one is
    /// to stop.
    fn is_stopped(&self, watch: &mut dyn Watch) -> bool {
        let wanted = watch.interrupted();
        let Some(ranks) = &self.data.ranks else { return wanted };
        if wanted {
            ranks.stop();
        }
        ranks.is_stopping()
    }

    /// Does what the last step had still to do when a program was stopped.
    fn finish_last_step(&mut self, watch: &mut dyn Watch) -> Result<()> {
        let done = self.trainer.done();
        let lacks_strip = !self.run.folder().join(FORWARD).exists();
        let draws = self.recipe.system.diffuses() && self.recipe.sample_every != SampleEvery::Never;
        if done > 0 && lacks_strip && draws {
            self.forward_strip()?;
        }
        if std::mem::take(&mut self.owes_pictures) {
            self.pictures(watch, done >= self.recipe.steps)?;
        }
        Ok(())
    }

    /// Encodes the images that no step of this process met, where steps have met all, so that the file of
    /// their latents is there as if the run had not been stopped.
    fn complete_latents(&mut self, watch: &mut dyn Watch) -> Result<()> {
        let met = seen(&self.batches, self.trainer.done());
        let (Some(Encoded::Some(growing)), Some(codec)) = (&mut self.data.encoded, &self.codec) else {
            return Ok(());
        };
        if growing.samples() > met {
            return Ok(());
        }
        watch.doing(Some("encoding"));
        growing.encode_all(codec, &mut |_, _| ())?;
        watch.doing(None);
        self.write_latents();
        Ok(())
    }

    /// Has the latents written once all are there; whether they are.
    fn write_latents(&mut self) -> bool {
        let Some(latents) = Encoded::grown(&mut self.data.encoded) else { return false };
        let path = self.run.latents_path();
        self.writer.give(move || latents.save(&path).map(|()| None));
        true
    }

    /// Hands the next step to the device, and tells the numbers of a step that are there.
    fn step(&mut self, progress: &mut Progress, watch: &mut dyn Watch) -> Result<()> {
        let (mut waited, mut ready) = (Duration::ZERO, None);
        let before = Instant::now();
        let stepped = self.trainer.step(|| {
            let examples = Times::during(&mut waited, || self.data.next(self.codec.as_ref()));
            ready.get_or_insert_with(Instant::now);
            examples
        });
        self.times.data += waited;
        self.times.steps += before.elapsed().saturating_sub(waited);
        let first = &mut self.times.first_step;
        *first = first.or(ready.map(|ready| [ready, Instant::now()]));
        match stepped? {
            Some(outcome) => self.report(outcome, progress, watch),
            None => Ok(()),
        }
    }

    /// Waits for all steps, and tells their numbers.
    fn collect(&mut self, progress: &mut Progress, watch: &mut dyn Watch) -> Result<()> {
        while let Some(outcome) = Times::during(&mut self.times.steps, || self.trainer.collect())? {
            self.report(outcome, progress, watch)?;
        }
        Ok(())
    }

    fn report(&mut self, outcome: Outcome, progress: &mut Progress, watch: &mut dyn Watch) -> Result<()> {
        let Times { steps, data, log, first_step, skipped, .. } = &mut self.times;
        *skipped += u64::from(!outcome.grad_norm.is_finite());
        let done = outcome.step - progress.first;
        if let Some([_, ended]) = first_step.as_mut().filter(|_| done == 1) {
            *ended = Instant::now();
        }
        let classifies = self.recipe.system == System::Classifier;
        let by_t =
            progress.quarters.as_ref().and_then(|quarters| quarters.means(&outcome.samples, &outcome.times));
        let metrics = Metrics {
            step: outcome.step,
            loss: outcome.loss,
            reconstruction: outcome.part(RECONSTRUCTION),
            kl: outcome.part(KL),
            codebook: outcome.part(DISTANCE),
            perplexity: outcome.part(PERPLEXITY),
            accuracy: outcome.part(ACCURACY),
            loss_by_t: by_t.filter(|_| !classifies).map(|(plain, _)| plain),
            accuracy_by_t: by_t.filter(|_| classifies).map(|(right, _)| right),
            weighted_by_t: by_t.and_then(|(_, weighted)| weighted),
            bound: outcome.part(BOUND),
            loss_scale: outcome.part(LOSS_SCALE),
            skipped: outcome.part(SKIPPED),
            grad_norm: Some(outcome.grad_norm).filter(|norm| norm.is_finite()),
            lr: outcome.lr,
            device_ms: outcome.device_ms,
            memory_mb: resident_memory().map(|bytes| bytes as f64 * 1e-6),
            images_per_s: (progress.images + done * progress.per_step) as f64
                / (progress.busy + (*steps + *data).as_secs_f64()),
            seconds: progress.seconds + progress.began.elapsed().as_secs_f64(),
        };
        watch.step(&metrics);
        Times::during(log, || {
            progress.log.line(&metrics)?;
            self.board.as_ref().map_or(Ok(()), |board| board.scalars(metrics.step, &metrics.scalars()))
        })?;
        self.writer.look(|line| watch.message(line))
    }

    /// Waits until all is on the disk.
    fn written(&mut self, watch: &mut dyn Watch) -> Result<()> {
        watch.doing(Some("writing"));
        let written = self.writer.finish(|line| watch.message(line));
        watch.doing(None);
        written
    }

    /// Has a copy of the state written while training goes on. There is one such copy at a time.
    fn save(&mut self, watch: &mut dyn Watch) -> Result<()> {
        let before = Instant::now();
        self.written(watch)?;
        watch.doing(Some("saving"));
        let (step, values) = (self.trainer.done(), self.trainer.values()?);
        self.recipe.set_learned_schedule(&self.trainer.params().borrow(), &values.sets[1]);
        let (run, recipe, params) =
            (self.run.clone(), self.recipe.clone(), self.trainer.params().borrow().clone());
        self.writer.give(move || {
            values.check_finite(step)?;
            checkpoint::save(&run.checkpoint_path(step), &params, step, Some(&recipe), &values)?;
            Ok(run.prune(recipe.keep_checkpoints).err().map(|error| format!("warning: {error}")))
        });
        watch.doing(None);
        self.times.checkpoints += before.elapsed();
        Ok(())
    }
}
