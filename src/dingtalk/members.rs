//! The members of a JSON object whose names come in more than one casing (inbound.md §2.2).

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

/// Deeper nesting is refused (reliability contract §5).
const DEPTH_MAX: usize = 64;

/// The members of an object with their values still as text.
#[derive(Debug)]
pub(super) struct Members<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'a> Members<'a> {
    /// Reads an object that is not nested too deep. The error says what is wrong.
    pub(super) fn read(text: &'a str) -> Result<Self, &'static str> {
        if depth(text.as_bytes()) > DEPTH_MAX {
            return Err("nested too deep");
        }
        serde_json::from_str(text).map_err(|_| "not a JSON object, or a member comes twice")
    }

    /// All values under `name`, in any casing, the exact spelling first.
    pub(super) fn all(&self, name: &str) -> impl Iterator<Item = &'a RawValue> {
        let exact = self.0.iter().filter(move |(key, _)| key == name);
        let folded = self
            .0
            .iter()
            .filter(move |(key, _)| key != name && key.eq_ignore_ascii_case(name));
        exact.chain(folded).map(|(_, value)| *value)
    }

    /// A string, in any casing of its name.
    pub(super) fn text(&self, name: &str) -> Option<String> {
        self.all(name).find_map(string)
    }

    /// A time as a number or as a string of digits.
    pub(super) fn millis(&self, name: &str) -> Option<u64> {
        self.all(name).find_map(|value| {
            string(value)
                .unwrap_or_else(|| value.get().to_owned())
                .parse::<u64>()
                .ok()
        })
    }

    /// A list of strings, or one string.
    pub(super) fn list(&self, name: &str) -> Option<Vec<String>> {
        self.all(name).find_map(|value| {
            serde_json::from_str(value.get())
                .ok()
                .or_else(|| string(value).map(|one| vec![one]))
        })
    }
}

/// A string; `None` if the value is something else.
pub(super) fn string(value: &RawValue) -> Option<String> {
    serde_json::from_str(value.get()).ok()
}

/// A name as it stands in the text, but for those with escapes.
#[derive(Deserialize)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;
        impl<'de> Visitor<'de> for Object {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members<'de>, A::Error> {
                let mut members: Vec<(Cow<'de, str>, &RawValue)> = Vec::new();
                while let Some((Name(name), value)) = map.next_entry::<Name<'_>, &RawValue>()? {
                    if members.iter().any(|(known, _)| *known == name) {
                        return Err(serde::de::Error::custom("a member comes twice"));
                    }
                    if members.len() >= 256 {
                        return Err(serde::de::Error::custom("too many members"));
                    }
                    members.push((name, value));
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(Object)
    }
}

/// All values under `name`, in any casing, at any depth, as parts of `text`; `None` if a number in it is too
/// large to be read.
pub(super) fn everywhere<'a>(text: &'a str, name: &str) -> Option<Vec<&'a RawValue>> {
    let mut found = vec![];
    let all = Everywhere {
        name,
        found: &mut found,
    };
    let mut json = serde_json::Deserializer::from_str(text);
    all.deserialize(&mut json).ok()?;
    Some(found)
}

struct Everywhere<'n, 'f, 'a> {
    name: &'n str,
    found: &'f mut Vec<&'a RawValue>,
}

impl<'a> Everywhere<'_, '_, 'a> {
    fn inside(&mut self) -> Everywhere<'_, '_, 'a> {
        Everywhere {
            name: self.name,
            found: self.found,
        }
    }
}

impl<'de> DeserializeSeed<'de> for Everywhere<'_, '_, 'de> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Everywhere<'_, '_, 'de> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<(), A::Error> {
        while let Some(name) = map.next_key::<String>()? {
            if name.eq_ignore_ascii_case(self.name) {
                self.found.push(map.next_value()?);
            } else {
                map.next_value_seed(self.inside())?;
            }
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut list: A) -> Result<(), A::Error> {
        while list.next_element_seed(self.inside())?.is_some() {}
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }
}

/// How deep the brackets of a JSON text nest, whether or not it is valid.
pub fn depth(text: &[u8]) -> usize {
    let (mut depth, mut deepest, mut in_string, mut escaped) = (0_usize, 0, false, false);
    for byte in text {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'{' | b'[' if !in_string => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b'}' | b']' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}
