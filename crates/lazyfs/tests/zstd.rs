//! Layers of zstd frames, in both dialects, and blobs that only look as if they could be read lazily.

// Clippy exempts test functions from these lints, and not their helpers.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

mod common;

use common::{Blob, Mood, Source, Tar, blob, noise, on_demand, quick};
use content::{ByteRange, Digest, Urgency};
use estargz::footer::{Footer, HiddenFrame};
use estargz::{Built, Format, Options};
use lazyfs::{LayerError, Layers};
use serde_json::json;

const PART: usize = 300_000;

fn built() -> Built {
    blob(&Tar::new().file("f", 0o644, b"x").finish(), 0).built
}

fn skippable(data: &[u8]) -> Vec<u8> {
    [b"\x50\x2a\x4d\x18".as_slice(), &(data.len() as u32).to_le_bytes(), data].concat()
}

/// A layer as containers/storage makes it: the file `f` is noise, a hole, and noise. Where a writer puts the
/// frame of the hole is something that would fail if it were read.
fn with_a_hole() -> (Blob, Vec<u8>, ByteRange) {
    let (first, last) = (noise(1, PART), noise(2, PART));
    let content = [first.as_slice(), &vec![0; PART], &last].concat();
    let frame = |data: &[u8]| zstd::encode_all(data, 3).unwrap();
    let frames = [frame(b"header"), frame(&first), noise(3, PART), frame(&last)];
    let ends: Vec<usize> = frames
        .iter()
        .scan(0, |end, frame| {
            *end += frame.len();
            Some(*end)
        })
        .collect();
    let &[first_at, hole_at, last_at, end] = ends.as_slice() else { unreachable!("four frames") };
    let digest = |data: &[u8]| Digest::of(data).to_string();
    let toc = json!({"version": 1, "entries": [
        {"type": "reg", "name": "f", "size": content.len(), "digest": digest(&content), "offset": first_at,
         "endOffset": end, "chunkSize": PART, "chunkDigest": digest(&first)},
        {"type": "chunk", "name": "f", "chunkOffset": PART, "chunkSize": PART, "offset": hole_at,
         "chunkDigest": digest(&vec![0; PART]), "chunkType": "zeros"},
        {"type": "chunk", "name": "f", "chunkOffset": 2 * PART, "chunkSize": PART, "offset": last_at,
         "chunkDigest": digest(&last)},
    ]});
    let toc = serde_json::to_vec(&toc).unwrap();
    let compressed = frame(&toc);
    let offset = end as u64 + 8;
    let (compressed_len, len) = (compressed.len() as u64, toc.len() as u64);
    let manifest = HiddenFrame { offset, compressed_len, len };
    let tar_split = HiddenFrame { offset: offset + compressed_len + 8, compressed_len: 5, len: 9 };
    let footer = Footer::ZstdChunkedPodman { manifest, tar_split }.to_bytes();
    let bytes = [frames.concat(), skippable(&compressed), skippable(b"split"), footer].concat();
    let built = Built { toc_digest: Digest::of(&toc), digest: Digest::of(&bytes), ..built() };
    (Blob { bytes: bytes.into(), built }, content, ByteRange::new(hole_at as u64, last_at as u64))
}

#[tokio::test(flavor = "multi_thread")]
async fn holes_are_here_and_nobody_asks_for_them() {
    let (blob, content, hole) = with_a_hole();
    let source = Source::new(&blob);
    let folder = tempfile::tempdir().unwrap();
    let layers = Layers::open(folder.path(), &quick()).unwrap();
    let layer = layers.layer(on_demand(&blob, &source)).await.unwrap();
    let file = layer.toc().unwrap().find(b"f").unwrap();
    assert_eq!(layer.status().fetched, PART as u64, "the hole alone");
    source.set(Mood::Dead);
    let zeros = layer.read(file, PART as u64, PART as u32, Urgency::Blocking).await.unwrap();
    assert!(zeros.len() == PART && zeros.iter().all(|byte| *byte == 0));
    assert!(layer.read(file, 0, 10, Urgency::Blocking).await.is_err());

    source.set(Mood::Honest);
    source.reads.lock().unwrap().clear();
    assert_eq!(layer.read(file, 0, content.len() as u32, Urgency::Blocking).await.unwrap(), content);
    let status = layer.status();
    assert!(status.complete && status.fetched == content.len() as u64, "{status:?}");
    let reads = source.reads.lock().unwrap().clone();
    assert!(!reads.is_empty());
    for (range, _) in reads {
        assert!(range.intersect(&hole).is_empty(), "{range} was read, {hole} is a hole");
    }
    layers.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_of_frames_is_read_like_one_of_members() {
    let content = noise(4, 5 * PART);
    let tar = Tar::new().file("a", 0o644, &content).file("empty", 0o600, b"").finish();
    let mut bytes = Vec::new();
    let options = Options { format: Format::ZstdChunked, chunk_size: PART as u32, ..Options::default() };
    let built = estargz::build(tar.as_slice(), &mut bytes, &options).unwrap();
    let blob = Blob { bytes: bytes.into(), built };
    let source = Source::new(&blob);
    let folder = tempfile::tempdir().unwrap();
    let layers = Layers::open(folder.path(), &quick()).unwrap();
    let layer = layers.layer(on_demand(&blob, &source)).await.unwrap();
    let file = layer.toc().unwrap().find(b"a").unwrap();
    let (from, len) = (PART - 100, PART + 200);
    let part = layer.read(file, from as u64, len as u32, Urgency::Blocking).await.unwrap();
    assert_eq!(part, content[from..from + len]);
    assert_eq!(layer.status().fetched, 3 * PART as u64, "no more than the chunks that it touches");
    // A frame whose bytes were changed on the way is noticed.
    source.set(Mood::Liar);
    assert!(layer.read(file, 4 * PART as u64, 10, Urgency::Blocking).await.is_err());
    source.set(Mood::Honest);
    assert_eq!(
        layer.read(file, 4 * PART as u64, 10, Urgency::Blocking).await.unwrap(),
        content[4 * PART..][..10]
    );
    layers.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn blobs_that_cannot_be_mounted_say_why_and_what_to_do() {
    let good = blob(&Tar::new().file("f", 0o644, b"content").finish(), 0);
    let toc_offset = good.built.payload_end;
    let without_footer = good.bytes.slice(..good.bytes.len() - estargz::footer::LEN);
    let legacy = "legacy stargz blob, whose files cannot be verified; convert the image again";
    let external = "its table of contents is kept in a separate image, which is not looked up here; \
                    convert the image again without an external table of contents";
    for (footer, why) in [(Footer::Legacy { toc_offset }, legacy), (Footer::External, external)] {
        let bytes = [&without_footer, footer.to_bytes().as_slice()].concat();
        let blob = Blob { bytes: bytes.into(), built: good.built.clone() };
        let folder = tempfile::tempdir().unwrap();
        let layers = Layers::open(folder.path(), &quick()).unwrap();
        match layers.layer(on_demand(&blob, &Source::new(&blob))).await {
            Err(LayerError::NotLazy { reason, .. }) => assert!(reason.contains(why), "{reason}"),
            Err(error) => panic!("{error}"),
            Ok(_) => panic!("it was opened"),
        }
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "nothing is kept of it");
        layers.shutdown().await;
    }
}
