//! Which member of a tar lies where: read once over the headers, so that blobs are read in place.
//!
//! Members are looked up by name and never unpacked, so a name or a link can lead nowhere but to another
//! member. Understood are the ustar, GNU and PAX ways to write names and sizes, as far as an archive of an
//! image needs them: regular files, and links to them.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use content::ByteRange;

use super::blob::Extent;

/// Bytes of a header; contents are filled up to a multiple of it.
const BLOCK: u64 = HEADER as u64;
const HEADER: usize = 512;
/// Longest extended header that is read, in bytes: names are paths, and paths are short.
const MAX_EXTENDED: u64 = 1 << 20;
/// Longest name of a member, in bytes: Linux has no longer paths.
const MAX_NAME: usize = 4096;
/// Most members of an archive. Images have some hundred.
const MAX_MEMBERS: usize = 100_000;
/// Most links that are followed to one member.
const MAX_LINKS: usize = 16;

/// Why a file is no tar that can be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TarError {
    /// The file could not be read.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// It is not of the form of a tar.
    #[error("the header at byte {at} {reason}")]
    Header {
        /// Where the header begins.
        at: u64,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A member is longer than the file.
    #[error("{name:?} goes on beyond the end of the file: the archive is incomplete")]
    Short {
        /// The member.
        name: String,
    },
    /// A name that leads out of the archive.
    #[error("the name {name:?} leads out of the archive")]
    Outside {
        /// The member.
        name: String,
    },
    /// More members than any image has.
    #[error("it has more than {MAX_MEMBERS} members")]
    TooMany,
}

#[derive(Debug)]
enum Member {
    File(ByteRange),
    Link(String),
}

/// The members of a tar.
#[derive(Debug)]
pub(crate) struct TarIndex {
    file: Arc<File>,
    members: HashMap<String, Member>,
}

/// What extended headers say about the member that follows.
#[derive(Default)]
struct Extended {
    name: Option<String>,
    link: Option<String>,
    size: Option<u64>,
}

impl TarIndex {
    /// Reads the headers. Blocks.
    pub(crate) fn read(file: Arc<File>) -> Result<Self, TarError> {
        let end = file.metadata()?.len();
        let mut members = HashMap::new();
        let mut extended = Extended::default();
        let mut at = 0_u64;
        while at < end {
            let mut block = [0; HEADER];
            if end - at < BLOCK {
                return Err(TarError::Header { at, reason: "is cut off: the archive is incomplete" });
            }
            file.read_exact_at(&mut block, at)?;
            if block.iter().all(|b| *b == 0) {
                break;
            }
            let header = Header::parse(&block).map_err(|reason| TarError::Header { at, reason })?;
            let (header_at, content) = (at, at + BLOCK);
            let size = extended.size.unwrap_or(header.size);
            // Links and directories may carry a size and have no content.
            let size = if matches!(header.kind, b'1'..=b'6') { 0 } else { size };
            let filled = size.checked_next_multiple_of(BLOCK).and_then(|filled| content.checked_add(filled));
            let range = content
                .checked_add(size)
                .filter(|after| *after <= end)
                .map(|after| ByteRange::new(content, after));
            let (Some(next), Some(range)) = (filled, range) else {
                return Err(TarError::Short { name: extended.name.take().unwrap_or(header.name) });
            };
            at = next;
            match header.kind {
                b'L' => extended.name = Some(text(&read_extended(&file, range)?)),
                b'K' => extended.link = Some(text(&read_extended(&file, range)?)),
                b'x' => extended.pax(&read_extended(&file, range)?),
                kind => {
                    let extended = std::mem::take(&mut extended);
                    let name = extended.name.unwrap_or(header.name);
                    let link = extended.link.unwrap_or(header.link);
                    if name.len().max(link.len()) > MAX_NAME {
                        return Err(TarError::Header {
                            at: header_at,
                            reason: "has a name that is too long",
                        });
                    }
                    let path = clean("", &name)?;
                    let member = match kind {
                        b'0' | b'\0' | b'7' => Member::File(range),
                        b'1' => Member::Link(clean("", &link)?),
                        b'2' => Member::Link(clean(parent(&path), &link)?),
                        _ => continue,
                    };
                    if members.len() == MAX_MEMBERS {
                        return Err(TarError::TooMany);
                    }
                    members.insert(path, member);
                }
            }
        }
        Ok(Self { file, members })
    }

    /// The content of the member `name`, links followed; `None` if there is no such file.
    pub(crate) fn find(&self, name: &str) -> Option<Extent> {
        let mut path = clean("", name).ok()?;
        for _ in 0..MAX_LINKS {
            match self.members.get(&path)? {
                Member::File(range) => {
                    return Some(Extent::new(Arc::clone(&self.file), range.start, range.len()));
                }
                Member::Link(target) => path.clone_from(target),
            }
        }
        None
    }
}

impl Extended {
    /// Records of `<length> <key>=<value>\n`.
    fn pax(&mut self, records: &[u8]) {
        let mut rest = records;
        while let Some((length, _)) =
            rest.iter().position(|b| *b == b' ').and_then(|at| rest.split_at_checked(at))
        {
            let length = std::str::from_utf8(length).ok().and_then(|length| length.parse::<usize>().ok());
            let Some((record, after)) =
                length.filter(|l| *l > 0).and_then(|length| rest.split_at_checked(length))
            else {
                return;
            };
            let pair = std::str::from_utf8(record).ok().and_then(|record| record.split_once(' '));
            match pair.and_then(|(_, pair)| pair.trim_end_matches('\n').split_once('=')) {
                Some(("path", value)) => self.name = Some(value.to_owned()),
                Some(("linkpath", value)) => self.link = Some(value.to_owned()),
                Some(("size", value)) => self.size = value.parse().ok(),
                _ => {}
            }
            rest = after;
        }
    }
}

fn read_extended(file: &File, range: ByteRange) -> Result<Vec<u8>, TarError> {
    let reason = "announces an extended header that is too long";
    let len = Some(range.len()).filter(|len| *len <= MAX_EXTENDED).and_then(|len| usize::try_from(len).ok());
    let mut bytes = vec![0; len.ok_or(TarError::Header { at: range.start - BLOCK, reason })?];
    file.read_exact_at(&mut bytes, range.start)?;
    Ok(bytes)
}

struct Header {
    name: String,
    link: String,
    size: u64,
    kind: u8,
}

impl Header {
    fn parse(block: &[u8; HEADER]) -> Result<Self, &'static str> {
        let field = |from: usize, to: usize| block.get(from..to).unwrap_or_default();
        let sum: u64 = block
            .iter()
            .enumerate()
            .map(|(at, b)| if (148..156).contains(&at) { 32 } else { u64::from(*b) })
            .sum();
        if number(field(148, 156)) != Some(sum) {
            return Err("is none of a tar: its checksum is wrong");
        }
        let size = number(field(124, 136)).ok_or("has no size")?;
        let mut name = text(field(0, 100));
        // GNU's own format has other things where ustar has the beginning of the name.
        let prefix = text(field(345, 500));
        if field(257, 263) == b"ustar\0" && !prefix.is_empty() {
            name = format!("{prefix}/{name}");
        }
        let kind = field(156, 157).first().copied().unwrap_or_default();
        Ok(Self { name, link: text(field(157, 257)), size, kind })
    }
}

/// Up to the first zero byte.
fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(bytes.get(..end).unwrap_or_default()).into_owned()
}

/// Octal digits between spaces and zero bytes, or GNU's big-endian bytes after 0x80.
fn number(field: &[u8]) -> Option<u64> {
    if let Some((0x80, rest)) = field.split_first().map(|(first, rest)| (*first, rest)) {
        return rest.iter().try_fold(0_u64, |value, b| Some(value.checked_mul(256)? + u64::from(*b)));
    }
    let digits = field.iter().copied().skip_while(|b| *b == b' ').take_while(|b| !matches!(b, b' ' | 0));
    digits.into_iter().try_fold(0_u64, |value, b| match b {
        b'0'..=b'7' => Some(value.checked_mul(8)? + u64::from(b - b'0')),
        _ => None,
    })
}

fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(parent, _)| parent)
}

/// `name` as seen from `base`, without `.`, `..` and double slashes.
fn clean(base: &str, name: &str) -> Result<String, TarError> {
    let outside = || TarError::Outside { name: name.chars().take(200).collect() };
    let mut parts: Vec<&str> = if name.starts_with('/') {
        Vec::new()
    } else {
        base.split('/').filter(|part| !part.is_empty()).collect()
    };
    for part in name.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop().ok_or_else(outside)?),
            part => parts.push(part),
        }
    }
    Ok(parts.join("/"))
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};

    use super::*;

    fn index(bytes: &[u8]) -> Result<TarIndex, TarError> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        TarIndex::read(Arc::new(file))
    }

    fn content(index: &TarIndex, name: &str) -> Option<String> {
        let mut text = String::new();
        index.find(name)?.reader().read_to_string(&mut text).unwrap();
        Some(text)
    }

    fn header(kind: tar::EntryType, size: u64) -> tar::Header {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(size);
        header.set_mode(0o644);
        header.set_cksum();
        header
    }

    fn sample() -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        let mut file = |name: &str, content: &str| {
            let mut header = header(tar::EntryType::Regular, content.len() as u64);
            builder.append_data(&mut header, name, content.as_bytes()).unwrap();
        };
        file("./plain", "old");
        file("plain", "new");
        file(&format!("long/{}", "x".repeat(300)), "long");
        builder.append_pax_extensions([("path", b"by/pax".as_slice()), ("mtime", b"1".as_slice())]).unwrap();
        let mut pax = header(tar::EntryType::Regular, 3);
        builder.append_data(&mut pax, "short", b"pax".as_slice()).unwrap();
        builder.append_link(&mut header(tar::EntryType::Symlink, 0), "dir/sub/link", "../../plain").unwrap();
        builder.append_link(&mut header(tar::EntryType::Link, 0), "hard", "dir/sub/link").unwrap();
        builder.append_link(&mut header(tar::EntryType::Symlink, 0), "loop", "loop").unwrap();
        builder.append_link(&mut header(tar::EntryType::Symlink, 0), "absolute", "/plain").unwrap();
        builder.append_link(&mut header(tar::EntryType::Symlink, 0), "gone", "nothing").unwrap();
        builder.into_inner().unwrap()
    }

    #[test]
    fn members_are_found_by_their_names_and_by_links() {
        let index = index(&sample()).unwrap();
        for name in ["plain", "./plain", "dir/sub/link", "hard", "absolute"] {
            assert_eq!(content(&index, name).as_deref(), Some("new"), "{name}");
        }
        assert_eq!(content(&index, &format!("long/{}", "x".repeat(300))).as_deref(), Some("long"));
        assert_eq!(content(&index, "by/pax").as_deref(), Some("pax"));
        for none in ["short", "loop", "gone", "dir", "", "../plain"] {
            assert!(index.find(none).is_none(), "{none}");
        }
    }

    /// A hundred thousand of them would be as much memory as there is.
    #[test]
    fn a_name_that_no_path_is_as_long_as_is_refused() {
        let named = |len: usize| {
            let mut builder = tar::Builder::new(Vec::new());
            let mut file = header(tar::EntryType::Regular, 1);
            builder.append_data(&mut file, "x/".repeat(len / 2), b"1".as_slice()).unwrap();
            let mut link = header(tar::EntryType::Symlink, 0);
            builder.append_link(&mut link, "link", "x/".repeat(len / 2)).unwrap();
            index(&builder.into_inner().unwrap())
        };
        assert!(named(4000).is_ok());
        let error = named(5000).unwrap_err();
        assert!(error.to_string().contains("too long"), "{error}");
    }

    #[test]
    fn an_archive_cut_anywhere_is_an_error_or_lacks_members() {
        let whole = sample();
        let members = index(&whole).unwrap().members.len();
        for end in (0..whole.len() - 1024).step_by(100) {
            match index(&whole[..end]) {
                Err(_) => {}
                Ok(index) => assert!(index.members.len() < members, "cut at {end}"),
            }
        }
    }

    #[test]
    fn names_that_lead_outside_and_false_headers_are_refused() {
        let with = |edit: &dyn Fn(&mut tar::Header)| {
            let mut header = header(tar::EntryType::Regular, 0);
            edit(&mut header);
            header.set_cksum();
            let mut bytes = header.as_bytes().to_vec();
            bytes.resize(2048, 0);
            bytes
        };
        let outside = with(&|header| header.as_mut_bytes()[..6].copy_from_slice(b"a/../b"[..6].as_ref()));
        assert!(index(&outside).is_ok());
        let outside = with(&|header| header.as_mut_bytes()[..7].copy_from_slice(b"a/../.."));
        assert!(matches!(index(&outside), Err(TarError::Outside { .. })));
        let link = with(&|header| {
            header.set_entry_type(tar::EntryType::Symlink);
            header.as_mut_bytes()[0] = b'l';
            header.as_mut_bytes()[157..166].copy_from_slice(b"../../etc");
        });
        assert!(matches!(index(&link), Err(TarError::Outside { .. })));
        for size in [b"77777777777\0", b"\x80\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff"] {
            let long = with(&|header| {
                header.as_mut_bytes()[0] = b'f';
                header.as_mut_bytes()[124..136].copy_from_slice(size);
            });
            assert!(matches!(index(&long), Err(TarError::Short { .. })));
        }
        let mut wrong = with(&|header| header.as_mut_bytes()[0] = b'f');
        wrong[1] = b'x';
        assert!(matches!(index(&wrong), Err(TarError::Header { .. })));
        assert!(matches!(index(&[7; 2048]), Err(TarError::Header { .. })));
    }
}
