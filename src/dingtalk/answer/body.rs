//! An answer's body as facts: which code, which message, which lists, or that it is no JSON at all.
//!
//! Pure and total: whatever the bytes are, reading them ends in a value. Field names are compared
//! without case: DingTalk's own gateway library reads them in two spellings (outbound.md §0).

use std::borrow::Cow;
use std::collections::HashSet;

use serde_json::{Map, Value};

/// A staff id list longer than this is not an answer to a call with 20 recipients.
const IDS_MAX: usize = 1_000;
/// Scopes shown to the operator; more would not fit the console's search box anyway.
const SCOPES_MAX: usize = 8;
/// The longest ban that we believe, in minutes; DingTalk's own is 5 (outbound.md §7.3).
const BAN_WAIT_MIN_MAX: u64 = 60;
const CODE_BYTES_MAX: usize = 96;
const MESSAGE_BYTES_MAX: usize = 256;
const REQUEST_ID_BYTES_MAX: usize = 64;

/// What the bytes turned out to be.
#[derive(Debug)]
pub(super) enum Body {
    /// One JSON object, whole.
    Object(Object),
    /// Markup: a ban page or a gateway's error page, the status tells which.
    Html,
    /// Anything else; the text says what, for the operator.
    Unreadable(&'static str),
}

/// One JSON object with forgiving look-ups.
#[derive(Debug)]
pub(super) struct Object(Map<String, Value>);

/// DingTalk's own refusal, cleaned for logs and API answers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Refusal {
    /// The code that decides: `errcode`, or `sub_code` inside an 88, or `code`.
    pub(super) code: String,
    /// Whether the code was found inside `errcode` 88.
    pub(super) wrapped: bool,
    pub(super) message: String,
    pub(super) request_id: Option<String>,
    /// Permissions that the refusal names as missing.
    pub(super) scopes: Vec<String>,
}

/// What one space of a card's delivery came to (outbound.md §4.2).
#[derive(Debug)]
pub(super) struct Delivered {
    pub(super) success: bool,
    pub(super) space_id: String,
    pub(super) carrier_id: Option<String>,
    pub(super) error: String,
}

impl Body {
    /// Reads the bytes. A body that was cut off is never trusted as JSON, even if it parses.
    pub(super) fn read(bytes: &[u8], complete: bool) -> Self {
        let bytes = bytes
            .strip_prefix(b"\xef\xbb\xbf")
            .unwrap_or(bytes)
            .trim_ascii();
        match bytes.first() {
            None if complete => Self::Unreadable("an empty body"),
            Some(b'<') => Self::Html,
            _ if !complete => {
                Self::Unreadable("a body that broke off, is too long or badly compressed")
            }
            _ => serde_json::from_slice(bytes).map_or(
                Self::Unreadable("a body that is no JSON object"),
                |fields| Self::Object(Object(fields)),
            ),
        }
    }

    /// The refusal in the body, if there is one.
    pub(super) fn refusal(&self) -> Option<Refusal> {
        match self {
            Self::Object(object) => object.refusal(),
            Self::Html | Self::Unreadable(_) => None,
        }
    }
}

impl Object {
    /// DingTalk's refusal. `errcode` is looked at before `code`: a fused ban page carries both an
    /// `errcode` and a `status`, and the former is the more precise (outbound.md §3.5).
    pub(super) fn refusal(&self) -> Option<Refusal> {
        let legacy = self.code("errcode");
        let sub = legacy
            .as_deref()
            .filter(|code| *code == "88")
            .and_then(|_| self.code("sub_code").or_else(|| self.code("subcode")));
        let wrapped = sub.is_some();
        let code = sub.or(legacy).or_else(|| self.code("code"))?;
        let said: &[&str] = if wrapped {
            &["sub_msg", "submsg", "errmsg"]
        } else {
            &["errmsg", "message", "sub_msg"]
        };
        let message = said
            .iter()
            .find_map(|name| self.text(name))
            .unwrap_or_default();
        let code = Some(clean(&code, CODE_BYTES_MAX)).filter(|code| !code.is_empty());
        Some(Refusal {
            // A code of nothing but control characters is still a refusal.
            code: code.unwrap_or_else(|| "?".to_owned()),
            wrapped,
            message: clean(message, MESSAGE_BYTES_MAX),
            request_id: ["requestid", "request_id"]
                .iter()
                .find_map(|name| self.text(name))
                .map(|id| clean(id, REQUEST_ID_BYTES_MAX)),
            scopes: self.scopes(message),
        })
    }

    /// `errcode` 0, as a number or as a string: the legacy generation's "done" (outbound.md §0).
    pub(super) fn says_ok(&self) -> bool {
        self.scalar("errcode").is_some_and(|code| code == "0")
    }

    /// `success` is there and false: whatever else the body claims, it is no success.
    pub(super) fn says_failed(&self) -> bool {
        self.flag("success") == Some(false)
    }

    /// Whether one of these lists names somebody, or is no list: then some may have been reached.
    pub(super) fn names_any(&self, lists: &[&str]) -> bool {
        lists
            .iter()
            .any(|name| self.ids(name).is_none_or(|ids| !ids.is_empty()))
    }

    /// The minutes of a punishment (outbound.md §7.3); `None` if the body is no punishment.
    pub(super) fn punishment_min(&self) -> Option<u64> {
        let punished = self.text("punish").is_some()
            || self.scalar("status").is_some_and(|status| status == "1111");
        let wait = || {
            self.scalar("wait")
                .and_then(|wait| wait.parse::<u64>().ok())
        };
        punished.then(|| wait().unwrap_or(0).min(BAN_WAIT_MIN_MAX))
    }

    /// A non-empty string.
    pub(super) fn text(&self, name: &str) -> Option<&str> {
        text(&self.0, name)
    }

    /// A boolean, also as the string `"true"` or `"false"`.
    pub(super) fn flag(&self, name: &str) -> Option<bool> {
        flag(&self.0, name)
    }

    /// Ids of a list, in DingTalk's spelling; `None` if it is there but is no list of ids, because
    /// then nobody knows who got the message.
    pub(super) fn ids(&self, name: &str) -> Option<Vec<String>> {
        let Some(value) = field(&self.0, name) else {
            return Some(Vec::new());
        };
        let list = value.as_array().filter(|list| list.len() <= IDS_MAX)?;
        let mut seen = HashSet::new();
        let ids = list.iter().map(|id| scalar(id).map(Cow::into_owned));
        let ids: Vec<String> = ids.collect::<Option<_>>()?;
        Some(
            ids.into_iter()
                .filter(|id| !id.is_empty() && seen.insert(id.clone()))
                .collect(),
        )
    }

    /// A non-empty string of `result`.
    pub(super) fn in_result(&self, name: &str) -> Option<&str> {
        text(field(&self.0, "result")?.as_object()?, name)
    }

    /// `result.deliverResults` of a call that makes a card, `result` of one that delivers it; `None` if it is
    /// missing or not a list of objects.
    pub(super) fn deliveries(&self) -> Option<Vec<Delivered>> {
        let result = field(&self.0, "result")?;
        let list = match result.as_object() {
            Some(result) => field(result, "deliverResults")?,
            None => result,
        };
        list.as_array()?
            .iter()
            .map(|one| {
                let one = one.as_object()?;
                Some(Delivered {
                    success: flag(one, "success")?,
                    space_id: space_id(text(one, "spaceId").unwrap_or_default()),
                    carrier_id: text(one, "carrierId").map(str::to_owned),
                    error: clean(text(one, "errorMsg").unwrap_or_default(), MESSAGE_BYTES_MAX),
                })
            })
            .collect()
    }

    /// A code that says "something is wrong": neither missing nor empty nor 0.
    fn code(&self, name: &str) -> Option<Cow<'_, str>> {
        self.scalar(name)
            .filter(|code| !code.is_empty() && code != "0")
    }

    fn scalar(&self, name: &str) -> Option<Cow<'_, str>> {
        field(&self.0, name).and_then(scalar)
    }

    /// The missing permissions: listed by the new generation, only mentioned by the legacy one.
    /// They are shown to the operator and decide nothing.
    fn scopes(&self, message: &str) -> Vec<String> {
        let listed = field(&self.0, "accessdenieddetail")
            .and_then(Value::as_object)
            .and_then(|detail| field(detail, "requiredScopes"))
            .and_then(Value::as_array)
            .map(|list| list.iter().filter_map(Value::as_str).collect::<Vec<_>>());
        let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-' | ':');
        let mut scopes: Vec<String> = listed
            .unwrap_or_else(|| {
                let words = message.split(|c: char| !is_name(c));
                words.filter(|word| word.starts_with("qyapi_")).collect()
            })
            .into_iter()
            .filter(|scope| (1..=48).contains(&scope.len()) && scope.chars().all(is_name))
            .map(str::to_owned)
            .take(SCOPES_MAX)
            .collect();
        scopes.dedup();
        scopes
    }
}

/// The id of a space, also where its type stands before it as in requests.
fn space_id(text: &str) -> String {
    let bare = ["IM_ROBOT.", "IM_GROUP."]
        .iter()
        .find_map(|kind| text.strip_prefix(kind));
    bare.unwrap_or(text).to_owned()
}

/// The field of that name, preferring the exact spelling; `null` is as good as absent.
fn field<'a>(fields: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    let other = || {
        fields
            .iter()
            .find(|(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, v)| v)
    };
    fields
        .get(name)
        .or_else(other)
        .filter(|value| !value.is_null())
}

fn text<'a>(fields: &'a Map<String, Value>, name: &str) -> Option<&'a str> {
    field(fields, name)
        .and_then(Value::as_str)
        .filter(|text| !text.trim().is_empty())
}

fn flag(fields: &Map<String, Value>, name: &str) -> Option<bool> {
    match field(fields, name)? {
        Value::Bool(flag) => Some(*flag),
        Value::String(text) if text.eq_ignore_ascii_case("true") => Some(true),
        Value::String(text) if text.eq_ignore_ascii_case("false") => Some(false),
        _ => None,
    }
}

/// A string or a number as text: DingTalk writes the same code in both types (outbound.md §0).
fn scalar(value: &Value) -> Option<Cow<'_, str>> {
    match value {
        Value::String(text) => Some(Cow::Borrowed(text.trim())),
        Value::Number(number) => {
            let text = number.to_string();
            Some(Cow::Owned(
                text.strip_suffix(".0").map_or(text.clone(), str::to_owned),
            ))
        }
        _ => None,
    }
}

/// Foreign text made safe to log and to show: at most `bytes_max` bytes on a character border, no
/// control characters, no characters that reorder or break a line, no credential of a URL.
pub(super) fn clean(text: &str, bytes_max: usize) -> String {
    let mut out = String::new();
    for c in mask(text).chars() {
        let c = if is_treacherous(c) { ' ' } else { c };
        if out.len() + c.len_utf8() > bytes_max {
            break;
        }
        out.push(c);
    }
    out.truncate(out.trim_end().len());
    out
}

fn is_treacherous(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}')
        || matches!(c, '\u{2060}'..='\u{2069}' | '\u{feff}')
}

/// Replaces the values of DingTalk's secret query parameters: transports like to quote the URL.
fn mask(text: &str) -> Cow<'_, str> {
    const SECRETS: [&str; 4] = ["access_token=", "appsecret=", "session=", "sign="];
    let is_value = |c: char| c.is_ascii_alphanumeric() || "-_.~%+/=".contains(c);
    let mut text = Cow::Borrowed(text);
    for name in SECRETS {
        if !text.contains(name) {
            continue;
        }
        let mut pieces = text.split(name);
        let mut masked = pieces.next().unwrap_or_default().to_owned();
        for piece in pieces {
            masked.push_str(name);
            masked.push_str("***");
            masked.push_str(piece.trim_start_matches(is_value));
        }
        text = Cow::Owned(masked);
    }
    text
}
