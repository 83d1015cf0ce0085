//! Pictures of a model in training: grids, strips and reconstructions, and a VAE's measures.

use std::time::Instant;

use super::picture_cost::PictureCost;
use super::session::{BACKWARD, FORWARD, Session, Watch, grid_name};
use crate::error::{Error, Result};
use crate::figures::{self, Drawing};
use crate::run::Scalar;
use crate::sample::{Options, Source};

/// Rows of the strips.
pub(super) const STRIPS: usize = 4;

/// Ends a sampling process when the user wants to stop.
fn go_on(watch: &dyn Watch) -> Result<()> {
    if watch.interrupted() { Err(Error::new("interrupted")) } else { Ok(()) }
}

fn missing(error: &Error) -> String {
    format!("warning: no samples at this step: {error}")
}

/// A picture to be drawn and written, and what to call it to the user.
struct Picture {
    what: String,
    name: String,
    drawing: Drawing,
}

impl Session {
    /// The grid of samples, and at the end the backward strip. Pictures are not worth a run: what goes
    /// wrong here is told, and the training goes on (a broken device will say so in the next step).
    pub(super) fn pictures(&mut self, watch: &mut dyn Watch, last: bool) -> Result<()> {
        watch.doing(Some("sampling"));
        let before = Instant::now();
        self.trainer.note_schedule(&mut self.recipe)?;
        let drawn = self.draw_pictures(watch, last);
        watch.doing(None);
        self.times.pictures += before.elapsed();
        match drawn {
            Ok(pictures) => pictures.into_iter().for_each(|picture| self.write(picture, last)),
            Err(_) if watch.interrupted() => {}
            Err(error) if last => return Err(error),
            Err(error) => watch.message(&missing(&error)),
        }
        Ok(())
    }

    fn draw_pictures(&self, watch: &dyn Watch, last: bool) -> Result<Vec<Picture>> {
        let (count, name) = (self.recipe.sample_count, grid_name(self.trainer.done()));
        if let (Some(evaluator), Some(codec)) = (&self.data.evaluator, &self.codec) {
            let drawing = figures::pairs(codec, evaluator.images(count)?)?;
            return Ok(vec![Picture { what: "reconstructions".to_owned(), name, drawing }]);
        }
        // From the moving average, and always from the same noise.
        let (source, options) = (self.source()?, Options::of(&self.recipe)?);
        let images = source.draw(&options, count, None, || go_on(watch))?;
        let quality = source.describe_quality(&images).map(|quality| format!(" ({quality})"));
        let what = format!("samples{}", quality.unwrap_or_default());
        let drawing = figures::samples(&source, images);
        let mut pictures = vec![Picture { what, name, drawing }];
        if last {
            let drawing = figures::backward(&source, &options, STRIPS, &mut || go_on(watch))?;
            pictures.push(Picture {
                what: "backward process".to_owned(),
                name: BACKWARD.to_owned(),
                drawing,
            });
        }
        Ok(pictures)
    }

    /// What the pictures cost that are still to be drawn, where that is worth telling.
    ///
    /// # Errors
    /// As [`Options::of`].
    pub fn picture_cost(&self) -> Result<Option<PictureCost>> {
        let (done, operations) = (self.trainer.done(), self.trainer.operations());
        PictureCost::new(&self.recipe, self.trainer.device(), done, STRIPS, operations)
    }

    /// Measures the model on held-out images, and remembers the result.
    pub(super) fn evaluate(&mut self, watch: &mut dyn Watch) -> Result<()> {
        let (before, step) = (Instant::now(), self.trainer.done());
        watch.doing(Some("evaluating"));
        self.trainer.note_schedule(&mut self.recipe)?;
        match (&self.data.evaluator, &self.data.held_out, &self.codec) {
            (Some(evaluator), _, Some(codec)) => {
                let evaluation = evaluator.evaluate(codec, step)?;
                self.run.log_evaluation(&evaluation)?;
                self.show(step, &evaluation.scalars())?;
                watch.evaluated(&evaluation);
            }
            (_, Some(held_out), _) => {
                let loss = held_out.measure(&self.source_of(held_out.prompts())?, &self.recipe, step)?;
                self.run.log_evaluation(&loss)?;
                self.show(step, &loss.scalars())?;
                watch.held_out_loss(&loss);
            }
            _ => {}
        }
        self.times.evaluations += before.elapsed();
        watch.doing(None);
        Ok(())
    }

    /// Passes numbers on to TensorBoard.
    fn show(&self, step: u64, scalars: &[Scalar]) -> Result<()> {
        self.board.as_ref().map_or(Ok(()), |board| board.scalars(step, scalars))
    }

    /// Has a picture drawn and written. If it cannot be, that is an error only where it is `needed`.
    fn write(&mut self, Picture { what, name, drawing }: Picture, needed: bool) {
        let (run, board, step) = (self.run.clone(), self.board.clone(), self.trainer.done());
        let written = move || {
            let path = run.picture(&name, &drawing.draw(None))?;
            if let Some(board) = board {
                // `samples` of samples/step-00000100.png.
                let tag = name.split(['/', '.']).next().unwrap_or(&name);
                board.picture(step, tag, &path)?;
            }
            Ok(path)
        };
        self.writer.give(move || match written() {
            Ok(path) => Ok(Some(format!("{what}: {}", path.display()))),
            Err(error) if needed => Err(error),
            Err(error) => Ok(Some(missing(&error))),
        });
    }

    fn source(&self) -> Result<Source<'_>> {
        self.source_of(None)
    }

    /// `prompts`: of its samples, of a model that sees texts; the captions of the first images otherwise.
    fn source_of(&self, prompts: Option<Vec<String>>) -> Result<Source<'_>> {
        let source = self.trainer.captioned_source(self.codec.as_ref(), prompts)?;
        Ok(match &self.data.given {
            Some(given) => source.conditioned_on(given.clone()),
            None => source,
        })
    }

    /// The first images at rising noise levels. No step needs it, so the first one does not wait for it.
    pub(super) fn forward_strip(&mut self) -> Result<()> {
        let before = Instant::now();
        self.trainer.note_schedule(&mut self.recipe)?;
        let source = self.source()?;
        let pixels: usize = source.image().iter().product();
        let mut images = vec![0.0; STRIPS * pixels];
        let count = self.data.dataset.len().unwrap_or(u64::MAX);
        for (i, out) in images.chunks_exact_mut(pixels).enumerate() {
            self.data.dataset.read(i as u64 % count, out)?;
        }
        let drawing = figures::forward(&source, &images, self.recipe.seed)?;
        self.times.pictures += before.elapsed();
        self.write(Picture { what: "forward process".to_owned(), name: FORWARD.to_owned(), drawing }, true);
        Ok(())
    }
}
