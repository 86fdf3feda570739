//! The labels of a node's metrics.

/// Each label with all values that the program itself sets. Nothing that a peer sent, and nothing
/// about the peer's identity.
const LABELS: &[(&str, &[&str])] = &[
    (
        "alpn",
        &[
            "/iroh-bytes/4",
            "alknet/call",
            "alknet/fs-sync",
            "alknet/tensor",
            "h2",
            "h3",
            "http/1.1",
        ],
    ),
    ("carriage", &["iroh", "quic", "tcp"]),
    ("dir", &["rx", "tx"]),
    // The kernel's names of the machine's disks.
    ("disk", &["nvme0n1", "sda", "vda", "vdb"]),
    (
        "limit",
        &[
            "connections",
            "connections_per_address",
            "connections_per_peer",
            "failed_logins",
            "handshake_rate",
            "handshakes",
            "handshakes_unproven",
            "memory",
            "operation",
            "request_bytes",
            "requests",
            "retries",
            "subscriptions",
            "unread_bytes",
        ],
    ),
    ("method", &["key", "token"]),
    // What became of bundles that were sent to the machine.
    ("outcome", &["applied", "given_up", "refused", "staged"]),
    // How sessions of scripts end, and how workers end.
    (
        "reason",
        &[
            "abort",
            "closed-channel",
            "cpu",
            "crash",
            "done",
            "drain",
            "exit",
            "flood",
            "fuel",
            "gpu",
            "idle",
            "killed",
            "memory",
            "policy",
            "protocol",
            "quota",
            "shutdown",
            "silent",
            "stack",
            "start",
            "timeout",
            "undelivered",
            "violation",
            "wall",
            "worker-lost",
        ],
    ),
    (
        "result",
        &[
            "evicted", "failed", "ignored", "ok", "refused", "retried", "timeout", "unknown",
        ],
    ),
    ("role", &["git", "gpu", "js", "js+gpu"]),
    // Of connections, and of the boot slot that is not the good one.
    (
        "state",
        &[
            "absent",
            "draining",
            "failed",
            "good",
            "idle",
            "known",
            "pending",
            "staged",
            "trial",
            "unknown",
            "unreadable",
        ],
    ),
    ("version", &[env!("CARGO_PKG_VERSION")]),
];

/// Compares the labels of one series with the list and with `own`, the names in the node's
/// configuration. Bounds of buckets and TLS alerts, which are one byte, are numbers.
///
/// # Panics
/// A label or a value is in neither.
#[track_caller]
pub fn assert_known_labels(series: &str, own: &[(&str, &str)]) {
    let labels = series.split_once('{').map_or("", |(_, labels)| labels);
    let pairs = labels.trim_end_matches('}').split(',');
    for pair in pairs.filter(|pair| !pair.is_empty()) {
        let (label, value) = pair.split_once('=').expect("a name and a value");
        let value = value.strip_prefix('"').and_then(|it| it.strip_suffix('"'));
        let value = value.unwrap_or_else(|| panic!("{series}: no quotes about {label}"));
        let alert = value.strip_prefix("alert_");
        let known = match label {
            "le" => value == "+Inf" || value.parse::<f64>().is_ok(),
            "result" if alert.is_some() => alert.is_some_and(|it| it.parse::<u8>().is_ok()),
            _ => {
                own.contains(&(label, value))
                    || LABELS
                        .iter()
                        .any(|(name, values)| *name == label && values.contains(&value))
            }
        };
        assert!(known, "{label}={value:?} in {series}");
    }
}
