//! The iroh endpoint: the node's protocols for clients that dial its key with iroh, on UDP sockets of their own.
//!
//! Iroh brings its own QUIC library, which cannot share a socket with quinn. Admission, identities, handlers, limits
//! and the end of a connection are those of the one port. The endpoint uses the relays that the configuration names.
//! No other service finds or announces this node.

mod accept;
mod carriage;
mod dial;

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use ::iroh::dns::DnsResolver;
use ::iroh::endpoint::{
    BindOpts, Builder, InvalidSocketAddr, PortmapperConfig, QuicTransportConfig, VarInt, presets,
};
use ::iroh::{Endpoint, NetReportConfig, RelayMode, RelayUrl, SecretKey};
use alknet_core::StreamBudget;
use alknet_tls::NodeKey;

use crate::error::EndpointError;
use crate::limits::WINDOW_BYTES_FIRST;

pub(crate) use accept::IrohListener;
pub(crate) use dial::Endpoints;

/// Silence after which a connection ends. Paths end sooner, after 15 s, and the connection ends with its last path.
/// Both sides send a ping every 5 s.
const IDLE: Duration = Duration::from_secs(45);

/// Bytes that the node buffers towards a peer, known or unknown: the library cannot change the number while a
/// connection lives.
const SEND_WINDOW_BYTES: u64 = 1 << 20;

/// Addresses, port and relays of the iroh endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IrohOptions {
    /// Addresses; `::` means every address of both families.
    pub addrs: Vec<IpAddr>,
    /// The UDP port; 0 takes a free one for each address.
    pub port: u16,
    /// Relays through which clients reach the node, `https://relay.example.org`. With an empty list clients reach it
    /// at direct addresses only.
    pub relays: Vec<String>,
}

/// Binds an endpoint that serves `alpns`, most preferred first.
pub(crate) async fn bind(
    key: &NodeKey,
    options: &IrohOptions,
    alpns: Vec<Vec<u8>>,
) -> Result<Endpoint, EndpointError> {
    let mut builder = builder(key, StreamBudget::UNAUTHENTICATED, WINDOW_BYTES_FIRST)
        .alpns(alpns)
        // The library's default sockets listen on free ports that the configuration does not name.
        .clear_ip_transports();
    let addresses = addresses(options);
    for (n, address) in addresses.iter().enumerate() {
        let opts = bind_opts(address, &addresses[..n]);
        builder = builder
            .bind_addr_with_opts(*address, opts)
            .map_err(|error: InvalidSocketAddr| failed(&error))?;
    }
    if !options.relays.is_empty() {
        let relays = options.relays.iter().map(|url| url.parse::<RelayUrl>());
        let relays: Result<Vec<_>, _> = relays.collect();
        builder = builder.relay_mode(RelayMode::custom(relays.map_err(|error| failed(&error))?));
    }
    builder.bind().await.map_err(|error| failed(&error))
}

/// Binds an endpoint that only dials, from any port.
async fn bind_client(key: &NodeKey) -> io::Result<Endpoint> {
    let budget = StreamBudget::AUTHENTICATED;
    let builder = builder(key, budget, budget.connection_window_bytes);
    let bound = builder.bind().await;
    bound.map_err(|error| io::Error::other(format!("{error:#}")))
}

/// A builder without the services of other operators: no relay, no address lookup, no public resolver, no port
/// mapping.
fn builder(key: &NodeKey, budget: StreamBudget, window_bytes: u32) -> Builder {
    let mut report = NetReportConfig::minimal();
    // Where UDP does not pass, HTTPS probes are the only way to choose among the configured relays.
    report.https_probes = true;
    Endpoint::builder(presets::Empty)
        .crypto_provider(alknet_tls::provider())
        .secret_key(SecretKey::from_bytes(key.seed()))
        .transport_config(transport(budget, window_bytes))
        .portmapper_config(PortmapperConfig::Disabled)
        .net_report_config(report)
        .dns_resolver(
            DnsResolver::builder()
                .with_system_defaults()
                .disable_fallback()
                .build(),
        )
}

fn transport(budget: StreamBudget, window_bytes: u32) -> QuicTransportConfig {
    let idle = VarInt::from_u32(u32::try_from(IDLE.as_millis()).unwrap_or(u32::MAX));
    QuicTransportConfig::builder()
        .max_concurrent_bidi_streams(budget.bidi_streams.into())
        .max_concurrent_uni_streams(budget.uni_streams.into())
        .stream_receive_window(budget.stream_window_bytes.into())
        .receive_window(window_bytes.into())
        .send_window(SEND_WINDOW_BYTES)
        .max_idle_timeout(Some(idle.into()))
        // No protocol here uses datagrams. With a buffer for them a peer could fill memory that the node never reads.
        .datagram_receive_buffer_size(None)
        .build()
}

/// The addresses of all sockets: iroh needs one socket for each family.
fn addresses(options: &IrohOptions) -> Vec<SocketAddr> {
    let mut addresses = Vec::new();
    let mut add = |ip| {
        let address = SocketAddr::new(ip, options.port);
        // `0.0.0.0` may be listed beside `::`, and each address has one socket.
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    };
    for ip in &options.addrs {
        add(*ip);
        if ip.is_ipv6() && ip.is_unspecified() {
            add(Ipv4Addr::UNSPECIFIED.into());
        }
    }
    addresses
}

/// The first socket of a family sends what belongs to no other one. `::` asks for every address, so a kernel without
/// IPv6 is no error there.
fn bind_opts(address: &SocketAddr, before: &[SocketAddr]) -> BindOpts {
    let first = !before.iter().any(|b| b.is_ipv4() == address.is_ipv4());
    let prefix_len = match address {
        _ if first => 0,
        SocketAddr::V4(_) => 32,
        SocketAddr::V6(_) => 128,
    };
    let every = address.is_ipv6() && address.ip().is_unspecified();
    BindOpts::default()
        .set_prefix_len(prefix_len)
        .set_is_default_route(first)
        .set_is_required(!every)
}

fn failed(error: &impl fmt::Display) -> EndpointError {
    EndpointError::Iroh(format!("{error:#}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_address_is_a_socket_for_each_family() {
        let sockets = |addrs: &[&str]| {
            let addrs = addrs.iter().map(|ip| ip.parse().expect("an address"));
            let options = IrohOptions {
                addrs: addrs.collect(),
                port: 7,
                relays: Vec::new(),
            };
            let sockets = addresses(&options);
            sockets.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(sockets(&["::"]), ["[::]:7", "0.0.0.0:7"]);
        assert_eq!(sockets(&["::", "0.0.0.0"]), ["[::]:7", "0.0.0.0:7"]);
        assert_eq!(sockets(&["127.0.0.1", "::1"]), ["127.0.0.1:7", "[::1]:7"]);
    }

    #[test]
    fn one_socket_of_a_family_is_the_way_out() {
        let addresses: Vec<SocketAddr> = ["127.0.0.1:7", "[::]:7", "127.0.0.2:7"]
            .iter()
            .map(|text| text.parse().expect("an address"))
            .collect();
        let opts = |n: usize| bind_opts(&addresses[n], &addresses[..n]);
        assert!(opts(0).is_default_route() && opts(0).is_required());
        assert!(opts(1).is_default_route() && !opts(1).is_required());
        assert!(!opts(2).is_default_route());
        assert_eq!(opts(2).prefix_len(), 32);
    }
}
