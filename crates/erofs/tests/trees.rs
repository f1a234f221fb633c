//! Random trees, written and read back; random damage, refused.

// Helpers of tests: a tree that cannot be built must stop them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

mod common;

use std::panic::AssertUnwindSafe;

use common::model::{Model, ROOT};
use common::{image, options, random, reseal};
use erofs::{check, write};
use proptest::prelude::*;
use proptest::sample::Index;

proptest! {
    /// What the image says is what the tree said.
    #[test]
    fn a_tree_is_read_back_as_it_was(model in random::trees(60)) {
        let image = image(&model);
        let checked = check(&image, model.data_len).unwrap();
        let read = Model::of_image(&checked, model.data_len);
        prop_assert_eq!(&read, &model.canonical());
        prop_assert_eq!(checked.inodes(), read.nodes.len() as u64);
        prop_assert_eq!(checked.uuid(), options(&model).uuid);

        // The order in which the tree tells its names, and its numbers, do not matter.
        prop_assert!(write(&read, &options(&model)).unwrap() == image);
    }

    /// A byte changed anywhere is refused, or changes what the image says in a field that may say anything.
    #[test]
    fn damage_is_refused_or_seen(
        model in random::trees(30), at in any::<Index>(), bits in 1..=255u8, seal in any::<bool>(),
    ) {
        let mut image = image(&model);
        let at = at.index(image.len());
        image[at] ^= bits;
        if seal {
            reseal(&mut image);
        }
        if let Ok(checked) = check(&image, model.data_len) {
            let read = Model::of_image(&checked, model.data_len);
            let is_same = read == model.canonical() && checked.uuid() == options(&model).uuid;
            prop_assert!(!is_same || (1028..1032).contains(&at) && seal, "byte {at} may be anything");
            // And it is an image that the writer makes.
            let options = erofs::Options { uuid: checked.uuid(), ..options(&model) };
            prop_assert!(write(&read, &options).is_ok());
        }
    }

    /// However much is wrong, the answer is an error.
    #[test]
    fn nothing_makes_the_verifier_panic(
        model in random::trees(30),
        damage in proptest::collection::vec((any::<Index>(), any::<[u8; 8]>(), 1..=8usize), 1..20),
        cut in any::<Index>(),
        whole in any::<bool>(),
    ) {
        let mut image = image(&model);
        for (at, bytes, len) in damage {
            let at = at.index(image.len());
            let len = len.min(image.len() - at);
            image[at..at + len].copy_from_slice(&bytes[..len]);
        }
        if !whole {
            image.truncate(cut.index(image.len() + 1));
        }
        if image.len() >= 4096 {
            reseal(&mut image);
        }
        let result = std::panic::catch_unwind(AssertUnwindSafe(|| {
            if let Ok(checked) = check(&image, model.data_len) {
                Model::of_image(&checked, model.data_len);
            }
        }));
        prop_assert!(result.is_ok());
    }
}

/// The image is the index of a mounted layer; it may take 150 bytes a file.
#[test]
fn an_image_is_small() {
    let mut model = Model::new();
    for directory in 0..500 {
        let directory = model.directory(ROOT, format!("directory {directory}"));
        for file in 0..20 {
            model.file(directory, format!("a file, number {file}"), 12_000);
        }
    }
    let per_file = image(&model).len() / 10_000;
    assert!(per_file <= 150, "{per_file} bytes a file");
}
