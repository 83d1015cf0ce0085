//! Matrix products, batched or with one matrix shared by all, with an optional bias; the linear layer.

#[cfg(test)]
mod tests;

use super::epilogue::Epilogue;
use crate::product::{self, Loader, Product};
use crate::tape::Tensor;

/// Which factors of a product are given with rows and columns exchanged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Transpose {
    /// The left factor is.
    pub a: bool,
    /// The right factor is.
    pub b: bool,
}

impl Transpose {
    /// Neither.
    pub const NONE: Transpose = Transpose { a: false, b: false };
}

/// `y = x w + bias`: x `[.., Cin]`, w `[Cin, Cout]`, bias `[Cout]`, y `[.., Cout]`.
///
/// # Panics
/// When the shapes do not fit.
#[track_caller]
pub fn linear(x: &Tensor, w: &Tensor, bias: Option<&Tensor>) -> Tensor {
    matmul(x, w, Transpose::NONE, bias)
}

/// `y = a b + bias` over the last two dimensions: a `[.., M, K]`, b `[.., K, N]`, bias `[N]`, y `[.., M, N]`.
///
/// A transposed a is `[.., K, M]`, a transposed b `[.., N, K]`. The leading dimensions of a and b are equal,
/// or b is a single matrix that all share; a must not be transposed then, unless it is a single matrix too.
///
/// # Panics
/// When the shapes do not fit.
#[track_caller]
pub fn matmul(a: &Tensor, b: &Tensor, transpose: Transpose, bias: Option<&Tensor>) -> Tensor {
    let sums = product_of(a, b, transpose, bias);
    let mut shape = a.dims()[..a.dims().len() - 2].to_vec();
    // Where b is shared, a's leading dimensions are among the rows of the product.
    shape.push(a.dims()[a.dims().len() - if transpose.a { 1 } else { 2 }]);
    shape.push(sums.cols);
    let epilogue = product::Epilogue { bias: bias.is_some(), ..product::Epilogue::default() };
    let inputs: Vec<&Tensor> = [Some(a), Some(b), bias].into_iter().flatten().collect();
    let (y, _) = Product { epilogue, ..sums }.record(&inputs, shape.as_slice().into());

    let (count, saved_a, saved_b) = (inputs.len(), a.clone(), b.clone());
    a.tape().derivative(&inputs, &[&y], move |dy| {
        let Some(dy) = &dy[0] else { return vec![None; count] };
        let da = backward_a(&sums, transpose, [&saved_a, &saved_b, dy]);
        let (db, dbias) = backward_b(&sums, transpose, [&saved_a, &saved_b, dy], epilogue.bias);
        let mut gradients = vec![Some(da), Some(db)];
        gradients.extend(Epilogue::gradients(epilogue, "matmul backward_bias", dy, dbias));
        gradients
    });
    y
}

/// `a b`, without the bias.
#[track_caller]
fn product_of(a: &Tensor, b: &Tensor, transpose: Transpose, bias: Option<&Tensor>) -> Product {
    let shapes = || {
        let bias = bias.map_or("no bias".to_owned(), |bias| format!("bias {}", bias.shape()));
        format!("a {}, b {}, {bias}, {transpose:?}", a.shape(), b.shape())
    };
    let (a_dims, b_dims) = (a.dims(), b.dims());
    assert!(a_dims.len() >= 2 && b_dims.len() >= 2, "matmul: two dimensions or more: {}", shapes());
    let (a_lead, a_last) = a_dims.split_at(a_dims.len() - 2);
    let (b_lead, b_last) = b_dims.split_at(b_dims.len() - 2);
    let (m, k) = if transpose.a { (a_last[1], a_last[0]) } else { (a_last[0], a_last[1]) };
    let (b_k, n) = if transpose.b { (b_last[1], b_last[0]) } else { (b_last[0], b_last[1]) };
    assert!(k == b_k, "matmul: inner dimensions {k} and {b_k} differ: {}", shapes());
    let items: usize = a_lead.iter().product();
    let (batch, m) = if a_lead == b_lead {
        (items, m)
    } else {
        let shared = b_lead.is_empty() && !transpose.a;
        let what = "leading dimensions differ, or b is shared by a transposed a";
        assert!(shared, "matmul: {what}: {}", shapes());
        (1, items * m)
    };
    assert!(batch * m * n * k > 0, "matmul: an empty tensor: {}", shapes());
    if let Some(bias) = bias {
        assert!(bias.dims() == [n], "matmul: expected a bias of [{n}]: {}", shapes());
    }
    dense("matmul", [batch, m, n, k], [transpose.a, transpose.b])
}

/// A product of matrices, each maybe transposed.
fn dense(name: &'static str, sizes: [usize; 4], transposed: [bool; 2]) -> Product {
    let loader = |of| if of { Loader::Transposed } else { Loader::Dense };
    Product::new(name, sizes, transposed.map(loader))
}

/// `dA = dy B^T`, or its transpose `B dy^T`.
fn backward_a(y: &Product, Transpose { a: ta, b: tb }: Transpose, [a, b, dy]: [&Tensor; 3]) -> Tensor {
    let Product { batch, rows, cols, depth, .. } = *y;
    let (sizes, transposed, factors) = if ta {
        ([batch, depth, rows, cols], [tb, true], [b, dy])
    } else {
        ([batch, rows, depth, cols], [false, !tb], [dy, b])
    };
    dense("matmul backward_a", sizes, transposed).record(&factors, a.shape().clone()).0
}

/// `dB = A^T dy`, or its transpose `dy^T A`; and the gradient of a bias, where it comes with that.
fn backward_b(
    y: &Product,
    Transpose { a: ta, b: tb }: Transpose,
    [a, b, dy]: [&Tensor; 3],
    bias: bool,
) -> (Tensor, Option<Tensor>) {
    let Product { batch, rows, cols, depth, .. } = *y;
    let (sizes, transposed, factors) = if tb {
        ([batch, cols, depth, rows], [true, ta], [dy, a])
    } else {
        ([batch, depth, cols, rows], [!ta, false], [a, dy])
    };
    // The sum runs over the batch.
    let sums = dense("matmul backward_b", sizes, transposed);
    let column_sums = bias && !tb && batch == 1;
    Product { split_k: true, column_sums, ..sums }.record(&factors, b.shape().clone())
}
