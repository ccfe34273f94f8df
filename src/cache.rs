//! What can be fetched again: access tokens, for now.
//!
//! [`store`] the file behind it, sealed and disposable · [`token`] one token an app, fetched by one
//! caller at a time. An empty, damaged or deleted cache costs a fetch, never a message.

pub mod store;
pub mod token;
