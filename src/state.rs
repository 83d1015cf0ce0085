//! The state of a step: sixteen words that the host writes before each run, and kernels read.

/// The step's state, in the order of `kernels/lib/state.wgsl`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct State {
    /// Of every random number.
    pub seed: u64,
    /// Number of the step, which random numbers depend on.
    pub step: u32,
    /// Number of the first sample of the batch, so that sample `i` draws the same numbers in any batch.
    pub first_sample: u32,
    /// Learning rate.
    pub lr: f32,
    /// `1 / (1 - beta1^t)` of Adam, `t` counted from 1.
    pub correction1: f32,
    /// `1 / (1 - beta2^t)` of Adam.
    pub correction2: f32,
    /// Share of the old moving average of the weights in the new.
    pub ema_decay: f32,
    /// Row of the sampler's table.
    pub row: u32,
    /// Gradients are those of the loss times two to this power (see [`crate::ops::loss_scale`]).
    pub loss_exponent: i32,
}

impl State {
    /// Words of the store called `state`.
    pub const WORDS: usize = 16;

    /// The words of the store, as `kernels/lib/state.wgsl` reads them.
    pub fn words(&self) -> [u32; Self::WORDS] {
        let mut words = [0; Self::WORDS];
        words[..10].copy_from_slice(&[
            self.seed as u32,
            (self.seed >> 32) as u32,
            self.step,
            self.first_sample,
            self.lr.to_bits(),
            self.correction1.to_bits(),
            self.correction2.to_bits(),
            self.ema_decay.to_bits(),
            self.row,
            self.loss_exponent as u32,
        ]);
        words
    }

    /// The state that `words` hold.
    ///
    /// # Panics
    /// When there are fewer than ten.
    pub fn from_words(words: &[u32]) -> Self {
        State {
            seed: u64::from(words[0]) | u64::from(words[1]) << 32,
            step: words[2],
            first_sample: words[3],
            lr: f32::from_bits(words[4]),
            correction1: f32::from_bits(words[5]),
            correction2: f32::from_bits(words[6]),
            ema_decay: f32::from_bits(words[7]),
            row: words[8],
            loss_exponent: words[9] as i32,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_round_trip() {
        let mut state = State { seed: 1 << 40 | 7, step: 3, first_sample: 9, lr: 0.5, ..State::default() };
        (state.row, state.loss_exponent) = (11, -12);
        assert_eq!(State::from_words(&state.words()), state);
    }
}
