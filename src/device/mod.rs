//! Devices: bytes and kernels, no shapes. Two of them run the same programs.

pub mod cpu;
pub mod gpu;
mod precision;
pub(crate) mod threads;

use std::sync::Arc;
use std::time::Duration;

use crate::error::{Error, Result};
use cpu::{Cpu, Hold, Memory};
use gpu::{Gpu, GpuBuffer, PendingCopy, adapters};
pub use precision::Precision;

/// A device to allocate on and to run programs on. Clones are the same device.
#[derive(Clone)]
pub enum Device {
    /// The CPU, with a pool of threads.
    Cpu(Arc<Cpu>),
    /// A GPU through wgpu.
    Gpu(Arc<Gpu>),
}

/// A block of a device's memory, zeroed when it is made. Clones are the same block.
#[derive(Clone)]
pub enum Buffer {
    /// Memory of the machine.
    Cpu(Arc<Memory>),
    /// Memory of a GPU.
    Gpu(Arc<GpuBuffer>),
}

/// A few bytes read, which a GPU may still be sending.
pub(crate) enum PendingRead {
    Ready(Vec<u8>),
    Gpu(PendingCopy),
}

impl Buffer {
    /// Size in bytes.
    pub fn bytes(&self) -> usize {
        match self {
            Buffer::Cpu(memory) => memory.bytes(),
            Buffer::Gpu(buffer) => buffer.bytes(),
        }
    }

    /// # Panics
    /// When the range leaves the buffer.
    #[track_caller]
    fn check_range(&self, offset: usize, bytes: usize) {
        let all = self.bytes();
        let fits = offset.checked_add(bytes).is_some_and(|end| end <= all);
        assert!(fits, "range {offset}+{bytes} outside a buffer of {all} bytes");
    }
}

impl Device {
    /// Opens the device that `name` means: `auto`, `cpu`, `gpu`, `gpu:INDEX` or `gpu:NAME-PART`.
    ///
    /// # Errors
    /// When there is no such device, or its driver refuses.
    pub fn open(name: &str) -> Result<Self> {
        let gpu = |gpu| Device::Gpu(Arc::new(gpu));
        match name {
            "cpu" => Ok(Device::Cpu(Arc::new(Cpu::open(None)?))),
            "auto" => match adapters::open_automatic()? {
                Some(found) => Ok(gpu(found)),
                None => Device::open("cpu"),
            },
            "gpu" => adapters::open(None).map(gpu),
            other => match other.strip_prefix("gpu:") {
                Some(wanted) if !wanted.is_empty() => adapters::open(Some(wanted)).map(gpu),
                _ => Err(Error::usage(format!("no device called {other:?}"))
                    .hint("choose auto, cpu, gpu, gpu:INDEX or gpu:NAME-PART")),
            },
        }
    }

    /// As [`Device::open`], with `threads` threads on the CPU device; `None`: one per core.
    ///
    /// # Errors
    /// As [`Device::open`]; and when `name` is a GPU, or `threads` is not from 1 to 1024.
    pub fn open_with(name: &str, threads: Option<usize>) -> Result<Self> {
        let Some(wanted) = threads else { return Device::open(name) };
        if !(1..=threads::MOST).contains(&wanted) {
            let hint = format!("it must be from 1 to {}", threads::MOST);
            return Err(Error::usage(format!("--threads {wanted}")).hint(hint));
        }
        match Device::open(name)? {
            Device::Cpu(_) => Ok(Device::Cpu(Arc::new(Cpu::open(Some(wanted))?))),
            Device::Gpu(gpu) => Err(Error::usage(format!("{} has no threads to set", gpu.name()))
                .hint("leave --threads out, or use --device cpu")),
        }
    }

    /// A short name for people: `CPU, 2 threads` or the adapter's name.
    pub fn describe(&self) -> String {
        match self {
            Device::Cpu(cpu) => match cpu.threads() {
                1 => "CPU, 1 thread".to_owned(),
                n => format!("CPU, {n} threads"),
            },
            Device::Gpu(gpu) => gpu.name().to_owned(),
        }
    }

    /// The device, just opened, for programs of this precision.
    ///
    /// # Errors
    /// When it does not have the precision.
    ///
    /// # Panics
    /// When the device has clones.
    pub fn with_precision(self, precision: Precision) -> Result<Self> {
        let lacks = |what: String, hint| Err(Error::usage(what).hint(hint));
        match (precision, self) {
            (Precision::F32, device) => Ok(device),
            (Precision::F16, Device::Cpu(_)) => lacks(
                "the CPU device keeps no tensors in 16 bits".to_owned(),
                "use --precision f32, or a GPU",
            ),
            (Precision::F16, Device::Gpu(mut gpu)) => {
                Arc::get_mut(&mut gpu).expect("the device has no clones yet").halves = true;
                Ok(Device::Gpu(gpu))
            }
            (Precision::Bf16, Device::Cpu(_)) if !cpu::has_bf16() => {
                lacks(format!("{} has no AVX-512 BF16", processor()), "use --precision f32")
            }
            (Precision::Bf16, Device::Cpu(mut cpu)) => {
                Arc::get_mut(&mut cpu).expect("the device has no clones yet").round_factors();
                Ok(Device::Cpu(cpu))
            }
            (Precision::Bf16, Device::Gpu(gpu)) => {
                let hint = "use --device cpu, or another --precision";
                lacks(format!("{}: bf16 is a precision of the CPU device", gpu.name()), hint)
            }
        }
    }

    /// Of the programs that are compiled for it.
    pub fn precision(&self) -> Precision {
        match self {
            Device::Gpu(gpu) if gpu.halves => Precision::F16,
            Device::Cpu(cpu) if cpu.rounds => Precision::Bf16,
            _ => Precision::F32,
        }
    }

    /// Whether weights that have 16 bits may stay so: they begin at multiples of 64 elements.
    pub(crate) fn keeps_halves(&self) -> bool {
        match self {
            Device::Cpu(_) => true,
            Device::Gpu(gpu) => gpu.traits().keeps_halves,
        }
    }

    /// The driver of a GPU, the processor's name for the CPU device.
    pub(crate) fn driver(&self) -> String {
        match self {
            Device::Cpu(_) => processor(),
            Device::Gpu(gpu) => gpu.driver(),
        }
    }

    /// Returns when all submitted work is done.
    ///
    /// # Errors
    /// When the driver reports an error.
    pub fn wait(&self) -> Result<()> {
        match self {
            Device::Cpu(_) => Ok(()),
            Device::Gpu(gpu) => gpu.wait(),
        }
    }

    /// Allocates zeroed memory, `bytes` rounded up to a multiple of 256.
    ///
    /// # Errors
    /// When there is not enough.
    pub fn alloc(&self, label: &str, bytes: usize) -> Result<Buffer> {
        let bytes = bytes.next_multiple_of(256).max(256);
        match self {
            Device::Cpu(_) => Ok(Buffer::Cpu(Arc::new(Memory::zeroed(bytes)?))),
            Device::Gpu(gpu) => Ok(Buffer::Gpu(Arc::new(gpu.alloc(label, bytes)?))),
        }
    }

    /// Compares `bytes` with the memory that is available, where the device uses the machine's. Systems grant
    /// more memory than they have and kill the program when it is used, so a failed allocation would come too
    /// late.
    pub(crate) fn check_memory(&self, bytes: u64) -> Result<()> {
        if matches!(self, Device::Gpu(gpu) if !gpu.is_software()) {
            return Ok(());
        }
        match available_memory().filter(|&available| bytes > available) {
            Some(available) => {
                let (needed, available) = (size(bytes), size(available));
                Err(Error::new(format!("this needs {needed} of memory and {available} is available"))
                    .hint("lower the batch size, the image size or the model's widths"))
            }
            None => Ok(()),
        }
    }

    /// Writes `data` at `offset` bytes.
    ///
    /// # Errors
    /// When the driver reports an error.
    ///
    /// # Panics
    /// When the range leaves the buffer, or the buffer belongs to another kind of device.
    #[track_caller]
    pub fn write(&self, buffer: &Buffer, offset: usize, data: &[u8]) -> Result<()> {
        buffer.check_range(offset, data.len());
        match (self, buffer) {
            (Device::Cpu(_), Buffer::Cpu(memory)) => {
                let target = memory.range(offset, data.len());
                let _held = Hold::new(std::slice::from_ref(memory));
                memory.bump_version();
                // SAFETY: the range is inside the block, which is held.
                unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), target, data.len()) };
                Ok(())
            }
            (Device::Gpu(gpu), Buffer::Gpu(target)) => gpu.write(target, offset, data),
            _ => panic!("buffer of another device"),
        }
    }

    /// Reads from `offset` bytes on, after all work that was submitted before.
    ///
    /// # Errors
    /// When the driver reports an error.
    ///
    /// # Panics
    /// As [`Device::write`].
    #[track_caller]
    pub fn read(&self, buffer: &Buffer, offset: usize, out: &mut [u8]) -> Result<()> {
        buffer.check_range(offset, out.len());
        match (self, buffer) {
            (Device::Cpu(_), Buffer::Cpu(memory)) => {
                let source = memory.range(offset, out.len());
                let _held = Hold::new(std::slice::from_ref(memory));
                // SAFETY: as in `write`.
                unsafe { std::ptr::copy_nonoverlapping(source, out.as_mut_ptr(), out.len()) };
                Ok(())
            }
            (Device::Gpu(gpu), Buffer::Gpu(source)) => gpu.read(source, offset, out),
            _ => panic!("buffer of another device"),
        }
    }

    /// As [`Device::read`], but does not wait; [`Device::resolve`] does. Also reads the duration of the
    /// program that ran last on a GPU.
    ///
    /// # Panics
    /// As [`Device::write`]; and on a GPU for more than 3840 bytes.
    #[track_caller]
    pub(crate) fn read_later(&self, buffer: &Buffer, offset: usize, bytes: usize) -> Result<PendingRead> {
        if let (Device::Gpu(gpu), Buffer::Gpu(source)) = (self, buffer) {
            buffer.check_range(offset, bytes);
            return gpu.read_later(source, offset, bytes).map(PendingRead::Gpu);
        }
        let mut out = vec![0; bytes];
        self.read(buffer, offset, &mut out)?;
        Ok(PendingRead::Ready(out))
    }

    /// Waits for the bytes of [`Device::read_later`], and returns the duration of the program that ran last
    /// before it, on the clock of a GPU that has one.
    ///
    /// # Panics
    /// When `out` has another size, or the bytes come from another kind of device.
    #[track_caller]
    pub(crate) fn resolve(&self, read: PendingRead, out: &mut [u8]) -> Result<Option<Duration>> {
        match (self, read) {
            (_, PendingRead::Ready(bytes)) => {
                out.copy_from_slice(&bytes);
                Ok(None)
            }
            (Device::Gpu(gpu), PendingRead::Gpu(pending)) => gpu.resolve(pending, out),
            (Device::Cpu(_), PendingRead::Gpu(_)) => panic!("bytes of another device"),
        }
    }
}

/// Bytes of memory that the process takes, where the system tells it at once: it is asked after each step.
pub(crate) fn resident_memory() -> Option<u64> {
    #[cfg(target_os = "linux")]
    {
        let pages = std::fs::read_to_string("/proc/self/statm").ok()?;
        let pages: u64 = pages.split(' ').nth(1)?.parse().ok()?;
        // SAFETY: it reads a constant of the system.
        let page = u64::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).ok()?;
        Some(pages * page)
    }
    #[cfg(not(target_os = "linux"))]
    None
}

/// The processor's name as the system reports it, or `unknown processor`.
fn processor() -> String {
    let Ok(mut system) = sysinfo::System::new() else { return "unknown processor".to_owned() };
    system.refresh_cpu_list(sysinfo::CpuRefreshKind::nothing());
    let name = system.cpus().first().map(|cpu| cpu.brand().trim().to_owned());
    name.filter(|name| !name.is_empty()).unwrap_or_else(|| "unknown processor".to_owned())
}

/// Bytes of memory that are available on this machine, limits of the container included; `None` where the
/// system does not report them.
pub(crate) fn available_memory() -> Option<u64> {
    let mut system = sysinfo::System::new().ok()?;
    system.refresh_memory();
    let container = system.cgroup_limits().map(|l| l.free_memory);
    let available = system.available_memory();
    (available > 0).then(|| container.map_or(available, |c| c.min(available)))
}

/// A number of bytes for people: `1.5 MiB`.
pub(crate) fn size(bytes: u64) -> String {
    let power = (bytes.max(1).ilog2() / 10).min(4);
    let value = bytes as f64 / 1024_f64.powi(power as i32);
    if power == 0 {
        return format!("{bytes} bytes");
    }
    format!("{value:.1} {}", ["KiB", "MiB", "GiB", "TiB"][power as usize - 1])
}
