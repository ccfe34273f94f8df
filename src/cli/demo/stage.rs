//! Everybody on the stage, and what can be asked of them at any time.
#![expect(
    clippy::indexing_slicing,
    reason = "indexing a JSON value gives null, it does not panic"
)]

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use tokio::net::TcpListener;

use crate::clock::Clock;
use crate::sim::daemon::{self, Daemon, PLATFORM_SECRET};
use crate::sim::dingtalk::{DingTalk, Settings};
use crate::sim::platform::Platform;

const SCALE: f64 = 20.0;
/// Longer than anything here should take.
const PATIENCE_MS: u64 = 50_000;
pub(super) const NULL: Value = Value::Null;

/// Everybody on the stage.
pub(super) struct Stage {
    pub(super) program: PathBuf,
    pub(super) dir: PathBuf,
    pub(super) box_: DingTalk,
    pub(super) platform: Platform,
    pub(super) daemon: Daemon,
    pub(super) config: String,
    pub(super) chat: String,
    pub(super) clock: Clock,
}

/// How long something took, if it came at all.
pub(super) struct Took(Option<u64>);

impl Took {
    pub(super) fn came(&self) -> bool {
        self.0.is_some()
    }
}

impl std::fmt::Display for Took {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Some(ms) => write!(f, "{ms} ms"),
            None => write!(f, "NEVER (within {} s)", PATIENCE_MS / 1_000),
        }
    }
}

impl Stage {
    pub(super) async fn open(program: PathBuf, dir: &Path) -> Result<Self, String> {
        let listen = || async {
            TcpListener::bind("127.0.0.1:0")
                .await
                .map_err(|e| e.to_string())
        };
        let settings = Settings {
            time_scale: SCALE,
            ..Settings::default()
        };
        let chat = settings
            .groups
            .first()
            .map(|group| group.open_conversation_id.clone());
        let box_ = DingTalk::start(settings.clone(), listen().await?);
        let platform = Platform::start(PLATFORM_SECRET, listen().await?);
        let state_dir = Daemon::state_dir(dir);
        let config = daemon::config(&settings, &box_.url(), Some(&platform.url()), &state_dir);
        let config = format!("{config}[outbound.digest]\nafter_s = {:?}\n", 60.0 / SCALE);
        let daemon = Daemon::start(&program, dir, &config).await?;
        Ok(Self {
            program,
            dir: dir.to_owned(),
            box_,
            platform,
            daemon,
            config,
            chat: chat.unwrap_or_default(),
            clock: Clock::system(),
        })
    }

    pub(super) fn urls(&self) -> Vec<String> {
        let directory = self.dir.join("config.toml");
        vec![
            format!("simulated DingTalk   {}", self.box_.url()),
            format!("simulated platform   {}", self.platform.url()),
            format!(
                "API of dingd         {}/v1/messages   (Authorization: Bearer {})",
                self.daemon.api(),
                daemon::API_TOKEN
            ),
            format!(
                "health and metrics   {}/ready  /metrics",
                self.daemon.admin()
            ),
            format!(
                "commands             dingd status --config {}",
                directory.display()
            ),
        ]
    }

    pub(super) async fn close(mut self) {
        self.daemon.kill().await;
        self.platform.stop().await;
        self.box_.stop().await;
    }

    /// Waits until `done`.
    pub(super) async fn until(&self, mut done: impl AsyncFnMut(&Self) -> bool) -> Took {
        let started_ms = self.clock.mono_ms();
        loop {
            if done(self).await {
                return Took(Some(self.clock.mono_ms() - started_ms));
            }
            if self.clock.mono_ms() - started_ms > PATIENCE_MS {
                return Took(None);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub(super) async fn send(&self, body: Value) -> Result<String, String> {
        let reply = self.daemon.request("POST", "/v1/messages", &body).await?;
        let id = reply.json()["id"].as_str().map(ToOwned::to_owned);
        id.filter(|_| reply.status == 202)
            .ok_or_else(|| format!("HTTP {}: {}", reply.status, reply.body))
    }

    pub(super) async fn state(&self, id: &str) -> String {
        match self
            .daemon
            .request("GET", &format!("/v1/messages/{id}"), &NULL)
            .await
        {
            Ok(reply) => reply.json()["state"]
                .as_str()
                .unwrap_or("unknown to the daemon")
                .to_owned(),
            Err(error) => error,
        }
    }

    pub(super) async fn title(&self) -> Option<String> {
        let reply = self.daemon.request("GET", "/v1/chats", &NULL).await.ok()?;
        reply.json()["chats"][0]["title"]
            .as_str()
            .map(ToOwned::to_owned)
    }

    pub(super) fn saw(&self, kind: &str) -> bool {
        self.platform
            .events()
            .iter()
            .any(|event| event.kind == kind && event.valid.is_ok())
    }
}
