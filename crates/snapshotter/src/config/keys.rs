//! Every key that there is, and what becomes of it.

use std::path::Path;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::{ConfigError, Warning};

enum Fate {
    /// Followed.
    Read,
    /// Does nothing here.
    Pointless(&'static str),
    /// Refused if true.
    Unverified,
}
use Fate::{Pointless, Read, Unverified};

const ONE_COPY: &str =
    "there is one verified copy of every layer on disk, and the kernel's page cache before it";
const NO_WAIT: &str = "a container never waits for prefetching: a read of what is on its way joins it";
const RANGES: &str = "ranges are joined and split by what is read and by how the registry answers";
const IMMUTABLE: &str = "layers cannot change, so the kernel keeps what it knows of them";
const NO_MANAGER: &str = "mounts outlive restarts and crashes without it: the keeper is always there";
const FLAGS: &str = "this is a flag of the command line here: --root, --log-level";

/// A `*` stands for one table's own name; an entry that ends in `**` for everything below.
const KEYS: &[(&str, Fate)] = &[
    ("driver", Read),
    ("containerd_address", Read),
    ("noprefetch", Read),
    ("prefetch_size", Read),
    ("no_background_fetch", Read),
    ("resolver.request_timeout_sec", Read),
    ("resolver.config_path", Read),
    ("resolver.host.*.mirrors.host", Read),
    ("resolver.host.*.mirrors.insecure", Read),
    ("resolver.host.*.mirrors.request_timeout_sec", Read),
    ("resolver.host.*.mirrors.header.**", Read),
    ("resolver.host.*.mirrors.tls.ca_file", Read),
    ("resolver.host.*.mirrors.tls.cert_file", Read),
    ("resolver.host.*.mirrors.tls.key_file", Read),
    ("resolver.host.*.mirrors.tls.insecure_skip_verify", Read),
    ("pantala.require_diffid_proof", Read),
    ("pantala.credentials_lifetime", Read),
    ("pantala.disk.budget", Read),
    ("pantala.disk.keep_free_percent", Read),
    ("allow_no_verification", Unverified),
    ("disable_verification", Unverified),
    ("http_cache_type", Pointless(ONE_COPY)),
    ("filesystem_cache_type", Pointless(ONE_COPY)),
    ("directory_cache.max_lru_cache_entry", Pointless(ONE_COPY)),
    ("directory_cache.max_cache_fds", Pointless(ONE_COPY)),
    ("directory_cache.sync_add", Pointless(ONE_COPY)),
    ("directory_cache.direct", Pointless(ONE_COPY)),
    ("directory_cache.fadv_dontneed", Pointless(ONE_COPY)),
    ("metadata_store", Pointless("tables of contents lie on disk")),
    ("resolve_result_entry_ttl_sec", Read),
    ("prefetch_timeout_sec", Pointless(NO_WAIT)),
    ("prefetch_async_size", Pointless(NO_WAIT)),
    ("max_concurrency", Read),
    ("debug", Pointless(FLAGS)),
    ("root_path", Pointless(FLAGS)),
    ("log_file_access", Read),
    ("no_prometheus", Read),
    ("metrics_address", Read),
    ("debug_address", Read),
    ("ipfs", Pointless("layers are shared inside the cluster instead")),
    ("blob.valid_interval", Read),
    ("blob.check_always", Read),
    ("blob.chunk_size", Pointless(RANGES)),
    ("blob.fetching_timeout_sec", Read),
    ("blob.force_single_range_mode", Pointless(RANGES)),
    ("blob.prefetch_chunk_size", Pointless(RANGES)),
    ("blob.max_retries", Read),
    ("blob.min_wait_msec", Read),
    ("blob.max_wait_msec", Read),
    ("fuse.attr_timeout", Pointless(IMMUTABLE)),
    ("fuse.entry_timeout", Pointless(IMMUTABLE)),
    ("fuse.passthrough", Pointless("the driver is chosen by `driver`")),
    ("fuse.merge_buffer_size", Pointless("files need not be put together")),
    ("fuse.merge_worker_count", Pointless("files need not be put together")),
    ("kubeconfig_keychain.enable_keychain", Read),
    ("kubeconfig_keychain.kubeconfig_path", Read),
    ("cri_keychain.enable_keychain", Read),
    ("cri_keychain.image_service_path", Read),
    ("cri_keychain.listen_path", Read),
    ("cri_keychain_image_service_path", Read),
    ("cri_listen_path", Read),
    ("cri_containerd_address", Read),
    ("cri_containerd_namespace", Read),
    ("snapshotter.allow_invalid_mounts_on_restart", Pointless("one bad layer never keeps the others down")),
    ("registry.config_path", Read),
    ("registry.mirrors.*.endpoint", Read),
    ("registry.configs.*.auth.username", Read),
    ("registry.configs.*.auth.password", Read),
    ("registry.configs.*.auth.auth", Read),
    ("registry.configs.*.auth.identitytoken", Read),
    ("registry.configs.*.tls.ca_file", Read),
    ("registry.configs.*.tls.cert_file", Read),
    ("registry.configs.*.tls.key_file", Read),
    ("registry.configs.*.tls.insecure_skip_verify", Read),
    (
        "registry.headers.**",
        Pointless("headers are written for each host: in `resolver.host`, or in its hosts.toml"),
    ),
    ("fuse_manager.enable", Pointless(NO_MANAGER)),
    ("fuse_manager.address", Pointless(NO_MANAGER)),
    ("fuse_manager.path", Pointless(NO_MANAGER)),
    ("fuse_manager.metrics_address", Pointless(NO_MANAGER)),
];

/// Looks at every key of `text`, and tells those that do nothing.
pub(super) fn check(text: &str, path: &Path) -> Result<Vec<Warning>, ConfigError> {
    let table = DeTable::parse(text)
        .map_err(|error| ConfigError::Syntax { path: path.to_owned(), message: error.to_string() })?;
    let mut checker = Checker { text, path, warnings: Vec::new() };
    checker.table(table.get_ref(), &mut Vec::new())?;
    checker.warnings.sort_by_key(|warning| warning.line);
    Ok(checker.warnings)
}

struct Checker<'a> {
    text: &'a str,
    path: &'a Path,
    warnings: Vec<Warning>,
}

impl Checker<'_> {
    fn table(&mut self, table: &DeTable<'_>, above: &mut Vec<String>) -> Result<(), ConfigError> {
        for (key, value) in table {
            above.push(key.get_ref().to_string());
            match known(above) {
                Known::Key(fate) => self.key(fate, key.span().start, value, above)?,
                Known::Table => self.below(value, above, key.span().start)?,
                Known::No => return Err(self.unknown(above, key.span().start)),
            }
            above.pop();
        }
        Ok(())
    }

    fn below(
        &mut self,
        value: &Spanned<DeValue<'_>>,
        above: &mut Vec<String>,
        at: usize,
    ) -> Result<(), ConfigError> {
        match value.get_ref() {
            DeValue::Table(table) => self.table(table, above),
            DeValue::Array(array) => array.iter().try_for_each(|value| self.below(value, above, at)),
            _ => Err(self.unknown(above, at)),
        }
    }

    fn key(
        &mut self,
        fate: &Fate,
        at: usize,
        value: &Spanned<DeValue<'_>>,
        path: &[String],
    ) -> Result<(), ConfigError> {
        let (line, key) = (self.line(at), path.join("."));
        match fate {
            Pointless(reason) => self.warnings.push(Warning { line, key, reason }),
            Unverified if value.get_ref().as_bool() == Some(true) => {
                return Err(ConfigError::Unverified { path: self.path.to_owned(), line, key });
            }
            Read | Unverified => {}
        }
        Ok(())
    }

    fn unknown(&self, path: &[String], at: usize) -> ConfigError {
        let key = path.join(".");
        ConfigError::Unknown { path: self.path.to_owned(), line: self.line(at), nearest: nearest(&key), key }
    }

    fn line(&self, at: usize) -> usize {
        self.text.bytes().take(at).filter(|byte| *byte == b'\n').count() + 1
    }
}

enum Known {
    Key(&'static Fate),
    Table,
    No,
}

fn known(path: &[String]) -> Known {
    let mut is_table = false;
    for (pattern, fate) in KEYS {
        let mut parts = pattern.split('.');
        let mut open_end = false;
        let matches = path.iter().all(|have| match parts.next() {
            Some("**") => {
                open_end = true;
                true
            }
            Some(part) => part == "*" || part == have,
            None => open_end,
        });
        if !matches {
            continue;
        }
        match parts.next() {
            None => return Known::Key(fate),
            Some(_) => is_table = true,
        }
    }
    if is_table { Known::Table } else { Known::No }
}

/// The known key that differs least, if it is near at all.
fn nearest(key: &str) -> Option<&'static str> {
    let (distance, nearest) =
        KEYS.iter().map(|(known, _)| (telemetry::edit_distance(key, known), *known)).min()?;
    (distance <= 2.max(key.len() / 3)).then_some(nearest)
}
