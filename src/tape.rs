//! The tape: records launches over symbolic tensors, and their gradients in reverse.
//!
//! Nothing is computed while recording. An op pushes its launches and, if a gradient will be asked for, a
//! closure that records the launches of its derivative and *returns* gradients. Only [`Tape::backward`]
//! adds them up.

mod backward;
mod recorded;
mod sums;

use std::cell::{Cell, RefCell};
use std::fmt;
use std::rc::Rc;

pub use self::backward::Gradients;
pub(crate) use self::recorded::{Entry, Home, Meta, Recording};
pub(crate) use self::sums::KERNEL;
use crate::launch::Recorded;
use crate::tensor::{DType, Id, Shape};

/// Takes the gradients of the outputs, and gives those of the inputs. `None`: zero.
type Derivative = Box<dyn FnOnce(&[Option<Tensor>]) -> Vec<Option<Tensor>>>;

struct Node {
    inputs: Vec<Id>,
    outputs: Vec<Id>,
    derivative: Derivative,
    label: Rc<str>,
}

#[derive(Default)]
struct Inner {
    metas: RefCell<Vec<Meta>>,
    entries: RefCell<Vec<Entry>>,
    nodes: RefCell<Vec<Node>>,
    label: RefCell<Option<Rc<str>>>,
    dropouts: Cell<u32>,
    /// The block that is being recorded, and how many there are.
    block: Cell<Option<usize>>,
    blocks: Cell<usize>,
    /// Entries before the first backward pass.
    forward: Cell<Option<usize>>,
}

/// A recording. Clones are the same recording.
///
/// ```
/// use denoir::ops::loss::mse;
/// use denoir::ops::matmul::linear;
/// use denoir::tape::Tape;
///
/// let tape = Tape::new();
/// let x = tape.stored("x", 0, [8, 3]);
/// let w = tape.variable("w", 0, [3, 2]);
/// let target = tape.stored("target", 0, [8, 2]);
/// let loss = mse(&linear(&x, &w, None), &target, None);
/// let gradients = tape.backward(&loss);
/// assert_eq!(gradients.get(&w).unwrap().dims(), [3, 2]);
/// assert!(gradients.get(&x).is_none(), "no gradient is wanted of a stored tensor");
/// ```
#[derive(Clone, Default)]
pub struct Tape(Rc<Inner>);

/// A tensor on a tape: shape, type and identity, no data. Values never change once recorded, so clones are
/// free.
#[derive(Clone)]
pub struct Tensor {
    tape: Tape,
    id: Id,
    shape: Shape,
    dtype: DType,
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "tensor {} {}", self.id.0, self.shape)
    }
}

impl Tensor {
    /// The recording that it belongs to.
    pub fn tape(&self) -> &Tape {
        &self.tape
    }

    /// Identity on its tape.
    pub fn id(&self) -> Id {
        self.id
    }

    /// Dimensions.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// Sizes of the dimensions, outermost first.
    pub fn dims(&self) -> &[usize] {
        self.shape.dims()
    }

    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.shape.elements()
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// True if a gradient can reach something that is trained through this tensor.
    pub fn needs_grad(&self) -> bool {
        self.tape.0.metas.borrow()[self.id.0].needs_grad
    }

    /// Keeps the tensor in 32 bits where a program has its tensors in 16 ([`Gpu::halves`]): sums and
    /// statistics, which 16 bits hold too coarsely or not at all. It is a property of the tensor, of all its
    /// clones.
    ///
    /// [`Gpu::halves`]: crate::device::gpu::Gpu::halves
    #[must_use]
    pub fn exact(self) -> Tensor {
        self.tape.0.metas.borrow_mut()[self.id.0].exact = true;
        self
    }

    /// The same data seen under another shape. Records nothing to compute.
    ///
    /// # Panics
    /// When the number of elements differs.
    #[track_caller]
    pub fn reshape(&self, shape: impl Into<Shape>) -> Tensor {
        let shape = shape.into();
        assert_eq!(
            shape.elements(),
            self.elements(),
            "reshape: {} has not the elements of {shape}",
            self.shape
        );
        Tensor { shape, ..self.clone() }
    }
}

impl Tape {
    /// An empty recording.
    pub fn new() -> Self {
        Tape::default()
    }

    fn tensor(&self, shape: Shape, dtype: DType, home: Home, needs_grad: bool) -> Tensor {
        let mut metas = self.0.metas.borrow_mut();
        metas.push(Meta { shape: shape.clone(), dtype, home, needs_grad, exact: false });
        Tensor { tape: self.clone(), id: Id(metas.len() - 1), shape, dtype }
    }

    /// A tensor in the store called `store`, from element `first` (a multiple of 64) on. Stores are bound
    /// to memory when the program is compiled; those that are not bound then are allocated by the
    /// program.
    pub fn stored(&self, store: &str, first: usize, shape: impl Into<Shape>) -> Tensor {
        self.tensor(shape.into(), DType::F32, Home::Stored { store: store.into(), first }, false)
    }

    /// As [`Tape::stored`], for labels, counters and the like.
    pub fn stored_u32(&self, store: &str, shape: impl Into<Shape>) -> Tensor {
        self.tensor(shape.into(), DType::U32, Home::Stored { store: store.into(), first: 0 }, false)
    }

    /// As [`Tape::stored`], of 16-bit floats, in a store of such alone. Launches read them as `f32`: on the
    /// CPU device they are widened into working memory each time one runs; on a GPU the store itself is of
    /// `f32`.
    pub fn stored_f16(&self, store: &str, first: usize, shape: impl Into<Shape>) -> Tensor {
        self.tensor(shape.into(), DType::F16, Home::Stored { store: store.into(), first }, false)
    }

    /// A stored tensor that gradients are wanted of.
    pub fn variable(&self, store: &str, first: usize, shape: impl Into<Shape>) -> Tensor {
        self.tensor(shape.into(), DType::F32, Home::Stored { store: store.into(), first }, true)
    }

    /// Records a launch that writes new tensors of the given shapes, of `f32`.
    ///
    /// # Panics
    /// When a read is of another tape.
    #[track_caller]
    pub fn launch<const W: usize>(
        &self,
        launch: impl Into<Recorded>,
        reads: &[&Tensor],
        shapes: [Shape; W],
    ) -> [Tensor; W] {
        let needs_grad = reads.iter().any(|t| t.needs_grad());
        let outputs = shapes.map(|shape| self.tensor(shape, DType::F32, Home::Temporary, needs_grad));
        let writes: Vec<&Tensor> = outputs.iter().collect();
        self.launch_into(launch, reads, &writes);
        outputs
    }

    /// Records a launch that writes, or updates in place, tensors of stores.
    ///
    /// # Panics
    /// When a tensor is of another tape.
    #[track_caller]
    pub fn launch_into(&self, launch: impl Into<Recorded>, reads: &[&Tensor], writes: &[&Tensor]) {
        let recorded = launch.into();
        for tensor in reads.iter().chain(writes) {
            let name = recorded.launch().name();
            assert!(Rc::ptr_eq(&tensor.tape.0, &self.0), "{name}: {tensor:?} is of another tape");
        }
        self.0.entries.borrow_mut().push(Entry {
            recorded,
            reads: reads.iter().map(|t| t.id).collect(),
            writes: writes.iter().map(|t| t.id).collect(),
            label: self.label(),
            block: self.0.block.get(),
        });
    }

    /// Records a block of a large model. What it computes and only its own derivative needs is not kept for
    /// the backward pass, which computes it once more from the block's inputs (Chen et al. 2016,
    /// arXiv:1604.06174), as far as that saves memory. The gradients are the same to the bit.
    pub fn checkpoint<R>(&self, record: impl FnOnce() -> R) -> R {
        let number = self.0.blocks.get();
        self.0.blocks.set(number + 1);
        let outer = self.0.block.replace(Some(number));
        let result = record();
        self.0.block.set(outer);
        result
    }

    /// States the derivative of what was just recorded: from the gradients of `outputs` (at least one is
    /// there) to those of `inputs`, in their order. Kept only if some input needs a gradient.
    pub fn derivative(
        &self,
        inputs: &[&Tensor],
        outputs: &[&Tensor],
        derivative: impl FnOnce(&[Option<Tensor>]) -> Vec<Option<Tensor>> + 'static,
    ) {
        if inputs.iter().any(|t| t.needs_grad()) {
            self.0.nodes.borrow_mut().push(Node {
                inputs: inputs.iter().map(|t| t.id).collect(),
                outputs: outputs.iter().map(|t| t.id).collect(),
                derivative: Box::new(derivative),
                label: self.label(),
            });
        }
    }

    /// Puts `hook` on the way back of the gradient of `x`: what it gives for the whole gradient goes on to
    /// what `x` was made of, as after `register_hook` in PyTorch. Nothing happens where `x` is no result that
    /// a gradient comes through.
    pub fn hook(&self, x: &Tensor, hook: impl FnOnce(&Tensor) -> Tensor + 'static) {
        let mut nodes = self.0.nodes.borrow_mut();
        let place = |node: &Node| node.outputs.iter().position(|id| *id == x.id);
        let Some((node, at)) = nodes.iter_mut().find_map(|node| place(node).map(|at| (node, at))) else {
            return;
        };
        let derivative = std::mem::replace(&mut node.derivative, Box::new(|_| Vec::new()));
        node.derivative = Box::new(move |dy| {
            let mut dy = dy.to_vec();
            dy[at] = dy[at].as_ref().map(hook);
            derivative(&dy)
        });
    }

    /// Makes `tensor` be written straight into a store, if it is a temporary that nothing else reads; else
    /// records a copy, because a GPU must not read a store in the launch that writes another part of
    /// it.
    pub fn place(&self, tensor: &Tensor, store: &str, first: usize) {
        let home = Home::Stored { store: store.into(), first };
        let is_own = {
            let entries = self.0.entries.borrow();
            entries.iter().any(|e| e.writes.contains(&tensor.id))
                && !entries.iter().any(|e| e.reads.contains(&tensor.id))
        };
        let meta_home = self.0.metas.borrow()[tensor.id.0].home.clone();
        if meta_home == Home::Temporary && is_own {
            self.0.metas.borrow_mut()[tensor.id.0].home = home;
        } else {
            let target = self.stored(store, first, tensor.shape.clone());
            self.launch_into(sums::copy(tensor.elements()), &[tensor], &[&target]);
        }
    }

    /// Records `sum += gradient` in place, for gradients of several batches.
    ///
    /// # Panics
    /// When the tensors differ in their elements.
    #[track_caller]
    pub fn accumulate_into(&self, sum: &Tensor, gradient: &Tensor) {
        assert_eq!(sum.elements(), gradient.elements(), "accumulate {} into {}", gradient.shape, sum.shape);
        self.launch_into(sums::add_into(sum.elements()), &[gradient], &[sum]);
    }

    /// Runs `record` with launches labelled by the module of the model that they belong to.
    pub fn labelled<R>(&self, label: &str, record: impl FnOnce() -> R) -> R {
        let before = self.0.label.replace(Some(label.into()));
        let result = record();
        self.0.label.replace(before);
        result
    }

    fn label(&self) -> Rc<str> {
        self.0.label.borrow().clone().unwrap_or_else(|| "".into())
    }

    /// A number for each dropout of the recording, so that no two draw the same mask.
    pub fn next_dropout(&self) -> u32 {
        let number = self.0.dropouts.get();
        self.0.dropouts.set(number + 1);
        number
    }

    /// Looks at everything recorded. Forward closures that no `backward` used are dropped first: they hold
    /// the tape itself.
    pub(crate) fn recorded<R>(&self, look: impl FnOnce(Recording) -> R) -> R {
        self.0.nodes.borrow_mut().clear();
        let (metas, entries) = (self.0.metas.borrow(), self.0.entries.borrow());
        let backward = self.0.forward.get().unwrap_or(entries.len());
        look(Recording { metas: &metas, entries: &entries, backward })
    }
}
