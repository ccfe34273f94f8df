//! Which dead letters are meant, and where a list of them goes on.

use super::{is_dead, refused};
use crate::clock::parse_rfc3339;
use crate::delivery::state::State;
use crate::http::problem::Problem;
use crate::journal::Order;
use crate::journal::dead::{Key, Span};
use crate::outbound::receive::{Query, bad_query};
use crate::outbound::{Live, Message, Whom};

/// What a filter's value may be long, in bytes.
const VALUE_BYTES_MAX: usize = 256;

/// Dead letters of one direction alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Events.
    Inbound,
    /// Messages.
    Outbound,
}

/// Which dead letters: all that are asked for must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// Of one direction.
    pub direction: Option<Direction>,
    /// `dead`, `unknown` or `expired`; events are `dead`.
    pub state: Option<State>,
    /// The reason's code.
    pub reason: Option<String>,
    /// To whom; events: of this group.
    pub whom: Whom,
    /// Of this app.
    pub app: Option<String>,
    /// Given up at this wall time (milliseconds) or later.
    pub since_ms: Option<u64>,
    /// Given up before this wall time (milliseconds).
    pub until_ms: Option<u64>,
}

/// Where a list goes on: below this dead letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cursor {
    /// When it ended.
    pub ended_ms: u64,
    /// Whether it is an event: of two that ended in one millisecond the message is the older one.
    pub inbound: bool,
    /// Its number in its queue.
    pub seq: u64,
}

impl Filter {
    /// The parameters that make a filter.
    pub const PARAMETERS: [&str; 9] = [
        "direction",
        "state",
        "reason",
        "chat",
        "user",
        "robot",
        "app",
        "since",
        "until",
    ];

    /// Reads the parameters; each must be one that could ever match.
    pub fn from_query(query: &Query) -> Result<Self, Problem> {
        let direction = match query.get("direction") {
            None => None,
            Some("inbound") => Some(Direction::Inbound),
            Some("outbound") => Some(Direction::Outbound),
            Some(_) => return Err(bad_query("direction")),
        };
        let state = match query.get("state") {
            None => None,
            Some(name) => Some(
                State::named(name)
                    .filter(|state| is_dead(*state))
                    .ok_or_else(|| bad_query("state"))?,
            ),
        };
        let slug = |text: &str| {
            let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
            text.bytes().all(plain)
        };
        let text = |name: &'static str| match query.get(name) {
            Some(text) if text.is_empty() || text.len() > VALUE_BYTES_MAX => Err(bad_query(name)),
            Some(text) if text.chars().any(char::is_control) => Err(bad_query(name)),
            Some(text) if name == "reason" && !slug(text) => Err(bad_query(name)),
            text => Ok(text.map(ToOwned::to_owned)),
        };
        let time = |name| match query.get(name) {
            None => Ok(None),
            Some(time) => parse_rfc3339(time).map(Some).ok_or_else(|| bad_query(name)),
        };
        let (since_ms, until_ms) = (time("since")?, time("until")?);
        if since_ms
            .zip(until_ms)
            .is_some_and(|(since, until)| since >= until)
        {
            return Err(bad_query("until"));
        }
        Ok(Self {
            direction,
            state,
            reason: text("reason")?,
            whom: Whom {
                chat: text("chat")?,
                user: text("user")?,
                robot: text("robot")?,
            },
            app: text("app")?,
            since_ms,
            until_ms,
        })
    }

    /// Reads what a bulk operation is about: a filter, or `all=true` and nothing else.
    pub fn of_bulk(query: &Query) -> Result<Self, Problem> {
        let filter = Self::from_query(query)?;
        match query.get("all") {
            Some("true") | None if (filter == Self::default()) == query.get("all").is_some() => {
                Ok(filter)
            }
            Some("true") => Err(refused(
                "query: all=true stands for itself; leave the filters out",
            )),
            None => Err(refused(
                "query: say which dead letters by a filter, or all=true for every one",
            )),
            Some(_) => Err(bad_query("all")),
        }
    }

    /// Whether it is about `direction` at all.
    pub fn wants(&self, direction: Direction) -> bool {
        self.direction.is_none_or(|wanted| wanted == direction)
    }

    /// The part of an index that it is about.
    pub fn span(&self, order: Order) -> Span {
        Span {
            from: (self.since_ms.unwrap_or(0), 0),
            to: (self.until_ms.unwrap_or(u64::MAX), 0),
            order,
        }
    }

    /// Whether it lets a message through.
    pub fn takes(&self, message: &Message, live: &Live) -> bool {
        let code = live.progress.reason.as_ref().map(|reason| &*reason.code);
        let to = |wanted: &Option<String>, matches: &dyn Fn(&str) -> bool| {
            wanted.as_deref().is_none_or(matches)
        };
        self.wants(Direction::Outbound)
            && self.state.is_none_or(|state| state == live.progress.state)
            && to(&self.reason, &|reason| code == Some(reason))
            && to(&self.app, &|app| message.app == app)
            && self.whom.takes(&message.to)
    }
}

impl Cursor {
    /// Reads a cursor that [`std::fmt::Display`] wrote.
    pub fn from_query(query: &Query) -> Result<Option<Self>, Problem> {
        let Some(text) = query.get("cursor") else {
            return Ok(None);
        };
        let parsed = (|| {
            let (ended, rest) = text.split_once('.')?;
            let (direction, seq) = rest.split_once('.')?;
            let inbound = match direction {
                "in" => true,
                "out" => false,
                _ => return None,
            };
            let (ended_ms, seq) = (ended.parse().ok()?, seq.parse().ok()?);
            Some(Self {
                ended_ms,
                inbound,
                seq,
            })
        })();
        parsed.map(Some).ok_or_else(|| bad_query("cursor"))
    }

    /// What is below it of one direction, as the end of a span.
    pub fn below(self, inbound: bool) -> Key {
        match (inbound, self.inbound) {
            (false, true) => (self.ended_ms.saturating_add(1), 0),
            (true, false) => (self.ended_ms, 0),
            (false, false) | (true, true) => (self.ended_ms, self.seq),
        }
    }
}

impl std::fmt::Display for Cursor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let direction = if self.inbound { "in" } else { "out" };
        write!(f, "{}.{direction}.{}", self.ended_ms, self.seq)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outbound::To;
    use crate::outbound::dead::tests::dead;

    fn query(text: &str) -> Result<Query, Problem> {
        let known: Vec<_> = Filter::PARAMETERS
            .into_iter()
            .chain(["all", "cursor"])
            .collect();
        Query::of(text, &known)
    }

    fn filter(text: &str) -> Result<Filter, &'static str> {
        query(text)
            .and_then(|query| Filter::from_query(&query))
            .map_err(|problem| problem.slug())
    }

    #[test]
    fn a_filter_takes_what_all_its_parts_let_through() {
        let users = To::Users(vec!["u1".into(), "u2".into()]);
        let (message, live) = dead(users, State::Unknown, "outcome_unknown");
        for (text, taken) in [
            ("", true),
            (
                "state=unknown&reason=outcome_unknown&user=u2&app=oncall",
                true,
            ),
            ("direction=outbound", true),
            ("direction=inbound", false),
            ("state=dead", false),
            ("reason=robot_gone", false),
            ("user=u3", false),
            ("user=u1&chat=cid1", false),
            ("robot=u1", false),
            ("app=other", false),
        ] {
            let taken_by = filter(text).unwrap().takes(&message, &live);
            assert_eq!(taken_by, taken, "{text}");
        }
        let (message, live) = dead(To::Chat("cid+/=".into()), State::Dead, "x");
        assert!(filter("chat=cid%2B%2F%3D").unwrap().takes(&message, &live));
        assert!(!filter("robot=cid%2B%2F%3D").unwrap().takes(&message, &live));
    }

    #[test]
    fn what_can_never_match_is_refused() {
        let long = format!("chat={}", "x".repeat(257));
        for text in [
            "direction=sideways",
            "state=sent",
            "state=queued",
            "state=",
            "reason=",
            "reason=Robot%20Gone",
            "reason=x%27%20or%201%3D1",
            "chat=%00",
            "user=a%0ab",
            "app=",
            "since=yesterday",
            "until=1",
            "since=2026-01-02T00:00:00Z&until=2026-01-01T00:00:00Z",
            "colour=red",
            "state=dead&state=dead",
            "chat=%zz",
            "chat=%ff",
            &long,
        ] {
            assert_eq!(filter(text), Err("invalid_request"), "{text}");
        }
    }

    #[test]
    fn a_bulk_operation_names_a_filter_or_all_but_not_both_and_not_neither() {
        let bulk = |text| {
            query(text)
                .and_then(|query| Filter::of_bulk(&query))
                .is_ok()
        };
        assert!(bulk("all=true") && bulk("reason=robot_gone"));
        for text in [
            "",
            "all=false",
            "all=1",
            "all=",
            "all=true&state=dead",
            "all=1&state=dead",
        ] {
            assert!(!bulk(text), "{text}");
        }
    }

    #[test]
    fn a_cursor_comes_back_and_orders_both_directions() {
        let cursor = Cursor {
            ended_ms: 5,
            inbound: true,
            seq: 3,
        };
        let read = |text: &str| Cursor::from_query(&query(&format!("cursor={text}")).unwrap());
        assert_eq!(read(&cursor.to_string()).unwrap(), Some(cursor));
        assert_eq!(cursor.below(true), (5, 3));
        assert_eq!(
            cursor.below(false),
            (6, 0),
            "messages of that moment are below"
        );
        let message = Cursor {
            inbound: false,
            ..cursor
        };
        assert_eq!(
            message.below(true),
            (5, 0),
            "events of that moment are above"
        );
        for bad in [
            "",
            "1",
            "1.in",
            "1.up.2",
            "-1.in.2",
            "1.in.2.3",
            "99999999999999999999.in.1",
        ] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }
}
