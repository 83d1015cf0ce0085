//! A plan on a GPU: the dispatches of its launches with their pipelines and bind groups.

use super::place::{Operands, Place};
use super::plan::Step;
use crate::device::Buffer;
use crate::device::gpu::{Bound, Gpu, Grid, Range};
use crate::error::Result;
use crate::launch::{Bind, Cost, Dispatch};

/// Operations of a launch, with bytes: they cost a slow GPU some sixteen operations each.
pub(super) fn work_of(cost: Cost) -> u64 {
    cost.flops + 16 * cost.bytes
}

/// Binds all dispatches of a step as the variant of this index, in sub-dispatches where their kernels can be
/// split.
/// `ms`: its time, where that was measured.
pub(super) fn bind(
    gpu: &Gpu,
    step: &Step,
    cost: Cost,
    variant: usize,
    ms: Option<f64>,
    operands: &Operands,
) -> Result<Vec<Bound>> {
    let dispatches = step.dispatches(variant);
    let work = work_of(cost) / dispatches.len().max(1) as u64;
    let sub_dispatches = gpu.sub_dispatches(work, ms);
    let mut all = Vec::new();
    for dispatch in &dispatches {
        let bound = bind_dispatch(gpu, step, dispatch, operands, sub_dispatches)?;
        let each = work / bound.len() as u64;
        all.extend(bound.into_iter().map(|bound| bound.of_work(each)));
    }
    Ok(all)
}

fn bind_dispatch(
    gpu: &Gpu,
    step: &Step,
    dispatch: &Dispatch,
    operands: &Operands,
    sub_dispatches: usize,
) -> Result<Vec<Bound>> {
    let range = |bind: &Bind| {
        let place = operands.of(bind.slot);
        let (buffer, [offset, bytes]) = range_of(step, bind, place);
        let Buffer::Gpu(buffer) = buffer else { unreachable!("a GPU program has GPU memory") };
        (bind.name, Range { buffer, offset, bytes, half: place.half })
    };
    let ranges: Vec<(&str, Range)> = dispatch.binds.iter().map(range).collect();
    let Dispatch { kernel, entry, knobs, .. } = *dispatch;
    let parts = parts_of(dispatch, gpu.grid, sub_dispatches).into_iter();
    parts.map(|(params, groups)| gpu.bind(kernel, entry, knobs, &params, &ranges, groups)).collect()
}

/// The part of a tensor's memory that a binding sees: first byte and bytes.
pub(super) fn range_of<'a, B>(step: &Step, bind: &Bind, place: &'a Place<B>) -> (&'a B, [usize; 2]) {
    let Some((first, count)) = bind.range else { return (&place.buffer, [place.offset, place.bytes]) };
    let element = if place.half { 2 } else { 4 };
    let [first, end] = [first, first + count].map(|number| number * element);
    assert!(end <= place.bytes, "{}: range outside the tensor", step.name());
    (&place.buffer, [place.offset + first, (end - first).next_multiple_of(4)])
}

/// The parameters and workgroups of a dispatch, or of the sub-dispatches that it may be cut into.
pub(super) fn parts_of(
    dispatch: &Dispatch,
    grid: Grid,
    sub_dispatches: usize,
) -> Vec<(Vec<(&'static str, u32)>, [u32; 3])> {
    let divisible = dispatch.divisible;
    let grid = if divisible { grid } else { Grid { sub_dispatches: 1, ..grid } };
    let layout = grid.layout(dispatch.groups, if divisible { sub_dispatches } else { 1 });
    let part = |(first, groups)| {
        let first_group = divisible.then_some(("first_group", first));
        (dispatch.params.iter().copied().chain(first_group).collect(), groups)
    };
    layout.into_iter().map(part).collect()
}
