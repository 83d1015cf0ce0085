//! The model that a recipe describes: as a function, its parameters, and their initial values.

use std::cell::RefCell;
use std::rc::Rc;

use serde::{Deserialize, Serialize};

use super::{Recipe, Rng, System};
use crate::diffusion::{Model, TimestepSampling, Told};
use crate::error::Result;
use crate::models::classifier::classifier;
use crate::models::clip::clip_text;
use crate::models::codebook::COUNTS;
use crate::models::conv_net::conv_net;
use crate::models::dit::dit;
use crate::models::unet::{Class, unet};
use crate::models::{unet_order, vae};
use crate::nn::{Init, Params, Scope};
use crate::ops::loss_history::ROW;
use crate::tape::{Tape, Tensor};

/// Module of the text encoder's parameters, in which files of most versions of its library have them.
pub(crate) const TEXT_MODULE: &str = "text_model";

/// The network of a diffusion model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Backbone {
    /// A U-Net.
    Unet,
    /// A diffusion transformer.
    Dit,
    /// Convolutions of one width.
    Conv,
}

impl Backbone {
    /// The recipe's table that has its options.
    pub fn table(self) -> &'static str {
        match self {
            Backbone::Unet => "unet",
            Backbone::Dit => "dit",
            Backbone::Conv => "conv",
        }
    }
}

impl Recipe {
    /// The label of no class, of models that are trained with it.
    pub fn null_class(&self) -> Option<u32> {
        let Class::Number(rows) = self.class() else { return None };
        match (self.label_dropout > 0.0, self.model) {
            (false, _) => None,
            // It has a row of its own, after those of the classes.
            (true, Backbone::Dit) => Some(rows as u32),
            (true, _) => Some(rows as u32 - 1),
        }
    }

    /// How many classes samples may have; 0: the model has none, or takes something else.
    pub fn class_count(&self) -> usize {
        match (self.class(), self.null_class()) {
            _ if self.system == System::Classifier => self.classifier.classes,
            (Class::Number(_), Some(null)) => null as usize,
            (Class::Number(rows), None) => rows,
            _ => 0,
        }
    }

    /// Channels of the diffusion model's input and of its output.
    pub fn model_channels(&self) -> [usize; 2] {
        match self.model {
            Backbone::Unet => [self.unet.in_channels, self.unet.out_channels],
            Backbone::Dit => [self.dit.in_channels, self.dit.out()],
            Backbone::Conv => [self.conv.in_channels; 2],
        }
    }

    /// The form in which the diffusion model takes classes.
    pub fn class(&self) -> Class {
        match self.model {
            Backbone::Unet => self.unet.class(),
            Backbone::Dit => self.dit.class(),
            Backbone::Conv => self.conv.class(),
        }
    }

    /// Classes that training tells the diffusion model, and the key that says how many; 0: none.
    pub(crate) fn trained_classes(&self) -> (usize, &'static str) {
        match self.model {
            _ if !self.system.diffuses() => (0, ""),
            Backbone::Unet => (self.unet.num_class_embeds, "unet.num_class_embeds"),
            Backbone::Dit => (self.dit.num_embeds_ada_norm, "dit.num_embeds_ada_norm"),
            Backbone::Conv => (self.conv.num_class_embeds, "conv.num_class_embeds"),
        }
    }

    /// Checks that the diffusion model can be evaluated at these timesteps.
    pub(crate) fn check_times(&self, times: &[f64]) -> Result<()> {
        match self.model {
            Backbone::Unet => self.unet.check_times(times),
            Backbone::Dit | Backbone::Conv => Ok(()),
        }
    }

    /// The losses of timesteps that training draws by: a state beside the parameters.
    pub(crate) fn loss_history(&self, scope: &Scope) -> Option<Tensor> {
        let draws = self.system.diffuses() && self.timestep_sampling == TimestepSampling::LossSecondMoment;
        draws.then(|| scope.state("loss_history", [self.timesteps, ROW], Init::Zeros, 0.0))
    }

    /// A warning about the diffusion model: what looks like a defect elsewhere.
    pub(crate) fn remark(&self) -> Option<String> {
        match self.model {
            _ if !self.system.diffuses() => None,
            Backbone::Unet => self.unet.remark(),
            Backbone::Conv => self.conv.remark(),
            Backbone::Dit => None,
        }
    }
}

/// The diffusion model of a recipe.
pub fn model_of(recipe: &Recipe) -> Box<Model> {
    match recipe.model {
        Backbone::Unet => {
            let config = recipe.unet.clone();
            Box::new(move |scope, x, t, told| unet(&config, scope, x, t, told))
        }
        Backbone::Conv => {
            let config = recipe.conv.clone();
            Box::new(move |scope, x, t, told| conv_net(&config, scope, x, t, told.labels))
        }
        Backbone::Dit => {
            let config = recipe.dit.clone();
            Box::new(move |scope, x, t, told| dit(&config, scope, x, t, told.labels))
        }
    }
}

/// Initial values of the parameters of a recipe's model, flat.
pub fn initial_of(recipe: &Recipe, params: &Params) -> Vec<f32> {
    match recipe.rng {
        Rng::Denoir => params.initial(recipe.seed),
        // Of others than a U-Net the layers are made in the order in which they are recorded.
        Rng::Torch if recipe.model != Backbone::Unet => params.initial_as_torch(recipe.seed, |_| ()),
        Rng::Torch => params.initial_as_torch(recipe.seed, unet_order::rank),
    }
}

/// The parameters of a recipe's model, found by recording it once.
pub fn params_of(recipe: &Recipe) -> Rc<RefCell<Params>> {
    if recipe.system.diffuses() {
        return params_of_model(recipe, &*model_of(recipe));
    }
    let (params, tape, side) = (Rc::default(), Tape::new(), recipe.image_size);
    let scope = Scope::new(&tape, &params);
    let image = |channels| tape.stored("x", 0, [1, side, side, channels]);
    if recipe.system == System::Classifier {
        let t = tape.stored("t", 0, [1]);
        classifier(&recipe.classifier, &recipe.unet, &scope, &image(recipe.unet.in_channels), &t);
    } else {
        let (vae, channels) = (&recipe.vae, recipe.vae.in_channels);
        let (mean, _) = vae::encode(vae, &scope, &image(channels));
        vae::decode(vae, &scope, &mean, [side, side, channels]);
    }
    params
}

/// As [`params_of`], with the states that training has beside them: the losses of timesteps, and the running
/// counts of a codebook's codes.
/// In the first step all codes are dead, and move to latents; those of a codebook that was trained elsewhere
/// begin as if all were used alike.
pub(crate) fn trained_params_of(recipe: &Recipe) -> Rc<RefCell<Params>> {
    let params = match (recipe.lora_rank > 0, recipe.learns_word()) {
        (true, _) => adapters_of(recipe),
        (_, true) => {
            let params = Rc::default();
            recipe.word(&Scope::new(&Tape::new(), &params));
            params
        }
        _ => params_of(recipe),
    };
    if recipe.has_codebook() {
        let codes = recipe.vae.num_vq_embeddings;
        let init = if recipe.codebook_restart > 0.0 { Init::Zeros } else { Init::Ones };
        let even = (recipe.latents_of_a_step() / codes as f64) as f32;
        Scope::new(&Tape::new(), &params).state(COUNTS, [codes], init, even);
    }
    recipe.loss_history(&Scope::new(&Tape::new(), &params));
    params
}

/// The parameters of a recipe's adapters.
fn adapters_of(recipe: &Recipe) -> Rc<RefCell<Params>> {
    let (params, base, tape): (Rc<RefCell<Params>>, _, _) = (Rc::default(), Rc::default(), Tape::new());
    let adapted = recipe.adapted(Scope::new(&tape, &base), &Scope::new(&tape, &params));
    record(recipe, &*model_of(recipe), &adapted);
    if recipe.train_text_encoder {
        clip_text(&recipe.text, &adapted.sub(TEXT_MODULE), &tape.stored_u32("tokens", [1, 1]), 0);
    }
    params
}

/// Records a diffusion model of the images or latents that a recipe diffuses.
fn record(recipe: &Recipe, model: &Model, scope: &Scope) {
    let ([h, w, _], [c, _], tape) = (recipe.diffused(), recipe.model_channels(), scope.tape());
    let labels = recipe.class().tensor(tape, 1);
    let (x, t) = (tape.stored("x", 0, [1, h, w, c]), tape.stored("t", 0, [1]));
    let text = recipe.text_width();
    let text = (text > 0).then(|| tape.stored("text", 0, [1, 1, text]));
    model(scope, &x, &t, Told { labels: labels.as_ref(), text: text.as_ref() });
}

/// The parameters of a diffusion model for the images or latents that a recipe diffuses.
pub fn params_of_model(recipe: &Recipe, model: &Model) -> Rc<RefCell<Params>> {
    let (params, tape) = (Rc::default(), Tape::new());
    let scope = Scope::new(&tape, &params);
    record(recipe, model, &scope);
    if recipe.trains_text() {
        clip_text(&recipe.text, &scope.sub(TEXT_MODULE), &tape.stored_u32("tokens", [1, 1]), 0);
    }
    // Last, so that the model's own are the same without.
    recipe.learned_schedule.ask(&scope);
    params
}
