//! `dingd messages`: list, show, cancel, resolve.

use std::process::ExitCode;

use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Value, json};

use super::output::{cell, finish, items, say, say_json, say_more, table};
use super::{Target, client};

#[derive(Debug, Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// The newest messages.
    List {
        #[command(flatten)]
        target: Target,
        /// queued, sending, retrying, sent, unknown, dead, expired or cancelled.
        #[arg(long)]
        state: Option<String>,
        /// How many.
        #[arg(long, default_value_t = 50)]
        limit: u16,
        /// Go on where an earlier list ended.
        #[arg(long)]
        cursor: Option<String>,
    },
    /// One message with its content and receipts.
    Show {
        #[command(flatten)]
        target: Target,
        /// msg_…
        id: String,
    },
    /// Withdraw a message that is still waiting.
    Cancel {
        #[command(flatten)]
        target: Target,
        /// msg_…
        id: String,
    },
    /// Decide what became of a message of unknown outcome.
    Resolve {
        #[command(flatten)]
        target: Target,
        /// msg_…
        id: String,
        /// What you found in the chat.
        #[arg(long = "as", value_enum)]
        resolution: Resolution,
    },
}

/// What became of a message of unknown outcome.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Resolution {
    /// It arrived.
    Sent,
    /// It did not arrive, and need not.
    Dead,
    /// It did not arrive: send it again under its id.
    Retry,
}

impl Resolution {
    fn word(self) -> &'static str {
        match self {
            Self::Sent => "sent",
            Self::Dead => "dead",
            Self::Retry => "retry",
        }
    }
}

pub(super) fn main(arguments: &Arguments) -> ExitCode {
    match &arguments.what {
        What::List {
            target,
            state,
            limit,
            cursor,
        } => {
            let mut path = format!("/v1/messages?limit={limit}");
            for (name, value) in [("state", state), ("cursor", cursor)] {
                if let Some(value) = value {
                    path.push_str(&format!("&{name}={}", client::encoded(value)));
                }
            }
            finish(client::ask(target, "GET", &path, None), target.json, list)
        }
        What::Show { target, id } => {
            let path = format!("/v1/messages/{}", client::encoded(id));
            finish(
                client::ask(target, "GET", &path, None),
                target.json,
                say_json,
            )
        }
        What::Cancel { target, id } => {
            let path = format!("/v1/messages/{}", client::encoded(id));
            let answer = client::ask(target, "DELETE", &path, None);
            finish(answer, target.json, |message| {
                say(&format!("{} is cancelled", cell(message, "/id")));
            })
        }
        What::Resolve {
            target,
            id,
            resolution,
        } => {
            let path = format!("/v1/messages/{}/resolve", client::encoded(id));
            let body = json!({"as": resolution.word()});
            let answer = client::ask(target, "POST", &path, Some(&body));
            finish(answer, target.json, |done| {
                say(&format!(
                    "{} is {} now",
                    cell(done, "/id"),
                    cell(done, "/state")
                ));
            })
        }
    }
}

fn list(page: &Value) {
    let messages = items(page, "messages");
    let rows: Vec<_> = messages
        .iter()
        .map(|m| {
            [
                "/id",
                "/state",
                "/priority",
                "/accepted_at",
                "/attempts",
                "/to",
                "/reason/code",
            ]
            .map(|key| cell(m, key))
            .to_vec()
        })
        .collect();
    table(
        &[
            "ID", "STATE", "PRIORITY", "ACCEPTED", "ATTEMPTS", "TO", "REASON",
        ],
        &rows,
    );
    say_more(page);
    if messages
        .iter()
        .any(|message| cell(message, "/state") == "unknown")
    {
        say(HELD);
    }
}

/// What to do about messages of unknown outcome.
const HELD: &str = "\
unknown: nobody can know whether DingTalk took it. Look into the chat (or ask the people): is the text of \
`dingd messages show ID` there? Then: dingd messages resolve ID --as sent|dead|retry
unknown：无法确认钉钉是否已收下。请到群里（或向接收人）核对是否有 `dingd messages show ID` 显示的内容，\
再执行 dingd messages resolve ID --as sent（已收到）| dead（未收到且不必再发）| retry（重发）";
