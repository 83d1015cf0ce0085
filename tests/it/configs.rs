//! What configurations of the diffusers library mean: to other classes, with null in a key's place, and in
//! the words of older releases.

use denoir::diffusion::{Keys, Scheduler};
use denoir::recipe;
use serde_json::{Value, json};

use crate::plan_runner::PlanRunner;
use crate::schedulers::{floats, golden, model, row, start, wave};

/// Every class over the files of every other, and every key set to null, as `from_config` reads them.
#[test]
fn a_file_means_to_another_class_what_it_means_to_the_library() {
    let golden = golden("scheduler_configs.json");
    let steps = golden["steps"].as_u64().unwrap() as usize;
    let seen: Vec<usize> = vec![0, 17, 50, 95];
    let mut walked = 0;
    let mut wrong = Vec::new();
    let cases = golden["cases"].as_array().unwrap();
    for case in cases {
        let (file, class) = (case["file"].as_str().unwrap(), case["class"].as_str().unwrap());
        let name = format!("{file} read by {class}");
        let keys = Keys::parse(file).unwrap();
        let is_flag = |key: &str| key.starts_with("use_");
        let pairs = file.split(", ").filter_map(|pair| pair.trim_matches(['{', '}', '"']).split_once("\": "));
        let null_flag = pairs.into_iter().any(|(key, value)| is_flag(key) && value == "null");
        let own = keys.class() == Some(class);
        // The command line's names set more than the class.
        let as_run = |keys: &Keys| {
            let mut recipe = recipe::find("digits").unwrap();
            let sampler = SAMPLERS.iter().find(|(_, of)| *of == class).unwrap().0;
            recipe.set_scheduler(keys)?;
            Ok((recipe.sampler(sampler)?, recipe.scheduler_keys().complete()?.text()))
        };
        let read = if own {
            keys.scheduler()
        } else {
            as_run(&keys).map(|(scheduler, exported)| {
                let again = as_run(&Keys::parse(&exported).unwrap()).unwrap().0;
                assert_eq!(again, scheduler, "{name}, by way of the export {exported}");
                scheduler
            })
        };
        let plan = read.and_then(|scheduler| scheduler.plan(steps));
        let Some(wanted) = case.get("last") else {
            // The library stops in the middle of its work; null switches of sigmas are off here, and
            // inversion has more spacings.
            if plan.is_ok() && !null_flag && class != "DDIMInverseScheduler" {
                wrong.push(format!("{name}: the library says {}", case["error"]));
            }
            continue;
        };
        let plan = match plan {
            Ok(plan) => plan,
            // A null that has no effect is refused by name all the same.
            Err(e) if e.report().contains(" = null of ") => continue,
            Err(e) => {
                wrong.push(format!("{name}: {}", e.report()));
                continue;
            }
        };
        let mut runner = PlanRunner::new(&plan, 0, start(&plan), 2);
        let mut draws = 0;
        for step in &plan.steps {
            let out = model(&runner.x, step.t);
            runner.step(&out, &wave(draws));
            draws += i32::from(step.draws);
        }
        let wanted = floats(wanted);
        for (got, wanted) in row(&runner.x, &seen).iter().zip(&wanted) {
            if (got - wanted).abs() > 1e-9 * wanted.abs().max(1.0) {
                wrong.push(format!("{name}: {got}, wanted {wanted}"));
            }
        }
        walked += 1;
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
    assert!(walked > 300, "{walked} of {}", cases.len());
}

const SAMPLERS: [(&str, &str); 10] = [
    ("ddpm", "DDPMScheduler"),
    ("ddim", "DDIMScheduler"),
    ("ddim-inverse", "DDIMInverseScheduler"),
    ("euler", "EulerDiscreteScheduler"),
    ("euler-a", "EulerAncestralDiscreteScheduler"),
    ("heun", "HeunDiscreteScheduler"),
    ("lms", "LMSDiscreteScheduler"),
    ("dpmpp-2m", "DPMSolverMultistepScheduler"),
    ("pndm", "PNDMScheduler"),
    ("unipc", "UniPCMultistepScheduler"),
];

/// Before version 0.10 the library said by a flag what a model predicts; later versions pass over it, and
/// take a model of the sample for one of the noise.
#[test]
fn keys_of_older_releases() {
    let read = |class: &str, more: Value| {
        let mut config = json!({ "_class_name": class });
        config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        Scheduler::from_config(&config.to_string())
    };
    for class in ["DDPMScheduler", "DDIMScheduler", "DPMSolverMultistepScheduler"] {
        for (old, new) in [(json!(true), "epsilon"), (json!(false), "sample"), (json!(null), "epsilon")] {
            let got = read(class, json!({ "predict_epsilon": old })).unwrap();
            assert_eq!(got, read(class, json!({ "prediction_type": new })).unwrap(), "{class} {old}");
        }
    }
    let both = json!({ "predict_epsilon": true, "prediction_type": "epsilon" });
    assert_eq!(read("DDPMScheduler", both).unwrap(), read("DDPMScheduler", json!({})).unwrap());
    for (more, wanted) in [
        (json!({ "predict_epsilon": true, "prediction_type": "v_prediction" }), "says \"epsilon\" and"),
        (json!({ "predict_epsilon": 1 }), "predict_epsilon = 1"),
    ] {
        let error = read("DDPMScheduler", more).unwrap_err();
        assert!(error.to_string().contains(wanted), "{error}");
    }
    // As folders of the first versions have them.
    let first = json!({ "timestep_values": null, "tensor_format": "pt", "trained_betas": null });
    assert_eq!(read("DDIMScheduler", first).unwrap(), read("DDIMScheduler", json!({})).unwrap());
    let said = read("DDIMScheduler", json!({ "timestep_values": [1, 2] })).unwrap_err();
    assert!(said.to_string().contains("timestep_values = [1,2]"), "{said}");
    let inverse = "DDIMInverseScheduler";
    for old in [true, false] {
        let got = read(inverse, json!({ "set_alpha_to_zero": old })).unwrap();
        assert_eq!(got, read(inverse, json!({ "set_alpha_to_one": old })).unwrap());
    }
    let unsaid = read(inverse, json!({ "set_alpha_to_zero": null })).unwrap();
    assert_eq!(unsaid, read(inverse, json!({})).unwrap());
}
