//! The daemon as a process of its own, on a store that is there already.

use std::fs::{DirBuilder, File};
use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::fill;

const TOKEN: &str = "bench-token-bench-token";
const READY_WITHIN: Duration = Duration::from_mins(2);
const ANSWER_WITHIN: Duration = Duration::from_secs(30);
/// How long messages are sent before it is killed.
const SEND_FOR: Duration = Duration::from_secs(3);
const CLIENTS: u64 = 8;

/// A running daemon; killed when dropped.
#[derive(Debug)]
pub(crate) struct Daemon {
    child: Child,
    api: SocketAddr,
    log: PathBuf,
    /// From exec to the first 200.
    pub(crate) ready_after: Duration,
}

/// The daemon's directory below `dir`, made as the daemon makes it.
pub(crate) fn state_dir(dir: &Path) -> io::Result<PathBuf> {
    let path = dir.join("state");
    DirBuilder::new().mode(0o700).create(&path)?;
    Ok(path)
}

/// What the file system has allocated for a directory's files.
pub(crate) fn allocated_bytes(dir: &Path) -> io::Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        bytes += if entry.file_type()?.is_dir() {
            allocated_bytes(&entry.path())?
        } else {
            entry.metadata()?.blocks() * 512
        };
    }
    Ok(bytes)
}

impl Daemon {
    /// Starts the daemon on the store below `dir` and waits until it is ready.
    pub(crate) fn start(dir: &Path) -> io::Result<Self> {
        let (api, admin) = (free_address()?, free_address()?);
        let config = dir.join("config.toml");
        std::fs::write(&config, settings(dir, api, admin)?)?;
        let log = dir.join("log");
        let build = std::env::var_os("DINGD_OTHER");
        let mut command = Command::new(build.unwrap_or_else(|| env!("CARGO_BIN_EXE_dingd").into()));
        command.arg("run").arg("--config").arg(config);
        command.stdin(Stdio::null()).stderr(File::create(&log)?);
        let started = Instant::now();
        let mut daemon = Self {
            child: command.spawn()?,
            api,
            log,
            ready_after: Duration::ZERO,
        };
        while !ask(admin, "GET /ready HTTP/1.1\r\n", "")
            .is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"))
        {
            if let Some(status) = daemon.child.try_wait()? {
                let said = std::fs::read_to_string(&daemon.log)?;
                return Err(io::Error::other(format!("it ended: {status}: {said}")));
            }
            if started.elapsed() > READY_WITHIN {
                return Err(io::Error::other("it is not ready"));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        daemon.ready_after = started.elapsed();
        Ok(daemon)
    }

    /// Resident memory.
    pub(crate) fn resident_mib(&self) -> f64 {
        self.memory_mib("VmRSS:")
    }

    /// The most that was resident.
    pub(crate) fn peak_mib(&self) -> f64 {
        self.memory_mib("VmHWM:")
    }

    fn memory_mib(&self, name: &str) -> f64 {
        let path = format!("/proc/{}/status", self.child.id());
        let status = std::fs::read_to_string(path).unwrap_or_default();
        status
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .and_then(|rest| rest.trim().strip_suffix(" kB")?.trim().parse::<f64>().ok())
            .map_or(f64::NAN, |kib| kib / 1_024.0)
    }

    /// Asks it to stop and waits until it has.
    pub(crate) fn stop(mut self) -> io::Result<()> {
        self.signal(Signal::TERM)?;
        let status = self.child.wait()?;
        if status.success() {
            Ok(())
        } else {
            Err(io::Error::other(format!("it did not stop well: {status}")))
        }
    }

    /// Kills it.
    pub(crate) fn kill(mut self) -> io::Result<()> {
        self.child.kill()?;
        self.child.wait().map(drop)
    }

    /// Sends messages and kills it meanwhile; returns how many were accepted.
    pub(crate) fn kill_while_sending(self) -> io::Result<u64> {
        let api = self.api;
        let clients: Vec<_> = (0..CLIENTS)
            .map(|n| std::thread::spawn(move || send_until_killed(api, n)))
            .collect();
        std::thread::sleep(SEND_FOR);
        self.kill()?;
        let sent = clients.into_iter().filter_map(|client| client.join().ok());
        Ok(sent.sum())
    }

    fn signal(&self, signal: Signal) -> io::Result<()> {
        Ok(kill_process(Pid::from_child(&self.child), signal)?)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|ended| ended.is_none())
            && let Err(error) = self.child.kill().and_then(|()| self.child.wait())
        {
            println!("the daemon cannot be ended: {error}");
        }
    }
}

/// The world outside is this machine, and it refuses every connection.
fn settings(dir: &Path, api: SocketAddr, admin: SocketAddr) -> io::Result<String> {
    let robots = (0..fill::ROBOTS).map(|n| {
        let name = fill::robot(n);
        format!("[[robots]]\nname = \"{name}\"\naccess_token = \"token-of-{name}\"\n")
    });
    Ok(format!(
        r#"state_dir = '{state_dir}'
[callbacks]
listen = "{callbacks}"
public_url = "https://localhost"
tls = false
[api]
listen = "{api}"
[[api.clients]]
name = "bench"
token = "{TOKEN}"
max_priority = "critical"
[outbound]
queue_messages_max = 4000000
queue_bytes_max = 8000000000
[admin]
listen = "{admin}"
[egress]
api_url = "http://127.0.0.1:9"
oapi_url = "http://127.0.0.1:9"
{robots}"#,
        state_dir = dir.join("state").display(),
        callbacks = free_address()?,
        robots = robots.collect::<String>(),
    ))
}

fn free_address() -> io::Result<SocketAddr> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()
}

fn send_until_killed(api: SocketAddr, client: u64) -> u64 {
    let head = format!("POST /v1/messages HTTP/1.1\r\nAuthorization: Bearer {TOKEN}\r\n");
    let mut sent = 0;
    loop {
        let body = format!(
            r#"{{"to":{{"robot":"{}"}},"priority":"critical","content":{{"text":{{"content":"{}"}}}}}}"#,
            fill::robot(client + CLIENTS * sent),
            fill::text(),
        );
        match ask(api, &head, &body) {
            Ok(answer) if answer.starts_with("HTTP/1.1 202") => sent += 1,
            // Killed before it could say anything.
            Ok(answer) if answer.is_empty() => return sent,
            Ok(answer) => {
                println!("a message was refused: {answer}");
                return sent;
            }
            Err(_) => return sent,
        }
    }
}

fn ask(address: SocketAddr, head: &str, body: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(ANSWER_WITHIN))?;
    let request = format!(
        "{head}Host: localhost\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}
