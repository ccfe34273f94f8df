//! Looks up the names of groups, because an install event carries none (inbound.md §2.4).
//!
//! `sceneGroups/query` needs the cool app's code (outbound.md §6.2). A look-up that fails is repeated: soon if
//! that may pass, seldom if DingTalk refuses it, because each counts against the organisation's month
//! (outbound.md §7.2). A rename event may bring the name first; what a robot message claims does not count.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use super::chats::{Change, Chats, Unsure};
use crate::cache::token::Tokens;
use crate::delivery::random;
use crate::delivery::retry::DINGTALK;
use crate::delivery::verdict::Verdict;
use crate::dingtalk::answer::Api;
use crate::dingtalk::event::ChatId;
use crate::drain::Drain;
use crate::egress::call::Request;
use crate::egress::{App, Egress, app_keys};
use crate::health::Health;
use crate::journal::{Batch, Journal};

/// When there is nothing to look up, look again after this, in milliseconds.
const IDLE_MS: u64 = 60_000;

/// The task that looks names up.
#[derive(Debug)]
pub struct Titles {
    /// The groups.
    pub chats: Arc<Chats>,
    /// Rung when a group was installed or the configuration has changed.
    pub wake: Arc<Notify>,
    /// For the app's token.
    pub tokens: Arc<Tokens>,
    /// The way out.
    pub egress: Arc<Egress>,
    /// Where names are kept.
    pub journal: Journal,
    /// Told about names that cannot be had.
    pub health: Health,
}

/// A group's next look-up.
#[derive(Debug, Default)]
struct Retry {
    /// As of which install.
    installed_ms: u64,
    failures: u32,
    due_ms: u64,
}

/// Why a name was not found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Missed {
    /// Nobody was asked.
    NotAsked,
    /// The call failed.
    Failed,
    /// DingTalk does not tell the name of this group.
    Refused,
    /// The app may not ask at all.
    Blocked,
}

/// So many calls that failed are repeated by the schedule, more once an hour.
const SOON_MAX: u32 = 10;
const HOUR_MS: u64 = 3_600_000;

/// When a look-up is repeated, if nothing happens to the group or the configuration before.
fn again_ms(missed: Missed, failures: u32, jitter: f64) -> u64 {
    let soon_ms = DINGTALK.delay_ms(failures, jitter);
    match missed {
        Missed::Failed if failures > SOON_MAX => HOUR_MS,
        Missed::NotAsked | Missed::Failed => soon_ms,
        Missed::Refused => 24 * HOUR_MS,
        Missed::Blocked => 6 * HOUR_MS,
    }
}

/// Names of groups of this app cannot be had.
fn trouble(app: &str) -> String {
    format!("title/{app}")
}

impl Titles {
    /// Works until `drain` says stop.
    pub async fn run(self, apps: Arc<arc_swap::ArcSwap<Vec<App>>>, drain: Drain) {
        let mut retries: HashMap<(String, ChatId), Retry> = HashMap::new();
        let mut configured = apps.load_full();
        let clock = self.egress.clock();
        while !drain.is_stopping() {
            let now = apps.load_full();
            if !Arc::ptr_eq(&configured, &now) {
                // Somebody may have cured it.
                retries.clear();
                self.health.recovered_all(&trouble(""));
                configured = now;
            }
            let unsure = self.chats.unsure();
            retries
                .retain(|(app, id), _| unsure.iter().any(|one| one.app == *app && one.id == *id));
            for app in configured.iter() {
                if unsure.iter().all(|one| one.app != app.name) {
                    // Named otherwise, or gone.
                    self.health.recovered(&trouble(&app.name));
                }
            }
            let mut next_ms = clock.mono_ms() + IDLE_MS;
            let mut blocked = HashSet::new();
            for one in unsure {
                if drain.is_stopping() {
                    return;
                }
                let retry = retries
                    .entry((one.app.clone(), one.id.clone()))
                    .or_default();
                if retry.installed_ms != one.installed_ms {
                    *retry = Retry {
                        installed_ms: one.installed_ms,
                        ..Retry::default()
                    };
                }
                if retry.due_ms <= clock.mono_ms() {
                    let app = configured.iter().find(|app| app.name == one.app);
                    let missed = match app {
                        // One answer goes for all of its groups.
                        Some(app) if blocked.contains(&app.name) => Some(Missed::Blocked),
                        Some(app) => self.look_up(app, &one).await.err(),
                        None => Some(Missed::NotAsked),
                    };
                    let Some(missed) = missed else { continue };
                    if missed == Missed::Blocked {
                        blocked.insert(one.app.clone());
                    }
                    retry.failures += 1;
                    let wait_ms = again_ms(missed, retry.failures, random::share());
                    retry.due_ms = clock.mono_ms() + wait_ms;
                }
                next_ms = next_ms.min(retry.due_ms);
            }
            tokio::select! {
                biased;
                () = clock.sleep_until(next_ms) => {}
                () = self.wake.notified() => {}
                () = drain.stopping() => {}
            }
        }
    }

    /// Another name is known: no trouble is left if it was the last one.
    fn found(&self, app: &str) {
        let unsure = self.chats.unsure();
        if unsure.iter().filter(|one| one.app == app).count() <= 1 {
            self.health.recovered(&trouble(app));
        }
    }

    /// Tells of a name that was asked for and not had.
    fn missed(&self, app: &App, verdict: &Verdict) -> Missed {
        let why = verdict.reason().map_or_else(String::new, |reason| {
            format!("{} — {} / {}", reason.detail, reason.fix_zh, reason.fix_en)
        });
        let text = format!(
            "names of groups of app {} cannot be looked up: {why}",
            app.name
        );
        if self.health.degraded(trouble(&app.name), text) {
            tracing::warn!(
                app = %app.name,
                %why,
                "cannot look up a group's name; what DingTalk refuses is asked again in some hours, or after a reload"
            );
        }
        match verdict {
            Verdict::Sent { .. } | Verdict::Dead(_) => Missed::Refused,
            Verdict::Blocked { .. } => Missed::Blocked,
            _ => Missed::Failed,
        }
    }

    async fn look_up(&self, app: &App, group: &Unsure) -> Result<(), Missed> {
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Query<'a> {
            open_conversation_id: &'a str,
            #[serde(skip_serializing_if = "Option::is_none")]
            cool_app_code: Option<String>,
        }
        #[derive(Deserialize)]
        struct Found {
            title: Option<String>,
        }
        let token = match self.tokens.get(&app.name).await {
            Ok(token) => token,
            Err(verdict) => {
                tracing::warn!(app = %app.name, ?verdict, "cannot look up a group's name");
                return Err(Missed::NotAsked);
            }
        };
        let code = group.cool_app_code.as_ref().or(app.cool_app_code.as_ref());
        let query = Query {
            open_conversation_id: group.id.as_str(),
            cool_app_code: code.cloned(),
        };
        let keys = app_keys(&app.name, Api::SceneGroup, None);
        let Ok(permit) = self.egress.try_acquire(&keys, false) else {
            return Err(Missed::NotAsked);
        };
        // The name was this at the latest when the question left.
        let asked_ms = self.egress.clock().wall_ms();
        let judged = self
            .egress
            .call(Request {
                api: Api::SceneGroup,
                session: None,
                path: "/v1.0/im/sceneGroups/query".to_owned(),
                token: Some(token.clone()),
                body: Bytes::from(serde_json::to_vec(&query).unwrap_or_default()),
            })
            .await;
        let settled = self.egress.settle(permit, &judged.verdict);
        self.egress.counted(settled);
        if let Verdict::RefreshToken(_) = judged.verdict {
            self.tokens.refused(&app.name, &token);
            return Err(Missed::Failed);
        }
        let title = judged
            .reply
            .filter(|_| matches!(judged.verdict, Verdict::Sent { .. }))
            .and_then(|reply| serde_json::from_slice::<Found>(&reply.body).ok()?.title);
        let Some(title) = title.filter(|title| !title.is_empty()) else {
            return Err(self.missed(app, &judged.verdict));
        };
        self.found(&app.name);
        // The install may be a little in our future, by DingTalk's clock.
        let change = Change::Titled {
            title,
            at_ms: asked_ms.max(group.installed_ms),
        };
        let journal = self.journal.clone();
        let mut batch = Batch::default();
        self.chats
            .apply(&app.name, &group.id, &change, &mut batch, |batch| {
                journal.submit(std::mem::take(batch), |result| {
                    if result.is_err() {
                        tracing::warn!("a group's name could not be stored; it is looked up again");
                    }
                });
            });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A group of which DingTalk refuses the name cost 8,600 calls a month, of 5,000.
    #[test]
    fn a_name_that_is_refused_costs_few_calls_a_month() {
        let calls_a_month = |missed| {
            let (mut at_ms, mut failures) = (0, 0);
            while at_ms < 30 * 24 * HOUR_MS {
                failures += 1;
                at_ms += again_ms(missed, failures, 0.5);
            }
            failures
        };
        assert_eq!(calls_a_month(Missed::Refused), 30);
        assert_eq!(calls_a_month(Missed::Blocked), 120);
        assert!(calls_a_month(Missed::Failed) < 740);
        assert!(again_ms(Missed::NotAsked, 30, 1.0) < HOUR_MS);
    }
}
