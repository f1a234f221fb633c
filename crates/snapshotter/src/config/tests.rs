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
    assert_eq!(config.prepare_wait, MAX_PREPARE_WAIT);
}

#[test]
fn what_is_followed_is_followed() {
    let config = parse(
        "noprefetch = true\nprefetch_size = 7\nno_background_fetch = true\ndriver = \"fuse\"\n\
         containerd_address = \"/c.sock\"\n[resolver]\nrequest_timeout_sec = 1\n",
    )
    .unwrap();
    assert!(!config.prefetch && !config.background_fetch);
    assert_eq!((config.prefetch_size, config.driver), (7, Driver::Fuse));
    assert_eq!(config.containerd_address, Path::new("/c.sock"));
    assert_eq!(config.prepare_wait, Duration::from_secs(1));
    assert_eq!(parse("[resolver]\nrequest_timeout_sec = -1").unwrap().prepare_wait, MAX_PREPARE_WAIT);
}

/// Every key of upstream; `DIR` is a directory that is there.
const EVERY_KEY: &str = r#"
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
config_path = "DIR"
[registry.mirrors."docker.io"]
endpoint = ["https://mirror.example"]
[registry.configs."docker.io".auth]
username = "u"
password = "p"
[registry.configs."docker.io".tls]
insecure_skip_verify = true
"#;

#[test]
fn every_key_of_upstream_is_known() {
    let dir = tempfile::tempdir().unwrap();
    let text = EVERY_KEY.replace("DIR", dir.path().to_str().unwrap());
    let text = text.as_str();
    let config = parse(text).unwrap();
    let pointless = [
        "http_cache_type",
        "filesystem_cache_type",
        "prefetch_timeout_sec",
        "prefetch_async_size",
        "debug",
        "ipfs",
        "metadata_store",
        "root_path",
        "blob.chunk_size",
        "blob.force_single_range_mode",
        "blob.prefetch_chunk_size",
        "directory_cache.max_lru_cache_entry",
        "directory_cache.max_cache_fds",
        "directory_cache.sync_add",
        "directory_cache.direct",
        "directory_cache.fadv_dontneed",
        "fuse.attr_timeout",
        "fuse.entry_timeout",
        "fuse.passthrough",
        "fuse.merge_buffer_size",
        "fuse.merge_worker_count",
        "snapshotter.allow_invalid_mounts_on_restart",
        "fuse_manager.enable",
        "fuse_manager.address",
        "fuse_manager.path",
        "fuse_manager.metrics_address",
    ];
    let mut warned: Vec<_> = config.warnings.iter().map(|warning| warning.key.as_str()).collect();
    let mut expected = pointless.to_vec();
    warned.sort_unstable();
    expected.sort_unstable();
    assert_eq!(warned, expected);
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

#[test]
fn a_source_is_asked_again_after_an_interval_as_upstream_has_it() {
    let after = |text: &str| parse(text).unwrap().check_after.as_secs();
    assert_eq!((after(""), after("[blob]\nvalid_interval = 0")), (60, 60));
    assert_eq!(after("[blob]\nvalid_interval = 7"), 7);
    assert_eq!(after("[blob]\nvalid_interval = 7\ncheck_always = true"), 0);
}

#[test]
fn retries_and_time_limits_reach_the_client() {
    let config = parse(
        "max_concurrency = 3\n[blob]\nmax_retries = 1\nmin_wait_msec = 30\nmax_wait_msec = 300000\n\
         [resolver]\nrequest_timeout_sec = 4\n",
    )
    .unwrap();
    let mut client = registry::ClientConfig::default();
    config.apply(&mut client);
    assert_eq!(client.request_timeout, Some(Duration::from_secs(4)));
    assert_eq!(client.retries.most, Some(1));
    assert_eq!(client.retries.first_wait, Some(Duration::from_millis(30)));
    assert_eq!(client.retries.longest_wait, Some(Duration::from_mins(5)));
    assert_eq!(config.background_layers, Some(3));
    assert_eq!(parse("[blob]\nmax_retries = 0").unwrap().retries, registry::Retries::default());
}

#[test]
fn keychains_are_off_unless_they_are_switched_on() {
    assert!(parse("").unwrap().keychains.cri.is_none() && parse("").unwrap().keychains.kube.is_none());
    let config = parse(
        "cri_listen_path = \"/run/l.sock\"\ncri_containerd_address = \"/run/c.sock\"\n\
         cri_containerd_namespace = \"moby\"\n[cri_keychain]\nenable_keychain = true\n\
         [kubeconfig_keychain]\nenable_keychain = true\nkubeconfig_path = \"/etc/k\"\n\
         [pantala]\ncredentials_lifetime = \"12h\"\nrequire_diffid_proof = true\n",
    )
    .unwrap();
    let cri = config.keychains.cri.unwrap();
    assert_eq!((cri.image_service, cri.listen), (None, Some("/run/l.sock".into())));
    assert_eq!(config.keychains.kube.unwrap().kubeconfig, Some("/etc/k".into()));
    assert_eq!(config.keychains.lifetime, Duration::from_hours(12));
    assert_eq!(config.containerd_address, Path::new("/run/c.sock"));
    assert!(config.cri_namespace == "moby" && config.require_diffid_proof);
    let config = parse("cri_containerd_address = \"/a\"\ncontainerd_address = \"/b\"").unwrap();
    assert_eq!(config.containerd_address, Path::new("/b"));
    let error = parse("[pantala]\ncredentials_lifetime = \"soon\"").unwrap_err().to_string();
    assert!(error.contains("credentials_lifetime") && error.contains("12h"), "{error}");
}

#[test]
fn hosts_come_from_all_places_that_name_them() {
    let dir = tempfile::tempdir().unwrap();
    let folder = |name: &str, text: &str| {
        std::fs::create_dir_all(dir.path().join(name)).unwrap();
        std::fs::write(dir.path().join(name).join("hosts.toml"), text).unwrap();
    };
    folder("docker.io", "[host.\"https://of-hosts.example\"]\n");
    folder("quay.io", "[host.\"https://quay.example\"]\n");
    let config = parse(&format!(
        "[[resolver.host.\"docker.io\".mirrors]]\nhost = \"first.example\"\n[resolver]\nconfig_path = {:?}\n\
         [registry.mirrors.\"ghcr.io\"]\nendpoint = [\"https://a.example\", \"http://b.example\"]\n\
         [registry.mirrors.\"*\"]\nendpoint = [\"https://rest.example\"]\n\
         [registry.configs.\"a.example\".tls]\ninsecure_skip_verify = true\n\
         [registry.configs.\"r.example\".auth]\nauth = \"dTpw\"\n",
        dir.path()
    ))
    .unwrap();
    let hosts = |registry: &str| -> Vec<String> {
        config.hosts.mirrors(registry).iter().map(|mirror| mirror.host.clone()).collect()
    };
    assert_eq!(hosts("docker.io"), ["first.example"]);
    assert_eq!(hosts("quay.io"), ["https://quay.example"]);
    assert_eq!(hosts("ghcr.io"), ["https://a.example", "http://b.example"]);
    assert_eq!(hosts("any.example"), ["https://rest.example"]);
    let skips: Vec<_> = config.hosts.mirrors("ghcr.io").iter().map(|mirror| mirror.tls.skip_verify).collect();
    assert_eq!(skips, [true, false]);
    let fixed = &config.keychains.fixed["r.example"];
    assert_eq!(*fixed, registry::Credential::Password { username: "u".into(), password: "p".into() });

    let mut config = parse("").unwrap();
    config.add_hosts_dir(&format!("{}:", dir.path().display())).unwrap();
    assert_eq!(config.hosts.mirrors("quay.io").len(), 1);
    assert!(config.add_hosts_dir("/does/not/exist").is_err());
}

#[test]
fn a_mirror_may_have_certificates_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let made =
        rcgen::CertificateParams::new(vec!["m.example".to_owned()]).unwrap().self_signed(&key).unwrap();
    let both = format!("{}{}", made.pem(), key.serialize_pem());
    for (name, text) in [("ca.pem", made.pem()), ("both.pem", both)] {
        std::fs::write(dir.path().join(name), text).unwrap();
    }
    let mirror = |tls: &str| {
        let text = format!(
            "[[resolver.host.\"docker.io\".mirrors]]\nhost = \"m.example\"\n\
             [resolver.host.\"docker.io\".mirrors.tls]\n{}",
            tls.replace("DIR", dir.path().to_str().unwrap())
        );
        parse(&text).map(|config| config.hosts.mirrors("docker.io")[0].clone())
    };
    let both = "ca_file = \"DIR/ca.pem\"\ncert_file = \"DIR/both.pem\"\nkey_file = \"DIR/both.pem\"\n";
    let mirror_with = mirror(both).unwrap();
    assert_eq!(mirror_with.tls.roots.len(), 1);
    assert!(mirror_with.tls.identity.is_some());
    assert!(!format!("{mirror_with:?}").contains("PRIVATE"));
    let error = mirror("ca_file = \"DIR/none.pem\"\n").unwrap_err().to_string();
    assert!(error.contains("none.pem") && error.contains("docker.io"), "{error}");
    let error = mirror("cert_file = \"DIR/ca.pem\"\n").unwrap_err().to_string();
    assert!(error.contains("key"), "{error}");
}
