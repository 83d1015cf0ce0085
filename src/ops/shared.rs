//! Shared by several ops: derivatives, samples and their random blocks, the step's state, ranges of flat
//! tensors.

use std::ops::Range;

use rayon::prelude::*;

use crate::launch::{CHUNK, Launch, LaunchInfo, Recompute, Recorded};
use crate::state::State;
use crate::tape::Tensor;
use crate::tensor::{DType, Shape};

/// States the derivative of an op with the one result `y`: from the gradient of `y` to those of `inputs`, in
/// their order.
pub(crate) fn derivative(
    inputs: &[&Tensor],
    y: &Tensor,
    gradients: impl FnOnce(&Tensor) -> Vec<Tensor> + 'static,
) {
    y.tape().derivative(inputs, &[y], |dy| {
        let dy = dy[0].as_ref().expect("the tape asks where there is a gradient");
        gradients(dy).into_iter().map(Some).collect()
    });
}

/// A launch that the backward pass may run again instead of keeping its result.
pub(crate) fn replayed(launch: impl Launch + 'static) -> Recorded {
    Recorded::new(launch, LaunchInfo { recompute: Recompute::Replay, ..LaunchInfo::default() })
}

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
}

impl Size {
    #[track_caller]
    pub fn of(op: &str, shape: &Shape) -> Self {
        let samples = shape.dims().first().copied().unwrap_or(0);
        assert!(shape.elements() > 0, "{op}: needs samples [N, ..] with elements, got {shape}");
        Size { samples, elements: shape.elements() / samples }
    }

    /// Groups of four elements, the last of a sample perhaps smaller: what one draw of random numbers
    /// serves.
    pub fn blocks(self) -> usize {
        self.samples * self.elements.div_ceil(4)
    }
}

/// At most `CHUNK` elements of one sample of a tensor that is written.
pub(crate) struct Chunk<'a> {
    pub sample: usize,
    /// Its elements in the whole tensor.
    pub range: Range<usize>,
    /// Number of its first block of four in the sample.
    pub block: u32,
    pub y: &'a mut [f32],
}

impl Size {
    /// The chunks of `y`, for all threads.
    pub fn chunks(self, y: &mut [f32]) -> impl ParallelIterator<Item = Chunk<'_>> {
        y.par_chunks_mut(self.elements).enumerate().flat_map(move |(sample, y)| {
            y.par_chunks_mut(CHUNK).enumerate().map(move |(chunk, y)| {
                let first = sample * self.elements + chunk * CHUNK;
                Chunk { sample, range: first..first + y.len(), block: (chunk * (CHUNK / 4)) as u32, y }
            })
        })
    }
}

/// Most elements of a flat tensor that one dispatch binds: 128 MiB, which every adapter can.
pub(crate) const MOST_BOUND: usize = 1 << 25;

/// The first element of each range of at most `most` of `n` elements, and the range's length. `most` is a
/// multiple of 64, where a binding may begin.
pub(crate) fn ranges(n: usize, most: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..n).step_by(most).map(move |first| (first, most.min(n - first)))
}

/// Elements of a flat tensor that one dispatch binds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FlatRange {
    pub first: usize,
    pub count: usize,
    /// A kernel may see them as vec4; the others are fewer than 64.
    pub quads: bool,
}

/// The ranges of `n` elements, none longer than `most`: in fours as far as that goes. A binding begins at a
/// multiple of 64 elements, so what is left is what does not fill 64.
pub(crate) fn flat_ranges(n: usize, most: usize) -> impl Iterator<Item = FlatRange> {
    let whole = if n.is_multiple_of(4) { n } else { n / 64 * 64 };
    let quads = ranges(whole, most).map(|(first, count)| FlatRange { first, count, quads: true });
    quads.chain((whole < n).then_some(FlatRange { first: whole, count: n - whole, quads: false }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_cover_every_element_once() {
        for n in (1..300).chain([16_387, 65_536]) {
            for most in [64, 128, MOST_BOUND] {
                let mut next = 0;
                for FlatRange { first, count, quads } in flat_ranges(n, most) {
                    assert_eq!((first, first % 64), (next, 0), "{n} in ranges of {most}");
                    assert!(count > 0 && count <= most, "{n} in ranges of {most}");
                    assert!(if quads { count % 4 == 0 } else { count < 64 }, "{n} in ranges of {most}");
                    next += count;
                }
                assert_eq!(next, n, "{n} in ranges of {most}");
            }
        }
    }
}
