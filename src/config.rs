//! `config.toml` → checked settings of every module. All faults at once, each with its key.
//!
//! [`read`] the reader that misses no key · [`parts`] one function a table, `cards` and `stream`
//! larger ones. This and [`crate::app`] are the only places that see the settings of all modules.

mod cards;
pub mod parts;
pub mod read;
mod stream;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use crate::http::listen::Limits;
use crate::http::tls::Files;
use crate::journal::retention::Keep;
use crate::{egress, inbound, outbound};
use read::{Fault, Faults, Section, Sources};

/// Everything that was configured, checked.
#[derive(Debug)]
pub struct Config {
    /// Where the stores lie.
    pub state_dir: PathBuf,
    /// The door for DingTalk.
    pub callbacks: Door,
    /// What DingTalk and people's clients see of it.
    pub public_url: Option<String>,
    /// The door for the platform.
    pub api: Door,
    /// The door for Prometheus.
    pub admin: SocketAddr,
    /// The whitelisted addresses, to be shown.
    pub addresses: Vec<String>,
    /// How long what has ended stays.
    pub keep: Keep,
    /// How calls leave.
    pub egress: egress::Settings,
    /// To connect to anything, in milliseconds.
    pub connect_timeout_ms: u64,
    /// The inbound side.
    pub inbound: inbound::Settings,
    /// The outbound side.
    pub outbound: outbound::Settings,
    /// The log.
    pub log: Log,
    /// What works but should be changed.
    pub warnings: Vec<Fault>,
}

/// A door as configured.
#[derive(Debug, Clone)]
pub struct Door {
    /// Where it listens.
    pub listen: SocketAddr,
    /// Its TLS; `None` = plain HTTP.
    pub tls: Option<Files>,
    /// What it allows.
    pub limits: Limits,
}

/// The log as configured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    /// One JSON object a line instead of text.
    pub json: bool,
    /// `error` … `trace`, or directives such as `info,dingd::egress=debug`.
    pub level: String,
}

/// The configuration cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{}", Faults::text(.path, .faults))]
pub struct Unusable {
    /// The file.
    pub path: PathBuf,
    /// All that is wrong with it.
    pub faults: Vec<Fault>,
}

/// Reads and checks the file.
pub fn load(path: &Path, sources: &Sources<'_>) -> Result<Config, Unusable> {
    let unusable = |faults| Unusable {
        path: path.to_owned(),
        faults,
    };
    let text = std::fs::read_to_string(path).map_err(|error| {
        unusable(vec![Fault::new(
            "",
            format!("cannot be read: {error}"),
            "check the path and who may read it",
        )])
    })?;
    parse(&text, sources).map_err(unusable)
}

/// Reads TOML. What is wrong with it is told by the number of the line, which itself may have a secret in it.
pub fn table(text: &str) -> Result<toml::Table, Fault> {
    text.parse().map_err(|error: toml::de::Error| {
        let before = error.span().and_then(|span| text.get(..span.start));
        let line = before.map_or(1, |before| before.matches('\n').count() + 1);
        Fault::new(
            "",
            format!("line {line} is not TOML: {}", error.message()),
            "correct that line",
        )
    })
}

/// Checks the text of a configuration.
pub fn parse(text: &str, sources: &Sources<'_>) -> Result<Config, Vec<Fault>> {
    let table = table(text).map_err(|fault| vec![fault])?;
    let faults = Faults::default();
    let root = Section::root(&table, sources, &faults);
    let config = parts::config(&root);
    root.finish();
    let (faults, warnings) = faults.into_parts();
    match config {
        Some(mut config) if faults.is_empty() => {
            config.warnings = warnings;
            Ok(config)
        }
        _ => Err(faults),
    }
}
