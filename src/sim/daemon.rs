//! The real daemon beside the box: a child process on free ports, with real files and sockets.
#![expect(
    clippy::indexing_slicing,
    reason = "indexing a JSON value gives null, it does not panic"
)]

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::UnixStream;
use tokio::process::{Child, Command};

use super::clock;
use super::dingtalk::Settings;
use super::post::{self, Reply};

/// The name under which the URL for clicks is registered.
pub const CARD_ROUTE: &str = "dingd-box";
/// What signs clicks.
pub const CARD_SECRET: &str = "box-card-secret-0001";
/// For behind a configuration of [`config`]: clicks come over HTTP.
pub const CARDS_OVER_HTTP: &str = r#"
[apps.cards]
callback = "http"
route_key = "dingd-box"
secret = "box-card-secret-0001"
pending = { dingd_state = "pending" }
"#;
/// The API token that [`config`] sets.
pub const API_TOKEN: &str = "box-api-token-0123456789";
/// The signing key that [`config`] sets for the platform.
pub const PLATFORM_SECRET: &str = "whsec_Ym94LXBsYXRmb3JtLXNlY3JldC0wMTIzNDU2Nzg5";
const START_PATIENCE: Duration = Duration::from_secs(20);
const STATUS_BYTES_MAX: usize = 1 << 20;

/// A running daemon; it is killed when this is dropped.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    state_dir: PathBuf,
    doors: Doors,
}

#[derive(Debug, Clone, Default)]
struct Doors {
    callbacks: String,
    api: String,
    admin: String,
}

/// A configuration for the box: its app as `oncall`, its robots as `robot-0` and so on, and one
/// platform. `scale` divides the windows as the box does.
pub fn config(
    box_: &Settings,
    box_url: &str,
    platform_url: Option<&str>,
    state_dir: &Path,
) -> String {
    let (app, scale) = (&box_.app, box_.time_scale);
    let mut text = format!(
        r#"state_dir = "{}"
[callbacks]
listen = "127.0.0.1:0"
tls = false
[api]
listen = "127.0.0.1:0"
[[api.clients]]
name = "platform"
token = "{API_TOKEN}"
[admin]
listen = "127.0.0.1:0"
[egress]
api_url = "{box_url}"
oapi_url = "{box_url}"
ban_wait_s = {:?}
[[apps]]
name = "oncall"
corp_id = "{}"
agent_id = {}
client_id = "{}"
client_secret = "{}"
cool_app_code = "{}"
robot_code = "{}"
[apps.callback]
token = "{}"
aes_key = "{}"
receive_id = "{}"
"#,
        state_dir.display(),
        300.0 / scale,
        app.corp_id,
        app.agent_id,
        app.client_id,
        app.client_secret,
        app.cool_app_code,
        app.robot_code,
        app.callback_token,
        app.callback_aes_key,
        app.receive_id,
    );
    for (index, robot) in box_.robots.iter().enumerate() {
        text.push_str(&format!(
            "[[robots]]\nname = \"robot-{index}\"\naccess_token = \"{}\"\n",
            robot.access_token
        ));
        if let Some(secret) = &robot.secret {
            text.push_str(&format!("secret = \"{secret}\"\n"));
        }
    }
    if let Some(url) = platform_url {
        text.push_str(&format!(
            "[[upstreams]]\nname = \"platform\"\nurl = \"{url}/events\"\nsecret = \"{PLATFORM_SECRET}\"\nanswers = true\n"
        ));
    }
    for (name, window_s) in [
        ("robot", 60.0),
        ("chat", 60.0),
        ("app_api", 1.0),
        ("egress", 20.0),
    ] {
        let margin_ms = (1_000.0 / scale).ceil();
        text.push_str(&format!(
            "[limits.{name}]\nwindow_s = {:?}\nmargin_ms = {margin_ms}\n",
            window_s / scale
        ));
    }
    text
}

impl Daemon {
    /// Starts `program run --config …` with this configuration and waits until it is ready. What it
    /// logs goes to `<dir>/log`.
    pub async fn start(program: &Path, dir: &Path, config: &str) -> Result<Self, String> {
        Self::start_with(program, dir, config, &[]).await
    }

    /// As [`Self::start`], with more environment variables.
    pub async fn start_with(
        program: &Path,
        dir: &Path,
        config: &str,
        env: &[(&str, &str)],
    ) -> Result<Self, String> {
        let file = dir.join("config.toml");
        std::fs::write(&file, config).map_err(|error| error.to_string())?;
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(dir.join("log"))
            .map_err(|error| error.to_string())?;
        let child = Command::new(program)
            .arg("run")
            .arg("--config")
            .arg(&file)
            .envs(env.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| format!("{}: {error}", program.display()))?;
        let mut daemon = Self {
            child,
            state_dir: dir.join("state"),
            doors: Doors::default(),
        };
        let deadline = clock::now() + START_PATIENCE;
        loop {
            if let Ok(status) = daemon.status().await
                && status["ready"] == true
                && status["pid"] == serde_json::json!(daemon.child.id())
            {
                let door = |name: &str| {
                    format!(
                        "http://{}",
                        status["doors"][name].as_str().unwrap_or_default()
                    )
                };
                daemon.doors = Doors {
                    callbacks: door("callbacks"),
                    api: door("api"),
                    admin: door("admin"),
                };
                return Ok(daemon);
            }
            if let Ok(Some(code)) = daemon.child.try_wait() {
                let log = std::fs::read_to_string(dir.join("log")).unwrap_or_default();
                return Err(format!("the daemon ended at once with {code}:\n{log}"));
            }
            if clock::now() > deadline {
                return Err("the daemon is not ready within 20 s".to_owned());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Where the directory's daemon keeps its stores.
    pub fn state_dir(dir: &Path) -> PathBuf {
        dir.join("state")
    }

    /// What `dingd status --json` shows.
    pub async fn status(&self) -> Result<Value, String> {
        self.socket("GET", "/v1/status").await
    }

    /// A request on the admin socket; an answer that is no success is an error with its text.
    pub async fn socket(&self, method: &str, path: &str) -> Result<Value, String> {
        let text = |error: &dyn std::fmt::Display| error.to_string();
        let stream = UnixStream::connect(self.state_dir.join("admin.sock"))
            .await
            .map_err(|e| text(&e))?;
        let (mut send, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|e| text(&e))?;
        let request = hyper::Request::builder()
            .method(method)
            .uri(path)
            .header("host", "dingd")
            .body(Empty::<Bytes>::new())
            .map_err(|e| text(&e))?;
        #[expect(clippy::disallowed_methods, reason = "the body is limited")]
        let exchange = async {
            let answer = send.send_request(request).await.map_err(|e| text(&e))?;
            let good = answer.status().is_success();
            let body = Limited::new(answer.into_body(), STATUS_BYTES_MAX)
                .collect()
                .await;
            let body = body.map_err(|e| text(&e))?.to_bytes();
            let value: Value = serde_json::from_slice(&body).map_err(|e| text(&e))?;
            if good {
                Ok(value)
            } else {
                Err(value.to_string())
            }
        };
        tokio::select! {
            answer = exchange => answer,
            _ = connection => Err("hung up".to_owned()),
        }
    }

    /// The URL that DingTalk pushes the app's events to.
    pub fn callback_url(&self) -> String {
        format!("{}/callback/oncall/events", self.doors.callbacks)
    }

    /// The base URL of the callbacks door.
    pub fn callbacks(&self) -> &str {
        &self.doors.callbacks
    }

    /// The base URL of the API door.
    pub fn api(&self) -> &str {
        &self.doors.api
    }

    /// The base URL of the admin door.
    pub fn admin(&self) -> &str {
        &self.doors.admin
    }

    /// A request of the platform.
    pub async fn request(&self, method: &str, path: &str, body: &Value) -> Result<Reply, String> {
        self.request_with(method, path, &[], body).await
    }

    /// A request of the platform with more headers.
    pub async fn request_with(
        &self,
        method: &str,
        path: &str,
        more: &[(&'static str, &str)],
        body: &Value,
    ) -> Result<Reply, String> {
        let mut headers = vec![("authorization", format!("Bearer {API_TOKEN}"))];
        headers.extend(
            more.iter()
                .map(|(name, value)| (*name, (*value).to_owned())),
        );
        let body = if body.is_null() {
            String::new()
        } else {
            body.to_string()
        };
        post::request(method, &format!("{}{path}", self.doors.api), &headers, body).await
    }

    /// The process.
    pub fn pid(&self) -> u32 {
        self.child.id().unwrap_or(0)
    }

    /// SIGKILL: nothing is finished, nothing is flushed.
    pub async fn kill(&mut self) {
        if self.child.kill().await.is_err() {
            // It was gone already.
        }
    }

    /// A signal by its name: TERM, HUP.
    pub fn signal(&self, signal: Signal) {
        let number = match signal {
            Signal::Hangup => rustix::process::Signal::HUP,
            Signal::Terminate => rustix::process::Signal::TERM,
        };
        let pid = i32::try_from(self.pid())
            .ok()
            .and_then(rustix::process::Pid::from_raw);
        if let Some(pid) = pid
            && rustix::process::kill_process(pid, number).is_err()
        {
            // It was gone already.
        }
    }

    /// SIGTERM, and the exit code.
    pub async fn terminate(mut self) -> Option<i32> {
        self.signal(Signal::Terminate);
        self.child.wait().await.ok()?.code()
    }

    /// Waits until it ends by itself.
    pub async fn ended(&mut self) -> Option<i32> {
        self.child.wait().await.ok()?.code()
    }
}

/// What a process can be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// Re-read the configuration.
    Hangup,
    /// Finish and end.
    Terminate,
}
