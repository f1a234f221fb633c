//! Keys that are known and do nothing here, each with the reason that an operator is told once.

use super::node::NodeFile;

/// A key, whether the file gives it, and why it does nothing.
type Pointless = (&'static str, bool, &'static str);

const RATES: &str = "is not enforced yet: this release shares links by priority and has no rate limits";
const STDERR: &str = "has no effect: logs go to standard error";

/// One warning for each key of a node's file that was given and does nothing.
pub fn node(file: &NodeFile) -> Vec<String> {
    warnings([process(file), cluster(file), transfer(file), faces(file)].concat())
}

/// The warnings of a table.
pub fn warnings(table: Vec<Pointless>) -> Vec<String> {
    table.into_iter().filter(|(_, given, _)| *given).map(|(key, _, why)| format!("{key} {why}")).collect()
}

/// The process itself.
fn process(file: &NodeFile) -> Vec<Pointless> {
    vec![
        ("aliveTime", file.alive_time.is_some(), "has no effect: a node runs until it is stopped"),
        ("gcInterval", file.gc_interval.is_some(), "has no effect: eviction follows the budget, not a clock"),
        ("jaeger", file.jaeger.is_some(), "has no effect: traces will use OTLP"),
        ("objectStorage", file.object_storage.is_some(), "has no effect: there is no object storage gateway"),
        ("keepStorage", file.keep_storage == Some(false), "has no effect: what was fetched is always kept"),
        ("cacheDir", file.cache_dir.is_some(), "has no effect: use dataDir"),
        ("logDir", file.log_dir.is_some(), STDERR),
        ("console", file.console.is_some(), STDERR),
        (
            "pprofPort",
            file.pprof_port.is_some(),
            "has no effect yet: there is no profiling port in this release",
        ),
        ("metrics", file.metrics.is_some(), "has no effect yet: there is no metrics port in this release"),
    ]
}

/// `scheduler` and `host`.
fn cluster(file: &NodeFile) -> Vec<Pointless> {
    vec![
        ("scheduler.manager", file.scheduler.manager.is_some(), "has no effect yet: use scheduler.netAddrs"),
        (
            "scheduler.disableAutoBackSource",
            file.scheduler.disable_auto_back_source == Some(true),
            "has no effect: a start never fails because the cluster is down",
        ),
        (
            "scheduler.scheduleTimeout",
            file.scheduler.schedule_timeout.is_some(),
            "has no effect: nothing waits for the scheduler",
        ),
        (
            "host.securityDomain",
            file.host.security_domain.is_some(),
            "has no effect: the join token is the domain",
        ),
        (
            "host.netTopology",
            file.host.net_topology.is_some(),
            "has no effect: use host.idc and host.location",
        ),
    ]
}

/// `upload`, `download` and `storage`.
fn transfer(file: &NodeFile) -> Vec<Pointless> {
    vec![
        ("upload.rateLimit", file.upload.rate_limit.is_some(), RATES),
        ("upload.security", file.upload.security.is_some(), "has no effect: use security"),
        ("download.totalRateLimit", file.download.total_rate_limit.is_some(), RATES),
        ("download.perPeerRateLimit", file.download.per_peer_rate_limit.is_some(), RATES),
        (
            "download.pieceDownloadTimeout",
            file.download.piece_download_timeout.is_some(),
            "has no effect: waits follow the measured rate",
        ),
        (
            "download.prefetch",
            file.download.prefetch.is_some(),
            "has no effect yet: a range fetches its pieces and no more",
        ),
        (
            "download.downloadGRPC",
            file.download.download_grpc.is_some(),
            "has no effect yet: there is no local download API",
        ),
        (
            "download.peerGRPC",
            file.download.peer_grpc.is_some(),
            "has no effect: nodes talk on the pieces port",
        ),
        (
            "download.concurrent",
            file.download.concurrent.is_some(),
            "has no effect: the policy measures instead",
        ),
        (
            "download.transportOption",
            file.download.transport_option.is_some(),
            "has no effect: connections need no tuning",
        ),
        (
            "download.calculateDigest",
            file.download.calculate_digest.is_some(),
            "has no effect: every byte is always verified",
        ),
        (
            "storage.diskGCThresholdPercent",
            file.storage.disk_gc_threshold_percent.is_some(),
            "has no effect yet: use storage.diskGCThreshold",
        ),
        (
            "storage.taskExpireTime",
            file.storage.task_expire_time.is_some(),
            "has no effect: immutable content does not expire",
        ),
        ("storage.strategy", file.storage.strategy.is_some(), "has no effect: there is one kind of store"),
        ("storage.multiplex", file.storage.multiplex.is_some(), "has no effect: content is always shared"),
    ]
}

/// `health` and `proxy`.
fn faces(file: &NodeFile) -> Vec<Pointless> {
    vec![
        (
            "health.path",
            file.health.path.is_some(),
            "has no effect: /server/ping and /healthy are always there",
        ),
        ("health.security", file.health.security.is_some(), "has no effect: health speaks HTTP"),
        (
            "proxy.defaultTag",
            file.proxy.default_tag.is_some(),
            "has no effect yet: blobs are named by their digest",
        ),
        ("proxy.security", file.proxy.security.is_some(), "has no effect: the proxy speaks HTTP"),
        (
            "proxy.hijackHTTPS",
            file.proxy.hijack_https.is_some(),
            "has no effect yet: CONNECT is tunnelled untouched",
        ),
        (
            "proxy.maxConcurrency",
            file.proxy.max_concurrency.is_some(),
            "has no effect: connections are bounded already",
        ),
        (
            "proxy.registryMirror.certs",
            file.proxy.registry_mirror.certs.is_some(),
            "has no effect yet: the system's certificates are used",
        ),
        (
            "proxy.registryMirror.useProxies",
            file.proxy.registry_mirror.use_proxies.is_some(),
            "has no effect: rules always apply",
        ),
    ]
}
