//! Every sampler against the diffusers library: walks in f64 and whole pictures of a seed. The sums that its
//! own tests publish: `published_sums.rs`.

use std::fs;

use denoir::device::Device;
use denoir::diffusion::{Clip, Keys, Method, SamplerPlan, Scheduler, Variance};
use denoir::models::unet::UNetConfig;
use denoir::ops::denoising::{Row, bounds, denoise};
use denoir::program::{Plan, Program, Sharing};
use denoir::recipe::{self, Recipe, Rng, initial_of, params_of};
use denoir::sample::Options;
use denoir::state::State;
use denoir::tape::Tape;
use denoir::train::RecipeTrainer;
use serde_json::{Value, json};

use crate::plan_runner::PlanRunner;
use crate::reference::devices;

pub fn golden(name: &str) -> Value {
    let path = format!("{}/tests/golden/{name}", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

pub fn floats(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
}

const SIZE: usize = 96;

/// Noise of draw `number` of tools/reference/scheduler_golden.py; -1: the first sample.
pub fn wave(number: i32) -> Vec<f64> {
    let at = |i: usize| 1.7 * (12.9898 * (i + 1) as f64 + 78.233 * f64::from(number + 2)).sin();
    (0..SIZE).map(at).collect()
}

/// The model of the golden walks and of the library's own tests.
pub fn model(x: &[f64], t: f64) -> Vec<f64> {
    x.iter().map(|x| x * t / (t + 1.0)).collect()
}

struct Case {
    name: String,
    scheduler: Scheduler,
    plan: SamplerPlan,
    path: Vec<Vec<f64>>,
    /// The largest number of the path: what an error is measured by.
    scale: f64,
}

fn cases() -> (Vec<usize>, Vec<Case>) {
    let golden = golden("schedulers.json");
    let seen = floats(&golden["seen"]).into_iter().map(|i| i as usize).collect();
    let case = |case: &Value| {
        let config = case["config"].as_str().unwrap();
        let mut scheduler = Scheduler::from_config(config).unwrap_or_else(|e| panic!("{config}: {e:?}"));
        let arguments = &case["arguments"];
        if let Method::Ddim { eta, reclip, .. } = &mut scheduler.method {
            *eta = arguments["eta"].as_f64().unwrap_or(0.0);
            *reclip = arguments["use_clipped_model_output"].as_bool().unwrap_or(false);
        }
        let steps = case["steps"].as_u64().unwrap() as usize;
        let name = format!("{config} {arguments} in {steps}");
        let plan = scheduler.plan(steps).unwrap_or_else(|e| panic!("{name}: {e:?}"));
        let (got, wanted) = (plan.timesteps(), floats(&case["timesteps"]));
        assert!(
            got.len() == wanted.len() && got.iter().zip(&wanted).all(|(a, b)| (a - b).abs() <= 1e-7),
            "{name}: timesteps {got:?}, wanted {wanted:?}"
        );
        let path: Vec<Vec<f64>> = case["path"].as_array().unwrap().iter().map(floats).collect();
        let scale = path.iter().flatten().fold(1.0, |most: f64, v| most.max(v.abs()));
        Case { name, scheduler, plan, path, scale }
    };
    (seen, golden["cases"].as_array().unwrap().iter().map(case).collect())
}

/// Some elements and the root of the mean square.
pub fn row(x: &[f64], seen: &[usize]) -> Vec<f64> {
    let square = x.iter().map(|v| v * v).sum::<f64>() / x.len() as f64;
    seen.iter().map(|&i| x[i]).chain([square.sqrt()]).collect()
}

fn compare(case: &Case, at: usize, got: &[f64], tolerance: f64, what: &str) -> f64 {
    let mut worst: f64 = 0.0;
    for (got, wanted) in got.iter().zip(&case.path[at]) {
        let err = (got - wanted).abs() / case.scale;
        assert!(err <= tolerance, "{what}: {} after step {at}: {got}, wanted {wanted} ({err:e})", case.name);
        worst = worst.max(err);
    }
    worst
}

pub fn start(plan: &SamplerPlan) -> Vec<f64> {
    wave(-1).into_iter().map(|v| v * plan.start).collect()
}

#[test]
fn walks_in_f64() {
    let (seen, cases) = cases();
    assert!(cases.len() > 100);
    for case in &cases {
        let mut runner = PlanRunner::new(&case.plan, 0, start(&case.plan), 2);
        compare(case, 0, &row(&runner.x, &seen), 1e-9, "f64");
        let mut draws = 0;
        for (i, step) in case.plan.steps.iter().enumerate() {
            let out = model(&runner.x, step.t);
            runner.step(&out, &wave(draws));
            draws += i32::from(step.draws);
            compare(case, i + 1, &row(&runner.x, &seen), 1e-9, "f64");
        }
    }
}

#[test]
fn walks_on_the_devices() {
    let (seen, cases) = cases();
    for device in devices() {
        let mut worst = [0.0_f64; 2];
        for case in &cases {
            // UniPC's predictions of the noise cancel at high noise, where x0 = (x - sigma eps) / alpha with
            // sigma / alpha up to 157: 5.0e-5 on both devices, and 9.9e-6 of all others.
            let cancels = matches!(&case.scheduler.method, Method::UniPc(options) if !options.predict_x0);
            let tolerance = if cancels { 1e-4 } else { 2e-5 };
            let mut on_device = OnDevice::new(&case.plan, &device);
            let mut draws = 0;
            for (i, step) in case.plan.steps.iter().enumerate() {
                let x = on_device.step(i, step.t, &wave(draws));
                draws += i32::from(step.draws);
                let err = compare(case, i + 1, &row(&x, &seen), tolerance, &device.describe());
                let worst = &mut worst[usize::from(cancels)];
                *worst = worst.max(err);
            }
        }
        eprintln!("{}: worst error {worst:?} of the largest number", device.describe());
    }
}

/// The recorded step, with the model on the host and noise that is given.
struct OnDevice {
    program: Program,
    x: denoir::tape::Tensor,
    device: Device,
    slots: usize,
}

impl OnDevice {
    fn new(plan: &SamplerPlan, device: &Device) -> Self {
        let slots = plan.slots() + 1;
        let tape = Tape::new();
        let x = tape.stored("x", 0, [2, SIZE / 2]);
        let (out, kept) = (tape.stored("out", 0, [2, SIZE / 2]), tape.stored("kept", 0, [1 + slots, SIZE]));
        let rows = tape.stored("rows", 0, [plan.steps.len(), Row::COLUMNS]);
        let state = tape.stored_u32("state", [State::WORDS]);
        let bound = match plan.clip {
            Clip::Dynamic { ratio, most } => Some(bounds(&x, &out, &rows, &state, ratio, most as f32)),
            _ => None,
        };
        denoise(&x, &out, &rows, &state, &kept, bound.as_ref(), None);
        let program = Program::compile(&Plan::new(&tape, &[], device), device, &[], Sharing::Shared).unwrap();
        program.write("rows", &plan.table(true)).unwrap();
        program.write("x", &narrow(&start(plan))).unwrap();
        OnDevice { program, x, device: device.clone(), slots }
    }

    fn now(&self) -> Vec<f64> {
        self.program.read(&self.x).unwrap().into_iter().map(f64::from).collect()
    }

    fn step(&mut self, row: usize, t: f64, noise: &[f64]) -> Vec<f64> {
        let out = model(&self.now(), t);
        self.program.write("out", &narrow(&out)).unwrap();
        let place = 4 * self.slots * SIZE;
        let noise = narrow(noise);
        self.device.write(self.program.store("kept"), place, bytemuck::cast_slice(&noise)).unwrap();
        self.program.write("state", &State { row: row as u32, ..State::default() }.words()).unwrap();
        self.program.run().unwrap();
        self.now()
    }
}

fn narrow(values: &[f64]) -> Vec<f32> {
    values.iter().map(|&v| v as f32).collect()
}

#[test]
fn a_config_survives_being_written() {
    for case in cases().1 {
        let text = case.scheduler.to_config();
        let mut again = Scheduler::from_config(&text).unwrap();
        if let (Method::Ddim { eta, reclip, .. }, Method::Ddim { eta: to, reclip: clips, .. }) =
            (&case.scheduler.method, &mut again.method)
        {
            (*to, *clips) = (*eta, *reclip); // arguments of a step, no keys
        }
        assert_eq!(again, case.scheduler, "{text}");
    }
}

#[test]
fn a_config_has_the_defaults_of_its_class() {
    let golden = golden("schedulers.json");
    let mut seen: Vec<String> = Vec::new();
    for case in golden["cases"].as_array().unwrap() {
        let text = case["config"].as_str().unwrap();
        let class = text.split('"').nth(3).unwrap().to_owned();
        // The first case of each class is the library's own default, written out.
        if !seen.contains(&class) {
            let bare = json!({"_class_name": class}).to_string();
            assert_eq!(Scheduler::from_config(&bare).unwrap(), Scheduler::from_config(text).unwrap());
            seen.push(class);
        }
    }
    assert_eq!(seen.len(), 10);
}

#[test]
fn what_a_config_asks_for_in_vain_is_named() {
    for (class, key, value, wanted) in [
        ("DDPMScheduler", "variance_type", json!("learnt"), "denoir knows fixed_small"),
        ("DDPMScheduler", "beta_schedule", json!("quad"), "denoir knows linear, scaled_linear"),
        ("DDPMScheduler", "beta_shedule", json!("linear"), "no sampler has such a key"),
        ("DDPMScheduler", "num_train_timesteps", json!(-3), "num_train_timesteps = -3"),
        ("DDPMScheduler", "clip_sample", json!("yes"), "it must be true or false"),
        ("EulerDiscreteScheduler", "use_beta_sigmas", json!(true), "use_beta_sigmas = true"),
        ("EulerDiscreteScheduler", "timestep_type", json!("continuous"), "timestep_type = \"continuous\""),
        ("LMSDiscreteScheduler", "rescale_betas_zero_snr", json!(true), "rescale_betas_zero_snr = true"),
        ("PNDMScheduler", "prediction_type", json!("sample"), "PNDM knows epsilon"),
        (
            "DPMSolverMultistepScheduler",
            "algorithm_type",
            json!("dpmsolver"),
            "algorithm_type = \"dpmsolver\"",
        ),
        ("DPMSolverMultistepScheduler", "use_flow_sigmas", json!(true), "use_flow_sigmas = true"),
        ("DPMSolverMultistepScheduler", "solver_order", json!(4), "it must be 1, 2 or 3"),
        ("UniPCMultistepScheduler", "solver_p", json!(["a", "b"]), "solver_p"),
        ("UniPCMultistepScheduler", "disable_corrector", json!([0.5]), "a list of whole numbers"),
        // Of no effect here, and still of the wrong kind.
        ("DDIMScheduler", "sample_max_value", json!("much"), "sample_max_value = \"much\""),
        ("UniPCMultistepScheduler", "flow_shift", json!({"by": 3}), "flow_shift"),
        ("KDPM2DiscreteScheduler", "beta_end", json!(0.02), "_class_name is \"KDPM2DiscreteScheduler\""),
    ] {
        let error =
            Scheduler::from_config(&json!({"_class_name": class, key: value}).to_string()).unwrap_err();
        assert!(error.to_string().contains(wanted), "{class}, {key}: {error}");
    }
    // As Stable Diffusion has it: keys of another class, and those about the file.
    let text = r#"{"_class_name": "PNDMScheduler", "_diffusers_version": "0.6.0", "beta_end": 0.012,
        "beta_schedule": "scaled_linear", "beta_start": 0.00085, "num_train_timesteps": 1000,
        "set_alpha_to_one": false, "skip_prk_steps": true, "steps_offset": 1, "trained_betas": null,
        "clip_sample": false}"#;
    let plan = Scheduler::from_config(text).unwrap().plan(50).unwrap();
    assert_eq!(plan.timesteps()[..4], [981.0, 961.0, 961.0, 941.0]);
}

#[test]
fn infinity_is_read_where_it_says_nothing_and_never_written() {
    let config = |key| format!(r#"{{"_class_name": "DPMSolverMultistepScheduler", "{key}": -Infinity}}"#);
    let keys = Keys::parse(&config("lambda_min_clipped")).unwrap();
    // In quotes it would be a word to the library, which then fails.
    let written = keys.complete().unwrap().text();
    assert!(!written.to_lowercase().contains("inf"), "{written}");
    let error = Scheduler::from_config(&config("beta_start")).unwrap_err();
    assert!(error.to_string().contains("beta_start"), "{error}");
}

#[test]
fn an_offset_takes_a_step_of_ancestral_sampling() {
    let text = r#"{"_class_name": "DDPMScheduler", "steps_offset": 1}"#;
    let scheduler = Scheduler::from_config(text).unwrap();
    let plan = scheduler.plan(scheduler.usual_steps()).unwrap();
    let timesteps = plan.timesteps();
    assert_eq!((timesteps[0], timesteps[998], timesteps.len()), (999.0, 1.0, 999));
}

#[test]
fn coefficients_of_dpm_solver() {
    // x' = .999966128 x + .00404442944 m0; x' = .999916434 x + .00913052235 m0 - .00293735459 m1
    let ddpm = Scheduler::ddpm(1000, [1e-4, 0.02], Variance::FixedSmall, 0.0);
    let plan = ddpm.named("dpmpp-2m").unwrap().plan(20).unwrap();
    for (got, wanted) in [
        (plan.steps[0].next.0[1], 0.999_966_128),
        (plan.steps[0].next.0[0], 0.004_044_429_44),
        (plan.steps[1].next.0[1], 0.999_916_434),
        (plan.steps[1].next.0[0], 0.009_130_522_35),
        (plan.steps[1].next.0[3], -0.002_937_354_59),
    ] {
        assert!((got - wanted).abs() <= 2e-8, "{got}, not {wanted}");
    }
}

fn recipe_of(golden: &Value) -> Recipe {
    let mut recipe = recipe::find("digits").unwrap();
    let mut unet = serde_json::to_value(UNetConfig::default()).unwrap();
    for (key, value) in golden["config"].as_object().unwrap() {
        match key.as_str() {
            "sample_size" => recipe.image_size = value.as_u64().unwrap() as usize,
            _ => unet[key] = value.clone(),
        }
    }
    recipe.unet = serde_json::from_value(unet).unwrap();
    recipe.seed = golden["seed"].as_u64().unwrap();
    recipe.rng = Rng::Torch;
    recipe.clip_sample = 1.0;
    recipe.variance = Variance::FixedSmall;
    recipe.validate().unwrap();
    recipe
}

#[test]
fn a_seed_gives_the_weights_of_the_library() {
    let golden = golden("seeds.json");
    for model in golden["models"].as_array().unwrap() {
        let recipe = recipe_of(model);
        let params = params_of(&recipe);
        let params = params.borrow();
        let values = initial_of(&recipe, &params);
        let wanted = model["weights"].as_object().unwrap();
        assert_eq!(params.specs().len(), wanted.len());
        for spec in params.specs() {
            let wanted = floats(&wanted[&spec.name]);
            let here = &values[spec.first..spec.first + spec.shape.elements()];
            let sum: f64 = here.iter().map(|&v| f64::from(v)).sum();
            // The first and the last element are so in either layout.
            let got = [f64::from(here[0]), f64::from(here[here.len() - 1]), sum];
            for (got, wanted) in got.into_iter().zip(wanted) {
                // Uniform numbers agree to the bit of their bounds, normal ones to rounding.
                let tolerance = 1e-6 + 5e-8 * here.len() as f64;
                assert!((got - wanted).abs() <= tolerance, "{}: {got}, not {wanted}", spec.name);
            }
        }
    }
}

#[test]
fn a_seed_gives_the_pictures_of_the_library() {
    let golden = golden("seeds.json");
    let recipe = recipe_of(&golden["models"][0]);
    for device in devices() {
        let tolerance = if matches!(device, Device::Cpu(_)) { 1e-6 } else { 1e-5 };
        let trainer = RecipeTrainer::new(&recipe, &device, None, None).unwrap();
        let source = trainer.source(None);
        for name in ["ddpm", "ddim"] {
            let scheduler = recipe.sampler(name).unwrap();
            let options = Options::new(scheduler, 2, 0).with_rng(Rng::Torch);
            let image = source.draw(&options, 1, None, || Ok(())).unwrap();
            let wanted = floats(&golden["pictures"][name]);
            for (i, got) in image.iter().enumerate() {
                // [H, W, C] here, [C, H, W] there.
                let (pixel, channel) = (i / 3, i % 3);
                let (got, wanted) = (f64::from(*got) / 2.0 + 0.5, wanted[channel * 64 + pixel] / 2.0 + 0.5);
                let at = format!("{name} on {}, {i}: {got}, not {wanted}", device.describe());
                // The nine values that the library publishes, as pictures; and all, beyond white and black
                // too.
                let published = pixel / 8 >= 5 && pixel % 8 >= 5 && channel == 2;
                let off = (got.clamp(0.0, 1.0) - wanted.clamp(0.0, 1.0)).abs();
                assert!(!published || off <= tolerance, "{at}");
                assert!((got - wanted).abs() <= 2.0 * tolerance, "{at}");
            }
        }
    }
}

#[test]
fn every_sampler_draws_the_same_sample_in_any_company() {
    let mut recipe = recipe_of(&golden("seeds.json")["models"][0]);
    recipe.rng = Rng::Denoir;
    recipe.batch_size = 8;
    for device in devices() {
        let trainer = RecipeTrainer::new(&recipe, &device, None, None).unwrap();
        let source = trainer.source(None);
        let on_cpu = matches!(device, Device::Cpu(_));
        // A GPU takes long to build each: those that differ in what they record.
        let some = ["ddim", "euler-a", "unipc"];
        for name in denoir::diffusion::names().iter().filter(|name| on_cpu || some.contains(name)) {
            let scheduler = recipe.sampler(name).unwrap();
            let options = Options::new(scheduler, 4, 3);
            let draw = |options: &Options, count| {
                let samples = source.draw(options, count, None, || Ok(())).unwrap();
                assert!(samples.iter().all(|v| v.is_finite()), "{name} on {}", device.describe());
                samples
            };
            // Eight are drawn in one go, the ninth alone.
            let (many, few) = (draw(&options, 9), draw(&options, 3));
            assert!(many[..few.len()] == few, "{name} on {}", device.describe());
            if on_cpu {
                // PyTorch's generator draws each noise for all samples at once: only the first is shared.
                let torch = options.with_rng(Rng::Torch);
                let (many, few) = (draw(&torch, 9), draw(&torch, 3));
                let draws = torch.scheduler.plan(4).unwrap().steps.iter().any(|step| step.draws);
                assert!((many[..few.len()] == few) != draws, "{name} with torch");
            }
        }
    }
}
