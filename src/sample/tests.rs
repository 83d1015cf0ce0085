//! Guidance against closed forms, with models that are written down instead of trained.

use super::*;
use crate::check::devices;
use crate::diffusion::{Clip, Method, Spacing, Told};
use crate::nn::{Init, Layout, Scope};
use crate::ops::activation::{Activation, activation};
use crate::ops::arithmetic::{add, affine, mul, sub};
use crate::ops::concat::{concat, split};
use crate::ops::embedding::embedding;
use crate::ops::matmul::{Transpose, matmul};
use crate::recipe::find;
use crate::tape::Tape;

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
fn exact(scope: &Scope, x: &Tensor, t: &Tensor, Told { labels, .. }: Told) -> Tensor {
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
    exact(&Scope::new(&tape, &params), &x, &t, Some(&tape.stored_u32("labels", [1])).into());
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
    let denoiser =
        Denoiser { labels, null: Some(1), ..Denoiser::new(device, &exact, params, weights, shape) };
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

/// Two classes, each of this variance, and their means.
const VARIANCE: f64 = 0.04;
const MEANS: [f64; 2] = [-0.5, 0.7];

/// Rows of a number for each timestep, by its `alpha_bar` and the spread of a class at it, `V`.
fn column(scope: &Scope, name: &str, t: &Tensor) -> Tensor {
    let n = t.elements();
    embedding(&scope.param(name, [STEPS, 1], Layout::Plain, Init::Zeros), t).reshape([n, 1, 1, 1])
}

/// `x - sqrt(alpha_bar) m` of both classes, divided by `sqrt(2 V)`.
fn apart(scope: &Scope, x: &Tensor, t: &Tensor) -> [Tensor; 2] {
    let factor = column(scope, "apart", t);
    ["first", "second"].map(|name| mul(&add(x, &column(scope, name, t)), &factor))
}

/// The logarithms of the classes' densities, but for what they have in common: exact logits.
fn two_logits(scope: &Scope, x: &Tensor, t: &Tensor) -> Tensor {
    let squares = apart(scope, x, t).map(|y| affine(&mul(&y, &y), -1.0, 0.0).reshape([x.dims()[0], 1]));
    concat(&[&squares[0], &squares[1]])
}

/// The exact noise of the mixture (label 2) or of a class.
fn two_classes(scope: &Scope, x: &Tensor, t: &Tensor, Told { labels, .. }: Told) -> Tensor {
    let n = x.dims()[0];
    let [first, second] = apart(scope, x, t);
    let odds = sub(&mul(&first, &first), &mul(&second, &second));
    let mixture = add(&first, &mul(&activation(&odds, Activation::Sigmoid), &sub(&second, &first)));
    let flat = [&first, &second, &mixture].map(|y| y.reshape([n, 1]));
    let one_hot = embedding(&scope.param("one_hot", [3, 3], Layout::Plain, Init::Zeros), labels.unwrap());
    let ones = scope.param("ones", [3, 1], Layout::Plain, Init::Ones);
    let chosen = mul(&concat(&[&flat[0], &flat[1], &flat[2]]), &one_hot);
    mul(&matmul(&chosen, &ones, Transpose::NONE, None).reshape([n, 1, 1, 1]), &column(scope, "noise", t))
}

/// The parameters that `record` asks for, with these values.
fn parameters(device: &Device, record: impl Fn(&Scope, &Tensor, &Tensor)) -> (Rc<RefCell<Params>>, Buffer) {
    let (params, tape) = (Rc::default(), Tape::new());
    record(&Scope::new(&tape, &params), &tape.stored("x", 0, [1, 1, 1, 1]), &tape.stored("t", 0, [1]));
    let mut flat = params.borrow().initial(0);
    for spec in params.borrow().specs() {
        let rows = |of: &dyn Fn(f64, f64) -> f64| -> Vec<f32> {
            let spread = |abar: f64| abar * VARIANCE + 1.0 - abar;
            alpha_bars().into_iter().map(|abar| of(abar, spread(abar)) as f32).collect()
        };
        let values = match &spec.name[..] {
            "one_hot" => [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]].concat(),
            "apart" => rows(&|_, v| (0.5 / v).sqrt()),
            "first" => rows(&|abar, _| -abar.sqrt() * MEANS[0]),
            "second" => rows(&|abar, _| -abar.sqrt() * MEANS[1]),
            "noise" => rows(&|abar, v| (2.0 * (1.0 - abar) / v).sqrt()),
            _ => continue,
        };
        flat[spec.first..][..values.len()].copy_from_slice(&values);
    }
    let weights = device.alloc(nn::STORE, flat.len() * 4).unwrap();
    device.write(&weights, 0, bytemuck::cast_slice(&flat)).unwrap();
    (params, weights)
}

/// Without a classifier and with one, guidance is the same (values of an f64 program, DDIM in 20 steps).
#[test]
fn both_guidances_lead_two_classes_to_the_same_places() {
    let wanted = [
        (0.0, [-0.554_001_772_1, 0.545_088_492_2, 0.794_461_071]),
        (1.0, [0.553_873_673_3, 0.742_478_366_9, 0.873_050_847_1]),
        (3.0, [0.786_946_759_1, 0.885_091_984_9, 0.976_886_544_2]),
    ];
    for (name, device) in devices() {
        let labels = |tape: &Tape| tape.stored_u32("labels", [1]);
        let (params, weights) = parameters(device, |scope, x, t| {
            two_classes(scope, x, t, Some(&labels(scope.tape())).into());
        });
        let (of_classifier, classifier) = parameters(device, |scope, x, t| drop(two_logits(scope, x, t)));
        let mut scheduler = find("digits").unwrap().sampler("ddim").unwrap();
        (scheduler.clip, scheduler.spacing) = (Clip::None, Spacing::Leading);
        for (scale, wanted) in wanted {
            for with_classifier in [false, true] {
                let guide = with_classifier.then(|| ClassifierGuide {
                    logits: &two_logits,
                    params: Rc::clone(&of_classifier),
                    weights: classifier.clone(),
                    classes: 2,
                    scale,
                });
                let denoiser = Denoiser {
                    labels: Some(DType::U32),
                    null: Some(2),
                    guide,
                    ..Denoiser::new(
                        device.clone(),
                        &two_classes,
                        Rc::clone(&params),
                        weights.clone(),
                        [1, 1, 1],
                    )
                };
                // The classifier leads a model that is told no class.
                let scale = if with_classifier { 0.0 } else { scale };
                let guidance = Guidance { scale, ..Guidance::default() };
                let options = Options { guidance, ..Options::new(scheduler.clone(), 20, 0) };
                let mut sampler = Sampler::new(&denoiser, &options, 3).unwrap();
                let got = sampler.run_from(0, &[-1.0, 0.3, 1.2], 0, &[1, 1, 1], |_, _, _| Ok(())).unwrap();
                for (got, wanted) in got.iter().zip(wanted) {
                    let close = (f64::from(*got) - wanted).abs() < 3e-5;
                    assert!(
                        close,
                        "{name}, scale {scale}, classifier {with_classifier}: {got}, not {wanted}"
                    );
                }
            }
        }
    }
}

#[test]
fn a_model_without_a_null_class_is_not_guided() {
    let device = Device::open("cpu").unwrap();
    let weights = device.alloc(nn::STORE, 4).unwrap();
    let model = |_: &Scope, x: &Tensor, _: &Tensor, _: Told| affine(x, 0.5, 0.0);
    let (params, shape) = (Rc::default(), [1, 1, 1]);
    let denoiser = Denoiser::new(device, &model, params, weights, shape);
    let scheduler = find("digits").unwrap().scheduler().unwrap();
    let guidance = Guidance { scale: 2.0, ..Guidance::default() };
    let error = Sampler::new(&denoiser, &Options { guidance, ..Options::new(scheduler, 10, 0) }, 1);
    assert!(error.err().unwrap().to_string().contains("guidance 2: the model was not trained"));
}

/// A model that adds .1 to the x_0 that it sees of itself: after n steps x_0 is n tenths, whatever the noise;
/// and no more than a tenth over the bound of what it sees.
#[test]
fn a_self_conditioned_model_sees_its_last_x0() {
    let model = |_: &Scope, x: &Tensor, _: &Tensor, _: Told| affine(&split(x, &[1, 1])[1], 1.0, 0.1);
    let mut recipe = find("digits").unwrap();
    recipe.set("prediction_type=sample").unwrap();
    for (name, device) in devices() {
        for (sampler, bound) in [("ddim", 0.0), ("ddpm", 0.3), ("dpmpp-2m", 0.3), ("dpmpp-2m", 0.0)] {
            let wanted = if bound > 0.0 { bound + 0.1 } else { 0.5 };
            let weights = device.alloc(nn::STORE, 4).unwrap();
            let denoiser = Denoiser {
                self_conditioned: Some(bound),
                ..Denoiser::new(device.clone(), &model, Rc::default(), weights, [2, 2, 1])
            };
            let mut scheduler = recipe.sampler(sampler).unwrap();
            scheduler.clip = Clip::None;
            let mut sampler_of = Sampler::new(&denoiser, &Options::new(scheduler, 5, 0), 3).unwrap();
            // The second time as if there had been no first.
            for _ in 0..2 {
                sampler_of.run(0, &[], |_, _, _| Ok(())).unwrap();
                let x0 = sampler_of.predicted().unwrap();
                assert!(
                    x0.iter().all(|&v| (f64::from(v) - wanted).abs() < 1e-5),
                    "{name}, {sampler}: {x0:?}"
                );
            }
        }
    }
}
