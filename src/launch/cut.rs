//! How a launch is cut into launches of its kind on parts of its tensors, for adapters that cannot bind these
//! whole.

use std::sync::Arc;

use super::{Launch, Slot};

/// A dimension that a launch can be cut along: images, rows, elements. What is not said to be cut, each part
/// sees whole. But for the rounding of sums the parts give what the whole launch does. They run on GPUs alone:
/// the CPU device has no bindings.
pub struct Cut {
    /// Its length.
    pub(crate) items: usize,
    of: Box<dyn Fn(usize, usize) -> Arc<dyn Launch>>,
    tensors: Vec<(Slot, Share)>,
}

/// What a part has of a tensor that not every part sees whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Share {
    /// Its items of a tensor `[outer, items, ..]`.
    Slice { outer: usize },
    /// A summand of the result.
    Summand,
}

impl Cut {
    /// Along `items`; `of(first, count)`: the launch on `count` of them from `first` on.
    pub fn along<L: Launch + 'static>(items: usize, of: impl Fn(usize, usize) -> L + 'static) -> Cut {
        Cut { items, of: Box::new(move |first, count| Arc::new(of(first, count))), tensors: Vec::new() }
    }

    fn with(mut self, slots: impl IntoIterator<Item = Slot>, share: Share) -> Cut {
        self.tensors.extend(slots.into_iter().map(|slot| (slot, share)));
        self
    }

    /// These reads are `[items, ..]`.
    #[must_use]
    pub fn reads(self, which: impl IntoIterator<Item = usize>) -> Cut {
        self.with(which.into_iter().map(Slot::Read), Share::Slice { outer: 1 })
    }

    /// These writes are `[items, ..]`.
    #[must_use]
    pub fn writes(self, which: impl IntoIterator<Item = usize>) -> Cut {
        self.with(which.into_iter().map(Slot::Write), Share::Slice { outer: 1 })
    }

    /// This tensor is `[outer, items, ..]`. Every part is moved, so for few tensors or small outer dimensions.
    #[must_use]
    pub fn within(self, slot: Slot, outer: usize) -> Cut {
        self.with([slot], Share::Slice { outer })
    }

    /// These writes are sums over the items.
    #[must_use]
    pub fn sums(self, which: impl IntoIterator<Item = usize>) -> Cut {
        self.with(which.into_iter().map(Slot::Write), Share::Summand)
    }

    pub(crate) fn part(&self, first: usize, count: usize) -> Arc<dyn Launch> {
        (self.of)(first, count)
    }

    /// `None`: each part sees it whole.
    pub(crate) fn share(&self, slot: Slot) -> Option<Share> {
        self.tensors.iter().find(|(of, _)| *of == slot).map(|(_, share)| *share)
    }

    /// The tensors that are sliced, and how.
    pub(crate) fn slices(&self) -> impl Iterator<Item = (Slot, usize)> {
        self.tensors.iter().filter_map(|(slot, share)| match share {
            Share::Slice { outer } => Some((*slot, *outer)),
            Share::Summand => None,
        })
    }
}
