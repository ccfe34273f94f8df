//! `dingd demo`: the whole story in a minute. The simulated DingTalk and platform live in this process;
//! the daemon is the real one, a child process with real sockets and files, killed and started again.

mod cards;
mod groups;
mod oncall;
mod robot;
mod stage;
mod storm;
mod story;
mod stream;
mod timeline;
mod trouble;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::output::{complain, say};
use stage::Stage;
use timeline::Timeline;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Leave everything running at the end and print URLs to try.
    #[arg(long)]
    keep: bool,
    /// JSON for programs.
    #[arg(long)]
    json: bool,
}

pub(super) fn main(arguments: &Arguments) -> ExitCode {
    let dir = std::env::temp_dir().join(format!("dingd-demo-{}", std::process::id()));
    let result = std::env::current_exe()
        .map_err(|error| error.to_string())
        .and_then(|program| play(arguments, program, &dir));
    if std::fs::remove_dir_all(&dir).is_err() {
        complain(&format!("{} is left over", dir.display()));
    }
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(super::FAILED),
        Err(error) => {
            complain(&format!("the demo cannot go on: {error}"));
            ExitCode::from(super::FAILED)
        }
    }
}

/// Returns whether every promise held.
fn play(arguments: &Arguments, program: PathBuf, dir: &std::path::Path) -> Result<bool, String> {
    std::fs::create_dir_all(dir).map_err(|error| error.to_string())?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| error.to_string())?;
    runtime.block_on(async {
        let mut timeline = Timeline::start(arguments.json);
        let stage = Stage::open(program, dir).await?;
        let stage = story::tell(stage, &mut timeline).await?;
        let held = timeline.finish();
        if arguments.keep {
            for line in stage.urls() {
                say(&line);
            }
            say("running until Ctrl-C …");
            tokio::signal::ctrl_c()
                .await
                .map_err(|error| error.to_string())?;
        }
        stage.close().await;
        Ok(held)
    })
}
