//! One recorded step of the reverse process.

use std::cell::RefCell;
use std::rc::Rc;

use super::condition::Condition;
use super::guide::ClassifierGuide;
use super::options::{Guidance, Options};
use crate::diffusion::{Clip, Model, SamplerPlan, Told, seen_by_model, within};
use crate::nn::{Params, Scope};
use crate::ops::arithmetic::affine;
use crate::ops::concat::{concat, split};
use crate::ops::denoising::{Row, bounds, denoise, timestep_of_row};
use crate::ops::guidance::guide;
use crate::ops::noising::gaussian;
use crate::philox::Stream;
use crate::recipe::Rng;
use crate::state::State;
use crate::tape::{Tape, Tensor};
use crate::tensor::DType;

/// The part of a [`Denoiser`](super::Denoiser) that a recording needs.
pub(super) struct Network<'a> {
    pub model: &'a Model,
    pub params: &'a Rc<RefCell<Params>>,
    pub shape: [usize; 3],
    pub labels: Option<DType>,
    /// It sees its last x_0 behind samples, within a bound.
    pub self_conditioned: Option<f64>,
    pub condition: Option<&'a Condition>,
    /// Tokens of a text that it sees, and numbers of each.
    pub text: Option<[usize; 2]>,
    pub guide: Option<&'a ClassifierGuide<'a>>,
}

/// Tensors that a step keeps for later ones; torch's noise lies behind them.
pub(super) fn slots_of(plan: &SamplerPlan, options: &Options) -> usize {
    plan.slots() + usize::from(options.rng == Rng::Torch)
}

/// Records the noise that `batch` samples `[N, H, W, C]` start from, `start` times normal numbers; `None`:
/// just these.
pub(super) fn record_start([h, w, c]: [usize; 3], batch: usize, start: Option<f32>) -> Tape {
    let tape = Tape::new();
    let state = tape.stored_u32("state", [State::WORDS]);
    let mut noise = gaussian([batch, h, w, c], Stream::Start, &state);
    if let Some(start) = start {
        noise = affine(&noise, start, 0.0);
    }
    tape.place(&noise, "x", 0);
    tape
}

/// Records a reverse step of `batch` samples, and gives them `[N, H, W, C]`, which it updates in place.
/// Guided, the model sees them twice in one batch: with their labels or conditions, then without.
pub(super) fn record_step(
    network: &Network,
    plan: &SamplerPlan,
    slots: usize,
    batch: usize,
    guidance: Option<&Guidance>,
) -> (Tape, Tensor) {
    let Network { model, params, shape: [h, w, c], labels, self_conditioned, condition, text, .. } = *network;
    let classifier = network.guide;
    let tape = Tape::new();
    let shape = [batch, h, w, c];
    let x = if classifier.is_some() { tape.variable("x", 0, shape) } else { tape.stored("x", 0, shape) };
    let kept = tape.stored("kept", 0, [1 + slots, batch, h, w, c]);
    let state = tape.stored_u32("state", [State::WORDS]);
    let rows = tape.stored("denoising", 0, [plan.steps.len(), Row::COLUMNS]);
    let seen = if guidance.is_some() { 2 * batch } else { batch };
    let t = timestep_of_row(seen, &rows, &state);
    let classes = labels.map(|element| match element {
        DType::U32 => tape.stored_u32("labels", [seen]),
        _ => tape.stored("labels", 0, [seen]),
    });
    let told = condition.map(|Condition { channels, has_holes, .. }| {
        (tape.stored("condition", 0, [seen, h, w, *channels]), *has_holes)
    });
    let text = text.map(|[tokens, width]| tape.stored("text", 0, [seen, tokens, width]));
    let twice = |x: &Tensor| {
        let flat = x.reshape([1, batch * h * w * c]);
        concat(&[&flat, &flat]).reshape([2 * batch, h, w, c])
    };
    // The first of what is kept.
    let own = self_conditioned.map(|bound| within(&tape.stored("kept", 0, shape), bound));
    let own = own.map(|own| if guidance.is_some() { twice(&own) } else { own });
    let predict = |x: &Tensor| {
        let told = told.as_ref().map(|(condition, has_holes)| (condition, *has_holes));
        let seen = seen_by_model(x, own.as_ref(), told);
        let told = Told { labels: classes.as_ref(), text: text.as_ref() };
        model(&Scope::new(&tape, params), &seen, &t, told)
    };
    let out = match guidance {
        Some(&Guidance { scale, rescale, .. }) => {
            guide(&predict(&twice(&x)), c, scale as f32, rescale as f32)
        }
        None => predict(&x),
    };
    // The half of the output that says a variance is of no use to a solver that takes none.
    let (out, variance) = if out.shape().last() == 2 * c {
        let [out, variance] = split(&out, &[c, c]).try_into().unwrap_or_else(|_| unreachable!("two parts"));
        (out, plan.learns_variance().then_some(variance))
    } else {
        (out, None)
    };
    let out = match classifier {
        Some(classifier) => {
            let (t, classes) = (timestep_of_row(batch, &rows, &state), tape.stored_u32("classes", [batch]));
            classifier.guided(&out, [&x, &t, &classes], [&rows, &state])
        }
        None => out,
    };
    let bound = match plan.clip {
        Clip::Dynamic { ratio, most } => Some(bounds(&x, &out, &rows, &state, ratio, most as f32)),
        _ => None,
    };
    denoise(&x, &out, &rows, &state, &kept, bound.as_ref(), variance.as_ref());
    (tape, x)
}
