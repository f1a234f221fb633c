//! Names of users and groups.
//!
//! A TOC names the owner of an entry only if the name differs from the last one that it gave for the same
//! number; readers carry names forward. Nothing on a node depends on them.

use std::collections::BTreeMap;

use super::EntryProblem;

/// Names that were seen, and the last of each number. A name is known by its number in the order of
/// appearance plus 1; 0 is no name.
#[derive(Default)]
pub(super) struct Owners {
    names: BTreeMap<Box<str>, u16>,
    users: BTreeMap<u32, u16>,
    groups: BTreeMap<u32, u16>,
}

impl Owners {
    /// The name of user `id` in an entry that says `name`, or nothing.
    pub(super) fn user(&mut self, id: u32, name: &str) -> Result<u16, EntryProblem> {
        let said = self.number(name)?;
        Ok(carry(&mut self.users, id, said))
    }

    /// The same of a group.
    pub(super) fn group(&mut self, id: u32, name: &str) -> Result<u16, EntryProblem> {
        let said = self.number(name)?;
        Ok(carry(&mut self.groups, id, said))
    }

    /// All names, in the order of their numbers.
    pub(super) fn into_names(self) -> Vec<Box<str>> {
        let mut names: Vec<(u16, Box<str>)> =
            self.names.into_iter().map(|(name, number)| (number, name)).collect();
        names.sort_unstable_by_key(|(number, _)| *number);
        names.into_iter().map(|(_, name)| name).collect()
    }

    fn number(&mut self, name: &str) -> Result<u16, EntryProblem> {
        if name.is_empty() {
            return Ok(0);
        }
        if let Some(number) = self.names.get(name) {
            return Ok(*number);
        }
        let number =
            u16::try_from(self.names.len() + 1).map_err(|_| EntryProblem::Range("number of owner names"))?;
        self.names.insert(name.into(), number);
        Ok(number)
    }
}

fn carry(last: &mut BTreeMap<u32, u16>, id: u32, said: u16) -> u16 {
    if said == 0 {
        return last.get(&id).copied().unwrap_or(0);
    }
    last.insert(id, said);
    said
}
