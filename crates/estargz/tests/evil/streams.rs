//! Layers that somebody wants converted: a tar is refused, or what comes of it is a tree that can be mounted
//! and holds nothing outside of it.

use std::io::{Read as _, copy, repeat, sink};

use estargz::{BuildError, Options, TailState, Toc, TocLimits, build, decompress, open_tail};

use crate::make::{end, entry, gzip, gzip_bomb, header, link, octal, pax, signed, zstd_bomb};
use crate::{CEILING, measured};

fn converted(tar: &[u8]) -> Result<Toc, BuildError> {
    let mut blob = Vec::new();
    build(tar, &mut blob, &Options { level: Some(1), ..Options::default() })?;
    let TailState::Toc { json, toc_offset, .. } = open_tail(&blob, blob.len() as u64).unwrap() else {
        panic!("a built blob has its TOC");
    };
    Ok(Toc::parse(&json, toc_offset, &TocLimits::default()).unwrap())
}

fn convert(tar: &[u8]) -> Result<(), BuildError> {
    converted(tar).map(drop)
}

/// All that the layer inflates to, and no more than half a GiB of it.
fn inflate(layer: &[u8]) -> Result<(), std::io::Error> {
    let inflated = copy(&mut decompress(layer)?.take(512 << 20), &mut sink())?;
    Err(std::io::Error::other(format!("{inflated} bytes, and nothing wrong")))
}

fn tar(entries: &[Vec<u8>]) -> Vec<u8> {
    [entries.concat(), end()].concat()
}

fn device(major: [u8; 8], minor: [u8; 8]) -> Vec<u8> {
    let mut header = header("dev", b'3', &octal(0));
    header[329..337].copy_from_slice(&major);
    header[337..345].copy_from_slice(&minor);
    signed(header)
}

/// The table that came out would be refused by readers.
macro_rules! unmountable {
    ($of:literal) => {
        concat!("the layer cannot be mounted lazily: table of contents, entry \"", $of)
    };
}

/// A sparse file as GNU tar writes it, format 1.0: the map stands before the data.
fn sparse(real_size: &str, map: &str) -> Vec<u8> {
    let mut data = map.as_bytes().to_vec();
    data.resize(512, 0);
    let records = [
        ("GNU.sparse.major", "1"),
        ("GNU.sparse.minor", "0"),
        ("GNU.sparse.name", "f"),
        ("GNU.sparse.realsize", real_size),
    ];
    tar(&[pax(&records), entry("GNUSparseFile.0/f", b'0', &data)])
}

refused! { convert;
    tar_of_noise: vec![0x55; 2000] =>
        "this is not a tar stream, or it is damaged: wrong checksum of the header after \"\"";
    tar_with_a_wrong_check_sum: { let mut bad = tar(&[entry("f", b'0', b"x")]); bad[0] = b'g'; bad } =>
        "this is not a tar stream, or it is damaged: wrong checksum of the header after \"\"";
    tar_that_ends_in_a_file: entry("f", b'0', &[1; 1000])[..900].to_vec() =>
        "reading the tar stream: the tar stream ends in the middle of \"f\" or of the header behind it";
    tar_that_ends_in_a_header: entry("f", b'0', b"x")[..100].to_vec() =>
        "the tar stream ends in the middle of \"\" or of the header behind it";
    tar_name_climbs_out: tar(&[entry("../../etc/passwd", b'0', b"root::0")]) =>
        "tar entry \"../../etc/passwd\": the path has a .. part";
    tar_name_climbs_by_pax: tar(&[pax(&[("path", "a/../../b")]), entry("f", b'0', b"x")]) =>
        "tar entry \"a/../../b\": the path has a .. part";
    tar_name_of_256_bytes: tar(&[pax(&[("path", &"x".repeat(256))]), entry("f", b'0', b"x")]) =>
        "tar entry \"xxxx…";
    tar_name_is_not_utf_8: { let mut bad = header("x", b'5', &octal(0)); bad[0] = 0xe9; tar(&[signed(bad)]) } =>
        "tar entry \"\\xe9\": its name is not UTF-8, which a table of contents cannot hold; rename it in the image";
    tar_entries_below_a_symbolic_link: tar(&[link("lib", b'2', "/usr/lib"), entry("lib/x", b'0', b"x")]) =>
        unmountable!("lib\": it is not a directory, but other entries lie below it");
    tar_entries_below_a_file: tar(&[entry("f", b'0', b"x"), entry("f/x", b'0', b"x")]) =>
        unmountable!("f\": it is not a directory, but other entries lie below it");
    tar_hard_link_climbs_out:
        tar(&[link("l", b'1', "../../etc/shadow")]) => unmountable!("l\": the path has a .. part");
    tar_hard_link_to_nothing: tar(&[link("l", b'1', "etc/shadow")]) =>
        unmountable!("l\": it is a hard link to \"etc/shadow\", which is not in the layer");
    tar_hard_link_to_itself:
        tar(&[link("l", b'1', "l")]) =>
        unmountable!("l\": it is a hard link to \"l\", which does not come before it");
    tar_hard_link_to_a_directory: tar(&[header("d/", b'5', &octal(0)), link("l", b'1', "d")]) =>
        unmountable!("l\": it is a hard link to the directory \"d\"");
    tar_symbolic_link_to_nowhere:
        tar(&[link("l", b'2', "")]) =>
        unmountable!("l\": the link target is empty, too long, or has a NUL byte");
    tar_size_is_negative: header("f", b'0', &[0xff; 12]) =>
        "tar entry \"f\": size is not a number that fits";
    tar_size_is_8_exbibytes: header("f", b'0', b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff") =>
        "reading the tar stream: the tar stream ends in the middle of \"f\" or of the header behind it";
    tar_size_is_beyond_64_bits: header("f", b'0', b"\x80\0\0\x01\0\0\0\0\0\0\0\0") =>
        "tar entry \"f\": size is not a number that fits";
    tar_pax_size_is_negative: tar(&[pax(&[("size", "-1")]), entry("f", b'0', b"x")]) =>
        "tar entry \"pax\": malformed PAX header: size is no number";
    tar_extended_header_of_a_gibibyte: [header("pax", b'x', &octal(1 << 30)), vec![b' '; 4096]].concat() =>
        "tar entry \"pax\": extended headers are larger than 1 MiB";
    tar_long_name_of_a_gibibyte: [header("././@LongLink", b'L', &octal(1 << 30)), vec![b'x'; 4096]].concat() =>
        "tar entry \"././@LongLink\": extended headers are larger than 1 MiB";
    tar_extended_headers_without_end:
        [pax(&[("comment", &"x".repeat(60_000))]).repeat(40), entry("f", b'0', b"x")].concat() =>
        "tar entry \"pax\": ambiguous headers: two PAX headers for one entry";
    tar_record_longer_than_its_header: tar(&[entry("pax", b'x', b"999999999 path=x\n"), entry("f", b'0', b"x")]) =>
        "tar entry \"pax\": malformed PAX header: a record is cut off";
    tar_record_without_a_length: tar(&[entry("pax", b'x', b"path=x\n"), entry("f", b'0', b"x")]) =>
        "tar entry \"pax\": malformed PAX header: a record is cut off";
    tar_device_out_of_range:
        tar(&[device(*b"7777777\0", *b"0000001\0")]) => unmountable!("dev\": devMajor is out of range");
    tar_sparse_file_of_8_exbibytes: sparse("9223372036854775807", "0\n") =>
        "tar entry \"f\" is a sparse file that cannot be expanded: the holes of this layer's sparse files would take more than 16 GiB";
    tar_sparse_map_without_end: sparse("1000", "1000000000\n0\n1\n") =>
        "tar entry \"f\" is a sparse file that cannot be expanded: the parts in its map do not add up to the data that is there";
    tar_sparse_map_beyond_the_file: sparse("1000", "1\n999\n2\n") =>
        "tar entry \"f\" is a sparse file that cannot be expanded: its map has a part beyond the end of the file";
    tar_sparse_map_in_the_wrong_order: sparse("1000", "2\n500\n1\n0\n1\n") =>
        "tar entry \"f\" is a sparse file that cannot be expanded: the parts in its map overlap or are out of order";
    tar_type_is_unknown: tar(&[header("f", b'Z', &octal(0))]) =>
        "tar entry \"f\" has type 'Z', which layers cannot hold";
    tar_attribute_of_900_kilobytes: tar(&[pax(&[("SCHILY.xattr.user.x", &"x".repeat(900_000))]), entry("f", b'0', b"x")]) =>
        unmountable!("f\": the extended attribute \"user.x\" is malformed or too large");
}

refused! { inflate;
    layer_window_bomb: b"\x28\xb5\x2f\xfd\x00\xa8\x39\0\0pantala".to_vec() =>
        "Frame requires too much memory for decoding";
    /// 10 GiB in a few megabytes stream by: half a GiB is looked at.
    layer_gzip_bomb: gzip_bomb() => "536870912 bytes, and nothing wrong";
    layer_zstd_bomb: zstd_bomb() => "536870912 bytes, and nothing wrong";
    layer_gzip_is_cut: { let mut layer = gzip(repeat(7).take(100_000)); layer.truncate(50); layer } =>
        "incomplete deflate stream";
}

#[test]
fn absolute_names_land_inside() {
    let toc = converted(&tar(&[entry("/etc/passwd", b'0', b"x"), entry("//./usr//x", b'0', b"y")])).unwrap();
    assert!(toc.find(b"etc/passwd").is_some() && toc.find(b"usr/x").is_some());
}

#[test]
fn overlays_own_attributes_in_a_tar_are_dropped() {
    let records = [("SCHILY.xattr.trusted.overlay.opaque", "y"), ("SCHILY.xattr.user.keep", "1")];
    let toc = converted(&tar(&[pax(&records), header("d/", b'5', &octal(0))])).unwrap();
    let inode = toc.inode(toc.find(b"d").unwrap()).unwrap();
    let names: Vec<_> = inode.xattrs().map(|(name, _)| String::from_utf8_lossy(name).into_owned()).collect();
    assert_eq!(names, ["user.keep"]);
}

/// An old table, and landmarks, of whoever made the layer count for nothing.
#[test]
fn a_table_inside_the_tar_is_not_believed() {
    let evil = br#"{"version":1,"entries":[{"name":"su","type":"reg","mode":2541}]}"#;
    let toc = converted(&tar(&[entry("stargz.index.json", b'0', evil), entry("f", b'0', b"x")])).unwrap();
    assert!(
        toc.find(b"su").is_none() && toc.find(b"stargz.index.json").is_none() && toc.find(b"f").is_some()
    );
}

/// 256 MiB of zeros: however well it compresses, it is never in memory at once.
#[test]
fn a_large_file_is_converted_in_bounded_memory() {
    let len = 256 << 20;
    let built = measured(
        CEILING * 2,
        || header("zeros", b'0', &octal(len)),
        |header| {
            let stream = header.as_slice().chain(repeat(0).take(len as u64 + 1024));
            build(stream, sink(), &Options { level: Some(1), ..Options::default() })
        },
    );
    assert!(built.unwrap().uncompressed_size > len as u64);
}
