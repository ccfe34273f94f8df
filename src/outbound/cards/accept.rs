//! A new card, or a change of one: on disk before the 202.

use super::{Card, Held, Lock, Standing};
use crate::delivery::id::MessageId;
use crate::delivery::record;
use crate::delivery::state::{Ambiguous, Call, Priority, Progress};
use crate::dingtalk::digest::Fold;
use crate::dingtalk::instance::{Change, Generation, Patch, check_size, check_variables};
use crate::dingtalk::message::{At, Content};
use crate::faults::point;
use crate::http::audit::Who;
use crate::http::problem::Problem;
use crate::journal::Batch;
use crate::metrics;
use crate::outbound::accept::{Accepted, Once, Outbox, Used, lane, new_id, not_stored};
use crate::outbound::receive::unreadable;
use crate::outbound::request::{app, unfit_problem};
use crate::outbound::{Live, Message, Route, To};

/// Who sends what the daemon sends of itself.
const CLIENT: &str = "dingd";

/// What carries changes of such a card.
pub(in crate::outbound) fn change_route(generation: Generation) -> Route {
    match generation {
        Generation::Current => Route::CardUpdate,
        Generation::Legacy => Route::LegacyCardUpdate,
    }
}

/// A change of a card, checked.
#[derive(Debug)]
pub struct Patching<'a> {
    /// The app.
    pub app: &'a str,
    /// The card.
    pub out_track_id: &'a str,
    /// What changes.
    pub patch: Patch,
    /// How urgent; `None`: as the card, but no more urgent than `most_urgent`.
    pub priority: Option<Priority>,
    /// What the client may use.
    pub most_urgent: Priority,
    /// Who asks; `None`: the daemon itself, which changes all cards, those that it did not send as well.
    pub who: Option<&'a Who>,
    /// The message that is made for it does not leave sooner, in milliseconds of wall time.
    pub not_before_ms: u64,
}

/// A card without a name gets that of its message.
pub(in crate::outbound) fn name(message: &mut Message) {
    let id = message.id;
    if let Content::Card(order) = &mut message.content
        && order.out_track_id.is_empty()
    {
        order.out_track_id = id.to_string();
    }
}

impl Outbox {
    /// The record of a card that is about to be accepted; `None` if the message is no card.
    pub(in crate::outbound) async fn new_card(
        &self,
        message: &Message,
        live: &Live,
    ) -> Result<Option<Box<Held>>, Problem> {
        let Content::Card(order) = &message.content else {
            return Ok(None);
        };
        let held = self.cards.hold(&message.app, &order.out_track_id).await;
        match held.map_err(|error| unreadable(&error))? {
            new @ Lock::New(_) => Ok(Some(new.or(|| Card::new(message, live, order)))),
            Lock::Known(_) => {
                let detail = "out_track_id: there is a card of this name already";
                Err(
                    Problem::new(409, "card_exists", "Card exists", detail).fix(
                        "换一个 out_track_id；要改变已有的卡片，请用 PATCH /v1/cards/{out_track_id}。",
                        "Choose another out_track_id; to change that card use PATCH /v1/cards/{out_track_id}.",
                    ),
                )
            }
        }
    }

    /// Changes a card on behalf of the daemon, which may do so with cards of others too, whatever name those have:
    /// the late answer to a click. It leaves no sooner than at wall time `not_before_ms`. It is durable when this
    /// returns `Ok`.
    pub async fn patch_card(
        &self,
        app: &str,
        out_track_id: &str,
        patch: Patch,
        not_before_ms: u64,
    ) -> Result<Accepted, Problem> {
        let checked = check_variables(&patch.data, &patch.private_data);
        checked.map_err(|unfit| unfit_problem(&unfit))?;
        let patching = Patching {
            app,
            out_track_id,
            patch,
            priority: None,
            most_urgent: Priority::Critical,
            who: None,
            not_before_ms,
        };
        self.admit(Priority::High)?;
        self.patch(patching, Once::Unkeyed).await
    }

    /// A click was answered with `patch`, and DingTalk shows that since `at_ms`: no call is needed, but what is
    /// known of the card follows. If an older change is still on its way and would undo it, it goes out behind
    /// that one. Nothing is noted of cards that this daemon knows nothing of.
    pub async fn note_shown(
        &self,
        app: &str,
        out_track_id: &str,
        patch: Patch,
        at_ms: u64,
    ) -> Result<(), Problem> {
        let lock = self.cards.hold(app, out_track_id).await;
        let Lock::Known(mut held) = lock.map_err(|error| unreadable(&error))? else {
            return Ok(());
        };
        let undone = held.card.shown(patch.clone(), at_ms);
        if undone && held.card.standing(&held.alive) != Standing::Dead {
            drop(held);
            return self.patch_card(app, out_track_id, patch, 0).await.map(drop);
        }
        let mut batch = Batch::default();
        held.put(&mut batch, self.clock.wall_ms());
        point("shown.before");
        let stored = self.journal.commit(batch).await;
        stored.map_err(|_| not_stored())?;
        point("shown.after");
        Ok(())
    }

    /// Changes a card; it is durable when this returns `Ok`.
    pub async fn patch(&self, asked: Patching<'_>, once: Once) -> Result<Accepted, Problem> {
        let keyed = match once {
            Once::Replayed(answer) => return Ok(answer),
            Once::First { key, body, guard } => Some((key, body, guard)),
            Once::Unkeyed => None,
        };
        let wall_ms = self.clock.wall_ms();
        let mut held = self.to_be_patched(&asked, wall_ms).await?;
        let mut patch = asked.patch;
        let mut face = held.card.wanted();
        patch.spell_out(&face);
        face.apply(patch.clone());
        check_size(&face).map_err(|unfit| unfit_problem(&unfit))?;
        let as_card = held.card.priority.max(asked.most_urgent);
        let priority = asked.priority.unwrap_or(as_card);
        let change = Change {
            out_track_id: asked.out_track_id.to_owned(),
            generation: held.card.generation,
        };
        // What has little time left takes nothing along that has more.
        let until_ms = wall_ms + priority.lifetime_ms() / 2;
        let mut batch = Batch::default();
        let carrier = held.card.carrier(&held.alive, priority, until_ms);
        let (answer, new) = if let Some(live) = carrier {
            let mut answer = self.answer(live, &Content::CardUpdate(change));
            // It is in the count already.
            answer.position = answer.position.saturating_sub(1);
            held.card.waiting.push(live.id, patch);
            (answer, None)
        } else {
            let client = asked.who.map_or(CLIENT, Who::name);
            let mut new = self.new_update((asked.app, client), change, priority, wall_ms);
            if asked.not_before_ms > wall_ms {
                new.1.progress.due_ms = asked.not_before_ms;
            }
            let (message, live) = &new;
            let payload = record::encode(message);
            self.queue
                .append(&mut batch, message.id.seq(), &payload, live);
            held.card.carrier = Some(message.id);
            held.card.waiting.push(message.id, patch);
            (self.answer(live, &message.content), Some(new))
        };
        held.card.changed_ms = wall_ms;
        held.put(&mut batch, wall_ms);
        if let Some((key, body, _)) = &keyed {
            let used = Used::new(*body, answer.clone());
            self.idempotency.note(&mut batch, &[*key], &used, wall_ms);
        }
        point("patch.before");
        let (tell, told) = tokio::sync::oneshot::channel();
        let (fresh, queue) = (self.fresh.clone(), self.queue.clone());
        let (idempotency, mono_ms) = (self.idempotency.clone(), self.clock.mono_ms());
        let said = answer.clone();
        // What follows from its being durable happens even if the client is gone.
        self.journal.submit(batch, move |result| {
            if result.is_ok() {
                if let Some((key, body, _guard)) = keyed {
                    idempotency.remember([key], &Used::new(body, said), wall_ms);
                }
                if let Some((message, live)) = new {
                    let seq = message.id.seq();
                    fresh.keep(seq, message, live.clone(), mono_ms);
                    queue.appended(seq, live.tag(), live);
                }
            }
            drop(held);
            if tell.send(result.is_ok()).is_err() {
                tracing::debug!(
                    "the client left before its change was stored; it is made all the same"
                );
            }
        });
        if !told.await.unwrap_or(false) {
            return Err(not_stored());
        }
        point("patch.after");
        metrics::admission(Some(priority), "accepted", "stored");
        Ok(answer)
    }

    /// Takes the card in hand, if it can be changed by who asks.
    async fn to_be_patched(
        &self,
        asked: &Patching<'_>,
        wall_ms: u64,
    ) -> Result<Box<Held>, Problem> {
        let settings = self.settings.load_full();
        let app = app(Some(asked.app), &settings)?;
        let lock = self.cards.hold(&app.name, asked.out_track_id).await;
        let lock = lock.map_err(|error| unreadable(&error))?;
        let held = match (lock, asked.who) {
            (Lock::Known(held), Some(who)) if !held.card.is_for(who) => return Err(no_such_card()),
            (Lock::Known(held), _) => held,
            (Lock::New(_), Some(_)) => return Err(no_such_card()),
            (new, None) => {
                let generation = super::ask::generation(app);
                new.or(|| Card::of_others(&app.name, asked.out_track_id, generation, wall_ms))
            }
        };
        if held.card.standing(&held.alive) == Standing::Dead {
            let reason = super::fly::not_sent();
            return Err(Problem::from_reason(
                409,
                "card_not_sent",
                "Card not sent",
                &reason,
            ));
        }
        Ok(held)
    }

    fn new_update(
        &self,
        (app, client): (&str, &str),
        change: Change,
        priority: Priority,
        wall_ms: u64,
    ) -> (Message, Live) {
        let route = change_route(change.generation);
        let to = To::Card(change.out_track_id.clone());
        let id: MessageId = new_id(wall_ms, self.queue.reserve());
        let mut live = Live {
            id,
            app: app.to_owned(),
            target: change.out_track_id.clone(),
            lane: lane(app, &to, priority),
            priority,
            accepted_ms: wall_ms,
            expires_ms: wall_ms + priority.lifetime_ms(),
            bytes: 0,
            ambiguous: Ambiguous::Retry,
            route,
            progress: Progress::new(vec![Call::to(vec![])]),
            fold: Fold::Never,
            digest: None,
            unkeyed: false,
            session_over: false,
        };
        let message = Message {
            id,
            app: app.to_owned(),
            to,
            content: Content::CardUpdate(change),
            at: At::default(),
            robot_code: String::new(),
            cool_app_code: None,
            merge_key: None,
            resolved: false,
            parts: vec![],
            members: vec![],
            session: None,
            client: client.to_owned(),
        };
        live.bytes = record::encode(&message).len() as u64;
        (message, live)
    }
}

impl Card {
    /// Whether `who` may see and change it.
    pub(super) fn is_for(&self, who: &Who) -> bool {
        self.client.as_deref().is_none_or(|client| who.owns(client))
    }
}

/// Nobody may know of the cards of others.
pub(super) fn no_such_card() -> Problem {
    let detail =
        "no card of this name was sent through this daemon by this client in the last 30 days";
    Problem::new(404, "card_not_found", "No such card", detail)
}
