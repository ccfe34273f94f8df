//! Access tokens: one per app and generation, the same again while it lives, renewed by asking.

use std::time::{Duration, Instant};

use serde_json::json;

use super::ask::{Ask, errcode, error, ok, text};
use super::world::World;
use crate::sim::clock;
use crate::sim::server::Answer;

/// The app's live tokens.
#[derive(Debug)]
pub(super) struct Tokens {
    life: Duration,
    fetches: usize,
    serial: usize,
    new: Option<Token>,
    legacy: Option<Token>,
}

#[derive(Debug)]
struct Token {
    value: String,
    until: Instant,
}

impl Tokens {
    pub(super) fn new(life_s: u64) -> Self {
        Self {
            life: Duration::from_secs(life_s),
            fetches: 0,
            serial: 0,
            new: None,
            legacy: None,
        }
    }

    /// How often any of the token calls was made.
    pub(super) fn fetches(&self) -> usize {
        self.fetches
    }

    /// All tokens die.
    pub(super) fn expire(&mut self) {
        self.new = None;
        self.legacy = None;
    }

    /// Whether the new host takes this token. A token of `/gettoken` is not known to work there,
    /// so the box refuses it.
    pub(super) fn good(&self, token: &str, at: Instant) -> bool {
        self.new.as_ref().is_some_and(|live| live.is(token, at))
    }

    /// Whether the legacy host takes this token; it takes those of both generations.
    pub(super) fn good_legacy(&self, token: &str, at: Instant) -> bool {
        self.good(token, at) || self.legacy.as_ref().is_some_and(|live| live.is(token, at))
    }

    fn issue(&mut self, legacy: bool, at: Instant) -> String {
        let slot = if legacy {
            &mut self.legacy
        } else {
            &mut self.new
        };
        let until = at + self.life;
        match slot {
            Some(live) if at < live.until => {
                live.until = until;
                live.value.clone()
            }
            _ => {
                self.serial += 1;
                let value = format!("{}{:04x}", clock::hex(&clock::random::<14>()), self.serial);
                *slot = Some(Token {
                    value: value.clone(),
                    until,
                });
                value
            }
        }
    }
}

impl Token {
    fn is(&self, value: &str, at: Instant) -> bool {
        self.value == value && at < self.until
    }
}

/// `POST /v1.0/oauth2/accessToken`.
pub(super) fn internal(world: &mut World, ask: &Ask) -> Answer {
    world.tokens.fetches += 1;
    let Some(body) = ask.object().filter(|_| ask.is_json()) else {
        return error(400, "Missingbody", "body is mandatory for this action");
    };
    world.judge(ask, "", &body, &["appKey", "appSecret"]);
    let app = &world.settings.app;
    if text(&body, "appKey") != Some(&app.client_id)
        || text(&body, "appSecret") != Some(&app.client_secret)
    {
        return error(
            400,
            "invalidClientIdOrSecret",
            "无效的clientId或者clientSecret",
        );
    }
    let token = world.tokens.issue(false, ask.at);
    ok(&json!({"accessToken": token, "expireIn": world.settings.token_life_s}))
}

/// `POST /v1.0/oauth2/{corpId}/token`, which has its own member names.
pub(super) fn unified(world: &mut World, ask: &Ask) -> Answer {
    world.tokens.fetches += 1;
    let Some(body) = ask.object().filter(|_| ask.is_json()) else {
        return error(400, "Missingbody", "body is mandatory for this action");
    };
    world.judge(
        ask,
        "",
        &body,
        &["client_id", "client_secret", "grant_type"],
    );
    let app = &world.settings.app;
    if text(&body, "grant_type") != Some("client_credentials") {
        return error(
            400,
            "unsupported.grant.type",
            "grant_type must be client_credentials",
        );
    }
    if text(&body, "client_id") != Some(&app.client_id)
        || text(&body, "client_secret") != Some(&app.client_secret)
    {
        return error(400, "invalid.client", "unknown client or wrong secret");
    }
    if ask.path != format!("/v1.0/oauth2/{}/token", app.corp_id) {
        return error(
            401,
            "unauthorized.client",
            "the organisation has not authorised this app",
        );
    }
    let token = world.tokens.issue(false, ask.at);
    ok(&json!({"access_token": token, "expires_in": world.settings.token_life_s}))
}

/// `GET /gettoken`.
pub(super) fn legacy(world: &mut World, ask: &Ask) -> Answer {
    world.tokens.fetches += 1;
    let app = &world.settings.app;
    if ask.parameter("appkey").as_ref() != Some(&app.client_id)
        || ask.parameter("appsecret").as_ref() != Some(&app.client_secret)
    {
        return errcode(40001, "获取access_token时Secret错误，或者access_token无效");
    }
    let token = world.tokens.issue(true, ask.at);
    let life = world.settings.token_life_s;
    ok(&json!({"errcode": 0, "errmsg": "ok", "access_token": token, "expires_in": life}))
}
