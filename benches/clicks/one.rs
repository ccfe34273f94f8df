//! One click at a time, and what a part of its way takes alone.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use dingd::journal::{Batch, Journal, Table};
use tempfile::TempDir;
use tokio::runtime::Runtime;

use super::Error;
use super::closed::{expect_ok, is_complete};
use super::measure::micros;
use super::servers::{Kind, Server, clicks};

/// The variable in which the platform tells how many microseconds it has had the event.
pub(crate) const OWN: &str = "platform_us";
/// Clicks of one course in a round.
pub(crate) const CLICKS: usize = 400;
/// Clicks before them that are not counted.
const WARM_UP: usize = 40;
const PAUSE: Duration = Duration::from_millis(3);

/// All times in microseconds, of all rounds.
#[derive(Debug)]
pub(crate) struct Courses {
    pub(crate) commit_us: Vec<u32>,
    pub(crate) direct_us: Vec<u32>,
    pub(crate) unasked_us: Vec<u32>,
    pub(crate) asked: [Course; 2],
}

/// Clicks that a platform answers after so long.
#[derive(Debug, Default)]
pub(crate) struct Course {
    pub(crate) delay_ms: u32,
    pub(crate) whole_us: Vec<u32>,
    pub(crate) own_us: Vec<u32>,
    /// Less the platform's own time: the commit is still in it.
    pub(crate) added_us: Vec<u32>,
}

impl Default for Courses {
    fn default() -> Self {
        let after = |delay_ms| Course {
            delay_ms,
            ..Course::default()
        };
        Self {
            commit_us: vec![],
            direct_us: vec![],
            unasked_us: vec![],
            asked: [after(0), after(5)],
        }
    }
}

impl Courses {
    /// Takes one more round of each, one of each kind after the other: what else the machine does is in all
    /// of them alike.
    pub(crate) fn round(&mut self) -> Result<(), Error> {
        let requests = clicks(WARM_UP + CLICKS);
        let mut commits = Commits::open()?;
        let unasked = Server::start(Kind::Alone, 0)?;
        let asked = self
            .asked
            .each_ref()
            .map(|course| Server::start(Kind::Answered, course.delay_ms));
        let asked = asked.into_iter().collect::<Result<Vec<_>, _>>()?;
        let platform = asked.first().and_then(Server::platform);
        let mut direct = Clicker::connect(platform.ok_or("no platform")?)?;
        let mut alone = Clicker::connect(unasked.target().address)?;
        let mut clickers = asked
            .iter()
            .map(|server| Clicker::connect(server.target().address))
            .collect::<Result<Vec<_>, _>>()?;
        for n in 0..requests.len() {
            let request = requests.get(n).unwrap_or_default();
            let commit_us = commits.one(n)?;
            let direct_us = direct.click(request)?.whole_us;
            let unasked_us = alone.click(request)?.whole_us;
            if n >= WARM_UP {
                self.commit_us.push(commit_us);
                self.direct_us.push(direct_us);
                self.unasked_us.push(unasked_us);
            }
            for (clicker, course) in clickers.iter_mut().zip(&mut self.asked) {
                let Click { whole_us, own_us } = clicker.click(request)?;
                let own_us = own_us.ok_or("a click without the platform's answer")?;
                if n >= WARM_UP {
                    course.whole_us.push(whole_us);
                    course.own_us.push(own_us);
                    course.added_us.push(whole_us.saturating_sub(own_us));
                }
            }
        }
        for server in asked.iter().chain([&unasked]) {
            server.check(requests.len())?;
        }
        Ok(())
    }
}

/// A connection on which somebody clicks.
struct Clicker {
    stream: TcpStream,
    answer: Vec<u8>,
}

struct Click {
    whole_us: u32,
    own_us: Option<u32>,
}

impl Clicker {
    fn connect(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        let answer = Vec::with_capacity(4_096);
        Ok(Self { stream, answer })
    }

    /// Pauses, clicks, and waits for the answer.
    fn click(&mut self, request: &[u8]) -> Result<Click, Error> {
        std::thread::sleep(PAUSE);
        let started = Instant::now();
        self.stream.write_all(request)?;
        self.answer.clear();
        let mut chunk = [0; 4_096];
        while !is_complete(&self.answer) {
            let read = self.stream.read(&mut chunk)?;
            if read == 0 {
                return Err("hung up".into());
            }
            self.answer
                .extend_from_slice(chunk.get(..read).unwrap_or_default());
        }
        let whole_us = micros(started);
        expect_ok(&self.answer)?;
        let own_us = own_us(&String::from_utf8_lossy(&self.answer));
        Ok(Click { whole_us, own_us })
    }
}

fn own_us(answer: &str) -> Option<u32> {
    let (_, rest) = answer.split_once(OWN)?;
    let digits = rest.trim_start_matches(['"', ':']);
    digits.split('"').next()?.parse().ok()
}

/// Commits of what the batch of a click holds, each waited for.
struct Commits {
    journal: Journal,
    runtime: Runtime,
    _dir: TempDir,
}

impl Commits {
    fn open() -> Result<Self, Error> {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
        Ok(Self {
            journal: Journal::open(dir.path()).map_err(|error| error.to_string())?,
            runtime: tokio::runtime::Builder::new_current_thread().build()?,
            _dir: dir,
        })
    }

    /// Pauses and commits number `n`; returns how long it took in microseconds.
    fn one(&mut self, n: usize) -> Result<u32, Error> {
        let key = (n as u64).to_be_bytes();
        let mut batch = Batch::default();
        batch.put(Table::InboxPayload, key, vec![b'x'; 1_000]);
        batch.put(Table::InboxLive, key, vec![b'x'; 250]);
        let mut seen = vec![b'x'; 16];
        seen.splice(..0, key);
        batch.put(Table::Dedup, seen, vec![b'x'; 24]);
        std::thread::sleep(PAUSE);
        let started = Instant::now();
        let stored = self.runtime.block_on(self.journal.commit(batch));
        let us = micros(started);
        stored.map_err(|error| error.to_string())?;
        Ok(us)
    }
}

impl Drop for Commits {
    fn drop(&mut self) {
        self.journal.close();
    }
}
