//! One large file, read by many processes in every way at once while it arrives.

use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::process::Command;

use lazyfs::OpaqueXattr;

use crate::common::{Blob, CHUNK, Tar, blob_of, noise};
use crate::shown::{Stand, drivers, is_content, outside, reader};

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

/// Longer than 32 bits can say, and nothing but zeros between these words at its beginning, in its midst and at its end.
const HUGE: u64 = (4 << 30) + 12_345;
const WORDS: [(u64, &[u8]); 3] = [(0, b"begin"), ((4 << 30) - 2, b"middle"), (HUGE - 3, b"end")];

fn huge() -> Blob {
    let mut header = tar::Header::new_gnu();
    header.set_path("huge").unwrap();
    header.set_mode(0o644);
    header.set_size(HUGE);
    header.set_cksum();
    let mut stream: Box<dyn std::io::Read> = Box::new(std::io::Cursor::new(header.as_bytes().to_vec()));
    let mut at = 0;
    for (place, word) in WORDS {
        stream = Box::new(stream.chain(std::io::repeat(0).take(place - at)).chain(word));
        at = place + word.len() as u64;
    }
    let stream = stream.chain(std::io::repeat(0).take(HUGE.next_multiple_of(512) - HUGE + 1024));
    let options = estargz::Options { level: Some(1), ..estargz::Options::default() };
    let mut bytes = Vec::new();
    let built = estargz::build(stream, &mut bytes, &options).unwrap();
    Blob { bytes: bytes.into(), built }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sparse_file_of_more_than_four_gigabytes_is_itself_and_takes_no_room() {
    let drivers = drivers();
    if drivers.is_empty() {
        return;
    }
    if std::env::var_os("PANTALA_E2E").is_none() {
        eprintln!("SKIPPED: packing 4 GiB takes half a minute; PANTALA_E2E=require runs it");
        return;
    }
    let blob = huge();
    for driver in drivers {
        let stand = Stand::new(driver).await;
        let shown = stand.show(&blob, "root", OpaqueXattr::Trusted).await;
        let file = shown.root.join("huge");
        assert_eq!(std::fs::metadata(&file).unwrap().len(), HUGE);
        for (place, word) in WORDS {
            let from = place.saturating_sub(5);
            let mut dd = Command::new("dd");
            dd.arg(format!("if={}", file.display())).args(["bs=1", "status=none", "count=20"]);
            dd.arg(format!("skip={from}"));
            let read = outside(dd).await.stdout;
            let mut right = vec![0; (place - from) as usize];
            right.extend_from_slice(word);
            right.resize(20.min((HUGE - from) as usize), 0);
            assert_eq!(read, right, "{driver:?}: at {place}");
        }
        let data = std::fs::metadata(shown.layer.folder().join("data")).unwrap();
        assert!(data.blocks() * 512 <= 4 * (4 << 20), "{driver:?}: {} bytes on disk", data.blocks() * 512);
        shown.end().await;
        stand.end().await;
    }
}
