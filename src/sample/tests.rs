//! Guidance against closed forms, with models that are written down instead of trained.

use super::*;
use crate::check::devices;
use crate::diffusion::{Clip, Method, Spacing};
use crate::nn::{Init, Layout, Scope};
use crate::ops::arithmetic::{add, mul};
use crate::ops::embedding::embedding;
use crate::ops::matmul::{Transpose, matmul};
use crate::recipe::find;

const STEPS: usize = 1000;
/// Mean and variance of the data with the class, and without.
const DATA: [(f64, f64); 2] = [(0.5, 0.09), (0.0, 0.36)];

/// The linear schedule's alpha-bar.
fn alpha_bars() -> Vec<f64> {
    let betas = (0..STEPS).map(|t| 1e-4 + (0.02 - 1e-4) * t as f64 / (STEPS - 1) as f64);
    betas
        .scan(1.0, |product, beta| {
            *product *= 1.0 - beta;
            Some(*product)
        })
        .collect()
}

/// The exact noise `(b / V) (x - a mu)` of Gaussian data, as a row of factors and offsets for each timestep.
fn exact(scope: &Scope, x: &Tensor, t: &Tensor, labels: Option<&Tensor>) -> Tensor {
    let n = x.dims()[0];
    let one_hot = embedding(&scope.param("one_hot", [2, 2], Layout::Plain, Init::Zeros), labels.unwrap());
    let ones = scope.param("ones", [2, 1], Layout::Plain, Init::Ones);
    let of_row = |name| {
        let rows = embedding(&scope.param(name, [STEPS, 2], Layout::Plain, Init::Zeros), t);
        matmul(&mul(&rows, &one_hot), &ones, Transpose::NONE, None).reshape([n, 1, 1, 1])
    };
    add(&mul(x, &of_row("factor")), &of_row("offset"))
}

/// What DDIM makes of the start `[0, 1]` in 50 steps.
fn ends(device: &Device, guidance: Guidance) -> Vec<f32> {
    let (params, tape) = (Rc::default(), Tape::new());
    let (x, t) = (tape.stored("x", 0, [1, 1, 1, 1]), tape.stored("t", 0, [1]));
    exact(&Scope::new(&tape, &params), &x, &t, Some(&tape.stored_u32("labels", [1])));
    let mut flat = params.borrow().initial(0);
    let mut set = |name: &str, values: Vec<f32>| {
        let first = params.borrow().find(name).unwrap().first;
        flat[first..first + values.len()].copy_from_slice(&values);
    };
    set("one_hot", vec![1.0, 0.0, 0.0, 1.0]);
    let rows = |of: fn(f64, f64, f64) -> f64| -> Vec<f32> {
        let all =
            alpha_bars().into_iter().flat_map(|abar| DATA.map(|(mean, var)| of(abar, mean, var) as f32));
        all.collect()
    };
    set("factor", rows(|abar, _, var| (1.0 - abar).sqrt() / (abar * var + 1.0 - abar)));
    set("offset", rows(|abar, mean, var| -(abar * (1.0 - abar)).sqrt() * mean / (abar * var + 1.0 - abar)));
    let weights = device.alloc(nn::STORE, flat.len() * 4).unwrap();
    device.write(&weights, 0, bytemuck::cast_slice(&flat)).unwrap();
    let mut scheduler = find("digits").unwrap().sampler("ddim").unwrap();
    (scheduler.clip, scheduler.spacing) = (Clip::None, Spacing::Leading);
    if let Method::Ddim { eta, .. } = &mut scheduler.method {
        *eta = 0.0;
    }
    let options = Options { guidance, ..Options::new(scheduler, 50, 0) };
    let (device, shape) = (device.clone(), [1, 1, 1]);
    let labels = Some(DType::U32);
    let denoiser = Denoiser { device, model: &exact, params, weights, shape, labels, null: Some(1) };
    let mut sampler = Sampler::new(&denoiser, &options, 2).unwrap();
    sampler.run_from(0, &[0.0, 1.0], 0, &[0, 0], |_, _, _| Ok(())).unwrap()
}

/// Scales 2 and 4 move the mean past the class, and take away its spread (values of an f64 program).
#[test]
fn guided_gaussians_end_where_the_closed_form_says() {
    let wanted = [
        (1.0, [0.498_943_672_193, 0.274_956_935_106]),
        (2.0, [0.682_713_749_174, 0.127_516_221_016]),
        (4.0, [0.734_042_747_327, 0.023_980_958_751_6]),
    ];
    for (name, device) in devices() {
        for (scale, [at_0, slope]) in wanted {
            let got = ends(device, Guidance { scale, ..Guidance::default() });
            let (low, high) = (f64::from(got[0]), f64::from(got[1]));
            let close = (low - at_0).abs() < 2e-5 && (high - low - slope).abs() < 2e-5;
            assert!(close, "{name}, scale {scale}: {got:?} instead of {at_0} and {slope} more");
        }
    }
}

#[test]
fn guidance_ends_where_its_interval_does() {
    let of = |scale, sigmas| {
        ends(&Device::open("cpu").unwrap(), Guidance { scale, sigmas, ..Guidance::default() })
    };
    let always = [0.0, f64::INFINITY];
    let [class, guided, none] = [1.0, 3.0, 0.0].map(|scale| of(scale, always));
    // The model's own samples, of mean 0 without a class.
    assert!((none[0] + none[1] - (none[1] - none[0])).abs() < 1e-4, "{none:?}");
    assert_eq!(of(3.0, [1e6, 2e6]), class, "no step is so noisy");
    assert_eq!(of(3.0, [0.0, 1e6]), guided, "every step is");
    let late = of(3.0, [0.0, 1.0]);
    assert!(class[0] < late[0] && late[0] < guided[0], "{class:?} {late:?} {guided:?}");
}

#[test]
fn a_model_without_a_null_class_is_not_guided() {
    let device = Device::open("cpu").unwrap();
    let weights = device.alloc(nn::STORE, 4).unwrap();
    let model = |_: &Scope, x: &Tensor, _: &Tensor, _: Option<&Tensor>| affine(x, 0.5, 0.0);
    let (params, shape) = (Rc::default(), [1, 1, 1]);
    let denoiser = Denoiser { device, model: &model, params, weights, shape, labels: None, null: None };
    let scheduler = find("digits").unwrap().scheduler().unwrap();
    let guidance = Guidance { scale: 2.0, ..Guidance::default() };
    let error = Sampler::new(&denoiser, &Options { guidance, ..Options::new(scheduler, 10, 0) }, 1);
    assert!(error.err().unwrap().to_string().contains("guidance 2: the model was not trained"));
}
