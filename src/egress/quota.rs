//! How the month stands, as it is told: a document, metrics, and a word before it runs out.

use std::collections::BTreeMap;

use serde::Serialize;

use super::Egress;
use super::ledger::{Allowance, Ledger, Payer, Standing, percent};
use super::month::{Day, TIME_ZONE};

/// From here on `/ready` says so, in percent.
const DEGRADED_PERCENT: u64 = 80;

/// What `GET /v1/quota` answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Quota {
    month: String,
    time_zone: &'static str,
    organisations: Vec<Organisation>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Organisation {
    corp_id: String,
    api_calls: Use,
    webhook_messages: Use,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Use {
    used: u64,
    limit: Option<u64>,
    percent: Option<u64>,
    enforced: bool,
    exhausted: bool,
    runs_out_on: Option<String>,
    by: Vec<By>,
}

/// One app or robot and API; neither: what DingTalk counted beyond what we saw.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct By {
    #[serde(skip_serializing_if = "Option::is_none")]
    app: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    robot: Option<String>,
    api: String,
    used: u64,
}

impl Egress {
    /// What was used of the month, by organisation, app and API.
    pub fn quota(&self) -> Quota {
        let wall_ms = self.clock.wall_ms();
        let ledger = self.ledger();
        let shown = |corp_id: &str, allowance| {
            let standing = ledger.standing(&payer(corp_id, allowance), wall_ms);
            Use::of(standing, allowance, ledger.rules().enforce)
        };
        let organisations = ledger.rules().organisations();
        let organisations = organisations.iter().map(|(corp_id, _)| Organisation {
            corp_id: (*corp_id).to_owned(),
            api_calls: shown(corp_id, Allowance::Api),
            webhook_messages: shown(corp_id, Allowance::Webhook),
        });
        Quota {
            month: Day::at(wall_ms).month().shown(),
            time_zone: TIME_ZONE,
            organisations: organisations.collect(),
        }
    }

    /// Brings metrics and `/ready` up to date, and logs what is new.
    pub fn review(&self) {
        let mut sums = BTreeMap::new();
        let wall_ms = self.clock.wall_ms();
        let mut ledger = self.ledger();
        let organisations = ledger.rules().organisations();
        let organisations: Vec<_> = organisations
            .into_iter()
            .map(|(corp_id, app)| (corp_id.to_owned(), app.unwrap_or("robots").to_owned()))
            .collect();
        for (corp_id, name) in organisations {
            for allowance in Allowance::ALL {
                let payer = payer(&corp_id, allowance);
                let standing = ledger.standing(&payer, wall_ms);
                self.tell(&mut ledger, &payer, &name, &standing);
                // Robots of organisations without an app have one name.
                let sum: &mut (u64, u64, bool) = sums.entry((name.clone(), allowance)).or_default();
                sum.0 += standing.used;
                sum.1 += standing.limit.unwrap_or(0);
                sum.2 |= standing.exhausted;
            }
        }
        drop(ledger);
        for ((name, allowance), (used, limit, exhausted)) in sums {
            crate::metrics::quota(&name, allowance.label(), used, limit, exhausted);
        }
    }

    /// Withdraws what was said of organisations that may not be there any more.
    pub(super) fn withdraw(&self) {
        let ledger = self.ledger();
        for (corp_id, _) in ledger.rules().organisations() {
            for allowance in Allowance::ALL {
                self.health.recovered(&trouble(&payer(corp_id, allowance)));
            }
        }
    }

    fn tell(&self, ledger: &mut Ledger, payer: &Payer, name: &str, standing: &Standing) {
        let share = standing
            .limit
            .map_or(0, |limit| percent(standing.used, limit));
        let text = words(payer.allowance, name, standing);
        match ledger.news(payer, self.clock.wall_ms()) {
            Some(level) if level >= DEGRADED_PERCENT => {
                tracing::warn!(organisation = name, level_percent = level, "{text}");
            }
            Some(level) => {
                tracing::info!(organisation = name, level_percent = level, "{text}");
            }
            None => {}
        }
        let key = trouble(payer);
        if standing.exhausted || share >= DEGRADED_PERCENT {
            self.health.degraded(key, text);
        } else {
            self.health.recovered(&key);
        }
    }
}

impl Use {
    fn of(standing: Standing, allowance: Allowance, enforce: bool) -> Self {
        let by = standing.by.into_iter().map(|(name, api, used)| {
            let name = Some(name).filter(|name| !name.is_empty());
            let (app, robot) = match allowance {
                Allowance::Api => (name, None),
                Allowance::Webhook => (None, name),
            };
            By {
                app,
                robot,
                api,
                used,
            }
        });
        Self {
            used: standing.used,
            limit: standing.limit,
            percent: standing.limit.map(|limit| percent(standing.used, limit)),
            enforced: enforce && standing.limit.is_some(),
            exhausted: standing.exhausted,
            runs_out_on: standing.runs_out_on.map(Day::shown),
            by: by.collect(),
        }
    }
}

fn payer(corp_id: &str, allowance: Allowance) -> Payer {
    Payer {
        corp_id: corp_id.to_owned(),
        allowance,
    }
}

/// What the trouble is called at `/ready`.
fn trouble(payer: &Payer) -> String {
    format!("month/{}/{}", payer.corp_id, payer.allowance.label())
}

/// What the operator reads, with the cure.
fn words(allowance: Allowance, name: &str, standing: &Standing) -> String {
    let (what, key) = match allowance {
        Allowance::Api => ("API calls", "api_calls"),
        Allowance::Webhook => ("webhook messages", "webhook_messages"),
    };
    let used = standing.used;
    let mut text = match standing.limit {
        Some(limit) => format!(
            "{name}: {used} of {limit} {what} of this month are used ({} %)",
            percent(used, limit)
        ),
        None => format!("{name}: {used} {what} were used this month"),
    };
    if standing.exhausted {
        text.push_str(", and DingTalk says that there are no more");
    } else if let Some(day) = standing.runs_out_on {
        text.push_str(&format!("; at this rate they run out on {}", day.shown()));
    }
    text.push_str(&format!(
        " — 在 开发者后台 → 资源与用量 购买额度，或把 [limits.month] {key} 改为实际额度，并减少低优先级消息。 / \
         Buy quota in the developer console (usage page), or set [limits.month] {key} to what you have, \
         and send fewer low priority messages."
    ));
    text
}
