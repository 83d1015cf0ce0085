//! Against the library's own converters (`tools/reference/single_golden.py`), and what is refused.

use std::collections::BTreeMap;

use serde_json::Value;

use super::*;

type Named = Vec<(String, Vec<usize>)>;

fn golden() -> Value {
    let packed = &include_bytes!("../../../tests/golden/single_files.json.gz")[..];
    serde_json::from_reader(flate2::read::GzDecoder::new(packed)).unwrap()
}

fn named(case: &Value) -> Named {
    serde_json::from_value::<BTreeMap<String, Vec<usize>>>(case["file"].clone())
        .unwrap()
        .into_iter()
        .collect()
}

fn split_of(file: &Named) -> std::result::Result<Single, String> {
    split(file.iter().map(|(name, shape)| (name.as_str(), shape.as_slice())))
}

fn refusal(file: &Named) -> String {
    split_of(file).err().expect("it is refused")
}

#[test]
fn names_shapes_and_thirds_are_those_of_the_librarys_converters() {
    let golden = golden();
    for (case, wanted) in golden.as_object().unwrap() {
        let file = named(wanted);
        let single = split_of(&file).unwrap();
        assert_eq!(single.unknown, [""; 0], "{case}");
        for part in [Part::Unet, Part::Vae, Part::TextEncoder] {
            let wanted: BTreeMap<String, (String, usize, Vec<usize>)> =
                serde_json::from_value(wanted[part.folder()].clone()).unwrap();
            let entries = single.entries.iter().filter(|entry| entry.part == part).cloned();
            let found: BTreeMap<_, _> = entries.map(|e| (e.name, (e.source, e.first_row, e.shape))).collect();
            assert_eq!(found, wanted, "{case}");
            for (name, (source, row, shape)) in wanted {
                let (back, third) = single.to_compvis(part, &name).unwrap();
                assert_eq!((back, third.unwrap_or(0) * shape[0]), (source, row), "{case} {name}");
            }
        }
    }
}

#[test]
fn the_configuration_follows_from_the_shapes() {
    let golden = golden();
    let of = |case: &str| split_of(&named(&golden[case])).unwrap();
    let one = UNetShape {
        in_channels: 4,
        out_channels: 4,
        widths: vec![320, 640, 1280, 1280],
        layers_per_block: 2,
        attention: vec![true, true, true, false],
        transformer_layers: 1,
        cross_width: 768,
        heads: vec![8; 4],
        linear_projection: false,
    };
    let vae = VaeShape {
        in_channels: 3,
        latent_channels: 4,
        widths: vec![128, 256, 512, 512],
        layers_per_block: 2,
        mid_attention: true,
        quant_conv: true,
    };
    let text = TextShape {
        kind: TextKind::ClipL,
        vocabulary: 49408,
        positions: 77,
        width: 768,
        mlp_width: 3072,
        layers: 12,
        heads: 12,
    };
    let sd1 = of("sd1");
    assert_eq!(
        (sd1.layout, &sd1.unet, sd1.vae.as_ref(), sd1.text.as_ref()),
        (Layout::Sd1, &one, Some(&vae), Some(&text))
    );
    let sd2 = of("sd2");
    let (cross_width, heads) = (1024, vec![5, 10, 20, 20]);
    assert_eq!(
        sd2.unet,
        UNetShape { in_channels: 9, cross_width, heads, linear_projection: true, ..one.clone() }
    );
    let (width, mlp_width) = (1024, 4096);
    let open =
        TextShape { kind: TextKind::OpenClip, width, mlp_width, layers: 23, heads: 16, ..text.clone() };
    assert_eq!((sd2.layout, sd2.vae, sd2.text), (Layout::Sd2, Some(vae.clone()), Some(open.clone())));
    let tiny = of("tiny_sd1");
    let (widths, attention) = (vec![32, 64], vec![true, false]);
    let small =
        UNetShape { widths, attention, layers_per_block: 1, cross_width: 24, heads: vec![8; 2], ..one };
    assert_eq!((tiny.layout, &tiny.unet), (Layout::Sd1, &small));
    assert_eq!(tiny.vae, Some(VaeShape { widths: vec![16, 32], layers_per_block: 1, ..vae }));
    let tiny = of("tiny_sd2");
    let (widths, attention) = (vec![32, 64, 64], vec![false, true, true]);
    let heads = vec![1; 3];
    let small = UNetShape { widths, attention, layers_per_block: 3, heads, linear_projection: true, ..small };
    assert_eq!((tiny.layout, &tiny.unet), (Layout::Sd2, &small));
    let (vocabulary, width, mlp_width) = (522, 24, 96);
    assert_eq!(tiny.text, Some(TextShape { vocabulary, width, mlp_width, layers: 3, heads: 1, ..open }));
}

#[test]
fn what_no_picture_needs_is_left_out_and_the_rest_is_told() {
    let golden = golden();
    let mut file = named(&golden["tiny_sd1"]);
    let whole = split_of(&file).unwrap().entries;
    for name in [
        "alphas_cumprod",
        "posterior_mean_coef1",
        "model_ema.decay",
        "model_ema.diffusion_modelinput_blocks00weight",
        "first_stage_model.loss.logvar",
        "cond_stage_model.transformer.text_model.embeddings.position_ids",
        "cond_stage_model.transformer.vision_model.post_layernorm.weight",
        "cond_stage_model.transformer.text_projection.weight",
        "cond_stage_model.transformer.logit_scale",
    ] {
        file.push((name.to_owned(), vec![3]));
    }
    let single = split_of(&file).unwrap();
    assert_eq!((&single.entries, &single.unknown), (&whole, &vec![]));
    let guessed = "taken as [8, 8] of the U-Net's levels, 1 of the text";
    assert!(matches!(&single.remarks()[..], [one] if one.ends_with(guessed)), "{:?}", single.remarks());
    assert_eq!(split_of(&named(&golden["sd1"])).unwrap().remarks(), [""; 0]);
    for name in [
        "model.diffusion_model.input_blocks.1.0.in_layers.7.weight",
        "model.diffusion_model.input_blocks.99999999999999999999.0.in_layers.0.weight",
        "model.diffusion_model.out",
        "first_stage_model.decoder.up.7.block.0.norm1.weight",
        "v_pred",
    ] {
        file.push((name.to_owned(), vec![3]));
    }
    let single = split_of(&file).unwrap();
    assert_eq!((&single.entries, single.unknown.len()), (&whole, 5));
    assert!(single.remarks()[0].ends_with("and 2 more"), "{:?}", single.remarks());
    // Under the prefix of some converters, and text without `text_model.`: the same entries.
    for (name, _) in &mut file {
        *name = name.replace("first_stage_model.", "vae.").replace("transformer.text_model.", "transformer.");
    }
    let other = split_of(&file).unwrap().entries.into_iter().map(|entry| entry.name);
    assert!(other.eq(whole.iter().map(|entry| entry.name.clone())));
}

#[test]
fn another_model_is_refused_by_its_name() {
    let golden = golden();
    let sd1 = named(&golden["tiny_sd1"]);
    for (name, said) in [
        ("lora_unet_mid_block_attentions_0_proj_in.lora_down.weight", "LoRA"),
        ("unet.mid_block.attentions.0.proj_in.lora_A.weight", "LoRA"),
        ("control_model.zero_convs.0.0.weight", "ControlNet"),
        ("conditioner.embedders.1.model.ln_final.weight", "Diffusion XL"),
        ("model.diffusion_model.joint_blocks.0.x", "Diffusion 3"),
        ("double_blocks.0.img_attn.proj.weight", "Flux"),
        ("depth_model.model.x", "depth-to-image"),
        ("model.diffusion_model.label_emb.weight", "upscaler"),
        ("string_to_param.*", "textual inversion"),
    ] {
        let mut file = sd1.clone();
        file.push((name.to_owned(), vec![4]));
        assert!(refusal(&file).contains(said), "{name}: {}", refusal(&file));
    }
    let only = |name: &str| vec![(name.to_owned(), vec![4, 4])];
    for (name, said) in [
        ("down_blocks.0.resnets.0.conv1.weight", "give the folder"),
        ("encoder.down.0.block.0.conv1.weight", "VAE alone"),
        ("cond_stage_model.transformer.x", "no U-Net"),
        ("model.diffusion_model.x", "it has no model.diffusion_model.input_blocks.0.0.weight"),
        ("fc.weight", "it holds fc.weight, ..."),
    ] {
        assert!(refusal(&only(name)).contains(said), "{name}: {}", refusal(&only(name)));
    }
    assert!(refusal(&Vec::new()).contains("it holds nothing"));
    // A tensor left out or of an absurd shape: a line, or fewer entries.
    for at in (0..sd1.len()).step_by(5) {
        let mut file = sd1.clone();
        file[at].1 = vec![];
        let flat = split_of(&file).map(|single| single.entries.len());
        file[at].1 = vec![usize::MAX; 4];
        let huge = split_of(&file).map(|single| single.entries.len());
        file.remove(at);
        let fewer = split_of(&file).map(|single| single.entries.len());
        for odd in [flat, huge] {
            assert!(odd.is_err() || odd == Ok(sd1.len()), "{:?}", sd1[at]);
        }
        assert!(fewer.is_err() || fewer < Ok(sd1.len()), "{:?}", sd1[at]);
    }
    let with = |channels: usize| {
        let mut file = sd1.clone();
        let first = file.iter_mut().find(|(name, _)| name.ends_with("input_blocks.0.0.weight")).unwrap();
        first.1[1] = channels;
        split_of(&file).map(|single| single.unet.in_channels)
    };
    assert_eq!(with(9), Ok(9));
    for (channels, said) in
        [(5, "depth-to-image"), (8, "InstructPix2Pix"), (7, "takes 7 channels"), (0, "takes 0")]
    {
        assert!(with(channels).unwrap_err().contains(said), "{channels}");
    }
    let mut twice = sd1.clone();
    twice.push(("cond_stage_model.transformer.final_layer_norm.weight".to_owned(), vec![24]));
    assert!(
        refusal(&twice).contains("it holds text_model.final_layer_norm.weight of its text_encoder twice")
    );
}

#[test]
fn the_error_about_a_file_is_one_line() {
    let at = tempfile::tempdir().unwrap();
    let path = at.path().join("a.safetensors");
    let header = r#"{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#;
    let length = (header.len() as u64).to_le_bytes();
    std::fs::write(&path, [&length, header.as_bytes(), &[0; 4]].concat()).unwrap();
    let reason = open(&path).err().unwrap().report();
    assert!(reason.contains("a.safetensors: it is no Stable Diffusion model: it holds w, ..."), "{reason}");
    assert_eq!(reason.lines().count(), 1);
}
