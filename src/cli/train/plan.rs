//! The plan of a training step, in words.

use crate::cli::{table, thousands};
use crate::device::{Device, size};
use crate::recipe::{Recipe, SampleEvery};
use crate::train::{DryRun, PictureCost};

/// What pictures cost beside the training; `of`: the steps of training that are left, where that is known.
pub(super) fn describe_pictures(cost: &PictureCost, recipe: &Recipe, of: Option<u64>) -> String {
    let (samples, steps) = (recipe.sample_count, thousands(recipe.sample_steps));
    let [worth, each] = [cost.steps, cost.steps / cost.grids as f64].map(|n| thousands(n.ceil() as usize));
    let Some(of) = of else {
        return format!(
            "{samples} samples of {steps} steps, each time the operations of {each} training steps"
        );
    };
    let when = if cost.grids == 1 {
        "at the end".to_owned()
    } else {
        format!("{} times", thousands(cost.grids as usize))
    };
    let share = match cost.steps / of.max(1) as f64 {
        _ if of == 0 => String::new(),
        share if share < 1.0 => format!(" ({:.0} % of the {} to do)", 100.0 * share, thousands(of as usize)),
        share if share < 10.0 => format!(" ({share:.1} times the {} to do)", thousands(of as usize)),
        share => format!(" ({} times the {} to do)", thousands(share as usize), thousands(of as usize)),
    };
    format!("{samples} samples of {steps} steps {when}: the operations of {worth} training steps{share}")
}

/// Why pictures cost nothing that is worth telling.
fn no_cost(recipe: &Recipe) -> String {
    match recipe.sample_every {
        SampleEvery::Never => "none".to_owned(),
        SampleEvery::Steps(_) => "one pass through the model each time".to_owned(),
    }
}

/// A table for people.
pub(super) fn describe(plan: &DryRun, recipe: &Recipe, device: &Device) -> String {
    let (shared, separate) = (size(plan.activation_bytes_shared), size(plan.activation_bytes_separate));
    let halves = plan
        .activation_bytes_halved
        .map_or_else(String::new, |bytes| format!("; {} with --precision f16", size(bytes)));
    let saved = size(plan.activation_bytes_kept.saturating_sub(plan.activation_bytes_shared));
    let (repeated, [operations, bytes]) = (thousands(plan.repeated), plan.repeated_percent);
    let state = plan.parameter_bytes + plan.gradient_bytes + plan.optimiser_bytes;
    let copied = size(plan.parameter_bytes + plan.optimiser_bytes);
    let limit = match device {
        Device::Gpu(gpu) => format!("{} allows {}", gpu.name(), size(gpu.max_binding())),
        Device::Cpu(_) => "the CPU device has no limit".to_owned(),
    };
    let pictures = plan.pictures.as_ref().map(|cost| {
        // How many steps passes through the data are is not known before it is opened.
        describe_pictures(cost, recipe, (recipe.epochs == 0).then_some(cost.of_steps))
    });
    let frozen = match plan.frozen_bytes {
        0 => "none".to_owned(),
        bytes => {
            format!("at most {} (half, where files have 16 bits and the device keeps them)", size(bytes))
        }
    };
    let all = size(state + plan.frozen_bytes + plan.activation_bytes_shared);
    let cost = format!("{operations:.0} % more operations and {bytes:.0} % more bytes moved");
    table(
        28,
        &[
            ("recipe", recipe.name.clone()),
            ("device", device.describe()),
            ("parameters", thousands(plan.parameters)),
            ("launches per step", thousands(plan.launches)),
            ("parameter bytes", size(plan.parameter_bytes)),
            ("gradient bytes", size(plan.gradient_bytes)),
            ("optimiser bytes", format!("{} (two moments and the EMA copy)", size(plan.optimiser_bytes))),
            ("frozen weights", frozen),
            ("activation bytes", format!("{shared} with sharing, {separate} without{halves}")),
            ("recomputed", format!("{repeated} launches, {cost}, which saves {saved}")),
            ("in all", if plan.frozen_bytes > 0 { format!("at most {all}") } else { all }),
            ("while saving", format!("{copied} more (a copy of parameters, moments and EMA)")),
            ("largest binding", format!("{}, {limit}", size(plan.largest_binding))),
            ("pictures", pictures.unwrap_or_else(|| no_cost(recipe))),
        ],
    )
}
