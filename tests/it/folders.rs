//! Folders of the diffusers library, read as a user's are, and what PyTorch answers in f64: forward passes of
//! every form of UNet2DModel, AutoencoderKL and VQModel. `tools/reference/folders.py` makes them.

use std::path::{Path, PathBuf};

use denoir::codec::Codec;
use denoir::device::Device;
use denoir::diffusers::{self, Component};
use denoir::models::unet::{Class, unet};
use denoir::nn::{self, Scope};
use denoir::program::{Plan, Program, Sharing};
use denoir::recipe::{System, params_of};
use denoir::tape::Tape;

use crate::reference::{Golden, Judge, devices, relative, to_f32};

fn answer_of_unet(component: &Component, golden: &Golden, device: &Device, judge: &mut Judge) {
    let (shape, x) = golden.nhwc("in/x");
    let config = &component.recipe.unet;
    let (tape, params) = (Tape::new(), params_of(&component.recipe));
    let (x_in, t) = (tape.stored("x", 0, shape), tape.stored("t", 0, [shape[0]]));
    let labels = config.class().tensor(&tape, shape[0]);
    let y = unet(config, &Scope::new(&tape, &params), &x_in, &t, labels.as_ref());
    let plan = Plan::new(&tape, &[&y], device);
    let mut program = Program::compile(&plan, device, &[], Sharing::Shared).unwrap();
    nn::write_parameters(&program, &component.weights).unwrap();
    program.write("x", &to_f32(&x)).unwrap();
    program.write("t", &golden.f32("in/t")).unwrap();
    match config.class() {
        Class::None => {}
        Class::Number(_) => {
            let words: Vec<u32> = golden.get("in/labels").iter().map(|&v| v as u32).collect();
            program.write("labels", &words).unwrap();
        }
        Class::Value | Class::Embedding(_) => program.write("labels", &golden.f32("in/labels")).unwrap(),
    }
    program.run().unwrap();
    let err = relative(&program.read(&y).unwrap(), &golden.nhwc("f64/out").1);
    judge.error("out", err, judge.error_of(&["out"]));
}

/// Both halves, each of exact input: the decoder gets the exact means.
fn answer_of_vae(component: &Component, golden: &Golden, device: &Device, judge: &mut Judge) {
    let codec = Codec::of_component(component, device).unwrap();
    let encoded = codec.encode(&to_f32(&golden.nhwc("in/x").1)).unwrap();
    let mean = golden.nhwc("f64/mean").1;
    let mut results = vec![("mean", encoded.mean), ("out", codec.decode(&to_f32(&mean)).unwrap())];
    results.extend(encoded.log_var.map(|log_var| ("log_var", log_var)));
    assert_eq!(results.len(), 2 + usize::from(golden.tensors.contains_key("f64/log_var")));
    for (what, got) in results {
        let err = relative(&got, &golden.nhwc(&format!("f64/{what}")).1);
        judge.error(what, err, judge.error_of(&[what]));
    }
}

/// Checks every folder in a folder, and says how many those were.
fn check_all(parent: &Path, devices: &[Device]) -> usize {
    let mut folders: Vec<PathBuf> = std::fs::read_dir(parent).unwrap().map(|e| e.unwrap().path()).collect();
    folders.sort();
    for folder in &folders {
        let golden = Golden::read(&folder.join("answer.safetensors"));
        let name = folder.file_name().unwrap().to_string_lossy();
        let opened = diffusers::open(folder).unwrap_or_else(|e| panic!("{name}: {e:?}"));
        assert!(opened.remarks.is_empty(), "{name}: {:?}", opened.remarks);
        for device in devices {
            let mut judge = Judge::new(&name, &golden, device);
            match opened.model.recipe.system {
                System::Vae => answer_of_vae(&opened.model, &golden, device, &mut judge),
                _ => answer_of_unet(&opened.model, &golden, device, &mut judge),
            }
            judge.verdict();
        }
    }
    folders.len()
}

#[test]
fn folders_answer_as_in_f64() {
    let parent = crate::place::root().join("tests/golden/folders");
    assert!(check_all(&parent, &devices()) >= 5);
}

/// For many random folders, which are not committed: `DENOIR_FOLDERS=DIR cargo test many_folders --
/// --ignored --nocapture`, with what `tools/reference/folders.py DIR` wrote.
#[test]
#[ignore = "needs folders of tools/reference/folders.py"]
fn many_folders() {
    let parent = std::env::var_os("DENOIR_FOLDERS").expect("DENOIR_FOLDERS names the folder");
    let cpu = Device::open("cpu").unwrap();
    eprintln!("{} folders", check_all(Path::new(&parent), &[cpu]));
}
