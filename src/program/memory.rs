//! Memory of temporary tensors: those that are never alive together share it.

/// How a program gives out memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// Tensors that are never alive together share memory.
    Shared,
    /// Every tensor has its own, so that all can be read after a run.
    Separate,
    /// As `Separate`, between guard words, and everything is filled with NaN before each run. For tests.
    Guarded,
}

/// Bytes around each tensor of a guarded program, filled with `GUARD`.
pub(super) const GUARD_BYTES: usize = 256;
pub(super) const GUARD: u32 = 0x7fc0_dead; // a NaN that no arithmetic makes
pub(super) const CPU_ALIGN: usize = 64;

/// A temporary tensor: alive from launch `first` to launch `last`, both included.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lifetime {
    pub first: usize,
    pub last: usize,
    pub bytes: usize,
}

impl Lifetime {
    fn overlaps(&self, other: &Lifetime) -> bool {
        self.first <= other.last && other.first <= self.last
    }
}

/// Blocks of memory, and the place of each tensor in them.
pub(super) struct Layout {
    /// Of each lifetime its block and the first byte there.
    pub places: Vec<(usize, usize)>,
    /// Bytes of each block.
    pub blocks: Vec<usize>,
}

impl Layout {
    /// On a GPU with memory shared a block for each tensor of those that share it, on the CPU device one
    /// block.
    pub fn of(lifetimes: &[Lifetime], for_gpu: bool, sharing: Sharing) -> Layout {
        let guard = match sharing {
            Sharing::Shared if for_gpu => {
                let (slot_of, blocks) = slots(lifetimes);
                return Layout { places: slot_of.into_iter().map(|slot| (slot, 0)).collect(), blocks };
            }
            Sharing::Shared => {
                let (offsets, total) = arena(lifetimes, CPU_ALIGN);
                let places = offsets.into_iter().map(|offset| (0, offset)).collect();
                return Layout { places, blocks: vec![total] };
            }
            Sharing::Separate => 0,
            Sharing::Guarded => GUARD_BYTES,
        };
        Layout {
            places: (0..lifetimes.len()).map(|i| (i, guard)).collect(),
            blocks: lifetimes.iter().map(|l| l.bytes + 2 * guard).collect(),
        }
    }

    /// Bytes of all blocks.
    pub fn bytes(&self) -> u64 {
        self.blocks.iter().map(|&bytes| bytes as u64).sum()
    }
}

/// Largest first, which leaves the small ones to fill the gaps; ties in order of recording, so that plans
/// repeat.
fn by_size(items: &[Lifetime]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..items.len()).collect();
    order.sort_by_key(|&i| (std::cmp::Reverse(items[i].bytes), i));
    order
}

/// Offsets in one block, and the block's size: each tensor goes into the tightest gap between those alive
/// with it.
fn arena(items: &[Lifetime], align: usize) -> (Vec<usize>, usize) {
    let mut offsets = vec![0; items.len()];
    let mut placed: Vec<usize> = Vec::new(); // sorted by offset
    let mut total = 0;
    for i in by_size(items) {
        let bytes = items[i].bytes.next_multiple_of(align);
        let (mut best, mut best_gap) = (None, usize::MAX);
        let mut end = 0;
        for &j in placed.iter().filter(|&&j| items[j].overlaps(&items[i])) {
            if offsets[j] >= end + bytes && offsets[j] - end < best_gap {
                (best, best_gap) = (Some(end), offsets[j] - end);
            }
            end = end.max(offsets[j] + items[j].bytes.next_multiple_of(align));
        }
        offsets[i] = best.unwrap_or(end);
        total = total.max(offsets[i] + bytes);
        placed.insert(placed.partition_point(|&j| offsets[j] <= offsets[i]), i);
    }
    (offsets, total)
}

/// A buffer for each tensor, and the sizes of the buffers. A buffer holds one tensor at a time, because a
/// GPU must not see one buffer as read-only and as writable in the same dispatch, not even in disjoint
/// ranges.
fn slots(items: &[Lifetime]) -> (Vec<usize>, Vec<usize>) {
    let mut slot_of = vec![0; items.len()];
    let mut tenants: Vec<Vec<usize>> = Vec::new();
    for i in by_size(items) {
        // Slots are made in falling size: the last one that is free is the tightest.
        let free = tenants.iter().rposition(|t| t.iter().all(|&j| !items[j].overlaps(&items[i])));
        slot_of[i] = free.unwrap_or_else(|| {
            tenants.push(Vec::new());
            tenants.len() - 1
        });
        tenants[slot_of[i]].push(i);
    }
    let size = |t: &Vec<usize>| t.iter().map(|&i| items[i].bytes).max().unwrap_or(0);
    (slot_of, tenants.iter().map(size).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::philox::{Sequence, Stream};
    use rand::RngExt as _;

    fn random(n: usize) -> Vec<Lifetime> {
        let mut rng = Sequence::new(1, Stream::Generate, 0, 0);
        (0..n)
            .map(|_| {
                let first = rng.random_range(0..100);
                Lifetime { first, last: first + rng.random_range(0..20), bytes: rng.random_range(1..1000) }
            })
            .collect()
    }

    /// The most that is alive at one time: no plan can need less.
    fn floor(items: &[Lifetime], align: usize) -> usize {
        let alive = |t| items.iter().filter(move |i| i.first <= t && t <= i.last);
        (0..130).map(|t| alive(t).map(|i| i.bytes.next_multiple_of(align)).sum()).max().unwrap_or(0)
    }

    #[test]
    fn tensors_alive_together_never_overlap_in_the_arena() {
        let items = random(300);
        let (offsets, total) = arena(&items, 64);
        for i in 0..items.len() {
            for j in 0..i {
                let apart =
                    offsets[i] + items[i].bytes <= offsets[j] || offsets[j] + items[j].bytes <= offsets[i];
                assert!(apart || !items[i].overlaps(&items[j]), "{i} and {j}");
            }
        }
        let floor = floor(&items, 64);
        assert!(total >= floor && total <= floor * 5 / 4, "{total} bytes, at least {floor} are needed");
    }

    #[test]
    fn tensors_alive_together_never_share_a_slot() {
        let items = random(300);
        let (slot_of, sizes) = slots(&items);
        for i in 0..items.len() {
            assert!(sizes[slot_of[i]] >= items[i].bytes);
            for j in 0..i {
                assert!(slot_of[i] != slot_of[j] || !items[i].overlaps(&items[j]), "{i} and {j}");
            }
        }
    }
}
