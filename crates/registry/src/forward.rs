//! A proxy's request, passed on as it is: no credentials of ours, no redirects followed, no retries.

use std::time::Duration;

use bytes::Bytes;
use content::{ByteStream, ReadError};
use futures::StreamExt;
use http::{HeaderMap, Method, StatusCode};
use url::Url;

use crate::client::Client;
use crate::error::RegistryError;
use crate::failure::failure;
use crate::transport::{Request, Trust};

/// What to pass on. Hop-by-hop headers have been taken out.
pub struct ForwardRequest {
    /// The method.
    pub method: Method,
    /// Where to.
    pub url: Url,
    /// The caller's headers.
    pub headers: HeaderMap,
    /// The caller's body.
    pub body: Option<ByteStream>,
    /// Whether the upstream's certificate is not checked.
    pub insecure: bool,
    /// Whether this node's configuration names the host. If not, the allow-list decides.
    pub configured: bool,
    /// Whether redirects are followed, without the caller's credentials beyond the first host.
    pub follow: bool,
    /// For the head of the answer.
    pub timeout: Duration,
}

/// The answer, as it came.
pub struct Forwarded {
    /// The status.
    pub status: StatusCode,
    /// The headers, hop-by-hop ones among them.
    pub headers: HeaderMap,
    /// The body as it arrives.
    pub body: ByteStream,
}

impl Client {
    /// Passes `request` on.
    ///
    /// # Errors
    /// That the allow-list refuses it, or that no answer came. Every status is an answer.
    pub async fn forward(&self, request: ForwardRequest) -> Result<Forwarded, RegistryError> {
        let doing = "passing a request on";
        let url = request.url.clone();
        let send = Request {
            doing,
            method: request.method,
            url: request.url,
            headers: request.headers,
            body: request.body.map(reqwest::Body::wrap_stream),
            trust: if request.configured { Trust::Configured } else { Trust::Named },
            tls: self.inner.tls_of(&url, request.insecure),
            follow: request.follow,
            anew: false,
            timeout: request.timeout,
        };
        let response = self.inner.transport.send(send, self.inner.upstreams.as_deref()).await?;
        let (status, headers) = (response.status(), response.headers().clone());
        let body = futures::stream::try_unfold((response, url), |(mut response, url)| async move {
            let chunk: Option<Bytes> = response
                .chunk()
                .await
                .map_err(|error| ReadError::from(failure("reading an answer", &url, &error)))?;
            Ok(chunk.map(|chunk| (chunk, (response, url))))
        });
        Ok(Forwarded { status, headers, body: body.boxed() })
    }
}
