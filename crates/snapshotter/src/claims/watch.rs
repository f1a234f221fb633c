//! Being told of images when containerd takes them in.
//!
//! A container's start is the last moment to find out that two images disagree, and the worst: somebody waits. The
//! record of an image is written when its pull ends; containerd tells whoever listens. This is a help and no more: who
//! listens too late, or not at all, is stopped at the container's start.

use std::sync::Arc;
use std::time::Duration;

use containerd::Error;
use futures::stream::{self, BoxStream};
use futures::{StreamExt, TryStreamExt};
use proto::containerd::events::SubscribeRequest;
use proto::containerd::events::events_client::EventsClient;
use tonic::Request;

use super::peer::Locator;

/// Pause before containerd is asked again that did not answer.
const PAUSE: Duration = Duration::from_secs(5);

/// Namespaces in which an image was taken in or changed; `None` for all, after a time in which nobody listened. Begins
/// with the first process that calls.
pub fn images(locator: Arc<Locator>) -> BoxStream<'static, Option<String>> {
    let caller = locator.caller();
    stream::unfold((locator, caller, None::<Told>), |(locator, mut caller, mut told)| async move {
        loop {
            if let Some(listening) = &mut told {
                tokio::select! {
                    next = listening.try_next() => match next {
                        Ok(Some(namespace)) => return Some((Some(namespace), (locator, caller, told))),
                        Ok(None) => locator.lost(),
                        Err(error) => {
                            tracing::debug!(%error, "containerd stopped telling what happens");
                            locator.lost();
                        }
                    },
                    // Another process calls: that is containerd now.
                    changed = caller.changed() => changed.ok()?,
                }
                told = None;
            }
            if *caller.borrow_and_update() == 0 {
                caller.changed().await.ok()?;
                continue;
            }
            match listen(&locator).await {
                Ok(listening) => return Some((None, (locator, caller, Some(listening)))),
                Err(error) => {
                    tracing::debug!(%error, "containerd cannot be listened to");
                    let _elapsed = tokio::time::timeout(PAUSE, caller.changed()).await;
                }
            }
        }
    })
    .boxed()
}

type Told = BoxStream<'static, Result<String, Error>>;

async fn listen(locator: &Locator) -> Result<Told, Error> {
    let client = locator.client().await?;
    let filters = ["/images/create", "/images/update"].map(|topic| format!("topic==\"{topic}\""));
    let request = Request::new(SubscribeRequest { filters: filters.to_vec() });
    let answer = EventsClient::new(client.channel()).subscribe(request).await;
    let events = answer.map_err(|status| client.error("listening", &status))?.into_inner();
    let told = events.map(move |event| {
        event.map(|event| event.namespace).map_err(|status| client.error("listening", &status))
    });
    Ok(told.boxed())
}
