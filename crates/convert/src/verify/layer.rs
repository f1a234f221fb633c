//! The audit of one layer.

use std::path::Path;
use std::sync::Arc;

use estargz::TailError;
use estargz::audit::{Audit, AuditOptions, Claims, ReadAt as _, audit as audit_blob};
use estargz::footer::{self, Footer};
use registry::Descriptor;

use super::report::{LayerVerdict, LieReport};
use super::spool::Spool;
use super::watch::LayerWatch;
use crate::inspect::LookError;
use crate::inspect::find::ExternalTocs;

/// What the image beside it has for a layer whose TOC is not in the blob.
enum External {
    NotNeeded,
    Json(Vec<u8>),
    Missing,
    Broken(TailError),
}

/// Audits a fetched layer.
pub(super) async fn audit(
    number: usize,
    layer: &Descriptor,
    claims: Claims,
    spool: Spool,
    external: &ExternalTocs<'_>,
    watch: &Arc<dyn LayerWatch>,
    dir: &Path,
) -> Result<LayerVerdict, LookError> {
    let external = find_external(layer, &spool, external, dir).await?;
    if let External::Broken(problem) = &external {
        let lie = LieReport::toc(format!("its external {problem}"));
        return Ok(LayerVerdict::lying(number, layer, lie));
    }
    watch.auditing(spool.len());
    let watched = Arc::clone(watch);
    let work = move || {
        let progress = |count: u64| watched.audited(count);
        let json = match &external {
            External::Json(json) => Some(json.as_slice()),
            _ => None,
        };
        let options = AuditOptions { external_toc: json, progress: &progress, ..AuditOptions::default() };
        audit_blob(&spool, spool.len(), &claims, &options)
    };
    let found: Audit = match tokio::task::spawn_blocking(work).await {
        Ok(Ok(found)) => found,
        Ok(Err(error)) => return Err(LookError::temporary(dir, std::io::Error::other(error))),
        Err(_) => return Err(LookError::Interrupted),
    };
    let verdict = LayerVerdict::of(number, layer, &found);
    watch.done(verdict.word());
    Ok(verdict)
}

async fn find_external(
    layer: &Descriptor,
    spool: &Spool,
    external: &ExternalTocs<'_>,
    dir: &Path,
) -> Result<External, LookError> {
    let len = spool.len().min(footer::MAX_LEN as u64);
    let mut end = vec![0; usize::try_from(len).unwrap_or(0)];
    // A few bytes that were written a moment ago: they are in memory.
    spool.read_exact_at(&mut end, spool.len() - len).map_err(|error| LookError::temporary(dir, error))?;
    if Footer::parse(&end) != Ok(Footer::External) {
        return Ok(External::NotNeeded);
    }
    Ok(match external.json(&layer.digest).await? {
        None => External::Missing,
        Some(Ok((json, _))) => External::Json(json),
        Some(Err(problem)) => External::Broken(problem),
    })
}
