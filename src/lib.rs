//! `dingd`: between an alert platform and DingTalk (钉钉), on the one machine whose address is
//! whitelisted. Callbacks come in verified, messages go out within every limit, nothing acknowledged is
//! lost.
//!
//! # What it promises
//!
//! Nothing is acknowledged before it is on disk. Everything acknowledged ends in exactly one state that
//! the operator can see, with a reason. No limit of DingTalk is passed, not even right after a restart.
//!
//! # Two flows, one shape
//!
//! ```text
//! DingTalk ──callback──▶ verify ─▶ store ─▶ "success"     inbox ─▶ directory ─▶ forward, signed ─▶ platform
//! platform ──message───▶ check  ─▶ store ─▶ 202 + id     outbox ─▶ lane ─▶ limits ─▶ call ─▶ verdict ─▶ receipt
//! ```
//!
//! Both are *accept → deliver → settle* over one journal. A card is a message too, but what it says is a record
//! that changes: [`outbound::cards`]. Where one causes work for the other (a message
//! has ended, the platform is to know) it appends to the other's queue in the same commit.
//!
//! # The house
//!
//! Read downwards; a room names only rooms below it (`tests/it/house.rs` holds it to that).
//!
//! | room | idea |
//! |---|---|
//! | [`cli`] | one file a command; `demo` tells the whole story |
//! | [`app`] · [`sim`] | where all parts meet; a DingTalk and a platform in a box |
//! | [`config`] · [`admin`] | `config.toml` → checked settings, all faults at once; health, metrics, the operator's socket |
//! | [`inbound`] · [`outbound`] | the two flows, step by step; they never name each other |
//! | [`directory`] | what we know durably: the groups |
//! | [`cache`] | what can be fetched again: tokens |
//! | [`egress`] | the one way out to DingTalk: limits, breaker, call, verdict, the month's ledger |
//! | [`http`] · [`journal`] | doors and calls with a limit on everything; what must not be lost |
//! | [`metrics`] | every metric, once |
//! | [`dingtalk`] | ── pure ── the vendor's wire: signature, envelope, frame, event, message, card, split, digest, answer |
//! | [`delivery`] | ── pure ── the life of one delivery: verdict, state, retry, breaker, lanes, record |
//! | [`clock`] · [`drain`] · [`health`] · [`seal`] · [`secret`] | time, stopping, readiness, what must not be read, what must not be seen |
//! | [`faults`] | deliberate ones, for the tests |
//!
//! A newcomer may start with [`delivery::state`] (what can become of a message), then follow one through
//! [`outbound`], and one event through [`inbound`].
//!
//! # Who runs where
//!
//! Two threads write the journal: one its log, one its tables. Everything else is tokio tasks, each owned by [`app`] and ended by its
//! [`drain::Drain`]: the doors, the Stream connections (each with a keeper that opens the next before it lets
//! go of the last), the forwarder (owns all waiting events), the lanes (own all waiting messages), the title
//! look-up, housekeeping. A part that ends by itself ends the process, because
//! starting again from disk is safe and going on half is not.

pub mod admin;
pub mod app;
pub mod cache;
pub mod cli;
pub mod clock;
pub mod config;
pub mod delivery;
pub mod dingtalk;
pub mod directory;
pub mod drain;
pub mod egress;
pub mod faults;
pub mod health;
pub mod http;
pub mod inbound;
pub mod journal;
pub mod metrics;
pub mod outbound;
pub mod seal;
pub mod secret;
pub mod sim;
