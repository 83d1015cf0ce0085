//! MPI, Open MPI's or MPICH's, loaded when it is asked for: denoir builds and runs without it.
//!
//! Only bytes are gathered and exchanged. Sums are made by the caller, because `MPI_Allreduce` adds in an
//! order of its own (MPI 4.0, section 6.9.1, recommends a fixed one and promises none).

use std::ffi::{CStr, c_int, c_void};
use std::ptr::null_mut;

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};

use super::{Group, Idle};
use crate::error::{Error, Result};

/// Communicators, types and requests: addresses in Open MPI; in MPICH numbers, which fill the low half.
type Handle = *mut c_void;
/// `MPI_Iallgather` and `MPI_Ialltoall`.
type Collective = unsafe extern "C" fn(
    *const c_void,
    c_int,
    Handle,
    *mut c_void,
    c_int,
    Handle,
    Handle,
    *mut Handle,
) -> c_int;

#[cfg(target_os = "macos")]
const OPEN_MPI: &[&str] = &["libmpi.40.dylib", "libmpi.dylib"];
#[cfg(target_os = "macos")]
const MPICH: &[&str] = &["libmpi.12.dylib", "libmpich.12.dylib"];
#[cfg(not(target_os = "macos"))]
const OPEN_MPI: &[&str] = &["libmpi.so.40", "libmpi.so"];
#[cfg(not(target_os = "macos"))]
const MPICH: &[&str] = &["libmpich.so.12", "libmpi.so.12"];

/// Most bytes of a call for each rank: MPI counts in 32 bits.
const MOST: usize = 1 << 30;

/// The processes of an `mpirun`.
pub(crate) struct Mpi {
    rank: usize,
    size: usize,
    world: Handle,
    byte: Handle,
    ignore: Handle,
    gather: Collective,
    exchange: Collective,
    test: unsafe extern "C" fn(*mut Handle, *mut c_int, Handle) -> c_int,
    finalize: unsafe extern "C" fn() -> c_int,
}

/// Number of processes that the starter says it has started.
fn started() -> Option<usize> {
    let said = ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE"].iter().find_map(|name| std::env::var(name).ok());
    said.and_then(|size| size.parse().ok())
}

fn load() -> Result<Library> {
    // Where both are installed, the one whose `mpirun` was used.
    let is_mpich = std::env::var_os("OMPI_COMM_WORLD_SIZE").is_none() && started().is_some();
    let names = if is_mpich { [MPICH, OPEN_MPI] } else { [OPEN_MPI, MPICH] }.concat();
    let mut why = String::new();
    for name in &names {
        // SAFETY: the initialisers of an MPI library have no precondition; it is kept until the process ends.
        match unsafe { Library::open(Some(name), RTLD_NOW | RTLD_GLOBAL) } {
            Ok(library) => return Ok(library),
            Err(error) => why += &format!("{error}\n"),
        }
    }
    Err(Error::new("there is no MPI on this machine")
        .hint(
            "install Open MPI (Debian, Ubuntu: apt install openmpi-bin) or MPICH, or leave --distributed out",
        )
        .caused_by(why))
}

/// A function of the library, or the address of a variable.
fn symbol<T: Copy>(library: &Library, name: &CStr) -> Result<T> {
    // SAFETY: the callers give the types that the MPI standard declares for these names.
    let found = unsafe { library.get::<T>(name.to_bytes_with_nul()) };
    found.map(|symbol| *symbol).map_err(|e| Error::new("the MPI library is not complete").caused_by(e))
}

impl Mpi {
    pub fn open() -> Result<Mpi> {
        let library = load()?;
        let is_open_mpi = symbol::<Handle>(&library, c"ompi_mpi_comm_world").is_ok();
        let [world, byte, ignore] = if is_open_mpi {
            let address = |name| symbol::<Handle>(&library, name);
            [address(c"ompi_mpi_comm_world")?, address(c"ompi_mpi_byte")?, null_mut()]
        } else {
            // MPICH's ABI: MPI_COMM_WORLD, MPI_BYTE, MPI_STATUS_IGNORE.
            [0x4400_0000, 0x4c00_010d, 1].map(|number: usize| number as Handle)
        };
        let init: unsafe extern "C" fn(*mut c_int, Handle) -> c_int = symbol(&library, c"MPI_Init")?;
        let ask: [unsafe extern "C" fn(Handle, *mut c_int) -> c_int; 2] =
            [symbol(&library, c"MPI_Comm_rank")?, symbol(&library, c"MPI_Comm_size")?];
        let (gather, exchange) = (symbol(&library, c"MPI_Iallgather")?, symbol(&library, c"MPI_Ialltoall")?);
        let (test, finalize) = (symbol(&library, c"MPI_Test")?, symbol(&library, c"MPI_Finalize")?);
        // Its threads and exit handlers need it to the end.
        std::mem::forget(library);
        // SAFETY: the standard allows null for both arguments. Nothing was initialised before.
        if unsafe { init(null_mut(), null_mut()) } != 0 {
            return Err(Error::new("MPI does not start").hint("try another program under the same mpirun"));
        }
        let [mut rank, mut size] = [0; 2];
        // SAFETY: MPI is initialised, and both write one int.
        unsafe {
            ask[0](world, &raw mut rank);
            ask[1](world, &raw mut size);
        }
        let (rank, size) = (rank as usize, size as usize);
        if let Some(started) = started().filter(|&started| started != size) {
            let which = if is_open_mpi { "Open MPI" } else { "MPICH" };
            return Err(Error::new(format!(
                "mpirun has started {started} processes, and {which} knows of {size}"
            ))
            .hint("use the mpirun of that MPI: two are installed"));
        }
        Ok(Mpi { rank, size, world, byte, ignore, gather, exchange, test, finalize })
    }

    /// `count`: bytes of one rank.
    fn run(&self, call: Collective, from: &[u8], to: &mut [u8], count: usize, idle: Idle) -> Result<()> {
        assert!(count <= MOST, "MPI: {count} bytes at once");
        let mut request: Handle = null_mut();
        let (source, target) = (from.as_ptr().cast::<c_void>(), to.as_mut_ptr().cast::<c_void>());
        let n = count as c_int;
        // SAFETY: the callers checked the sizes of both; they are borrowed until the request is complete, or
        // the process is about to end.
        unsafe { call(source, n, self.byte, target, n, self.byte, self.world, &raw mut request) };
        let mut done: c_int = 0;
        loop {
            // SAFETY: the request is the one made above; a status is not asked for.
            unsafe { (self.test)(&raw mut request, &raw mut done, self.ignore) };
            if done != 0 {
                return Ok(());
            }
            idle()?;
        }
    }
}

impl Group for Mpi {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn gather(&self, mine: &[u8], all: &mut [u8], idle: Idle) -> Result<()> {
        assert_eq!(all.len(), mine.len() * self.size, "gather: bytes of all ranks");
        self.run(self.gather, mine, all, mine.len(), idle)
    }

    fn exchange(&self, parts: &[u8], mine: &mut [u8], idle: Idle) -> Result<()> {
        assert!(
            parts.len() == mine.len() && parts.len().is_multiple_of(self.size),
            "exchange: bytes of parts"
        );
        self.run(self.exchange, parts, mine, parts.len() / self.size, idle)
    }

    fn end(&self) {
        // SAFETY: it was initialised, and no request is open.
        unsafe { (self.finalize)() };
    }
}
