//! Dead letters of both directions: what was given up, why, and how to give it another chance.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::clock::{Clock, rfc3339};
use crate::delivery::event::{Forwarding, Stored, TargetState};
use crate::delivery::id::{MessageId, hex};
use crate::delivery::record;
use crate::delivery::state::{CallOutcome, RecipientOutcome, State};
use crate::http::problem::Problem;
use crate::journal::queue::{Place, Queue, seq_of};
use crate::journal::{Batch, Journal, Order, ReadError, Table, View};
use crate::outbound::send::not_linked;
use crate::outbound::{Live, Message, To, show};

/// One listing looks at this many records at the most.
const LOOKED_AT_MAX: usize = 100_000;

/// Access to the dead letters.
#[derive(Debug)]
pub struct Dead {
    /// The store.
    pub journal: Journal,
    /// Events.
    pub inbox: Arc<Queue<Forwarding>>,
    /// Messages.
    pub outbox: Arc<Queue<Live>>,
    /// The clock.
    pub clock: Clock,
}

/// Records that were set aside: where they stood, and how long they are. What they say is in doubt, so it
/// is not shown.
fn damaged(view: &View<'_>, limit: usize) -> Result<Vec<Value>, ReadError> {
    let mut damaged = vec![];
    view.walk(
        Table::Quarantine,
        &[],
        &[],
        Order::Ascending,
        &mut |name, bytes| {
            let (table, key) = match name.iter().position(|byte| *byte == 0) {
                Some(end) => name.split_at(end),
                None => (name, &[][..]),
            };
            let table = String::from_utf8_lossy(table);
            let key = hex(key.get(1..).unwrap_or_default());
            damaged.push(json!({"table": table, "key": key, "bytes": bytes.len()}));
            damaged.len() < limit
        },
    )?;
    Ok(damaged)
}

/// Where a dead letter lies.
enum Found {
    Message(u64, Box<Message>, Box<Live>),
    Event(u64, Box<Stored>, Box<Forwarding>),
}

impl Dead {
    /// The newest dead letters of both directions, and how many records were set aside as damaged.
    pub async fn list(&self, limit: usize) -> Result<Value, Problem> {
        let (inbox, outbox) = (self.inbox.place(), self.outbox.place());
        let read = self.journal.read(move |view| {
            let mut dead = vec![];
            walk(view, outbox, |seq, live: Live| {
                if is_dead(live.progress.state)
                    && let Some(message) = payload::<Message>(view, outbox, seq)
                {
                    dead.push((live.progress.finished_ms, show_message(&message, &live)));
                }
                dead.len() < limit
            })?;
            let messages = dead.len();
            walk(view, inbox, |seq, state: Forwarding| {
                if state.label() == "dead"
                    && let Some(stored) = payload::<Stored>(view, inbox, seq)
                {
                    dead.push((state.finished_ms, show_event(&stored, &state)));
                }
                dead.len() - messages < limit
            })?;
            dead.sort_by_key(|(finished_ms, _)| std::cmp::Reverse(*finished_ms));
            dead.truncate(limit);
            let dead: Vec<_> = dead.into_iter().map(|(_, shown)| shown).collect();
            let damaged = damaged(view, limit)?;
            Ok(json!({"dead": dead, "damaged": damaged, "damaged_records": view.len(Table::Quarantine)?}))
        });
        read.await.map_err(|error| unreadable(&error))
    }

    /// One dead letter with its content.
    pub async fn show(&self, id: &str) -> Result<Value, Problem> {
        Ok(match self.find(id).await? {
            Found::Message(_, message, live) => {
                json!({"direction": "outbound", "message": show::with_content(&message, &live)})
            }
            Found::Event(_, stored, state) => {
                let mut shown = show_event(&stored, &state);
                if let Some(members) = shown.as_object_mut() {
                    let body = serde_json::from_str(stored.body.get()).unwrap_or(Value::Null);
                    members.insert("body".to_owned(), body);
                }
                shown
            }
        })
    }

    /// Takes a dead letter up again under its old id.
    pub async fn replay(&self, id: &str) -> Result<Value, Problem> {
        let _alone = (self.outbox.upkeep().await, self.inbox.upkeep().await);
        let wall_ms = self.clock.wall_ms();
        let mut batch = Batch::default();
        match self.find(id).await? {
            Found::Message(_, message, _) if matches!(message.to, To::Accounts(_)) => {
                return Err(Problem::from_reason(
                    409,
                    "not_replayable",
                    "Not replayable",
                    &not_linked(),
                ));
            }
            Found::Message(seq, _, mut live) => {
                reopen(&mut live, wall_ms);
                self.outbox.reopen(&mut batch, seq, &live);
                self.commit(batch).await?;
                self.outbox.appended(seq, live.tag(), *live);
            }
            Found::Event(seq, _, mut state) => {
                for target in state.targets.iter_mut().flatten() {
                    if target.state == TargetState::Dead {
                        target.state = TargetState::Waiting;
                        target.attempts = 0;
                        target.due_ms = 0;
                    }
                }
                state.finished_ms = None;
                state.accepted_ms = wall_ms;
                state.generation += 1;
                self.inbox.reopen(&mut batch, seq, &state);
                self.commit(batch).await?;
                self.inbox.appended(seq, state.tag(), *state);
            }
        }
        tracing::info!(id, "a dead letter was replayed");
        Ok(json!({"id": id, "state": "queued"}))
    }

    /// Removes a dead letter for good.
    pub async fn purge(&self, id: &str) -> Result<Value, Problem> {
        let _alone = (self.outbox.upkeep().await, self.inbox.upkeep().await);
        let mut batch = Batch::default();
        match self.find(id).await? {
            Found::Message(seq, ..) => self.outbox.purge(&mut batch, seq),
            Found::Event(seq, ..) => self.inbox.purge(&mut batch, seq),
        }
        self.commit(batch).await?;
        tracing::info!(id, "a dead letter was purged");
        Ok(json!({"id": id, "purged": true}))
    }

    async fn commit(&self, batch: Batch) -> Result<(), Problem> {
        let failed = |_| Problem::unavailable("store_failed", "the journal cannot be written", 5);
        self.journal.commit(batch).await.map_err(failed)
    }

    async fn find(&self, id: &str) -> Result<Found, Problem> {
        let (inbox, outbox) = (self.inbox.place(), self.outbox.place());
        let wanted = id.to_owned();
        let read = self
            .journal
            .read(move |view| match wanted.parse::<MessageId>() {
                Ok(id) => find_message(view, outbox, id),
                Err(_) => find_event(view, inbox, &wanted),
            });
        read.await
            .map_err(|error| unreadable(&error))?
            .ok_or_else(|| {
                let detail = "no dead letter has this id; see `dingd dead list`";
                Problem::new(404, "dead_letter_not_found", "No such dead letter", detail)
            })
    }
}

fn find_message(view: &View<'_>, place: Place, id: MessageId) -> Result<Option<Found>, ReadError> {
    let seq = id.seq();
    let live = view.get(place.done, &seq.to_be_bytes())?;
    let live = live.and_then(|live| record::decode::<Live>(&live).ok());
    let live = live.filter(|live| is_dead(live.progress.state));
    let message = payload::<Message>(view, place, seq).filter(|message| message.id == id);
    let both = live.zip(message);
    Ok(both.map(|(live, message)| Found::Message(seq, Box::new(message), Box::new(live))))
}

fn find_event(view: &View<'_>, place: Place, id: &str) -> Result<Option<Found>, ReadError> {
    let mut found = None;
    walk(view, place, |seq, state: Forwarding| {
        if state.label() == "dead"
            && let Some(stored) = payload::<Stored>(view, place, seq).filter(|s| s.id == id)
        {
            found = Some(Found::Event(seq, Box::new(stored), Box::new(state)));
        }
        found.is_none()
    })?;
    Ok(found)
}

/// As if it had just been accepted, but under its id and with what was delivered kept.
fn reopen(live: &mut Live, wall_ms: u64) {
    let progress = &mut live.progress;
    for call in progress
        .calls
        .iter_mut()
        .filter(|call| call.outcome != CallOutcome::Sent)
    {
        call.outcome = CallOutcome::Pending;
        call.attempts = 0;
        for recipient in &mut call.recipients {
            if recipient.outcome != RecipientOutcome::Sent {
                recipient.outcome = RecipientOutcome::Pending;
            }
        }
    }
    progress.state = State::Queued;
    progress.failures = 0;
    progress.ambiguous = 0;
    progress.due_ms = 0;
    progress.finished_ms = None;
    progress.generation += 1;
    live.expires_ms = wall_ms + live.priority.lifetime_ms();
}

fn is_dead(state: State) -> bool {
    matches!(state, State::Dead | State::Unknown | State::Expired)
}

fn walk<S: serde::de::DeserializeOwned>(
    view: &View<'_>,
    place: Place,
    mut visit: impl FnMut(u64, S) -> bool,
) -> Result<(), ReadError> {
    let mut looked_at = 0;
    view.walk(
        place.done,
        &[],
        &[],
        Order::Descending,
        &mut |key, value| {
            looked_at += 1;
            let go_on = record::decode(value).map_or(true, |state| visit(seq_of(key), state));
            go_on && looked_at < LOOKED_AT_MAX
        },
    )
}

fn payload<P: serde::de::DeserializeOwned>(view: &View<'_>, place: Place, seq: u64) -> Option<P> {
    record::decode(&view.get(place.payload, &seq.to_be_bytes()).ok()??).ok()
}

fn show_message(message: &Message, live: &Live) -> Value {
    json!({"direction": "outbound", "id": message.id, "state": live.progress.state,
        "to": message.to, "priority": live.priority, "reason": live.progress.reason,
        "accepted_at": rfc3339(live.accepted_ms), "attempts": live.progress.attempts,
        "finished_at": live.progress.finished_ms.map(rfc3339)})
}

fn show_event(stored: &Stored, state: &Forwarding) -> Value {
    json!({"direction": "inbound", "id": stored.id, "state": state.label(), "type": stored.kind,
        "app": stored.app, "subject": stored.subject, "targets": state.targets,
        "accepted_at": rfc3339(stored.accepted_ms),
        "finished_at": state.finished_ms.map(rfc3339)})
}

fn unreadable(error: &ReadError) -> Problem {
    tracing::error!(%error, "the journal cannot be read");
    Problem::unavailable("store_failed", "the journal cannot be read", 5)
}
