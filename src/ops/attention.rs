//! Scaled dot-product attention of several heads, which keeps the logarithm of each row's sum instead of
//! the weights.

mod products;
mod twin;

#[cfg(test)]
mod tests;

use crate::device::gpu::adapters::Traits;
use crate::device::gpu::shader::Kernel;
use crate::kernel;
use crate::launch::{Dispatch, Dispatches, Io, Launch, LaunchInfo, Recorded, Slot, Tuning, Variant};
use crate::tape::Tensor;

macro_rules! kernel_of_lanes {
    ($($lanes:literal),*) => {
        kernel!(
            "attention",
            [$(
                [("LANES", $lanes), ("QUADS", "1u")],
                [("LANES", $lanes), ("QUADS", "2u")],
                [("LANES", $lanes), ("QUADS", "4u")]
            ),*]
        )
    };
}

/// Every split of a head's vec4 over threads; see `set_of`.
pub static KERNEL: Kernel = kernel_of_lanes!("1u", "2u", "4u", "8u", "16u", "32u", "64u");

/// Softmax and its derivative between matrix products; the threads that share a row.
pub static PRODUCTS: Kernel = kernel!("attention_products", [[("LANES", "1u")], [("LANES", "32u")]]);

/// Copies of each head's matrix, and back.
pub static HEADS: Kernel = kernel!("attention_heads");

/// Number of the set of knobs with so many threads a row, each with so many vec4.
fn set_of(lanes: usize, quads: usize) -> usize {
    (3 * lanes.ilog2() + quads.ilog2()) as usize
}

/// Threads a row of a set of knobs.
fn lanes_of(set: usize) -> usize {
    1 << (set / 3)
}

/// Threads of a workgroup, as in the kernels.
const GROUP: usize = 64;

/// Widest head that is accepted.
const WIDEST: usize = 512;

/// `y = softmax(q k^T / sqrt(D)) v` for each head, head h being the channels `h D .. (h+1) D` of all four,
/// `D = C / heads`: q, y `[N, T, C]`, k and v `[N, S, C]`. Vaswani et al. 2017 (arXiv:1706.03762), equation
/// 1.
///
/// # Panics
/// When the shapes do not fit, or a head is wider than 512.
#[track_caller]
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, heads: usize) -> Tensor {
    record(q, k, v, heads, false)
}

/// As [`attention`] with as many queries as keys, of which query t sees the keys 0 to t alone: each position
/// of a text, itself and those before it.
///
/// # Panics
/// As [`attention`], and when there are more or fewer keys than queries.
#[track_caller]
pub fn attention_causal(q: &Tensor, k: &Tensor, v: &Tensor, heads: usize) -> Tensor {
    record(q, k, v, heads, true)
}

#[track_caller]
fn record(q: &Tensor, k: &Tensor, v: &Tensor, heads: usize, causal: bool) -> Tensor {
    let shapes = || format!("q {}, k {}, v {}, {heads} heads", q.shape(), k.shape(), v.shape());
    let [n, queries, c] = q.shape().of_rank("attention");
    let [_, keys, _] = k.shape().of_rank("attention");
    let fits = k.dims() == [n, keys, c] && v.dims() == k.dims();
    assert!(fits, "attention: expected q [N, T, C], k and v [N, S, C]: {}", shapes());
    assert!(q.elements() * keys > 0, "attention: an empty tensor: {}", shapes());
    let d = c.checked_div(heads).unwrap_or(0);
    assert!(d > 0 && d * heads == c, "attention: {c} channels do not divide into heads: {}", shapes());
    assert!(d <= WIDEST, "attention: a head is at most {WIDEST} channels wide: {}", shapes());
    assert!(!causal || queries == keys, "attention_causal: as many keys as queries: {}", shapes());
    let size = Size { n, heads, d, queries, keys, causal };
    let lse_shape = [n, heads, queries].into();
    let [y, lse] = q.tape().launch(Forward(size).recorded(), &[q, k, v], [q.shape().clone(), lse_shape]);
    let lse = lse.exact();
    let (saved_q, saved_k, saved_v, saved_y) = (q.clone(), k.clone(), v.clone(), y.clone());
    q.tape().derivative(&[q, k, v], &[&y], move |dy| {
        let Some(dy) = &dy[0] else { return vec![None, None, None] };
        let reads = [&saved_q, &saved_k, &saved_v, &saved_y, &lse, dy];
        let shapes = [&saved_q, &saved_k, &saved_v].map(|x| x.shape().clone());
        dy.tape().launch(Backward(size).recorded(), &reads, shapes).map(Some).into()
    });
    y
}

#[derive(Clone, Copy, Debug)]
struct Size {
    n: usize,
    heads: usize,
    d: usize,
    queries: usize,
    keys: usize,
    /// Query t sees the keys 0 to t alone.
    causal: bool,
}

impl Size {
    fn channels(&self) -> usize {
        self.heads * self.d
    }

    fn scale(&self) -> f32 {
        (1.0 / (self.d as f64).sqrt()) as f32
    }

    /// Operations of one of the products of queries with keys, or of scores with values.
    fn product(&self) -> u64 {
        let scores = match self.causal {
            true => self.queries * (self.queries + 1) / 2,
            false => self.queries * self.keys,
        };
        2 * (self.pairs() * scores * self.d) as u64
    }

    /// How many keys a query sees: the first ones.
    fn seen_by(&self, query: usize) -> usize {
        if self.causal { query + 1 } else { self.keys }
    }

    /// Pairs of sample and head.
    fn pairs(&self) -> usize {
        self.n * self.heads
    }

    /// First element of a row of one head, in a tensor of `rows` rows a sample.
    fn at(&self, pair: usize, rows: usize, row: usize) -> usize {
        (pair / self.heads * rows + row) * self.channels() + pair % self.heads * self.d
    }

    /// Sizes of copies in which each head is a matrix of its own, padded to whole vec4.
    fn copied(&self) -> Size {
        Size { n: self.pairs(), heads: 1, d: self.d.next_multiple_of(4), ..*self }
    }

    /// A variant reads and writes such copies instead of the tensors.
    fn needs_copies(&self, products: bool) -> bool {
        !self.d.is_multiple_of(4) || (self.heads > 1 && products)
    }

    /// Elements of the copies of q and of k; 0 where no variant needs any.
    fn copy_elements(&self) -> [usize; 2] {
        let any = self.needs_copies(self.stored_scores() > 0);
        let Size { n, d, queries, keys, .. } = self.copied();
        [queries, keys].map(|rows| if any { n * rows * d } else { 0 })
    }

    fn tuning(self) -> Tuning {
        let Size { d, queries, keys, causal, .. } = self;
        let pairs = self.pairs().next_power_of_two();
        let form = if causal { ", causal" } else { "" };
        let class = format!("{queries} queries, {keys} keys{form}, heads of {d}, up to {pairs} of them");
        Tuning::new(class, move |adapter| self.variants(adapter))
    }

    fn variants(&self, adapter: &Traits) -> Vec<Variant> {
        self.online_variants().into_iter().chain(self.product_variants(adapter)).collect()
    }

    /// Variants that never store the scores: from as few threads a row as hold it, which saves barriers, to
    /// as many as have work, which take fewer registers each and fill a GPU with fewer rows.
    fn online_variants(&self) -> Vec<Variant> {
        let whole = (self.copied().d / 4).next_power_of_two();
        let splits = [4, 2, 1].into_iter().map(|quads| (whole / quads, quads));
        let fits = splits.filter(|&(lanes, quads)| lanes * quads == whole && lanes <= GROUP);
        let variant = |(lanes, quads)| {
            let name = format!("{lanes} lanes of {quads} vec4");
            Variant { name, index: set_of(lanes, quads), rounds: false }
        };
        fits.map(variant).collect()
    }
}

/// A launch on its tensors, or on copies of them in scratch.
struct Run<'a> {
    plan: &'a mut Dispatches,
    given: Size,
    /// Of what the kernels read and write.
    size: Size,
    copies: bool,
    /// Scratch block of the first copy.
    first: usize,
}

impl Run<'_> {
    fn new(plan: &mut Dispatches, given: Size, first: usize) -> Run<'_> {
        let copies = given.needs_copies(products::schedule_of(plan.variant()).is_some());
        Run { plan, given, size: if copies { given.copied() } else { given }, copies, first }
    }

    /// Where the kernels read or write a tensor: in it, or in its copy of this number.
    fn slot(&self, given: Slot, copy: usize) -> Slot {
        if self.copies { Slot::Scratch(self.first + copy) } else { given }
    }

    /// A tensor of `rows` rows a sample that the kernels read.
    fn take(&mut self, given: Slot, rows: usize, copy: usize) -> Slot {
        let slot = self.slot(given, copy);
        self.copy("take", rows, [given, slot]);
        slot
    }

    /// A tensor that the kernels have written.
    fn give(&mut self, given: Slot, rows: usize, copy: usize) {
        self.copy("give", rows, [self.slot(given, copy), given]);
    }

    fn copy(&mut self, entry: &'static str, rows: usize, [src, dst]: [Slot; 2]) {
        if self.copies {
            let (Size { heads, d, .. }, count) = (self.given, self.size.n * rows * self.size.d);
            let copy = self.plan.add(&HEADS, entry).bind("src", src).bind("dst", dst);
            copy.params([("count", count), ("heads", heads), ("rows", rows), ("d", d)]);
            copy.cover_in_sub_dispatches(count, GROUP);
        }
    }

    /// A dispatch of the online kernel with some threads for each of `rows` queries or keys of each head.
    fn online(&mut self, entry: &'static str, rows: usize) -> &mut Dispatch {
        let Size { n, heads, d, queries, keys, causal } = self.size;
        let set = self.plan.variant();
        let groups = n * heads * rows.div_ceil(GROUP / lanes_of(set));
        self.plan
            .add(&KERNEL, entry)
            .knobs(set)
            .params([("n", n), ("heads", heads), ("d", d), ("queries", queries), ("keys", keys)])
            .param("scale", self.given.scale())
            .param("causal", causal)
            .cover_in_sub_dispatches(groups, 1)
    }
}

/// Writes y and the logarithm of each row's sum of exponentials.
#[derive(Debug)]
struct Forward(Size);

impl Launch for Forward {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu(&self, io: &Io) {
        let reads = [0, 1, 2].map(|i| io.read(i));
        twin::forward(&self.0, reads, [0, 1].map(|i| io.write(i)), io.scratch(0));
    }

    fn gpu(&self, plan: &mut Dispatches) {
        let Size { queries, keys, .. } = self.0;
        let schedule = products::schedule_of(plan.variant());
        let mut run = Run::new(plan, self.0, 1);
        let q = run.take(Slot::Read(0), queries, 0);
        let [k, v] = [1, 2].map(|i| run.take(Slot::Read(i), keys, i));
        let y = run.slot(Slot::Write(0), 3);
        match schedule {
            Some(schedule) => run.forward_products(schedule, [q, k, v, y]),
            None => {
                let forward = run.online("forward", queries);
                forward.bind("q", q).bind("k", k).bind("v", v).bind("y", y).write("lse", 1);
            }
        }
        run.give(Slot::Write(0), queries, 3);
    }
}

impl Forward {
    fn recorded(self) -> Recorded {
        let Forward(size) = self;
        let [q, k] = size.copy_elements();
        let info = LaunchInfo {
            flops: 2 * size.product(),
            cpu_scratch: vec![twin::forward_scratch(&size)],
            // Scores, then copies of q, k, v and y.
            gpu_scratch: vec![size.stored_scores(), q, k, k, q],
            tuning: size.tuning(),
            ..LaunchInfo::default()
        };
        Recorded::new(self, info)
    }
}

/// Writes dq, dk and dv from q, k, v, y, the logarithms and dy.
#[derive(Debug)]
struct Backward(Size);

impl Launch for Backward {
    fn name(&self) -> &'static str {
        "attention backward"
    }

    fn cpu(&self, io: &Io) {
        // Not the result: delta comes from the weights.
        let reads = [0, 1, 2, 4, 5].map(|i| io.read(i));
        twin::backward(&self.0, reads, [0, 1, 2].map(|i| io.write(i)), io.scratch(0));
    }

    fn gpu(&self, plan: &mut Dispatches) {
        let Size { queries, keys, .. } = self.0;
        let schedule = products::schedule_of(plan.variant());
        let mut run = Run::new(plan, self.0, 3);
        let q = run.take(Slot::Read(0), queries, 0);
        let [k, v] = [1, 2].map(|i| run.take(Slot::Read(i), keys, i));
        let dy = run.take(Slot::Read(5), queries, 4);
        let [dq, dk, dv] = [0, 1, 2].map(|i| run.slot(Slot::Write(i), 5 + i));
        match schedule {
            Some(schedule) => run.backward_products(schedule, [q, k, v, dy], [dq, dk, dv]),
            None => {
                let y = run.take(Slot::Read(3), queries, 3);
                let of_q = run.online("backward_q", queries);
                of_q.bind("q", q).bind("k", k).bind("v", v).bind("saved_y", y).bind("dy", dy);
                of_q.read("saved_lse", 4).bind("dq", dq).scratch("new_delta", 0);
                let of_kv = run.online("backward_kv", keys);
                of_kv.bind("q", q).bind("k", k).bind("v", v).bind("dy", dy);
                of_kv.read("saved_lse", 4).scratch("delta", 0).bind("dk", dk).bind("dv", dv);
            }
        }
        for (i, rows) in [queries, keys, keys].into_iter().enumerate() {
            run.give(Slot::Write(i), rows, 5 + i);
        }
    }
}

impl Backward {
    fn recorded(self) -> Recorded {
        let Backward(size) = self;
        let ([q, k], scores) = (size.copy_elements(), size.stored_scores());
        let info = LaunchInfo {
            // Of the derivative alone; the scores, which are computed anew, are not counted.
            flops: 4 * size.product(),
            cpu_scratch: vec![twin::backward_scratch(&size)],
            // delta, scores and their gradients, then copies of q, k, v, y, dy, dq, dk and dv.
            gpu_scratch: vec![size.pairs() * size.queries, scores, scores, q, k, k, q, q, q, k, k],
            tuning: size.tuning(),
            ..LaunchInfo::default()
        };
        Recorded::new(self, info)
    }
}
