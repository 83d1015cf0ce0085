//! `scheduler_config.json` of the diffusers library, read and written.
//!
//! A missing key takes the default of its class. Keys that begin with `_` are about the file. A key of the
//! family that the class has no use for is passed over, as the library does: it keeps them when a file is
//! turned from one class into another. Every other key, and every value that is not supported, is refused
//! by name.

mod classes;
mod read;
mod write;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

pub use classes::names;
use classes::*;
use read::Reader;

use super::{Process, Scheduler};
use crate::diffusion::schedule::Variance;
use crate::error::{Error, Result};

/// The keys of a `scheduler_config.json`, those of other classes among them. A null is false where the key
/// is a flag, and left out where the library's default is null or no class has the key.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Keys(Map<String, Value>);

/// The process that a model learned and the clipping of its predictions: the part of a scheduler that every
/// sampler of the model shares.
#[derive(Clone, Debug, PartialEq)]
pub struct Learned {
    /// Schedule and prediction.
    pub process: Process,
    /// Of ancestral sampling.
    pub variance: Variance,
    /// Bound of the predicted x0; 0: none. Some classes have no such bound.
    pub clip: f64,
}

/// The keys that [`Learned`] is made of.
#[rustfmt::skip]
const PROCESS: [&str; 10] = [TIMESTEPS, "beta_start", "beta_end", "beta_schedule", "trained_betas",
    "prediction_type", ZERO_SNR, VARIANCE, CLIP, RANGE];

/// Version of the diffusers library whose names and defaults denoir has.
pub(crate) const LIBRARY_VERSION: &str = "0.42.1";

/// Indented JSON, as the library writes it.
pub(crate) fn pretty(value: &impl Serialize) -> String {
    serde_json::to_string_pretty(value).unwrap_or_else(|e| unreachable!("plain values: {e}")) + "\n"
}

/// A key that the first versions of the library wrote, and that no version reads now.
const OBSOLETE: &str = "tensor_format";

/// Whether any class has the key.
fn is_known(key: &str) -> bool {
    key == CLASS || COMMON.contains(&key) || CLASSES.iter().any(|(_, own)| own.contains(&key))
}

impl Keys {
    /// The keys in the text of a file.
    ///
    /// # Errors
    /// When it is no JSON object, or a key of an older release has no meaning.
    pub fn parse(json: &str) -> Result<Self> {
        // Python writes infinity, which is no JSON. As the least half log-SNR it is the default.
        let json = json.replace(": -Infinity", ": \"-inf\"");
        let map: Map<String, Value> = serde_json::from_str(&json)
            .map_err(|e| Error::new("it is no JSON object").hint("check the file").caused_by(e))?;
        let mut keys = Keys::default();
        keys.extend(Value::Object(map));
        keys.0.retain(|key, _| key == CLASS || !key.starts_with('_'));
        keys.0.remove(OBSOLETE);
        keys.modernise()?;
        for (_, value) in keys.0.iter_mut().filter(|(key, _)| FLAGS.contains(&key.as_str())) {
            if value.is_null() {
                *value = json!(false);
            }
        }
        // Of a key that no class has, as timestep_values of the first versions, null says nothing.
        keys.0.retain(|key, value| !value.is_null() || is_known(key) && !NULLABLE.contains(&key.as_str()));
        if keys.0.get(LAMBDA).is_some_and(|value| *value == json!("-inf")) {
            keys.0.remove(LAMBDA);
        }
        Ok(keys)
    }

    /// Puts what older releases called otherwise into today's keys.
    fn modernise(&mut self) -> Result<()> {
        // Versions before 0.10; later ones ignore it, and then take false for true.
        let prediction = match self.0.remove("predict_epsilon") {
            None | Some(Value::Null) => None,
            Some(Value::Bool(epsilon)) => Some(json!(if epsilon { "epsilon" } else { "sample" })),
            Some(other) => {
                return Err(Error::new(format!("predict_epsilon = {other}")).hint("it must be true or false"));
            }
        };
        if let Some(prediction) = prediction
            && let Some(said) = self.0.insert("prediction_type".to_owned(), prediction.clone())
            && said != prediction
        {
            let message = format!("predict_epsilon says {prediction} and prediction_type {said}");
            return Err(Error::new(message).hint("remove the one that is wrong"));
        }
        // Of this class alone, where it overrules its new name.
        if self.class() == Some("DDIMInverseScheduler")
            && let Some(value) = self.0.remove("set_alpha_to_zero").filter(|value| !value.is_null())
        {
            self.0.insert(ONE.to_owned(), value);
        }
        Ok(())
    }

    /// The text of a file.
    pub fn text(&self) -> String {
        let mut map = self.0.clone();
        map.insert("_diffusers_version".to_owned(), json!(LIBRARY_VERSION));
        pretty(&map)
    }

    /// True without keys.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn extend(&mut self, more: Value) {
        if let Value::Object(more) = more {
            self.0.extend(more);
        }
    }

    /// The class, if one is named.
    pub fn class(&self) -> Option<&str> {
        self.0.get(CLASS)?.as_str()
    }

    /// The same keys as the pipelines of Stable Diffusion change them: `clips` where they leave `clip_sample`
    /// as it is, as the one for inpainting does.
    #[must_use]
    pub(crate) fn of_text_pipeline(mut self, clips: bool) -> Self {
        self.extend(json!({"steps_offset": 1}));
        if clips {
            self.extend(json!({SKIP: true}));
        } else {
            self.extend(json!({CLIP: false}));
        }
        self
    }

    /// The sampler, by its name on the command line where it has one.
    pub(crate) fn sampler(&self) -> String {
        let class = self.class().unwrap_or_default();
        name_of(class, &self.0).unwrap_or(class).to_owned()
    }

    /// The same keys read by another class.
    #[must_use]
    pub fn with_class(&self, class: &str) -> Self {
        let mut keys = self.clone();
        keys.0.insert(CLASS.to_owned(), json!(class));
        keys
    }

    /// The same keys read by the class that a name of the command line stands for, as the library turns one
    /// scheduler into another: what they say goes on to hold.
    pub(crate) fn with_sampler(&self, name: &str) -> Result<Self> {
        let (class, more) = sampler_named(name)?;
        let mut keys = self.with_class(class);
        keys.extend(more);
        Ok(keys)
    }

    fn reader(&self) -> Result<Reader<'_>> {
        let named = self.class().unwrap_or_default();
        if let Some((class, own)) = CLASSES.iter().find(|(class, _)| *class == named) {
            return Ok(Reader { class, own, map: &self.0 });
        }
        let names = CLASSES.map(|(class, _)| class).join(", ");
        Err(Error::new(format!("{CLASS} is {named:?}")).hint(format!("denoir has {names}")))
    }

    /// The sampler that the keys describe.
    ///
    /// # Errors
    /// Names the key that is unknown, of the wrong kind, or asks for what denoir does not do.
    pub fn scheduler(&self) -> Result<Scheduler> {
        let reader = self.reader()?;
        for (key, value) in &self.0 {
            if !is_known(key) {
                return Err(reader.refuse(key, "no sampler has such a key"));
            }
            // The library passes over this too, but then the noise is not what the file says.
            if key == ZERO_SNR && !reader.own.contains(&ZERO_SNR) && *value == json!(true) {
                return Err(reader.refuse(key, "this class has no such schedule: choose ddim or euler"));
            }
        }
        reader.scheduler()
    }

    /// The process that the keys describe, those of other classes too.
    ///
    /// # Errors
    /// As [`Keys::scheduler`].
    pub fn learned(&self) -> Result<Learned> {
        let scheduler = self.scheduler()?;
        let reader = Reader { own: &[VARIANCE, CLIP, RANGE], ..self.reader()? };
        Ok(Learned {
            process: scheduler.process,
            variance: reader.variance()?,
            // Of the classes that have the key, only Heun's is false by default.
            clip: reader.bound(reader.class != "HeunDiscreteScheduler")?,
        })
    }

    /// The keys that no [`Learned`] holds.
    #[must_use]
    pub(crate) fn without_process(&self) -> Self {
        let mut keys = self.clone();
        keys.0.retain(|key, _| !PROCESS.contains(&key.as_str()));
        keys
    }

    /// The keys of the process that these leave to their class, whose defaults differ between classes.
    pub(crate) fn class_defaults(&self) -> Vec<String> {
        let unsaid = CLASS_DEFAULTS.iter().filter(|key| !self.0.contains_key(**key));
        unsaid.map(|key| (*key).to_owned()).collect()
    }

    /// The same keys without these.
    #[must_use]
    pub(crate) fn without(mut self, keys: &[String]) -> Self {
        self.0.retain(|key, _| !keys.contains(key));
        self
    }

    /// The first key that a [`Learned`] would hold.
    pub(crate) fn of_process(&self) -> Option<&str> {
        self.0.keys().map(String::as_str).find(|key| PROCESS.contains(key))
    }

    /// These keys and those of a process.
    #[must_use]
    pub(crate) fn with_process(&self, Learned { process, variance, clip }: &Learned) -> Self {
        let mut keys = self.without_process();
        keys.extend(process.keys());
        keys.extend(json!({
            VARIANCE: variance,
            CLIP: *clip > 0.0,
            RANGE: if *clip > 0.0 { *clip } else { 1.0 },
        }));
        keys
    }

    /// All keys of the class, missing ones with their defaults, and of those of other classes the ones that
    /// would matter if the sampler were turned into another: so another reads the same. For the same reason
    /// a missing key stays missing where its default differs between classes.
    ///
    /// # Errors
    /// As [`Keys::scheduler`].
    pub fn complete(&self) -> Result<Self> {
        let mut keys = self.scheduler()?.keys();
        let differs = |key: &str| CLASS_DEFAULTS.contains(&key) || ["timestep_spacing", ONE].contains(&key);
        keys.0.retain(|key, _| self.0.contains_key(key) || !differs(key));
        // A key that the class does not use is left out at the library's default.
        let is_default = |key: &str, value: &Value| match key {
            CLIP => *value == json!(true),
            RANGE => *value == json!(1.0),
            VARIANCE => *value == json!("fixed_small"),
            ZERO_SNR => *value == json!(false),
            _ => false,
        };
        for (key, value) in &self.0 {
            if keys.0.contains_key(key) || !is_default(key, value) {
                keys.0.insert(key.clone(), value.clone());
            }
        }
        Ok(keys)
    }
}

impl Scheduler {
    /// The sampler that the text of a `scheduler_config.json` describes.
    ///
    /// # Errors
    /// As [`Keys::parse`] and [`Keys::scheduler`].
    pub fn from_config(json: &str) -> Result<Self> {
        Keys::parse(json)?.scheduler()
    }

    /// The text of a `scheduler_config.json` that the diffusers library reads as this sampler.
    pub fn to_config(&self) -> String {
        self.keys().text()
    }

    /// The same process with another sampler, by its name on the command line (`ddim`, `dpmpp-2m`, ...), and
    /// its default spacing.
    ///
    /// # Errors
    /// When no sampler is called so: lists them; or it has not the schedule or prediction of this one.
    pub fn named(&self, name: &str) -> Result<Self> {
        let mut keys = self.keys();
        keys.0.remove("timestep_spacing");
        Ok(Scheduler { precision: self.precision, ..keys.with_sampler(name)?.scheduler()? })
    }
}
