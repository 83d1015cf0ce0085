//! Bias, shift and residual, which a convolution adds to its result, and their gradients.

use crate::ops::reduce::{Sum, View};
use crate::product::{self, Loader, Product};
use crate::tape::Tensor;

/// Tensors that are added to the result of a convolution, each optional.
#[derive(Clone, Copy, Default)]
pub struct Epilogue<'a> {
    /// `[Cout]`.
    pub bias: Option<&'a Tensor>,
    /// `[N, Cout]`, the same for all pixels of a sample: the time embedding of a residual block.
    pub shift: Option<&'a Tensor>,
    /// `[N, OH, OW, Cout]`: the shortcut of a residual block.
    pub residual: Option<&'a Tensor>,
}

impl<'a> Epilogue<'a> {
    /// With a bias alone.
    pub fn bias(bias: &'a Tensor) -> Self {
        Epilogue { bias: Some(bias), ..Epilogue::default() }
    }

    /// Flags of the tensors that there are, for a result of `n` samples of `pixels` of `channels`.
    #[track_caller]
    pub(crate) fn added(&self, op: &str, n: usize, pixels: usize, channels: usize) -> product::Epilogue {
        let check = |what: &str, t: Option<&Tensor>, elements: usize| {
            if let Some(t) = t {
                let (got, shape) = (t.elements(), t.shape());
                assert_eq!(got, elements, "{op}: {what} {shape} for {n} images of {channels} channels");
            }
            t.is_some()
        };
        product::Epilogue {
            bias: check("bias", self.bias, channels),
            shift: check("shift", self.shift, n * channels),
            residual: check("residual", self.residual, n * pixels * channels),
            pixels,
        }
    }

    /// Records `y`, a convolution of `x` with `w` or the adjoint of one, of this shape; and its derivative by
    /// the products for `w` and `x`, the shift's gradient as `shift_name`.
    pub(crate) fn record(
        self,
        [x, w]: [&Tensor; 2],
        [y, dw, dx]: [Product; 3],
        shape: [usize; 4],
        shift_name: &'static str,
    ) -> Tensor {
        let inputs: Vec<&Tensor> =
            [Some(x), Some(w), self.bias, self.shift, self.residual].into_iter().flatten().collect();
        let (result, _) = y.record(&inputs, shape.into());
        let (count, x_saved, w_saved) = (inputs.len(), x.clone(), w.clone());
        x.tape().derivative(&inputs, &[&result], move |dy| {
            let (x, w) = (&x_saved, &w_saved);
            let Some(dy) = &dy[0] else { return vec![None; count] };
            // `x` is not needed after `dw`: it makes room for `dx`.
            let images = if let Loader::Conv(_) = y.a { [x, dy] } else { [dy, x] };
            let (dw, dbias) = dw.record(&images, w.shape().clone());
            let (dx, _) = dx.record(&[dy, w], x.shape().clone());
            let mut gradients = vec![Some(dx), Some(dw)];
            gradients.extend(Epilogue::gradients(y.epilogue, shift_name, dy, dbias));
            gradients
        });
        result
    }

    /// The gradients of the tensors that are added, from `dy`; `dbias`: the bias's, where it is known.
    pub(crate) fn gradients(
        added: product::Epilogue,
        name: &'static str,
        dy: &Tensor,
        dbias: Option<Tensor>,
    ) -> Vec<Option<Tensor>> {
        let columns = dy.shape().last();
        let sum = |x: &Tensor, outer: usize| {
            let view = View { outer, rows: x.elements() / columns / outer, columns };
            let sum = Sum { name, view, scale: 1.0, products: false };
            let [sum] = x.tape().launch(sum.recorded(), &[x], [[outer, columns].into()]);
            sum.exact()
        };
        let dshift = added.shift.then(|| sum(dy, dy.elements() / columns / added.pixels));
        let dbias = dbias.or_else(|| added.bias.then(|| sum(dshift.as_ref().unwrap_or(dy), 1)));
        let mut gradients = Vec::new();
        gradients.extend(added.bias.then_some(dbias));
        gradients.extend(added.shift.then_some(dshift));
        gradients.extend(added.residual.then(|| Some(dy.clone())));
        gradients
    }
}
