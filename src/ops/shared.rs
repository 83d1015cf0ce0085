//! What several rooms need: samples and their random blocks, the step's state, parts of flat tensors.

use crate::ops::CHUNK;
use crate::state::State;
use crate::tape::Tensor;
use crate::tensor::{DType, Shape};

#[track_caller]
pub(crate) fn assert_is_state(op: &str, state: &Tensor) {
    assert!(
        state.dtype() == DType::U32 && state.elements() == State::WORDS,
        "{op}: the state must be {} u32, got {}",
        State::WORDS,
        state.shape()
    );
}

/// Samples of a batch, and elements of each.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Size {
    pub samples: usize,
    pub elements: usize,
    /// Number of the first sample, where they are a part of a batch.
    pub first: usize,
}

impl Size {
    #[track_caller]
    pub fn of(op: &str, shape: &Shape) -> Self {
        let samples = shape.dims().first().copied().unwrap_or(0);
        assert!(shape.elements() > 0, "{op}: needs samples [N, ..] with elements, got {shape}");
        Size { samples, elements: shape.elements() / samples, first: 0 }
    }

    /// Of some of the samples.
    pub fn part(self, first: usize, samples: usize) -> Self {
        Size { samples, first: self.first + first, ..self }
    }

    /// Groups of four elements, the last of a sample perhaps smaller: what one draw of random numbers
    /// serves.
    pub fn blocks(self) -> usize {
        self.samples * self.elements.div_ceil(4)
    }
}

/// Number of the first block of four in piece `piece` of a sample that is cut into pieces of `CHUNK`
/// elements.
pub(crate) fn first_block(piece: usize) -> u32 {
    (piece * (CHUNK / 4)) as u32
}

/// Elements of a flat tensor that one dispatch takes: 128 MiB, which every adapter can bind.
pub(crate) const PART: usize = 1 << 25;

/// First element and number of elements of each part of `n` elements.
pub(crate) fn parts(n: usize, part: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..n).step_by(part).map(move |first| (first, part.min(n - first)))
}
