//! Golden files and how results are judged by them: `tools/reference` makes the files with PyTorch.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};

use denoir::device::{Device, Precision, gpu::adapters};
use denoir::nn::{self, Params};
use denoir::program::Program;
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

fn folder() -> PathBuf {
    crate::place::root().join("tests/golden")
}

/// Names of the golden files that begin with `prefix`, sorted.
pub fn files(prefix: &str) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(folder())
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .filter(|n| n.starts_with(prefix) && n.ends_with(".safetensors"))
        .collect();
    names.sort();
    names
}

/// Models with the names and shapes of their parameters.
pub fn names(file: &str) -> BTreeMap<String, Value> {
    serde_json::from_str(&std::fs::read_to_string(folder().join(file)).unwrap()).unwrap()
}

/// A golden file: every tensor as f64, and the metadata parsed.
pub struct Golden {
    pub tensors: BTreeMap<String, (Vec<usize>, Vec<f64>)>,
    pub metadata: BTreeMap<String, Value>,
}

impl Golden {
    pub fn read(path: &Path) -> Golden {
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
                Dtype::F16 => bytemuck::pod_collect_to_vec::<u8, u16>(view.data())
                    .iter()
                    .map(|&v| half_to_f64(v))
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
        // Python writes infinity, which is no JSON.
        let json = |text: String| {
            let value = serde_json::from_str(&text.replace(": -Infinity", ": \"-inf\""));
            // What other programs note is any text.
            value.unwrap_or(Value::String(text))
        };
        let parse = |(k, v): (String, String)| (k, json(v));
        Golden { tensors: tensors.collect(), metadata: metadata.into_iter().map(parse).collect() }
    }

    pub fn named(name: &str) -> Golden {
        Golden::read(&folder().join(name))
    }

    /// With the errors of PyTorch's f16 in its metadata, for devices of that precision.
    pub fn with_halves(name: &str) -> Golden {
        let mut golden = Golden::named(name);
        let text = std::fs::read_to_string(folder().join("f16_errors.json")).unwrap();
        let errors: BTreeMap<String, BTreeMap<String, Value>> = serde_json::from_str(&text).unwrap();
        golden.metadata.extend(errors[name].clone());
        golden
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

/// A half as its bits.
fn half_to_f64(bits: u16) -> f64 {
    let (sign, exponent, fraction) =
        (bits >> 15, i32::from(bits >> 10 & 31), f64::from(bits & 1023) / 1024.0);
    let size = match exponent {
        0 => fraction * 2.0_f64.powi(-14),
        31 => panic!("a half that is no number"),
        _ => (1.0 + fraction) * 2.0_f64.powi(exponent - 15),
    };
    if sign == 1 { -size } else { size }
}

pub fn norm(values: impl Iterator<Item = f64>) -> f64 {
    values.map(|v| v * v).sum::<f64>().sqrt()
}

/// Norm of the difference over norm.
pub fn relative(got: &[f32], wanted: &[f64]) -> f64 {
    assert_eq!(got.len(), wanted.len());
    norm(got.iter().zip(wanted).map(|(g, w)| f64::from(*g) - w)) / norm(wanted.iter().copied())
}

/// Holds results against the f64 values of a golden file: on the CPU device at most twice, on a GPU at most
/// ten times the error that PyTorch's own f32 makes, with tensors of 16 bits at most four times that of its
/// autocast to f16. A tensor of few numbers can be right by luck in PyTorch, so a layer's error as a whole
/// counts too, and half a unit in the last place is always allowed.
pub struct Judge<'a> {
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

    fn errors(&self, of_layers: bool) -> &'a Value {
        let precision = if self.device.precision() == Precision::F16 { "f16" } else { "f32" };
        &self.golden.metadata[&format!("{precision}_error{}", if of_layers { "_layer" } else { "" })]
    }

    /// PyTorch's error in a tensor, or the largest of several; 0 for one that the file does not list.
    pub fn error_of(&self, tensors: &[&str]) -> f64 {
        let one = |name: &&str| self.errors(false).get(name).and_then(Value::as_f64);
        tensors.iter().filter_map(one).fold(0.0, f64::max)
    }

    /// Notes an error of ours beside PyTorch's, both relative.
    pub fn error(&mut self, what: &str, err: f64, pytorch: f64) {
        let (factor, unit) = match (self.device, self.device.precision()) {
            (_, Precision::F16) => (4.0, 2.0_f64.powi(-10)),
            (Device::Cpu(_), _) => (2.0, f32::EPSILON.into()),
            (Device::Gpu(_), _) => (10.0, f32::EPSILON.into()),
        };
        let allowed = pytorch.max(unit / 2.0);
        if err.is_nan() || err / allowed > self.worst.0 {
            self.worst = (err / allowed, what.to_owned());
        }
        let fine = err <= factor * allowed; // false for NaN
        if !fine {
            self.failures.push(format!("{what} is off by {err:.2e}, PyTorch by {allowed:.2e}"));
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
            let of_layer = self.errors(true).get(layer(&spec.name)).and_then(Value::as_f64);
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
        eprintln!("{name} on {device}: at worst {times:.2} times PyTorch's error, at {at}");
        assert!(self.failures.is_empty(), "{name} on {device}:\n  {}", self.failures.join("\n  "));
    }
}

/// The parameters of a golden file as they lie in the flat store. Names and shapes must be the model's.
pub fn flat_parameters(name: &str, golden: &Golden, params: &Params) -> Vec<f32> {
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
pub fn flat_gradients(program: &Program, params: &Params) -> Vec<f32> {
    let mut all = vec![0.0_f32; params.elements()];
    program.device().read(program.store(nn::GRADIENTS), 0, bytemuck::cast_slice_mut(&mut all)).unwrap();
    all
}

pub fn to_f32(values: &[f64]) -> Vec<f32> {
    values.iter().map(|&v| v as f32).collect()
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

/// A model's parameters against the list of its entry: names, shapes and their number.
pub fn check_names(models: &BTreeMap<String, Value>, model: &str, params: &Params) {
    let entry = &models[model];
    // A model with the tensors of another names it.
    let tensors = match &entry["tensors"] {
        Value::String(same) => &models[same]["tensors"],
        list => list,
    };
    assert_eq!(Some(params.count() as u64), entry["parameters"].as_u64(), "{model}");
    let wanted: BTreeMap<String, Vec<usize>> =
        match serde_json::from_value::<Vec<(String, Vec<usize>)>>(tensors.clone()) {
            Ok(tensors) => tensors.into_iter().collect(),
            Err(e) => panic!("{model}: {e}"),
        };
    let ours: BTreeMap<String, Vec<usize>> =
        params.specs().iter().map(|s| (s.name.clone(), s.file_shape())).collect();
    assert_eq!(ours, wanted, "{model}");
}
