//! The product as four loops: the readable twin of [`cpu`](super::cpu), and the reference of its checks.

use super::Product;

/// Writes y `[batch, rows, cols]` from the tensors of A and B and from bias, shift and residual. Sums in f64.
pub fn product(
    p: &Product,
    a: &[f32],
    b: &[f32],
    [bias, shift, residual]: [Option<&[f32]>; 3],
    y: &mut [f32],
) {
    for item in 0..p.batch {
        for row in 0..p.rows {
            for col in 0..p.cols {
                let mut sum = 0.0_f64;
                for k in 0..p.depth {
                    if let Some(at) = p.a.a([p.rows, p.depth], item, row, k) {
                        sum += f64::from(a[at]) * f64::from(b[p.b.b([p.depth, p.cols], item, k, col)]);
                    }
                }
                let at = (item * p.rows + row) * p.cols + col;
                sum += bias.map_or(0.0, |bias| f64::from(bias[col]));
                sum += shift.map_or(0.0, |shift| f64::from(shift[row / p.epilogue.pixels * p.cols + col]));
                sum += residual.map_or(0.0, |residual| f64::from(residual[at]));
                y[at] = sum as f32;
            }
        }
    }
}

/// `sums[col] = sum over k of B[k, col]`.
pub fn column_sums(p: &Product, b: &[f32], sums: &mut [f32]) {
    for (col, sum) in sums.iter_mut().enumerate() {
        let terms = (0..p.depth).map(|k| f64::from(b[p.b.b([p.depth, p.cols], 0, k, col)]));
        *sum = terms.sum::<f64>() as f32;
    }
}
