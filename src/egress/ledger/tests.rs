//! Counting, keeping for critical, what DingTalk says, and reading back.

use super::*;
use crate::delivery::verdict::{Reason, Scope, Wait};

const NOON_MS: u64 = 1_795_060_800_000; // 2026-11-19T04:00:00Z
const HOUR_MS: u64 = 3_600_000;

fn pair(name: &str, corp: &str) -> (String, String) {
    (name.to_owned(), corp.to_owned())
}

fn rules(api_calls: u64, enforce: bool) -> Rules {
    Rules {
        api_calls,
        webhook_messages: 3,
        enforce,
        reserve_critical_percent: 20,
        apps: vec![pair("oncall", "a"), pair("night", "a"), pair("other", "b")],
        robots: vec![pair("robot", "a")],
    }
}

fn payer(corp: &str, allowance: Allowance) -> Payer {
    Payer {
        corp_id: corp.to_owned(),
        allowance,
    }
}

fn sent() -> Verdict {
    Verdict::Sent { handle: None }
}

fn used_up() -> Verdict {
    Verdict::Pause {
        scope: Scope::Organisation,
        wait: Wait::Growing(1),
        reason: Reason::new("month_quota_exhausted", "", "", ""),
    }
}

fn take(ledger: &mut Ledger, name: &str, critical: bool) -> Result<Metered, u64> {
    let mut keys = [Key::EGRESS, meter_key(name, Api::GroupSend)];
    let taken = ledger.take(&mut keys, critical, NOON_MS);
    taken.map(Option::unwrap).map_err(|(_, wait_ms)| wait_ms)
}

fn call(ledger: &mut Ledger, name: &str, verdict: &Verdict) -> Vec<Entry> {
    let metered = take(ledger, name, true).unwrap();
    ledger.book(&metered, verdict, NOON_MS)
}

fn standing(ledger: &Ledger, corp: &str) -> Standing {
    ledger.standing(&payer(corp, Allowance::Api), NOON_MS)
}

#[test]
fn calls_are_counted_by_organisation_app_and_api() {
    let mut ledger = Ledger::new(rules(0, false));
    for name in ["oncall", "oncall", "night", "other"] {
        call(&mut ledger, name, &sent());
    }
    assert_eq!(
        (standing(&ledger, "a").used, standing(&ledger, "b").used),
        (3, 1)
    );
    let api = Api::GroupSend.label().to_owned();
    let by = |name: &str, used| (name.to_owned(), api.clone(), used);
    assert_eq!(standing(&ledger, "a").by, [by("night", 1), by("oncall", 2)]);
    let webhooks = ledger.standing(&payer("a", Allowance::Webhook), NOON_MS);
    assert_eq!((webhooks.used, webhooks.limit), (0, Some(3)));
}

#[test]
fn two_apps_of_an_organisation_share_a_key_and_others_do_not() {
    let mut ledger = Ledger::new(rules(0, false));
    let mut key = |name, api| {
        let mut keys = [meter_key(name, api)];
        ledger.take(&mut keys, false, NOON_MS).unwrap().unwrap();
        keys[0]
    };
    let shared = key("oncall", Api::GroupSend);
    assert_eq!(shared, key("night", Api::OtoSend));
    assert_ne!(shared, key("other", Api::GroupSend));
    assert_ne!(shared, key("robot", Api::WebhookSend));
    let mut unknown = [meter_key("gone", Api::GroupSend)];
    assert!(ledger.take(&mut unknown, false, NOON_MS).unwrap().is_none());
}

#[test]
fn the_last_part_is_kept_for_critical_and_then_nothing_passes_until_the_next_month() {
    let mut ledger = Ledger::new(rules(10, true));
    for _ in 0..8 {
        let metered = take(&mut ledger, "oncall", false).unwrap();
        ledger.book(&metered, &sent(), NOON_MS);
    }
    assert_eq!(
        take(&mut ledger, "night", false).unwrap_err(),
        LOOK_AGAIN_MS
    );
    let key = payer("a", Allowance::Api).key();
    assert_eq!(ledger.capacity(key, NOON_MS), Some(2));
    let first = take(&mut ledger, "oncall", true).unwrap();
    let second = take(&mut ledger, "oncall", true).unwrap();
    // What is in flight has its place, but may come to nothing.
    assert_eq!(take(&mut ledger, "oncall", true).unwrap_err(), IN_FLIGHT_MS);
    ledger.give_back(&first);
    ledger.book(&second, &sent(), NOON_MS);
    call(&mut ledger, "oncall", &sent());
    assert_eq!(
        take(&mut ledger, "oncall", true).unwrap_err(),
        LOOK_AGAIN_MS
    );
    let end_ms = Day::at(NOON_MS).month().end_ms();
    assert_eq!(ledger.full_for_ms(key, true, end_ms - 5), Some(5));
    assert_eq!(ledger.full_for_ms(key, false, end_ms), None);
    take(&mut ledger, "other", false).unwrap();
}

#[test]
fn what_is_not_enforced_or_unlimited_lets_everything_pass() {
    for rules in [rules(2, false), rules(0, true)] {
        let mut ledger = Ledger::new(rules);
        for _ in 0..5 {
            call(&mut ledger, "oncall", &sent());
        }
        take(&mut ledger, "oncall", false).unwrap();
        assert_eq!(
            ledger.capacity(payer("a", Allowance::Api).key(), NOON_MS),
            None
        );
    }
}

#[test]
fn dingtalks_word_raises_the_count_once_and_a_later_success_takes_the_mark_away() {
    let mut ledger = Ledger::new(rules(10, false));
    call(&mut ledger, "oncall", &sent());
    let early = take(&mut ledger, "oncall", false).unwrap();
    let entries = call(&mut ledger, "oncall", &used_up());
    assert!(matches!(&*entries, [Entry::Mark(_)]), "{entries:?}");
    assert_eq!(call(&mut ledger, "night", &used_up()), []);
    let stands = standing(&ledger, "a");
    assert_eq!((stands.used, stands.exhausted), (10, true));
    assert!(!standing(&ledger, "b").exhausted);
    // It left before.
    let entries = ledger.book(&early, &sent(), NOON_MS);
    assert!(matches!(&*entries, [Entry::Add(_, 1)]), "{entries:?}");
    let entries = call(&mut ledger, "oncall", &sent());
    assert!(
        matches!(&*entries, [Entry::Add(_, 1), Entry::Unmark(_)]),
        "{entries:?}"
    );
    let stands = standing(&ledger, "a");
    assert_eq!(
        (stands.used, stands.exhausted),
        (3, false),
        "our own count again"
    );
}

#[test]
fn after_dingtalks_word_its_own_pause_holds_so_that_a_probe_can_end_it() {
    let mut ledger = Ledger::new(rules(2, true));
    call(&mut ledger, "oncall", &sent());
    call(&mut ledger, "oncall", &used_up());
    assert!(take(&mut ledger, "oncall", false).is_ok());
    call(&mut ledger, "oncall", &sent());
    assert!(take(&mut ledger, "oncall", true).is_err(), "two are used");
}

#[test]
fn the_rows_come_to_what_was_counted_also_across_a_month() {
    let mut ledger = Ledger::new(rules(10, false));
    let mut entries = vec![];
    for verdict in [sent(), sent(), used_up()] {
        entries.extend(call(&mut ledger, "oncall", &verdict));
    }
    let december_ms = Day::at(NOON_MS).month().end_ms();
    let metered = take(&mut ledger, "oncall", false).unwrap();
    entries.extend(ledger.book(&metered, &sent(), december_ms));
    let mut rows = BTreeMap::<Vec<u8>, u64>::new();
    for entry in entries {
        match entry {
            Entry::Add(key, calls) => *rows.entry(key).or_default() += calls,
            Entry::Mark(key) => drop(rows.insert(key, 1)),
            Entry::Unmark(key) => drop(rows.remove(&key)),
        }
    }
    let first = rows.keys().next().unwrap();
    assert_eq!(
        String::from_utf8_lossy(first),
        "20261101\0a\0api\0\0exhausted"
    );
    let mut again = Ledger::new(rules_of(&ledger));
    for (key, value) in &rows {
        again.read(key, *value);
    }
    again.loaded();
    for ledger in [&ledger, &again] {
        let stands = standing(ledger, "a");
        assert_eq!((stands.used, stands.exhausted), (10, true));
        let next = ledger.standing(&payer("a", Allowance::Api), december_ms);
        assert_eq!((next.used, next.exhausted), (1, false));
    }
    assert_eq!(again.news(&payer("a", Allowance::Api), NOON_MS), None);
    again.forget(Day::at(december_ms));
    assert_eq!(standing(&again, "a").used, 0);
}

fn rules_of(ledger: &Ledger) -> Rules {
    ledger.rules().clone()
}

#[test]
fn each_level_is_news_once_a_month_and_again_under_a_larger_limit() {
    let mut ledger = Ledger::new(rules(10, false));
    let whose = payer("a", Allowance::Api);
    let told = |ledger: &mut Ledger| -> Vec<_> {
        let one = |_| {
            call(ledger, "oncall", &sent());
            ledger.news(&whose, NOON_MS)
        };
        (0..10).map(one).collect()
    };
    let mut expected = vec![None; 10];
    (expected[4], expected[7], expected[9]) = (Some(50), Some(80), Some(95));
    assert_eq!(told(&mut ledger), expected);
    ledger.set_rules(rules(40, false));
    let mut expected = vec![None; 10];
    expected[9] = Some(50);
    assert_eq!(told(&mut ledger), expected);
}

#[test]
fn dingtalks_word_is_no_trend() {
    let mut ledger = Ledger::new(rules(1_000, false));
    call(&mut ledger, "oncall", &sent());
    let whose = payer("a", Allowance::Api);
    let before = ledger.trend(&whose, NOON_MS);
    call(&mut ledger, "oncall", &used_up());
    assert_eq!(ledger.trend(&whose, NOON_MS), before);
    assert_eq!(before, (Day::at(NOON_MS), 1));
    assert_eq!(ledger.trend(&whose, NOON_MS + 7 * 24 * HOUR_MS).1, 0);
}

#[test]
fn the_reserve_is_rounded_up() {
    for (limit, percent, allowed) in [(100, 5, 95), (10, 5, 9), (3, 0, 3), (1, 50, 0)] {
        let rules = Rules {
            reserve_critical_percent: percent,
            ..Rules::default()
        };
        assert_eq!(rules.allowed(limit, false), allowed, "{limit} {percent}");
        assert_eq!(rules.allowed(limit, true), limit);
    }
}
