//! Initial values of parameters: denoir's own draws, and those of PyTorch.

use rayon::prelude::*;

use super::{Init, Params, Spec};
use crate::philox::{Stream, draw, normal, uniform};
use crate::torch::Generator;

impl Params {
    /// Initial values of all of them, drawn from `seed`; zero in the gaps.
    pub fn initial(&self, seed: u64) -> Vec<f32> {
        // Draws that a thread takes at once.
        const BLOCKS: usize = 4096;
        let mut values = vec![0.0; self.elements];
        for (number, spec) in self.specs.iter().enumerate() {
            let target = &mut values[spec.first..spec.first + spec.shape.elements()];
            let words = |block| draw(seed, Stream::Init as u32, number as u32, 0, block);
            target.par_chunks_mut(4 * BLOCKS).enumerate().for_each(|(part, target)| {
                for (block, target) in target.chunks_mut(4).enumerate() {
                    let block = part * BLOCKS + block;
                    let four = match spec.init {
                        Init::FanIn(fan) => {
                            words(block as u32).map(|w| (2.0 * uniform(w) - 1.0) / (fan as f32).sqrt())
                        }
                        Init::Normal(deviation) => normal(words(block as u32)).map(|v| deviation * v),
                        Init::Ones => [1.0; 4],
                        Init::Zeros => [0.0; 4],
                    };
                    target.copy_from_slice(&four[..target.len()]);
                }
            });
        }
        values
    }

    /// Initial values as PyTorch's default initialisation draws them from its CPU generator: parameter after
    /// parameter in the order of `rank`, each in the order of its elements in files. Norms draw nothing;
    /// layers that start from zero draw as the others do, so that those are what they would be without.
    pub fn initial_as_torch<K: Ord>(&self, seed: u64, rank: impl Fn(&str) -> K) -> Vec<f32> {
        let mut generator = Generator::new(seed);
        let mut values = vec![0.0; self.elements];
        let mut specs: Vec<&Spec> = self.specs.iter().collect();
        specs.sort_by_key(|spec| rank(&spec.name));
        for spec in specs {
            let target = &mut values[spec.first..spec.first + spec.shape.elements()];
            let mut drawn = vec![0.0; target.len()];
            match spec.init {
                Init::FanIn(fan) => generator.fill_uniform(&mut drawn, (1.0 / (fan as f64).sqrt()) as f32),
                Init::Normal(deviation) => {
                    generator.fill_normal(&mut drawn);
                    drawn.iter_mut().for_each(|v| *v *= deviation);
                }
                Init::Ones => drawn.fill(1.0),
                Init::Zeros if is_norm(&spec.name) => {}
                Init::Zeros => {
                    generator.fill_uniform(&mut drawn, 1.0);
                    drawn.fill(0.0);
                }
            }
            spec.for_each_index(|here, in_file| target[here] = drawn[in_file]);
        }
        values
    }
}

/// Whether a parameter is a norm's own: that of a layer beside it, such as `norm1.linear`, is not.
fn is_norm(name: &str) -> bool {
    name.rsplit('.').nth(1).is_some_and(|layer| layer.contains("norm"))
}
