//! Low-rank adapters (LoRA, Hu et al. 2021, arXiv:2106.09685): what they add, and how it becomes part of a
//! model's weights.

use super::{Init, Layout, Params, Scope};
use crate::ops::arithmetic::{add, affine};
use crate::ops::matmul::linear;
use crate::tape::Tensor;

/// Parts of their parameters' names behind that of a layer.
const NAMES: [&str; 2] = ["lora_A.weight", "lora_B.weight"];

/// Low-rank adapters of the linear layers of a model: `x W` becomes `x W + scale x A B`.
pub struct Adapters {
    /// Gives their parameters, under the names of the layers.
    pub scope: Scope,
    /// Columns of A and rows of B.
    pub rank: usize,
    /// Factor of what is added.
    pub scale: f32,
    /// The last parts of the names of the layers that have one.
    pub targets: &'static [&'static str],
}

impl Adapters {
    /// The result `y [.., out]` of the layer called `name` on `x [.., Cin]`, with what its adapter adds.
    #[track_caller]
    pub(super) fn adapted(&self, name: &str, x: &Tensor, y: Tensor) -> Tensor {
        if !self.targets.iter().any(|target| name.ends_with(target)) {
            return y;
        }
        let own = self.scope.sub(name);
        let [inputs, outputs] = [x.shape().last(), y.shape().last()];
        // As the library's scripts have it: B of zeros, so that nothing is added at first.
        let init = Init::Normal(1.0 / self.rank as f32);
        let down = own.param(NAMES[0], [inputs, self.rank], Layout::Linear, init);
        let up = own.param(NAMES[1], [self.rank, outputs], Layout::Linear, Init::Zeros);
        own.label(|| add(&y, &affine(&linear(&linear(x, &down, None), &up, None), self.scale, 0.0)))
    }
}

/// Adds the adapters among `params`, whose values are `values`, to the weights `flat` of the model `base`
/// with the layers that they are of, each times `scale`. Adapters of other layers are left out.
pub fn fuse(base: &Params, flat: &mut [f32], params: &Params, values: &[f32], scale: f32) {
    for down in params.specs() {
        let Some(layer) = down.name.strip_suffix(NAMES[0]) else { continue };
        let (Some(up), Some(weight)) =
            (params.find(&format!("{layer}{}", NAMES[1])), base.find(&format!("{layer}weight")))
        else {
            continue;
        };
        let [inputs, rank] = down.shape.of_rank("an adapter");
        let outputs = up.shape.last();
        let [a, b] = [down, up].map(|spec| &values[spec.first..][..spec.shape.elements()]);
        // Both are linear layers, which lie as their inputs times their outputs.
        let rows = flat[weight.first..][..inputs * outputs].chunks_exact_mut(outputs);
        for (row, a) in rows.zip(a.chunks_exact(rank)) {
            for (a, b) in a.iter().zip(b.chunks_exact(outputs)) {
                row.iter_mut().zip(b).for_each(|(w, b)| *w += scale * a * b);
            }
        }
    }
}
