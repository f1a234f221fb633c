use super::*;

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse(text, Path::new("config.toml"))
}

#[test]
fn the_mirrors_of_the_walkthrough_are_read() {
    let config = parse(
        r#"
[[resolver.host."docker.io".mirrors]]
  host = "127.0.0.1:65001"
  insecure = true
  [resolver.host."docker.io".mirrors.header]
    X-Dragonfly-Registry = ["https://index.docker.io"]
    X-One = "value"
[[resolver.host."docker.io".mirrors]]
  host = "mirror.example"
  request_timeout_sec = 7
"#,
    )
    .unwrap();
    let mirrors = config.hosts.mirrors("docker.io");
    assert_eq!(mirrors.len(), 2);
    assert!(mirrors[0].insecure && mirrors[0].host == "127.0.0.1:65001");
    assert_eq!(mirrors[0].headers["x-dragonfly-registry"], "https://index.docker.io");
    assert_eq!(mirrors[0].headers["x-one"], "value");
    assert_eq!(mirrors[1].request_timeout, Some(Duration::from_secs(7)));
    assert!(config.warnings.is_empty());
}

#[test]
fn an_empty_file_is_the_defaults() {
    let config = parse("").unwrap();
    assert!(config.prefetch && config.background_fetch);
    assert_eq!((config.prefetch_size, config.driver), (0, Driver::Auto));
    assert_eq!(config.prepare_wait, Duration::from_secs(10));
}

#[test]
fn what_is_followed_is_followed() {
    let config = parse(
        "noprefetch = true\nprefetch_size = 7\nno_background_fetch = true\ndriver = \"fuse\"\n\
         containerd_address = \"/c.sock\"\n[resolver]\nrequest_timeout_sec = 3\n",
    )
    .unwrap();
    assert!(!config.prefetch && !config.background_fetch);
    assert_eq!((config.prefetch_size, config.driver), (7, Driver::Fuse));
    assert_eq!(config.containerd_address, Path::new("/c.sock"));
    assert_eq!(config.prepare_wait, Duration::from_secs(3));
    assert_eq!(parse("[resolver]\nrequest_timeout_sec = -1").unwrap().prepare_wait, MAX_PREPARE_WAIT);
}

#[test]
fn every_key_of_upstream_is_known() {
    let text = r#"
http_cache_type = "memory"
filesystem_cache_type = ""
resolve_result_entry_ttl_sec = 120
prefetch_size = 0
prefetch_timeout_sec = 10
prefetch_async_size = 0
noprefetch = false
no_background_fetch = false
debug = false
allow_no_verification = false
disable_verification = false
max_concurrency = 2
no_prometheus = false
log_file_access = false
metrics_address = "127.0.0.1:8234"
debug_address = "/run/debug.sock"
ipfs = false
metadata_store = "db"
root_path = "/var/lib"
cri_keychain_image_service_path = "/run/c.sock"
cri_listen_path = "/run/l.sock"
cri_containerd_address = "/run/c.sock"
cri_containerd_namespace = "k8s.io"
[blob]
valid_interval = 60
check_always = true
chunk_size = 50000
fetching_timeout_sec = 300
force_single_range_mode = false
prefetch_chunk_size = 0
max_retries = 5
min_wait_msec = 30
max_wait_msec = 300000
[directory_cache]
max_lru_cache_entry = 10
max_cache_fds = 10
sync_add = false
direct = true
fadv_dontneed = false
[fuse]
attr_timeout = 1
entry_timeout = 1
passthrough = false
merge_buffer_size = 419430400
merge_worker_count = 10
[kubeconfig_keychain]
enable_keychain = false
kubeconfig_path = ""
[cri_keychain]
enable_keychain = false
image_service_path = "/run/c.sock"
listen_path = "/run/l.sock"
[resolver]
request_timeout_sec = 30
[snapshotter]
allow_invalid_mounts_on_restart = true
[fuse_manager]
enable = true
address = "/run/f.sock"
path = "/bin/f"
metrics_address = ""
[registry]
config_path = "/etc/containerd/certs.d"
[registry.mirrors."docker.io"]
endpoint = ["https://mirror.example"]
"#;
    let config = parse(text).unwrap();
    let followed = [
        "prefetch_size",
        "noprefetch",
        "no_background_fetch",
        "request_timeout_sec",
        "resolve_result_entry_ttl_sec",
        "fetching_timeout_sec",
    ];
    let checked = ["allow_no_verification", "disable_verification"];
    // One warning for each key that does nothing; everything below `registry` is one.
    let keys = text.lines().filter(|line| line.contains(" = ")).count();
    assert_eq!(config.warnings.len(), keys - followed.len() - checked.len(), "{:#?}", config.warnings);
    assert!(config.warnings.iter().all(|warning| !warning.reason.is_empty()));
    for warning in &config.warnings {
        let key = warning.key.rsplit('.').next().unwrap();
        let line = text.lines().nth(warning.line - 1).unwrap();
        assert!(line.contains(key), "{warning:?} is not in {line:?}");
    }
}

#[test]
fn unknown_keys_are_told_with_line_and_neighbour() {
    for (text, line, key, nearest) in [
        ("\nprefetch_siez = 1", 2, "prefetch_siez", Some("prefetch_size")),
        ("[blob]\ncheck_alway = true", 2, "blob.check_alway", Some("blob.check_always")),
        ("[resolvr]\nrequest_timeout_sec = 1", 1, "resolvr", None),
        ("[[resolver.host.\"a\".mirrors]]\nhots = \"x\"", 2, "resolver.host.a.mirrors.hots", None),
        ("xyz = 1", 1, "xyz", None),
        ("blob = 1", 1, "blob", None),
    ] {
        let Err(ConfigError::Unknown { line: at, key: told, nearest: near, .. }) = parse(text) else {
            panic!("{text} was taken");
        };
        assert_eq!((at, told.as_str()), (line, key));
        if nearest.is_some() {
            assert_eq!(near, nearest);
        }
    }
}

#[test]
fn the_disk_has_a_table_of_its_own() {
    let config = parse("[pantala.disk]\nbudget = \"2GiB\"\nkeep_free_percent = 5").unwrap();
    assert_eq!((config.disk_budget, config.keep_free), (Some(2 << 30), Some(5)));
    let config = parse("[pantala.disk]\nbudget = 4096").unwrap();
    assert_eq!((config.disk_budget, config.keep_free), (Some(4096), None));
    for (text, key) in [
        ("budget = \"2 GiBs\"", "pantala.disk.budget"),
        ("budget = 0", "pantala.disk.budget"),
        ("keep_free_percent = 100", "pantala.disk.keep_free_percent"),
    ] {
        let error = parse(&format!("[pantala.disk]\n{text}")).unwrap_err().to_string();
        assert!(error.contains(key), "{error}");
    }
}

#[test]
fn nothing_unverified_is_possible() {
    for key in ["allow_no_verification", "disable_verification"] {
        let error = parse(&format!("{key} = true")).unwrap_err();
        assert!(matches!(error, ConfigError::Unverified { line: 1, .. }), "{error}");
        parse(&format!("{key} = false")).unwrap();
    }
}

#[test]
fn wrong_values_tell_where() {
    for (text, words) in [
        ("prefetch_size = \"big\"", "line 1"),
        ("noprefetch", "line 1"),
        ("driver = \"erofs\"", "fuse"),
        ("[[resolver.host.\"a\".mirrors]]\ninsecure = true", "host"),
        ("[[resolver.host.\"a\".mirrors]]\nhost=\"m\"\nheader = { \"a b\" = \"x\" }", "header"),
    ] {
        let error = parse(text).unwrap_err().to_string();
        assert!(error.contains("config.toml") && error.contains(words), "{error}");
    }
    assert!(Config::load(Path::new("/does/not/exist.toml")).unwrap_err().to_string().contains("exist.toml"));
}

#[test]
fn deadlines_and_times_of_upstream_are_followed() {
    let config = parse("resolve_result_entry_ttl_sec = 5\n[blob]\nfetching_timeout_sec = 7").unwrap();
    assert_eq!((config.resolved_for.as_secs(), config.read_deadline.as_secs()), (5, 7));
    let config = parse("[blob]\nfetching_timeout_sec = 0").unwrap();
    assert_eq!((config.resolved_for.as_secs(), config.read_deadline.as_secs()), (120, 60));
}
