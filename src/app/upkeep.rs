//! What is done now and then: the watchdog's beat, room on the disk, certificates, tokens, and the removal of
//! what is old.

use std::time::Duration;

use super::{Parts, Upkeep, notify};
use crate::delivery::event::Forwarding;
use crate::drain::Drain;
use crate::journal::disk::Stuck;
use crate::journal::retention;
use crate::metrics;
use crate::outbound::Live;
use crate::outbound::dead::is_dead;

/// Dead letters are kept within their bytes more often than the rest is looked at.
const QUOTA_EVERY: Duration = Duration::from_secs(5);

impl Upkeep {
    /// Once around: tokens, old keys, old entries, pauses that are over.
    pub async fn round(&self) {
        self.0.upkeep_round().await;
        self.0.egress.sweep();
    }
}

impl Parts {
    /// Small things that are due now and then.
    pub(super) async fn housekeeping(self, drain: Drain) {
        let mut second = 0_u64;
        while !drain.is_stopping() {
            tokio::select! {
                () = tokio::time::sleep(Duration::from_secs(1)) => {}
                () = drain.stopping() => return,
            }
            second += 1;
            notify(&[sd_notify::NotifyState::Watchdog]);
            self.check_room();
            self.quota.report(&self.health);
            if second.is_multiple_of(5) {
                metrics::upkeep(&metrics::install());
                self.egress.sweep();
                self.renew_certificates();
            }
        }
    }

    fn check_room(&self) {
        self.room.measure();
        if !self.journal.condition().has_room_ahead() {
            let journal = self.journal.clone();
            drop(tokio::task::spawn_blocking(move || journal.take_room()));
        }
        if self.room.is_writable() {
            self.health.serving("journal");
        } else {
            self.health.unready("journal", Stuck::ReadOnly.cure());
        }
        if self.room.has_room() {
            self.health.recovered("disk");
        } else {
            let text = "the disk of state_dir is nearly full, new work is refused: 清理或扩容磁盘 / free or enlarge it";
            self.health.degraded("disk", text);
        }
    }

    /// What waits for DingTalk or for the disk: renewing tokens, forgetting and removing what is old. A
    /// task of its own, because the watchdog must wait for neither.
    pub(super) async fn upkeep(self, drain: Drain) {
        if let Err(error) = self.quota.load().await {
            tracing::warn!(%error, "dead letters cannot be counted now");
        }
        let round = async || {
            let mut left = self.round_every();
            while left > QUOTA_EVERY {
                tokio::time::sleep(QUOTA_EVERY).await;
                left -= QUOTA_EVERY;
                self.enforce_quota().await;
            }
            tokio::time::sleep(left).await;
            self.upkeep_round().await;
        };
        while !drain.is_stopping() {
            tokio::select! {
                () = round() => {}
                () = drain.stopping() => {}
            }
        }
    }

    /// As often as what is kept for a short time only is worth it.
    fn round_every(&self) -> Duration {
        let half_ms = self.keep.load().finished_ms / 2;
        Duration::from_millis(half_ms.clamp(500, 30_000))
    }

    async fn upkeep_round(&self) {
        self.tokens.renew().await;
        self.forget().await;
        self.purge().await;
        self.enforce_quota().await;
        if let Err(error) = self.egress.trim().await {
            tracing::warn!(%error, "old rows of the ledger could not be removed");
        }
    }

    async fn enforce_quota(&self) {
        let bytes_max = self.keep.load().dead_bytes_max;
        self.quota.enforce(bytes_max).await;
    }

    async fn forget(&self) {
        let wall_ms = self.clock.cautious_ms();
        // Until nothing is left to forget: as fast as callbacks come, their keys must go.
        loop {
            let (events, batch) = self.inbox.dedup.forget(wall_ms);
            let (requests, more) = self.outbox.idempotency.forget(wall_ms);
            if events + requests == 0 {
                return;
            }
            for batch in [batch, more].into_iter().filter(|batch| !batch.is_empty()) {
                if self.journal.commit(batch).await.is_err() {
                    tracing::warn!("old keys could not be removed");
                    return;
                }
            }
        }
    }

    async fn purge(&self) {
        let forgotten = self.outbox.cards.forget(self.clock.cautious_ms()).await;
        if forgotten > 0 {
            tracing::debug!(
                cards = forgotten,
                "cards that nobody touched were forgotten"
            );
        }
        // As long as there is something to remove, even if it lies behind much that stays; but not for ever:
        // the next round goes on.
        for _ in 0..100 {
            if !self.purge_step().await {
                return;
            }
        }
    }

    /// Returns whether another step may find something.
    async fn purge_step(&self) -> bool {
        let (keep, wall_ms) = (**self.keep.load(), self.clock.cautious_ms());
        let (events, messages) = &*self.retention;
        let queue = &self.inbox.queue;
        let events = events.step(&self.journal, queue, keep, wall_ms, |state: &Forwarding| {
            Some(retention::Ended {
                at_ms: state.finished_ms?,
                dead: state.label() == "dead",
            })
        });
        let queue = &self.outbox.queue;
        let messages = messages.step(&self.journal, queue, keep, wall_ms, |live: &Live| {
            let at_ms = live.progress.finished_ms?;
            let dead = is_dead(live.progress.state);
            Some(retention::Ended { at_ms, dead })
        });
        let (events, messages) = tokio::join!(events, messages);
        let removed = events.removed + messages.removed;
        if removed > 0 {
            let (events, messages) = (events.removed, messages.removed);
            tracing::debug!(events, messages, "old entries were removed");
        }
        removed > 0 || events.goes_on || messages.goes_on
    }

    fn renew_certificates(&self) {
        for (door, tls) in &self.tls {
            metrics::certificate_expiry(door, tls.not_after_s());
            let trouble = format!("certificate/{door}");
            match tls.renew() {
                Ok(renewed) => {
                    if renewed {
                        tracing::info!(door, "the new certificate is in use");
                    }
                    self.health.recovered(&trouble);
                }
                Err(error) => {
                    let text = format!(
                        "the new certificate of [{door}.tls] cannot be used, the old one stays: {error}"
                    );
                    if self.health.degraded(trouble, text) {
                        tracing::error!(door, %error, "the new certificate cannot be used, the old one stays");
                    }
                }
            }
        }
    }
}
