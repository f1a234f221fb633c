//! One conversion under way: what every part of it shares, and how it comes to an end.

use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use registry::Descriptor;
use tokio::sync::{OnceCell, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::budget::Budget;
use crate::error::ConvertError;
use crate::options::{ConvertOptions, Recipe};
use crate::place::{ImageSource, ImageTarget, PlaceError, Places};
use crate::progress::Progress;
use crate::reuse::{Cache, Earlier};
use crate::toc_image::TocImage;

/// Layers that wait for the target to take their last bytes, or are copied, beside those that are made.
const COPIES: usize = 3;

/// How long a request under way may take to its end when the conversion has failed.
const GRACE: Duration = Duration::from_secs(3);

/// How long the target may take to put things away after that.
const PUTTING_AWAY: Duration = Duration::from_secs(20);

/// One conversion.
pub(crate) struct Engine<'a> {
    pub(crate) places: &'a Places,
    pub(crate) source: Arc<dyn ImageSource>,
    pub(crate) target: Arc<dyn ImageTarget>,
    pub(crate) options: &'a ConvertOptions,
    pub(crate) progress: &'a dyn Progress,
    pub(crate) budget: Budget,
    pub(crate) recipe: Recipe,
    /// The recipe's name.
    pub(crate) name: String,
    /// Layers that are made: each takes its share of memory.
    pub(crate) turns: Semaphore,
    /// Layers that are made, copied or on their last bytes.
    pub(crate) under_way: Semaphore,
    /// Threads, and requests that are not broken off half way.
    pub(crate) tasks: TaskTracker,
    /// Cancelled when the conversion has failed.
    halt: CancellationToken,
    /// The image that the target's name stands for before the conversion, if layers may be taken from it.
    pub(crate) earlier: OnceCell<Option<Earlier>>,
    pub(crate) cache: Option<Cache>,
    pub(crate) source_tocs: OnceCell<Option<TocImage>>,
    pub(crate) toc_target: OnceCell<Arc<dyn ImageTarget>>,
    warnings: Mutex<Vec<String>>,
}

impl<'a> Engine<'a> {
    pub(crate) fn new(
        places: &'a Places,
        source: Arc<dyn ImageSource>,
        target: Arc<dyn ImageTarget>,
        options: &'a ConvertOptions,
        progress: &'a dyn Progress,
    ) -> Self {
        let budget = Budget::new(&options.layer, options.jobs);
        let recipe = Recipe::new(options);
        Self {
            places,
            source,
            target,
            options,
            progress,
            budget,
            name: recipe.name(),
            recipe,
            turns: Semaphore::new(budget.jobs),
            under_way: Semaphore::new(budget.jobs + COPIES),
            tasks: TaskTracker::new(),
            halt: CancellationToken::new(),
            earlier: OnceCell::new(),
            cache: options.cache.as_deref().map(Cache::new),
            source_tocs: OnceCell::new(),
            toc_target: OnceCell::new(),
            warnings: Mutex::default(),
        }
    }

    /// Does something at the target that would leave something behind if it were broken off: when the
    /// conversion fails meanwhile, it still gets a little time to its end.
    pub(crate) async fn see_through<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, PlaceError>> + Send + 'static,
    ) -> Result<T, ConvertError> {
        let halt = self.halt.clone();
        let task = self.tasks.spawn(async move {
            let late = async {
                halt.cancelled().await;
                tokio::time::sleep(GRACE).await;
            };
            tokio::select! {
                biased;
                done = work => done,
                () = late => Err(PlaceError::Interrupted),
            }
        });
        Ok(task.await.map_err(|_| ConvertError::Interrupted)??)
    }

    /// Brings a small blob to the target.
    pub(crate) async fn put_blob(
        &self,
        target: &Arc<dyn ImageTarget>,
        descriptor: &Descriptor,
        bytes: Bytes,
    ) -> Result<(), ConvertError> {
        let (target, descriptor) = (Arc::clone(target), descriptor.clone());
        self.see_through(async move { target.put_blob(&descriptor, bytes).await }).await
    }

    /// Tells the user something that is no failure.
    pub(crate) fn warn(&self, text: String) {
        self.progress.note(&text);
        self.warnings.lock().unwrap_or_else(PoisonError::into_inner).push(text);
    }

    /// Waits until nothing runs any more. Threads end when the pipes to them do.
    pub(crate) async fn ended(&self, failed: bool) {
        if failed {
            self.halt.cancel();
        }
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// What the user was told so far.
    pub(crate) fn warnings(&self) -> Vec<String> {
        self.warnings.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes back what no name needs.
    pub(crate) async fn put_away(&self) {
        let all = async {
            if let Some(tocs) = self.toc_target.get() {
                tocs.abandon().await;
            }
            self.target.abandon().await;
        };
        if tokio::time::timeout(PUTTING_AWAY, all).await.is_err() {
            tracing::warn!(target = %self.target.place(), "what the conversion brought could not be taken back in time");
        }
    }
}
