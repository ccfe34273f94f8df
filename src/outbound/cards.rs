//! Cards: what each is to show, and what of that is not at DingTalk yet. One record a card, on disk.
//!
//! A card is made by a message and changed by messages, with the lanes, limits and ends of all others; they
//! carry no data of their own. What was asked for is in the record, and a message takes the newest of it along
//! when it leaves. So changes that come while DingTalk is slow are one call, and none arrives before an older one:
//!
//! * `base` is what DingTalk shows, or will when the card is made.
//! * `flight` is what an update took along; it joins `base` when DingTalk took it.
//! * `waiting` is what came since. What the card is to show is `base`, then `flight`, then `waiting`.
//!
//! Every step is written with the state of its message in one commit, under the card's lock. As long as nobody
//! can know whether the card was made, `base` stays as it left: DingTalk says of a repeat only that the card is
//! there ("exists"), not what it shows.
//!
//! `card` the record and its steps · `share` whose change is whose · [`ask`] what a client asks, checked ·
//! [`accept`] on disk before the 202 · [`fly`] what an attempt takes along, and what comes of it · [`door`] the routes · [`register`] where clicks go.

pub mod accept;
pub mod ask;
mod card;
pub mod door;
pub mod fly;
pub mod register;
mod share;

use std::sync::{Mutex, PoisonError};

use tokio::sync::OwnedMutexGuard;

use super::Live;
use super::accept::Stripes;
use crate::delivery::id::{MessageId, short_digest};
use crate::delivery::record;
use crate::delivery::state::{Progress, State};
use crate::journal::queue::OUTBOX;
use crate::journal::{self, Batch, Journal, ReadError, Table};
pub use card::{Alive, Card, Standing};

/// A card is known this long after its last change, in milliseconds.
pub const KEEP_MS: u64 = 30 * 86_400_000;
/// Records looked at in one step of forgetting.
const STEP_MAX: usize = 500;

/// All cards.
#[derive(Debug)]
pub struct Cards {
    journal: Journal,
    stripes: Stripes,
    /// The key from which the next step of forgetting goes on.
    next: Mutex<Vec<u8>>,
}

/// A card in hand: nobody else changes it until this is dropped, which must be when it is on disk.
#[derive(Debug)]
pub struct Held {
    /// As it is to be written.
    pub card: Card,
    /// Its messages, as they were when it was taken.
    pub alive: Alive,
    _guard: OwnedMutexGuard<()>,
}

impl Held {
    /// Message `id`, which makes or changes it, has ended like this, as is known at `wall_ms`.
    pub fn ended(&mut self, id: MessageId, progress: &Progress, wall_ms: u64) {
        let reason = progress.reason.as_ref().map(|reason| reason.code.as_ref());
        let spoilt = match progress.state {
            State::Cancelled => true,
            // That there is no card says nothing against the change.
            State::Dead => reason != Some(fly::UNKNOWN),
            _ => false,
        };
        self.card.ended(id, progress.state, spoilt, wall_ms);
    }

    /// Adds the card to `batch`.
    pub fn put(&mut self, batch: &mut Batch, wall_ms: u64) {
        self.card.touched_ms = wall_ms;
        let key = disk_key(&self.card.app, &self.card.out_track_id);
        batch.put(Table::Cards, key, record::encode(&self.card));
    }
}

impl Cards {
    /// The cards of `journal`.
    pub fn new(journal: Journal) -> Self {
        Self {
            journal,
            stripes: Stripes::default(),
            next: Mutex::default(),
        }
    }

    /// Takes a card in hand; `None` if it is not known.
    async fn hold(&self, app: &str, out_track_id: &str) -> Result<Lock, ReadError> {
        let lock = short_digest(&[app.as_bytes(), out_track_id.as_bytes()]);
        let guard = self.stripes.lock(lock).await;
        let found = self.read(app, out_track_id).await?;
        Ok(match found {
            Some((card, alive)) => Lock::Known(Box::new(Held {
                card,
                alive,
                _guard: guard,
            })),
            None => Lock::New(guard),
        })
    }

    /// What is known of a card; `None` if nothing is, or if its record is damaged, which then is set aside.
    async fn read(
        &self,
        app: &str,
        out_track_id: &str,
    ) -> Result<Option<(Card, Alive)>, ReadError> {
        let key = disk_key(app, out_track_id);
        let looked = key.clone();
        let read = self.journal.read(move |view| {
            let Some(bytes) = view.get(Table::Cards, &looked)? else {
                return Ok(None);
            };
            let card: Card = match record::decode(&bytes) {
                Ok(card) => card,
                Err(why) => return Ok(Some(Err((bytes, why)))),
            };
            let live = |id: Option<MessageId>| -> Result<Option<Live>, ReadError> {
                let Some(id) = id else { return Ok(None) };
                let row = view.get(OUTBOX.live, &id.seq().to_be_bytes())?;
                let live = row.and_then(|row| record::decode::<Live>(&row).ok());
                // Its number may be another one's by now.
                Ok(live.filter(|live| live.id == id))
            };
            let flight = card.flight.as_ref().map(|flight| flight.message);
            let alive = Alive {
                message: live(card.message)?,
                flight: live(flight)?,
                carrier: live(card.carrier)?,
            };
            Ok(Some(Ok((card, alive))))
        });
        match read.await? {
            None => Ok(None),
            Some(Ok(found)) => Ok(Some(found)),
            Some(Err((bytes, why))) => {
                let mut aside = Batch::default();
                aside.quarantine(Table::Cards, &key, &bytes, &why);
                self.journal.submit(aside, |_| ());
                Ok(None)
            }
        }
    }

    /// Forgets cards that nobody has touched for [`KEEP_MS`], a bounded number at a time. Returns how many.
    pub async fn forget(&self, wall_ms: u64) -> usize {
        let from = self.next().clone();
        let looked = self.journal.read(move |view| {
            let (mut rows, mut old, mut next) = (0, vec![], vec![]);
            let order = journal::Order::Ascending;
            view.walk(Table::Cards, &from, &[], order, &mut |key, value| {
                if rows == STEP_MAX {
                    next = key.to_vec();
                    return false;
                }
                rows += 1;
                let card = record::decode::<Card>(value).ok();
                let card = card.filter(|card| card.is_over(wall_ms));
                // Names only: what all of these show is much.
                old.extend(card.map(|card| (card.app, card.out_track_id)));
                true
            })?;
            Ok((old, next))
        });
        let Ok((old, next)) = looked.await else {
            return 0;
        };
        *self.next() = next;
        let mut forgotten = 0;
        for (app, out_track_id) in old {
            // Somebody may have touched it since.
            let Ok(Lock::Known(held)) = self.hold(&app, &out_track_id).await else {
                continue;
            };
            let Alive {
                message,
                flight,
                carrier,
            } = &held.alive;
            let idle = message.is_none() && flight.is_none() && carrier.is_none();
            if !idle || !held.card.is_over(wall_ms) {
                continue;
            }
            let mut batch = Batch::default();
            batch.delete(Table::Cards, disk_key(&app, &out_track_id));
            if self.journal.commit(batch).await.is_err() {
                tracing::warn!("old cards could not be removed");
                break;
            }
            forgotten += 1;
        }
        forgotten
    }

    fn next(&self) -> std::sync::MutexGuard<'_, Vec<u8>> {
        self.next.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A name that nobody else changes now.
#[derive(Debug)]
enum Lock {
    /// Of a card that is known.
    Known(Box<Held>),
    /// Of none.
    New(OwnedMutexGuard<()>),
}

impl Lock {
    /// The card, or a new one.
    fn or(self, new: impl FnOnce() -> Card) -> Box<Held> {
        match self {
            Self::Known(held) => held,
            Self::New(guard) => Box::new(Held {
                card: new(),
                alive: Alive::default(),
                _guard: guard,
            }),
        }
    }
}

fn disk_key(app: &str, out_track_id: &str) -> Vec<u8> {
    [app.as_bytes(), &[0], out_track_id.as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dingtalk::instance::Generation;
    use crate::outbound::To;
    use crate::outbound::dead::tests::dead;

    #[tokio::test]
    async fn a_card_is_forgotten_a_month_after_its_last_change_unless_a_message_is_under_way() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(dir.path()).unwrap();
        let cards = Cards::new(journal.clone());
        let mut batch = Batch::default();
        for number in 0..STEP_MAX + 2 {
            let name = format!("c{number}");
            let lock = cards.hold("oncall", &name).await.unwrap();
            let mut held = lock.or(|| Card::of_others("oncall", &name, Generation::Current, 1));
            if number == 1 {
                let (_, live) = dead(To::Users(vec![]), State::Queued, "x");
                held.card.carrier = Some(live.id);
                let key = live.id.seq().to_be_bytes();
                batch.put(OUTBOX.live, key, record::encode(&live));
            }
            let touched_ms = if number == 2 { 10 } else { 5 };
            held.put(&mut batch, touched_ms);
        }
        journal.commit(batch).await.unwrap();
        assert_eq!(cards.forget(KEEP_MS + 5).await, 0, "too soon");
        *cards.next() = vec![];
        assert_eq!(cards.forget(KEEP_MS + 6).await, STEP_MAX - 2, "a step");
        assert_eq!(cards.forget(KEEP_MS + 6).await, 2, "the rest");
        assert_eq!(cards.forget(KEEP_MS + 6).await, 0);
        for (name, known) in [("c0", false), ("c1", true), ("c2", true), ("c3", false)] {
            let found = cards.read("oncall", name).await.unwrap();
            assert_eq!(found.is_some(), known, "{name}");
        }
        journal.close();
    }
}
