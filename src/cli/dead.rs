//! `dingd dead`: what was given up, why, and another chance.

use std::process::ExitCode;

use clap::{Args, Subcommand, ValueEnum};
use serde_json::Value;

use super::output::{cell, complain, finish, items, say, say_json, say_more, table};
use super::{BAD_ARGUMENTS, Target, client};

#[derive(Debug, Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// The newest dead letters of both directions.
    List {
        #[command(flatten)]
        target: Target,
        #[command(flatten)]
        filter: Filter,
        /// How many.
        #[arg(long, default_value_t = 50)]
        limit: u16,
        /// Go on where an earlier list ended.
        #[arg(long)]
        cursor: Option<String>,
    },
    /// One with its content, reason and cure.
    Show {
        #[command(flatten)]
        target: Target,
        /// msg_… or evt_…
        id: String,
    },
    /// Take one, or all that a filter lets through, up again under the old id.
    Replay(Choice),
    /// Remove one, or all that a filter lets through, for good.
    Purge {
        #[command(flatten)]
        some: Choice,
        /// Needed to remove more than one: they cannot be had back.
        #[arg(long)]
        yes: bool,
    },
}

/// One, or those that a filter lets through.
#[derive(Debug, Args)]
struct Choice {
    #[command(flatten)]
    target: Target,
    /// msg_… or evt_…
    #[arg(conflicts_with_all = ["direction", "state", "reason", "chat", "user", "robot", "app", "since", "until", "all"])]
    id: Option<String>,
    #[command(flatten)]
    filter: Filter,
    /// Every one.
    #[arg(long, conflicts_with_all = ["direction", "state", "reason", "chat", "user", "robot", "app", "since", "until"])]
    all: bool,
}

/// Which dead letters: all that is given must hold.
#[derive(Debug, Args)]
struct Filter {
    /// Only events (inbound) or messages (outbound).
    #[arg(long, value_enum)]
    direction: Option<Direction>,
    /// dead, unknown or expired.
    #[arg(long)]
    state: Option<String>,
    /// The reason's code, such as robot_gone.
    #[arg(long)]
    reason: Option<String>,
    /// To (events: of) this group.
    #[arg(long)]
    chat: Option<String>,
    /// To this person (userid).
    #[arg(long)]
    user: Option<String>,
    /// By this custom robot.
    #[arg(long)]
    robot: Option<String>,
    /// Of this app.
    #[arg(long)]
    app: Option<String>,
    /// Given up at this time (2026-11-25T08:00:00Z) or later.
    #[arg(long)]
    since: Option<String>,
    /// Given up before this time.
    #[arg(long)]
    until: Option<String>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Direction {
    Inbound,
    Outbound,
}

impl Filter {
    /// As the parameters of a query.
    fn query(&self) -> Vec<String> {
        let direction = self.direction.map(|direction| match direction {
            Direction::Inbound => "inbound".to_owned(),
            Direction::Outbound => "outbound".to_owned(),
        });
        [
            ("direction", &direction),
            ("state", &self.state),
            ("reason", &self.reason),
            ("chat", &self.chat),
            ("user", &self.user),
            ("robot", &self.robot),
            ("app", &self.app),
            ("since", &self.since),
            ("until", &self.until),
        ]
        .into_iter()
        .filter_map(|(name, value)| {
            let value = value.as_deref()?;
            Some(format!("{name}={}", client::encoded(value)))
        })
        .collect()
    }
}

impl Choice {
    /// Whether it says which. What it says may be more than one.
    fn says_which(&self) -> bool {
        self.id.is_some() || self.all || !self.filter.query().is_empty()
    }

    fn ask_one(&self, id: &str, method: &str, suffix: &str) -> Result<Value, String> {
        let path = format!("/v1/dead/{}{suffix}", client::encoded(id));
        client::ask(&self.target, method, &path, None)
    }

    fn ask_bulk(&self, what: &str) -> Result<Value, String> {
        let query = if self.all {
            "all=true".to_owned()
        } else {
            self.filter.query().join("&")
        };
        client::ask(
            &self.target,
            "POST",
            &format!("/v1/dead/{what}?{query}"),
            None,
        )
    }
}

pub(super) fn main(arguments: &Arguments) -> ExitCode {
    match &arguments.what {
        What::List {
            target,
            filter,
            limit,
            cursor,
        } => {
            let mut query = filter.query();
            query.push(format!("limit={limit}"));
            query.extend(
                cursor
                    .iter()
                    .map(|cursor| format!("cursor={}", client::encoded(cursor))),
            );
            let path = format!("/v1/dead?{}", query.join("&"));
            finish(client::ask(target, "GET", &path, None), target.json, list)
        }
        What::Show { target, id } => {
            let path = format!("/v1/dead/{}", client::encoded(id));
            let answer = client::ask(target, "GET", &path, None);
            finish(answer, target.json, say_json)
        }
        What::Replay(some) => replay(some),
        What::Purge { some, yes } => purge(some, *yes),
    }
}

fn replay(some: &Choice) -> ExitCode {
    if !some.says_which() {
        return which();
    }
    match &some.id {
        Some(id) => {
            let answer = some.ask_one(id, "POST", "/replay");
            finish(answer, some.target.json, |value| {
                say(&format!("{} waits for delivery again", cell(value, "/id")));
            })
        }
        None => finish(some.ask_bulk("replay"), some.target.json, |value| {
            say(&format!(
                "{} of {} wait for delivery again",
                cell(value, "/replayed"),
                cell(value, "/matched")
            ));
            if value.get("stopped").is_some() {
                say(&format!(
                    "stopped: {}; repeat it when there is room / 已停止，有空间后再执行一次",
                    cell(value, "/stopped")
                ));
            }
        }),
    }
}

fn purge(some: &Choice, yes: bool) -> ExitCode {
    if !some.says_which() {
        return which();
    }
    match &some.id {
        Some(id) => finish(some.ask_one(id, "DELETE", ""), some.target.json, |value| {
            say(&format!("{} is gone", cell(value, "/id")));
        }),
        None if yes => finish(some.ask_bulk("purge"), some.target.json, |value| {
            say(&format!("{} are gone", cell(value, "/purged")));
        }),
        None => {
            complain(
                "purged dead letters cannot be had back: look with `dingd dead list` and the same filter, then add --yes\n\
                 删除后无法恢复：先用相同条件执行 `dingd dead list` 查看，确认后加 --yes",
            );
            ExitCode::from(BAD_ARGUMENTS)
        }
    }
}

fn which() -> ExitCode {
    complain(
        "say which: an id, a filter such as --reason robot_gone, or --all / 请指定 id、筛选条件（如 --reason robot_gone）或 --all",
    );
    ExitCode::from(BAD_ARGUMENTS)
}

fn list(page: &Value) {
    let dead = items(page, "dead");
    let rows: Vec<_> = dead
        .iter()
        .map(|letter| {
            let reason = letter
                .pointer("/reason/code")
                .or_else(|| letter.pointer("/targets/0/reason/code"))
                .and_then(Value::as_str)
                .unwrap_or("-");
            let what = letter
                .get("to")
                .or_else(|| letter.get("type"))
                .map(ToString::to_string);
            vec![
                cell(letter, "/id"),
                cell(letter, "/state"),
                reason.to_owned(),
                cell(letter, "/finished_at"),
                crate::secret::printable(&what.unwrap_or_default(), 80),
            ]
        })
        .collect();
    table(&["ID", "STATE", "REASON", "ENDED", "WHAT"], &rows);
    say_more(page);
    if page
        .get("damaged_records")
        .and_then(Value::as_u64)
        .unwrap_or(0)
        > 0
    {
        say(&format!(
            "{} damaged record(s) were set aside. Check the disk and `dmesg`; what they were about is lost \
             unless a backup has it. / 有 {0} 条记录损坏并已隔离：请检查磁盘，必要时从备份恢复。",
            cell(page, "/damaged_records")
        ));
        let damaged = items(page, "damaged");
        let rows: Vec<_> = damaged
            .iter()
            .map(|record| ["/table", "/key", "/bytes"].map(|name| cell(record, name)))
            .map(Vec::from)
            .collect();
        table(&["TABLE", "KEY", "BYTES"], &rows);
    }
}
