//! A storm becomes a digest: what waited too long in the lanes of one target goes out as one message.
//!
//! A digest is a message like any other, with the lane, limits and attempts of the one whose turn it was;
//! what it says is fixed when it is made, which is when it is sent. From the commit that makes it, each
//! message in it names it. The commit that ends it ends them as `merged`; or, if it came to nothing, they
//! wait again as if they had never been in it.

use super::accept::new_id;
use super::pool::Grant;
use super::send::{Left, Sender};
use super::{Live, Message, dead};
use crate::delivery::record;
use crate::delivery::state::{Progress, State};
use crate::delivery::verdict::Reason;
use crate::dingtalk::digest::{self, Fold, Item};
use crate::dingtalk::message::{At, MENTIONS_MAX};
use crate::faults::point;
use crate::journal::{Batch, ReadError};
use crate::metrics;

/// Who a digest comes from.
pub(super) const CLIENT: &str = "dingd";

/// Names of those who are mentioned, in bytes: they stand in the text and beside it.
const MENTIONS_BYTES_MAX: usize = 3_000;
/// What cannot be read now is read again after this, in milliseconds.
const READ_AGAIN_MS: u64 = 5_000;

/// A message with its state; neither if its record is damaged.
type Part = (u64, Option<(Message, Live)>);

impl Sender {
    /// Makes message `seq` of `parts`, which wait in one lane, and attempts it.
    pub async fn attempt_digest(&self, seq: u64, parts: Vec<u64>, grant: Grant) -> Left {
        let parts = match self.parts(parts).await {
            Ok(parts) => parts,
            Err(error) => {
                tracing::error!(%error, "messages cannot be read now; they are tried again");
                self.egress.give_back(grant.permit);
                // There is no digest yet: the next attempt finds none and lets them wait again.
                return self.again_in(READ_AGAIN_MS);
            }
        };
        let mut folded = vec![];
        for (part, both) in parts {
            match both {
                Some(both) => folded.push((part, both)),
                None => drop(self.set_aside(part).await),
            }
        }
        let [(_, lead), _, ..] = folded.as_slice() else {
            self.egress.give_back(grant.permit);
            return Left::Parts;
        };
        let (message, live) = self.digest_of(seq, lead, &folded);
        let payload = record::encode(&message);
        let bytes = payload.len() as u64;
        let live = Live { bytes, ..live };
        let mut batch = Batch::default();
        self.queue.append(&mut batch, seq, &payload, &live);
        for (part, (_, state)) in &mut folded {
            state.digest = Some(message.id);
            self.queue.update(&mut batch, *part, state, state.tag());
        }
        point("digest.before");
        if self.journal.commit(batch).await.is_err() {
            // The process is about to end; nothing left.
            self.egress.give_back(grant.permit);
            return Left::Parts;
        }
        point("digest.after");
        self.queue.count(seq, live.tag());
        metrics::digest(folded.len());
        tracing::info!(id = %message.id, messages = folded.len(), "messages that could not go out in time go as one digest");
        self.attempt(seq, grant, false).await
    }

    fn digest_of(
        &self,
        seq: u64,
        (lead, lead_live): &(Message, Live),
        folded: &[(u64, (Message, Live))],
    ) -> (Message, Live) {
        let wall_ms = self.clock.wall_ms();
        let items: Vec<_> = folded
            .iter()
            .map(|(_, (message, live))| Item {
                accepted_ms: live.accepted_ms,
                priority: live.priority,
                client: &message.client,
                merge_key: message.merge_key.as_deref(),
                resolved: message.resolved,
                content: &message.content,
            })
            .collect();
        let language = self.settings.load().digest.map(|digest| digest.language);
        let content = digest::digest(&items, lead_live.fold, language.unwrap_or_default());
        let message = Message {
            id: new_id(wall_ms, seq),
            content,
            at: mentioned(folded.iter().map(|(_, (message, _))| &message.at)),
            merge_key: None,
            resolved: false,
            parts: vec![],
            members: folded.iter().map(|(_, (message, _))| message.id).collect(),
            client: CLIENT.to_owned(),
            ..lead.clone()
        };
        let expires = folded.iter().map(|(_, (_, live))| live.expires_ms).min();
        let live = Live {
            id: message.id,
            accepted_ms: wall_ms,
            // With the first of them, which then is told of; the others wait again.
            expires_ms: expires.unwrap_or(wall_ms),
            progress: Progress::new(super::accept::calls(&message)),
            fold: Fold::Digest,
            digest: None,
            ..lead_live.clone()
        };
        (message, live)
    }

    /// Ends a digest, and what is in it if that has ended with it.
    pub(super) async fn conclude_digest(
        &self,
        seq: u64,
        message: &Message,
        live: Live,
        mut batch: Batch,
    ) -> Left {
        if !matches!(live.progress.state, State::Sent | State::Unknown) {
            // The rows of what was in it still name it; whoever reads them finds that it has ended.
            self.queue.finish(&mut batch, seq, &live);
            let queue = self.queue.clone();
            self.journal.submit(batch, move |result| {
                if result.is_ok() {
                    queue.finished(seq, live.tag());
                }
            });
            return Left::Parts;
        }
        let parts = message.members.iter().map(|id| id.seq()).collect();
        let parts = match self.parts(parts).await {
            Ok(parts) => parts,
            Err(error) => {
                tracing::error!(%error, "the messages of a digest cannot be read now");
                // It was sent: the next attempt finds that, and only ends it.
                self.queue.update(&mut batch, seq, &live, live.tag());
                self.durable(batch).await;
                return self.again_in(READ_AGAIN_MS);
            }
        };
        let mut ended = vec![];
        for (part, both) in parts {
            match both {
                // It is not in this one any more.
                Some((_, state)) if state.digest != Some(message.id) => {}
                Some((kept, mut state)) => {
                    merge(&mut state, &live, self.clock.wall_ms());
                    self.queue.finish(&mut batch, part, &state);
                    let told = self.outcomes.append(&mut batch, &kept, &state);
                    ended.push((part, state, told));
                }
                None => drop(self.set_aside(part).await),
            }
        }
        self.queue.finish(&mut batch, seq, &live);
        let mono_ms = self.clock.mono_ms();
        let (queue, outcomes) = (self.queue.clone(), self.outcomes.clone());
        self.journal.submit(batch, move |result| {
            point("settle.after");
            if result.is_ok() {
                queue.finished(seq, live.tag());
                for (part, state, outcome) in ended {
                    queue.finished(part, state.tag());
                    dead::bury(&queue, part, &state, mono_ms);
                    outcomes.appended(outcome);
                    state.report_end();
                }
            }
        });
        Left::Finished
    }

    /// Reads messages under way, as many as are still there.
    async fn parts(&self, parts: Vec<u64>) -> Result<Vec<Part>, ReadError> {
        for part in &parts {
            drop(self.fresh.take(*part));
        }
        let place = self.queue.place();
        let read = self.journal.read(move |view| {
            let mut read = vec![];
            for part in parts {
                let key = part.to_be_bytes();
                let Some(live) = view.get(place.live, &key)? else {
                    continue;
                };
                let message = view.get(place.payload, &key)?;
                let message = message.and_then(|bytes| record::decode::<Message>(&bytes).ok());
                let message = message.map(shortened);
                read.push((part, message.zip(record::decode::<Live>(&live).ok())));
            }
            Ok(read)
        });
        read.await
    }
}

/// Without what no digest shows: hundreds are held at a time, and each may be as long as a request.
fn shortened(mut message: Message) -> Message {
    for part in &mut message.parts {
        *part = String::new();
    }
    message.content = digest::shortened(&message.content);
    message
}

/// A message ends as its digest did.
fn merge(part: &mut Live, digest: &Live, wall_ms: u64) {
    if digest.progress.state == State::Unknown {
        let reason = Reason::new(
            "outcome_unknown",
            format!("nobody knows whether digest {} arrived", digest.id),
            "合并消息的结果未知：请在群内核对，再用 dingd dead replay 重发。",
            "Look into the chat for the digest, then use dingd dead replay.",
        );
        part.progress.end(State::Unknown, Some(reason), wall_ms);
    } else {
        part.progress.end(State::Merged, None, wall_ms);
        part.progress.reason = None;
    }
    part.progress.due_ms = 0;
}

/// Everybody that one of them mentions, as far as DingTalk takes them.
fn mentioned<'a>(all: impl Iterator<Item = &'a At>) -> At {
    let mut union = At::default();
    let (mut left, mut bytes) = (MENTIONS_MAX, 0);
    for at in all {
        union.all |= at.all;
        for (into, names) in [
            (&mut union.users, &at.users),
            (&mut union.mobiles, &at.mobiles),
        ] {
            for name in names {
                let fits = left > 0 && bytes + name.len() <= MENTIONS_BYTES_MAX;
                if fits && !into.contains(name) {
                    into.push(name.clone());
                    left -= 1;
                    bytes += name.len();
                }
            }
        }
    }
    union
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_mentions_everybody_once_and_no_more_than_dingtalk_takes() {
        let at = |users: &[&str], all| At {
            users: users.iter().map(|user| (*user).to_owned()).collect(),
            mobiles: vec![],
            all,
        };
        let union = mentioned([at(&["a", "b"], false), at(&["b", "c"], true)].iter());
        assert_eq!(union, at(&["a", "b", "c"], true));
        let many: Vec<_> = (0..99).map(|n| at(&[&format!("u{n}")], false)).collect();
        assert_eq!(mentioned(many.iter()).users.len(), MENTIONS_MAX);
    }
}
