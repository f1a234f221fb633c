//! How events are answered: at once if the bytes are there, by a task that brings them, or later, when somebody has
//! registered the layer.

use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use content::Urgency;

use super::Inner;
use super::journal::Noted;
use super::sys::Verdict;

/// How long an event of a file that nobody has registered waits for somebody who does: the layers of the process before
/// are opened one after another.
const UNKNOWN: Duration = Duration::from_mins(1);

impl Inner {
    /// Answers an event, or sees to it that it is answered. Inside the runtime; does not block.
    pub(super) fn serve_event(self: &Arc<Self>, slot: u32, event: &Noted) {
        let layer = event.file.and_then(|file| self.guards.layer(file));
        let Some(layer) = layer else {
            if event.file.is_some_and(|file| self.guards.is_abandoned(file)) {
                self.desk.answer(slot, Verdict::Refuse);
                return;
            }
            self.parked.lock().unwrap_or_else(PoisonError::into_inner).push((slot, Instant::now()));
            // Or it would wait for the next look, if the layer was registered just now.
            if event.file.is_some_and(|file| self.guards.layer(file).is_some()) {
                self.wake_parked();
            }
            return;
        };
        let range = event.range;
        let began = Instant::now();
        if layer.core().holds(range) {
            self.desk.answer(slot, Verdict::Allow);
            layer.numbers().hit(began, range.len());
            if !layer.is_complete() || layer.core().is_recorded() {
                layer.core().touch_range(range);
            }
            return;
        }
        layer.core().touch_range(range);
        let (inner, stop) = (Arc::clone(self), self.stop.clone());
        self.tasks.spawn(async move {
            tokio::select! {
                // The next process answers.
                () = stop.cancelled() => {}
                filled = layer.core().fill_range(range, Urgency::Blocking) => {
                    inner.desk.answer(slot, if filled.is_ok() { Verdict::Allow } else { Verdict::Refuse });
                    if filled.is_ok() {
                        layer.numbers().served(began, range.len());
                    }
                    if filled.is_ok_and(|leases| leases.is_empty()) {
                        layer.core().answered(range);
                    }
                }
            }
        });
    }

    /// Looks at the parked events again.
    pub(super) fn wake_parked(self: &Arc<Self>) {
        let parked = std::mem::take(&mut *self.parked.lock().unwrap_or_else(PoisonError::into_inner));
        let _runtime = self.runtime.enter();
        let mut still = Vec::new();
        for (slot, since) in parked {
            let Some(event) = self.desk.journal().noted(slot) else { continue };
            let known = |file| self.guards.layer(file).is_some() || self.guards.is_abandoned(file);
            if event.file.is_some_and(known) {
                self.serve_event(slot, &event);
            } else if since.elapsed() > UNKNOWN {
                tracing::error!(
                    file = ?event.file, range = %event.range,
                    "somebody reads a layer that nobody has opened: it gets an error"
                );
                self.desk.answer(slot, Verdict::Refuse);
            } else if event.file.is_none() && self.expected().is_empty() {
                self.serve_unknown(slot, &event);
            } else {
                still.push((slot, since));
            }
        }
        self.parked.lock().unwrap_or_else(PoisonError::into_inner).extend(still);
    }

    /// An event whose reader died before it knew the file: the range is fetched for every layer that it may be.
    fn serve_unknown(self: &Arc<Self>, slot: u32, event: &Noted) {
        let (inner, range) = (Arc::clone(self), event.range);
        let layers = self.guards.layers();
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            let all = async {
                let mut leases = Vec::new();
                for layer in layers {
                    leases.append(&mut layer.core().fill_range(range, Urgency::Blocking).await?);
                }
                Ok::<_, content::ReadError>(leases)
            };
            tokio::select! {
                () = stop.cancelled() => {}
                filled = all => {
                    inner.desk.answer(slot, if filled.is_ok() { Verdict::Allow } else { Verdict::Refuse });
                }
            }
        });
    }
}
