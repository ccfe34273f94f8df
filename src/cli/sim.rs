//! `dingd sim`: the simulated DingTalk alone, for whoever integrates with DingTalk or with dingd. It is
//! steered over HTTP through a door of its own.

mod control;
mod people;
mod records;

use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;
use tokio::net::TcpListener;

use self::control::Control;
use super::output::{complain, say};
use crate::drain;
use crate::http::listen::{Door, Limits};
use crate::sim::daemon::{self, PLATFORM_SECRET};
use crate::sim::dingtalk::{DingTalk, Settings};
use crate::sim::platform::Platform;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Where the simulated DingTalk listens; both of its hosts are this one.
    #[arg(long, default_value = "127.0.0.1:7788", value_name = "ADDRESS")]
    listen: SocketAddr,
    /// Where a simulated alert platform takes events.
    #[arg(long, default_value = "127.0.0.1:7789", value_name = "ADDRESS")]
    platform: SocketAddr,
    /// Where the box is steered.
    #[arg(long, default_value = "127.0.0.1:7790", value_name = "ADDRESS")]
    control: SocketAddr,
    /// Divides every window and penalty: 1 is true to life.
    #[arg(long, default_value_t = 1.0)]
    scale: f64,
    /// Enforce no limits.
    #[arg(long)]
    no_limits: bool,
}

const HELP: &str = "\
GET  /delivered /requests /penalties /complaints /events   what happened
GET  /cards /routes /connections /frames /acks            cards, and what went over Stream
POST /switches   {\"down\":true,\"slow_ms\":500,…}            misbehave; {} is well again
POST /platform   {\"status\":503,\"slow_ms\":0}               the platform misbehaves
POST /push       {\"url\":\"http://…/callback/oncall/events\",\"event\":\"install\"}
                 event: check_url install uninstall rename(title) disband user_left raw(text)
                 without a url it goes over Stream
POST /say        {\"text\":\"…\",\"user\":\"manager0001\",\"url\":\"http://…/callback/oncall/robot\"}
                 somebody mentions the robot (\"alone\":true: in a chat with it alone);
                 without a url it goes over Stream
POST /click      {\"card\":\"<outTrackId>\",\"user\":\"manager0001\",\"actions\":[\"ack\"],\"params\":{}}
                 goes where the card's callbackType says
POST /stream     {\"do\":\"cut\"}                              or silence, disconnect
POST /expire-tokens                                       all access tokens die now";

pub(super) fn main(arguments: &Arguments) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build();
    let result = runtime
        .map_err(|error| error.to_string())
        .and_then(|runtime| runtime.block_on(run(arguments)));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&error);
            ExitCode::from(super::FAILED)
        }
    }
}

async fn run(arguments: &Arguments) -> Result<(), String> {
    let bind = async |address: SocketAddr| {
        TcpListener::bind(address)
            .await
            .map_err(|error| format!("{address}: {error}"))
    };
    let settings = Settings {
        time_scale: arguments.scale.max(0.001),
        limits: !arguments.no_limits,
        ..Settings::default()
    };
    let chat = settings
        .groups
        .first()
        .map(|group| group.open_conversation_id.clone());
    let box_ = DingTalk::start(settings.clone(), bind(arguments.listen).await?);
    let platform = Platform::start(PLATFORM_SECRET, bind(arguments.platform).await?);
    let door = Door::bind("control", arguments.control, None, Limits::USUAL);
    let door = door.await.map_err(|error| error.to_string())?;
    say(&format!(
        "# The simulated DingTalk is at {}, its controls at http://{}:",
        box_.url(),
        door.address().unwrap_or(arguments.control)
    ));
    for line in HELP.lines() {
        say(&format!("#   {line}"));
    }
    say(&format!(
        "#\n# Stream mode is opened at {}/v1.0/gateway/connections/open, with\n#   {} and {};",
        box_.url(),
        settings.app.client_id,
        settings.app.client_secret
    ));
    say("# an HTTP address for clicks is registered at /v1.0/card/callbacks/register.");
    say("#\n# A dingd for it (put this into a file and run: dingd run --config FILE):\n");
    let state_dir = Path::new("/tmp/dingd-sim");
    say(&daemon::config(
        &settings,
        &box_.url(),
        Some(&platform.url()),
        state_dir,
    ));
    let control = Arc::new(Control::new(box_, platform, chat.unwrap_or_default()));
    let (trigger, drain) = drain::channel();
    let served = tokio::spawn(door.serve(move |request| control.clone().handle(request), drain));
    tokio::signal::ctrl_c()
        .await
        .map_err(|error| error.to_string())?;
    trigger.drain().await;
    served.await.map_err(|error| error.to_string())
}
