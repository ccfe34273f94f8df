//! `dingd quota`: what was used of the month, and until when the rest will do.

use std::process::ExitCode;

use clap::Args;
use serde_json::Value;

use super::output::{cell, finish, items, say, table};
use super::{Target, client};

const ALLOWANCES: [(&str, &str); 2] = [
    ("api_calls", "API calls"),
    ("webhook_messages", "webhook messages"),
];

#[derive(Debug, Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    target: Target,
}

pub(super) fn main(arguments: &Arguments) -> ExitCode {
    let answer = client::ask(&arguments.target, "GET", "/v1/quota", None);
    finish(answer, arguments.target.json, show)
}

fn show(quota: &Value) {
    let (month, zone) = (cell(quota, "/month"), cell(quota, "/time_zone"));
    say(&format!("{month} ({zone})"));
    let organisations = items(quota, "organisations");
    if organisations.is_empty() {
        say("No organisation: neither [[apps]] nor [[robots]] are configured.");
    }
    for organisation in organisations {
        let corp_id = match &*cell(organisation, "/corp_id") {
            "" => "robots without an organisation".to_owned(),
            corp_id => corp_id.to_owned(),
        };
        say(&format!("\n{corp_id}"));
        let mut rows = vec![];
        for (name, what) in ALLOWANCES {
            let Some(allowance) = organisation.get(name) else {
                continue;
            };
            say(&format!("  {what}: {}", in_words(allowance)));
            rows.extend(items(allowance, "by").iter().map(row));
        }
        if !rows.is_empty() {
            table(&["  APP OR ROBOT", "API", "USED"], &rows);
        }
    }
}

fn row(by: &Value) -> Vec<String> {
    let name = ["app", "robot"]
        .into_iter()
        .find(|name| by.get(name).is_some());
    let name = name.map_or_else(|| "-".to_owned(), |name| cell(by, &format!("/{name}")));
    vec![format!("  {name}"), cell(by, "/api"), cell(by, "/used")]
}

fn in_words(allowance: &Value) -> String {
    let used = cell(allowance, "/used");
    let is = |name: &str| allowance.get(name) == Some(&Value::Bool(true));
    let exhausted = "; DingTalk says that there are no more";
    if allowance.get("limit").is_none_or(Value::is_null) {
        let exhausted = if is("exhausted") { exhausted } else { "" };
        return format!("{used} used, no limit{exhausted}");
    }
    let (limit, percent) = (cell(allowance, "/limit"), cell(allowance, "/percent"));
    let forecast = match allowance.get("runs_out_on") {
        _ if is("exhausted") => exhausted.to_owned(),
        Some(Value::String(_)) => {
            format!("; runs out on {}", cell(allowance, "/runs_out_on"))
        }
        _ => "; lasts for the month".to_owned(),
    };
    let enforced = if is("enforced") {
        "; enforced"
    } else {
        "; counted, not enforced"
    };
    format!("{used} of {limit} used ({percent} %){forecast}{enforced}")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_allowance_is_told_in_words() {
        for (allowance, words) in [
            (
                json!({"used": 7, "limit": null, "exhausted": false, "enforced": false}),
                "7 used, no limit",
            ),
            (
                json!({"used": 700, "limit": 1000, "percent": 70, "exhausted": false,
                    "enforced": false, "runs_out_on": "2026-11-19"}),
                "700 of 1000 used (70 %); runs out on 2026-11-19; counted, not enforced",
            ),
            (
                json!({"used": 7, "limit": 1000, "percent": 0, "exhausted": false,
                    "enforced": true, "runs_out_on": null}),
                "7 of 1000 used (0 %); lasts for the month; enforced",
            ),
            (
                json!({"used": 1000, "limit": 1000, "percent": 100, "exhausted": true,
                    "enforced": true, "runs_out_on": "2026-11-19"}),
                "1000 of 1000 used (100 %); DingTalk says that there are no more; enforced",
            ),
        ] {
            assert_eq!(in_words(&allowance), words);
        }
    }
}
