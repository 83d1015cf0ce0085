//! Signals: those that ask a training run to stop, and the one that must not end the program.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use super::note;
use crate::error::{Error, Result};

/// Whether the user wants the training to stop.
#[derive(Clone)]
pub struct Stop {
    /// The first signal; 0: none.
    signal: Arc<AtomicU8>,
    /// Nothing is left to stop.
    over: Arc<AtomicBool>,
    /// The user was told that another process does not answer, or is told by another.
    said: Arc<AtomicBool>,
}

impl Stop {
    /// Catches Ctrl-C, a request to end, and a hang-up unless that is ignored already, as under `nohup`. The
    /// second one does not wait for the step. `says`: whether the user is told so.
    pub fn listen(says: bool) -> Result<Stop> {
        let said = Arc::new(AtomicBool::new(!says));
        let stop = Stop { signal: Arc::default(), over: Arc::default(), said };
        let Stop { signal: first, over, .. } = stop.clone();
        let caught = move |signal| {
            if over.load(Ordering::SeqCst) {
                return;
            }
            if first.swap(signal, Ordering::SeqCst) != 0 {
                std::process::exit(i32::from(status(signal)));
            }
            if says {
                note("\nstopping after this step (again to stop at once)");
            }
        };
        on_each(caught).map_err(|e| Error::new("cannot catch signals such as Ctrl-C").caused_by(e))?;
        Ok(stop)
    }

    pub fn is_wanted(&self) -> bool {
        self.signal.load(Ordering::SeqCst) != 0
    }

    /// Whether the user is to be told of it, which this says once.
    pub fn says(&self) -> bool {
        !self.said.swap(true, Ordering::SeqCst)
    }

    /// Ignores signals from now on: training is over, and only words are left to say.
    pub fn end(&self) {
        self.over.store(true, Ordering::SeqCst);
    }

    /// Whether it was a request to end, as `mpirun` sends it to the ranks that are left when one has died.
    pub fn is_end(&self) -> bool {
        const SIGTERM: u8 = 15;
        self.signal.load(Ordering::SeqCst) == SIGTERM
    }

    /// Exit status of a program that was stopped, so that `train && sample` does not go on; as for Ctrl-C
    /// where another of several processes was told to.
    pub fn status(&self) -> u8 {
        const SIGINT: u8 = 2;
        match self.signal.load(Ordering::SeqCst) {
            0 => status(SIGINT),
            signal => status(signal),
        }
    }
}

/// What a shell says of a program that a signal has ended: 130 for Ctrl-C, 143 for SIGTERM.
fn status(signal: u8) -> u8 {
    128 + signal
}

#[cfg(unix)]
fn on_each(mut caught: impl FnMut(u8) + Send + 'static) -> io::Result<()> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    let wanted = [SIGINT, SIGTERM].into_iter().chain((!is_ignored(SIGHUP)).then_some(SIGHUP));
    let mut signals = signal_hook::iterator::Signals::new(wanted)?;
    let wait = move || signals.forever().for_each(|signal| caught(signal as u8));
    std::thread::Builder::new().name("signals".to_owned()).spawn(wait).map(drop)
}

#[cfg(unix)]
fn is_ignored(signal: i32) -> bool {
    // SAFETY: all bits zero are a valid sigaction, and the call only writes the present one into it.
    unsafe {
        let mut now: libc::sigaction = std::mem::zeroed();
        libc::sigaction(signal, std::ptr::null(), &mut now) == 0 && now.sa_sigaction == libc::SIG_IGN
    }
}

#[cfg(not(unix))]
fn on_each(mut caught: impl FnMut(u8) + Send + 'static) -> io::Result<()> {
    const CTRL_C: u8 = 2;
    ctrlc::set_handler(move || caught(CTRL_C)).map_err(io::Error::other)
}

/// Makes writing beyond the limit on the size of files (`ulimit -f`) an error, as a full disk is, instead of
/// the end of the program.
pub fn outlive_file_size_limit() {
    #[cfg(unix)]
    // SAFETY: ignoring a signal runs no code of ours.
    unsafe {
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
    }
}

/// Makes the end of a program that gets no memory an error with what to do, after the line in which Rust
/// says how much was missing. Drivers end programs so too.
pub fn end_without_memory_in_words() {
    #[cfg(unix)]
    {
        extern "C" fn aborted(_: libc::c_int) {
            const LINE: &[u8] =
                b"\nerror: no memory was left, or a library gave up, as the line above says; close \
                other programs, raise the limit (`ulimit -v`), or make batch_size smaller\n";
            static FIRST: AtomicBool = AtomicBool::new(true);
            // SAFETY: all may be called in a handler; the line lives for ever.
            unsafe {
                while !FIRST.swap(false, Ordering::SeqCst) {
                    libc::pause(); // another thread says it, and ends all
                }
                libc::write(libc::STDERR_FILENO, LINE.as_ptr().cast(), LINE.len());
                libc::_exit(1);
            }
        }
        // SAFETY: the handler allocates nothing and takes no lock.
        unsafe {
            libc::signal(libc::SIGABRT, aborted as *const () as libc::sighandler_t);
        }
    }
}
