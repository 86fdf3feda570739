//! The same over the one port, with keys and QUIC.

use std::collections::HashMap;
use std::fs;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Instant;

use alknet_core::{
    AuthToken, Carriage, CloseReason, HandlerRegistry, Identity, IdentityProvider, PeerKey,
};
use alknet_endpoint::{EndpointDialError, EndpointDialer, EndpointServer, ServerOptions, Target};
use alknet_tensor::{ContainerWriter, Dtype};
use alknet_tensor_serve::{ALPN, TensorClient, TensorHandler};
use alknet_tls::NodeKey;
use tokio::sync::watch;

use crate::scene::{StoreScene, at, file, hung, identity};

/// Bytes of the file that is timed.
const TIMED_BYTES: u64 = 64 << 20;

/// The known peers, by key.
struct KnownPeers(HashMap<PeerKey, Arc<Identity>>, watch::Sender<u64>);

impl IdentityProvider for KnownPeers {
    fn by_key(&self, key: &PeerKey) -> Option<Arc<Identity>> {
        self.0.get(key).cloned()
    }

    fn by_token(&self, _: &AuthToken) -> Option<Arc<Identity>> {
        None
    }

    fn watch(&self) -> watch::Receiver<u64> {
        self.1.subscribe()
    }
}

/// A node that serves a store, and a key that it knows.
struct TensorQuicNode {
    _server: EndpointServer,
    target: Target,
    ada: NodeKey,
}

impl TensorQuicNode {
    fn start(scene: &StoreScene) -> Self {
        let [key, ada] = [(); 2].map(|()| NodeKey::generate().expect("a key"));
        let known = [(
            ada.public(),
            identity("ada", &["tensor:read:models", "tensor:write:in"]),
        )];
        let peers = KnownPeers(known.into(), watch::Sender::new(0));
        let mut handlers = HandlerRegistry::new();
        let handler = TensorHandler::new(Arc::clone(&scene.store));
        handlers.register(Arc::new(handler)).expect("the only one");
        let options = ServerOptions {
            port: 0,
            ..ServerOptions::default()
        };
        let server =
            EndpointServer::bind(options, &key, handlers, Arc::new(peers)).expect("a free port");
        let address = format!("{}:{}", Ipv4Addr::LOCALHOST, server.port());
        let target: Target = address.parse().expect("a target");
        Self {
            target: target.with_pins([key.public()]),
            _server: server,
            ada,
        }
    }

    async fn client(&self) -> TensorClient {
        let dialer = EndpointDialer::new(Some(self.ada.clone()));
        let connection = dialer.dial_over(Carriage::Quic, &self.target, ALPN).await;
        TensorClient::new(connection.expect("it is served"))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn files_travel_both_ways_over_quic() {
    let (scene, id) = StoreScene::holding("models/a");
    let node = TensorQuicNode::start(&scene);
    let client = node.client().await;
    let target = scene.path("a.mt");
    let pulled = client
        .pull(&at("models/a"), &target, &|_, _| {})
        .await
        .expect("served");
    assert_eq!(pulled.id, id);
    assert!(fs::read(&target).expect("there") == file());
    let keep = |name: &str| name == "names";
    client
        .pull_some(&at("models/a"), &target, &keep, &|_, _| {})
        .await
        .expect("served");
    let put = client
        .put(file().as_slice(), Some("in/a"), &|_, _| {})
        .await;
    assert_eq!(put.expect("stored"), id);
    let put = client
        .put(file().as_slice(), Some("models/a"), &|_, _| {})
        .await;
    assert_eq!(put.expect_err("it may not").code(), "E_NOTFOUND");
    // Refused before the content has gone: the answer comes all the same.
    let mut changed = file();
    changed[9] ^= 1;
    let put = client
        .put(changed.as_slice(), Some("in/b"), &|_, _| {})
        .await;
    assert!(put.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_peers_and_tcp_reach_nothing() {
    let (scene, _) = StoreScene::holding("models/a");
    let node = TensorQuicNode::start(&scene);
    let unknown_peer = EndpointDialer::new(Some(NodeKey::generate().expect("a key")));
    let connection = unknown_peer
        .dial_over(Carriage::Quic, &node.target, ALPN)
        .await;
    // Who the peer is may be known only after the handshake has ended for this side.
    if let Ok(connection) = connection {
        let closed = tokio::time::timeout(hung(), connection.closed()).await;
        assert!(
            matches!(closed, Ok(CloseReason::Peer(Some(1), _))),
            "{closed:?}"
        );
    }
    let known = EndpointDialer::new(Some(node.ada.clone()));
    let over_tcp = known.dial_over(Carriage::Tcp, &node.target, ALPN).await;
    assert!(
        matches!(over_tcp, Err(EndpointDialError::NoProtocol { .. })),
        "{over_tcp:?}"
    );
}

/// Sixteen tensors at once, each of them whole, and how long a file takes.
#[tokio::test(flavor = "multi_thread")]
async fn many_streams_share_a_connection() {
    let scene = StoreScene::new();
    let content: Vec<u8> = (0..TIMED_BYTES / 16)
        .map(|at| (at * 31 % 251) as u8)
        .collect();
    let mut writer = ContainerWriter::new(std::io::Cursor::new(Vec::new()));
    for name in 0..16 {
        let content = content.as_slice().into();
        let added = writer.flat(format!("{name}"), Dtype::U8, &[TIMED_BYTES / 16], content);
        added.expect("it fits");
    }
    let large = writer.finish().expect("memory").1.into_inner();
    scene.add("models/large", &large);
    let node = TensorQuicNode::start(&scene);
    let client = node.client().await;
    let src = at("models/large");
    let names: Vec<String> = (0..16).map(|name| name.to_string()).collect();
    let fetches = names.iter().map(|name| {
        let want = serde_json::json!({ "want": "tensor", "name": name });
        client.raw(&src, want, TIMED_BYTES)
    });
    for fetched in futures_util::future::join_all(fetches).await {
        assert!(fetched.expect("served") == content);
    }
    let target = scene.path("large.mt");
    for round in 0..2 {
        let begun = Instant::now();
        let pulled = client
            .pull(&src, &target, &|_, _| {})
            .await
            .expect("served");
        let seconds = begun.elapsed().as_secs_f64();
        let rate = pulled.fetched as f64 / 1e6 / seconds;
        eprintln!("figure tensor pull over QUIC, round {round}: {rate:.0} MB/s");
    }
}
