//! Both flows of the daemon, with its own wiring, in a world of dice: no socket, no file, no thread, no
//! real time. One seed decides arrivals, answers, delays, power cuts, stops and steps of the wall clock.
//! Afterwards everything settles, and the oracle looks at what the store, DingTalk and the platform have.
//!
//! A failure names its seed: `DINGD_SEED=<seed> cargo test --test it simulation` repeats it, with
//! `DINGD_TRACE=1` it is told step by step, and `DINGD_LONG=1` runs two thousand seeds
//! (any other number: as many).
//!
//! What the oracle excuses: a limit that is passed because the wall clock was set *forward* between a call
//! and a restart. After a restart only the wall clock can tell how old a charge is.

mod life;
mod oracle;
mod world;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use dingd::delivery::id::{MessageId, digest, event_id};
use dingd::delivery::random;
use dingd::dingtalk::event;
use dingd::http::audit::Who;
use dingd::inbound::accept::Accepted;
use dingd::inbound::apply::meaning;
use dingd::inbound::verify::Verified;
use dingd::outbound::accept::Once;
use dingd::outbound::cards::accept::Patching;
use dingd::outbound::cards::ask;
use dingd::outbound::lane::Command;
use dingd::outbound::request;
use serde_json::{Value, json};

use self::life::{Disks, Life};
use self::oracle::Tally;
use self::world::World;
use crate::support::Dice;

const MINUTE_MS: u64 = 60_000;
const HOUR_MS: u64 = 60 * MINUTE_MS;
/// Rarer than in the daemon, which would look at everything that has ended every half minute.
const UPKEEP_MS: u64 = 40 * MINUTE_MS;
/// What waits at the end has this long: the longest lifetime, and what clocks were set back by.
const SETTLES_MS: u64 = 48 * HOUR_MS;

/// A callback that DingTalk sends until it is answered.
#[derive(Debug)]
pub struct Callback {
    text: String,
    /// Another encryption of the same event has other bytes.
    encryptions: u64,
    pub event_id: String,
    pub acknowledged_ms: Option<u64>,
}

/// A message that a client sends until it is accepted.
#[derive(Debug)]
pub struct Message {
    body: String,
    key: Option<String>,
    pub lifetime_ms: u64,
    /// Each `Ok`, heard by the client or not.
    pub accepted: Vec<(u64, MessageId)>,
    pub heard: bool,
    pub cancelled: bool,
}

#[derive(Debug)]
enum Deed {
    Callback(usize),
    Message(usize),
    Cancel(usize),
    /// Makes the card of that number, or changes it to a higher number.
    Card(u64, u64),
    Weather {
        dingtalk: bool,
    },
    Upkeep,
    Jump,
    Cut,
    Stop,
    Start,
}

pub struct Simulation {
    world: Arc<World>,
    machine: Machine,
    dice: Dice,
    agenda: BTreeMap<(u64, u64), Deed>,
    deeds: u64,
    disks: Disks,
    life: Option<Life>,
    purges: bool,
    inbound_lifetime_ms: u64,
    pub callbacks: Vec<Callback>,
    pub messages: Vec<Message>,
    /// The number that was accepted last for each card.
    pub cards: BTreeMap<String, u64>,
    /// From now on nothing goes wrong.
    calm: bool,
    cuts: u32,
    tally: Tally,
}

/// What a run did.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Report {
    trace: u64,
    ran_ms: u64,
    callbacks: usize,
    messages: usize,
    calls: u64,
    starts: usize,
    cuts: u32,
    jumps: u32,
    tally: Tally,
    faults: Vec<String>,
}

/// What happens to the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Machine {
    /// Power cuts, stops, and a wall clock that is set forward and back.
    Troubled,
    /// Nothing but a wall clock that is set forward, often in the midst of a storm.
    SetForward,
}

/// Runs one seed from beginning to end.
fn simulate(seed: u64, machine: Machine) -> Report {
    random::seed_this_thread(seed);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    runtime.block_on(async {
        let mut simulation = Simulation::new(seed, machine);
        simulation.run().await;
        simulation.report()
    })
}

impl Simulation {
    fn new(seed: u64, machine: Machine) -> Self {
        let mut dice = Dice::new(seed ^ 0x5eed);
        let inbound_lifetime_ms = [HOUR_MS, 7 * 24 * HOUR_MS][usize::from(dice.below(3) > 0)];
        Self {
            world: World::new(seed),
            machine,
            purges: dice.below(4) == 0,
            dice,
            agenda: BTreeMap::new(),
            deeds: 0,
            disks: Disks::default(),
            life: None,
            inbound_lifetime_ms,
            callbacks: vec![],
            messages: vec![],
            cards: BTreeMap::new(),
            calm: false,
            cuts: 0,
            tally: Tally::new(),
        }
    }

    fn plan(&mut self, at_ms: u64, deed: Deed) {
        self.deeds += 1;
        self.agenda.insert((at_ms, self.deeds), deed);
    }

    /// A delay of any scale from `least_ms` on: up to 2 to the power of `doublings` times that.
    fn any_scale(&mut self, least_ms: u64, doublings: u64) -> u64 {
        let scale_ms = least_ms << self.dice.below(doublings);
        scale_ms + self.dice.below(scale_ms)
    }

    async fn run(&mut self) {
        let horizon_ms = 24 * HOUR_MS + self.dice.below(48 * HOUR_MS);
        self.disks.format();
        self.foresee(horizon_ms);
        self.start();
        self.carry_on(horizon_ms).await;
        self.calm_down();
        let end_ms = horizon_ms + SETTLES_MS;
        while !self.is_settled() && self.world.now_ms() < end_ms && !self.has_failed() {
            let next_ms = self.world.now_ms() + 10 * MINUTE_MS;
            self.carry_on(next_ms).await;
        }
        if !self.is_settled() && !self.has_failed() {
            self.world.fault("it does not settle");
        }
        if let Some(life) = self.life.take() {
            self.tally = oracle::judge(self, &life);
            self.stop(life).await;
        }
    }

    /// Everything that comes from outside.
    fn foresee(&mut self, horizon_ms: u64) {
        for dingtalk in [true, false] {
            self.plan(0, Deed::Weather { dingtalk });
        }
        self.plan(UPKEEP_MS, Deed::Upkeep);
        let mut at_ms = 0;
        while at_ms < horizon_ms {
            at_ms += self.any_scale(100, 18);
            if self.dice.below(15) == 0 {
                self.storm(at_ms);
            }
            let burst = if self.dice.below(12) == 0 { 40 } else { 3 };
            for _ in 0..=self.dice.below(burst) {
                let gap_ms = self.dice.below(2_000);
                if self.dice.below(2) == 0 {
                    self.callback(at_ms + gap_ms);
                } else {
                    let to = self.somebody();
                    self.message(at_ms + gap_ms, &to);
                }
            }
        }
        at_ms = 0;
        for card in 0.. {
            // Few: whoever reads brings the tables up to the log, and a card is read at every step.
            at_ms += self.any_scale(15 * MINUTE_MS, 7);
            if at_ms >= horizon_ms {
                break;
            }
            let mut then_ms = at_ms;
            for number in 0..=self.dice.below(5) {
                self.plan(then_ms, Deed::Card(card, number));
                then_ms += self.any_scale(5, 20);
            }
        }
        at_ms = 0;
        while at_ms < horizon_ms {
            at_ms += self.any_scale(MINUTE_MS, 10);
            let deed = match self.dice.below(6) {
                _ if self.machine == Machine::SetForward => Deed::Jump,
                0 => Deed::Jump,
                1 => Deed::Stop,
                _ => Deed::Cut,
            };
            self.plan(at_ms, deed);
        }
    }

    fn callback(&mut self, at_ms: u64) {
        let n = self.callbacks.len();
        let chat = format!("cidchat{}", self.dice.below(4));
        let kind = match self.dice.below(12) {
            0 => "im_cool_app_uninstall",
            1..4 => "im_cool_app_install",
            4..8 => "chat_update_title",
            _ => "bpms_task_change",
        };
        let mut text = json!({"EventType": kind, "number": format!("#cb{n}#"), "timeStamp": at_ms});
        if kind != "bpms_task_change" {
            text["openConversationId"] = json!(chat);
            text["operateTime"] = json!(at_ms);
            text["title"] = json!(format!("title {n}"));
        }
        if self.dice.below(3) > 0 {
            text["eventId"] = json!(format!("event-{n}"));
        }
        self.callbacks.push(Callback {
            text: text.to_string(),
            encryptions: 0,
            event_id: event_id(&same_event(n)),
            acknowledged_ms: None,
        });
        self.plan(at_ms, Deed::Callback(n));
    }

    /// Much more for one target than DingTalk takes in a minute, and a power cut in the midst of it.
    fn storm(&mut self, at_ms: u64) {
        let to = [
            json!({"robot": "robot-0"}),
            json!({"robot": "robot-1"}),
            json!({"chat": "cidchat0"}),
        ];
        let to = to[pick(&mut self.dice, 3)].clone();
        // Half of them within the time that the tables may be behind the log.
        let span_ms = [20, 20_000][pick(&mut self.dice, 2)];
        for _ in 0..30 + self.dice.below(30) {
            let gap_ms = self.dice.below(span_ms);
            self.message(at_ms + gap_ms, &to);
        }
        for _ in 0..self.dice.below(3) {
            let then_ms = at_ms + self.dice.below(3 * span_ms);
            let deed = match self.machine {
                Machine::Troubled => Deed::Cut,
                Machine::SetForward => Deed::Jump,
            };
            self.plan(then_ms, deed);
        }
    }

    fn somebody(&mut self) -> Value {
        match self.dice.below(10) {
            0..6 => json!({"robot": format!("robot-{}", self.dice.below(2))}),
            6..8 => json!({"chat": format!("cidchat{}", self.dice.below(4))}),
            8 => {
                let people = 1 + self.dice.below(45);
                json!({"users": (0..people).map(|n| format!("u{n}")).collect::<Vec<_>>()})
            }
            _ => json!({"accounts": ["a1"]}),
        }
    }

    fn message(&mut self, at_ms: u64, to: &Value) {
        let n = self.messages.len();
        let (priority, hours) =
            [("critical", 24), ("high", 12), ("normal", 4), ("low", 1)][pick(&mut self.dice, 4)];
        let ambiguous = ["retry", "retry", "hold", "drop"][pick(&mut self.dice, 4)];
        let mut body = json!({"to": to, "priority": priority,
            "content": {"text": {"content": format!("alert #{n}#")}},
            "ambiguous": ambiguous});
        let mut lifetime_ms = hours * HOUR_MS;
        if self.dice.below(5) == 0 {
            let seconds = 1 + self.dice.below(3_600);
            body["expires_in_s"] = json!(seconds);
            lifetime_ms = lifetime_ms.min(seconds * 1_000);
        }
        self.messages.push(Message {
            body: body.to_string(),
            key: (self.dice.below(3) > 0).then(|| format!("key-{n}")),
            lifetime_ms,
            accepted: vec![],
            heard: false,
            cancelled: false,
        });
        self.plan(at_ms, Deed::Message(n));
    }

    /// Does what is planned until then.
    async fn carry_on(&mut self, until_ms: u64) {
        while let Some(((at_ms, _), _)) = self.agenda.first_key_value()
            && *at_ms <= until_ms
            && !self.has_failed()
        {
            let ((at_ms, _), deed) = self.agenda.pop_first().unwrap();
            self.sleep_until(at_ms).await;
            self.act(deed).await;
        }
        self.sleep_until(until_ms).await;
    }

    /// Waits, and notices when the daemon ends meanwhile.
    async fn sleep_until(&mut self, at_ms: u64) {
        let Some(life) = &mut self.life else {
            return self.world.sleep_until(at_ms).await;
        };
        tokio::select! {
            biased;
            () = life.ended() => {}
            () = self.world.sleep_until(at_ms) => return,
        }
        if life.power.is_off() {
            self.cut().await;
        } else {
            self.world.fault("a part of the daemon ended by itself");
        }
        self.world.sleep_until(at_ms).await;
    }

    async fn act(&mut self, deed: Deed) {
        match deed {
            Deed::Callback(n) => self.send_callback(n).await,
            Deed::Message(n) => self.send_message(n).await,
            Deed::Cancel(n) => self.cancel(n).await,
            Deed::Card(card, number) => self.send_card(card, number).await,
            Deed::Weather { dingtalk } => {
                let lasts_ms = self.world.lock().change_weather(dingtalk);
                self.plan(self.world.now_ms() + lasts_ms, Deed::Weather { dingtalk });
            }
            Deed::Upkeep => {
                if let Some(life) = &self.life {
                    life.keep_up();
                }
                self.plan(self.world.now_ms() + UPKEEP_MS, Deed::Upkeep);
            }
            Deed::Jump => {
                let by_ms = i64::try_from(self.any_scale(1_000, 13)).unwrap();
                let back = self.dice.below(2) == 0 && self.machine == Machine::Troubled;
                self.world.set_wall_clock(if back { -by_ms } else { by_ms });
            }
            Deed::Cut => {
                let operations = self.dice.below(12);
                if let Some(life) = &self.life {
                    life.power.cut_after(u32::try_from(operations).unwrap());
                    if operations == 0 {
                        self.cut().await;
                    }
                }
            }
            Deed::Stop => {
                if let Some(life) = self.life.take() {
                    self.stop(life).await;
                    let down_ms = self.any_scale(200, 10);
                    self.plan(self.world.now_ms() + down_ms, Deed::Start);
                }
            }
            Deed::Start => self.start(),
        }
    }

    fn start(&mut self) {
        self.world.note("start");
        let now_ms = self.world.now_ms();
        self.world.lock().starts_ms.push(now_ms);
        let keep_finished_s = if self.purges { 3_600 } else { 90 * 86_400 };
        match Life::start(
            &self.disks,
            &self.world,
            keep_finished_s,
            self.inbound_lifetime_ms,
        ) {
            Ok(life) => self.life = Some(life),
            Err(error) => self.world.fault(&format!("it does not start: {error}")),
        }
    }

    async fn cut(&mut self) {
        let Some(life) = self.life.take() else { return };
        self.world.note("the power is cut");
        self.cuts += 1;
        life.power.cut_after(0);
        life.drop_dead(&self.world).await;
        let dice = &mut self.dice;
        self.disks = self
            .disks
            .after_cut(&mut |end| usize::try_from(dice.below(end as u64)).unwrap());
        // Often it is back at once, while DingTalk's windows still count.
        let scales = [4, 13][pick(&mut self.dice, 2)];
        let down_ms = self.any_scale(200, scales);
        self.plan(self.world.now_ms() + down_ms, Deed::Start);
    }

    async fn stop(&mut self, life: Life) {
        self.world.note("stop");
        if let Err(error) = life.stop().await {
            self.world.fault(&error);
        }
        self.disks = self.disks.after_cut(&mut |_| 0);
    }

    fn calm_down(&mut self) {
        self.calm = true;
        self.agenda.retain(|_, deed| {
            !matches!(
                deed,
                Deed::Weather { .. } | Deed::Jump | Deed::Cut | Deed::Stop
            )
        });
        let mut outside = self.world.lock();
        (outside.dingtalk, outside.platform) = (world::Weather::Fair, world::Weather::Fair);
        drop(outside);
        if let Some(life) = &self.life {
            life.power.restore();
        }
    }

    fn is_settled(&self) -> bool {
        let idle = |deed: &Deed| matches!(deed, Deed::Upkeep);
        self.agenda.values().all(idle) && self.life.as_ref().is_some_and(Life::is_idle)
    }

    fn has_failed(&self) -> bool {
        !self.world.lock().faults.is_empty()
    }

    /// Whether the answer gets lost on its way.
    fn is_unheard(&mut self) -> bool {
        !self.calm && self.dice.below(20) == 0
    }

    async fn send_callback(&mut self, n: usize) {
        let again_ms = self.world.now_ms() + self.any_scale(5_000, 8);
        let Some(life) = &self.life else {
            return self.plan(again_ms, Deed::Callback(n));
        };
        let callback = &mut self.callbacks[n];
        callback.encryptions += self.dice.below(2);
        let bytes = [n as u64, callback.encryptions]
            .map(u64::to_be_bytes)
            .concat();
        let verified = Verified {
            meaning: meaning(&event::parse(&callback.text).unwrap(), &callback.text),
            ask: None,
            same_bytes: digest(&[b"bytes", &bytes]),
            same_event: same_event(n),
        };
        let settings = life.inbox.settings.load_full();
        let accepted = life.inbox.accept(&settings.apps["oncall"], verified).await;
        let good = matches!(accepted, Accepted::New | Accepted::Duplicate);
        let off = life.power.is_off();
        self.world.note(&format!("callback {n}: {accepted:?}"));
        if !good && !off {
            self.world
                .fault(&format!("callback {n} was not stored and nobody knows why"));
        }
        if good && !off {
            let now_ms = self.world.now_ms();
            self.callbacks[n].acknowledged_ms.get_or_insert(now_ms);
        }
        if !good || self.is_unheard() {
            self.plan(again_ms, Deed::Callback(n));
        }
    }

    async fn send_message(&mut self, n: usize) {
        let again_ms = self.world.now_ms() + self.any_scale(1_000, 8);
        let Some(life) = &self.life else {
            return self.plan(again_ms, Deed::Message(n));
        };
        let message = &self.messages[n];
        let answer = life
            .accept(message.body.as_bytes(), message.key.as_deref())
            .await;
        let off = life.power.is_off();
        self.world.note(&format!("message {n}: {answer:?}"));
        match answer {
            Ok(id) if !off => {
                let now_ms = self.world.now_ms();
                let first = message.accepted.first().map(|(_, id)| *id);
                if message.key.is_some() && first.is_some_and(|first| first != id) {
                    self.world.fault(&format!("message {n}: one key, two ids"));
                }
                let unheard = message.key.is_some() && self.is_unheard();
                let message = &mut self.messages[n];
                message.accepted.push((now_ms, id));
                message.heard = !unheard;
                if unheard {
                    self.plan(again_ms, Deed::Message(n));
                } else if self.dice.below(20) == 0 {
                    let later_ms = now_ms + self.any_scale(100, 12);
                    self.plan(later_ms, Deed::Cancel(n));
                }
            }
            Ok(_) => self.plan(again_ms, Deed::Message(n)),
            Err("store_failed") if off => self.plan(again_ms, Deed::Message(n)),
            // Nobody may send there: that is an answer.
            Err("chat_uninstalled") => {}
            Err(slug) => self
                .world
                .fault(&format!("message {n} was refused: {slug}")),
        }
    }

    async fn send_card(&mut self, card: u64, number: u64) {
        let now_ms = self.world.now_ms();
        let again_ms = now_ms + self.any_scale(1_000, 8);
        let Some(life) = &self.life else {
            // Whoever asks for changes asks again, in their order.
            return self.plan(again_ms, Deed::Card(card, number));
        };
        let name = format!("card-{card}");
        // One who has asked for a later one already does not go back.
        if self.cards.get(&name).is_some_and(|last| *last >= number) {
            return;
        }
        let priority = ["critical", "high", "normal", "low"][pick(&mut self.dice, 4)];
        let data = json!({"n": number.to_string()});
        let answer = if number == 0 {
            let to = match card % 3 {
                0 => json!({"chat": format!("cidchat{}", card % 4)}),
                1 => json!({"users": ["u1", "u2"]}),
                _ => json!({"users": (0..25).map(|n| format!("u{n}")).collect::<Vec<_>>()}),
            };
            let body = json!({"template_id": "t", "out_track_id": name, "to": to, "data": data,
                "priority": priority});
            life.accept_card(&body).await
        } else {
            let body = json!({"data": data, "priority": priority});
            life.change_card(&name, &body).await
        };
        let off = life.power.is_off();
        self.world
            .note(&format!("{name} is to show {number}: {answer:?}"));
        match answer {
            Ok(()) if !off => drop(self.cards.insert(name, number)),
            // It is there already; nobody had heard it.
            Err("card_exists") => drop(self.cards.insert(name, number)),
            Ok(()) => self.plan(again_ms, Deed::Card(card, number)),
            Err("store_failed") if off => self.plan(again_ms, Deed::Card(card, number)),
            // Nobody may send there, or the card was never made.
            Err("chat_uninstalled" | "card_not_found" | "card_not_sent") => {}
            Err(slug) => self.world.fault(&format!("{name} was refused: {slug}")),
        }
    }

    async fn cancel(&mut self, n: usize) {
        let (Some(life), Some((_, id))) = (&self.life, self.messages[n].accepted.last()) else {
            return;
        };
        let (answer, mut told) = tokio::sync::oneshot::channel();
        let command = Command::Cancel {
            seq: id.seq(),
            answer,
        };
        if life.commands.send(command).await.is_err() {
            return;
        }
        let at_ms = self.world.now_ms() + 1;
        self.sleep_until(at_ms).await;
        let in_time = told.try_recv().unwrap_or(false);
        self.world
            .note(&format!("message {n} is withdrawn: {in_time}"));
        self.messages[n].cancelled = in_time;
    }

    fn report(&self) -> Report {
        let outside = self.world.lock();
        let faults = outside.faults.clone();
        let (calls, starts, jumps) = (outside.calls, outside.starts_ms.len(), outside.jumps);
        drop(outside);
        Report {
            trace: self.world.trace(),
            ran_ms: self.world.now_ms(),
            callbacks: self.callbacks.len(),
            messages: self.messages.len(),
            calls,
            starts,
            cuts: self.cuts,
            jumps,
            tally: self.tally.clone(),
            faults,
        }
    }
}

impl Life {
    /// What the API does with a request.
    async fn accept(&self, body: &[u8], key: Option<&str>) -> Result<MessageId, &'static str> {
        let settings = self.outbox.settings.load_full();
        let client = &settings.clients[0];
        let slug = |problem: dingd::http::problem::Problem| problem.slug();
        let once = self
            .outbox
            .once(&client.name, key, body)
            .await
            .map_err(slug)?;
        if let Once::Replayed(answer) = once {
            return Ok(answer.id);
        }
        let asked = request::parse(body, client, &settings, &self.inbox.chats).map_err(slug)?;
        self.outbox.admit(asked.priority).map_err(slug)?;
        let answer = self.outbox.accept(asked, once).await.map_err(slug)?;
        Ok(answer.id)
    }
}

impl Life {
    async fn accept_card(&self, body: &Value) -> Result<(), &'static str> {
        let settings = self.outbox.settings.load_full();
        let (client, body) = (&settings.clients[0], body.to_string());
        let slug = |problem: dingd::http::problem::Problem| problem.slug();
        let asked = ask::card(body.as_bytes(), client, &settings, &self.inbox.chats);
        let asked = asked.map_err(slug)?;
        self.outbox.admit(asked.priority).map_err(slug)?;
        let accepted = self.outbox.accept(asked, Once::Unkeyed).await;
        accepted.map(drop).map_err(slug)
    }

    async fn change_card(&self, name: &str, body: &Value) -> Result<(), &'static str> {
        let settings = self.outbox.settings.load_full();
        let (client, body) = (&settings.clients[0], body.to_string());
        let slug = |problem: dingd::http::problem::Problem| problem.slug();
        let change = ask::change(body.as_bytes(), client).map_err(slug)?;
        let who = Who::Client(client.name.clone());
        let patching = Patching {
            app: "oncall",
            out_track_id: name,
            patch: change.patch,
            priority: change.priority,
            most_urgent: client.max_priority,
            who: Some(&who),
            not_before_ms: 0,
        };
        let accepted = self.outbox.patch(patching, Once::Unkeyed).await;
        accepted.map(drop).map_err(slug)
    }
}

fn same_event(n: usize) -> [u8; 16] {
    digest(&[b"event", &n.to_be_bytes()])
}

fn pick(dice: &mut Dice, end: u64) -> usize {
    usize::try_from(dice.below(end)).unwrap()
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn told(seed: u64, report: &Report) -> String {
    format!(
        "seed {seed} failed:\n  {}\nrepeat it with: DINGD_SEED={seed} cargo test --test it simulation",
        report.faults.join("\n  ")
    )
}

#[test]
fn thousands_of_hours_lose_nothing_settle_everything_once_and_pass_no_limit() {
    let (first, runs) = match number("DINGD_SEED") {
        Some(seed) => (seed, 1),
        None => match number("DINGD_LONG") {
            None => (1, RUNS),
            Some(1) => (1_000, 2_000),
            Some(runs) => (1_000, runs),
        },
    };
    let next = AtomicU64::new(first);
    let hours_ms = AtomicU64::new(0);
    let all = std::sync::Mutex::new(Tally::new());
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= first + runs {
                return;
            }
            let report = simulate(seed, Machine::Troubled);
            hours_ms.fetch_add(report.ran_ms, Ordering::Relaxed);
            if runs == 1 {
                eprintln!("{report:#?}");
            }
            for (what, times) in &report.tally {
                *all.lock().unwrap().entry(what.clone()).or_default() += times;
            }
            if !report.faults.is_empty() {
                next.store(first + runs, Ordering::Relaxed);
                panic!("{}", told(seed, &report));
            }
        }
    };
    std::thread::scope(|scope| {
        let threads = [scope.spawn(work), scope.spawn(work)];
        for thread in threads {
            thread.join().unwrap();
        }
    });
    let (hours, all) = (hours_ms.into_inner() / HOUR_MS, all.into_inner().unwrap());
    eprintln!("{runs} runs, {hours} simulated hours, {all:?}");
    if runs >= RUNS {
        assert!(hours > 1_000);
        // Each way to end came, and heads stepped aside.
        for what in [
            "sent",
            "merged",
            "dead",
            "expired",
            "cancelled",
            "unknown",
            "reordered",
        ] {
            assert!(
                all.get(what).is_some_and(|times| *times > 10),
                "{what}: {all:?}"
            );
        }
    }
}

const RUNS: u64 = 40;

#[test]
fn a_seed_repeats_its_run_exactly() {
    let seed = number("DINGD_SEED").unwrap_or(7);
    let run = || simulate(seed, Machine::Troubled);
    assert_eq!(run(), run());
}

#[test]
fn a_wall_clock_that_is_set_forward_lets_no_limit_be_passed() {
    for seed in 1..=3 {
        let report = simulate(seed, Machine::SetForward);
        assert!(report.jumps > 1 && report.starts == 1, "{report:#?}");
        assert!(report.faults.is_empty(), "{report:#?}");
    }
}
