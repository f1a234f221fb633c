//! Programs of this machine with the libraries that they need: the smallest image that runs something real.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use super::Entry;
use crate::cage::find_program;
use crate::process::run;

/// Entries for the named programs (found in `PATH`, put into `/bin`), their libraries, and the folders for both.
pub fn programs(names: &[&str]) -> Result<Vec<Entry>> {
    let mut files = BTreeSet::new();
    let mut entries = vec![Entry::dir("bin/")];
    let mut folders = BTreeSet::from(["bin".to_owned()]);
    for name in names {
        let file = find_program(name).with_context(|| format!("no program {name}"))?;
        entries.push(Entry::file(&format!("bin/{name}"), fs::read(&file)?).mode(0o755));
        files.extend(libraries(&file)?);
    }
    for file in files {
        let path = file.trim_start_matches('/');
        for (at, _) in path.match_indices('/') {
            if folders.insert(path[..at].to_owned()) {
                entries.push(Entry::dir(&format!("{}/", &path[..at])));
            }
        }
        entries.push(Entry::file(path, fs::read(&file)?).mode(0o755));
    }
    Ok(entries)
}

/// What the dynamic linker would load, itself included: every absolute path that `ldd` prints.
fn libraries(program: &Path) -> Result<Vec<String>> {
    let text = run(Command::new("ldd").arg(program))?;
    Ok(text.split_whitespace().filter(|word| word.starts_with('/')).map(str::to_owned).collect())
}
