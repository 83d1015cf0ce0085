//! Counter-based random numbers: Philox 4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as
//! 1, 2, 3").
//!
//! A number is a pure function of (seed, stream, step, sample, element), so that it does not matter which
//! thread, device or batch asks for it. The same function stands in `kernels/lib/philox.wgsl`; its integers
//! agree bit for bit.

use crate::simd::sin_cos_turns;

/// Purpose of a random number. Numbers of different streams are independent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Stream {
    /// Initial values of parameters; `step` is the parameter's index.
    Init = 1,
    /// Timesteps of training examples.
    Timestep = 2,
    /// Noise of training examples.
    Noise = 3,
    /// Noise that sampling starts from.
    Start = 4,
    /// Noise added by a reverse step.
    Reverse = 5,
    /// Order of a data set's samples.
    Shuffle = 6,
    /// Augmentation of data (flips).
    Augment = 7,
    /// Generated data sets.
    Generate = 8,
    /// Noise of the latents drawn from an encoder.
    Posterior = 9,
    /// Noise added to the input of a denoising autoencoder.
    Corrupt = 10,
    /// Offset noise of training examples, one number for each channel.
    Offset = 11,
    /// What a model's input is perturbed by.
    Perturb = 12,
    /// Subsets of images that a distance is measured on.
    Subset = 13,
    /// Labels that training replaces by that of no class.
    Labels = 14,
    /// Noise of the held-out images that a diffusion model is measured on, and by which they are dequantised.
    HeldOut = 15,
    /// Vectors that the unused codes of a codebook move to.
    Restart = 16,
    /// Which samples of training see what the model predicted of them.
    SelfCondition = 17,
    /// Which of an image's captions training takes, and which of them become empty.
    Captions = 18,
    /// Holes in conditions, their noise level, and which of them training replaces by zeros.
    Condition = 20,
    /// Noise of conditions.
    ConditionNoise = 21,
    /// Dropout masks; each dropout adds its own number to this.
    Dropout = 256,
}

/// The ten rounds: 128 bits of counter and 64 of key give 128 random bits.
#[inline(always)]
pub fn philox(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let [mut c0, mut c1, mut c2, mut c3] = counter;
    let [mut k0, mut k1] = key;
    for _ in 0..10 {
        let p0 = u64::from(c0) * 0xD251_1F53;
        let p1 = u64::from(c2) * 0xCD9E_8D57;
        (c0, c1, c2, c3) = ((p1 >> 32) as u32 ^ c1 ^ k0, p1 as u32, (p0 >> 32) as u32 ^ c3 ^ k1, p0 as u32);
        k0 = k0.wrapping_add(0x9E37_79B9);
        k1 = k1.wrapping_add(0xBB67_AE85);
    }
    [c0, c1, c2, c3]
}

/// The four random words for elements `4 * block .. 4 * block + 4` of one sample.
#[inline(always)]
pub fn draw(seed: u64, stream: u32, step: u32, sample: u32, block: u32) -> [u32; 4] {
    philox([block, sample, step, stream], [seed as u32, (seed >> 32) as u32])
}

/// A word as a whole number below `n`, each alike.
#[inline(always)]
pub(crate) fn below(word: u32, n: usize) -> usize {
    ((u64::from(word) * n as u64) >> 32) as usize
}

/// A word as a number in (0, 1): the upper 23 bits, centred in their interval. With 24 the centre would not
/// be an f32, and the highest would round to 1.
#[inline(always)]
pub fn uniform(word: u32) -> f32 {
    ((word >> 9) as f32 + 0.5) * (1.0 / 8_388_608.0)
}

/// `sqrt(-2 ln u)` of `u = uniform(word)`, to 4e-7 even next to u = 1.
#[inline(always)]
fn radius(word: u32) -> f32 {
    let u = uniform(word);
    // u = 2^e (1 + f): from sqrt(1/2) on e is 0 and f = u - 1 needs no rounding; below, 1 + f ends at
    // sqrt(2).
    let bits = u.to_bits().wrapping_sub(0x3f35_04f3); // those of sqrt(1/2)
    let near_one = u >= std::f32::consts::FRAC_1_SQRT_2;
    let e = if near_one { 0.0 } else { (bits as i32 >> 23) as f32 };
    let f = if near_one {
        -uniform(!word)
    } else {
        f32::from_bits((bits & 0x007f_ffff).wrapping_add(0x3f35_04f3)) - 1.0
    };
    // ln(1 + f), Cephes (Moshier 1989)
    let y = 7.037_683_6e-2 * f - 1.151_461e-1;
    let y = y * f + 1.167_699_9e-1;
    let y = y * f - 1.242_014_1e-1;
    let y = y * f + 1.424_932_3e-1;
    let y = y * f - 1.666_805_8e-1;
    let y = y * f + 2.000_071_5e-1;
    let y = y * f - 2.499_999_4e-1;
    let y = y * f + 0.333_333_3;
    let z = f * f;
    (-2.0 * (f + (y * f * z - 0.5 * z) + e * std::f32::consts::LN_2)).sqrt()
}

/// Four words as four standard normal numbers (Box and Muller 1958), right to 1e-6.
#[inline(always)]
pub fn normal(words: [u32; 4]) -> [f32; 4] {
    // `uniform` as a fraction of 2^32
    let centred = |word: u32| word & 0xffff_fe00 | 0x100;
    let (r1, r2) = (radius(words[0]), radius(words[2]));
    let (sin1, cos1) = sin_cos_turns(centred(words[1]));
    let (sin2, cos2) = sin_cos_turns(centred(words[3]));
    [r1 * cos1, r1 * sin1, r2 * cos2, r2 * sin2]
}

/// Fills `out` with the normal numbers of blocks `first_block ..` of one sample; for use inside
/// `simd::vectorized`.
#[inline(always)]
pub fn fill_normal(out: &mut [f32], seed: u64, stream: u32, step: u32, sample: u32, first_block: u32) {
    /// Blocks computed side by side, so that each of the four words and numbers is a vector.
    const LANES: usize = 16;
    let mut numbers = [[0.0; LANES]; 4];
    let mut block = first_block;
    for out in out.chunks_mut(4 * LANES) {
        for lane in 0..LANES {
            let four = normal(draw(seed, stream, step, sample, block.wrapping_add(lane as u32)));
            for (numbers, number) in numbers.iter_mut().zip(four) {
                numbers[lane] = number;
            }
        }
        for (lane, out) in out.chunks_mut(4).enumerate() {
            for (out, numbers) in out.iter_mut().zip(&numbers) {
                *out = numbers[lane];
            }
        }
        block = block.wrapping_add(LANES as u32);
    }
}

/// A sequential generator over one (seed, stream, step, sample), for host code that draws an unknown number
/// of times. It is a generator of the `rand` crate.
#[derive(Clone, Debug)]
pub struct Sequence {
    seed: u64,
    stream: u32,
    step: u32,
    sample: u32,
    block: u32,
    buffer: [u32; 4],
    used: usize,
}

impl Sequence {
    /// Starts at the first number.
    pub fn new(seed: u64, stream: Stream, step: u32, sample: u32) -> Self {
        Sequence { seed, stream: stream as u32, step, sample, block: 0, buffer: [0; 4], used: 4 }
    }

    fn word(&mut self) -> u32 {
        if self.used == 4 {
            self.buffer = draw(self.seed, self.stream, self.step, self.sample, self.block);
            self.block += 1;
            self.used = 0;
        }
        self.used += 1;
        self.buffer[self.used - 1]
    }
}

impl rand::TryRng for Sequence {
    type Error = std::convert::Infallible;

    fn try_next_u32(&mut self) -> std::result::Result<u32, Self::Error> {
        Ok(self.word())
    }

    fn try_next_u64(&mut self) -> std::result::Result<u64, Self::Error> {
        Ok(u64::from(self.word()) | u64::from(self.word()) << 32)
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> std::result::Result<(), Self::Error> {
        for chunk in bytes.chunks_mut(4) {
            chunk.copy_from_slice(&self.word().to_le_bytes()[..chunk.len()]);
        }
        Ok(())
    }
}

#[cfg(test)]
pub(crate) use tests::normal_f64;

#[cfg(test)]
mod tests {
    use super::*;

    /// `normal` by the formula, for tests.
    pub(crate) fn normal_f64(words: [u32; 4]) -> [f64; 4] {
        let uniform = |word: u32| (f64::from(word >> 9) + 0.5) / 8_388_608.0;
        let [a, b, c, d] = words.map(uniform);
        let (r1, r2) = ((-2.0 * a.ln()).sqrt(), (-2.0 * c.ln()).sqrt());
        let ((sin1, cos1), (sin2, cos2)) =
            ((std::f64::consts::TAU * b).sin_cos(), (std::f64::consts::TAU * d).sin_cos());
        [r1 * cos1, r1 * sin1, r2 * cos2, r2 * sin2]
    }

    #[test]
    fn known_answers_of_the_random123_distribution() {
        assert_eq!(philox([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(
            philox([u32::MAX; 4], [u32::MAX; 2]),
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
        );
        assert_eq!(
            philox([0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344], [0xa409_3822, 0x299f_31d0]),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn uniform_numbers_reach_neither_end() {
        assert!(uniform(0) > 0.0 && uniform(u32::MAX) < 1.0);
        assert_eq!(uniform(1 << 31) + uniform(!(1 << 31)), 1.0);
    }

    #[test]
    fn normal_numbers_are_those_of_the_formula() {
        let ends =
            [0, 255, 512, 0x7fff_ffff, 0x8000_0000, 0xb504_f333, 0xb504_f3ff, u32::MAX - 512, u32::MAX];
        let pairs = ends.into_iter().flat_map(|a| ends.map(|b| [a, b, b, a]));
        for words in pairs.chain((0..100_000).map(|b| draw(1, 0, 0, 0, b))) {
            for (got, wanted) in normal(words).into_iter().zip(normal_f64(words)) {
                let err = (f64::from(got) - wanted).abs();
                assert!(err <= 1e-6, "words {words:x?} give {got}, wanted {wanted}, off by {err:e}");
            }
        }
    }

    #[test]
    fn filled_numbers_are_those_of_each_block() {
        let mut filled = [f32::NAN; 4 * 16 * 2 + 3];
        fill_normal(&mut filled, 3, 1, 4, 5, 7);
        for (block, four) in filled.chunks(4).enumerate() {
            let wanted = normal(draw(3, 1, 4, 5, 7 + block as u32));
            assert_eq!(four, &wanted[..four.len()]);
        }
    }

    #[test]
    fn normal_numbers_have_mean_zero_and_variance_one() {
        let n = 100_000;
        let values: Vec<f64> =
            (0..n / 4).flat_map(|b| normal(draw(7, Stream::Noise as u32, 0, 0, b))).map(f64::from).collect();
        let mean = values.iter().sum::<f64>() / f64::from(n);
        let var = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / f64::from(n);
        assert!(mean.abs() < 0.02 && (var - 1.0).abs() < 0.02, "mean {mean}, variance {var}");
    }
}
