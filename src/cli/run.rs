//! `dingd run`: the daemon.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use tracing_subscriber::EnvFilter;

use super::output::complain;
use crate::app::{App, Ended, StartError};
use crate::clock::Clock;
use crate::config::{self, Config, Unusable, read::Sources};
use crate::journal::OpenError;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The configuration.
    #[arg(long, default_value = "/etc/dingd/config.toml", value_name = "FILE")]
    config: PathBuf,
}

pub(super) fn main(arguments: &Arguments) -> ExitCode {
    harden();
    let config = match load(arguments) {
        Ok(config) => config,
        Err(error) => {
            complain(&error.to_string());
            return ExitCode::from(super::BAD_CONFIG);
        }
    };
    start_log(&config.log);
    for warning in &config.warnings {
        tracing::warn!("{}: {warning}", arguments.config.display());
    }
    crate::metrics::install();
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            complain(&format!("cannot start: {error}"));
            return ExitCode::from(super::FAILED);
        }
    };
    let code = runtime.block_on(async {
        match App::open(config, Clock::system()).await {
            Ok(app) => ended(app.run(|| load(arguments)).await),
            Err(error) => {
                tracing::error!(%error, "cannot start");
                match error {
                    StartError::Open(OpenError::Io { .. }) | StartError::Read(_) => {
                        super::IO_FAILED
                    }
                    _ => super::FAILED,
                }
            }
        }
    });
    // What blocks still (a cache that is being opened, say) must not hold up the end.
    runtime.shutdown_background();
    ExitCode::from(code)
}

fn ended(ended: Ended) -> u8 {
    match ended {
        Ended::Drained => 0,
        Ended::DrainTimedOut => super::UNFINISHED,
        Ended::JournalFailed => super::IO_FAILED,
        Ended::PartFailed => super::BROKEN,
    }
}

fn load(arguments: &Arguments) -> Result<Config, Unusable> {
    let env = |name: &str| std::env::var(name).ok();
    config::load(&arguments.config, &Sources { env: &env })
}

/// Files are private whatever the umask was; secrets in memory never reach a core file or a debugger.
fn harden() {
    rustix::process::umask(rustix::fs::Mode::from_bits_truncate(0o077));
    let no_core = rustix::process::Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    let limited = rustix::process::setrlimit(rustix::process::Resource::Core, no_core);
    let undumpable =
        rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable);
    for error in [limited.err(), undumpable.err()].into_iter().flatten() {
        if error == rustix::io::Errno::PERM {
            // systemd's filter; its unit has LimitCORE=0.
            continue;
        }
        complain(&format!("cannot switch core dumps off: {error}"));
    }
}

fn start_log(log: &config::Log) {
    let filter = EnvFilter::new(&log.level);
    let base = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    if log.json {
        base.json().init();
    } else {
        base.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
            .init();
    }
}
