//! Requests that no kernel would send, and listings cut short.

use content::Digest;
use futures::FutureExt as _;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use super::*;
use crate::{LayerSpec, Layers, LayersOptions, Prefetch};

async fn session(folder: &std::path::Path) -> (Arc<Layers>, Arc<Session>) {
    let mut tar = tar::Builder::new(Vec::new());
    for name in ["dir/file", "dir/.wh.gone", "dir/.wh..wh..opq", "other"] {
        let mut header = tar::Header::new_gnu();
        header.set_size(4);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, &b"data"[..]).unwrap();
    }
    let tar = tar.into_inner().unwrap();
    let mut blob = Vec::new();
    let built = estargz::build(tar.as_slice(), &mut blob, &estargz::Options::default()).unwrap();
    let end = estargz::open_tail(&blob, blob.len() as u64).unwrap();
    let estargz::TailState::Toc { json, toc_offset, .. } = end else { panic!("no TOC") };
    let layers = Layers::open(folder, &LayersOptions::default()).unwrap();
    let place = folder.join(built.toc_digest.hex());
    std::fs::create_dir(&place).unwrap();
    std::fs::write(place.join("toc.json"), json).unwrap();
    let about = serde_json::json!({"layer": built.digest, "blob_len": blob.len(), "toc_offset": toc_offset});
    std::fs::write(place.join("layer.json"), about.to_string()).unwrap();
    let dead = || async { Err(content::ReadError::local(content::ReadErrorKind::Other, "dead")) }.boxed();
    let spec = LayerSpec {
        toc_digest: built.toc_digest,
        layer_digest: Digest::of(&blob),
        open: Arc::new(dead),
        external_toc: None,
        prefetch: Prefetch::default(),
        background: false,
    };
    let layer = layers.layer(spec).await.unwrap();
    let device = rustix::fs::open("/dev/null", rustix::fs::OFlags::RDWR, rustix::fs::Mode::empty()).unwrap();
    let session = Session::new(device, layer, &MountOptions::default()).unwrap();
    (layers, session)
}

/// Whatever the kernel, or whoever holds the descriptor, writes: no panic, and no task is left.
#[test]
fn no_request_can_panic() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (layers, session) = runtime.block_on(session(folder.path()));
    let _context = runtime.enter();
    let node = prop_oneof![
        0u64..8,
        (0u64..8).prop_map(|n| n | 1 << 32),
        (0u64..3).prop_map(|n| n | 1 << 33),
        any::<u64>()
    ];
    let body = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..120),
        prop::collection::vec(prop_oneof![Just(0u8), Just(b'.'), Just(16u8)], 8..64),
        "[a-z.]{0,12}\0".prop_map(String::into_bytes),
    ];
    let request = (0u32..60, node, body);
    TestRunner::default()
        .run(&request, |(opcode, node, body)| {
            let mut bytes = Vec::new();
            bytes.extend(u32::try_from(abi::IN_HEADER + body.len()).unwrap().to_ne_bytes());
            bytes.extend(opcode.to_ne_bytes());
            bytes.extend(1u64.to_ne_bytes());
            bytes.extend(node.to_ne_bytes());
            bytes.extend([0; 16]);
            bytes.extend(body);
            session.handle(&bytes);
            Ok(())
        })
        .unwrap();
    runtime.block_on(async {
        session.finish().await;
        layers.shutdown().await;
    });
    assert!(session.waiting.lock().unwrap().is_empty());
}

#[test]
fn a_listing_can_be_cut_anywhere() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (_layers, session) = runtime.block_on(session(folder.path()));
    let toc = session.layer.toc().unwrap();
    let tree = Tree::new(&toc, session.opaque);
    let directory = session.find(tree, abi::ROOT, b"dir").unwrap();
    for node in [abi::ROOT, directory, state::DIRECTORY] {
        for plus in [false, true] {
            let whole = session.listing(tree, node, 0, 1 << 20, plus).unwrap();
            let mut parts = Vec::new();
            let mut offset = 0;
            loop {
                // Room for one entry of this directory, and never for two.
                let part = session.listing(tree, node, offset, if plus { 256 } else { 56 }, plus).unwrap();
                if part.is_empty() {
                    break;
                }
                let at = if plus { 128 + 8 } else { 8 };
                let last = part.chunks(part.len()).next().unwrap();
                offset = u64::from_ne_bytes(last[at..at + 8].try_into().unwrap());
                if node == state::DIRECTORY {
                    break; // its one name is longer than the others
                }
                parts.extend(part);
            }
            if node != state::DIRECTORY {
                assert_eq!(parts, whole);
            }
        }
    }
    assert!(
        session.listing(tree, session.find(tree, abi::ROOT, b"other").unwrap(), 0, 4096, false).is_none()
    );
}
