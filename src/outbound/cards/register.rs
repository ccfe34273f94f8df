//! Where clicks on cards go: the URL that is registered with DingTalk under the app's route key.
//!
//! DingTalk answers a key that is known already in one of two documented ways: with the registration that there
//! is, or with a refusal (inbound.md §4.1). Neither is taken for done unless it names our URL.

use std::sync::Arc;

use bytes::Bytes;
use serde_json::{Value, json};

use crate::cache::token::Tokens;
use crate::delivery::verdict::{Reason, Verdict};
use crate::dingtalk::answer::{self, Answer, Api};
use crate::dingtalk::envelope::percent_encode;
use crate::egress::call::{Judged, Request};
use crate::egress::{App, CardCallback, Egress, Permit, app_keys};
use crate::http::problem::Problem;
use crate::http::transport::Reply;
use crate::outbound::accept::Outbox;
use crate::outbound::request::app;
use crate::secret::{Secret, printable};

/// For a limit that is used up the operator waits no longer than this, in milliseconds.
const WAIT_MS_MAX: u64 = 10_000;
const URL_BYTES_MAX: usize = 300;

/// Registers callbacks.
#[derive(Debug, Clone)]
pub struct Registrar {
    /// The settings, and where calls are counted.
    pub outbox: Arc<Outbox>,
    /// Access tokens.
    pub tokens: Arc<Tokens>,
    /// The way out.
    pub egress: Arc<Egress>,
}

/// What is to be registered.
#[derive(Debug)]
struct Route {
    key: String,
    url: String,
    secret: Secret,
}

impl Registrar {
    /// Registers the callback of an app; with `force` in the place of what is registered under its key.
    pub async fn register(&self, name: Option<&str>, force: bool) -> Result<Value, Problem> {
        let settings = self.outbox.settings.load_full();
        let app = app(name, &settings)?;
        let route = route(app, settings.public_url.as_deref())?;
        let mut judged = self.call(app, &route, force).await?;
        if let Verdict::RefreshToken(_) = judged.verdict {
            judged = self.call(app, &route, force).await?;
        }
        check(&route, &judged)?;
        Ok(json!({"app": app.name, "route_key": route.key, "url": route.url, "registered": true}))
    }

    async fn call(&self, app: &App, route: &Route, force: bool) -> Result<Judged, Problem> {
        let token = self.tokens.get(&app.name).await;
        let token = token.map_err(|verdict| refused(verdict.reason()))?;
        let permit = self.permit(&app.name).await?;
        let body = json!({"callbackRouteKey": route.key, "callbackUrl": route.url,
            "apiSecret": route.secret.expose(), "forceUpdate": force});
        let request = Request {
            api: Api::CardRegister,
            session: None,
            path: "/v1.0/card/callbacks/register".to_owned(),
            token: Some(token.clone()),
            body: Bytes::from(body.to_string()),
        };
        let judged = self.egress.call(request).await;
        let settled = self.egress.settle(permit, &judged.verdict);
        self.egress.counted(settled);
        if let Verdict::RefreshToken(_) = judged.verdict {
            self.tokens.refused(&app.name, &token);
        }
        Ok(judged)
    }

    async fn permit(&self, app: &str) -> Result<Permit, Problem> {
        let clock = self.egress.clock();
        let until_ms = clock.mono_ms() + WAIT_MS_MAX;
        let keys = app_keys(app, Api::CardRegister, None);
        loop {
            match self.egress.try_acquire(&keys, true) {
                Ok(permit) => return Ok(permit),
                Err(full) if full.until_ms > until_ms => {
                    let detail = "a limit is used up or paused; see dingd status";
                    return Err(Problem::unavailable("limited", detail, 10));
                }
                Err(full) => clock.sleep_until(full.until_ms).await,
            }
        }
    }
}

fn route(app: &App, public_url: Option<&str>) -> Result<Route, Problem> {
    let unready = |detail: String, zh: &'static str, en: &'static str| {
        Problem::new(422, "cards_not_http", "No HTTP callback", detail).fix(zh, en)
    };
    let (CardCallback::Http, Some(key)) = (app.cards.callback, &app.cards.route_key) else {
        return Err(unready(
            format!("app {:?}: [apps.cards] callback is not \"http\"", app.name),
            "在 [apps.cards] 设置 callback = \"http\"、route_key 与 secret，systemctl reload dingd 后再试；stream 方式无需注册。",
            "Set callback = \"http\", route_key and secret in [apps.cards], reload, then try again; stream needs no registration.",
        ));
    };
    let Some(secret) = &app.cards.secret else {
        return Err(unready(
            format!("app {:?}: [apps.cards] secret is missing", app.name),
            "在 [apps.cards] 设置 secret（openssl rand -hex 32）。",
            "Set secret in [apps.cards] (openssl rand -hex 32).",
        ));
    };
    let Some(public_url) = public_url else {
        return Err(unready(
            "[callbacks] public_url is missing".to_owned(),
            "在 [callbacks] 设置钉钉能访问的 public_url。",
            "Set public_url in [callbacks] to what DingTalk can reach.",
        ));
    };
    let base = public_url.trim_end_matches('/');
    Ok(Route {
        key: key.clone(),
        url: format!("{base}/callback/{}/cards", percent_encode(&app.name)),
        secret: secret.clone(),
    })
}

/// Whether what is registered now is what was to be.
fn check(route: &Route, judged: &Judged) -> Result<(), Problem> {
    let Verdict::Sent { handle } = &judged.verdict else {
        let said = judged.reply.as_ref().map(answer_of);
        let said = said.and_then(|answer| answer::vendor_error(&answer));
        return Err(refused(judged.verdict.reason()).dingtalk(said));
    };
    let registered = handle.as_deref().unwrap_or_default();
    let differs = |slug, title, detail: String| {
        Err(Problem::new(409, slug, title, detail).fix(
            "用 dingd cards register --force 覆盖（影响使用该 route_key 的所有卡片），或在 [apps.cards] 换一个 route_key。",
            "Overwrite it with `dingd cards register --force`, which affects every card that uses this route_key, or choose another route_key in [apps.cards].",
        ))
    };
    if registered.trim_end_matches('/') != route.url {
        let registered = printable(registered, URL_BYTES_MAX);
        let detail = format!(
            "route_key {:?} stays registered for {registered}, not for {}",
            route.key, route.url
        );
        return differs("card_route_differs", "Another URL is registered", detail);
    }
    let other_secret = judged.reply.as_ref().is_some_and(|reply| {
        answer::quotes_another_secret(&answer_of(reply), route.secret.expose())
    });
    if other_secret {
        let detail = format!(
            "route_key {:?} is registered for {} with another secret than [apps.cards] secret: clicks would be refused",
            route.key, route.url
        );
        return differs("card_route_differs", "Another secret is registered", detail);
    }
    Ok(())
}

fn answer_of(reply: &Reply) -> Answer<'_> {
    Answer {
        status: reply.status,
        body: &reply.body,
        body_complete: reply.body_complete,
        retry_after_s: None,
    }
}

fn refused(reason: Option<&Reason>) -> Problem {
    match reason {
        Some(reason) if reason.code == "card_route_exists" => {
            Problem::from_reason(409, "card_route_exists", "Route key in use", reason)
        }
        Some(reason) => {
            Problem::from_reason(502, "dingtalk_refused", "Refused by DingTalk", reason)
        }
        None => Problem::new(502, "dingtalk_refused", "Refused by DingTalk", "no reason"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delivery::state::Ambiguous;
    use crate::egress::Cards;

    fn an_app(callback: CardCallback, secret: bool) -> App {
        App {
            name: "on call".to_owned(),
            corp_id: String::new(),
            client_id: String::new(),
            client_secret: Secret::new("s"),
            robot_code: String::new(),
            cool_app_code: None,
            ambiguous: Ambiguous::Retry,
            cards: Cards {
                callback,
                route_key: Some("k".to_owned()),
                secret: secret.then(|| Secret::new("0123456789abcdef")),
                ..Cards::default()
            },
            stream: None,
        }
    }

    #[test]
    fn the_url_is_made_of_the_public_one_and_what_is_missing_is_named() {
        let http = an_app(CardCallback::Http, true);
        let made = route(&http, Some("https://a.example/")).unwrap();
        assert_eq!(made.url, "https://a.example/callback/on%20call/cards");
        for (app, public_url) in [
            (&an_app(CardCallback::Stream, true), Some("https://a")),
            (&an_app(CardCallback::Http, false), Some("https://a")),
            (&http, None),
        ] {
            assert_eq!(route(app, public_url).unwrap_err().slug(), "cards_not_http");
        }
    }
}
