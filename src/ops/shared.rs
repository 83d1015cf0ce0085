//! What several rooms need: samples and their random blocks, the step's state, pieces of flat tensors, products.

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

/// Elements of a flat tensor that one dispatch takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    pub first: usize,
    pub count: usize,
    /// A kernel may see them as vec4; the others are fewer than 64.
    pub quads: bool,
}

/// The pieces of `n` elements, none longer than `part`: in fours as far as that goes. A binding begins at a
/// multiple of 64 elements, so what is left is what does not fill 64.
pub(crate) fn pieces(n: usize, part: usize) -> impl Iterator<Item = Piece> {
    let whole = if n.is_multiple_of(4) { n } else { n / 64 * 64 };
    let quads = (0..whole).step_by(part);
    let quads = quads.map(move |first| Piece { first, count: part.min(whole - first), quads: true });
    quads.chain((whole < n).then_some(Piece { first: whole, count: n - whole, quads: false }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_all_there_is() {
        for n in (1..300).chain([16_387, 65_536]) {
            for part in [64, 128, PART] {
                let mut next = 0;
                for Piece { first, count, quads } in pieces(n, part) {
                    assert_eq!((first, first % 64), (next, 0), "{n} in parts of {part}");
                    assert!(count > 0 && count <= part, "{n} in parts of {part}");
                    assert!(if quads { count % 4 == 0 } else { count < 64 }, "{n} in parts of {part}");
                    next += count;
                }
                assert_eq!(next, n, "{n} in parts of {part}");
            }
        }
    }
}
