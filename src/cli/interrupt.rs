//! Commands that put decrypted data into a scratch folder, and what a signal does to them.
//!
//! Guarantees: with SIGTERM or Ctrl-C the command is dropped, and with it all that it would have removed at its end; exit
//! code 3. Leaves out: the signals of nodes (`run_server`), and SIGKILL, which leaves everything behind.

use super::Failure;
use super::run_server::signal;

/// The command, until a signal comes. It must not block the thread for long, as a question on the terminal would.
pub(super) fn interruptible(
    work: impl Future<Output = Result<(), Failure>>,
) -> impl Future<Output = Result<(), Failure>> {
    // These commands are large, and whoever awaits them need not be.
    let mut work = Box::pin(work);
    async move {
        let signals = signal()?;
        tokio::select! {
            done = work.as_mut() => done,
            () = signals => Err(Failure::unavailable("interrupted; what it had made to work with is removed")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_ends_before_a_signal_ends_as_it_is() {
        assert!(interruptible(async { Ok(()) }).await.is_ok());
        let failed = interruptible(async { Err(Failure::refused("no")) }).await.unwrap_err();
        assert!(format!("{failed:?}").contains("Refused"), "{failed:?}");
    }
}
