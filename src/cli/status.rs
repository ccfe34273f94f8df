//! `dingd status`: how the running daemon is.

use std::process::ExitCode;

use clap::Args;
use serde_json::Value;

use super::output::{cell, finish, say};
use super::{Target, client};

#[derive(Debug, Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    target: Target,
}

pub(super) fn main(arguments: &Arguments) -> ExitCode {
    let answer = client::ask(&arguments.target, "GET", "/v1/status", None);
    let ready = answer
        .as_ref()
        .is_ok_and(|status| status.get("ready") == Some(&Value::Bool(true)));
    let code = finish(answer, arguments.target.json, show);
    if ready {
        code
    } else {
        ExitCode::from(super::FAILED)
    }
}

fn show(status: &Value) {
    let ready = if status.get("ready") == Some(&Value::Bool(true)) {
        "ready"
    } else {
        "NOT ready"
    };
    say(&format!(
        "dingd {} (pid {}) is {ready}",
        cell(status, "/version"),
        cell(status, "/pid")
    ));
    for door in ["callbacks", "api", "admin"] {
        say(&format!(
            "  {door:<10} {}",
            cell(status, &format!("/doors/{door}"))
        ));
    }
    let (inbound, outbound) = (
        cell(status, "/queued/inbound"),
        cell(status, "/queued/outbound"),
    );
    say(&format!(
        "  waiting    {inbound} events, {outbound} messages"
    ));
    for list in ["pending", "unready", "degraded"] {
        for item in status
            .get(list)
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
        {
            let text = item.as_str().unwrap_or_default();
            say(&format!(
                "  {list}: {}",
                crate::secret::printable(text, 1_000)
            ));
        }
    }
    match status
        .get("conservation_mismatch")
        .map(|by| (by, by.as_u64()))
    {
        Some((_, Some(0))) => {}
        Some((Value::Null, _)) => say("  the books cannot be read now: see the log and the disk"),
        _ => say("  THE BOOKS DO NOT BALANCE: please report this with the log"),
    }
}
