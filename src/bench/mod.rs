//! Measurements: fixed workloads, checked before they are timed, so that their numbers can be compared.
//!
//! A workload is a model, a batch size and the numbers that it runs on; what is timed of it is the step that
//! `denoir train` records and the reverse step that `denoir sample` records, not copies of them.

mod check;
mod ladder;
mod measure;
mod memory;
mod ops;
mod profile;
mod report;
mod roofline;
mod subject;
mod trace;
mod variants;
mod verify;
mod workload;

pub use check::compute;
pub use ladder::{Ladder, ladder};
pub use measure::{Times, time};
pub use memory::Footprint;
pub use ops::{Direction, Op, OpsReport, ops, time_ops};
pub use profile::{Profile, Row};
pub use report::Report;
pub use roofline::{Bound, Ceilings, Effort, KERNELS};
pub use subject::{Kind, Subject};
pub use trace::write_trace;
pub use variants::{VariantRow, variants};
pub use verify::verified;
pub use workload::{Workload, find, find_or_run, names};
