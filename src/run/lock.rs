//! The lock of a run folder: one program trains into it, others may look.

use std::fs;
use std::time::Duration;

use super::Run;
use crate::error::{Error, Result};
use crate::files::{self, remove_leftovers};

const LOCK: &str = ".lock";

impl Run {
    /// Keeps other programs from training into this folder, as long as the result lives; removes what killed
    /// ones left half written.
    pub(crate) fn lock(&self) -> Result<fs::File> {
        let path = self.folder.join(LOCK);
        let shown = self.folder.display();
        let denied =
            |e| Error::new(format!("cannot write into {shown}")).hint("choose another --out").caused_by(e);
        // To open a pipe would wait for somebody to read it.
        let special = "its .lock is no regular file: remove it";
        match fs::metadata(&path) {
            Ok(there) if !there.is_file() => {
                return Err(denied(std::io::Error::new(std::io::ErrorKind::InvalidInput, special)));
            }
            _ => {}
        }
        let file = fs::File::create(&path).map_err(denied)?;
        match patient_lock(&file) {
            Err(fs::TryLockError::WouldBlock) => {
                Err(Error::new(format!("another denoir is training into {shown}"))
                    .hint("wait for it, or choose another --out"))
            }
            Ok(()) => {
                for part in ["", "checkpoints", "samples"] {
                    remove_leftovers(&self.folder.join(part));
                }
                Ok(file)
            }
            // Not every file system has locks.
            Err(fs::TryLockError::Error(_)) => Ok(file),
        }
    }

    /// Whether a program trains into this folder.
    pub(crate) fn is_running(&self) -> bool {
        let file = files::open(&self.folder.join(LOCK));
        file.is_ok_and(|(file, _)| matches!(file.try_lock_shared(), Err(fs::TryLockError::WouldBlock)))
    }
}

/// Locks a file; a program that looks whether it is locked ([`Run::is_running`]) holds it for a moment.
fn patient_lock(file: &fs::File) -> std::result::Result<(), fs::TryLockError> {
    for _ in 0..5 {
        match file.try_lock() {
            Err(fs::TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(10)),
            done => return done,
        }
    }
    file.try_lock()
}
