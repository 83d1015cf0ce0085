//! Which variants the launches of a program run as, and what tuning gained.

use serde::Serialize;

use crate::device::gpu::tuning::Refusal;
use crate::program::CompiledLaunch;

/// Launches of one name and shape class.
#[derive(Clone, Debug, Serialize)]
pub struct VariantRow {
    pub name: String,
    pub shape_class: String,
    /// Launches in a step.
    pub calls: usize,
    pub variant: String,
    /// Of one launch, when it was tuned; `None`, as all below, where it was not.
    pub ms: Option<f64>,
    /// The variant that runs untuned.
    pub default: Option<String>,
    pub default_ms: Option<f64>,
    /// How much less time the variant takes than the default.
    pub gain_percent: Option<f64>,
    /// Variants that may not run, because they do not compile or compute something else.
    pub refused: Vec<Refusal>,
}

/// A row for each name and class that leaves a choice, in order of their first launches.
pub fn variants(launches: &[CompiledLaunch]) -> Vec<VariantRow> {
    let mut rows: Vec<VariantRow> = Vec::new();
    for launch in launches {
        let Some(picked) = launch.picked.as_ref().filter(|picked| picked.of > 1) else { continue };
        let same = |row: &&mut VariantRow| row.name == launch.name && row.shape_class == picked.shape_class;
        if let Some(row) = rows.iter_mut().find(same) {
            row.calls += 1;
            continue;
        }
        let choice = picked.choice.as_ref();
        rows.push(VariantRow {
            name: launch.name.to_owned(),
            shape_class: picked.shape_class.clone(),
            calls: 1,
            variant: picked.variant.name.clone(),
            ms: choice.map(|c| c.ms),
            default: choice.map(|c| c.default.clone()),
            default_ms: choice.map(|c| c.default_ms),
            gain_percent: choice.map(|c| (1.0 - c.ms / c.default_ms) * 100.0),
            refused: choice.map(|c| c.refused.clone()).unwrap_or_default(),
        });
    }
    rows
}
