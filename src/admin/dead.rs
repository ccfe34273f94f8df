//! Dead letters of both directions, for the operator: what was given up, why, and how to give it another
//! chance. Messages are [`crate::outbound::dead`]'s; here they meet events and damaged records.

use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::clock::{Clock, rfc3339};
use crate::delivery::dead::Mortal;
use crate::delivery::event::{Forwarding, Stored, TargetState};
use crate::delivery::id::hex;
use crate::delivery::state::State;
use crate::http::audit::Who;
use crate::http::problem::Problem;
use crate::journal::dead::{Key, Looked, Span, load, look};
use crate::journal::queue::Queue;
use crate::journal::{Batch, Journal, Order, ReadError, Table, View};
use crate::outbound::accept::Outbox;
use crate::outbound::dead::filter::{Cursor, Direction, Filter};
use crate::outbound::dead::{Bulk, STEP_MAX, no_such_letter};
use crate::outbound::receive::unreadable;
use crate::outbound::{Live, Message, show};

/// Access to the dead letters.
#[derive(Debug)]
pub struct Dead {
    /// The store.
    pub journal: Journal,
    /// Events.
    pub inbox: Arc<Queue<Forwarding>>,
    /// Messages.
    pub outbox: Arc<Outbox>,
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

impl Dead {
    /// The newest dead letters that `filter` lets through, below `cursor`; and how many records were set
    /// aside as damaged.
    pub async fn list(
        &self,
        filter: Filter,
        cursor: Option<Cursor>,
        limit: usize,
    ) -> Result<Value, Problem> {
        let nothing = || Looked {
            found: vec![],
            on: None,
        };
        let messages = if filter.wants(Direction::Outbound) {
            let all = &Who::Operator;
            let outbox = &self.outbox;
            outbox
                .dead_messages(filter.clone(), all, cursor, limit)
                .await?
        } else {
            nothing()
        };
        let events = if filter.wants(Direction::Inbound) {
            self.events(filter, cursor, limit).await?
        } else {
            nothing()
        };
        let (dead, next_cursor) = merged([(false, messages), (true, events)], limit);
        let read = self
            .journal
            .read(move |view| Ok((damaged(view, limit)?, view.len(Table::Quarantine)?)));
        let (damaged, damaged_records) = read.await.map_err(|error| unreadable(&error))?;
        let next_cursor = next_cursor.map(|cursor| cursor.to_string());
        Ok(json!({"dead": dead, "next_cursor": next_cursor,
            "damaged": damaged, "damaged_records": damaged_records}))
    }

    async fn events(
        &self,
        filter: Filter,
        cursor: Option<Cursor>,
        limit: usize,
    ) -> Result<Looked<Value>, Problem> {
        let mut span = filter.span(Order::Descending);
        if let Some(cursor) = cursor {
            span.to = span.to.min(cursor.below(true));
        }
        loaded(&self.journal, &self.inbox).await?;
        let pick = move |stored: Stored, state: Forwarding| {
            takes_event(&filter, &stored, &state).then(|| show_event(&stored, &state))
        };
        look(&self.journal, &self.inbox, span, limit, pick)
            .await
            .map_err(|error| unreadable(&error))
    }

    /// One dead letter with its content.
    pub async fn show(&self, id: &str) -> Result<Value, Problem> {
        if is_message(id) {
            let (_, message, live) = self.outbox.dead_message(id, &Who::Operator).await?;
            return Ok(
                json!({"direction": "outbound", "message": show::with_content(&message, &live)}),
            );
        }
        loaded(&self.journal, &self.inbox).await?;
        let (_, stored, state) = self.find_event(id).await?;
        let mut shown = show_event(&stored, &state);
        if let Some(members) = shown.as_object_mut() {
            let body = serde_json::from_str(stored.body.get()).unwrap_or(Value::Null);
            members.insert("body".to_owned(), body);
        }
        Ok(shown)
    }

    /// Takes a dead letter up again under its old id.
    pub async fn replay(&self, id: &str) -> Result<Value, Problem> {
        if is_message(id) {
            return self.outbox.replay(id, &Who::Operator).await;
        }
        loaded(&self.journal, &self.inbox).await?;
        let _alone = self.inbox.upkeep().await;
        let (key, _, state) = self.find_event(id).await?;
        self.take_up(vec![(key, state)]).await?;
        Ok(json!({"id": id, "state": "queued"}))
    }

    /// Removes a dead letter for good.
    pub async fn purge(&self, id: &str) -> Result<Value, Problem> {
        if is_message(id) {
            let queue = &self.outbox.queue;
            let _alone = queue.upkeep().await;
            let (seq, _, live) = self.outbox.dead_message(id, &Who::Operator).await?;
            let ended_ms = live.progress.finished_ms.unwrap_or(0);
            remove(&self.journal, queue, &[(ended_ms, seq)]).await?;
        } else {
            loaded(&self.journal, &self.inbox).await?;
            let _alone = self.inbox.upkeep().await;
            let (key, ..) = self.find_event(id).await?;
            remove(&self.journal, &self.inbox, &[key]).await?;
        }
        Ok(json!({"id": id, "purged": true}))
    }

    /// Takes up again all that `filter` lets through.
    pub async fn replay_all(&self, filter: Filter) -> Result<Value, Problem> {
        let mut bulk = Bulk::default();
        if filter.wants(Direction::Outbound) {
            bulk = self.outbox.replay_all(&filter).await?;
        }
        if filter.wants(Direction::Inbound) {
            bulk = bulk.and(self.replay_events(filter).await?);
        }
        Ok(bulk.show("replayed"))
    }

    /// Removes all that `filter` lets through for good.
    pub async fn purge_all(&self, filter: Filter) -> Result<Value, Problem> {
        let span = filter.span(Order::Ascending);
        let mut bulk = Bulk::default();
        if filter.wants(Direction::Outbound) {
            let (queue, filter) = (&self.outbox.queue, filter.clone());
            let pick = move |message: &Message, live: &Live| filter.takes(message, live);
            bulk = purge_all(&self.journal, queue, span, pick).await?;
        }
        if filter.wants(Direction::Inbound) {
            let pick =
                move |stored: &Stored, state: &Forwarding| takes_event(&filter, stored, state);
            bulk = bulk.and(purge_all(&self.journal, &self.inbox, span, pick).await?);
        }
        Ok(bulk.show("purged"))
    }

    async fn replay_events(&self, filter: Filter) -> Result<Bulk, Problem> {
        let (journal, queue) = (&self.journal, &self.inbox);
        let mut bulk = Bulk::default();
        let Some(mut span) = up_to_now(journal, queue, filter.span(Order::Ascending)).await? else {
            return Ok(bulk);
        };
        loop {
            let _alone = queue.upkeep().await;
            let filter = filter.clone();
            let pick = move |stored: Stored, state: Forwarding| {
                takes_event(&filter, &stored, &state).then_some(state)
            };
            let looked = look(journal, queue, span, STEP_MAX, pick)
                .await
                .map_err(|error| unreadable(&error))?;
            bulk.matched += looked.found.len() as u64;
            bulk.done += looked.found.len() as u64;
            let mut again = looked.found;
            again.sort_by_key(|(key, _)| key.1);
            self.take_up(again).await?;
            match looked.on {
                Some(key) => span = span.behind(key),
                None => return Ok(bulk),
            }
        }
    }

    /// Events, with the inbox's upkeep in hand.
    async fn take_up(&self, letters: Vec<(Key, Forwarding)>) -> Result<(), Problem> {
        let wall_ms = self.clock.wall_ms();
        let mut batch = Batch::default();
        let mut again = vec![];
        for (key, mut state) in letters {
            reopen(&mut state, wall_ms);
            self.inbox.reopen(&mut batch, key.1, &state);
            again.push((key, state));
        }
        commit(&self.journal, batch).await?;
        for (key, state) in again {
            self.inbox.dead().remove(key);
            self.inbox.appended(key.1, state.tag(), state);
        }
        Ok(())
    }

    /// The index must be there.
    async fn find_event(&self, id: &str) -> Result<(Key, Stored, Forwarding), Problem> {
        let mut span = Filter::default().span(Order::Descending);
        loop {
            let wanted = id.to_owned();
            let pick = move |stored: Stored, state: Forwarding| {
                (stored.id == wanted).then_some((stored, state))
            };
            let looked = look(&self.journal, &self.inbox, span, 1, pick)
                .await
                .map_err(|error| unreadable(&error))?;
            if let Some((key, (stored, state))) = looked.found.into_iter().next() {
                return Ok((key, stored, state));
            }
            span = span.behind(looked.on.ok_or_else(no_such_letter)?);
        }
    }
}

/// The newest `limit` of both directions, and where to go on. A direction that has not been looked through
/// to its end says nothing about what is below the last it looked at.
fn merged(parts: [(bool, Looked<Value>); 2], limit: usize) -> (Vec<Value>, Option<Cursor>) {
    let place = |inbound, (ended_ms, seq): Key| Cursor {
        ended_ms,
        inbound,
        seq,
    };
    let mut rows = vec![];
    let mut floor = None;
    for (inbound, looked) in parts {
        floor = floor.max(looked.on.map(|key| place(inbound, key)));
        let found = looked.found.into_iter();
        rows.extend(found.map(|(key, shown)| (place(inbound, key), shown)));
    }
    rows.sort_by_key(|(cursor, _)| std::cmp::Reverse(*cursor));
    rows.retain(|(cursor, _)| floor.is_none_or(|floor| *cursor >= floor));
    let next = if rows.len() > limit {
        rows.truncate(limit);
        rows.last().map(|(cursor, _)| *cursor)
    } else {
        floor
    };
    (rows.into_iter().map(|(_, shown)| shown).collect(), next)
}

async fn loaded<S: Serialize + DeserializeOwned + Mortal>(
    journal: &Journal,
    queue: &Queue<S>,
) -> Result<(), Problem> {
    let loaded = load(journal, queue).await;
    loaded.map_err(|error| unreadable(&error))
}

/// `span` without what ends from now on; `None` if there is nothing in it.
async fn up_to_now<S: Serialize + DeserializeOwned + Mortal>(
    journal: &Journal,
    queue: &Queue<S>,
    span: Span,
) -> Result<Option<Span>, Problem> {
    loaded(journal, queue).await?;
    let newest = queue.dead().newest();
    Ok(newest.map(|(ended_ms, seq)| Span {
        to: span.to.min((ended_ms, seq.saturating_add(1))),
        ..span
    }))
}

async fn purge_all<P, S>(
    journal: &Journal,
    queue: &Queue<S>,
    span: Span,
    pick: impl Fn(&P, &S) -> bool + Clone + Send + 'static,
) -> Result<Bulk, Problem>
where
    P: DeserializeOwned,
    S: Serialize + DeserializeOwned + Mortal,
{
    let mut bulk = Bulk::default();
    let Some(mut span) = up_to_now(journal, queue, span).await? else {
        return Ok(bulk);
    };
    loop {
        let _alone = queue.upkeep().await;
        let pick = pick.clone();
        let pick = move |payload: P, state: S| pick(&payload, &state).then_some(());
        let looked = look(journal, queue, span, STEP_MAX, pick)
            .await
            .map_err(|error| unreadable(&error))?;
        let keys: Vec<_> = looked.found.into_iter().map(|(key, ())| key).collect();
        bulk.matched += keys.len() as u64;
        remove(journal, queue, &keys).await?;
        bulk.done += keys.len() as u64;
        match looked.on {
            Some(key) => span = span.behind(key),
            None => return Ok(bulk),
        }
    }
}

/// Removes dead letters for good, with the queue's upkeep in hand.
pub(super) async fn remove<S: Serialize + DeserializeOwned>(
    journal: &Journal,
    queue: &Queue<S>,
    keys: &[Key],
) -> Result<(), Problem> {
    let mut batch = Batch::default();
    for (_, seq) in keys {
        queue.purge(&mut batch, *seq);
    }
    commit(journal, batch).await?;
    for key in keys {
        queue.dead().remove(*key);
    }
    Ok(())
}

async fn commit(journal: &Journal, batch: Batch) -> Result<(), Problem> {
    let failed = |_| Problem::unavailable("store_failed", "the journal cannot be written", 5);
    journal.commit(batch).await.map_err(failed)
}

/// As if it had just come in, but under its id; upstreams that have it do not get it again.
fn reopen(state: &mut Forwarding, wall_ms: u64) {
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
}

fn is_message(id: &str) -> bool {
    id.starts_with("msg_")
}

fn takes_event(filter: &Filter, stored: &Stored, state: &Forwarding) -> bool {
    let same = |wanted: &Option<String>, text: Option<&str>| {
        wanted.as_deref().is_none_or(|wanted| text == Some(wanted))
    };
    let gave_up = |code: &str| {
        let dead = state.targets.iter().flatten();
        dead.filter(|target| target.state == TargetState::Dead)
            .filter_map(|target| target.reason.as_ref())
            .any(|reason| reason.code == code)
    };
    filter.wants(Direction::Inbound)
        && filter.state.is_none_or(|state| state == State::Dead)
        && filter.reason.as_deref().is_none_or(gave_up)
        && same(&filter.app, Some(&stored.app))
        && same(&filter.whom.chat, stored.subject.as_deref())
        && filter.whom.user.is_none()
        && filter.whom.robot.is_none()
}

fn show_event(stored: &Stored, state: &Forwarding) -> Value {
    json!({"direction": "inbound", "id": stored.id, "state": state.label(), "type": stored.kind,
        "app": stored.app, "subject": stored.subject, "targets": state.targets,
        "accepted_at": rfc3339(stored.accepted_ms),
        "finished_at": state.finished_ms.map(rfc3339)})
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delivery::event::Target;
    use crate::delivery::verdict::Reason;
    use crate::outbound::receive::Query;

    #[test]
    fn pages_of_both_directions_are_one_and_leave_nothing_out() {
        let looked = |keys: &[Key], on| Looked {
            found: keys.iter().map(|key| (*key, json!(key.1))).collect(),
            on,
        };
        // Two messages seen, more below (5, 2); events seen to their end.
        let page = || {
            [
                (false, looked(&[(9, 1), (5, 2)], Some((5, 2)))),
                (true, looked(&[(9, 7), (4, 8)], None)),
            ]
        };
        let (rows, next) = merged(page(), 2);
        assert_eq!(
            rows,
            [json!(7), json!(1)],
            "of one moment the event is newer"
        );
        assert_eq!(next.unwrap().to_string(), "9.out.1");
        let (rows, next) = merged(page(), 9);
        assert_eq!(
            rows,
            [json!(7), json!(1), json!(2)],
            "8 may have others above it"
        );
        assert_eq!(next.unwrap().to_string(), "5.out.2");
        let ends = [(false, looked(&[(9, 1)], None)), (true, looked(&[], None))];
        assert_eq!(merged(ends, 1), (vec![json!(1)], None));
    }

    #[test]
    fn a_filter_knows_events_by_their_chat_and_by_why_an_upstream_did_not_get_them() {
        let mut target = Target::waiting("platform");
        target.state = TargetState::Dead;
        target.reason = Some(Reason::new("upstream_gone", "", "", ""));
        let mut other = Target::waiting("other");
        other.reason = Some(Reason::new("upstream_failed", "", "", ""));
        let state = Forwarding {
            app: "oncall".into(),
            kind: "k".into(),
            lane: 0,
            accepted_ms: 1,
            bytes: 10,
            targets: Some(vec![target, other]),
            finished_ms: Some(2),
            generation: 0,
            asks: false,
        };
        let stored = Stored {
            id: "evt_1".into(),
            app: "oncall".into(),
            kind: "k".into(),
            subject: Some("cid1".into()),
            accepted_ms: 1,
            body: serde_json::value::to_raw_value(&json!({})).unwrap(),
            ask: None,
        };
        for (query, taken) in [
            ("", true),
            ("chat=cid1&app=oncall", true),
            ("reason=upstream_gone", true),
            ("reason=upstream_failed", false),
            ("state=dead", true),
            ("state=unknown", false),
            ("direction=outbound", false),
            ("user=u", false),
            ("robot=r", false),
        ] {
            let read = Query::of(query, &Filter::PARAMETERS).unwrap();
            let filter = Filter::from_query(&read).unwrap();
            assert_eq!(takes_event(&filter, &stored, &state), taken, "{query}");
        }
    }
}
