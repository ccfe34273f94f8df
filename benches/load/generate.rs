//! The load: callbacks and webhooks, and an open loop by the clock.

use std::io::{self, Read as _, Write as _};
use std::net::SocketAddr;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use dingd::delivery::id::hex;
use dingd::dingtalk::signature::hmac_sha256;

use super::callback;
use super::closed::{CONNECTIONS, Requests, expect_ok, is_complete};
use super::measure::micros;
use super::servers::{APP, QHOOK_SECRET, QHOOK_SOURCE, Server};

/// Distinct callbacks as DingTalk sends them.
pub(crate) fn callbacks(count: usize) -> Requests {
    let mut requests = Requests::default();
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
pub(crate) fn webhooks(count: usize) -> Requests {
    let mut requests = Requests::default();
    for n in 0..count {
        let text = callback::event_text(n, now_ms());
        let signature = hex(&hmac_sha256(QHOOK_SECRET.as_bytes(), text.as_bytes()));
        let header = format!("X-Webhook-Signature: {signature}\r\n");
        requests.push(&format!("/webhooks/{QHOOK_SOURCE}"), &header, &text);
    }
    requests
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(0))
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
    for n in (first..requests.len()).step_by(CONNECTIONS) {
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
