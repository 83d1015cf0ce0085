//! Counter-based random numbers: Philox 4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3").
//!
//! A number is a pure function of (seed, stream, step, sample, element), so that it does not matter which thread, device or
//! batch asks for it. The same function stands in `kernels/lib/philox.wgsl`; its integers agree bit for bit.

/// What a random number is for. Numbers of different streams are independent.
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
    /// Dropout masks; each dropout adds its own number to this.
    Dropout = 256,
}

/// The ten rounds: 128 bits of counter and 64 of key give 128 random bits.
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
pub fn draw(seed: u64, stream: u32, step: u32, sample: u32, block: u32) -> [u32; 4] {
    philox([block, sample, step, stream], [seed as u32, (seed >> 32) as u32])
}

/// A word as a number in (0, 1): the upper 24 bits, centred in their interval, so that its logarithm is finite.
pub fn uniform(word: u32) -> f32 {
    ((word >> 8) as f32 + 0.5) * (1.0 / 16_777_216.0)
}

/// Four words as four standard normal numbers (Box and Muller 1958).
pub fn normal(words: [u32; 4]) -> [f32; 4] {
    let pair = |a: u32, b: u32| {
        let radius = (-2.0 * uniform(a).ln()).sqrt();
        let (sin, cos) = (std::f32::consts::TAU * uniform(b)).sin_cos();
        [radius * cos, radius * sin]
    };
    let ([a, b], [c, d]) = (pair(words[0], words[1]), pair(words[2], words[3]));
    [a, b, c, d]
}

/// A sequential generator over one (seed, stream, step, sample), for host code that draws an unknown number of times.
/// It is a generator of the `rand` crate.
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
mod tests {
    use super::*;

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
    fn normal_numbers_have_mean_zero_and_variance_one() {
        let n = 100_000;
        let values: Vec<f64> =
            (0..n / 4).flat_map(|b| normal(draw(7, Stream::Noise as u32, 0, 0, b))).map(f64::from).collect();
        let mean = values.iter().sum::<f64>() / f64::from(n);
        let var = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / f64::from(n);
        assert!(mean.abs() < 0.02 && (var - 1.0).abs() < 0.02, "mean {mean}, variance {var}");
    }
}
