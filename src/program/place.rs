//! Memory of a compiled plan: a buffer and a range of it for each tensor.

use std::collections::BTreeMap;

use super::memory::Layout;
use super::plan::{Plan, Spot, Step};
use crate::device::{Buffer, Device};
use crate::error::Result;
use crate::launch::Slot;
use crate::tensor::{DType, Id};

/// Memory of one tensor, in a buffer of a device or in one that is only named.
#[derive(Clone)]
pub(super) struct Place<B = Buffer> {
    pub buffer: B,
    /// First byte.
    pub offset: usize,
    pub bytes: usize,
    /// It holds f16, where the launches see f32.
    pub half: bool,
}

/// Memory of the tensors of one step.
pub(super) struct Operands<B = Buffer> {
    pub reads: Vec<Place<B>>,
    pub writes: Vec<Place<B>>,
    pub scratch: Vec<Place<B>>,
}

impl<B> Operands<B> {
    pub fn of(&self, slot: Slot) -> &Place<B> {
        match slot {
            Slot::Read(i) => &self.reads[i],
            Slot::Write(i) => &self.writes[i],
            Slot::Scratch(i) => &self.scratch[i],
        }
    }
}

/// Memory of all tensors of a plan.
pub(super) struct Placement<B = Buffer> {
    /// Memory of the temporary tensors.
    pub blocks: Vec<B>,
    /// Of each store what the program uses, from its beginning.
    pub stores: BTreeMap<String, Place<B>>,
    /// By the tensors' identities; `None` for those that no launch touches.
    places: Vec<Option<Place<B>>>,
    /// By the numbers of the lifetimes.
    temporaries: Vec<Place<B>>,
}

impl Placement {
    /// Allocates the blocks of `layout` and the stores that are not in `bound`.
    pub fn allocate(
        plan: &Plan,
        layout: &Layout,
        device: &Device,
        bound: &[(&str, &Buffer)],
    ) -> Result<Placement> {
        let block = |_, bytes| device.alloc("activations", bytes);
        Placement::of(plan, layout, block, |name, bytes| {
            let buffer = match bound.iter().find(|(n, _)| *n == name) {
                Some((_, buffer)) => (*buffer).clone(),
                None => device.alloc(name, bytes)?,
            };
            assert!(buffer.bytes() >= bytes, "store {name}: {} bytes, {bytes} are used", buffer.bytes());
            Ok(buffer)
        })
    }

    /// Bytes to allocate: those of `layout` and of the stores that are not in `bound`.
    pub fn bytes(plan: &Plan, layout: &Layout, bound: &[(&str, &Buffer)]) -> u64 {
        let is_bound = |name: &str| bound.iter().any(|(n, _)| *n == name);
        let own = plan.stores().filter(|(name, _)| !is_bound(name));
        layout.bytes() + own.map(|(_, bytes)| bytes as u64).sum::<u64>()
    }

    /// Whether every word around every tensor of a guarded program is `guard`.
    pub fn guards_intact(&self, device: &Device, guard: u32) -> Result<bool> {
        for (block, place) in self.blocks.iter().zip(&self.temporaries) {
            let mut words = vec![0_u32; (2 * place.offset + place.bytes) / 4];
            device.read(block, 0, bytemuck::cast_slice_mut(&mut words))?;
            let (before, after) = (place.offset / 4, (place.offset + place.bytes) / 4);
            if words[..before].iter().chain(&words[after..]).any(|&word| word != guard) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

impl<B: Clone> Placement<B> {
    /// The blocks of `layout` and the stores, as `block` makes them by number and size, and `store` by name
    /// and size.
    pub fn of(
        plan: &Plan,
        layout: &Layout,
        mut block: impl FnMut(usize, usize) -> Result<B>,
        mut store: impl FnMut(&str, usize) -> Result<B>,
    ) -> Result<Placement<B>> {
        let blocks = layout.blocks.iter().enumerate().map(|(number, &bytes)| block(number, bytes));
        let blocks = blocks.collect::<Result<Vec<_>>>()?;
        let mut stores = BTreeMap::new();
        for (name, bytes) in plan.stores() {
            stores.insert(
                name.to_owned(),
                Place { buffer: store(name, bytes)?, offset: 0, bytes, half: false },
            );
        }
        let temporaries: Vec<Place<B>> = layout
            .places
            .iter()
            .zip(&plan.lifetimes)
            .map(|(&(block, offset), lifetime)| Place {
                buffer: blocks[block].clone(),
                offset,
                bytes: lifetime.bytes,
                half: false,
            })
            .collect();
        let place = |((spot, bytes), dtype): (&(Spot, usize), &DType)| match spot {
            Spot::Temporary(n) => Some(Place { half: *dtype == DType::F16, ..temporaries[*n].clone() }),
            Spot::Stored { store, offset } => {
                let half = *dtype == DType::F16;
                Some(Place { offset: *offset, bytes: *bytes, half, ..stores[&**store].clone() })
            }
            Spot::Unused => None,
        };
        let places = plan.spots.iter().zip(&plan.dtypes).map(place).collect();
        Ok(Placement { blocks, stores, places, temporaries })
    }

    /// `None` where no launch touches the tensor.
    pub fn place(&self, id: Id) -> Option<&Place<B>> {
        self.places[id.0].as_ref()
    }

    pub fn operands(&self, step: &Step) -> Operands<B> {
        let of = |ids: &[Id]| ids.iter().filter_map(|id| self.place(*id)).cloned().collect();
        Operands {
            reads: of(&step.reads),
            writes: of(&step.writes),
            scratch: step.scratch.iter().map(|&n| self.temporaries[n].clone()).collect(),
        }
    }
}
