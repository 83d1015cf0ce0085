//! Errors of drivers: validation errors, lost devices and timeouts.

use std::cell::Cell;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::Gpu;
use crate::error::{Error, Result, lock};

/// Time that a GPU, and a software driver, may take for one submission before it counts as lost.
pub(super) const TIMEOUT: Duration = Duration::from_secs(120);
const SOFTWARE_TIMEOUT: Duration = Duration::from_secs(3600);
/// Submissions that may be in flight; each is waited for with a timeout of its own.
const IN_FLIGHT: usize = 3;

/// Reports of the driver that no error has carried yet.
pub(super) type Faults = Arc<Mutex<Vec<String>>>;

thread_local! {
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// True while a panic of this thread is expected and becomes an error; a panic hook should then be silent.
pub fn expects_panic() -> bool {
    QUIET.get()
}

/// Does what may panic inside wgpu, with no message.
pub(super) fn quietly<T>(work: impl FnOnce() -> T) -> std::thread::Result<T> {
    QUIET.set(true);
    let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
    QUIET.set(false);
    done
}

/// Adds to the reports. One lost device makes thousands that say nothing new, so four are kept.
fn record(faults: &Faults, message: String) {
    let mut faults = lock(faults);
    if faults.len() < 4 {
        faults.push(message);
    }
}

/// The reports of `device` from now on.
pub(super) fn watch(device: &wgpu::Device) -> Faults {
    let faults = Faults::default();
    let sink = Arc::clone(&faults);
    device.on_uncaptured_error(Arc::new(move |e: wgpu::Error| record(&sink, e.to_string())));
    let sink = Arc::clone(&faults);
    // Dropping the device at the end of the program is reported here too, after the last check.
    device.set_device_lost_callback(move |_, message| record(&sink, format!("device lost: {message}")));
    faults
}

impl Gpu {
    /// Waits until all submitted work is done.
    ///
    /// # Errors
    /// When the driver reports an error, or does not answer within its timeout.
    pub fn wait(&self) -> Result<()> {
        lock(&self.in_flight).clear();
        self.wait_for(None)
    }

    /// Notes a submission, and waits for the oldest if more than [`IN_FLIGHT`] are under way.
    pub(super) fn submitted(&self, submission: wgpu::SubmissionIndex) -> Result<()> {
        let oldest = {
            let mut in_flight = lock(&self.in_flight);
            in_flight.push_back(submission);
            if in_flight.len() > IN_FLIGHT { in_flight.pop_front() } else { None }
        };
        match oldest {
            Some(oldest) => self.wait_for(Some(oldest)),
            None => self.check("computing on the GPU"),
        }
    }

    pub(super) fn wait_for(&self, submission_index: Option<wgpu::SubmissionIndex>) -> Result<()> {
        let timeout = if self.is_software() { SOFTWARE_TIMEOUT } else { TIMEOUT };
        let poll = || self.device.poll(wgpu::PollType::Wait { submission_index, timeout: Some(timeout) });
        // wgpu panics when the driver loses the device during the wait.
        let polled = quietly(poll);
        if let Ok(Ok(_)) = polled {
            return self.check("computing on the GPU");
        }
        // Dropping the device would wait for it again, without a timeout.
        std::mem::forget((self.device.clone(), self.queue.clone()));
        match polled {
            Ok(answer) => {
                let seconds = timeout.as_secs();
                let error =
                    self.fault(&format!("the GPU {} did not answer within {seconds} s", self.info.name));
                Err(answer.err().into_iter().fold(error, Error::caused_by))
            }
            Err(_) => {
                record(&self.faults, "device lost while waiting for it".to_owned());
                Err(self.fault(&format!("the GPU {} was lost", self.info.name)))
            }
        }
    }

    /// The reports of the driver as an error, if there are any.
    pub(crate) fn check(&self, doing: &str) -> Result<()> {
        let faulty = !lock(&self.faults).is_empty();
        if faulty { Err(self.fault(&format!("{doing} failed ({})", self.info.name))) } else { Ok(()) }
    }

    pub(super) fn fault(&self, message: &str) -> Error {
        let mut faults = lock(&self.faults);
        let lost = faults.iter().any(|f| f.contains("lost"));
        let hint = if lost {
            "the driver reset the GPU: resume from the last checkpoint with a smaller --batch-size, or use \
             --device cpu"
        } else {
            "try a smaller --batch-size, a newer driver or --device cpu"
        };
        let error = faults.iter().fold(Error::new(message).hint(hint), Error::caused_by);
        // Each report goes into one error, but a lost device stays lost.
        faults.retain(|f| f.contains("lost"));
        error
    }

    /// Runs `work` in error scopes: the driver's errors during it become an error here.
    pub(super) fn guarded<T>(&self, doing: &str, work: impl FnOnce() -> T) -> Result<T> {
        use wgpu::ErrorFilter::{Internal, OutOfMemory, Validation};
        let [memory, internal, validation] =
            [OutOfMemory, Internal, Validation].map(|filter| self.device.push_error_scope(filter));
        let value = work();
        // Scopes end in the opposite order.
        let validation = pollster::block_on(validation.pop());
        let internal = pollster::block_on(internal.pop());
        if let Some(error) = pollster::block_on(memory.pop()) {
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
