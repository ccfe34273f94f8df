//! The other way in: a WebSocket connection that we open and DingTalk speaks on (inbound.md §5).
//!
//! `open` asks for a place and connects · `link` one connection, its frames worked off and answered ·
//! `pulse` its times · `desk` one frame · `keep` keeps one connection of an app up, without a gap
//! where there is a choice.
//!
//! What comes here was believed when we opened: the connection is TLS to a host of DingTalk's, and the
//! ticket was given to our credentials. Nothing is answered before it is on disk.

mod desk;
mod keep;
mod link;
mod open;
mod pulse;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use arc_swap::ArcSwap;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

use super::take::Taker;
use crate::drain::Drain;
use crate::egress::{App, Egress, Stream};
use crate::http::transport::Transport;
use desk::Desk;
use keep::Keeper;
use open::Opener;

/// The Stream connections of all apps.
#[derive(Debug)]
pub struct Streams {
    /// The apps as they are configured now.
    pub apps: Arc<ArcSwap<Vec<App>>>,
    /// Rung when the configuration was taken over.
    pub reloaded: Arc<Notify>,
    /// What is done with what comes.
    pub taker: Taker,
    /// The way out.
    pub egress: Arc<Egress>,
    /// What connects.
    pub transport: Arc<Transport>,
}

/// An app that is to have a connection.
#[derive(Debug, Clone)]
struct Plan {
    app: App,
    stream: Stream,
}

/// Why a connection is replaced, or was lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reason {
    /// The gateway said that nothing more comes.
    Disconnect,
    /// It was old.
    Age,
    /// It was silent.
    Silence,
    /// The configuration says otherwise now.
    Settings,
    /// It did not answer when asked whether it lives.
    NoAnswer,
    /// The gateway closed it.
    Closed,
    /// It broke, or spoke no WebSocket.
    Broken,
}

impl Reason {
    fn label(self) -> &'static str {
        match self {
            Self::Disconnect => "disconnect",
            Self::Age => "age",
            Self::Silence => "silence",
            Self::Settings => "settings",
            Self::NoAnswer => "no_answer",
            Self::Closed => "closed",
            Self::Broken => "broken",
        }
    }
}

impl Plan {
    /// Whether a connection made by this plan is as good by the other.
    fn is_like(&self, other: &Self) -> bool {
        self.stream == other.stream
            && self.app.client_id == other.app.client_id
            && self
                .app
                .client_secret
                .matches(other.app.client_secret.expose())
    }
}

impl Streams {
    /// Keeps a connection for each app that is to have one, until stopped.
    pub async fn run(self, drain: Drain) {
        let opener = Opener {
            egress: self.egress.clone(),
            transport: self.transport.clone(),
        };
        let desk = Arc::new(Desk {
            taker: self.taker.clone(),
            complained_ms: AtomicU64::default(),
        });
        let mut plans: HashMap<String, watch::Sender<Option<Arc<Plan>>>> = HashMap::new();
        let mut keepers = JoinSet::new();
        loop {
            let apps = self.apps.load_full();
            plans.retain(|name, plan| {
                let stays = wanted(&apps).any(|(app, _)| app.name == *name);
                if !stays {
                    plan.send_replace(None);
                }
                stays
            });
            for (app, stream) in wanted(&apps) {
                let plan = Arc::new(Plan {
                    app: app.clone(),
                    stream,
                });
                if let Some(known) = plans.get(&app.name) {
                    known.send_replace(Some(plan));
                } else {
                    let (sender, changes) = watch::channel(Some(plan));
                    plans.insert(app.name.clone(), sender);
                    let keeper = Keeper::new(&app.name, opener.clone(), desk.clone());
                    keepers.spawn(keeper.run(changes, drain.clone()));
                }
            }
            tokio::select! {
                () = self.reloaded.notified() => {}
                () = drain.stopping() => break,
                Some(Err(error)) = keepers.join_next(), if !keepers.is_empty() => {
                    tracing::error!(%error, "the keeper of a Stream connection failed");
                    return;
                }
            }
        }
        while keepers.join_next().await.is_some() {}
    }
}

fn wanted(apps: &[App]) -> impl Iterator<Item = (&App, Stream)> {
    apps.iter().filter_map(|app| Some((app, app.stream?)))
}
