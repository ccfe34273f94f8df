//! The command line, one file a command.
//!
//! Exit codes: 0 done · 1 it failed · 2 wrong arguments · 64 the configuration is wrong · 70 a part of
//! the daemon panicked · 74 the journal cannot be written · 75 the drain took too long (the rest is taken up at the
//! next start).

mod backup;
mod cards;
mod chats;
mod check;
mod client;
mod dead;
mod demo;
mod journal;
mod messages;
mod output;
mod quota;
mod run;
mod send;
mod sim;
mod status;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

/// Between an alert platform and DingTalk: verified callbacks in, rate-limited messages out.
#[derive(Debug, Parser)]
#[command(name = "dingd", version, about, long_about = None)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the daemon.
    Run(run::Arguments),
    /// Check a configuration: every fault at once.
    Check(check::Arguments),
    /// The whole story in a minute, with a simulated DingTalk: no configuration, account or network.
    Demo(demo::Arguments),
    /// The simulated DingTalk alone, for integrators.
    Sim(sim::Arguments),
    /// How the running daemon is.
    Status(status::Arguments),
    /// Send a message through the running daemon.
    Send(send::Arguments),
    /// The groups that the running daemon knows.
    Chats(chats::Arguments),
    /// Cards: register the callback for clicks, show one.
    Cards(cards::Arguments),
    /// What was used of the month's API calls and webhook messages.
    Quota(quota::Arguments),
    /// Messages: list, show, cancel, resolve.
    Messages(messages::Arguments),
    /// Dead letters: list, show, replay, purge.
    Dead(dead::Arguments),
    /// Copy the journal of the running daemon into a file.
    Backup(backup::Arguments),
    /// Put a backup in the place of a stopped daemon's journal.
    Restore(backup::RestoreArguments),
    /// Check the journal of a stopped daemon.
    Journal(journal::Arguments),
}

/// Which daemon to talk to.
#[derive(Debug, Args)]
struct Target {
    /// The daemon's configuration, to find its socket.
    #[arg(long, default_value = "/etc/dingd/config.toml", value_name = "FILE")]
    config: PathBuf,
    /// The daemon's admin socket, instead.
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// JSON for programs.
    #[arg(long)]
    json: bool,
}

/// Runs the command that the process was called with.
pub fn main() -> ExitCode {
    match Arguments::parse().command {
        Command::Run(arguments) => run::main(&arguments),
        Command::Check(arguments) => check::main(&arguments),
        Command::Demo(arguments) => demo::main(&arguments),
        Command::Sim(arguments) => sim::main(&arguments),
        Command::Status(arguments) => status::main(&arguments),
        Command::Send(arguments) => send::main(arguments),
        Command::Chats(arguments) => chats::main(&arguments),
        Command::Cards(arguments) => cards::main(&arguments),
        Command::Quota(arguments) => quota::main(&arguments),
        Command::Messages(arguments) => messages::main(&arguments),
        Command::Dead(arguments) => dead::main(&arguments),
        Command::Backup(arguments) => backup::main(&arguments),
        Command::Restore(arguments) => backup::restore(&arguments),
        Command::Journal(arguments) => journal::main(&arguments),
    }
}

/// Something went wrong, and what it means for the exit code.
const FAILED: u8 = 1;
/// The arguments are wrong, as clap says it.
const BAD_ARGUMENTS: u8 = 2;
/// sysexits: the configuration.
const BAD_CONFIG: u8 = 64;
/// sysexits: an internal error.
const BROKEN: u8 = 70;
/// sysexits: input or output failed.
const IO_FAILED: u8 = 74;
/// sysexits: try again.
const UNFINISHED: u8 = 75;
