//! What must be true once everything has settled, whatever the dice said.

use std::collections::{BTreeMap, BTreeSet};

use dingd::delivery::event::{Forwarding, Stored, TargetState};
use dingd::delivery::id::MessageId;
use dingd::delivery::record;
use dingd::delivery::state::{Ambiguous, State};
use dingd::dingtalk::message::Content;
use dingd::journal::queue::seq_of;
use dingd::journal::{Order, ReadError, Table, View, number_of};
use dingd::outbound::{Live, Message as Kept, Route};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::Simulation;
use super::life::Life;
use super::world::Delivered;

/// Everything that is in the store.
struct Store {
    events: BTreeMap<u64, (Stored, Forwarding)>,
    messages: BTreeMap<u64, (Kept, Live)>,
    digests: BTreeMap<MessageId, (Kept, Live)>,
    /// Messages that make or change a card, and what is known of each card.
    of_cards: BTreeMap<u64, (Kept, Live)>,
    cards: Vec<Value>,
    /// Events and messages that have ended and were removed.
    purged: [u64; 2],
    /// Sends in the month's ledger.
    counted: u64,
    faults: Vec<String>,
}

/// Calls that can be under way when a life ends.
const UNDER_WAY_MAX: u64 = 64;

fn counted(view: &View<'_>) -> Result<u64, ReadError> {
    let mut sum = 0;
    view.walk(
        Table::Ledger,
        &[],
        &[],
        Order::Ascending,
        &mut |key, value| {
            if !key.ends_with(b"sceneGroups.query") {
                sum += number_of(value);
            }
            true
        },
    )?;
    Ok(sum)
}

/// How messages and events ended.
pub type Tally = BTreeMap<String, u32>;

pub fn judge(simulation: &Simulation, life: &Life) -> Tally {
    let mut tally = Tally::new();
    match life.journal.read_blocking(|view| Store::read(view, life)) {
        Ok(mut store) => {
            store.callbacks(simulation);
            store.messages(simulation);
            store.digests(simulation);
            store.cards(simulation);
            store.order(simulation);
            store.outcomes(simulation);
            store.targets(simulation);
            store.month(simulation);
            for (_, live) in store.messages.values() {
                *tally
                    .entry(live.progress.state.label().to_owned())
                    .or_default() += 1;
                *tally.entry("reordered".to_owned()).or_default() +=
                    u32::from(live.progress.reordered);
            }
            for (_, live) in store.of_cards.values() {
                let state = live.progress.state.label();
                *tally.entry(format!("cards {state}")).or_default() += 1;
            }
            for (_, state) in store.events.values() {
                *tally
                    .entry(format!("events {}", state.label()))
                    .or_default() += 1;
            }
            for fault in store.faults {
                simulation.world.fault(&fault);
            }
        }
        Err(error) => simulation.world.fault(&error.to_string()),
    }
    tally
}

impl Store {
    fn read(view: &View<'_>, life: &Life) -> Result<Self, ReadError> {
        let mut faults = vec![];
        let books = [
            life.inbox.queue.books(view)?,
            life.outbox.queue.books(view)?,
        ];
        for books in books {
            if books.mismatch() != 0 || books.quarantined != 0 {
                faults.push(format!("the books do not balance: {books:?}"));
            }
        }
        if view.len(Table::Quarantine)? != 0 {
            faults.push("something was set aside as damaged".to_owned());
        }
        let events = zip(
            rows(view, Table::InboxPayload)?,
            rows(view, Table::InboxLive)?,
            rows(view, Table::InboxDone)?,
            &mut faults,
        );
        let outbox = zip(
            rows(view, Table::OutboxPayload)?,
            rows(view, Table::OutboxLive)?,
            rows(view, Table::OutboxDone)?,
            &mut faults,
        );
        let (mut messages, mut digests) = (BTreeMap::new(), BTreeMap::new());
        let (mut of_cards, mut cards) = (BTreeMap::new(), vec![]);
        view.walk(Table::Cards, &[], &[], Order::Ascending, &mut |_, value| {
            cards.push(record::decode(value).unwrap());
            true
        })?;
        for (seq, (kept, live)) in outbox {
            let kept: Kept = kept;
            if kept.content.is_card() {
                of_cards.insert(seq, (kept, live));
            } else if kept.members.is_empty() {
                messages.insert(seq, (kept, live));
            } else {
                digests.insert(kept.id, (kept, live));
            }
        }
        Ok(Self {
            events,
            messages,
            digests,
            of_cards,
            cards,
            purged: books.map(|books| books.purged),
            counted: counted(view)?,
            faults,
        })
    }

    /// Every send that arrived was counted once; those that were under way when a life ended may not have
    /// left.
    fn month(&mut self, simulation: &Simulation) {
        let outside = simulation.world.lock();
        let (least, lives) = (outside.arrived_sends, outside.starts_ms.len() as u64);
        let most = outside.sends + lives * UNDER_WAY_MAX;
        if !(least..=most).contains(&self.counted) {
            let counted = self.counted;
            self.faults.push(format!(
                "{counted} sends were counted, but from {least} to {most} were made"
            ));
        }
    }

    /// Every callback that was acknowledged is there, once, under its id.
    fn callbacks(&mut self, simulation: &Simulation) {
        let mut by_id: BTreeMap<&str, u32> = BTreeMap::new();
        for (stored, _) in self.events.values() {
            *by_id.entry(&stored.id).or_default() += 1;
        }
        let twice = by_id.iter().filter(|(_, times)| **times > 1);
        self.faults
            .extend(twice.map(|(id, times)| format!("{id} is stored {times} times")));
        let outside = simulation.world.lock();
        let seen = outside.ids();
        for callback in &simulation.callbacks {
            let id = callback.event_id.as_str();
            let is_kept = by_id.contains_key(id) || self.purged[0] > 0 && seen.contains(id);
            if callback.acknowledged_ms.is_some() != is_kept {
                let when = callback.acknowledged_ms;
                self.faults.push(format!(
                    "callback {id}: acknowledged at {when:?}, kept: {is_kept}"
                ));
            }
        }
    }

    /// What an event's state says of each upstream is what that upstream saw.
    fn targets(&mut self, simulation: &Simulation) {
        let outside = simulation.world.lock();
        for (stored, state) in self.events.values() {
            let Some(targets) = state.targets.as_ref().filter(|_| state.is_settled()) else {
                self.faults.push(format!("{} has not settled", stored.id));
                continue;
            };
            for target in targets {
                let key = (format!("{}.example", target.upstream), stored.id.clone());
                let seen: Option<&Delivered> = outside.delivered.get(&key);
                let wrong = match target.state {
                    TargetState::Forwarded => {
                        !seen.is_some_and(|seen| seen.taken && seen.body == stored.body.get())
                    }
                    // Only an event that nobody took in its time is given up, with a reason.
                    TargetState::Dead => {
                        let age_ms = state
                            .finished_ms
                            .unwrap_or(0)
                            .saturating_sub(state.accepted_ms);
                        // A clock that was set back between the end of this target and that of the other
                        // makes it look younger.
                        let is_young = age_ms < simulation.inbound_lifetime_ms;
                        target.reason.is_none() || is_young && outside.jumps == 0
                    }
                    TargetState::Waiting => true,
                };
                if wrong {
                    self.faults
                        .push(format!("{} {target:?}: they saw {seen:?}", stored.id));
                }
            }
        }
    }

    /// How often each message is stored: a client without a key that heard nothing sends another.
    fn copies(&self) -> BTreeMap<usize, u32> {
        let mut copies = BTreeMap::new();
        if self.purged[1] > 0 {
            // Nobody knows any more.
            return copies;
        }
        for (kept, _) in self.messages.values() {
            *copies.entry(number(kept)).or_default() += 1;
        }
        copies
    }

    /// Every message that was accepted has ended, once, as it says; a key is one message.
    fn messages(&mut self, simulation: &Simulation) {
        let ids: BTreeMap<MessageId, usize> = simulation
            .messages
            .iter()
            .enumerate()
            .flat_map(|(n, message)| message.accepted.iter().map(move |(_, id)| (*id, n)))
            .collect();
        let (copies, told) = (self.copies(), self.told(simulation));
        let outside = simulation.world.lock();
        for (kept, live) in self.messages.values() {
            let n = number(kept);
            let state = live.progress.state;
            let sent = matches!(state, State::Sent | State::Merged);
            let taken = outside.taken.get(&(n as u64)).copied().unwrap_or(0);
            let asked = &simulation.messages[n];
            let mut wrong = vec![];
            if live.id != kept.id || !state.is_terminal() || live.progress.finished_ms.is_none() {
                wrong.push("has not ended");
            }
            if state == State::Sent && taken == 0 {
                wrong.push("was never taken");
            }
            let digest = live.digest.and_then(|id| self.digests.get(&id));
            if state == State::Merged
                && !digest.is_some_and(|(digest, live)| {
                    live.progress.state == State::Sent && digest.members.contains(&kept.id)
                })
                && self.purged[1] == 0
            {
                wrong.push("is merged into nothing that was sent");
            }
            if state == State::Merged && (taken > 0 && live.progress.attempts > 0) {
                wrong.push("was told twice");
            }
            // Who says hold or drop is never served twice.
            let once = live.ambiguous != Ambiguous::Retry && live.route == Route::Group;
            if once && taken > 1 && copies.get(&n) == Some(&1) {
                wrong.push("was taken twice");
            }
            if !sent && state != State::Cancelled && live.progress.reason.is_none() {
                wrong.push("has no reason");
            }
            if asked.cancelled && asked.accepted.len() == 1 && !sent && state != State::Cancelled {
                wrong.push("was withdrawn in time");
            }
            // Without steps of the wall clock both clocks agree.
            let accepted_ms = asked.accepted.iter().map(|(at_ms, _)| *at_ms).min();
            let age_ms = live
                .progress
                .finished_ms
                .unwrap_or(0)
                .saturating_sub(live.accepted_ms);
            if state == State::Expired
                && outside.jumps == 0
                && accepted_ms.is_some()
                && age_ms < asked.lifetime_ms
            {
                wrong.push("expired too early");
            }
            if !wrong.is_empty() {
                self.faults
                    .push(format!("message {n} ({}) {wrong:?}: {live:?}", kept.id));
            }
        }
        for (n, message) in simulation.messages.iter().enumerate() {
            let stored = copies.get(&n).copied().unwrap_or(0);
            if message.key.is_some() && stored > 1 {
                self.faults.push(format!(
                    "message {n} has a key and is stored {stored} times"
                ));
            }
        }
        let kept: Vec<_> = self.messages.values().map(|(kept, _)| kept.id).collect();
        for (id, n) in ids {
            // What was removed when its time was over was told of before.
            let is_over = self.purged[1] > 0 && told.contains_key(&id.to_string());
            if !kept.contains(&id) && !is_over {
                self.faults
                    .push(format!("message {n} was accepted as {id} and is lost"));
            }
        }
    }

    /// Every digest has ended and says the truth; what is in one that arrived is in no other.
    fn digests(&mut self, simulation: &Simulation) {
        let outside = simulation.world.lock();
        let ids: BTreeMap<_, _> = self
            .messages
            .values()
            .map(|(kept, live)| (kept.id, live))
            .collect();
        for (digest, live) in self.digests.values() {
            let state = live.progress.state;
            let Content::Text(text) = &digest.content else {
                self.faults.push(format!("{} is no text", digest.id));
                continue;
            };
            if !state.is_terminal()
                || state == State::Sent && !outside.digests.contains(&text.content)
            {
                self.faults.push(format!(
                    "digest {} is {}, but: {live:?}",
                    digest.id,
                    state.label()
                ));
            }
            let parts = digest.members.iter().filter_map(|id| ids.get(id));
            let astray = parts.filter(|part| match state {
                State::Sent => {
                    part.progress.state != State::Merged || part.digest != Some(digest.id)
                }
                State::Unknown => part.progress.state != State::Unknown,
                _ => part.digest == Some(digest.id),
            });
            for part in astray {
                self.faults.push(format!(
                    "digest {} is {}, in it {part:?}",
                    digest.id,
                    state.label()
                ));
            }
        }
    }

    /// Every message of a card has ended, and DingTalk shows what is known of each card: what was accepted last,
    /// unless something of it was refused, withdrawn or too late.
    fn cards(&mut self, simulation: &Simulation) {
        let outside = simulation.world.lock();
        let mut good: BTreeMap<&str, bool> = BTreeMap::new();
        let mut doubtful: BTreeSet<&str> = BTreeSet::new();
        for (kept, live) in self.of_cards.values() {
            let state = live.progress.state;
            if !state.is_terminal() || live.progress.finished_ms.is_none() {
                self.faults
                    .push(format!("{} has not ended: {live:?}", kept.id));
            }
            let name = kept.content.out_track_id().unwrap_or_default();
            *good.entry(name).or_insert(true) &= matches!(state, State::Sent | State::Merged);
            // DingTalk may have done before what it refused when it was asked again: nobody can know.
            if !matches!(state, State::Sent | State::Merged) && live.progress.attempts > 1 {
                doubtful.insert(name);
            }
        }
        for card in &self.cards {
            let name = card["out_track_id"].as_str().unwrap_or_default();
            let shown = outside.cards.get(name).copied();
            let number = |face: &Value| face["data"]["n"].as_str()?.parse::<u64>().ok();
            let base = number(&card["base"]);
            let all_there = card["waiting"].is_null() && card["flight"].is_null();
            let good = good.get(name).copied().unwrap_or(false) && self.purged[1] == 0;
            let accepted = simulation.cards.get(name).copied();
            let mut wrong = vec![];
            if !card["flight"].is_null() {
                wrong.push("something is still in flight");
            }
            let known = all_there && !doubtful.contains(name);
            if card["made"] == "yes" && known && base != shown {
                wrong.push("DingTalk shows something else");
            }
            if card["made"] == "yes" && shown.is_none() {
                wrong.push("it was not made");
            }
            if good && !all_there {
                wrong.push("something waits that nobody carries");
            }
            // What was accepted without anybody hearing it is more than the client knows.
            if good && accepted.is_none_or(|accepted| shown < Some(accepted)) {
                wrong.push("what was accepted last is not shown");
            }
            if !wrong.is_empty() {
                let messages: Vec<_> = self
                    .of_cards
                    .values()
                    .filter(|(kept, _)| kept.content.out_track_id() == Some(name))
                    .map(|(_, live)| &live.progress)
                    .collect();
                self.faults.push(format!(
                    "card {name} shows {shown:?}, accepted {accepted:?}: {wrong:?}: {card}; its messages: {messages:?}"
                ));
            }
        }
    }

    /// First in, first out in each lane, but for those that stepped aside, and as long as no restart
    /// made the daemon forget who had.
    fn order(&mut self, simulation: &Simulation) {
        let copies = self.copies();
        let outside = simulation.world.lock();
        let mut latest: BTreeMap<u64, (u64, usize)> = BTreeMap::new();
        for (kept, live) in self.messages.values() {
            let n = number(kept);
            if copies.get(&n) != Some(&1) {
                continue;
            }
            let accepted = &simulation.messages[n].accepted;
            let seen_ms = outside.first_seen_ms.get(&(n as u64));
            let ([(accepted_ms, _)], Some(seen_ms)) = (accepted.as_slice(), seen_ms) else {
                continue;
            };
            let restarted = outside
                .starts_ms
                .iter()
                .any(|start_ms| (accepted_ms..=seen_ms).contains(&start_ms));
            // In the order of acceptance: nobody before this one may have been seen later.
            let before = latest.get(&live.lane).copied();
            if let Some((before_ms, before)) = before.filter(|(before_ms, _)| before_ms > seen_ms) {
                self.faults.push(format!(
                    "message {n}, seen at {seen_ms} ms, overtook {before}, seen at {before_ms} ms"
                ));
            }
            if !restarted && !live.progress.reordered {
                let entry = latest.entry(live.lane).or_insert((*seen_ms, n));
                *entry = (*entry).max((*seen_ms, n));
            }
        }
    }

    /// The ends that were told, or wait to be, by message.
    fn told(&self, simulation: &Simulation) -> BTreeMap<String, Vec<String>> {
        let mut told: BTreeMap<String, Vec<String>> = BTreeMap::new();
        let outside = simulation.world.lock();
        let seen = outside
            .delivered
            .iter()
            .map(|(key, seen)| (key.1.clone(), seen.body.clone()));
        let stored = self.events.values().map(|(stored, _)| {
            let body = bytes::Bytes::copy_from_slice(stored.body.get().as_bytes());
            (stored.id.clone(), body)
        });
        let all: BTreeMap<_, _> = seen.chain(stored).collect();
        for body in all.values() {
            let body: Value = serde_json::from_slice(body).unwrap();
            if body["type"] == "dingd.message.finished" {
                let id = body["subject"].as_str().unwrap_or_default().to_owned();
                let state = body["data"]["state"]
                    .as_str()
                    .unwrap_or_default()
                    .to_owned();
                told.entry(id).or_default().push(state);
            }
        }
        told
    }

    /// Each message that has ended was told as one event, and as what it is.
    fn outcomes(&mut self, simulation: &Simulation) {
        let mut told = self.told(simulation);
        for (kept, live) in self.messages.values().chain(self.of_cards.values()) {
            let state = live.progress.state.label();
            let outcomes = told.remove(&kept.id.to_string()).unwrap_or_default();
            if outcomes != [state] {
                self.faults.push(format!(
                    "{} is {state} and was told as {outcomes:?}",
                    kept.id
                ));
            }
        }
        if self.purged[1] == 0 && !told.is_empty() {
            self.faults
                .push(format!("outcomes of messages that are not there: {told:?}"));
        }
    }
}

fn rows<T: DeserializeOwned>(view: &View<'_>, table: Table) -> Result<BTreeMap<u64, T>, ReadError> {
    let mut rows = BTreeMap::new();
    view.walk(table, &[], &[], Order::Ascending, &mut |key, value| {
        let (first, _) = record::split_first(value).unwrap();
        rows.insert(seq_of(key), record::decode(first).unwrap());
        true
    })?;
    Ok(rows)
}

/// Each entry has what was accepted and is live or done, never both.
fn zip<P, S>(
    payloads: BTreeMap<u64, P>,
    live: BTreeMap<u64, S>,
    mut done: BTreeMap<u64, S>,
    faults: &mut Vec<String>,
) -> BTreeMap<u64, (P, S)> {
    for (seq, state) in live {
        if done.insert(seq, state).is_some() {
            faults.push(format!("entry {seq} is live and done"));
        }
    }
    let mut both = BTreeMap::new();
    for (seq, payload) in payloads {
        match done.remove(&seq) {
            Some(state) => drop(both.insert(seq, (payload, state))),
            None => faults.push(format!("entry {seq} has no state")),
        }
    }
    if !done.is_empty() {
        faults.push(format!("{} entries have no payload", done.len()));
    }
    both
}

fn number(kept: &Kept) -> usize {
    let text = serde_json::to_string(&kept.content).unwrap();
    text.split('#').nth(1).unwrap().parse().unwrap()
}
