//! HTTP/1.1, both ways, with a limit on everything.
//!
//! [`listen`] a door: accept, TLS, bounded requests, graceful end, `waiting` who makes room in it · [`tls`]
//! certificates that are re-read · [`problem`] refusals that a program and a person understand · [`audit`]
//! who changed what · [`transport`] calls out, knowing whether a failed request may have reached the other
//! side; `answer` what comes back, bounded and decompressed, `address` where a name may lead.

mod address;
mod answer;
pub mod audit;
pub mod listen;
pub mod problem;
pub mod tls;
pub mod transport;
mod waiting;
