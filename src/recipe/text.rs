//! Recipes of models that see texts, and of what is trained beside one: low-rank adapters, or a word.

use super::{Backbone, Property, Recipe, TEXT_MODULE};
use crate::data::templates;
use crate::diffusion::Prediction;
use crate::error::{Result, need};
use crate::models::gamma::LearnedSchedule;
use crate::nn::{Adapters, Init, Layout, Scope};
use crate::tape::Tensor;

impl Recipe {
    /// Width of the text that the diffusion model sees; 0: none.
    pub(crate) fn text_width(&self) -> usize {
        match self.model {
            Backbone::Unet => self.unet.text_width(),
            Backbone::Dit | Backbone::Conv => 0,
        }
    }

    /// The same recipe without what is trained beside the denoiser: its parameters come first.
    pub(crate) fn of_denoiser(&self) -> Recipe {
        Recipe { learned_schedule: LearnedSchedule::None, train_text_encoder: false, ..self.clone() }
    }

    /// Whether the text encoder is among the parameters.
    pub(crate) fn trains_text(&self) -> bool {
        self.text_width() > 0 && self.train_text_encoder && self.lora_rank == 0
    }

    /// Whether it trains rows for a new word of the text encoder, and nothing else.
    pub(crate) fn learns_word(&self) -> bool {
        self.text_width() > 0 && !self.placeholder_token.is_empty()
    }

    /// Whether what is trained is laid over a model that stays as it is, and where it is.
    pub(crate) fn is_laid_over(&self) -> bool {
        self.text_width() > 0 && self.lora_rank > 0 || self.learns_word()
    }

    /// The rows of the new word, `[num_vectors, hidden_size]`, which `scope` gives.
    pub(crate) fn word(&self, scope: &Scope) -> Tensor {
        let (shape, scope) = ([self.num_vectors, self.text.hidden_size], scope.sub(TEXT_MODULE));
        scope.sub("embeddings.word").param("weight", shape, Layout::Plain, Init::Normal(0.02))
    }

    /// The captions of each picture, one of which is shown at a time, where a key says them.
    pub(crate) fn captions(&self) -> Option<Vec<String>> {
        if self.learns_word() {
            let all = templates(self.learnable_property == Property::Style);
            return Some(all.iter().map(|of| of.replace("{}", &self.placeholder_token)).collect());
        }
        (!self.instance_prompt.is_empty()).then(|| vec![self.instance_prompt.clone()])
    }

    /// A scope of frozen parameters whose linear layers have the recipe's adapters, which `scope` gives.
    pub(crate) fn adapted(&self, frozen: Scope, scope: &Scope) -> Scope {
        /// Layers with an adapter, of a U-Net and of a text encoder.
        const TARGETS: [&str; 8] =
            [".to_q", ".to_k", ".to_v", ".to_out.0", ".q_proj", ".k_proj", ".v_proj", ".out_proj"];
        let rank = self.lora_rank;
        let frozen = frozen.checkpointing(self.checkpoint_blocks);
        if rank == 0 {
            return frozen;
        }
        frozen.adapted_by(Adapters {
            scope: scope.clone(),
            rank,
            scale: self.lora_scale(),
            targets: &TARGETS,
        })
    }

    /// Takes over what a model to be trained on decides: its network, its latents, its process.
    pub(crate) fn based_on(&mut self, model: &Recipe) {
        let own = self.clone();
        self.system = model.system;
        self.model = model.model;
        self.unet.clone_from(&model.unet);
        self.text.clone_from(&model.text);
        self.condition.clone_from(&model.condition);
        self.scaling_factor = model.scaling_factor;
        (self.timesteps, self.beta_start, self.beta_end) =
            (model.timesteps, model.beta_start, model.beta_end);
        self.beta_schedule.clone_from(&model.beta_schedule);
        self.rescale_betas_zero_snr = model.rescale_betas_zero_snr;
        self.prediction_type = model.prediction_type;
        (self.variance, self.clip_sample) = (model.variance, model.clip_sample);
        self.class_defaults.clone_from(&model.class_defaults);
        self.scheduler.clone_from(&model.scheduler);
        self.unet.dropout = own.unet.dropout;
        // As the reference's script, which may be told another than the folder says.
        if own.prediction_type != Prediction::Epsilon {
            self.prediction_type = own.prediction_type;
        }
    }

    /// Factor of what adapters add.
    pub(crate) fn lora_scale(&self) -> f32 {
        if self.lora_alpha == 0.0 { 1.0 } else { (self.lora_alpha / self.lora_rank as f64) as f32 }
    }

    /// Whether it trains on pictures of a class beside those of an instance.
    pub(crate) fn keeps_prior(&self) -> bool {
        self.text_width() > 0 && !self.class_prompt.is_empty()
    }

    /// Checks the word that is to be learned.
    fn validate_word(&self) -> Result<()> {
        let (word, first) = (&self.placeholder_token, &self.initializer_token);
        let both = "set both, such as placeholder_token=\"<cat>\" and initializer_token=cat";
        need(word.is_empty() == first.is_empty(), "placeholder_token goes with initializer_token", both)?;
        // A file of it has the word as a name, and these mean something else there.
        let is_word = !word.contains(char::is_whitespace)
            && !["emb_params", "string_to_param", "string_to_param.*", "clip_l", "clip_g"].contains(&&**word);
        need(
            is_word,
            format!("placeholder_token is {word:?}"),
            "choose a word without spaces, such as <cat>",
        )?;
        let alone = self.lora_rank == 0 && !self.train_text_encoder && self.instance_prompt.is_empty();
        need(
            word.is_empty() || alone,
            "placeholder_token: rows of a new word are trained alone, from captions of their own",
            "leave lora_rank, train_text_encoder and instance_prompt out",
        )
    }

    /// Checks the text encoder of a model that sees texts.
    pub(super) fn validate_text(&self) -> Result<()> {
        let width = self.text_width();
        if width == 0 {
            let unused = self.caption_dropout == 0.0 && !self.train_text_encoder && self.lora_rank == 0;
            let hint = "set unet.cross_attention_dim, or leave them out";
            let message = "caption_dropout, train_text_encoder and lora_rank go with a model that sees texts";
            return need(unused, message, hint);
        }
        self.text.validate()?;
        self.validate_word()?;
        need(
            self.class_prompt.is_empty() || !self.instance_prompt.is_empty() && !self.class_folder.is_empty(),
            "class_prompt goes with instance_prompt and class_folder",
            "set them too, or leave class_prompt out",
        )?;
        let images = self.images_of_a_step();
        need(
            !self.keeps_prior() || images.is_multiple_of(2),
            format!("a step has {images} images, and with class_prompt half of them are of the class"),
            "set batch_size or accumulation to an even number",
        )?;
        let hint = "leave class_prompt or learned_schedule out";
        need(!self.keeps_prior() || !self.learns_schedule(), "class_prompt: the schedule is learned", hint)?;
        let hidden = self.text.hidden_size;
        let message = format!("text.hidden_size is {hidden}, and the unet sees texts of {width}");
        need(hidden == width, message, "set unet.cross_attention_dim to text.hidden_size")?;
        need(
            self.label_dropout == 0.0,
            "label_dropout: guidance of a model that sees texts is by the text",
            "leave it at 0",
        )
    }
}
