//! Writes inputs from which fuzzing begins: `seeds FOLDER` makes `FOLDER/<target>/<name>` for every target that
//! takes parts of layers. They are made anew each time and stored nowhere.

use std::error::Error;
use std::io::Write as _;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use estargz::footer::{Footer, HiddenFrame};
use estargz::{BuiltToc, Format, Options, TailState, Toc, TocLimits, TocPlace, build, open_tail, toc_layer};

type Outcome<T> = Result<T, Box<dyn Error>>;

fn main() -> Outcome<()> {
    let folder = std::env::args_os().nth(1).ok_or("which folder?")?;
    let seeds = Seeds(PathBuf::from(folder));
    seeds.footers()?;
    let layer = layer()?;
    seeds.put("tar", "plain", &layer)?;
    seeds.put("tar", "gzip", &gzip(&layer)?)?;
    seeds.put("tar", "zstd", &zstd::encode_all(layer.as_slice(), 3)?)?;
    seeds.put("tar", "pax", &pax_layer()?)?;
    for (name, options) in formats() {
        seeds.blob(name, &layer, &options)?;
    }
    seeds.tables()?;
    seeds.chunks()
}

struct Seeds(PathBuf);

impl Seeds {
    fn put(&self, target: &str, name: &str, bytes: &[u8]) -> Outcome<()> {
        let folder = self.0.join(target);
        std::fs::create_dir_all(&folder)?;
        Ok(std::fs::write(folder.join(name), bytes)?)
    }

    fn footers(&self) -> Outcome<()> {
        let frame = |offset| HiddenFrame { offset, compressed_len: 100, len: 1000 };
        for (name, footer) in [
            ("estargz", Footer::Estargz { toc_offset: 0x1234 }),
            ("legacy", Footer::Legacy { toc_offset: 0x1234 }),
            ("external", Footer::External),
            ("zstd", Footer::ZstdChunked(frame(8))),
            ("podman", Footer::ZstdChunkedPodman { manifest: frame(8), tar_split: frame(116) }),
        ] {
            self.put("footer", name, &footer.to_bytes())?;
            self.put("tail", name, &[b"payload", footer.to_bytes().as_slice()].concat())?;
        }
        Ok(())
    }

    /// The layer in one format: as a tail, its TOC, and its first chunks.
    fn blob(&self, name: &str, layer: &[u8], options: &Options) -> Outcome<()> {
        let mut blob = Vec::new();
        let built = build(layer, &mut blob, options)?;
        self.put("tail", &format!("blob-{name}"), &blob)?;
        let ((TailState::Toc { json, .. }, _) | (TailState::External { .. }, BuiltToc::External { json })) =
            (open_tail(&blob, built.size)?, built.toc)
        else {
            return Err("a built blob has its TOC".into());
        };
        self.put("toc", name, &json)?;
        self.put("toc_layer", name, &toc_layer(&json, 1)?.bytes)?;
        // With the byte that says where the member begins, and without a footer: the target has its own.
        let member = usize::try_from(built.payload_end)?;
        self.put("tail", &format!("toc-{name}"), &[&[0], blob.get(member..).unwrap_or_default()].concat())?;
        let toc = Toc::parse(&json, built.payload_end, &TocLimits::default())?;
        for (number, chunk) in toc.chunks().take(4).enumerate() {
            let extent = usize::try_from(chunk.blob.start)?..usize::try_from(chunk.blob.end)?;
            let extent = blob.get(extent).unwrap_or_default();
            self.chunk(&format!("{name}-{number}"), chunk.len, chunk.inner_offset, extent)?;
        }
        Ok(())
    }

    fn chunk(&self, name: &str, len: u32, inner_offset: u32, extent: &[u8]) -> Outcome<()> {
        let numbers =
            [u16::try_from(len)?.to_le_bytes(), u16::try_from(inner_offset)?.to_le_bytes()].concat();
        self.put("chunk", name, &[&numbers, extent].concat())
    }

    /// What our own builder does not write.
    fn tables(&self) -> Outcome<()> {
        let digest = content::Digest::of(b"");
        for (name, entries) in [
            (
                "hole",
                format!(
                    r#"{{"type":"reg","name":"f","size":9,"digest":"{digest}","offset":9,"endOffset":99,"chunkSize":4,"chunkDigest":"{digest}"}},
                    {{"type":"chunk","name":"f","chunkOffset":4,"chunkSize":5,"offset":50,"chunkType":"zeros"}}"#
                ),
            ),
            (
                "inner",
                format!(
                    r#"{{"type":"reg","name":"a","size":5,"offset":9,"chunkDigest":"{digest}","xattrs":{{"user.x":"AQ=="}}}},
                    {{"type":"reg","name":"b","size":5,"offset":9,"innerOffset":512,"chunkDigest":"{digest}","userName":"me"}},
                    {{"type":"hardlink","name":"c/d","linkName":"./a"}}"#
                ),
            ),
            (
                "others",
                r#"{"type":"char","name":"dev/null","devMajor":1,"devMinor":3,"modtime":"2020-01-02T03:04:05.5Z"},
                {"type":"symlink","name":"l","linkName":"../x"},{"type":"fifo","name":"p","NumLink":3},
                {"type":"block","name":"b"},{"type":"dir","name":"./d/","mode":1023,"uid":7,"gid":8}"#
                    .to_owned(),
            ),
        ] {
            self.put("toc", name, format!(r#"{{"version":1,"entries":[{entries}]}}"#).as_bytes())?;
        }
        Ok(())
    }

    fn chunks(&self) -> Outcome<()> {
        let frames =
            [zstd::encode_all(b"first".as_slice(), 3)?, zstd::bulk::compress(b" and second", 3)?].concat();
        self.chunk("frames", 16, 0, &frames)?;
        self.chunk("inner", 6, 10, &frames)?;
        let skippable = [b"\x50\x2a\x4d\x18\x02\0\0\0xy".as_slice(), &frames].concat();
        self.chunk("skippable", 16, 0, &skippable)?;
        self.chunk("members", 5, 0, &[gzip(b"first")?, gzip(b"second")?].concat())
    }
}

fn formats() -> [(&'static str, Options); 5] {
    let base =
        Options { chunk_size: 700, level: Some(1), workers: NonZeroUsize::new(1), ..Options::default() };
    [
        ("estargz", base.clone()),
        ("shared", Options { min_chunk_size: 1000, ..base.clone() }),
        ("external", Options { toc: TocPlace::External, keep_diff_id: true, ..base.clone() }),
        ("zstd", Options { format: Format::ZstdChunked, ..base.clone() }),
        ("podman", Options { format: Format::ZstdChunkedPodman, ..base }),
    ]
}

/// A little of everything.
fn layer() -> Outcome<Vec<u8>> {
    let mut tar = tar::Builder::new(Vec::new());
    for (kind, path, link) in [
        (tar::EntryType::Directory, "d/", None),
        (tar::EntryType::Symlink, "d/link", Some("../f")),
        (tar::EntryType::Fifo, "fifo", None),
        (tar::EntryType::Char, "null", None),
    ] {
        let mut header = header(kind, 0);
        match link {
            Some(target) => tar.append_link(&mut header, path, Path::new(target))?,
            None => tar.append_data(&mut header, path, std::io::empty())?,
        }
    }
    let content: Vec<u8> = (0..2000_u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    for (path, len) in [("f", 1500), ("d/empty", 0), ("d/small", 10), (".wh.gone", 0)] {
        let data = content.get(..len).unwrap_or_default();
        tar.append_data(&mut header(tar::EntryType::Regular, len as u64), path, data)?;
    }
    tar.append_link(&mut header(tar::EntryType::Link, 0), "hard", "f")?;
    Ok(tar.into_inner()?)
}

/// Long names, attributes, fractions of seconds.
fn pax_layer() -> Outcome<Vec<u8>> {
    let mut tar = tar::Builder::new(Vec::new());
    let records = [("SCHILY.xattr.user.x", b"1".as_slice()), ("mtime", b"1600000000.7"), ("uid", b"3000000")];
    tar.append_pax_extensions(records)?;
    tar.append_data(&mut header(tar::EntryType::Regular, 3), "long/".repeat(50) + "name", b"abc".as_slice())?;
    Ok(tar.into_inner()?)
}

fn header(kind: tar::EntryType, size: u64) -> tar::Header {
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(0o755);
    header.set_size(size);
    header
}

fn gzip(data: &[u8]) -> Outcome<Vec<u8>> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(data)?;
    Ok(encoder.finish()?)
}
