//! `dingd dead`: what was given up, why, and another chance.

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
    /// The newest dead letters of both directions.
    List {
        #[command(flatten)]
        target: Target,
        /// How many.
        #[arg(long, default_value_t = 50)]
        limit: u16,
    },
    /// One with its content, reason and cure.
    Show(One),
    /// Take it up again under its old id.
    Replay(One),
    /// Remove it for good.
    Purge(One),
}

#[derive(Debug, Args)]
struct One {
    #[command(flatten)]
    target: Target,
    /// msg_… or evt_…
    id: String,
}

impl One {
    fn ask(&self, method: &str, suffix: &str) -> Result<Value, String> {
        let path = format!("/v1/dead/{}{suffix}", client::encoded(&self.id));
        client::ask(&self.target, method, &path, None)
    }
}

pub(super) fn main(arguments: &Arguments) -> ExitCode {
    match &arguments.what {
        What::List { target, limit } => {
            let answer = client::ask(target, "GET", &format!("/v1/dead?limit={limit}"), None);
            finish(answer, target.json, list)
        }
        What::Show(one) => finish(one.ask("GET", ""), one.target.json, say_json),
        What::Replay(one) => finish(one.ask("POST", "/replay"), one.target.json, |value| {
            say(&format!("{} waits for delivery again", cell(value, "/id")));
        }),
        What::Purge(one) => finish(one.ask("DELETE", ""), one.target.json, |value| {
            say(&format!("{} is gone", cell(value, "/id")));
        }),
    }
}

fn list(page: &Value) {
    let dead = items(page, "dead");
    let rows: Vec<_> = dead
        .iter()
        .map(|letter| {
            let reason = letter
                .pointer("/reason/code")
                .or_else(|| letter.pointer("/targets/0/reason/code"))
                .and_then(Value::as_str)
                .unwrap_or("-");
            let what = letter
                .get("to")
                .or_else(|| letter.get("type"))
                .map(ToString::to_string);
            vec![
                cell(letter, "/id"),
                cell(letter, "/state"),
                reason.to_owned(),
                cell(letter, "/finished_at"),
                crate::secret::printable(&what.unwrap_or_default(), 80),
            ]
        })
        .collect();
    table(&["ID", "STATE", "REASON", "ENDED", "WHAT"], &rows);
    if page
        .get("damaged_records")
        .and_then(Value::as_u64)
        .unwrap_or(0)
        > 0
    {
        say(&format!(
            "{} damaged record(s) were set aside. Check the disk and `dmesg`; what they were about is lost \
             unless a backup has it. / 有 {0} 条记录损坏并已隔离：请检查磁盘，必要时从备份恢复。",
            cell(page, "/damaged_records")
        ));
        let damaged = items(page, "damaged");
        let rows: Vec<_> = damaged
            .iter()
            .map(|record| ["/table", "/key", "/bytes"].map(|name| cell(record, name)))
            .map(Vec::from)
            .collect();
        table(&["TABLE", "KEY", "BYTES"], &rows);
    }
}
