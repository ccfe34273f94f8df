//! Everybody on the stage, and what can be asked of them at any time.
#![expect(
    clippy::indexing_slicing,
    reason = "indexing a JSON value gives null, it does not panic"
)]

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use tokio::net::TcpListener;

use super::oncall;
use crate::clock::Clock;
use crate::sim::daemon::{self, Daemon, PLATFORM_SECRET, Signal};
use crate::sim::dingtalk::{DingTalk, Settings, User};
use crate::sim::platform::{Platform, PlatformSwitches};
use crate::sim::post;

/// Divides DingTalk's times, and those of dingd that answer to them.
pub(super) const SCALE: u32 = 20;
/// Longer than anything here should take.
const PATIENCE_MS: u64 = 50_000;
pub(super) const NULL: Value = Value::Null;
/// 张三, 李四 and 王五.
pub(super) const ZHANG: &str = "manager0001";
pub(super) const LI: &str = "manager0002";
pub(super) const LEAVER: &str = "manager0003";

/// Everybody on the stage.
pub(super) struct Stage {
    pub(super) program: PathBuf,
    pub(super) dir: PathBuf,
    pub(super) box_: DingTalk,
    pub(super) platform: Platform,
    /// What the platform does when it is up.
    pub(super) oncall: PlatformSwitches,
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
        let mut settings = Settings {
            time_scale: f64::from(SCALE),
            ..Settings::default()
        };
        // People are as slow as ever.
        settings.cards.click_limit_ms *= u64::from(SCALE);
        let leaver = User::named(LEAVER, "王五", "13800000003");
        settings.users.push(leaver);
        let chat = settings
            .groups
            .first()
            .map(|group| group.open_conversation_id.clone());
        let box_ = DingTalk::start(settings.clone(), listen().await?);
        let platform = Platform::start(PLATFORM_SECRET, listen().await?);
        let oncall = oncall::rules();
        platform.set(oncall.clone());
        let state_dir = Daemon::state_dir(dir);
        let config = daemon::config(&settings, &box_.url(), Some(&platform.url()), &state_dir);
        let config = format!(
            "{config}[outbound.digest]\nafter_s = {:?}\n",
            60.0 / f64::from(SCALE)
        );
        let daemon = Daemon::start(&program, dir, &config).await?;
        Ok(Self {
            program,
            dir: dir.to_owned(),
            box_,
            platform,
            oncall,
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
        self.post("/v1/messages", body).await
    }

    /// A request of the platform that makes a message; its id.
    pub(super) async fn post(&self, path: &str, body: Value) -> Result<String, String> {
        let reply = self.daemon.request("POST", path, &body).await?;
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

    /// The operator puts another configuration in place and sends SIGHUP; returns when it is taken over.
    pub(super) async fn reload(&mut self, config: String) -> Result<(), String> {
        const LAST: &str = "dingd_config_last_reload_success_timestamp_seconds";
        let before = self.metric(LAST).await?;
        std::fs::write(self.dir.join("config.toml"), &config).map_err(|e| e.to_string())?;
        self.config = config;
        self.daemon.signal(Signal::Hangup);
        let took = self
            .until(async |stage| stage.metric(LAST).await.is_ok_and(|at| at > before))
            .await;
        took.came()
            .then_some(())
            .ok_or_else(|| "the daemon does not take over its new configuration".to_owned())
    }

    /// The value of a metric, by its name and labels; 0 when there is none.
    pub(super) async fn metric(&self, name: &str) -> Result<f64, String> {
        let url = format!("{}/metrics", self.daemon.admin());
        let metrics = post::request("GET", &url, &[], String::new()).await?.body;
        let mut lines = metrics.lines();
        let value = lines.find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
        Ok(value.unwrap_or(0.0))
    }

    /// Runs a command of `dingd` against the daemon: whether it succeeded, and the first line of what it said.
    pub(super) async fn command(&self, arguments: &[&str]) -> Result<(bool, String), String> {
        let command = tokio::process::Command::new(&self.program)
            .args(arguments)
            .arg("--config")
            .arg(self.dir.join("config.toml"))
            .output()
            .await
            .map_err(|error| error.to_string())?;
        let good = command.status.success();
        let said = if good { command.stdout } else { command.stderr };
        let said = String::from_utf8_lossy(&said);
        Ok((good, said.lines().next().unwrap_or_default().to_owned()))
    }

    /// Whether a message is `sent`, waited for.
    pub(super) async fn sent(&self, id: &str) -> Took {
        self.until(async |stage| stage.state(id).await == "sent")
            .await
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
