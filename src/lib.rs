//! denoir: a hand-written GPU compute engine that trains and samples diffusion models.
//!
//! This page is the map of the code. The program is `denoir`; the library below it can be used on its own.
//!
//! The [`guide`] tells how the program is used, and which code to read first. Programs of your own start with
//! [`prelude`] and those under `tools/examples`, which `cargo run --example NAME` runs.
//!
//! # How a step runs
//!
//! Shapes are known before training starts, so nothing is computed while a model is called: its ops
//! *record* launches on a [`tape`] of symbolic tensors, [`Tape::backward`](tape::Tape::backward) records
//! the launches of the gradients, and the optimiser its own. A [`program`] compiles the recording once for
//! a [`device`]: it drops what nothing depends on, lets tensors share memory that are never alive together,
//! and builds pipelines and bind groups. A training step then writes sixteen words of [`state`] and its
//! images (or, where the data set lies on a GPU, their numbers), and replays the launches. The loss is read
//! back at once on the CPU device, and two steps later on a GPU, which never waits for the host.
//!
//! # Layers
//!
//! A module imports only from the rows below it, or from its own (`tests/it/house.rs` holds this table).
//!
//! | | modules | know |
//! |---|---|---|
//! | 9 | [`cli`], [`prelude`] (for programs with networks of their own), [`guide`] (pages of text) | everything |
//! | 8 | [`train`], [`sample`], [`figures`], [`codec`] and [`classifier`] (a trained one at work), [`text_model`] (a text encoder at work), [`latent_file`], [`web`] (a run sampled in a browser), `bench` | everything below |
//! | 7 | [`recipe`] (a run, complete), [`checkpoint`], [`run`], [`diffusers`] | models and data |
//! | 6 | [`models`], [`diffusion`], [`data`], [`weights`], [`tokenizer`], [`likelihood`] and [`quality`] (of images, in f64) | ops and layers |
//! | 5 | [`nn`] (parameters and layers), [`optim`] (learning rates, EMA) | ops |
//! | 4 | [`ops`] | the tape and the product floor; an op never knows another |
//! | 3 | [`launch`], [`tape`], [`program`], [`state`], `product` (the one loop of convolutions and matrix products) | tensors and kernels |
//! | 2 | [`tensor`] (shape, type, identity) | nothing but itself |
//! | 1 | [`device`] (`gpu`: adapters, shaders, buffers, dispatch; `cpu`: memory, threads) | bytes and kernels, no shapes |
//! | 0 | [`error`], [`group`] (processes that train together), `files`, `names` (as text), `normal` (its probabilities), [`philox`] (random numbers), [`torch`], `shared` (slices in parts), [`simd`] | nothing |
//!
//! # Invariants
//!
//! - **One op is one room.** `kernels/<op>.wgsl` holds its kernels, forward and backward; `src/ops/<op>.rs`
//!   its contract, launches, derivative, CPU twin, reference and tests. There is no list of ops to extend but
//!   that of `src/ops/mod.rs`: its module and its kernel. Shared are the activations (fused into group
//!   norm), the sums (the derivative of a broadcast) and the product floor.
//! - **One loop for all products.** Convolution, its adjoint, the gradient of its weights, matrix product and
//!   linear layer are values of `product::Product`: which elements A and B have, and what is added to the
//!   sums. Tiles, split sums and Winograd's algebra exist once for each device, and a new schedule serves all
//!   of them.
//! - **Only the tape adds gradients.** A derivative returns gradients; it never adds to one. Where the launch
//!   that writes the second of two can fuse the sum ([`launch::Accumulate`]), the tape has it add the first.
//! - **Two devices, one program.** Every launch has a WGSL kernel and a CPU twin, checked against each
//!   other and against f64.
//! - **Channels last.** Activations are `[N, H, W, C]`, convolution weights `[KH, KW, Cin, Cout]`. Files
//!   follow PyTorch; the layout changes where they are read and written, nowhere else.
//! - **Flat parameters.** One store holds all parameters, and others, at equal offsets, gradients, Adam's
//!   moments and the EMA. What a step writes by other means (the counts of a codebook) lies behind them.
//! - **Reproducible.** Random numbers are functions of (seed, stream, step, sample, element); no float
//!   atomics; every sum has a fixed order that depends on shapes alone, not on the number of threads. On a
//!   GPU it depends on the variants of kernels too, which a tuning file fixes.
//! - **Weights are packed once.** A CPU program that never writes a store keeps its launches' packed weights,
//!   and results made from the store alone, from run to run. It makes them again when another program or the
//!   host has written the store. Weights of 16 bits take half the memory instead: each launch finds them
//!   widened, and nothing of them is kept.
//! - **Precision belongs to the device.** Kernels compute in f32. On a GPU a program may keep the tensors
//!   between its launches in 16 bits ([`device::Precision`]); stores, outputs and what an op calls exact
//!   ([`tape::Tensor::exact`]) have 32. On the CPU products may round their factors to bf16.
//! - **The default is the measure.** A launch may offer variants. Tuning times them when a program is
//!   compiled, and only a variant with the default's results may win; a device without a tuning runs
//!   defaults.
//! - **No tensor is too large to bind.** Flat stores and tables are bound in ranges. One image must fit:
//!   batches are made smaller until they do, in training with gradients accumulated over them.
//! - **A caller's mistake panics, the world's mistake is a [`Result`](error::Result)** with what to do
//!   about it.
//! - **No globals.** A device is passed; a tensor carries its tape. Only `device::gpu` names wgpu.
//!
//! # Glossary
//!
//! | word | meaning |
//! |---|---|
//! | tape | the recording: symbolic tensors and launches, no data |
//! | launch | one recorded step on either device; on a GPU one dispatch or several |
//! | plan | a recording with lifetimes: what is computed, in which order, and where it lies |
//! | program | a plan compiled for a device, which is run again and again |
//! | store | memory with a name that outlives a run: parameters, gradients, moments, EMA, inputs |
//! | twin | the CPU form of a kernel |
//! | room | all files of an op |
//! | loader | which element of a tensor a matrix of a product has in a row and a column |
//! | epilogue | what is added to sums where they are written: bias, time embedding, residual |
//! | tile | rows and columns of a result that a workgroup, or a loop over registers, computes together |
//! | panel | columns of B, packed row by row for the CPU's register tile |
//! | prepacked | weights in panels that a later run finds unchanged |
//! | split k | partial sums over ranges of k, added in a fixed order |
//! | knob | a constant of a kernel that the host sets before it is compiled |
//! | variant | one of several schedules of a launch, of which tuning picks the fastest |
//! | recompute | a result made again in the backward pass instead of kept |
//! | EMA | exponential moving average of the parameters, which samples are drawn with |
//!
//! # Reading order
//!
//! An afternoon: [`guide::reading_path`].

#![warn(missing_docs)]
#![deny(clippy::print_stdout)] // results are printed in one place that survives a closed pipe

pub mod bench;
#[cfg(any(test, feature = "testing"))]
pub mod check;
pub mod checkpoint;
pub mod classifier;
pub mod cli;
pub mod codec;
pub mod data;
pub mod device;
pub mod diffusers;
pub mod diffusion;
pub mod error;
pub mod figures;
mod files;
pub mod group;
#[cfg(any(doc, doctest))] // text alone, whose change is no reason to build the library again
pub mod guide;
pub mod latent_file;
pub mod launch;
pub mod likelihood;
pub mod models;
mod names;
pub mod nn;
mod normal;
pub mod ops;
pub mod optim;
pub mod philox;
pub mod prelude;
pub(crate) mod product;
pub mod program;
pub mod quality;
pub mod recipe;
pub mod run;
pub mod sample;
mod shared;
pub mod simd;
pub mod state;
pub mod tape;
pub mod tensor;
pub mod text_model;
pub mod tokenizer;
pub mod torch;
pub mod train;
pub mod web;
pub mod weights;
