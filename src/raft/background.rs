//! Work that gives way to requests where the processor has too little time for both.
//!
//! Guarantees: it runs on threads of its own, at a lower priority than those that serve; a panic in it is an error of who
//! waits for it. Leaves out: limits on the disk, which has no priorities that work everywhere.

use std::io;

use crate::host;

/// How much nicer such threads are: about a third of a request thread's weight when both want to run. With 10, a tenth, a
/// rebuild beside a compiler on two cores took 16 s instead of 3.
const BACKGROUND_NICE: i32 = 5;

/// The nicest there is.
const NICE_MAX: i32 = 19;

/// Lowers the priority of the calling thread, for good. Measured for checkpoints with 64 and 256 writers on two cores, at
/// 10: p99 down by a fifth, 4 % more writes.
pub fn stand_back() {
    // On Linux this is a setting of the calling thread; where it is one of the process, none is better.
    if !cfg!(target_os = "linux") {
        return;
    }
    let nicer = rustix::process::getpriority_process(None).map(|nice| (nice + BACKGROUND_NICE).min(NICE_MAX));
    if let Err(error) = nicer.and_then(|nice| rustix::process::setpriority_process(None, nice)) {
        tracing::debug!(%error, "a background thread keeps its priority");
    }
}

/// Runs blocking work to its end on such a thread, also if nobody waits for it any more.
///
/// # Errors
/// There is no thread to be had, or the work panicked.
pub(super) async fn run<T: Send + 'static>(
    name: &'static str,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<T> {
    if host::is_simulated() {
        return Ok(host::spawn_blocking(work).await?);
    }
    let thread = std::thread::Builder::new().name(name.into());
    // Tokio's own thread waits for it, so that the runtime does not end before the work.
    let waiting = tokio::task::spawn_blocking(move || {
        let thread = thread.spawn(|| {
            stand_back();
            work()
        })?;
        thread.join().map_err(|_| io::Error::other(format!("{name} panicked; its message stands above")))
    });
    waiting.await?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_result_comes_back_from_a_thread_that_stands_back() {
        let nice = || rustix::process::getpriority_process(None).unwrap();
        let here = nice();
        let there = run("test", nice).await.unwrap();
        if cfg!(target_os = "linux") {
            assert_eq!((there, nice()), ((here + BACKGROUND_NICE).min(NICE_MAX), here));
        }
    }

    #[tokio::test]
    async fn a_panic_is_an_error_of_who_waits() {
        let error = run("the work", || -> () { panic!("on purpose") }).await.unwrap_err();
        assert!(error.to_string().starts_with("the work panicked"), "{error}");
    }
}
