//! What a tape has recorded: tensors and launches.

use std::rc::Rc;

use crate::launch::Recorded;
use crate::tensor::{DType, Id, Shape};

/// Where a tensor's data lives.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Home {
    /// In memory that the program shares between temporaries.
    Temporary,
    /// In a store (parameters, gradients, inputs, ...) from this element on.
    Stored { store: Rc<str>, first: usize },
}

pub(crate) struct Meta {
    pub shape: Shape,
    pub dtype: DType,
    pub home: Home,
    pub needs_grad: bool,
    /// See [`Tensor::exact`].
    pub exact: bool,
}

impl Meta {
    /// Whether a program of 16 bits keeps it so: vectors and numbers are small, and are sums or losses.
    pub fn may_be_half(&self) -> bool {
        self.dtype == DType::F32 && !self.exact && self.shape.dims().len() >= 2
    }

    pub fn bytes(&self) -> usize {
        self.shape.elements() * self.dtype.bytes()
    }
}

pub(crate) struct Entry {
    pub recorded: Recorded,
    pub reads: Vec<Id>,
    pub writes: Vec<Id>,
    /// The module of the model that recorded it: `down_blocks.0.resnets.1.conv1`.
    pub label: Rc<str>,
    /// Number of the block that [`Tape::checkpoint`] recorded it in.
    pub block: Option<usize>,
}

/// Everything that a tape recorded.
pub(crate) struct Recording<'a> {
    pub metas: &'a [Meta],
    pub entries: &'a [Entry],
    /// Number of the first entry of the backward pass; with none, of all entries.
    pub backward: usize,
}
