//! The program's threads: opened here alone, within a bound, with an error where the system gives none.

use std::thread::{Builder, JoinHandle, available_parallelism};

use rayon::{ThreadPool, ThreadPoolBuildError, ThreadPoolBuilder};

use crate::error::{Error, Result};

/// Most threads of a pool. A larger number is a mistake, over which the machine would hang.
pub(crate) const MOST: usize = 1024;

/// What lets the system give more threads.
const MORE: &str = "raise the limits on processes and memory (`ulimit -u`, `ulimit -v`)";

/// One for each core that this process may use.
pub(crate) fn cores() -> usize {
    available_parallelism().map_or(1, usize::from).min(MOST)
}

/// Starts the pool of the parallel iterators that belong to no device. Programs call it once, before the
/// first of them; it would start by itself, but a refusal were a panic then.
pub(crate) fn start() -> Result<()> {
    let threads = number(None)?;
    let named = ThreadPoolBuilder::new().num_threads(threads).thread_name(|i| format!("denoir-{i}"));
    named.build_global().map_err(|e| refused(threads, &e))
}

/// A pool for a device. `threads`: how many, 1 to 1024; `None`: as many as RAYON_NUM_THREADS says, else one
/// per core.
pub(crate) fn pool(threads: Option<usize>) -> Result<ThreadPool> {
    let threads = number(threads)?;
    let named = ThreadPoolBuilder::new().num_threads(threads).thread_name(|i| format!("denoir-cpu-{i}"));
    named.build().map_err(|e| refused(threads, &e))
}

/// Starts one thread; `purpose` ends the message "no thread can be started to ...".
pub(crate) fn spawn(
    name: String,
    purpose: &str,
    work: impl FnOnce() + Send + 'static,
) -> Result<JoinHandle<()>> {
    Builder::new().name(name).spawn(work).map_err(|e| {
        Error::new(format!("no thread can be started to {purpose}"))
            .hint(format!("close other programs, or {MORE}"))
            .caused_by(e)
    })
}

fn number(threads: Option<usize>) -> Result<usize> {
    let asked = std::env::var("RAYON_NUM_THREADS").ok().and_then(|n| n.trim().parse::<usize>().ok());
    let (threads, said) = match (threads, asked.filter(|&n| n > 0)) {
        (Some(threads), _) => (threads, "threads"),
        (None, Some(threads)) => (threads, "RAYON_NUM_THREADS"),
        (None, None) => return Ok(cores()),
    };
    if (1..=MOST).contains(&threads) {
        return Ok(threads);
    }
    Err(Error::usage(format!("{said} is {threads}")).hint(format!("it must be from 1 to {MOST}")))
}

fn refused(threads: usize, cause: &ThreadPoolBuildError) -> Error {
    let pool = if threads == 1 { "a thread".to_owned() } else { format!("{threads} threads") };
    Error::new(format!("cannot start {pool}"))
        .hint(format!("set RAYON_NUM_THREADS to fewer, or {MORE}"))
        .caused_by(cause)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_threads_has_a_bound() {
        assert_eq!(pool(Some(3)).unwrap().current_num_threads(), 3);
        assert!((1..=MOST).contains(&cores()));
        for wrong in [0, 1025, 100_000, usize::MAX] {
            let error = pool(Some(wrong)).unwrap_err();
            assert!(error.to_string().contains("from 1 to 1024") && error.exit_code() == 2, "{error}");
        }
    }
}
