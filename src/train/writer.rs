//! A thread that writes what a run leaves on the disk, so that no step waits for a disk.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use crate::device::threads;
use crate::error::{Error, Result};

/// Something to write. Gives a line for the user, if there is something to tell.
type Job = Box<dyn FnOnce() -> Result<Option<String>> + Send>;

/// Runs jobs in the order in which they were given. Dropping it waits for all of them.
pub(super) struct Writer {
    jobs: Option<Sender<Job>>,
    results: Receiver<Result<Option<String>>>,
    /// Jobs whose results were not looked at yet.
    pending: usize,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    pub fn start() -> Result<Writer> {
        let (jobs, todo) = channel::<Job>();
        let (done, results) = channel();
        let work = move || {
            for job in todo {
                let outcome = catch_unwind(AssertUnwindSafe(job)).unwrap_or_else(|_| {
                    Err(Error::new("writing into the run's folder failed inside the program")
                        .hint("this is a mistake in denoir, please report it"))
                });
                // Nobody listens when the session has ended over another error.
                let _ = done.send(outcome);
            }
        };
        let thread = threads::spawn("writer".to_owned(), "write the run's files", work)?;
        Ok(Writer { jobs: Some(jobs), results, pending: 0, thread: Some(thread) })
    }

    pub fn give(&mut self, job: impl FnOnce() -> Result<Option<String>> + Send + 'static) {
        if self.jobs.as_ref().is_some_and(|jobs| jobs.send(Box::new(job)).is_ok()) {
            self.pending += 1;
        }
    }

    /// Passes on the lines of the jobs done so far, up to the first error of one.
    pub fn look(&mut self, mut message: impl FnMut(&str)) -> Result<()> {
        while let Ok(result) = self.results.try_recv() {
            self.pending -= 1;
            result?.iter().for_each(|line| message(line));
        }
        Ok(())
    }

    /// Waits until all is written, or a job has failed: the next call waits for those after it.
    pub fn finish(&mut self, mut message: impl FnMut(&str)) -> Result<()> {
        while self.pending > 0
            && let Ok(result) = self.results.recv()
        {
            self.pending -= 1;
            result?.iter().for_each(|line| message(line));
        }
        Ok(())
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn jobs_run_beside_the_caller_in_order_and_their_errors_arrive() {
        let mut writer = Writer::start().unwrap();
        let (go, wait) = mpsc::channel::<()>();
        writer.give(move || {
            wait.recv().unwrap();
            Ok(Some("first".to_owned()))
        });
        writer.give(|| Err(Error::new("the disk is full")));
        writer.give(|| panic!("a defect"));
        writer.give(|| Ok(Some("last".to_owned())));
        let mut said = Vec::new();
        writer.look(|_| unreachable!("nothing is written yet")).unwrap();
        go.send(()).unwrap();
        let mut say = |line: &str| said.push(line.to_owned());
        assert_eq!(writer.finish(&mut say).unwrap_err().to_string(), "the disk is full");
        assert!(writer.finish(&mut say).unwrap_err().to_string().contains("inside the program"));
        writer.finish(&mut say).unwrap();
        writer.finish(&mut say).unwrap();
        assert_eq!(said, ["first", "last"]);
    }

    #[test]
    fn dropping_it_waits_for_what_was_given() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("written");
        let mut writer = Writer::start().unwrap();
        let target = path.clone();
        writer.give(move || {
            std::thread::sleep(std::time::Duration::from_millis(50));
            std::fs::write(target, "all of it").unwrap();
            Ok(None)
        });
        drop(writer);
        assert_eq!(std::fs::read_to_string(path).unwrap(), "all of it");
    }
}
