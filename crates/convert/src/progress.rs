//! Showing how far a conversion is.

use std::sync::Arc;
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::report::Outcome;

/// Is told what a conversion does.
pub trait Progress: Send + Sync {
    /// A layer's turn has come. `name` is short, `size` the bytes to read.
    fn layer(&self, name: &str, size: u64) -> Arc<dyn LayerProgress>;
}

/// Is told what happens to a layer.
pub trait LayerProgress: Send + Sync {
    /// So many more bytes of the source were read.
    fn read(&self, bytes: u64);
    /// The layer is converted, or needs no conversion; `size` bytes are to be pushed.
    fn pushing(&self, size: u64);
    /// So many more bytes were pushed.
    fn pushed(&self, bytes: u64);
    /// The layer is at its destination.
    fn done(&self, outcome: Outcome);
}

/// Shows nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Progress for Silent {
    fn layer(&self, _: &str, _: u64) -> Arc<dyn LayerProgress> {
        Arc::new(Self)
    }
}

impl LayerProgress for Silent {
    fn read(&self, _: u64) {}
    fn pushing(&self, _: u64) {}
    fn pushed(&self, _: u64) {}
    fn done(&self, _: Outcome) {}
}

/// A layer under way. Without the bar it takes 64 columns, so that a terminal of 80 shows it on one line.
const RUNNING: &str = "{prefix}  {msg:10}  {wide_bar}  {bytes:>10} / {total_bytes:10} {bytes_per_sec:>12}";
/// A layer that is at its destination.
const DONE: &str = "{prefix}  {msg:10}  {total_bytes:>10}  {elapsed}";
/// A layer of a conversion that failed.
const STOPPED: &str = "{prefix}  {msg:10}  {bytes:>10} / {total_bytes}";

/// A bar per layer on standard error; nothing if that is no terminal.
#[derive(Clone, Debug)]
pub struct Bars(MultiProgress);

impl Default for Bars {
    fn default() -> Self {
        Self(MultiProgress::with_draw_target(ProgressDrawTarget::stderr()))
    }
}

impl Progress for Bars {
    fn layer(&self, name: &str, size: u64) -> Arc<dyn LayerProgress> {
        let bar = self.0.add(ProgressBar::new(size).with_prefix(name.to_owned()).with_message("converting"));
        bar.set_style(style(RUNNING));
        bar.enable_steady_tick(Duration::from_millis(200));
        Arc::new(Bar(bar))
    }
}

struct Bar(ProgressBar);

impl LayerProgress for Bar {
    fn read(&self, bytes: u64) {
        self.0.inc(bytes);
    }

    fn pushing(&self, size: u64) {
        self.0.set_position(0);
        self.0.set_length(size);
        self.0.set_message("pushing");
        self.0.reset_eta();
    }

    fn pushed(&self, bytes: u64) {
        self.0.inc(bytes);
    }

    fn done(&self, outcome: Outcome) {
        self.0.set_style(style(DONE));
        self.0.finish_with_message(outcome.as_str());
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        if !self.0.is_finished() {
            self.0.set_style(style(STOPPED));
            self.0.abandon_with_message("stopped");
        }
    }
}

/// A template that does not parse would be a mistake in this file; a plain bar is shown then.
fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_templates_parse() {
        for template in [RUNNING, DONE, STOPPED] {
            ProgressStyle::with_template(template).unwrap();
        }
    }
}
