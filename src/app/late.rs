//! Answers of the platform of which the outbound side must know: those that came too late for whoever waited go
//! out like its requests; what a card shows by one that came in time is noted.

use std::sync::Arc;

use tokio::sync::mpsc;

use crate::delivery::event::Ask;
use crate::dingtalk::instance::Patch;
use crate::directory::chats::Chats;
use crate::http::problem::Problem;
use crate::inbound::answer::{Answer, Given, Late};
use crate::outbound::accept::{Once, Outbox};
use crate::outbound::reply;

/// Takes them until nobody sends any more.
pub(super) async fn answers(
    mut lates: mpsc::Receiver<Late>,
    outbox: Arc<Outbox>,
    chats: Arc<Chats>,
) {
    while let Some(late) = lates.recv().await {
        let (outbox, chats) = (outbox.clone(), chats.clone());
        // One card's answer does not wait for another's.
        tokio::spawn(async move {
            let asked = (late.ask, late.answer);
            let stored = match store(&outbox, &chats, &late.app, asked, late.given).await {
                Ok(()) => true,
                // It may be taken later: the event comes to the platform again, and so does the answer.
                Err(problem) if problem.is_retryable() => false,
                Err(problem) => {
                    tracing::error!(
                        app = late.app,
                        detail = problem.detail(),
                        "a late answer of the platform cannot be used"
                    );
                    true
                }
            };
            if late.done.send(stored).is_err() {
                tracing::debug!("the delivery that brought the answer is gone");
            }
        });
    }
}

async fn store(
    outbox: &Outbox,
    chats: &Chats,
    app: &str,
    asked: (Ask, Answer),
    given: Given,
) -> Result<(), Problem> {
    match asked {
        (Ask::Click { card, user }, Answer::Card(answer)) => {
            let private = Some(answer.private_data).filter(|private| !private.is_empty());
            let patch = Patch {
                data: answer.data,
                private_data: private.map(|private| (user, private)).into_iter().collect(),
                ..Patch::default()
            };
            match given {
                Given::InTime { since_ms } => {
                    outbox.note_shown(app, &card, patch, since_ms).await?;
                }
                Given::Late { not_before_ms } => {
                    outbox.patch_card(app, &card, patch, not_before_ms).await?;
                }
            }
        }
        (Ask::Message { reply_to }, Answer::Reply(content)) => {
            let asked = {
                let settings = outbox.settings.load_full();
                reply::answer(&reply_to, content, &settings, chats)?
            };
            outbox.admit(asked.priority)?;
            outbox.accept(asked, Once::Unkeyed).await?;
        }
        // Nothing is to be sent.
        _ => {}
    }
    Ok(())
}
