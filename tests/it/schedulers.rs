//! Every sampler against the diffusers library: walks in f64, the sums that its own tests publish, and whole
//! pictures of a seed.

use std::fs;

use denoir::device::Device;
use denoir::diffusion::walk::{Clip, Walk, Walker};
use denoir::diffusion::{Method, Precision, Scheduler, Variance};
use denoir::models::unet::UNetConfig;
use denoir::models::{initial_of, params_of};
use denoir::ops::denoising::{Row, bounds, denoise};
use denoir::program::{Plan, Program, Sharing};
use denoir::recipe::{self, Recipe, Rng};
use denoir::sample::Options;
use denoir::state::State;
use denoir::tape::Tape;
use denoir::torch::Generator;
use denoir::train::Trainer;
use serde_json::{Value, json};

use crate::reference::devices;

fn golden(name: &str) -> Value {
    let path = format!("{}/tests/golden/{name}", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

fn floats(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
}

const SIZE: usize = 96;

/// Noise of draw `number` of tools/reference/scheduler_golden.py; -1: the first sample.
fn wave(number: i32) -> Vec<f64> {
    let at = |i: usize| 1.7 * (12.9898 * (i + 1) as f64 + 78.233 * f64::from(number + 2)).sin();
    (0..SIZE).map(at).collect()
}

/// The model of the golden walks and of the library's own tests.
fn model(x: &[f64], t: f64) -> Vec<f64> {
    x.iter().map(|x| x * t / (t + 1.0)).collect()
}

struct Case {
    name: String,
    scheduler: Scheduler,
    walk: Walk,
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
        let walk = scheduler.walk(steps).unwrap_or_else(|e| panic!("{name}: {e:?}"));
        let (got, wanted) = (walk.timesteps(), floats(&case["timesteps"]));
        assert!(
            got.len() == wanted.len() && got.iter().zip(&wanted).all(|(a, b)| (a - b).abs() <= 1e-7),
            "{name}: timesteps {got:?}, wanted {wanted:?}"
        );
        let path: Vec<Vec<f64>> = case["path"].as_array().unwrap().iter().map(floats).collect();
        let scale = path.iter().flatten().fold(1.0, |most: f64, v| most.max(v.abs()));
        Case { name, scheduler, walk, path, scale }
    };
    (seen, golden["cases"].as_array().unwrap().iter().map(case).collect())
}

/// Some elements and the root of the mean square.
fn row(x: &[f64], seen: &[usize]) -> Vec<f64> {
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

fn start(walk: &Walk) -> Vec<f64> {
    wave(-1).into_iter().map(|v| v * walk.start).collect()
}

#[test]
fn walks_in_f64() {
    let (seen, cases) = cases();
    assert!(cases.len() > 100);
    for case in &cases {
        let mut walker = Walker::new(&case.walk, 0, start(&case.walk), 2);
        compare(case, 0, &row(&walker.x, &seen), 1e-9, "f64");
        let mut draws = 0;
        for (i, step) in case.walk.steps.iter().enumerate() {
            let out = model(&walker.x, step.t);
            walker.step(&out, &wave(draws));
            draws += i32::from(step.draws);
            compare(case, i + 1, &row(&walker.x, &seen), 1e-9, "f64");
        }
    }
}

#[test]
fn walks_on_the_devices() {
    let (seen, cases) = cases();
    for device in devices() {
        let mut worst = [0.0_f64; 2];
        for case in &cases {
            // UniPC's predictions of the noise cancel at high noise, where x0 = (x - sigma eps) / alpha with sigma /
            // alpha up to 157: 5.0e-5 on both devices, and 9.9e-6 of all others.
            let cancels = matches!(&case.scheduler.method, Method::UniPc(options) if !options.predict_x0);
            let tolerance = if cancels { 1e-4 } else { 2e-5 };
            let mut on_device = OnDevice::new(&case.walk, &device);
            let mut draws = 0;
            for (i, step) in case.walk.steps.iter().enumerate() {
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
    fn new(walk: &Walk, device: &Device) -> Self {
        let slots = walk.slots() + 1;
        let tape = Tape::new();
        let x = tape.stored("x", 0, [2, SIZE / 2]);
        let (out, kept) = (tape.stored("out", 0, [2, SIZE / 2]), tape.stored("kept", 0, [1 + slots, SIZE]));
        let rows = tape.stored("rows", 0, [walk.steps.len(), Row::COLUMNS]);
        let state = tape.stored_u32("state", [State::WORDS]);
        let bound = match walk.clip {
            Clip::Dynamic { ratio, most } => Some(bounds(&x, &out, &rows, &state, ratio, most as f32)),
            _ => None,
        };
        denoise(&x, &out, &rows, &state, &kept, bound.as_ref());
        let plan = Plan::new(&tape, &[], device);
        let program = Program::compile(&plan, device, &[], Sharing::Shared).unwrap();
        program.write("rows", &walk.table(true)).unwrap();
        program.write("x", &narrow(&start(walk))).unwrap();
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
        ("DDPMScheduler", "variance_type", json!("learned_range"), "variance_type = \"learned_range\""),
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
    let walk = Scheduler::from_config(text).unwrap().walk(50).unwrap();
    assert_eq!(walk.timesteps()[..4], [981.0, 961.0, 961.0, 941.0]);
}

#[test]
fn coefficients_of_dpm_solver() {
    // x' = .999966128 x + .00404442944 m0; x' = .999916434 x + .00913052235 m0 - .00293735459 m1
    let ddpm = Scheduler::ddpm(1000, [1e-4, 0.02], Variance::FixedSmall, 0.0);
    let walk = ddpm.named("dpmpp-2m").unwrap().walk(20).unwrap();
    for (got, wanted) in [
        (walk.steps[0].next.x, 0.999_966_128),
        (walk.steps[0].next.x0, 0.004_044_429_44),
        (walk.steps[1].next.x, 0.999_916_434),
        (walk.steps[1].next.x0, 0.009_130_522_35),
        (walk.steps[1].next.kept[0], -0.002_937_354_59),
    ] {
        assert!((got - wanted).abs() <= 2e-8, "{got}, not {wanted}");
    }
}

/// The samples and the noise of the library's own scheduler tests, [4, 3, 8, 8].
fn published_sample(flipped: bool) -> Vec<f64> {
    let mut x = Vec::with_capacity(768);
    for b in 0..4 {
        for chw in 0..192 {
            let index = chw * 4 + b;
            x.push(f64::from(if flipped { 767 - index } else { index }) / 768.0);
        }
    }
    x
}

/// The sum of absolute values at the end of a walk of the library's tests. `from`: noise is added for the
/// step of this number, and the walk begins there.
fn published(config: &Value, steps: usize, from: Option<usize>) -> f64 {
    let mut scheduler = Scheduler::from_config(&config.to_string()).unwrap();
    scheduler.precision = Precision::Reference;
    let (whole, walk) =
        (scheduler.walk(steps).unwrap(), scheduler.walk_from(steps, from.unwrap_or(0)).unwrap());
    let over_sigma = config["_class_name"].as_str().unwrap().contains("Discrete");
    // Of a walk over sigma the tests scale the sample first, and add noise to that.
    let first = if over_sigma { whole.start / whole.steps[0].alpha_bar.sqrt() } else { 1.0 };
    let bar = walk.steps[0].alpha_bar;
    let (of_x, of_noise) = match from {
        Some(_) => (bar.sqrt() * first, (1.0 - bar).sqrt()),
        None => (if over_sigma { whole.start } else { 1.0 }, 0.0),
    };
    let mixed = published_sample(false).into_iter().zip(published_sample(true));
    let x = mixed.map(|(x, noise)| of_x * x + of_noise * noise).collect();
    let mut generator = Generator::new(0);
    let mut walker = Walker::new(&walk, 0, x, 4);
    for step in &walk.steps {
        let mut noise = vec![0.0; 768];
        if step.draws {
            generator.fill_normal(&mut noise);
        }
        let out = model(&walker.x, step.t);
        if over_sigma {
            // Those tests hand the step what they scaled for the model, as if it were the sample itself.
            walker.x.iter_mut().for_each(|x| *x *= step.alpha_bar.sqrt());
        }
        walker.step(&out, &noise.into_iter().map(f64::from).collect::<Vec<_>>());
    }
    walker.x.iter().map(|v| v.abs()).sum()
}

#[test]
fn sums_that_the_library_publishes() {
    let config = |class: &str, more: Value| {
        let mut config =
            json!({"_class_name": format!("{class}Scheduler"), "beta_start": 1e-4, "beta_end": 0.02});
        if class.contains("Discrete") {
            config["num_train_timesteps"] = json!(1100);
        }
        let config = config.as_object_mut().unwrap();
        config.extend(more.as_object().unwrap().clone());
        json!(config)
    };
    let v = json!({"prediction_type": "v_prediction"});
    let dpm = json!({"final_sigmas_type": "sigma_min", "lower_order_final": false});
    let dpm_v = json!({"final_sigmas_type": "sigma_min", "lower_order_final": false, "prediction_type": "v_prediction"});
    let karras = json!({"use_karras_sigmas": true});
    let none = json!({});
    // class, keys, steps, where noise is added, the sum and the last digit that is printed; those of
    // DPM-Solver++ without noise are means
    for (class, more, steps, from, wanted, digit) in [
        ("DDPM", &none, 1000, None, 258.9606, 1e-4),
        ("DDPM", &v, 1000, None, 202.0296, 1e-4),
        ("DDPM", &none, 1000, Some(998), 387.9466, 1e-4),
        ("DDIM", &none, 10, None, 172.0067, 1e-4),
        ("DDIM", &v, 10, None, 52.5302, 1e-4),
        ("DDIM", &json!({"beta_start": 0.01, "set_alpha_to_one": true}), 10, None, 149.8295, 1e-4),
        ("DDIM", &json!({"beta_start": 0.01, "set_alpha_to_one": false}), 10, None, 149.0784, 1e-4),
        ("DDIM", &none, 10, Some(8), 354.5418, 1e-4),
        ("DPMSolverMultistep", &dpm, 10, None, 0.3301 * 768.0, 1e-4 * 768.0),
        ("DPMSolverMultistep", &dpm_v, 10, None, 0.2251 * 768.0, 1e-4 * 768.0),
        ("DPMSolverMultistep", &dpm, 10, Some(5), 318.4111, 1e-4),
        ("EulerDiscrete", &none, 10, None, 10.0807, 1e-4),
        ("EulerDiscrete", &karras, 10, None, 124.522995, 1e-4),
        ("EulerDiscrete", &none, 10, Some(8), 57062.9297, 1e-3),
        ("EulerAncestralDiscrete", &none, 10, None, 152.3192, 1e-4),
        ("EulerAncestralDiscrete", &v, 10, None, 108.4439, 1e-4),
        ("EulerAncestralDiscrete", &none, 10, Some(8), 56163.0508, 1e-3),
        ("LMSDiscrete", &none, 10, None, 1006.388, 1e-3),
        ("LMSDiscrete", &karras, 10, None, 3812.9927, 1e-4),
        ("LMSDiscrete", &none, 10, Some(8), 27663.6895, 1e-3),
        ("HeunDiscrete", &none, 10, None, 0.1233, 1e-4),
        ("HeunDiscrete", &none, 10, Some(8), 75074.8906, 1e-3),
        ("PNDM", &none, 10, None, 198.1318, 1e-4),
    ] {
        let got = published(&config(class, more.clone()), steps, from);
        let off = (got - wanted).abs();
        // To the last digit that is printed, or as near as the printed number is to its own formula: the library
        // walks and adds up in f32, over sigmas up to 261. Run in f64 it gives 57062.9228 for Euler with noise
        // (1.2e-7 below what is printed), 27663.6828 for LMS with noise (2.4e-7), 3812.9932 for LMS over Karras's
        // sigmas (1.3e-7 above). Euler over those is printed as 124.522995, which version 0.42.1 with torch 2.15
        // does not give itself: in f32 124.522598, in f64 124.522588 (3.3e-6 below).
        let of_f32 = if *more == karras && class == "EulerDiscrete" { 4e-6 } else { 3e-7 } * wanted;
        assert!(off <= f64::max(digit, of_f32), "{class} {more} from {from:?}: {got}, printed is {wanted}");
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
        let trainer = Trainer::new(&recipe, &device, None, None).unwrap();
        let source = trainer.source(None);
        for name in ["ddpm", "ddim"] {
            let scheduler = recipe.sampler(name).unwrap();
            let options = Options { seed: 0, steps: 2, scheduler, rng: Rng::Denoir }.with_rng(Rng::Torch);
            let image = source.draw(&options, 1, None, || Ok(())).unwrap();
            let wanted = floats(&golden["pictures"][name]);
            for (i, got) in image.iter().enumerate() {
                // [H, W, C] here, [C, H, W] there.
                let (pixel, channel) = (i / 3, i % 3);
                let (got, wanted) = (f64::from(*got) / 2.0 + 0.5, wanted[channel * 64 + pixel] / 2.0 + 0.5);
                let at = format!("{name} on {}, {i}: {got}, not {wanted}", device.describe());
                // The nine values that the library publishes, as pictures; and all, beyond white and black too.
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
        let trainer = Trainer::new(&recipe, &device, None, None).unwrap();
        let source = trainer.source(None);
        let on_cpu = matches!(device, Device::Cpu(_));
        // A GPU takes long to build each: those that differ in what they record.
        let some = ["ddim", "euler-a", "unipc"];
        for name in denoir::diffusion::names().iter().filter(|name| on_cpu || some.contains(name)) {
            let scheduler = recipe.sampler(name).unwrap();
            let options = Options { seed: 3, steps: 4, scheduler, rng: Rng::Denoir };
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
                let draws = torch.scheduler.walk(4).unwrap().steps.iter().any(|step| step.draws);
                assert!((many[..few.len()] == few) != draws, "{name} with torch");
            }
        }
    }
}
