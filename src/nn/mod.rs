//! Parameters and layers: named, flat in memory, recorded by plain functions.
//!
//! A model is a function that records itself. The first time it asks a [`Scope`] for a parameter, that
//! parameter gets its place in the flat store; later recordings (for sampling) find it there. So the
//! model's code is also its list of parameters.

mod adapters;
mod flat;
mod initial;
mod layers;
mod spec;

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

pub use adapters::Adapters;
pub use flat::Flat;
pub use layers::{
    Conv, attention_between, attention_block, conv, conv_transpose, conv2d_upsampled, group_norm,
    group_norm_of, layer_norm, linear, linear_from, linear_without_bias, linear_zero_if, point,
    self_attention, side_by_side,
};
pub use spec::{Init, Layout, Spec};

use crate::error::Result;
use crate::program::Program;
use crate::tape::{Tape, Tensor};
use crate::tensor::Shape;

/// Name of the store that parameters are recorded in. Binding it to the EMA weights makes the same
/// recording sample from those.
pub const STORE: &str = "parameters";
/// Name of the store of their gradients.
pub const GRADIENTS: &str = "gradients";

/// Parameters begin at multiples of this many elements (256 bytes), because bindings on a GPU must.
const ALIGN: usize = 64;

/// The parameters of a model, in the order in which it asked for them.
#[derive(Clone, Debug, Default)]
pub struct Params {
    specs: Vec<Spec>,
    index: HashMap<String, usize>,
    elements: usize,
    /// Elements before the first state.
    trained: Option<usize>,
    /// Their store holds 16-bit floats.
    halves: bool,
}

impl Params {
    /// All of them.
    pub fn specs(&self) -> &[Spec] {
        &self.specs
    }

    /// The parameter of this name.
    pub fn find(&self, name: &str) -> Option<&Spec> {
        self.index.get(name).map(|&i| &self.specs[i])
    }

    /// Trainable numbers.
    pub fn count(&self) -> usize {
        self.specs.iter().filter(|s| s.state.is_none()).map(|s| s.shape.elements()).sum()
    }

    /// Elements of the flat store, gaps for alignment included.
    pub fn elements(&self) -> usize {
        self.elements
    }

    /// Of these, those that an optimiser trains: the first ones. The others are states.
    pub fn trained(&self) -> usize {
        self.trained.unwrap_or(self.elements)
    }

    #[track_caller]
    fn place(&mut self, name: String, shape: Shape, layout: Layout, init: Init, state: Option<f32>) -> usize {
        if let Some(&known) = self.index.get(&name) {
            let spec = &self.specs[known];
            assert_eq!(spec.shape, shape, "parameter {name} was recorded with another shape");
            return spec.first;
        }
        let first = self.elements;
        assert!(state.is_some() || self.trained.is_none(), "parameter {name} comes after a state");
        if state.is_some() {
            self.trained.get_or_insert(first);
        }
        self.elements += shape.elements().next_multiple_of(ALIGN);
        self.index.insert(name.clone(), self.specs.len());
        self.specs.push(Spec { name, shape, layout, init, first, state });
        first
    }
}

/// A module of a model under recording: gives its parameters by name.
///
/// ```
/// use denoir::prelude::*;
/// use std::rc::Rc;
///
/// let (tape, params) = (Tape::new(), Rc::default());
/// let net = Scope::new(&tape, &params);
/// let y = linear(&net.sub("head"), &tape.stored("x", 0, [2, 3]), 4);
/// assert_eq!(y.dims(), [2, 4]);
/// let names: Vec<String> = params.borrow().specs().iter().map(|spec| spec.name.clone()).collect();
/// assert_eq!(names, ["head.weight", "head.bias"]);
/// ```
#[derive(Clone)]
pub struct Scope {
    tape: Tape,
    params: Rc<RefCell<Params>>,
    store: Rc<str>,
    /// The step's state while training; dropout does nothing without.
    state: Option<Tensor>,
    /// Whether blocks are computed again in the backward pass.
    checkpoints: bool,
    /// What is added to linear layers.
    adapters: Option<Rc<Adapters>>,
    prefix: String,
}

impl Scope {
    /// For sampling: parameters are constants, dropout does nothing.
    pub fn new(tape: &Tape, params: &Rc<RefCell<Params>>) -> Self {
        Scope::frozen(tape, params, STORE)
    }

    /// As [`Scope::new`], with the parameters in a store of their own: a trained model inside the recording
    /// of another.
    pub fn frozen(tape: &Tape, params: &Rc<RefCell<Params>>, store: &str) -> Self {
        Scope {
            tape: tape.clone(),
            params: Rc::clone(params),
            store: store.into(),
            state: None,
            checkpoints: false,
            adapters: None,
            prefix: String::new(),
        }
    }

    /// For training: parameters get gradients, dropout draws with `state`.
    pub fn training(tape: &Tape, params: &Rc<RefCell<Params>>, state: &Tensor) -> Self {
        Scope { state: Some(state.clone()), ..Scope::new(tape, params) }
    }

    /// With `on`, what is recorded in [`Scope::block`] is computed again in the backward pass.
    #[must_use]
    pub fn checkpointing(self, on: bool) -> Self {
        Scope { checkpoints: on, ..self }
    }

    /// The same, with adapters of its layers.
    #[must_use]
    pub fn adapted_by(self, adapters: Adapters) -> Self {
        Scope { adapters: Some(Rc::new(adapters)), ..self }
    }

    /// The result `y [.., out]` of this module's linear layer on `x [.., Cin]`, and what its adapter adds.
    #[track_caller]
    fn adapted(&self, x: &Tensor, y: Tensor) -> Tensor {
        match &self.adapters {
            Some(adapters) => adapters.adapted(&self.prefix, x, y),
            None => y,
        }
    }

    /// The tape that it records on.
    pub fn tape(&self) -> &Tape {
        &self.tape
    }

    /// The module called `name` of this module.
    pub fn sub(&self, name: impl std::fmt::Display) -> Scope {
        let prefix =
            if self.prefix.is_empty() { name.to_string() } else { format!("{}.{name}", self.prefix) };
        Scope { prefix, ..self.clone() }
    }

    /// A parameter of this module.
    #[track_caller]
    pub fn param(&self, name: &str, shape: impl Into<Shape>, layout: Layout, init: Init) -> Tensor {
        let shape = shape.into();
        let first = self.place(name, shape.clone(), layout, init, None);
        self.placed(first, shape)
    }

    /// A state of this module: numbers that a step of training writes by other means than a gradient, and
    /// that nothing else needs. It lies behind all parameters, where no optimiser reaches, and in the weights
    /// of a checkpoint; `missing` are its values where a file has none.
    ///
    /// # Panics
    /// When a parameter is asked for later.
    #[track_caller]
    pub fn state(&self, name: &str, shape: impl Into<Shape>, init: Init, missing: f32) -> Tensor {
        let shape = shape.into();
        let first = self.place(name, shape.clone(), Layout::Plain, init, Some(missing));
        self.read_only(first, shape)
    }

    /// A parameter of this module as consecutive slices of its rows.
    ///
    /// # Panics
    /// When they do not make up the parameter, or one does not begin where a GPU can bind it.
    #[track_caller]
    pub fn param_slices(
        &self,
        name: &str,
        shape: impl Into<Shape>,
        slices: &[Shape],
        layout: Layout,
        init: Init,
    ) -> Vec<Tensor> {
        let shape = shape.into();
        let elements: usize = slices.iter().map(Shape::elements).sum();
        assert_eq!(elements, shape.elements(), "parameter {name} {shape} in slices {slices:?}");
        let mut first = self.place(name, shape, layout, init, None);
        let slice = |slice: &Shape| {
            assert!(first.is_multiple_of(ALIGN), "parameter {name}: a slice begins at element {first}");
            let tensor = self.placed(first, slice.clone());
            first += slice.elements();
            tensor
        };
        slices.iter().map(slice).collect()
    }

    #[track_caller]
    fn place(&self, name: &str, shape: Shape, layout: Layout, init: Init, state: Option<f32>) -> usize {
        self.params.borrow_mut().place(self.sub(name).prefix, shape, layout, init, state)
    }

    fn read_only(&self, first: usize, shape: Shape) -> Tensor {
        match self.params.borrow().halves {
            true => self.tape.stored_f16(&self.store, first, shape),
            false => self.tape.stored(&self.store, first, shape),
        }
    }

    #[track_caller]
    fn placed(&self, first: usize, shape: Shape) -> Tensor {
        if self.state.is_none() {
            return self.read_only(first, shape);
        }
        assert!(!self.params.borrow().halves, "parameters of 16 bits cannot be trained");
        self.tape.variable(&self.store, first, shape)
    }

    /// Runs `record` with its launches labelled as this module's.
    pub fn label<R>(&self, record: impl FnOnce() -> R) -> R {
        self.tape.labelled(&self.prefix, record)
    }

    /// Records a block of the model, such as a residual block, whose inside a large model does not keep for
    /// the backward pass (see [`Tape::checkpoint`]).
    pub fn block<R>(&self, record: impl FnOnce() -> R) -> R {
        if self.checkpoints { self.tape.checkpoint(record) } else { record() }
    }

    /// Dropout while training, nothing else.
    pub fn dropout(&self, x: &Tensor, p: f32) -> Tensor {
        match &self.state {
            Some(state) if p > 0.0 => crate::ops::dropout::dropout(x, p, state),
            _ => x.clone(),
        }
    }
}

/// Records the gradient of each parameter into the store of gradients; it stays zero where nothing depends on
/// the parameter.
///
/// # Panics
/// When the recording asked for a parameter twice: its two gradients would have to be added up first.
pub fn place_gradients(tape: &Tape, gradients: &crate::tape::Gradients) {
    let mut seen = std::collections::HashSet::new();
    for (first, gradient) in gradients.of_store(STORE) {
        assert!(seen.insert(first), "a parameter was recorded twice; keep its tensor and use that");
        tape.place(&gradient, GRADIENTS, first);
    }
}

/// Writes the flat parameters into a program that has a store of its own for them, as far as it uses them.
///
/// # Errors
/// When the driver reports an error.
///
/// # Panics
/// When the program uses no parameter, or more than `flat` holds.
#[track_caller]
pub fn write_parameters(program: &Program, flat: &[f32]) -> Result<()> {
    program.write(STORE, &flat[..program.elements(STORE)])
}
