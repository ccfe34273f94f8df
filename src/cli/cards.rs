//! `dingd cards`: register the callback of an app's cards, show one card.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::Value;

use super::output::{cell, finish, say};
use super::{Target, client};

#[derive(Debug, Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Register with DingTalk where clicks go ([apps.cards] callback = "http"), and check it.
    ///
    /// Registers <public_url>/callback/<app>/cards with the secret of [apps.cards] under its route_key. Run it
    /// once, and again after public_url, route_key or secret have changed.
    Register {
        #[command(flatten)]
        target: Target,
        /// Which app, if there are several.
        #[arg(long)]
        app: Option<String>,
        /// Overwrite what is registered under the route_key; affects every card that uses it.
        #[arg(long)]
        force: bool,
    },
    /// One card: what it is to show, and what of that is not at DingTalk yet.
    Show {
        #[command(flatten)]
        target: Target,
        /// Its out_track_id.
        out_track_id: String,
        /// Which app, if several have a card of this name.
        #[arg(long)]
        app: Option<String>,
    },
}

pub(super) fn main(arguments: &Arguments) -> ExitCode {
    match &arguments.what {
        What::Register { target, app, force } => {
            let mut path = format!("/v1/cards/register?force={force}");
            if let Some(app) = app {
                path.push_str(&format!("&app={}", client::encoded(app)));
            }
            finish(
                client::ask(target, "POST", &path, None),
                target.json,
                registered,
            )
        }
        What::Show {
            target,
            out_track_id,
            app,
        } => {
            let mut path = format!("/v1/cards/{}", client::encoded(out_track_id));
            if let Some(app) = app {
                path.push_str(&format!("?app={}", client::encoded(app)));
            }
            finish(client::ask(target, "GET", &path, None), target.json, show)
        }
    }
}

fn registered(done: &Value) {
    say(&format!(
        "app {}: clicks on cards go to {} (route_key {})",
        cell(done, "/app"),
        cell(done, "/url"),
        cell(done, "/route_key")
    ));
    say(REGISTERED);
}

/// What to do next.
const REGISTERED: &str = "\
New cards use it at once. DingTalk must reach that URL: send a card and click on it.
新发的卡片立即生效。请确认钉钉能访问该地址：发一张卡片并点击按钮。";

fn show(card: &Value) {
    for (name, pointer) in [
        ("card", "/out_track_id"),
        ("app", "/app"),
        ("state", "/state"),
        ("template", "/template_id"),
        ("api", "/api"),
        ("sent by message", "/message"),
        ("of client", "/client"),
        ("accepted", "/accepted_at"),
        ("changed", "/changed_at"),
    ] {
        say(&format!("{name}: {}", cell(card, pointer)));
    }
    variables("data", card.pointer("/data"));
    for (user, own) in members(card.pointer("/private_data")) {
        variables(&format!("private data of {}", safe(user)), Some(own));
    }
    if card.pointer("/waiting").is_none_or(Value::is_null) {
        return;
    }
    match &*cell(card, "/carried_by") {
        "-" => say(NOT_CARRIED),
        message => say(&format!(
            "part of this is not at DingTalk yet; message {message} takes it along"
        )),
    }
    variables("waiting data", card.pointer("/waiting/data"));
    for (user, own) in members(card.pointer("/waiting/private_data")) {
        variables(&format!("waiting for {}", safe(user)), Some(own));
    }
}

/// What to do about changes whose message ended without them.
const NOT_CARRIED: &str = "\
part of this is not at DingTalk: its message ended (dingd dead list); the next PATCH takes it along, or dingd dead replay
部分内容未送达钉钉：对应消息已结束（dingd dead list）；下一次 PATCH 会一并带上，也可用 dingd dead replay 重发";

fn variables(title: &str, variables: Option<&Value>) {
    say(&format!("{title}:"));
    for (name, value) in members(variables) {
        let value = value.as_str().unwrap_or_default();
        say(&format!("  {} = {}", safe(name), safe(value)));
    }
}

fn members(value: Option<&Value>) -> impl Iterator<Item = (&String, &Value)> {
    value.and_then(Value::as_object).into_iter().flatten()
}

/// Made safe for a terminal.
fn safe(text: &str) -> String {
    crate::secret::printable(text, 1_024)
}
