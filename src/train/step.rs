//! The training step as it is recorded: the loss of a batch, its gradient, and the optimiser.

use std::cell::RefCell;
use std::rc::Rc;

use super::batch::{Batch, Declared, Loss};
use super::codes::record_update;
use super::options::TrainOptions;
use crate::device::Buffer;
use crate::error::Result;
use crate::nn::{self, Init, Params, Scope};
use crate::ops::adam::{AdamTensors, adam};
use crate::ops::arithmetic::affine;
use crate::ops::grad_norm::grad_norm;
use crate::ops::loss_scale::{SCALER, scale_loss, unscale_norm, update_scale};
use crate::program::{Plan, Program, Sharing};
use crate::state::State;
use crate::tape::{Tape, Tensor};

/// Records the loss of a batch.
pub(super) type Record<'a> = dyn Fn(&Scope, &Batch) -> Loss + 'a;

/// Names of the flat stores, in the order of a checkpoint's sets.
pub(super) const STORES: [&str; 4] = [nn::STORE, "ema", "adam_m", "adam_v"];
/// Store in which the gradients of several batches are added up.
pub(super) const ACCUMULATED: &str = "accumulated";
/// Store of the step's sixteen words.
pub(super) const STATE: &str = "state";
/// Store of a step's numbers: the norm of the gradient, the loss, then the loss's parts.
pub(super) const METRICS: &str = "metrics";
/// Store of the words that Adam reads where the loss is scaled.
const ADAM_STATE: &str = "adam_state";
/// Name of the scale of the loss, in checkpoints and metrics, and of the number of steps that it skipped.
pub(super) const LOSS_SCALE: &str = "loss_scale";
pub(super) const SKIPPED: &str = "skipped";
/// Elements from one number to the next, because a binding begins at a multiple of these.
const METRIC: usize = 64;

/// Numbers of a step, as they lie in the store.
pub(super) struct Metrics {
    pub parts: Vec<&'static str>,
    /// Losses of samples, after the parts, and as many times of theirs.
    pub samples: usize,
}

impl Metrics {
    pub const NORM: usize = 0;
    pub const LOSS: usize = METRIC;

    pub fn part(number: usize) -> usize {
        (2 + number) * METRIC
    }

    /// Where the scale of the loss is, if that is scaled.
    pub fn loss_scale(&self) -> Option<usize> {
        self.parts.iter().position(|name| *name == LOSS_SCALE).map(Metrics::part)
    }

    /// Where the losses of the samples begin.
    pub fn each(&self) -> usize {
        Metrics::part(self.parts.len())
    }

    /// Where their times begin.
    pub fn times(&self) -> usize {
        self.each() + self.samples.next_multiple_of(METRIC)
    }

    /// Elements of the store.
    pub fn elements(&self) -> usize {
        self.times() + self.samples
    }
}

/// A recorded batch.
pub(super) struct Recorded {
    pub tape: Tape,
    pub declared: Declared,
    pub metrics: Metrics,
}

/// Of each step, where the loss is scaled.
fn scaler_of(scope: &Scope) -> Tensor {
    scope.state(LOSS_SCALE, [SCALER], Init::Zeros, 0.0)
}

fn state_of(tape: &Tape) -> Tensor {
    tape.stored_u32(STATE, [State::WORDS])
}

/// Records loss and backward for one batch; with `optimises`, the optimiser too. Parameters that `params`
/// does not have yet are added to it.
#[track_caller]
pub(super) fn record_batch(
    record: &Record<'_>,
    params: &Rc<RefCell<Params>>,
    options: &TrainOptions,
    optimises: bool,
) -> Recorded {
    let tape = Tape::new();
    let state = state_of(&tape);
    let scope = Scope::training(&tape, params, &state).checkpointing(options.checkpoint_blocks);
    let batch = Batch::new(&tape, state);
    let Loss { total, parts, samples } = record(&scope, &batch);
    for (name, number) in parts.iter().chain([&("loss", total.clone())]) {
        assert_eq!(number.elements(), 1, "the objective's {name} is {}, not one number", number.shape());
    }
    // Gradients of the mean over all accumulated batches.
    let share = batch.constant("share", [1], vec![1.0 / options.accumulation as f32]);
    let mut parts = parts;
    let share = match options.loss_scaling {
        false => share,
        true => {
            let [share, scale, skipped] = scale_loss(&share, &scaler_of(&scope));
            parts.extend([(LOSS_SCALE, scale), (SKIPPED, skipped)]);
            share
        }
    };
    let names = parts.iter().map(|(name, _)| *name).collect();
    let metrics = Metrics { parts: names, samples: samples.as_ref().map_or(0, |[each, _]| each.elements()) };
    let gradients = tape.backward_from(&total, &share);
    nn::place_gradients(&tape, &gradients);
    tape.labelled("loss", || {
        // A GPU cannot copy a number within the store, so one that is reported twice is doubled before.
        let mut placed = vec![total.clone()];
        for (_, number) in &parts {
            let known = placed.iter().any(|other| other.id() == number.id());
            placed.push(if known { affine(number, 1.0, 0.0) } else { number.clone() });
        }
        for (number, place) in placed.iter().zip((Metrics::LOSS..).step_by(METRIC)) {
            tape.place(number, METRICS, place);
        }
        if let Some([each, times]) = &samples {
            tape.place(each, METRICS, metrics.each());
            tape.place(times, METRICS, metrics.times());
        }
    });
    let elements = params.borrow().trained();
    assert!(elements > 0, "the objective asks its scope for no parameter: there is nothing to train");
    if optimises {
        record_optimiser(&tape, options, &params.borrow(), nn::GRADIENTS);
    } else {
        let sum = tape.stored(ACCUMULATED, 0, [elements]);
        tape.labelled("optimiser", || tape.accumulate_into(&sum, &tape.stored(nn::GRADIENTS, 0, [elements])));
    }
    Recorded { tape, declared: batch.into_declared(), metrics }
}

/// Records clipping, Adam and EMA on the gradients in `store`, and what else a step writes.
pub(super) fn record_optimiser(tape: &Tape, options: &TrainOptions, params: &Params, store: &str) {
    let elements = params.trained();
    tape.labelled("optimiser", || {
        let mut state = state_of(tape);
        let gradients = tape.stored(store, 0, [elements]);
        let [weights, ema, m, v] = STORES.map(|s| tape.stored(s, 0, [elements]));
        let mut norm = grad_norm(&gradients);
        if options.loss_scaling {
            let spec = params.find(LOSS_SCALE).expect("the batch was recorded with it");
            let scaler = tape.stored(nn::STORE, spec.first, spec.shape.clone());
            let (scaled, words) = (norm, tape.stored_u32(ADAM_STATE, [State::WORDS]));
            norm = unscale_norm(&scaled, &scaler);
            update_scale([options.beta1, options.beta2], &scaled, &state, &words, &scaler);
            state = words;
        }
        if let Some(codebook) = options.codebook {
            record_update(tape, codebook, params, STORES, &norm);
        }
        let tensors = AdamTensors { params: &weights, grads: &gradients, m: &m, v: &v, ema: &ema };
        adam(options.adam(), tensors, &norm, &state);
        tape.place(&norm, METRICS, Metrics::NORM);
    });
}

/// Runs the batch that `batch` ran last once more, without the optimiser and with every tensor kept: the name
/// of the first launch that wrote a number that is not finite.
pub(super) fn first_bad(
    record: &Record<'_>,
    params: &Rc<RefCell<Params>>,
    options: &TrainOptions,
    batch: &Program,
) -> Result<Option<String>> {
    let recorded = record_batch(record, params, options, false);
    let plan = Plan::new(&recorded.tape, &[], batch.device());
    let kept = |name: &&str| *name != ACCUMULATED && *name != nn::GRADIENTS;
    let names = plan.stores().map(|(name, _)| name).filter(kept);
    let bound: Vec<(&str, &Buffer)> = names.map(|name| (name, batch.store(name))).collect();
    let mut program = Program::compile(&plan, batch.device(), &bound, Sharing::Separate)?;
    program.run()?;
    program.first_bad()
}
