//! What Prometheus and the operator see: [`door`] /live, /ready, /metrics · [`socket`] the commands of
//! `dingd …` on a running daemon · [`dead`] dead letters of both directions · [`quota`] how much they may
//! take.

pub mod dead;
pub mod door;
pub mod quota;
pub mod socket;
