//! The scheduler: it knows who has what, and decides who reads what at the origin. It does nothing per piece.
//!
//! * [`core`] decides. It is a pure state machine: no clock, thread or socket; the time and a source of
//!   random numbers are arguments, and the same events with the same seed give the same decisions. A
//!   simulator can run it with ten thousand nodes.
//! * [`serve`] is its gRPC face: one stream per node, a bounded queue towards each, and a tick.
//!
//! All state is soft. After a restart nodes say again what they have and want, and nothing is lost.

pub mod core;
mod service;

pub use service::{SchedulerConfig, SchedulerSecurity, ServeError, serve};
