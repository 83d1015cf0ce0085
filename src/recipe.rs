//! Recipes: everything that decides a training run, as one flat table; the built-in ones, TOML files, and
//! `--set`.

mod built_in;
mod choices;
mod differences;
mod explained;
mod find;
mod images;
mod keys;
mod learned;
mod model;
mod ranges;
mod sample_every;
mod scheduler;
mod set;
mod system;
mod tables;
mod text;
mod validate;
mod written;

pub(crate) use built_in::built_in;
pub use choices::{Codebook, Latents, LossKind, Optimizer, Property, Rng};
pub(crate) use differences::{Difference, differences};
pub(crate) use explained::{Explained, explain};
pub use find::{find, parse};
pub use model::{Backbone, initial_of, model_of, params_of};
pub(crate) use model::{TEXT_MODULE, params_of_model, trained_params_of};
pub use sample_every::SampleEvery;
pub(crate) use set::{nearest, whole};
pub use system::System;
pub(crate) use tables::all_keys;

use crate::data::{ConditionConfig, Resize};
use crate::device::Precision;
use crate::diffusion::{Betas, Keys, LossWeight, Prediction, TimestepSampling, Variance};
use crate::models::classifier::ClassifierConfig;
use crate::models::clip::TextConfig;
use crate::models::config;
use crate::models::conv_net::ConvNetConfig;
use crate::models::dit::DitConfig;
use crate::models::gamma::LearnedSchedule;
use crate::models::unet::UNetConfig;
use crate::models::vae::{Reconstruction, VaeConfig};
use crate::optim::LrSchedule;

/// Longest recipe that is read.
pub(crate) const MOST_BYTES: u64 = 1 << 20;

config! {
    /// A training run, complete: the same recipe on the same device gives the same bytes.
    pub struct Recipe {
        /// Name of the recipe, and of the folders of its runs.
        pub name: String = "custom".to_owned(),
        /// One line for `denoir recipes`.
        pub about: String = String::new(),
        /// Kind of model.
        pub system: System = System::Ddpm,
        /// The network of a diffusion model: unet, dit or conv.
        pub model: Backbone = Backbone::Unet,
        /// A SPEC: digits, faces, shapes, mnist:DIR, cifar10:DIR, images:DIR, parquet:DIR, pairs:A,B or
        /// maps:A,B.
        pub data: String = "digits".to_owned(),
        /// Side of the images in pixels.
        pub image_size: usize = 32,
        /// Side of the centred square taken from each picture of images:DIR; 0: the largest.
        pub crop: usize = 0,
        /// Cut that square (of images:DIR or parquet:DIR) at another place each time, not in the middle.
        pub random_crop: bool = false,
        /// How pictures of another size are brought to image_size: bicubic; bilinear or lanczos as
        /// torchvision's Resize and CenterCrop do it.
        pub resize: Resize = Resize::Bicubic,
        /// Mirror half of the pictures.
        pub flip: bool = false,
        /// Seed of all random numbers.
        pub seed: u64 = 0,
        /// Of the initial weights: denoir, or torch, whose seeds then give the weights of a U-Net of the
        /// diffusers library.
        pub rng: Rng = Rng::Denoir,
        /// Steps of the optimiser.
        pub steps: u64 = 10_000,
        /// Passes through the data; 0: as many as steps make. Where it is not 0, and the data ends, steps are
        /// filled in when training begins: the batches of a pass, the last one rounded up, times this.
        pub epochs: u64 = 0,
        /// Images of a batch.
        pub batch_size: usize = 64,
        /// Batches whose gradients are averaged for one step of the optimiser.
        pub accumulation: u64 = 1,
        /// Parts of a batch that processes can share (`--distributed`); a divisor of batch_size. Eight shards
        /// can be shared by 1, 2, 4 or 8 processes, six by 1, 2 or 6, and all give the same bytes; another
        /// number of shards rounds differently. With 1, several processes take one shard each.
        pub shards: usize = 1,
        /// Compute the model's blocks again in the backward pass instead of keeping what they computed: less
        /// memory, more time, the same numbers.
        pub checkpoint_blocks: bool = false,
        /// f32; f16, the tensors between the kernels of a GPU in 16 bits, which halves their memory and
        /// scales the loss; or bf16, by which the CPU device rounds what it multiplies. Weights, moments,
        /// sums and statistics have 32 bits.
        pub precision: Precision = Precision::F32,

        /// Adam or AdamW.
        pub optimizer: Optimizer = Optimizer::Adam,
        /// Peak learning rate.
        pub lr: f64 = 1e-4,
        /// Learning rate after the warm-up.
        pub lr_schedule: LrSchedule = LrSchedule::Constant,
        /// Steps in which the learning rate rises from 0.
        pub lr_warmup: u64 = 0,
        /// Decay of the optimiser's mean of gradients.
        pub beta1: f64 = 0.9,
        /// Decay of the optimiser's mean of squared gradients.
        pub beta2: f64 = 0.999,
        /// Added to the optimiser's root of squares.
        pub adam_eps: f64 = 1e-8,
        /// Decoupled weight decay of AdamW.
        pub weight_decay: f64 = 0.0,
        /// Largest norm of the gradient; 0: unbounded.
        pub clip_norm: f64 = 1.0,
        /// Largest decay of the moving average of the weights.
        pub ema_decay: f64 = 0.9999,
        /// `1 - (1 + step / ema_inv_gamma)^-ema_power` while that is below ema_decay; else `(1 + step) /
        /// (10 + step)`.
        pub ema_warmup: bool = true,
        /// Steps that count as one in that formula.
        pub ema_inv_gamma: f64 = 1.0,
        /// Exponent of that formula.
        pub ema_power: f64 = 0.75,

        /// How many labels, of 1, training replaces by that of no class, which is the last row of the
        /// model's table: without them there is no guidance.
        pub label_dropout: f64 = 0.0,

        /// The tokenizer of a model that is trained from nothing: bytes, which has no words; shapes, which
        /// has those of the data shapes; or a folder with one. A run keeps a copy.
        pub tokenizer: String = "bytes".to_owned(),
        /// How many captions, of 1, training replaces by an empty one, which guidance leads away from.
        pub caption_dropout: f64 = 0.0,
        /// Train the text encoder too; otherwise it stays as it is.
        pub train_text_encoder: bool = false,
        /// Rank of low-rank adapters (LoRA) of the attention layers, which are trained in place of the model
        /// that --base gives; 0: the model itself is trained.
        pub lora_rank: usize = 0,
        /// What adapters add is multiplied by this over their rank; 0: by 1.
        pub lora_alpha: f64 = 0.0,
        /// A new word (textual inversion), of which rows of the text encoder's table are trained and nothing
        /// else; it stands for what the pictures have in common, whose captions are made of it.
        pub placeholder_token: String = String::new(),
        /// A word of one token, whose row the new ones begin as.
        pub initializer_token: String = String::new(),
        /// Rows of the new word.
        pub num_vectors: usize = 1,
        /// What the new word stands for: object or style.
        pub learnable_property: Property = Property::Object,
        /// The caption of all pictures, instances of one thing (DreamBooth); empty: they have their own.
        pub instance_prompt: String = String::new(),
        /// The caption of pictures of the thing's class, which keep the model from forgetting it.
        pub class_prompt: String = String::new(),
        /// Folder of these; the model of --base draws as many as are missing.
        pub class_folder: String = String::new(),
        /// How many there are to be.
        pub class_images: usize = 100,
        /// Of their part of the loss, where that of the instances is 1.
        pub prior_loss_weight: f64 = 1.0,
        /// Folder or file of the model that adapters are of; filled in when training begins.
        pub base: String = String::new(),
        /// Fingerprint of its weights, filled in when training begins.
        pub base_fingerprint: String = String::new(),

        /// Steps of the diffusion process.
        pub timesteps: usize = 1000,
        /// First beta.
        pub beta_start: f64 = 1e-4,
        /// Last beta.
        pub beta_end: f64 = 0.02,
        /// linear, scaled_linear, squaredcos_cap_v2 (which needs no start and end), sigmoid, laplace or exp,
        /// of the reference library; sigmoid_chen, vp or edm; or a list of betas, one for each timestep.
        pub beta_schedule: Betas = Betas::Linear,
        /// What of the schedule training learns beside the model, as variational diffusion models do: none;
        /// scalar, the ends of a line of -log SNR over t; or network, what lies between ends that stay. The
        /// loss is then the bound in continuous time in bits per dimension, and a checkpoint's beta_schedule
        /// the list of what was learned so far.
        pub learned_schedule: LearnedSchedule = LearnedSchedule::None,
        /// -log SNR where a learned schedule begins.
        pub gamma_min: f64 = -13.3,
        /// -log SNR where a learned schedule ends.
        pub gamma_max: f64 = 5.0,
        /// Shift and scale the schedule so that its end is nothing but noise.
        pub rescale_betas_zero_snr: bool = false,
        /// Meaning of the model's output: epsilon, sample, v_prediction (with beta_schedule = edm that of
        /// EDM's network, for data of standard deviation 1), or mean (of the step to the timestep before).
        pub prediction_type: Prediction = Prediction::Epsilon,
        /// Variance of a reverse step: fixed_small, fixed_large; or learned_range or learned, of which the
        /// second half of unet.out_channels says (set it to twice unet.in_channels).
        pub variance: Variance = Variance::FixedSmall,
        /// Bound of the predicted x_0 while sampling; 0: unbounded.
        pub clip_sample: f64 = 1.0,
        /// Keys of the process that an imported `scheduler_config.json` leaves to its class, whose own values
        /// stand here: a sampler of another class takes its own, until training decides or `--set` says.
        #[serde(skip_serializing_if = "Vec::is_empty")]
        pub class_defaults: Vec<String> = Vec::new(),
        /// Classifier-free guidance of samples: 1 none, 0 without classes, more: further from what the model
        /// predicts without a class.
        pub guidance: f64 = 1.0,
        /// How far guided predictions are brought back to the deviation of those that are not: 0 to 1.
        pub guidance_rescale: f64 = 0.0,
        /// Error of the prediction: mse, l1, or huber, which is half the square up to huber_delta; or bound,
        /// the variational bound of mean and learned variance.
        pub loss: LossKind = LossKind::Mse,
        /// Where huber becomes a line.
        pub huber_delta: f64 = 1.0,
        /// Of the bound (in bits per dimension, all timesteps) that a learned variance is trained by beside
        /// an error of the prediction.
        pub bound_weight: f64 = 0.001,
        /// Weight of the error at each timestep: simple (1, on what is predicted); or one objective for
        /// every prediction_type: snr (1 on the noise), variational, p2, min_snr, soft_min_snr,
        /// truncated_snr or edm.
        pub loss_weight: LossWeight = LossWeight::Simple,
        /// k of p2.
        pub p2_k: f64 = 1.0,
        /// gamma of p2.
        pub p2_gamma: f64 = 1.0,
        /// gamma of min_snr.
        pub min_snr_gamma: f64 = 5.0,
        /// Standard deviation of the data, of edm.
        pub edm_sigma_data: f64 = 0.5,
        /// How timesteps are drawn: uniform, stratified, loss_second_moment (in proportion to their last
        /// losses, which are weighted to make up for it), log_normal (of sigma) or logit_normal (of t /
        /// timesteps); the last two weight the loss too.
        pub timestep_sampling: TimestepSampling = TimestepSampling::Uniform,
        /// Standard deviation of noise that all pixels of a channel share, added to that of each pixel (about
        /// 0.1): pictures may then be brighter or darker as a whole.
        pub offset_noise: f64 = 0.0,
        /// Standard deviation of further noise in what the model sees, which it is not to predict, where
        /// that of the noise itself is 1 (about 0.1).
        pub input_perturbation: f64 = 0.0,
        /// Mean of the normal distribution of log_normal (-1.2 in EDM) or logit_normal (0 is usual).
        pub timestep_mean: f64 = 0.0,
        /// Its standard deviation (1.2 in EDM).
        pub timestep_std: f64 = 1.0,
        /// Steps of the reverse process for the pictures.
        pub sample_steps: usize = 1000,
        /// Images of a picture of samples.
        pub sample_count: usize = 64,
        /// Steps between pictures, which are drawn at the end too; 0: at the end only; never: none.
        pub sample_every: SampleEvery = SampleEvery::Steps(5000),
        /// Steps between checkpoints.
        pub checkpoint_every: u64 = 1000,
        /// Older checkpoints are deleted.
        pub keep_checkpoints: usize = 2,
        /// Write event files for TensorBoard too, into the run's folder `tensorboard`.
        pub tensorboard: bool = false,

        /// Error of a VAE's reconstructions: mse, l1 or bce, summed over the pixels of an image.
        pub reconstruction: Reconstruction = Reconstruction::Mse,
        /// Of the Kullback-Leibler divergence, summed over the numbers of a latent.
        pub kl_weight: f64 = 1.0,
        /// Steps in which `kl_weight` rises from 0.
        pub kl_warmup: u64 = 0,
        /// What moves the codes of a codebook: gradient, of their squared distance to the latents, or ema,
        /// where they are running means of the latents.
        pub codebook: Codebook = Codebook::Gradient,
        /// Of the squared distance between latents and their codes, which is averaged over their numbers and
        /// multiplied by the number of an image's values: 1 weighs it as a reconstruction that is averaged
        /// too.
        pub codebook_weight: f64 = 1.0,
        /// Of the part of that distance that moves the latents, where 1 is that of what moves the codes.
        pub commitment: f64 = 0.25,
        /// Decay of the running counts of how many latents are nearest to each code, and of their means.
        pub codebook_decay: f64 = 0.99,
        /// A code whose count falls below this moves to a latent of the step; 0: none does.
        pub codebook_restart: f64 = 2.0,
        /// Standard deviation of noise that is added to what the encoder sees: a denoising autoencoder.
        pub corrupt_noise: f64 = 0.0,
        /// Share of the pixels' values that the encoder sees as 0 (mid-grey).
        pub corrupt_mask: f64 = 0.0,
        /// Steps between evaluations on held-out images; 0: one for each pass through the data (1000 steps
        /// where it is endless) or an eighth of the run, whichever is shorter, but at least 100.
        pub evaluate_every: u64 = 0,
        /// Held-out images of an evaluation; 0, of a diffusion model: none.
        pub evaluate_count: usize = 256,

        /// Where latents come from.
        pub latents: Latents = Latents::Cached,
        /// Images of endless data that are encoded when latents are cached; data that ends is encoded whole.
        pub latent_count: usize = 10_000,
        /// Side of the VAE's latents.
        pub latent_size: usize = 8,
        /// Factor that gives latents unit variance; 0: measured on the first 64 images in the order of
        /// training before a diffusion model is trained on them. A VAE's own is what it is exported with.
        pub scaling_factor: f64 = 0.0,
        /// Fingerprint of the VAE's weights, filled in when training begins.
        pub vae_fingerprint: String = String::new(),

        /// Names of the classes of a model with classes, in the order of their numbers; filled in when
        /// training begins.
        #[serde(skip_serializing_if = "Vec::is_empty")]
        pub class_names: Vec<String> = Vec::new(),

        /// The model sees, beside the noisy image, the x_0 that it predicted in the step before; in training
        /// what it predicts of the same noisy image, or zeros for half of the images (Chen et al. 2022,
        /// arXiv:2208.04202). It has as many more input channels as the image has, and a training step takes
        /// about a third longer.
        pub self_conditioning: bool = false,
        /// What the diffusion model sees of an image beside its noisy form.
        pub condition: ConditionConfig = ConditionConfig::default(),
        /// The diffusion model, where model is unet.
        pub unet: UNetConfig = UNetConfig::with_levels(3, &[64, 128, 128], &[false, true, true]),
        /// The diffusion model, where model is dit.
        pub dit: DitConfig = DitConfig::default(),
        /// The diffusion model, where model is conv.
        pub conv: ConvNetConfig = ConvNetConfig::default(),
        /// The text encoder of a model that sees texts.
        pub text: TextConfig = TextConfig::default(),
        /// The VAE.
        pub vae: VaeConfig = VaeConfig::default(),
        /// The end of a classifier.
        pub classifier: ClassifierConfig = ClassifierConfig::default(),
        /// The sampler of the run's pictures where it is not ddpm: keys of a `scheduler_config.json`, but for
        /// those that are above.
        #[serde(skip_serializing_if = "Keys::is_empty")]
        pub scheduler: Keys = Keys::default(),
    }
}

impl Recipe {
    /// Images of a step.
    pub(crate) fn images_of_a_step(&self) -> u64 {
        self.accumulation.saturating_mul(self.batch_size as u64)
    }

    /// Steps of the optimiser in one pass through so many images: the last batch counts, however small.
    pub fn steps_of_a_pass(&self, images: u64) -> u64 {
        images.div_ceil(self.batch_size as u64).div_ceil(self.accumulation)
    }
}
