//! Steps cut into portions whose tensors an adapter can bind, and what carries tensors of portions to where a
//! binding may begin.

use std::sync::Arc;

use crate::device::gpu::adapters::Traits;
use crate::device::gpu::shader::Kernel;
use crate::kernel;
use crate::launch::cut::{Cut, Share};
use crate::launch::{Bind, Dispatch, Dispatches, Launch, Slot};

pub(crate) static KERNEL: Kernel = kernel!("parts");

/// Bindings begin at multiples of so many elements.
const ALIGN: usize = 64;

/// What a portion has of a tensor: `outer` runs of `count` elements, `stride` apart.
#[derive(Clone, Copy)]
struct View {
    outer: usize,
    stride: usize,
    first: usize,
    count: usize,
    /// It is added to what earlier portions gave.
    is_summand: bool,
}

impl View {
    fn whole(elements: usize) -> View {
        View { outer: 1, stride: elements, first: 0, count: elements, is_summand: false }
    }

    fn elements(&self) -> usize {
        self.outer * self.count
    }

    /// A binding can see it where it lies; otherwise it is carried to memory of its own, and back.
    fn is_in_place(&self) -> bool {
        self.outer == 1 && self.first.is_multiple_of(ALIGN) && !self.is_summand
    }

    /// Some of its items, where it is `[outer, items, ..]`.
    fn slice(self, outer: usize, items: usize, first: usize, count: usize) -> View {
        assert!(self.outer == 1 || self.outer == outer, "a tensor is cut within all its runs");
        let run = self.elements() / outer;
        let item = run / items;
        let stride = if self.outer == 1 { run } else { self.stride };
        View { outer, stride, first: self.first + first * item, count: count * item, ..self }
    }
}

/// A launch on parts of the tensors of its step.
struct Portion {
    launch: Arc<dyn Launch>,
    reads: Vec<View>,
    writes: Vec<View>,
}

/// What runs for a step, in order: its launch, or launches of its kind on parts of its tensors.
pub(super) struct Portions {
    list: Vec<Portion>,
    /// How many blocks of working memory the launches have at most; after them come those of `carried`.
    own: usize,
    /// Tensors that a portion has in memory of its own.
    carried: Vec<Slot>,
}

impl Portions {
    /// Cuts `launch` until no binding of it, in any variant, has more than `limit` elements, as far as it can
    /// be cut. `reads`, `writes`: elements of its tensors.
    pub(super) fn of(
        launch: &Arc<dyn Launch>,
        reads: &[usize],
        writes: &[usize],
        adapter: &Traits,
        limit: usize,
    ) -> Portions {
        let views = |elements: &[usize]| elements.iter().copied().map(View::whole).collect();
        let mut rest =
            vec![Portion { launch: Arc::clone(launch), reads: views(reads), writes: views(writes) }];
        let mut list = Vec::new();
        while let Some(portion) = rest.pop() {
            match portion.cut(adapter, limit) {
                Some(smaller) => rest.extend(smaller.into_iter().rev()),
                None => list.push(portion),
            }
        }
        let slots = (0..reads.len()).map(Slot::Read).chain((0..writes.len()).map(Slot::Write));
        let is_carried = |slot: &Slot| list.iter().any(|p: &Portion| !p.view(*slot).is_in_place());
        let carried = slots.filter(is_carried).collect();
        let own = list.iter().map(|portion| portion.launch.gpu_scratch().len()).max().unwrap_or(0);
        Portions { list, own, carried }
    }

    #[cfg(any(test, feature = "testing"))]
    pub(super) fn count(&self) -> usize {
        self.list.len()
    }

    #[cfg(any(test, feature = "testing"))]
    pub(super) fn adds(&self) -> bool {
        self.list.iter().any(|portion| portion.writes.iter().any(|view| view.is_summand))
    }

    /// Elements of working memory, one number a block.
    pub(super) fn scratch(&self) -> Vec<usize> {
        let mut blocks = vec![0; self.own];
        for portion in &self.list {
            for (block, elements) in blocks.iter_mut().zip(portion.launch.gpu_scratch()) {
                *block = elements.max(*block);
            }
        }
        let most = |slot: &Slot| self.list.iter().map(|p| p.view(*slot).elements()).max().unwrap_or(0);
        blocks.extend(self.carried.iter().map(most));
        blocks
    }

    /// The dispatches of all, with the step's tensors and working memory.
    pub(super) fn dispatches(&self, variant: usize) -> Vec<Dispatch> {
        self.list.iter().flat_map(|portion| self.dispatches_of(portion, variant)).collect()
    }

    fn dispatches_of(&self, portion: &Portion, variant: usize) -> Vec<Dispatch> {
        let mut before = Dispatches::none();
        let mut after = Dispatches::none();
        for (number, slot) in self.carried.iter().enumerate() {
            let (view, block) = (portion.view(*slot), Slot::Scratch(self.own + number));
            if view.is_in_place() {
                continue;
            }
            for run in 0..view.outer {
                let (there, here) = (view.first + run * view.stride, run * view.count);
                // What is written may be updated, too.
                if !view.is_summand {
                    carry(&mut before, "copy", view.count, (*slot, there), (block, here));
                }
                if matches!(slot, Slot::Write(_)) {
                    let entry = if view.is_summand { "add" } else { "copy" };
                    carry(&mut after, entry, view.count, (block, here), (*slot, there));
                }
            }
        }
        let mut all = before.list;
        for mut dispatch in Dispatches::of(&*portion.launch, variant).list {
            dispatch.binds.iter_mut().for_each(|bind| self.place(portion, bind));
            all.push(dispatch);
        }
        all.append(&mut after.list);
        all
    }

    /// From the portion's tensors to those of the step.
    fn place(&self, portion: &Portion, bind: &mut Bind) {
        if matches!(bind.slot, Slot::Scratch(_)) || self.list.len() == 1 {
            return;
        }
        let view = portion.view(bind.slot);
        let (first, count) = bind.part.unwrap_or((0, view.elements()));
        if view.is_in_place() {
            bind.part = Some((view.first + first, count));
        } else {
            let number = self.carried.iter().position(|slot| *slot == bind.slot);
            bind.slot = Slot::Scratch(self.own + number.expect("what is not in place is carried"));
            bind.part = Some((first, count));
        }
    }
}

/// Adds a dispatch that copies or adds `n` elements, each from and to the slot's element of that number on.
fn carry(plan: &mut Dispatches, entry: &'static str, n: usize, from: (Slot, usize), to: (Slot, usize)) {
    let [source, target] = if entry == "add" { ["summand", "sum"] } else { ["words", "to"] };
    let dispatch = plan.add(&KERNEL, entry).param("n", n).cover(n, 256);
    for (name, first, (slot, at)) in [(source, "from_first", from), (target, "to_first", to)] {
        let past = at % ALIGN;
        dispatch.param(first, past).part(name, slot, at - past, n + past);
    }
}

impl Portion {
    fn view(&self, slot: Slot) -> View {
        match slot {
            Slot::Read(i) => self.reads[i],
            Slot::Write(i) => self.writes[i],
            Slot::Scratch(i) => View::whole(self.launch.gpu_scratch()[i]),
        }
    }

    /// What it binds too much of, with the elements: the most first.
    fn too_large(&self, adapter: &Traits, limit: usize) -> Vec<(Slot, usize)> {
        let scratch = self.launch.gpu_scratch();
        let tensors = self.reads.iter().chain(&self.writes).map(View::elements).chain(scratch);
        if tensors.max().unwrap_or(0) <= limit {
            return Vec::new();
        }
        let mut found = Vec::new();
        let variants = self.launch.variants(adapter);
        let indices = if variants.is_empty() { vec![0] } else { variants.iter().map(|v| v.index).collect() };
        for variant in indices {
            for bind in Dispatches::of(&*self.launch, variant).list.iter().flat_map(|d| &d.binds) {
                let elements = bind.part.map_or_else(|| self.view(bind.slot).elements(), |(_, count)| count);
                if elements > limit && !found.contains(&(bind.slot, elements)) {
                    found.push((bind.slot, elements));
                }
            }
        }
        found.sort_by_key(|&(_, elements)| std::cmp::Reverse(elements));
        found
    }

    /// The portions of it that run in its place; `None` where it needs no cut, or none helps.
    fn cut(&self, adapter: &Traits, limit: usize) -> Option<Vec<Portion>> {
        let too_large = self.too_large(adapter, limit);
        let cuts = if too_large.is_empty() { Vec::new() } else { self.launch.cuts() };
        too_large.into_iter().find_map(|(slot, elements)| {
            cuts.iter().find_map(|cut| self.along(cut, self.most_items(cut, slot, elements, limit)?))
        })
    }

    /// How many of the cut's items a portion may have for this tensor of `elements` to fit.
    fn most_items(&self, cut: &Cut, slot: Slot, elements: usize, limit: usize) -> Option<usize> {
        match slot {
            _ if cut.items < 2 => None,
            Slot::Scratch(i) => {
                let half = cut.items / 2;
                let smaller = cut.part(0, half).gpu_scratch().get(i).is_none_or(|&less| less < elements);
                smaller.then_some(half)
            }
            _ => {
                let slice = matches!(cut.share(slot), Some(Share::Slice { .. }));
                slice.then(|| limit / (elements / cut.items).max(1))
            }
        }
    }

    /// In portions of at most so many items, but at least one.
    fn along(&self, cut: &Cut, most: usize) -> Option<Vec<Portion>> {
        // Where it can be, so many that no tensor must be carried.
        let step = cut.slices().map(|(slot, outer)| {
            let item = self.view(slot).elements() / (outer * cut.items);
            if outer == 1 { ALIGN >> item.trailing_zeros().min(ALIGN.trailing_zeros()) } else { 1 }
        });
        let step = step.filter(|&step| step <= most).max().unwrap_or(1);
        let most = (most / step * step).clamp(1, cut.items);
        let count = cut.items.div_ceil(cut.items.div_ceil(most)).next_multiple_of(step);
        let portions = (0..cut.items).step_by(count);
        (count < cut.items).then(|| portions.map(|first| self.part(cut, first, count)).collect())
    }

    fn part(&self, cut: &Cut, first: usize, count: usize) -> Portion {
        let count = count.min(cut.items - first);
        let view = |slot: Slot| match cut.share(slot) {
            None => self.view(slot),
            Some(Share::Slice { outer }) => self.view(slot).slice(outer, cut.items, first, count),
            Some(Share::Summand) => {
                let view = self.view(slot);
                View { is_summand: view.is_summand || first > 0, ..view }
            }
        };
        Portion {
            launch: cut.part(first, count),
            reads: (0..self.reads.len()).map(|i| view(Slot::Read(i))).collect(),
            writes: (0..self.writes.len()).map(|i| view(Slot::Write(i))).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::launch::Io;

    /// Rows of `width` with a number each; what it keeps of a row is `room` words.
    #[derive(Clone, Copy, Debug)]
    struct Rows {
        rows: usize,
        room: usize,
    }

    impl Launch for Rows {
        fn name(&self) -> &'static str {
            "rows"
        }

        fn cpu(&self, _: &Io) {}

        fn gpu(&self, plan: &mut Dispatches) {
            plan.add(&KERNEL, "copy").read("words", 0).write("to", 0).scratch("sum", 0);
        }

        fn gpu_scratch(&self) -> Vec<usize> {
            vec![self.rows * self.room]
        }

        fn cuts(&self) -> Vec<Cut> {
            let room = self.room;
            vec![Cut::along(self.rows, move |_, rows| Rows { rows, room }).reads([0]).writes([0])]
        }
    }

    /// First row and number of rows of each portion.
    fn cut(rows: usize, room: usize, width: usize, limit: usize) -> (Portions, Vec<(usize, usize)>) {
        let launch: Arc<dyn Launch> = Arc::new(Rows { rows, room });
        let adapter = Traits { software: true, broadcasts: true };
        let portions = Portions::of(&launch, &[rows * width], &[rows], &adapter, limit);
        let of = |portion: &Portion| (portion.writes[0].first, portion.writes[0].count);
        let found: Vec<_> = portions.list.iter().map(of).collect();
        let mut next = 0;
        for ((first, count), portion) in found.iter().zip(&portions.list) {
            assert_eq!(*first, next);
            assert_eq!((portion.reads[0].first, portion.reads[0].count), (first * width, count * width));
            next += count;
        }
        assert_eq!(next, rows);
        (portions, found)
    }

    #[test]
    fn only_what_is_too_large_is_cut_and_as_little_as_may_be() {
        assert_eq!(cut(100, 1, 10, 1000).1, [(0, 100)]);
        assert_eq!(cut(100, 1, 10, 999).1.len(), 2);
        assert_eq!(cut(100, 1, 10, 10).1.len(), 100);
        // A row alone is too large.
        assert_eq!(cut(3, 1, 10, 9).1.len(), 3);
        assert_eq!(cut(1, 1, 10, 9).1.len(), 1);
        // Its working memory is.
        assert_eq!(cut(100, 10, 1, 250).1.len(), 4);
    }

    #[test]
    fn portions_begin_where_bindings_may_if_they_can() {
        let (portions, found) = cut(1000, 1, 64, 64 * 300);
        assert_eq!(found, [(0, 256), (256, 256), (512, 256), (768, 232)]);
        assert!(portions.carried.is_empty());
        assert_eq!(portions.scratch(), [256]);
        // Fewer rows fit than 64: their numbers are carried, they are not.
        let (portions, found) = cut(100, 1, 64, 64 * 30);
        assert_eq!(found.len(), 4);
        assert_eq!(portions.carried, [Slot::Write(0)]);
        assert_eq!(portions.scratch(), [25, 25]);
        // Of four dispatches that run, one begins where a binding may.
        assert_eq!(portions.dispatches(0).len(), 4 + 2 * 3);
    }

    #[test]
    fn slices_of_slices_are_where_they_should_be() {
        let view = View::whole(24).slice(2, 6, 1, 4); // of [2, 6, 2]
        assert_eq!((view.outer, view.stride, view.first, view.count), (2, 12, 2, 8));
        let view = view.slice(2, 4, 3, 1);
        assert_eq!((view.outer, view.stride, view.first, view.count), (2, 12, 8, 2));
        let view = View::whole(24).slice(1, 6, 1, 4).slice(1, 4, 3, 1);
        assert_eq!((view.outer, view.first, view.count), (1, 16, 4));
    }
}
