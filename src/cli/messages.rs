//! `dingd messages`: list, show, cancel.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::Value;

use super::output::{cell, finish, items, say, say_json, table};
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
}

pub(super) fn main(arguments: &Arguments) -> ExitCode {
    match &arguments.what {
        What::List {
            target,
            state,
            limit,
        } => {
            let mut path = format!("/v1/messages?limit={limit}");
            if let Some(state) = state {
                path.push_str(&format!("&state={}", client::encoded(state)));
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
}
