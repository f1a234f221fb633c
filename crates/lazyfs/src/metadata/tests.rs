use std::collections::{BTreeMap, HashMap};

use erofs::Checked;
use estargz::TocLimits;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

const PAYLOAD_END: u64 = 1 << 40;
const DIGEST: &str = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
/// A time as the table has it, and what is shown of it.
const TIMES: [(&str, i64, u32); 4] = [
    ("1970-01-01T00:00:00Z", 0, 0),
    ("2001-09-09T01:46:40Z", 1_000_000_000, 0),
    ("2300-01-01T00:00:00.9Z", 10_413_792_000, 900_000_000),
    ("1969-12-31T23:59:55.25Z", -5, 250_000_000),
];
const SIZES: [u64; 6] = [0, 1, 4095, 4096, 4097, 30_000];
const CHUNK: u64 = 5000;

fn toc(entries: &[Value]) -> Toc {
    let json = serde_json::to_vec(&json!({"version": 1, "entries": entries})).unwrap();
    Toc::parse(&json, PAYLOAD_END, &TocLimits::default()).unwrap()
}

/// What is to be written, and what should be seen then.
#[derive(Default)]
struct Expected {
    entries: Vec<Value>,
    /// By path: kind, other attributes, extended attributes.
    shown: BTreeMap<String, (Value, Value)>,
    /// Of a path the first one of the same file.
    links: BTreeMap<String, String>,
    payload: u64,
}

/// What one generated entry is made of. Each number selects among a few.
#[derive(Debug, Clone, Copy)]
struct Choice {
    parent: usize,
    name: usize,
    what: usize,
    size: usize,
    mode: u16,
    owner: u32,
    time: usize,
    xattrs: u8,
}

fn choices() -> impl Strategy<Value = Vec<Choice>> {
    let one =
        (0..8usize, 0..12usize, 0..14usize, 0..SIZES.len(), 0..0o10000u16, 0..u32::MAX, 0..4usize, 0..32u8);
    let one = one.prop_map(|(parent, name, what, size, mode, owner, time, xattrs)| Choice {
        parent,
        name,
        what,
        size,
        mode,
        owner,
        time,
        xattrs,
    });
    prop::collection::vec(one, 0..40)
}

/// Extended attributes as the table has them, and as they are shown.
fn xattrs(choice: &Choice) -> (Value, Vec<Value>) {
    let (mut xattrs, mut shown) = (json!({}), Vec::new());
    let has_user = matches!(choice.what, 0..=5);
    for (bit, name, value, is_shown) in [
        (1, "security.two", "MQ==", true),
        (2, "user.one", "MQ==", has_user),
        (4, "trusted.never", "MQ==", false),
        (8, "user.overlay.opaque", "eQ==", false),
        (16, "nameless", "MQ==", false),
    ] {
        if choice.xattrs & bit != 0 {
            xattrs[name] = json!(value);
            if is_shown {
                shown.push(json!([name, "1"]));
            }
        }
    }
    (xattrs, shown)
}

fn expected(choices: &[Choice]) -> Expected {
    let mut it = Expected { payload: 100, ..Expected::default() };
    let mut directories = vec![String::new()];
    let mut links: Vec<String> = Vec::new();
    let mut whiteouts = Vec::new();
    it.shown.insert(String::new(), (json!("directory"), json!([0o755, 0, 0, [0, 0], []])));
    for choice in choices {
        let directory = directories[choice.parent % directories.len()].clone();
        let name = if choice.name == 0 { "n".repeat(251) } else { format!("{}", choice.name) };
        let path = format!("{directory}{name}");
        let is_new = !it.shown.contains_key(&path);
        let (mtime, seconds, nanos) = TIMES[choice.time];
        let shown_mtime = json!([seconds, nanos]);
        let (uid, gid) = (choice.owner.min(u32::MAX - 1), choice.owner / 3);
        let mut entry = json!({"name": path, "mode": choice.mode, "uid": uid, "gid": gid, "modtime": mtime});
        let (xattrs, shown_xattrs) = xattrs(choice);
        entry["xattrs"] = xattrs;
        let mut mode = choice.mode;
        let kind = match choice.what {
            0..=2 if is_new => {
                entry["type"] = json!("dir");
                directories.push(format!("{path}/"));
                json!("directory")
            }
            3..=5 if is_new => {
                let size = SIZES[choice.size];
                entry["type"] = json!("reg");
                entry["size"] = json!(size);
                links.push(path.clone());
                json!(["file", size])
            }
            6 if is_new => {
                (entry["type"], entry["linkName"]) = (json!("symlink"), json!("to/there"));
                links.push(path.clone());
                mode = 0o777;
                json!(["link", "to/there"])
            }
            7 if is_new => {
                (entry["type"], entry["devMajor"], entry["devMinor"]) =
                    (json!("char"), json!(4095), json!(1_048_575));
                json!(["char", 4095, 1_048_575])
            }
            8 if is_new => {
                (entry["type"], entry["devMajor"], entry["devMinor"]) = (json!("block"), json!(0), json!(7));
                json!(["block", 0, 7])
            }
            9 if is_new => {
                entry["type"] = json!("fifo");
                json!("fifo")
            }
            10 if is_new && !links.is_empty() => {
                let target = links[choice.size % links.len()].clone();
                it.entries.push(json!({"name": path, "type": "hardlink", "linkName": target}));
                it.links.insert(path.clone(), target.clone());
                it.shown.insert(path, it.shown[&target].clone());
                continue;
            }
            11 => {
                entry["name"] = json!(format!("{directory}.wh.{name}"));
                entry["type"] = json!("reg");
                it.entries.push(entry);
                whiteouts.push((path, json!([0, uid, gid, shown_mtime, []])));
                continue;
            }
            12 => {
                it.entries.push(json!({"name": format!("{directory}.wh..wh..opq"), "type": "reg"}));
                let shown = it.shown.get_mut(directory.trim_end_matches('/')).unwrap();
                let xattrs = shown.1[4].as_array_mut().unwrap();
                let opaque = json!(["trusted.overlay.opaque", "y"]);
                if !xattrs.contains(&opaque) {
                    xattrs.push(opaque);
                    xattrs.sort_by_key(Value::to_string);
                }
                continue;
            }
            13 => {
                // Hidden, though it has bytes.
                let mut hidden =
                    json!({"type": "reg", "size": 10, "name": format!("{directory}.wh..wh.plnk")});
                it.chunks(&mut hidden, 10);
                continue;
            }
            _ => continue,
        };
        let size = entry["size"].as_u64().unwrap_or(0);
        it.shown.insert(path, (kind, json!([mode, uid, gid, shown_mtime, shown_xattrs])));
        it.chunks(&mut entry, size);
    }
    let mut landmark = json!({"type": "reg", "size": 1, "name": ".prefetch.landmark"});
    it.chunks(&mut landmark, 1);
    for (path, shown) in whiteouts {
        // The last one of a name counts, and what the layer itself has of that name stands before it.
        if it.shown.get(&path).is_none_or(|(kind, _)| *kind == json!("whiteout")) {
            it.shown.insert(path, (json!("whiteout"), shown));
        }
    }
    it
}

impl Expected {
    /// Adds the entry of a file, and those of its further chunks.
    fn chunks(&mut self, entry: &mut Value, size: u64) {
        let mut at = 0;
        let mut next = entry.clone();
        loop {
            if size > 0 {
                next["offset"] = json!(self.payload);
                next["chunkOffset"] = json!(at);
                next["chunkSize"] = json!(CHUNK.min(size - at));
                next["chunkDigest"] = json!(DIGEST);
                self.payload += 10;
            }
            self.entries.push(next);
            at += CHUNK;
            if at >= size {
                return;
            }
            next = json!({"type": "chunk", "name": entry["name"]});
        }
    }
}

struct Seen<'a> {
    image: &'a Checked<'a>,
    toc: &'a Toc,
    layout: &'a Layout,
    shown: BTreeMap<String, (Value, Value)>,
    nids: BTreeMap<String, u64>,
}

impl Seen<'_> {
    fn node(&mut self, path: String, nid: u64) {
        let node = self.image.node(nid).unwrap();
        let kind = match node.kind {
            Content::Directory => json!("directory"),
            Content::Regular { size, address } => {
                // The places of all its chunks, one after another.
                let inode = self.toc.inode(self.toc.find(path.as_bytes()).unwrap()).unwrap();
                let mut end = address;
                for (number, chunk) in inode.chunk_numbers().zip(inode.chunks()) {
                    assert_eq!(self.layout.start(number), Some(end), "{path}");
                    end += u64::from(chunk.len);
                }
                assert!(size == 0 || end == address + size, "{path}");
                json!(["file", size])
            }
            Content::Symlink(target) => json!(["link", String::from_utf8_lossy(target)]),
            Content::CharDevice(0, 0) => json!("whiteout"),
            Content::CharDevice(major, minor) => json!(["char", major, minor]),
            Content::BlockDevice(major, minor) => json!(["block", major, minor]),
            Content::Fifo => json!("fifo"),
            Content::Socket => json!("socket"),
        };
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let mut xattrs: Vec<_> =
            self.image.xattrs(nid).iter().map(|(name, value)| json!([text(name), text(value)])).collect();
        xattrs.sort_by_key(Value::to_string);
        let attributes = json!([node.mode, node.uid, node.gid, [node.mtime, node.mtime_nanos], xattrs]);
        let prefix = if path.is_empty() { String::new() } else { format!("{path}/") };
        self.nids.insert(path.clone(), nid);
        self.shown.insert(path, (kind, attributes));
        for (name, child) in self.image.children(nid) {
            self.node(format!("{prefix}{}", text(name)), child);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn an_image_shows_what_the_table_says(choices in choices()) {
        let expected = expected(&choices);
        let toc = toc(&expected.entries);
        let layout = Layout::new(toc.chunks());
        let bytes = image(&toc, &layout, OpaqueXattr::Trusted).unwrap();
        let image = erofs::check(&bytes, layout.len()).unwrap();
        let mut seen =
            Seen { image: &image, toc: &toc, layout: &layout, shown: BTreeMap::new(), nids: BTreeMap::new() };
        seen.node(String::new(), image.root());
        prop_assert_eq!(&seen.shown, &expected.shown);
        // Names of one file are names of one inode, and nothing else is.
        let mut names: HashMap<u64, &str> = HashMap::new();
        for (path, nid) in &seen.nids {
            let file = expected.links.get(path).unwrap_or(path);
            prop_assert_eq!(*names.entry(*nid).or_insert(file), file);
        }
        prop_assert_eq!(names.len(), expected.shown.len() - expected.links.len());
    }
}

#[test]
fn opaque_directories_are_marked_as_the_overlay_wants_them() {
    let toc = toc(&[json!({"name": "d/", "type": "dir"}), json!({"name": "d/.wh..wh..opq", "type": "reg"})]);
    let layout = Layout::new(toc.chunks());
    for (opaque, name) in
        [(OpaqueXattr::Trusted, "trusted.overlay.opaque"), (OpaqueXattr::User, "user.overlay.opaque")]
    {
        let bytes = image(&toc, &layout, opaque).unwrap();
        let image = erofs::check(&bytes, layout.len()).unwrap();
        let [(_, directory)] = image.children(image.root())[..] else { panic!("one directory") };
        assert_eq!(image.xattrs(directory), [(name.into(), &b"y"[..])]);
        assert!(image.children(directory).is_empty());
        assert_eq!(image.uuid()[..], toc.digest().as_bytes()[..16]);
    }
}

/// More than EROFS can keep, or Linux can list: the layer is shown without, and the same by both drivers.
#[test]
fn attributes_that_do_not_fit_are_left_out() {
    let value = |len: usize| "AAAA".repeat(len / 3);
    let large: BTreeMap<_, _> = (0..5).map(|n| (format!("user.{n}"), value(60_000))).collect();
    let larger = json!({"user.fits": value(65_535), "user.much": value(65_535) + "AA=="});
    let many: BTreeMap<_, _> = (0..256).map(|n| (format!("user.{n:0>250}"), "")).collect();
    let toc = toc(&[
        json!({"name": "large", "type": "reg", "xattrs": large}),
        json!({"name": "larger", "type": "reg", "xattrs": larger}),
        json!({"name": "many/", "type": "dir", "xattrs": many}),
        json!({"name": "many/.wh..wh..opq", "type": "reg"}),
    ]);
    let layout = Layout::new(toc.chunks());
    let bytes = image(&toc, &layout, OpaqueXattr::Trusted).unwrap();
    let image = erofs::check(&bytes, layout.len()).unwrap();
    let tree = Tree::new(&toc, OpaqueXattr::Trusted);
    let many_left = format!("user.{:0>250}", 255);
    let rows = [("large", 4, "user.4"), ("larger", 1, "user.much"), ("many", 256, many_left.as_str())];
    for ((name, nid), (path, count, left_out)) in image.children(image.root()).into_iter().zip(rows) {
        assert_eq!(name, path.as_bytes());
        let number = toc.find(name).unwrap();
        let mut fuse: Vec<_> = tree.xattrs(u64::from(number)).collect();
        let mut erofs = image.xattrs(nid);
        fuse.sort_unstable();
        erofs.sort_unstable();
        assert_eq!(erofs.len(), count, "{path}");
        assert!(erofs.iter().map(|(name, value)| (name.as_slice(), *value)).eq(fuse), "{path}");
        let found = tree.impossible_xattr(toc.inode(number).unwrap());
        assert_eq!(found, Some(left_out.as_bytes()), "{path}");
    }
}
