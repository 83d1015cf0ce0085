//! Against PyTorch: values and all gradients of whole models, the optimiser, the schedule.
//! `tools/reference` makes the files.

use std::cell::RefCell;
use std::rc::Rc;

use denoir::device::Device;
use denoir::diffusers::config::{self, Model};
use denoir::diffusion::{self, Schedule, Scheduler, Told, Variance};
use denoir::models::unet::{Class, UNetConfig, unet};
use denoir::nn::{self, Params, Scope};
use denoir::ops::adam::{AdamOptions, AdamTensors, adam};
use denoir::ops::grad_norm::grad_norm;
use denoir::optim::{Ema, EmaWarmup, LrSchedule};
use denoir::program::{Plan, Program, Sharing};
use denoir::state::State;
use denoir::tape::Tape;
use serde_json::Value;

use crate::precision::half_devices;
use crate::reference::{
    Golden, Judge, check_names, devices, files, flat_gradients, flat_parameters, names, relative, to_f32,
};

/// The reference library's `config.json` as ours.
pub fn config_of(json: &Value) -> UNetConfig {
    let mut json = json.clone();
    json["_class_name"] = "UNet2DModel".into();
    // Images that are no squares are no folders of diffusion models, but the network takes them.
    json["sample_size"] = Value::Null;
    match config::model(&json.to_string()).unwrap().model {
        Model::UNet(config) => *config,
        other => panic!("{other:?}"),
    }
}

fn check_unet(name: &str, golden: &Golden, device: &Device) {
    let config = config_of(&golden.metadata["config"]);
    check_network(name, golden, device, config.class(), &move |s, x, t, told| unet(&config, s, x, t, told));
}

/// Output, gradient of the image and of every parameter of a network against the f64 values of a golden file.
pub fn check_network(name: &str, golden: &Golden, device: &Device, class: Class, network: &diffusion::Model) {
    let (shape, x) = golden.nhwc("in/x");
    let (_, dy) = golden.nhwc("in/dy");
    let params: Rc<RefCell<Params>> = Rc::default();
    let tape = Tape::new();
    let state = tape.stored_u32("state", [State::WORDS]);
    let scope = Scope::training(&tape, &params, &state);
    let x_in = tape.variable("x", 0, shape);
    let t = tape.stored("t", 0, [shape[0]]);
    let labels = class.tensor(&tape, shape[0]);
    let text = golden.tensors.get("in/text").map(|(shape, _)| tape.variable("text", 0, &shape[..]));
    let y = network(&scope, &x_in, &t, Told { labels: labels.as_ref(), text: text.as_ref() });
    let dy_in = tape.stored("dy", 0, y.shape().clone());
    let gradients = tape.backward_from(&y, &dy_in);
    nn::place_gradients(&tape, &gradients);
    let dx = gradients.get(&x_in).expect("the image has a gradient").clone();
    let plan = Plan::new(&tape, &[&y, &dx], device);
    let mut program = Program::compile(&plan, device, &[], Sharing::Shared).unwrap();

    let params = params.borrow();
    nn::write_parameters(&program, &flat_parameters(name, golden, &params)).unwrap();
    program.write("x", &to_f32(&x)).unwrap();
    program.write("t", &golden.f32("in/t")).unwrap();
    program.write("dy", &to_f32(&dy)).unwrap();
    match class {
        Class::None => assert!(!golden.tensors.contains_key("in/labels"), "{name}"),
        Class::Number(_) => {
            let words: Vec<u32> = golden.get("in/labels").iter().map(|&v| v as u32).collect();
            program.write("labels", &words).unwrap();
        }
        Class::Value | Class::Embedding(_) => program.write("labels", &golden.f32("in/labels")).unwrap(),
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
fn unets_of_every_kind_with_all_gradients() {
    let names = files("unet_");
    assert!(names.len() >= 12, "{names:?}");
    for device in devices() {
        for name in &names {
            check_unet(name, &Golden::named(name), &device);
        }
    }
}

#[test]
fn unets_of_every_kind_in_16_bits() {
    for device in half_devices() {
        // The derivative of ReLU jumps: rounding decides which numbers about zero have one, PyTorch's too.
        for name in files("unet_").iter().filter(|name| !name.contains("relu")) {
            check_unet(name, &Golden::with_halves(name), &device);
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
        let labels = config.class().tensor(&tape, 1);
        unet(&config, &Scope::new(&tape, &params), &x, &t, labels.as_ref().into());
        check_names(&models, model, &params.borrow());
    }
    assert_eq!(models["mnist"]["parameters"], 1_707_009);
    assert_eq!(models["cifar10"]["parameters"], 35_746_307);
}

#[test]
fn recipes_have_the_published_numbers_of_parameters() {
    for (name, wanted) in [("mnist", 1_707_009), ("cifar10", 35_746_307)] {
        let recipe = denoir::recipe::find(name).unwrap();
        assert_eq!(denoir::recipe::params_of(&recipe).borrow().count(), wanted, "{name}");
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
        let plan = Scheduler::ddpm(1000, [1e-4, 0.02], Variance::FixedSmall, 1.0).plan(n).unwrap();
        let got: Vec<usize> = plan.timesteps().into_iter().map(|t| t as usize).collect();
        assert_eq!(got, wanted);
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
