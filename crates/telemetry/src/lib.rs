//! How the processes of the house speak to their operators.
//!
//! Logs go to standard error, one record per line. Two forms:
//!
//! * [`LogFormat::Json`]: the keys that users of stargz-snapshotter already search for (`time`, `level`,
//!   `msg`, and the fields of the record at top level), because scripts and alerts hang on them.
//! * [`LogFormat::Text`]: for a person at a terminal.
//!
//! [`metrics`] are numbers, in the form that Prometheus reads.

mod json;
mod logs;
pub mod metrics;
mod words;

pub use logs::{LogFormat, LogsError, check_level, init_logs, log_level, set_log_level};
pub use words::edit_distance;
