//! Processes that train one model together, and what they send to one another.

#[cfg(unix)]
mod mpi;

#[cfg(unix)]
use mpi::Mpi;

use crate::error::Result;

/// Called over and over while a rank waits for others; an error ends the wait.
pub type Idle<'a> = &'a dyn Fn() -> Result<()>;

/// A group of processes, numbered from 0: their ranks. All of them call the same methods in the same order.
pub trait Group {
    /// Number of this process.
    fn rank(&self) -> usize;

    /// Number of processes.
    fn size(&self) -> usize;

    /// Gathers `mine` of every rank in `all`, in the order of ranks. All give as many bytes.
    ///
    /// # Errors
    /// Those of `idle`.
    fn gather(&self, mine: &[u8], all: &mut [u8], idle: Idle) -> Result<()>;

    /// Sends part `r` of `parts`, all of one size, to rank `r`, and gathers in `mine` the parts that the
    /// ranks have for this one, in their order.
    ///
    /// # Errors
    /// Those of `idle`.
    fn exchange(&self, parts: &[u8], mine: &mut [u8], idle: Idle) -> Result<()>;

    /// Ends the group, when all ranks are through. A process that ends without it ends the others too.
    fn end(&self);
}

/// Opens the group that `mpirun` has started this process in; alone, a process is a group of one.
///
/// # Errors
/// When MPI is not installed, or is not the one of the `mpirun` that was used.
#[cfg(unix)]
pub fn open_mpi() -> Result<Box<dyn Group>> {
    Ok(Box::new(Mpi::open()?))
}

/// As on Unix, where there is MPI.
///
/// # Errors
/// Always.
#[cfg(not(unix))]
pub fn open_mpi() -> Result<Box<dyn Group>> {
    Err(crate::error::Error::usage("--distributed mpi is for Linux and macOS").hint("leave it out"))
}
