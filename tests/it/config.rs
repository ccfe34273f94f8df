//! The configuration: the example is the reference, and every fault is found at once.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use dingd::config::read::Sources;
use dingd::config::{Config, parse};

fn credentials(dir: &Path) -> String {
    for (name, value) in [
        ("api-token", "0123456789abcdef0123"),
        ("oncall-client-secret", "secret"),
        ("oncall-callback-token", "token01"),
        ("oncall-callback-aes-key", &"a".repeat(43)),
        ("sre-robot-token", "robottoken"),
        ("sre-robot-secret", "SEC0123"),
        ("flashduty-webhook-secret", "whsec_MDEyMzQ1Njc4OWFiY2RlZg=="),
    ] {
        std::fs::write(dir.join(name), value).unwrap();
    }
    dir.display().to_string()
}

fn read(text: &str) -> Result<Config, Vec<String>> {
    let dir = tempfile::tempdir().unwrap();
    let credentials = credentials(dir.path());
    let env: BTreeMap<_, _> = [
        ("CREDENTIALS_DIRECTORY", credentials),
        ("ROBOT_TOKEN", "from-the-environment".to_owned()),
    ]
    .into();
    let env = |name: &str| env.get(name).cloned();
    parse(text, &Sources { env: &env }).map_err(|faults| {
        faults
            .iter()
            .map(|fault| format!("{}: {}", fault.key, fault.problem))
            .collect()
    })
}

fn example() -> String {
    std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/config.example.toml")).unwrap()
}

/// What must be set, and nothing else.
const MINIMAL: &str = r#"
state_dir = "/var/lib/dingd"
[callbacks]
public_url = "https://alerts.example.com"
tls = { cert_file = "/etc/dingd/tls/cert.pem", key_file = "/etc/dingd/tls/key.pem" }
[[api.clients]]
name = "flashduty"
token = { credential = "api-token" }
[egress]
addresses = ["203.0.113.7"]
[[apps]]
name = "oncall"
corp_id = "dingcorp0001"
client_id = "dingabc123"
client_secret = { credential = "oncall-client-secret" }
cool_app_code = "COOLAPP-1-10182EEDD1AC0BA600D9000J"
[apps.callback]
token = { credential = "oncall-callback-token" }
aes_key = { credential = "oncall-callback-aes-key" }
[[robots]]
name = "sre-group"
access_token = { credential = "sre-robot-token" }
secret = { credential = "sre-robot-secret" }
[[upstreams]]
name = "flashduty"
url = "https://alerts.internal/dingtalk/events"
secret = { credential = "flashduty-webhook-secret" }
"#;

#[test]
fn the_example_is_good_and_states_the_real_defaults() {
    let (example, minimal) = (read(&example()).unwrap(), read(MINIMAL).unwrap());
    // Secrets show as [secret] on both sides; everything else must be the same.
    let shown = |config: &Config| format!("{config:#?}");
    assert_eq!(shown(&example), shown(&minimal));
}

#[test]
fn every_key_of_the_example_is_read_and_checked() {
    let table: toml::Table = example().parse().unwrap();
    let mut keys = vec![];
    leaves(&toml::Value::Table(table), &mut vec![], &mut keys);
    assert!(keys.len() > 60, "{}", keys.len());
    for path in keys {
        let mut table = toml::Value::Table(example().parse().unwrap());
        let mut at = &mut table;
        for step in &path {
            at = match at {
                toml::Value::Table(table) => table.get_mut(step).unwrap(),
                toml::Value::Array(list) => list.get_mut(0).unwrap(),
                _ => unreachable!(),
            };
        }
        // A date is right for no key at all.
        *at = toml::Value::Datetime("2026-11-22".parse().unwrap());
        let text = toml::to_string(&table).unwrap();
        assert!(read(&text).is_err(), "nobody looks at {path:?}");
    }
}

fn leaves(value: &toml::Value, path: &mut Vec<String>, out: &mut Vec<Vec<String>>) {
    match value {
        toml::Value::Table(table) if !is_secret(table) => {
            for (key, value) in table {
                path.push(key.clone());
                leaves(value, path, out);
                path.pop();
            }
        }
        toml::Value::Array(list) if list.first().is_some_and(toml::Value::is_table) => {
            path.push("0".to_owned());
            leaves(&list[0], path, out);
            path.pop();
        }
        _ => out.push(path.clone()),
    }
}

fn is_secret(table: &toml::Table) -> bool {
    table.len() == 1 && table.contains_key("credential")
}

#[test]
fn all_faults_are_told_at_once_with_their_keys() {
    let text = r#"
        state_dir = "relative"
        state_dri = "x"
        [callbacks]
        listen = "nowhere"
        [api]
        connections_max = -1
        [[api.clients]]
        name = "UPPER"
        token = "short"
        max_priority = "urgent"
        [[api.clients]]
        name = "b"
        token = "0123456789abcdef"
        [[api.clients]]
        name = "c"
        token = "0123456789abcdef"
        [egress]
        api_url = "http://api.example.com"
        [[apps]]
        name = "a"
        corp_id = ""
        client_secret = { vault = "x" }
        [apps.callback]
        token = { env = "NOT_SET" }
        aes_key = "tooshort"
        [[robots]]
        name = "r"
        access_token = "https://oapi.dingtalk.com/robot/send?access_token=x"
        [[upstreams]]
        name = "u"
        url = "ftp://x"
        secret = "plain"
        apps = ["b"]
        [limits.robot]
        count = 5
        reserve_critical = 5
        [limits.month]
        api_calls = -1
        reserve_critical_percent = 100
        enforced = true
        [log]
        format = "xml"
    "#;
    let faults = read(text).unwrap_err().join("\n");
    for key in [
        "state_dir:",
        "state_dri: is unknown",
        "callbacks.listen",
        "callbacks.tls",
        "api.connections_max",
        "api.clients[0].name",
        "api.clients[2].token: is that of another",
        "api.clients[0].token",
        "api.clients[0].max_priority",
        "egress.api_url",
        "apps[0].corp_id",
        "apps[0].client_id: is missing",
        "apps[0].client_secret",
        "apps[0].callback.token",
        "robots[0].access_token",
        "upstreams[0].url",
        "upstreams[0].secret",
        "upstreams[0].apps",
        "limits.robot.reserve_critical",
        "limits.month.api_calls",
        "limits.month.reserve_critical_percent",
        "limits.month.enforced: is unknown",
        "log.format",
    ] {
        assert!(faults.contains(key), "{key} is missing in:\n{faults}");
    }
}

#[test]
fn a_pool_has_a_name_that_no_robot_has() {
    let robot = "name = \"sre-group\"\n";
    let in_pool = |pool: &str| format!("{robot}pool = {pool}\n");
    let read = |pool: &str| read(&MINIMAL.replace(robot, &in_pool(pool)));
    let good = read("\"sre\"").unwrap();
    assert_eq!(good.outbound.pools["sre"], ["sre-group"], "one is enough");
    for (pool, fault) in [
        (
            "\"sre-group\"",
            "robots[0].pool: \"sre-group\" is the name of a robot",
        ),
        ("\"SRE\"", "robots[0].pool: \"SRE\" is not 1 to 32 of"),
        ("7", "robots[0].pool: is a number"),
    ] {
        let faults = read(pool).unwrap_err().join("\n");
        assert!(faults.starts_with(fault), "{faults}");
    }
    let later = "[[robots]]\nname = \"sre\"\naccess_token = \"other\"\npool = \"p\"\n";
    let later = format!("{}{later}", MINIMAL.replace(robot, &in_pool("\"sre\"")));
    let faults = self::read(&later).unwrap_err();
    assert_eq!(faults, ["robots[0].pool: \"sre\" is the name of a robot"]);
}

#[test]
fn a_robot_belongs_to_the_only_organisation_or_to_the_one_that_is_named() {
    let second =
        "[[apps]]\nname = \"b\"\ncorp_id = \"other\"\nclient_id = \"b\"\nclient_secret = \"s\"\n";
    let robot = "name = \"sre-group\"\n";
    let named = format!("{robot}corp_id = \"other\"\n");
    for (text, corp) in [
        (MINIMAL.to_owned(), "dingcorp0001"),
        (format!("{MINIMAL}{second}"), ""),
        (format!("{MINIMAL}{second}").replace(robot, &named), "other"),
    ] {
        let robots = read(&text).unwrap().egress.month.robots;
        assert_eq!(robots, [("sre-group".to_owned(), corp.to_owned())]);
    }
    let empty = MINIMAL.replace(robot, &format!("{robot}corp_id = \"\"\n"));
    assert!(read(&empty).unwrap_err()[0].starts_with("robots[0].corp_id"));
}

#[test]
fn a_stream_connection_is_asked_for_and_its_times_fit_together() {
    let with = |keys: &str| {
        let table = format!("[apps.stream]\n{keys}\n[apps.callback]");
        read(&MINIMAL.replace("[apps.callback]", &table))
    };
    let stream = |keys: &str| with(keys).unwrap().outbound.apps[0].stream;
    assert_eq!(stream(""), None);
    assert_eq!(stream("enabled = false\nping_s = 5"), None);
    let stream = stream("enabled = true\nping_s = 5").unwrap();
    assert_eq!((stream.ping_ms, stream.silence_ms), (5_000, 60_000));
    for (keys, fault) in [
        (
            "ping_s = 60",
            "apps[0].stream.ping_s: is not shorter than silence_s",
        ),
        (
            "renew_s = 60",
            "apps[0].stream.renew_s: is not longer than silence_s",
        ),
        ("retry_min_s = 61", "apps[0].stream.retry_min_s: is longer"),
        ("renew = 1", "apps[0].stream.renew: is unknown"),
        ("enabled = \"yes\"", "apps[0].stream.enabled: is neither"),
    ] {
        let faults = with(keys).unwrap_err().join("\n");
        assert!(faults.starts_with(fault), "{keys}: {faults}");
    }
    let clicks = |enabled: bool, api: &str| {
        let cards = format!("[apps.cards]\ncallback = \"stream\"\napi = \"{api}\"");
        with(&format!("enabled = {enabled}\n{cards}")).map(drop)
    };
    assert_eq!(clicks(true, "current"), Ok(()));
    for (enabled, api) in [(false, "current"), (true, "legacy")] {
        let faults = clicks(enabled, api).unwrap_err();
        assert!(
            faults[0].starts_with("apps[0].cards.callback"),
            "{faults:?}"
        );
    }
}

/// What came later than a repeat is recognised could come again; what DingTalk does not wait for is told to
/// nobody.
#[test]
fn the_times_of_clicks_and_messages_fit_those_of_dingtalk() {
    let with = |key: &str| read(&format!("{MINIMAL}[inbound]\n{key}\n")).map(drop);
    for (good, bad, fault) in [
        (
            "fresh_header_s = 604799",
            "fresh_header_s = 604800",
            "inbound.fresh_header_s: is not shorter",
        ),
        (
            "answer_deadline_ms = 1900",
            "answer_deadline_ms = 2000",
            "inbound.answer_deadline_ms: ",
        ),
    ] {
        assert_eq!(with(good), Ok(()));
        let faults = with(bad).unwrap_err().join("\n");
        assert!(faults.starts_with(fault), "{faults}");
    }
}

#[test]
fn a_secret_file_that_others_can_read_is_refused() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("secret");
    std::fs::write(&file, " sssh\n").unwrap();
    let text = MINIMAL.replace(
        "{ credential = \"sre-robot-token\" }",
        &format!("{{ file = {file:?} }}"),
    );
    for (mode, good) in [(0o600, true), (0o640, false), (0o604, false)] {
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
        assert_eq!(read(&text).is_ok(), good, "{mode:o}");
    }
}

#[test]
fn an_insecure_url_needs_a_word_beside_it() {
    let text = MINIMAL.replace("https://alerts.internal", "http://alerts.internal");
    assert!(read(&text).unwrap_err()[0].starts_with("upstreams[0].url"));
    assert!(read(&format!("{text}allow_insecure = true\n")).is_ok());
}

#[test]
fn check_exits_64_and_names_file_and_key() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("c.toml");
    std::fs::write(&file, "state_dir = 1\n").unwrap();
    let out = std::process::Command::new(env!("CARGO_BIN_EXE_dingd"))
        .args(["check", "--config"])
        .arg(&file)
        .output()
        .unwrap();
    assert_eq!(out.status.code(), Some(64));
    let text = String::from_utf8(out.stderr).unwrap();
    assert!(text.contains("c.toml: state_dir: is a number"), "{text}");
}

/// What a library takes for something else than was meant.
#[test]
fn what_would_be_misread_is_refused() {
    let with = |level: &str| format!("{MINIMAL}[log]\nlevel = \"{level}\"\n");
    for level in ["off", "warn", "warn,dingd::audit=info", "hyper=debug,info"] {
        assert!(read(&with(level)).is_ok(), "{level}");
    }
    for level in ["wran", "warn,dingd:audit=info", "warn,dingd", "dingd=inof"] {
        let faults = read(&with(level)).unwrap_err();
        assert_eq!(faults, ["log.level: is not a level"], "{level}");
    }
    let long = format!("/var/lib/{}", "d".repeat(90));
    let door = "[admin]\nlisten = \"0.0.0.0:8443\"\n[callbacks]\n";
    for (from, to, fault) in [
        (
            "internal/",
            "internal:99999/",
            "upstreams[0].url: is not an absolute",
        ),
        (
            "internal/",
            "internal:/",
            "upstreams[0].url: is not an absolute",
        ),
        (
            "\"https://alerts.ex",
            "\"http://alerts.ex",
            "callbacks.public_url: uses http",
        ),
        (
            "\"https://alerts.ex",
            "\"alerts.ex",
            "callbacks.public_url: is not an absolute",
        ),
        ("/var/lib/dingd", &long, "state_dir:"),
        (
            "[callbacks]\n",
            door,
            "admin.listen: is the address of another",
        ),
        (
            "secret = { credential = \"flashduty-webhook-secret\" }",
            "secret = { credential = \"flashduty-webhook-secret\" }\nsecret_previous = \"whsec_short\"",
            "upstreams[0].secret_previous: is not whsec_",
        ),
    ] {
        let text = MINIMAL.replacen(from, to, 1);
        assert_ne!(text, MINIMAL);
        let faults = read(&text).unwrap_err();
        assert!(
            faults.len() == 1 && faults[0].starts_with(fault),
            "{faults:?}"
        );
    }
}

/// What is no TOML was shown with its line, on `/ready` too, and by every command that asks a daemon.
#[test]
fn a_line_that_cannot_be_read_is_named_by_its_number_alone() {
    let text = format!("{MINIMAL}\n[x]\nclient_secret = \"canary-secret\n");
    let faults = format!("{:?}", read(&text).unwrap_err());
    assert!(!faults.contains("canary"), "{faults}");
    let line = MINIMAL.lines().count() + 3;
    assert!(
        faults.contains(&format!("line {line} is not TOML")),
        "{faults}"
    );
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("c.toml");
    std::fs::write(&file, text).unwrap();
    for command in ["check", "status", "journal check"] {
        let out = std::process::Command::new(env!("CARGO_BIN_EXE_dingd"))
            .args(command.split(' '))
            .arg("--config")
            .arg(&file)
            .output()
            .unwrap();
        let said = format!("{out:?}");
        assert!(said.contains(&format!("line {line}")), "{command}: {said}");
        assert!(!said.contains("canary"), "{command}: {said}");
    }
}

#[test]
fn hostile_configurations_are_refused_without_a_panic() {
    let mut dice = crate::support::Dice::new(7);
    let base = example();
    for _ in 0..300 {
        let mut bytes = base.clone().into_bytes();
        for _ in 0..=dice.below(4) {
            let at = usize::try_from(dice.below(bytes.len() as u64)).unwrap();
            bytes[at] = u8::try_from(32 + dice.below(95)).unwrap();
        }
        drop(read(&String::from_utf8_lossy(&bytes)));
    }
}

#[test]
fn a_secret_from_the_environment_works_with_a_warning() {
    let text = MINIMAL.replace(
        "{ credential = \"sre-robot-token\" }",
        "{ env = \"ROBOT_TOKEN\" }",
    );
    assert_ne!(text, MINIMAL);
    let config = read(&text).unwrap();
    let robot = &config.outbound.robots["sre-group"];
    assert_eq!(robot.access_token.expose(), "from-the-environment");
    let mut warned = config.warnings.iter();
    assert!(warned.any(|warning| warning.key == "robots[0].access_token"));
}

/// Whatever the configuration is asked for by name stands in the example, with its default and why.
#[test]
fn the_example_has_every_key_that_is_read() {
    let example =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/config.example.toml"));
    let example = example.unwrap();
    let words: BTreeSet<_> = example
        .split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .collect();
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/config");
    let (mut keys, mut missing) = (0, vec![]);
    for file in std::fs::read_dir(sources).unwrap() {
        let text = std::fs::read_to_string(file.unwrap().path()).unwrap();
        // `section.number("count", …)`, `section.flag(\n    "shadow", …)`.
        for call in text.split("section").skip(1) {
            let Some((method, arguments)) = call.split_once('(') else {
                continue;
            };
            let Some(key) = arguments.trim_start().strip_prefix('"') else {
                continue;
            };
            let key = key.split('"').next().unwrap();
            if method.starts_with('.') && method.len() < 20 {
                keys += 1;
                let unknown = key.split('.').filter(|part| !words.contains(part));
                missing.extend(unknown.map(str::to_owned));
            }
        }
    }
    assert!(keys > 60, "{keys}");
    assert!(missing.is_empty(), "{missing:?}");
}
