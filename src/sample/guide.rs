//! Guidance by a classifier of noisy images.

use std::cell::RefCell;
use std::rc::Rc;

use crate::device::Buffer;
use crate::models::classifier::Logits;
use crate::nn::{Params, Scope};
use crate::ops::arithmetic::{add, affine, mul};
use crate::ops::cross_entropy::cross_entropy;
use crate::ops::denoising::guide_of_row;
use crate::ops::reduce::sum;
use crate::tape::Tensor;

/// Store of its parameters.
pub(super) const STORE: &str = "classifier";

/// A classifier that leads samples to their class (Dhariwal & Nichol 2021, arXiv:2105.05233, algorithm 2).
#[derive(Clone)]
pub struct ClassifierGuide<'a> {
    /// Records it.
    pub logits: &'a Logits,
    /// Layout of its parameters.
    pub params: Rc<RefCell<Params>>,
    /// Its parameters, flat.
    pub weights: Buffer,
    /// Number of classes.
    pub classes: usize,
    /// Factor of the gradient of `ln p(class | x_t)`: 1 is Bayes' rule.
    pub scale: f64,
}

impl ClassifierGuide<'_> {
    /// The model's output `[N, H, W, C]` for `x`, a variable, moved so that the predicted x0 goes up the
    /// gradient of `ln p(class | x)`. `rows`, `state`: as for [`guide_of_row`].
    pub(super) fn guided(
        &self,
        out: &Tensor,
        [x, t, classes]: [&Tensor; 3],
        [rows, state]: [&Tensor; 2],
    ) -> Tensor {
        let tape = x.tape();
        let logits = (self.logits)(&Scope::frozen(tape, &self.params, STORE), x, t);
        let [losses, _] = cross_entropy(&logits, classes);
        // Images do not interact: the gradient of the sum is each image's own.
        let gradients = tape.backward(&sum(&losses));
        let Some(gradient) = gradients.get(x) else { return out.clone() };
        let n = x.dims()[0];
        let factor = affine(&guide_of_row(n, rows, state), -self.scale as f32, 0.0).reshape([n, 1, 1, 1]);
        add(out, &mul(&gradient.reshape(x.shape().clone()), &factor))
    }
}
