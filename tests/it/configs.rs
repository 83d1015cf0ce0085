//! What configurations of the diffusers library mean: to other classes, with null in a key's place, and in
//! the words of older releases.

use std::fs;

use denoir::diffusers::{self, config};
use denoir::diffusion::{Keys, Scheduler};
use denoir::recipe;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::golden_diffusers::copy;
use crate::place::root;
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

/// Every key of every class of models set to null: what the library makes of it, or an error that names it.
#[test]
fn null_means_to_a_model_what_it_means_to_the_library() {
    let mut read = 0;
    for case in golden("nulls.json")["models"].as_array().unwrap() {
        for (key, wanted) in case["nulls"].as_object().unwrap() {
            let with = |value: &Value| {
                let mut config = case["config"].clone();
                config[key] = value.clone();
                config::model(&config.to_string()).map(|config| config.model)
            };
            let name = format!("{key} of {}", case["config"]);
            let got = match with(&Value::Null) {
                Ok(got) => got,
                Err(reason) => {
                    // Words have no null here, nor has a number of no effect.
                    let word =
                        ["norm_type", "downsample_type", "upsample_type", "freq_shift"].contains(&&**key);
                    assert!(reason.contains(&**key), "{name}: {reason}");
                    assert!(
                        word || wanted.get("error").is_some(),
                        "{name}: {reason}, the library says {wanted}"
                    );
                    continue;
                }
            };
            read += 1;
            if let Some(value) = wanted.get("same") {
                assert_eq!(got, with(value).unwrap(), "{name}: null is {value}");
            } else if wanted.get("error").is_some() {
                // The library builds tiles of that size. Without timesteps a recipe is not valid, so that a
                // folder is refused by the name of the key.
                let later = ["sample_size", "num_train_timesteps"].contains(&&**key);
                assert!(later, "{name}: the library says {wanted}");
            } else if wanted.get("other").is_some() {
                // The goldens have both: unet_odd and unet_no_middle.
                assert!(["attention_head_dim", "mid_block_type"].contains(&&**key), "{name}");
            }
        }
    }
    assert!(read > 25, "{read}");
}

/// Every entry of a pipeline's index set to null, or to a list with nulls.
#[test]
fn null_means_to_a_pipeline_what_it_means_to_the_library() {
    let open = |name: &str, change: Option<(&str, &Value)>| {
        let folder = TempDir::new().unwrap();
        let at = folder.path().join("f");
        copy(&root().join("tests/golden").join(name), &at);
        let index = at.join("model_index.json");
        let mut parts: Value = serde_json::from_str(&fs::read_to_string(&index).unwrap()).unwrap();
        if let Some((key, value)) = change {
            parts[key] = value.clone();
            fs::write(index, parts.to_string()).unwrap();
        }
        diffusers::open(&at).map(|folder| (folder.model.recipe, folder.vae.map(|vae| vae.recipe)))
    };
    for case in golden("nulls.json")["pipelines"].as_array().unwrap() {
        let (name, key) = (case["pipeline"].as_str().unwrap(), case["key"].as_str().unwrap());
        let got = open(name, Some((key, &case["value"])));
        match case.get("error") {
            Some(_) => assert!(got.is_err(), "{case}"),
            None => assert_eq!(got.unwrap(), open(name, None).unwrap(), "{case}"),
        }
    }
}

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
