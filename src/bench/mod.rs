//! Measurements: fixed workloads, checked before they are timed, so that their numbers can be compared.
//!
//! A workload is a model, a batch size and the numbers that it runs on; what is timed of it is the step that
//! `denoir train` records and the reverse step that `denoir sample` records, not copies of them.

mod check;
mod ladder;
mod measure;
mod ops;
mod profile;
mod report;
mod roofline;
mod subject;
mod trace;
mod variants;
mod verify;
mod workload;

pub(crate) use check::compute;
pub(crate) use ladder::ladder;
pub(crate) use measure::{Times, time};
pub use ops::{Direction, Op, ops};
pub(crate) use ops::{OpsReport, time_ops};
pub(crate) use profile::{Profile, Row};
pub(crate) use report::{Footprint, Report};
pub use roofline::KERNELS;
pub(crate) use roofline::{Bound, Ceilings, Effort};
pub use subject::{Kind, Subject};
pub(crate) use trace::write_trace;
pub(crate) use variants::{VariantRow, variants};
pub use verify::verified;
pub use workload::{Workload, find};
pub(crate) use workload::{find_or_run, names, run_of, workloads};
