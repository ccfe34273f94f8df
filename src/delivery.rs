//! ── pure ── The life of one delivery, the same in both directions.
//!
//! [`verdict`] what an attempt came to · [`state`] where a message is and how it gets on ·
//! [`retry`] when the next attempt is due · [`breaker`] when a destination is left alone ·
//! [`lanes`] who is next, over the memory of `queues` · [`record`] the bytes on disk · [`id`] what it is called · [`event`] the body that the platform gets ·
//! [`dead`] what was given up.
//!
//! Names no runtime, no network, no engine and no clock: bytes and `now` come in, values go out.

pub mod breaker;
pub mod dead;
pub mod event;
pub mod id;
pub mod lanes;
mod queues;
pub mod random;
pub mod record;
pub mod retry;
pub mod state;
pub mod verdict;
