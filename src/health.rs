//! What `/ready` says: which parts have not started yet, and what is wrong but survivable.
//!
//! Trouble at DingTalk or the platform never makes the daemon unready, because taking it out of
//! service would only lose more; it is *degraded*, and says why and how to cure it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Shared by all parts. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Health(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    pending: Vec<&'static str>,
    unready: BTreeMap<&'static str, String>,
    degraded: BTreeMap<String, String>,
}

/// A part that is still starting; drop it when the part is up.
#[derive(Debug)]
pub struct Starting {
    health: Health,
    name: &'static str,
}

/// A look at the state of health.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Parts that have not started.
    pub pending: Vec<&'static str>,
    /// Parts that cannot serve, and why.
    pub unready: Vec<String>,
    /// What is wrong outside, and what to do.
    pub degraded: Vec<String>,
}

impl Health {
    /// Registers a part that has to start before the daemon is ready.
    pub fn starting(&self, name: &'static str) -> Starting {
        self.lock().pending.push(name);
        Starting {
            health: self.clone(),
            name,
        }
    }

    /// A part stopped serving (the store cannot be written, say).
    pub fn unready(&self, part: &'static str, why: impl Into<String>) {
        self.lock().unready.insert(part, why.into());
    }

    /// The part serves again.
    pub fn serving(&self, part: &'static str) {
        self.lock().unready.remove(part);
    }

    /// Something outside is wrong. `key` identifies the trouble so that it can be withdrawn.
    /// Returns whether this is news.
    pub fn degraded(&self, key: impl Into<String>, why: impl Into<String>) -> bool {
        self.lock()
            .degraded
            .insert(key.into(), why.into())
            .is_none()
    }

    /// The trouble is over. Returns whether there was any.
    pub fn recovered(&self, key: &str) -> bool {
        self.lock().degraded.remove(key).is_some()
    }

    /// All trouble whose key starts so is over, or is looked at afresh.
    pub fn recovered_all(&self, prefix: &str) {
        self.lock()
            .degraded
            .retain(|key, _| !key.starts_with(prefix));
    }

    /// What there is to say now.
    pub fn snapshot(&self) -> Snapshot {
        let inner = self.lock();
        Snapshot {
            pending: inner.pending.clone(),
            unready: inner
                .unready
                .iter()
                .map(|(part, why)| format!("{part}: {why}"))
                .collect(),
            degraded: inner.degraded.values().cloned().collect(),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Snapshot {
    /// Whether requests should be sent here.
    pub fn is_ready(&self) -> bool {
        self.pending.is_empty() && self.unready.is_empty()
    }
}

impl Drop for Starting {
    fn drop(&mut self) {
        let mut inner = self.health.lock();
        if let Some(at) = inner.pending.iter().position(|name| *name == self.name) {
            inner.pending.swap_remove(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_when_the_last_part_has_started() {
        let health = Health::default();
        let (a, b) = (health.starting("journal"), health.starting("doors"));
        drop(a);
        assert_eq!(health.snapshot().pending, ["doors"]);
        drop(b);
        assert!(health.snapshot().is_ready());
    }

    #[test]
    fn trouble_outside_degrades_but_does_not_unready() {
        let health = Health::default();
        assert!(health.degraded("egress", "banned"));
        assert!(!health.degraded("egress", "still banned"));
        assert!(health.snapshot().is_ready());
        assert_eq!(health.snapshot().degraded, ["still banned"]);
        assert!(health.recovered("egress") && !health.recovered("egress"));
    }
}
