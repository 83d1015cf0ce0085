//! The model that a recipe describes: as a function, its parameters, and their initial values.

use std::cell::RefCell;
use std::rc::Rc;

use super::{Recipe, Rng, System};
use crate::diffusion::Model;
use crate::models::classifier::classifier;
use crate::models::unet::unet;
use crate::models::{unet_order, vae};
use crate::nn::{Params, Scope};
use crate::tape::Tape;

/// The diffusion model of a recipe.
pub fn model_of(recipe: &Recipe) -> Box<Model> {
    let config = recipe.unet.clone();
    Box::new(move |scope, x, t, labels| unet(&config, scope, x, t, labels))
}

/// Initial values of the parameters of a recipe's model, flat.
pub fn initial_of(recipe: &Recipe, params: &Params) -> Vec<f32> {
    match recipe.rng {
        Rng::Denoir => params.initial(recipe.seed),
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

/// The parameters of a diffusion model for the images or latents that a recipe diffuses.
pub fn params_of_model(recipe: &Recipe, model: &Model) -> Rc<RefCell<Params>> {
    let (params, tape) = (Rc::default(), Tape::new());
    let [h, w, c] = recipe.diffused();
    let labels = recipe.unet.class().tensor(&tape, 1);
    let (x, t) = (tape.stored("x", 0, [1, h, w, c]), tape.stored("t", 0, [1]));
    model(&Scope::new(&tape, &params), &x, &t, labels.as_ref());
    params
}
