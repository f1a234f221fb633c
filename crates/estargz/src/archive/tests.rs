use std::io::Read;

use super::*;

mod names;
mod rules;
mod sparse;

/// All entries with their data.
fn read_all(tar: &[u8]) -> Result<Vec<(Entry, Vec<u8>)>, ArchiveError> {
    let mut reader = Reader::new(tar);
    let mut entries = Vec::new();
    while let Some(entry) = reader.next_entry()? {
        let mut data = Vec::new();
        reader.data().read_to_end(&mut data)?;
        entries.push((entry, data));
    }
    Ok(entries)
}

fn header(path: &str, size: u64) -> tar::Header {
    let mut header = tar::Header::new_ustar();
    header.set_path(path).unwrap();
    header.set_size(size);
    header.set_mode(0o644);
    header.set_cksum();
    header
}

/// A header of type `flag` with its data.
fn extension(flag: u8, data: &[u8]) -> Vec<u8> {
    let mut header = header("extension", data.len() as u64);
    header.set_entry_type(tar::EntryType::new(flag));
    header.set_cksum();
    let mut blocks = header.as_bytes().to_vec();
    blocks.extend_from_slice(data);
    blocks.resize(blocks.len().next_multiple_of(BLOCK), 0);
    blocks
}

/// A PAX header with these records.
fn records(records: &[(&str, &[u8])]) -> Vec<u8> {
    let mut data = Vec::new();
    for (key, value) in records {
        pax::push_record(&mut data, key.as_bytes(), value);
    }
    extension(b'x', &data)
}

/// The one entry of an archive of these parts, with its data.
fn read_one(parts: &[&[u8]]) -> Result<(Entry, Vec<u8>), ArchiveError> {
    let mut entries = read_all(&parts.concat())?;
    assert_eq!(entries.len(), 1);
    Ok(entries.remove(0))
}

/// The error that an archive of these parts gives.
fn refusal(parts: &[&[u8]]) -> String {
    read_all(&parts.concat()).unwrap_err().to_string()
}

#[test]
fn long_names_are_read_in_both_dialects() {
    let path = "d/".repeat(90) + "file";
    let mut builder = tar::Builder::new(Vec::new());
    let mut gnu = tar::Header::new_gnu();
    gnu.set_size(3);
    gnu.set_mode(0o644);
    builder.append_data(&mut gnu, &path, b"abc".as_slice()).unwrap();
    builder
        .append_pax_extensions([("path", "pax/ü".as_bytes()), ("uid", b"3000000"), ("size", b"2")])
        .unwrap();
    // The size in the header itself is wrong: the record counts, and the data is found by it.
    builder.append(&header("short", 2), b"xy".as_slice()).unwrap();
    let entries = read_all(&builder.into_inner().unwrap()).unwrap();
    assert_eq!(entries[0].0.path, path.as_bytes());
    assert_eq!(entries[0].1, b"abc");
    assert_eq!(entries[1].0.path, "pax/ü".as_bytes());
    assert_eq!((entries[1].0.uid, entries[1].1.as_slice()), (3_000_000, b"xy".as_slice()));
    assert_eq!(entries[1].0.raw.len(), 3 * BLOCK, "records and header are kept");
}

#[test]
fn a_ustar_prefix_belongs_to_the_path() {
    let path = "p".repeat(90) + "/" + &"n".repeat(90);
    let tar = [header(&path, 0).as_bytes().as_slice(), &[0; 1024]].concat();
    assert_eq!(read_all(&tar).unwrap()[0].0.path, path.as_bytes());
}

#[test]
fn data_that_was_not_read_is_skipped() {
    let mut builder = tar::Builder::new(Vec::new());
    builder.append(&header("a", 700), [1; 700].as_slice()).unwrap();
    builder.append(&header("b", 1), [2].as_slice()).unwrap();
    let tar = builder.into_inner().unwrap();
    let mut reader = Reader::new(tar.as_slice());
    assert_eq!(reader.next_entry().unwrap().unwrap().path, b"a");
    let mut some = [0; 10];
    reader.data().read_exact(&mut some).unwrap();
    assert_eq!(reader.next_entry().unwrap().unwrap().path, b"b");
    assert!(reader.next_entry().unwrap().is_none());
    assert!(reader.next_entry().unwrap().is_none());
}

#[test]
fn padding_and_end_blocks_may_be_missing_and_data_may_not() {
    let mut builder = tar::Builder::new(Vec::new());
    builder.append(&header("a", 3), b"abc".as_slice()).unwrap();
    builder.append(&header("b", 700), [7; 700].as_slice()).unwrap();
    let tar = builder.into_inner().unwrap();
    let whole = read_all(&tar).unwrap();
    let data_end = 3 * BLOCK + 700;
    let padded = data_end.next_multiple_of(BLOCK);
    assert_eq!(tar.len(), padded + 2 * BLOCK);
    for cut in (data_end..=padded).chain([padded + BLOCK]) {
        assert_eq!(read_all(&tar[..cut]).unwrap(), whole, "cut at {cut}");
    }
    // In the data, in its header, and in a block that could have been another header.
    for cut in [data_end - 1, 3 * BLOCK, 2 * BLOCK + 1, padded + 1] {
        assert!(read_all(&tar[..cut]).is_err(), "cut at {cut}");
        // Whether the data is read or skipped makes no difference.
        let mut reader = Reader::new(&tar[..cut]);
        let skipped = std::iter::from_fn(|| reader.next_entry().transpose()).find_map(Result::err);
        assert!(matches!(skipped, Some(ArchiveError::Truncated(_))), "cut at {cut}: {skipped:?}");
    }
}

#[test]
fn lying_sizes_cost_no_memory() {
    let mut long_name = header("././@LongLink", 1 << 32);
    long_name.set_entry_type(tar::EntryType::GNULongName);
    long_name.set_cksum();
    assert!(matches!(read_all(long_name.as_bytes()), Err(ArchiveError::LongExtension(_))));
    assert!(matches!(read_all(header("f", 1 << 32).as_bytes()), Err(ArchiveError::Io(_))));
    let mut endless = Vec::new();
    for _ in 0..3000 {
        let comment = format!("500 comment={}\n", "x".repeat(487));
        endless.extend_from_slice(&extension(b'g', comment.as_bytes()));
    }
    assert!(matches!(read_all(&endless), Err(ArchiveError::LongExtension(_))));
}

#[test]
fn a_wrong_checksum_names_the_place() {
    let mut builder = tar::Builder::new(Vec::new());
    builder.append(&header("good", 0), std::io::empty()).unwrap();
    let mut tar = builder.into_inner().unwrap();
    tar[512] = b'x';
    let error = read_all(&tar).unwrap_err().to_string();
    assert!(error.ends_with("wrong checksum of the header after \"good\""), "{error}");
}
