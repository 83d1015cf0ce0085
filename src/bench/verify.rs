//! The checks that a workload passes before anything of it is timed.

use super::measure::below;
use super::subject::{Kind, Subject};
use super::workload::Workload;
use crate::device::Device;
use crate::error::{Error, Result};

/// Steps in which the loss must fall.
const FALLING: usize = 4;
/// Steps that a second run repeats.
const REPEATED: usize = 2;
/// How far a GPU may be from the CPU device, as a fraction: of the loss, and of the norm of samples.
const LOSS_TOLERANCE: f64 = 1e-3;
const SAMPLE_TOLERANCE: f64 = 1e-4;

/// A subject with correct results: they are finite, a second run gives the same bits, the loss of the same
/// images and noise falls from step to step, and a GPU agrees with the CPU device. `progress` receives each
/// activity.
///
/// # Errors
/// When any of that is not so, memory is too small, or the driver reports an error.
pub fn verified(
    workload: &Workload,
    kind: Kind,
    device: &Device,
    progress: &mut dyn FnMut(&str),
) -> Result<Subject> {
    let wrong = |what: String| {
        Err(Error::new(format!("{} on {}: {what}", workload.name, device.describe()))
            .hint("nothing was timed; please report it with the command and `denoir devices`"))
    };
    progress("checking");
    let mut subject = Subject::new(workload, kind, device)?;
    let first = subject.results(FALLING)?;
    if kind == Kind::Step {
        if !first.windows(2).all(|pair| pair[1] < pair[0]) {
            return wrong(format!("the loss of the same images and noise does not fall: {first:?}"));
        }
        // One after the other: both at once would take twice the memory.
        drop(subject);
        subject = Subject::new(workload, kind, device)?;
    }
    let again = subject.results(REPEATED)?;
    if let Some(bad) = first.iter().position(|v| !v.is_finite()) {
        return wrong(format!("number {bad} of the results is {}", first[bad]));
    }
    if first.iter().zip(&again).any(|(a, b)| a.to_bits() != b.to_bits()) {
        return wrong("a second run differs from the first".to_owned());
    }
    if let Device::Gpu(_) = device {
        progress("comparing with the CPU device");
        let small = workload.for_comparison();
        let results = |device: &Device| Subject::new(&small, kind, device)?.results(REPEATED);
        let (ours, theirs) = (results(device)?, results(&Device::open("cpu")?)?);
        let tolerance = if kind == Kind::Step { LOSS_TOLERANCE } else { SAMPLE_TOLERANCE };
        let err = distance(&ours, &theirs);
        if !below(err, tolerance) {
            return wrong(format!("the results are off by {err:.1e} from those of the CPU device"));
        }
    }
    Ok(subject)
}

/// Norm of the difference over norm.
fn distance(ours: &[f32], theirs: &[f32]) -> f64 {
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    let differences = ours.iter().zip(theirs).map(|(a, b)| f64::from(*a) - f64::from(*b));
    norm(&mut { differences }) / norm(&mut theirs.iter().map(|v| f64::from(*v)))
}
