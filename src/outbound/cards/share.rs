//! Changes that are not at DingTalk yet, in the order in which they were accepted, each with the message that was
//! to take it along. One message takes along what others were to; if it is refused or withdrawn, only what was
//! its own goes with it.

use serde::{Deserialize, Serialize};

use crate::delivery::id::MessageId;
use crate::dingtalk::instance::Patch;

/// Changes, the oldest first.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Shares(Vec<Share>);

/// What one message was to take along.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Share {
    /// `None`: it has ended, and the next one takes this along.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    message: Option<MessageId>,
    patch: Patch,
}

impl Shares {
    /// Whether there is nothing to take along.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All of it as one change.
    pub(super) fn patch(&self) -> Patch {
        let mut whole = Patch::default();
        for share in &self.0 {
            whole.then(share.patch.clone());
        }
        whole
    }

    /// Then `patch`, which message `message` is to take along.
    pub(super) fn push(&mut self, message: MessageId, patch: Patch) {
        self.add(Share {
            message: Some(message),
            patch,
        });
    }

    /// This and then `newer`.
    pub(super) fn then(&mut self, newer: Self) {
        for share in newer.0 {
            self.add(share);
        }
    }

    /// Without what was message `message`'s own.
    pub(super) fn without(mut self, message: MessageId) -> Self {
        self.0.retain(|share| share.message != Some(message));
        self
    }

    /// Message `message` has ended: what it leaves is nobody's, and takes up no more room than one change.
    pub(super) fn release(&mut self, message: MessageId) {
        for mut share in std::mem::take(&mut self.0) {
            share.message = share.message.filter(|owner| *owner != message);
            self.add(share);
        }
    }

    /// Neighbours of one message are one.
    fn add(&mut self, share: Share) {
        match self.0.last_mut() {
            Some(last) if last.message == share.message => last.patch.then(share.patch),
            _ if share.patch.is_empty() => {}
            _ => self.0.push(share),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u64) -> MessageId {
        MessageId::new(1, 0, number)
    }

    fn patch(name: &str, value: &str) -> Patch {
        Patch {
            data: [(name.to_owned(), value.to_owned())].into(),
            ..Patch::default()
        }
    }

    #[test]
    fn what_goes_is_one_messages_own_and_the_newest_of_the_rest_stays_the_newest() {
        let mut shares = Shares::default();
        for (message, name, value) in [
            (1, "a", "1"),
            (2, "a", "2"),
            (2, "b", "2"),
            (1, "c", "3"),
            (3, "a", "4"),
        ] {
            shares.push(id(message), patch(name, value));
        }
        assert_eq!(shares.0.len(), 4, "neighbours are one");
        let values = |shares: &Shares| {
            let data = shares.patch().data;
            ["a", "b", "c"].map(|name| data.get(name).cloned().unwrap_or_default())
        };
        assert_eq!(values(&shares), ["4", "2", "3"]);
        assert_eq!(values(&shares.clone().without(id(3))), ["2", "2", "3"]);
        assert_eq!(values(&shares.clone().without(id(1))), ["4", "2", ""]);
        for message in 1..=3 {
            shares.release(id(message));
        }
        assert_eq!(shares.0.len(), 1, "nobody's is one");
        assert_eq!(values(&shares.without(id(1))), ["4", "2", "3"]);
    }
}
