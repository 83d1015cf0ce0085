//! Measurements: fixed workloads, checked before they are timed, so that their numbers can be compared.
//!
//! A workload is a model, a batch size and the numbers that it runs on; what is timed of it is the step that
//! `denoir train` records and the reverse step that `denoir sample` records, not copies of them.

mod given;
mod ladder;
mod measure;
mod memory;
mod ops;
mod profile;
mod roofline;
mod subject;
mod trace;
mod variants;
mod verify;
mod workload;

pub use given::compute;
pub use ladder::{Ladder, ladder};
pub use measure::{OpsReport, Report, Times, numbers, time};
pub use memory::Footprint;
pub use ops::{Direction, OpReport, time_ops};
pub use profile::{Profile, Row};
pub use roofline::{Bound, Ceilings, Effort, KERNELS};
pub use subject::{Kind, Subject};
pub use trace::write_trace;
pub use variants::{VariantRow, variants};
pub use verify::verified;
pub use workload::{Workload, find, names};
