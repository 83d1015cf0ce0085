//! What a session shows of its model while it trains: grids, strips and reconstructions, and a VAE's measures.

use super::evaluate::Evaluator;
use super::session::{Session, Watch};
use crate::codec::Codec;
use crate::error::{Error, Result};
use crate::figures;
use crate::sample::{Options, Source};

/// Rows of the strips.
const STRIPS: usize = 4;

pub(super) const BACKWARD: &str = "backward.png";

pub(super) fn grid_name(step: u64) -> String {
    format!("samples/step-{step:08}.png")
}

/// Ends a sampling process when the user wants to stop.
fn go_on(watch: &dyn Watch) -> Result<()> {
    if watch.interrupted() { Err(Error::new("interrupted")) } else { Ok(()) }
}

impl Session {
    /// The grid of samples, and at the end the backward strip. Pictures are not worth a run: what goes
    /// wrong here is told, and the training goes on (a broken device will say so in the next step).
    pub(super) fn pictures(&self, watch: &mut dyn Watch, last: bool) -> Result<()> {
        watch.doing(Some("sampling"));
        let made = match (&self.data.evaluator, &self.codec) {
            (Some(evaluator), Some(codec)) => self.reconstructions(evaluator, codec, watch),
            _ => self.grid(watch).and_then(|()| if last { self.backward_strip(watch) } else { Ok(()) }),
        };
        watch.doing(None);
        match made {
            Err(error) if !watch.interrupted() => {
                if last {
                    return Err(error);
                }
                watch.say(&format!("warning: no samples at this step: {error}"));
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Measures the VAE on held-out images, and remembers the result.
    pub(super) fn evaluate(&self, watch: &mut dyn Watch) -> Result<()> {
        let (Some(evaluator), Some(codec)) = (&self.data.evaluator, &self.codec) else { return Ok(()) };
        watch.doing(Some("evaluating"));
        let evaluation = evaluator.evaluate(codec, self.trainer.step())?;
        self.run.log_evaluation(&evaluation)?;
        watch.doing(None);
        watch.evaluated(&evaluation);
        Ok(())
    }

    /// Held-out images above their reconstructions, of a VAE.
    fn reconstructions(&self, evaluator: &Evaluator, codec: &Codec, watch: &mut dyn Watch) -> Result<()> {
        let picture = figures::pairs(codec, evaluator.images(self.recipe.sample_count))?.draw(None);
        let path = self.run.picture(&grid_name(self.trainer.step()), &picture)?;
        watch.say(&format!("reconstructions: {}", path.display()));
        Ok(())
    }

    fn source(&self) -> Source<'_> {
        self.trainer.source(self.codec.as_ref())
    }

    /// A grid of samples from the moving average, always from the same noise.
    fn grid(&self, watch: &mut dyn Watch) -> Result<()> {
        let (source, count) = (self.source(), self.recipe.sample_count);
        let images = source.draw(Options::of(&self.recipe), count, None, || go_on(watch))?;
        let picture = figures::grid(images, source.image()).draw(None);
        let path = self.run.picture(&grid_name(self.trainer.step()), &picture)?;
        watch.say(&format!("samples: {}", path.display()));
        Ok(())
    }

    pub(super) fn forward_strip(&self, watch: &mut dyn Watch) -> Result<()> {
        let source = self.source();
        let pixels: usize = source.image().iter().product();
        let mut images = vec![0.0; STRIPS * pixels];
        let count = self.data.dataset.len().unwrap_or(u64::MAX);
        for (i, out) in images.chunks_exact_mut(pixels).enumerate() {
            self.data.dataset.read(i as u64 % count, out)?;
        }
        let picture = figures::forward(&source, &images, self.recipe.seed)?.draw(None);
        let path = self.run.picture("forward.png", &picture)?;
        watch.say(&format!("forward process: {}", path.display()));
        Ok(())
    }

    fn backward_strip(&self, watch: &mut dyn Watch) -> Result<()> {
        let options = Options::of(&self.recipe);
        let picture = figures::backward(&self.source(), options, STRIPS, &mut || go_on(watch))?.draw(None);
        let path = self.run.picture(BACKWARD, &picture)?;
        watch.say(&format!("backward process: {}", path.display()));
        Ok(())
    }
}
