//! What readers want first is written down for whoever asks, with both drivers.

use std::path::Path;
use std::process::Command;

use lazyfs::OpaqueXattr;

use crate::common::{CHUNK, Source, Tar, blob, noise, off, on_demand};
use crate::shown::{Stand, drivers, drop_caches, outside};

async fn cat(path: &Path) {
    let mut command = Command::new("cat");
    command.arg(path);
    assert!(outside(command).await.status.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_has_the_chunks_in_the_order_in_which_each_was_first_wanted() {
    let mut tar = Tar::new();
    tar.dir("a", 0o755);
    for name in ["a/one", "a/two", "three", "four"] {
        tar.file(name, 0o644, &noise(name.len() as u64, 2 * CHUNK + 10));
    }
    let blob = blob(&tar.finish(), CHUNK as u32);
    for choice in drivers() {
        let stand = Stand::new(choice).await;
        let spec = on_demand(&blob, &Source::new(&blob));
        let layer = stand.layers.layer(spec.clone()).await.unwrap();
        let record = layer.record();
        let shown = stand.show_spec(spec, "first", OpaqueXattr::Trusted).await;
        assert!(record.is_empty(), "a mount reads nothing");
        for name in ["three", "a/two", "three", "a/one"] {
            cat(&shown.root.join(name)).await;
            drop_caches();
        }
        let shared = layer.record();
        let touches = off(move || shared.touches().unwrap()).await;
        let told: Vec<_> = touches
            .iter()
            .map(|touch| (String::from_utf8(touch.path.clone()).unwrap(), touch.range.start))
            .collect();
        let expected: Vec<_> = ["three", "a/two", "a/one"]
            .iter()
            .flat_map(|name| (0..3).map(|chunk| ((*name).to_owned(), chunk * CHUNK as u64)))
            .collect();
        assert_eq!(told, expected, "{choice:?}");
        assert!(touches.is_sorted_by_key(|touch| touch.at));
        assert_eq!(record.len(), touches.len());
        shown.end().await;

        // Whoever begins anew sees everything again, though it is here.
        drop(record);
        let record = layer.record();
        let shown =
            stand.show_spec(on_demand(&blob, &Source::new(&blob)), "again", OpaqueXattr::Trusted).await;
        cat(&shown.root.join("a/one")).await;
        assert_eq!(record.len(), 3, "{choice:?}");
        shown.end().await;
        drop((record, layer));
        stand.end().await;
    }
}
