//! ── pure ── DingTalk's wire: what its bytes mean and which bytes it expects.
//!
//! [`signature`] and [`envelope`] open callbacks and seal replies · [`event`] what a callback says,
//! [`robot`] what is said to the robot and [`reply`] where an answer goes, [`card`] a click, [`frame`] how
//! all of them come over Stream, [`members`] names in any casing · [`message`] what we send, [`instance`]
//! what a card shows, [`split`] what is too long for one, [`digest`] many in one · [`answer`] what an
//! answer means.
//!
//! Names no runtime, no network, no engine and no clock: bytes and `now` come in, values go out.

pub mod answer;
pub mod card;
pub mod digest;
pub mod envelope;
pub mod event;
pub mod frame;
pub mod instance;
pub mod members;
pub mod message;
pub mod reply;
pub mod robot;
pub mod signature;
pub mod split;
