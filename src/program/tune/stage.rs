//! One launch on memory of its own, which runs its variants on fixed numbers and compares their results.

use std::collections::BTreeMap;
use std::sync::Arc;

use half::f16;

use crate::device::Buffer;
use crate::device::gpu::{Bound, Gpu};
use crate::error::Result;
use crate::launch::Variant;
use crate::philox::{Stream, draw, uniform};
use crate::program::access::widened;
use crate::program::gpu::bind;
use crate::program::memory::GUARD;
use crate::program::place::{Operands, Place};
use crate::program::plan::{Plan, Step};
use crate::tensor::{DType, Id};

/// Largest distance of a result from the default's, as a fraction of the largest number of the tensor: sums
/// in another order, of f32 numbers.
const TOLERANCE: f64 = 1e-4;
/// The same of results that are rounded to 11 bits, or whose factors are.
const HALF_TOLERANCE: f64 = 2e-3;
/// Numbers after which the inputs repeat: a prime, so that no two rows are the same.
const PERIOD: usize = 1_000_003;

/// The tensors of one launch, on memory of their own.
pub(super) struct Stage<'a> {
    gpu: &'a Gpu,
    plan: &'a Plan,
    step: &'a Step,
    operands: Operands,
}

fn alloc(gpu: &Gpu, bytes: usize) -> Result<Place> {
    let buffer = gpu.alloc("tuning", bytes.next_multiple_of(256).max(256))?;
    Ok(Place { buffer: Buffer::Gpu(Arc::new(buffer)), offset: 0, bytes, half: false })
}

impl<'a> Stage<'a> {
    pub fn new(gpu: &'a Gpu, plan: &'a Plan, step: &'a Step) -> Result<Self> {
        // A tensor may stand among the reads twice.
        let mut places: BTreeMap<Id, Place> = BTreeMap::new();
        for id in step.reads.iter().chain(&step.writes) {
            if !places.contains_key(id) {
                let half = plan.dtypes[id.0] == DType::F16;
                places.insert(*id, Place { half, ..alloc(gpu, plan.spots[id.0].1)? });
            }
        }
        let scratch = step.scratch.iter().map(|&n| alloc(gpu, plan.lifetimes[n].bytes));
        let operands = Operands {
            reads: step.reads.iter().map(|id| places[id].clone()).collect(),
            writes: step.writes.iter().map(|id| places[id].clone()).collect(),
            scratch: scratch.collect::<Result<_>>()?,
        };
        let stage = Stage { gpu, plan, step, operands };
        stage.fill(&step.reads, &stage.operands.reads, 0)?;
        stage.derive(&places)?;
        Ok(stage)
    }

    /// Has each read that another step makes of these reads alone made by it, as in the program. Variants of
    /// a derivative may count on it: the weights of attention sum to 1 with the logarithms of its sums only.
    fn derive(&self, places: &BTreeMap<Id, Place>) -> Result<()> {
        let is_read = |ids: &[Id]| ids.iter().all(|id| self.step.reads.contains(id));
        let makes_reads = |other: &&Step| !std::ptr::eq(*other, self.step) && is_read(&other.writes);
        let of_these = |other: &&Step| is_read(&other.reads) && !other.reads.is_empty();
        for other in self.plan.steps.iter().filter(makes_reads).filter(of_these) {
            let at = |ids: &[Id]| ids.iter().map(|id| places[id].clone()).collect();
            let scratch = other.scratch.iter().map(|&n| alloc(self.gpu, self.plan.lifetimes[n].bytes));
            let operands = Operands {
                reads: at(&other.reads),
                writes: at(&other.writes),
                scratch: scratch.collect::<Result<_>>()?,
            };
            let variant = other.tuning().variants(&self.gpu.traits()).first().map_or(0, |v| v.index);
            let cost = self.plan.cost_of(other);
            self.gpu.replay(&bind(self.gpu, other, cost, variant, None, &operands)?)?;
        }
        Ok(())
    }

    /// Numbers in (-1, 1); of words, which may be positions in other tensors, zeros. `salt`: that of the
    /// first tensor.
    fn fill(&self, ids: &[Id], places: &[Place], salt: usize) -> Result<()> {
        for (number, (id, place)) in ids.iter().zip(places).enumerate() {
            let mut period = vec![0.0_f32; (place.bytes / if place.half { 2 } else { 4 }).min(PERIOD)];
            if self.plan.dtypes[id.0] != DType::U32 {
                for (block, four) in period.chunks_mut(4).enumerate() {
                    let words = draw(0, Stream::Generate as u32, 0, (salt + number) as u32, block as u32);
                    four.iter_mut().zip(words).for_each(|(value, word)| *value = 2.0 * uniform(word) - 1.0);
                }
            }
            self.write_periodic(place, &period)?;
        }
        Ok(())
    }

    fn write_periodic(&self, place: &Place, period: &[f32]) -> Result<()> {
        let Buffer::Gpu(buffer) = &place.buffer else { unreachable!("a stage is on a GPU") };
        let halves: Vec<f16>;
        let bytes: &[u8] = if place.half {
            // An even number, as a write takes whole words.
            halves = period[..period.len() & !1].iter().map(|&v| f16::from_f32(v)).collect();
            bytemuck::cast_slice(&halves)
        } else {
            bytemuck::cast_slice(period)
        };
        for first in (0..place.bytes).step_by(bytes.len().max(4)) {
            self.gpu.write(buffer, first, &bytes[..bytes.len().min(place.bytes - first)])?;
        }
        Ok(())
    }

    pub fn dispatches(&self, variant: &Variant) -> Result<Vec<Bound>> {
        let cost = self.plan.cost_of(self.step);
        bind(self.gpu, self.step, cost, variant.index, None, &self.operands)
    }

    /// Results of a run: from the same numbers for each variant where a launch updates what it writes, and
    /// with NaN in its working memory.
    pub fn results(&self, dispatches: &[Bound]) -> Result<Vec<Vec<f32>>> {
        self.fill(&self.step.writes, &self.operands.writes, self.step.reads.len())?;
        let dirt = vec![f32::from_bits(GUARD); PERIOD];
        self.operands.scratch.iter().try_for_each(|place| self.write_periodic(place, &dirt))?;
        self.gpu.replay(dispatches)?;
        let read = |place: &Place| {
            let Buffer::Gpu(buffer) = &place.buffer else { unreachable!("a stage is on a GPU") };
            let mut words = vec![0_u32; place.bytes / 4];
            self.gpu.read(buffer, 0, bytemuck::cast_slice_mut(&mut words))?;
            Ok(if place.half { widened(&words) } else { bytemuck::cast_vec(words) })
        };
        self.operands.writes.iter().map(read).collect()
    }

    /// The first number that is too far from the wanted one, in words. `rounds`: as that of a variant.
    pub fn fault(&self, wanted: &[Vec<f32>], got: &[Vec<f32>], rounds: bool) -> Option<String> {
        let pairs = wanted.iter().zip(got).zip(&self.step.writes).enumerate();
        for (tensor, ((wanted, got), id)) in pairs {
            let scale = wanted.iter().fold(0.0, |top, v| f64::from(v.abs()).max(top));
            let same = |a: f32, b: f32| match self.plan.dtypes[id.0] {
                DType::F32 if !rounds => (f64::from(a) - f64::from(b)).abs() <= TOLERANCE * scale,
                DType::F32 | DType::F16 => (f64::from(a) - f64::from(b)).abs() <= HALF_TOLERANCE * scale,
                DType::U32 => a.to_bits() == b.to_bits(),
            };
            if let Some(at) = (0..wanted.len()).find(|&i| !same(wanted[i], got[i])) {
                let (got, wanted) = (got[at], wanted[at]);
                return Some(format!("number {at} of result {tensor} is {got}, the default gives {wanted}"));
            }
        }
        None
    }
}
