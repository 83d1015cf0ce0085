//! Every path on the CPU against the four loops.

use super::*;
use crate::check::random;
use crate::device::cpu::{Cpu, has_bf16};
use crate::launch::Raw;
use crate::product::{Epilogue, Geometry, plain};

fn raw(data: &mut [f32]) -> Raw {
    Raw { start: data.as_mut_ptr().cast(), elements: data.len(), half: false }
}

/// Compares `p` with the plain loops; where the processor has them, with products of bf16 numbers too, for
/// factors that have no more bits.
fn check(p: Product) {
    check_on(p, &|work| work(), false);
    if has_bf16() {
        let mut cpu = Cpu::open(Some(2)).unwrap();
        cpu.round_factors();
        check_on(p, &|work| cpu.run(work), true);
    }
}

/// Runs `p` twice, the second time with what the first has packed, and compares both with the plain loops.
fn check_on(p: Product, run: &dyn Fn(&mut (dyn FnMut() + Send)), bf16: bool) {
    let elements = |loader: Loader, other: usize| match loader {
        Loader::Conv(g) | Loader::ConvWeights(g) => g.n * g.h * g.w * g.cin,
        Loader::ConvAdjoint(g) => g.n * g.oh * g.ow * g.cout,
        _ => p.batch * p.depth * other,
    };
    let e = p.epilogue;
    let mut reads = vec![random(1, elements(p.a, p.rows)), random(2, elements(p.b, p.cols))];
    for (given, n) in
        [(e.bias, p.cols), (e.shift, p.rows.div_ceil(e.pixels.max(1)) * p.cols), (e.residual, p.outputs())]
    {
        if given {
            reads.push(random(reads.len() as u32 + 3, n));
        }
    }
    if bf16 {
        reads[..2].iter_mut().flatten().for_each(|x| *x = f32::from_bits(x.to_bits() & 0xFFFF_0000));
    }
    let extra = e.reads().map(|read| read.map(|i| &*reads[i]));
    let mut wanted = [vec![0.0; p.outputs()], vec![0.0; p.cols]];
    plain::product(&p, &reads[0], &reads[1], extra, &mut wanted[0]);
    plain::column_sums(&p, &reads[1], &mut wanted[1]);
    // bf16 sums are one chain; Winograd's transforms are rounded again.
    let error = match (bf16, winograd::suits(&p)) {
        (false, _) => 4e-6,
        (true, false) => 2e-5,
        (true, true) => 1e-2,
    };
    let size = (p.depth as f32).sqrt() + 3.0;
    let mut scratch: Vec<Vec<f64>> = p.cpu_scratch().iter().map(|n| vec![f64::NAN; n.div_ceil(2)]).collect();
    let mut again = false;
    for _ in 0..2 {
        let mut written =
            [vec![f32::NAN; p.outputs()], vec![f32::NAN; if p.column_sums { p.cols } else { 0 }]];
        let raw_reads: Vec<Raw> = reads.iter_mut().map(|x| raw(x)).collect();
        let raw_writes = written.each_mut().map(|x| raw(x));
        let raw_scratch: Vec<Raw> = scratch
            .iter_mut()
            .zip(p.cpu_scratch())
            .map(|(x, n)| raw(&mut bytemuck::cast_slice_mut(x)[..n]))
            .collect();
        run(&mut || p.run_on_cpu(&Io::new(&raw_reads, &raw_writes, &raw_scratch, again)));
        for (got, wanted) in written.iter().zip(&wanted) {
            for (i, (got, wanted)) in got.iter().zip(wanted).enumerate() {
                assert!(
                    (got - wanted).abs() <= error * size,
                    "{p:?}, bf16 {bf16}: element {i} is {got}, wanted {wanted}"
                );
            }
        }
        again = !p.is_outer();
    }
}

fn product(batch: usize, [rows, cols, depth]: [usize; 3], a: Loader, b: Loader) -> Product {
    let epilogue = Epilogue { pixels: 1, ..Epilogue::default() };
    Product { name: "test", batch, rows, cols, depth, a, b, epilogue, split_k: false, column_sums: false }
}

#[test]
fn matrices_in_every_transposition() {
    for (batch, sizes) in [
        (1, [1, 1, 1]),
        (3, [7, 5, 9]),
        (2, [12, 33, 300]),
        (1, [200, 70, 40]),
        (1, [193, 256, 33]),
        (2, [800, 3, 64]),
        (1, [9, 530, 600]),
    ] {
        let transposed = Loader::Transposed;
        for a in [Loader::Dense, transposed] {
            for b in [Loader::Dense, transposed] {
                let p = product(batch, sizes, a, b);
                let epilogue = Epilogue { bias: true, residual: true, ..p.epilogue };
                check(Product { epilogue, ..p });
                check(Product { split_k: true, column_sums: batch == 1 && b == Loader::Dense, ..p });
            }
        }
    }
}

#[test]
fn long_sums_are_split() {
    let p = product(1, [5, 7, 2050], Loader::Transposed, Loader::Dense);
    check(Product { split_k: true, column_sums: true, ..p });
}

#[test]
fn convolutions_their_adjoints_and_gradients() {
    let same = |n,
                [h, w]: [usize; 2],
                [cin, cout]: [usize; 2],
                [kh, kw]: [usize; 2],
                stride,
                [top, left]: [usize; 2]| {
        let [oh, ow] = [(h + 2 * top - kh) / stride + 1, (w + 2 * left - kw) / stride + 1];
        Geometry { n, h, w, cin, kh, kw, cout, oh, ow, stride, top, left }
    };
    for g in [
        same(2, [5, 7], [3, 4], [3, 3], 1, [1, 1]),
        same(1, [9, 8], [5, 2], [4, 4], 2, [1, 1]),
        same(3, [7, 10], [2, 33], [1, 2], 3, [0, 1]),
        same(2, [6, 6], [40, 70], [3, 3], 2, [1, 0]),
        same(2, [9, 11], [48, 32], [3, 3], 1, [1, 1]), // Winograd
        same(2, [16, 17], [32, 80], [3, 3], 1, [0, 2]),
        same(1, [5, 6], [70, 33], [3, 3], 2, [1, 1]), // taps in two chunks of bf16 pairs
        same(1, [3, 4], [515, 5], [1, 2], 1, [0, 0]), // runs in two
        same(5, [30, 31], [8, 9], [5, 3], 1, [2, 1]),
        same(2, [2, 2], [3, 5], [1, 1], 3, [0, 0]), // pixels that no tap meets
    ] {
        let [pixels, out] = [g.h * g.w, g.oh * g.ow];
        let with = |p: Product, pixels| Product {
            epilogue: Epilogue { bias: true, shift: true, residual: true, pixels },
            ..p
        };
        check(with(product(1, [g.n * out, g.cout, g.taps() * g.cin], Loader::Conv(g), Loader::Dense), out));
        let sizes = [g.n * pixels, g.cin, g.taps() * g.cout];
        check(with(product(1, sizes, Loader::ConvAdjoint(g), Loader::Transposed), pixels));
        let p = product(1, [g.taps() * g.cin, g.cout, g.n * out], Loader::ConvWeights(g), Loader::Dense);
        check(Product { split_k: true, column_sums: true, ..p });
    }
}
