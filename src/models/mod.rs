//! Models: functions that record themselves on a tape.

pub mod arena;
pub mod autoencoder;
mod options;
pub mod unet;
mod unet_config;
pub mod unet_order;
pub mod vae;
mod vae_config;

use std::cell::RefCell;
use std::rc::Rc;

use crate::diffusion::Model;
use crate::nn::{Params, Scope};
use crate::recipe::{Recipe, Rng, System};
use unet::unet;

/// The diffusion model of a recipe.
pub fn model_of(recipe: &Recipe) -> Box<Model> {
    let config = recipe.unet.clone();
    Box::new(move |scope, x, t, labels| unet(&config, scope, x, t, labels))
}

/// Initial values of the parameters of a recipe's model.
pub fn initial_of(recipe: &Recipe, params: &Params) -> Vec<f32> {
    match recipe.rng {
        Rng::Denoir => params.initial(recipe.seed),
        Rng::Torch => params.initial_as_torch(recipe.seed, unet_order::rank),
    }
}

/// The parameters of a recipe's model, found by recording it once.
pub fn params_of(recipe: &Recipe) -> Rc<RefCell<Params>> {
    let params = Rc::default();
    let tape = crate::tape::Tape::new();
    let scope = Scope::new(&tape, &params);
    if recipe.system == System::Vae {
        let (vae, side) = (&recipe.vae, recipe.image_size);
        let image = [side, side, vae.in_channels];
        let (mean, _) = vae::encode(vae, &scope, &tape.stored("x", 0, [1, side, side, vae.in_channels]));
        vae::decode(vae, &scope, &mean, image);
        return params;
    }
    params_of_model(recipe, &*model_of(recipe))
}

/// The parameters of a diffusion model for what a recipe diffuses.
pub fn params_of_model(recipe: &Recipe, model: &Model) -> Rc<RefCell<Params>> {
    let params = Rc::default();
    let tape = crate::tape::Tape::new();
    let [h, w, c] = recipe.diffused();
    let labels = recipe.unet.class().tensor(&tape, 1);
    let (x, t) = (tape.stored("x", 0, [1, h, w, c]), tape.stored("t", 0, [1]));
    model(&Scope::new(&tape, &params), &x, &t, labels.as_ref());
    params
}
