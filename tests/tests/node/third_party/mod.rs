//! Clients of other authors, with a node on this host and with the appliance: GnuTLS, OpenSSL, and the clients of
//! the documentation, which use Python's `ssl` and aioquic.

mod gnutls;
mod openssl;
mod python;
mod service;
mod typed;

use std::time::Duration;

use alknet_tests::{BootVariant, CliRunner, PemKeyFiles, TestBench};

/// Deadline of a client that is not ours. Guests run translated.
const PATIENCE: Duration = Duration::from_secs(240);

/// Where a pinned target is.
fn address(target: &str) -> (&str, &str) {
    let (_, address) = target.split_once('@').expect("a pinned target");
    address.rsplit_once(':').expect("an address with a port")
}

/// What programs that know TLS or QUIC and nothing else do with a node of this administrator.
fn serves_unknown_peers(admin: &CliRunner, target: &str) {
    let pem = PemKeyFiles::from_cli(admin);
    gnutls::with_raw_keys(&pem, target);
    gnutls::without_a_key(target);
    openssl::of_the_system(&pem, target);
    openssl::in_every_way(&pem, target);
}

#[test]
fn the_host_serves_unknown_peers() {
    let bench = TestBench::new();
    let node = bench.host();
    serves_unknown_peers(bench.admin(), node.target());
}

#[test]
fn the_appliance_serves_unknown_peers() {
    let bench = TestBench::new();
    let node = bench.snapshot(BootVariant::MicrovmErofs).restore();
    serves_unknown_peers(bench.admin(), &node.target());
}
