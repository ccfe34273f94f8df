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
//! [`ask`] what a client asks, checked · [`accept`] on disk before the 202 · [`fly`] what an attempt takes along,
//! and what comes of it · [`door`] the routes · [`register`] where clicks go.

pub mod accept;
pub mod ask;
pub mod door;
pub mod fly;
pub mod register;

use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use tokio::sync::OwnedMutexGuard;

use super::accept::Stripes;
use super::{Live, Message, is_default};
use crate::delivery::id::{MessageId, short_digest};
use crate::delivery::record;
use crate::delivery::state::{Priority, State};
use crate::dingtalk::instance::{Face, Generation, Order, Patch};
use crate::journal::queue::OUTBOX;
use crate::journal::{self, Batch, Journal, ReadError, Table};

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

/// What is known of one card.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Card {
    app: String,
    out_track_id: String,
    /// Who sent it; `None`: it was not sent through this daemon.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    client: Option<String>,
    /// Its template, if it was sent through this daemon.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    template_id: Option<String>,
    #[serde(default, skip_serializing_if = "is_default")]
    generation: Generation,
    /// Of the card, and of changes that name none.
    priority: Priority,
    /// The message that makes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    message: Option<MessageId>,
    /// How that message ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    end: Option<End>,
    /// A call that makes the card has left, and nobody knows what came of it.
    #[serde(default, skip_serializing_if = "is_default")]
    asked: bool,
    /// DingTalk has the card, whether or not somebody sees it.
    #[serde(default, skip_serializing_if = "is_default")]
    exists: bool,
    base: Face,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    flight: Option<Flight>,
    #[serde(default, skip_serializing_if = "Patch::is_empty")]
    waiting: Patch,
    /// The update whose turn is to come, and which takes along what waits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    carrier: Option<MessageId>,
    /// The message that left last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    last: Option<MessageId>,
    accepted_ms: u64,
    touched_ms: u64,
}

/// What an update took along.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Flight {
    message: MessageId,
    patch: Patch,
    /// Its call is under way; otherwise it waits for another one.
    under_way: bool,
}

/// How the message that makes a card ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum End {
    Made,
    NotMade,
    Unknown,
}

/// Whether there is a card to be changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// It is being made.
    Pending,
    /// It was made.
    Created,
    /// It was not, and will not be.
    Dead,
    /// Nobody knows; DingTalk will say.
    Unknown,
}

/// Which of a card's messages are under way, as the record names them.
#[derive(Debug, Default)]
pub struct Alive {
    message: Option<Live>,
    flight: bool,
    carrier: Option<Live>,
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

/// What the call that makes a card is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Making {
    /// The card exists: it is only to be delivered.
    deliver: bool,
    /// An earlier call may have made it.
    doubtful: bool,
}

/// What an update finds when its turn comes.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Turn {
    /// This is to be sent.
    Carry(Patch),
    /// Message of this number must end first.
    Behind(u64),
    /// Another one has taken everything along.
    Merged(MessageId),
    /// There is nothing to send.
    Nothing,
    /// There is no card.
    NotSent,
}

impl Card {
    fn new(message: &Message, live: &Live, order: &Order) -> Self {
        Self {
            app: message.app.clone(),
            out_track_id: order.out_track_id.clone(),
            client: Some(message.client.clone()),
            template_id: Some(order.template_id.clone()),
            generation: order.generation,
            priority: live.priority,
            message: Some(message.id),
            base: order.face.clone(),
            accepted_ms: live.accepted_ms,
            touched_ms: live.accepted_ms,
            ..Self::default()
        }
    }

    /// A card that was not sent through this daemon.
    fn of_others(app: &str, out_track_id: &str, generation: Generation, wall_ms: u64) -> Self {
        Self {
            app: app.to_owned(),
            out_track_id: out_track_id.to_owned(),
            generation,
            // Somebody has clicked and waits.
            priority: Priority::High,
            accepted_ms: wall_ms,
            touched_ms: wall_ms,
            ..Self::default()
        }
    }

    /// What it is to show when everything has arrived.
    fn wanted(&self) -> Face {
        let mut face = self.base.clone();
        if let Some(flight) = &self.flight {
            face.apply(flight.patch.clone());
        }
        face.apply(self.waiting.clone());
        face
    }

    fn standing(&self, alive: &Alive) -> Standing {
        match (self.message, self.end) {
            (Some(_), _) if alive.message.is_some() => Standing::Pending,
            (_, Some(End::Made)) => Standing::Created,
            (_, Some(End::NotMade)) => Standing::Dead,
            // Its message was set aside, or it was made by somebody else.
            (_, Some(End::Unknown) | None) => Standing::Unknown,
        }
    }

    /// The message under way that takes along what comes now, if it is as urgent as `priority` and lasts
    /// until `until_ms`.
    fn carrier<'a>(&self, alive: &'a Alive, priority: Priority, until_ms: u64) -> Option<&'a Live> {
        // A card that has surely not been made is made as it is to be by then.
        let maker = alive.message.as_ref();
        if let Some(maker) = maker.filter(|_| !self.asked && !self.exists) {
            return Some(maker);
        }
        let fits = |live: &&Live| live.priority <= priority && live.expires_ms >= until_ms;
        alive.carrier.as_ref().filter(fits)
    }

    /// Message `id`, which makes the card, has its turn.
    fn make(&mut self, id: MessageId) -> Making {
        let (deliver, doubtful) = (self.exists, self.asked);
        if !deliver && !doubtful {
            let waiting = std::mem::take(&mut self.waiting);
            self.base.apply(waiting);
            self.last = Some(id);
        }
        self.asked |= !deliver;
        self.end = None;
        Making { deliver, doubtful }
    }

    /// Update `id` has its turn: it takes along everything that is not at DingTalk.
    fn update(&mut self, id: MessageId, alive: &Alive) -> Turn {
        match self.standing(alive) {
            Standing::Pending => return Turn::Behind(self.message.map_or(0, MessageId::seq)),
            Standing::Dead => return Turn::NotSent,
            Standing::Created | Standing::Unknown => {}
        }
        let others = self.flight.as_ref().filter(|flight| {
            // At a start the call that was under way is taken up by its own message first.
            flight.message != id && flight.under_way && alive.flight
        });
        if let Some(flight) = others {
            return Turn::Behind(flight.message.seq());
        }
        let mut patch = self.flight.take().map(|flight| flight.patch);
        let waiting = std::mem::take(&mut self.waiting);
        patch.get_or_insert_default().then(waiting);
        self.carrier = self.carrier.filter(|carrier| *carrier != id);
        match patch.filter(|patch| !patch.is_empty()) {
            Some(patch) => {
                self.last = Some(id);
                self.flight = Some(Flight {
                    message: id,
                    patch: patch.clone(),
                    under_way: true,
                });
                Turn::Carry(patch)
            }
            None => match self.last.filter(|last| *last != id) {
                Some(last) => Turn::Merged(last),
                None => Turn::Nothing,
            },
        }
    }

    /// The call of message `id` was answered and it goes on. `known` says that the answer leaves no doubt
    /// whether it was done, `exists` that the card exists now.
    fn answered(&mut self, id: MessageId, known: bool, exists: bool) {
        if self.message == Some(id) {
            self.exists |= exists;
            self.asked &= !known && !self.exists;
        } else if let Some(flight) = self.flight.as_mut().filter(|f| f.message == id) {
            flight.under_way = false;
            // What comes while it waits goes along with it.
            self.carrier = self.carrier.or(Some(id));
        }
    }

    /// Message `id` has ended in `state`.
    fn ended(&mut self, id: MessageId, state: State) {
        if self.message == Some(id) {
            self.end = Some(match state {
                State::Sent => End::Made,
                _ if self.asked => End::Unknown,
                _ => End::NotMade,
            });
            self.exists |= state == State::Sent;
            self.asked &= !self.exists;
            return;
        }
        let carries = self.carrier == Some(id);
        self.carrier = self.carrier.filter(|_| !carries);
        let withdrawn = state == State::Cancelled;
        match self.flight.take_if(|flight| flight.message == id) {
            Some(flight) if state == State::Sent => self.base.apply(flight.patch),
            // Refused or withdrawn: what comes later must not fail with it.
            Some(_) if matches!(state, State::Dead | State::Cancelled) => {}
            // The next one takes it along.
            Some(flight) => {
                let newer = std::mem::replace(&mut self.waiting, flight.patch);
                self.waiting.then(newer);
            }
            None => {}
        }
        if withdrawn && carries {
            self.waiting = Patch::default();
        }
    }

    fn is_over(&self, wall_ms: u64) -> bool {
        self.touched_ms.saturating_add(KEEP_MS) < wall_ms
    }
}

impl Held {
    /// Message `id`, which makes or changes it, has ended in `state`.
    pub fn ended(&mut self, id: MessageId, state: State) {
        self.card.ended(id, state);
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
            let live = |id: Option<MessageId>| {
                let Some(id) = id else { return Ok(None) };
                view.get(OUTBOX.live, &id.seq().to_be_bytes())
            };
            let decode = |bytes: Option<Vec<u8>>| record::decode::<Live>(&bytes?).ok();
            let flight = card.flight.as_ref().map(|flight| flight.message);
            let alive = Alive {
                message: decode(live(card.message)?),
                flight: live(flight)?.is_some(),
                carrier: decode(live(card.carrier)?),
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
                old.extend(card.filter(|card| card.is_over(wall_ms)));
                true
            })?;
            Ok((old, next))
        });
        let Ok((old, next)) = looked.await else {
            return 0;
        };
        *self.next() = next;
        let mut forgotten = 0;
        for card in old {
            // Somebody may have touched it since.
            let Ok(Lock::Known(held)) = self.hold(&card.app, &card.out_track_id).await else {
                continue;
            };
            let Alive {
                message,
                flight,
                carrier,
            } = &held.alive;
            let idle = message.is_none() && !flight && carrier.is_none();
            if !idle || !held.card.is_over(wall_ms) {
                continue;
            }
            let mut batch = Batch::default();
            batch.delete(Table::Cards, disk_key(&card.app, &card.out_track_id));
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
