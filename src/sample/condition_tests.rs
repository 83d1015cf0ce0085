//! Tests of conditions: which sample has which, and what guidance does with them.

use std::cell::RefCell;
use std::rc::Rc;

use super::*;
use crate::check::devices;
use crate::diffusion::Told;
use crate::nn::{Init, Layout, Scope};
use crate::ops::arithmetic::{add, affine, mul};
use crate::ops::concat::split;
use crate::recipe::find;
use crate::tape::Tape;

/// A prediction that is linear in the sample and its condition: so is what any solver without clipping makes
/// of them.
fn linear(scope: &Scope, x: &Tensor, _: &Tensor, _: Told) -> Tensor {
    let [x, c] = split(x, &[1, 1]).try_into().unwrap();
    let factor = scope.param("factor", [1, 1, 1, 1], Layout::Plain, Init::Ones);
    add(&affine(&x, 0.3, 0.0), &mul(&c, &factor))
}

#[test]
fn samples_have_the_conditions_of_their_numbers_and_guidance_drops_them() {
    for (name, device) in devices() {
        let params: Rc<RefCell<Params>> = Rc::default();
        let tape = Tape::new();
        let (x, t) = (tape.stored("x", 0, [1, 1, 1, 2]), tape.stored("t", 0, [1]));
        linear(&Scope::new(&tape, &params), &x, &t, None.into());
        let weights = device.alloc(nn::STORE, 4).unwrap();
        device.write(&weights, 0, bytemuck::cast_slice(&[0.5_f32])).unwrap();
        let known = [0.2_f32, -0.5, 0.9];
        let ends = |scale: f64, sigmas, dropped| {
            let condition =
                Some(Condition { channels: 1, has_holes: false, dropped, values: Rc::from(known), first: 0 });
            let (params, weights) = (Rc::clone(&params), weights.clone());
            let denoiser =
                Denoiser { condition, ..Denoiser::new(device.clone(), &linear, params, weights, [1, 1, 1]) };
            let mut scheduler = find("digits").unwrap().sampler("ddim").unwrap();
            scheduler.clip = crate::diffusion::Clip::None;
            let guidance = Guidance { scale, sigmas, ..Guidance::default() };
            let options = Options { guidance, ..Options::new(scheduler, 10, 0) };
            let mut sampler = Sampler::new(&denoiser, &options, 2)?;
            // Numbers 2 and 3 of three conditions: the last, and the first again.
            sampler.run_from(0, &[0.0, 0.0], 2, &[], |_, _, _| Ok(()))
        };
        let all = [0.0, f64::INFINITY];
        let plain = ends(1.0, all, true).unwrap();
        let close = |got: &[f32], factor: f32| {
            let wanted = plain.iter().map(|v| factor * v);
            got.iter().zip(wanted).all(|(a, b)| (a - b).abs() <= 1e-5 * (1.0 + b.abs()))
        };
        assert!((plain[0] / plain[1] - 4.5).abs() < 1e-4 && plain[1].abs() > 0.01, "{name}: {plain:?}");
        for scale in [0.0, 0.5, 3.0] {
            let got = ends(scale, all, true).unwrap();
            assert!(close(&got, scale as f32), "{name}, scale {scale}: {got:?}, of {plain:?}");
        }
        assert_eq!(ends(3.0, [1e6, 2e6], true).unwrap(), plain, "{name}: no step is so noisy");
        let refused = ends(3.0, all, false).unwrap_err().to_string();
        assert!(refused.contains("not trained without conditions"), "{refused}");
    }
}
