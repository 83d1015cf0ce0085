//! Pointwise activations: SiLU, ReLU, GELU (exact, by tanh and by sigmoid), tanh, sigmoid and its root, exp.

use crate::device::gpu::shader::Kernel;
use crate::kernel;
use crate::launch::launch_of;
use crate::ops::shared::{derivative, replayed};
use crate::simd::{erf, exp, sigmoid, tanh};
use crate::tape::Tensor;

pub(crate) static KERNEL: Kernel = kernel!("activation");

/// A pointwise function. Its number is that of `kernels/lib/activation.wgsl`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Activation {
    /// `x`.
    Identity = 0,
    /// `x * sigmoid(x)`, also called swish.
    Silu = 1,
    /// `max(x, 0)`.
    Relu = 2,
    /// `x * Phi(x)` with the exact normal distribution function.
    Gelu = 3,
    /// GELU through its tanh approximation.
    GeluTanh = 4,
    /// The hyperbolic tangent.
    Tanh = 5,
    /// `1 / (1 + e^-x)`.
    Sigmoid = 6,
    /// `e^x`.
    Exp = 7,
    /// `sqrt(1 / (1 + e^-x))`: the noise in a sample of log-SNR `-x`, and the signal in one of log-SNR `x`.
    RootSigmoid = 8,
    /// `x * sigmoid(1.702 x)`: GELU through its sigmoid approximation, as in CLIP.
    QuickGelu = 9,
}

const SQRT_2_PI: f32 = 0.797_884_6; // sqrt(2 / pi)
const INV_SQRT_2PI: f32 = 0.398_942_3;
const QUICK: f32 = 1.702;

impl Activation {
    /// Each, in the order of their numbers.
    pub(crate) const ALL: [Activation; 10] = [
        Activation::Identity,
        Activation::Silu,
        Activation::Relu,
        Activation::Gelu,
        Activation::GeluTanh,
        Activation::Tanh,
        Activation::Sigmoid,
        Activation::Exp,
        Activation::RootSigmoid,
        Activation::QuickGelu,
    ];

    /// `f(x)`.
    #[inline(always)]
    pub fn apply(self, x: f32) -> f32 {
        match self {
            Activation::Identity => x,
            Activation::Silu => x * sigmoid(x),
            Activation::Relu => x.max(0.0),
            Activation::Gelu => 0.5 * x * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2)),
            Activation::GeluTanh => 0.5 * x * (1.0 + tanh(SQRT_2_PI * (x + 0.044_715 * x * x * x))),
            Activation::Tanh => tanh(x),
            Activation::Sigmoid => sigmoid(x),
            Activation::Exp => exp(x),
            Activation::RootSigmoid => sigmoid(x).sqrt(),
            Activation::QuickGelu => x * sigmoid(QUICK * x),
        }
    }

    /// `f'(x)`.
    #[inline(always)]
    pub fn derivative(self, x: f32) -> f32 {
        match self {
            Activation::Identity => 1.0,
            Activation::Silu => {
                let s = sigmoid(x);
                s * (1.0 + x * (1.0 - s))
            }
            Activation::Relu => f32::from(x > 0.0),
            Activation::Gelu => {
                0.5 * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2)) + x * INV_SQRT_2PI * exp(-0.5 * x * x)
            }
            Activation::GeluTanh => {
                let t = tanh(SQRT_2_PI * (x + 0.044_715 * x * x * x));
                0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * SQRT_2_PI * (1.0 + 3.0 * 0.044_715 * x * x)
            }
            Activation::Tanh => 1.0 - tanh(x).powi(2),
            Activation::Sigmoid => sigmoid(x) * (1.0 - sigmoid(x)),
            Activation::Exp => exp(x),
            Activation::RootSigmoid => 0.5 * sigmoid(x).sqrt() * sigmoid(-x),
            Activation::QuickGelu => {
                let s = sigmoid(QUICK * x);
                s * (1.0 + QUICK * x * (1.0 - s))
            }
        }
    }
}

/// Runs `$call` with the activation as a constant, where the activation vectorises: a choice inside the
/// loop would prevent it.
///
/// The closure around it that goes to `vectorized` must be `#[inline(always)]`: eight loops are too much
/// for the compiler to inline by itself, and what is not inlined gets no wide instructions (measured: SiLU at
/// half the speed).
macro_rules! with_constant {
    ($activation:expr, $kind:ident => $call:expr) => {
        with_constant!(@ $activation, $kind => $call, Identity Relu Silu Gelu GeluTanh Tanh Sigmoid QuickGelu)
    };
    (@ $activation:expr, $kind:ident => $call:expr, $($name:ident)+) => {
        match $activation {
            $(Activation::$name => {
                let $kind = Activation::$name;
                $call
            })+
            $kind => $call,
        }
    };
}
pub(crate) use with_constant;

/// `y = f(x)`, element by element, any shape.
pub fn activation(x: &Tensor, kind: Activation) -> Tensor {
    let n = x.elements();
    let params = [("n", n), ("kind", kind as usize)];
    let forward = launch_of(
        "activation",
        move |io| {
            io.map(
                #[inline(always)]
                |y, x| {
                    with_constant!(kind, f => {
                        for (y, x) in y.iter_mut().zip(x) {
                            *y = f.apply(*x);
                        }
                    })
                },
            );
        },
        move |plan| {
            plan.add(&KERNEL, "forward").params(params).read("x", 0).write("y", 0).cover(n, 256);
        },
    );
    let [y] = x.tape().launch(replayed(forward), &[x], [x.shape().clone()]);
    let saved = x.clone();
    derivative(&[x], &y, move |dy| {
        let backward_x = launch_of(
            "activation backward_x",
            move |io| {
                io.map2(
                    #[inline(always)]
                    |dx, x, dy| {
                        with_constant!(kind, f => {
                            for ((dx, x), dy) in dx.iter_mut().zip(x).zip(dy) {
                                *dx = dy * f.derivative(*x);
                            }
                        })
                    },
                );
            },
            move |plan| {
                let backward_x = plan.add(&KERNEL, "backward_x").params(params);
                backward_x.read("x", 0).read("dy", 1).write("dx", 0).cover(n, 256);
            },
        );
        dy.tape().launch(backward_x, &[&saved, dy], [saved.shape().clone()]).into()
    });
    y
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::{Check, random};

    fn reference(kind: Activation, x: f64) -> f64 {
        let sigmoid = 1.0 / (1.0 + (-x).exp());
        match kind {
            Activation::Identity => x,
            Activation::Silu => x * sigmoid,
            Activation::Relu => x.max(0.0),
            Activation::Gelu => 0.5 * x * (1.0 + libm::erf(x / 2.0_f64.sqrt())),
            Activation::GeluTanh => {
                0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh())
            }
            Activation::Tanh => x.tanh(),
            Activation::Sigmoid => sigmoid,
            Activation::Exp => x.exp(),
            Activation::RootSigmoid => sigmoid.sqrt(),
            Activation::QuickGelu => x / (1.0 + (-1.702 * x).exp()),
        }
    }

    #[test]
    fn every_activation() {
        for kind in Activation::ALL {
            for (n, spread) in [(1, 1.0), (257, 3.0), (1021, 10.0)] {
                // Kept away from 0, where ReLU has no derivative to compare with.
                let x = random(1, n).into_iter().map(|v| spread * (v + 0.001_f32.copysign(v))).collect();
                Check::new(format!("{kind:?}, spread {spread}"))
                    .values(&[n], x)
                    .run(|x| activation(&x[0], kind), |x| x[0].iter().map(|&x| reference(kind, x)).collect());
            }
        }
    }

    #[test]
    fn large_arguments_stay_finite() {
        for kind in [
            Activation::Silu,
            Activation::GeluTanh,
            Activation::Tanh,
            Activation::Sigmoid,
            Activation::Gelu,
            Activation::QuickGelu,
        ] {
            let x = vec![-200.0, -90.0, -30.0, 30.0, 90.0, 200.0];
            Check::new(format!("{kind:?} far out"))
                .values(&[6], x)
                .run(|x| activation(&x[0], kind), |x| x[0].iter().map(|&x| reference(kind, x)).collect());
        }
    }

    #[test]
    fn past_65535_workgroups() {
        let n = 65_536 * 256 + 3;
        Check::new("ReLU")
            .probes(2)
            .values(&[n], vec![0.5; n])
            .run(|x| activation(&x[0], Activation::Relu), |x| x[0].iter().map(|x| x.max(0.0)).collect());
    }
}
