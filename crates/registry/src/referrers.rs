//! Lists that a registry answers in pages: what refers to a manifest, and the tags of a repository.
//!
//! Signatures, bills of materials and the like name the manifest that they are about as their *subject*. A
//! registry that knows the referrers API lists them; at others, whoever pushes one keeps an index of them
//! under the tag `sha256-<hex>` of the subject. A registry may or may not honour the wish for one artifact
//! type, so the filter is applied here as well.

use content::Digest;
use http::header::{ACCEPT, LINK};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::answer::{read_limited, status_error};
use crate::ask::{Ask, Auth};
use crate::client::Client;
use crate::error::RegistryError;
use crate::manifest::{Index, media_type};
use crate::push::{ask, place};
use crate::reference::Reference;
use crate::retry::{Patience, Retry};
use crate::transport::{Response, Trust, reach_of};
use crate::upstreams::name_of;

/// One page may be this long.
const MAX_PAGE: usize = 8 << 20;
/// A list of more pages than this has no end.
const MAX_PAGES: usize = 1000;
/// More entries than anybody looks at.
const MAX_ENTRIES: usize = 100_000;

impl Client {
    /// What refers to the manifest `subject` in the repository of `reference`; with `artifact_type`, only
    /// what is of it. Mirrors are not asked. An empty index if there is nothing.
    ///
    /// # Errors
    /// What the registry answered, or that it could not be reached.
    pub async fn referrers(
        &self,
        reference: &Reference,
        subject: &Digest,
        artifact_type: Option<&str>,
    ) -> Result<Index, RegistryError> {
        let doing = format!("listing what refers to {subject} in {}", place(reference));
        let mut path = format!("{}/referrers/{subject}", reference.repository());
        if let Some(artifact_type) = artifact_type {
            let query = url::form_urlencoded::Serializer::new(String::new())
                .append_pair("artifactType", artifact_type)
                .finish();
            path = format!("{path}?{query}");
        }
        let mut index = match self.pages::<Index>(&doing, reference, &path).await {
            Ok(pages) => {
                let mut whole = empty_index();
                whole.manifests = pages.into_iter().flat_map(|page| page.manifests).collect();
                whole
            }
            // What registries answer that do not know the API.
            Err(RegistryError::Status { status: 400 | 404 | 405 | 501, .. }) => {
                self.referrers_by_tag(&doing, reference, subject).await?
            }
            Err(error) => return Err(error),
        };
        if let Some(wanted) = artifact_type {
            index.manifests.retain(|descriptor| {
                descriptor.rest.get("artifactType").and_then(|kind| kind.as_str()) == Some(wanted)
            });
        }
        Ok(index)
    }

    async fn referrers_by_tag(
        &self,
        doing: &str,
        reference: &Reference,
        subject: &Digest,
    ) -> Result<Index, RegistryError> {
        let tag = reference.clone().with_tag(&format!("sha256-{}", subject.hex()))?;
        match self.manifest(&tag).await {
            Ok((descriptor, bytes)) if media_type::is_index(&descriptor.media_type) => {
                serde_json::from_slice(&bytes).map_err(|error| RegistryError::Corrupt {
                    doing: doing.to_owned(),
                    host: reference.registry().to_owned(),
                    reason: format!("an index that is none: {error}"),
                })
            }
            // Somebody's image that is called so.
            Ok(_) | Err(RegistryError::Status { status: 404, .. }) => Ok(empty_index()),
            Err(error) => Err(error),
        }
    }

    /// The tags of the repository of `reference`, in the registry's order. Mirrors are not asked.
    ///
    /// # Errors
    /// What the registry answered, or that it could not be reached.
    pub async fn tags(&self, reference: &Reference) -> Result<Vec<String>, RegistryError> {
        #[derive(Deserialize)]
        struct Page {
            tags: Option<Vec<String>>,
        }
        let doing = format!("listing the tags of {}", place(reference));
        let path = format!("{}/tags/list", reference.repository());
        let pages = self.pages::<Page>(&doing, reference, &path).await?;
        let tags: Vec<String> = pages.into_iter().filter_map(|page| page.tags).flatten().collect();
        if tags.len() > MAX_ENTRIES {
            return Err(too_long(&doing, reference.registry()));
        }
        Ok(tags)
    }

    /// All pages of a list, by the links from each to the next.
    async fn pages<T: DeserializeOwned>(
        &self,
        doing: &str,
        reference: &Reference,
        path: &str,
    ) -> Result<Vec<T>, RegistryError> {
        let endpoint = self.inner.base(reference.registry())?;
        let auth = Auth::pull(reference.repository());
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        let mut url = endpoint.url(path);
        if !query.is_empty() {
            let all = url.query().map_or_else(|| query.to_owned(), |own| format!("{own}&{query}"));
            url.set_query(Some(&all));
        }
        let mut trust = Trust::Configured;
        let mut pages = Vec::new();
        let mut room = MAX_PAGE * 8;
        for _ in 0..MAX_PAGES {
            // A next page at another host is asked for without credentials.
            let nobody = Auth::Caller(None);
            let auth = if url.origin() == endpoint.base.origin() { &auth } else { &nobody };
            let mut headers = HeaderMap::new();
            headers.insert(
                ACCEPT,
                HeaderValue::from_static("application/vnd.oci.image.index.v1+json, application/json"),
            );
            let question = || Ask {
                headers: headers.clone(),
                trust,
                follow: true,
                ..ask(doing, &endpoint, Method::GET, url.clone(), auth)
            };
            let mut retry = Retry::new(self.inner.patience(Patience::control()));
            let (page, bytes, next) = loop {
                match self.page::<T>(doing, question()).await {
                    Ok(page) => break page,
                    Err(error) => retry.pause(self.inner.transport.counters(), error).await?,
                }
            };
            pages.push(page);
            room = room.checked_sub(bytes).ok_or_else(|| too_long(doing, reference.registry()))?;
            match next {
                Some((next, next_trust)) => (url, trust) = (next, next_trust),
                None => return Ok(pages),
            }
        }
        Err(too_long(doing, reference.registry()))
    }

    /// One page, its length, and where the next one is.
    async fn page<T: DeserializeOwned>(
        &self,
        doing: &str,
        question: Ask<'_>,
    ) -> Result<(T, usize, Option<(url::Url, Trust)>), RegistryError> {
        let mut answer = self.inner.ask(question).await?;
        if answer.status() != StatusCode::OK {
            return Err(status_error(doing, answer).await);
        }
        let next = match next_page(&answer) {
            Some(next) => {
                let reach = reach_of(&next, &answer, self.inner.upstreams.as_deref())
                    .map_err(|reason| RegistryError::Refused { doing: doing.to_owned(), reason })?;
                Some((next, Trust::UpTo(reach)))
            }
            None => None,
        };
        let bytes = read_limited(doing, &mut answer, MAX_PAGE, Patience::control().answer).await?;
        let page = serde_json::from_slice(&bytes).map_err(|error| RegistryError::Corrupt {
            doing: doing.to_owned(),
            host: name_of(answer.url()),
            reason: format!("a list that is none: {error}"),
        })?;
        Ok((page, bytes.len(), next))
    }
}

fn too_long(doing: &str, host: &str) -> RegistryError {
    let reason = "a list without an end".to_owned();
    RegistryError::Corrupt { doing: doing.to_owned(), host: host.to_owned(), reason }
}

fn empty_index() -> Index {
    Index {
        schema_version: 2,
        media_type: Some(media_type::OCI_INDEX.to_owned()),
        manifests: Vec::new(),
        annotations: None,
        rest: serde_json::Map::new(),
    }
}

/// `Link: </v2/…?last=…>; rel="next"`.
fn next_page(answer: &Response) -> Option<url::Url> {
    let links = answer.headers().get_all(LINK).iter().filter_map(|value| value.to_str().ok());
    let next = links.flat_map(|line| line.split(',')).find_map(|link| {
        let (target, parameters) = link.trim().strip_prefix('<')?.split_once('>')?;
        let is_next = parameters.split(';').any(|parameter| {
            let parameter = parameter.trim().to_ascii_lowercase();
            matches!(parameter.as_str(), "rel=\"next\"" | "rel=next")
        });
        is_next.then_some(target)
    })?;
    answer.url().join(next).ok()
}
