//! Whole models under two objectives against PyTorch, with all gradients: a U-Net that learns its variance,
//! by the hybrid loss and by the bound, and a classifier of noisy images.

use std::cell::RefCell;
use std::rc::Rc;

use denoir::device::Device;
use denoir::diffusion::{Betas, Prediction, Rounding, Schedule, Variance};
use denoir::models::classifier::{ClassifierConfig, Pool, classifier};
use denoir::models::unet::unet;
use denoir::nn::{self, Params, Scope};
use denoir::ops::arithmetic::{add, affine};
use denoir::ops::concat::split;
use denoir::ops::cross_entropy::cross_entropy;
use denoir::ops::loss::mse;
use denoir::ops::reduce::mean;
use denoir::ops::variational_bound::variational_bound;
use denoir::program::{Plan, Program, Sharing};
use denoir::state::State;
use denoir::tape::{Tape, Tensor};

use crate::golden::config_of;
use crate::reference::{Golden, Judge, devices, files, flat_gradients, flat_parameters, relative, to_f32};

/// A golden file and what is recorded of it.
struct Case {
    name: String,
    golden: Golden,
    tape: Tape,
    params: Rc<RefCell<Params>>,
    scope: Scope,
}

impl Case {
    fn named(case: &str) -> Case {
        let name = format!("objective_{case}.safetensors");
        let (tape, params): (Tape, Rc<RefCell<Params>>) = (Tape::new(), Rc::default());
        let state = tape.stored_u32("state", [State::WORDS]);
        let scope = Scope::training(&tape, &params, &state);
        Case { golden: Golden::named(&name), name, tape, params, scope }
    }

    /// An image of the file, channels last.
    fn image(&self, name: &str) -> Vec<f32> {
        to_f32(&self.golden.nhwc(name).1)
    }

    /// Runs what is recorded with the file's parameters and what `write` writes, and holds `results`, the
    /// loss and all gradients against the file. An error counts beside PyTorch's own in the same tensor or
    /// in the output.
    fn judge(&self, device: &Device, results: &[(&str, &Tensor)], write: &dyn Fn(&mut Program)) {
        let (Case { name, golden, tape, .. }, params) = (self, self.params.borrow());
        let tensors: Vec<&Tensor> = results.iter().map(|(_, tensor)| *tensor).collect();
        let plan = Plan::new(tape, &tensors, device);
        let mut program = Program::compile(&plan, device, &[], Sharing::Shared).unwrap();
        nn::write_parameters(&program, &flat_parameters(name, golden, &params)).unwrap();
        program.write("t", &golden.f32("in/t")).unwrap();
        write(&mut program);
        program.run().unwrap();
        let mut judge = Judge::new(name, golden, device);
        for (what, tensor) in results {
            let file = format!("f64/{what}");
            let is_image = golden.tensors[&file].0.len() == 4;
            let wanted = if is_image { golden.nhwc(&file).1 } else { golden.get(&file).to_vec() };
            let err = relative(&program.read(tensor).unwrap(), &wanted);
            judge.error(what, err, judge.error_of(&[what, "out"]));
        }
        judge.gradients(&params, &flat_gradients(&program, &params), judge.error_of(&["out"]));
        judge.verdict();
    }
}

fn check_variance(case: &str, device: &Device) {
    let of = Case::named(case);
    let (tape, metadata) = (&of.tape, &of.golden.metadata);
    let (shape, _) = of.golden.nhwc("in/x");
    let [x, noise, x0] = ["x", "noise", "x0"].map(|name| tape.stored(name, 0, shape));
    let t = tape.stored("t", 0, [shape[0]]);
    let levels = Schedule::new(&Betas::Linear, 1000, 1e-4, 0.02, Rounding::Exact).levels();
    let rows = levels.iter().map(|at| at.bound(Prediction::Epsilon, Variance::LearnedRange).unwrap());
    let rows: Vec<f32> = rows.flatten().map(|v| v as f32).collect();
    let table = tape.stored("table", 0, [levels.len(), 4]);

    let out = unet(&config_of(&metadata["config"]), &of.scope, &x, &t, None.into());
    let terms = variational_bound(&out, [&noise, &x0], &t, &table, case == "bound");
    let each = affine(&terms, (levels.len() as f64 / std::f64::consts::LN_2) as f32, 0.0);
    let bound = mean(&each);
    let loss = if case == "bound" {
        bound
    } else {
        let predicted = split(&out, &[shape[3]; 2]).swap_remove(0);
        let weight = metadata["weight"].as_f64().unwrap() as f32;
        add(&mse(&predicted, &noise, None), &affine(&bound, weight, 0.0))
    };
    nn::place_gradients(tape, &tape.backward(&loss));
    of.judge(device, &[("out", &out), ("each", &each), ("loss", &loss)], &|program| {
        for name in ["x", "noise", "x0"] {
            program.write(name, &of.image(&format!("in/{name}"))).unwrap();
        }
        program.write("table", &rows).unwrap();
    });
}

fn check_classifier(case: &str, device: &Device) {
    let of = Case::named(case);
    let (tape, metadata) = (&of.tape, &of.golden.metadata);
    let number = |key: &str| metadata["classifier"][key].as_u64().unwrap() as usize;
    let pool = if case == "mean" { Pool::Mean } else { Pool::Attention };
    let [classes, features] = ["classes", "features"].map(number);
    let config = ClassifierConfig { classes, features, pool, ..Default::default() };
    let (shape, _) = of.golden.nhwc("in/x");
    let x = tape.variable("x", 0, shape);
    let t = tape.stored("t", 0, [shape[0]]);
    let labels = tape.stored_u32("labels", [shape[0]]);
    let [_, logits] = classifier(&config, &config_of(&metadata["config"]), &of.scope, &x, &t);
    let loss = mean(&cross_entropy(&logits, &labels)[0]);
    let gradients = tape.backward(&loss);
    let dx = gradients.get(&x).expect("the image has a gradient");
    nn::place_gradients(tape, &gradients);
    of.judge(device, &[("out", &logits), ("dx", dx), ("loss", &loss)], &|program| {
        program.write("x", &of.image("in/x")).unwrap();
        let words: Vec<u32> = of.golden.get("in/labels").iter().map(|&v| v as u32).collect();
        program.write("labels", &words).unwrap();
    });
}

#[test]
fn learned_variances_and_noisy_classifiers_with_all_gradients() {
    assert_eq!(files("objective_").len(), 4);
    for device in devices() {
        for case in ["hybrid", "bound"] {
            check_variance(case, &device);
        }
        for case in ["attention", "mean"] {
            check_classifier(case, &device);
        }
    }
}
