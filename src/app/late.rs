//! Answers of the platform that came too late for those who waited.

use tokio::sync::mpsc;

use crate::inbound::answer::Late;

/// Takes them until nobody sends any more.
pub(super) async fn answers(mut lates: mpsc::Receiver<Late>) {
    while let Some(late) = lates.recv().await {
        tracing::error!(app = late.app, "a late answer is lost");
        if late.done.send(true).is_err() {
            tracing::debug!("the delivery that brought the answer is gone");
        }
    }
}
