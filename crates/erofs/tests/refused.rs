//! What cannot be written is refused, and the error says which entry it is and why.

// Helpers of tests: a tree that cannot be built must stop them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

mod common;

use common::model::{Model, ROOT, What};
use common::{image, options};
use erofs::{BLOCK, MAX_DATA, Node, Options, Problem, Tree, WriteError, XattrProblem, check, write};

#[track_caller]
fn refused(model: &Model, path: &str, problem: Problem) {
    let error = write(model, &options(model)).unwrap_err();
    assert_eq!(error, WriteError::Entry { path: path.into(), problem });
    assert!(error.to_string().contains(&format!("{path:?}")), "{error}");
}

/// A model with one node at /directory/node.
fn with(what: What) -> (Model, u32) {
    let mut model = Model::new();
    model.data_len = 10 * BLOCK;
    let directory = model.directory(ROOT, "directory");
    let node = model.add(directory, "node", what);
    (model, node)
}

#[test]
fn names() {
    let long = "x".repeat(256);
    let cases: &[(&[u8], Problem)] = &[
        (b"", Problem::Name),
        (b".", Problem::Name),
        (b"..", Problem::Name),
        (b"a/b", Problem::NameByte),
        (b"a\0b", Problem::NameByte),
        (long.as_bytes(), Problem::NameTooLong),
    ];
    for (name, problem) in cases {
        let mut model = Model::new();
        let directory = model.directory(ROOT, "directory");
        model.file(directory, name, 0);
        refused(&model, &format!("/directory/{}", String::from_utf8_lossy(name)), problem.clone());
        let mut model = Model::new();
        model.file(ROOT, name, 0);
        refused(&model, &format!("/{}", String::from_utf8_lossy(name)), problem.clone());
    }
    let mut model = Model::new();
    let file = model.file(ROOT, "same", 0);
    model.file(ROOT, "between", 0);
    model.link(ROOT, "same", file);
    refused(&model, "/same", Problem::NameTwice);
}

#[test]
fn directories_with_two_names() {
    let (mut model, _) = with(What::Fifo);
    model.link(ROOT, "again", 1);
    refused(&model, "/directory", Problem::DirectoryTwice);
    let (mut model, _) = with(What::Fifo);
    model.link(1, "circle", ROOT);
    refused(&model, "/directory/circle", Problem::DirectoryTwice);
    let (mut model, _) = with(What::Fifo);
    model.link(1, "itself", 1);
    refused(&model, "/directory/itself", Problem::DirectoryTwice);
}

#[test]
fn nodes_that_are_not_there() {
    let (mut model, _) = with(What::Fifo);
    model.link(1, "nothing", 77);
    refused(&model, "/directory/nothing", Problem::NoNode(77));
    let mut model = Model::new();
    model.at(ROOT).what = What::Fifo;
    refused(&model, "/", Problem::RootKind);
    model.nodes.clear();
    refused(&model, "/", Problem::NoNode(ROOT));
}

#[test]
fn attributes_of_nodes() {
    let (mut model, node) = with(What::Fifo);
    model.at(node).mode = 0o10_000;
    refused(&model, "/directory/node", Problem::Mode(0o10_000));
    for (major, minor) in [(4096, 0), (0, 1 << 20), (u32::MAX, u32::MAX)] {
        refused(&with(What::Char(major, minor)).0, "/directory/node", Problem::Device(major, minor));
        refused(&with(What::Block(major, minor)).0, "/directory/node", Problem::Device(major, minor));
    }
    for target in [Vec::new(), vec![b'x'; 4096], b"a\0b".to_vec()] {
        refused(&with(What::Symlink(target)).0, "/directory/node", Problem::Link);
    }
}

#[test]
fn contents_outside_of_the_data_file() {
    let file = |size, address| with(What::Regular { size, address }).0;
    refused(&file(1, 4095), "/directory/node", Problem::Address(4095));
    for (size, address) in [
        (10 * BLOCK + 1, 0),
        (1, 10 * BLOCK),
        (4097, 9 * BLOCK),
        (1, u64::MAX - 4095),
        (u64::MAX, 0),
        (u64::MAX, BLOCK),
    ] {
        refused(&file(size, address), "/directory/node", Problem::BeyondData { address, size });
    }
    image(&file(10 * BLOCK, 0));
    image(&file(1, 9 * BLOCK));
    image(&file(0, 4095)); // an empty file has no place

    let mut model = file(BLOCK + 1, 4 * BLOCK);
    model.add(ROOT, "other", What::Regular { size: 1, address: 5 * BLOCK });
    refused(&model, "/other", Problem::Overlap(5 * BLOCK));
}

#[test]
fn extended_attributes() {
    let name = |name: &str, problem| Problem::Xattr { name: name.into(), problem };
    let long = format!("trusted.{}", "x".repeat(248));
    let large = vec![0; 65_536];
    let cases: &[(&str, &[u8], XattrProblem)] = &[
        ("system.nfs4_acl", b"", XattrProblem::Prefix),
        ("user.", b"", XattrProblem::Name),
        (&long, b"", XattrProblem::NameTooLong),
        ("user.large", &large, XattrProblem::ValueTooLong),
    ];
    for (xattr, value, problem) in cases {
        let (mut model, node) = with(What::Fifo);
        model.xattr(node, xattr, value);
        refused(&model, "/directory/node", name(xattr, *problem));
    }
    let (mut model, node) = with(What::Fifo);
    model.xattr(node, "user.a", "1");
    model.xattr(node, "user.a", "1");
    refused(&model, "/directory/node", name("user.a", XattrProblem::Twice));

    // As much as an inode can say: 12 + 65534 × 4 bytes.
    let (mut model, node) = with(What::Fifo);
    for n in 0..3 {
        model.xattr(node, format!("user.{n}"), vec![n; 65_535]); // 65,540 bytes
    }
    model.xattr(node, "user.3", vec![3; 262_136 - 3 * 65_540 - 5]);
    image(&model);
    model.at(node).xattrs.last_mut().unwrap().1.push(3);
    refused(&model, "/directory/node", Problem::XattrsTooLarge(262_152));
}

#[test]
fn data_files_that_have_no_blocks_or_too_many() {
    let model = Model::new();
    for data_len in [1, 4095, MAX_DATA + 1, MAX_DATA + BLOCK, u64::MAX] {
        let options = Options { data_len, ..Options::default() };
        assert_eq!(write(&model, &options), Err(WriteError::DataLength(data_len)));
    }
    for data_len in [0, BLOCK, MAX_DATA] {
        let options = Options { data_len, ..Options::default() };
        let image = write(&model, &options).unwrap();
        assert!(check(&image, data_len).is_ok());
    }
}

/// A tree that answers something else each time it is asked.
struct Fickle(Model, std::cell::Cell<usize>);

impl Tree for Fickle {
    fn bound(&self) -> u32 {
        self.0.bound()
    }

    fn root(&self) -> u32 {
        self.0.root()
    }

    fn node(&self, number: u32) -> Option<Node<'_>> {
        self.0.node(number)
    }

    fn children(&self, number: u32) -> impl Iterator<Item = (&[u8], u32)> {
        let times = self.1.replace(self.1.get() + 1);
        self.0.children(number).skip(times)
    }

    fn xattrs(&self, number: u32) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.0.xattrs(number)
    }
}

#[test]
fn a_tree_that_changes() {
    let mut model = Model::new();
    model.file(ROOT, "one", 1);
    model.file(ROOT, "two", 1);
    let options = options(&model);
    assert_eq!(write(&Fickle(model, 0.into()), &options), Err(WriteError::Changed));
}
