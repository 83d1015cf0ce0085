//! Picks the variant of each launch that its adapter runs fastest.
//!
//! Candidates run on scratch memory with fixed numbers. One that does not give what the default gives may not
//! win, however fast it is.

mod stage;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use stage::Stage;

use super::plan::{Plan, Step};
use crate::device::gpu::tuning::{Choice, Key, Refusal, TuningEvent};
use crate::device::gpu::{Bound, Gpu};
use crate::error::Result;
use crate::files::fnv1a;
use crate::launch::Variant;

/// By how much a variant must be faster to take the default's place: less is noise.
const LEAST_GAIN: f64 = 0.02;
/// How many readings the median is taken of.
const READINGS: usize = 5;
/// A reading is as many launches as take about this long, in seconds, and at most this many: long enough
/// for the clock, and short enough for drivers that reset a GPU that does not answer.
const READING: f64 = 5e-3;
const MOST_LAUNCHES: f64 = 64.0;
/// A variant that takes so many times as long as the fastest in the first reading is not timed further.
const PRUNE_FACTOR: f64 = 2.0;
/// Launches that take this long are timed once, which is accurate enough: software drivers have them.
const SLOW: f64 = 0.3;
/// How often what was found is put on disk.
const KEEP_EVERY: Duration = Duration::from_secs(2);

/// How a launch with variants runs.
#[derive(Clone, Debug)]
pub struct Picked {
    /// The variant that runs.
    pub variant: Variant,
    /// Number of variants to choose from.
    pub of: usize,
    /// Class of launches that run as the same variant.
    pub shape_class: String,
    /// Result of the timing; `None` where the launch was not timed.
    pub(crate) choice: Option<Choice>,
}

impl Picked {
    /// Index of the variant, and its time in milliseconds, where that was measured.
    pub(super) fn variant_and_ms(&self) -> (usize, Option<f64>) {
        (self.variant.index, self.choice.as_ref().map(|choice| choice.ms))
    }
}

/// The time of one launch, in seconds, as the mean of several in a row.
type Clock<'a> = dyn FnMut(&Variant, &[Bound], usize) -> Result<f64> + 'a;

/// For each step of the plan the variant to run; `None` for launches without.
///
/// # Errors
/// When the driver reports an error.
pub(super) fn pick(gpu: &Gpu, plan: &Plan) -> Result<Vec<Option<Picked>>> {
    pick_by(gpu, plan, &mut |_, dispatches, again| Ok(gpu.time(dispatches, again)?.as_secs_f64()))
}

fn pick_by(gpu: &Gpu, plan: &Plan, clock: &mut Clock) -> Result<Vec<Option<Picked>>> {
    let adapter = gpu.traits();
    let of_step: Vec<Vec<Variant>> = plan.steps.iter().map(|step| step.tuning().variants(&adapter)).collect();
    let name_of = |step: &Step| (step.name(), step.tuning().class().to_owned());
    let mut choices: BTreeMap<(&str, String), Choice> = BTreeMap::new();
    if let Some(tuning) = gpu.tuning().as_mut() {
        // The first step of each name and class, in the program's order.
        let (mut seen, mut missing) = (BTreeSet::new(), Vec::new());
        let with_variants = plan.steps.iter().zip(&of_step).filter(|(_, variants)| variants.len() > 1);
        for (step, variants) in with_variants.filter(|(step, _)| seen.insert(name_of(step))) {
            let key = key_of(gpu, step, variants);
            match tuning.find(&key).filter(|found| variants.iter().any(|v| v.name == found.variant)) {
                Some(found) => drop(choices.insert(name_of(step), found.clone())),
                None if tuning.times => missing.push((step, variants, key)),
                None => {}
            }
        }
        let (mut found, mut last) = (Vec::new(), Instant::now());
        for (done, (step, variants, key)) in missing.iter().enumerate() {
            tuning.emit(TuningEvent::Timing { done, all: missing.len(), launch: step.name() });
            match tune_launch(gpu, plan, step, variants, key, clock) {
                Ok(choice) => {
                    found.push(choice.clone());
                    choices.insert(name_of(step), choice);
                }
                Err(e) => {
                    // Whatever is wrong with the device is told again by what runs next.
                    let told = format!("warning: {} is not tuned: {e}", step.name());
                    tuning.emit(TuningEvent::Warning(&told));
                }
            }
            // A run that is stopped here, after minutes on a slow device, goes on from here.
            if last.elapsed() > KEEP_EVERY || done + 1 == missing.len() {
                tuning.remember(std::mem::take(&mut found));
                last = Instant::now();
            }
        }
        if !missing.is_empty() {
            tuning.emit(TuningEvent::Done);
        }
    }
    let picked = plan.steps.iter().zip(&of_step).map(|(step, variants)| {
        let default = variants.first()?;
        let name = name_of(step);
        let choice = choices.get(&name).cloned();
        let chosen = choice.as_ref().and_then(|c| variants.iter().find(|v| v.name == c.variant));
        let variant = chosen.unwrap_or(default).clone();
        Some(Picked { variant, of: variants.len(), shape_class: name.1, choice })
    });
    Ok(picked.collect())
}

fn key_of(gpu: &Gpu, step: &Step, variants: &[Variant]) -> Key {
    let layout = if gpu.dialect.f16 { "16 bits" } else { "16 bits, packed" };
    let mut texts: Vec<String> = gpu.halves.then(|| layout.to_owned()).into_iter().collect();
    let mut seen = Vec::new();
    for variant in variants {
        texts.push(variant.name.clone());
        for dispatch in &step.dispatches(variant.index) {
            let text = (dispatch.kernel.name, dispatch.knobs);
            if !seen.contains(&text) {
                texts.push(dispatch.kernel.expand(dispatch.knobs, gpu.dialect).text);
                seen.push(text);
            }
        }
    }
    Key {
        launch: step.name().to_owned(),
        shape_class: step.tuning().class().to_owned(),
        // The end of a text counts too.
        kernels: format!("{:016x}", fnv1a(texts.iter().flat_map(|t| t.bytes().chain([0xff])).map(u64::from))),
    }
}

/// Checks and times the variants of one launch.
fn tune_launch(
    gpu: &Gpu,
    plan: &Plan,
    step: &Step,
    variants: &[Variant],
    key: &Key,
    clock: &mut Clock,
) -> Result<Choice> {
    let stage = Stage::new(gpu, plan, step)?;
    let plain = stage.dispatches(&variants[0])?;
    let wanted = stage.results(&plain)?;
    let mut runners = vec![(&variants[0], plain)];
    let mut refused = Vec::new();
    for variant in &variants[1..] {
        let dispatches = stage.dispatches(variant);
        let fault = match &dispatches {
            Ok(dispatches) => stage.results(dispatches).map(|got| stage.fault(&wanted, &got, variant.rounds)),
            Err(e) => Ok(Some(e.to_string())),
        };
        match (dispatches, fault?) {
            (Ok(dispatches), None) => runners.push((variant, dispatches)),
            (_, why) => {
                refused.push(Refusal { variant: variant.name.clone(), why: why.unwrap_or_default() });
            }
        }
    }
    let seconds = time_round_robin(runners.len(), &mut |i, again| clock(runners[i].0, &runners[i].1, again))?;
    let fastest = (0..runners.len()).min_by(|&a, &b| seconds[a].total_cmp(&seconds[b])).unwrap_or(0);
    let winner = if seconds[fastest] < seconds[0] * (1.0 - LEAST_GAIN) { fastest } else { 0 };
    Ok(Choice {
        key: key.clone(),
        variant: runners[winner].0.name.clone(),
        ms: seconds[winner] * 1e3,
        default: variants[0].name.clone(),
        default_ms: seconds[0] * 1e3,
        refused,
    })
}

/// Seconds of one launch of each runner: the median of readings that take turns, so that a clock that
/// rises or a machine that gets busy meets all of them.
fn time_round_robin(runners: usize, run: &mut dyn FnMut(usize, usize) -> Result<f64>) -> Result<Vec<f64>> {
    let mut seconds = Vec::with_capacity(runners);
    for runner in 0..runners {
        seconds.push(run(runner, 1)?);
    }
    if runners == 1 {
        return Ok(seconds);
    }
    let best = seconds.iter().copied().fold(f64::INFINITY, f64::min);
    let rounds = if best > SLOW { 1 } else { READINGS };
    // The default stays, to be compared with.
    let staying: Vec<usize> = (0..runners).filter(|&i| i == 0 || seconds[i] <= PRUNE_FACTOR * best).collect();
    let mut readings = vec![Vec::with_capacity(rounds); runners];
    for _ in 0..rounds {
        for &i in &staying {
            let again = (READING / seconds[i].max(1e-9)).clamp(1.0, MOST_LAUNCHES);
            readings[i].push(run(i, again as usize)?);
        }
    }
    for i in staying {
        readings[i].sort_by(f64::total_cmp);
        seconds[i] = readings[i][rounds / 2];
    }
    Ok(seconds)
}

#[cfg(test)]
mod tests;
