//! Tails of blobs that are laid out by hand, of every kind; the hostile ones are in `tests/evil`.

use std::io::Write as _;

use super::*;

const JSON: &[u8] = br#"{"version":1,"entries":[]}"#;
const PAYLOAD: &[u8] = b"payload of a layer";

fn gzip(data: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

fn tar_of(name: &str, data: &[u8]) -> Vec<u8> {
    let mut header = tar::Header::new_ustar();
    header.set_size(data.len() as u64);
    header.set_mode(0);
    let mut builder = tar::Builder::new(Vec::new());
    builder.append_data(&mut header, name, data).unwrap();
    builder.into_inner().unwrap()
}

fn skippable(data: &[u8]) -> Vec<u8> {
    [&SKIPPABLE_MAGIC, u32::try_from(data.len()).unwrap().to_le_bytes().as_slice(), data].concat()
}

fn gzip_blob(footer: impl Fn(u64) -> Footer) -> Vec<u8> {
    let footer = footer(PAYLOAD.len() as u64).to_bytes();
    [PAYLOAD, &gzip(&tar_of(TOC_NAME, JSON)), &footer].concat()
}

/// A zstd:chunked blob, and its TOC's frame.
fn zstd_blob(has_tar_split: bool) -> (Vec<u8>, Vec<u8>) {
    let frame = zstd::encode_all(JSON, 3).unwrap();
    let manifest = HiddenFrame {
        offset: PAYLOAD.len() as u64 + 8,
        compressed_len: frame.len() as u64,
        len: JSON.len() as u64,
    };
    let mut blob = [PAYLOAD, &skippable(&frame)].concat();
    let footer = if has_tar_split {
        let tar_split = HiddenFrame { offset: blob.len() as u64 + 8, compressed_len: 5, len: 50 };
        blob.extend(skippable(b"split"));
        Footer::ZstdChunkedPodman { manifest, tar_split }
    } else {
        Footer::ZstdChunked(manifest)
    };
    blob.extend(footer.to_bytes());
    (blob, frame)
}

/// Opens `blob` from every possible tail, and answers what all of them agree upon.
fn open(blob: &[u8]) -> TailState {
    let len = blob.len() as u64;
    let whole = open_tail(blob, len).unwrap();
    for start in 0..blob.len() {
        match open_tail(&blob[start..], len) {
            Ok(TailState::NeedMore { from }) => {
                assert!(from < start as u64, "what is there is not asked for");
                assert_eq!(open_tail(&blob[usize::try_from(from).unwrap()..], len).unwrap(), whole);
            }
            Ok(state) => assert_eq!(state, whole, "from {start}"),
            Err(error) => {
                let is_known =
                    matches!(error, TailError::Footer(FooterError::Absent | FooterError::Short(_)));
                assert!(is_known && blob.len() - start < crate::footer::MAX_LEN, "from {start}: {error}");
            }
        }
    }
    whole
}

#[test]
fn every_kind_of_blob_is_opened_from_any_tail() {
    let toc = |kind, compressed_digest| TailState::Toc {
        json: JSON.to_vec(),
        toc_offset: PAYLOAD.len() as u64,
        digest: Digest::of(JSON),
        compressed_digest,
        kind,
    };
    assert_eq!(open(&gzip_blob(|toc_offset| Footer::Estargz { toc_offset })), toc(BlobKind::Estargz, None));
    assert_eq!(open(&gzip_blob(|toc_offset| Footer::Legacy { toc_offset })), toc(BlobKind::Legacy, None));
    for (has_tar_split, kind) in [(false, BlobKind::ZstdChunked), (true, BlobKind::ZstdChunkedPodman)] {
        let (blob, frame) = zstd_blob(has_tar_split);
        assert_eq!(open(&blob), toc(kind, Some(Digest::of(&frame))));
    }
    let external = [PAYLOAD, &Footer::External.to_bytes()].concat();
    assert_eq!(open(&external), TailState::External { payload_end: PAYLOAD.len() as u64 });
}

#[test]
fn a_toc_layer_is_a_compressed_tar_of_the_toc_alone() {
    let good = tar_of(TOC_NAME, JSON);
    assert_eq!(read_toc_layer(&gzip(&good)).unwrap(), JSON);
    assert_eq!(read_toc_layer(&zstd::encode_all(good.as_slice(), 1).unwrap()).unwrap(), JSON);
    assert_eq!(read_toc_layer(&good).unwrap(), JSON);
    assert_eq!(read_toc_layer(&gzip(&tar_of("./stargz.index.json", JSON))).unwrap(), JSON);
    let refusal = |tar: &[u8]| read_toc_layer(&gzip(tar)).unwrap_err().to_string();
    let alone = |found: &str| format!("the table of contents is not alone in its place: found {found:?}");
    assert_eq!(refusal(&tar_of("etc/passwd", JSON)), alone("etc/passwd"));
    assert_eq!(refusal(b""), alone("nothing"));
    let two = [&good[..1024], &tar_of("second", b"x")].concat();
    assert_eq!(refusal(&two), alone("second"));
    let cut = &good[..520];
    assert!(refusal(cut).starts_with("reading the table of contents: "), "{}", refusal(cut));
}
