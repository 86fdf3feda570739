//! What is read, what is refused, and in which words.

mod document;
mod machine;
mod principals;
mod random;
mod salvage;
mod schema;
mod vault;

use super::*;

const COMPLETE: &str = r#"
version = 1

[listen]
port = 8443
addrs = ["192.0.2.10", "::1"]

[node]
name = "edge-1"
domain = "edge-1.example.org"
admin_keys = ["ed25519:1111111111111111111111111111111111111111111111111111111111111111"]
time_servers = ["time.example.org", "192.0.2.1"]
stateless = false

[[network]]
match = "eth0"
method = "static"
addresses = ["192.0.2.10/24", "2001:db8::10/64"]
gateways = ["192.0.2.1", "fe80::1"]
dns = ["192.0.2.53"]

[[network]]
match = "52:54:00:AB:CD:EF"
method = "off"

[[peers]]
peer_id = "laptop"
keys = ["SHA256:2222222222222222222222222222222222222222222222222222222222222222"]
tokens = ["a1b2c3d4:3333333333333333333333333333333333333333333333333333333333333333"]
scopes = ["fs:read:*", "metrics:read"]
resources = { disk = ["vda", "vdb"], share = ["*"] }
addresses = ["laptop.example.org", "[2001:db8::1]:4433"]
display_name = "The laptop of Ada"
enabled = false
expires = "2030-01-31T12:00:00Z"
max_connections = 1

[[api_keys]]
key_id = "monitor0"
sha256 = "4444444444444444444444444444444444444444444444444444444444444444"
scopes = ["metrics:read"]
resources = { disk = ["vda"] }
description = "scrapes the metrics"
expires = "2029-12-31T23:59:59+01:00"

[limits]
connections = 1000
connections_per_address = 32
connections_per_peer = 8
handshake_burst = 100
handshakes_per_second = 50
failures_per_minute = 5

[log]
level = "debug"
hash_addresses = true

[iroh]
enabled = true
port = 4433
relays = ["https://relay.example.org", "https://192.0.2.1:8443/"]

[promotion]
activate = "live"
reviews = 2
rollback_on_errors = true

[runtime]
min_sandbox = "process-only"

[compute]
driver = "llvmpipe"
host_kernels = false
gpu_seconds = 30

[fs]
enabled = false
boot_verify_mib = 0
staging_mib = 512
session_seconds = 600
blob_rate = 8
fetch_seconds = 10
sync_seconds = 300

[vault]
init = "provisioned"
unlock = ["tpm2", "provisioning", "kms"]
tpm_pin = true
device = 3
key_version = 4
min_version = 3
words_to = ["age1zvkyg2lqzraa2lnjvqej32nkuu0ues2s82hzrye869xeexvn73equnujwj"]

[[credentials]]
name = "openai"
kind = "api-key"
header = "x-api-key"

[credentials.record]
alg = "ALK1"
key_version = 3
salt = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
iv = "oKGioKGioKGioKGi"
data = "jyHDUTdgLJOrjfayE8bIVmZpKfE9n7Z3m6il"

[[credentials]]
name = "mail"
kind = "basic"
user = "ada"

[[credentials]]
name = "zone"
kind = "signer"
purpose = "dns-zone-1-0"

[[operations]]
name = "js/mint"
capabilities = ["openai", "zone"]

[update]
keys = [
    "ed25519:5555555555555555555555555555555555555555555555555555555555555555",
    "ed25519:6666666666666666666666666666666666666666666666666666666666666666",
]
threshold = 2
url = "https://updates.example.org/alknet"
channel = "beta"
auto = "apply"
window = "22:30-04:00"
jitter = "90m"

[vault.kms]
code = "alkjoin1_AAAA-_09"
approve = true
from = ["192.0.2.0/24", "2001:db8::/32"]
"#;

fn refused(document: &str) -> Vec<String> {
    let errors = NodeConfig::parse(document.as_bytes()).expect_err(document);
    errors.iter().map(ToString::to_string).collect()
}

/// The one diagnostic about a document, which names `words`.
fn assert_diagnostic(document: &str, words: &[&str]) {
    let errors = refused(document);
    assert_eq!(errors.len(), 1, "{document}: {errors:#?}");
    for word in words {
        assert!(errors[0].contains(word), "{word}: {}", errors[0]);
    }
}
