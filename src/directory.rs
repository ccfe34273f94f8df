//! What we know durably of DingTalk's side: the groups that the cool app is in.
//!
//! [`chats`] their state, ordered by DingTalk's own time · [`titles`] looks up names that no event
//! brought.

pub mod chats;
pub mod titles;
