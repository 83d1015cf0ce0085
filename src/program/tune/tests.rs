//! Variants of a launch that is made for it: fast ones, wrong ones, broken ones.

use std::path::Path;
use std::sync::{Arc, OnceLock};

use tempfile::TempDir;

use super::*;
use crate::device::Device;
use crate::device::gpu::adapters;
use crate::device::gpu::shader::Kernel;
use crate::device::gpu::tuning::Tuning as TuningFile;
use crate::launch::{Dispatches, Io, Launch, LaunchInfo, Recorded, Slot, Tuning};
use crate::program::{Program, Sharing};
use crate::tape::{Tape, Tensor};

const SOURCE: &str = "\
struct Params { n: u32, scale: f32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;
@group(0) @binding(3) var<storage, read_write> old: array<f32>;
@compute @workgroup_size(64)
fn times(@builtin(global_invocation_id) id: vec3<u32>) {
    if id.x < p.n { y[id.x] = p.scale * x[id.x]; }
}
@compute @workgroup_size(64)
fn times_old(@builtin(global_invocation_id) id: vec3<u32>) {
    if id.x < p.n { y[id.x] = p.scale * x[id.x] + 0.001 * old[id.x]; }
}
";

static KERNEL: Kernel = Kernel { name: "times", source: SOURCE, knob_sets: &[&[]] };

/// Twice x, in ways of which some are wrong.
#[derive(Debug)]
struct Twice {
    n: usize,
    ways: &'static [&'static str],
    changed: bool,
}

impl Launch for Twice {
    fn name(&self) -> &'static str {
        "twice"
    }

    fn cpu(&self, io: &Io) {
        io.write(0).iter_mut().zip(io.read(0)).for_each(|(y, x)| *y = 2.0 * x);
    }

    fn gpu(&self, plan: &mut Dispatches) {
        let way = self.ways[plan.variant()];
        let (scale, n) = match way {
            "wrong" => (2.001, self.n),
            "nan" => (f32::NAN, self.n),
            "short" => (2.0, self.n - 1),
            _ => (2.0, self.n),
        };
        let entry = if way == "dirty" { "times_old" } else { "times" };
        let kernel = if self.changed { changed() } else { &KERNEL };
        let dispatch = plan.add(kernel, entry).param("n", n).param("scale", scale);
        dispatch.write("y", 0).cover(self.n, 64);
        match way {
            // No adapter binds from there on.
            "broken" => dispatch.range("x", Slot::Read(0), 1, self.n - 1),
            "dirty" => dispatch.read("x", 0).scratch("old", 0),
            _ => dispatch.read("x", 0),
        };
    }
}

impl Twice {
    fn recorded(self) -> Recorded {
        let all = self.ways.iter().enumerate();
        let variants: Vec<Variant> =
            all.map(|(index, name)| Variant { name: (*name).to_owned(), index, rounds: false }).collect();
        let tuning = Tuning::new(format!("{} numbers", self.n), move |_| variants.clone());
        let info = LaunchInfo { gpu_scratch: vec![self.n], tuning, ..LaunchInfo::default() };
        Recorded::new(self, info)
    }
}

/// The kernel after somebody worked on it.
fn changed() -> &'static Kernel {
    static CHANGED: OnceLock<Kernel> = OnceLock::new();
    CHANGED.get_or_init(|| Kernel {
        name: "times",
        source: format!("{SOURCE}// changed\n").leak(),
        knob_sets: &[&[]],
    })
}

const WAYS: &[&str] = &["plain", "slow", "fast", "wrong", "nan", "short", "dirty", "broken"];

/// Seconds by name: those that are wrong are the fastest.
fn seconds(way: &str) -> f64 {
    match way {
        "plain" => 3.0,
        "slow" => 4.0,
        "fast" => 2.0,
        "hardly faster" => 2.99,
        _ => 0.001,
    }
}

fn open() -> Arc<Gpu> {
    Arc::new(adapters::open(None).expect("an adapter: run tools/test, which installs a software driver"))
}

/// A launch recorded for `gpu`, and its result.
fn recorded(gpu: &Arc<Gpu>, ways: &'static [&'static str], n: usize, changed: bool) -> (Plan, Tensor) {
    let tape = Tape::new();
    let x = tape.stored("x", 0, [n]);
    let [y] = tape.launch(Twice { n, ways, changed }.recorded(), &[&x], [x.shape().clone()]);
    (Plan::new(&tape, &[&y], &Device::Gpu(Arc::clone(gpu))), y)
}

/// What is picked with `file` at hand, and how often the clock was asked.
fn picked(
    ways: &'static [&'static str],
    n: usize,
    changed: bool,
    file: &Path,
    times: bool,
) -> (Picked, usize) {
    // A device of its own, which has compiled nothing yet.
    let gpu = open();
    gpu.tune_with(Some(TuningFile::in_file(&gpu, file, times, |_| {}).unwrap()));
    let mut asked = 0;
    let picked = pick_by(&gpu, &recorded(&gpu, ways, n, changed).0, &mut |variant, _, _| {
        asked += 1;
        Ok(seconds(&variant.name))
    });
    (picked.unwrap().remove(0).expect("a launch with variants"), asked)
}

#[test]
fn the_fastest_wins_and_what_computes_wrongly_never_does() {
    let folder = TempDir::new().unwrap();
    let (picked, asked) = picked(WAYS, 1000, false, &folder.path().join("t.json"), true);
    let choice = picked.choice.expect("it was timed");
    assert_eq!((picked.variant.name.as_str(), choice.variant.as_str()), ("fast", "fast"));
    assert_eq!((choice.ms, choice.default.as_str(), choice.default_ms), (2000.0, "plain", 3000.0));
    let refused: Vec<&str> = choice.refused.iter().map(|r| r.variant.as_str()).collect();
    assert_eq!(refused, ["wrong", "nan", "short", "dirty", "broken"]);
    let why: Vec<&str> = choice.refused.iter().map(|r| r.why.as_str()).collect();
    assert!(why[0].contains("the default gives") && why[1].contains("NaN"), "{why:?}");
    assert!(
        why[2].starts_with("number 999 ") && why[3].contains("NaN") && why[4].contains("binding"),
        "{why:?}"
    );
    assert!(asked >= 3, "{asked}");
}

#[test]
fn the_default_stays_where_nothing_is_clearly_faster() {
    let folder = TempDir::new().unwrap();
    for (number, ways) in
        [&["plain", "hardly faster"][..], &["plain", "slow", "wrong"]].into_iter().enumerate()
    {
        let file = folder.path().join(format!("{number}.json"));
        let choice = picked(ways, 64, false, &file, true).0.choice.expect("it was timed");
        assert_eq!((choice.variant.as_str(), choice.ms), ("plain", 3000.0));
    }
}

#[test]
fn a_choice_is_remembered_for_its_shapes_and_kernels() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("t.json");
    assert!(picked(WAYS, 1000, false, &file, true).1 > 0);
    let whole = std::fs::read(&file).unwrap();
    for times in [true, false] {
        let (again, asked) = picked(WAYS, 1000, false, &file, times);
        assert_eq!((again.variant.name.as_str(), asked), ("fast", 0));
    }
    assert_eq!(std::fs::read(&file).unwrap(), whole, "reading changes nothing");
    // Nothing is known of other shapes, other kernels and other variants.
    for (ways, n, changed) in [(WAYS, 1001, false), (WAYS, 1000, true), (&WAYS[..2], 1000, false)] {
        let (other, asked) = picked(ways, n, changed, &file, false);
        assert_eq!((other.variant.name.as_str(), asked), ("plain", 0), "{n}, {changed}");
        assert!(other.choice.is_none());
        assert!(picked(ways, n, changed, &file, true).1 > 0, "{n}, {changed}");
    }
    // The first is still there beside the others.
    assert_eq!(picked(WAYS, 1000, false, &file, true).1, 0);
}

#[test]
fn a_program_runs_what_was_picked() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("t.json");
    picked(&WAYS[..3], 100, false, &file, true);
    for tuned in [true, false] {
        let gpu = open();
        if tuned {
            gpu.tune_with(Some(TuningFile::in_file(&gpu, &file, false, |_| {}).unwrap()));
        }
        let (plan, y) = recorded(&gpu, &WAYS[..3], 100, false);
        let mut program = Program::compile(&plan, &Device::Gpu(gpu), &[], Sharing::Guarded).unwrap();
        let part = program.compiled()[0].picked.as_ref().expect("it has variants");
        assert_eq!(part.variant.name, if tuned { "fast" } else { "plain" });
        assert_eq!(part.choice.is_some(), tuned);
        program.write("x", &[1.5_f32; 100]).unwrap();
        program.run().unwrap();
        assert_eq!(program.read(&y).unwrap(), [3.0; 100]);
    }
}

#[test]
fn a_variant_far_behind_is_timed_once_and_the_others_take_turns() {
    let mut order = Vec::new();
    let seconds = time_round_robin(3, &mut |runner, _| {
        order.push(runner);
        Ok([1e-3, 9e-3, 1.5e-3][runner])
    });
    assert_eq!(seconds.unwrap(), [1e-3, 9e-3, 1.5e-3]);
    assert_eq!(order, [0, 1, 2, 0, 2, 0, 2, 0, 2, 0, 2, 0, 2]);
}

#[test]
fn one_slow_reading_decides_nothing() {
    let mut asked = [0; 2];
    let seconds = time_round_robin(2, &mut |runner, again| {
        asked[runner] += 1;
        assert!((1..=64).contains(&again));
        // The second reading of the second runner met a busy machine.
        Ok(if (runner, asked[runner]) == (1, 2) { 1.0 } else { [2e-3, 1e-3][runner] })
    });
    assert_eq!(seconds.unwrap(), [2e-3, 1e-3]);
}
