//! A closed loop on one thread: prepared requests, 64 keep-alive connections, each sending its next request
//! when it has its answer.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::LocalSet;
use tokio_rustls::TlsConnector;

use super::measure::{cpu_us, micros, percentile, resident_mib};

pub(crate) const CONNECTIONS: usize = 64;
const WARM_UP: Duration = Duration::from_millis(500);
const MEASURED: Duration = Duration::from_secs(2);

/// Whole requests, ready to be written.
#[derive(Debug, Default)]
pub(crate) struct Requests {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl Requests {
    /// Adds one to `target`; `headers` are whole lines.
    pub(crate) fn push(&mut self, target: &str, headers: &str, body: &str) {
        let request = format!(
            "POST {target} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{headers}Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        self.bytes.extend_from_slice(request.as_bytes());
        self.ends.push(self.bytes.len());
    }

    /// Request number `n`.
    pub(crate) fn get(&self, n: usize) -> Option<&[u8]> {
        let start = match n.checked_sub(1) {
            Some(before) => *self.ends.get(before)?,
            None => 0,
        };
        self.bytes.get(start..*self.ends.get(n)?)
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.ends.len()
    }
}

/// What one round of the closed loop came to.
#[derive(Debug)]
pub(crate) struct Round {
    pub(crate) rate: f64,
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
    /// CPU of the server for one answer.
    pub(crate) cpu_us: f64,
    pub(crate) resident_mib: f64,
    /// All 200s, those of the warm-up too.
    pub(crate) answered: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    WarmUp,
    Measured,
    Over,
}

/// What the connections of a closed loop share; they run on one thread.
struct Loop {
    requests: Arc<Requests>,
    again: bool,
    next: Cell<usize>,
    phase: Cell<Phase>,
    answered: Cell<usize>,
    latencies_us: RefCell<Vec<u32>>,
}

/// The server under load.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Target {
    pub(crate) address: SocketAddr,
    pub(crate) pid: u32,
}

/// Runs one round; with `again` the requests may be repeated.
pub(crate) fn closed_loop(
    server: Target,
    tls: Option<TlsConnector>,
    requests: &Arc<Requests>,
    again: bool,
) -> io::Result<Round> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let shared = Rc::new(Loop {
        requests: requests.clone(),
        again,
        next: Cell::new(0),
        phase: Cell::new(Phase::WarmUp),
        answered: Cell::new(0),
        latencies_us: RefCell::new(Vec::with_capacity(1 << 20)),
    });
    let (took, cpu) = LocalSet::new().block_on(&runtime, run(server, tls, shared.clone()))?;
    let mut latencies = shared.latencies_us.take();
    let answers = f64::from(u32::try_from(latencies.len()).unwrap_or(u32::MAX));
    Ok(Round {
        rate: answers / took.as_secs_f64(),
        p50_ms: percentile(&mut latencies, 50.0) / 1e3,
        p99_ms: percentile(&mut latencies, 99.0) / 1e3,
        cpu_us: cpu / answers,
        resident_mib: resident_mib(server.pid),
        answered: shared.answered.get(),
    })
}

async fn run(
    server: Target,
    tls: Option<TlsConnector>,
    shared: Rc<Loop>,
) -> io::Result<(Duration, f64)> {
    let mut connections = tokio::task::JoinSet::new();
    for _ in 0..CONNECTIONS {
        let stream = TcpStream::connect(server.address).await?;
        stream.set_nodelay(true)?;
        let shared = shared.clone();
        match &tls {
            None => connections.spawn_local(shared.drive(stream)),
            Some(tls) => {
                let name = "localhost".try_into().map_err(io::Error::other)?;
                let stream = tls.connect(name, stream).await?;
                connections.spawn_local(shared.drive(stream))
            }
        };
    }
    tokio::time::sleep(WARM_UP).await;
    shared.phase.set(Phase::Measured);
    let (started, cpu_before) = (Instant::now(), cpu_us(server.pid));
    let all_sent = async {
        while let Some(ended) = connections.join_next().await {
            ended.map_err(io::Error::other)??;
        }
        Ok::<_, io::Error>(())
    };
    let timely = tokio::time::timeout(MEASURED, all_sent).await;
    let (took, cpu) = (started.elapsed(), cpu_us(server.pid) - cpu_before);
    shared.phase.set(Phase::Over);
    if let Ok(early) = timely {
        early?;
    }
    while let Some(ended) = connections.join_next().await {
        ended.map_err(io::Error::other)??;
    }
    Ok((took, cpu))
}

impl Loop {
    async fn drive(
        self: Rc<Self>,
        mut stream: impl AsyncRead + AsyncWrite + Unpin + 'static,
    ) -> io::Result<()> {
        let mut buffer = Vec::with_capacity(4_096);
        while self.phase.get() != Phase::Over {
            let n = self.next.replace(self.next.get() + 1);
            let n = if self.again {
                n % self.requests.len()
            } else {
                n
            };
            let Some(request) = self.requests.get(n) else {
                break;
            };
            let started = Instant::now();
            stream.write_all(request).await?;
            stream.flush().await?;
            buffer.clear();
            while !is_complete(&buffer) {
                if stream.read_buf(&mut buffer).await? == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
            }
            expect_ok(&buffer)?;
            self.answered.set(self.answered.get() + 1);
            if self.phase.get() == Phase::Measured {
                self.latencies_us.borrow_mut().push(micros(started));
            }
        }
        Ok(())
    }
}

/// Whether `answer` is a whole answer with a Content-Length.
pub(crate) fn is_complete(answer: &[u8]) -> bool {
    const LENGTH: &[u8] = b"\r\ncontent-length: ";
    let Some(head) = answer.windows(4).position(|window| window == b"\r\n\r\n") else {
        return false;
    };
    let length = answer
        .windows(LENGTH.len())
        .position(|window| window.eq_ignore_ascii_case(LENGTH))
        .and_then(|at| answer.get(at + LENGTH.len()..head))
        .map_or(0, |digits| {
            let digits = digits.iter().take_while(|byte| byte.is_ascii_digit());
            digits.fold(0, |sum, digit| sum * 10 + usize::from(digit - b'0'))
        });
    answer.len() >= head + 4 + length
}

/// An error unless it is a 200.
pub(crate) fn expect_ok(answer: &[u8]) -> io::Result<()> {
    if answer.starts_with(b"HTTP/1.1 200 ") {
        return Ok(());
    }
    let shown = String::from_utf8_lossy(answer);
    Err(io::Error::other(format!("not a 200: {shown}")))
}
