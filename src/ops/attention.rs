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

/// Every split of a head's vec4 over threads that some width has; see `set_of`.
pub static KERNEL: Kernel = kernel!(
    "attention",
    [
        [("LANES", "1u"), ("QUADS", "1u")],
        [("LANES", "1u"), ("QUADS", "2u")],
        [("LANES", "1u"), ("QUADS", "4u")],
        [("LANES", "2u"), ("QUADS", "1u")],
        [("LANES", "2u"), ("QUADS", "2u")],
        [("LANES", "2u"), ("QUADS", "4u")],
        [("LANES", "4u"), ("QUADS", "1u")],
        [("LANES", "4u"), ("QUADS", "2u")],
        [("LANES", "4u"), ("QUADS", "4u")],
        [("LANES", "8u"), ("QUADS", "1u")],
        [("LANES", "8u"), ("QUADS", "2u")],
        [("LANES", "8u"), ("QUADS", "4u")],
        [("LANES", "16u"), ("QUADS", "1u")],
        [("LANES", "16u"), ("QUADS", "2u")],
        [("LANES", "16u"), ("QUADS", "4u")],
        [("LANES", "32u"), ("QUADS", "1u")],
        [("LANES", "32u"), ("QUADS", "2u")],
        [("LANES", "32u"), ("QUADS", "4u")],
        [("LANES", "64u"), ("QUADS", "1u")],
        [("LANES", "64u"), ("QUADS", "2u")],
    ]
);

/// Softmax and its derivative between matrix products; the threads that share a row.
pub static PRODUCTS: Kernel = kernel!("attention_products", [[("LANES", "1u")], [("LANES", "32u")]]);

/// Number of the set of knobs with so many threads a row, each with so many vec4.
fn set_of(lanes: usize, quads: usize) -> usize {
    (3 * lanes.ilog2() + quads.ilog2()) as usize
}

/// Threads a row of a set of knobs.
fn lanes_of(set: usize) -> usize {
    1 << (set / 3)
}

/// Threads of a workgroup, as in the kernel.
const GROUP: usize = 64;

/// Widest head that the kernel's sets of knobs reach.
const WIDEST: usize = 512;

/// `y = softmax(q k^T / sqrt(D)) v` for each head, head h being the channels `h D .. (h+1) D` of all four,
/// `D = C / heads`: q, y `[N, T, C]`, k and v `[N, S, C]`. Vaswani et al. 2017 (arXiv:1706.03762), equation
/// 1.
///
/// # Panics
/// When the shapes do not fit, or a head is wider than 512.
#[track_caller]
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, heads: usize) -> Tensor {
    let shapes = || format!("q {}, k {}, v {}, {heads} heads", q.shape(), k.shape(), v.shape());
    let [n, queries, c] = q.shape().of_rank("attention");
    let [_, keys, _] = k.shape().of_rank("attention");
    let fits = k.dims() == [n, keys, c] && v.dims() == k.dims();
    assert!(fits, "attention: expected q [N, T, C], k and v [N, S, C]: {}", shapes());
    assert!(q.elements() * keys > 0, "attention: an empty tensor: {}", shapes());
    let d = c.checked_div(heads).unwrap_or(0);
    assert!(d > 0 && d * heads == c, "attention: {c} channels do not divide into heads: {}", shapes());
    assert!(d <= WIDEST, "attention: a head is at most {WIDEST} channels wide: {}", shapes());
    let size = Size { n, heads, d, queries, keys };

    let lse_shape = [n, heads, queries].into();
    let [y, lse] = q.tape().launch(Forward(size).recorded(), &[q, k, v], [q.shape().clone(), lse_shape]);
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
        2 * (self.pairs() * self.queries * self.keys * self.d) as u64
    }

    /// Pairs of sample and head.
    fn pairs(&self) -> usize {
        self.n * self.heads
    }

    /// First element of a row of one head, in a tensor of `rows` rows a sample.
    fn at(&self, pair: usize, rows: usize, row: usize) -> usize {
        (pair / self.heads * rows + row) * self.channels() + pair % self.heads * self.d
    }

    /// Channels of a head after padding to whole vec4.
    fn padded(&self) -> usize {
        self.d.next_multiple_of(4)
    }

    /// Elements of q and of k after padding.
    fn padded_elements(&self) -> [usize; 2] {
        [self.queries, self.keys].map(|rows| self.pairs() * rows * self.padded())
    }

    fn is_ragged(&self) -> bool {
        !self.d.is_multiple_of(4)
    }

    fn dispatch<'a>(&self, plan: &'a mut Dispatches, entry: &'static str, rows: usize) -> &'a mut Dispatch {
        plan.add(&KERNEL, entry)
            .param("n", self.n)
            .param("heads", self.heads)
            .param("d", self.d)
            .param("queries", self.queries)
            .param("keys", self.keys)
            .param("scale", self.scale())
            .param("rows", self.n * rows)
    }

    /// Scratch holds copies of the tensors: padded, or each head apart for products.
    fn copies(&self) -> bool {
        self.is_ragged() || (self.heads > 1 && self.suits_products())
    }

    fn variants(&self, adapter: &Traits) -> Vec<Variant> {
        self.walks().into_iter().chain(self.product_variants(adapter)).collect()
    }

    /// Those that never store the scores: from as few threads a row as hold it, which saves barriers, to as
    /// many as have work, which take fewer registers each and fill a GPU with fewer rows.
    fn walks(&self) -> Vec<Variant> {
        let whole = (self.padded() / 4).next_power_of_two();
        let splits = [4, 2, 1].into_iter().map(|quads| (whole / quads, quads));
        let fits = splits.filter(|&(lanes, quads)| lanes * quads == whole && lanes <= GROUP);
        fits.map(|(lanes, quads)| Variant {
            name: format!("{lanes} lanes of {quads} vec4"),
            index: set_of(lanes, quads),
        })
        .collect()
    }

    fn shape_class(&self) -> String {
        let Size { d, queries, keys, .. } = self;
        let pairs = self.pairs().next_power_of_two();
        format!("{queries} queries, {keys} keys, heads of {d}, up to {pairs} of them")
    }

    /// A dispatch with a row of threads for each of `rows` queries or keys of each head.
    fn dispatch_rows<'a>(
        &self,
        plan: &'a mut Dispatches,
        entry: &'static str,
        rows: usize,
    ) -> &'a mut Dispatch {
        let set = plan.variant();
        let groups = self.pairs() * rows.div_ceil(GROUP / lanes_of(set));
        self.dispatch(plan, entry, rows).knobs(set).cover_in_sub_dispatches(groups, 1)
    }

    fn pad(&self, plan: &mut Dispatches, rows: usize, read: usize, scratch: usize) {
        let elements = self.pairs() * rows * self.padded();
        self.dispatch(plan, "pad", rows)
            .read("narrow", read)
            .scratch("padded", scratch)
            .cover_in_sub_dispatches(elements, GROUP);
    }

    fn unpad(&self, plan: &mut Dispatches, rows: usize, scratch: usize, write: usize) {
        let elements = self.pairs() * rows * self.d;
        self.dispatch(plan, "unpad", rows)
            .scratch("wide", scratch)
            .write("unpadded", write)
            .cover_in_sub_dispatches(elements, GROUP);
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
        twin::forward(&self.0, reads, io.write(0), io.write(1), io.scratch(0));
    }

    fn gpu(&self, plan: &mut Dispatches) {
        let Forward(size) = self;
        if let Some(way) = products::way_of(plan.variant()) {
            return products::forward(size, plan, way);
        }
        if size.is_ragged() {
            size.pad(plan, size.queries, 0, 0);
            size.pad(plan, size.keys, 1, 1);
            size.pad(plan, size.keys, 2, 2);
            let forward = size.dispatch_rows(plan, "forward", size.queries);
            forward.scratch("q", 0).scratch("k", 1).scratch("v", 2).scratch("y", 3).write("lse", 1);
            size.unpad(plan, size.queries, 3, 0);
        } else {
            let forward = size.dispatch_rows(plan, "forward", size.queries);
            forward.read("q", 0).read("k", 1).read("v", 2).write("y", 0).write("lse", 1);
        }
    }
}

impl Forward {
    fn recorded(self) -> Recorded {
        let Forward(size) = self;
        let [queries, keys] = size.padded_elements();
        let copies = if size.copies() { vec![queries, keys, keys, queries] } else { Vec::new() };
        let info = LaunchInfo {
            flops: 2 * size.product(),
            cpu_scratch: vec![twin::forward_room(&size)],
            gpu_scratch: [copies, size.score_scratch(1)].concat(),
            tuning: Tuning::new(size.shape_class(), move |adapter| size.variants(adapter)),
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
        let Backward(size) = self;
        if let Some(way) = products::way_of(plan.variant()) {
            return products::backward(size, plan, way);
        }
        let ragged = size.is_ragged();
        // Reads and writes, or the scratch that takes their place.
        let pick = |given: Slot, padded: usize| if ragged { Slot::Scratch(padded) } else { given };
        let (q, k, v) = (pick(Slot::Read(0), 1), pick(Slot::Read(1), 2), pick(Slot::Read(2), 3));
        let (y, dy) = (pick(Slot::Read(3), 4), pick(Slot::Read(5), 5));
        let (dq, dk, dv) = (pick(Slot::Write(0), 6), pick(Slot::Write(1), 7), pick(Slot::Write(2), 8));
        if ragged {
            for (rows, read, scratch) in [
                (size.queries, 0, 1),
                (size.keys, 1, 2),
                (size.keys, 2, 3),
                (size.queries, 3, 4),
                (size.queries, 5, 5),
            ] {
                size.pad(plan, rows, read, scratch);
            }
        }
        size.dispatch_rows(plan, "backward_q", size.queries)
            .bind("q", q)
            .bind("k", k)
            .bind("v", v)
            .bind("saved_y", y)
            .read("saved_lse", 4)
            .bind("dy", dy)
            .bind("dq", dq)
            .scratch("new_delta", 0);
        size.dispatch_rows(plan, "backward_kv", size.keys)
            .bind("q", q)
            .bind("k", k)
            .bind("v", v)
            .bind("dy", dy)
            .read("saved_lse", 4)
            .scratch("delta", 0)
            .bind("dk", dk)
            .bind("dv", dv);
        if ragged {
            size.unpad(plan, size.queries, 6, 0);
            size.unpad(plan, size.keys, 7, 1);
            size.unpad(plan, size.keys, 8, 2);
        }
    }
}

impl Backward {
    fn recorded(self) -> Recorded {
        let Backward(size) = self;
        let [q, k] = size.padded_elements();
        let copies = if size.copies() { vec![q, k, k, q, q, q, k, k] } else { Vec::new() };
        let info = LaunchInfo {
            // Those that the derivative needs; the scores, which are computed anew, are not counted.
            flops: 4 * size.product(),
            cpu_scratch: vec![twin::backward_room(&size)],
            // delta, then copies of q, k, v, y, dy, dq, dk and dv, then scores and their gradient.
            gpu_scratch: [vec![size.pairs() * size.queries], copies, size.score_scratch(2)].concat(),
            tuning: Tuning::new(size.shape_class(), move |adapter| size.variants(adapter)),
            ..LaunchInfo::default()
        };
        Recorded::new(self, info)
    }
}
