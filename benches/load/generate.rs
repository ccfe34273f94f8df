//! The load: prepared requests, a closed loop on one thread, an open loop by the clock.

use std::cell::{Cell, RefCell};
use std::io::{self, Read as _, Write as _};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use dingd::delivery::id::hex;
use dingd::dingtalk::signature::hmac_sha256;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::LocalSet;
use tokio_rustls::TlsConnector;

use super::callback;
use super::measure::{cpu_us, micros, percentile, resident_mib};
use super::servers::{APP, QHOOK_SECRET, QHOOK_SOURCE, Server};

const CONNECTIONS: usize = 64;
const WARM_UP: Duration = Duration::from_millis(500);
const MEASURED: Duration = Duration::from_secs(2);

/// Whole requests, ready to be written.
#[derive(Debug, Default)]
pub(crate) struct Requests {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl Requests {
    /// Distinct callbacks as DingTalk sends them.
    pub(crate) fn callbacks(count: usize) -> Self {
        let mut requests = Self::default();
        for n in 0..count {
            let now_ms = now_ms();
            let text = callback::event_text(n, now_ms);
            let sealed = callback::seal(&text, &format!("n{n:07}"), now_ms);
            let target = format!("/callback/{APP}/events?{}", sealed.query);
            requests.push(&target, "", &sealed.body);
        }
        requests
    }

    /// The same texts as webhooks signed by HMAC.
    pub(crate) fn webhooks(count: usize) -> Self {
        let mut requests = Self::default();
        for n in 0..count {
            let text = callback::event_text(n, now_ms());
            let signature = hex(&hmac_sha256(QHOOK_SECRET.as_bytes(), text.as_bytes()));
            let header = format!("X-Webhook-Signature: {signature}\r\n");
            requests.push(&format!("/webhooks/{QHOOK_SOURCE}"), &header, &text);
        }
        requests
    }

    fn push(&mut self, target: &str, headers: &str, body: &str) {
        let request = format!(
            "POST {target} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{headers}Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        self.bytes.extend_from_slice(request.as_bytes());
        self.ends.push(self.bytes.len());
    }

    fn get(&self, n: usize) -> Option<&[u8]> {
        let start = match n.checked_sub(1) {
            Some(before) => *self.ends.get(before)?,
            None => 0,
        };
        self.bytes.get(start..*self.ends.get(n)?)
    }
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(0))
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

/// Runs one round; with `again` the requests may be repeated.
pub(crate) fn closed_loop(
    server: &Server,
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
        resident_mib: resident_mib(server.pid()),
        answered: shared.answered.get(),
    })
}

async fn run(
    server: &Server,
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
    let (started, cpu_before) = (Instant::now(), cpu_us(server.pid()));
    let all_sent = async {
        while let Some(ended) = connections.join_next().await {
            ended.map_err(io::Error::other)??;
        }
        Ok::<_, io::Error>(())
    };
    let timely = tokio::time::timeout(MEASURED, all_sent).await;
    let (took, cpu) = (started.elapsed(), cpu_us(server.pid()) - cpu_before);
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
                n % self.requests.ends.len()
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
fn is_complete(answer: &[u8]) -> bool {
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

fn expect_ok(answer: &[u8]) -> io::Result<()> {
    if answer.starts_with(b"HTTP/1.1 200 ") {
        return Ok(());
    }
    let shown = String::from_utf8_lossy(answer);
    Err(io::Error::other(format!("not a 200: {shown}")))
}

/// What the open loop came to.
#[derive(Debug)]
pub(crate) struct Open {
    /// From the instant at which a callback was due to its answer.
    pub(crate) latencies_us: Vec<u32>,
    /// By how much it was sent too late.
    pub(crate) late_us: Vec<u32>,
}

/// Sends `rate` requests a second by the clock, each connection on a thread of its own.
pub(crate) fn open_loop(server: &Server, requests: &Requests, rate: u32) -> io::Result<Open> {
    let started = Instant::now() + Duration::from_millis(200);
    let mut open = Open {
        latencies_us: vec![],
        late_us: vec![],
    };
    std::thread::scope(|scope| {
        let connections: Vec<_> = (0..CONNECTIONS)
            .map(|first| {
                scope.spawn(move || timetable(server.address, requests, first, started, rate))
            })
            .collect();
        for connection in connections {
            let (latencies_us, late_us) = connection
                .join()
                .map_err(|_| io::Error::other("a connection panicked"))??;
            open.latencies_us.extend(latencies_us);
            open.late_us.extend(late_us);
        }
        Ok(open)
    })
}

/// One connection: every [`CONNECTIONS`]-th request, at its time.
fn timetable(
    address: SocketAddr,
    requests: &Requests,
    first: usize,
    started: Instant,
    rate: u32,
) -> io::Result<(Vec<u32>, Vec<u32>)> {
    let mut stream = std::net::TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    let (mut latencies_us, mut late_us) = (vec![], vec![]);
    let mut buffer = Vec::with_capacity(4_096);
    for n in (first..requests.ends.len()).step_by(CONNECTIONS) {
        let nth = u32::try_from(n).map_err(io::Error::other)?;
        let due = started + Duration::from_secs(1) * nth / rate;
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        late_us.push(micros(due));
        stream.write_all(requests.get(n).unwrap_or_default())?;
        buffer.clear();
        let mut chunk = [0; 4_096];
        while !is_complete(&buffer) {
            let read = stream.read(&mut chunk)?;
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            buffer.extend_from_slice(chunk.get(..read).unwrap_or_default());
        }
        expect_ok(&buffer)?;
        latencies_us.push(micros(due));
    }
    Ok((latencies_us, late_us))
}
