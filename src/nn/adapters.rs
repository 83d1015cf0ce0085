//! Low-rank adapters (LoRA, Hu et al. 2021, arXiv:2106.09685).

use super::{Init, Layout, Scope};
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
