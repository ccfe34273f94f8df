//! Everything outside the daemon: DingTalk, the platform, the network, the wall clock. What they do is
//! diced; what they saw is kept for the oracle.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use dingd::clock::Clock;
use dingd::http::transport::{Call, Failure, Played, Reply, Script};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::MINUTE_MS;
use crate::support::Dice;
use crate::support::disk::Power;

const EPOCH_MS: u64 = 1_796_000_000_000;
const TOKEN_LIFE_MS: u64 = 7_200_000;

#[derive(Debug)]
pub struct World {
    started: Instant,
    set_by_ms: &'static AtomicI64,
    outside: Mutex<Outside>,
    shows: bool,
}

#[derive(Debug)]
pub struct Outside {
    pub dice: Dice,
    pub dingtalk: Weather,
    pub platform: Weather,
    trace: DefaultHasher,
    /// What must never happen and did.
    pub faults: Vec<String>,
    token: u64,
    token_until_ms: u64,
    /// When calls arrived, by what DingTalk counts them by.
    arrivals: BTreeMap<String, Vec<u64>>,
    /// How often DingTalk took the message of that number.
    pub taken: BTreeMap<u64, u32>,
    /// What the digests said that it took.
    pub digests: BTreeSet<String>,
    /// The number that each card shows.
    pub cards: BTreeMap<String, u64>,
    /// Cards with a number that was refused, though an unanswered call may have set it before.
    refused_cards: BTreeSet<(String, u64)>,
    /// When its first call arrived, answered whatever.
    pub first_seen_ms: BTreeMap<u64, u64>,
    /// The bytes under each `msgUuid`: a repeat has the same.
    robot_bodies: BTreeMap<String, Bytes>,
    /// What each upstream saw under each id.
    pub delivered: BTreeMap<(String, String), Delivered>,
    pub calls: u64,
    /// Sends that left the daemon or were refused at the door, and those of them that arrived.
    pub sends: u64,
    pub arrived_sends: u64,
    /// When the wall clock was set forward, and when the daemon started.
    pub forward_ms: Vec<u64>,
    pub starts_ms: Vec<u64>,
    pub jumps: u32,
}

#[derive(Debug, Clone)]
pub struct Delivered {
    pub body: Bytes,
    pub taken: bool,
    pub times: u32,
}

/// How one side is at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Weather {
    Fair,
    Flaky,
    /// Nobody listens.
    Down,
    /// Connections stand, answers do not come.
    Silent,
    Busy,
    /// Refusals of the unusual kind.
    Odd,
}

/// What becomes of one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// Before the last byte.
    Refused,
    /// After the last byte; it never arrived.
    Lost,
    /// It arrived and was done; the answer never came.
    Mute,
    Answered(Kind),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Ok,
    Throttled,
    BusyWithCode,
    /// Half of those were done all the same.
    BadGateway,
    Dead,
    Ban,
    TokenRefused,
    SignatureRefused,
    InPart,
    Gone,
}

/// The network of one life of the daemon.
#[derive(Debug)]
pub struct Net {
    pub world: Arc<World>,
    /// When it is off, nothing of this life arrives any more.
    pub power: Power,
}

#[derive(Debug)]
struct Request {
    host: String,
    path: String,
    token: Option<String>,
    id: Option<String>,
    body: Bytes,
    timeout_ms: u64,
}

impl Request {
    /// Whether it carries a message or a card to DingTalk.
    fn is_send(&self) -> bool {
        let carries = ["/robot/", "/card/"];
        self.host.ends_with("dingtalk.com") && carries.iter().any(|path| self.path.contains(path))
    }
}

impl World {
    pub fn new(seed: u64) -> Arc<Self> {
        let outside = Outside {
            dice: Dice::new(seed),
            dingtalk: Weather::Fair,
            platform: Weather::Fair,
            trace: DefaultHasher::new(),
            faults: vec![],
            token: 1,
            token_until_ms: TOKEN_LIFE_MS,
            arrivals: BTreeMap::new(),
            taken: BTreeMap::new(),
            digests: BTreeSet::new(),
            cards: BTreeMap::new(),
            refused_cards: BTreeSet::new(),
            first_seen_ms: BTreeMap::new(),
            robot_bodies: BTreeMap::new(),
            delivered: BTreeMap::new(),
            calls: 0,
            sends: 0,
            arrived_sends: 0,
            forward_ms: vec![],
            starts_ms: vec![],
            jumps: 0,
        };
        Arc::new(Self {
            started: Instant::now(),
            // A few bytes a run; the clock is a plain value and lives as long as it likes.
            set_by_ms: Box::leak(Box::default()),
            outside: Mutex::new(outside),
            shows: std::env::var_os("DINGD_TRACE").is_some(),
        })
    }

    /// Milliseconds since the run began; nobody can set this.
    pub fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap()
    }

    pub async fn sleep_until(&self, at_ms: u64) {
        tokio::time::sleep_until(self.started + Duration::from_millis(at_ms)).await;
    }

    /// The clock of a process that starts now.
    pub fn clock(&self) -> Clock {
        Clock::set_by(EPOCH_MS + self.now_ms(), self.set_by_ms)
    }

    pub fn set_wall_clock(&self, by_ms: i64) {
        let now_ms = self.now_ms();
        self.set_by_ms.fetch_add(by_ms, Ordering::Relaxed);
        let mut outside = self.lock();
        outside.jumps += 1;
        if by_ms > 0 {
            outside.forward_ms.push(now_ms);
        }
        drop(outside);
        self.note(&format!("the wall clock is set by {by_ms} ms"));
    }

    pub fn lock(&self) -> MutexGuard<'_, Outside> {
        self.outside.lock().unwrap()
    }

    /// Everything that happens passes here, in order: two runs of one seed have the same trace.
    pub fn note(&self, what: &str) {
        let now_ms = self.now_ms();
        (now_ms, what).hash(&mut self.lock().trace);
        if self.shows {
            eprintln!(
                "{:>12.3} s  {what}",
                Duration::from_millis(now_ms).as_secs_f64()
            );
        }
    }

    pub fn fault(&self, what: &str) {
        self.note(what);
        let now_s = self.now_ms() / 1_000;
        self.lock().faults.push(format!("at {now_s} s: {what}"));
    }

    pub fn trace(&self) -> u64 {
        self.lock().trace.finish()
    }

    async fn exchange(&self, power: &Power, request: Request) -> Result<Reply, Failure> {
        self.lock().sends += u64::from(request.is_send());
        let (fate, there_ms, back_ms) = self.lock().fate(&request);
        let failure = |left, detail: &str| Failure {
            request_may_have_left: left,
            detail: detail.to_owned(),
        };
        match fate {
            Fate::Refused => {
                wait(there_ms).await;
                return Err(failure(false, "cannot connect"));
            }
            Fate::Lost if back_ms < 1_000 => {
                wait(there_ms).await;
                return Err(failure(true, "connection reset"));
            }
            Fate::Lost => {
                wait(request.timeout_ms).await;
                return Err(failure(true, "no answer in time"));
            }
            Fate::Mute | Fate::Answered(_) => wait(there_ms).await,
        }
        if power.is_off() {
            // Its process is gone; the task that waits here is about to be dropped.
            std::future::pending::<()>().await;
        }
        let kind = match fate {
            Fate::Answered(kind) => kind,
            _ => Kind::Ok,
        };
        let reply = self.arrive(&request, kind);
        if fate == Fate::Mute || there_ms + back_ms >= request.timeout_ms {
            wait(request.timeout_ms.saturating_sub(there_ms)).await;
            return Err(failure(true, "no answer in time"));
        }
        wait(back_ms).await;
        Ok(reply)
    }

    /// The request is there: it is counted, done or refused.
    fn arrive(&self, request: &Request, kind: Kind) -> Reply {
        let now_ms = self.now_ms();
        let number = marker(&request.body).filter(|_| digest(&request.body).is_none());
        let (reply, what) = {
            let mut outside = self.lock();
            outside.calls += 1;
            outside.arrived_sends += u64::from(request.is_send());
            let reply = match request.host.as_str() {
                "api.dingtalk.com" => outside.api(request, kind, now_ms),
                "oapi.dingtalk.com" => outside.robot(request, kind, now_ms),
                _ => outside.upstream(request, kind),
            };
            if let Some(number) = number.filter(|_| request.host.ends_with("dingtalk.com")) {
                outside.first_seen_ms.entry(number).or_insert(now_ms);
            }
            let path = request
                .path
                .split('?')
                .next()
                .unwrap_or_default()
                .to_owned();
            let what = format!(
                "{}{path} {:?} {number:?} is answered {} ({kind:?})",
                request.host, request.id, reply.status
            );
            (reply, what)
        };
        self.note(&what);
        reply
    }
}

impl Script for Net {
    fn play(&self, call: &Call<'_>) -> Played {
        let header = |wanted| {
            let found = call.headers.iter().find(|(name, _)| *name == wanted);
            found.map(|(_, value)| (*value).to_owned())
        };
        let request = Request {
            host: call.origin.host().to_owned(),
            path: call.path.to_owned(),
            token: header("x-acs-dingtalk-access-token"),
            id: header("webhook-id"),
            body: call.body.clone(),
            timeout_ms: call.timeout_ms,
        };
        let (world, power) = (self.world.clone(), self.power.clone());
        Box::pin(async move { world.exchange(&power, request).await })
    }
}

async fn wait(ms: u64) {
    tokio::time::sleep(Duration::from_millis(ms)).await;
}

/// The number in `…#n#…`.
fn marker(body: &[u8]) -> Option<u64> {
    std::str::from_utf8(body)
        .ok()?
        .split('#')
        .nth(1)?
        .parse()
        .ok()
}

/// What a digest says.
fn digest(body: &[u8]) -> Option<String> {
    let body: Value = serde_json::from_slice(body).ok()?;
    let text = match body["msgParam"].as_str() {
        Some(param) => serde_json::from_str::<Value>(param).ok()?["content"].clone(),
        None => body["text"]["content"].clone(),
    };
    let text = text.as_str()?;
    text.contains("条告警").then(|| text.to_owned())
}

impl Outside {
    fn fate(&mut self, request: &Request) -> (Fate, u64, u64) {
        let is_dingtalk = request.host.ends_with("dingtalk.com");
        let (weather, table) = if is_dingtalk {
            (self.dingtalk, DINGTALK)
        } else {
            (self.platform, PLATFORM)
        };
        let row = table.iter().find(|(known, _)| *known == weather).unwrap().1;
        let mut pick = self.dice.below(row.iter().map(|(weight, _)| weight).sum());
        let fate = row.iter().find_map(|(weight, fate)| {
            let hit = pick < *weight;
            pick = pick.saturating_sub(*weight);
            hit.then_some(*fate)
        });
        let slow = if self.dice.below(50) == 0 {
            12_000
        } else {
            300
        };
        let there_ms = (1 + self.dice.below(slow)).min(request.timeout_ms - 1);
        (fate.unwrap(), there_ms, 1 + self.dice.below(1_500))
    }

    /// Counts one arrival; DingTalk would punish the one that is too many.
    fn count(&mut self, what: &str, most: usize, window_ms: u64, now_ms: u64) {
        let times = self.arrivals.entry(what.to_owned()).or_default();
        times.push(now_ms);
        let Some(first) = times.len().checked_sub(most + 1) else {
            return;
        };
        let first_ms = times[first];
        let passed = now_ms - first_ms < window_ms;
        // After a restart only the wall clock can tell how old a charge is: one that was set forward
        // between the charge and the start makes it look older. A known gap; see the module page.
        let excused = self.forward_ms.iter().any(|set_ms| {
            let start = self
                .starts_ms
                .iter()
                .any(|start_ms| start_ms >= set_ms && *start_ms <= now_ms);
            *set_ms >= first_ms && start
        });
        if passed && !excused {
            self.faults.push(format!(
                "{} calls of {what} arrived from {first_ms} to {now_ms} ms: the limit is {most} in {window_ms}",
                most + 1
            ));
        }
    }

    fn api(&mut self, request: &Request, kind: Kind, now_ms: u64) -> Reply {
        let body: Value = serde_json::from_slice(&request.body).unwrap_or_default();
        if now_ms >= self.token_until_ms {
            self.new_token(now_ms);
        }
        self.count(&format!("api {}", request.path), 20, 1_000, now_ms);
        if request.path.ends_with("accessToken") {
            return match kind {
                Kind::BusyWithCode | Kind::Throttled => busy(),
                Kind::BadGateway => page(502),
                Kind::Ban => page(403),
                _ => {
                    let left_s = (self.token_until_ms - now_ms).div_ceil(1_000);
                    let token = format!("token-{}", self.token);
                    answer(200, &json!({"accessToken": token, "expireIn": left_s}))
                }
            };
        }
        if let Some(chat) = body["openConversationId"].as_str()
            && request.path.contains("groupMessages")
        {
            self.count(&format!("chat {chat}"), 20, 60_000, now_ms);
        }
        let stale = request.token != Some(format!("token-{}", self.token));
        if kind == Kind::TokenRefused || stale {
            if !stale {
                self.new_token(now_ms);
            }
            return answer(
                401,
                &json!({"code": "InvalidAuthentication", "message": "x"}),
            );
        }
        if request.path.contains("/card/") {
            return self.card(&request.path, kind, &body);
        }
        let users: Vec<_> = body["userIds"].as_array().cloned().unwrap_or_default();
        let done = json!({"processQueryKey": format!("key-{now_ms}"), "title": "name", "success": true,
            "invalidStaffIdList": [], "flowControlledStaffIdList": []});
        match kind {
            Kind::Throttled => answer(403, &json!({"code": "send.too.fast", "message": "x"})),
            Kind::BusyWithCode => busy(),
            Kind::BadGateway => self.bad_gateway(request),
            Kind::Ban => page(403),
            Kind::Dead => answer(400, &json!({"code": "robot.oto.notExist", "message": "x"})),
            Kind::InPart if users.len() > 1 => {
                self.take(request);
                let mut part = done;
                part["flowControlledStaffIdList"] = json!([users[0]]);
                answer(200, &part)
            }
            _ => {
                self.take(request);
                answer(200, &done)
            }
        }
    }

    fn card(&mut self, path: &str, kind: Kind, body: &Value) -> Reply {
        match kind {
            Kind::Throttled => answer(403, &json!({"code": "send.too.fast", "message": "x"})),
            Kind::BusyWithCode => busy(),
            Kind::Ban => page(403),
            Kind::Dead => {
                if let (name, Some(number)) = numbered_card(body) {
                    self.refused_cards.insert((name, number));
                }
                answer(400, &json!({"code": "param.contentUnsafe", "message": "x"}))
            }
            Kind::BadGateway => {
                if self.dice.below(2) == 0 {
                    self.do_card(path, body);
                }
                page(502)
            }
            _ => self.do_card(path, body),
        }
    }

    fn do_card(&mut self, path: &str, body: &Value) -> Reply {
        let (name, number) = numbered_card(body);
        let refused = |code: &str| answer(400, &json!({"code": code, "message": "x"}));
        let known = self.cards.get(&name).copied();
        if path.ends_with("createAndDeliver") {
            if known.is_some() {
                return refused("param.cardAlreadyExist");
            }
            self.cards.insert(name, number.unwrap_or(0));
        } else {
            let Some(known) = known else {
                return refused("param.cardNotExist");
            };
            if let Some(number) = number {
                let was_refused = self.refused_cards.contains(&(name.clone(), known));
                if number < known && !was_refused {
                    let fault = format!("card {name} was set to {number} after {known}");
                    self.faults.push(fault);
                }
                self.cards.insert(name, number);
                return answer(200, &json!({"success": true, "result": true}));
            }
        }
        let spaces = body["openSpaceId"].as_str().unwrap_or_default();
        let spaces = spaces.trim_start_matches("dtv1.card//").split(';');
        let results: Vec<_> = spaces
            .map(|space| {
                json!({"spaceId": space.split_once('.').map(|(_, id)| id),
                "success": true, "carrierId": "carrier"})
            })
            .collect();
        if path.ends_with("createAndDeliver") {
            answer(
                200,
                &json!({"success": true, "result": {"deliverResults": results}}),
            )
        } else {
            answer(200, &json!({"success": true, "result": results}))
        }
    }

    fn robot(&mut self, request: &Request, kind: Kind, now_ms: u64) -> Reply {
        let token = request
            .path
            .split("access_token=")
            .nth(1)
            .unwrap_or_default();
        let token = token.split('&').next().unwrap_or_default().to_owned();
        self.count(&format!("robot {token}"), 20, 60_000, now_ms);
        let body: Value = serde_json::from_slice(&request.body).unwrap_or_default();
        let key = body["msgUuid"].as_str().unwrap_or_default().to_owned();
        let first = self.robot_bodies.entry(key.clone());
        if *first.or_insert_with(|| request.body.clone()) != request.body {
            self.faults
                .push(format!("msgUuid {key:?} came with other bytes"));
        }
        let errcode = |code: i64| answer(200, &json!({"errcode": code, "errmsg": "x"}));
        match kind {
            Kind::Throttled => errcode(130_101),
            Kind::BusyWithCode => busy(),
            Kind::BadGateway => self.bad_gateway(request),
            Kind::Ban => page(403),
            Kind::Dead => errcode(400_102),
            Kind::SignatureRefused => errcode(310_000),
            _ => {
                self.take(request);
                errcode(0)
            }
        }
    }

    fn upstream(&mut self, request: &Request, kind: Kind) -> Reply {
        let taken = !matches!(kind, Kind::BusyWithCode | Kind::Gone | Kind::Throttled);
        let key = (request.host.clone(), request.id.clone().unwrap_or_default());
        let known = self.delivered.entry(key).or_insert_with(|| Delivered {
            body: request.body.clone(),
            taken: false,
            times: 0,
        });
        known.times += 1;
        known.taken |= taken;
        if known.body != request.body {
            self.faults
                .push(format!("{:?} came with other bytes", request.id));
        }
        match kind {
            Kind::BusyWithCode => answer(503, &json!({})),
            Kind::Throttled => answer(500, &json!({})),
            Kind::Gone => answer(410, &json!({})),
            _ => answer(204, &json!({})),
        }
    }

    fn bad_gateway(&mut self, request: &Request) -> Reply {
        if self.dice.below(2) == 0 {
            self.take(request);
        }
        page(502)
    }

    fn take(&mut self, request: &Request) {
        if let Some(text) = digest(&request.body) {
            self.digests.insert(text);
        } else if let Some(number) = marker(&request.body) {
            *self.taken.entry(number).or_default() += 1;
        }
    }

    /// DingTalk gives the same token for its whole life.
    fn new_token(&mut self, now_ms: u64) {
        self.token += 1;
        self.token_until_ms = now_ms + TOKEN_LIFE_MS;
    }

    /// Another weather, and for how long.
    pub fn change_weather(&mut self, dingtalk: bool) -> u64 {
        let was = if dingtalk {
            self.dingtalk
        } else {
            self.platform
        };
        let bad = [
            Weather::Flaky,
            Weather::Flaky,
            Weather::Down,
            Weather::Silent,
            Weather::Busy,
            Weather::Odd,
        ];
        let (next, lasts_ms) = if was == Weather::Fair {
            let pick = usize::try_from(self.dice.below(6)).unwrap();
            // From seconds to hours, each scale as often.
            let scale_ms = 5_000 << self.dice.below(12);
            (bad[pick], scale_ms + self.dice.below(scale_ms))
        } else {
            (
                Weather::Fair,
                5 * MINUTE_MS + self.dice.below(180 * MINUTE_MS),
            )
        };
        if dingtalk {
            self.dingtalk = next;
        } else {
            self.platform = next;
        }
        lasts_ms
    }

    /// What somebody took.
    pub fn ids(&self) -> BTreeSet<&str> {
        let taken = self.delivered.iter().filter(|(_, seen)| seen.taken);
        taken.map(|((_, id), _)| id.as_str()).collect()
    }
}

fn answer(status: u16, body: &Value) -> Reply {
    Reply {
        status,
        body: Bytes::from(body.to_string()),
        body_complete: true,
        retry_after_s: None,
        date: None,
    }
}

fn busy() -> Reply {
    answer(500, &json!({"code": "system.busy", "message": "x"}))
}

fn page(status: u16) -> Reply {
    Reply {
        body: Bytes::from_static(b"<html><body>no</body></html>"),
        ..answer(status, &Value::Null)
    }
}

type Row = &'static [(u64, Fate)];

const fn says(kind: Kind) -> Fate {
    Fate::Answered(kind)
}

const DINGTALK: &[(Weather, Row)] = &[
    (
        Weather::Fair,
        &[
            (970, says(Kind::Ok)),
            (15, says(Kind::InPart)),
            (5, says(Kind::BusyWithCode)),
            (5, Fate::Refused),
            (5, says(Kind::Dead)),
        ],
    ),
    (
        Weather::Flaky,
        &[
            (50, says(Kind::Ok)),
            (10, says(Kind::InPart)),
            (10, Fate::Refused),
            (5, Fate::Lost),
            (5, Fate::Mute),
            (3, says(Kind::Throttled)),
            (8, says(Kind::BusyWithCode)),
            (6, says(Kind::BadGateway)),
            (3, says(Kind::Dead)),
            (1, says(Kind::Ban)),
            (3, says(Kind::TokenRefused)),
            (3, says(Kind::SignatureRefused)),
        ],
    ),
    (Weather::Down, &[(1, Fate::Refused)]),
    (Weather::Silent, &[(1, Fate::Lost), (1, Fate::Mute)]),
    (
        Weather::Busy,
        &[
            (70, says(Kind::BusyWithCode)),
            (20, says(Kind::BadGateway)),
            (10, says(Kind::Ok)),
        ],
    ),
    (
        Weather::Odd,
        &[
            (30, says(Kind::Throttled)),
            (10, says(Kind::Ban)),
            (30, says(Kind::TokenRefused)),
            (30, says(Kind::Ok)),
        ],
    ),
];

const PLATFORM: &[(Weather, Row)] = &[
    (
        Weather::Fair,
        &[(99, says(Kind::Ok)), (1, says(Kind::BusyWithCode))],
    ),
    (
        Weather::Flaky,
        &[
            (50, says(Kind::Ok)),
            (15, says(Kind::BusyWithCode)),
            (10, says(Kind::Throttled)),
            (10, Fate::Refused),
            (5, Fate::Lost),
            (10, Fate::Mute),
        ],
    ),
    (Weather::Down, &[(1, Fate::Refused)]),
    (Weather::Silent, &[(1, Fate::Lost), (1, Fate::Mute)]),
    (
        Weather::Busy,
        &[(90, says(Kind::BusyWithCode)), (10, says(Kind::Ok))],
    ),
    (
        Weather::Odd,
        &[(50, says(Kind::Gone)), (50, says(Kind::Ok))],
    ),
];

/// Which card a call is about, and the number that it is to show.
fn numbered_card(body: &Value) -> (String, Option<u64>) {
    let name = body["outTrackId"].as_str().unwrap_or_default().to_owned();
    let number = body["cardData"]["cardParamMap"]["n"].as_str();
    (name, number.and_then(|number| number.parse().ok()))
}
