//! Showing how far a verification is.

use std::sync::Arc;
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Is told which layers are looked at.
pub trait Watch: Send + Sync {
    /// A layer's turn has come. `name` is short, `size` the bytes to fetch.
    fn layer(&self, name: &str, size: u64) -> Arc<dyn LayerWatch>;
}

/// Is told what happens to a layer.
pub trait LayerWatch: Send + Sync {
    /// So many more bytes have arrived.
    fn fetched(&self, bytes: u64);
    /// All `size` bytes are here and are audited now.
    fn auditing(&self, size: u64);
    /// So many more bytes were looked at. Those of chunks are looked at twice.
    fn audited(&self, bytes: u64);
    /// The verdict, in a word.
    fn done(&self, verdict: &'static str);
}

/// Shows nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unwatched;

impl Watch for Unwatched {
    fn layer(&self, _: &str, _: u64) -> Arc<dyn LayerWatch> {
        Arc::new(Self)
    }
}

impl LayerWatch for Unwatched {
    fn fetched(&self, _: u64) {}
    fn auditing(&self, _: u64) {}
    fn audited(&self, _: u64) {}
    fn done(&self, _: &'static str) {}
}

const STYLE: &str = "{prefix}  {msg:9}  {wide_bar}  {bytes:>10} / {total_bytes:10}";

/// A bar for each layer under way, on standard error; nothing if that is no terminal.
#[derive(Clone, Debug)]
pub struct VerifyBars(MultiProgress);

impl Default for VerifyBars {
    fn default() -> Self {
        Self(MultiProgress::with_draw_target(ProgressDrawTarget::stderr()))
    }
}

impl Watch for VerifyBars {
    fn layer(&self, name: &str, size: u64) -> Arc<dyn LayerWatch> {
        let bar = self.0.add(ProgressBar::new(size).with_prefix(name.to_owned()).with_message("fetching"));
        bar.set_style(ProgressStyle::with_template(STYLE).unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.enable_steady_tick(Duration::from_millis(200));
        Arc::new(Bar(bar))
    }
}

struct Bar(ProgressBar);

impl LayerWatch for Bar {
    fn fetched(&self, bytes: u64) {
        self.0.inc(bytes);
    }

    fn auditing(&self, size: u64) {
        self.0.set_position(0);
        self.0.set_length(size.saturating_mul(2));
        self.0.set_message("auditing");
    }

    fn audited(&self, bytes: u64) {
        self.0.inc(bytes);
    }

    fn done(&self, _: &'static str) {
        self.0.finish_and_clear();
    }
}

/// The report says everything; a bar that stays would only be in its way.
impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_template_parses() {
        ProgressStyle::with_template(STYLE).unwrap();
    }
}
