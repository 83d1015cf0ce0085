//! The benchmark and the profile as a user runs them. Times are not judged here, only what they are made of.

use std::path::Path;
use std::process::Output;

use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::Value;
use tempfile::TempDir;

use crate::command_line::{denoir, fails, tiny_run};
use denoir::bench;
use denoir::device::{Device, Precision, gpu::adapters};

fn succeeds(folder: &Path, arguments: &[&str]) -> Output {
    let output = denoir(folder, arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

/// The one JSON object on standard output.
fn object(folder: &Path, arguments: &[&str]) -> Value {
    let output = succeeds(folder, arguments);
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(text.lines().count(), 1, "{text}");
    let value: Value = serde_json::from_str(&text).unwrap();
    assert!(value.is_object());
    value
}

fn number(value: &Value, key: &str) -> f64 {
    value[key].as_f64().unwrap_or_else(|| panic!("{key} is {}", value[key]))
}

const CPU: [&str; 2] = ["--device", "cpu"];

#[test]
fn mistakes_in_the_command_of_a_benchmark() {
    let folder = TempDir::new().unwrap();
    let at = folder.path();
    fails(at, &["bench", "step", "arena_unet"], 2, &["no workload called", "did you mean arena-unet?"]);
    fails(at, &["bench", "sample", "nothing"], 2, &["choose arena-unet, mnist-unet"]);
    fails(at, &["profile", "mlpvae"], 2, &["did you mean mlp-vae?"]);
    fails(at, &["profile", "runs/none"], 1, &["runs/none does not exist"]);
    fails(at, &["bench", "step", "mlp-vae", "--batch", "0", "--device", "cpu"], 2, &["--batch 0", "from 1"]);
    fails(at, &["bench", "step", "mlp-vae", "--threads", "0", "--device", "cpu"], 2, &["--threads 0"]);
    fails(at, &["bench", "step", "mlp-vae", "--steps", "0"], 2, &["invalid value '0' for '--steps"]);
    fails(at, &["bench", "ops", "no-such-op", "--device", "cpu"], 2, &["no op has \"no-such-op\""]);
    fails(at, &["profile", "mlp-vae", "--trace", "none/t.json"], 1, &["there is no folder none"]);
}

#[test]
fn a_benchmark_says_everything_that_is_compared() {
    let folder = TempDir::new().unwrap();
    for (kind, parameters) in [("step", 1_068_820.0), ("sample", 1_068_820.0)] {
        let options = ["--batch", "2", "--steps", "3", "--warmup", "1", "--json"];
        let arguments = [&["bench", kind, "mlp-vae"], &CPU[..], &options].concat();
        let report = object(folder.path(), &arguments);
        assert_eq!((report["workload"].as_str(), report["kind"].as_str()), (Some("mlp-vae"), Some(kind)));
        assert!(report["device"].as_str().unwrap().starts_with("CPU, "), "{report}");
        assert!(report["driver"].is_string() && report["date"].as_str().unwrap().ends_with('Z'), "{report}");
        assert_eq!((number(&report, "batch"), number(&report, "n")), (2.0, 3.0));
        assert_eq!(number(&report, "parameters"), parameters);
        let [min, median, max] = ["min_ms", "median_ms", "max_ms"].map(|key| number(&report, key));
        assert!(0.0 < min && min <= median && median <= max, "{report}");
        let rate = number(&report, "images_per_s") * median;
        assert!((rate - 2000.0).abs() < 1.0, "{report}");
        // 2 x (784x512 + 512x256 + 256x4 + 2x256 + 256x512 + 512x784) per image, forward; backward the same
        // for the weights and, but for the first layer, for what goes in.
        let decoder = 2.0 * 2.0 * (2.0 * 256.0 + 256.0 * 512.0 + 512.0 * 784.0);
        let forward = decoder + 2.0 * 2.0 * (784.0 * 512.0 + 512.0 * 256.0 + 256.0 * 4.0);
        let flops = if kind == "step" { 3.0 * forward - 4.0 * 784.0 * 512.0 } else { decoder };
        assert_eq!(number(&report, "flops"), flops, "{report}");
        assert!((number(&report, "gflops") * median * 1e6 / flops - 1.0).abs() < 1e-6, "{report}");
        let memory = number(&report, "peak_memory_bytes");
        // At least the weights; less than the whole machine.
        assert!((4e6..1e9).contains(&memory) || !cfg!(target_os = "linux"), "{report}");
        assert!(number(&report, "launches") >= 7.0);
    }
}

#[test]
fn what_the_arena_and_every_other_workload_is() {
    let cpu = Device::open("cpu").unwrap();
    let arena = bench::find("arena-unet", &cpu, None).unwrap();
    let params = arena.params();
    let params = params.borrow();
    assert_eq!((params.count(), arena.batch()), (5_294_080, 2));
    // {n: tuple(p.shape) for n, p in arena.ArenaUNet().named_parameters()}, some of them
    for (name, shape) in [
        ("conv_in.weight", vec![64, 4, 3, 3]),
        ("enc.1.res_conv.weight", vec![128, 64, 1, 1]),
        ("down.1.weight", vec![128, 128, 3, 3]),
        ("mid.norm2.bias", vec![256]),
        ("dec.2.conv1.weight", vec![64, 192, 3, 3]),
        ("norm_out.weight", vec![64]),
    ] {
        assert_eq!(params.find(name).map(|spec| spec.file_shape()), Some(shape), "{name}");
    }
    assert!(params.find("conv_in.bias").is_none());
}

/// The shares of a profile add up to the step, and the launches to those of the trace.
fn check_profile(folder: &Path, device: &str) {
    let options =
        ["--device", device, "--batch", "256", "--steps", "4", "--warmup", "1", "--trace", "t.json"];
    let run = || object(folder, &[&["profile", "mlp-vae", "--json"], &options[..]].concat());
    let mut profile = run();
    // What else runs on the machine widens the gaps: a calmer moment may come.
    for _ in 0..2 {
        if number(&profile, "gaps_percent") > 5.0 {
            profile = run();
        }
    }
    for grouping in ["kernels", "parts"] {
        let rows = profile[grouping].as_array().unwrap();
        let sum: f64 = rows.iter().map(|row| number(row, "percent")).sum();
        assert!((95.0..=100.1).contains(&sum), "{device}: {grouping} are {sum} % of the step: {profile}");
        assert!((sum + number(&profile, "gaps_percent") - 100.0).abs() < 1e-6, "{profile}");
        let flops: f64 = rows.iter().map(|row| number(row, "flops")).sum();
        assert!(flops > 1e8, "{device}: {flops} operations");
        for row in rows {
            let near = |got: f64, wanted: f64| (got - wanted).abs() <= 1e-6 * wanted;
            let ms = number(row, "ms");
            assert!(near(number(row, "gb_s") * ms, number(row, "bytes") * 1e-6) || ms == 0.0, "{row}");
            let bound = row["ceiling"].as_str().unwrap();
            assert!(bound == "memory" || number(row, "flops") > 0.0, "{row}");
        }
    }
    let adam = profile["kernels"].as_array().unwrap().iter().find(|row| row["name"] == "adam").unwrap();
    // 36 bytes a parameter: four stores read and written, the gradients read; and the gaps between them.
    let per_parameter = number(adam, "bytes") / 1_068_820.0;
    assert!(per_parameter > 36.0 && per_parameter < 36.1, "{adam}");

    let trace: Value =
        serde_json::from_str(&std::fs::read_to_string(folder.join("t.json")).unwrap()).unwrap();
    let events = trace["traceEvents"].as_array().unwrap();
    let bars = |track: u64| events.iter().filter(move |e| e["ph"] == "X" && e["tid"] == track);
    let calls: f64 = profile["kernels"].as_array().unwrap().iter().map(|row| number(row, "calls")).sum();
    assert_eq!((bars(0).count(), bars(1).count()), (4, 4 * calls as usize));
    let ms: f64 = bars(1).map(|e| number(e, "dur") * 1e-3).sum::<f64>() / 4.0;
    assert!((ms / number(&profile, "sum_ms") - 1.0).abs() < 1e-3, "{device}: {ms} ms in the trace");
    assert!(bars(1).all(|e| e["args"]["label"].is_string() && number(e, "ts") >= 0.0));
}

#[test]
fn the_shares_of_a_profile_add_up_on_every_device() {
    let folder = TempDir::new().unwrap();
    check_profile(folder.path(), "cpu");
    assert!(!adapters::list().is_empty(), "no GPU, not even a software one: run tools/test");
    check_profile(folder.path(), "gpu");
}

#[test]
fn the_step_of_a_run_is_profiled() {
    let folder = TempDir::new().unwrap();
    let run = tiny_run(folder.path(), &[]);
    let text = succeeds(
        folder.path(),
        &[&["profile", run.to_str().unwrap(), "--by-label", "--steps", "1", "--sample"], &CPU[..]].concat(),
    );
    let text = String::from_utf8(text.stdout).unwrap();
    for wanted in ["down_blocks.0.resnets.0.conv1", "conv_out", "gaps", "plain step"] {
        assert!(text.contains(wanted), "{text}");
    }
}

#[test]
fn ceilings_are_measured_and_no_product_exceeds_them() {
    let folder = TempDir::new().unwrap();
    let report = object(folder.path(), &[&["bench", "roofline", "--json"], &CPU[..]].concat());
    let [peak, one, product] =
        ["f32_gflops", "f32_one_thread_gflops", "matmul_gflops"].map(|key| number(&report, key));
    assert!(peak > 0.1 && one > 0.1 && product > 0.0 && product <= peak, "{report}");
    let memory = number(&report, "memory_gb_s");
    for key in ["copy_gb_s", "read_gb_s", "triad_gb_s"] {
        assert!((0.01..=memory).contains(&number(&report, key)), "{report}");
    }
    assert!(report["f16_gflops"].is_null() && report["bf16_gflops"].is_null());
    if Device::open("cpu").unwrap().with_precision(Precision::Bf16).is_ok() {
        let precision = ["bench", "roofline", "--json", "--precision", "bf16"];
        let report = object(folder.path(), &[&precision, &CPU[..]].concat());
        let [plain, rounded, product] =
            ["f32_gflops", "bf16_gflops", "matmul_gflops"].map(|key| number(&report, key));
        assert!(plain > 0.1 && product > 0.0 && product <= rounded, "{report}");
    }
}

#[test]
fn ops_are_checked_and_timed_in_both_directions() {
    let folder = TempDir::new().unwrap();
    let arguments = [&["bench", "ops", "linear", "--steps", "2", "--json"], &CPU[..]].concat();
    let report = object(folder.path(), &arguments);
    let ops = report["ops"].as_array().unwrap();
    let directions: Vec<_> = ops.iter().map(|op| op["direction"].as_str().unwrap()).collect();
    assert_eq!(directions, ["forward", "backward"]);
    let flops = 2.0 * 128.0 * 512.0 * 512.0;
    assert_eq!((number(&ops[0], "flops"), number(&ops[1], "flops")), (flops, 2.0 * flops));
    assert!(ops.iter().all(|op| op["op"] == "linear_128x512x512" && number(op, "gflops") > 0.0));
}

/// What `bench check` reads, and what it gives for weights that are easy to follow: all zero but the last
/// bias of the decoder.
#[test]
fn check_computes_what_its_contract_says() {
    let folder = TempDir::new().unwrap();
    let cpu = Device::open("cpu").unwrap();
    let workload = bench::find("mlp-vae", &cpu, None).unwrap();
    let params = workload.params();
    let params = params.borrow();
    const N: usize = 3;
    let bias = |i: usize| 0.01 * (i % 7) as f32 - 0.02;
    let mut tensors: Vec<(String, Vec<usize>, Vec<f32>)> = Vec::new();
    for spec in params.specs() {
        let count = spec.shape.elements();
        let values = match spec.name.as_str() {
            "decoder.4.bias" => (0..count).map(bias).collect(),
            _ => vec![0.0; count],
        };
        tensors.push((spec.name.clone(), spec.file_shape(), values));
    }
    let x = |i: usize| (i % 11) as f32 / 5.0 - 1.0;
    tensors.push(("in/x".to_owned(), vec![N, 784], (0..N * 784).map(x).collect()));
    tensors.push(("in/eps".to_owned(), vec![N, 2], vec![0.5; N * 2]));
    let write = |tensors: &[(String, Vec<usize>, Vec<f32>)]| {
        let views = tensors.iter().map(|(name, shape, values)| {
            (name, TensorView::new(Dtype::F32, shape.clone(), bytemuck::cast_slice(values)).unwrap())
        });
        std::fs::write(folder.path().join("given.safetensors"), safetensors::serialize(views, None).unwrap())
            .unwrap();
    };
    let command = ["bench", "check", "mlp-vae", "--given", "given.safetensors", "--out", "out.safetensors"];
    let command = [&command[..], &CPU].concat();
    write(&tensors);
    succeeds(folder.path(), &command);

    let bytes = std::fs::read(folder.path().join("out.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let get = |name: &str| {
        let tensor = file.tensor(name).unwrap();
        (tensor.shape().to_vec(), bytemuck::pod_collect_to_vec::<u8, f32>(tensor.data()))
    };
    let (shape, logits) = get("out");
    assert_eq!(shape, [N, 1, 28, 28]);
    assert!(logits.iter().enumerate().all(|(i, v)| *v == bias(i % 784)));
    // The posterior is the prior, so the divergence is 0: the loss is the cross-entropy, summed over the
    // pixels and averaged over the images; its derivative by a logit is sigmoid(logit) - target.
    let (mut loss, mut slopes) = (0.0, vec![0.0; 784]);
    for i in 0..N * 784 {
        let (logit, target) = (f64::from(bias(i % 784)), 0.5 + 0.5 * f64::from(x(i)));
        loss += (logit.exp().ln_1p() - target * logit) / N as f64;
        slopes[i % 784] += (1.0 / (1.0 + (-logit).exp()) - target) / N as f64;
    }
    let (shape, got) = get("loss");
    assert_eq!(shape, [1]);
    assert!((f64::from(got[0]) / loss - 1.0).abs() <= 1e-5, "{} for {loss}", got[0]);
    let (shape, got) = get("grad/decoder.4.bias");
    assert_eq!(shape, [784]);
    assert!(got.iter().zip(&slopes).all(|(got, wanted)| (f64::from(*got) - wanted).abs() <= 1e-5));
    assert_eq!(get("grad/encoder.0.weight").0, [512, 784]);
    assert_eq!(file.names().len(), params.specs().len() + 2);

    // One tensor too many, and one too few.
    tensors.push(("in/t".to_owned(), vec![N], vec![0.0; N]));
    write(&tensors);
    fails(folder.path(), &command, 1, &["in/t is no parameter and no input of this workload"]);
    tensors.truncate(tensors.len() - 2);
    write(&tensors);
    fails(folder.path(), &command, 1, &["there is no tensor in/eps", "bench check --help"]);
}
