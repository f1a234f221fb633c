//! The tar reader against GNU tar and Python's tarfile: they write, it reads, and the other way round.
//!
//! A peer that is not installed is passed over with a line that says so.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::collections::BTreeMap;
use std::fs::{self, File, FileTimes};
use std::io::{Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use content::Digest;
use estargz::archive::{Entry, EntryKind, Reader, padding};

/// Whether the program is there and is what it must be.
fn installed(program: &str, must_say: &str) -> bool {
    let version = Command::new(program).arg("--version").output();
    let found = version.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains(must_say));
    if !found {
        eprintln!("passed over: {must_say} is not installed as {program}");
    }
    found
}

fn run(command: &mut Command) -> Vec<u8> {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

fn entries(tar: &[u8]) -> Vec<(Entry, Vec<u8>)> {
    let mut reader = Reader::new(tar);
    let mut entries = Vec::new();
    while let Some(entry) = reader.next_entry().unwrap() {
        let mut data = Vec::new();
        reader.data().read_to_end(&mut data).unwrap();
        assert_eq!(data.len() as u64, entry.size, "{}", entry.display_path());
        entries.push((entry, data));
    }
    entries
}

/// What the reader gives, as a tar again.
fn rebuilt(entries: &[(Entry, Vec<u8>)]) -> Vec<u8> {
    let mut tar = Vec::new();
    for (entry, data) in entries {
        tar.extend_from_slice(&entry.raw);
        tar.extend_from_slice(data);
        tar.resize(tar.len() + usize::try_from(padding(entry.size)).unwrap(), 0);
    }
    tar.resize(tar.len() + 1024, 0);
    tar
}

/// How much of a tree a format can hold.
#[derive(Clone, Copy, PartialEq)]
enum Reach {
    /// Names of 100 bytes, numbers in octal.
    Octal,
    /// Everything but fractions of seconds.
    Seconds,
    /// Everything.
    Nanoseconds,
}

fn set_mtime(file: &File, seconds: i64, nanos: u32) {
    let size = Duration::new(seconds.unsigned_abs(), 0);
    let whole = if seconds < 0 { SystemTime::UNIX_EPOCH - size } else { SystemTime::UNIX_EPOCH + size };
    let time = whole + Duration::new(0, nanos);
    file.set_times(FileTimes::new().set_modified(time)).unwrap();
}

/// A tree with what makes trouble. Owners are set only where that is allowed.
fn plant(root: &Path, reach: Reach) {
    let write = |name: &[u8], content: &[u8], mode: u32, mtime: i64, nanos: u32| {
        let path = root.join(std::ffi::OsStr::from_bytes(name));
        let mut file = File::create(&path).unwrap();
        file.write_all(content).unwrap();
        file.set_permissions(fs::Permissions::from_mode(mode)).unwrap();
        set_mtime(&file, mtime, nanos);
    };
    let nanos = if reach == Reach::Nanoseconds { 999_999_999 } else { 0 };
    fs::create_dir(root.join("dir")).unwrap();
    write(b"dir/file", b"content", 0o640, 1_600_000_000, nanos);
    write(b"empty", b"", 0o600, 0, 0);
    write(b"block", &[7; 512], 0o644, 1, nanos);
    symlink("dir/file", root.join("link")).unwrap();
    fs::hard_link(root.join("block"), root.join("block-again")).unwrap();
    for (name, parts, size) in [
        ("sparse-middle", &[(0, 3), (300_000, 5000), (700_001, 9)][..], 700_010),
        ("sparse-ends", &[(200_000, 70_000)], 1_000_000),
        ("one-hole", &[], 700_000),
        // More parts than a header and one extension block have room for.
        ("many-parts", &[(0, 1); 0], 60 * 8192),
    ] {
        let file = File::create(root.join(name)).unwrap();
        file.set_len(size).unwrap();
        for (part, (offset, len)) in parts.iter().enumerate() {
            file.write_all_at(&vec![b'a' + u8::try_from(part).unwrap(); *len], *offset).unwrap();
        }
        if name == "many-parts" {
            for part in 0..60 {
                file.write_all_at(format!("part {part}").as_bytes(), part * 8192).unwrap();
            }
        }
        set_mtime(&file, 1_500_000_000, nanos);
    }
    if reach != Reach::Octal {
        write("n".repeat(200).as_bytes(), b"long", 0o644, 2, 0);
        fs::create_dir_all(root.join("d/".repeat(80))).unwrap();
        write(format!("{}{}", "d/".repeat(80), "x".repeat(200)).as_bytes(), b"deep", 0o644, 2, 0);
        symlink("t".repeat(200), root.join("long-target")).unwrap();
        write(b"new\nline", b"1", 0o644, -86_400, 0);
        write(b"back\\slash <>&\"'", b"2", 0o4755, 3, 0);
        write("ü".as_bytes(), b"3", 0o1777, 3, 0);
        write(b"caf\xe9", b"4", 0o644, 3, 0);
        write(b"before-1970", b"5", 0o644, -2, nanos);
        let owned = root.join("owned");
        write(b"owned", b"6", 0o644, 3, 0);
        if let Err(error) = chown(&owned, Some(3_000_000), Some(4_000_000)) {
            eprintln!("passed over: owners beyond octal: {error}");
        }
    }
}

/// Everything below `root` by its path.
fn walk(root: &Path) -> BTreeMap<PathBuf, fs::Metadata> {
    let mut found = BTreeMap::new();
    let mut todo = vec![PathBuf::new()];
    while let Some(path) = todo.pop() {
        let metadata = fs::symlink_metadata(root.join(&path)).unwrap();
        if metadata.is_dir() {
            todo.extend(
                fs::read_dir(root.join(&path)).unwrap().map(|child| path.join(child.unwrap().file_name())),
            );
        }
        found.insert(path, metadata);
    }
    found
}

/// The entries are what stands below `root`.
fn assert_tells(entries: &[(Entry, Vec<u8>)], root: &Path, reach: Reach) {
    let mut found = walk(root);
    let mut names = BTreeMap::new();
    for (entry, data) in entries {
        let name = entry.display_path();
        let path: PathBuf =
            Path::new(std::ffi::OsStr::from_bytes(&entry.path)).components().skip(1).collect();
        let metadata = found.remove(&path).unwrap_or_else(|| panic!("{name} is not in the tree, or twice"));
        assert_eq!(u32::from(entry.mode), metadata.mode() & 0o7777, "{name}");
        assert_eq!((entry.uid, entry.gid), (metadata.uid(), metadata.gid()), "{name}");
        assert_eq!(entry.mtime, metadata.mtime(), "{name}");
        let nanos = if reach == Reach::Nanoseconds { metadata.mtime_nsec() } else { 0 };
        assert_eq!(i64::from(entry.mtime_nanos), nanos, "{name}");
        match entry.kind {
            EntryKind::Directory => assert!(metadata.is_dir(), "{name}"),
            EntryKind::Regular => {
                assert!(metadata.is_file(), "{name}");
                assert!(*data == fs::read(root.join(&path)).unwrap(), "{name}: other content");
                names.insert(entry.path.clone(), metadata.ino());
            }
            EntryKind::Hardlink => assert_eq!(names.get(&entry.link), Some(&metadata.ino()), "{name}"),
            EntryKind::Symlink => {
                let target = fs::read_link(root.join(&path)).unwrap().into_os_string().into_vec();
                assert_eq!(entry.link, target, "{name}");
            }
            _ => panic!("{name} is no such thing"),
        }
    }
    assert!(found.is_empty(), "not in the archive: {:?}", found.keys());
}

/// GNU tar's ways to write: arguments, how much they hold, and whether sparse files are sparse in them. Holes
/// are found by their zeros, whatever the file system knows of them.
const WAYS: &[(&[&str], Reach, bool)] = &[
    (&["--format=v7"], Reach::Octal, false),
    (&["--format=ustar"], Reach::Octal, false),
    (&["--format=oldgnu"], Reach::Seconds, false),
    (&["--format=gnu"], Reach::Seconds, false),
    (&["--format=posix"], Reach::Nanoseconds, false),
    (&["--format=oldgnu", "--sparse", "--hole-detection=raw"], Reach::Seconds, true),
    (&["--format=gnu", "--sparse", "--hole-detection=raw"], Reach::Seconds, true),
    (
        &["--format=posix", "--sparse", "--hole-detection=raw", "--sparse-version=0.0"],
        Reach::Nanoseconds,
        true,
    ),
    (
        &["--format=posix", "--sparse", "--hole-detection=raw", "--sparse-version=0.1"],
        Reach::Nanoseconds,
        true,
    ),
    (
        &["--format=posix", "--sparse", "--hole-detection=raw", "--sparse-version=1.0"],
        Reach::Nanoseconds,
        true,
    ),
];

#[test]
fn what_gnu_tar_writes_is_read_and_what_is_read_it_unpacks() {
    if !installed("tar", "GNU tar") {
        return;
    }
    for (way, reach, is_sparse) in WAYS {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        fs::create_dir(&root).unwrap();
        plant(&root, *reach);
        let mut tar = Command::new("tar");
        tar.args(*way).args(["--blocking-factor=1", "-cf", "-", "-C"]).arg(&root).arg(".");
        let tar = run(&mut tar);
        if *is_sparse {
            assert!(tar.len() < 1 << 20, "{way:?} did not make holes");
        }
        let read = entries(&tar);
        let rewritten = read.iter().filter(|(entry, _)| entry.rewritten).count();
        assert_eq!(rewritten, if *is_sparse { 4 } else { 0 }, "{way:?}");
        assert_tells(&read, &root, *reach);

        // The plain headers that took the place of the sparse ones.
        let again = rebuilt(&read);
        assert_tells(&entries(&again), &root, *reach);
        let archive = dir.path().join("again.tar");
        fs::write(&archive, &again).unwrap();
        let unpacked = dir.path().join("unpacked");
        fs::create_dir(&unpacked).unwrap();
        run(Command::new("tar")
            .args(["-xp", "--numeric-owner", "-f"])
            .arg(&archive)
            .arg("-C")
            .arg(&unpacked));
        assert_tells(&read, &unpacked, *reach);
    }
}

/// Lists an archive: a line for each member.
const PYTHON_LIST: &str = r"
import hashlib, math, sys, tarfile
from decimal import Decimal
kinds = {b'5': 'dir', b'1': 'hardlink', b'2': 'symlink', b'3': 'char', b'4': 'block', b'6': 'fifo'}
tar = tarfile.open(sys.argv[1], encoding='utf-8', errors='surrogateescape')
raw = lambda text: text.encode('utf-8', 'surrogateescape')
for m in tar:
    data = tar.extractfile(m).read() if m.isreg() else b''
    mtime = math.floor(Decimal(m.pax_headers.get('mtime', m.mtime)))
    kind = 'reg' if m.isreg() else kinds[m.type]
    xattrs = sorted((raw(k[13:]).hex(), raw(v).hex()) for k, v in m.pax_headers.items() if k.startswith('SCHILY.xattr.'))
    print(raw(m.name).hex(), kind, m.mode & 0o7777, m.uid, m.gid, mtime, raw(m.linkname).hex(), len(data),
          hashlib.sha256(data).hexdigest(), ','.join(k + '=' + v for k, v in xattrs))
";

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

/// The same lines, of what this reader sees.
fn listed(entries: &[(Entry, Vec<u8>)]) -> Vec<String> {
    let line = |(entry, data): &(Entry, Vec<u8>)| {
        let kind = match entry.kind {
            EntryKind::Directory => "dir",
            EntryKind::Regular => "reg",
            EntryKind::Symlink => "symlink",
            EntryKind::Hardlink => "hardlink",
            EntryKind::CharDevice => "char",
            EntryKind::BlockDevice => "block",
            EntryKind::Fifo => "fifo",
        };
        let path = entry.path.strip_suffix(b"/").unwrap_or(&entry.path);
        let digest = Digest::of(data).to_string();
        let digest = digest.strip_prefix("sha256:").unwrap();
        let xattrs: Vec<_> =
            entry.xattrs.iter().map(|(name, value)| format!("{}={}", hex(name), hex(value))).collect();
        let Entry { mode, uid, gid, mtime, .. } = entry;
        let (link, len, xattrs) = (hex(&entry.link), data.len(), xattrs.join(","));
        format!("{} {kind} {mode} {uid} {gid} {mtime} {link} {len} {digest} {xattrs}", hex(path))
    };
    entries.iter().map(line).collect()
}

fn assert_python_sees(archive: &Path) {
    let theirs = run(Command::new("python3").args(["-c", PYTHON_LIST]).arg(archive));
    let theirs = String::from_utf8(theirs).unwrap();
    let ours = listed(&entries(&fs::read(archive).unwrap()));
    assert!(!ours.is_empty());
    assert_eq!(theirs.lines().map(str::to_owned).collect::<Vec<_>>(), ours);
}

#[test]
fn python_and_this_reader_see_one_archive() {
    if !installed("tar", "GNU tar") || !installed("python3", "Python") {
        return;
    }
    for (way, reach, _) in WAYS {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        fs::create_dir(&root).unwrap();
        plant(&root, *reach);
        let archive = dir.path().join("peer.tar");
        run(Command::new("tar").args(*way).args(["-cf"]).arg(&archive).arg("-C").arg(&root).arg("."));
        assert_python_sees(&archive);
        let again = dir.path().join("again.tar");
        fs::write(&again, rebuilt(&entries(&fs::read(&archive).unwrap()))).unwrap();
        assert_python_sees(&again);
    }
}

/// Writes what no tree on a disk shows: devices, extended attributes with any bytes, odd owners and times.
const PYTHON_WRITE: &str = r"
import io, sys, tarfile
form = {'ustar': tarfile.USTAR_FORMAT, 'gnu': tarfile.GNU_FORMAT, 'pax': tarfile.PAX_FORMAT}[sys.argv[2]]
tar = tarfile.open(sys.argv[1], 'w', format=form, encoding='utf-8', errors='surrogateescape')
def add(name, data=b'', **fields):
    m = tarfile.TarInfo(name)
    m.size = len(data)
    for key, value in fields.items():
        setattr(m, key, value)
    tar.addfile(m, io.BytesIO(data))
add('dev', type=tarfile.CHRTYPE, devmajor=5, devminor=200, mode=0o666)
add('blk', type=tarfile.BLKTYPE, devmajor=8, devminor=1)
add('pipe', type=tarfile.FIFOTYPE, mtime=0)
add('file', b'abc', uid=2097151, gid=5, mtime=1600000000)
add('hard', type=tarfile.LNKTYPE, linkname='file')
add('.wh.gone', b'')
add('dir/', type=tarfile.DIRTYPE, mode=0o1777)
add('a/' * 70 + 'b' * 90, b'prefix')
if form != tarfile.USTAR_FORMAT:
    add('n' * 300, b'x', mtime=-86400)
    add('target', type=tarfile.SYMTYPE, linkname='t' * 300)
    add('uid', b'y', uid=3000000, gid=4000000000)
    add('late', b'z', mtime=1 << 40)
if form == tarfile.PAX_FORMAT:
    add('xattr', b'1', pax_headers={'SCHILY.xattr.user.a': 'x=\n\u00fc', 'SCHILY.xattr.security.capability': '\x01\x00\x02',
        'LIBARCHIVE.xattr.user.b': 'eA==', 'SCHILY.acl.access': 'user::rw-', 'VENDOR.x': 'y', 'mtime': '1600000000.9999999999'})
    add('early', b'2', pax_headers={'mtime': '-1.5'})
tar.close()
";

#[test]
fn what_python_writes_is_read() {
    if !installed("python3", "Python") {
        return;
    }
    for form in ["ustar", "gnu", "pax"] {
        let dir = tempfile::tempdir().unwrap();
        let archive = dir.path().join("peer.tar");
        run(Command::new("python3").args(["-c", PYTHON_WRITE]).arg(&archive).arg(form));
        assert_python_sees(&archive);
        let read = entries(&fs::read(&archive).unwrap());
        let by_name: BTreeMap<_, _> = read.iter().map(|(entry, _)| (entry.path.as_slice(), entry)).collect();
        assert_eq!(by_name[b"dev".as_slice()].device, (5, 200));
        assert_eq!(by_name[b"pipe".as_slice()].mtime, 0);
        if form == "pax" {
            let xattrs = &by_name[b"xattr".as_slice()].xattrs;
            assert_eq!(xattrs.len(), 2, "LIBARCHIVE.xattr and ACLs do not count");
            assert_eq!(xattrs[b"security.capability".as_slice()], b"\x01\x00\x02");
            assert_eq!(by_name[b"xattr".as_slice()].mtime, 1_600_000_000, "never rounded up");
            assert_eq!(by_name[b"early".as_slice()].mtime, -2);
        }
    }
}
