//! An image of containerd, to be written.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use content::Digest;
use prost_types::FieldMask;
use proto::containerd::content::{Info, UpdateRequest};
use proto::containerd::images::{CreateImageRequest, Image, UpdateImageRequest};
use proto::containerd::leases::{AddResourceRequest, CreateRequest, DeleteRequest, Resource};
use registry::Descriptor;
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::sync::OnceCell;
use tonic::{Code, Status};

use super::api::{Api, to_containerd};
use super::ingest::{Ingest, abort};
use super::{ContainerdSource, read, rename};
use crate::place::blob::check_bytes;
use crate::place::{BlobWriter, ImageSource, ImageTarget, Place, PlaceError};

/// After this time containerd takes back what a killed process left; as long as its own client gives.
const LEASE: time::Duration = time::Duration::hours(24);
/// When a lease ends by itself.
const EXPIRE: &str = "containerd.io/gc.expire";
/// What begins labels that keep the blob that they name.
const REFERS: &str = "containerd.io/gc.ref.content.";
/// Labels that are true of a blob in every namespace.
const TRUE_EVERYWHERE: [&str; 2] = ["containerd.io/uncompressed", "containerd.io/distribution.source."];

/// What an image and its siblings share.
#[derive(Debug)]
pub(super) struct Work {
    plain: Api,
    /// The connection with the lease, once it is there.
    leased: OnceCell<Api>,
    /// Writes that have not ended.
    ingests: Mutex<HashSet<String>>,
    next: AtomicU64,
    /// Siblings that have to get their names.
    beside: Mutex<Vec<(String, Descriptor)>>,
    named: AtomicBool,
}

impl Work {
    /// Nothing yet.
    pub(super) fn new(api: Api) -> Self {
        Self {
            plain: api,
            leased: OnceCell::new(),
            ingests: Mutex::default(),
            next: AtomicU64::new(0),
            beside: Mutex::default(),
            named: AtomicBool::new(false),
        }
    }

    /// The connection, without the lease.
    pub(super) fn plain(&self) -> &Api {
        &self.plain
    }

    /// The connection, with a lease.
    pub(super) async fn api(&self) -> Result<&Api, PlaceError> {
        self.leased.get_or_try_init(|| self.take_lease()).await
    }

    async fn take_lease(&self) -> Result<Api, PlaceError> {
        let expires = (OffsetDateTime::now_utc() + LEASE).format(&Rfc3339).unwrap_or_default();
        let labels = HashMap::from([(EXPIRE.to_owned(), expires)]);
        // Without an identifier containerd makes one.
        let request = self.plain.request(CreateRequest { id: String::new(), labels })?;
        let answer = self.plain.leases().create(request).await;
        let answer = answer.map_err(|status| self.error("taking a lease".to_owned(), &status))?;
        let lease = answer.into_inner().lease.unwrap_or_default().id;
        Ok(self.plain.with_lease(lease))
    }

    /// Gives the lease back: containerd forgets what nothing else holds.
    async fn end_lease(&self) {
        let Some(lease) = self.leased.get().and_then(|api| api.lease()) else { return };
        let deleted = async {
            let request = self.plain.request(DeleteRequest { id: lease.to_owned(), sync: false })?;
            match self.plain.leases().delete(request).await {
                Ok(_) => Ok(()),
                Err(status) if status.code() == Code::NotFound => Ok(()),
                Err(status) => Err(self.error("ending a lease".to_owned(), &status)),
            }
        };
        if let Err(error) = deleted.await {
            tracing::warn!(%error, lease, "the lease ends by itself in a day");
        }
    }

    /// The image has its name: what was made for it stays, and needs no lease.
    pub(super) async fn published(&self) {
        self.named.store(true, Ordering::Release);
        self.end_lease().await;
    }

    pub(super) fn error(&self, doing: String, status: &Status) -> PlaceError {
        self.plain.error(doing, status)
    }

    pub(super) fn shown(&self) -> String {
        format!("containerd namespace {}", self.plain.namespace())
    }

    fn ingests(&self) -> std::sync::MutexGuard<'_, HashSet<String>> {
        self.ingests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A name for a write that nobody else uses.
    pub(super) fn new_ingest(&self) -> String {
        let lease = self.leased.get().and_then(|api| api.lease()).unwrap_or_default();
        let name = format!("pantala-{lease}-{}", self.next.fetch_add(1, Ordering::Relaxed));
        self.ingests().insert(name.clone());
        name
    }

    /// A write needs not be taken back any more.
    pub(super) fn ingest_ended(&self, name: &str) {
        self.ingests().remove(name);
    }

    /// Keeps a blob that is there.
    pub(super) async fn hold(&self, digest: &Digest) -> Result<(), PlaceError> {
        let api = self.api().await?;
        let resource = Resource { id: digest.to_string(), r#type: "content".to_owned() };
        let id = api.lease().unwrap_or_default().to_owned();
        let request = api.request(AddResourceRequest { id, resource: Some(resource) })?;
        match api.leases().add_resource(request).await {
            Ok(_) => Ok(()),
            // Whether there is such a blob is not asked. What may be missing is the lease, and then nothing is kept.
            Err(status) if status.code() == Code::AlreadyExists => Ok(()),
            Err(status) => Err(self.error(format!("keeping {digest}"), &status)),
        }
    }

    /// Adds labels to a blob.
    pub(super) async fn label(
        &self,
        digest: &Digest,
        labels: HashMap<String, String>,
    ) -> Result<(), PlaceError> {
        if labels.is_empty() {
            return Ok(());
        }
        let api = self.api().await?;
        let paths = labels.keys().map(|key| format!("labels.{key}")).collect();
        let info = Info { digest: digest.to_string(), labels, ..Info::default() };
        let request = UpdateRequest { info: Some(info), update_mask: Some(FieldMask { paths }) };
        let updated = api.content().update(api.request(request)?).await;
        updated.map(drop).map_err(|status| self.error(format!("labelling {digest}"), &status))
    }

    pub(super) async fn has(&self, descriptor: &Descriptor) -> Result<bool, PlaceError> {
        // Held first, so that it is not collected between the answer and the end of the work.
        self.hold(&descriptor.digest).await?;
        let info = self.api().await?.info(&descriptor.digest).await?;
        Ok(info.is_some_and(|info| u64::try_from(info.size) == Ok(descriptor.size)))
    }

    pub(super) async fn put(
        self: &Arc<Self>,
        place: &Place,
        descriptor: &Descriptor,
        bytes: Bytes,
        labels: HashMap<String, String>,
    ) -> Result<(), PlaceError> {
        check_bytes(&place.to_string(), descriptor, &bytes)?;
        if self.has(descriptor).await? {
            return self.label(&descriptor.digest, labels).await;
        }
        let mut ingest = Ingest::begin(Arc::clone(self)).await?;
        ingest.write(bytes).await?;
        ingest.end(descriptor, labels).await.map(drop)
    }

    /// Takes a blob over that containerd has for another namespace.
    async fn share(
        self: &Arc<Self>,
        descriptor: &Descriptor,
        labels: HashMap<String, String>,
    ) -> Result<bool, PlaceError> {
        let ingest = match Ingest::open(Arc::clone(self), Some(descriptor)).await {
            Ok(ingest) => ingest,
            Err(Ok(error)) => return Err(error),
            Err(Err(status)) if status.code() == Code::AlreadyExists => return self.has(descriptor).await,
            Err(Err(status)) => return Err(self.error(format!("looking for {}", descriptor.digest), &status)),
        };
        if ingest.offset() != descriptor.size || descriptor.size == 0 {
            Box::new(ingest).abort().await;
            return Ok(false);
        }
        ingest.end(descriptor, labels).await.map(|_| true)
    }

    pub(super) async fn give_name(&self, name: &str, root: &Descriptor) -> Result<(), PlaceError> {
        let api = self.api().await?;
        let doing = || format!("naming the image {name}");
        let target = Some(to_containerd(root));
        let image = Some(Image { name: name.to_owned(), target, ..Image::default() });
        let created = api.images().create(api.request(CreateImageRequest { image: image.clone() })?).await;
        match created {
            Ok(_) => return Ok(()),
            Err(status) if status.code() == Code::AlreadyExists => {}
            Err(status) => return Err(self.error(doing(), &status)),
        }
        let update_mask = Some(FieldMask { paths: vec!["target".to_owned()] });
        let updated = api.images().update(api.request(UpdateImageRequest { image, update_mask })?).await;
        updated.map(drop).map_err(|status| self.error(doing(), &status))
    }
}

/// Opens the image `name`.
pub(super) fn open(place: Place, api: Api, name: String) -> Arc<dyn ImageTarget> {
    Arc::new(ContainerdTarget { place, name, work: Arc::new(Work::new(api)), beside: false })
}

/// An image of containerd, to be written.
#[derive(Debug)]
struct ContainerdTarget {
    place: Place,
    name: String,
    work: Arc<Work>,
    /// Whether it is a sibling, which gets its name together with the image that it belongs to.
    beside: bool,
}

#[async_trait]
impl ImageTarget for ContainerdTarget {
    fn place(&self) -> &Place {
        &self.place
    }

    async fn check(&self) -> Result<(), PlaceError> {
        self.work.api().await.map(drop)
    }

    async fn current(&self) -> Result<Option<(Descriptor, Bytes)>, PlaceError> {
        let Some(root) = self.work.plain.image(&self.name).await? else { return Ok(None) };
        Ok(self.manifest(&root).await?.map(|bytes| (root, bytes)))
    }

    async fn manifest(&self, descriptor: &Descriptor) -> Result<Option<Bytes>, PlaceError> {
        match read(&self.work.plain, &self.place, descriptor, super::MAX_MANIFEST).await {
            Ok(bytes) => Ok(Some(bytes)),
            Err(PlaceError::MissingBlob { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn has(&self, descriptor: &Descriptor) -> Result<bool, PlaceError> {
        self.work.has(descriptor).await
    }

    async fn adopt(&self, source: &dyn ImageSource, descriptor: &Descriptor) -> Result<bool, PlaceError> {
        let mut labels = HashMap::new();
        if let Some(from) = source.as_any().downcast_ref::<ContainerdSource>()
            && from.api.address() == self.work.plain.address()
        {
            if from.api.namespace() == self.work.plain.namespace() {
                return self.work.has(descriptor).await;
            }
            let known = from.api.info(&descriptor.digest).await?.unwrap_or_default().labels;
            labels.extend(
                known.into_iter().filter(|(key, _)| TRUE_EVERYWHERE.iter().any(|it| key.starts_with(it))),
            );
        }
        self.work.share(descriptor, labels).await
    }

    async fn begin(&self) -> Result<Box<dyn BlobWriter>, PlaceError> {
        Ok(Box::new(Ingest::begin(Arc::clone(&self.work)).await?))
    }

    async fn put_blob(&self, descriptor: &Descriptor, bytes: Bytes) -> Result<(), PlaceError> {
        self.work.put(&self.place, descriptor, bytes, HashMap::new()).await
    }

    async fn put_manifest(&self, descriptor: &Descriptor, bytes: Bytes) -> Result<(), PlaceError> {
        let labels = refers_to(&bytes);
        self.work.put(&self.place, descriptor, bytes, labels).await
    }

    async fn name(&self, root: &Descriptor, bytes: Bytes) -> Result<(), PlaceError> {
        self.put_manifest(root, bytes).await?;
        let beside = {
            let mut beside = self.work.beside.lock().unwrap_or_else(PoisonError::into_inner);
            if self.beside {
                beside.push((self.name.clone(), root.clone()));
                return Ok(());
            }
            beside.clone()
        };
        for (name, root) in &beside {
            self.work.give_name(name, root).await?;
        }
        self.work.give_name(&self.name, root).await?;
        self.work.published().await;
        Ok(())
    }

    async fn sibling(&self, suffix: &str) -> Result<Arc<dyn ImageTarget>, PlaceError> {
        let name = format!("{}{suffix}", self.name);
        let place = rename(&self.place, name.clone());
        Ok(Arc::new(Self { place, name, work: Arc::clone(&self.work), beside: true }))
    }

    async fn abandon(&self) {
        abandon(&self.work).await;
    }
}

/// Takes back what was brought, unless it has got its name.
pub(super) async fn abandon(work: &Work) {
    if work.named.load(Ordering::Acquire) {
        return;
    }
    let ingests: Vec<String> = work.ingests().iter().cloned().collect();
    for ingest in ingests {
        abort(work, &ingest).await;
    }
    work.end_lease().await;
}

/// Labels for what a manifest or an index names, as containerd's own client calls them.
fn refers_to(document: &[u8]) -> HashMap<String, String> {
    let document: Value = serde_json::from_slice(document).unwrap_or_default();
    let digest = |value: &Value| {
        let text = value.get("digest")?.as_str()?;
        text.parse::<Digest>().ok().map(|digest| digest.to_string())
    };
    let mut labels = HashMap::new();
    labels.extend(document.get("config").and_then(digest).map(|digest| (format!("{REFERS}config"), digest)));
    for (list, short) in [("layers", "l"), ("manifests", "m")] {
        let entries = document.get(list).and_then(Value::as_array).into_iter().flatten().enumerate();
        labels.extend(
            entries.filter_map(|(at, entry)| Some((format!("{REFERS}{short}.{at}"), digest(entry)?))),
        );
    }
    labels
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_keeps_its_blobs_and_an_index_its_manifests() {
        let digests: Vec<String> = (0..3_u8).map(|n| Digest::of(&[n]).to_string()).collect();
        let manifest = serde_json::json!({
            "config": {"digest": digests[0]},
            "layers": [{"digest": digests[1]}, {"digest": "sha256:../etc"}, {"digest": digests[2]}],
        });
        let mut labels: Vec<_> = refers_to(&serde_json::to_vec(&manifest).unwrap()).into_iter().collect();
        labels.sort();
        let label = |name: &str, digest: usize| {
            (format!("containerd.io/gc.ref.content.{name}"), digests[digest].clone())
        };
        assert_eq!(labels, [label("config", 0), label("l.0", 1), label("l.2", 2)]);
        let index = serde_json::json!({"manifests": [{"digest": digests[1]}]});
        let labels = refers_to(&serde_json::to_vec(&index).unwrap());
        assert_eq!(labels, HashMap::from([label("m.0", 1)]));
        assert!(refers_to(b"{").is_empty());
    }
}
