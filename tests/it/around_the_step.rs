//! What stands around the step: data on the device, losses that are read late, a start without detours.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use denoir::data::{Batch, Dataset, Loader, Values, Whole};
use denoir::device::Device;
use denoir::error::Result;
use denoir::recipe::{Recipe, SampleEvery};
use denoir::run::{Evaluation, HeldOutLoss, Metrics, Run};
use denoir::train::{Ended, Member, RecipeTrainer, Session, Watch};
use tempfile::TempDir;

use crate::reference::devices;
use crate::training::{advance, small};

/// Pictures of 8 x 8 pixels in memory, as bytes and as the numbers that they stand for.
struct Pictures {
    bytes: Vec<u8>,
    numbers: Vec<f32>,
    as_bytes: bool,
}

impl Pictures {
    fn new(count: usize, as_bytes: bool) -> Self {
        let bytes: Vec<u8> = (0..count * 64).map(|i| (i * i / 7 % 251) as u8).collect();
        let numbers = bytes.iter().map(|&b| denoir::data::picture::from_u8(b)).collect();
        Pictures { bytes, numbers, as_bytes }
    }
}

impl Dataset for Pictures {
    fn len(&self) -> Option<u64> {
        Some(self.bytes.len() as u64 / 64)
    }

    fn shape(&self) -> [usize; 3] {
        [8, 8, 1]
    }

    fn classes(&self) -> &[String] {
        &[]
    }

    fn read(&self, index: u64, out: &mut [f32]) -> Result<u32> {
        out.copy_from_slice(&self.numbers[64 * index as usize..][..64]);
        Ok(index as u32 % 3)
    }

    fn whole(&self) -> Option<Whole<'_>> {
        let labels = (0..self.bytes.len() as u32 / 64).map(|index| index % 3).collect();
        let values = if self.as_bytes { Values::Bytes(&self.bytes) } else { Values::Numbers(&self.numbers) };
        Some(Whole { values, labels })
    }
}

#[test]
fn a_data_set_on_the_device_trains_the_same() {
    let mut recipe = small();
    (recipe.flip, recipe.accumulation) = (true, 2);
    recipe.unet.num_class_embeds = 3;
    for (as_bytes, device) in devices().into_iter().flat_map(|d| [(true, d.clone()), (false, d)]) {
        let data = Arc::new(Pictures::new(7, as_bytes));
        let whole = data.whole().unwrap();
        let mut read = Loader::new(data.clone(), recipe.batch_size, recipe.seed, true, 0).unwrap();
        let mut picked =
            Loader::picking(whole.labels.clone(), 1, recipe.batch_size, recipe.seed, true, 0).unwrap();
        let mut given = RecipeTrainer::new(&recipe, &device, None, None).unwrap();
        let mut resident = RecipeTrainer::with_data(&recipe, &device, None, None, Some(&whole)).unwrap();
        assert!(resident.is_resident() && !given.is_resident());
        for _ in 0..4 {
            let a = advance(&mut given, || read.next().unwrap());
            let b = advance(&mut resident, || picked.next().unwrap());
            let close = (a.loss - b.loss).abs() <= 1e-5 * a.loss;
            assert!(close, "{} and {} on {}", a.loss, b.loss, device.describe());
        }
        // A GPU may round the values of bytes differently than this machine does.
        if matches!(device, Device::Cpu(_)) || !as_bytes {
            let same = given.values().unwrap().sets == resident.values().unwrap().sets;
            assert!(same, "bytes: {as_bytes}, on {}", device.describe());
        }
    }
}

fn batches(recipe: &Recipe, count: usize) -> Vec<Batch> {
    let data = Arc::new(Pictures::new(9, true));
    let mut loader = Loader::new(data, recipe.batch_size, 1, false, 0).unwrap();
    (0..count).map(|_| loader.next().unwrap()).collect()
}

#[test]
fn losses_read_late_are_those_of_their_steps() {
    for accumulation in [1, 2] {
        let mut recipe = small();
        recipe.accumulation = accumulation;
        let batches = batches(&recipe, 6 * accumulation as usize);
        for device in devices() {
            let trainer = || RecipeTrainer::new(&recipe, &device, None, None).unwrap();
            let (mut at_once, mut late) = (trainer(), trainer());
            let (mut one, mut other) = (batches.iter(), batches.iter());
            let wanted: Vec<_> =
                (0..6).map(|_| advance(&mut at_once, || one.next().unwrap().clone())).collect();
            let mut got = Vec::new();
            for step in 1..=6 {
                got.extend(late.step(|| Ok(other.next().unwrap().clone())).unwrap());
                // A GPU is two steps ahead of what is looked at.
                let ahead = if matches!(device, Device::Cpu(_)) { 0 } else { 2.min(step) };
                assert_eq!((got.len(), late.done()), (step - ahead, step as u64), "{}", device.describe());
            }
            while let Some(outcome) = late.collect().unwrap() {
                got.push(outcome);
            }
            let numbers = |all: &[denoir::train::Outcome]| -> Vec<(u64, u32, u32, f64)> {
                all.iter().map(|o| (o.step, o.loss.to_bits(), o.grad_norm.to_bits(), o.lr)).collect()
            };
            assert_eq!(numbers(&wanted), numbers(&got), "on {}", device.describe());
            assert!(at_once.values().unwrap().sets == late.values().unwrap().sets);
        }
    }
}

#[test]
fn a_step_that_diverged_is_named_though_later_ones_ran() {
    for accumulation in [1, 2] {
        let mut recipe = small();
        recipe.accumulation = accumulation;
        let mut batches = batches(&recipe, 5 * accumulation as usize);
        batches[3 * accumulation as usize - 1].images[70] = f32::NAN; // of the third step
        for device in devices() {
            let mut trainer = RecipeTrainer::new(&recipe, &device, None, None).unwrap();
            let mut next = batches.iter();
            let mut good = 0;
            let mut run = || -> Result<()> {
                for _ in 1..=5 {
                    if let Some(outcome) = trainer.step(|| Ok(next.next().unwrap().clone()))? {
                        good = outcome.step;
                    }
                }
                trainer.collect().map(|_| ())
            };
            let error = run().unwrap_err().to_string();
            assert_eq!(good, 2, "on {}", device.describe());
            // Found by running the third batch again.
            let found =
                error.contains("step 3: the loss became NaN; the first bad tensor is the result of noising");
            assert!(found, "on {}: {error}", device.describe());
        }
    }
}

/// A folder of 12 digits as MNIST comes.
fn idx_folder(at: &Path) {
    let header = |dims: &[u32]| -> Vec<u8> {
        let kind = 0x0800 | dims.len() as u32;
        std::iter::once(&kind).chain(dims).flat_map(|word| word.to_be_bytes()).collect()
    };
    let pictures = Pictures::new(12, true).bytes;
    for part in ["train", "t10k"] {
        let images = [header(&[12, 8, 8]), pictures.clone()].concat();
        fs::write(at.join(format!("{part}-images-idx3-ubyte")), images).unwrap();
        let labels = [header(&[12]), (0..12).map(|i| i % 10).collect()].concat();
        fs::write(at.join(format!("{part}-labels-idx1-ubyte")), labels).unwrap();
    }
}

/// What a session told, in order.
#[derive(Default)]
struct Told(Vec<String>);

impl Watch for Told {
    fn step(&mut self, metrics: &Metrics) {
        self.0.push(format!("step {}", metrics.step));
    }
    fn doing(&mut self, what: Option<&str>) {
        self.0.extend(what.map(str::to_owned));
    }
    fn evaluated(&mut self, _: &Evaluation) {
        self.0.push("evaluated".to_owned());
    }

    fn held_out_loss(&mut self, _: &HeldOutLoss) {
        self.0.push("evaluated".to_owned());
    }
    fn message(&mut self, line: &str) {
        self.0.push(line.to_owned());
    }
    fn interrupted(&self) -> bool {
        false
    }
}

#[test]
fn a_session_tells_every_step_in_order_and_before_its_checkpoint() {
    let folder = TempDir::new().unwrap();
    idx_folder(folder.path());
    let mut recipe = small();
    recipe.data = format!("mnist:{}", folder.path().display());
    (recipe.flip, recipe.steps, recipe.checkpoint_every, recipe.sample_count) = (true, 7, 3, 1);
    recipe.sample_every = SampleEvery::Steps(0);
    let mut losses: Vec<Vec<f32>> = Vec::new();
    for (number, device) in devices().iter().enumerate() {
        let out = folder.path().join(format!("run-{number}"));
        let started = Session::start(recipe.clone(), device, Some(&out), None, None, None, &mut |_, _| ());
        let Member::Leader(mut session) = started.unwrap() else { panic!("no rank of several") };
        // The CPU device reads the pictures where they are, a GPU gets a copy of them.
        assert_eq!(session.trainer().is_resident(), matches!(device, Device::Gpu(_)));
        let mut told = Told::default();
        assert_eq!(session.train(&mut told).unwrap(), Ended::Done);
        let at = |wanted: &str| told.0.iter().position(|line| line.starts_with(wanted));
        let order =
            ["step 1", "step 2", "step 3", "saving", "step 4", "step 5", "step 6", "step 7", "sampling"];
        let places: Vec<usize> = order.iter().map(|what| at(what).unwrap()).collect();
        assert!(places.is_sorted(), "{:?} on {}", told.0, device.describe());
        // Nothing but the step itself comes before the first one.
        assert_eq!(places[0], 0, "{:?}", told.0);
        assert!(at("forward process").is_some());
        let metrics = Run::open(&out).unwrap().metrics().unwrap();
        assert_eq!(metrics.iter().map(|m| m.step).collect::<Vec<_>>(), (1..=7).collect::<Vec<_>>());
        losses.push(metrics.iter().map(|m| m.loss).collect());
        let times = session.times();
        assert!(times.first_step.is_some_and(|[began, ended]| began < ended));
        assert!(
            times.steps > times.log && !times.pictures.is_zero() && !times.checkpoints.is_zero(),
            "{times:?}"
        );
    }
    for other in &losses[1..] {
        let close = losses[0].iter().zip(other).all(|(a, b)| (a - b).abs() <= 2e-4 * a);
        assert!(close, "{losses:?}");
    }
}
