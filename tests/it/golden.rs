//! Against PyTorch: values and all gradients of whole models, the optimiser, the schedule.
//! `tools/reference` makes the files.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::panic::AssertUnwindSafe;
use std::rc::Rc;

use denoir::device::{Device, gpu::adapters};
use denoir::diffusion::{Schedule, Variance};
use denoir::models::unet::{UNetConfig, unet};
use denoir::nn::{self, Params, Scope};
use denoir::ops::adam::{AdamOptions, AdamTensors, adam};
use denoir::ops::grad_norm::grad_norm;
use denoir::optim::{Ema, EmaWarmup, LrSchedule};
use denoir::program::{Plan, Program, Sharing};
use denoir::state::State;
use denoir::tape::Tape;
use safetensors::SafeTensors;
use safetensors::tensor::Dtype;
use serde_json::Value;

/// The CPU device and every adapter.
pub fn devices() -> Vec<Device> {
    let gpus: Vec<Device> =
        adapters::list().iter().map(|a| Device::open(&format!("gpu:{}", a.index)).unwrap()).collect();
    assert!(!gpus.is_empty(), "no GPU, not even a software one: run tools/test, which installs a driver");
    std::iter::once(Device::open("cpu").unwrap()).chain(gpus).collect()
}

fn folder() -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

/// Names of the golden files that begin with `prefix`, sorted.
pub(crate) fn files(prefix: &str) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(folder())
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .filter(|n| n.starts_with(prefix) && n.ends_with(".safetensors"))
        .collect();
    names.sort();
    names
}

/// Models with the names and shapes of their parameters.
pub(crate) fn names(file: &str) -> BTreeMap<String, Value> {
    serde_json::from_str(&std::fs::read_to_string(folder().join(file)).unwrap()).unwrap()
}

/// A golden file: every tensor as f64, and the metadata parsed.
pub(crate) struct Golden {
    pub tensors: BTreeMap<String, (Vec<usize>, Vec<f64>)>,
    pub metadata: BTreeMap<String, Value>,
}

impl Golden {
    pub fn read(path: &std::path::Path) -> Golden {
        let bytes = std::fs::read(path).unwrap();
        let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let tensors = file.tensors().into_iter().map(|(name, view)| {
            let values = match view.dtype() {
                Dtype::F64 => bytemuck::pod_collect_to_vec::<u8, f64>(view.data()),
                Dtype::F32 => bytemuck::pod_collect_to_vec::<u8, f32>(view.data())
                    .iter()
                    .map(|&v| f64::from(v))
                    .collect(),
                Dtype::I32 => bytemuck::pod_collect_to_vec::<u8, i32>(view.data())
                    .iter()
                    .map(|&v| f64::from(v))
                    .collect(),
                other => panic!("{name}: {other:?}"),
            };
            (name, (view.shape().to_vec(), values))
        });
        let metadata = header.metadata().clone().unwrap_or_default();
        let parse = |(k, v): (String, String)| (k, serde_json::from_str(&v).unwrap());
        Golden { tensors: tensors.collect(), metadata: metadata.into_iter().map(parse).collect() }
    }

    pub fn named(name: &str) -> Golden {
        Golden::read(&folder().join(name))
    }

    pub fn get(&self, name: &str) -> &[f64] {
        &self.tensors.get(name).unwrap_or_else(|| panic!("no tensor {name}")).1
    }

    pub fn f32(&self, name: &str) -> Vec<f32> {
        to_f32(self.get(name))
    }

    /// An image tensor `[N, C, H, W]` as `[N, H, W, C]`.
    pub fn nhwc(&self, name: &str) -> ([usize; 4], Vec<f64>) {
        let (shape, values) = &self.tensors[name];
        let [n, c, h, w] = shape[..] else { panic!("{name} is {shape:?}") };
        let mut out = Vec::with_capacity(values.len());
        for i in 0..n {
            for y in 0..h {
                for x in 0..w {
                    out.extend((0..c).map(|k| values[((i * c + k) * h + y) * w + x]));
                }
            }
        }
        ([n, h, w, c], out)
    }
}

pub(crate) fn norm(values: impl Iterator<Item = f64>) -> f64 {
    values.map(|v| v * v).sum::<f64>().sqrt()
}

/// Norm of the difference over norm.
pub(crate) fn relative(got: &[f32], wanted: &[f64]) -> f64 {
    assert_eq!(got.len(), wanted.len());
    norm(got.iter().zip(wanted).map(|(g, w)| f64::from(*g) - w)) / norm(wanted.iter().copied())
}

/// The reference library's `config.json` as ours: null is 0, and keys that these models leave at their only
/// value are dropped.
fn config_of(json: &Value) -> UNetConfig {
    let mut map = serde_json::Map::new();
    let known = serde_json::to_value(UNetConfig::default()).unwrap();
    for (key, value) in json.as_object().unwrap() {
        if known.get(key).is_some() {
            map.insert(key.clone(), if value.is_null() { Value::from(0) } else { value.clone() });
        }
    }
    serde_json::from_value(Value::Object(map)).unwrap()
}

/// Holds results against the f64 values of a golden file: on the CPU device at most twice, on a GPU at most
/// ten times the error that PyTorch's own f32 makes. A tensor of few numbers can be right by luck in
/// PyTorch, so a layer's error as a whole counts too, and half a unit in the last place is always allowed.
pub(crate) struct Judge<'a> {
    name: &'a str,
    golden: &'a Golden,
    device: &'a Device,
    worst: (f64, String),
    failures: Vec<String>,
}

impl<'a> Judge<'a> {
    pub fn new(name: &'a str, golden: &'a Golden, device: &'a Device) -> Self {
        Judge { name, golden, device, worst: (0.0, String::new()), failures: Vec::new() }
    }

    /// PyTorch's f32 error in a tensor, or the largest of several; 0 for one that the file does not list.
    pub fn error_of(&self, tensors: &[&str]) -> f64 {
        let one = |name: &&str| self.golden.metadata["f32_error"].get(name).and_then(Value::as_f64);
        tensors.iter().filter_map(one).fold(0.0, f64::max)
    }

    /// Notes an error of ours beside PyTorch's, both relative.
    pub fn error(&mut self, what: &str, err: f64, pytorch: f64) {
        let factor = if matches!(self.device, Device::Cpu(_)) { 2.0 } else { 10.0 };
        let allowed = pytorch.max(f64::from(f32::EPSILON) / 2.0);
        if err.is_nan() || err / allowed > self.worst.0 {
            self.worst = (err / allowed, what.to_owned());
        }
        let fine = err <= factor * allowed; // false for NaN
        if !fine {
            self.failures.push(format!("{what} is off by {err:.2e}, PyTorch's f32 by {allowed:.2e}"));
        }
    }

    /// Gradients of all parameters, `all` as they lie in the store. One that is exactly zero is measured by
    /// the others: rounding leaves it a share of theirs, `typical` or what PyTorch makes in its layer.
    pub fn gradients(&mut self, params: &Params, all: &[f32], typical: f64) {
        let golden = self.golden;
        let zero: BTreeSet<&str> =
            golden.metadata["zero_grad"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
        let layer = |name: &str| name.rsplit_once('.').map(|(l, _)| l.to_owned()).unwrap_or_default();
        let of = |n: &str| golden.get(&format!("f64/grad/{n}"));
        let largest = |keep: &dyn Fn(&str) -> bool| {
            let norms =
                params.specs().iter().filter(|s| keep(&s.name)).map(|s| norm(of(&s.name).iter().copied()));
            norms.fold(0.0, f64::max)
        };
        let overall = largest(&|_| true);
        for spec in params.specs() {
            let mut got = vec![0.0_f32; spec.shape.elements()];
            spec.for_each_index(|here, there| got[there] = all[spec.first + here]);
            let of_layer = golden.metadata["f32_error_layer"].get(layer(&spec.name)).and_then(Value::as_f64);
            let pytorch = self.error_of(&[&spec.name]).max(of_layer.unwrap_or(0.0));
            if zero.contains(spec.name.as_str()) {
                let of_layer = largest(&|n| layer(n) == layer(&spec.name));
                let scale = if of_layer > 1e-10 * overall { of_layer } else { overall };
                let err = norm(got.iter().map(|&v| v.into())) / scale;
                self.error(&format!("{} (exactly zero)", spec.name), err, typical.max(pytorch));
            } else {
                self.error(&spec.name, relative(&got, of(&spec.name)), pytorch);
            }
        }
    }

    /// # Panics
    /// If anything was too far off.
    pub fn verdict(self) {
        let (name, device, (times, at)) = (self.name, self.device.describe(), self.worst);
        eprintln!("{name} on {device}: at worst {times:.2} times PyTorch's f32 error, at {at}");
        assert!(self.failures.is_empty(), "{name} on {device}:\n  {}", self.failures.join("\n  "));
    }
}

/// The parameters of a golden file as they lie in the flat store. Names and shapes must be the model's.
pub(crate) fn flat_parameters(name: &str, golden: &Golden, params: &Params) -> Vec<f32> {
    let listed: BTreeSet<&str> = golden.tensors.keys().filter_map(|k| k.strip_prefix("param/")).collect();
    let ours: BTreeSet<&str> = params.specs().iter().map(|s| s.name.as_str()).collect();
    assert_eq!(ours, listed, "{name}: names of parameters");
    let mut flat = vec![0.0_f32; params.elements()];
    for spec in params.specs() {
        let (shape, values) = &golden.tensors[&format!("param/{}", spec.name)];
        assert_eq!(&spec.file_shape(), shape, "{name}: {}", spec.name);
        spec.for_each_index(|here, there| flat[spec.first + here] = values[there] as f32);
    }
    flat
}

/// The gradients of all parameters as they lie in the flat store.
pub(crate) fn flat_gradients(program: &Program, params: &Params) -> Vec<f32> {
    let mut all = vec![0.0_f32; params.elements()];
    program.device().read(program.store(nn::GRADIENTS), 0, bytemuck::cast_slice_mut(&mut all)).unwrap();
    all
}

pub(crate) fn to_f32(values: &[f64]) -> Vec<f32> {
    values.iter().map(|&v| v as f32).collect()
}

/// Output, gradient of the image and of every parameter against the f64 values of a golden file.
fn check_unet(name: &str, golden: &Golden, device: &Device) {
    let config = config_of(&golden.metadata["config"]);
    let (shape, x) = golden.nhwc("in/x");
    let (_, dy) = golden.nhwc("in/dy");
    let params: Rc<RefCell<Params>> = Rc::default();
    let tape = Tape::new();
    let state = tape.stored_u32("state", [State::WORDS]);
    let scope = Scope::training(&tape, &params, &state);
    let x_in = tape.variable("x", 0, shape);
    let t = tape.stored("t", 0, [shape[0]]);
    let labels = golden.tensors.contains_key("in/labels").then(|| tape.stored_u32("labels", [shape[0]]));
    let y = unet(&config, &scope, &x_in, &t, labels.as_ref());
    let dy_in = tape.stored("dy", 0, y.shape().clone());
    let gradients = tape.backward(&y, &dy_in);
    nn::place_gradients(&tape, &gradients);
    let dx = gradients.get(&x_in).expect("the image has a gradient").clone();
    let plan = Plan::new(&tape, &[&y, &dx], device);
    let mut program = Program::compile(&plan, device, &[], Sharing::Shared).unwrap();

    let params = params.borrow();
    program.write(nn::STORE, &flat_parameters(name, golden, &params)).unwrap();
    program.write("x", &to_f32(&x)).unwrap();
    program.write("t", &golden.f32("in/t")).unwrap();
    program.write("dy", &to_f32(&dy)).unwrap();
    if labels.is_some() {
        let words: Vec<u32> = golden.get("in/labels").iter().map(|&v| v as u32).collect();
        program.write("labels", &words).unwrap();
    }
    program.run().unwrap();

    let mut judge = Judge::new(name, golden, device);
    for (what, tensor) in [("out", &y), ("dx", &dx)] {
        let wanted = golden.nhwc(&format!("f64/{what}")).1;
        judge.error(what, relative(&program.read(tensor).unwrap(), &wanted), judge.error_of(&[what]));
    }
    judge.gradients(&params, &flat_gradients(&program, &params), judge.error_of(&["dx"]));
    judge.verdict();
}

#[test]
fn what_is_too_far_off_is_no_pass() {
    let metadata = serde_json::json!({ "f32_error": { "out": 1e-6 } });
    let metadata = metadata.as_object().unwrap().clone().into_iter().collect();
    let golden = Golden { tensors: BTreeMap::new(), metadata };
    let device = Device::open("cpu").unwrap();
    for (err, passes) in [(1.9e-6, true), (2.1e-6, false), (f64::INFINITY, false), (f64::NAN, false)] {
        let verdict = std::panic::catch_unwind(AssertUnwindSafe(|| {
            let mut judge = Judge::new("a test of the judge", &golden, &device);
            judge.error("exact", 0.0, 0.0);
            judge.error("out", err, judge.error_of(&["dx", "out"]));
            judge.error("within half a unit", 5e-8, 0.0);
            judge.verdict();
        }));
        assert_eq!(verdict.is_ok(), passes, "{err}");
    }
}

#[test]
fn unets_of_every_kind_with_all_gradients() {
    let names = files("unet_");
    assert!(names.len() >= 12, "{names:?}");
    for device in devices() {
        for name in &names {
            check_unet(name, &Golden::named(name), &device);
        }
    }
}

/// For large models, whose files are not committed: `DENOIR_GOLDEN=FILE cargo test large_unet -- --ignored
/// --nocapture`, with a file of `tools/reference/large_unet.py`.
#[test]
#[ignore = "needs a file of tools/reference/large_unet.py"]
fn large_unet() {
    let path = std::env::var_os("DENOIR_GOLDEN").expect("DENOIR_GOLDEN names the file");
    let golden = Golden::read(std::path::Path::new(&path));
    for device in devices() {
        check_unet(&path.to_string_lossy(), &golden, &device);
    }
}

#[test]
fn names_shapes_and_numbers_of_parameters() {
    let models = names("unet_names.json");
    for (model, entry) in &models {
        let config = config_of(&entry["config"]);
        let tape = Tape::new();
        let params: Rc<RefCell<Params>> = Rc::default();
        let side = 1 << config.block_out_channels.len();
        let x = tape.stored("x", 0, [1, side, side, config.in_channels]);
        let t = tape.stored("t", 0, [1]);
        let labels = (config.num_class_embeds > 0).then(|| tape.stored_u32("labels", [1]));
        unet(&config, &Scope::new(&tape, &params), &x, &t, labels.as_ref());
        let params = params.borrow();
        assert_eq!(params.count() as u64, entry["parameters"].as_u64().unwrap(), "{model}");
        let list = match &entry["tensors"] {
            Value::String(same) => &models[same]["tensors"],
            list => list,
        };
        let wanted: BTreeMap<String, Vec<usize>> =
            serde_json::from_value::<Vec<(String, Vec<usize>)>>(list.clone()).unwrap().into_iter().collect();
        let ours: BTreeMap<String, Vec<usize>> =
            params.specs().iter().map(|s| (s.name.clone(), s.file_shape())).collect();
        assert_eq!(ours, wanted, "{model}");
    }
    assert_eq!(models["mnist"]["parameters"], 1_707_009);
    assert_eq!(models["cifar10"]["parameters"], 35_746_307);
}

#[test]
fn recipes_have_the_published_numbers_of_parameters() {
    for (name, wanted) in [("mnist", 1_707_009), ("cifar10", 35_746_307)] {
        let recipe = denoir::recipe::find(name).unwrap();
        assert_eq!(denoir::models::params_of(&recipe).borrow().count(), wanted, "{name}");
    }
}

#[test]
fn adam_and_ema_over_several_steps() {
    let golden = Golden::named("optim.safetensors");
    let initial = golden.f32("in/param");
    let (n, cases) = (initial.len(), &golden.metadata["cases"]);
    for device in devices() {
        for (case, adamw) in
            [("adam", false), ("adam_cosine", false), ("adamw", true), ("adamw_cosine", true)]
        {
            assert!(cases.get(case).is_some() || cases.to_string().contains(case), "{cases}");
            let (beta1, beta2) = if case.ends_with("cosine") { (0.95, 0.999) } else { (0.9, 0.999) };
            let tape = Tape::new();
            let [p, g, m, v, e] = ["p", "g", "m", "v", "e"].map(|s| tape.stored(s, 0, [n]));
            let state = tape.stored_u32("state", [State::WORDS]);
            let norm = grad_norm(&g);
            let options = AdamOptions {
                beta1,
                beta2,
                eps: 1e-8,
                weight_decay: if adamw { 1e-2 } else { 0.0 },
                clip: Some(1.0),
                zero_grads: false,
            };
            let tensors = AdamTensors { params: &p, grads: &g, m: &m, v: &v, ema: &e };
            adam(options, tensors, &norm, &state);
            tape.place(&norm, "norm", 0);
            let plan = Plan::new(&tape, &[], &device);
            let mut program = Program::compile(&plan, &device, &[], Sharing::Shared).unwrap();
            program.write("p", &initial).unwrap();
            program.write("e", &initial).unwrap();
            let grads = golden.f32("in/grad");
            for step in 0..5 {
                let done = step as f64 + 1.0;
                let row = |key: &str| {
                    let all = golden.get(&format!("{case}/{key}"));
                    let width = all.len() / 5;
                    all[step * width..(step + 1) * width].to_vec()
                };
                let decay = row("ema_warmup_decay")[0];
                let words = State {
                    lr: row("lr")[0] as f32,
                    correction1: (1.0 / (1.0 - beta1.powf(done))) as f32,
                    correction2: (1.0 / (1.0 - beta2.powf(done))) as f32,
                    ema_decay: decay as f32,
                    ..State::default()
                };
                program.write("state", &words.words()).unwrap();
                program.write("g", &grads[step * n..(step + 1) * n]).unwrap();
                program.run().unwrap();
                for (store, key) in
                    [("norm", "norm"), ("p", "param"), ("m", "m"), ("v", "v"), ("e", "ema_warmup")]
                {
                    let wanted = row(key);
                    let mut got = vec![0.0_f32; wanted.len()];
                    device.read(program.store(store), 0, bytemuck::cast_slice_mut(&mut got)).unwrap();
                    let err = relative(&got, &wanted);
                    assert!(
                        err <= 1e-6,
                        "{case} on {}, step {}: {key} off by {err:.1e}",
                        device.describe(),
                        step + 1
                    );
                }
            }
        }
    }
}

#[test]
fn learning_rates_and_ema_decays() {
    let golden = Golden::named("optim.safetensors");
    let steps = golden.get("ema/step");
    for (key, warmup) in [
        ("ema/ema_warmup_decay", Some(EmaWarmup { inv_gamma: 1.0, power: 0.75 })),
        ("ema/ema_plain_decay", None),
    ] {
        let ema = Ema { decay: 0.9999, warmup };
        for (step, wanted) in steps.iter().zip(golden.get(key)) {
            let got = ema.decay_at(*step as u64);
            assert!((got - wanted).abs() <= 1e-12, "{key} at {step}: {got}, wanted {wanted}");
        }
    }
    for (key, schedule, warmup) in [
        ("constant_0", LrSchedule::Constant, 0),
        ("constant_with_warmup_5", LrSchedule::Constant, 5),
        ("cosine_5", LrSchedule::Cosine, 5),
        ("cosine_0", LrSchedule::Cosine, 0),
    ] {
        let wanted = golden.get(&format!("lr/{key}"));
        let base = wanted.iter().copied().fold(0.0, f64::max);
        for (step, wanted) in wanted.iter().enumerate() {
            let got = base * schedule.factor(step as u64, warmup, 30);
            assert!((got - wanted).abs() <= 1e-12, "{key} at {step}: {got}, wanted {wanted}");
        }
    }
}

#[test]
fn schedule_and_posterior() {
    let golden = Golden::named("schedule.safetensors");
    let schedule = Schedule::linear(1000, 1e-4, 0.02);
    let close = |got: f64, wanted: f64, what: &str| {
        assert!((got - wanted).abs() <= 1e-11 * wanted.abs().max(1e-3), "{what}: {got}, wanted {wanted}");
    };
    for (t, wanted) in golden.get("betas").iter().enumerate() {
        close(schedule.betas[t], *wanted, "beta");
    }
    for (t, wanted) in golden.get("alphas_cumprod").iter().enumerate() {
        close(schedule.alpha_bars[t], *wanted, "alpha_bar");
    }
    for n in [10, 50, 1000] {
        let wanted: Vec<usize> = golden.get(&format!("timesteps/{n}")).iter().map(|&t| t as usize).collect();
        assert_eq!(schedule.respaced(n), wanted);
    }
    let (t, prev) = (golden.get("posterior/t"), golden.get("posterior/prev"));
    for i in 0..t.len() {
        let before = (prev[i] >= 0.0).then_some(prev[i] as usize);
        let [x0, xt, small] = schedule.reverse(t[i] as usize, before, Variance::FixedSmall);
        let [_, _, large] = schedule.reverse(t[i] as usize, before, Variance::FixedLarge);
        close(x0, golden.get("posterior/coef_x0")[i], "coefficient of x_0");
        close(xt, golden.get("posterior/coef_xt")[i], "coefficient of x_t");
        close(small, golden.get("posterior/std_small")[i], "small deviation");
        close(large, golden.get("posterior/std_large")[i], "large deviation");
    }
}
