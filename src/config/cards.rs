//! `[apps.cards]`: how an app's cards reach us when somebody clicks, and what the clicker sees meanwhile.

use std::collections::BTreeMap;

use toml::Value;

use super::read::Section;
use crate::dingtalk::card::{KEY_BYTES_MAX, VALUE_BYTES_MAX};
use crate::egress::{CardCallback, Cards};

/// Reads the table; without it the app's cards have no callback.
pub(super) fn cards(section: &Section<'_>) -> Cards {
    let callback = match section.text("callback").as_deref() {
        None | Some("none") => CardCallback::None,
        Some("http") => CardCallback::Http,
        Some("stream") => CardCallback::Stream,
        Some(_) => {
            section.fault(
                "callback",
                "is unknown",
                "write \"http\", \"stream\" or \"none\"",
            );
            CardCallback::None
        }
    };
    let route_key = section.text("route_key");
    let secret = section.optional_secret("secret");
    if callback == CardCallback::Http {
        if route_key.as_deref().is_none_or(|key| !is_route_key(key)) {
            section.fault(
                "route_key",
                "is needed with callback = \"http\": 1 to 64 printable characters without spaces",
                "choose a name such as \"dingd-oncall\", then run dingd cards register",
            );
        }
        if secret.is_none() && !section.has("secret") {
            section.fault(
                "secret",
                "is missing: without it anybody could click",
                "make one: openssl rand -hex 32",
            );
        }
    }
    if secret
        .as_ref()
        .is_some_and(|secret| secret.expose().len() < 16)
    {
        section.fault(
            "secret",
            "is shorter than 16 characters",
            "make one: openssl rand -hex 32",
        );
    }
    let legacy = match section.text("api").as_deref() {
        None | Some("current") => false,
        Some("legacy") => true,
        Some(_) => {
            section.fault("api", "is unknown", "write \"current\" or \"legacy\"");
            false
        }
    };
    // Such a card names a route and nothing else (outbound.md §4.6).
    if legacy && callback == CardCallback::Stream {
        section.fault(
            "callback",
            "is \"stream\", but cards of api = \"legacy\" call back over HTTP only: no click would come",
            "write callback = \"http\" or \"none\", or api = \"current\"",
        );
    }
    let pending = pending(section);
    section.finish();
    Cards {
        callback,
        route_key,
        secret,
        pending,
        legacy,
    }
}

fn is_route_key(key: &str) -> bool {
    (1..=64).contains(&key.len()) && key.bytes().all(|b| b.is_ascii_graphic())
}

fn pending(section: &Section<'_>) -> BTreeMap<String, String> {
    let mut pending = BTreeMap::new();
    let Some(value) = section.value("pending") else {
        return pending;
    };
    let Value::Table(table) = value else {
        section.fault(
            "pending",
            "is not a table",
            "write pending = { dingd_state = \"pending\" }",
        );
        return pending;
    };
    for (name, value) in table {
        match value {
            Value::String(text)
                if !name.is_empty()
                    && name.len() <= KEY_BYTES_MAX
                    && text.len() <= VALUE_BYTES_MAX =>
            {
                pending.insert(name.clone(), text.clone());
            }
            _ => section.fault(
                "pending",
                format!(
                    "{name:?} is not a text of at most 1,024 bytes under a name of at most 100"
                ),
                "all variables of a card are texts",
            ),
        }
    }
    pending
}
