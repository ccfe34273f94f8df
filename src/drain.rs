//! When to stop, and how to know that everybody has.
//!
//! A [`Drain`] is given to every task. `stopping().await` tells a task to take no more work; holding
//! the value says "I am not done yet". [`Trigger::drain`] gives the word and waits until the last one
//! was dropped.

use tokio::sync::{mpsc, watch};

/// The end that gives the word.
#[derive(Debug)]
pub struct Trigger {
    stop: watch::Sender<bool>,
    gone: mpsc::Receiver<()>,
}

/// The end that hears it. Drop it when done.
#[derive(Debug, Clone)]
pub struct Drain {
    stop: watch::Receiver<bool>,
    _alive: mpsc::Sender<()>,
}

/// A new pair.
pub fn channel() -> (Trigger, Drain) {
    let (stop, stopping) = watch::channel(false);
    let (alive, gone) = mpsc::channel(1);
    (
        Trigger { stop, gone },
        Drain {
            stop: stopping,
            _alive: alive,
        },
    )
}

impl Trigger {
    /// Tells everybody to stop and returns when all [`Drain`]s are gone. The caller adds the deadline.
    pub async fn drain(mut self) {
        self.stop.send_replace(true);
        while self.gone.recv().await.is_some() {}
    }
}

impl Drain {
    /// Returns once the word was given.
    pub async fn stopping(&self) {
        let mut stop = self.stop.clone();
        // An error means that the trigger is gone, which is the word as well.
        if stop.wait_for(|stop| *stop).await.is_err() {
            tracing::debug!("the drain trigger was dropped");
        }
    }

    /// Whether the word was given.
    pub fn is_stopping(&self) -> bool {
        *self.stop.borrow()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn drain_waits_for_the_last_holder() {
        let (trigger, drain) = channel();
        let worker = tokio::spawn(async move {
            drain.stopping().await;
            tokio::time::sleep(std::time::Duration::from_secs(3)).await;
            drop(drain);
        });
        trigger.drain().await;
        worker.await.unwrap();
    }
}
