//! DingTalk in a box and an alert platform in a box, for the demo, the tests and integrators.
//!
//! Written from the protocol pages alone. It shares no wire code with the daemon: a mistake in
//! reading the protocol then shows up as a disagreement between the two, instead of being made
//! twice and passing.

mod clock;
pub mod daemon;
pub mod dingtalk;
pub mod platform;
pub mod post;
mod server;
