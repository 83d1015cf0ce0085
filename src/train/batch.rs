//! The inputs of a training step: declared once, recorded as tensors, written before each batch.

use std::cell::RefCell;
use std::marker::PhantomData;

use crate::device::Buffer;
use crate::diffusion::{Prediction, Schedule};
use crate::error::Result;
use crate::ops::noising::noising;
use crate::program::Program;
use crate::tape::{Tape, Tensor};
use crate::tensor::{DType, Shape};

/// Elements of inputs: `f32` or `u32`.
pub trait Element: bytemuck::Pod {
    /// As tensors name it.
    const DTYPE: DType;
}

impl Element for f32 {
    const DTYPE: DType = DType::F32;
}

impl Element for u32 {
    const DTYPE: DType = DType::U32;
}

/// A tensor that the host writes before each batch. The objective reads it with [`Batch::input`], and
/// [`BatchWriter::write`] gives it values.
///
/// ```
/// # use denoir::prelude::*;
/// const POINTS: Input<f32, 2> = Input::new("points", [64, 3]);
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Input<T, const RANK: usize> {
    name: &'static str,
    shape: [usize; RANK],
    element: PhantomData<T>,
}

impl<T: Element, const RANK: usize> Input<T, RANK> {
    /// `name` is that of the store, and unique in the objective.
    pub const fn new(name: &'static str, shape: [usize; RANK]) -> Self {
        Input { name, shape, element: PhantomData }
    }

    fn elements(&self) -> usize {
        self.shape.iter().product()
    }
}

/// Loss of a recorded batch, `[1]`, and numbers that are reported beside it.
pub struct Loss {
    /// Its gradient is that of the step.
    pub total: Tensor,
    /// Reported numbers, each `[1]`, and their names.
    pub parts: Vec<(&'static str, Tensor)>,
    /// The losses of the samples, `[N]`, if they are reported too, and their times, from 0 to 1.
    pub samples: Option<[Tensor; 2]>,
}

impl Loss {
    /// Reports `number`, a tensor `[1]`, with every step, averaged over accumulated batches.
    #[must_use]
    pub fn with(mut self, name: &'static str, number: &Tensor) -> Self {
        self.parts.push((name, number.clone()));
        self
    }

    /// Reports the losses of the samples, a tensor `[N]`, with every step, and the `times` in [0, 1) of the
    /// diffusion process that they are of, another.
    ///
    /// # Panics
    /// When there are not as many of both.
    #[must_use]
    #[track_caller]
    pub fn with_samples(mut self, each: &Tensor, times: &Tensor) -> Self {
        assert_eq!(each.elements(), times.elements(), "losses of samples, and their times");
        self.samples = Some([each.clone(), times.clone()]);
        self
    }
}

impl From<Tensor> for Loss {
    fn from(total: Tensor) -> Self {
        Loss { total, parts: Vec::new(), samples: None }
    }
}

/// Stores that an objective asked for.
#[derive(Default)]
pub(super) struct Declared {
    pub inputs: Vec<Slot>,
    pub constants: Vec<(&'static str, Vec<f32>)>,
    pub bound: Vec<(&'static str, Buffer)>,
}

/// The batch that an objective is recorded for.
pub struct Batch {
    tape: Tape,
    state: Tensor,
    declared: RefCell<Declared>,
}

impl Batch {
    pub(super) fn new(tape: &Tape, state: Tensor) -> Self {
        Batch { tape: tape.clone(), state, declared: RefCell::default() }
    }

    /// The tape that the batch is recorded on.
    pub fn tape(&self) -> &Tape {
        &self.tape
    }

    /// The step's sixteen words, [`State`](crate::state::State), from which ops draw random numbers.
    pub fn state(&self) -> &Tensor {
        &self.state
    }

    /// The tensor of an input.
    pub fn input<T: Element, const RANK: usize>(&self, input: Input<T, RANK>) -> Tensor {
        let slot = Slot { name: input.name, elements: input.elements(), used: false, written: false };
        self.declared.borrow_mut().inputs.push(slot);
        match T::DTYPE {
            DType::U32 => self.tape.stored_u32(input.name, input.shape),
            _ => self.tape.stored(input.name, 0, input.shape),
        }
    }

    /// Noisy samples, their noise and their timesteps, `(x_t, eps, t)`, as [`noising`] draws them from the
    /// noise levels of `schedule`.
    #[track_caller]
    pub fn noised(&self, x0: &Tensor, schedule: &Schedule) -> (Tensor, Tensor, Tensor) {
        self.noised_at(x0, schedule.noising_table(Prediction::Epsilon), None)
    }

    /// As [`noising`], by a table of four columns, at timesteps that are drawn, or given.
    #[track_caller]
    pub(super) fn noised_at(
        &self,
        x0: &Tensor,
        table: Vec<f32>,
        t: Option<&Tensor>,
    ) -> (Tensor, Tensor, Tensor) {
        let levels = self.constant("noising", [table.len() / 4, 4], table);
        self.tape.labelled("noising", || noising(x0, &levels, &self.state, t))
    }

    /// A tensor of these values in every step.
    ///
    /// # Panics
    /// When `shape` has another number of elements.
    #[track_caller]
    pub fn constant(&self, name: &'static str, shape: impl Into<Shape>, values: Vec<f32>) -> Tensor {
        let shape = shape.into();
        assert_eq!(values.len(), shape.elements(), "constant {name}: the number of values for {shape}");
        self.declared.borrow_mut().constants.push((name, values));
        self.tape.stored(name, 0, shape)
    }

    /// A tensor `[n]` of whole numbers that are 0 in every step.
    pub(super) fn zeros_u32(&self, name: &'static str, n: usize) -> Tensor {
        self.declared.borrow_mut().constants.push((name, vec![0.0; n])); // of the same bits
        self.tape.stored_u32(name, [n])
    }

    /// Makes `buffer` the memory of a store: of weights that are not trained, or of data on the device.
    pub fn bind(&self, store: &'static str, buffer: &Buffer) {
        self.declared.borrow_mut().bound.push((store, buffer.clone()));
    }

    pub(super) fn into_declared(self) -> Declared {
        self.declared.into_inner()
    }
}

/// An input as it was written for a batch.
pub(super) struct Written {
    store: &'static str,
    bytes: Vec<u8>,
}

impl Written {
    /// Writes it once more, where a later batch has written over it.
    pub fn restore(&self, program: &Program) -> Result<()> {
        program.device().write(program.store(self.store), 0, &self.bytes)
    }
}

/// Writes the inputs of one batch.
pub struct BatchWriter<'a> {
    pub(super) step: u64,
    pub(super) first_sample: u32,
    pub(super) program: &'a Program,
    pub(super) inputs: &'a mut [Slot],
    /// Where copies are kept, if the batch may have to be run once more.
    pub(super) kept: Option<Vec<Written>>,
}

/// An input of a step.
pub(super) struct Slot {
    pub name: &'static str,
    pub elements: usize,
    /// Whether a launch of the compiled step reads it.
    pub used: bool,
    pub written: bool,
}

impl BatchWriter<'_> {
    /// Steps done before this one.
    pub fn step(&self) -> u64 {
        self.step
    }

    /// Number of the batch's first sample among those of the step.
    pub fn first_sample(&self) -> u32 {
        self.first_sample
    }

    /// Gives an input the values of this batch; one that is not written keeps those of the last.
    ///
    /// # Errors
    /// When the driver reports an error.
    ///
    /// # Panics
    /// When the objective has no such input, or `values` are not as many as its shape says.
    #[track_caller]
    pub fn write<T: Element, const RANK: usize>(
        &mut self,
        input: Input<T, RANK>,
        values: &[T],
    ) -> Result<()> {
        let Input { name, shape, .. } = input;
        let slot = self.inputs.iter_mut().find(|slot| slot.name == name);
        let Some(slot) = slot.filter(|slot| slot.elements == input.elements()) else {
            panic!("the objective has no input {name} {shape:?}")
        };
        assert_eq!(values.len(), slot.elements, "input {name} {shape:?}: the number of values");
        slot.written = true;
        if !slot.used {
            return Ok(());
        }
        if let Some(kept) = &mut self.kept {
            kept.push(Written { store: name, bytes: bytemuck::cast_slice(values).to_vec() });
        }
        self.program.write(name, values)
    }
}
