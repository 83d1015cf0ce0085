//! Picks the variant of each launch that its adapter runs fastest.
//!
//! Candidates run on scratch memory with fixed numbers. One that does not give what the default gives may not
//! win, however fast it is.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::planned::{Plan, Step};
use super::{GUARD, Place, bind};
#[cfg(any(test, feature = "testing"))]
use super::{Program, Sharing};
use crate::device::Buffer;
#[cfg(any(test, feature = "testing"))]
use crate::device::Device;
use crate::device::gpu::tuning::{Choice, Key, Refusal, TuningEvent};
use crate::device::gpu::{Bound, Gpu};
use crate::error::{Error, Result};
use crate::files::fnv1a;
use crate::launch::{Dispatches, Variant};
use crate::philox::{Stream, draw, uniform};
use crate::tensor::{DType, Id};

/// By how much a variant must be faster to take the default's place: less is noise.
const LEAST_GAIN: f64 = 0.02;
/// How many readings the median is taken of.
const READINGS: usize = 5;
/// A reading is as many launches as take about this long, in seconds, and at most this many: long enough
/// for the clock, and short enough for drivers that reset a GPU that does not answer.
const READING: f64 = 5e-3;
const MOST_LAUNCHES: f64 = 64.0;
/// Who takes that many times as long as the fastest in the first reading is not timed further.
const HOPELESS: f64 = 2.0;
/// Launches that take this long are timed once, which is accurate enough: software drivers have them.
const SLOW: f64 = 0.3;
/// How often what was found is put on disk.
const KEEP_EVERY: Duration = Duration::from_secs(2);
/// How far results may be from the default's, as a fraction of the largest number of a tensor: sums in
/// another order, of f32 numbers.
const TOLERANCE: f64 = 1e-4;
/// Numbers after which the inputs repeat: a prime, so that no two rows are the same.
const PERIOD: usize = 1_000_003;

/// How a launch with variants runs.
#[derive(Clone, Debug)]
pub struct Picked {
    pub variant: Variant,
    /// How many there are to choose from.
    pub of: usize,
    pub shape_class: String,
    /// What timing found; `None` where nobody timed it.
    pub(crate) choice: Option<Choice>,
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
    let of_step: Vec<Vec<Variant>> = plan.steps.iter().map(|step| step.launch.variants(&adapter)).collect();
    // The first step of each name and class, in the program's order.
    let name_of = |step: &Step| (step.launch.name(), step.launch.shape_class());
    let mut first_of: BTreeMap<(&str, String), usize> = BTreeMap::new();
    let mut firsts = Vec::new();
    for (i, step) in plan.steps.iter().enumerate().filter(|(i, _)| of_step[*i].len() > 1) {
        first_of.entry(name_of(step)).or_insert_with(|| {
            firsts.push(i);
            i
        });
    }
    let mut choices: BTreeMap<usize, Choice> = BTreeMap::new();
    if let Some(tuning) = gpu.tuning().as_mut() {
        let mut missing = Vec::new();
        for i in firsts {
            let (step, variants) = (&plan.steps[i], &of_step[i]);
            let key = key_of(gpu, step, variants);
            match tuning.find(&key).filter(|found| variants.iter().any(|v| v.name == found.variant)) {
                Some(found) => drop(choices.insert(i, found.clone())),
                None if tuning.times() => missing.push((i, key)),
                None => {}
            }
        }
        let (mut found, mut kept, mut last) = (Vec::<(usize, Choice)>::new(), 0, Instant::now());
        for (done, (i, key)) in missing.iter().enumerate() {
            let (step, variants) = (&plan.steps[*i], &of_step[*i]);
            tuning.emit(TuningEvent::Timing { done, all: missing.len(), launch: step.launch.name() });
            match contest(gpu, plan, step, variants, key, clock) {
                Ok(choice) => found.push((*i, choice)),
                Err(e) => {
                    // Whatever is wrong with the device is told again by what runs next.
                    let told = format!("warning: {} is not tuned: {e}", step.launch.name());
                    tuning.emit(TuningEvent::Warning(&told));
                }
            }
            // Who is stopped here, after minutes on a slow device, goes on from here.
            if last.elapsed() > KEEP_EVERY || done + 1 == missing.len() {
                tuning.remember(found[kept..].iter().map(|(_, choice)| choice.clone()).collect());
                (kept, last) = (found.len(), Instant::now());
            }
        }
        if !missing.is_empty() {
            tuning.emit(TuningEvent::Done);
        }
        choices.extend(found);
    }
    let picked = plan.steps.iter().zip(&of_step).map(|(step, variants)| {
        let default = variants.first()?;
        let name = name_of(step);
        let choice = first_of.get(&name).and_then(|first| choices.get(first)).cloned();
        let chosen = choice.as_ref().and_then(|c| variants.iter().find(|v| v.name == c.variant));
        let variant = chosen.unwrap_or(default).clone();
        Some(Picked { variant, of: variants.len(), shape_class: name.1, choice })
    });
    Ok(picked.collect())
}

fn key_of(gpu: &Gpu, step: &Step, variants: &[Variant]) -> Key {
    let (mut texts, mut seen) = (Vec::new(), Vec::new());
    for variant in variants {
        texts.push(variant.name.clone());
        for dispatch in &Dispatches::of(&*step.launch, variant.index).list {
            let text = (dispatch.kernel.name, dispatch.knobs);
            if !seen.contains(&text) {
                texts.push(dispatch.kernel.expand(dispatch.knobs, gpu.dialect()).text);
                seen.push(text);
            }
        }
    }
    Key {
        launch: step.launch.name().to_owned(),
        shape_class: step.launch.shape_class(),
        // The end of a text counts too.
        kernels: format!("{:016x}", fnv1a(texts.iter().flat_map(|t| t.bytes().chain([0xff])).map(u64::from))),
    }
}

/// Checks and times the variants of one launch.
fn contest(
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
            Ok(dispatches) => stage.results(dispatches).map(|got| stage.fault(&wanted, &got)),
            Err(e) => Ok(Some(e.to_string())),
        };
        match (dispatches, fault?) {
            (Ok(dispatches), None) => runners.push((variant, dispatches)),
            (_, why) => {
                refused.push(Refusal { variant: variant.name.clone(), why: why.unwrap_or_default() });
            }
        }
    }
    let seconds = race(runners.len(), &mut |i, again| clock(runners[i].0, &runners[i].1, again))?;
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
fn race(runners: usize, run: &mut dyn FnMut(usize, usize) -> Result<f64>) -> Result<Vec<f64>> {
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
    let staying: Vec<usize> = (0..runners).filter(|&i| i == 0 || seconds[i] <= HOPELESS * best).collect();
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

/// The tensors of one launch, on memory of their own.
struct Stage<'a> {
    gpu: &'a Gpu,
    plan: &'a Plan,
    step: &'a Step,
    /// By the tensors' identities; `None` for those of other launches.
    places: Vec<Option<Place>>,
    scratch: Vec<Place>,
}

impl<'a> Stage<'a> {
    fn new(gpu: &'a Gpu, plan: &'a Plan, step: &'a Step) -> Result<Self> {
        let place = |bytes: usize| -> Result<Place> {
            let buffer = gpu.alloc("tuning", bytes.next_multiple_of(256).max(256))?;
            Ok(Place { buffer: Buffer::Gpu(Arc::new(buffer)), offset: 0, bytes })
        };
        let mut places = vec![None; plan.spots.len()];
        for id in step.reads.iter().chain(&step.writes) {
            if places[id.0].is_none() {
                places[id.0] = Some(place(plan.spots[id.0].1)?);
            }
        }
        let scratch = step.scratch.iter().map(|&n| place(plan.lifetimes[n].bytes));
        let stage = Stage { gpu, plan, step, scratch: scratch.collect::<Result<_>>()?, places };
        for (number, id) in step.reads.iter().enumerate() {
            stage.fill(*id, number)?;
        }
        Ok(stage)
    }

    fn place(&self, id: Id) -> &Place {
        self.places[id.0].as_ref().unwrap_or_else(|| panic!("{}: unplaced", self.step.launch.name()))
    }

    /// Numbers in (-1, 1); of words, which may be positions in other tensors, zeros.
    fn fill(&self, id: Id, salt: usize) -> Result<()> {
        let place = self.place(id);
        let mut period = vec![0.0_f32; (place.bytes / 4).min(PERIOD)];
        if self.plan.dtypes[id.0] == DType::F32 {
            for (block, four) in period.chunks_mut(4).enumerate() {
                let words = draw(0, Stream::Generate as u32, 0, salt as u32, block as u32);
                four.iter_mut().zip(words).for_each(|(value, word)| *value = 2.0 * uniform(word) - 1.0);
            }
        }
        self.write_again_and_again(place, &period)
    }

    fn write_again_and_again(&self, place: &Place, period: &[f32]) -> Result<()> {
        let Buffer::Gpu(buffer) = &place.buffer else { unreachable!("a stage is on a GPU") };
        for first in (0..place.bytes).step_by((period.len() * 4).max(4)) {
            let count = ((place.bytes - first) / 4).min(period.len());
            self.gpu.write(buffer, first, bytemuck::cast_slice(&period[..count]))?;
        }
        Ok(())
    }

    fn dispatches(&self, variant: &Variant) -> Result<Vec<Bound>> {
        let dispatches = self.step.dispatches(variant.index);
        let cost = self.plan.cost_of(self.step);
        let work = (cost.flops + 16 * cost.bytes) / dispatches.len().max(1) as u64;
        let pieces = self.gpu.sub_dispatches(work, None);
        let bound = dispatches.iter();
        let bound =
            bound.map(|dispatch| bind(self.gpu, self.step, dispatch, &self.places, &self.scratch, pieces));
        Ok(bound.collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
    }

    /// What a run writes: from the same numbers for each variant where a launch changes what it writes, and
    /// with NaN in its working memory.
    fn results(&self, dispatches: &[Bound]) -> Result<Vec<Vec<f32>>> {
        for (number, id) in self.step.writes.iter().enumerate() {
            self.fill(*id, self.step.reads.len() + number)?;
        }
        let dirt = vec![f32::from_bits(GUARD); PERIOD];
        self.scratch.iter().try_for_each(|place| self.write_again_and_again(place, &dirt))?;
        self.gpu.replay(dispatches)?;
        let read = |id: &Id| {
            let place = self.place(*id);
            let Buffer::Gpu(buffer) = &place.buffer else { unreachable!("a stage is on a GPU") };
            let mut values = vec![0.0_f32; place.bytes / 4];
            self.gpu.read(buffer, 0, bytemuck::cast_slice_mut(&mut values))?;
            Ok::<_, Error>(values)
        };
        self.step.writes.iter().map(read).collect()
    }

    /// Where results are not what they should be.
    fn fault(&self, wanted: &[Vec<f32>], got: &[Vec<f32>]) -> Option<String> {
        let pairs = wanted.iter().zip(got).zip(&self.step.writes).enumerate();
        for (tensor, ((wanted, got), id)) in pairs {
            let scale = wanted.iter().fold(0.0, |top, v| f64::from(v.abs()).max(top));
            let same = |a: f32, b: f32| match self.plan.dtypes[id.0] {
                DType::F32 => (f64::from(a) - f64::from(b)).abs() <= TOLERANCE * scale,
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

/// For the check of ops, which runs them in every way.
#[cfg(any(test, feature = "testing"))]
impl Program {
    /// The most variants that a launch of `plan` has.
    pub(crate) fn ways(plan: &Plan) -> usize {
        let of_step = |adapter| plan.steps.iter().map(move |step| step.launch.variants(adapter).len());
        plan.adapter.iter().flat_map(of_step).max().unwrap_or(0).max(1)
    }

    /// Guarded, with variant number `way` of each launch, the last of those that have fewer.
    pub(crate) fn compile_way(plan: &Plan, device: &Device, way: usize) -> Result<Program> {
        Program::compile_by(plan, device, &[], Sharing::Guarded, |gpu| {
            let pick = |step: &Step| {
                let mut variants = step.launch.variants(&gpu.traits());
                let of = variants.len();
                variants.truncate(way + 1);
                let shape_class = step.launch.shape_class();
                variants.pop().map(|variant| Picked { variant, of, shape_class, choice: None })
            };
            Ok(plan.steps.iter().map(pick).collect())
        })
    }
}

#[cfg(test)]
mod tests;
