//! Layers that tell the truth pass; of each that lies the first lie is told by name.

use std::io::Write;

use serde_json::{Value, json};

use super::*;
use crate::{
    Format, Options, TOC_DIGEST_ANNOTATION, TOC_NAME, TocPlace, UNCOMPRESSED_SIZE_ANNOTATION, build,
};

mod trees;

const CHUNK: u32 = 64 * 1024;

fn noise(len: usize, seed: u32) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2_654_435_761) | 1;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            state.to_le_bytes()[0]
        })
        .collect()
}

fn append(builder: &mut tar::Builder<Vec<u8>>, path: &str, kind: tar::EntryType, link: &str, data: &[u8]) {
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(if kind.is_dir() { 0o755 } else { 0o644 });
    header.set_uid(1000);
    header.set_gid(1000);
    header.set_mtime(1_600_000_000);
    header.set_size(data.len() as u64);
    if kind.is_character_special() {
        header.set_device_major(1).unwrap();
        header.set_device_minor(3).unwrap();
    }
    if link.is_empty() {
        builder.append_data(&mut header, path, data).unwrap();
    } else {
        builder.append_link(&mut header, path, link).unwrap();
    }
}

/// Something of everything.
fn layer() -> Vec<u8> {
    use tar::EntryType as Type;
    let mut builder = tar::Builder::new(Vec::new());
    append(&mut builder, "d/", Type::Directory, "", b"");
    append(&mut builder, "d/small", Type::Regular, "", b"pantala");
    append(&mut builder, "d/twin", Type::Regular, "", b"pantala");
    append(&mut builder, "d/empty", Type::Regular, "", b"");
    append(&mut builder, "d/large", Type::Regular, "", &noise(3 * CHUNK as usize + 5, 1));
    append(&mut builder, "d/soft", Type::Symlink, "../x", b"");
    append(&mut builder, "d/hard", Type::Link, "d/small", b"");
    append(&mut builder, "d/null", Type::Char, "", b"");
    let mut header = tar::Header::new_ustar();
    header.set_mode(0o4755);
    header.set_size(4);
    builder
        .append_pax_extensions([("SCHILY.xattr.user.x", b"1".as_slice()), ("mtime", b"9.7".as_slice())])
        .unwrap();
    builder.append_data(&mut header, "setuid", b"root".as_slice()).unwrap();
    builder.into_inner().unwrap()
}

fn built(tar: &[u8], options: &Options) -> (Vec<u8>, crate::Built) {
    let mut blob = Vec::new();
    let options = Options { chunk_size: CHUNK, ..options.clone() };
    let built = build(tar, &mut blob, &options).unwrap();
    (blob, built)
}

fn claims(built: &crate::Built) -> Claims {
    Claims {
        digest: Some(built.digest),
        size: Some(built.size),
        diff_id: Some(built.diff_id),
        annotations: built.annotations(),
    }
}

fn run(blob: &[u8], claims: &Claims, external: Option<&[u8]>) -> Audit {
    let options = AuditOptions { external_toc: external, ..AuditOptions::default() };
    audit(&blob, blob.len() as u64, claims, &options).unwrap()
}

/// The lie of a blob that nobody claims anything about.
fn lie(blob: &[u8]) -> (String, Option<String>) {
    let lie = run(blob, &Claims::default(), None).lie.expect("the blob lies, and nobody noticed");
    (lie.to_string(), lie.entry().map(str::to_owned))
}

fn gzip(data: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

fn gunzip(blob: &[u8]) -> Vec<u8> {
    let mut plain = Vec::new();
    io::Read::read_to_end(&mut crate::decompress(blob).unwrap(), &mut plain).unwrap();
    plain
}

fn toc_tar(json: &[u8]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_size(json.len() as u64);
    builder.append_data(&mut header, TOC_NAME, json).unwrap();
    builder.into_inner().unwrap()
}

/// The payload of a blob and its TOC.
fn open_blob(blob: &[u8]) -> (Vec<u8>, Value) {
    let Ok(TailState::Toc { json, toc_offset, .. }) = open_tail(blob, blob.len() as u64) else {
        panic!("no TOC")
    };
    (blob[..usize::try_from(toc_offset).unwrap()].to_vec(), serde_json::from_slice(&json).unwrap())
}

fn close_blob(mut payload: Vec<u8>, toc: &Value) -> Vec<u8> {
    let toc_offset = payload.len() as u64;
    payload.extend(gzip(&toc_tar(toc.to_string().as_bytes())));
    payload.extend(Footer::Estargz { toc_offset }.to_bytes());
    payload
}

/// The blob of [`layer`] with another TOC.
fn forged(options: &Options, edit: impl FnOnce(&mut Vec<Value>)) -> Vec<u8> {
    let (payload, mut toc) = open_blob(&built(&layer(), options).0);
    edit(toc["entries"].as_array_mut().unwrap());
    close_blob(payload, &toc)
}

fn entry<'a>(entries: &'a mut [Value], name: &str) -> &'a mut Value {
    entries.iter_mut().find(|entry| entry["name"] == name && entry["type"] != "chunk").unwrap()
}

#[test]
fn what_we_build_is_true() {
    for format in [Format::Estargz, Format::ZstdChunked, Format::ZstdChunkedPodman] {
        for (min_chunk_size, keep_diff_id, toc) in [
            (0, false, TocPlace::Inside),
            (50_000, false, TocPlace::Inside),
            (0, false, TocPlace::External),
            (0, true, TocPlace::External),
        ] {
            let options = Options { format, min_chunk_size, toc, keep_diff_id, ..Options::default() };
            if format != Format::Estargz && (min_chunk_size > 0 || toc == TocPlace::External) {
                continue;
            }
            let (blob, built) = built(&layer(), &options);
            let external = match &built.toc {
                crate::BuiltToc::External { json } => Some(json.as_slice()),
                _ => None,
            };
            let audit = run(&blob, &claims(&built), external);
            assert!(audit.lie.is_none(), "{options:?}: {}", audit.lie.unwrap());
            assert_eq!((audit.digest, audit.diff_id), (Some(built.digest), Some(built.diff_id)));
            assert_eq!((audit.inflated, audit.chunks), (built.uncompressed_size, built.chunks));
            assert_eq!((audit.entries, audit.toc_digest), (built.entries, Some(built.toc_digest)));
        }
    }
}

#[test]
fn ordinary_layers_are_read_to_their_end() {
    let tar = layer();
    for blob in [tar.clone(), gzip(&tar), zstd::encode_all(tar.as_slice(), 3).unwrap()] {
        let claims =
            Claims { digest: Some(Digest::of(&blob)), diff_id: Some(Digest::of(&tar)), ..Claims::default() };
        let audit = run(&blob, &claims, None);
        assert!(audit.lie.is_none(), "{audit:?}");
        assert_eq!((audit.kind, audit.entries, audit.files), (None, 9, 5));
        let wrong = Claims { diff_id: Some(Digest::of(b"")), ..claims.clone() };
        assert!(matches!(run(&blob, &wrong, None).lie, Some(Lie::DiffId { .. })));
        let wrong = Claims { digest: Some(Digest::of(b"")), ..claims };
        assert!(matches!(run(&blob, &wrong, None).lie, Some(Lie::Digest { .. })));
    }
    let cut = &tar[..700];
    assert!(matches!(run(cut, &Claims::default(), None).lie, Some(Lie::Archive(_))));
    let mut broken = gzip(&tar);
    let middle = broken.len() / 2;
    broken[middle] ^= 0xff;
    assert!(run(&broken, &Claims::default(), None).lie.is_some());
    let more = [tar.as_slice(), &[0; 512], b"x"].concat();
    assert!(lie(&more).0.starts_with("the tar goes on behind its end"), "{:?}", lie(&more));
}

#[test]
fn each_attribute_that_the_toc_has_otherwise_is_told() {
    for (name, key, value, expected) in [
        ("setuid", "mode", json!(0o755), "\"setuid\": the tar says mode 4755, the table of contents 0755"),
        ("d/small", "uid", json!(0), "\"d/small\": the tar says owner 1000, the table of contents 0"),
        ("d/small", "gid", json!(7), "\"d/small\": the tar says group 1000, the table of contents 7"),
        (
            "d/",
            "modtime",
            json!("1970-01-01T00:00:09Z"),
            "\"d\": the tar says time 1600000000, the table of contents 9",
        ),
        (
            "d/soft",
            "linkName",
            json!("/etc/shadow"),
            "\"d/soft\": the tar says link target \"../x\", the table of contents \"/etc/shadow\"",
        ),
        (
            "d/hard",
            "linkName",
            json!("d/twin"),
            "\"d/hard\": the tar says link target \"d/small\", the table of contents \"d/twin\"",
        ),
        ("d/null", "devMinor", json!(9), "\"d/null\": the tar says device 1:3, the table of contents 1:9"),
        (
            "d/null",
            "type",
            json!("fifo"),
            "\"d/null\": the tar says type chardevice, the table of contents fifo",
        ),
        (
            "setuid",
            "xattrs",
            json!({}),
            "\"setuid\": the tar says extended attribute user.x=\"1\", the table of contents user.x not at all",
        ),
        (
            "setuid",
            "xattrs",
            json!({"user.x": "MQ==", "user.y": "MQ=="}),
            "\"setuid\": the tar says extended attribute user.y not at all, the table of contents user.y=\"1\"",
        ),
    ] {
        let blob = forged(&Options::default(), |entries| entry(entries, name)[key] = value);
        let (message, about) = lie(&blob);
        assert_eq!(message, expected);
        assert_eq!(about.unwrap(), name.trim_end_matches('/'));
    }
    // Truncated as ours, rounded as upstream's: both are the second of 9.7.
    let rounded = forged(&Options::default(), |entries| {
        entry(entries, "setuid")["modtime"] = json!("1970-01-01T00:00:10Z");
    });
    assert!(run(&rounded, &Claims::default(), None).lie.is_none());
}

#[test]
fn a_size_that_differs_is_told() {
    let blob = forged(&Options::default(), |entries| {
        let small = entry(entries, "d/small");
        small["size"] = json!(3);
        small["digest"] = json!(Digest::of(b"pan"));
        small["chunkDigest"] = json!(Digest::of(b"pan"));
    });
    assert_eq!(lie(&blob).0, "\"d/small\": the tar says size 7, the table of contents 3");
}

#[test]
fn what_only_one_of_them_has_is_told() {
    let hidden = forged(&Options::default(), |entries| entries.retain(|entry| entry["name"] != "d/soft"));
    assert_eq!(lie(&hidden).0, "\"d/soft\" is in the tar and not in the table of contents");
    let made_up = forged(&Options::default(), |entries| {
        entries.push(json!({"name": "etc/", "type": "dir", "mode": 0o755}));
    });
    assert_eq!(lie(&made_up).0, "\"etc\" is in the table of contents and not in the tar");
    let twice = forged(&Options::default(), |entries| {
        entries.push(json!({"name": "d/null", "type": "fifo"}));
    });
    assert_eq!(lie(&twice).0, "\"d/null\" is in the table of contents and not in the tar so many times");

    let mut tar = tar::Builder::new(Vec::new());
    append(&mut tar, "f", tar::EntryType::Fifo, "", b"");
    append(&mut tar, "f", tar::EntryType::Char, "", b"");
    let tar = tar.into_inner().unwrap();
    let toc = json!({"version": 1, "entries": [{"name": "f", "type": "fifo", "mode": 0o644, "uid": 1000, "gid": 1000,
        "modtime": "2020-09-13T12:26:40Z"}]});
    let blob = close_blob(gzip(&tar[..1024]), &toc);
    assert_eq!(lie(&blob).0, "\"f\" is in the tar and not in the table of contents so many times");
}

#[test]
fn digests_are_compared_with_the_tar() {
    let other = json!(Digest::of(b"other"));
    let blob = forged(&Options::default(), |entries| {
        let small = entry(entries, "d/small");
        small["digest"] = other.clone();
        small["chunkDigest"] = other.clone();
    });
    assert!(lie(&blob).0.starts_with("\"d/small\": the chunk at byte 0 has the digest"), "{:?}", lie(&blob));
    let blob = forged(&Options::default(), |entries| {
        let second = entries.iter_mut().find(|entry| entry["type"] == "chunk").unwrap();
        second["chunkDigest"] = other.clone();
    });
    assert!(
        lie(&blob).0.starts_with("\"d/large\": the chunk at byte 65536 has the digest"),
        "{:?}",
        lie(&blob)
    );
    let blob = forged(&Options::default(), |entries| entry(entries, "d/large")["digest"] = other.clone());
    assert!(lie(&blob).0.starts_with("\"d/large\": the file has the digest"), "{:?}", lie(&blob));
}

#[test]
fn a_chunk_that_lies_elsewhere_is_told_though_its_bytes_are_the_same() {
    for min_chunk_size in [0, 50_000] {
        let options = Options { min_chunk_size, ..Options::default() };
        let blob = forged(&options, |entries| {
            for key in ["offset", "innerOffset"] {
                let small = entry(entries, "d/small")[key].take();
                let twin = entry(entries, "d/twin")[key].take();
                for (name, value) in [("d/small", twin), ("d/twin", small)] {
                    let entry = entry(entries, name).as_object_mut().unwrap();
                    if value.is_null() {
                        entry.remove(key)
                    } else {
                        entry.insert(key.to_owned(), value)
                    };
                }
            }
        });
        let (message, about) = lie(&blob);
        assert!(message.starts_with("\"d/small\": the chunk at byte 0 of the file is at "), "{message}");
        assert_eq!(about.unwrap(), "d/small");
    }
}

#[test]
fn more_than_one_toc_is_told() {
    let honest = built(&layer(), &Options::default()).0;
    let (payload, toc) = open_blob(&honest);
    // One more in the tar, before the one that the footer names: whoever unpacks finds both.
    let other = &toc_tar(b"{}")[..1024];
    let blob = close_blob([payload.clone(), gzip(other)].concat(), &toc);
    assert_eq!(lie(&blob).0, "the table of contents that the footer names is not where the tar has it");
    // The tar ends, and the TOC is where only readers of the footer look.
    let blob = close_blob([payload, gzip(&[0; 1024])].concat(), &toc);
    assert_eq!(lie(&blob).0, "the table of contents that the footer names is not where the tar has it");

    let (payload, toc) = open_blob(&honest);
    let first = close_blob(payload, &toc);
    let end = first.len() - footer::LEN;
    let twice = [&first[..end], &first[end - 1000..]].concat();
    assert!(run(&twice, &Claims::default(), None).lie.is_some());
}

#[test]
fn landmarks_come_alone() {
    let honest = built(&layer(), &Options::default()).0;
    let (mut payload, mut toc) = open_blob(&honest);
    let mut tar = tar::Builder::new(Vec::new());
    append(&mut tar, crate::PREFETCH_LANDMARK, tar::EntryType::Regular, "", &[15]);
    let tar = tar.into_inner().unwrap();
    payload.extend(gzip(&tar[..512]));
    let offset = payload.len();
    payload.extend(gzip(&tar[512..1024]));
    let digest = Digest::of(&[15]);
    toc["entries"].as_array_mut().unwrap().push(
        json!({"name": crate::PREFETCH_LANDMARK, "type": "reg", "size": 1,
        "mode": 0o644, "uid": 1000, "gid": 1000, "modtime": "2020-09-13T12:26:40Z", "offset": offset,
        "digest": digest, "chunkDigest": digest}),
    );
    assert_eq!(lie(&close_blob(payload, &toc)).0, "the layer has more than one landmark");
}

#[test]
fn what_the_image_says_is_compared() {
    let (blob, built) = built(&layer(), &Options::default());
    let good = claims(&built);
    let with = |key: &str, value: &str| {
        let mut claims = good.clone();
        claims.annotations.insert(key.to_owned(), value.to_owned());
        run(&blob, &claims, None).lie.unwrap().to_string()
    };
    let other = Digest::of(b"other").to_string();
    assert!(with(TOC_DIGEST_ANNOTATION, &other).starts_with("the table of contents has the digest"));
    assert!(with(TOC_DIGEST_ANNOTATION, "sha1:00").contains("says \"sha1:00\""));
    let size = with(UNCOMPRESSED_SIZE_ANNOTATION, "1");
    assert!(
        size.starts_with(
            "the annotation \"io.containers.estargz.uncompressed-size\" says \"1\", the blob says"
        ),
        "{size}"
    );
    assert!(with("io.containers.zstd-chunked.manifest-checksum", &other).contains("nothing of the kind"));
    let diff_id = Claims { diff_id: Some(Digest::of(b"")), ..good.clone() };
    assert!(matches!(run(&blob, &diff_id, None).lie, Some(Lie::DiffId { .. })));
    let size = Claims { size: Some(1), ..good };
    assert!(matches!(run(&blob, &size, None).lie, Some(Lie::Size { .. })));

    let plain = gzip(&layer());
    let mut promise = Claims::default();
    promise.annotations.insert(TOC_DIGEST_ANNOTATION.to_owned(), other);
    assert!(matches!(run(&plain, &promise, None).lie, Some(Lie::NoToc { .. })));
}

#[test]
fn zstd_annotations_are_compared() {
    for (format, prefix) in [
        (Format::ZstdChunked, "io.containers.zstd-chunked."),
        (Format::ZstdChunkedPodman, "io.github.containers.zstd-chunked."),
    ] {
        let (blob, built) = built(&layer(), &Options { format, ..Options::default() });
        for key in ["manifest-checksum", "manifest-position", "tarsplit-position"] {
            let key = format!("{prefix}{key}");
            let mut claims = claims(&built);
            if claims.annotations.insert(key.clone(), "1:2:3:1".to_owned()).is_none() {
                assert!(key.ends_with("tarsplit-position"));
            }
            let lie = run(&blob, &claims, None).lie.unwrap().to_string();
            assert!(lie.starts_with(&format!("the annotation {key:?} says \"1:2:3:1\"")), "{lie}");
        }
    }
}

#[test]
fn another_digest_is_the_first_lie_whatever_else_is_wrong() {
    let blob = forged(&Options::default(), |entries| entry(entries, "setuid")["mode"] = json!(0o755));
    let claims = Claims { digest: Some(Digest::of(b"")), ..Claims::default() };
    assert!(matches!(run(&blob, &claims, None).lie, Some(Lie::Digest { .. })));
}

#[test]
fn an_external_toc_is_needed() {
    let (blob, built) = built(&layer(), &Options { toc: TocPlace::External, ..Options::default() });
    assert!(matches!(run(&blob, &claims(&built), None).lie, Some(Lie::NoExternalToc)));
}

/// A table of the first generation has no digests: what it says is compared, and nobody can verify a mount.
#[test]
fn legacy_tables_are_looked_at() {
    let (payload, mut toc) = open_blob(&built(&layer(), &Options::default()).0);
    for entry in toc["entries"].as_array_mut().unwrap() {
        entry.as_object_mut().unwrap().remove("digest");
        entry.as_object_mut().unwrap().remove("chunkDigest");
    }
    let close = |toc: &Value| {
        let toc_offset = payload.len() as u64;
        let member = gzip(&toc_tar(toc.to_string().as_bytes()));
        [payload.clone(), member, Footer::Legacy { toc_offset }.to_bytes()].concat()
    };
    let audit = run(&close(&toc), &Claims::default(), None);
    assert!(audit.lie.is_none(), "{}", audit.lie.unwrap());
    assert_eq!(audit.kind, Some(BlobKind::Legacy));
    entry(toc["entries"].as_array_mut().unwrap(), "setuid")["mode"] = json!(0o755);
    assert_eq!(lie(&close(&toc)).1.unwrap(), "setuid");
}

/// Every single byte of a blob counts for something, or stands where nobody looks (gzip's headers).
#[test]
fn flipped_bytes_never_panic() {
    let honest = built(&layer(), &Options::default()).0;
    for at in (0..honest.len()).step_by(97) {
        let mut blob = honest.clone();
        blob[at] ^= 0x55;
        run(&blob, &Claims::default(), None);
    }
}

#[test]
fn a_blob_that_cannot_be_read_is_nobodys_lie() {
    struct Broken;
    impl ReadAt for Broken {
        fn read_exact_at(&self, _: &mut [u8], _: u64) -> io::Result<()> {
            Err(io::ErrorKind::PermissionDenied.into())
        }
    }
    assert!(audit(&Broken, 1000, &Claims::default(), &AuditOptions::default()).is_err());
}
