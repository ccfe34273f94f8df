//! The one way out to DingTalk: every call passes its limits, is judged, and teaches them.
//!
//! [`limit`] windows, pauses and breakers, in one place for all apps, robots and calls · `ends` what a window
//! remembers · `pause` a stop, and the careful start after it · [`breakers`] who is left alone because calls fail ·
//! [`call`] one request, one verdict · [`charge`] what calls cost, kept on disk so that a restart
//! passes no limit · [`ledger`] what was used of the month, [`month`] its days, [`quota`] how it is told.

pub mod breakers;
pub mod call;
pub mod charge;
mod ends;
pub mod ledger;
pub mod limit;
pub mod month;
mod pause;
pub mod quota;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::clock::Clock;
use crate::delivery::breaker::Failure;
use crate::delivery::id::short_digest;
use crate::delivery::retry::scaled;
use crate::delivery::state::Ambiguous;
use crate::delivery::verdict::{Reason, Scope, Verdict, Wait};
use crate::dingtalk::answer::{Api, BAN_MS_MIN, CARD_NOT_DELIVERED, UNREACHABLE};
use crate::health::Health;
use crate::http::transport::{Origin, Transport};
use crate::journal::Journal;
use crate::secret::Secret;
use breakers::Said;
use ledger::{Entry, Ledger, Metered};
use limit::{Full, Key, Kind, Limits, Rules, Standing};

/// A self-built app as DingTalk knows it.
#[derive(Debug, Clone)]
pub struct App {
    /// Its name in the configuration.
    pub name: String,
    /// The organisation.
    pub corp_id: String,
    /// Client ID, also called AppKey.
    pub client_id: String,
    /// Client Secret.
    pub client_secret: Secret,
    /// The robot's code; normally the Client ID.
    pub robot_code: String,
    /// The cool app's code, if the app has one.
    pub cool_app_code: Option<String>,
    /// For messages that do not say it themselves: what to do when nobody can know.
    pub ambiguous: Ambiguous,
    /// How its cards work.
    pub cards: Cards,
    /// Its Stream connection; `None`: it has none.
    pub stream: Option<Stream>,
}

/// How an app's Stream connection is kept up. All in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stream {
    /// Replaced when it is about this old.
    pub renew_ms: u64,
    /// Replaced when no frame has come for this long.
    pub silence_ms: u64,
    /// When nothing at all has come for this long, the other end is asked whether it lives.
    pub ping_ms: u64,
    /// Between two attempts to open one, at first.
    pub retry_min_ms: u64,
    /// Between two attempts, in the end.
    pub retry_max_ms: u64,
}

/// How an app's cards work.
#[derive(Debug, Clone, Default)]
pub struct Cards {
    /// How clicks on new cards come.
    pub callback: CardCallback,
    /// The name under which the callback's URL is registered; there is one with [`CardCallback::Http`].
    pub route_key: Option<String>,
    /// What DingTalk signs clicks with; without it no click is taken over HTTP.
    pub secret: Option<Secret>,
    /// Put into the private data of somebody whose click is not answered yet.
    pub pending: BTreeMap<String, String>,
    /// Whether cards are sent by the API that new apps may not use (outbound.md §4.6).
    pub legacy: bool,
}

/// How clicks on a card come: fixed when the card is made (inbound.md §4.1).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum CardCallback {
    /// Not at all.
    #[default]
    None,
    /// To the registered URL.
    Http,
    /// Over the app's Stream connection.
    Stream,
}

/// How calls leave.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The host of the new API generation.
    pub api: Origin,
    /// The host of the legacy generation and of custom robots.
    pub oapi: Origin,
    /// Of one call, in milliseconds.
    pub timeout_ms: u64,
    /// After a ban of the address for which DingTalk names no longer time, in milliseconds.
    pub ban_wait_ms: u64,
    /// The limits.
    pub rules: Rules,
    /// The month.
    pub month: ledger::Rules,
}

/// The way out.
#[derive(Debug)]
pub struct Egress {
    settings: arc_swap::ArcSwap<Settings>,
    transport: Arc<Transport>,
    journal: Journal,
    clock: Clock,
    health: Health,
    limits: Mutex<Limits>,
    ledger: Mutex<Ledger>,
    charges: charge::Charges,
    cleared: tokio::sync::Notify,
}

/// Permission for one call under every limit that covers it. It must be given back to
/// [`Egress::settle`]; one that is dropped counts as a call that was made.
#[derive(Debug)]
pub struct Permit {
    keys: Vec<Key>,
    /// What it counts under; `None`: it is exempt.
    metered: Option<Metered>,
    egress: Arc<Egress>,
    open: bool,
    /// Which message's call it is, if one's.
    message: Option<u64>,
}

/// What a call came to: to be written to disk with its result.
#[derive(Debug)]
pub struct Settled {
    keys: Vec<Key>,
    pause: Option<Pause>,
    entries: Vec<Entry>,
}

/// A limit was paused: to be written to disk with the result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pause {
    /// What.
    pub key: Key,
    /// Monotonic milliseconds.
    pub until_ms: u64,
    /// What the next one grows from, in milliseconds.
    pub step_ms: u64,
}

impl Egress {
    /// A way out with nothing charged yet.
    pub fn new(
        settings: Settings,
        transport: Arc<Transport>,
        journal: Journal,
        clock: Clock,
        health: Health,
    ) -> Self {
        let limits = Mutex::new(Limits::new(settings.rules.clone()));
        let ledger = Mutex::new(Ledger::new(settings.month.clone()));
        let settings = arc_swap::ArcSwap::from_pointee(settings);
        Self {
            settings,
            transport,
            journal,
            clock,
            health,
            limits,
            ledger,
            charges: charge::Charges::default(),
            cleared: tokio::sync::Notify::new(),
        }
    }

    /// Takes over new settings; what is charged stays charged.
    pub fn reload(&self, settings: Settings) {
        let cleared = {
            let mut limits = self.limits();
            limits.set_rules(settings.rules.clone());
            // A reload usually follows a cure: whoever was blocked, or used up, may try at once. What DingTalk
            // imposed is waited out.
            limits.clear_pauses(&[Kind::Organisation])
        };
        self.unpaused(&cleared);
        self.withdraw();
        self.ledger().set_rules(settings.month.clone());
        self.review();
        self.cleared.notify_one();
        self.settings.store(Arc::new(settings));
    }

    /// Asks for a call now.
    pub fn try_acquire(self: &Arc<Self>, keys: &[Key], critical: bool) -> Result<Permit, Full> {
        let mut keys = keys.to_vec();
        let now_ms = self.clock.mono_ms();
        let taken = self
            .ledger()
            .take(&mut keys, critical, self.clock.wall_ms());
        let metered = taken.map_err(|(key, wait_ms)| {
            crate::metrics::rate_limited(key.kind.label());
            let until_ms = now_ms + wait_ms;
            Full { key, until_ms }
        })?;
        let acquired = self.limits().acquire(&keys, critical, now_ms);
        if let Err(full) = acquired {
            if let Some(metered) = &metered {
                self.ledger().give_back(metered);
            }
            return Err(full);
        }
        Ok(Permit {
            keys,
            metered,
            egress: self.clone(),
            open: true,
            message: None,
        })
    }

    /// How many calls `key` allows now: how many of those who wait for it should try.
    pub fn capacity(&self, key: Key) -> usize {
        let month = self.ledger().capacity(key, self.clock.wall_ms());
        let limits = self.limits().capacity(key, self.clock.mono_ms());
        limits.min(month.unwrap_or(usize::MAX))
    }

    /// How the counted limits of `keys` stand.
    pub fn standing(&self, keys: &[Key], critical: bool) -> Vec<Standing> {
        let mut standing = self.limits().standing(keys, critical, self.clock.mono_ms());
        let (ledger, wall_ms) = (self.ledger(), self.clock.wall_ms());
        let month = |key: &Key| ledger.left_of_month(*key, critical, wall_ms);
        standing.extend(keys.iter().find_map(month));
        standing
    }

    /// When those who wait for `key` should try again (monotonic milliseconds, in the future).
    pub fn free_at(&self, key: Key, critical: bool) -> u64 {
        let now_ms = self.clock.mono_ms();
        let ledger = self.ledger();
        let month_ms = ledger.full_for_ms(key, critical, self.clock.wall_ms());
        drop(ledger);
        let free_ms = self.limits().free_at(key, critical, now_ms);
        month_ms.map_or(free_ms, |wait_ms| free_ms.max(now_ms + wait_ms))
    }

    /// The call was made: releases the permit, counts it, and pauses what the verdict wants paused.
    pub fn settle(&self, mut permit: Permit, verdict: &Verdict) -> Settled {
        permit.open = false;
        let now_ms = self.clock.mono_ms();
        let jitter = crate::delivery::random::share();
        self.limits().release_of(
            permit.message,
            &permit.keys,
            said_by(verdict),
            now_ms,
            jitter,
        );
        self.report_breakers(&permit.keys, verdict);
        let pause = self.pause(&permit.keys, verdict);
        let mut entries = vec![];
        if let Some(metered) = &permit.metered {
            let wall_ms = self.clock.wall_ms();
            let mut ledger = self.ledger();
            entries = ledger.book(metered, verdict, wall_ms);
            let marked = entries.iter().any(|entry| !matches!(entry, Entry::Add(..)));
            let is_news = marked || ledger.untold(&metered.meter.payer, wall_ms).is_some();
            drop(ledger);
            if is_news {
                self.review();
            }
        }
        Settled {
            keys: std::mem::take(&mut permit.keys),
            pause,
            entries,
        }
    }

    /// An open breaker is trouble that the operator should hear of.
    fn report_breakers(&self, keys: &[Key], verdict: &Verdict) {
        let Some(reason) = verdict.reason() else {
            return;
        };
        let open: Vec<_> = {
            let limits = self.limits();
            keys.iter().filter(|key| limits.is_open(**key)).collect()
        };
        for key in open {
            let what = match key.kind {
                Kind::Host => "DingTalk does not answer as it should; messages wait",
                _ => "calls for a group or a robot fail at DingTalk; its messages wait",
            };
            let text = format!(
                "{what}: {} — {} / {}",
                reason.detail, reason.fix_zh, reason.fix_en
            );
            let trouble = format!("pause/{}", key.kind.label());
            if self.health.degraded(trouble, text) {
                tracing::warn!(detail = %reason.detail, "{what}");
            }
        }
    }

    fn pause(&self, keys: &[Key], verdict: &Verdict) -> Option<Pause> {
        let now_ms = self.clock.mono_ms();
        let (scope, wait, reason) = match verdict {
            Verdict::Pause {
                scope,
                wait,
                reason,
            } => (*scope, *wait, reason),
            Verdict::Blocked { scope, reason } => (*scope, Wait::Growing(60_000), reason),
            _ => return None,
        };
        let wait = match wait {
            Wait::Fixed(BAN_MS_MIN) if scope == Scope::Egress => {
                Wait::Fixed(self.settings.load().ban_wait_ms)
            }
            // All daemons everywhere meet this one at the same moment.
            Wait::Growing(ms) if scope == Scope::Api => {
                Wait::Growing(ms + scaled(ms / 2, crate::delivery::random::share()))
            }
            wait => wait,
        };
        let kind = Kind::of(scope)?;
        // A scope that this call does not have (a webhook belongs to no app) means the narrowest one.
        let key = *keys.iter().find(|key| key.kind == kind).or(keys.last())?;
        let wall_ms = self.clock.wall_ms();
        let imposed = matches!(verdict, Verdict::Pause { .. });
        let (until_ms, step_ms) = if imposed {
            self.limits().pause(key, wait, now_ms, wall_ms)
        } else {
            self.limits().block(key, wait, now_ms, wall_ms)
        };
        let kind = key.kind;
        crate::metrics::pause(kind.label(), &reason.code);
        let until_wall_ms = wall_ms + (until_ms - now_ms);
        if self.report_pause(kind, until_wall_ms, reason) {
            tracing::warn!(
                scope = kind.label(), reason = %reason.code, detail = %reason.detail,
                fix_zh = %reason.fix_zh, fix_en = %reason.fix_en, pause_ms = until_ms - now_ms,
                "DingTalk made us pause"
            );
        }
        // What an operator can cure is tried afresh after a restart; what DingTalk imposed is waited out.
        imposed.then_some(Pause {
            key,
            until_ms,
            step_ms,
        })
    }

    /// Says on `/ready` what is paused, until when and why. Returns whether that is news.
    fn report_pause(&self, kind: Kind, until_wall_ms: u64, reason: &Reason) -> bool {
        let text = format!(
            "{} until {}: {} — {} / {}",
            kind.label(),
            crate::clock::rfc3339(until_wall_ms),
            reason.detail,
            reason.fix_zh,
            reason.fix_en
        );
        let trouble = format!("pause/{}", kind.label());
        self.health.degraded(trouble, text)
    }

    /// The permit was not used: nothing is charged.
    pub fn give_back(&self, mut permit: Permit) {
        permit.open = false;
        self.limits().give_back(&permit.keys);
        if let Some(metered) = &permit.metered {
            self.ledger().give_back(metered);
        }
    }

    /// Withdraws "degraded" of pauses that are over, and forgets idle limits.
    pub fn sweep(&self) {
        let paused = self.limits().sweep(self.clock.mono_ms());
        for kind in Kind::ALL {
            let is_paused = paused.contains(&kind);
            crate::metrics::paused(kind.label(), is_paused);
            if !is_paused {
                self.health.recovered(&format!("pause/{}", kind.label()));
            }
        }
        self.transport.sweep();
        self.review();
    }

    /// Returns when pauses were cleared: those who wait should try.
    pub async fn cleared(&self) {
        self.cleared.notified().await;
    }

    /// The host of the new API generation, as configured.
    pub fn api_host(&self) -> Origin {
        self.settings.load().api.clone()
    }

    /// Where trouble is reported.
    pub fn health(&self) -> &Health {
        &self.health
    }

    /// The clock.
    pub fn clock(&self) -> Clock {
        self.clock
    }

    fn limits(&self) -> MutexGuard<'_, Limits> {
        self.limits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Permit {
    /// It is for a call of this message: one that fails again and again says nothing new about the host.
    pub fn for_message(&mut self, seq: u64) {
        self.message = Some(seq);
    }

    /// What it covers.
    pub fn keys(&self) -> &[Key] {
        &self.keys
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if self.open {
            let now_ms = self.egress.clock.mono_ms();
            self.egress
                .limits()
                .release(&self.keys, Said::Nothing, now_ms, 0.5);
            if let Some(metered) = &self.metered {
                // The next start finds its charge without a result and writes this down.
                let mut ledger = self.egress.ledger();
                ledger.give_back(metered);
                ledger.count(&metered.meter, 1, self.egress.clock.wall_ms());
            }
        }
    }
}

/// What a call says about whoever is at the other end.
fn said_by(verdict: &Verdict) -> Said {
    match verdict {
        Verdict::Retry(reason) if reason.code == UNREACHABLE => Said::Failed(Failure::Connection),
        // That is about the card, or its template.
        Verdict::Retry(reason) if reason.code == CARD_NOT_DELIVERED => Said::Works,
        Verdict::Retry(_) | Verdict::Unknown(_) => Said::Failed(Failure::Server),
        Verdict::Sent { .. } | Verdict::SentInPart { .. } | Verdict::Dead(_) => Said::Works,
        Verdict::RefreshToken(_) | Verdict::Pause { .. } | Verdict::Blocked { .. } => Said::Nothing,
    }
}

/// What metrics call the host of this key.
pub fn host_name(host: Key) -> &'static str {
    if host == oapi() { "oapi" } else { "api" }
}

fn oapi() -> Key {
    Key::new(Kind::Host, short_digest(&[b"oapi"]))
}

/// The limits that cover a call by an app.
///
/// The organisation's key names the meter; [`Egress::try_acquire`] puts in its place the key that all who
/// share an allowance have, because which organisation pays is configured and may change.
pub fn app_keys(app: &str, api: Api, chat: Option<&str>) -> Vec<Key> {
    let label = api.label();
    let mut keys = vec![
        Key::EGRESS,
        Key::new(Kind::Host, short_digest(&[b"api"])),
        Key::new(Kind::Api, short_digest(&[label.as_bytes()])),
        app_key(app),
        Key::new(
            Kind::AppApi,
            short_digest(&[app.as_bytes(), label.as_bytes()]),
        ),
    ];
    if api.is_metered() {
        keys.insert(3, ledger::meter_key(app, api));
    }
    if let Some(chat) = chat {
        keys.push(Key::new(
            Kind::Chat,
            short_digest(&[app.as_bytes(), chat.as_bytes()]),
        ));
    }
    keys
}

/// An app as a whole.
pub fn app_key(app: &str) -> Key {
    Key::new(Kind::App, short_digest(&[app.as_bytes()]))
}

/// The limits that cover the opening of an app's Stream connection. The host's breaker is not among them:
/// a gateway that refuses connections must not hold back messages, nor they the connection.
pub fn stream_keys(app: &str) -> Vec<Key> {
    let mut keys = app_keys(app, Api::StreamOpen, None);
    keys.retain(|key| key.kind != Kind::Host);
    keys
}

/// The limits that cover a call of a custom robot.
pub fn robot_keys(robot: &str) -> Vec<Key> {
    vec![
        Key::EGRESS,
        oapi(),
        Key::new(
            Kind::Api,
            short_digest(&[Api::WebhookSend.label().as_bytes()]),
        ),
        ledger::meter_key(robot, Api::WebhookSend),
        Key::new(Kind::Robot, short_digest(&[robot.as_bytes()])),
    ]
}

impl Kind {
    fn of(scope: Scope) -> Option<Self> {
        match scope {
            Scope::Message => None,
            Scope::Robot => Some(Self::Robot),
            Scope::Chat => Some(Self::Chat),
            Scope::AppApi => Some(Self::AppApi),
            Scope::Api => Some(Self::Api),
            Scope::App => Some(Self::App),
            Scope::Organisation => Some(Self::Organisation),
            Scope::Egress => Some(Self::Egress),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delivery::verdict::Reason;

    #[test]
    fn what_is_about_one_card_says_nothing_bad_of_the_host() {
        let retry = |code| Verdict::Retry(Reason::new(code, "", "", ""));
        assert_eq!(said_by(&retry(CARD_NOT_DELIVERED)), Said::Works);
        assert_eq!(
            said_by(&retry("system_error")),
            Said::Failed(Failure::Server)
        );
    }
}
