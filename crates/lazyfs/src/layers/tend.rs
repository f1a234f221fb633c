//! The tasks of a layer store: fetching in the background, and making chunks durable.

use std::sync::{Arc, Weak};
use std::time::Duration;

use super::{Layers, evict};
use crate::engine::{Engine, Wanted};
use crate::layer::{Core, Step};
use crate::memory;

/// How often a full disk is tried again.
const AFTER_FULL_DISK: Duration = Duration::from_mins(1);

/// How often a flush that failed is tried again.
const AFTER_FAILED_FLUSH: Duration = Duration::from_secs(10);

/// How often it is looked whether a rush is over.
const REST: Duration = Duration::from_millis(500);

/// Starts the tasks. They end when the engine stops.
pub(super) fn start(engine: &Arc<Engine>, layers: &Weak<Layers>) {
    for _ in 0..engine.options.background_fetches {
        let engine = Arc::clone(engine);
        engine.tasks.clone().spawn(async move {
            tokio::select! {
                () = engine.stop.cancelled() => {}
                () = fetch_in_background(&engine) => {}
            }
        });
    }
    let (room, store) = (Arc::clone(engine), layers.clone());
    room.tasks.clone().spawn(async move {
        tokio::select! {
            () = room.stop.cancelled() => {}
            () = evict::keep_within(&room, &store) => {}
        }
    });
    let (tired, store) = (Arc::clone(engine), layers.clone());
    tired.tasks.clone().spawn(async move {
        tokio::select! {
            () = tired.stop.cancelled() => {}
            () = rest(&tired, &store) => {}
        }
    });
    let engine = Arc::clone(engine);
    let layers = layers.clone();
    engine.tasks.clone().spawn(async move {
        tokio::select! {
            () = engine.stop.cancelled() => {}
            () = make_durable(&engine, &layers) => {}
        }
    });
}

/// Takes layers in turn, a step each, so that all of them get on. A layer that nobody uses any more is left
/// where it is.
async fn fetch_in_background(engine: &Arc<Engine>) {
    loop {
        let queued = engine.queued.notified();
        let Some((layer, unused)) = engine.dequeue() else {
            queued.await;
            continue;
        };
        let step = async {
            engine.space.ample().await;
            engine.quiet().await;
            layer.background_step(&unused).await
        };
        let step = tokio::select! {
            () = unused.cancelled() => {
                tracing::debug!(layer = %layer.layer_digest(), "background fetch ended: nobody uses the layer");
                continue;
            }
            step = step => step,
        };
        let again = Wanted { layer: Arc::downgrade(&layer), unused };
        match step {
            Step::Complete => {
                layer.numbers.background_ended(layer.layer_digest());
                tracing::debug!(layer = %layer.layer_digest(), "layer is complete");
            }
            Step::Fetched => engine.enqueue(again),
            Step::Failed => {
                let rest = if engine.is_disk_full() { AFTER_FULL_DISK } else { layer.rest() };
                drop(layer);
                let later = Arc::clone(engine);
                engine.tasks.spawn(async move {
                    tokio::select! {
                        () = later.stop.cancelled() => {}
                        () = again.unused.cancelled() => {}
                        () = tokio::time::sleep(rest) => later.enqueue(again),
                    }
                });
            }
        }
    }
}

/// Flushes in batches: one `fdatasync` per layer and interval, however many chunks arrived.
async fn make_durable(engine: &Arc<Engine>, layers: &Weak<Layers>) {
    let mut is_left = false;
    loop {
        // What a full disk refused is tried again though nothing new arrives.
        let again = async {
            if is_left { tokio::time::sleep(AFTER_FAILED_FLUSH).await } else { std::future::pending().await }
        };
        tokio::select! {
            () = engine.wrote.notified() => tokio::time::sleep(engine.options.flush_after).await,
            () = again => {}
        }
        let Some(layers) = layers.upgrade() else { return };
        let open = layers.cores();
        drop(layers);
        let flushed = tokio::task::spawn_blocking(move || {
            flush(&open);
            open.iter().any(|layer| layer.is_dirty())
        });
        is_left = flushed.await.unwrap_or(false);
        engine.buffers.clear();
    }
}

/// When a rush is over, gives back what it left in memory.
async fn rest(engine: &Arc<Engine>, layers: &Weak<Layers>) {
    // Twice: not everybody is done when the first begins.
    let mut turns = 0;
    loop {
        tokio::time::sleep(REST).await;
        let Some(layers) = layers.upgrade() else { return };
        let open = layers.cores();
        drop(layers);
        let had_trees = open.iter().filter(|layer| layer.give_up_idle()).count() > 0;
        drop(open);
        if engine.was_busy() {
            turns = 2;
            continue;
        }
        if had_trees {
            turns = 2;
        }
        if turns > 0 {
            turns -= 1;
            memory::call_turn();
            let _ = tokio::task::spawn_blocking(memory::at_rest).await;
        }
    }
}

/// Makes what was fetched durable.
pub(super) fn flush(layers: &[Arc<Core>]) {
    for layer in layers {
        layer.flush();
    }
}
