//! What configurations of the diffusers library mean: to other classes, with null in a key's place, and in
//! the words of older releases.

use std::collections::BTreeMap;
use std::fs;

use denoir::diffusers::{self, config};
use denoir::diffusion::{Keys, Scheduler};
use denoir::recipe;
use denoir::tokenizer::Tokenizer;
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

/// Of each class or file the keys whose null is read, and those whose null is refused.
type Counts = BTreeMap<String, [usize; 2]>;

fn count(counts: &mut Counts, class: &str, is_read: bool) {
    counts.entry(class.to_owned()).or_default()[usize::from(!is_read)] += 1;
}

fn counted(counts: &Counts) -> Vec<(&str, [usize; 2])> {
    counts.iter().map(|(class, count)| (&**class, *count)).collect()
}

/// Every key of every class of models set to null: what the library makes of it, or an error that names it.
#[test]
fn null_means_to_a_model_what_it_means_to_the_library() {
    let mut counts = Counts::new();
    for case in golden("nulls.json")["models"].as_array().unwrap() {
        let class = case["config"]["_class_name"].as_str().unwrap();
        for (key, wanted) in case["nulls"].as_object().unwrap() {
            let with = |value: Option<&Value>| {
                let mut config = case["config"].clone();
                match value {
                    Some(value) => config[key] = value.clone(),
                    None => _ = config.as_object_mut().unwrap().remove(key),
                }
                config::model(&config.to_string()).map(|config| config.model)
            };
            let name = format!("{key} of {}, of which the library says {wanted}", case["config"]);
            let got = with(Some(&Value::Null));
            count(&mut counts, class, got.is_ok());
            if let Err(reason) = &got {
                assert!(reason.contains(&**key) && reason.lines().count() == 1, "{name}: {reason}");
            }
            if let Some(value) = wanted.get("same") {
                // Of a value that denoir has not, null is refused too.
                assert_eq!(got.ok(), with(Some(value)).ok(), "{name}");
            } else if wanted.get("default").is_some() {
                assert_eq!(got.unwrap(), with(None).unwrap(), "{name}");
            } else if wanted.get("error").is_some() {
                // Without timesteps a recipe is not valid: a folder is refused by the name of the key.
                assert!(got.is_err() || key == "num_train_timesteps", "{name}");
            } else {
                // The goldens have both: unet_odd and unet_no_middle.
                assert!(["attention_head_dim", "mid_block_type"].contains(&&**key), "{name}");
                got.unwrap();
            }
        }
    }
    assert_eq!(counted(&counts), COUNTS);
}

/// Of each class the keys whose null is read, and those whose null is refused.
const COUNTS: [(&str, [usize; 2]); 6] = [
    ("AutoencoderKL", [7, 11]),
    ("DiTTransformer2DModel", [4, 12]),
    ("Transformer2DModel", [13, 12]),
    ("UNet2DConditionModel", [79, 65]),
    ("UNet2DModel", [27, 29]),
    ("VQModel", [5, 12]),
];

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
    let mut counts = Counts::new();
    for case in golden("nulls.json")["pipelines"].as_array().unwrap() {
        let (name, key) = (case["pipeline"].as_str().unwrap(), case["key"].as_str().unwrap());
        let is_wrong = case.get("error").is_some();
        count(&mut counts, name, !is_wrong);
        if let Some(index) = case.get("index") {
            // Of its folder there is the index alone: a part that it lacks is refused as in the others.
            let mut parts = index.clone();
            parts[key] = case["value"].clone();
            let got = config::index(&parts.to_string());
            let lacks = got.map_or(true, |got| key != "id2label" && !got.components.contains_key(key));
            assert_eq!(lacks, is_wrong, "{case}");
            continue;
        }
        let got = open(name, Some((key, &case["value"])));
        if is_wrong {
            let said = got.unwrap_err().report();
            assert!(said.contains(key), "{case}: {said}");
        } else {
            assert_eq!(got.unwrap(), open(name, None).unwrap(), "{case}");
        }
    }
    let wanted =
        [("tiny_ddpm", [8, 12]), ("tiny_dit", [1, 18]), ("tiny_ldm", [4, 16]), ("tiny_sd", [14, 30])];
    assert_eq!(counted(&counts), wanted);
}

/// A copy with null in the place of a key, or of a key inside: "key.inside".
fn with_null(value: &Value, path: &str) -> Value {
    let mut value = value.clone();
    let pointer = format!("/{}", path.replace('.', "/"));
    *value.pointer_mut(&pointer).unwrap() = Value::Null;
    value
}

/// Every key of a text encoder's configuration set to null.
#[test]
fn null_means_to_a_text_encoder_what_it_means_to_the_library() {
    let mut counts = Counts::new();
    for case in golden("nulls.json")["texts"].as_array().unwrap() {
        for (key, wanted) in case["nulls"].as_object().unwrap() {
            let got = config::text_model(&with_null(&case["config"], key).to_string());
            count(&mut counts, "texts", got.is_ok());
            match got {
                Ok(got) => {
                    assert!(wanted.get("same").is_some(), "{key}: {wanted}");
                    assert_eq!(got, config::text_model(&case["config"].to_string()).unwrap(), "{key}");
                }
                Err(reason) => {
                    assert!(wanted.get("error").is_some(), "{key}: {reason}, and {wanted}");
                    assert!(reason.contains(key.rsplit('.').next().unwrap()), "{key}: {reason}");
                }
            }
        }
    }
    assert_eq!(counted(&counts), [("texts", [55, 24])]);
}

/// Every key of a tokenizer's files set to null, in four layouts.
#[test]
fn null_means_to_a_tokenizer_what_it_means_to_the_library() {
    let mut counts = Counts::new();
    for case in golden("nulls.json")["tokenizers"].as_array().unwrap() {
        let folder = TempDir::new().unwrap();
        for name in ["vocab.json", "merges.txt"] {
            fs::copy(root().join("tests/golden/tiny_sd/tokenizer").join(name), folder.path().join(name))
                .unwrap();
        }
        let put = |file: &str, value: &Value| fs::write(folder.path().join(file), value.to_string()).unwrap();
        for (file, value) in case["files"].as_object().unwrap() {
            put(file, value);
        }
        let ids = || -> denoir::error::Result<Value> {
            let tokenizer = Tokenizer::open(folder.path())?;
            let texts = case["texts"].as_array().unwrap().iter().map(|text| text.as_str().unwrap());
            Ok(texts.map(|text| json!(tokenizer.prompt(text, 12).ids)).collect())
        };
        assert_eq!(ids().unwrap(), case["ids"]);
        for (place, wanted) in case["nulls"].as_object().unwrap() {
            let (file, key) = place.split_once('/').unwrap();
            let value = &case["files"][file];
            put(file, &with_null(value, key));
            let got = ids();
            put(file, value);
            count(&mut counts, file, got.is_ok());
            match got {
                Ok(got) => {
                    let ids = if wanted.get("same").is_some() { &case["ids"] } else { &wanted["ids"] };
                    assert_eq!(&got, ids, "{place}: {wanted}");
                }
                Err(e) => {
                    let said = e.report();
                    let names = said.contains(file) && said.contains(key.rsplit('.').next().unwrap());
                    assert!(names, "{place}: {said}");
                    // Today's library has these of its own, older ones take them from the file; and a
                    // token of no number stands behind all others.
                    let own = ["normalizer", "pre_tokenizer", "model.end_of_word_suffix", "<cat>"];
                    assert!(wanted.get("error").is_some() || own.contains(&key), "{place}: {said}");
                }
            }
        }
    }
    let wanted = [
        ("added_tokens.json", [0, 2]),
        ("special_tokens_map.json", [1, 3]),
        ("tokenizer.json", [10, 9]),
        ("tokenizer_config.json", [37, 14]),
    ];
    assert_eq!(counted(&counts), wanted);
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
