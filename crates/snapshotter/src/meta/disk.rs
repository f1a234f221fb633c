//! The database file: rows as JSON, so that a person can read them and a later version can add to them.

use std::collections::BTreeMap;
use std::path::Path;

use redb::{Database, DatabaseError, ReadableDatabase, ReadableTable, TableDefinition};

use content::Digest;

use super::{MetaError, Record};
use crate::claims::Fact;

/// Name of the snapshot to its row.
const SNAPSHOTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("snapshots");

/// A blob's digest to what is known of it for ever.
const FACTS: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("layer facts");

/// Bytes of the database that are kept in memory. The rows themselves live in memory anyway.
const CACHE_BYTES: usize = 1 << 20;

pub(super) struct Disk(Database);

fn failed<E: Into<redb::Error>>(doing: &'static str) -> impl FnOnce(E) -> MetaError {
    move |error| MetaError::Disk { doing, error: Box::new(error.into()) }
}

impl Disk {
    /// Opens or creates the file and reads every row.
    pub(super) fn open(path: &Path) -> Result<(Self, BTreeMap<String, Record>), MetaError> {
        let opened = Database::builder().set_cache_size(CACHE_BYTES).create(path);
        let database = opened.map_err(|error| match error {
            DatabaseError::DatabaseAlreadyOpen => MetaError::InUse { path: path.display().to_string() },
            other => failed("opening it")(other),
        })?;
        let disk = Self(database);
        disk.write(&[])?; // creates the tables
        let rows = disk.rows()?;
        Ok((disk, rows))
    }

    fn rows(&self) -> Result<BTreeMap<String, Record>, MetaError> {
        let transaction = self.0.begin_read().map_err(failed("reading"))?;
        let table = transaction.open_table(SNAPSHOTS).map_err(failed("reading"))?;
        let mut rows = BTreeMap::new();
        for row in table.iter().map_err(failed("reading"))? {
            let (name, json) = row.map_err(failed("reading"))?;
            let name = name.value().to_owned();
            let record = serde_json::from_slice(json.value())
                .map_err(|error| MetaError::Row { name: name.clone(), error })?;
            rows.insert(name, record);
        }
        Ok(rows)
    }

    /// Makes all changes or none. They are on disk when this returns.
    pub(super) fn write(&self, changes: &[(String, Option<Record>)]) -> Result<(), MetaError> {
        let transaction = self.0.begin_write().map_err(failed("writing"))?;
        {
            transaction.open_table(FACTS).map_err(failed("writing"))?;
            let mut table = transaction.open_table(SNAPSHOTS).map_err(failed("writing"))?;
            for (name, record) in changes {
                match record {
                    Some(record) => {
                        let json = serde_json::to_vec(record)
                            .map_err(|error| MetaError::Row { name: name.clone(), error })?;
                        table.insert(name.as_str(), json.as_slice()).map_err(failed("writing"))?;
                    }
                    None => {
                        table.remove(name.as_str()).map_err(failed("writing"))?;
                    }
                }
            }
        }
        transaction.commit().map_err(failed("committing"))
    }

    /// What is known of a blob.
    pub(super) fn fact(&self, layer: &Digest) -> Result<Option<Fact>, MetaError> {
        let transaction = self.0.begin_read().map_err(failed("reading"))?;
        let table = transaction.open_table(FACTS).map_err(failed("reading"))?;
        let row = table.get(layer.as_bytes().as_slice()).map_err(failed("reading"))?;
        let parse = |json: &[u8]| {
            serde_json::from_slice(json).map_err(|error| MetaError::Row { name: layer.to_string(), error })
        };
        row.map(|row| parse(row.value())).transpose()
    }

    /// Keeps what is known of a blob. It is on disk when this returns.
    pub(super) fn keep_fact(&self, layer: &Digest, fact: &Fact) -> Result<(), MetaError> {
        let json =
            serde_json::to_vec(fact).map_err(|error| MetaError::Row { name: layer.to_string(), error })?;
        let transaction = self.0.begin_write().map_err(failed("writing"))?;
        {
            let mut table = transaction.open_table(FACTS).map_err(failed("writing"))?;
            table.insert(layer.as_bytes().as_slice(), json.as_slice()).map_err(failed("writing"))?;
        }
        transaction.commit().map_err(failed("committing"))
    }
}
