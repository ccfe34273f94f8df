//! The servers under load: each a process of its own, with an empty store, killed when dropped.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tempfile::TempDir;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::closed::Target;
use super::{bare, callback};

/// The argument with which this program serves "ok" itself; a directory with a certificate may follow.
pub(crate) const SERVE_OK: &str = "--serve-ok";
/// The app's name in the callback's path.
pub(crate) const APP: &str = "bench";
/// qhook's source in the webhook's path.
pub(crate) const QHOOK_SOURCE: &str = "bench";
/// qhook's HMAC secret.
pub(crate) const QHOOK_SECRET: &str = "bench-secret-bench-secret";
const QHOOK_VERSION: &str = "0.6.1";
const PATIENCE: Duration = Duration::from_secs(10);

/// What can be measured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    /// hyper and nothing else, in this program.
    Bare { tls: bool },
    /// The daemon of this build.
    Dingd { tls: bool },
    /// Another build of the daemon.
    Other { path: PathBuf, tls: bool },
    /// The nearest peer.
    Qhook { path: PathBuf },
}

impl Kind {
    pub(crate) fn tls(&self) -> bool {
        match self {
            Self::Bare { tls } | Self::Dingd { tls } | Self::Other { tls, .. } => *tls,
            Self::Qhook { .. } => false,
        }
    }

    pub(crate) fn name(&self) -> String {
        let wire = if self.tls() { "TLS" } else { "plain" };
        match self {
            Self::Bare { .. } => format!("bare hyper, {wire}"),
            Self::Dingd { .. } => format!("dingd, {wire}"),
            Self::Other { .. } => format!("dingd (other), {wire}"),
            Self::Qhook { .. } => format!("qhook {QHOOK_VERSION}, SQLite"),
        }
    }
}

/// A running server.
#[derive(Debug)]
pub(crate) struct Server {
    kind: Kind,
    child: Child,
    pub(crate) address: SocketAddr,
    /// Where it answers questions about itself.
    admin: SocketAddr,
    /// From exec to the first positive answer.
    pub(crate) ready_after: Duration,
    _dir: TempDir,
}

impl Server {
    /// Starts one and waits until it serves.
    pub(crate) fn start(kind: &Kind, certificate: &Certificate) -> io::Result<Self> {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
        let (address, admin) = (free_address()?, free_address()?);
        let (mut command, admin, ready) = match kind {
            Kind::Bare { tls } => {
                let mut command = Command::new(std::env::current_exe()?);
                command.arg(SERVE_OK);
                if *tls {
                    command.arg(certificate.dir.path());
                }
                command.stdout(Stdio::piped());
                (command, address, "")
            }
            Kind::Dingd { tls } => {
                let path = Path::new(env!("CARGO_BIN_EXE_dingd"));
                let tls = tls.then_some(certificate);
                let command = dingd(path, dir.path(), tls, address, admin)?;
                (command, admin, "/ready")
            }
            Kind::Other { path, tls } => {
                let tls = tls.then_some(certificate);
                let command = dingd(path, dir.path(), tls, address, admin)?;
                (command, admin, "/ready")
            }
            Kind::Qhook { path } => (qhook_at(path, dir.path(), address)?, address, "/health"),
        };
        let started = Instant::now();
        let mut child = command.stdin(Stdio::null()).spawn()?;
        let said = child.stdout.take();
        let mut server = Self {
            kind: kind.clone(),
            child,
            address,
            admin,
            ready_after: Duration::ZERO,
            _dir: dir,
        };
        if let Some(said) = said {
            let mut line = String::new();
            BufReader::new(said).read_line(&mut line)?;
            server.address = line.trim().parse().map_err(io::Error::other)?;
        } else {
            server.wait_for(ready, started)?;
        }
        server.ready_after = started.elapsed();
        Ok(server)
    }

    fn wait_for(&mut self, path: &str, started: Instant) -> io::Result<()> {
        while !get(self.admin, path).is_ok_and(|answer| answer.starts_with("HTTP/1.1 200")) {
            if let Some(status) = self.child.try_wait()? {
                return Err(io::Error::other(format!("it ended: {status}")));
            }
            if started.elapsed() > PATIENCE {
                return Err(io::Error::other("it is not ready"));
            }
            std::thread::sleep(Duration::from_micros(500));
        }
        Ok(())
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What a closed loop has to know.
    pub(crate) fn target(&self) -> Target {
        Target {
            address: self.address,
            pid: self.pid(),
        }
    }

    /// Compares the server's own count of what it has stored, once, with the number of 200s.
    pub(crate) fn check(&self, answered: usize) -> io::Result<()> {
        let counter = match self.kind {
            Kind::Bare { .. } => return Ok(()),
            Kind::Dingd { .. } | Kind::Other { .. } => {
                r#"dingd_callbacks_total{result="accepted",reason="stored"}"#
            }
            Kind::Qhook { .. } => "qhook_jobs_created_total",
        };
        let metrics = get(self.admin, "/metrics")?;
        let stored = metrics
            .lines()
            .find_map(|line| line.strip_prefix(counter)?.trim().parse::<usize>().ok());
        if stored == Some(answered) {
            return Ok(());
        }
        let what = format!("it answered {answered} with 200 and counted {stored:?} as stored");
        Err(io::Error::other(what))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Err(error) = self.child.kill().and_then(|()| self.child.wait()) {
            println!("{} cannot be ended: {error}", self.kind.name());
        }
    }
}

/// The daemon with the settings of its example, where the outside world is this machine.
fn dingd(
    path: &Path,
    dir: &Path,
    tls: Option<&Certificate>,
    address: SocketAddr,
    admin: SocketAddr,
) -> io::Result<Command> {
    let tls = tls.map_or_else(
        || "false".to_owned(),
        |certificate| {
            format!(
                "{{ cert_file = '{}', key_file = '{}' }}",
                certificate.dir.path().join(CERT_FILE).display(),
                certificate.dir.path().join(KEY_FILE).display()
            )
        },
    );
    let config = format!(
        r#"state_dir = '{state_dir}'
[callbacks]
listen = "{address}"
public_url = "https://localhost"
tls = {tls}
[api]
listen = "{api}"
[[api.clients]]
name = "bench"
token = "bench-token-bench-token"
[admin]
listen = "{admin}"
[egress]
api_url = "http://127.0.0.1:9"
oapi_url = "http://127.0.0.1:9"
[[apps]]
name = "{APP}"
corp_id = "dingcorpbench0001"
client_id = "{receive_id}"
client_secret = "bench-secret"
[apps.callback]
token = "{token}"
aes_key = "{aes_key}"
"#,
        state_dir = dir.join("state").display(),
        api = free_address()?,
        receive_id = callback::RECEIVE_ID,
        token = callback::TOKEN,
        aes_key = callback::AES_KEY,
    );
    let file = dir.join("config.toml");
    std::fs::write(&file, config)?;
    let mut command = Command::new(path);
    command.arg("run").arg("--config").arg(file);
    command.stderr(std::fs::File::create(dir.join("log"))?);
    Ok(command)
}

/// Where qhook is; installs it into the build directory when it is missing.
pub(crate) fn qhook() -> io::Result<PathBuf> {
    let build = Path::new(env!("CARGO_TARGET_TMPDIR")).join("../peers");
    let path = build.join("bin/qhook");
    if path.try_exists()? {
        return Ok(path);
    }
    println!("installing qhook {QHOOK_VERSION}; this takes some minutes, once");
    let status = Command::new(option_env!("CARGO").unwrap_or("cargo"))
        .args(["install", "qhook", "--locked", "--quiet", "--version"])
        .arg(QHOOK_VERSION)
        .arg("--root")
        .arg(&build)
        .status()?;
    if status.success() {
        Ok(path)
    } else {
        Err(io::Error::other(format!("cargo install: {status}")))
    }
}

/// Verified webhooks into a queue that is pulled: without a handler or a queue it would store nothing.
fn qhook_at(path: &Path, dir: &Path, address: SocketAddr) -> io::Result<Command> {
    let config = format!(
        "database:\n  driver: sqlite\n  url: sqlite:{}?mode=rwc\nserver:\n  port: {}\nsources:\n  {QHOOK_SOURCE}:\n    type: webhook\n    verify: hmac\n    secret: {QHOOK_SECRET}\nqueues:\n  inbox:\n    source: {QHOOK_SOURCE}\n",
        dir.join("qhook.db").display(),
        address.port(),
    );
    let file = dir.join("qhook.yaml");
    std::fs::write(&file, config)?;
    let mut command = Command::new(path);
    command.args(["start", "--config"]).arg(file);
    // Its log of every event is not part of the comparison.
    command.current_dir(dir).env("RUST_LOG", "error");
    command.stderr(Stdio::null());
    Ok(command)
}

fn free_address() -> io::Result<SocketAddr> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()
}

fn get(address: SocketAddr, path: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

const CERT_FILE: &str = "cert.pem";
const KEY_FILE: &str = "key.pem";

/// A certificate of this run for `localhost`.
#[derive(Debug)]
pub(crate) struct Certificate {
    dir: TempDir,
}

impl Certificate {
    pub(crate) fn make() -> io::Result<Self> {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
        let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()])
            .map_err(io::Error::other)?;
        std::fs::write(dir.path().join(CERT_FILE), made.cert.pem())?;
        let key = dir.path().join(KEY_FILE);
        std::fs::write(&key, made.signing_key.serialize_pem())?;
        std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600))?;
        Ok(Self { dir })
    }

    /// A client that trusts it.
    pub(crate) fn client(&self) -> TlsConnector {
        let mut roots = RootCertStore::empty();
        let certificate = CertificateDer::from_pem_file(self.dir.path().join(CERT_FILE))
            .expect("the certificate was just written");
        roots.add(certificate).expect("it is a certificate");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("ring has them")
            .with_root_certificates(roots)
            .with_no_client_auth();
        TlsConnector::from(Arc::new(config))
    }
}

/// The ceiling: reads the body, answers "ok". Prints its address first.
pub(crate) fn serve_ok(certificate: Option<&Path>) -> io::Result<()> {
    let tls = certificate.map(acceptor).transpose()?;
    bare::serve(tls.as_ref(), async || Bytes::from_static(b"ok"))
}

fn acceptor(dir: &Path) -> io::Result<TlsAcceptor> {
    let certificate =
        CertificateDer::from_pem_file(dir.join(CERT_FILE)).map_err(io::Error::other)?;
    let key = PrivateKeyDer::from_pem_file(dir.join(KEY_FILE)).map_err(io::Error::other)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .and_then(|builder| {
            builder
                .with_no_client_auth()
                .with_single_cert(vec![certificate], key)
        })
        .map_err(io::Error::other)?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}
