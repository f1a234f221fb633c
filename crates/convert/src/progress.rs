//! Showing how far a conversion or a pull is: bars on a terminal, a line for each beginning and end elsewhere.

use std::io::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::table;

/// Is told what a conversion does.
pub trait Progress: Send + Sync {
    /// A layer's turn has come. `name` is short, `size` the bytes to read.
    fn layer(&self, name: &str, size: u64) -> Arc<dyn LayerProgress>;
    /// Something that is no failure and that the user should know.
    fn note(&self, text: &str);
}

/// Is told what happens to a layer. One that is dropped before [`LayerProgress::done`] was stopped.
pub trait LayerProgress: Send + Sync {
    /// So many more bytes of the source were read.
    fn read(&self, bytes: u64);
    /// The layer is made; its last bytes, of `size` in all, are on their way.
    fn pushing(&self, size: u64);
    /// The layer is at its destination, with `size` bytes; `outcome` is a word.
    fn done(&self, outcome: &'static str, size: u64);
}

/// Shows nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Progress for Silent {
    fn layer(&self, _: &str, _: u64) -> Arc<dyn LayerProgress> {
        Arc::new(Self)
    }
    fn note(&self, _: &str) {}
}

impl LayerProgress for Silent {
    fn read(&self, _: u64) {}
    fn pushing(&self, _: u64) {}
    fn done(&self, _: &'static str, _: u64) {}
}

/// Plain lines on standard error, for logs.
#[derive(Clone, Copy, Debug, Default)]
pub struct Lines;

impl Progress for Lines {
    fn layer(&self, name: &str, size: u64) -> Arc<dyn LayerProgress> {
        say(&format!("{name}  begins, {}", table::bytes(size)));
        Arc::new(Line { name: name.to_owned(), size, began: Instant::now() })
    }

    fn note(&self, text: &str) {
        say(&format!("warning: {text}"));
    }
}

struct Line {
    name: String,
    size: u64,
    began: Instant,
}

impl LayerProgress for Line {
    fn read(&self, _: u64) {}
    fn pushing(&self, _: u64) {}
    fn done(&self, outcome: &'static str, size: u64) {
        let became = if size == self.size { String::new() } else { format!(" -> {}", table::bytes(size)) };
        let (before, seconds) = (table::bytes(self.size), self.began.elapsed().as_secs_f64());
        say(&format!("{}  {outcome}, {before}{became}, {seconds:.1} s", self.name));
    }
}

/// Nobody may be listening; then there is nothing to do about it.
fn say(line: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{line}");
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
        let bar = self.0.add(ProgressBar::new(size).with_prefix(name.to_owned()).with_message("reading"));
        bar.set_style(style(RUNNING));
        bar.enable_steady_tick(Duration::from_millis(200));
        Arc::new(Bar(bar))
    }

    fn note(&self, text: &str) {
        // If the terminal has gone there is nobody to tell.
        let _ = self.0.println(format!("warning: {text}"));
    }
}

struct Bar(ProgressBar);

impl LayerProgress for Bar {
    fn read(&self, bytes: u64) {
        self.0.inc(bytes);
    }

    fn pushing(&self, size: u64) {
        self.0.set_length(size);
        self.0.set_position(size);
        self.0.set_message("pushing");
    }

    fn done(&self, outcome: &'static str, size: u64) {
        self.0.set_length(size);
        self.0.set_style(style(DONE));
        self.0.finish_with_message(outcome);
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
