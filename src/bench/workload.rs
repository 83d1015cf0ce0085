//! The workloads: what they compute, and on how much.

use std::cell::RefCell;
use std::path::Path;
use std::rc::Rc;

use crate::data::Batch;
use crate::device::Device;
use crate::diffusion::Model;
use crate::error::{Error, Result};
use crate::models::arena::{ArenaConfig, arena};
use crate::nn::Params;
use crate::optim::LrSchedule;
use crate::philox::{Stream, draw, uniform};
use crate::recipe::{self, Recipe, System, model_of, params_of, params_of_model};
use crate::run::Run;
use crate::train::RecipeTrainer;

/// A row of the table of workloads.
struct Fixed {
    name: &'static str,
    /// The built-in recipe that it is, or begins from.
    recipe: &'static str,
    cpu_batch: usize,
    gpu_batch: usize,
}

/// All workloads, with the batch sizes that their numbers are quoted for.
const FIXED: [Fixed; 7] = [
    Fixed { name: "arena-unet", recipe: "celeba64", cpu_batch: 2, gpu_batch: 2 },
    Fixed { name: "mnist-unet", recipe: "mnist", cpu_batch: 16, gpu_batch: 128 },
    Fixed { name: "celeba64-unet", recipe: "celeba64", cpu_batch: 4, gpu_batch: 64 },
    Fixed { name: "ldm-unet", recipe: "celeba64-ldm", cpu_batch: 64, gpu_batch: 512 },
    Fixed { name: "vae64", recipe: "celeba64-vae", cpu_batch: 8, gpu_batch: 64 },
    Fixed { name: "mlp-vae", recipe: "mnist-mlp-vae", cpu_batch: 128, gpu_batch: 128 },
    Fixed { name: "cifar10-unet", recipe: "cifar10", cpu_batch: 4, gpu_batch: 128 },
];

/// Largest batch that can be asked for.
const LARGEST_BATCH: usize = 65_536;

/// The network of a workload that no recipe has.
#[derive(Clone, Debug)]
enum Network {
    OfRecipe,
    Arena,
}

/// A model, and a batch for it.
#[derive(Clone, Debug)]
pub struct Workload {
    pub name: String,
    /// Everything that decides its step, but for the network where that is not the recipe's own.
    pub recipe: Recipe,
    network: Network,
    /// The batch size on the CPU device, where the device does not decide it.
    cpu_batch: usize,
}

/// Names of all workloads.
pub fn names() -> impl Iterator<Item = &'static str> {
    FIXED.iter().map(|fixed| fixed.name)
}

/// The workload called `name` for `device`. `batch`: instead of its own batch size.
///
/// # Errors
/// When there is none of that name, or the batch size is out of range.
pub fn find(name: &str, device: &Device, batch: Option<usize>) -> Result<Workload> {
    let Some(fixed) = FIXED.iter().find(|fixed| fixed.name == name) else {
        let error = Error::usage(format!("no workload called {name:?}"));
        let all = names().collect::<Vec<_>>().join(", ");
        return Err(match recipe::nearest(name, names()) {
            Some(near) => error.hint(format!("did you mean {near}? There are {all}")),
            None => error.hint(format!("choose {all}")),
        });
    };
    let mut workload = Workload::fixed(fixed)?;
    workload.recipe.batch_size = batch.unwrap_or(match device {
        Device::Cpu(_) => fixed.cpu_batch,
        Device::Gpu(_) => fixed.gpu_batch,
    });
    check_batch(workload.recipe.batch_size)?;
    Ok(workload)
}

/// A workload by name; else the recipe of a run folder.
///
/// # Errors
/// When `what` is neither, or the batch size is out of range.
pub fn find_or_run(what: &str, device: &Device, batch: Option<usize>) -> Result<Workload> {
    let folder = Path::new(what);
    let is_name = names().any(|name| name == what);
    if !is_name && (folder.is_dir() || what.contains(['/', '\\'])) {
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
    fn fixed(fixed: &Fixed) -> Result<Workload> {
        let mut recipe = recipe::find(fixed.recipe)?;
        let mut network = Network::OfRecipe;
        match fixed.name {
            "ldm-unet" => {
                // The latents are given, as images of 8x8x4.
                recipe.system = System::Ddpm;
                recipe.image_size = recipe.latent_size;
            }
            "arena-unet" => {
                let config = ArenaConfig::default();
                recipe.image_size = 32;
                recipe.unet.in_channels = config.channels;
                recipe.unet.out_channels = config.channels;
                network = Network::Arena;
            }
            _ => {}
        }
        Ok(Workload::of(fixed.name, recipe, network, fixed.cpu_batch))
    }

    /// A recipe's own step at its own batch size, on generated numbers.
    ///
    /// # Errors
    /// When it trains on the latents of a VAE by encoding images in each step, or the batch size is out of
    /// range.
    pub fn of_recipe(recipe: &Recipe, batch: Option<usize>) -> Result<Workload> {
        let mut recipe = recipe.clone();
        recipe.batch_size = batch.unwrap_or(recipe.batch_size);
        check_batch(recipe.batch_size)?;
        recipe.validate().map_err(Error::in_a_file)?;
        let batch = recipe.batch_size;
        if recipe.system == System::Ldm {
            // The U-Net is nearly all of the work, and its latents are given.
            recipe.image_size = recipe.latent_size;
            recipe.system = System::Ddpm;
        }
        let name = recipe.name.clone();
        Ok(Workload::of(&name, recipe, Network::OfRecipe, batch))
    }

    fn of(name: &str, mut recipe: Recipe, network: Network, cpu_batch: usize) -> Workload {
        // The full learning rate from the first step on, so that a few steps show that it learns; and one
        // batch a step, so that a step is one program.
        recipe.lr_warmup = 0;
        recipe.lr_schedule = LrSchedule::Constant;
        recipe.kl_warmup = 0;
        recipe.accumulation = 1;
        recipe.flip = false;
        Workload { name: name.to_owned(), recipe, network, cpu_batch }
    }

    /// As it is, with another batch size.
    #[must_use]
    pub fn with_batch(&self, batch: usize) -> Workload {
        let mut other = self.clone();
        other.recipe.batch_size = batch;
        other
    }

    /// The same with as many images as the CPU device computes in reasonable time.
    #[must_use]
    pub fn for_comparison(&self) -> Workload {
        self.with_batch(self.recipe.batch_size.min(self.cpu_batch))
    }

    pub fn batch(&self) -> usize {
        self.recipe.batch_size
    }

    pub fn is_vae(&self) -> bool {
        self.recipe.system == System::Vae
    }

    /// Whether the network is told the timestep.
    pub fn has_timestep(&self) -> bool {
        !self.is_vae() && matches!(self.network, Network::OfRecipe)
    }

    /// The diffusion model.
    pub fn model(&self) -> Box<Model> {
        match self.network {
            Network::OfRecipe => model_of(&self.recipe),
            Network::Arena => Box::new(|scope, x, _, _| arena(&ArenaConfig::default(), scope, x)),
        }
    }

    /// The parameters, with their names, shapes and places.
    pub fn params(&self) -> Rc<RefCell<Params>> {
        match self.network {
            Network::OfRecipe => params_of(&self.recipe),
            Network::Arena => params_of_model(&self.recipe, &*self.model()),
        }
    }

    /// `[H, W, C]` of its images, or of the latents that it takes for images.
    pub fn image(&self) -> [usize; 3] {
        if self.is_vae() {
            let side = self.recipe.image_size;
            return [side, side, self.recipe.vae.in_channels];
        }
        self.recipe.diffused()
    }

    /// The training step, as `denoir train` compiles it.
    ///
    /// # Errors
    /// As [`RecipeTrainer::new`].
    pub fn trainer(&self, device: &Device) -> Result<RecipeTrainer> {
        match self.network {
            Network::OfRecipe => RecipeTrainer::new(&self.recipe, device, None, None),
            Network::Arena => RecipeTrainer::with_model(&self.recipe, device, self.model()),
        }
    }

    /// The batch of every step: uniform numbers in [-1, 1], the same for image `i` of any batch.
    pub fn data(&self) -> Batch {
        let size: usize = self.image().iter().product();
        let classes = self.recipe.unet.num_class_embeds.max(1);
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
