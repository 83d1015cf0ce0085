//! The random numbers of PyTorch's CPU generator, so that its seeds give its pictures.
//!
//! MT19937 (Matsumoto & Nishimura 1998), read as ATen reads it (`CPUGeneratorImpl`, `DistributionsHelper.h`,
//! `DistributionTemplates.h`). Normal numbers agree to rounding: PyTorch's own differ in the last bit from
//! one processor to another.

use rand_mt::Mt;

/// Normal numbers that are made together.
const BLOCK: usize = 16;

/// `torch.Generator().manual_seed(seed)`.
#[derive(Clone)]
pub struct Generator {
    words: Mt,
    /// The second of a pair of normal numbers, which the next small draw begins with.
    spare: Option<f64>,
}

impl Generator {
    /// The generator sees the lower half of the seed only.
    pub fn new(seed: u64) -> Self {
        Generator { words: Mt::new(seed as u32), spare: None }
    }

    /// A number in [0, 1) of 24 bits, as `torch.rand` draws an f32.
    pub fn uniform(&mut self) -> f32 {
        (self.words.next_u32() & 0x00ff_ffff) as f32 / 16_777_216.0
    }

    /// Of 53 bits.
    fn uniform_f64(&mut self) -> f64 {
        let word = u64::from(self.words.next_u32()) << 32 | u64::from(self.words.next_u32());
        (word & ((1 << 53) - 1)) as f64 / (1_u64 << 53) as f64
    }

    /// `tensor.uniform_(-bound, bound)`, which PyTorch rounds once on processors that can.
    pub(crate) fn fill_uniform(&mut self, out: &mut [f32], bound: f32) {
        out.fill_with(|| self.uniform().mul_add(bound - -bound, -bound));
    }

    /// `tensor.normal_()`, which is what `torch.randn` does: blocks of 16 by Box and Muller's method, where a
    /// last one that is not full is drawn anew over the 16 numbers at the end; fewer than 16 one by one.
    pub fn fill_normal(&mut self, out: &mut [f32]) {
        if out.len() < BLOCK {
            return out.fill_with(|| self.normal() as f32);
        }
        out.fill_with(|| self.uniform());
        out.chunks_exact_mut(BLOCK).for_each(to_normal);
        if !out.len().is_multiple_of(BLOCK) {
            let end = out.len() - BLOCK;
            out[end..].fill_with(|| self.uniform());
            to_normal(&mut out[end..]);
        }
    }

    fn normal(&mut self) -> f64 {
        if let Some(spare) = self.spare.take() {
            return spare;
        }
        let (u1, u2) = (self.uniform_f64(), self.uniform_f64());
        let radius = (-2.0 * (-u2).ln_1p()).sqrt();
        let (sin, cos) = (std::f64::consts::TAU * u1).sin_cos();
        self.spare = Some(radius * sin);
        radius * cos
    }
}

/// 16 uniform numbers as 16 normal ones.
fn to_normal(block: &mut [f32]) {
    let (first, second) = block.split_at_mut(BLOCK / 2);
    for (a, b) in first.iter_mut().zip(second) {
        let radius = (-2.0 * f64::from(1.0 - *a).ln()).sqrt();
        let (sin, cos) = (std::f64::consts::TAU * f64::from(*b)).sin_cos();
        (*a, *b) = ((radius * cos) as f32, (radius * sin) as f32);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Literals printed by tools/reference/torch_rng.py.
    const UNIFORM_0: [f32; 4] = [0.496_256_6, 0.768_221_8, 0.088_477_43, 0.132_030_49];
    const UNIFORM_1234: [f32; 4] = [-0.235_510_38, -0.049_050_72, 0.066_462_16, -0.206_738_65];
    const NORMAL_0: [(usize, [f64; 5]); 7] = [
        (5, [1.540_996_1, -0.293_428_9, 0.568_431_26, -1.084_522_4, -1.447_313_3]),
        (3, [-1.398_595_5, 0.403_346_84, 0.403_346_84, 0.838_026_34, -0.157_222_27]),
        (16, [-1.352_653_7, -1.695_931_2, 0.946_298_36, -0.843_676_75, 2.120_059_266_686_439_5]),
        (2, [-0.566_317_5, 0.373_114_65, -0.566_317_5, 0.373_114_65, -0.193_202_85]),
        (17, [0.439_695_84, -0.391_754_4, -0.494_925_35, -1.495_914_9, -3.745_461_724_698_543_5]),
        (768, [2.567_232_8, -0.473_119_8, -0.824_913_1, -0.542_198_66, 42.232_016_726_688_016]),
        (1001, [-0.605_559_47, -0.188_242_29, -0.572_493_7, 0.079_329_5, 1.150_474_623_311_311]),
    ];

    #[test]
    fn uniform_numbers_are_torchs() {
        let mut drawn = [0.0; 4];
        let mut generator = Generator::new(0);
        drawn.fill_with(|| generator.uniform());
        assert_eq!(drawn, UNIFORM_0);
        let mut drawn = vec![0.0; 1000];
        Generator::new(1 << 32 | 1234).fill_uniform(&mut drawn, 0.25);
        assert_eq!([drawn[0], drawn[1], drawn[998], drawn[999]], UNIFORM_1234);
    }

    #[test]
    fn normal_numbers_are_torchs() {
        // In one row: the state and the spare number of a small draw go on into the next.
        let mut generator = Generator::new(0);
        for (n, wanted) in NORMAL_0 {
            let mut drawn = vec![0.0; n];
            generator.fill_normal(&mut drawn);
            let ends = [drawn[0], drawn[1], drawn[n - 2], drawn[n - 1]];
            let sum: f64 = drawn.iter().map(|&v| f64::from(v)).sum();
            for (got, wanted) in ends.iter().map(|&v| f64::from(v)).zip(wanted) {
                assert!((got - wanted).abs() <= 2e-6, "{n}: {got}, not {wanted}");
            }
            assert!((sum - wanted[4]).abs() <= 1e-7 * n as f64 + 1e-6, "{n}: {sum}, not {}", wanted[4]);
        }
    }
}
