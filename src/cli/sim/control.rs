//! What can be asked of the box over its door: records, switches, pushes.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Value, json};

use super::HELP;
use crate::http::listen::Request;
use crate::http::problem::{self, Answer, Problem};
use crate::sim::dingtalk::{Casing, DingTalk, PushResult, Switches, Wrong};
use crate::sim::platform::{Platform, PlatformSwitches};

/// The box and the platform in the hands of whoever steers them.
pub(super) struct Control {
    pub(super) box_: DingTalk,
    pub(super) platform: Platform,
    /// The chat that is meant when none is named.
    pub(super) chat: String,
}

/// The switches that can be set from outside.
#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
#[derive(Default)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "independent switches, each with its own name"
)]
struct Wanted {
    only: Option<String>,
    down: bool,
    refuse: bool,
    slow_ms: u64,
    cut_before: bool,
    cut_after: bool,
    html: bool,
    wrong: Option<(u16, String)>,
    failing: Option<String>,
    invalid_users: Vec<String>,
    throttled_users: Vec<String>,
    undeliverable: Vec<String>,
    oversize_answer: bool,
    break_json: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Push {
    url: Option<String>,
    event: String,
    #[serde(default)]
    text: String,
    #[serde(default)]
    title: String,
    chat: Option<String>,
    #[serde(default)]
    pascal: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Misbehave {
    status: Option<u16>,
    #[serde(default)]
    slow_ms: u64,
}

impl Control {
    pub(super) fn new(box_: DingTalk, platform: Platform, chat: String) -> Self {
        Self {
            box_,
            platform,
            chat,
        }
    }

    pub(super) async fn handle(self: Arc<Self>, request: Request) -> Answer {
        let (method, path) = (request.head.method.as_str(), request.head.uri.path());
        let result = match (method, path) {
            ("GET", "/") => Ok(json!({"help": HELP.lines().collect::<Vec<_>>()})),
            ("GET", _) => self.records(path).ok_or_else(Problem::no_such_route),
            ("POST", "/switches") => read(&request).map(|wanted: Wanted| self.switch(wanted)),
            ("POST", "/platform") => read(&request).map(|wanted: Misbehave| {
                let switches = PlatformSwitches {
                    status: wanted.status,
                    slow_ms: wanted.slow_ms,
                    ..PlatformSwitches::default()
                };
                self.platform.set(switches);
                json!({"ok": true})
            }),
            ("POST", "/expire-tokens") => {
                self.box_.expire_tokens();
                Ok(json!({"ok": true}))
            }
            ("POST", "/push") => match read::<Push>(&request) {
                Ok(push) => self.push(push).await,
                Err(problem) => Err(problem),
            },
            ("POST", "/say") => match read(&request) {
                Ok(words) => Ok(self.say(words).await),
                Err(problem) => Err(problem),
            },
            ("POST", "/click") => match read(&request) {
                Ok(click) => Ok(self.click(click).await),
                Err(problem) => Err(problem),
            },
            ("POST", "/stream") => read(&request).map(|order| self.stream(&order)),
            _ => Err(Problem::no_such_route()),
        };
        match result {
            Ok(value) => problem::json(200, &value),
            Err(problem) => problem.answer(),
        }
    }

    fn switch(&self, wanted: Wanted) -> Value {
        self.box_.set(Switches {
            only: wanted.only,
            down: wanted.down,
            refuse: wanted.refuse,
            slow_ms: wanted.slow_ms,
            cut_before: wanted.cut_before,
            cut_after: wanted.cut_after,
            html: wanted.html,
            wrong: wanted
                .wrong
                .map(|(status, body)| Wrong::json(status, &body)),
            fail_next: std::collections::VecDeque::new(),
            failing: wanted.failing,
            invalid_users: wanted.invalid_users,
            throttled_users: wanted.throttled_users,
            undeliverable: wanted.undeliverable,
            oversize_answer: wanted.oversize_answer,
            break_json: wanted.break_json,
        });
        json!({"ok": true})
    }

    async fn push(&self, push: Push) -> Result<Value, Problem> {
        let chat = push.chat.as_deref().unwrap_or(&self.chat);
        let casing = if push.pascal {
            Casing::Pascal
        } else {
            Casing::Lower
        };
        let event = match push.event.as_str() {
            "check_url" => {
                let url = push.url.as_deref().unwrap_or_default();
                return Ok(pushed(&self.box_.check_url(url).await));
            }
            "install" => self.box_.install_cool_app(chat, "manager0001", casing),
            "uninstall" => self.box_.uninstall_cool_app(chat, "manager0001", casing),
            "rename" => self.box_.rename(chat, &push.title, "manager0001", casing),
            "disband" => self.box_.disband(chat, "manager0001", casing),
            "user_left" => self.box_.user_leaves("manager0002", casing),
            "raw" => push.text,
            other => {
                return Err(invalid(format!("no event {other:?}")));
            }
        };
        Ok(match &push.url {
            Some(url) => pushed(&self.box_.push(url, &event).await),
            None => self.push_by_stream(&event).await,
        })
    }
}

fn read<T: serde::de::DeserializeOwned>(request: &Request) -> Result<T, Problem> {
    serde_json::from_slice(&request.body).map_err(|error| invalid(error.to_string()))
}

fn invalid(detail: String) -> Problem {
    Problem::new(422, "invalid_request", "Invalid request", detail)
}

fn pushed(push: &PushResult) -> Value {
    json!({"status": push.status, "acknowledged": push.acknowledged, "elapsed_ms": push.elapsed_ms, "error": push.error, "reply": push.body})
}
