// activation - the pointwise functions of the field and their derivatives; `kind` numbers them as
// src/ops/activation.rs does.

const IDENTITY: u32 = 0u;
const SILU: u32 = 1u;
const RELU: u32 = 2u;
const GELU: u32 = 3u;
const GELU_TANH: u32 = 4u;
const TANH: u32 = 5u;
const SIGMOID: u32 = 6u;
const EXP: u32 = 7u;
const ROOT_SIGMOID: u32 = 8u;
const QUICK_GELU: u32 = 9u;

const SQRT_1_2: f32 = 0.70710678;
const SQRT_2_PI: f32 = 0.79788456; // sqrt(2 / pi)
const INV_SQRT_2PI: f32 = 0.39894228;
const QUICK: f32 = 1.702;

fn sigmoid(x: f32) -> f32 {
    // exp of a negative number only: it cannot overflow.
    let e = exp(-abs(x));
    return select(e, 1.0, x >= 0.0) / (1.0 + e);
}

// WGSL's tanh may overflow inside for large arguments on some drivers.
fn safe_tanh(x: f32) -> f32 {
    let a = abs(x);
    // Near zero, 1 - 2/(e^2x + 1) cancels; the series is exact to f32 there.
    if a < 0.15 {
        let s = x * x;
        return x * (1.0 + s * (-0.33333333 + s * (0.13333333 + s * (-0.05396825 + s * 0.02186949))));
    }
    return sign(x) * (1.0 - 2.0 / (exp(2.0 * min(a, 20.0)) + 1.0));
}

// Error function. |x| < 1: Maclaurin series; else Numerical Recipes' Chebyshev fit of erfc (error below
// 1.2e-7).
fn erf(x: f32) -> f32 {
    let a = abs(x);
    if a < 1.0 {
        let s = x * x;
        let series = 1.0 + s * (-0.33333333 + s * (0.1 + s * (-0.023809524 + s * (0.0046296296
            + s * (-0.00075757576 + s * (0.00010683761 + s * (-0.000013227513
            + s * (0.0000014589169 - s * 0.00000014503852))))))));
        return 1.1283792 * x * series;
    }
    let t = 1.0 / (1.0 + 0.5 * a);
    let poly = -1.26551223 + t * (1.00002368 + t * (0.37409196 + t * (0.09678418 + t * (-0.18628806
        + t * (0.27886807 + t * (-1.13520398 + t * (1.48851587 + t * (-0.82215223 + t * 0.17087277))))))));
    return sign(x) * (1.0 - t * exp(-a * a + poly));
}

fn activate(kind: u32, x: f32) -> f32 {
    switch kind {
        case SILU: { return x * sigmoid(x); }
        case RELU: { return max(x, 0.0); }
        case GELU: { return 0.5 * x * (1.0 + erf(x * SQRT_1_2)); }
        case GELU_TANH: { return 0.5 * x * (1.0 + safe_tanh(SQRT_2_PI * (x + 0.044715 * x * x * x))); }
        case TANH: { return safe_tanh(x); }
        case SIGMOID: { return sigmoid(x); }
        case EXP: { return exp(x); }
        case ROOT_SIGMOID: { return sqrt(sigmoid(x)); }
        case QUICK_GELU: { return x * sigmoid(QUICK * x); }
        default: { return x; }
    }
}

// Derivative of `activate` at x.
fn activate_derivative(kind: u32, x: f32) -> f32 {
    switch kind {
        case SILU: { let s = sigmoid(x); return s * (1.0 + x * (1.0 - s)); }
        case RELU: { return select(0.0, 1.0, x > 0.0); }
        case GELU: { return 0.5 * (1.0 + erf(x * SQRT_1_2)) + x * INV_SQRT_2PI * exp(-0.5 * x * x); }
        case GELU_TANH: {
            let t = safe_tanh(SQRT_2_PI * (x + 0.044715 * x * x * x));
            return 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * SQRT_2_PI * (1.0 + 3.0 * 0.044715 * x * x);
        }
        case TANH: { let t = safe_tanh(x); return 1.0 - t * t; }
        case SIGMOID: { let s = sigmoid(x); return s * (1.0 - s); }
        case EXP: { return exp(x); }
        case ROOT_SIGMOID: { return 0.5 * sqrt(sigmoid(x)) * sigmoid(-x); }
        case QUICK_GELU: { let s = sigmoid(QUICK * x); return s * (1.0 + QUICK * x * (1.0 - s)); }
        default: { return 1.0; }
    }
}
