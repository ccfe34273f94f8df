//! The month's ledger: metered calls counted by organisation, app and API, on disk (outbound.md §7.2).
//!
//! Rows of [`Table::Ledger`] have the key day ‖ 0 ‖ organisation ‖ 0 ‖ `api` or `webhook` ‖ 0 ‖ app or
//! robot ‖ 0 ‖ API; a month is the sum of its days. One row names no app: `exhausted`, on the first day of
//! a month, is DingTalk's word that nothing is left, a mark and not a count. In memory is what the rows of the last two months come to. Time comes in as a value.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::limit::{self, Key, Kind};
use super::month::{Day, Month, runs_out_on, trend_from};
use crate::delivery::id::short_digest;
use crate::delivery::verdict::Verdict;
use crate::dingtalk::answer::{Api, metered};
use crate::journal::{Batch, Table};

/// Rows of days longer ago than this are removed.
pub(super) const KEEP_DAYS: u64 = 62;
/// Who waits for the next month looks again this often, in milliseconds: the limit may be changed.
const LOOK_AGAIN_MS: u64 = 600_000;
/// When calls in flight take the last places: look again after this, in milliseconds.
const IN_FLIGHT_MS: u64 = 50;
/// Shares of a month's allowance, in percent, at which somebody is told.
const LEVELS: [u64; 3] = [95, 80, 50];
const EXHAUSTED: &str = "exhausted";

/// `[limits.month]`, and which organisation pays for whom.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rules {
    /// API calls of an organisation a month; 0 = unlimited.
    pub api_calls: u64,
    /// Webhook messages of an organisation a month; 0 = unlimited.
    pub webhook_messages: u64,
    /// Whether messages wait when a month is used up, or are only counted.
    pub enforce: bool,
    /// Of an enforced month, only for critical messages.
    pub reserve_critical_percent: u64,
    /// Each app with its organisation.
    pub apps: Vec<(String, String)>,
    /// Each custom robot with its organisation.
    pub robots: Vec<(String, String)>,
}

/// What DingTalk sells by the month.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Allowance {
    /// Calls of metered APIs.
    Api,
    /// Messages through webhooks.
    Webhook,
}

/// Whose allowance pays.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Payer {
    /// The organisation.
    pub corp_id: String,
    /// Which of its allowances.
    pub allowance: Allowance,
}

/// What one call is counted under.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meter {
    /// Whose allowance pays.
    pub payer: Payer,
    /// The app or robot.
    pub name: String,
    /// The API.
    pub api: String,
}

/// A call for which there is a place.
#[derive(Debug, Clone)]
pub(super) struct Metered {
    pub(super) meter: Arc<Meter>,
    /// Counts the permits: whoever has a later number started later.
    order: u64,
}

/// What is to be written, with the result of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Entry {
    Add(Vec<u8>, u64),
    Mark(Vec<u8>),
    Unmark(Vec<u8>),
}

/// One allowance in one month.
#[derive(Debug, Default)]
pub(super) struct Account {
    pub(super) used: u64,
    /// By app or robot and API.
    pub(super) by: BTreeMap<(String, String), u64>,
    days: BTreeMap<Day, u64>,
    /// DingTalk has said so, when this many permits had been given.
    exhausted: Option<u64>,
    /// The level that was told.
    told: u64,
}

impl Account {
    /// What was used; at least all there is, if DingTalk says so.
    fn used(&self, limit: Option<u64>) -> u64 {
        let all = limit.filter(|_| self.exhausted.is_some());
        self.used.max(all.unwrap_or(0))
    }
}

/// How one allowance stands.
#[derive(Debug)]
pub(super) struct Standing {
    pub(super) used: u64,
    pub(super) limit: Option<u64>,
    pub(super) exhausted: bool,
    pub(super) runs_out_on: Option<Day>,
    /// By app or robot and API.
    pub(super) by: Vec<(String, String, u64)>,
}

/// All accounts.
#[derive(Debug)]
pub(super) struct Ledger {
    rules: Rules,
    /// By the key that a caller asks with.
    meters: HashMap<Key, Arc<Meter>>,
    /// By the key that is paused.
    payers: HashMap<Key, Payer>,
    accounts: BTreeMap<(Payer, Month), Account>,
    in_flight: HashMap<Payer, u64>,
    permits: u64,
    /// Rows of earlier days were removed.
    oldest: Option<Day>,
}

impl Allowance {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Api, Self::Webhook];

    /// The name in keys and metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Api => "api",
            Self::Webhook => "webhook",
        }
    }

    fn labelled(label: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|one| one.label() == label)
    }
}

impl Payer {
    /// What is paused when DingTalk refuses all its metered calls.
    fn key(&self) -> Key {
        let id = short_digest(&[self.corp_id.as_bytes(), self.allowance.label().as_bytes()]);
        Key::new(Kind::Organisation, id)
    }
}

/// The key with which a call of `api` by an app or robot asks for its organisation's place.
pub(super) fn meter_key(name: &str, api: Api) -> Key {
    let id = short_digest(&[b"meter", name.as_bytes(), api.label().as_bytes()]);
    Key::new(Kind::Organisation, id)
}

impl Rules {
    /// How much of it there is a month; `None` = unlimited.
    pub fn limit(&self, allowance: Allowance) -> Option<u64> {
        let limit = match allowance {
            Allowance::Api => self.api_calls,
            Allowance::Webhook => self.webhook_messages,
        };
        (limit > 0).then_some(limit)
    }

    /// The organisations in the order of the configuration, each with its first app.
    pub(super) fn organisations(&self) -> Vec<(&str, Option<&str>)> {
        let mut found: Vec<(&str, Option<&str>)> = vec![];
        let apps = self.apps.iter().map(|(name, corp)| (corp, Some(&**name)));
        let robots = self.robots.iter().map(|(_, corp)| (corp, None));
        for (corp, app) in apps.chain(robots) {
            if found.iter().all(|(known, _)| known != corp) {
                found.push((corp, app));
            }
        }
        found
    }

    fn meters(&self) -> HashMap<Key, Arc<Meter>> {
        let meter = |allowance, (name, corp_id): &(String, String), api: Api| {
            let payer = Payer {
                corp_id: corp_id.clone(),
                allowance,
            };
            let meter = Meter {
                payer,
                name: name.clone(),
                api: api.label().to_owned(),
            };
            (meter_key(name, api), Arc::new(meter))
        };
        let apps = self
            .apps
            .iter()
            .flat_map(|app| Api::METERED_OF_APPS.map(|api| meter(Allowance::Api, app, api)));
        let robots = self.robots.iter();
        let robots = robots.map(|robot| meter(Allowance::Webhook, robot, Api::WebhookSend));
        apps.chain(robots).collect()
    }

    /// How much of `limit` may be used by such messages.
    fn allowed(&self, limit: u64, critical: bool) -> u64 {
        if critical {
            return limit;
        }
        let kept = u128::from(limit) * u128::from(self.reserve_critical_percent.min(100));
        limit - u64::try_from(kept.div_ceil(100)).unwrap_or(limit)
    }
}

impl Ledger {
    pub(super) fn new(rules: Rules) -> Self {
        let mut ledger = Self {
            rules: Rules::default(),
            meters: HashMap::new(),
            payers: HashMap::new(),
            accounts: BTreeMap::new(),
            in_flight: HashMap::new(),
            permits: 0,
            oldest: None,
        };
        ledger.set_rules(rules);
        ledger
    }

    /// Other rules from now on; what was counted stays.
    pub(super) fn set_rules(&mut self, rules: Rules) {
        self.meters = rules.meters();
        let payers = self.meters.values().map(|meter| meter.payer.clone());
        self.payers = payers.map(|payer| (payer.key(), payer)).collect();
        self.rules = rules;
        for ((payer, _), account) in &mut self.accounts {
            // A larger limit has its own shares.
            let level = level_of(account, self.rules.limit(payer.allowance));
            account.told = account.told.min(level);
        }
    }

    pub(super) fn rules(&self) -> &Rules {
        &self.rules
    }

    /// Puts the key of the organisation where `keys` names the meter, and takes a place there.
    /// `Err`: all are taken; with the milliseconds after which to look again.
    pub(super) fn take(
        &mut self,
        keys: &mut [Key],
        critical: bool,
        wall_ms: u64,
    ) -> Result<Option<Metered>, (Key, u64)> {
        let organisation = keys.iter_mut().find(|key| key.kind == Kind::Organisation);
        let Some((key, meter)) =
            organisation.and_then(|key| self.meters.get(key).cloned().map(|meter| (key, meter)))
        else {
            return Ok(None);
        };
        *key = meter.payer.key();
        if let Some(wait_ms) = self.wait_ms(&meter.payer, critical, wall_ms) {
            return Err((*key, wait_ms));
        }
        *self.in_flight.entry(meter.payer.clone()).or_default() += 1;
        self.permits += 1;
        Ok(Some(Metered {
            meter,
            order: self.permits,
        }))
    }

    /// The call was not made.
    pub(super) fn give_back(&mut self, metered: &Metered) {
        if let Some(in_flight) = self.in_flight.get_mut(&metered.meter.payer) {
            *in_flight = in_flight.saturating_sub(1);
        }
    }

    /// How long one who asks for a place has to wait; `None`: not at all.
    pub(super) fn full_for_ms(&self, key: Key, critical: bool, wall_ms: u64) -> Option<u64> {
        self.wait_ms(self.payers.get(&key)?, critical, wall_ms)
    }

    /// How many places there are; `None`: no matter how many.
    pub(super) fn capacity(&self, key: Key, wall_ms: u64) -> Option<usize> {
        let payer = self.payers.get(&key)?;
        let limit = self.rules.limit(payer.allowance)?;
        let (used, in_flight) = self.taken(payer, wall_ms);
        let left = limit.saturating_sub(used + in_flight);
        let left = usize::try_from(left).unwrap_or(usize::MAX);
        let holds = self.rules.enforce && !self.is_exhausted(payer, wall_ms);
        holds.then_some(left)
    }

    /// How the month stands for calls that count under `meter`; `None` if it holds nobody back: it has no
    /// limit, or one that is only warned about.
    pub(super) fn left_of_month(
        &self,
        meter: Key,
        critical: bool,
        wall_ms: u64,
    ) -> Option<limit::Standing> {
        let payer = &self.meters.get(&meter)?.payer;
        let calls = self.rules.limit(payer.allowance)?;
        let exhausted = self.is_exhausted(payer, wall_ms);
        if !self.rules.enforce && !exhausted {
            return None;
        }
        let allowed = self.rules.allowed(calls, critical);
        let (used, in_flight) = self.taken(payer, wall_ms);
        let left = if exhausted {
            0
        } else {
            allowed.saturating_sub(used + in_flight)
        };
        let month = Day::at(wall_ms).month();
        Some(limit::Standing {
            kind: Kind::Organisation,
            count: u32::try_from(allowed).unwrap_or(u32::MAX),
            window_ms: month.length_ms(),
            left: u32::try_from(left).unwrap_or(u32::MAX),
            resets_in_ms: month.end_ms().saturating_sub(wall_ms),
        })
    }

    fn taken(&self, payer: &Payer, wall_ms: u64) -> (u64, u64) {
        let used = self.account(payer, wall_ms).map_or(0, |one| one.used);
        let in_flight = self.in_flight.get(payer).copied().unwrap_or_default();
        (used, in_flight)
    }

    fn wait_ms(&self, payer: &Payer, critical: bool, wall_ms: u64) -> Option<u64> {
        let limit = self.rules.limit(payer.allowance)?;
        if self.is_exhausted(payer, wall_ms) {
            // DingTalk's own pause holds, and probes now and then whether more was bought.
            return None;
        }
        let allowed = self.rules.allowed(limit, critical);
        let (used, in_flight) = self.taken(payer, wall_ms);
        if !self.rules.enforce || used + in_flight < allowed {
            return None;
        }
        let month_ms = Day::at(wall_ms).month().end_ms().saturating_sub(wall_ms);
        // What is in flight may come to nothing.
        let again_ms = if used < allowed {
            IN_FLIGHT_MS
        } else {
            LOOK_AGAIN_MS
        };
        Some(month_ms.clamp(1, again_ms))
    }

    /// The call ended: what is to be written.
    pub(super) fn book(
        &mut self,
        metered: &Metered,
        verdict: &Verdict,
        wall_ms: u64,
    ) -> Vec<Entry> {
        self.give_back(metered);
        let mut entries = vec![];
        if metered::counts(verdict) {
            entries.push(self.count(&metered.meter, 1, wall_ms));
        }
        if metered::is_used_up(verdict) {
            self.exhaust(&metered.meter.payer, wall_ms, &mut entries);
        }
        if let Verdict::Sent { .. } | Verdict::SentInPart { .. } = verdict {
            let month = Day::at(wall_ms).month();
            let payer = &metered.meter.payer;
            let account = self.accounts.entry((payer.clone(), month)).or_default();
            // One that left before DingTalk said so proves nothing.
            if account.exhausted.is_some_and(|at| metered.order > at) {
                account.exhausted = None;
                entries.push(Entry::Unmark(mark_key(payer, month)));
            }
        }
        entries
    }

    /// Counts calls that were made.
    pub(super) fn count(&mut self, meter: &Meter, calls: u64, wall_ms: u64) -> Entry {
        let day = Day::at(wall_ms);
        self.post(day, meter, calls);
        Entry::Add(row_key(day, meter), calls)
    }

    fn post(&mut self, day: Day, meter: &Meter, calls: u64) {
        let account = (meter.payer.clone(), day.month());
        let account = self.accounts.entry(account).or_default();
        account.used += calls;
        let by = (meter.name.clone(), meter.api.clone());
        *account.by.entry(by).or_default() += calls;
        *account.days.entry(day).or_default() += calls;
    }

    /// DingTalk says that there is nothing left: whatever we have counted, the limit is reached. Only a mark,
    /// so that what was counted holds again as soon as DingTalk lets something pass.
    fn exhaust(&mut self, payer: &Payer, wall_ms: u64, entries: &mut Vec<Entry>) {
        let month = Day::at(wall_ms).month();
        let account = self.accounts.entry((payer.clone(), month)).or_default();
        if account.exhausted.replace(self.permits).is_none() {
            entries.push(Entry::Mark(mark_key(payer, month)));
        }
    }

    fn is_exhausted(&self, payer: &Payer, wall_ms: u64) -> bool {
        self.account(payer, wall_ms)
            .is_some_and(|account| account.exhausted.is_some())
    }

    fn account(&self, payer: &Payer, wall_ms: u64) -> Option<&Account> {
        let month = Day::at(wall_ms).month();
        self.accounts.get(&(payer.clone(), month))
    }

    /// A row of the store.
    pub(super) fn read(&mut self, key: &[u8], value: u64) {
        let Some((day, meter)) = parse_key(key) else {
            tracing::warn!("a row of the ledger has an unknown form; it is not counted");
            return;
        };
        if meter.api == EXHAUSTED {
            let account = (meter.payer, day.month());
            self.accounts.entry(account).or_default().exhausted = Some(0);
        } else {
            self.post(day, &meter, value);
        }
    }

    /// Everything was read back: what was told before the restart is not told again.
    pub(super) fn loaded(&mut self) {
        for ((payer, _), account) in &mut self.accounts {
            account.told = level_of(account, self.rules.limit(payer.allowance));
        }
    }

    /// Forgets months whose rows are gone; returns whether rows before `oldest` have to go.
    pub(super) fn forget(&mut self, oldest: Day) -> bool {
        self.accounts
            .retain(|(_, month), _| *month >= oldest.month());
        self.oldest.replace(oldest) != Some(oldest)
    }

    /// How an allowance stands.
    pub(super) fn standing(&self, payer: &Payer, wall_ms: u64) -> Standing {
        let limit = self.rules.limit(payer.allowance);
        let account = self.account(payer, wall_ms);
        let used = account.map_or(0, |account| account.used(limit));
        let (since, recent) = self.trend(payer, wall_ms);
        let by = account.into_iter().flat_map(|account| &account.by);
        Standing {
            used,
            limit,
            exhausted: account.is_some_and(|account| account.exhausted.is_some()),
            runs_out_on: limit.and_then(|limit| runs_out_on(wall_ms, used, limit, since, recent)),
            by: by
                .map(|((name, api), used)| (name.clone(), api.clone(), *used))
                .collect(),
        }
    }

    /// The first day on which there was anything, and the calls in the days of the trend.
    fn trend(&self, payer: &Payer, wall_ms: u64) -> (Day, u64) {
        let (from, today) = (trend_from(wall_ms), Day::at(wall_ms));
        let mut since = today;
        let mut recent = 0;
        let accounts = self
            .accounts
            .iter()
            .filter(|((whose, _), _)| whose == payer);
        for (day, calls) in accounts.flat_map(|(_, account)| &account.days) {
            since = since.min(*day);
            if (from..=today).contains(day) {
                recent += calls;
            }
        }
        (since, recent)
    }

    /// The level that an allowance has reached, if nobody was told of it this month.
    pub(super) fn untold(&self, payer: &Payer, wall_ms: u64) -> Option<u64> {
        let account = self.account(payer, wall_ms)?;
        let level = level_of(account, self.rules.limit(payer.allowance));
        (account.told < level).then_some(level)
    }

    /// As [`Self::untold`]; from now on it is told.
    pub(super) fn news(&mut self, payer: &Payer, wall_ms: u64) -> Option<u64> {
        let level = self.untold(payer, wall_ms)?;
        let account = (payer.clone(), Day::at(wall_ms).month());
        self.accounts.entry(account).or_default().told = level;
        Some(level)
    }
}

fn level_of(account: &Account, limit: Option<u64>) -> u64 {
    level(account.used(limit), limit)
}

/// The highest of [`LEVELS`] that is reached; 0 = none.
fn level(used: u64, limit: Option<u64>) -> u64 {
    let share = limit.map_or(0, |limit| percent(used, limit));
    LEVELS
        .into_iter()
        .find(|level| share >= *level)
        .unwrap_or(0)
}

/// How much of `limit` is used, rounded down.
pub(super) fn percent(used: u64, limit: u64) -> u64 {
    let share = (u128::from(used) * 100).checked_div(u128::from(limit));
    share.map_or(0, |share| u64::try_from(share).unwrap_or(u64::MAX))
}

impl Entry {
    pub(super) fn write(self, batch: &mut Batch) {
        match self {
            Self::Add(key, calls) => batch.add_to(Table::Ledger, key, calls),
            Self::Mark(key) => batch.put(Table::Ledger, key, 1_u64.to_be_bytes()),
            Self::Unmark(key) => batch.delete(Table::Ledger, key),
        }
    }
}

fn row_key(day: Day, meter: &Meter) -> Vec<u8> {
    let Payer { corp_id, allowance } = &meter.payer;
    let (name, api) = (&meter.name, &meter.api);
    let day = day.text();
    [&*day, corp_id, allowance.label(), name, api]
        .join("\0")
        .into_bytes()
}

fn mark_key(payer: &Payer, month: Month) -> Vec<u8> {
    let meter = Meter {
        payer: payer.clone(),
        name: String::new(),
        api: EXHAUSTED.to_owned(),
    };
    row_key(month.first(), &meter)
}

fn parse_key(key: &[u8]) -> Option<(Day, Meter)> {
    let mut parts = std::str::from_utf8(key).ok()?.split('\0');
    let mut part = || parts.next();
    let day = Day::parse(part()?)?;
    let corp_id = part()?.to_owned();
    let allowance = Allowance::labelled(part()?)?;
    let (name, api) = (part()?.to_owned(), part()?.to_owned());
    let payer = Payer { corp_id, allowance };
    Some((day, Meter { payer, name, api }))
}

#[cfg(test)]
mod tests;
