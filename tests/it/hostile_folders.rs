//! Folders of weights that were written to do harm, or are broken: each is refused with one line.

use std::fs;
use std::io::Cursor;
use std::path::Path;

use denoir::weights::{Weights, torch};
use tempfile::TempDir;

use crate::command_line::fails;
use crate::golden_diffusers::copy;
use crate::hostile_files::{pickle_of, safetensors_file, torch_file};
use crate::zip_writer::zip_file;

/// A link to itself is read, and not taken for a file that is missing.
#[cfg(unix)]
#[test]
fn links_that_lead_nowhere_are_named() {
    for part in ["model_index.json", "unet", "unet/config.json", "scheduler/scheduler_config.json"] {
        let folder = TempDir::new().unwrap();
        let at = folder.path().join("f");
        copy(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/tiny_ddpm"), &at);
        let link = at.join(part);
        if link.is_dir() {
            fs::remove_dir_all(&link).unwrap();
        } else {
            fs::remove_file(&link).unwrap();
        }
        std::os::unix::fs::symlink(link.file_name().unwrap(), &link).unwrap();
        assert!(denoir::diffusers::is_folder(&at), "{part}");
        let report = denoir::diffusers::open(&at).err().map(|e| e.report()).unwrap_or_default();
        assert!(report.contains("cannot read") && report.contains(part), "{part}: {report}");
    }
}

#[test]
fn a_component_without_its_folder_is_named() {
    for part in ["text_encoder", "tokenizer", "unet", "vae", "scheduler"] {
        let folder = TempDir::new().unwrap();
        let at = folder.path().join("f");
        copy(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/tiny_sd"), &at);
        fs::remove_dir_all(at.join(part)).unwrap();
        let report = denoir::diffusers::open(&at).err().map(|e| e.report()).unwrap_or_default();
        let wanted = format!("names {part}, and there is no folder {part}; get the folder again");
        assert!(report.contains(&wanted) && report.lines().count() == 1, "{part}: {report}");
    }
}

#[test]
fn files_and_shards() {
    let folder = TempDir::new().unwrap();
    let at = folder.path();
    let fails = |name: &str, wanted: &str| {
        let opened = Weights::find(at, name);
        let report = opened.err().map(|e| e.report()).unwrap_or_default();
        assert!(report.contains(wanted), "{name} should say {wanted:?}: {report}");
    };
    assert!(Weights::find(at, "nothing").unwrap().is_none());
    fs::create_dir(at.join("folder.safetensors")).unwrap();
    fails("folder", "no regular file");
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink("loop.safetensors", at.join("loop.safetensors")).unwrap();
        fails("loop", "cannot read");
        std::os::unix::fs::symlink("nowhere", at.join("gone.bin")).unwrap();
        fails("gone", "cannot read");
    }
    let one = safetensors_file(r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#, 4);
    fs::write(at.join("m-1.safetensors"), &one).unwrap();
    let index = |map: serde_json::Value| {
        let text = serde_json::json!({ "metadata": {"total_size": 4}, "weight_map": map }).to_string();
        fs::write(at.join("m.safetensors.index.json"), text).unwrap();
    };
    index(serde_json::json!({ "a": "m-1.safetensors" }));
    let weights = Weights::find(at, "m").unwrap().unwrap();
    assert_eq!(weights.values("a").unwrap(), [0.0]);
    index(serde_json::json!({ "a": "m-1.safetensors", "b": "m-1.safetensors" }));
    fails("m", "m-1.safetensors holds b, which it does not");
    index(serde_json::json!({ "a": "m-2.safetensors" }));
    fails("m", "cannot read");
    index(serde_json::json!({ "b": "m-1.safetensors" }));
    fails("m", "does not say that m-1.safetensors holds a");
    index(serde_json::json!({ "a": "../m-1.safetensors" }));
    fails("m", "no name of a weight file");
    let mut broken = one;
    let end = broken.len() - 4;
    broken[end..].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::write(at.join("nan.safetensors"), broken).unwrap();
    let nan = Weights::find(at, "nan").unwrap().unwrap();
    assert!(nan.values("a").unwrap_err().report().contains("a holds NaN at 0"));
}

/// The format of `torch.save` that has no sums: every cut, and what would lead beyond the file.
#[test]
fn old_files_of_torch_save() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/torch_save_legacy.bin");
    let whole = fs::read(path).unwrap();
    let list = |bytes: &[u8]| torch::list(&mut Cursor::new(bytes), bytes.len() as u64);
    assert_eq!(list(&whole).unwrap().len(), 6);
    for cut in 0..whole.len() {
        assert!(list(&whole[..cut]).is_err(), "cut to {cut} of {} bytes", whole.len());
    }
    for at in 0..whole.len() {
        for bit in 0..8 {
            let mut damaged = whole.clone();
            damaged[at] ^= 1 << bit;
            let _ = list(&damaged);
        }
    }
    let refuses = |bytes: &[u8], wanted: &str| {
        let reason = list(bytes).unwrap_err();
        assert!(reason.contains(wanted), "should say {wanted:?}: {reason}");
    };
    let find = |what: &[u8]| whole.windows(what.len()).rposition(|w| w == what).unwrap();
    let mut big = whole.clone();
    big[find(b"little_endian") + 15] = 0x89;
    refuses(&big, "byte order");
    // The count before the one element of the last tensor, 7.
    let count = find(&7.0_f32.to_le_bytes()) - 8;
    let mut many = whole.clone();
    many[count..count + 8].fill(0xff);
    refuses(&many, "beyond the file");
    refuses(&[&whole[..], &[0]].concat(), "1 bytes behind its storages");
    refuses(
        b"\x80\x02cposix\nsystem\nX\x04\0\0\0true\x85R.",
        "a bare pickle, and none that torch.save writes",
    );
    let calls = [&whole[..21], b"\x80\x02cposix\nsystem\n."].concat();
    refuses(&calls, "would call posix.system");
}

/// The same through the program: sampling from such a folder and importing it end with one line and status 1,
/// and leave nothing behind.
#[test]
fn hostile_folders_through_the_program() {
    let folder = TempDir::new().unwrap();
    let at = folder.path();
    let (model, stem) = (at.join("f"), "diffusion_pytorch_model");
    fs::create_dir(&model).unwrap();
    let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/tiny_ddpm/unet/config.json");
    let config = fs::read_to_string(config).unwrap();
    fs::write(model.join("config.json"), &config).unwrap();
    let says = |wanted: &[&str]| {
        fails(at, &["sample", "f", "--device", "cpu"], 1, wanted);
        fails(at, &["import", "f", "run"], 1, wanted);
        assert!(!at.join("samples.png").exists() && !at.join("run").exists(), "{wanted:?} left something");
    };
    let weights = |ending: &str, bytes: &[u8], wanted: &[&str]| {
        let path = model.join(format!("{stem}.{ending}"));
        fs::write(&path, bytes).unwrap();
        says(&[&[&*format!("{stem}.{ending}")], wanted].concat());
        fs::remove_file(path).unwrap();
    };
    let calls = b"\x80\x02cposix\nsystem\nX\x04\0\0\0true\x85R.";
    weights("bin", &torch_file(calls, &[0; 16]), &["would call posix.system"]);
    let pickle = pickle_of("FloatStorage", 0, &[2, 2], &[2, 1]);
    weights("bin", &zip_file(&[("a/data.pkl", &pickle), ("a/data/0", &[0; 16])], 8), &["is compressed"]);
    let mut shared = torch_file(&pickle, &[0; 16]);
    let second = shared.windows(4).rposition(|w| w == b"PK\x01\x02").unwrap();
    shared[second + 42..second + 46].fill(0);
    weights("bin", &shared, &["share bytes"]);
    let mut damaged = torch_file(&pickle, &[7; 16]);
    let weight = damaged.windows(16).position(|w| w == [7; 16]).unwrap();
    damaged[weight] ^= 1;
    weights("bin", &damaged, &["a/data/0 is damaged: its CRC-32 is"]);
    let tensors = |offsets: [&str; 2]| {
        let one =
            |name: &str, at: &str| format!(r#""{name}":{{"dtype":"F32","shape":[2],"data_offsets":{at}}}"#);
        safetensors_file(&format!("{{{},{}}}", one("a", offsets[0]), one("b", offsets[1])), 16)
    };
    weights("safetensors", &tensors(["[0,8]", "[4,12]"]), &["header"]);
    weights("safetensors", &tensors(["[0,8]", "[8,999999999999]"]), &["header"]);
    let mut enormous = tensors(["[0,8]", "[8,16]"]);
    enormous[..8].copy_from_slice(&(1_u64 << 60).to_le_bytes());
    weights("safetensors", &enormous, &["header would have 1152921504606846976 bytes"]);
    // A name that would write lines of its own on the terminal.
    let name = r#"{"a\nerror: b\u001b[2J":{"dtype":"I8","shape":[1],"data_offsets":[0,1]}}"#;
    weights("safetensors", &safetensors_file(name, 1), &[r"a\nerror: b\u{1b}[2J holds I8"]);
    let absurd = [
        ("\"block_out_channels\": [", "\"block_out_channels\": [1099511627776, ", "blocks for 3 levels"),
        ("\"sample_size\": 8", "\"sample_size\": 4611686018427387904", "image_size is 4611686018427387904"),
        ("\"layers_per_block\": 1", "\"layers_per_block\": 4611686018427387904", "layers_per_block is"),
    ];
    fs::write(model.join(format!("{stem}.safetensors")), tensors(["[0,8]", "[8,16]"])).unwrap();
    for (old, new, wanted) in absurd {
        assert!(config.contains(old), "{config}");
        fs::write(model.join("config.json"), config.replace(old, new)).unwrap();
        says(&[wanted]);
    }
    fs::write(model.join("config.json"), &config).unwrap();
    says(&["not those of its config.json"]);
    #[cfg(unix)]
    {
        use std::os::unix::fs::symlink;
        fs::remove_file(model.join(format!("{stem}.safetensors"))).unwrap();
        symlink(format!("{stem}.safetensors"), model.join(format!("{stem}.safetensors"))).unwrap();
        says(&["cannot read", stem]);
        fs::remove_dir_all(&model).unwrap();
        symlink("f", &model).unwrap();
        says(&["f"]);
    }
}
