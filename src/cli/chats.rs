//! `dingd chats`: the groups that events told of.

use std::process::ExitCode;

use clap::Args;
use serde_json::Value;

use super::output::{cell, finish, items, say, say_more, table};
use super::{Target, client};

#[derive(Debug, Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    target: Target,
    /// Part of the title.
    q: Option<String>,
    /// Only this app.
    #[arg(long)]
    app: Option<String>,
    /// installed, uninstalled or all.
    #[arg(long, default_value = "installed")]
    state: String,
    /// How many.
    #[arg(long, default_value_t = 200)]
    limit: u16,
    /// Go on where an earlier list ended.
    #[arg(long)]
    cursor: Option<String>,
}

pub(super) fn main(arguments: &Arguments) -> ExitCode {
    let mut path = format!(
        "/v1/chats?limit={}&state={}",
        arguments.limit,
        client::encoded(&arguments.state)
    );
    let given = [
        ("q", &arguments.q),
        ("app", &arguments.app),
        ("cursor", &arguments.cursor),
    ];
    for (name, value) in given {
        if let Some(value) = value {
            path.push_str(&format!("&{name}={}", client::encoded(value)));
        }
    }
    let picked = given.iter().any(|(_, value)| value.is_some()) || arguments.state != "installed";
    let answer = client::ask(&arguments.target, "GET", &path, None);
    finish(answer, arguments.target.json, |page| show(page, picked))
}

/// `picked`: it is not all groups that were asked for.
fn show(page: &Value, picked: bool) {
    let chats = items(page, "chats");
    if chats.is_empty() && picked {
        say(
            "No such groups. Without a filter, dingd chats lists all that have the cool app. / 没有符合条件的群；不带条件可列出全部。",
        );
        return;
    }
    if chats.is_empty() {
        say(
            "No groups. Install the cool app in a group (群设置 → 酷应用); if it is installed already,\nremove and install it again: only the install event tells dingd of a group. Check that the\nevents im_cool_app_install and im_cool_app_uninstall are subscribed (开发配置 → 事件订阅).",
        );
        return;
    }
    let rows: Vec<_> = chats
        .iter()
        .map(|chat| {
            ["/title", "/state", "/app", "/id", "/installed_at"]
                .map(|key| cell(chat, key))
                .to_vec()
        })
        .collect();
    table(&["TITLE", "STATE", "APP", "ID", "INSTALLED"], &rows);
    say_more(page);
}
