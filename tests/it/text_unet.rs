//! The U-Net that sees a text against PyTorch's f64 values: every option, with the gradients of all
//! parameters.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use denoir::device::Device;
use denoir::diffusers::config::{self, Model};
use denoir::diffusion::Told;
use denoir::models::unet::{Class, UNetConfig, unet};
use denoir::nn::{self, Params, Scope};
use denoir::program::{Plan, Program, Sharing};
use denoir::recipe::{Recipe, Rng, initial_of, params_of};
use denoir::state::State;
use denoir::tape::Tape;
use serde_json::Value;

use crate::reference::{Golden, Judge, devices, flat_gradients, relative, to_f32};

fn config_of(json: &Value) -> UNetConfig {
    match config::model(&json.to_string()).unwrap().model {
        Model::UNet(config) => *config,
        other => panic!("{other:?}"),
    }
}

/// A golden file's case as a golden file of its own.
fn case(golden: &Golden, name: &str, about: &Value) -> Golden {
    let of_case = |(key, value): (&String, &(Vec<usize>, Vec<f64>))| {
        let key = key.strip_prefix(name)?.strip_prefix('/')?;
        Some((key.to_owned(), value.clone()))
    };
    let metadata = about.as_object().unwrap().clone().into_iter().collect();
    Golden { tensors: golden.tensors.iter().filter_map(of_case).collect(), metadata }
}

/// The library's initial weights from seed 0, doubled, with the norms of the file: as they lie in the store.
fn weights(name: &str, config: &UNetConfig, golden: &Golden, params: &Params) -> Vec<f32> {
    let recipe = Recipe { rng: Rng::Torch, seed: 0, unet: config.clone(), ..Recipe::default() };
    let mut flat = initial_of(&recipe, params);
    let mut given = golden.get("given").iter();
    let mut specs: Vec<_> = params.specs().iter().collect();
    specs.sort_by_key(|spec| &spec.name);
    assert_eq!(golden.tensors["drawn"].0[0], specs.len(), "{name}: number of parameters");
    for (spec, drawn) in specs.iter().zip(golden.get("drawn").chunks_exact(2)) {
        let mut in_file = vec![0.0_f32; spec.shape.elements()];
        spec.for_each_index(|here, there| in_file[there] = flat[spec.first + here]);
        let ends = [in_file[0], in_file[in_file.len() - 1]].map(f64::from);
        let is_table = spec.name == "class_embedding.weight" && config.num_class_embeds > 0;
        // Sines and logarithms of normal numbers are rounded otherwise.
        let apart = ends.iter().zip(drawn).map(|(ours, theirs)| (ours - theirs).abs()).fold(0.0, f64::max);
        let allowed = if is_table { 1e-6 } else { 0.0 };
        assert!(apart <= allowed, "{name}: {} as the library draws it: {ends:?}, {drawn:?}", spec.name);
        for value in &mut in_file {
            *value = match spec.name.contains("norm") || is_table {
                true => *given.next().unwrap() as f32,
                false => 2.0 * *value,
            };
        }
        spec.for_each_index(|here, there| flat[spec.first + here] = in_file[there]);
    }
    assert!(given.next().is_none(), "{name}");
    flat
}

/// Holds gradients of which the file has five numbers each against these: sum, sum of absolute values, first,
/// middle and last element.
fn check_sums(judge: &mut Judge, golden: &Golden, params: &Params, all: &[f32]) {
    let zero: Vec<&str> =
        golden.metadata["zero_grad"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    let mut specs: Vec<_> = params.specs().iter().collect();
    specs.sort_by_key(|spec| &spec.name);
    let errors: BTreeMap<&str, f64> =
        specs.iter().zip(golden.get("grad_error")).map(|(spec, e)| (spec.name.as_str(), *e)).collect();
    let of_layer = |name: &str| {
        let layer = name.rsplit_once('.').map_or("", |(layer, _)| layer);
        let same = errors.iter().filter(|(other, _)| other.rsplit_once('.').is_some_and(|(l, _)| l == layer));
        same.map(|(_, error)| *error).fold(0.0, f64::max)
    };
    let whole = golden.metadata["whole"] == true;
    let mut flat = golden.get("grad").iter().copied();
    for spec in specs {
        let mut got = vec![0.0_f32; spec.shape.elements()];
        spec.for_each_index(|here, there| got[there] = all[spec.first + here]);
        // What PyTorch's error is in the layer; a tensor of few numbers can be right by luck.
        let pytorch = of_layer(&spec.name).max(judge.error_of(&["dx"]));
        if whole {
            let wanted: Vec<f64> = flat.by_ref().take(got.len()).collect();
            if !zero.contains(&spec.name.as_str()) {
                judge.error(&spec.name, relative(&got, &wanted), pytorch);
            }
            continue;
        }
        let wanted: Vec<f64> = flat.by_ref().take(5).collect();
        if zero.contains(&spec.name.as_str()) {
            continue;
        }
        let (sum, absolute) =
            got.iter().fold((0.0, 0.0), |(s, a), v| (s + f64::from(*v), a + f64::from(v.abs())));
        let five = [sum, absolute, got[0].into(), got[got.len() / 2].into(), got[got.len() - 1].into()];
        let worst = five.iter().zip(&wanted).map(|(g, w)| (g - w).abs()).fold(0.0, f64::max);
        judge.error(&spec.name, worst / wanted[1], pytorch);
    }
    assert!(flat.next().is_none());
}

fn check(name: &str, golden: &Golden, device: &Device) {
    let config = config_of(&golden.metadata["config"]);
    let class = config.class();
    let (shape, x) = golden.nhwc("x");
    let (text_shape, text) = &golden.tensors["text"];
    let (tape, params): (Tape, Rc<RefCell<Params>>) = (Tape::new(), Rc::default());
    let state = tape.stored_u32("state", [State::WORDS]);
    let scope = Scope::training(&tape, &params, &state);
    let x_in = tape.variable("x", 0, shape);
    let t = tape.stored("t", 0, [shape[0]]);
    let text_in = tape.variable("text", 0, &text_shape[..]);
    let labels = class.tensor(&tape, shape[0]);
    let y = unet(&config, &scope, &x_in, &t, Told { labels: labels.as_ref(), text: Some(&text_in) });
    let gradients = tape.backward_from(&y, &tape.stored("dy", 0, y.shape().clone()));
    nn::place_gradients(&tape, &gradients);
    let [dx, dtext] = [&x_in, &text_in].map(|tensor| gradients.get(tensor).expect("it has one").clone());
    let plan = Plan::new(&tape, &[&y, &dx, &dtext], device);
    let mut program = Program::compile(&plan, device, &[], Sharing::Shared).unwrap();

    let params = params.borrow();
    nn::write_parameters(&program, &weights(name, &config, golden, &params)).unwrap();
    program.write("x", &to_f32(&x)).unwrap();
    program.write("t", &golden.f32("t")).unwrap();
    program.write("text", &to_f32(text)).unwrap();
    program.write("dy", &to_f32(&golden.nhwc("dy").1)).unwrap();
    match class {
        Class::None => {}
        Class::Number(_) => {
            let words: Vec<u32> = golden.get("labels").iter().map(|&v| v as u32).collect();
            program.write("labels", &words).unwrap();
        }
        Class::Value | Class::Embedding(_) => program.write("labels", &golden.f32("labels")).unwrap(),
    }
    program.run().unwrap();

    let mut judge = Judge::new(name, golden, device);
    for (what, tensor) in [("out", &y), ("dx", &dx)] {
        let wanted = golden.nhwc(what).1;
        judge.error(what, relative(&program.read(tensor).unwrap(), &wanted), judge.error_of(&[what]));
    }
    let got = program.read(&dtext).unwrap();
    judge.error("dtext", relative(&got, golden.get("dtext")), judge.error_of(&["dtext", "dx"]));
    check_sums(&mut judge, golden, &params, &flat_gradients(&program, &params));
    judge.verdict();
}

#[test]
fn every_option_with_all_gradients() {
    let golden = Golden::named("text_unet.safetensors");
    let cases = golden.metadata["cases"].as_object().unwrap();
    assert!(cases.len() >= 18, "{}", cases.len());
    for device in devices() {
        for (name, about) in cases {
            check(name, &case(&golden, name, about), &device);
        }
    }
}

/// Parameters of the published models, found without weights.
#[test]
fn stable_diffusion_has_as_many_parameters() {
    for (keys, wanted) in [
        (r#""cross_attention_dim": 768"#, 859_520_964),
        (
            r#""cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20],
               "use_linear_projection": true"#,
            865_910_724,
        ),
    ] {
        let text = format!(r#"{{"_class_name": "UNet2DConditionModel", "sample_size": 64, {keys}}}"#);
        let unet = config_of(&serde_json::from_str(&text).unwrap());
        let recipe = Recipe { image_size: 64, unet, ..Recipe::default() };
        let params = params_of(&recipe);
        assert_eq!((params.borrow().count(), params.borrow().specs().len()), (wanted, 686));
    }
}
