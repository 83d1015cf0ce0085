//! A trained classifier: classes of images, and the features that sets of images are compared by.

use std::cell::RefCell;
use std::path::Path;
use std::rc::Rc;

use crate::checkpoint::Loaded;
use crate::device::{Buffer, Device};
use crate::error::{Error, Result, quoted};
use crate::models::classifier::{Logits, classifier};
use crate::nn::{self, Flat, Params, Scope};
use crate::program::{Plan, Program, Sharing, halves};
use crate::recipe::{Recipe, System, params_of};
use crate::run::Run;
use crate::tape::{Tape, Tensor};

/// Images that are classified at a time. It does not change the results.
const BATCH: usize = 64;

/// What a classifier makes of N images.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Classified {
    /// Its last hidden layer, `[N, features]`.
    pub features: Vec<f32>,
    /// Of each class, `[N, classes]`.
    pub probabilities: Vec<f32>,
}

/// A trained classifier on a device.
pub struct Classifier {
    recipe: Recipe,
    fingerprint: String,
    params: Rc<RefCell<Params>>,
    weights: Buffer,
    record: Box<Logits>,
    program: Program,
    features: Tensor,
    logits: Tensor,
    batch: usize,
}

impl Classifier {
    /// Opens a run of a classifier, or one of its checkpoints, with the moving average of its weights.
    ///
    /// # Errors
    /// When it is damaged, is no classifier, or does not fit into memory.
    pub fn open(path: &Path, device: &Device) -> Result<Classifier> {
        let (loaded, _) = Run::checkpoint_of(path)?;
        if loaded.recipe.system != System::Classifier {
            return Err(Error::new(format!("{} is no classifier", path.display())).hint(format!(
                "{} is not what --classifier takes: train one on the same images with `denoir train \
                 digits-classifier --data SPEC`",
                quoted(path)
            )));
        }
        Classifier::of(&loaded, device)
    }

    fn of(loaded: &Loaded, device: &Device) -> Result<Classifier> {
        let recipe = loaded.recipe.clone();
        recipe.validate().map_err(Error::in_a_file)?;
        let params = params_of(&recipe);
        let values = Flat::from(loaded.set("ema", &params.borrow())?);
        let fingerprint = values.fingerprint();
        let weights = values.upload(device, "classifier", &mut params.borrow_mut())?;
        let (side, channels) = (recipe.image_size, recipe.unet.in_channels);
        let record = |batch: usize| {
            let tape = Tape::new();
            let (x, t) = (tape.stored("x", 0, [batch, side, side, channels]), tape.stored("t", 0, [batch]));
            let results = classifier(&recipe.classifier, &recipe.unet, &Scope::new(&tape, &params), &x, &t);
            (Plan::new(&tape, &[&results[0], &results[1]], device), (batch, results))
        };
        let (plan, (batch, [features, logits])) = Plan::of_batch(device, halves(BATCH), record);
        let program = Program::compile(&plan, device, &[(nn::STORE, &weights)], Sharing::Shared)?;
        program.write("t", &vec![0.0_f32; batch])?;
        let (config, unet) = (recipe.classifier.clone(), recipe.unet.clone());
        let record: Box<Logits> = Box::new(move |scope, x, t| {
            let [_, logits] = classifier(&config, &unet, scope, x, t);
            logits
        });
        Ok(Classifier { recipe, fingerprint, params, weights, record, program, features, logits, batch })
    }

    /// What records its logits, the layout of its parameters, and these.
    pub(crate) fn parts(&self) -> (&Logits, &Rc<RefCell<Params>>, &Buffer) {
        (&*self.record, &self.params, &self.weights)
    }

    /// Hash of its weights: distances of different classifiers cannot be compared.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// The recipe that it was trained by.
    pub fn recipe(&self) -> &Recipe {
        &self.recipe
    }

    /// `[H, W, C]` of the images.
    pub fn image(&self) -> [usize; 3] {
        [self.recipe.image_size, self.recipe.image_size, self.recipe.unet.in_channels]
    }

    /// Number of classes.
    pub fn classes(&self) -> usize {
        self.recipe.classifier.classes
    }

    /// Classifies images `[N, H, W, C]` in [-1, 1].
    ///
    /// # Errors
    /// When the driver reports an error.
    ///
    /// # Panics
    /// When `images` is not a whole number of images.
    pub fn classify(&mut self, images: &[f32]) -> Result<Classified> {
        let size: usize = self.image().iter().product();
        assert!(images.len().is_multiple_of(size), "classify: images of {:?}", self.image());
        let (classes, width) = (self.classes(), self.recipe.classifier.features);
        let mut all = Classified::default();
        for part in images.chunks(self.batch * size) {
            let count = part.len() / size;
            let mut x = part.to_vec();
            x.resize(self.batch * size, 0.0);
            self.program.write("x", &x)?;
            self.program.run()?;
            all.features.extend(&self.program.read(&self.features)?[..count * width]);
            let logits = self.program.read(&self.logits)?;
            logits[..count * classes].chunks(classes).for_each(|x| softmax(x, &mut all.probabilities));
        }
        Ok(all)
    }
}

/// Appends the probabilities of a row of logits.
fn softmax(logits: &[f32], out: &mut Vec<f32>) {
    let top = logits.iter().copied().fold(f32::MIN, f32::max);
    let total: f32 = logits.iter().map(|x| (x - top).exp()).sum();
    out.extend(logits.iter().map(|x| (x - top).exp() / total));
}
