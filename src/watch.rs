//! Tokio's watch channel, with one promise more: who waits is woken in the order in which they began to wait.
//!
//! Tokio spreads waiters over eight lists by a random number that only an unstable setting of the compiler can seed. Here
//! they wait in one list, so that a simulation repeats exactly. Guarantees: values, versions and the end of a channel are
//! Tokio's own. Leaves out: what nobody here uses of it.

use std::sync::Arc;

use tokio::sync::{Notify, watch};

pub use tokio::sync::watch::Ref;
pub use tokio::sync::watch::error::{RecvError, SendError};

/// Sends values. Clones send into the same channel.
#[derive(Debug)]
pub struct Sender<T> {
    // Before the bell: what ends with the last sender must have ended when the bell rings.
    values: watch::Sender<T>,
    bell: Bell,
}

/// Sees the latest value.
#[derive(Debug)]
pub struct Receiver<T> {
    values: watch::Receiver<T>,
    changed: Arc<Notify>,
}

/// Wakes all that wait; also when a sender goes, which may be the last one.
#[derive(Debug)]
struct Bell(Arc<Notify>);

impl Drop for Bell {
    fn drop(&mut self) {
        self.0.notify_waiters();
    }
}

/// A channel with its first value.
pub fn channel<T>(first: T) -> (Sender<T>, Receiver<T>) {
    let sender = Sender::new(first);
    let receiver = sender.subscribe();
    (sender, receiver)
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        Self { values: self.values.clone(), bell: Bell(Arc::clone(&self.bell.0)) }
    }
}

impl<T: Default> Default for Sender<T> {
    fn default() -> Self {
        Self::new(T::default())
    }
}

impl<T> Clone for Receiver<T> {
    fn clone(&self) -> Self {
        Self { values: self.values.clone(), changed: Arc::clone(&self.changed) }
    }
}

impl<T> Sender<T> {
    /// A channel without a receiver as yet.
    #[must_use]
    pub fn new(first: T) -> Self {
        Self { values: watch::Sender::new(first), bell: Bell(Arc::default()) }
    }

    /// A receiver that has seen the present value.
    #[must_use]
    pub fn subscribe(&self) -> Receiver<T> {
        Receiver { values: self.values.subscribe(), changed: Arc::clone(&self.bell.0) }
    }

    /// The latest value, locked: not to be held over an await.
    pub fn borrow(&self) -> Ref<'_, T> {
        self.values.borrow()
    }

    /// Sends a value.
    ///
    /// # Errors
    /// Nobody receives; the value comes back and the channel keeps the one before.
    pub fn send(&self, value: T) -> Result<(), SendError<T>> {
        let sent = self.values.send(value);
        self.bell.0.notify_waiters();
        sent
    }

    /// Puts a value in the place of the latest, whether anybody receives or not.
    pub fn send_replace(&self, value: T) -> T {
        let before = self.values.send_replace(value);
        self.bell.0.notify_waiters();
        before
    }

    /// Changes the value; it counts as sent.
    pub fn send_modify(&self, modify: impl FnOnce(&mut T)) {
        self.values.send_modify(modify);
        self.bell.0.notify_waiters();
    }

    /// Changes the value; it counts as sent if `modify` says so, which is also what is returned.
    pub fn send_if_modified(&self, modify: impl FnOnce(&mut T) -> bool) -> bool {
        let modified = self.values.send_if_modified(modify);
        if modified {
            self.bell.0.notify_waiters();
        }
        modified
    }
}

impl<T> Receiver<T> {
    /// The latest value, locked: not to be held over an await.
    pub fn borrow(&self) -> Ref<'_, T> {
        self.values.borrow()
    }

    /// The latest value, which counts as seen from now on.
    pub fn borrow_and_update(&mut self) -> Ref<'_, T> {
        self.values.borrow_and_update()
    }

    /// Waits for a value that was not seen yet, and marks it as seen. Dropping the future loses nothing.
    ///
    /// # Errors
    /// There is none, and nobody can send one any more.
    pub async fn changed(&mut self) -> Result<(), RecvError> {
        loop {
            // Made before looking: it hears of all that is sent from here on.
            let changed = self.changed.notified();
            // In this order: what was sent before the last sender went is news still.
            let ended = self.values.has_changed().is_err();
            if self.values.borrow_and_update().has_changed() {
                return Ok(());
            }
            if ended {
                return self.values.changed().await;
            }
            changed.await;
        }
    }
}

impl<T: Clone> Receiver<T> {
    /// Waits until the value is one that is wanted, and returns it.
    ///
    /// # Errors
    /// It is not, and nobody can send another one any more.
    pub async fn wait_for(&mut self, mut wanted: impl FnMut(&T) -> bool) -> Result<T, RecvError> {
        loop {
            {
                let value = self.values.borrow_and_update();
                if wanted(&value) {
                    return Ok(value.clone());
                }
            }
            self.changed().await?;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[tokio::test]
    async fn waiters_are_woken_in_the_order_in_which_they_came() {
        let (sender, receiver) = channel(0);
        let woken = Arc::new(Mutex::new(Vec::new()));
        let waiting: Vec<_> = (0..50)
            .map(|number| {
                let (mut receiver, woken) = (receiver.clone(), Arc::clone(&woken));
                tokio::spawn(async move {
                    receiver.changed().await.unwrap();
                    woken.lock().unwrap().push(number);
                })
            })
            .collect();
        tokio::task::yield_now().await;
        sender.send(1).unwrap();
        futures::future::join_all(waiting).await;
        assert_eq!(*woken.lock().unwrap(), (0..50).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn a_value_that_nobody_has_seen_is_news_even_after_the_last_sender_went() {
        let (sender, mut receiver) = channel(0);
        sender.send(1).unwrap();
        drop(sender);
        assert!(receiver.changed().await.is_ok());
        assert!(receiver.changed().await.is_err());
        assert!(receiver.wait_for(|value| *value == 1).await.is_ok());
        assert!(receiver.wait_for(|value| *value == 2).await.is_err());
    }

    #[tokio::test]
    async fn who_waits_hears_that_the_last_sender_went() {
        let (sender, mut receiver) = channel(0);
        let other = sender.clone();
        let waiting = tokio::spawn(async move { receiver.changed().await });
        tokio::task::yield_now().await;
        drop(sender);
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(other);
        assert!(waiting.await.unwrap().is_err());
    }
}
