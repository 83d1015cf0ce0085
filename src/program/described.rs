//! Programs as data, for a GPU that is elsewhere: what compiling them would build, written down.
//!
//! A page in a browser replays them (`src/web/page/denoir.js`). They are planned by the limits that WebGPU
//! promises everywhere, so that no GPU needs to be here.

use std::cell::RefCell;
use std::collections::BTreeMap;

use serde::Serialize;

use super::Sharing;
use super::gpu::{parts_of, range_of, work_of};
use super::place::Placement;
use super::plan::{Plan, Step};
use crate::device::gpu::fits;
use crate::device::gpu::shader::{Binding, Interface, Knob, Module};
use crate::device::gpu::web::{ALIGNMENT, Web};
use crate::device::{Precision, size};
use crate::error::{Error, Result};
use crate::launch::Dispatch;
use crate::tape::Tape;

/// Programs that share their buffers.
#[derive(Serialize)]
pub(crate) struct Description {
    /// Bytes of each buffer. Stores have their own names; blocks, which hold temporary tensors while a
    /// program runs, are numbered.
    buffers: BTreeMap<String, usize>,
    pipelines: Vec<Pipeline>,
    /// Of each program its submissions, each with its dispatches in order.
    programs: BTreeMap<String, Vec<Vec<Call>>>,
    #[serde(skip)]
    kernels: Vec<KernelText>,
    #[serde(skip)]
    web: Web,
}

/// An entry point to build.
#[derive(Serialize)]
struct Pipeline {
    /// File of its kernel's text.
    kernel: String,
    #[serde(skip)]
    number: usize,
    entry: &'static str,
    /// Name of each word of `Params`, the uniform at binding 0; without parameters there is none.
    params: Vec<String>,
    bindings: Vec<Slot>,
}

#[derive(Serialize)]
struct Slot {
    name: String,
    number: u32,
    writable: bool,
}

/// A dispatch.
#[derive(Serialize)]
struct Call {
    launch: &'static str,
    /// The part of the model that recorded it.
    label: String,
    pipeline: usize,
    /// The words of `Params`.
    params: Vec<u32>,
    /// Name, first byte and bytes of what each binding sees.
    buffers: Vec<(String, usize, usize)>,
    groups: [u32; 3],
}

/// A kernel with its includes and knobs, as a file for a browser.
pub(crate) struct KernelText {
    /// Name of the file.
    pub file: String,
    pub text: String,
    key: TextKey,
    module: Module,
}

/// The identity of a text: kernel, knobs, and the variables of 16 bits.
type TextKey = (&'static str, &'static [Knob], Vec<&'static str>);

impl Description {
    /// Of programs in `precision`.
    pub fn new(precision: Precision) -> Description {
        Description {
            buffers: BTreeMap::new(),
            pipelines: Vec::new(),
            programs: BTreeMap::new(),
            kernels: Vec::new(),
            web: Web::new(precision),
        }
    }

    /// The kernels that the programs so far use.
    pub fn kernels(&self) -> impl Iterator<Item = &KernelText> {
        let is_used = |number: usize| self.pipelines.iter().any(|pipeline| pipeline.number == number);
        (0..self.kernels.len()).filter(move |&number| is_used(number)).map(|number| &self.kernels[number])
    }

    /// Dispatches of the program of this name.
    pub fn dispatches(&self, program: &str) -> usize {
        self.programs.get(program).map_or(0, |submissions| submissions.iter().map(Vec::len).sum())
    }

    /// Bytes of all buffers.
    pub fn bytes(&self) -> u64 {
        self.buffers.values().map(|&bytes| bytes as u64).sum()
    }

    /// Adds what `tape` recorded, all of whose results are stores. Stores of one name are one buffer.
    ///
    /// # Errors
    /// When a launch needs more than browsers promise.
    pub fn add(&mut self, program: &str, tape: &Tape) -> Result<()> {
        let plan = Plan::for_adapter(tape, &[], self.web.traits());
        let buffers = RefCell::new(&mut self.buffers);
        let named = |name: String, bytes: usize| {
            let mut buffers = buffers.borrow_mut();
            let largest = buffers.entry(name.clone()).or_default();
            *largest = bytes.next_multiple_of(ALIGNMENT).max(*largest);
            Ok(name)
        };
        let block = |number, bytes| named(format!("block {number}"), bytes);
        let store = |name: &str, bytes| named(name.to_owned(), bytes);
        let placement = Placement::of(&plan, &plan.layout(Sharing::Shared), block, store)?;
        let (mut submissions, mut operations) = (vec![Vec::new()], 0);
        for step in &plan.steps {
            let operands = placement.operands(step);
            let halves = |dispatch: &Dispatch| -> Vec<&'static str> {
                let of_16_bits = dispatch.binds.iter().filter(|bind| operands.of(bind.slot).half);
                of_16_bits.map(|bind| bind.name).collect()
            };
            let dispatches = self.dispatches_of(step, halves)?;
            let work = work_of(plan.cost_of(step)) / dispatches.len().max(1) as u64;
            for dispatch in &dispatches {
                let parts = parts_of(dispatch, self.web.grid, self.web.sub_dispatches(work));
                let each = work / parts.len() as u64;
                let mut seen = Vec::new();
                for bind in &dispatch.binds {
                    let (buffer, [first, bytes]) = range_of(step, bind, operands.of(bind.slot));
                    self.check_range(step, first, bytes)?;
                    seen.push((bind.name, (buffer.clone(), first, bytes)));
                }
                let (pipeline, interface) = self.pipeline(dispatch, halves(dispatch));
                let at = format!("{} {}", dispatch.kernel.name, dispatch.entry);
                for (params, groups) in parts {
                    if !fits(&mut operations, each) {
                        submissions.push(Vec::new());
                        operations = each;
                    }
                    let call = Call {
                        launch: step.name(),
                        label: step.label.to_string(),
                        pipeline,
                        params: bytemuck::pod_collect_to_vec(&interface.pack(&params, &at)),
                        buffers: interface.bound(&seen, &at).into_iter().cloned().collect(),
                        groups,
                    };
                    submissions.last_mut().expect("there is one").push(call);
                }
            }
        }
        self.programs.insert(program.to_owned(), submissions);
        Ok(())
    }

    /// The dispatches of the first variant of a step that keeps within the limits.
    fn dispatches_of(
        &mut self,
        step: &Step,
        halves: impl Fn(&Dispatch) -> Vec<&'static str>,
    ) -> Result<Vec<Dispatch>> {
        let variants = step.tuning().variants(&self.web.traits());
        let indices = variants.iter().map(|variant| variant.index).chain(variants.is_empty().then_some(0));
        let mut lacks = None;
        for index in indices {
            let dispatches = step.dispatches(index);
            let lack = dispatches.iter().find_map(|dispatch| {
                let kernel = self.kernel(dispatch, halves(dispatch));
                self.web.lacks(&self.interface(kernel, dispatch))
            });
            match lack {
                None => return Ok(dispatches),
                Some(lack) => drop(lacks.get_or_insert(lack)),
            }
        }
        let message =
            format!("{} takes {}, which not every browser has", of(step), lacks.unwrap_or_default());
        Err(Error::new(message).hint("sample it with `denoir sample`"))
    }

    fn check_range(&self, step: &Step, first: usize, bytes: usize) -> Result<()> {
        assert!(first.is_multiple_of(ALIGNMENT), "{}: a binding begins at byte {first}", step.name());
        let most = self.web.max_binding();
        if bytes as u64 <= most {
            return Ok(());
        }
        let [needed, most] = [bytes as u64, most].map(size);
        Err(Error::new(format!("{} binds {needed}, and browsers promise {most}", of(step)))
            .hint("take a smaller --count, or sample it with `denoir sample`"))
    }

    /// The number of a kernel's text, which is made at its first use. `halves`: its variables of 16 bits.
    fn kernel(&mut self, dispatch: &Dispatch, halves: Vec<&'static str>) -> usize {
        let (kernel, key) = (dispatch.kernel, (dispatch.kernel.name, dispatch.knobs, halves));
        if let Some(found) = self.kernels.iter().position(|made| made.key == key) {
            return found;
        }
        let expanded = kernel.expand(dispatch.knobs, self.web.dialect).in_halves(&key.2, self.web.dialect);
        let parsed = expanded.and_then(|expanded| Ok((expanded.parse()?, expanded.text)));
        let (module, text) = parsed.unwrap_or_else(|e| panic!("a kernel of denoir's own: {e}"));
        let before = self.kernels.iter().filter(|made| made.key.0 == kernel.name).count();
        let number = if before > 0 { format!("-{}", before + 1) } else { String::new() };
        let file = format!("{}{number}.wgsl", kernel.name.replace('/', "-"));
        self.kernels.push(KernelText { file, text, key, module });
        self.kernels.len() - 1
    }

    fn interface(&self, kernel: usize, dispatch: &Dispatch) -> Interface {
        let interface = self.kernels[kernel].module.interface(dispatch.entry);
        interface.unwrap_or_else(|| panic!("{}: no entry {}", dispatch.kernel.name, dispatch.entry))
    }

    /// The number of a dispatch's pipeline, which is made at its first use.
    fn pipeline(&mut self, dispatch: &Dispatch, halves: Vec<&'static str>) -> (usize, Interface) {
        let (kernel, entry) = (self.kernel(dispatch, halves), dispatch.entry);
        let interface = self.interface(kernel, dispatch);
        let made = self.pipelines.iter().position(|made| (made.number, made.entry) == (kernel, entry));
        let number = made.unwrap_or_else(|| {
            let mut params = vec![String::new(); interface.params_size as usize / 4];
            for (name, offset) in &interface.params {
                params[*offset as usize / 4].clone_from(name);
            }
            let slot = |b: &Binding| Slot { name: b.name.clone(), number: b.index, writable: b.writable };
            let bindings = interface.bindings.iter().map(slot).collect();
            let file = self.kernels[kernel].file.clone();
            self.pipelines.push(Pipeline { kernel: file, number: kernel, entry, params, bindings });
            self.pipelines.len() - 1
        });
        (number, interface)
    }
}

/// A launch and the part of the model that it is of, for messages.
fn of(step: &Step) -> String {
    match &*step.label {
        "" => step.name().to_owned(),
        label => format!("{} of {label}", step.name()),
    }
}
