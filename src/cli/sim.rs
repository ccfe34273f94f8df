//! `dingd sim`: the simulated DingTalk alone.
use clap::Args;
use std::process::ExitCode;
#[derive(Debug, Args)]
pub(super) struct Arguments {}
pub(super) fn main(_: &Arguments) -> ExitCode {
    ExitCode::SUCCESS
}
