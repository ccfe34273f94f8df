//! The only place where all parts meet: open the store, bind the doors, build, run, drain; `upkeep` is what
//! is done now and then.

mod late;
mod upkeep;

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::net::UnixListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;

use crate::admin::dead::Dead;
use crate::admin::door::Door as AdminDoor;
use crate::admin::quota::Quota;
use crate::admin::socket::{Books, Socket, remove_old_backups};
use crate::cache::store::Store;
use crate::cache::token::Tokens;
use crate::clock::Clock;
use crate::config::{self, Config};
use crate::delivery::event::Forwarding;
use crate::directory::chats::Chats;
use crate::directory::titles::Titles;
use crate::drain::{self, Drain};
use crate::egress::{App as DingTalkApp, Egress};
use crate::faults::{Bug, bug};
use crate::health::{Health, Starting};
use crate::http::listen::{BindError, Door, Limits};
use crate::http::tls::{Loaded, Tls, TlsError};
use crate::http::transport::Transport;
use crate::inbound::accept::{Inbox, Pending};
use crate::inbound::forward::Forwarder;
use crate::inbound::stream::Streams;
use crate::inbound::take::Taker;
use crate::inbound::{self, DEDUP_KEEP_MS};
use crate::journal::aged::Aged;
use crate::journal::disk::Condition;
use crate::journal::queue::{Appended, INBOX, OUTBOX, Queue};
use crate::journal::retention::{Keep, Retention};
use crate::journal::room::Room;
use crate::journal::{Batch, Journal, OpenError, ReadError, Table};
use crate::metrics;
use crate::outbound::accept::{Outbox, Stripes, Used};
use crate::outbound::backlog::Recovery;
use crate::outbound::cards::Cards;
use crate::outbound::cards::register::Registrar;
use crate::outbound::lane::Command;
use crate::outbound::receive::Api;
use crate::outbound::send::Sender;
use crate::outbound::settle::Outcomes;
use crate::outbound::{Live, lane, pool};

const DEDUP_ENTRIES_MAX: usize = 1_000_000;
const IDEMPOTENCY_KEEP_MS: u64 = 72 * 3_600_000;
const IDEMPOTENCY_ENTRIES_MAX: usize = 1_000_000;
/// After the word to stop, what is under way has this long.
const DRAIN_MS: u64 = 30_000;
/// After that, the journal has this long to write what it still has.
const CLOSE_MS: u64 = 5_000;

/// systemd may think that a start hangs if it says nothing for so long, in microseconds.
const WAIT_USEC_MAX: u32 = 30_000_000;
/// How often a start that takes its time looks at what it waits for.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Why the daemon could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The directory.
    #[error(
        "state_dir {path}: {source}; create it for the daemon's user: install -d -m 700 {path}"
    )]
    StateDir {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The socket of the command line.
    #[error(
        "{path}: {source}; remove what lies there, or choose a state_dir of at most 96 bytes: a socket's path has a limit"
    )]
    Socket {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The store.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The store's content.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// A door.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// A certificate.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// How the daemon ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// Asked to, and everything was finished.
    Drained,
    /// Asked to, but something took too long; it is taken up again at the next start.
    DrainTimedOut,
    /// The journal could not be written.
    JournalFailed,
    /// A part of it panicked.
    PartFailed,
}

/// A daemon whose doors are bound.
#[derive(Debug)]
pub struct App {
    doors: Vec<(Door, Handler)>,
    /// The admin door serves from the first moment.
    tasks: JoinSet<()>,
    starting: Starting,
    flows: Flows,
    cache_dir: PathBuf,
    trigger: drain::Trigger,
    drain: Drain,
}

/// Both flows, without doors and without what happens now and then: what a simulation drives.
#[derive(Debug)]
pub struct Flows {
    parts: Parts,
    recovered: Recovered,
    commands: mpsc::Sender<Command>,
    obeyed: mpsc::Receiver<Command>,
}

/// What is to be done now and then.
#[derive(Debug)]
pub struct Upkeep(Parts);

#[derive(Debug)]
enum Handler {
    Callbacks(inbound::receive::Door),
    Api(Api),
    Socket(Socket),
}

/// What lives as long as the process and is reached from several places.
#[derive(Debug, Clone)]
struct Parts {
    clock: Clock,
    health: Health,
    journal: Journal,
    room: Room,
    egress: Arc<Egress>,
    tokens: Arc<Tokens>,
    transport: Arc<Transport>,
    inbox: Arc<Inbox>,
    outbox: Arc<Outbox>,
    chats: Arc<Chats>,
    apps: Arc<ArcSwap<Vec<DingTalkApp>>>,
    /// Rung when the configuration was taken over; each has one who waits.
    streams_reloaded: Arc<Notify>,
    forwarder_reloaded: Arc<Notify>,
    corps: Arc<ArcSwap<HashMap<String, String>>>,
    keep: Arc<ArcSwap<Keep>>,
    retention: Arc<(Retention, Retention)>,
    quota: Arc<Quota>,
    tls: DoorTls,
    fixed: Fixed,
}

/// What a reload cannot change.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Fixed {
    state_dir: PathBuf,
    listen: [SocketAddr; 3],
    tls: [bool; 2],
}

#[derive(Debug)]
struct Recovered {
    inbox: Vec<(u64, Forwarding)>,
    inbox_entries: mpsc::UnboundedReceiver<Appended<Forwarding>>,
    outbox: Recovery,
    outbox_entries: mpsc::UnboundedReceiver<Appended<Live>>,
}

impl Fixed {
    fn of(config: &Config) -> Self {
        Self {
            state_dir: config.state_dir.clone(),
            listen: [config.callbacks.listen, config.api.listen, config.admin],
            tls: [config.callbacks.tls.is_some(), config.api.tls.is_some()],
        }
    }
}

/// What the store held at the start.
#[derive(Debug)]
struct Stored {
    journal: Journal,
    dedup: Arc<Aged<(), 2>>,
    idempotency: Arc<Aged<Used, 1>>,
    chats: Arc<Chats>,
    inbox: Arc<Queue<Forwarding>>,
    outbox: Arc<Queue<Live>>,
}

impl App {
    /// Opens and binds. When this returns the addresses are taken, but only the admin door serves yet: it
    /// says what is waited for while a large journal is read.
    pub async fn open(config: Config, clock: Clock) -> Result<Self, StartError> {
        let state_dir = config.state_dir.clone();
        make_private_dir(&state_dir)?;
        let (trigger, drain) = drain::channel();
        let (health, books) = (Health::default(), Arc::new(OnceLock::new()));
        let (reading, starting) = (health.starting("journal"), health.starting("doors"));
        let mut tasks = JoinSet::new();
        let admin = match Door::bind("admin", config.admin, None, FEW).await {
            Ok(door) => door,
            Err(error) => {
                // Another dingd, most likely; its lock says so better than its address does.
                Journal::open(&state_dir)?;
                return Err(error.into());
            }
        };
        let admin_address = admin.address();
        let handler = AdminDoor {
            health: health.clone(),
            recorder: metrics::install(),
            books: books.clone(),
        };
        tasks.spawn(admin.serve(move |r| handler.clone().handle(r), drain.clone()));
        let transport = Arc::new(Transport::new(clock, config.connect_timeout_ms));
        let listen = Listen::of(&config);
        let journal = open_journal(&state_dir, &health).await?;
        let parts = (clock, health.clone());
        let flows = Flows::open(config, journal, transport, parts, &drain)?;
        drop(reading);
        let commands = flows.commands.clone();
        remove_old_backups(&state_dir);
        let bound = flows
            .parts
            .bind(&listen, admin_address, commands, drain.clone());
        let (doors, measured) = bound.await?;
        if measured
            .measure()
            .await
            .is_some_and(|mismatch| mismatch > 0)
        {
            tracing::error!(
                "the books of the journal do not balance: something was lost or counted twice before this start; see `dingd journal check`"
            );
            health.degraded("books", "the books of the journal do not balance: 运行 dingd journal check 并检查磁盘 / run dingd journal check, check the disk");
        }
        if books.set(measured).is_err() {
            tracing::debug!("the books were there already");
        }
        Ok(Self {
            doors,
            tasks,
            starting,
            flows,
            cache_dir: state_dir.join("cache"),
            trigger,
            drain,
        })
    }

    /// Serves until a signal says stop (SIGTERM, SIGINT), reloading on SIGHUP with what `reload`
    /// reads.
    pub async fn run(self, reload: impl Fn() -> Result<Config, config::Unusable>) -> Ended {
        let Self {
            doors,
            mut tasks,
            starting,
            flows,
            cache_dir,
            trigger,
            drain,
        } = self;
        let parts = flows.parts.clone();
        // Before anybody is told that we are ready: a signal that comes early must not kill.
        let signals = [
            SignalKind::terminate(),
            SignalKind::interrupt(),
            SignalKind::hangup(),
        ];
        let [Ok(terminate), Ok(interrupt), Ok(hangup)] = signals.map(signal) else {
            tracing::error!("cannot listen for signals");
            return Ended::PartFailed;
        };
        let signals = [terminate, interrupt, hangup];
        flows.spawn(&mut tasks, &drain);
        tasks.spawn(parts.clone().upkeep(drain.clone()));
        tasks.spawn(parts.clone().housekeeping(drain.clone()));
        parts.spawn_cache(cache_dir);
        for (door, handler) in doors {
            let drain = drain.clone();
            match handler {
                Handler::Callbacks(h) => {
                    tasks.spawn(door.serve(move |r| h.clone().handle(r), drain))
                }
                Handler::Api(h) => tasks.spawn(door.serve(move |r| h.clone().handle(r), drain)),
                Handler::Socket(h) => tasks.spawn(door.serve(move |r| h.clone().handle(r), drain)),
            };
        }
        drop((starting, drain));
        metrics::reloaded(true, parts.clock.wall_ms());
        metrics::build_info();
        notify(&[sd_notify::NotifyState::Ready]);
        tracing::info!(version = env!("CARGO_PKG_VERSION"), "ready");
        let ended = parts.watch(&mut tasks, signals, &reload).await;
        notify(&[sd_notify::NotifyState::Stopping]);
        if ended != Ended::Drained {
            return ended;
        }
        tracing::info!("stopping");
        parts.finish(trigger, tasks).await
    }
}

impl Flows {
    /// Reads back what `journal` holds and builds all parts; calls leave through `transport`.
    pub fn open(
        config: Config,
        journal: Journal,
        transport: Arc<Transport>,
        (clock, health): (Clock, Health),
        drain: &Drain,
    ) -> Result<Self, StartError> {
        let way_out = config.egress.clone();
        let egress = Egress::new(way_out, transport.clone(), journal.clone(), clock, health);
        let egress = Arc::new(egress);
        let (stored, recovered) = Stored::read(journal, &egress)?;
        let tls = load_tls(&config)?;
        let parts = Parts::build(config, stored, (egress, transport), tls, drain);
        let (commands, obeyed) = mpsc::channel(64);
        Ok(Self {
            parts,
            recovered,
            commands,
            obeyed,
        })
    }

    /// The accepting sides.
    pub fn doors(&self) -> (Arc<Inbox>, Arc<Outbox>) {
        (self.parts.inbox.clone(), self.parts.outbox.clone())
    }

    /// Where wishes about messages go.
    pub fn commands(&self) -> mpsc::Sender<Command> {
        self.commands.clone()
    }

    /// Starts the workers.
    pub fn spawn(self, tasks: &mut JoinSet<()>, drain: &Drain) -> Upkeep {
        let Self {
            parts,
            recovered,
            obeyed,
            ..
        } = self;
        parts.spawn_workers(tasks, recovered, obeyed, drain);
        Upkeep(parts)
    }
}

impl Stored {
    /// Reads back everything that is kept in memory.
    fn read(journal: Journal, egress: &Egress) -> Result<(Self, Recovered), StartError> {
        let dedup = Arc::new(Aged::new(Table::Dedup, DEDUP_KEEP_MS, DEDUP_ENTRIES_MAX));
        let idempotency = Arc::new(Aged::new(
            Table::Idempotency,
            IDEMPOTENCY_KEEP_MS,
            IDEMPOTENCY_ENTRIES_MAX,
        ));
        let chats = Arc::new(Chats::default());
        let (mut live_inbox, mut live_outbox) = (vec![], Recovery::new(egress.clock()));
        let (inbox, outbox, aside) = journal.read_blocking(|view| {
            let mut aside = Batch::default();
            dedup.load(view, &mut aside)?;
            idempotency.load(view, &mut aside)?;
            chats.load(view, &mut aside)?;
            if !bug(Bug::ChargesForgotten) {
                egress.load(view, &mut aside)?;
            }
            let inbox = Queue::<Forwarding>::open(INBOX, view)?;
            let outbox = Queue::<Live>::open(OUTBOX, view)?;
            inbox.0.recover(view, &mut aside, &mut |seq, state| {
                inbox.0.count(seq, state.tag());
                live_inbox.push((seq, state));
            })?;
            outbox.0.recover(view, &mut aside, &mut |seq, live| {
                outbox.0.count(seq, live.tag());
                live_outbox.take_in(&outbox.0, seq, live);
            })?;
            Ok((inbox, outbox, aside))
        })?;
        if !aside.is_empty() {
            journal.submit(aside, |_| ());
        }
        let recovered = Recovered {
            inbox: live_inbox,
            inbox_entries: inbox.1,
            outbox: live_outbox,
            outbox_entries: outbox.1,
        };
        let (inbox, outbox) = (Arc::new(inbox.0), Arc::new(outbox.0));
        Ok((
            Self {
                journal,
                dedup,
                idempotency,
                chats,
                inbox,
                outbox,
            },
            recovered,
        ))
    }
}

/// Where the doors listen and what they allow.
#[derive(Debug)]
struct Listen {
    callbacks: (SocketAddr, Limits),
    api: (SocketAddr, Limits),
}

/// What the doors of the operator and of Prometheus allow.
const FEW: Limits = Limits {
    connections_max: 64,
    ..Limits::USUAL
};

impl Listen {
    fn of(config: &Config) -> Self {
        Self {
            callbacks: (config.callbacks.listen, config.callbacks.limits),
            api: (config.api.listen, config.api.limits),
        }
    }
}

type DoorTls = BTreeMap<&'static str, Arc<Tls>>;

fn load_tls(config: &Config) -> Result<DoorTls, TlsError> {
    let mut tls = BTreeMap::new();
    for (name, door) in [("callbacks", &config.callbacks), ("api", &config.api)] {
        if let Some(files) = &door.tls {
            tls.insert(name, Arc::new(Tls::new(Loaded::read(files.clone())?)));
        }
    }
    Ok(tls)
}

impl Parts {
    fn build(
        config: Config,
        stored: Stored,
        (egress, transport): (Arc<Egress>, Arc<Transport>),
        tls: DoorTls,
        drain: &Drain,
    ) -> Self {
        let fixed = Fixed::of(&config);
        let (clock, health) = (egress.clock(), egress.health().clone());
        let room = Room::new(config.state_dir, stored.journal.condition().clone());
        let apps = config.outbound.apps.clone();
        let corps = Arc::new(ArcSwap::from_pointee(corps(&apps)));
        let inbox = Arc::new(Inbox {
            settings: Arc::new(ArcSwap::from_pointee(config.inbound)),
            queue: stored.inbox.clone(),
            journal: stored.journal.clone(),
            dedup: stored.dedup,
            chats: stored.chats.clone(),
            titles: Arc::new(Notify::new()),
            clock,
            pending: Arc::new(Pending::default()),
            asking: Arc::default(),
        });
        let quota = Arc::new(Quota {
            journal: stored.journal.clone(),
            inbox: stored.inbox.clone(),
            outbox: stored.outbox.clone(),
            room: room.clone(),
            clock,
            said: std::sync::Mutex::default(),
        });
        let outbox = Arc::new(Outbox {
            settings: Arc::new(ArcSwap::from_pointee(config.outbound)),
            queue: stored.outbox,
            journal: stored.journal.clone(),
            idempotency: stored.idempotency,
            outcomes: Outcomes {
                inbox: stored.inbox,
                corps: corps.clone(),
                clock,
            },
            room: room.clone(),
            drain: drain.clone(),
            clock,
            stripes: Stripes::default(),
            fresh: Arc::default(),
            cards: Arc::new(Cards::new(stored.journal.clone())),
        });
        Self {
            clock,
            health,
            journal: stored.journal,
            room,
            tokens: Arc::new(Tokens::new(&apps, egress.clone())),
            egress,
            transport,
            inbox,
            outbox,
            chats: stored.chats,
            apps: Arc::new(ArcSwap::from_pointee(apps)),
            streams_reloaded: Arc::new(Notify::new()),
            forwarder_reloaded: Arc::new(Notify::new()),
            corps,
            keep: Arc::new(ArcSwap::from_pointee(config.keep)),
            retention: Arc::default(),
            quota,
            tls,
            fixed,
        }
    }

    /// Binds all doors but the admin one, which is at `admin`, and gives each its handler.
    async fn bind(
        &self,
        listen: &Listen,
        admin: Option<SocketAddr>,
        commands: mpsc::Sender<Command>,
        drain: Drain,
    ) -> Result<(Vec<(Door, Handler)>, Arc<Books>), StartError> {
        let tls = |name| self.tls.get(name).cloned();
        let (address, limits) = listen.callbacks;
        let callbacks = Door::bind("callbacks", address, tls("callbacks"), limits).await?;
        let (address, limits) = listen.api;
        let api_door = Door::bind("api", address, tls("api"), limits).await?;
        let doors: BTreeMap<_, _> = [
            ("callbacks", callbacks.address()),
            ("api", api_door.address()),
            ("admin", admin),
        ]
        .into_iter()
        .filter_map(|(name, address)| Some((name, address?)))
        .collect();
        for (door, address) in &doors {
            tracing::info!(door, %address, "listening");
        }
        let socket_door = bind_socket(&self.fixed.state_dir, FEW)?;
        let (inbox, room) = (self.inbox.clone(), self.room.clone());
        let api = Api {
            outbox: self.outbox.clone(),
            chats: self.chats.clone(),
            egress: self.egress.clone(),
            commands,
        };
        let books = Arc::new(Books {
            journal: self.journal.clone(),
            room: room.clone(),
            inbox: inbox.clone(),
            outbox: self.outbox.queue.clone(),
            egress: self.egress.clone(),
        });
        let dead = Arc::new(Dead {
            journal: self.journal.clone(),
            inbox: inbox.queue.clone(),
            outbox: self.outbox.clone(),
            clock: self.clock,
        });
        let socket = Socket {
            api: api.clone(),
            dead,
            registrar: Registrar {
                outbox: self.outbox.clone(),
                tokens: self.tokens.clone(),
                egress: self.egress.clone(),
            },
            doors: Arc::new(doors),
            health: self.health.clone(),
            books: books.clone(),
            state_dir: Arc::from(self.fixed.state_dir.as_path()),
            backups: Arc::default(),
        };
        let taker = Taker { inbox, drain, room };
        let callbacks_handler = inbound::receive::Door {
            taker,
            complained_ms: Arc::default(),
        };
        let doors = vec![
            (callbacks, Handler::Callbacks(callbacks_handler)),
            (api_door, Handler::Api(api)),
            (socket_door, Handler::Socket(socket)),
        ];
        Ok((doors, books))
    }

    fn spawn_workers(
        &self,
        tasks: &mut JoinSet<()>,
        recovered: Recovered,
        commands: mpsc::Receiver<Command>,
        drain: &Drain,
    ) {
        let (late, lates) = mpsc::channel(64);
        tasks.spawn(late::answers(
            lates,
            self.outbox.clone(),
            self.chats.clone(),
        ));
        let forwarder = Forwarder {
            asking: self.inbox.asking.clone(),
            late,
            reloaded: self.forwarder_reloaded.clone(),
            settings: self.inbox.settings.clone(),
            queue: self.inbox.queue.clone(),
            journal: self.journal.clone(),
            transport: self.transport.clone(),
            clock: self.clock,
            health: self.health.clone(),
        };
        let (inbox, inbox_entries) = (recovered.inbox, recovered.inbox_entries);
        tasks.spawn(forwarder.run(inbox, inbox_entries, drain.clone()));
        let sender = Sender {
            settings: self.outbox.settings.clone(),
            queue: self.outbox.queue.clone(),
            journal: self.journal.clone(),
            tokens: self.tokens.clone(),
            egress: self.egress.clone(),
            outcomes: self.outbox.outcomes.clone(),
            fresh: self.outbox.fresh.clone(),
            cards: self.outbox.cards.clone(),
            chats: self.chats.clone(),
            clock: self.clock,
        };
        let (outbox, outbox_entries) = (recovered.outbox, recovered.outbox_entries);
        let worker = lane::run(sender, outbox, outbox_entries, commands, drain.clone());
        tasks.spawn(async move {
            if worker.await.is_err() {
                tracing::error!("what was under way at the last stop could not be recorded");
            }
        });
        let titles = Titles {
            chats: self.chats.clone(),
            wake: self.inbox.titles.clone(),
            tokens: self.tokens.clone(),
            egress: self.egress.clone(),
            journal: self.journal.clone(),
            health: self.health.clone(),
        };
        tasks.spawn(titles.run(self.apps.clone(), drain.clone()));
        let streams = Streams {
            apps: self.apps.clone(),
            reloaded: self.streams_reloaded.clone(),
            taker: Taker {
                inbox: self.inbox.clone(),
                drain: drain.clone(),
                room: self.room.clone(),
            },
            egress: self.egress.clone(),
            transport: self.transport.clone(),
        };
        tasks.spawn(streams.run(drain.clone()));
    }

    /// The cache is opened beside the start: nothing waits for it.
    fn spawn_cache(&self, dir: PathBuf) {
        let tokens = self.tokens.clone();
        let opened = tokio::task::spawn_blocking(move || tokens.attach(Store::open(&dir)));
        drop(opened);
    }

    /// Waits for whatever ends the daemon.
    async fn watch(
        &self,
        tasks: &mut JoinSet<()>,
        signals: [Signal; 3],
        reload: &impl Fn() -> Result<Config, config::Unusable>,
    ) -> Ended {
        let [mut terminate, mut interrupt, mut hangup] = signals;
        loop {
            // A part that ends because the journal failed says less than the journal.
            tokio::select! {
                biased;
                () = self.journal.failed() => {
                    self.health.unready("journal", "a commit failed");
                    tracing::error!("the journal cannot be written; ending, to recover by reading at the next start");
                    return Ended::JournalFailed;
                }
                _ = terminate.recv() => return Ended::Drained,
                _ = interrupt.recv() => return Ended::Drained,
                _ = hangup.recv() => self.reload(reload),
                Some(ended) = tasks.join_next() => {
                    tracing::error!(?ended, "a part of the daemon ended; restarting is safe, nothing is lost");
                    return Ended::PartFailed;
                }
            }
        }
    }

    fn reload(&self, read: &impl Fn() -> Result<Config, config::Unusable>) {
        notify(&[sd_notify::NotifyState::Reloading]);
        let taken_over = read()
            .map_err(|error| error.to_string())
            .and_then(|config| self.take_over(config));
        notify(&[sd_notify::NotifyState::Ready]);
        metrics::reloaded(taken_over.is_ok(), self.clock.wall_ms());
        match taken_over {
            Ok(()) => {
                self.health.recovered("reload");
                tracing::info!("the configuration was taken over");
            }
            Err(error) => {
                self.health.degraded(
                    "reload",
                    format!("the configuration was not taken over: {error}"),
                );
                tracing::error!(%error, "the configuration was not taken over; the old one stays");
            }
        }
    }

    /// All or nothing: everything that can fail comes before the first change.
    fn take_over(&self, config: Config) -> Result<(), String> {
        if Fixed::of(&config) != self.fixed {
            return Err(
                "state_dir, a listen address or the use of TLS was changed: restart for that"
                    .to_owned(),
            );
        }
        let mut loaded = vec![];
        for (name, door) in [("callbacks", &config.callbacks), ("api", &config.api)] {
            if let (Some(files), Some(tls)) = (&door.tls, self.tls.get(name)) {
                loaded.push((
                    tls,
                    Loaded::read(files.clone()).map_err(|error| error.to_string())?,
                ));
            }
        }
        for (tls, loaded) in loaded {
            tls.adopt(loaded);
        }
        let apps = config.outbound.apps.clone();
        self.corps.store(Arc::new(corps(&apps)));
        self.tokens.reload(&apps);
        self.apps.store(Arc::new(apps));
        self.keep.store(Arc::new(config.keep));
        self.inbox.settings.store(Arc::new(config.inbound));
        self.outbox.settings.store(Arc::new(config.outbound));
        self.health.recovered_all(pool::TROUBLE);
        // Last: it wakes those who wait, and they look at the settings.
        self.egress.reload(config.egress);
        self.streams_reloaded.notify_one();
        self.forwarder_reloaded.notify_one();
        self.inbox.titles.notify_one();
        Ok(())
    }

    async fn finish(self, trigger: drain::Trigger, mut tasks: JoinSet<()>) -> Ended {
        let deadline = Duration::from_millis(DRAIN_MS);
        let Self {
            journal, outbox, ..
        } = self;
        // These hold a drain handle themselves.
        drop(outbox);
        let all_done = async { while tasks.join_next().await.is_some() {} };
        let drained = tokio::time::timeout(deadline, async {
            tokio::join!(trigger.drain(), all_done);
        })
        .await;
        if drained.is_err() {
            tracing::warn!("some work did not finish in time; it is taken up at the next start");
        }
        let closed = journal.clone();
        let mut closing = tokio::task::spawn_blocking(move || closed.close());
        let in_time = tokio::time::timeout(Duration::from_millis(CLOSE_MS), &mut closing).await;
        match (drained, in_time) {
            (_, Ok(_)) if journal.has_failed() => Ended::JournalFailed,
            (Ok(()), Ok(Ok(()))) => Ended::Drained,
            (_, Err(_)) => {
                // A full or read-only disk: what the log has is put into the tables at the next start.
                journal.condition().give_up();
                if closing.await.is_err() {
                    tracing::error!("the journal could not be closed");
                }
                Ended::DrainTimedOut
            }
            _ => Ended::DrainTimedOut,
        }
    }
}

fn corps(apps: &[DingTalkApp]) -> HashMap<String, String> {
    apps.iter()
        .map(|app| (app.name.clone(), app.corp_id.clone()))
        .collect()
}

/// Opens the store. On a disk that is full or read-only it waits, as a write would, and says for what; and
/// however long it reads, systemd is told that it is under way.
async fn open_journal(dir: &Path, health: &Health) -> Result<Journal, OpenError> {
    let condition = Condition::default();
    let mut known = String::new();
    loop {
        let (path, its) = (dir.to_owned(), condition.clone());
        let mut opening = tokio::task::spawn_blocking(move || Journal::open_under(&path, its));
        let opened = loop {
            tokio::select! {
                opened = &mut opening => break opened,
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
            notify(&[sd_notify::NotifyState::ExtendTimeoutUsec(WAIT_USEC_MAX)]);
            if let Some(stuck) = condition.stuck() {
                health.unready("journal", stuck.cure());
            } else {
                health.serving("journal");
            }
        };
        match opened {
            Ok(Err(error)) if error.passes() => {
                let text = error.to_string();
                if known != text {
                    tracing::error!(%error, "the start waits for the disk");
                }
                health.unready("journal", &*text);
                known = text;
                notify(&[sd_notify::NotifyState::ExtendTimeoutUsec(WAIT_USEC_MAX)]);
                tokio::time::sleep(LOOK_EVERY).await;
            }
            Ok(opened) => {
                health.serving("journal");
                return opened;
            }
            Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
        }
    }
}

fn make_private_dir(path: &Path) -> Result<(), StartError> {
    let error = |source| StartError::StateDir {
        path: path.to_owned(),
        source,
    };
    let missing = |dir: &&Path| !dir.exists();
    let made: Vec<_> = path.ancestors().take_while(missing).collect();
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(error)?;
    // What is durable below them must not be gone with their names.
    for parent in made.into_iter().filter_map(Path::parent) {
        File::open(parent)
            .and_then(|dir| dir.sync_all())
            .map_err(error)?;
    }
    let mode = std::fs::metadata(path).map_err(error)?.permissions().mode();
    if mode & 0o077 != 0 {
        return Err(error(io::Error::other(format!(
            "others can enter it (mode {:o})",
            mode & 0o777
        ))));
    }
    Ok(())
}

fn bind_socket(state_dir: &Path, limits: Limits) -> Result<Door, StartError> {
    let path = state_dir.join("admin.sock");
    let error = |source| StartError::Socket {
        path: path.clone(),
        source,
    };
    // The store's lock is ours, so a socket that lies here is left over.
    match std::fs::remove_file(&path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(error(e)),
        Ok(()) | Err(_) => {}
    }
    let listener = UnixListener::bind(&path).map_err(error)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).map_err(error)?;
    Ok(Door::unix(
        "socket",
        listener,
        rustix::process::geteuid().as_raw(),
        limits,
    ))
}

fn notify(states: &[sd_notify::NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "systemd does not listen");
    }
}
