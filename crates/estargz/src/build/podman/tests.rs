use std::collections::BTreeMap;
use std::num::NonZeroUsize;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::Value;

use super::*;
use crate::build::Format;
use crate::{TailState, inflate_chunk, open_tail};

fn options() -> Options {
    Options { format: Format::ZstdChunkedPodman, ..Options::default() }
}

fn built(tar: &[u8], options: &Options) -> (Vec<u8>, Built) {
    let mut blob = Vec::new();
    let built = crate::build(tar, &mut blob, options).unwrap();
    (blob, built)
}

fn refusal(tar: &[u8]) -> String {
    let error = crate::build(tar, Vec::new(), &options()).unwrap_err();
    assert!(error.is_unconvertible(), "{error}");
    error.to_string()
}

/// A header that is whole but for its checksum.
fn header(path: &str, kind: tar::EntryType, size: usize) -> tar::Header {
    let mut header = tar::Header::new_ustar();
    header.set_path(path).unwrap();
    header.set_entry_type(kind);
    header.set_size(size as u64);
    header.set_mode(0o644);
    header.set_mtime(0);
    header
}

/// The blocks of an entry, padded with something that is not zero.
fn entry(mut header: tar::Header, data: &[u8]) -> Vec<u8> {
    header.set_cksum();
    let mut blocks = [header.as_bytes().as_slice(), data].concat();
    blocks.resize(blocks.len().next_multiple_of(BLOCK), b'~');
    blocks
}

fn file(path: &str, data: &[u8]) -> Vec<u8> {
    entry(header(path, tar::EntryType::Regular, data.len()), data)
}

fn records(records: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    builder.append_pax_extensions(records.iter().copied()).unwrap();
    let mut blocks = builder.into_inner().unwrap();
    blocks.truncate(blocks.len() - 2 * BLOCK);
    blocks
}

/// Bytes that look random.
fn noise(len: usize) -> Vec<u8> {
    let mut state = 88_172_645_463_325_252_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    };
    (0..len).map(|_| next()).collect()
}

/// A layer with one of everything.
fn sample() -> Vec<u8> {
    let mut device = header("null", tar::EntryType::Char, 0);
    device.set_device_major(1).unwrap();
    device.set_device_minor(3).unwrap();
    let mut link = header("link", tar::EntryType::Symlink, 0);
    link.set_link_name("etc/small").unwrap();
    let mut hard = header("hard", tar::EntryType::Link, 0);
    hard.set_link_name("etc/small").unwrap();
    let mut odd = header("odd", tar::EntryType::Regular, 3);
    // Some tools leave such things in the header of a file.
    odd.set_mode(0o100_755);
    odd.set_device_minor(9).unwrap();
    let holes = [&noise(3000)[..], &vec![0; 300_000], &noise(10)].concat();
    [
        entry(header("etc/", tar::EntryType::Directory, 0), b""),
        file("etc/small", b"hello\n"),
        file("empty", b""),
        records(&[
            ("mtime", b"-1.5"),
            ("atime", b"1500000000.25"),
            ("SCHILY.xattr.user.k", b"\0\n\xff"),
            ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
        ]),
        file("big", &noise(1_000_000)),
        file("holes", &holes),
        file("one-hole", &[0; 5000]),
        entry(device, b""),
        entry(link, b""),
        entry(hard, b""),
        entry(odd, b"odd"),
        file("a<b&\"", b"x"),
        file(&"d/".repeat(70), b""),
        vec![0; 20 * BLOCK],
    ]
    .concat()
}

/// The TOC of `blob`, and its tar-split lines.
fn tables(blob: &[u8], built: &Built) -> (Vec<u8>, Vec<Value>) {
    let TailState::Toc { json, digest, compressed_digest, toc_offset, .. } =
        open_tail(blob, blob.len() as u64).unwrap()
    else {
        panic!("no TOC in the blob");
    };
    let BuiltToc::Zstd { manifest_checksum, manifest_position, tar_split_position, .. } = &built.toc else {
        panic!("not zstd:chunked");
    };
    assert_eq!((digest, compressed_digest), (built.toc_digest, Some(*manifest_checksum)));
    assert_eq!(toc_offset, built.payload_end);
    // The annotations alone lead to both, as podman goes.
    let frame = |offset: u64, len: u64| {
        let start = usize::try_from(offset).unwrap();
        &blob[start..start + usize::try_from(len).unwrap()]
    };
    let [offset, len, inflated, kind] = *manifest_position;
    assert_eq!(zstd::decode_all(frame(offset, len)).unwrap(), json);
    assert_eq!((inflated, kind), (json.len() as u64, 1));
    let [offset, len, inflated] = tar_split_position.unwrap();
    let table: Value = serde_json::from_slice(&json).unwrap();
    assert_eq!(table["tarSplitDigest"], Digest::of(frame(offset, len)).to_string());
    let lines = zstd::decode_all(frame(offset, len)).unwrap();
    assert_eq!(lines.len() as u64, inflated);
    let lines =
        lines.split_inclusive(|byte| *byte == b'\n').map(|line| serde_json::from_slice(line).unwrap());
    (json, lines.collect())
}

/// The tar that a client puts together from tar-split data and the files that the TOC gives it.
fn reassembled(blob: &[u8], json: &[u8], lines: &[Value], payload_end: u64) -> Vec<u8> {
    let toc = Toc::parse(json, payload_end, &TocLimits::default()).unwrap();
    let mut tar = Vec::new();
    for (number, line) in lines.iter().enumerate() {
        assert_eq!(line["position"].as_u64().unwrap(), number as u64);
        if line["type"] == 2 {
            tar.extend(BASE64.decode(line["payload"].as_str().unwrap()).unwrap());
            continue;
        }
        let Some(size) = line["size"].as_u64() else {
            assert_eq!(line["payload"], Value::Null);
            continue;
        };
        let inode = toc.find(line["name"].as_str().unwrap().trim_end_matches('/').as_bytes()).unwrap();
        let start = tar.len();
        for chunk in toc.chunks().filter(|chunk| chunk.inode == inode) {
            let range = usize::try_from(chunk.blob.start).unwrap()..usize::try_from(chunk.blob.end).unwrap();
            tar.extend(inflate_chunk(&blob[range], &chunk).unwrap());
        }
        assert_eq!((tar.len() - start) as u64, size, "{line}");
        let mut crc = crate::build::tar_split::Crc64::new();
        crc.update(&tar[start..]);
        assert_eq!(line["payload"], BASE64.encode(crc.finish().to_be_bytes()));
    }
    tar
}

#[test]
fn the_tar_comes_back_in_both_ways() {
    let tar = sample();
    let (blob, built) = built(&tar, &options());
    assert!(zstd::decode_all(blob.as_slice()).unwrap() == tar, "for those who know nothing of the TOC");
    let (json, lines) = tables(&blob, &built);
    assert!(reassembled(&blob, &json, &lines, built.payload_end) == tar, "for those who do");
    assert_eq!((built.diff_id, built.uncompressed_size), (Digest::of(&tar), tar.len() as u64));
    assert_eq!((built.digest, built.size), (Digest::of(&blob), blob.len() as u64));
    assert_eq!(built.entries, 12);
    let names: Vec<_> = built.annotations().into_keys().filter(|key| key.contains("github")).collect();
    let prefix = "io.github.containers.zstd-chunked.";
    assert_eq!(
        names,
        ["manifest-checksum", "manifest-position", "tarsplit-position"].map(|key| format!("{prefix}{key}"))
    );
}

#[test]
fn the_toc_says_what_go_says_of_the_headers() {
    let (blob, built) = built(&sample(), &options());
    let (json, lines) = tables(&blob, &built);
    let text = std::str::from_utf8(&json).unwrap();
    assert!(
        text.starts_with("{\"version\":1,\"entries\":[{\"type\":\"dir\",\"name\":\"etc/\",\"mode\":420,"),
        "{text}"
    );
    let table: Value = serde_json::from_slice(&json).unwrap();
    let entries = table["entries"].as_array().unwrap();
    let by_name = |name: &str| entries.iter().find(|entry| entry["name"] == name).unwrap();
    let big = by_name("big");
    assert_eq!(big["modtime"], "1969-12-31T23:59:58.5Z");
    assert_eq!(big["accesstime"], "2017-07-14T02:40:00.25Z");
    assert_eq!(big["xattrs"]["user.k"], "AAr/");
    // A client compares: what the header has, the TOC must have.
    assert_eq!(big["xattrs"]["trusted.overlay.opaque"], "eQ==");
    assert_eq!((&by_name("odd")["mode"], &by_name("odd")["devMinor"]), (&0o100_755.into(), &9.into()));
    assert_eq!(by_name("empty")["modtime"], "1970-01-01T00:00:00Z", "time 0 is a time");
    for absent in ["digest", "offset", "size", "uid", "accesstime", "xattrs"] {
        assert_eq!(by_name("empty").get(absent), None, "{absent}");
    }
    assert_eq!(by_name("hard")["linkName"], "etc/small");
    assert!(text.contains("\"a\\u003cb\\u0026\\\"\""));

    // Files of one chunk say nothing of chunks, others have an entry for each.
    assert_eq!(by_name("one-hole").get("chunkDigest"), None);
    let holes: Vec<_> = entries.iter().filter(|entry| entry["name"] == "holes").collect();
    let sizes: Vec<_> = holes.iter().map(|entry| entry["chunkSize"].as_u64().unwrap()).collect();
    assert_eq!(sizes, [3000, 300_000, 10]);
    let kinds: Vec<_> = holes
        .iter()
        .map(|entry| (entry["type"].as_str().unwrap(), entry.get("chunkType").is_some()))
        .collect();
    assert_eq!(kinds, [("reg", false), ("chunk", true), ("chunk", false)]);
    assert_eq!(holes[2]["chunkOffset"], 303_000);
    assert!(entries.iter().filter(|entry| entry["name"] == "big").count() > 3);

    // A client reads headers one segment at a time.
    let segments = lines.iter().filter(|line| line["type"] == 2).count();
    assert_eq!(segments as u64, built.entries + 1);
}

#[test]
fn a_chunk_is_a_frame_of_its_own() {
    let (blob, built) = built(&sample(), &options());
    let (json, _) = tables(&blob, &built);
    let toc = Toc::parse(&json, built.payload_end, &TocLimits::default()).unwrap();
    let mut frames = 0;
    for chunk in toc.chunks().filter(|chunk| !chunk.is_zeros()) {
        // The frame alone, without what the extent has behind it.
        let rest = &blob[usize::try_from(chunk.blob.start).unwrap()..];
        let len = zstd::zstd_safe::find_frame_compressed_size(rest).unwrap();
        assert_eq!(zstd::decode_all(&rest[..len]).unwrap().len(), usize::try_from(chunk.len).unwrap());
        frames += 1;
    }
    assert!(frames > 5);
}

#[test]
fn the_bytes_depend_on_nothing_but_the_input() {
    /// Gives a few bytes at a time.
    struct Slow<'a>(&'a [u8]);
    impl Read for Slow<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            let len = buffer.len().min(777);
            self.0.read(buffer.get_mut(..len).unwrap_or_default())
        }
    }
    let tar = sample();
    let (blob, _) = built(&tar, &options());
    for workers in [1, 2, 7] {
        let options = Options { workers: NonZeroUsize::new(workers), ..options() };
        let mut again = Vec::new();
        crate::build(Slow(&tar), &mut again, &options).unwrap();
        assert!(again == blob, "{workers} workers");
    }
}

#[test]
fn every_end_of_a_tar_is_kept() {
    let body = file("f", b"x");
    let (short, block) = (&body[..=BLOCK], vec![0; BLOCK]);
    for tar in [
        [&body[..], &block.repeat(2)].concat(),
        [&body[..], &block].concat(),
        body.clone(),
        // Without its padding.
        short.to_vec(),
        // Much more than an end marker.
        [&body[..], &block.repeat(1000)].concat(),
        [&body[..], &block.repeat(2), b"junk of whole blocks".repeat(128).as_slice()].concat(),
        block.repeat(2),
        Vec::new(),
    ] {
        let (blob, built) = built(&tar, &options());
        assert!(zstd::decode_all(blob.as_slice()).unwrap() == tar);
        let (json, lines) = tables(&blob, &built);
        assert!(reassembled(&blob, &json, &lines, built.payload_end) == tar);
    }
}

#[test]
fn what_podman_would_refuse_is_refused() {
    let block = [0; BLOCK];
    let mut sized = header("l", tar::EntryType::Link, 7);
    sized.set_link_name("f").unwrap();
    let mut contiguous = header("c", tar::EntryType::Continuous, 1);
    contiguous.set_mtime(1);
    let global = entry(header("pax", tar::EntryType::XGlobalHeader, 13), b"13 comment=x\n");
    let f = file("f", b"x");
    for (tar, name, problem) in [
        ([&f[..], &file("f//", b"y")].concat(), "f", PodmanProblem::Duplicate.into()),
        ([&global[..], &f].concat(), "f", PodmanProblem::GlobalHeader.into()),
        ([&f[..], &entry(sized, b"")].concat(), "l", PodmanProblem::SizeWithoutContent.into()),
        ([records(&[("ctime", b"253402300800")]), f.clone()].concat(), "f", PodmanProblem::Time.into()),
        (entry(contiguous, b"x"), "c", DescribeProblem::Sparse),
        (file(TOC_NAME, b"{}"), TOC_NAME, DescribeProblem::HasToc),
        // A part of the padding; a part of a block behind the end; something other than zeros far behind it.
        (f[..BLOCK + 9].to_vec(), "f", PodmanProblem::Trailer.into()),
        ([&f[..], &block, &block, b"x"].concat(), "f", PodmanProblem::Trailer.into()),
        ([&f[..], &block.repeat(2), &vec![1; 200_192]].concat(), "f", PodmanProblem::Trailer.into()),
        ([&f[..], &global].concat(), "f", PodmanProblem::Trailer.into()),
    ] {
        let error = refusal(&tar);
        assert!(error.contains(name) && error.ends_with(&DescribeProblem::to_string(&problem)), "{error}");
    }
    let odd = [records(&[("path", b"caf\xe9")]), f].concat();
    let error = refusal(&odd);
    assert!(error.contains("xe9") && error.contains("not UTF-8"), "{error}");
}

#[test]
fn a_million_headers_do_not_share_one_frame() {
    let mut tar = Vec::new();
    for number in 0..2000 {
        tar.extend(file(&format!("f{number}"), b""));
    }
    let (blob, built) = built(&tar, &options());
    let mut sizes = BTreeMap::new();
    let mut at = 0;
    while at < usize::try_from(built.payload_end).unwrap() {
        let len = zstd::zstd_safe::find_frame_compressed_size(&blob[at..]).unwrap();
        sizes.insert(at, zstd::decode_all(&blob[at..at + len]).unwrap().len());
        at += len;
    }
    assert_eq!(sizes.values().sum::<usize>(), tar.len());
    assert!(sizes.values().all(|size| *size <= HEADER_RUN + 2 * BLOCK), "{sizes:?}");
}
