//! `dingd check`: every fault of a configuration at once.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use super::output::{complain, say, say_json};
use crate::config::read::{Fault, Sources};
use crate::config::{self, Config};
use crate::http::tls::Loaded;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The configuration.
    #[arg(long, default_value = "/etc/dingd/config.toml", value_name = "FILE")]
    config: PathBuf,
    /// JSON for programs.
    #[arg(long)]
    json: bool,
}

pub(super) fn main(arguments: &Arguments) -> ExitCode {
    let env = |name: &str| std::env::var(name).ok();
    let (faults, warnings) = match config::load(&arguments.config, &Sources { env: &env }) {
        Ok(config) => (unloadable(&config), config.warnings),
        Err(unusable) => (unusable.faults, vec![]),
    };
    if arguments.json {
        let shown = |faults: &[Fault]| -> Vec<_> {
            faults
                .iter()
                .map(|f| json!({"key": f.key, "problem": f.problem, "fix": f.fix}))
                .collect()
        };
        say_json(
            &json!({"ok": faults.is_empty(), "faults": shown(&faults), "warnings": shown(&warnings)}),
        );
    } else {
        let file = arguments.config.display();
        for fault in &faults {
            complain(&format!("{file}: {fault}"));
        }
        for warning in &warnings {
            complain(&format!("{file}: warning: {warning}"));
        }
        match faults.len() {
            0 => say(&format!("{file}: good")),
            count => complain(&format!("{file}: {count} fault(s)")),
        }
    }
    if faults.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(super::BAD_CONFIG)
    }
}

/// Files that the configuration names and that cannot be used.
fn unloadable(config: &Config) -> Vec<Fault> {
    [
        ("callbacks.tls", &config.callbacks),
        ("api.tls", &config.api),
    ]
    .into_iter()
    .filter_map(|(key, door)| {
        let error = Loaded::read(door.tls.clone()?).err()?;
        Some(Fault::new(
            key,
            error.to_string(),
            "check the PEM files and their permissions",
        ))
    })
    .collect()
}
