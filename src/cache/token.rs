//! One access token an app: fetched by one caller at a time, renewed early, dropped on refusal.
//!
//! Source: outbound.md §1.1, §1.6. Tokens live 7,200 s; asking again within that time gives the same
//! token. The token call is exempt from the monthly quota, but it leaves through the same address.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use zeroize::Zeroize as _;

use super::store::Store;
use crate::delivery::random;
use crate::delivery::retry::scaled;
use crate::delivery::verdict::{Reason, Verdict};
use crate::dingtalk::answer::Api;
use crate::egress::call::Request;
use crate::egress::{App, Egress, app_keys};
use crate::secret::Secret;

/// What a token lives if DingTalk does not say: trusting a missing or zero `expireIn` makes a loop.
const LIFE_DEFAULT_S: u64 = 7_200;
/// The cache is opened beside the start; the first who needs a token waits for it this long.
const OPENING: Duration = Duration::from_secs(2);
/// After a fetch that failed or brought a refused token, the next waits at least this long.
const FETCH_GAP_MS: u64 = 10_000;

/// The tokens of all apps.
#[derive(Debug)]
pub struct Tokens {
    apps: ArcSwap<HashMap<String, Arc<AppToken>>>,
    egress: Arc<Egress>,
    store: tokio::sync::SetOnce<Store>,
}

#[derive(Debug)]
struct AppToken {
    app: App,
    held: Mutex<Held>,
    /// Held by the one that fetches.
    fetching: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct Held {
    token: Option<Token>,
    refused: Option<Secret>,
    failure: Option<(u64, Verdict)>,
    looked_in_store: bool,
}

/// A token and its life (wall time in milliseconds).
#[derive(Debug, Clone)]
struct Token {
    value: Secret,
    renew_ms: u64,
    expires_ms: u64,
    /// Monotonic time of the fetch in milliseconds; 0 = it was kept from before.
    fetched_ms: u64,
}

#[derive(Serialize, Deserialize)]
struct Kept {
    value: String,
    renew_ms: u64,
    expires_ms: u64,
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.value.zeroize();
    }
}

impl Tokens {
    /// No token yet; the store may be opened later with [`Self::attach`].
    pub fn new(apps: &[App], egress: Arc<Egress>) -> Self {
        let tokens = Self {
            apps: ArcSwap::from_pointee(HashMap::new()),
            egress,
            store: tokio::sync::SetOnce::new(),
        };
        tokens.reload(apps);
        tokens
    }

    /// From now on tokens are kept in `store`.
    pub fn attach(&self, store: Store) {
        if self.store.set(store).is_err() {
            tracing::debug!("the cache was attached twice");
        }
    }

    /// Takes over changed apps; an app whose credentials are the same keeps its token.
    pub fn reload(&self, apps: &[App]) {
        let old = self.apps.load_full();
        let next = apps.iter().map(|app| {
            let kept = old.get(&app.name).filter(|known| {
                known.app.client_id == app.client_id
                    && known.app.client_secret.matches(app.client_secret.expose())
            });
            let held = kept.map_or_else(Held::default, |known| {
                let held = known.held();
                Held {
                    token: held.token.clone(),
                    looked_in_store: true,
                    ..Held::default()
                }
            });
            let token = AppToken {
                app: app.clone(),
                held: Mutex::new(held),
                fetching: tokio::sync::Mutex::new(()),
            };
            (app.name.clone(), Arc::new(token))
        });
        self.apps.store(Arc::new(next.collect()));
    }

    /// The app's token, if it is at hand.
    pub fn held(&self, app: &str) -> Option<Secret> {
        let app = self.apps.load().get(app).cloned()?;
        app.valid(self.egress.clock().wall_ms())
            .map(|token| token.value)
    }

    /// Whether somebody is fetching the app's token.
    pub fn is_fetching(&self, app: &str) -> bool {
        let app = self.apps.load().get(app).cloned();
        app.is_some_and(|app| app.fetching.try_lock().is_err())
    }

    /// The app's token; fetches it if there is none. The error is the verdict for whatever needed it.
    pub async fn get(&self, app: &str) -> Result<Secret, Verdict> {
        let Some(app) = self.apps.load().get(app).cloned() else {
            return Err(Verdict::Dead(Reason::new(
                "app_unknown",
                "the message's app is not configured any more",
                "在 config.toml 的 [[apps]] 中恢复该应用后重放。",
                "Restore the app in [[apps]] of config.toml, then replay the message.",
            )));
        };
        if let Some(token) = app.valid(self.egress.clock().wall_ms()) {
            return Ok(token.value);
        }
        let _only_one = app.fetching.lock().await;
        // Whoever held the lock before may have fetched it.
        if let Some(token) = app.valid(self.egress.clock().wall_ms()) {
            return Ok(token.value);
        }
        if let Some(failure) = app.recent_failure(self.egress.clock().mono_ms()) {
            return Err(failure);
        }
        if let Some(token) = self.kept(&app).await {
            return Ok(token);
        }
        self.fetch(&app).await
    }

    /// DingTalk refused `token`: it is not handed out again.
    pub fn refused(&self, app: &str, token: &Secret) {
        let Some(app) = self.apps.load().get(app).cloned() else {
            return;
        };
        let mut held = app.held();
        if held
            .token
            .as_ref()
            .is_some_and(|held| held.value.matches(token.expose()))
        {
            let fetched_ms = held.token.take().map_or(0, |token| token.fetched_ms);
            held.refused = Some(token.clone());
            let now_ms = self.egress.clock().mono_ms();
            if now_ms.saturating_sub(fetched_ms) < FETCH_GAP_MS {
                // A fresh token that is refused as well: fetching on would be a loop.
                held.failure = Some((now_ms + FETCH_GAP_MS, Verdict::Retry(token_refused())));
            }
            crate::metrics::token_expiry(&app.app.name, 0);
        }
    }

    /// Renews tokens that are past 80 % of their life. A valid token stays in use if that fails.
    pub async fn renew(&self) {
        let apps: Vec<_> = self.apps.load().values().cloned().collect();
        for app in apps {
            let due = {
                let held = app.held();
                let now_ms = self.egress.clock().wall_ms();
                held.token
                    .as_ref()
                    .is_some_and(|token| token.renew_ms <= now_ms)
            };
            if due && app.recent_failure(self.egress.clock().mono_ms()).is_none() {
                let _only_one = app.fetching.lock().await;
                if let Err(verdict) = self.fetch(&app).await {
                    tracing::warn!(app = %app.app.name, ?verdict, "cannot renew the access token");
                }
            }
        }
    }

    async fn kept(&self, app: &AppToken) -> Option<Secret> {
        if std::mem::replace(&mut app.held().looked_in_store, true) {
            return None;
        }
        let store = tokio::time::timeout(OPENING, self.store.wait())
            .await
            .ok()?;
        let kept = store.get(app.name(), app.app.client_secret.clone()).await?;
        let mut kept: Kept = serde_json::from_slice(&kept).ok()?;
        let value = Secret::new(std::mem::take(&mut kept.value));
        let token = Token {
            value: value.clone(),
            renew_ms: kept.renew_ms,
            expires_ms: kept.expires_ms,
            fetched_ms: 0,
        };
        let mut held = app.held();
        let was_refused = held
            .refused
            .as_ref()
            .is_some_and(|r| r.matches(value.expose()));
        if was_refused || token.expires_ms <= self.egress.clock().wall_ms() {
            return None;
        }
        crate::metrics::token_expiry(&app.app.name, token.expires_ms);
        held.token = Some(token);
        Some(value)
    }

    /// Fetches a token. The caller holds `fetching`.
    async fn fetch(&self, app: &AppToken) -> Result<Secret, Verdict> {
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Body<'a> {
            app_key: &'a str,
            app_secret: &'a str,
        }
        let body = Body {
            app_key: &app.app.client_id,
            app_secret: app.app.client_secret.expose(),
        };
        let request = Request {
            api: Api::Token,
            session: None,
            path: "/v1.0/oauth2/accessToken".to_owned(),
            token: None,
            body: Bytes::from(serde_json::to_vec(&body).unwrap_or_default()),
        };
        // Whoever needs the token comes back; waiting here for a limit could take minutes.
        let keys = app_keys(&app.app.name, Api::Token, None);
        let permit = self.egress.try_acquire(&keys, true).map_err(|full| {
            Verdict::Retry(Reason::new(
                "token_waits",
                format!(
                    "the access token cannot be fetched yet: {} is held back",
                    full.key.kind.label()
                ),
                "查看 /ready 中的暂停原因；结束后自动继续。",
                "See /ready for what is paused; it goes on by itself.",
            ))
        })?;
        let judged = self.egress.call(request).await;
        let settled = self.egress.settle(permit, &judged.verdict);
        self.egress.counted(settled);
        let fetched = match &judged.verdict {
            Verdict::Sent { .. } => judged.reply.and_then(|reply| parse(&reply.body)),
            _ => None,
        };
        let Some((value, life_s)) = fetched else {
            return Err(self.failed(app, judged.verdict));
        };
        let same_as_refused = app
            .held()
            .refused
            .as_ref()
            .is_some_and(|refused| refused.matches(value.expose()));
        if same_as_refused {
            // A failure, and a pause; but DingTalk gives the same token for its whole life, so after
            // the pause it is tried again rather than not for two hours.
            app.held().refused = None;
            return Err(self.failed(app, Verdict::Retry(token_refused())));
        }
        let now_ms = self.egress.clock().wall_ms();
        let life_ms = life_s * 1_000;
        // 80 % of its life, less up to 5 % so that several daemons do not renew at one instant.
        let renew_ms = now_ms + life_ms * 4 / 5 - scaled(life_ms / 20, random::share());
        let token = Token {
            value: value.clone(),
            renew_ms,
            expires_ms: now_ms + life_ms,
            fetched_ms: self.egress.clock().mono_ms(),
        };
        {
            let mut held = app.held();
            held.token = Some(token.clone());
            held.refused = None;
            held.failure = None;
        }
        crate::metrics::token_refresh(&app.app.name, "ok");
        crate::metrics::token_expiry(&app.app.name, token.expires_ms);
        if let Some(store) = self.store.get() {
            let kept = Kept {
                value: value.expose().to_owned(),
                renew_ms,
                expires_ms: token.expires_ms,
            };
            let bytes = serde_json::to_vec(&kept).unwrap_or_default();
            store
                .put(app.name(), app.app.client_secret.clone(), bytes)
                .await;
        }
        Ok(value)
    }

    fn failed(&self, app: &AppToken, verdict: Verdict) -> Verdict {
        crate::metrics::token_refresh(&app.app.name, "failed");
        let verdict = match verdict {
            // Nothing of the message was sent, whatever became of the token call.
            Verdict::Unknown(reason) | Verdict::Dead(reason) => Verdict::Retry(reason),
            other => other,
        };
        app.held().failure = Some((
            self.egress.clock().mono_ms() + FETCH_GAP_MS,
            verdict.clone(),
        ));
        verdict
    }
}

impl AppToken {
    fn held(&self) -> std::sync::MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn valid(&self, wall_ms: u64) -> Option<Token> {
        self.held()
            .token
            .clone()
            .filter(|token| wall_ms < token.expires_ms)
    }

    fn recent_failure(&self, mono_ms: u64) -> Option<Verdict> {
        let held = self.held();
        let (until_ms, verdict) = held.failure.as_ref()?;
        (mono_ms < *until_ms).then(|| verdict.clone())
    }

    /// Tokens are per app: the cache is keyed by Client ID, never by one global name.
    fn name(&self) -> String {
        format!("token/{}", self.app.client_id)
    }
}

fn token_refused() -> Reason {
    Reason::new(
        "token_refused",
        "DingTalk refuses the token that it has just given",
        "稍候自动重试；若持续，请在开发者后台 → 应用 → 凭证与基础信息 重置 Client Secret。",
        "Tried again shortly; if it lasts, reset the Client Secret in the developer console → app → credentials.",
    )
}

fn parse(body: &[u8]) -> Option<(Secret, u64)> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Body {
        access_token: String,
        #[serde(default)]
        expire_in: u64,
    }
    let body: Body = serde_json::from_slice(body).ok()?;
    let usable = !body.access_token.is_empty()
        && body.access_token.len() <= 4_096
        && body.access_token.bytes().all(|b| b.is_ascii_graphic());
    let life_s = if (60..=86_400).contains(&body.expire_in) {
        body.expire_in
    } else {
        LIFE_DEFAULT_S
    };
    usable.then(|| (Secret::new(body.access_token), life_s))
}
