//! VQModels as a user meets them: trained, taken up again, exported, diffused upon, and misused.

use std::fs;
use std::path::Path;

use safetensors::SafeTensors;
use tempfile::TempDir;

use crate::autoencoder::{TINY_LDM, TINY_VAE, train};
use crate::command_line::{denoir, fails};
use crate::golden_diffusers::succeeds;

/// Latents 4x4, eight codes, of which a batch of two images can keep some alive.
const TINY_VQ: [&str; 10] = [
    "--set",
    "vae.widths=[8,8,8]",
    "--set",
    "vae.num_vq_embeddings=8",
    "--set",
    "vae.mid_block_add_attention=false",
    "--set",
    "lr_schedule=constant",
    "--set",
    "checkpoint_every=3",
];

fn lines(run: &Path, file: &str) -> Vec<serde_json::Value> {
    let text = fs::read_to_string(run.join(file)).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn checkpoint(run: &Path, step: u64) -> Vec<u8> {
    fs::read(run.join(format!("checkpoints/step-{step:08}.safetensors"))).unwrap()
}

#[test]
fn a_codebook_is_trained_and_resumes_to_the_same_bytes() {
    let folder = TempDir::new().unwrap();
    let at = folder.path();
    // Values of an image are 16x16.
    for (codebook, accumulation, weight) in [("ema", "1", 0.25), ("gradient", "1", 1.25), ("ema", "2", 0.25)]
    {
        let (codes, batches) = (format!("codebook={codebook}"), format!("accumulation={accumulation}"));
        let extra = [&TINY_VQ[..], &["--set", &codes, "--set", &batches]].concat();
        let name = |part: &str| format!("{part}-{codebook}-{accumulation}");
        let whole = train(at, "digits-vq", &name("whole"), "6", &TINY_VAE, &extra);
        let parts = train(at, "digits-vq", &name("parts"), "3", &TINY_VAE, &extra);
        succeeds(at, &["train", "--resume", &name("parts"), "--steps", "6", "--device", "cpu"]);
        assert!(checkpoint(&whole, 6) == checkpoint(&parts, 6), "{codebook}: a resumed VQModel differs");

        let bytes = checkpoint(&whole, 6);
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let counts: Vec<f32> =
            bytemuck::pod_collect_to_vec(file.tensor("state.quantize.counts").unwrap().data());
        assert!(counts.len() == 8 && counts.iter().all(|&n| n >= 2.0), "{counts:?}");
        for metrics in lines(&whole, "metrics.jsonl") {
            let [loss, reconstruction, distance, perplexity] =
                ["loss", "reconstruction", "codebook", "perplexity"].map(|k| metrics[k].as_f64().unwrap());
            let sum = reconstruction + 256.0 * weight * distance;
            assert!((loss - sum).abs() <= 1e-5 * loss, "{codebook}: {metrics}");
            assert!((1.0..8.001).contains(&perplexity), "{metrics}");
        }
        let evaluations = lines(&whole, "evaluations.jsonl");
        let used = evaluations.last().unwrap()["codes_used"].as_u64().unwrap();
        assert!((1..=8).contains(&used), "{evaluations:?}");
    }
    assert!(at.join("whole-ema-1/samples/step-00000006.png").is_file());
    succeeds(at, &["figure", "loss", "whole-ema-1"]);
    fails(at, &["figure", "grid", "whole-ema-1", "--device", "cpu"], 1, &["without a prior"]);

    // The folder of the library goes on as the run that it came from would, but for Adam and the counts.
    succeeds(at, &["export", "whole-ema-1", "out"]);
    let config: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(at.join("out/config.json")).unwrap()).unwrap();
    assert_eq!((&config["_class_name"], &config["num_vq_embeddings"]), (&"VQModel".into(), &8.into()));
    succeeds(at, &["import", "out", "back", "--set", "batch_size=2", "--set", "evaluate_count=4"]);
    succeeds(at, &["train", "--resume", "back", "--steps", "1", "--device", "cpu"]);
    assert_eq!(lines(&at.join("back"), "metrics.jsonl").len(), 1);

    // Latent diffusion encodes to what is not rounded yet, and rounds what it decodes.
    train(at, "digits-vq-ldm", "ldm", "2", &TINY_LDM, &["--vae", "whole-ema-1"]);
    let sample = ["sample", "ldm", "--count", "2", "--steps", "2", "--out", "s.png", "--device", "cpu"];
    succeeds(at, &sample);
}

#[test]
fn codebooks_that_cannot_be_trained_are_refused() {
    let folder = TempDir::new().unwrap();
    let at = folder.path();
    for (settings, wanted) in [
        (&["batch_size=1", "vae.num_vq_embeddings=33"][..], "codebook_restart is 2 for 33 codes"),
        (&["optimizer=adamw", "weight_decay=0.1"], "weight_decay would shrink its codes"),
        (&["codebook_decay=1"], "the counts of codes would never change"),
        (&["reconstruction=bce"], "kl and vq give images"),
    ] {
        let mut arguments = vec!["train", "digits-vq", "--out", "out", "--device", "cpu"];
        arguments.extend(settings.iter().flat_map(|setting| ["--set", setting]));
        fails(at, &arguments, 2, &[wanted]);
    }
    fails(
        at,
        &["train", "digits-vae", "--set", "codebook=ema"],
        2,
        &["codebook has no meaning for a VAE without a codebook"],
    );
    let output = denoir(at, &["recipes", "digits-vq"]);
    assert!(String::from_utf8_lossy(&output.stdout).contains("codebook = \"ema\""));
}
