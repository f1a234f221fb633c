//! Layers as no sane tool writes them: paths spelled anyhow, entries that replace each other and each other's
//! parents. What a mount shows is what unpacking from front to back leaves, and an audit finds no lie.

use std::io::Cursor;

use super::*;
use crate::audit::{AuditOptions, Claims, audit};

/// An entry: path, type byte, link target, content.
type Odd = (String, u8, String, Vec<u8>);

fn odd_path() -> impl Strategy<Value = String> {
    let start = prop::sample::select(vec!["", "./", "/"]);
    let parts = prop::collection::vec(prop::sample::select(vec!["a", "a", "b", "b", ".wh.a", "c"]), 1..4);
    let slash = prop::sample::select(vec!["/", "//", "/./"]);
    (start, parts, slash).prop_map(|(start, parts, slash)| format!("{start}{}", parts.join(slash)))
}

fn odd_entries() -> impl Strategy<Value = Vec<Odd>> {
    let kind = prop::sample::select(b"000551126".to_vec());
    let entry = (odd_path(), kind, odd_path(), prop::collection::vec(any::<u8>(), 0..600));
    let entry = entry.prop_map(|(path, kind, link, data)| match kind {
        b'0' => (path, kind, String::new(), data),
        b'1' | b'2' => (path, kind, link, Vec::new()),
        b'5' => (path + "/", kind, String::new(), Vec::new()),
        _ => (path, kind, String::new(), Vec::new()),
    });
    prop::collection::vec(entry, 0..9)
}

fn odd_tar(entries: &[Odd]) -> Vec<u8> {
    let mut tar = Vec::new();
    for (path, kind, link, data) in entries {
        let mut header = tar::Header::new_gnu();
        header.as_mut_bytes()[..path.len()].copy_from_slice(path.as_bytes());
        header.as_mut_bytes()[157..157 + link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(tar::EntryType::new(*kind));
        header.set_mode(0o644);
        header.set_size(data.len() as u64);
        header.set_cksum();
        tar.extend_from_slice(header.as_bytes());
        tar.extend_from_slice(data);
        tar.resize(tar.len().next_multiple_of(512), 0);
    }
    tar.resize(tar.len() + 1024, 0);
    tar
}

fn cleaned(path: &str) -> String {
    let mut clean = Vec::new();
    crate::path::clean(path.as_bytes(), &mut clean).unwrap();
    String::from_utf8(clean).unwrap()
}

/// Paths with type and content.
type Shown = BTreeMap<String, (u8, Vec<u8>)>;

/// What unpacking leaves; `None` if it fails.
fn unpacked(entries: &[Odd]) -> Option<Shown> {
    let directory = || (b'5', Vec::new());
    let mut shown = Shown::from([(String::new(), directory())]);
    for (path, kind, link, data) in entries {
        let path = cleaned(path);
        for (slash, _) in path.match_indices('/') {
            if shown.entry(path[..slash].to_owned()).or_insert_with(directory).0 != b'5' {
                return None;
            }
        }
        let node = match kind {
            b'1' => {
                let target = cleaned(link);
                shown.get(&target).filter(|node| node.0 != b'5' && target != path)?.clone()
            }
            b'2' => (b'2', link.clone().into_bytes()),
            _ => (*kind, data.clone()),
        };
        if shown.get(&path).is_some_and(|old| old.0 != b'5' || *kind != b'5') {
            let below = format!("{path}/");
            shown.retain(|other, _| *other != path && !other.starts_with(&below));
        }
        shown.insert(path, node);
    }
    Some(shown)
}

fn mounted(toc: &Toc, blob: &[u8]) -> Shown {
    let mut shown = Shown::new();
    let mut rest = vec![(String::new(), ROOT)];
    while let Some((path, number)) = rest.pop() {
        let inode = toc.inode(number).unwrap();
        for (name, child) in inode.children() {
            let name = std::str::from_utf8(name).unwrap();
            let child_path = if path.is_empty() { name.to_owned() } else { format!("{path}/{name}") };
            rest.push((child_path, child));
        }
        let node = match inode.kind() {
            Kind::Directory => (b'5', Vec::new()),
            Kind::Regular => (b'0', content_of(blob, &inode)),
            Kind::Symlink => (b'2', inode.link_target().unwrap().to_vec()),
            _ => (b'6', Vec::new()),
        };
        shown.insert(path, node);
    }
    shown
}

fn lie(built: &Built, blob: &[u8]) -> Option<String> {
    let external = match &built.toc {
        BuiltToc::External { json } => Some(json.as_slice()),
        _ => None,
    };
    let claims = Claims {
        digest: Some(built.digest),
        size: Some(built.size),
        diff_id: Some(built.diff_id),
        annotations: built.annotations(),
    };
    let options = AuditOptions { external_toc: external, ..AuditOptions::default() };
    audit(&blob, built.size, &claims, &options).unwrap().lie.map(|lie| lie.to_string())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn a_mount_shows_what_unpacking_leaves(
        entries in odd_entries(),
        base in prop::sample::select(vec![
            Options::default(),
            Options { toc: TocPlace::External, ..Options::default() },
            Options { toc: TocPlace::External, keep_diff_id: true, ..Options::default() },
            Options { format: Format::ZstdChunked, ..Options::default() },
            Options { format: Format::ZstdChunkedPodman, ..Options::default() },
        ]),
        chunk_size in 1u32..700,
        shared in any::<bool>(),
        ranked in prop::collection::vec(odd_path(), 0..3),
    ) {
        let min_chunk_size = if shared && base.format == Format::Estargz { 700 } else { 0 };
        let options = Options { chunk_size, min_chunk_size, ..base };
        let tar = odd_tar(&entries);
        // What is refused needs no tree.
        let Ok((built, blob)) = build_by(tar.as_slice(), &options) else { return Ok(()) };
        let tree = mounted(&toc_of_built(&built, &blob), &blob);
        prop_assert_eq!(lie(&built, &blob), None);
        if let Some(expected) = unpacked(&entries) {
            prop_assert_eq!(&tree, &expected);
        }
        let ranked: Vec<String> = ranked.iter().map(|path| cleaned(path)).collect();
        let mut rank = |path: &[u8]| ranked.iter().position(|ranked| ranked.as_bytes() == path).map(|_| 1);
        let mut blob = Vec::new();
        if let Ok(built) = build_ordered(Cursor::new(&tar), &mut blob, &options, &mut rank) {
            prop_assert_eq!(lie(&built, &blob), None);
            prop_assert_eq!(mounted(&toc_of_built(&built, &blob), &blob), tree);
        }
    }
}
