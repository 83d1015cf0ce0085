//! A tensor before it has data: a shape, an element type and an identity on its tape.

use std::fmt;

/// Dimensions, outermost first. Activations are `[N, H, W, C]`.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Shape(Vec<usize>);

impl Shape {
    /// Sizes, outermost first; none for a scalar.
    pub fn dims(&self) -> &[usize] {
        &self.0
    }

    /// Number of elements; 1 for a scalar.
    pub fn elements(&self) -> usize {
        self.0.iter().product()
    }

    /// The dimensions of a tensor of known rank.
    ///
    /// # Panics
    /// When the rank is another: names the op and the shape.
    #[track_caller]
    pub fn of_rank<const R: usize>(&self, op: &str) -> [usize; R] {
        match self.0.as_slice().try_into() {
            Ok(dims) => dims,
            Err(_) => panic!("{op}: expected a tensor of {R} dimensions, got {self}"),
        }
    }

    /// Size of the innermost dimension (the channels); 1 for a scalar.
    pub fn last(&self) -> usize {
        self.0.last().copied().unwrap_or(1)
    }
}

impl<const R: usize> From<[usize; R]> for Shape {
    fn from(dims: [usize; R]) -> Self {
        Shape(dims.to_vec())
    }
}

impl From<&[usize]> for Shape {
    fn from(dims: &[usize]) -> Self {
        Shape(dims.to_vec())
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

impl fmt::Debug for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Element type. `U32` holds labels, counters and random words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DType {
    /// 32-bit floats.
    F32,
    /// 32-bit words.
    U32,
    /// 16-bit floats: weights that are only read, and that launches see as `F32`.
    F16,
}

impl DType {
    /// Bytes of an element.
    pub const fn bytes(self) -> usize {
        match self {
            DType::F32 | DType::U32 => 4,
            DType::F16 => 2,
        }
    }
}

/// Identity of a tensor on its tape.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Id(pub(crate) usize);
