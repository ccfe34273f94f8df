//! Who waits for the platform's answer. People wait in the chat, so each wait has an end; whoever comes
//! later than that finds nobody here, and sees to it that the answer arrives another way.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use super::answer::Answer;
use crate::delivery::event::Stored;

/// Those who wait, by the event's number.
#[derive(Debug, Default)]
pub struct Asking(Mutex<HashMap<u64, Waiting>>);

#[derive(Debug)]
struct Waiting {
    until_ms: u64,
    event: Arc<Stored>,
    tell: oneshot::Sender<Told>,
}

/// What one who waits is told.
#[derive(Debug)]
pub enum Told {
    /// The answer. Whoever takes it says so by the sender, and only then is it theirs.
    Answer(Answer, oneshot::Sender<()>),
    /// It will not come in time.
    NotNow,
}

/// A wait, which ends with this value.
#[derive(Debug)]
pub struct Wait {
    asking: Arc<Asking>,
    seq: u64,
    told: oneshot::Receiver<Told>,
}

impl Asking {
    /// Begins to wait for the answer to event `seq`, which is `event`, until `until_ms` (monotonic).
    pub fn wait(self: &Arc<Self>, seq: u64, event: Arc<Stored>, until_ms: u64) -> Wait {
        let (tell, told) = oneshot::channel();
        let waiting = Waiting {
            until_ms,
            event,
            tell,
        };
        self.lock().insert(seq, waiting);
        Wait {
            asking: self.clone(),
            seq,
            told,
        }
    }

    /// The event `seq`, as it is on disk; `None`: nobody waits for its answer.
    pub fn event(&self, seq: u64) -> Option<Arc<Stored>> {
        Some(self.lock().get(&seq)?.event.clone())
    }

    /// How long the one who waits for `seq` still does, in milliseconds; `None`: nobody does.
    pub fn left_ms(&self, seq: u64, now_ms: u64) -> Option<u64> {
        let until_ms = self.lock().get(&seq)?.until_ms;
        until_ms.checked_sub(now_ms).filter(|left_ms| *left_ms > 0)
    }

    /// Hands over an answer; comes back with it if nobody took it.
    pub async fn answer(&self, seq: u64, answer: Answer) -> Result<(), Answer> {
        let waiting = self.lock().remove(&seq);
        let Some(waiting) = waiting else {
            return Err(answer);
        };
        let (taken, is_taken) = oneshot::channel();
        let told = Told::Answer(answer.clone(), taken);
        if waiting.tell.send(told).is_err() {
            return Err(answer);
        }
        is_taken.await.map_err(|_| answer)
    }

    /// Says that no answer will come in time.
    pub fn not_now(&self, seq: u64) {
        let waiting = self.lock().remove(&seq);
        if waiting.is_some_and(|waiting| waiting.tell.send(Told::NotNow).is_err()) {
            tracing::trace!("whoever waited has gone");
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Waiting>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Wait {
    /// What is told; [`Told::NotNow`] if the other side is gone.
    pub async fn told(&mut self) -> Told {
        (&mut self.told).await.unwrap_or(Told::NotNow)
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        self.asking.lock().remove(&self.seq);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event() -> Arc<Stored> {
        let event =
            r#"{"id":"e1","app":"oncall","kind":"k","subject":null,"accepted_ms":1,"body":{}}"#;
        Arc::new(serde_json::from_str(event).unwrap())
    }

    #[tokio::test]
    async fn an_answer_that_nobody_took_comes_back() {
        let asking = Arc::new(Asking::default());
        assert_eq!(
            asking.answer(1, Answer::Nothing).await,
            Err(Answer::Nothing)
        );
        let gone = asking.wait(1, event(), 10);
        assert_eq!(asking.left_ms(1, 4), Some(6));
        assert_eq!(asking.left_ms(1, 10), None);
        assert_eq!(asking.event(1).unwrap().id, "e1");
        drop(gone);
        assert!(asking.event(1).is_none());
        assert_eq!(asking.left_ms(1, 4), None);
        assert_eq!(
            asking.answer(1, Answer::Nothing).await,
            Err(Answer::Nothing)
        );
        // Told, but gone before it could take it.
        let mut wait = asking.wait(1, event(), 10);
        let (answered, ()) = tokio::join!(asking.answer(1, Answer::Later), async {
            drop(wait.told().await);
        });
        assert_eq!(answered, Err(Answer::Later));
    }

    #[tokio::test]
    async fn an_answer_is_taken_once() {
        let asking = Arc::new(Asking::default());
        let mut wait = asking.wait(1, event(), 10);
        let taker = async {
            let Told::Answer(answer, taken) = wait.told().await else {
                panic!()
            };
            taken.send(()).unwrap();
            answer
        };
        let (answered, answer) = tokio::join!(asking.answer(1, Answer::Later), taker);
        assert_eq!((answered, answer), (Ok(()), Answer::Later));
        assert_eq!(asking.answer(1, Answer::Later).await, Err(Answer::Later));
    }

    #[tokio::test]
    async fn whoever_waits_in_vain_is_told_at_once() {
        let asking = Arc::new(Asking::default());
        let mut wait = asking.wait(1, event(), 10);
        asking.not_now(1);
        assert!(matches!(wait.told().await, Told::NotNow));
    }
}
