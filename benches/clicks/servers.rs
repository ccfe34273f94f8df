//! The servers that are clicked at, each a process of its own, and the clicks.

use std::io::{self, BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use dingd::dingtalk::signature::hmac_sha256;
use dingd::sim::daemon::{self, CARD_SECRET, CARDS_OVER_HTTP, Daemon};
use dingd::sim::dingtalk::Settings;
use dingd::sim::post::request;
use serde_json::json;
use tempfile::TempDir;
use tokio::runtime::Runtime;

use super::Error;
use super::closed::{Requests, Target};

/// The cards that clicks are spread over.
const CARDS: usize = 1_000;

/// What can be clicked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// hyper and nothing else.
    Bare,
    /// The daemon without a platform.
    Alone,
    /// The daemon with a platform that is told and not asked.
    Told,
    /// The daemon with a platform whose answers count.
    Answered,
}

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Bare => "bare hyper",
            Self::Alone => "dingd, no platform",
            Self::Told => "dingd, the platform is told",
            Self::Answered => "dingd, the platform answers",
        }
    }
}

/// This program as a server; killed when dropped.
#[derive(Debug)]
pub(crate) struct Served {
    child: Child,
    pub(crate) address: SocketAddr,
}

impl Served {
    pub(crate) fn start(arguments: &[&str]) -> io::Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        if let Some(said) = child.stdout.take() {
            BufReader::new(said).read_line(&mut line)?;
        }
        let address = line.trim().parse();
        let address = address.unwrap_or_else(|_| SocketAddr::from(([127, 0, 0, 1], 0)));
        let served = Self { child, address };
        if address.port() == 0 {
            return Err(io::Error::other("it does not serve"));
        }
        Ok(served)
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        if let Err(error) = self.child.kill().and_then(|()| self.child.wait()) {
            println!("a server cannot be ended: {error}");
        }
    }
}

/// A running server.
#[derive(Debug)]
pub(crate) struct Server {
    kind: Kind,
    daemon: Option<Daemon>,
    served: Option<Served>,
    runtime: Runtime,
    _dir: TempDir,
}

impl Server {
    /// Starts one, with a platform that takes `delay_ms` for an answer where there is one.
    pub(crate) fn start(kind: Kind, delay_ms: u32) -> Result<Self, Error> {
        let runtime = Runtime::new()?;
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
        let served = match kind {
            Kind::Bare => Some(Served::start(&[super::SERVE_OK])?),
            Kind::Alone => None,
            Kind::Told | Kind::Answered => {
                let delay_ms = delay_ms.to_string();
                Some(Served::start(&[super::PLATFORM, &delay_ms])?)
            }
        };
        let daemon = match kind {
            Kind::Bare => None,
            _ => Some(runtime.block_on(dingd(dir.path(), kind, served.as_ref()))?),
        };
        Ok(Self {
            kind,
            daemon,
            served,
            runtime,
            _dir: dir,
        })
    }

    /// Where it is clicked at.
    pub(crate) fn target(&self) -> Target {
        let daemon = self.daemon.as_ref().map(|daemon| {
            let address = daemon.callbacks().trim_start_matches("http://").parse();
            (address.ok(), daemon.pid())
        });
        let served = self.served.as_ref();
        let (address, pid) = daemon.unwrap_or_else(|| {
            (
                served.map(|s| s.address),
                served.map_or(0, |s| s.child.id()),
            )
        });
        Target {
            address: address.unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 0))),
            pid,
        }
    }

    /// The platform behind it.
    pub(crate) fn platform(&self) -> Option<SocketAddr> {
        self.served.as_ref().map(|served| served.address)
    }

    /// Compares the daemon's own counts with the number of 200s.
    pub(crate) fn check(&self, answered: usize) -> Result<(), Error> {
        let Some(daemon) = &self.daemon else {
            return Ok(());
        };
        let url = format!("{}/metrics", daemon.admin());
        let metrics = request("GET", &url, &[], String::new());
        let metrics = self.runtime.block_on(metrics)?.body;
        let mut counters = vec![r#"dingd_callbacks_total{result="accepted",reason="stored"}"#];
        if self.kind == Kind::Answered {
            counters.push(r#"dingd_answers_total{ask="click",result="in_time"}"#);
        }
        for counter in counters {
            let counted = metrics
                .lines()
                .find_map(|line| line.strip_prefix(counter)?.trim().parse::<usize>().ok());
            if counted != Some(answered) {
                let what = format!("{answered} answered with 200, but {counter} is {counted:?}");
                return Err(what.into());
            }
        }
        Ok(())
    }
}

async fn dingd(dir: &Path, kind: Kind, platform: Option<&Served>) -> Result<Daemon, Error> {
    let url = platform.map(|platform| format!("http://{}", platform.address));
    // Nothing is sent, so nobody is there.
    let nobody = "http://127.0.0.1:9";
    let state = Daemon::state_dir(dir);
    let mut config = daemon::config(&Settings::default(), nobody, url.as_deref(), &state);
    if kind == Kind::Told {
        config = config.replace("answers = true\n", "");
    }
    config.push_str(CARDS_OVER_HTTP);
    config.push_str("[log]\nlevel = \"warn\"\n");
    let program = std::env::var_os("DINGD_OTHER");
    let program = program.unwrap_or_else(|| env!("CARGO_BIN_EXE_dingd").into());
    Ok(Daemon::start(Path::new(&program), dir, &config).await?)
}

/// Distinct clicks, signed as DingTalk signs them: the time alone (inbound.md §4.1).
pub(crate) fn clicks(count: usize) -> Requests {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    let timestamp = since.map_or(0, |since| since.as_millis()).to_string();
    let signature = STANDARD.encode(hmac_sha256(CARD_SECRET.as_bytes(), timestamp.as_bytes()));
    let headers =
        format!("x-ddpaas-signature-timestamp: {timestamp}\r\nx-ddpaas-signature: {signature}\r\n");
    let corp = Settings::default().app.corp_id;
    let mut requests = Requests::default();
    for n in 0..count {
        let params =
            json!({"action": "ack", "title": format!("P1 磁盘将满 web-{:04}", n % CARDS), "n": n});
        let content = json!({"cardPrivateData": {"actionIds": ["ack"], "params": params}});
        let body = json!({"type": "actionCallback", "outTrackId": format!("alert-{:04}", n % CARDS),
            "corpId": corp, "userId": format!("manager{n:06}"),
            "content": content.to_string()});
        requests.push("/callback/oncall/cards", &headers, &body.to_string());
    }
    requests
}
