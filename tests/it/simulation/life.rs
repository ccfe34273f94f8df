//! One process: the daemon's own parts, from a start to a stop or a power cut.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;

use dingd::app::{Flows, Upkeep};
use dingd::config::{self, Config, read::Sources};
use dingd::drain::{self, Trigger};
use dingd::health::Health;
use dingd::http::transport::Transport;
use dingd::inbound::accept::Inbox;
use dingd::journal::Journal;
use dingd::journal::disk::Condition;
use dingd::outbound::accept::Outbox;
use dingd::outbound::lane::Command;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::world::{Net, World};
use crate::support::disk::{MemoryDisk, Power};

/// Small, so that its halves are often written over.
const HALF_BYTES: usize = 32 << 10;

/// The disks of the machine, with the power they have.
#[derive(Debug, Default)]
pub struct Disks {
    power: Power,
    tables: MemoryDisk,
    log: MemoryDisk,
}

impl Disks {
    /// The first start is another test's business.
    pub fn format(&mut self) {
        self.open().unwrap().close();
        *self = self.after_cut(&mut |_| 1);
    }

    fn open(&self) -> Result<Journal, String> {
        let (tables, log) = (Box::new(self.tables.clone()), Box::new(self.log.clone()));
        Journal::in_line(tables, log, HALF_BYTES, Condition::default())
            .map_err(|error| error.to_string())
    }

    pub fn after_cut(&self, chance: &mut dyn FnMut(usize) -> usize) -> Self {
        let power = Power::default();
        Self {
            tables: self.tables.after_cut(&power, chance),
            log: self.log.after_cut(&power, chance),
            power,
        }
    }
}

pub struct Life {
    pub power: Power,
    pub journal: Journal,
    pub inbox: Arc<Inbox>,
    pub outbox: Arc<Outbox>,
    pub commands: mpsc::Sender<Command>,
    tasks: JoinSet<()>,
    upkeep: Arc<Upkeep>,
    /// Rounds of upkeep under way.
    rounds: std::sync::Mutex<JoinSet<()>>,
    trigger: Trigger,
}

impl Life {
    pub fn start(
        disks: &Disks,
        world: &Arc<World>,
        keep_finished_s: u64,
        inbound_lifetime_ms: u64,
    ) -> Result<Self, String> {
        let clock = world.clock();
        let net = Net {
            world: world.clone(),
            power: disks.power.clone(),
        };
        let transport = Arc::new(Transport::scripted(clock, Box::new(net)));
        let journal = disks.open()?;
        let (trigger, drain) = drain::channel();
        let config = config(keep_finished_s, inbound_lifetime_ms / 1_000);
        let flows = Flows::open(
            config,
            journal.clone(),
            transport,
            (clock, Health::default()),
            &drain,
        )
        .map_err(|error| error.to_string())?;
        let ((inbox, outbox), commands) = (flows.doors(), flows.commands());
        let mut tasks = JoinSet::new();
        let upkeep = Arc::new(flows.spawn(&mut tasks, &drain));
        Ok(Self {
            power: disks.power.clone(),
            journal,
            inbox,
            outbox,
            commands,
            tasks,
            upkeep,
            rounds: std::sync::Mutex::default(),
            trigger,
        })
    }

    /// Returns when the journal has failed or a part has ended.
    pub async fn ended(&mut self) {
        tokio::select! {
            biased;
            () = self.journal.failed() => {}
            _ = self.tasks.join_next() => {}
        }
    }

    pub fn keep_up(&self) {
        let upkeep = self.upkeep.clone();
        let mut rounds = self.rounds.lock().unwrap();
        rounds.spawn(async move { upkeep.round().await });
        while rounds.try_join_next().is_some() {}
    }

    pub fn is_idle(&self) -> bool {
        self.inbox.queue.messages() == 0 && self.outbox.queue.messages() == 0
    }

    /// Everything goes, as it is, when the power does.
    pub async fn drop_dead(mut self, world: &World) {
        self.tasks.abort_all();
        while let Some(ended) = self.tasks.join_next().await {
            if let Err(error) = ended
                && error.is_panic()
            {
                world.fault(&format!("a part panicked: {error}"));
            }
        }
        let mut rounds = std::mem::take(&mut *self.rounds.lock().unwrap());
        rounds.shutdown().await;
    }

    /// SIGTERM.
    pub async fn stop(self) -> Result<(), String> {
        let Self {
            journal,
            inbox,
            outbox,
            mut tasks,
            rounds,
            trigger,
            upkeep,
            commands,
            ..
        } = self;
        rounds.into_inner().unwrap().shutdown().await;
        drop((inbox, outbox, upkeep, commands));
        let drained = tokio::time::timeout(std::time::Duration::from_secs(30), async {
            let all_done = async { while tasks.join_next().await.is_some() {} };
            tokio::join!(trigger.drain(), all_done);
        });
        let in_time = drained.await.is_ok();
        // Nothing of it may act between this and the next start.
        tasks.shutdown().await;
        journal.close();
        poll_fn(|_| Poll::Ready(())).await;
        if in_time {
            Ok(())
        } else {
            Err("it does not stop within 30 s".to_owned())
        }
    }
}

fn config(keep_finished_s: u64, inbound_lifetime_s: u64) -> Config {
    // `/proc` is a file system that is never full.
    let text = format!(
        r#"state_dir = "/proc"
[callbacks]
listen = "127.0.0.1:0"
tls = false
[api]
listen = "127.0.0.1:0"
[[api.clients]]
name = "platform"
token = "api-token-0123456789"
[admin]
listen = "127.0.0.1:0"
[journal]
keep_finished_s = {keep_finished_s}
keep_dead_s = 7776000
[inbound]
lifetime_s = {inbound_lifetime_s}
[[apps]]
name = "oncall"
corp_id = "dingcorp"
client_id = "dingapp"
client_secret = "a-client-secret-0123456789"
cool_app_code = "COOLAPP-1"
[[robots]]
name = "robot-0"
access_token = "robot0token0123456789"
[[robots]]
name = "robot-1"
access_token = "robot1token0123456789"
secret = "SEC0123456789abcdef"
[[upstreams]]
name = "platform"
url = "https://platform.example/events"
secret = "whsec_Ym94LXBsYXRmb3JtLXNlY3JldC0wMTIzNDU2Nzg5"
[[upstreams]]
name = "second"
url = "https://second.example/events"
events = ["dingtalk.chat"]
secret = "whsec_Ym94LXBsYXRmb3JtLXNlY3JldC0wMTIzNDU2Nzg5"
"#
    );
    config::parse(&text, &Sources { env: &|_| None }).unwrap()
}
