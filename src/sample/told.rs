//! What a sampler's model is told of each sample: its class, its text, its condition.

use super::Sampler;
use crate::error::Result;
use crate::tensor::DType;

impl Sampler {
    /// Sets the class of each sample, for models with classes.
    pub(crate) fn set_labels(&self, labels: &[u32]) -> Result<()> {
        let told = self.guided || self.labels.is_some();
        assert!(!told || labels.len() == self.batch, "a label for each sample");
        if self.guided {
            self.step.write("classes", labels)?;
        }
        let Some(element) = self.labels else { return Ok(()) };
        let mut labels = labels.to_vec();
        if let Some(null) = self.null.filter(|_| self.guidance.scale == 0.0) {
            labels.fill(null);
        }
        // The samples once more, without a class, where the program guides by classes.
        if self.seen > self.batch {
            labels.extend(labels.clone().into_iter().map(|label| self.null.unwrap_or(label)));
        }
        match element {
            DType::U32 => self.step.write("labels", &labels),
            _ => self.step.write("labels", &labels.iter().map(|&l| l as f32).collect::<Vec<f32>>()),
        }
    }

    /// Sets the texts of the samples from number `first` on.
    pub(super) fn set_texts(&self, first: usize) -> Result<()> {
        let Some(texts) = &self.texts else { return Ok(()) };
        let told = texts.told(first, self.batch, self.seen > self.batch, self.guidance.scale);
        self.step.write("text", &told)
    }

    /// Sets the conditions of the samples from number `first` on.
    pub(super) fn set_condition(&self, first: usize) -> Result<()> {
        let Some(condition) = &self.condition else { return Ok(()) };
        let [_, h, w, _] = *self.x.dims() else { unreachable!("samples are [N, H, W, C]") };
        let mut values = condition.of_samples(first, self.batch, h * w);
        if condition.dropped && self.guidance.scale == 0.0 {
            values.fill(0.0);
        }
        // The samples once more, without a condition, where the program guides by conditions.
        if self.seen > self.batch {
            values.extend(values.clone().into_iter().map(|v| if condition.dropped { 0.0 } else { v }));
        }
        self.step.write("condition", &values)
    }
}
