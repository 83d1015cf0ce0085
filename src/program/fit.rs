//! Whether a plan fits a device: the memory that it takes, and what its dispatches bind.

use super::memory::{Layout, Sharing};
use super::plan::{Plan, Spot, Step};
use crate::device::{Device, size};
use crate::error::{Error, Result};
use crate::launch::{Bind, Slot};

impl Plan {
    /// Bytes of temporary tensors if each had its own memory.
    pub fn separate_bytes(&self) -> u64 {
        self.lifetimes.iter().map(|l| l.bytes as u64).sum()
    }

    /// Bytes of temporary tensors with memory shared.
    pub fn shared_bytes(&self) -> u64 {
        self.layout_of(Sharing::Shared, &self.untuned()).bytes()
    }

    /// With room for every variant of each step.
    pub(super) fn layout(&self, sharing: Sharing) -> Layout {
        Layout::of(&self.lifetimes, self.adapter.is_some(), sharing)
    }

    /// With room for these variants of the steps alone; where memory is not shared, for every one.
    pub(super) fn layout_of(&self, sharing: Sharing, variants: &[usize]) -> Layout {
        let mut lifetimes = self.lifetimes.clone();
        let has_variants = self.adapter.is_some() && sharing == Sharing::Shared;
        for (step, variant) in self.steps.iter().zip(variants).filter(|_| has_variants) {
            let dispatches = step.dispatches(*variant);
            let bound: Vec<Slot> = dispatches.iter().flat_map(|d| &d.binds).map(|bind| bind.slot).collect();
            let blocks = step.scratch.iter().enumerate();
            let unused = blocks.filter(|(number, _)| !bound.contains(&Slot::Scratch(*number)));
            unused.for_each(|(_, block)| lifetimes[*block].bytes = 0);
        }
        Layout::of(&lifetimes, self.adapter.is_some(), sharing)
    }

    /// The variants of the steps that run where nothing was tuned.
    pub(super) fn untuned(&self) -> Vec<usize> {
        self.steps.iter().map(|step| self.adapter.map_or(0, |adapter| step.untuned(&adapter))).collect()
    }

    /// The largest range that a dispatch binds untuned, in bytes; on the CPU device the largest tensor that a
    /// launch touches.
    pub(crate) fn largest_binding(&self) -> u64 {
        if self.adapter.is_none() {
            let used = self.spots.iter().filter(|(spot, _)| !matches!(spot, Spot::Unused));
            return used.map(|(_, bytes)| *bytes as u64).max().unwrap_or(0);
        }
        self.steps.iter().map(|step| self.binding_of(step)).max().unwrap_or(0)
    }

    /// The largest range that a dispatch of `step` binds untuned, in bytes.
    fn binding_of(&self, step: &Step) -> u64 {
        let untuned = self.adapter.map(|a| step.dispatches(step.untuned(&a))).unwrap_or_default();
        let bytes = |bind: &Bind| match (bind.range, bind.slot) {
            (Some((_, count)), Slot::Read(i)) => count * self.dtypes[step.reads[i].0].bytes(),
            (Some((_, count)), _) => count * 4,
            (None, Slot::Read(i)) => self.spots[step.reads[i].0].1,
            (None, Slot::Write(i)) => self.spots[step.writes[i].0].1,
            (None, Slot::Scratch(i)) => self.lifetimes[step.scratch[i]].bytes,
        };
        untuned.iter().flat_map(|dispatch| &dispatch.binds).map(|bind| bytes(bind) as u64).max().unwrap_or(0)
    }

    /// An error that names a launch that binds more than `device` allows.
    pub(crate) fn check_bindings(&self, device: &Device) -> Result<()> {
        let Device::Gpu(gpu) = device else { return Ok(()) };
        let Some(step) = self.steps.iter().find(|step| self.binding_of(step) > gpu.max_binding()) else {
            return Ok(());
        };
        let label = if step.label.is_empty() { String::new() } else { format!(" of {}", step.label) };
        let [needed, most] = [self.binding_of(step), gpu.max_binding()].map(size);
        let message =
            format!("{}{label} binds a tensor of {needed}, {} at most {most}", step.name(), gpu.name());
        Err(Error::new(message).hint("take a smaller batch or smaller images, or use --device cpu"))
    }

    /// The plan of the first of `batches`, tried in order, whose tensors `device` can bind; of the last, if
    /// it can bind none. `plan_of` gives the plan of a batch, with what else the caller wants of it.
    pub(crate) fn of_batch<T>(
        device: &Device,
        batches: impl IntoIterator<Item = usize>,
        plan_of: impl FnMut(usize) -> (Plan, T),
    ) -> (Plan, T) {
        let mut plans = batches.into_iter().map(plan_of).peekable();
        loop {
            let (plan, more) = plans.next().expect("a batch to plan for");
            if plan.check_bindings(device).is_ok() || plans.peek().is_none() {
                return (plan, more);
            }
        }
    }
}
