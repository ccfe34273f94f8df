//! The daemon as its users meet it: a real process with real sockets and files, between the simulated
//! DingTalk and a simulated platform that record, delay and refuse.
#![expect(unreachable_pub, reason = "modules of one test binary")]
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::string_slice,
    clippy::disallowed_methods,
    clippy::print_stderr,
    clippy::too_many_lines,
    clippy::format_collect,
    clippy::items_after_statements,
    reason = "a test that cannot go on has failed; tests measure real time"
)]

mod apps;
mod callbacks;
mod card_changes;
mod card_kills;
mod card_register;
mod cards;
mod chats;
mod click_kills;
mod clicks;
mod config;
mod crash;
mod dead;
mod digests;
mod disk;
mod doors;
mod failures;
mod formats;
mod forwarding;
mod house;
mod limits;
mod messages;
mod pools;
mod process;
mod quota;
mod requests;
mod robot;
mod seeded;
mod sends;
mod simulation;
mod splitting;
mod store;
mod storm;
mod stream;
mod support;
mod systemd;
mod tls;
mod tokens;
mod transport;
