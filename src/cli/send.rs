//! `dingd send`: a message through the running daemon, for scripts and for trying things out.

use std::process::ExitCode;

use clap::Args;
use serde_json::{Value, json};

use super::output::{cell, finish, say};
use super::{Target, client};

#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("to").required(true))]
pub(super) struct Arguments {
    #[command(flatten)]
    target: Target,
    /// To a group: its openConversationId (see `dingd chats`).
    #[arg(long, group = "to", value_name = "ID")]
    chat: Option<String>,
    /// To people: userids, separated by commas.
    #[arg(long, group = "to", value_name = "IDS", value_delimiter = ',')]
    users: Option<Vec<String>>,
    /// To a custom robot's group: a name of [[robots]], or of a pool of them.
    #[arg(long, group = "to", value_name = "NAME")]
    robot: Option<String>,
    /// Which app, if there are several.
    #[arg(long, value_name = "NAME")]
    app: Option<String>,
    /// Makes it markdown with this title.
    #[arg(long, value_name = "TEXT")]
    title: Option<String>,
    /// critical, high, normal or low.
    #[arg(long, default_value = "normal")]
    priority: String,
    /// What to say.
    text: String,
}

pub(super) fn main(arguments: Arguments) -> ExitCode {
    let to = match (arguments.chat, arguments.users, arguments.robot) {
        (Some(chat), _, _) => json!({"chat": chat}),
        (_, Some(users), _) => json!({"users": users}),
        (_, _, robot) => json!({"robot": robot}),
    };
    let content = match arguments.title {
        Some(title) => json!({"markdown": {"title": title, "text": arguments.text}}),
        None => json!({"text": {"content": arguments.text}}),
    };
    let mut body = json!({"to": to, "content": content, "priority": arguments.priority});
    if let (Some(app), Value::Object(members)) = (arguments.app, &mut body) {
        members.insert("app".to_owned(), json!(app));
    }
    let answer = client::ask(&arguments.target, "POST", "/v1/messages", Some(&body));
    finish(answer, arguments.target.json, |accepted| {
        say(&format!(
            "accepted as {}; follow it with: dingd messages show {0}",
            cell(accepted, "/id")
        ));
    })
}
