//! Pages that sample runs in a browser: what is written, and, in a real one, the numbers.

mod browser;
mod tokens;

use std::fs;
use std::path::Path;
use std::time::Duration;

use denoir::data::read_picture;
use denoir::device::{Device, Precision};
use denoir::sample::{Given, Options, Trained};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::command_line::{TINY, denoir, fails};
use crate::place::root;
use browser::{browse, serve};

fn runs(at: &Path, arguments: &[&str]) {
    let output = denoir(at, arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn set<'a>(settings: &[&'a str]) -> Vec<&'a str> {
    settings.iter().flat_map(|setting| ["--set", setting]).collect()
}

/// Trains runs of pixels, of classes, of classes by a DiT that learned a variance, of latents, of texts and
/// of pictures, with weights that show in the samples.
fn train(at: &Path) {
    let tiny = |out: &'static str, settings: &[&'static str]| {
        runs(at, &[&["train", "--out", out, "--steps", "4"], &TINY[..], &set(settings)].concat());
    };
    tiny("pixels", &["unet.zero_init=false"]);
    tiny("classes", &["unet.zero_init=false", "unet.num_class_embeds=11", "label_dropout=0.25"]);
    let small = ["--steps", "4", "--batch-size", "4", "--device", "cpu", "--sample-every", "never"];
    let dit = ["image_size=8", "dit.num_layers=1", "dit.num_attention_heads=2", "dit.attention_head_dim=8"];
    let learned = ["dit.zero_init=false", "variance=learned_range", "loss=bound", "dit.out_channels=2"];
    let of_two = set(&["sample_count=1", "evaluate_count=4"]);
    let (dit, learned) = (set(&dit), set(&learned));
    runs(at, &[&["train", "digits-dit", "--out", "dit"][..], &small, &dit, &learned, &of_two].concat());
    let vae = set(&["vae.widths=[8,8]", "vae.norm_num_groups=4"]);
    let head = ["train", "digits-vae", "--out", "vae", "--image-size", "16"];
    runs(at, &[&head[..], &small, &vae, &of_two].concat());
    let unet = ["image_size=16", "latent_size=4", "unet.block_out_channels=[8,8]", "unet.norm_num_groups=4"];
    let more = set(&["unet.attention_head_dim=4", "unet.zero_init=false"]);
    let head = ["train", "digits-ldm", "--vae", "vae", "--out", "latents"];
    runs(at, &[&head[..], &small, &set(&unet), &more, &of_two].concat());
    let vae = set(&["vae.widths=[8,8,8]", "vae.norm_num_groups=4"]);
    runs(at, &[&["train", "shapes-vae", "--out", "shapes"][..], &small, &vae, &of_two].concat());
    let unet = ["unet.block_out_channels=[8,16]", "unet.norm_num_groups=4", "unet.zero_init=false"];
    let (unet, more) = (set(&unet), set(&["text.num_hidden_layers=1", "latent_count=4"]));
    let head = ["train", "shapes-text", "--vae", "shapes", "--out", "texts"];
    runs(at, &[&head[..], &small, &unet, &more, &of_two].concat());
    for (recipe, out, dropout) in [
        ("faces-colour", "colours", "condition.dropout=0.5"),
        ("faces-upscale", "enlarges", "condition.noise=0.2"),
        ("faces-inpaint", "fills", "condition.dropout=0"),
    ] {
        let channels = if out == "colours" { "unet.in_channels=4" } else { "unet.in_channels=7" };
        let unet = ["image_size=16", "unet.block_out_channels=[8,8,8]", "unet.norm_num_groups=4"];
        let (unet, more) = (set(&unet), set(&["unet.attention_head_dim=4", "unet.zero_init=false"]));
        let head = ["train", recipe, "--out", out];
        runs(at, &[&head[..], &small, &unet, &more, &of_two, &set(&[dropout, channels])].concat());
    }
}

/// A picture that is cut, averaged and resized on its way to a model, and a mask with a round hole.
fn draw_pictures(at: &Path) {
    let photo = image::RgbImage::from_fn(211, 150, |x, y| {
        let wave = |k: u32| ((x * (k + 2) + 3 * y) as f32 / 17.0 + k as f32).sin();
        image::Rgb([0, 1, 2].map(|k| (127.5 + 90.0 * wave(k)) as u8 + (x * y * (k + 1) % 37) as u8))
    });
    photo.save(at.join("photo.png")).unwrap();
    let is_hole = |x: u32, y: u32| x.abs_diff(31).pow(2) + y.abs_diff(20).pow(2) < 150;
    let mask = |x, y| image::Luma([if is_hole(x, y) { 255 } else { 0 }]);
    image::GrayImage::from_fn(50, 50, mask).save(at.join("mask.png")).unwrap();
}

/// Of the runs of texts: a prompt, and what guidance leads away from.
const TEXTS: [&str; 2] = ["A small RED circle, left of a blue square", "a green triangle"];

fn golden(name: &str) -> String {
    root().join("tests/golden").join(name).display().to_string()
}

fn program_of(site: &Path) -> Value {
    serde_json::from_slice(&fs::read(site.join("program.json")).unwrap()).unwrap()
}

fn numbers(value: &Value) -> Vec<u64> {
    value.as_array().unwrap().iter().map(|number| number.as_u64().unwrap()).collect()
}

#[test]
fn a_page_keeps_what_browsers_promise_and_refuses_what_they_cannot_do() {
    let folder = TempDir::new().unwrap();
    let at = folder.path();
    train(at);
    for (run, programs, writes) in [
        ("pixels", &["start", "step"][..], "x"),
        ("classes", &["guided", "start", "step"], "x"),
        ("dit", &["guided", "start", "step"], "x"),
        ("latents", &["decode", "start", "step"], "picture"),
        ("texts", &["decode", "guided", "start", "step", "text"], "picture"),
        // An encoder with weights of its own, in a folder of the diffusers library.
        ("tiny_sd", &["decode", "guided", "start", "step", "text"], "text encoder"),
        ("colours", &["guided", "start", "step"], "condition"),
        ("fills", &["start", "step"], "condition"),
    ] {
        let out = format!("{run}.site");
        let source = if run == "tiny_sd" { golden(run) } else { run.to_owned() };
        runs(at, &["web", &source, "--out", &out, "--steps", "3,5,2000"]);
        let site = at.join(&out);
        let page = program_of(&site);
        let names: Vec<&String> = page["programs"].as_object().unwrap().keys().collect();
        assert_eq!(names, programs, "{run}");
        assert!(page["buffers"][writes].is_u64(), "{run}: {}", page["buffers"]);
        // More steps than there are timesteps are not offered; the run's own sampler is.
        let walks: Vec<_> = page["walks"].as_array().unwrap().iter().map(|w| w["steps"].as_u64()).collect();
        let is_told = ["text", "picture"].iter().any(|key| page[*key].is_object());
        let own = Some(if is_told { 50 } else { 1000 });
        assert_eq!(walks, [Some(3), Some(5), own], "{run}");
        assert_eq!(site.join("tokenizer.json").exists(), page["text"].is_object(), "{run}");
        for (program, submissions) in page["programs"].as_object().unwrap() {
            for call in submissions.as_array().unwrap().iter().flat_map(|calls| calls.as_array().unwrap()) {
                let pipeline = &page["pipelines"][call["pipeline"].as_u64().unwrap() as usize];
                let at = format!("{run}, {program}: {call} by {pipeline}");
                let (slots, seen) = (&pipeline["bindings"], call["buffers"].as_array().unwrap());
                assert!(seen.len() <= 8 && seen.len() == slots.as_array().unwrap().len(), "{at}");
                assert_eq!(
                    call["params"].as_array().unwrap().len(),
                    pipeline["params"].as_array().unwrap().len()
                );
                assert!(numbers(&call["groups"]).iter().all(|n| (1..=65_535).contains(n)), "{at}");
                for (i, range) in seen.iter().enumerate() {
                    let [first, bytes] = [1, 2].map(|part| range[part].as_u64().unwrap());
                    let size = page["buffers"][range[0].as_str().unwrap()].as_u64().unwrap();
                    assert!(first.is_multiple_of(256) && bytes > 0 && first + bytes <= size, "{at}");
                    // One dispatch must not see a buffer as read-only and as writable.
                    for (j, other) in seen.iter().enumerate().filter(|(_, other)| other[0] == range[0]) {
                        assert!(i == j || slots[i]["writable"] == slots[j]["writable"], "{at}: {other}");
                    }
                }
                let text =
                    fs::read_to_string(site.join("kernels").join(pipeline["kernel"].as_str().unwrap()));
                assert!(
                    text.unwrap().contains(&format!("fn {}(", pipeline["entry"].as_str().unwrap())),
                    "{at}"
                );
            }
        }
    }
    // Tensors of 16 bits, packed: less memory.
    runs(at, &["web", "pixels", "--out", "packed", "--precision", "f16", "--steps", "3"]);
    runs(at, &["web", &golden("tiny_sd"), "--out", "halves", "--precision", "f16", "--steps", "3"]);
    let blocks = |site: &str| -> u64 {
        let page = program_of(&at.join(site));
        let buffers = page["buffers"].as_object().unwrap().iter();
        buffers.filter(|(name, _)| name.starts_with("block")).map(|(_, bytes)| bytes.as_u64().unwrap()).sum()
    };
    assert!(10 * blocks("packed") < 7 * blocks("pixels.site"), "{}", blocks("packed"));
    fails(at, &["web", "pixels", "--out", "no", "--precision", "bf16"], 2, &["of the CPU device"]);
    // Half the bytes.
    runs(at, &["web", "pixels", "--out", "half", "--f16", "--steps", "3"]);
    let weights = |site: &str| fs::metadata(at.join(site).join("weights.safetensors")).unwrap().len();
    let table = 288 * 1000; // of the run's own sampler
    assert!(2 * (weights("half") - table) < weights("pixels.site"), "{}", weights("half"));
    fails(at, &["web", "pixels", "--out", "half"], 1, &["half is not empty", "choose another --out"]);
    fails(at, &["web", "vae", "--out", "no"], 1, &["is a VAE"]);
    fails(at, &["web", "pixels", "--sampler", "ddim-inverse", "--out", "no"], 2, &["draws no samples"]);
    let lanczos = set(&["condition.kind=mask", "unet.in_channels=3", "resize=lanczos"]);
    runs(at, &[&["train", "--out", "lanczos", "--steps", "2"], &TINY[..], &lanczos].concat());
    fails(at, &["web", "lanczos", "--out", "no"], 2, &["by bicubic alone", "with `denoir sample`"]);
    assert!(!at.join("no").exists());
}

/// Asks the page for samples, and sends the last samples, the last predicted x0 and the pictures of each.
const PAGE: &str = r#"<!doctype html><title>test</title><script type="module">
const send = (path, body) => fetch(path, { method: "POST", body });
try {
    const blob = async (name) => name && (await fetch(name)).blob();
    for (const { site, request, picture, mask } of await (await fetch("requests.json")).json()) {
        const { open } = await import(`./${site}/denoir.js`);
        const model = await open(`./${site}/`);
        if (picture) request.condition = await model.conditionOf(await blob(picture), await blob(mask));
        await model.sample({ ...request, seed: BigInt(request.seed) });
        const numbers = [await model.samples(), await model.samples(true), await model.pictures()];
        await send("/result", new Blob(numbers));
    }
} catch (error) {
    await send("/failed", `${error.stack ?? error}`);
}
</script>"#;

/// `tools/test` runs it where Chromium is, or can be installed.
#[test]
#[ignore = "needs Chromium"]
fn a_browser_draws_the_samples_of_vulkan() {
    let folder = TempDir::new().unwrap();
    let at = folder.path();
    train(at);
    draw_pictures(at);
    let seed = (1_u64 << 40) + 7;
    // Run, sampler and steps, labels, guidance.
    let cases = [
        ("pixels", ("ddim", 4), None, 1.0),
        ("pixels", ("ddpm", 6), None, 1.0),
        ("classes", ("ddim", 4), Some([3, 7]), 1.0),
        ("classes", ("ddim", 4), Some([3, 7]), 0.0),
        ("classes", ("ddim", 4), Some([3, 7]), 2.5),
        ("dit", ("ddpm", 4), Some([3, 7]), 2.5),
        ("latents", ("ddim", 4), None, 1.0),
        // Of the diffusers library, with a codebook.
        ("tiny_ldm", ("dpmpp-2m", 4), None, 1.0),
        ("texts", ("ddim", 4), None, 1.0),
        ("texts", ("ddim", 4), None, 2.5),
        ("tiny_sd", ("pndm", 4), None, 7.5),
        ("colours", ("ddim", 4), None, 2.5),
        ("colours", ("ddim", 4), None, 0.0),
        ("enlarges", ("ddim", 4), None, 1.0),
        ("fills", ("ddim", 4), None, 1.0),
        // The same, with a hole where a picture says.
        ("masked", ("ddpm", 4), None, 1.0),
        // With tensors of 16 bits.
        ("half_classes", ("ddim", 4), Some([3, 7]), 2.5),
        ("half_latents", ("ddim", 4), None, 1.0),
        ("half_texts", ("ddim", 4), None, 2.5),
        // Its weights have 16 bits in its files.
        ("half_tiny_sd", ("pndm", 4), None, 7.5),
    ];
    let path = |run: &str| match run.trim_start_matches("half_") {
        "masked" => at.join("fills").display().to_string(),
        run if run.starts_with("tiny_") => golden(run),
        run => at.join(run).display().to_string(),
    };
    let precision = |run: &str| if run.starts_with("half_") { Precision::F16 } else { Precision::F32 };
    let [prompt, negative] = TEXTS;
    let mut requests = Vec::new();
    for (run, (sampler, steps), labels, guidance) in cases {
        let site = format!("{run}-{sampler}");
        if !at.join(&site).exists() {
            let (steps, precision, run) = (steps.to_string(), precision(run).name(), path(run));
            let walk = ["--sampler", sampler, "--steps", &steps, "--count", "2", "--precision", precision];
            runs(at, &[&["web", &run, "--out", &site][..], &walk].concat());
        }
        let request = json!({ "seed": seed.to_string(), "labels": labels, "guidance": guidance,
            "prompt": prompt, "negative": negative });
        let picture = ["colours", "enlarges", "fills", "masked"].contains(&run).then_some("photo.png");
        let mask = (run == "masked").then_some("mask.png");
        requests.push(json!({ "site": site, "request": request, "picture": picture, "mask": mask }));
    }
    fs::write(at.join("requests.json"), Value::from(requests).to_string()).unwrap();
    fs::write(at.join("test.html"), PAGE).unwrap();
    let (port, results) = serve(at.to_owned());
    let _browser = browse(&at.join("profile"), &format!("http://127.0.0.1:{port}/test.html"));
    for (run, (sampler, steps), labels, guidance) in cases {
        let gpu = Device::open("gpu").expect("an adapter: tools/test installs a software driver");
        let gpu = gpu.with_precision(precision(run)).unwrap();
        let trained = Trained::open(Path::new(&path(run)), &gpu).unwrap();
        let mut source = trained.source();
        if let Some(text) = trained.text() {
            let [prompt, negative] = TEXTS.map(|text| [text.to_owned()]);
            source = source.told(text.texts(&prompt, &negative, 2, 0).unwrap().texts);
        }
        let recipe = trained.recipe();
        if recipe.condition.is_some() {
            let mut given = Given::pictures(recipe, &[at.join("photo.png")]).unwrap();
            if run == "masked" {
                let mask = read_picture(&at.join("mask.png"), 16, 1, None, recipe.resize).unwrap();
                given = given.with_holes(recipe, &mask);
            }
            source = source.conditioned_on(given);
        }
        let mut options = Options { seed, steps, ..Options::of(trained.recipe()).unwrap() };
        options.scheduler = trained.recipe().sampler(sampler).unwrap();
        options.guidance.scale = guidance;
        let mut drawn = source.sampler(&options, 2).unwrap();
        let labels = labels.map_or(Vec::new(), Vec::from);
        let x = drawn.run(0, &labels, |_, _, _| Ok(())).unwrap();
        let x0 = drawn.predicted().unwrap();
        let pictures = source.draw(&options, 2, None, || Ok(())).unwrap();
        // Of classes `draw` has others.
        let pictures = if labels.is_empty() { pictures } else { x.clone() };
        let name = format!("{run} by {sampler}, guidance {guidance}");
        let (path, body) = results.recv_timeout(Duration::from_secs(300)).expect("an answer of the page");
        assert_eq!(path, "/result", "{name}: {}", String::from_utf8_lossy(&body));
        let got: Vec<f32> = floats(&body);
        let (got_x, rest) = got.split_at(x.len());
        let (got_x0, got_pictures) = rest.split_at(x0.len());
        for (what, got, wanted) in
            [("x", got_x, &x), ("x0", got_x0, &x0), ("pictures", got_pictures, &pictures)]
        {
            let error = distance(got, wanted);
            println!("{name}: {what} differ by {error:.1e} of the largest");
            // Numbers that differ in the last digit round to other ones of 16 bits.
            let tolerance = if precision(run) == Precision::F16 { 5e-3 } else { 1e-4 };
            assert!(error <= tolerance, "{name}: {what} differ by {error:e} of the largest");
        }
    }
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|word| f32::from_le_bytes(word.try_into().unwrap())).collect()
}

/// The largest difference, of the largest number; NaN counts as one.
fn distance(got: &[f32], wanted: &[f32]) -> f32 {
    assert_eq!(got.len(), wanted.len());
    let largest = wanted.iter().fold(0.0_f32, |most, v| most.max(v.abs()));
    assert!(largest > 0.1, "samples of nothing");
    let differences = got.iter().zip(wanted).map(|(a, b)| (a - b).abs());
    differences.fold(0.0, |most, d| if d <= most || most.is_nan() { most } else { d }) / largest
}
