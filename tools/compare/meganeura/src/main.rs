//! The workload arena-unet in Meganeura, on its first Vulkan or Metal device: a training step and one forward, timed; prints one
//! JSON line.
//!
//!     meganeura-step arena-unet [--batch N] [--steps N] [--warmup N]
//!
//! The network is `sd_unet` "small" of Meganeura 0.2, built with the graph API of 0.3. A training step is forward, loss,
//! backward, clipping, Adam; noise is drawn on the host, and there is no EMA, which is to Meganeura's advantage.
//! Meganeura's own defaults hold: on a GPU whose matrix units take only f16, it rounds the inputs of forward products to that.
//! MEGANEURA_DEVICE_ID chooses the device.
use std::time::Instant;

use meganeura::graph::NodeId;
use meganeura::{build, Graph, Mode, SessionConfig};

const CHANNELS: u32 = 4;
const SIZE: u32 = 32;
const WIDTHS: [u32; 3] = [64, 128, 256];
const GROUPS: u32 = 16;

/// A tensor, its channels, the side of its images.
#[derive(Clone, Copy)]
struct Image(NodeId, u32, u32);

/// The graph under construction and the batch size.
struct Net(Graph, u32);

impl Net {
    fn conv(&mut self, name: &str, x: Image, width: u32, kernel: u32, stride: u32) -> Image {
        let Image(input, c, side) = x;
        let weight = self.0.parameter(&format!("{name}.weight"), &[(width * c * kernel * kernel) as usize]);
        let out = self.0.conv2d(input, weight, self.1, c, side, side, width, kernel, kernel, stride, kernel / 2);
        Image(out, width, side / stride)
    }

    fn norm_silu(&mut self, name: &str, x: Image) -> Image {
        let Image(input, c, side) = x;
        let gain = self.0.parameter(&format!("{name}.weight"), &[c as usize]);
        let bias = self.0.parameter(&format!("{name}.bias"), &[c as usize]);
        let h = self.0.group_norm(input, gain, bias, self.1, c, side * side, GROUPS, 1e-5);
        Image(self.0.silu(h), c, side)
    }

    fn block(&mut self, name: &str, x: Image, width: u32) -> Image {
        let h = self.norm_silu(&format!("{name}.norm1"), x);
        let h = self.conv(&format!("{name}.conv1"), h, width, 3, 1);
        let h = self.norm_silu(&format!("{name}.norm2"), h);
        let h = self.conv(&format!("{name}.conv2"), h, width, 3, 1);
        let x = if x.1 == width { x } else { self.conv(&format!("{name}.res_conv"), x, width, 1, 1) };
        Image(self.0.add(x.0, h.0), width, x.2)
    }

    fn unet(&mut self, x: NodeId) -> NodeId {
        let mut h = self.conv("conv_in", Image(x, CHANNELS, SIZE), WIDTHS[0], 3, 1);
        let mut skips = vec![];
        for (i, width) in WIDTHS.into_iter().enumerate() {
            h = self.block(&format!("enc.{i}"), h, width);
            skips.push(h);
            if i + 1 < WIDTHS.len() {
                h = self.conv(&format!("down.{i}"), h, width, 3, 2);
            }
        }
        h = self.block("mid", h, h.1);
        for (i, width) in WIDTHS.into_iter().rev().enumerate() {
            let skip = skips[WIDTHS.len() - 1 - i];
            if i > 0 {
                h = Image(self.0.upsample_2x(h.0, self.1, h.1, h.2, h.2), h.1, 2 * h.2);
            }
            let joined = self.0.concat(h.0, skip.0, self.1, h.1, skip.1, h.2 * h.2);
            h = self.block(&format!("dec.{i}"), Image(joined, h.1 + skip.1, h.2), width);
        }
        let h = self.norm_silu("norm_out", h);
        self.conv("conv_out", h, CHANNELS, 3, 1).0
    }
}

fn main() {
    let (mut batch, mut steps, mut warmup) = (2, 5, 2);
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let value = match arg.as_str() {
            "arena-unet" => continue,
            "--batch" => &mut batch,
            "--steps" => &mut steps,
            "--warmup" => &mut warmup,
            _ => stop(&format!("no workload or flag `{arg}` here")),
        };
        *value = args.next().and_then(|v| v.parse().ok()).unwrap_or_else(|| stop(&format!("{arg} takes a number")));
    }
    let size = batch * (CHANNELS * SIZE * SIZE) as usize;
    let mut random = 42u64;
    let mut noise = || -> Vec<f32> {
        let mut next = || {
            random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (random >> 33) as f32 / (1u64 << 31) as f32
        };
        // A sum of four uniform numbers, near enough to a normal one, with mean 0 and variance 1.
        (0..size).map(|_| ((0..4).map(|_| next()).sum::<f32>() - 2.0) * 3f32.sqrt()).collect()
    };

    let mut net = Net(Graph::new(), batch as u32);
    let (x, target) = (net.0.input("x", &[size]), net.0.input("target", &[size]));
    let out = net.unet(x);
    let loss = net.0.mse_loss(out, target);
    net.0.set_outputs(vec![loss]);
    let (mut session, _) = build(&net.0, SessionConfig::from_env());
    let device = session.device_information().clone();
    let mut parameters = 0;
    for (name, buffer) in session.plan().param_buffers.clone() {
        let count = session.param_size(&name).unwrap_or(session.plan().buffers[buffer.0 as usize] / 4);
        parameters += count;
        session.set_parameter(&name, &initial(&name, count));
    }
    session.set_adam(1e-4, 0.9, 0.999, 1e-8);
    session.set_grad_clip_norm(1.0);
    let train = timed(warmup, steps, || {
        session.set_input("x", &noise());
        session.set_input("target", &noise());
        session.step();
        session.wait();
    });
    let seen = session.read_loss();
    assert!(seen.is_finite() && seen > 0.0, "the loss is {seen}");
    let memory = session.memory_summary().total_allocated_bytes();
    drop(session);

    let mut net = Net(Graph::new(), batch as u32);
    let x = net.0.input("x", &[size]);
    let out = net.unet(x);
    net.0.set_outputs(vec![out]);
    let (mut session, _) = build(&net.0, SessionConfig { mode: Mode::Inference, ..SessionConfig::from_env() });
    for (name, buffer) in session.plan().param_buffers.clone() {
        let count = session.param_size(&name).unwrap_or(session.plan().buffers[buffer.0 as usize] / 4);
        session.set_parameter(&name, &initial(&name, count));
    }
    session.set_input("x", &noise());
    let sample = timed(warmup, steps, || {
        session.step();
        session.wait();
    });
    println!(
        "{{\"workload\": \"arena-unet\", \"device\": \"{} ({})\", \"batch\": {batch}, \"parameters\": {parameters}, \"version\": \"0.3.0\", \
         \"step\": {{{train}}}, \"sample\": {{{sample}}}, \"peak_memory_bytes\": {memory}, \"loss_last\": {seen}}}",
        device.device_name, device.driver_name
    );
}

fn stop(message: &str) -> ! {
    eprintln!("error: {message}");
    std::process::exit(2)
}

/// Gains of 1, biases of 0, weights of small numbers that differ.
fn initial(name: &str, count: usize) -> Vec<f32> {
    let gain = name.contains("norm");
    let value = |i: usize| match (gain, name.ends_with("bias")) {
        (true, bias) => f32::from(u8::from(!bias)),
        _ => ((i as f32 + 1.0) * 0.618_034 * std::f32::consts::TAU).sin() / (count as f32).sqrt(),
    };
    (0..count).map(value).collect()
}

/// Median, least and most of `steps` calls, as the inside of a JSON object.
fn timed(warmup: usize, steps: usize, mut call: impl FnMut()) -> String {
    for _ in 0..warmup {
        call();
    }
    let mut ms: Vec<f64> = (0..steps.max(1))
        .map(|_| {
            let start = Instant::now();
            call();
            start.elapsed().as_secs_f64() * 1e3
        })
        .collect();
    ms.sort_by(f64::total_cmp);
    let n = ms.len();
    let median = (ms[n / 2] + ms[(n - 1) / 2]) / 2.0;
    format!("\"median_ms\": {median:.3}, \"min_ms\": {:.3}, \"max_ms\": {:.3}, \"n\": {n}", ms[0], ms[n - 1])
}
