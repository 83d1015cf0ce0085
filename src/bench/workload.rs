//! The workloads: what they compute, and on how much.

use std::cell::RefCell;
use std::path::Path;
use std::rc::Rc;

use crate::data::Batch;
use crate::device::Device;
use crate::diffusion::Model;
use crate::error::{Error, Result};
use crate::models::arena::{ArenaConfig, arena};
use crate::models::dit::DitConfig;
use crate::nn::Params;
use crate::optim::LrSchedule;
use crate::philox::{Stream, draw, uniform};
use crate::recipe::{self, Backbone, Recipe, System, model_of, params_of, params_of_model};
use crate::run::Run;
use crate::train::RecipeTrainer;

/// All workloads: name, the built-in recipe that it is or begins from, what it is, and the batch sizes on the
/// CPU device and on a GPU that its numbers are quoted for.
const FIXED: [(&str, &str, &str, [usize; 2]); 8] = [
    ("arena-unet", "celeba64", "the Inference Arena's U-Net, 32x32x4", [2, 2]),
    ("mnist-unet", "mnist", "pixel DDPM of the recipe mnist, 28x28x1", [16, 128]),
    ("celeba64-unet", "celeba64", "pixel DDPM of the recipe celeba64, 64x64x3", [4, 64]),
    ("ldm-unet", "celeba64-ldm", "U-Net of the recipe celeba64-ldm, latents 8x8x4", [64, 512]),
    ("vae64", "celeba64-vae", "VAE of the recipe celeba64-vae, 64x64x3", [8, 64]),
    ("mlp-vae", "mnist-mlp-vae", "VAE of the recipe mnist-mlp-vae, 28x28x1", [128, 128]),
    ("cifar10-unet", "cifar10", "pixel DDPM of the recipe cifar10, 32x32x3", [4, 128]),
    ("dit-s4", "celeba64-ldm", "DiT-S/4 without classes, latents 32x32x4", [4, 256]),
];

/// Largest batch that can be asked for.
const LARGEST_BATCH: usize = 65_536;

/// A model, and the numbers that a step of it runs on.
#[derive(Clone, Debug)]
pub struct Workload {
    /// Of the table, or of the recipe.
    pub name: String,
    /// Everything that decides its step, but for the network of the Inference Arena, which no recipe has.
    pub recipe: Recipe,
    is_arena: bool,
    /// The batch size on the CPU device, where the device does not decide it.
    cpu_batch: usize,
}

/// Names of all workloads.
pub(crate) fn names() -> impl Iterator<Item = &'static str> {
    FIXED.iter().map(|(name, ..)| *name)
}

/// All workloads, a line each, for help texts.
pub(crate) fn workloads() -> String {
    let rows = FIXED.map(|(name, _, about, [cpu, gpu])| format!("\n  {name:14} {about:48} {cpu}; {gpu}"));
    format!("Workloads (batch size on the CPU device; on a GPU):{}", rows.concat())
}

/// The workload called `name` for `device`. `batch`: instead of its own batch size.
///
/// # Errors
/// When there is none of that name, or the batch size is out of range.
pub fn find(name: &str, device: &Device, batch: Option<usize>) -> Result<Workload> {
    let Some((name, recipe, _, [on_cpu, on_gpu])) = FIXED.into_iter().find(|fixed| fixed.0 == name) else {
        let error = Error::usage(format!("no workload called {name:?}"));
        let all = names().collect::<Vec<_>>().join(", ");
        return Err(match recipe::nearest(name, names()) {
            Some(near) => error.hint(format!("did you mean {near}? There are {all}")),
            None => error.hint(format!("choose {all}")),
        });
    };
    let mut recipe = recipe::find(recipe)?;
    recipe.batch_size = batch.unwrap_or(if matches!(device, Device::Cpu(_)) { on_cpu } else { on_gpu });
    check_batch(recipe.batch_size)?;
    let is_arena = name == "arena-unet";
    if is_arena {
        recipe.image_size = 32;
        recipe.unet.in_channels = ArenaConfig::default().channels;
        recipe.unet.out_channels = recipe.unet.in_channels;
    }
    if name == "dit-s4" {
        recipe.latent_size = 32;
        recipe.model = Backbone::Dit;
        recipe.dit = DitConfig {
            num_attention_heads: 6,
            attention_head_dim: 64,
            num_layers: 12,
            patch_size: 4,
            num_embeds_ada_norm: 0,
            ..DitConfig::default()
        };
    }
    Ok(Workload::of(name.to_owned(), recipe, is_arena, on_cpu))
}

fn is_name(what: &str) -> bool {
    names().any(|name| name == what)
}

/// The run that is meant, where it is no workload.
pub(crate) fn run_of(what: &str) -> Option<Run> {
    Run::open(Path::new(what)).ok().filter(|_| !is_name(what))
}

/// A workload by name; else the recipe of a run folder.
pub(crate) fn find_or_run(what: &str, device: &Device, batch: Option<usize>) -> Result<Workload> {
    let folder = Path::new(what);
    if !is_name(what) && (folder.is_dir() || what.contains(['/', '\\'])) {
        return Workload::of_recipe(&Run::open(folder)?.recipe()?, batch);
    }
    find(what, device, batch)
}

fn check_batch(batch: usize) -> Result<()> {
    if (1..=LARGEST_BATCH).contains(&batch) {
        return Ok(());
    }
    Err(Error::usage(format!("--batch {batch}")).hint(format!("it must be from 1 to {LARGEST_BATCH}")))
}

impl Workload {
    /// A recipe's own step at its own batch size, on generated numbers.
    pub(crate) fn of_recipe(recipe: &Recipe, batch: Option<usize>) -> Result<Workload> {
        let mut recipe = recipe.clone();
        recipe.batch_size = batch.unwrap_or(recipe.batch_size);
        check_batch(recipe.batch_size)?;
        recipe.validate().map_err(Error::in_a_file)?;
        let cpu_batch = recipe.batch_size;
        Ok(Workload::of(recipe.name.clone(), recipe, false, cpu_batch))
    }

    fn of(name: String, mut recipe: Recipe, is_arena: bool, cpu_batch: usize) -> Workload {
        if recipe.system == System::Ldm {
            // The U-Net is nearly all of the work, and its latents are given as images.
            recipe.image_size = recipe.latent_size;
            recipe.system = System::Ddpm;
        }
        // The full learning rate from the first step on, so that a few steps show that it learns; and one
        // batch a step, so that a step is one program.
        recipe.lr_warmup = 0;
        recipe.lr_schedule = LrSchedule::Constant;
        recipe.kl_warmup = 0;
        recipe.accumulation = 1;
        recipe.flip = false;
        Workload { name, recipe, is_arena, cpu_batch }
    }

    /// The same with as many images as the CPU device computes in reasonable time.
    pub(super) fn for_comparison(&self) -> Workload {
        let mut small = self.clone();
        small.recipe.batch_size = self.batch().min(self.cpu_batch);
        small
    }

    /// Images of a step.
    pub fn batch(&self) -> usize {
        self.recipe.batch_size
    }

    pub(crate) fn is_vae(&self) -> bool {
        self.recipe.system == System::Vae
    }

    /// True if the network is given the timestep.
    pub(super) fn has_timestep(&self) -> bool {
        !self.is_vae() && !self.is_arena
    }

    /// The diffusion model.
    pub(super) fn model(&self) -> Box<Model> {
        if self.is_arena {
            return Box::new(|scope, x, _, _| arena(&ArenaConfig::default(), scope, x));
        }
        model_of(&self.recipe)
    }

    /// The parameters, with their names, shapes and places.
    pub fn params(&self) -> Rc<RefCell<Params>> {
        if self.is_arena || self.recipe.system.diffuses() {
            params_of_model(&self.recipe, &*self.model())
        } else {
            params_of(&self.recipe)
        }
    }

    /// `[H, W, C]` of its images, or of the latents that it takes for images.
    pub(super) fn image(&self) -> [usize; 3] {
        let [side, _, channels] = self.recipe.diffused();
        [side, side, if self.is_vae() { self.recipe.vae.in_channels } else { channels }]
    }

    /// The training step, as `denoir train` compiles it.
    pub(super) fn trainer(&self, device: &Device) -> Result<RecipeTrainer> {
        if self.is_arena {
            return RecipeTrainer::with_model(&self.recipe, device, self.model());
        }
        RecipeTrainer::new(&self.recipe, device, None, None)
    }

    /// The batch of every step: uniform numbers in [-1, 1], the same for image `i` of any batch.
    pub(super) fn data(&self) -> Batch {
        let [h, w, c] = self.image();
        let size = h * w * (c + self.recipe.condition.channels_of(c));
        let classes = self.recipe.trained_classes().0.max(1);
        let samples = (0..self.batch() as u64).collect();
        let mut batch = Batch { images: vec![0.0; self.batch() * size], labels: Vec::new(), samples };
        for (sample, image) in batch.images.chunks_exact_mut(size).enumerate() {
            for (block, four) in image.chunks_mut(4).enumerate() {
                let words = draw(0, Stream::Generate as u32, 0, sample as u32, block as u32);
                for (value, word) in four.iter_mut().zip(words) {
                    *value = 2.0 * uniform(word) - 1.0;
                }
            }
            batch.labels.push((sample % classes) as u32);
        }
        batch
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workloads_have_the_parameters_of_their_definition() {
        let cpu = Device::open("cpu").unwrap();
        // Counts of tools/reference, of Ho et al. 2020 for CIFAR-10, and of the Arena's page.
        let counts = [
            ("arena-unet", 5_294_080, [32, 32, 4]),
            ("mnist-unet", 1_707_009, [28, 28, 1]),
            ("celeba64-unet", 26_623_363, [64, 64, 3]),
            ("ldm-unet", 16_264_708, [8, 8, 4]),
            ("vae64", 4_039_115, [64, 64, 3]),
            ("mlp-vae", 1_068_820, [28, 28, 1]),
            ("cifar10-unet", 35_746_307, [32, 32, 3]),
            ("dit-s4", 35_227_840, [32, 32, 4]),
        ];
        assert!(names().eq(counts.map(|(name, ..)| name)));
        for (name, count, image) in counts {
            let workload = find(name, &cpu, None).unwrap();
            assert_eq!((workload.params().borrow().count(), workload.image()), (count, image), "{name}");
        }
    }

    #[test]
    fn a_wrong_name_or_batch_says_what_to_do() {
        let cpu = Device::open("cpu").unwrap();
        let says = |name: &str, batch, wanted: &str| {
            let error = find(name, &cpu, batch).expect_err("a usage error");
            assert!(error.exit_code() == 2 && error.report().contains(wanted), "{}", error.report());
        };
        says("mnist_unet", None, "did you mean mnist-unet?");
        says("something else", None, "choose arena-unet, mnist-unet");
        says("mlp-vae", Some(0), "from 1 to 65536");
    }
}
