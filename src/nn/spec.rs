//! What is known of one parameter: its name, its shapes, how it begins.

use rayon::prelude::*;

use crate::tensor::Shape;

/// How a parameter's dimensions stand in files, which follow PyTorch. Here, channels come last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// The same in both.
    Plain,
    /// `[Cin, Cout]` here, `[Cout, Cin]` in files.
    Linear,
    /// `[KH, KW, Cin, Cout]` here, `[Cout, Cin, KH, KW]` in files. A transposed convolution has the weights
    /// of the convolution whose adjoint it is: its own `Cin` and `Cout` have changed places in both.
    Conv,
}

/// Initial values, PyTorch's defaults by name.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    /// Uniform in `+-1/sqrt(fan_in)`.
    FanIn(usize),
    /// Normal, of this standard deviation.
    Normal(f32),
    /// All 1.
    Ones,
    /// All 0.
    Zeros,
}

/// One parameter.
#[derive(Clone, Debug)]
pub struct Spec {
    /// As in the reference checkpoints: `down_blocks.0.resnets.1.conv1.weight`.
    pub name: String,
    /// As it stands in memory.
    pub shape: Shape,
    /// How its dimensions stand in files.
    pub layout: Layout,
    /// Its initial values.
    pub init: Init,
    /// First element in the flat store.
    pub first: usize,
    /// Of a state (see [`Scope::state`](super::Scope::state)): its values where a file has none.
    pub state: Option<f32>,
}

impl Spec {
    /// The shape in files.
    pub fn file_shape(&self) -> Vec<usize> {
        let d = self.shape.dims();
        match self.layout {
            Layout::Plain => d.to_vec(),
            Layout::Linear => vec![d[1], d[0]],
            Layout::Conv => vec![d[3], d[2], d[0], d[1]],
        }
    }

    /// The parameter's numbers in the order of files, put in the order of memory.
    ///
    /// # Panics
    /// When either slice has not its elements.
    #[track_caller]
    pub(crate) fn in_memory_order<T: Copy + Send + Sync>(&self, file: &[T], memory: &mut [T]) {
        let (taps, cin, cout) = self.matrices();
        assert_eq!([file.len(), memory.len()], [taps * cin * cout; 2], "parameter {}", self.name);
        if self.layout == Layout::Plain || file.is_empty() {
            return memory.copy_from_slice(file);
        }
        // A thread takes rows of one input channel after the other, all taps of each: they are neighbours in
        // the file.
        let mut rows: Vec<Vec<&mut [T]>> = (0..cin).map(|_| Vec::with_capacity(taps)).collect();
        for matrix in memory.chunks_mut(cin * cout) {
            rows.iter_mut().zip(matrix.chunks_mut(cout)).for_each(|(rows, row)| rows.push(row));
        }
        rows.into_par_iter().with_min_len(16).enumerate().for_each(|(ci, mut rows)| {
            for (co, file) in file.chunks_exact(cin * taps).enumerate() {
                rows.iter_mut().zip(&file[ci * taps..]).for_each(|(row, value)| row[co] = *value);
            }
        });
    }

    /// Matrices `[Cin, Cout]` in memory, and their sizes.
    fn matrices(&self) -> (usize, usize, usize) {
        // A linear layer is a 1x1 convolution here.
        match (self.layout, self.shape.dims()) {
            (Layout::Plain, _) => (1, self.shape.elements(), 1),
            (Layout::Linear, d) => (1, d[0], d[1]),
            (Layout::Conv, d) => (d[0] * d[1], d[2], d[3]),
        }
    }

    /// Calls `visit(index in memory, index in the file)` for every element, both relative to the
    /// parameter's beginning.
    pub fn for_each_index(&self, mut visit: impl FnMut(usize, usize)) {
        let (taps, cin, cout) = self.matrices();
        for tap in 0..taps {
            for ci in 0..cin {
                for co in 0..cout {
                    visit((tap * cin + ci) * cout + co, (co * cin + ci) * taps + tap);
                }
            }
        }
    }
}
