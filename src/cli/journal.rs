//! `dingd journal check`: is the store of a stopped daemon sound?

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::output::{cell, complain, finish, items, say, table};
use crate::config::{self, read::Sources};
use crate::journal::Journal;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Read every page and record of a store that no daemon runs on. Opens it as a start does, and takes over
    /// one of an older release.
    Check {
        /// The configuration, to find the state directory.
        #[arg(long, default_value = "/etc/dingd/config.toml", value_name = "FILE")]
        config: PathBuf,
        /// JSON for programs.
        #[arg(long)]
        json: bool,
    },
}

pub(super) fn main(arguments: &Arguments) -> ExitCode {
    let What::Check { config, json } = &arguments.what;
    let dir = match state_dir(config) {
        Ok(dir) => dir,
        Err(error) => {
            complain(&error);
            return ExitCode::from(super::BAD_CONFIG);
        }
    };
    let answer = check(&dir);
    let sound = answer.as_ref().is_ok_and(|(_, sound)| *sound);
    let code = finish(answer.map(|(report, _)| report), *json, show);
    if sound {
        code
    } else {
        ExitCode::from(super::FAILED)
    }
}

fn check(dir: &Path) -> Result<(Value, bool), String> {
    if !Journal::is_in(dir) {
        return Err(format!("{} holds no journal", dir.display()));
    }
    let journal = Journal::open(dir).map_err(|error| error.to_string())?;
    let report = journal.check().map_err(|error| error.to_string())?;
    let groups = journal.damaged_groups();
    journal.close();
    let sound = report.damaged() == 0 && report.mismatch == 0 && groups == 0;
    let mut report = json!(report);
    if let Some(members) = report.as_object_mut() {
        members.insert("damaged_groups".to_owned(), json!(groups));
    }
    Ok((report, sound))
}

/// Where the configuration keeps the state.
pub(super) fn state_dir(file: &Path) -> Result<PathBuf, String> {
    let env = |name: &str| std::env::var(name).ok();
    let config = config::load(file, &Sources { env: &env }).map_err(|error| error.to_string())?;
    Ok(config.state_dir)
}

/// What a store holds, as a table.
pub(super) fn show(report: &Value) {
    let rows: Vec<_> = items(report, "tables")
        .iter()
        .map(|rows| ["/table", "/rows", "/bytes", "/damaged"].map(|name| cell(rows, name)))
        .map(Vec::from)
        .collect();
    table(&["TABLE", "ROWS", "BYTES", "DAMAGED"], &rows);
    let number = |name| report.get(name).and_then(Value::as_u64).unwrap_or(0);
    if number("damaged_groups") > 0 {
        say(&format!(
            "{} group(s) of journal.log were damaged and are set aside now: what was accepted last may be lost",
            number("damaged_groups")
        ));
    }
    if number("set_aside") > 0 {
        say(&format!(
            "{} damaged record(s) were set aside earlier; see `dingd dead list`",
            number("set_aside")
        ));
    }
    match number("mismatch") {
        0 => say("The books balance."),
        by => say(&format!(
            "The books are wrong by {by}: restore a backup, and keep the store for a report."
        )),
    }
}
