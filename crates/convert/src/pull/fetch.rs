//! Blobs of ordinary layers on their way into containerd: a few at once, ahead of whoever unpacks them.

use std::collections::HashMap;
use std::sync::Arc;

use content::Urgency;
use futures::StreamExt as _;
use registry::Descriptor;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::error::ConvertError;
use crate::place::{ContainerdShelf, ImageSource};
use crate::progress::LayerProgress;

/// Blobs that are fetched at once, as containerd does.
const AT_ONCE: usize = 3;

type Fetching = JoinHandle<Result<u64, ConvertError>>;

/// The blobs under way, by the number of their layer.
pub(super) struct Fetches {
    means: Arc<Means>,
    under_way: HashMap<usize, Fetching>,
    turns: Arc<Semaphore>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

struct Means {
    shelf: Arc<ContainerdShelf>,
    source: Arc<dyn ImageSource>,
    /// The label of a blob that came from there.
    from: (String, String),
}

impl Fetches {
    pub(super) fn new(
        shelf: Arc<ContainerdShelf>,
        source: Arc<dyn ImageSource>,
        from: (String, String),
    ) -> Self {
        Self {
            means: Arc::new(Means { shelf, source, from }),
            under_way: HashMap::new(),
            turns: Arc::new(Semaphore::new(AT_ONCE)),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
        }
    }

    /// Begins to fetch a layer, if that is not under way.
    pub(super) fn start(&mut self, at: usize, layer: &Descriptor, progress: &Arc<dyn LayerProgress>) {
        let (means, turns, stop) = (Arc::clone(&self.means), Arc::clone(&self.turns), self.stop.clone());
        let (layer, progress) = (layer.clone(), Arc::clone(progress));
        self.under_way.entry(at).or_insert_with(|| {
            self.tasks.spawn(async move {
                let work = async {
                    let _turn = turns.acquire().await.map_err(|_| ConvertError::Interrupted)?;
                    means.fetch(&layer, &*progress).await
                };
                tokio::select! {
                    biased;
                    () = stop.cancelled() => Err(ConvertError::Interrupted),
                    done = work => done,
                }
            })
        });
    }

    /// Waits for a layer that was begun. Answers how many bytes travelled.
    pub(super) async fn wait(&mut self, at: usize) -> Result<u64, ConvertError> {
        let Some(fetching) = self.under_way.get_mut(&at) else { return Err(ConvertError::Interrupted) };
        let fetched = fetching.await.unwrap_or(Err(ConvertError::Interrupted));
        self.under_way.remove(&at);
        fetched
    }

    /// Stops what is under way and waits for its end.
    pub(super) async fn end(&self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

impl Means {
    async fn fetch(&self, layer: &Descriptor, progress: &dyn LayerProgress) -> Result<u64, ConvertError> {
        if self.shelf.has(layer).await? {
            return Ok(0);
        }
        let mut writer = self.shelf.begin().await?;
        let mut stream = self.source.stream(layer, Urgency::Blocking);
        let mut fetched = 0_u64;
        while let Some(part) = stream.next().await {
            let written = match part {
                Err(reason) => Err(ConvertError::Read { digest: layer.digest, reason }),
                Ok(part) => {
                    let len = part.len() as u64;
                    progress.read(len);
                    fetched = fetched.saturating_add(len);
                    writer.write(part).await.map_err(ConvertError::from)
                }
            };
            if let Err(error) = written {
                writer.abort().await;
                return Err(error);
            }
        }
        writer.commit(layer, None).await?;
        self.shelf.label(&layer.digest, HashMap::from([self.from.clone()])).await?;
        Ok(fetched)
    }
}
