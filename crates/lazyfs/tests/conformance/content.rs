//! One large file, read by many processes in every way at once while it arrives.

use lazyfs::OpaqueXattr;

use crate::common::{CHUNK, Tar, blob_of, noise};
use crate::shown::{Stand, drivers, is_content, reader};

const LEN: usize = 5 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn every_way_of_reading_a_cold_file_gives_its_bytes() {
    let content = noise(5, LEN + 1234);
    let mut tar = Tar::new();
    let tar = tar.file("big", 0o644, &content).file("neighbour", 0o644, &noise(6, 9000)).finish();
    for driver in drivers() {
        let stand = Stand::new(driver).await;
        let original = stand.path("original");
        std::fs::write(&original, &content).unwrap();
        // Small chunks, chunks of the usual size, and whole files.
        for (number, chunk_size) in [4096, CHUNK as u32, 1 << 20, 0].into_iter().enumerate() {
            let options = estargz::Options { chunk_size, level: Some(1), ..estargz::Options::default() };
            let shown =
                stand.show(&blob_of(&tar, &options), &format!("{number}"), OpaqueXattr::Trusted).await;
            let what = format!("{driver:?}, chunks of {chunk_size}");
            let looking = (0..4).map(|seed| {
                let mut read = reader("ways.py");
                read.arg(shown.root.join("big"))
                    .arg(&original)
                    .arg(format!("{}", number * 10 + seed))
                    .arg("60");
                is_content(&what, read)
            });
            futures::future::join_all(looking).await;
            shown.end().await;
        }
        stand.end().await;
    }
}
