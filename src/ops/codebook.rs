//! A codebook's statistics over a step, and the codes that follow from them: running means, restarts.

use crate::device::gpu::shader::Kernel;
use crate::kernel;
use crate::launch::{Dispatch, Dispatches, LaunchInfo, Recorded, launch_of};
use crate::ops::shared::assert_is_state;
use crate::philox::{Stream, below, draw};
use crate::state::State;
use crate::tape::Tensor;

pub(crate) static KERNEL: Kernel = kernel!("codebook");

/// Smooths the counts of codes, so that none is divided by 0.
const EPS: f64 = 1e-5;

/// What a step does to a codebook beside its gradient.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct CodebookOptions {
    /// Share of the old count of a code in the new.
    pub decay: f64,
    /// A code whose count falls below this moves to a vector of the step.
    pub restart: f64,
    /// Codes are the running means of the vectors that they are nearest to (van den Oord et al. 2017,
    /// arXiv:1711.00937, appendix A.1); else a gradient moves them.
    pub averages: bool,
}

/// The stored tensors that [`update_codebook`] writes.
#[derive(Clone, Copy, Debug)]
pub struct CodebookTensors<'a> {
    /// Codes `[K, C]`.
    pub codes: &'a Tensor,
    /// Moving average of the codes as parameters, of the same shape.
    pub ema: &'a Tensor,
    /// Adam's moments of the codes, of the same shape.
    pub moments: [&'a Tensor; 2],
    /// Running number of vectors that each code is the nearest of, `[K]`.
    pub counts: &'a Tensor,
}

/// Elements of the statistics of `codes` codes of `width` numbers: how many vectors each is the nearest of,
/// their sum, and a vector that it may move to.
pub fn statistics_of(codes: usize, width: usize) -> usize {
    codes * (1 + 2 * width)
}

/// Adds the vectors `z [M, C]` of a batch to the `statistics` of a step, a stored tensor of
/// [`statistics_of`] elements that is 0 before the first: `index [M]` says which code each is nearest to,
/// `usage [K]` how many are nearest to each (see [`quantise`](crate::ops::quantise)). A sample of the batch
/// has `per_sample` vectors, all batches of the step together `step_vectors`. Which of them a code may move
/// to depends on `state`, the step's words, and not on how the step is split into batches.
#[track_caller]
pub fn gather_codes(
    statistics: &Tensor,
    z: &Tensor,
    [index, usage]: [&Tensor; 2],
    [per_sample, step_vectors]: [usize; 2],
    state: &Tensor,
) {
    let ([vectors, width], [codes]) =
        (z.shape().of_rank("gather_codes"), usage.shape().of_rank("gather_codes"));
    assert!(
        index.elements() == vectors
            && vectors.is_multiple_of(per_sample)
            && statistics.elements() == statistics_of(codes, width),
        "gather_codes: vectors {}, index {}, usage {}, statistics {}",
        z.shape(),
        index.shape(),
        usage.shape(),
        statistics.shape()
    );
    assert_is_state("gather_codes", state);
    // Words reach no further.
    let step_vectors = step_vectors.min(u32::MAX as usize);
    let launch = launch_of(
        "gather_codes",
        move |io| {
            let (z, state) = (io.read(0), State::from_words(io.read_u32(3)));
            let (counts, rest) = io.write(0).split_at_mut(codes);
            let (sums, candidates) = rest.split_at_mut(codes * width);
            counts.iter_mut().zip(io.read(2)).for_each(|(count, usage)| *count += usage);
            for (z, &index) in z.chunks_exact(width).zip(io.read(1)) {
                let sum = &mut sums[index as usize * width..][..width];
                sum.iter_mut().zip(z).for_each(|(sum, z)| *sum += z);
            }
            let first = state.first_sample as usize * per_sample;
            for (k, candidate) in candidates.chunks_exact_mut(width).enumerate() {
                let [word, ..] = draw(state.seed, Stream::Restart as u32, state.step, k as u32, 0);
                let picked = below(word, step_vectors);
                if (first..first + vectors).contains(&picked) {
                    candidate.copy_from_slice(&z[(picked - first) * width..][..width]);
                }
            }
        },
        move |plan| {
            let numbers = [vectors / per_sample, per_sample, step_vectors];
            let gather = dispatch(plan, "gather", [codes, width], numbers, CodebookOptions::default());
            gather.read("z", 0).read("index", 1).read("usage", 2).read("state", 3);
            gather.write("statistics", 0).cover(codes * width, 64);
        },
    );
    z.tape().launch_into(launch, &[z, index, usage, state], &[statistics]);
}

/// Moves the codes by the `statistics` of a step, and clears these: counts become running means, and so do
/// codes if `options` say so; codes that are hardly used move to a vector of the step, and Adam and the
/// moving average of the parameters begin anew there. If `norm [1]` of the gradients is not finite, nothing
/// changes.
///
/// A code times its smoothed count is the running sum of its vectors, so that counts are all the state that
/// there is beside the codes.
#[track_caller]
pub fn update_codebook(
    options: CodebookOptions,
    tensors: CodebookTensors,
    statistics: &Tensor,
    norm: &Tensor,
) {
    let CodebookTensors { codes, ema, moments: [m, v], counts } = tensors;
    let [count, width] = codes.shape().of_rank("update_codebook");
    assert!(
        [ema, m, v].iter().all(|t| t.shape() == codes.shape())
            && counts.elements() == count
            && statistics.elements() == statistics_of(count, width)
            && norm.elements() == 1,
        "update_codebook: codes {}, ema {}, counts {}, statistics {}, norm {}",
        codes.shape(),
        ema.shape(),
        counts.shape(),
        statistics.shape(),
        norm.shape()
    );
    let (decay, rest) = (options.decay as f32, (1.0 - options.decay) as f32);
    let restart = options.restart as f32;
    let launch = launch_of(
        "update_codebook",
        move |io| {
            if !io.read(0)[0].is_finite() {
                io.write(5)[..count * (width + 1)].fill(0.0);
                return;
            }
            let [codes, ema, m, v, counts, statistics] = [0, 1, 2, 3, 4, 5].map(|i| io.write(i));
            let (new, rest_of) = statistics.split_at_mut(count);
            let (sums, candidates) = rest_of.split_at_mut(count * width);
            let sum = |values: &[f32]| values.iter().map(|&v| f64::from(v)).sum::<f64>();
            let before = sum(counts);
            let after = options.decay * before + (1.0 - options.decay) * sum(new);
            let smoothed = |n: f32, all: f64| (f64::from(n) + EPS) / (all + count as f64 * EPS) * all;
            for (k, (counted, new)) in counts.iter_mut().zip(&mut *new).enumerate() {
                let range = k * width..(k + 1) * width;
                let updated = decay * *counted + rest * *new;
                if updated < restart {
                    codes[range.clone()].copy_from_slice(&candidates[range.clone()]);
                    ema[range.clone()].copy_from_slice(&candidates[range.clone()]);
                    m[range.clone()].fill(0.0);
                    v[range.clone()].fill(0.0);
                } else if options.averages {
                    let (old, now) = (options.decay * smoothed(*counted, before), smoothed(updated, after));
                    for (code, sum) in codes[range.clone()].iter_mut().zip(&sums[range.clone()]) {
                        let sum = f64::from(*code) * old + (1.0 - options.decay) * f64::from(*sum);
                        *code = (sum / now) as f32;
                    }
                    // Adam would go on with what it has of earlier steps.
                    m[range.clone()].fill(0.0);
                    v[range.clone()].fill(0.0);
                }
                *counted = updated.max(restart);
                *new = 0.0;
            }
            sums.fill(0.0);
        },
        move |plan| {
            let total = dispatch(plan, "sum_up", [count, width], [0; 3], options);
            total.write("counts", 4).write("statistics", 5).scratch("totals", 0);
            let update = dispatch(plan, "update", [count, width], [0; 3], options);
            update.write("codes", 0).write("ema", 1).write("m", 2).write("v", 3).write("counts", 4);
            update.write("statistics", 5).read("norm", 0).scratch("totals", 0).cover(count, 64);
        },
    );
    let info = LaunchInfo { gpu_scratch: vec![2], ..LaunchInfo::default() };
    codes.tape().launch_into(Recorded::new(launch, info), &[norm], &[codes, ema, m, v, counts, statistics]);
}

/// A dispatch with all parameters. `numbers`: samples of the batch, vectors of a sample and of the step.
fn dispatch<'a>(
    plan: &'a mut Dispatches,
    entry: &'static str,
    [codes, width]: [usize; 2],
    [samples, per_sample, step_vectors]: [usize; 3],
    options: CodebookOptions,
) -> &'a mut Dispatch {
    plan.add(&KERNEL, entry)
        .params([("codes", codes), ("width", width), ("elements", codes * width)])
        .params([("samples", samples), ("per_sample", per_sample), ("step_vectors", step_vectors)])
        .param("averages", options.averages)
        .param("decay", options.decay as f32)
        .param("rest", (1.0 - options.decay) as f32)
        .param("restart", options.restart as f32)
}

#[cfg(test)]
mod tests;
