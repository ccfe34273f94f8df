//! A reader of TOML tables that finds every fault in one pass: each key is asked for by name, a value
//! of the wrong kind is noted and read as its default, and what nobody asked for is unknown.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fmt;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use toml::{Table, Value};
use zeroize::Zeroizing;

use crate::secret::Secret;

/// One thing that is wrong, and the cure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The key, such as `apps[0].client_id`; empty for the file as a whole.
    pub key: String,
    /// What is wrong.
    pub problem: String,
    /// What to do.
    pub fix: String,
}

impl Fault {
    /// A fault.
    pub fn new(key: impl Into<String>, problem: impl Into<String>, fix: impl Into<String>) -> Self {
        Self {
            key: key.into(),
            problem: problem.into(),
            fix: fix.into(),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = if self.key.is_empty() {
            "the file"
        } else {
            &self.key
        };
        write!(f, "{key}: {} — {}", self.problem, self.fix)
    }
}

/// What was found so far.
#[derive(Debug, Default)]
pub struct Faults {
    faults: RefCell<Vec<Fault>>,
    warnings: RefCell<Vec<Fault>>,
}

impl Faults {
    /// Faults and warnings.
    pub fn into_parts(self) -> (Vec<Fault>, Vec<Fault>) {
        (self.faults.into_inner(), self.warnings.into_inner())
    }

    /// All faults, one a line, each with the file.
    pub fn text(path: &Path, faults: &[Fault]) -> String {
        let lines: Vec<_> = faults
            .iter()
            .map(|fault| format!("{}: {fault}", path.display()))
            .collect();
        lines.join("\n")
    }
}

/// Where secrets come from, as values, so that tests touch no process environment.
pub struct Sources<'a> {
    /// Environment variables.
    pub env: &'a dyn Fn(&str) -> Option<String>,
}

impl fmt::Debug for Sources<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sources")
    }
}

/// One table.
#[derive(Debug)]
pub struct Section<'a> {
    path: String,
    table: &'a Table,
    asked: RefCell<BTreeSet<&'static str>>,
    sources: &'a Sources<'a>,
    faults: &'a Faults,
}

static EMPTY: std::sync::LazyLock<Table> = std::sync::LazyLock::new(Table::new);

impl<'a> Section<'a> {
    /// The whole file.
    pub fn root(table: &'a Table, sources: &'a Sources<'a>, faults: &'a Faults) -> Self {
        Self {
            path: String::new(),
            table,
            asked: RefCell::default(),
            sources,
            faults,
        }
    }

    /// Notes a fault of `key`.
    pub fn fault(&self, key: &str, problem: impl Into<String>, fix: impl Into<String>) {
        let fault = Fault::new(self.key(key), problem, fix);
        self.faults.faults.borrow_mut().push(fault);
    }

    /// Notes something that works but should be changed.
    pub fn warn(&self, key: &str, problem: impl Into<String>, fix: impl Into<String>) {
        let fault = Fault::new(self.key(key), problem, fix);
        self.faults.warnings.borrow_mut().push(fault);
    }

    /// The value of `key`, whatever it is.
    pub fn value(&self, key: &'static str) -> Option<&'a Value> {
        self.asked.borrow_mut().insert(key);
        self.table.get(key)
    }

    /// A text, if there is one.
    pub fn text(&self, key: &'static str) -> Option<String> {
        match self.value(key)? {
            Value::String(text) => Some(text.clone()),
            other => {
                self.fault(key, format!("is {}", kind(other)), "write a text in quotes");
                None
            }
        }
    }

    /// A text that must be there and must satisfy `check`.
    pub fn required(
        &self,
        key: &'static str,
        check: impl Fn(&str) -> bool,
        form: &str,
    ) -> Option<String> {
        if self.value(key).is_none() {
            self.fault(key, "is missing", format!("set it to {form}"));
            return None;
        }
        let text = self.text(key)?;
        if !check(&text) {
            self.fault(
                key,
                format!("{text:?} is not {form}"),
                format!("write {form}"),
            );
            return None;
        }
        Some(text)
    }

    /// A whole number within `range`, or `default`.
    pub fn number(
        &self,
        key: &'static str,
        range: std::ops::RangeInclusive<u64>,
        default: u64,
    ) -> u64 {
        match self.value(key) {
            None => default,
            Some(Value::Integer(number))
                if u64::try_from(*number).is_ok_and(|n| range.contains(&n)) =>
            {
                u64::try_from(*number).unwrap_or(default)
            }
            Some(_) => {
                let fix = format!(
                    "write a whole number from {} to {}",
                    range.start(),
                    range.end()
                );
                self.fault(key, "is out of range or not a number", fix);
                default
            }
        }
    }

    /// Seconds, perhaps with a fraction, as milliseconds; or `default_ms`.
    pub fn seconds_ms(&self, key: &'static str, default_ms: u64) -> u64 {
        let seconds = match self.value(key) {
            None => return default_ms,
            #[expect(clippy::cast_precision_loss, reason = "seconds are few")]
            Some(Value::Integer(number)) => *number as f64,
            Some(Value::Float(number)) => *number,
            Some(_) => -1.0,
        };
        if (0.001..=31_536_000.0).contains(&seconds) {
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "the range was checked"
            )]
            let ms = (seconds * 1_000.0).round() as u64;
            ms
        } else {
            self.fault(
                key,
                "is not a number of seconds",
                "write seconds, such as 60 or 0.5",
            );
            default_ms
        }
    }

    /// Yes or no, or `default`.
    pub fn flag(&self, key: &'static str, default: bool) -> bool {
        match self.value(key) {
            None => default,
            Some(Value::Boolean(flag)) => *flag,
            Some(_) => {
                self.fault(key, "is neither true nor false", "write true or false");
                default
            }
        }
    }

    /// A list of texts; empty if there is none.
    pub fn texts(&self, key: &'static str) -> Vec<String> {
        let Some(value) = self.value(key) else {
            return vec![];
        };
        let texts = value.as_array().and_then(|items| {
            items
                .iter()
                .map(|item| item.as_str().map(ToOwned::to_owned))
                .collect::<Option<Vec<_>>>()
        });
        texts.unwrap_or_else(|| {
            self.fault(key, "is not a list of texts", "write [\"a\", \"b\"]");
            vec![]
        })
    }

    /// A sub-table; an empty one if it is absent.
    #[must_use]
    pub fn section(&self, key: &'static str) -> Self {
        let table = match self.value(key) {
            None => &EMPTY,
            Some(Value::Table(table)) => table,
            Some(_) => {
                self.fault(key, "is not a table", format!("write [{}]", self.key(key)));
                &EMPTY
            }
        };
        self.child(self.key(key), table)
    }

    /// The tables of a list of tables.
    pub fn sections(&self, key: &'static str) -> Vec<Self> {
        let Some(value) = self.value(key) else {
            return vec![];
        };
        let tables = value.as_array().and_then(|items| {
            items
                .iter()
                .map(Value::as_table)
                .collect::<Option<Vec<_>>>()
        });
        let Some(tables) = tables else {
            self.fault(
                key,
                "is not a list of tables",
                format!("write [[{}]]", self.key(key)),
            );
            return vec![];
        };
        tables
            .into_iter()
            .enumerate()
            .map(|(index, table)| self.child(format!("{}[{index}]", self.key(key)), table))
            .collect()
    }

    /// Whether the key is there.
    pub fn has(&self, key: &'static str) -> bool {
        self.value(key).is_some()
    }

    /// A secret that must be there: `{ file }`, `{ env }`, `{ credential }`, or a plain text.
    pub fn secret(&self, key: &'static str) -> Option<Secret> {
        if !self.has(key) {
            let fix =
                "set it to { credential = \"name\" }, { file = \"/path\" } or { env = \"NAME\" }";
            self.fault(key, "is missing", fix);
            return None;
        }
        self.optional_secret(key)
    }

    /// A secret, if there is one.
    pub fn optional_secret(&self, key: &'static str) -> Option<Secret> {
        let found = match self.value(key)? {
            Value::String(text) => {
                let fix = "move it to a file of mode 0600 and write { file = \"/path\" }";
                self.warn(key, "stands in the configuration in clear", fix);
                Ok(text.clone())
            }
            Value::Table(table) => self.secret_from(key, table),
            _ => Err("is neither a text nor a table".to_owned()),
        };
        match found.map(Zeroizing::new) {
            // White space pasted with a secret is the usual cause of "authFailed".
            Ok(text) if !text.trim().is_empty() => Some(Secret::new(text.trim())),
            Ok(_) => {
                self.fault(key, "is empty", "put the secret where this key points to");
                None
            }
            Err(problem) => {
                let fix =
                    "write { credential = \"name\" }, { file = \"/path\" } or { env = \"NAME\" }";
                self.fault(key, problem, fix);
                None
            }
        }
    }

    fn secret_from(&self, key: &'static str, table: &Table) -> Result<String, String> {
        let mut entries = table.iter();
        let (Some((source, Value::String(name))), None) = (entries.next(), entries.next()) else {
            return Err("names not exactly one source".to_owned());
        };
        match source.as_str() {
            "file" => private_file(Path::new(name)),
            "env" => {
                let fix = "prefer { credential } or { file }";
                self.warn(key, format!("comes from the environment (${name})"), fix);
                (self.sources.env)(name).ok_or_else(|| format!("${name} is not set"))
            }
            "credential" => {
                let dir = (self.sources.env)("CREDENTIALS_DIRECTORY")
                    .ok_or("no $CREDENTIALS_DIRECTORY: systemd sets it for LoadCredential=")?;
                if name.contains('/') {
                    return Err("a credential's name has no slash".to_owned());
                }
                // systemd guards these itself, with modes of its own.
                let path = PathBuf::from(dir).join(name);
                std::fs::read_to_string(&path)
                    .map_err(|error| format!("{}: {error}", path.display()))
            }
            other => Err(format!("{other:?} is not a source of secrets")),
        }
    }

    /// Notes every key that nobody asked for.
    pub fn finish(&self) {
        let asked = self.asked.borrow();
        for key in self.table.keys() {
            if !asked.contains(key.as_str()) {
                let near = asked.iter().find(|known| distance_is_small(known, key));
                let fix = match near {
                    Some(known) => format!("did you mean `{known}`?"),
                    None => "remove it; config.example.toml lists all keys".to_owned(),
                };
                self.fault(key, "is unknown", fix);
            }
        }
    }

    fn child(&self, path: String, table: &'a Table) -> Self {
        Section {
            path,
            table,
            asked: RefCell::default(),
            sources: self.sources,
            faults: self.faults,
        }
    }

    fn key(&self, key: &str) -> String {
        if self.path.is_empty() {
            key.to_owned()
        } else {
            format!("{}.{key}", self.path)
        }
    }
}

fn private_file(path: &Path) -> Result<String, String> {
    let error = |error: std::io::Error| format!("{}: {error}", path.display());
    let mode = std::fs::metadata(path).map_err(error)?.permissions().mode();
    if mode & 0o077 != 0 {
        return Err(format!(
            "{} can be read by others (mode {:o}); chmod 600 it",
            path.display(),
            mode & 0o777
        ));
    }
    std::fs::read_to_string(path).map_err(error)
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::String(_) => "a text",
        Value::Integer(_) | Value::Float(_) => "a number",
        Value::Boolean(_) => "true or false",
        Value::Datetime(_) => "a date",
        Value::Array(_) => "a list",
        Value::Table(_) => "a table",
    }
}

/// One letter more, less or other.
fn distance_is_small(a: &str, b: &str) -> bool {
    let (a, b): (Vec<_>, Vec<_>) = (a.chars().collect(), b.chars().collect());
    let same = a.iter().zip(&b).take_while(|(x, y)| x == y).count();
    let (rest_a, rest_b) = (a.split_at(same).1, b.split_at(same).1);
    let tail = rest_a
        .iter()
        .rev()
        .zip(rest_b.iter().rev())
        .take_while(|(x, y)| x == y)
        .count();
    rest_a.len().max(rest_b.len()) - tail <= 2
}
