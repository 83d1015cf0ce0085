//! One workload of the comparison in Burn: a training step and one forward of the network, timed; prints one JSON line.
//!
//!     burn-step flex|wgpu mnist-unet|celeba64-unet|ldm-unet|arena-unet [--batch N] [--steps N] [--warmup N]
//!
//! The networks are those of torch_models.py. A training step is noise, timestep, noised image, forward, loss, backward,
//! Adam, EMA; the global norm of the gradients is not clipped (Burn clips tensor by tensor), which is to Burn's advantage.
use std::time::Instant;

use burn::module::{Module, ModuleVisitor, Param};
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::{GroupNorm, GroupNormConfig, Linear, LinearConfig, PaddingConfig2d};
use burn::optim::{AdamConfig, GradientsParams};
use burn::tensor::activation::silu;
use burn::tensor::module::{attention, interpolate};
use burn::tensor::ops::{AttentionModuleOptions, InterpolateMode, InterpolateOptions};
use burn::tensor::{Device, Distribution, Int, Tensor, TensorData};

fn main() {
    let (mut backend, mut name, mut batch, mut steps, mut warmup) = (String::new(), String::new(), 0, 5, 2);
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut number = || args.next().and_then(|v| v.parse().ok()).unwrap_or_else(|| stop(&format!("{arg} takes a number")));
        match arg.as_str() {
            "--batch" => batch = number(),
            "--steps" => steps = number(),
            "--warmup" => warmup = number(),
            _ if backend.is_empty() => backend = arg,
            _ => name = arg,
        }
    }
    let device = match backend.as_str() {
        #[cfg(feature = "flex")]
        "flex" => Device::flex(),
        #[cfg(feature = "wgpu")]
        "wgpu" => Device::wgpu(burn::tensor::DeviceKind::DefaultDevice),
        _ => stop(&format!("backend `{backend}` is not in this build")),
    };
    // Channels and size of an image, the batch where none is given.
    let (channels, size, default) = match name.as_str() {
        "mnist-unet" => (1, 28, 16),
        "celeba64-unet" => (3, 64, 4),
        "ldm-unet" => (4, 8, 64),
        "arena-unet" => (4, 32, 2),
        _ => stop(&format!("no workload `{name}` here")),
    };
    let shape = [if batch > 0 { batch } else { default }, channels, size, size];
    let run = Run { backend, name, shape, steps, warmup };
    match run.name.as_str() {
        "mnist-unet" => measure(&run, &device, |d| UNet::new(1, &[32, 64, 64], &[false, true, true], d)),
        "celeba64-unet" => measure(&run, &device, |d| UNet::new(3, &[64, 128, 256, 256], &[false, false, true, true], d)),
        "ldm-unet" => measure(&run, &device, |d| UNet::new(4, &[128, 256], &[true, true], d)),
        _ => measure(&run, &device, Arena::new),
    }
}

fn stop(message: &str) -> ! {
    eprintln!("error: {message}");
    std::process::exit(2)
}

struct Run {
    backend: String,
    name: String,
    shape: [usize; 4],
    steps: usize,
    warmup: usize,
}

trait Network: Module {
    fn forward(&self, x: Tensor<4>, t: Tensor<1>) -> Tensor<4>;
}

fn measure<N: Network>(run: &Run, device: &Device, new: impl Fn(&Device) -> N) {
    let shape = run.shape;
    let batch = shape[0];
    let tape = device.clone().autodiff();
    let mut model = new(&tape);
    let mut ema = flat(&model);
    let parameters: usize = ema.iter().map(|t| t.dims()[0]).sum();
    let mut adam = AdamConfig::new().with_epsilon(1e-8).init();
    let mut product = 1.0f64;
    let alpha_bar: Vec<f32> = (0..1000)
        .map(|i| {
            product *= 1.0 - (1e-4 + (0.02 - 1e-4) * i as f64 / 999.0);
            product as f32
        })
        .collect();
    let alpha_bar = Tensor::<1>::from_data(TensorData::new(alpha_bar, [1000]), &tape);
    let x0 = Tensor::<4>::random(shape, Distribution::Normal(0.0, 1.0), &tape);
    let (mut count, mut loss_seen) = (0i64, 0.0f32);
    let train = timed(run, || {
        let eps = Tensor::<4>::random(shape, Distribution::Normal(0.0, 1.0), &tape);
        count += 1;
        let t: Vec<i64> = (0..batch as i64).map(|i| (count * 7919 + i * 131) % 1000).collect();
        let t = Tensor::<1, Int>::from_data(TensorData::new(t, [batch]), &tape);
        let ab = alpha_bar.clone().select(0, t.clone()).reshape([batch, 1, 1, 1]);
        let xt = ab.clone().sqrt() * x0.clone() + (-ab + 1.0).sqrt() * eps.clone();
        let loss = (model.forward(xt, t.float()) - eps).powi_scalar(2).mean();
        let gradients = GradientsParams::from_grads(loss.backward(), &model);
        model = adam.step(1e-4, model.clone(), gradients);
        let now = flat(&model);
        ema = ema.drain(..).zip(now).map(|(e, p)| e * 0.9999 + p * 1e-4).collect();
        loss_seen = loss.into_scalar::<f32>();
        device.sync().expect("the device finishes");
    });
    assert!(loss_seen.is_finite(), "the loss is {loss_seen}");
    let memory = peak_resident_bytes();

    let model = new(device);
    let x = Tensor::<4>::random(shape, Distribution::Normal(0.0, 1.0), device);
    let sample = timed(run, || {
        let out = model.forward(x.clone(), Tensor::<1>::full([batch], 500.0, device));
        device.sync().expect("the device finishes");
        drop(out);
    });
    println!(
        "{{\"workload\": \"{}\", \"device\": \"{}\", \"batch\": {batch}, \"parameters\": {parameters}, \"version\": \"0.22.1\", \
         \"step\": {{{train}}}, \"sample\": {{{sample}}}, \"peak_memory_bytes\": {memory}}}",
        run.name, run.backend
    );
}

/// Median, least and most of `run.steps` calls, as the inside of a JSON object.
fn timed(run: &Run, mut call: impl FnMut()) -> String {
    for _ in 0..run.warmup {
        call();
    }
    let mut ms: Vec<f64> = (0..run.steps.max(1))
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

/// The most memory that the process ever held; 0 where the system does not say (Linux does).
fn peak_resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|l| l.starts_with("VmHWM")).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) * 1024
}

struct Flat(Vec<Tensor<1>>);

impl ModuleVisitor for Flat {
    fn visit_float<const D: usize>(&mut self, p: &Param<Tensor<D>>) {
        let t = p.val().inner();
        let n = t.dims().iter().product::<usize>();
        self.0.push(t.reshape([n]));
    }
}

/// The values of every parameter, without the tape.
fn flat<M: Module>(m: &M) -> Vec<Tensor<1>> {
    let mut f = Flat(vec![]);
    m.visit(&mut f);
    f.0
}

fn upsample(h: Tensor<4>) -> Tensor<4> {
    interpolate(h, InterpolateOptions::new(InterpolateMode::Nearest).with_scale_factor([2.0, 2.0]))
}

// UNet2DModel of diffusers, as far as the workloads need it.
#[derive(Module, Debug)]
struct Res {
    norm1: GroupNorm,
    conv1: Conv2d,
    temb: Linear,
    norm2: GroupNorm,
    conv2: Conv2d,
    shortcut: Option<Conv2d>,
}

fn conv(ci: usize, co: usize, k: usize, s: usize, d: &Device) -> Conv2d {
    let p = if k == 1 { PaddingConfig2d::Valid } else { PaddingConfig2d::Explicit(1, 1, 1, 1) };
    Conv2dConfig::new([ci, co], [k, k]).with_stride([s, s]).with_padding(p).init(d)
}

impl Res {
    fn new(ci: usize, co: usize, te: usize, d: &Device) -> Self {
        Self {
            norm1: GroupNormConfig::new(32, ci).init(d),
            conv1: conv(ci, co, 3, 1, d),
            temb: LinearConfig::new(te, co).init(d),
            norm2: GroupNormConfig::new(32, co).init(d),
            conv2: conv(co, co, 3, 1, d),
            shortcut: (ci != co).then(|| conv(ci, co, 1, 1, d)),
        }
    }
    fn forward(&self, x: Tensor<4>, emb: &Tensor<2>) -> Tensor<4> {
        let h = self.conv1.forward(silu(self.norm1.forward(x.clone())));
        let e = self.temb.forward(silu(emb.clone()));
        let [b, c] = e.dims();
        let h = h + e.reshape([b, c, 1, 1]);
        let h = self.conv2.forward(silu(self.norm2.forward(h)));
        match &self.shortcut {
            Some(s) => s.forward(x) + h,
            None => x + h,
        }
    }
}

#[derive(Module, Debug)]
struct Attn {
    norm: GroupNorm,
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
    heads: usize,
}

impl Attn {
    fn new(c: usize, d: &Device) -> Self {
        let l = || LinearConfig::new(c, c).init(d);
        Self { norm: GroupNormConfig::new(32, c).init(d), q: l(), k: l(), v: l(), o: l(), heads: c / 8 }
    }
    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let [b, c, h, w] = x.dims();
        let y = self.norm.forward(x.clone()).reshape([b, c, h * w]).swap_dims(1, 2);
        let sp = |t: Tensor<3>| t.reshape([b, h * w, self.heads, c / self.heads]).swap_dims(1, 2);
        let (q, k, v) = (sp(self.q.forward(y.clone())), sp(self.k.forward(y.clone())), sp(self.v.forward(y)));
        let y = attention(q, k, v, None, None, AttentionModuleOptions::default());
        let y = self.o.forward(y.swap_dims(1, 2).reshape([b, h * w, c]));
        y.swap_dims(1, 2).reshape([b, c, h, w]) + x
    }
}

#[derive(Module, Debug)]
struct Level {
    res: Vec<Res>,
    attn: Vec<Attn>,
    sample: Option<Conv2d>,
}

#[derive(Module, Debug)]
struct UNet {
    conv_in: Conv2d,
    t1: Linear,
    t2: Linear,
    down: Vec<Level>,
    mid1: Res,
    mid_attn: Attn,
    mid2: Res,
    up: Vec<Level>,
    norm_out: GroupNorm,
    conv_out: Conv2d,
    c0: usize,
}

impl UNet {
    fn new(cin: usize, ch: &[usize], at: &[bool], d: &Device) -> Self {
        let (n, te) = (ch.len(), ch[0] * 4);
        let mut cur = ch[0];
        let mut down = vec![];
        for i in 0..n {
            let c = ch[i];
            down.push(Level {
                res: vec![Res::new(cur, c, te, d), Res::new(c, c, te, d)],
                attn: if at[i] { vec![Attn::new(c, d), Attn::new(c, d)] } else { vec![] },
                sample: (i != n - 1).then(|| conv(c, c, 3, 2, d)),
            });
            cur = c;
        }
        let (mid1, mid_attn, mid2) = (Res::new(cur, cur, te, d), Attn::new(cur, d), Res::new(cur, cur, te, d));
        let mut up = vec![];
        let mut prev = cur;
        for i in 0..n {
            let c = ch[n - 1 - i];
            let ci = ch[(n - 1).saturating_sub(i + 1)];
            up.push(Level {
                res: (0..3)
                    .map(|j| Res::new((if j == 0 { prev } else { c }) + (if j == 2 { ci } else { c }), c, te, d))
                    .collect(),
                attn: if at[n - 1 - i] { (0..3).map(|_| Attn::new(c, d)).collect() } else { vec![] },
                sample: (i != n - 1).then(|| conv(c, c, 3, 1, d)),
            });
            prev = c;
        }
        Self {
            conv_in: conv(cin, ch[0], 3, 1, d),
            t1: LinearConfig::new(ch[0], te).init(d),
            t2: LinearConfig::new(te, te).init(d),
            down,
            mid1,
            mid_attn,
            mid2,
            up,
            norm_out: GroupNormConfig::new(32, ch[0]).init(d),
            conv_out: conv(ch[0], cin, 3, 1, d),
            c0: ch[0],
        }
    }
}

impl Network for UNet {
    fn forward(&self, x: Tensor<4>, t: Tensor<1>) -> Tensor<4> {
        let half = self.c0 / 2;
        let dev = x.device();
        let fr: Vec<f32> = (0..half).map(|i| (-(10000f32.ln()) * i as f32 / half as f32).exp()).collect();
        let fr = Tensor::<1>::from_data(TensorData::new(fr, [half]), &dev);
        let ang = t.unsqueeze_dim::<2>(1) * fr.unsqueeze_dim::<2>(0);
        let e = Tensor::cat(vec![ang.clone().cos(), ang.sin()], 1);
        let emb = self.t2.forward(silu(self.t1.forward(e)));
        let mut h = self.conv_in.forward(x);
        let mut skips = vec![h.clone()];
        for l in &self.down {
            for (j, r) in l.res.iter().enumerate() {
                h = r.forward(h, &emb);
                if let Some(at) = l.attn.get(j) {
                    h = at.forward(h);
                }
                skips.push(h.clone());
            }
            if let Some(s) = &l.sample {
                h = s.forward(h);
                skips.push(h.clone());
            }
        }
        h = self.mid2.forward(self.mid_attn.forward(self.mid1.forward(h, &emb)), &emb);
        for l in &self.up {
            for (j, r) in l.res.iter().enumerate() {
                h = r.forward(Tensor::cat(vec![h, skips.pop().unwrap()], 1), &emb);
                if let Some(at) = l.attn.get(j) {
                    h = at.forward(h);
                }
            }
            if let Some(s) = &l.sample {
                h = s.forward(upsample(h));
            }
        }
        self.conv_out.forward(silu(self.norm_out.forward(h)))
    }
}

// The Inference Arena's U-Net: no biases in convolutions, no timestep, no attention, groups of 16.
#[derive(Module, Debug)]
struct ArenaRes {
    norm1: GroupNorm,
    conv1: Conv2d,
    norm2: GroupNorm,
    conv2: Conv2d,
    res_conv: Option<Conv2d>,
}

fn plain(ci: usize, co: usize, k: usize, s: usize, d: &Device) -> Conv2d {
    let p = if k == 1 { PaddingConfig2d::Valid } else { PaddingConfig2d::Explicit(1, 1, 1, 1) };
    Conv2dConfig::new([ci, co], [k, k]).with_stride([s, s]).with_padding(p).with_bias(false).init(d)
}

impl ArenaRes {
    fn new(ci: usize, co: usize, d: &Device) -> Self {
        Self {
            norm1: GroupNormConfig::new(16, ci).init(d),
            conv1: plain(ci, co, 3, 1, d),
            norm2: GroupNormConfig::new(16, co).init(d),
            conv2: plain(co, co, 3, 1, d),
            res_conv: (ci != co).then(|| plain(ci, co, 1, 1, d)),
        }
    }
    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let h = self.conv1.forward(silu(self.norm1.forward(x.clone())));
        let h = self.conv2.forward(silu(self.norm2.forward(h)));
        match &self.res_conv {
            Some(s) => s.forward(x) + h,
            None => x + h,
        }
    }
}

#[derive(Module, Debug)]
struct Arena {
    conv_in: Conv2d,
    enc: Vec<ArenaRes>,
    down: Vec<Conv2d>,
    mid: ArenaRes,
    dec: Vec<ArenaRes>,
    norm_out: GroupNorm,
    conv_out: Conv2d,
}

impl Arena {
    fn new(d: &Device) -> Self {
        let res = |ci, co| ArenaRes::new(ci, co, d);
        Self {
            conv_in: plain(4, 64, 3, 1, d),
            enc: vec![res(64, 64), res(64, 128), res(128, 256)],
            down: vec![plain(64, 64, 3, 2, d), plain(128, 128, 3, 2, d)],
            mid: res(256, 256),
            dec: vec![res(512, 256), res(384, 128), res(192, 64)],
            norm_out: GroupNormConfig::new(16, 64).init(d),
            conv_out: plain(64, 4, 3, 1, d),
        }
    }
}

impl Network for Arena {
    fn forward(&self, x: Tensor<4>, _: Tensor<1>) -> Tensor<4> {
        let mut h = self.conv_in.forward(x);
        let mut skips = vec![];
        for (i, r) in self.enc.iter().enumerate() {
            h = r.forward(h);
            skips.push(h.clone());
            if let Some(down) = self.down.get(i) {
                h = down.forward(h);
            }
        }
        h = self.mid.forward(h);
        for (i, (r, skip)) in self.dec.iter().zip(skips.into_iter().rev()).enumerate() {
            if i > 0 {
                h = upsample(h);
            }
            h = r.forward(Tensor::cat(vec![h, skip], 1));
        }
        self.conv_out.forward(silu(self.norm_out.forward(h)))
    }
}
