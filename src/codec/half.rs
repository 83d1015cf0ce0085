//! The compiled encoder or decoder of a VAE.

use std::cell::RefCell;

use super::{BATCH, Codec};
use crate::error::Result;
use crate::nn;
use crate::program::{Plan, Program, Sharing, halves};
use crate::tape::{Tape, Tensor};

/// The compiled encoder or decoder for `samples` samples.
pub(super) struct Half {
    program: Program,
    out: Tensor,
    samples: usize,
    /// Height and width of the latents.
    size: [usize; 2],
    /// Samples asked for, of which a GPU may be able to bind fewer at a time.
    most: usize,
}

impl Codec {
    /// Runs the encoder or decoder over all samples. It is compiled at the first use, and for a larger batch.
    pub(super) fn in_batches(
        &self,
        half: &RefCell<Option<Half>>,
        input: &[f32],
        (of, size): ([usize; 2], usize),
        record: impl Fn(&Tape, usize) -> Tensor,
    ) -> Result<Vec<f32>> {
        assert!(input.len().is_multiple_of(size), "vae: {} values for samples of {size}", input.len());
        let most = (input.len() / size).clamp(1, BATCH.min(self.recipe.batch_size));
        let mut half = half.borrow_mut();
        let ready = match half.take() {
            Some(ready) if ready.most >= most && ready.size == of => ready,
            _ => {
                let (plan, (samples, out)) = Plan::of_batch(&self.device, halves(most), |samples| {
                    let tape = Tape::new();
                    let out = record(&tape, samples);
                    (Plan::new(&tape, &[&out], &self.device), (samples, out))
                });
                let bound = [(nn::STORE, &self.weights)];
                let program = Program::compile(&plan, &self.device, &bound, Sharing::Shared)?;
                Half { program, out, samples, size: of, most }
            }
        };
        let half = half.insert(ready);
        let mut results = Vec::new();
        for chunk in input.chunks(half.samples * size) {
            // The rest of a short chunk keeps the numbers of the chunk before, and its results are dropped.
            half.program.write_at("in", 0, chunk)?;
            half.program.run()?;
            let out = half.program.read(&half.out)?;
            let of_a_sample = out.len() / half.samples;
            results.extend_from_slice(&out[..chunk.len() / size * of_a_sample]);
        }
        Ok(results)
    }

    /// An error if `count` images of latents of this size are more than the device can decode.
    pub(crate) fn check_decode(&self, size: [usize; 2], count: usize) -> Result<()> {
        let most = count.clamp(1, BATCH.min(self.recipe.batch_size));
        let (plan, ()) = Plan::of_batch(&self.device, halves(most), |samples| {
            let tape = Tape::new();
            let out = self.record_decoder(&tape, samples, size);
            (Plan::new(&tape, &[&out], &self.device), ())
        });
        let fits = plan.check_bindings(&self.device);
        fits.and_then(|()| self.device.check_memory(plan.shared_bytes())).map_err(|e| {
            let [height, width, _] = self.image_of(size);
            e.within(format!("decoding {width}x{height} pixels"))
        })
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use super::*;
    use crate::device::Device;
    use crate::device::gpu::adapters;
    use crate::diffusers;

    #[test]
    fn what_cannot_be_decoded_is_told_before_it_is_drawn() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/tiny_sd");
        let vae = diffusers::open(&folder).unwrap().vae.unwrap();
        for adapter in adapters::list() {
            let mut gpu = adapters::open(Some(&adapter.index.to_string())).unwrap();
            gpu.use_max_binding(1 << 17);
            let codec = Codec::of_component(vae.clone(), &Device::Gpu(Arc::new(gpu))).unwrap();
            codec.check_decode([8, 8], 4).unwrap();
            let error = codec.check_decode([64, 32], 1).unwrap_err().to_string();
            assert!(
                error.starts_with("decoding 64x128 pixels: ") && error.contains("at most 128"),
                "{error}"
            );
        }
    }
}
