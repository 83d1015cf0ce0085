//! The GPU device: one adapter through wgpu, its memory, and prebuilt dispatches. The only module that
//! names wgpu.

pub mod adapters;
mod dispatch;
mod grid;
mod late;
mod memory;
pub mod shader;
mod timestamps;
pub mod tuning;

use std::cell::Cell;
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

pub use dispatch::{Bound, Range};
pub use grid::Grid;
pub use late::Arriving;
pub use memory::GpuBuffer;

use self::adapters::Traits;
use self::shader::Dialect;
use self::tuning::Tuning;
use crate::error::{Error, Result};

/// How long a real GPU, and a software driver, may take over one submission before it is taken for dead.
const PATIENCE: Duration = Duration::from_secs(120);
const SOFTWARE_PATIENCE: Duration = Duration::from_secs(3600);

/// What the driver has reported since the last look: validation errors, lost device.
type Faults = Arc<Mutex<Vec<String>>>;

thread_local! {
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// True while a panic of this thread is expected and becomes an error; a panic hook should then be silent.
pub fn expects_panic() -> bool {
    QUIET.get()
}

/// An open adapter.
pub struct Gpu {
    device: wgpu::Device,
    queue: wgpu::Queue,
    info: wgpu::AdapterInfo,
    limits: wgpu::Limits,
    dialect: Dialect,
    /// Kernels are compiled without the checks that naga injects; tests keep them.
    checked: bool,
    faults: Faults,
    pipelines: Mutex<HashMap<dispatch::PipelineKey, Arc<dispatch::Pipeline>>>,
    staging: Mutex<Option<wgpu::Buffer>>,
    /// As `staging`, for a few bytes each, of which several are under way at a time; those that are not.
    late: Mutex<Vec<wgpu::Buffer>>,
    /// Submissions of replays that nobody has waited for yet.
    in_flight: Mutex<VecDeque<wgpu::SubmissionIndex>>,
    timestamps: Option<timestamps::Timestamps>,
    tuning: Mutex<Option<Tuning>>,
    grid: Grid,
    usage: Arc<memory::Usage>,
}

impl Gpu {
    /// Opens the adapter with its own limits and the features that denoir can use.
    ///
    /// # Errors
    /// When the driver refuses.
    pub fn open(adapter: &wgpu::Adapter) -> Result<Self> {
        let info = adapter.get_info();
        let limits = adapter.limits();
        let features = adapter.features() & adapters::useful_features();
        let opened = pollster::block_on(adapter.request_device(&wgpu::DeviceDescriptor {
            label: Some("denoir"),
            required_features: features,
            required_limits: limits.clone(),
            memory_hints: wgpu::MemoryHints::MemoryUsage,
            ..Default::default()
        }));
        let (device, queue) = opened.map_err(|e| {
            Error::new(format!("cannot open the GPU {}", info.name))
                .hint("update its driver, or use --device cpu")
                .caused_by(e)
        })?;
        let faults = Faults::default();
        let sink = Arc::clone(&faults);
        device.on_uncaptured_error(Arc::new(move |e: wgpu::Error| note(&sink, e.to_string())));
        let sink = Arc::clone(&faults);
        // Dropping the device at the end of the program is reported here too; nobody looks any more.
        device.set_device_lost_callback(move |_, message| note(&sink, format!("device lost: {message}")));
        let dialect = Dialect {
            immediates: features.contains(wgpu::Features::IMMEDIATES) && limits.max_immediate_size >= 128,
            subgroups: features.contains(wgpu::Features::SUBGROUP),
        };
        let timestamps = timestamps::Timestamps::new(&device, &queue, features);
        Ok(Gpu {
            device,
            queue,
            info,
            dialect,
            checked: cfg!(debug_assertions),
            faults,
            pipelines: Mutex::default(),
            staging: Mutex::default(),
            late: Mutex::default(),
            in_flight: Mutex::default(),
            timestamps,
            tuning: Mutex::default(),
            grid: Grid::default(),
            limits,
            usage: Arc::default(),
        })
    }

    /// The adapter's name as its driver gives it.
    pub fn name(&self) -> &str {
        &self.info.name
    }

    /// The driver's name and version, and what it is driven through: `llvmpipe Mesa 25.0 (vulkan)`.
    pub fn driver(&self) -> String {
        let text = format!("{} {} ({})", self.info.driver, self.info.driver_info, self.info.backend);
        text.trim().to_owned()
    }

    /// The most memory that buffers took at one time since [`Gpu::forget_peak`], in bytes.
    pub fn peak_bytes(&self) -> u64 {
        self.usage.peak()
    }

    /// Counts the peak anew, from what is allocated now.
    pub fn forget_peak(&self) {
        self.usage.forget_peak();
    }

    /// True if kernels can compute with 16-bit floats.
    pub fn has_f16(&self) -> bool {
        self.device.features().contains(wgpu::Features::SHADER_F16)
    }

    /// True for drivers that compute on the CPU (llvmpipe, SwiftShader).
    pub fn is_software(&self) -> bool {
        self.info.device_type == wgpu::DeviceType::Cpu
    }

    /// What decides which variants launches have here.
    pub fn traits(&self) -> Traits {
        Traits {
            software: self.is_software(),
            broadcasts: self.dialect.subgroups && self.info.subgroup_min_size >= 8,
        }
    }

    /// Runs launches as `tuning` says from now on; with none, as by default.
    pub fn tune_with(&self, tuning: Option<Tuning>) {
        *self.tuning() = tuning;
    }

    /// What launches are tuned by.
    pub fn tuning(&self) -> std::sync::MutexGuard<'_, Option<Tuning>> {
        self.tuning.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Largest range that one binding can see, in bytes.
    pub fn max_binding(&self) -> u64 {
        self.limits.max_storage_buffer_binding_size
    }

    /// Largest buffer, in bytes.
    pub fn max_buffer(&self) -> u64 {
        self.limits.max_buffer_size
    }

    /// Binds no more than this in one binding, in bytes; for tests.
    pub fn use_max_binding(&mut self, bytes: u64) {
        self.limits.max_storage_buffer_binding_size = bytes.min(self.max_binding());
    }

    /// How dispatches are laid out.
    pub fn grid(&self) -> Grid {
        self.grid
    }

    /// Lays out dispatches in another way than workgroups and time ask for; for tests.
    pub fn use_grid(&mut self, grid: Grid) {
        self.grid = grid;
    }

    /// Into how many pieces to cut a launch of `work` operations, or of `ms` milliseconds where that was measured,
    /// so that none keeps this GPU busy for more than a tenth of a second.
    pub fn pieces(&self, work: u64, ms: Option<f64>) -> usize {
        grid::pieces(self.info.device_type, work, ms)
    }

    /// Use the plain path (uniform buffers, no subgroups) whatever the adapter offers; for tests.
    pub fn use_dialect(&mut self, dialect: Dialect) {
        self.dialect = dialect;
    }

    /// Compile kernels with the checks that naga injects, which hide what a kernel does outside its
    /// tensors, or without.
    pub fn use_checks(&mut self, checked: bool) {
        self.checked = checked;
    }

    pub fn dialect(&self) -> Dialect {
        self.dialect
    }

    /// Waits until all submitted work is done.
    ///
    /// # Errors
    /// When the driver reports an error, or does not answer in reasonable time.
    pub fn wait(&self) -> Result<()> {
        self.in_flight().clear();
        self.wait_for(None)
    }

    fn in_flight(&self) -> std::sync::MutexGuard<'_, VecDeque<wgpu::SubmissionIndex>> {
        self.in_flight.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Notes a submission, and waits for an older one if too many are under way: each is waited for with a
    /// limit of its own, and whoever submits many is not far ahead of what is done.
    fn submitted(&self, submission: wgpu::SubmissionIndex) -> Result<()> {
        const AHEAD: usize = 3;
        let oldest = {
            let mut in_flight = self.in_flight();
            in_flight.push_back(submission);
            if in_flight.len() > AHEAD { in_flight.pop_front() } else { None }
        };
        match oldest {
            Some(oldest) => self.wait_for(Some(oldest)),
            None => self.check("computing on the GPU"),
        }
    }

    fn wait_for(&self, submission_index: Option<wgpu::SubmissionIndex>) -> Result<()> {
        let patience = if self.is_software() { SOFTWARE_PATIENCE } else { PATIENCE };
        let poll = || self.device.poll(wgpu::PollType::Wait { submission_index, timeout: Some(patience) });
        // wgpu panics when the driver loses the device while somebody waits for it.
        QUIET.set(true);
        let polled = std::panic::catch_unwind(std::panic::AssertUnwindSafe(poll));
        QUIET.set(false);
        match polled {
            Ok(Ok(_)) => self.check("computing on the GPU"),
            Ok(Err(e)) => {
                // Dropping the device would wait for it again, and for ever.
                std::mem::forget((self.device.clone(), self.queue.clone()));
                let seconds = patience.as_secs();
                let message = format!("the GPU {} did not answer within {seconds} s", self.info.name);
                Err(self.fault(&message).caused_by(e))
            }
            Err(_) => {
                note(&self.faults, "device lost while waiting for it".to_owned());
                std::mem::forget((self.device.clone(), self.queue.clone()));
                Err(self.fault(&format!("the GPU {} was lost", self.info.name)))
            }
        }
    }

    /// Turns what the driver reported in the background into an error.
    pub(crate) fn check(&self, doing: &str) -> Result<()> {
        let faulty = !self.faults.lock().unwrap_or_else(std::sync::PoisonError::into_inner).is_empty();
        if faulty { Err(self.fault(&format!("{doing} failed ({})", self.info.name))) } else { Ok(()) }
    }

    fn fault(&self, message: &str) -> Error {
        let mut faults = self.faults.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let lost = faults.iter().any(|f| f.contains("lost"));
        let hint = if lost {
            "the driver reset the GPU: resume from the last checkpoint with a smaller --batch-size, or use --device cpu"
        } else {
            "try a smaller --batch-size, a newer driver or --device cpu"
        };
        let error = faults.iter().fold(Error::new(message).hint(hint), |error, fault| error.caused_by(fault));
        // What was told is done with, but a lost device stays lost.
        faults.retain(|f| f.contains("lost"));
        error
    }

    /// Runs `work` and turns what the driver says of it into an error.
    fn guarded<T>(&self, doing: &str, work: impl FnOnce() -> T) -> Result<T> {
        let memory = self.device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        let internal = self.device.push_error_scope(wgpu::ErrorFilter::Internal);
        let validation = self.device.push_error_scope(wgpu::ErrorFilter::Validation);
        let value = work();
        let validation = pollster::block_on(validation.pop());
        let internal = pollster::block_on(internal.pop());
        let memory = pollster::block_on(memory.pop());
        if let Some(error) = memory {
            return Err(Error::new(format!("{} has too little memory: {doing} failed", self.info.name))
                .hint("lower the batch size or the image size, or close other programs that use the GPU")
                .caused_by(error));
        }
        // A lost device reports nothing of its own accord and hands out objects that do nothing.
        self.check(doing)?;
        match validation.or(internal) {
            Some(error) => Err(Error::new(format!("{doing} failed on {}", self.info.name))
                .hint("this is a defect of denoir or of the driver: please report it, and use --device cpu")
                .caused_by(error)),
            None => Ok(value),
        }
    }
}

fn note(faults: &Faults, message: String) {
    let mut faults = faults.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    // One lost device makes thousands of followers that say nothing new.
    if faults.len() < 4 {
        faults.push(message);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gpu() -> Gpu {
        adapters::open(None)
            .expect("an adapter, if only a software one: run tools/test, which installs a driver")
    }

    #[test]
    fn what_the_driver_refuses_is_an_error_with_a_cause() {
        let gpu = gpu();
        let buffer = gpu.alloc("test", 1024).unwrap();
        let misaligned = Range { buffer: &buffer, offset: 4, bytes: 64 };
        let ranges = [("x", misaligned), ("y", Range { offset: 512, ..misaligned })];
        let kernel = &crate::ops::activation::KERNEL;
        let params = [("n", 16), ("kind", 1)];
        let error = gpu
            .bind(kernel, "forward", &[], &params, &ranges, [1, 1, 1])
            .err()
            .expect("a misaligned binding");
        assert!(
            error.report().contains("binding the buffers of kernels/activation.wgsl"),
            "{}",
            error.report()
        );
        assert!(error.report().contains("caused by"), "{}", error.report());
        // The device goes on working.
        let mut bytes = [1_u8; 4];
        gpu.read(&buffer, 0, &mut bytes).unwrap();
    }

    #[test]
    fn a_lost_device_is_an_error_and_neither_a_panic_nor_a_hang() {
        let gpu = gpu();
        let buffer = gpu.alloc("test", 1024).unwrap();
        gpu.device.destroy();
        let mut bytes = [0_u8; 4];
        let error = gpu.read(&buffer, 0, &mut bytes).expect_err("the device is gone");
        assert!(error.to_string().contains("--device cpu"), "{error}");
        assert!(gpu.alloc("more", 1024).is_err());
        assert!(gpu.write(&buffer, 0, &[0; 4]).and_then(|()| gpu.wait()).is_err());
    }
}
