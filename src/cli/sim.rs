//! `dingd sim`: the simulated DingTalk alone, for whoever integrates with DingTalk or with dingd. It is
//! steered over HTTP through a door of its own.

use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::output::{complain, say};
use crate::drain;
use crate::http::listen::{Door, Limits, Request};
use crate::http::problem::{self, Answer, Problem};
use crate::sim::daemon::{self, PLATFORM_SECRET};
use crate::sim::dingtalk::{Casing, DingTalk, PushResult, Settings, Switches, Wrong};
use crate::sim::platform::{Platform, PlatformSwitches};

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Where the simulated DingTalk listens; both of its hosts are this one.
    #[arg(long, default_value = "127.0.0.1:7788", value_name = "ADDRESS")]
    listen: SocketAddr,
    /// Where a simulated alert platform takes events.
    #[arg(long, default_value = "127.0.0.1:7789", value_name = "ADDRESS")]
    platform: SocketAddr,
    /// Where the box is steered.
    #[arg(long, default_value = "127.0.0.1:7790", value_name = "ADDRESS")]
    control: SocketAddr,
    /// Divides every window and penalty: 1 is true to life.
    #[arg(long, default_value_t = 1.0)]
    scale: f64,
    /// Enforce no limits.
    #[arg(long)]
    no_limits: bool,
}

const HELP: &str = "\
GET  /delivered /requests /penalties /complaints /events   what happened
POST /switches   {\"down\":true,\"slow_ms\":500,…}            misbehave; {} is well again
POST /platform   {\"status\":503,\"slow_ms\":0}               the platform misbehaves
POST /push       {\"url\":\"http://…/callback/oncall/events\",\"event\":\"install\"}
                 event: check_url install uninstall rename(title) disband user_left raw(text)
POST /expire-tokens                                       all access tokens die now";

pub(super) fn main(arguments: &Arguments) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build();
    let result = runtime
        .map_err(|error| error.to_string())
        .and_then(|runtime| runtime.block_on(run(arguments)));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&error);
            ExitCode::from(super::FAILED)
        }
    }
}

async fn run(arguments: &Arguments) -> Result<(), String> {
    let bind = async |address: SocketAddr| {
        TcpListener::bind(address)
            .await
            .map_err(|error| format!("{address}: {error}"))
    };
    let settings = Settings {
        time_scale: arguments.scale.max(0.001),
        limits: !arguments.no_limits,
        ..Settings::default()
    };
    let chat = settings
        .groups
        .first()
        .map(|group| group.open_conversation_id.clone());
    let box_ = DingTalk::start(settings.clone(), bind(arguments.listen).await?);
    let platform = Platform::start(PLATFORM_SECRET, bind(arguments.platform).await?);
    say(&format!(
        "# The simulated DingTalk is at {}, its controls at http://{}:",
        box_.url(),
        arguments.control
    ));
    for line in HELP.lines() {
        say(&format!("#   {line}"));
    }
    say("#\n# A dingd for it (put this into a file and run: dingd run --config FILE):\n");
    let state_dir = Path::new("/tmp/dingd-sim");
    say(&daemon::config(
        &settings,
        &box_.url(),
        Some(&platform.url()),
        state_dir,
    ));
    let control = Arc::new(Control {
        box_,
        platform,
        chat: chat.unwrap_or_default(),
    });
    let door = Door::bind("control", arguments.control, None, Limits::default());
    let door = door.await.map_err(|error| error.to_string())?;
    let (trigger, drain) = drain::channel();
    let served = tokio::spawn(door.serve(move |request| control.clone().handle(request), drain));
    tokio::signal::ctrl_c()
        .await
        .map_err(|error| error.to_string())?;
    trigger.drain().await;
    served.await.map_err(|error| error.to_string())
}

struct Control {
    box_: DingTalk,
    platform: Platform,
    chat: String,
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
    invalid_users: Vec<String>,
    throttled_users: Vec<String>,
    undeliverable: Vec<String>,
    oversize_answer: bool,
    break_json: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Push {
    url: String,
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
    async fn handle(self: Arc<Self>, request: Request) -> Answer {
        let (method, path) = (request.head.method.as_str(), request.head.uri.path());
        let result = match (method, path) {
            ("GET", "/") => Ok(json!({"help": HELP.lines().collect::<Vec<_>>()})),
            ("GET", "/delivered" | "/requests" | "/penalties" | "/complaints" | "/events") => {
                Ok(self.records(path))
            }
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
            _ => Err(Problem::no_such_route()),
        };
        match result {
            Ok(value) => problem::json(200, &value),
            Err(problem) => problem.answer(),
        }
    }

    fn records(&self, path: &str) -> Value {
        match path {
            "/delivered" => self.box_.delivered().iter().map(|d| json!({"at_ms": d.at_ms, "via": format!("{:?}", d.via), "target": d.target, "kind": d.kind, "text": d.text, "msg_uuid": d.msg_uuid, "handle": d.handle})).collect(),
            "/requests" => self.box_.requests().iter().map(|r| json!({"at_ms": r.at_ms, "method": r.method, "path": r.path, "status": r.status, "code": r.code, "body": r.body})).collect(),
            "/penalties" => self.box_.penalties().iter().map(|p| json!({"at_ms": p.at_ms, "kind": p.kind, "key": p.key})).collect(),
            "/complaints" => json!(self.box_.complaints()),
            _ => self.platform.attempts().iter().map(|e| json!({"at_ms": e.at_ms, "id": e.id, "type": e.kind, "valid": e.valid, "answered": e.answered, "body": e.body})).collect(),
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
            "check_url" => return Ok(pushed(&self.box_.check_url(&push.url).await)),
            "install" => self.box_.install_cool_app(chat, "manager0001", casing),
            "uninstall" => self.box_.uninstall_cool_app(chat, "manager0001", casing),
            "rename" => self.box_.rename(chat, &push.title, "manager0001", casing),
            "disband" => self.box_.disband(chat, "manager0001", casing),
            "user_left" => self.box_.user_leaves("manager0002", casing),
            "raw" => push.text,
            other => {
                return Err(Problem::new(
                    422,
                    "invalid_request",
                    "Invalid request",
                    format!("no event {other:?}"),
                ));
            }
        };
        Ok(pushed(&self.box_.push(&push.url, &event).await))
    }
}

fn read<T: serde::de::DeserializeOwned>(request: &Request) -> Result<T, Problem> {
    serde_json::from_slice(&request.body)
        .map_err(|error| Problem::new(422, "invalid_request", "Invalid request", error.to_string()))
}

fn pushed(push: &PushResult) -> Value {
    json!({"status": push.status, "acknowledged": push.acknowledged, "elapsed_ms": push.elapsed_ms, "error": push.error, "reply": push.body})
}
