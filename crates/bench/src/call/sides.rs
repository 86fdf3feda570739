//! The two sides of a case: a runtime for the servers and one for the clients, in one process, each
//! with half of the processors. It is the same for every peer.

use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZero;
use std::sync::Arc;
use std::thread;

use alknet_core::{Identities, IdentityEntries, PeerEntry, PeerKey, SystemClock};
use alknet_endpoint::Target;
use alknet_tls::{
    ClientTls, ClientTlsOptions, NodeKey, RemoteHost, ServerTls, ServerTlsOptions, TlsConfigSlot,
    TlsRemote,
};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ServerConfig};
use tokio::runtime::{Builder, Runtime};

use super::measure::failed;
use alknet_tasks::failure::Result;

/// The loopback address everything serves on.
pub(crate) const HOST: Ipv4Addr = Ipv4Addr::LOCALHOST;

/// Where it is, as TLS sees it.
const PLACE: RemoteHost<'static> = RemoteHost::Ip(std::net::IpAddr::V4(HOST));

/// A runtime for each side.
#[derive(Debug)]
pub(crate) struct SideRuntimes {
    pub(crate) server: Runtime,
    pub(crate) client: Runtime,
}

impl SideRuntimes {
    pub(crate) fn new() -> Result<Self> {
        let cores = thread::available_parallelism().map_or(1, NonZero::get);
        let runtime = |name| {
            Builder::new_multi_thread()
                .worker_threads((cores / 2).max(1))
                .thread_name(name)
                .enable_all()
                .build()
                .map_err(failed("starting a runtime"))
        };
        Ok(Self {
            server: runtime("bench-server")?,
            client: runtime("bench-client")?,
        })
    }
}

/// The server's key, and one for each client: they prove who they are to each other, in the same
/// way whatever they speak.
pub(crate) struct BenchKeys {
    pub(crate) server: NodeKey,
    pub(crate) clients: Vec<NodeKey>,
}

impl BenchKeys {
    pub(crate) fn new(clients: usize) -> Result<Self> {
        let key = || NodeKey::generate().map_err(failed("making a key"));
        Ok(Self {
            server: key()?,
            clients: (0..clients).map(|_| key()).collect::<Result<_>>()?,
        })
    }

    /// Knows every client.
    pub(crate) fn identities(&self) -> Result<Arc<Identities>> {
        let known = |(n, key): (usize, &NodeKey)| {
            let name = format!("client-{n}").parse();
            Ok(PeerEntry {
                keys: vec![key.public()],
                scopes: ["*"].into_iter().collect(),
                ..PeerEntry::new(name.map_err(failed("naming a client"))?)
            })
        };
        let entries = IdentityEntries {
            peers: self
                .clients
                .iter()
                .enumerate()
                .map(known)
                .collect::<Result<_>>()?,
            ..IdentityEntries::default()
        };
        Ok(Arc::new(Identities::new(
            entries,
            Arc::new(SystemClock { built_s: 0 }),
        )))
    }

    /// A node of ours on `port`, by its key.
    pub(crate) fn target(&self, port: u16) -> Result<Target> {
        let target: Target = SocketAddr::new(HOST.into(), port)
            .to_string()
            .parse()
            .map_err(failed("naming the node"))?;
        Ok(target.with_pins([self.server.public()]))
    }

    /// What a node of ours does in TLS, for a server that speaks `alpn` only.
    pub(crate) fn server_config(&self, alpn: &[u8]) -> Result<Arc<ServerConfig>> {
        let tls = ServerTls::new(&self.server, ServerTlsOptions::default(), &[alpn], &[alpn]);
        // Raw public keys both ways (RFC 7250), as nodes use them among themselves.
        Ok(tls
            .map_err(failed("preparing TLS"))?
            .quic(TlsConfigSlot::RawRaw))
    }

    /// What a dialler of ours does in TLS, and the name it asks for.
    pub(crate) fn client_config(
        &self,
        key: &NodeKey,
        alpn: &[u8],
    ) -> Result<(ClientConfig, ServerName<'static>)> {
        let tls = ClientTls::new(ClientTlsOptions {
            key: Some(key.clone()),
            ..ClientTlsOptions::default()
        });
        let pins: [PeerKey; 1] = [self.server.public()];
        let remote: TlsRemote = tls
            .remote(None, &pins, PLACE)
            .map_err(failed("preparing TLS"))?;
        let config = remote.attempts(PLACE, alpn).swap_remove(0);
        Ok((config, remote.server_name(PLACE)))
    }
}
