//! One function a table of `config.toml`. The defaults stand here, and are the ones that
//! `config.example.toml` states.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use toml::Value;

use super::read::Section;
use super::{Config, Door, Log};
use crate::delivery::state::{Ambiguous, Priority};
use crate::dingtalk::answer::BAN_MS_MIN;
use crate::dingtalk::digest::Language;
use crate::dingtalk::envelope::{Freshness, Keys};
use crate::egress::limit::{Kind, Rule, Rules};
use crate::egress::{self, App, ledger};
use crate::http::listen::Limits;
use crate::http::tls::Files;
use crate::http::transport::{BadUrl, Origin};
use crate::inbound::{self, Upstream};
use crate::journal::retention::Keep;
use crate::outbound::{self, Client, Digests, Robot};

/// The whole file.
pub(super) fn config(root: &Section<'_>) -> Option<Config> {
    // With the name of the socket in it, it must fit into what a socket's path may have: 107 bytes.
    let is_dir = |dir: &str| dir.starts_with('/') && dir.len() <= 96;
    let state_dir = root.required("state_dir", is_dir, "an absolute path of at most 96 bytes");
    let callbacks = root.section("callbacks");
    let public_url = callbacks.text("public_url");
    if let Some(Err(problem)) = public_url.as_ref().map(|url| Origin::parse(url, false)) {
        let problem = match problem {
            BadUrl::Insecure => "uses http:// beyond this machine".to_owned(),
            problem => problem.to_string(),
        };
        let fix = "write https://…, as DingTalk sees this daemon";
        callbacks.fault("public_url", problem, fix);
    }
    let callbacks = door(&callbacks, "0.0.0.0:8443", TlsNeed::UnlessFalse);
    let api_section = root.section("api");
    let clients = clients(&api_section);
    let api = door(&api_section, "127.0.0.1:8680", TlsNeed::Optional);
    let admin = root.section("admin");
    let admin_listen = address(&admin, "127.0.0.1:9680");
    let others = [&callbacks, &api].map(|door| door.as_ref().map(|door| door.listen));
    distinct(&api_section, others[1], &others[..1]);
    distinct(&admin, admin_listen, &others);
    admin.finish();
    let apps = apps(root);
    let (rules, month) = limits(root);
    let per_minute = rules.0.get(&Kind::Robot).map_or(20.0, |rule| {
        f64::from(rule.count) * 60_000.0 / u32::try_from(rule.window_ms).map_or(60_000.0, f64::from)
    });
    let (robots, pools, corps) = robots(root, only_corp(&apps));
    let named = |(app, _): &(App, _)| (app.name.clone(), app.corp_id.clone());
    let month = ledger::Rules {
        apps: apps.iter().map(named).collect(),
        robots: corps,
        ..month
    };
    let (egress, addresses, connect_timeout_ms) = egress(root, rules, month);
    let mut outbound = outbound(root, clients, &apps, (robots, pools), per_minute);
    outbound.public_url.clone_from(&public_url);
    let origins = egress
        .iter()
        .flat_map(|way| [way.oapi.clone(), way.api.clone()]);
    let inbound = inbound(root, apps, origins.collect());
    let keep = keep(root);
    let log = log(root);
    Some(Config {
        state_dir: PathBuf::from(state_dir?),
        callbacks: callbacks?,
        public_url,
        api: api?,
        admin: admin_listen?,
        addresses,
        keep,
        egress: egress?,
        connect_timeout_ms,
        inbound,
        outbound,
        log,
        warnings: vec![],
    })
}

/// Two doors cannot have one address.
fn distinct(section: &Section<'_>, own: Option<SocketAddr>, others: &[Option<SocketAddr>]) {
    if own.is_some_and(|own| own.port() != 0) && others.contains(&own) {
        let fix = "give each door its own port";
        section.fault("listen", "is the address of another door", fix);
    }
}

enum TlsNeed {
    /// Files, or `false` behind a proxy that terminates TLS.
    UnlessFalse,
    Optional,
}

fn door(section: &Section<'_>, default: &'static str, need: TlsNeed) -> Option<Door> {
    let listen = address(section, default);
    let tls = match (section.value("tls"), need) {
        (Some(Value::Boolean(false)), _) | (None, TlsNeed::Optional) => Some(None),
        (Some(_), _) => files(&section.section("tls")).map(Some),
        (None, TlsNeed::UnlessFalse) => {
            let fix = "set { cert_file, key_file }, or false behind a proxy that terminates TLS";
            section.fault("tls", "is missing", fix);
            None
        }
    };
    let base = Limits::USUAL;
    let limits = Limits {
        connections_max: usize::try_from(section.number("connections_max", 1..=65_536, 1_024))
            .unwrap_or(1_024),
        handshake_timeout_ms: section.number(
            "handshake_timeout_ms",
            100..=60_000,
            base.handshake_timeout_ms,
        ),
        header_timeout_ms: section.number(
            "header_timeout_ms",
            100..=600_000,
            base.header_timeout_ms,
        ),
        body_timeout_ms: section.number("body_timeout_ms", 100..=600_000, base.body_timeout_ms),
        answer_timeout_ms: section.number(
            "answer_timeout_ms",
            100..=600_000,
            base.answer_timeout_ms,
        ),
        body_bytes_max: base.body_bytes_max,
    };
    section.finish();
    Some(Door {
        listen: listen?,
        tls: tls?,
        limits,
    })
}

fn files(section: &Section<'_>) -> Option<Files> {
    let path = |text: &str| text.starts_with('/');
    let cert_file = section.required("cert_file", path, "the absolute path of a PEM file");
    let key_file = section.required("key_file", path, "the absolute path of a PEM file");
    let client_ca_file = section.text("client_ca_file").map(PathBuf::from);
    section.finish();
    Some(Files {
        cert_file: cert_file?.into(),
        key_file: key_file?.into(),
        client_ca_file,
    })
}

fn address(section: &Section<'_>, default: &str) -> Option<SocketAddr> {
    let text = section.text("listen").unwrap_or_else(|| default.to_owned());
    let parsed = text.parse().ok();
    if parsed.is_none() {
        section.fault(
            "listen",
            format!("{text:?} is not an address"),
            "write ip:port, such as 127.0.0.1:8680",
        );
    }
    parsed
}

fn clients(api: &Section<'_>) -> Vec<Client> {
    let sections = api.sections("clients");
    let mut clients: Vec<Client> = vec![];
    for section in sections {
        let name = name(&section, clients.iter().map(|client| client.name.as_str()));
        let token = section.secret("token");
        if token
            .as_ref()
            .is_some_and(|token| token.expose().len() < 16)
        {
            section.fault(
                "token",
                "is shorter than 16 characters",
                "make one: openssl rand -hex 32",
            );
        }
        if let Some(token) = &token
            && clients
                .iter()
                .any(|other| other.token.matches(token.expose()))
        {
            section.fault(
                "token",
                "is that of another [[api.clients]]",
                "make one for each: openssl rand -hex 32",
            );
        }
        let max_priority = match section.text("max_priority").as_deref() {
            None => Priority::Critical,
            Some(text) => Priority::ALL
                .into_iter()
                .find(|p| p.label() == text)
                .unwrap_or_else(|| {
                    section.fault(
                        "max_priority",
                        "is unknown",
                        "write critical, high, normal or low",
                    );
                    Priority::Low
                }),
        };
        let rate = section
            .has("rate_per_s")
            .then(|| section.number("rate_per_s", 1..=100_000, 1));
        let rate = rate
            .and_then(|rate| NonZeroU32::new(u32::try_from(rate).ok()?))
            .map(|rate| Arc::new(outbound::Rate::direct(governor::Quota::per_second(rate))));
        section.finish();
        if let (Some(name), Some(token)) = (name, token) {
            clients.push(Client {
                name,
                token,
                max_priority,
                rate,
            });
        }
    }
    clients
}

fn apps(root: &Section<'_>) -> Vec<(App, Option<Keys>)> {
    let mut apps: Vec<(App, Option<Keys>)> = vec![];
    for section in root.sections("apps") {
        let name = name(&section, apps.iter().map(|(app, _)| app.name.as_str()));
        let corp_id =
            section.required("corp_id", is_plain, "the CorpId of the console's home page");
        let client_id = section.required(
            "client_id",
            is_plain,
            "the Client ID (AppKey) of the app's credentials page",
        );
        let client_secret = section.secret("client_secret");
        // Shown by `dingd guide`; DingTalk's calls for messages do not need it.
        section.number("agent_id", 1..=u64::MAX, 1);
        let cool_app_code = section.text("cool_app_code");
        let robot_code = section.text("robot_code").or_else(|| client_id.clone());
        let ambiguous = match section.text("ambiguous").as_deref() {
            None | Some("retry") => Ambiguous::Retry,
            Some("hold") => Ambiguous::Hold,
            Some("drop") => Ambiguous::Drop,
            Some(_) => {
                let cure = "write \"retry\", \"hold\" or \"drop\"";
                section.fault("ambiguous", "is unknown", cure);
                Ambiguous::Retry
            }
        };
        let keys = section
            .has("callback")
            .then(|| callback(&section.section("callback"), client_id.as_deref()));
        let cards = super::cards::cards(&section.section("cards"));
        let stream = super::stream::stream(&section.section("stream"));
        if cards.callback == egress::CardCallback::Stream && stream.is_none() {
            section.fault(
                "cards.callback",
                "is \"stream\", but the app has no Stream connection: no click would come",
                "set enabled = true in [apps.stream]",
            );
        }
        section.finish();
        if let (Some(name), Some(corp_id), Some(client_id), Some(client_secret), Some(robot_code)) =
            (name, corp_id, client_id, client_secret, robot_code)
        {
            if apps.iter().any(|(known, _)| known.client_id == client_id) {
                let problem =
                    "is that of another [[apps]]: DingTalk counts them as one, so must dingd";
                section.fault("client_id", problem, "name each app once");
            }
            let app = App {
                name,
                corp_id,
                client_id,
                client_secret,
                robot_code,
                cool_app_code,
                ambiguous,
                cards,
                stream,
            };
            apps.push((app, keys.flatten()));
        }
    }
    apps
}

fn callback(section: &Section<'_>, client_id: Option<&str>) -> Option<Keys> {
    let token = section.secret("token");
    let aes_key = section.secret("aes_key");
    let receive_id = section
        .text("receive_id")
        .or_else(|| client_id.map(ToOwned::to_owned));
    let seconds = section.flag("seconds_timestamps", false);
    section.finish();
    match Keys::new(token?, &aes_key?, receive_id?, seconds) {
        Ok(keys) => Some(keys),
        Err(error) => {
            section.fault(
                "aes_key",
                error.to_string(),
                "copy it from 开发配置 → 事件订阅 (event subscription)",
            );
            None
        }
    }
}

/// The organisation, if all apps have the same.
fn only_corp(apps: &[(App, Option<Keys>)]) -> Option<&str> {
    let mut corps = apps.iter().map(|(app, _)| app.corp_id.as_str());
    let first = corps.next()?;
    corps.all(|corp| corp == first).then_some(first)
}

/// The robots of each pool.
type Pools = HashMap<String, Vec<String>>;

/// The robots, their pools, and the organisation of each.
fn robots(
    root: &Section<'_>,
    only_corp: Option<&str>,
) -> (HashMap<String, Robot>, Pools, Vec<(String, String)>) {
    let mut robots: HashMap<String, Robot> = HashMap::new();
    let mut pools = Pools::new();
    let mut corps = vec![];
    let sections = root.sections("robots");
    for section in &sections {
        let name = name(section, robots.keys().map(String::as_str));
        let pool = pool(section, &sections);
        let access_token = section.secret("access_token");
        if access_token
            .as_ref()
            .is_some_and(|token| token.expose().contains("access_token="))
        {
            section.fault(
                "access_token",
                "is a whole URL",
                "write only what follows access_token= in the webhook URL",
            );
        }
        let secret = section.optional_secret("secret");
        let corp_id = if section.has("corp_id") {
            section.required("corp_id", is_plain, "the CorpId of the console's home page")
        } else {
            only_corp.map(ToOwned::to_owned)
        };
        section.finish();
        let same = |known: &Robot| {
            access_token
                .as_ref()
                .is_some_and(|t| known.access_token.matches(t.expose()))
        };
        if robots.values().any(same) {
            let problem =
                "is that of another [[robots]]: DingTalk counts them as one, so must dingd";
            section.fault("access_token", problem, "name each robot once");
        }
        if let (Some(name), Some(access_token)) = (name, access_token) {
            corps.push((name.clone(), corp_id.unwrap_or_default()));
            if let Some(pool) = pool {
                pools.entry(pool).or_default().push(name.clone());
            }
            robots.insert(
                name.clone(),
                Robot {
                    name,
                    access_token,
                    secret,
                },
            );
        }
    }
    (robots, pools, corps)
}

/// The pool of one of the `robots`, which has a name of its own: a message names either.
fn pool(section: &Section<'_>, robots: &[Section<'_>]) -> Option<String> {
    if !section.has("pool") {
        return None;
    }
    let pool = section.required("pool", is_name, NAME_FORM)?;
    let is_robot = |robot: &Section<'_>| {
        let name = robot.value("name").and_then(Value::as_str);
        name == Some(&*pool)
    };
    if robots.iter().any(is_robot) {
        section.fault(
            "pool",
            format!("{pool:?} is the name of a robot"),
            "choose a name that no [[robots]] has",
        );
    }
    Some(pool)
}

/// A CorpId, Client ID and the like.
fn is_plain(text: &str) -> bool {
    !text.is_empty() && text.len() <= 128 && text.bytes().all(|b| b.is_ascii_graphic())
}

fn month(limits: &Section<'_>) -> ledger::Rules {
    let section = limits.section("month");
    let month = ledger::Rules {
        api_calls: section.number("api_calls", 0..=1_000_000_000, 5_000),
        webhook_messages: section.number("webhook_messages", 0..=1_000_000_000, 3_000),
        enforce: section.flag("enforce", false),
        reserve_critical_percent: section.number("reserve_critical_percent", 0..=99, 5),
        ..ledger::Rules::default()
    };
    section.finish();
    month
}

fn limits(root: &Section<'_>) -> (Rules, ledger::Rules) {
    let limits = root.section("limits");
    let mut rules = BTreeMap::new();
    for (key, kind, count, window_ms, reserve) in [
        ("robot", Kind::Robot, 20, 60_000, 5),
        ("chat", Kind::Chat, 20, 60_000, 5),
        ("app_api", Kind::AppApi, 20, 1_000, 0),
        ("egress", Kind::Egress, 8_000, 20_000, 0),
    ] {
        let section = limits.section(key);
        let number = |key, range, default| {
            u32::try_from(section.number(key, range, default)).unwrap_or(u32::MAX)
        };
        let rule = Rule {
            count: number("count", 1..=1_000_000, count),
            window_ms: section.seconds_ms("window_s", window_ms),
            reserve_critical: number("reserve_critical", 0..=1_000_000, reserve),
            margin_ms: section.number(
                "margin_ms",
                0..=60_000,
                if kind == Kind::AppApi { 100 } else { 1_000 },
            ),
            shadow: section.flag("shadow", false),
        };
        if rule.reserve_critical >= rule.count {
            section.fault(
                "reserve_critical",
                "leaves nothing for other messages",
                "make it less than count",
            );
        }
        section.finish();
        rules.insert(kind, rule);
    }
    let month = month(&limits);
    limits.finish();
    (Rules(rules), month)
}

fn egress(
    root: &Section<'_>,
    rules: Rules,
    month: ledger::Rules,
) -> (Option<egress::Settings>, Vec<String>, u64) {
    let section = root.section("egress");
    let addresses = section.texts("addresses");
    let insecure = section.flag("allow_insecure", false);
    let origin = |key, default: &str| {
        let url = section.text(key).unwrap_or_else(|| default.to_owned());
        match Origin::parse(&url, insecure) {
            Ok((origin, path)) if path == "/" => Some(origin),
            Ok(_) => {
                section.fault(key, "has a path", "write scheme and host only");
                None
            }
            Err(error) => {
                section.fault(key, error.to_string(), format!("write {default}"));
                None
            }
        }
    };
    let api = origin("api_url", "https://api.dingtalk.com");
    let oapi = origin("oapi_url", "https://oapi.dingtalk.com");
    let connect_timeout_ms = section.number("connect_timeout_ms", 100..=60_000, 3_000);
    let timeout_ms = section.number("timeout_ms", 100..=120_000, 10_000);
    let ban_wait_ms = section.seconds_ms("ban_wait_s", BAN_MS_MIN);
    section.finish();
    let settings = api.zip(oapi).map(|(api, oapi)| egress::Settings {
        api,
        oapi,
        timeout_ms,
        ban_wait_ms,
        rules,
        month,
    });
    (settings, addresses, connect_timeout_ms)
}

fn outbound(
    root: &Section<'_>,
    clients: Vec<Client>,
    apps: &[(App, Option<Keys>)],
    (robots, pools): (HashMap<String, Robot>, Pools),
    robot_per_minute: f64,
) -> outbound::Settings {
    let section = root.section("outbound");
    let digest = digests(&section.section("digest"));
    let settings = outbound::Settings {
        clients,
        apps: apps.iter().map(|(app, _)| app.clone()).collect(),
        robots,
        pools,
        known_chats_only: section.flag("known_chats_only", false),
        queue_messages_max: section.number("queue_messages_max", 1..=100_000_000, 1_000_000),
        queue_bytes_max: section.number("queue_bytes_max", 1..=1 << 40, 2 << 30),
        concurrency: usize::try_from(section.number("concurrency", 1..=1_024, 64)).unwrap_or(64),
        digest,
        public_url: None,
        robot_per_minute,
    };
    section.finish();
    settings
}

fn digests(section: &Section<'_>) -> Option<Digests> {
    let enabled = section.flag("enabled", true);
    let after_ms = section.seconds_ms("after_s", 60_000);
    let language = match section.text("language").as_deref() {
        None | Some("zh") => Language::Zh,
        Some("en") => Language::En,
        Some(_) => {
            section.fault("language", "is not known", "write \"zh\" or \"en\"");
            Language::Zh
        }
    };
    section.finish();
    enabled.then_some(Digests { after_ms, language })
}

fn inbound(
    root: &Section<'_>,
    apps: Vec<(App, Option<Keys>)>,
    session_origins: Vec<Origin>,
) -> inbound::Settings {
    let section = root.section("inbound");
    let freshness = Freshness {
        past_ms: section.seconds_ms("fresh_past_s", 86_400_000),
        future_ms: section.seconds_ms("fresh_future_s", 600_000),
    };
    if freshness.past_ms >= inbound::DEDUP_KEEP_MS {
        section.fault(
            "fresh_past_s",
            "is not shorter than the 7 days that repeats are recognised",
            "make it shorter",
        );
    }
    let fresh_header_ms = section.seconds_ms("fresh_header_s", 3_600_000);
    if fresh_header_ms >= inbound::DEDUP_KEEP_MS {
        section.fault(
            "fresh_header_s",
            "is not shorter than the 7 days that repeats are recognised",
            "make it shorter",
        );
    }
    let ack_timeout_ms = section.number("ack_timeout_ms", 50..=10_000, 1_000);
    // DingTalk waits for 2,000; what takes longer would be told to nobody, and count as told.
    let answer_deadline_ms = section.number("answer_deadline_ms", 50..=1_900, 1_200);
    let click_window_ms = section.number("click_window_ms", 0..=60_000, 2_000);
    let lifetime_ms = section.seconds_ms("lifetime_s", 7 * 86_400_000);
    let queue_events_max = section.number("queue_events_max", 1..=100_000_000, 1_000_000);
    section.finish();
    let apps: HashMap<_, _> = apps
        .into_iter()
        .map(|(app, keys)| {
            (
                app.name.clone(),
                inbound::App {
                    // Who hears its robot by Stream and has no events page needs no door for it.
                    robot_by_http: keys.is_some() || app.stream.is_none(),
                    name: app.name,
                    corp_id: app.corp_id,
                    keys,
                    client_id: app.client_id,
                    client_secret: app.client_secret,
                    robot_code: app.robot_code,
                    card_secret: app.cards.secret,
                    pending: app.cards.pending,
                },
            )
        })
        .collect();
    let upstreams = upstreams(root, &apps);
    inbound::Settings {
        apps,
        freshness,
        fresh_header_ms,
        ack_timeout_ms,
        answer_deadline_ms,
        click_window_ms,
        session_origins,
        upstreams,
        queue_events_max,
        lifetime_ms,
    }
}

fn upstreams(root: &Section<'_>, apps: &HashMap<String, inbound::App>) -> Vec<Upstream> {
    let mut upstreams: Vec<Upstream> = vec![];
    for section in root.sections("upstreams") {
        let name = name(
            &section,
            upstreams.iter().map(|upstream| upstream.name.as_str()),
        );
        let insecure = section.flag("allow_insecure", false);
        let url = section.required("url", |_| true, "the platform's URL for events");
        let place = url.and_then(|url| {
            Origin::parse(&url, insecure)
                .map_err(|error| section.fault("url", error.to_string(), "write https://…"))
                .ok()
        });
        let secrets = signing_keys(&section);
        let only_apps = section.texts("apps");
        for app in only_apps.iter().filter(|app| !apps.contains_key(*app)) {
            section.fault(
                "apps",
                format!("{app:?} is not in [[apps]]"),
                "name configured apps",
            );
        }
        let events = section.texts("events");
        let timeout_ms = section.number("timeout_ms", 100..=120_000, 15_000);
        let concurrency = u32::try_from(section.number("concurrency", 1..=1_024, 16)).unwrap_or(16);
        let answers = section.flag("answers", false);
        let shares_apps = |other: &Upstream| {
            other.apps.is_empty()
                || only_apps.is_empty()
                || other.apps.iter().any(|app| only_apps.contains(app))
        };
        if let Some(other) = upstreams
            .iter()
            .find(|up| answers && up.answers && shares_apps(up))
        {
            section.fault(
                "answers",
                format!(
                    "so does {:?} for the same app: only one can answer",
                    other.name
                ),
                "set it for one upstream an app",
            );
        }
        section.finish();
        if let (Some(name), Some((origin, path))) = (name, place) {
            upstreams.push(Upstream {
                name,
                origin,
                path,
                secrets,
                apps: only_apps,
                events,
                timeout_ms,
                concurrency,
                answers,
            });
        }
    }
    upstreams
}

/// The keys that sign deliveries; the first is the current one.
fn signing_keys(section: &Section<'_>) -> Vec<zeroize::Zeroizing<Vec<u8>>> {
    let secrets = [
        ("secret", section.secret("secret")),
        (
            "secret_previous",
            section.optional_secret("secret_previous"),
        ),
    ];
    secrets
        .into_iter()
        .filter_map(|(name, secret)| {
            let secret = secret?;
            let key = secret
                .expose()
                .strip_prefix("whsec_")
                .and_then(|key| STANDARD.decode(key).ok());
            if key.as_ref().is_none_or(|key| key.len() < 16) {
                let fix = "make one: echo whsec_$(openssl rand -base64 32)";
                section.fault(name, "is not whsec_ and base64 of at least 16 bytes", fix);
            }
            key.map(zeroize::Zeroizing::new)
        })
        .collect()
}

fn keep(root: &Section<'_>) -> Keep {
    let section = root.section("journal");
    let keep = Keep {
        finished_ms: section.seconds_ms("keep_finished_s", 7 * 86_400_000),
        dead_ms: section.seconds_ms("keep_dead_s", 30 * 86_400_000),
        dead_bytes_max: section.number("dead_bytes_max", 0..=1 << 50, 1 << 30),
    };
    section.finish();
    keep
}

fn log(root: &Section<'_>) -> Log {
    let section = root.section("log");
    let json = match section.text("format").as_deref() {
        None | Some("text") => false,
        Some("json") => true,
        Some(_) => {
            section.fault("format", "is unknown", "write text or json");
            false
        }
    };
    let level = section.text("level").unwrap_or_else(|| "info".to_owned());
    if !is_level(&level) {
        section.fault(
            "level",
            "is not a level",
            "write error, warn, info, debug or trace; or directives, such as warn,dingd::audit=info",
        );
    }
    section.finish();
    Log { json, level }
}

/// Levels, and levels of modules. The library takes a misspelt level for a module, of which everything is logged,
/// and of all others nothing.
fn is_level(text: &str) -> bool {
    let known = |level: &str| {
        level
            .parse::<tracing_subscriber::filter::LevelFilter>()
            .is_ok()
    };
    text.parse::<tracing_subscriber::filter::EnvFilter>()
        .is_ok()
        && text.split(',').all(|directive| {
            let (module, level) = directive.rsplit_once('=').unzip();
            let is_module = |module: &str| !module.contains(':') || module.contains("::");
            known(level.unwrap_or(directive)) && module.is_none_or(is_module)
        })
}

/// What a name looks like.
const NAME_FORM: &str = "1 to 32 of a-z, 0-9, - and _";

fn is_name(text: &str) -> bool {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_';
    (1..=32).contains(&text.len()) && text.bytes().all(plain)
}

/// A name: part of paths, metrics and logs, so it is plain; and it is given once.
fn name<'s>(section: &Section<'_>, mut taken: impl Iterator<Item = &'s str>) -> Option<String> {
    let name = section.required("name", is_name, NAME_FORM)?;
    if taken.any(|known| known == name) {
        section.fault(
            "name",
            format!("{name:?} is given twice"),
            "choose another name",
        );
    }
    Some(name)
}
