//! The house stands only as long as nobody reaches upwards: a crate depends on lower floors alone, and
//! every crate lives behind the same lint wall.

// Helpers of tests: a manifest that cannot be read must stop them.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The floors of `ARCHITECTURE.md`, lowest first.
const FLOORS: &[&[&str]] = &[
    &["content", "proto", "telemetry"],
    &["identity", "estargz", "erofs"],
    &["store", "registry", "containerd"],
    &["swarm", "scheduler", "lazyfs"],
    &["snapshotter", "proxy", "convert", "rehearsal"],
    &["pantala"],
];

/// Known to tests alone; may be a dev-dependency of anybody, and stand on anything.
const TEST_ONLY: &[&str] = &["testkit", "e2e"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn floor_of(name: &str) -> Option<usize> {
    FLOORS.iter().position(|floor| floor.contains(&name))
}

fn manifests() -> BTreeMap<String, toml::Table> {
    std::fs::read_dir(root().join("crates"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.join("Cargo.toml").exists())
        .chain([root().join("e2e")])
        .map(|path| {
            let text = std::fs::read_to_string(path.join("Cargo.toml")).unwrap();
            let table: toml::Table = text.parse().unwrap();
            (table["package"]["name"].as_str().unwrap().to_owned(), table)
        })
        .collect()
}

fn dependencies<'a>(manifest: &'a toml::Table, section: &str) -> Vec<&'a str> {
    manifest
        .get(section)
        .and_then(toml::Value::as_table)
        .map(|table| table.keys().map(String::as_str).collect())
        .unwrap_or_default()
}

/// `None` if `from` may depend on `to`, else why not.
fn objection(from: &str, to: &str, section: &str) -> Option<String> {
    if TEST_ONLY.contains(&from) {
        return None;
    }
    if TEST_ONLY.contains(&to) {
        return (section != "dev-dependencies")
            .then(|| format!("{from} needs test-only {to} outside of tests"));
    }
    let (from_floor, to_floor) = (floor_of(from)?, floor_of(to)?);
    // A test may look at a room on its own floor (the swarm's tests run a real scheduler), never above.
    let allowed = if section == "dev-dependencies" { to_floor <= from_floor } else { to_floor < from_floor };
    (!allowed).then(|| {
        format!("{from} (floor {}) knows {to} (floor {}) in [{section}]", from_floor + 1, to_floor + 1)
    })
}

#[test]
fn a_crate_knows_only_lower_floors() {
    let mut objections = Vec::new();
    for (name, manifest) in manifests() {
        for section in ["dependencies", "build-dependencies", "dev-dependencies"] {
            objections.extend(
                dependencies(&manifest, section).iter().filter_map(|to| objection(&name, to, section)),
            );
        }
    }
    assert!(objections.is_empty(), "{objections:#?}");
}

#[test]
fn the_rule_does_object() {
    assert!(objection("content", "swarm", "dependencies").is_some());
    assert!(objection("swarm", "scheduler", "dependencies").is_some());
    assert!(objection("swarm", "scheduler", "dev-dependencies").is_none());
    assert!(objection("swarm", "proxy", "dev-dependencies").is_some());
    assert!(objection("proxy", "testkit", "dependencies").is_some());
    assert!(objection("proxy", "registry", "dependencies").is_none());
}

#[test]
fn every_crate_has_a_floor_and_the_lint_wall() {
    for (name, manifest) in manifests() {
        assert!(floor_of(&name).is_some() || TEST_ONLY.contains(&name.as_str()), "{name} stands on no floor");
        let wall =
            manifest.get("lints").and_then(|lints| lints.get("workspace")).and_then(toml::Value::as_bool);
        assert_eq!(wall, Some(true), "{name} does not say lints.workspace = true");
    }
}

/// Modules in which the design allows `unsafe`; nobody else may switch the lint off.
const MAY_BE_UNSAFE: &[&str] =
    &["crates/lazyfs/src/native", "crates/lazyfs/src/keeper", "crates/store/src/io"];

#[test]
fn unsafe_code_stays_in_its_modules() {
    fn walk(dir: &Path, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|ext| ext == "rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                // Built at run time, so that this file does not find itself.
                let lint = ["unsafe", "code"].join("_");
                if text.contains(&format!("allow({lint}")) || text.contains(&format!("expect({lint}")) {
                    found.push(path);
                }
            }
        }
    }
    let mut found = Vec::new();
    walk(&root().join("crates"), &mut found);
    let root = root();
    found.retain(|path| {
        let path = path.strip_prefix(&root).unwrap();
        !MAY_BE_UNSAFE
            .iter()
            .any(|module| path.starts_with(module) || path.with_extension("") == Path::new(module))
    });
    assert!(found.is_empty(), "unsafe is allowed outside of the modules that the plan names: {found:?}");
}
