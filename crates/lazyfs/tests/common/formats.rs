//! All that the builder can make.

use std::sync::Arc;

use bytes::Bytes;
use estargz::{BuiltToc, Format, Options, TocPlace};
use futures::FutureExt as _;
use lazyfs::ExternalToc;

use super::{Blob, CHUNK};

/// Every format, by a name for people.
pub fn formats() -> Vec<(&'static str, Options)> {
    let options = |format| Options { format, chunk_size: CHUNK as u32, level: Some(1), ..Options::default() };
    let estargz = options(Format::Estargz);
    let external = Options { toc: TocPlace::External, ..estargz.clone() };
    let zstd = options(Format::ZstdChunked);
    vec![
        ("whole files", Options { chunk_size: 0, ..estargz.clone() }),
        ("small members joined", Options { min_chunk_size: 100_000, ..estargz.clone() }),
        ("small chunks", Options { chunk_size: 5000, ..estargz.clone() }),
        ("eStargz", estargz),
        ("external", external.clone()),
        ("external, diffID kept", Options { keep_diff_id: true, ..external }),
        ("zstd:chunked", zstd.clone()),
        ("zstd:chunked, diffID kept", Options { keep_diff_id: true, ..zstd }),
        ("zstd:chunked, podman", options(Format::ZstdChunkedPodman)),
    ]
}

/// The image that holds the table of contents of a blob, if the blob has it not itself.
pub fn external_toc(blob: &Blob) -> Option<ExternalToc> {
    let BuiltToc::External { json } = &blob.built.toc else { return None };
    let layer = Bytes::from(estargz::toc_layer(json, 1).unwrap().bytes);
    Some(Arc::new(move || std::future::ready(Ok(layer.clone())).boxed()))
}
