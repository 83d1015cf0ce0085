// state - what changes from step to step: 16 words that the host writes before each run. The order is that of
// src/state.rs.
//
// Needs from its includer: a binding `state: array<u32>`.

fn state_seed() -> vec2<u32> { return vec2<u32>(state[0], state[1]); }
fn state_step() -> u32 { return state[2]; }
// Number of the first sample of the batch.
fn state_sample() -> u32 { return state[3]; }
fn state_lr() -> f32 { return bitcast<f32>(state[4]); }
// 1 / (1 - beta^t) of Adam's two moments.
fn state_correction1() -> f32 { return bitcast<f32>(state[5]); }
fn state_correction2() -> f32 { return bitcast<f32>(state[6]); }
fn state_ema_decay() -> f32 { return bitcast<f32>(state[7]); }
// Row of the sampler's table.
fn state_row() -> u32 { return state[8]; }
// The gradients are those of the loss times two to this power.
fn state_loss_exponent() -> i32 { return bitcast<i32>(state[9]); }
