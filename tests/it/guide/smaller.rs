//! How a command of the guide is made to take moments: the same flags with smaller numbers, and recipes with
//! smaller networks. A rule is for a subcommand, never for one line of a page.

use std::fs;
use std::path::Path;

use denoir::models::vae::VaeKind;
use denoir::recipe::{Backbone, Recipe, System, find};

/// The arguments of `denoir`, made smaller for a run in the folder `at`.
pub fn smaller(at: &Path, arguments: &[String]) -> Vec<String> {
    let mut args = Args(arguments.to_vec());
    match (arguments.first().map(String::as_str), arguments.get(1).map(String::as_str)) {
        (Some("train"), _) => return train(at, args),
        (Some("sample"), _) => {
            let counted = ["--count", "--noise", "--condition", "--prompt", "--prompts"];
            match counted.iter().any(|flag| args.has(flag)) {
                true => args.at_most("--count", 2),
                false => args.put("--count", "2"),
            }
            // One file does not say its size, which is then 512.
            let is_file = arguments.get(1).is_some_and(|model| model.ends_with(".safetensors"));
            for side in ["--width", "--height"] {
                if is_file || args.has(side) {
                    args.put(side, "16");
                }
            }
            // The noise of a file is of so many steps.
            if args.value("--noise").is_none() {
                args.put("--steps", "2");
            }
        }
        (Some("evaluate"), _) => {
            args.put("--count", "10");
            args.put("--steps", "2");
        }
        (Some("likelihood"), _) => {
            args.put("--count", "2");
            if args.has("--ode") {
                args.put("--steps", "2");
            }
        }
        (Some("figure"), _) => args.at_most("--count", 2),
        (Some("invert"), _) => {
            args.put("--count", "2");
            args.put("--steps", "2");
        }
        (Some("encode" | "decode"), _) => {}
        (Some("profile"), _) | (Some("bench"), Some("step" | "sample")) => {
            args.put("--steps", "1");
            args.put("--warmup", "0");
            args.put("--batch", "1");
        }
        (Some("bench"), Some("ops")) => {
            args.put("--steps", "1");
            args.put("--warmup", "0");
        }
        _ => return args.0,
    }
    args.put("--device", "cpu");
    args.0
}

/// Few steps of a net of few channels, and few pictures.
fn train(at: &Path, mut args: Args) -> Vec<String> {
    // 16 bits are for GPUs.
    if args.value("--precision").as_deref() != Some("f16") {
        args.put("--device", "cpu");
    }
    if args.has("--dry-run") {
        return args.0;
    }
    if let Some(run) = args.value("--resume") {
        args.put("--steps", &(done(&at.join(run)) + 2).to_string());
        args.put("--sample-every", "never");
        return args.0;
    }
    let shards = args.0.iter().find_map(|set| set.strip_prefix("shards=")).unwrap_or("2").to_owned();
    args.put("--batch-size", &shards);
    args.put("--steps", "2");
    let name = args.0.get(1).filter(|name| !name.starts_with("--")).map_or("digits-classes", String::as_str);
    let file = at.join(name);
    let Ok(mut recipe) = find(if file.is_file() { file.to_str().unwrap() } else { name }) else {
        // The program will say so.
        return args.0;
    };
    for assignment in args.values("--set") {
        let _ = recipe.set(assignment);
    }
    let of_base = args.value("--base").is_some();
    if of_base {
        args.put("--image-size", "16");
    }
    for assignment in tiny(&recipe, of_base) {
        args.0.extend(["--set".to_owned(), assignment]);
    }
    // One token of the model that the tests have.
    if args.values("--set").any(|set| set.starts_with("initializer_token=")) {
        args.0.extend(["--set".to_owned(), "initializer_token=red".to_owned()]);
    }
    args.0
}

/// Keys of a recipe that make it small. `of_base`: its network is that of a folder.
fn tiny(recipe: &Recipe, of_base: bool) -> Vec<String> {
    let narrow = |levels: usize| format!("{:?}", vec![8; levels]);
    let mut set = vec!["checkpoint_every=2".to_owned(), "sample_count=2".to_owned()];
    let mut add = |key: &str, value: &str| set.push(format!("{key}={value}"));
    add("accumulation", "1");
    match recipe.system {
        System::Vae => {
            add("evaluate_count", "4");
            add("vae.widths", &narrow(recipe.vae.widths.len()));
            add("vae.norm_num_groups", "4");
            // A step has fewer latents than the codebook has codes.
            if recipe.vae.kind == VaeKind::Vq {
                add("codebook_restart", "0");
            }
            return set;
        }
        System::Classifier => add("timesteps", "50"),
        System::Ddpm | System::Ldm => {
            add("sample_steps", "2");
            add("evaluate_count", "4");
            if !of_base {
                add("timesteps", "50");
            }
        }
    }
    if recipe.system == System::Ldm {
        add("latent_count", "4");
    }
    if !recipe.class_prompt.is_empty() {
        add("class_images", "2");
    }
    match recipe.model {
        _ if of_base => {}
        Backbone::Unet => {
            add("unet.block_out_channels", &narrow(recipe.unet.block_out_channels.len()));
            add("unet.layers_per_block", "1");
            add("unet.norm_num_groups", "4");
            add("unet.attention_head_dim", "4");
            if recipe.unet.text_width() > 0 {
                add("text.num_hidden_layers", "1");
            }
        }
        Backbone::Dit => {
            add("dit.num_layers", "1");
            add("dit.num_attention_heads", "2");
            add("dit.attention_head_dim", "8");
        }
        Backbone::Conv => {
            add("conv.width", "8");
            add("conv.num_layers", "1");
            add("conv.norm_num_groups", "4");
        }
    }
    set
}

/// Steps of the newest checkpoint of a run.
fn done(run: &Path) -> u64 {
    let Ok(files) = fs::read_dir(run.join("checkpoints")) else { return 0 };
    let names = files.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let steps =
        names.filter_map(|name| name.strip_prefix("step-")?.strip_suffix(".safetensors")?.parse().ok());
    steps.max().unwrap_or(0)
}

struct Args(Vec<String>);

impl Args {
    fn has(&self, flag: &str) -> bool {
        self.0.iter().any(|word| word == flag)
    }

    fn values<'a>(&'a self, flag: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.windows(2).filter(move |pair| pair[0] == flag).map(|pair| pair[1].as_str())
    }

    fn value(&self, flag: &str) -> Option<String> {
        self.values(flag).next().map(str::to_owned)
    }

    /// Gives a flag this value, in the place of the one that it has.
    fn put(&mut self, flag: &str, value: &str) {
        match self.0.iter().position(|word| word == flag) {
            Some(place) if place + 1 < self.0.len() => value.clone_into(&mut self.0[place + 1]),
            Some(_) => self.0.push(value.to_owned()),
            None => self.0.extend([flag.to_owned(), value.to_owned()]),
        }
    }

    /// Lowers the value of a flag that is given.
    fn at_most(&mut self, flag: &str, most: u64) {
        let given = self.value(flag).and_then(|value| value.parse::<u64>().ok());
        if given.is_some_and(|given| given > most) {
            self.put(flag, &most.to_string());
        }
    }
}
