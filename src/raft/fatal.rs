//! The end of the road: a local failure after which this process must not go on.
//!
//! Guarantees: the first reason is kept and reaches whoever waits for it, so that the process ends with one clear message.
//! Leaves out: ending the process (`cli`).

use std::io;
use std::sync::Arc;

use crate::watch;

/// A shared flag with a reason. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Fatal(Arc<watch::Sender<Option<String>>>);

impl Default for Fatal {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(None)))
    }
}

impl Fatal {
    /// Raises it; only the first reason is kept.
    pub fn raise(&self, reason: &str) {
        self.0.send_if_modified(|kept| {
            let first = kept.is_none();
            if first {
                tracing::error!(reason, "fatal local failure");
                *kept = Some(reason.to_owned());
            }
            first
        });
    }

    /// The reason, if it was raised.
    #[must_use]
    pub fn reason(&self) -> Option<String> {
        self.0.borrow().clone()
    }

    /// Waits until it is raised.
    pub async fn raised(&self) -> String {
        let mut receiver = self.0.subscribe();
        let reason = receiver.wait_for(Option::is_some).await.ok().flatten();
        reason.unwrap_or_default()
    }

    /// An error if it was raised.
    pub(super) fn check(&self) -> io::Result<()> {
        self.reason().map_or(Ok(()), |reason| Err(io::Error::other(reason)))
    }
}
