//! Style is a test: who may name whom, and what may be named only in one place.

use std::path::{Path, PathBuf};

/// Each room may name only rooms further right; rooms in one group do not name each other, but for
/// `dingtalk`, whose table makes `delivery`'s verdicts.
const HOUSE: &[&[&str]] = &[
    &["cli"],
    &["app", "sim"],
    &["config", "admin"],
    &["inbound", "outbound"],
    &["directory"],
    &["cache"],
    &["egress"],
    &["http", "journal"],
    &["metrics"],
    &["dingtalk"],
    &["delivery"],
    &["clock", "drain", "health", "seal", "secret"],
    &["faults"],
];

fn rank(room: &str) -> Option<usize> {
    HOUSE.iter().position(|group| group.contains(&room))
}

fn sources() -> Vec<(PathBuf, String)> {
    let mut files = vec![];
    walk(
        &Path::new(env!("CARGO_MANIFEST_DIR")).join("src"),
        &mut files,
    );
    assert!(files.len() > 60);
    files
}

fn walk(dir: &Path, out: &mut Vec<(PathBuf, String)>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            walk(&path, out);
        } else if path.extension().is_some_and(|end| end == "rs") {
            out.push((path.clone(), std::fs::read_to_string(path).unwrap()));
        }
    }
}

/// The room of a file: the first part of its path below `src`.
fn room(path: &Path) -> String {
    let below = path
        .strip_prefix(Path::new(env!("CARGO_MANIFEST_DIR")).join("src"))
        .unwrap();
    below
        .components()
        .next()
        .unwrap()
        .as_os_str()
        .to_str()
        .unwrap()
        .trim_end_matches(".rs")
        .to_owned()
}

/// Code without comments and without what only tests see: an item after `#[cfg(test)]` ends with a `;` on
/// its first line or with a `}` in the first column.
fn code(text: &str) -> String {
    let mut kept = vec![];
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if line.starts_with("#[cfg(test)]") {
            let first = lines.by_ref().find(|line| !line.starts_with("#["));
            if first.is_some_and(|line| !line.ends_with(';')) {
                lines.by_ref().find(|line| *line == "}");
            }
        } else if !line.trim_start().starts_with("//") {
            kept.push(line);
        }
    }
    kept.join("\n")
}

#[test]
fn what_only_tests_see_is_left_out_and_nothing_else() {
    let text =
        "a\n#[cfg(test)]\nmod tests;\nb\n#[cfg(test)]\n#[expect(x)]\nmod more {\n    c\n}\n// d\ne";
    assert_eq!(code(text), "a\nb\ne");
}

fn named(text: &str) -> Vec<String> {
    let mut rooms = vec![];
    for (at, _) in text.match_indices("crate::") {
        let rest = &text[at + 7..];
        if let Some(group) = rest.strip_prefix('{') {
            let group = &group[..group.find(';').unwrap_or(group.len())];
            let word = |part: &str| {
                part.trim()
                    .chars()
                    .take_while(|c| c.is_alphanumeric() || *c == '_')
                    .collect()
            };
            rooms.extend(group.split(',').map(word));
        } else {
            rooms.push(
                rest.chars()
                    .take_while(|c| c.is_alphanumeric() || *c == '_')
                    .collect(),
            );
        }
    }
    rooms
}

#[test]
fn each_room_names_only_rooms_to_its_right() {
    let mut wrong = vec![];
    for (path, text) in sources() {
        let own = room(&path);
        let Some(own_rank) = rank(&own) else { continue };
        for other in named(&code(&text)) {
            if let Some(other_rank) = rank(&other)
                && other != own
                && other_rank <= own_rank
            {
                wrong.push(format!("{} ({own}) names {other}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_pure_rooms_name_no_runtime_network_engine_or_clock_reading() {
    for (path, text) in sources() {
        if matches!(room(&path).as_str(), "dingtalk" | "delivery") {
            for banned in [
                "tokio",
                "hyper",
                "redb",
                "sled",
                "SystemTime",
                "Instant",
                "Clock",
            ] {
                assert!(
                    !code(&text).contains(banned),
                    "{} names {banned}",
                    path.display()
                );
            }
        }
    }
}

#[test]
fn each_engine_is_named_in_one_file() {
    for (engine, home) in [
        ("redb::", "journal/engine.rs"),
        ("sled::", "cache/store.rs"),
    ] {
        for (path, text) in sources() {
            let at_home = path.ends_with(home);
            assert!(
                at_home || !code(&text).contains(engine),
                "{} names {engine}",
                path.display()
            );
        }
    }
}

#[test]
fn the_box_shares_no_code_with_the_daemon() {
    for (path, text) in sources() {
        if room(&path) == "sim" {
            for other in named(&code(&text)) {
                assert!(
                    matches!(other.as_str(), "sim" | "http"),
                    "{} names {other}",
                    path.display()
                );
            }
        }
    }
}

#[test]
fn every_file_says_first_what_it_is_for() {
    for (path, text) in sources() {
        assert!(text.starts_with("//! "), "{}", path.display());
    }
}

/// Clients go by slugs: whatever can be answered is in the table of problems, in both languages.
#[test]
fn every_slug_of_a_problem_is_in_both_readmes() {
    let mut slugs = std::collections::BTreeSet::new();
    for (path, text) in sources() {
        if room(&path) == "sim" {
            continue;
        }
        for made in [
            "Problem::new(",
            "Problem::unavailable(",
            "Problem::from_reason(",
        ] {
            for call in text.split(made).skip(1) {
                // The status is a number, the slug the first text; one place has it in a variable.
                let first = call.split('"').nth(1).unwrap();
                let is_slug = first.bytes().all(|b| b == b'_' || b.is_ascii_lowercase());
                if is_slug && !first.is_empty() {
                    slugs.insert(first.to_owned());
                }
            }
        }
    }
    slugs.insert("card_route_differs".to_owned());
    assert!(slugs.len() > 25, "{slugs:?}");
    for readme in [
        include_str!("../../README.md"),
        include_str!("../../README.zh-CN.md"),
    ] {
        let missing: Vec<_> = slugs
            .iter()
            .filter(|slug| !readme.contains(&format!("`{slug}`")))
            .collect();
        assert!(missing.is_empty(), "{missing:?}");
    }
}
