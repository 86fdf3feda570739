//! Clients by other authors call a node on this host and the appliance: GnuTLS, OpenSSL, and the clients of the
//! documentation, which use Python's `ssl` and aioquic.

mod gnutls;
mod openssl;
mod python;
mod service;
mod typed;

use std::time::Duration;

use alknet_tests::{BootVariant, CliRunner, PemKeyFiles, TestBench};

/// Longest run of a client by another author. Emulated guests are slow.
const PATIENCE: Duration = Duration::from_secs(240);

/// The host and the port in a pinned target.
fn address(target: &str) -> (&str, &str) {
    let (_, address) = target.split_once('@').expect("a pinned target");
    address.rsplit_once(':').expect("an address with a port")
}

/// Programs that know only TLS or QUIC call a node of this administrator.
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
