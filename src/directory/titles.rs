//! Looks up the names of groups, because an install event carries none (inbound.md §2.4).
//!
//! `sceneGroups/query` needs the cool app's code (outbound.md §6.2). A lookup that fails is repeated
//! by the schedule; a rename event or a robot message may bring the name first.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use super::chats::{Change, Chats};
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
    /// Rung when a group without a name was installed.
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

#[derive(Debug, Default)]
struct Retry {
    failures: u32,
    due_ms: u64,
}

/// Names of groups of this app cannot be had.
fn trouble(app: &str) -> String {
    format!("title/{app}")
}

impl Titles {
    /// Works until `drain` says stop.
    pub async fn run(self, apps: Arc<arc_swap::ArcSwap<Vec<App>>>, drain: Drain) {
        let mut retries: HashMap<(String, ChatId), Retry> = HashMap::new();
        let clock = self.egress.clock();
        while !drain.is_stopping() {
            let mut next_ms = clock.mono_ms() + IDLE_MS;
            let nameless = self.chats.nameless();
            retries.retain(|(app, id), _| nameless.iter().any(|(a, i, _)| a == app && i == id));
            for app in apps.load().iter() {
                if nameless.iter().all(|(of, ..)| *of != app.name) {
                    // Named otherwise, or gone.
                    self.health.recovered(&trouble(&app.name));
                }
            }
            for (app, id, code) in nameless {
                if drain.is_stopping() {
                    return;
                }
                let retry = retries.entry((app.clone(), id.clone())).or_default();
                if retry.due_ms <= clock.mono_ms() {
                    let known = apps.load().iter().find(|known| known.name == app).cloned();
                    let found = match known {
                        Some(app) => self.look_up(&app, &id, code).await,
                        None => false,
                    };
                    if found {
                        retries.remove(&(app, id));
                        continue;
                    }
                    retry.failures += 1;
                    retry.due_ms =
                        clock.mono_ms() + DINGTALK.delay_ms(retry.failures, random::share());
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
        let nameless = self.chats.nameless();
        if nameless.iter().filter(|(of, ..)| of == app).count() <= 1 {
            self.health.recovered(&trouble(app));
        }
    }

    /// Returns whether the name was found.
    async fn look_up(&self, app: &App, id: &ChatId, code: Option<String>) -> bool {
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
                return false;
            }
        };
        let cool_app_code = code.or_else(|| app.cool_app_code.clone());
        let query = Query {
            open_conversation_id: id.as_str(),
            cool_app_code,
        };
        let keys = app_keys(&app.name, Api::SceneGroup, None);
        let Ok(permit) = self.egress.try_acquire(&keys, false) else {
            return false;
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
            return false;
        }
        let title = judged
            .reply
            .filter(|_| matches!(judged.verdict, Verdict::Sent { .. }))
            .and_then(|reply| serde_json::from_slice::<Found>(&reply.body).ok()?.title);
        let Some(title) = title.filter(|title| !title.is_empty()) else {
            let why = judged.verdict.reason().map_or_else(String::new, |reason| {
                format!("{} — {} / {}", reason.detail, reason.fix_zh, reason.fix_en)
            });
            let text = format!(
                "names of groups of app {} cannot be looked up: {why}",
                app.name
            );
            if self.health.degraded(trouble(&app.name), text) {
                tracing::warn!(app = %app.name, %why, "cannot look up a group's name; tried again later");
            }
            return false;
        };
        self.found(&app.name);
        let change = Change::Titled {
            title,
            at_ms: asked_ms,
        };
        let journal = self.journal.clone();
        let mut batch = Batch::default();
        self.chats
            .apply(&app.name, id, &change, &mut batch, |batch| {
                journal.submit(std::mem::take(batch), |result| {
                    if result.is_err() {
                        tracing::warn!("a group's name could not be stored; it is looked up again");
                    }
                });
            });
        true
    }
}
