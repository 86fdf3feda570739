//! Both sides of `alknet/enroll`, over a connection within this process.

use std::sync::Arc;

use alknet_core::{
    AuthContext, BoxFuture, Carriage, Connection, DialError, DialErrorKind, DialRequest,
    DialedConnection, Dialer, HandlerError, Identities, IdentityEntries, IdentityProvider,
    PeerAddr, PeerKey, PeerVerification, ProtocolHandler, SystemClock, memory_pair,
};
use alknet_hub::{
    ALPN, EnrolClientError, EnrolHandler, EnrolMode, EnrolPolicy, EnrolRole, EnrolToken,
    EnrolmentService, HubInfo, Invitation, JoinRequest, MemoryTokens, TokenKind, enrol,
};
use tokio::io::AsyncWriteExt;
use tokio::task::JoinHandle;

const HUB: PeerKey = PeerKey::Ed25519([200; 32]);
const WORKER: PeerKey = PeerKey::Ed25519([1; 32]);

/// Dials the hub of this test; the key is what TLS would have proved.
#[derive(Debug)]
struct EnrolTestDialer {
    handler: Arc<EnrolHandler>,
    key: Option<PeerKey>,
    hub: PeerKey,
}

impl Dialer for EnrolTestDialer {
    fn connect(&self, request: DialRequest) -> BoxFuture<'_, Result<DialedConnection, DialError>> {
        Box::pin(async move {
            let PeerVerification::Pinned(pins) = &request.expect else {
                panic!("a hub is pinned");
            };
            if !pins.contains(&self.hub) {
                return Err(DialError::new(DialErrorKind::Impostor, "another key"));
            }
            assert_eq!(request.alpn, ALPN);
            let (near, far) = memory_pair(ALPN);
            tokio::spawn(serve(&self.handler, far, self.key));
            Ok(DialedConnection {
                connection: near,
                keys: vec![self.hub],
            })
        })
    }
}

fn serve(
    handler: &Arc<EnrolHandler>,
    connection: Connection,
    key: Option<PeerKey>,
) -> BoxFuture<'static, Result<(), HandlerError>> {
    let auth = AuthContext {
        identity: None,
        key,
        alpn: ALPN.into(),
        sni: None,
        remote_addr: None,
        carriage: Carriage::Memory,
        early_data: false,
    };
    Arc::clone(handler).handle(connection, auth)
}

struct EnrolHandlerTest {
    enrolment: Arc<EnrolmentService>,
    peers: Arc<Identities>,
    handler: Arc<EnrolHandler>,
}

fn lab(says: PeerKey) -> EnrolHandlerTest {
    let clock = Arc::new(SystemClock { built_s: 0 });
    let entries = IdentityEntries {
        admins: vec![(
            "admin".parse().expect("a peer id"),
            PeerKey::Ed25519([100; 32]),
        )],
        ..IdentityEntries::default()
    };
    let peers = Arc::new(Identities::new(entries, clock.clone()));
    let hub_info = HubInfo {
        key: says,
        names: vec!["hub".to_owned()],
    };
    let policy = EnrolPolicy {
        mode: EnrolMode::Token,
        peers_max: 10,
    };
    let enrolment = EnrolmentService::new(
        Arc::new(MemoryTokens::default()),
        peers.clone(),
        hub_info,
        policy,
    );
    let enrolment = Arc::new(enrolment);
    EnrolHandlerTest {
        handler: Arc::new(EnrolHandler::new(Arc::clone(&enrolment), clock)),
        enrolment,
        peers,
    }
}

impl EnrolHandlerTest {
    async fn token(&self) -> EnrolToken {
        let invitation = Invitation {
            role: EnrolRole::new("worker".parse().expect("a role")),
            kind: TokenKind::Once,
            ttl_s: 60,
            made_by: "admin".to_owned(),
            made_by_key: None,
        };
        let now = std::time::UNIX_EPOCH
            .elapsed()
            .expect("after 1970")
            .as_secs();
        self.enrolment
            .invite(invitation, Some(now))
            .await
            .expect("a token")
            .0
    }

    fn wire(&self, key: Option<PeerKey>) -> EnrolTestDialer {
        EnrolTestDialer {
            handler: Arc::clone(&self.handler),
            key,
            hub: HUB,
        }
    }
}

fn target() -> PeerAddr {
    let addr: PeerAddr = "hub.example.org".parse().expect("an address");
    addr.with_pins([HUB])
}

fn request(token: &EnrolToken) -> JoinRequest {
    JoinRequest {
        token: Some(token.expose().to_string()),
        name: Some("kitchen".to_owned()),
        ..JoinRequest::default()
    }
}

#[tokio::test]
async fn a_worker_becomes_a_peer_by_the_key_it_proved() {
    let lab = lab(HUB);
    let request = request(&lab.token().await);
    let wire = lab.wire(Some(WORKER));
    let (enrolled, at) = enrol(&wire, [target()], Carriage::Both, &request)
        .await
        .expect("taken");
    assert_eq!((enrolled.name.as_str(), at), ("kitchen", target()));
    let identity = lab.peers.by_key(&WORKER).expect("a peer");
    assert_eq!(identity.id, enrolled.peer_id);
    // A stolen token with another key.
    let thief = lab.wire(Some(PeerKey::Ed25519([2; 32])));
    let refused = enrol(&thief, [target()], Carriage::Both, &request).await;
    match refused {
        Err(EnrolClientError::Refused(refusal)) => assert_eq!(refusal.code, "ENROLL_INVALID"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn an_applicant_without_a_key_is_refused() {
    let lab = lab(HUB);
    let request = request(&lab.token().await);
    let refused = enrol(&lab.wire(None), [target()], Carriage::Both, &request).await;
    match refused {
        Err(EnrolClientError::Refused(refusal)) => assert_eq!(refusal.code, "UNAUTHENTICATED"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_token_is_shown_to_the_pinned_hub_only() {
    let lab = lab(HUB);
    let request = request(&lab.token().await);
    let mut wire = lab.wire(Some(WORKER));
    wire.hub = PeerKey::Ed25519([9; 32]);
    let none = enrol(&wire, [target()], Carriage::Both, &request).await;
    assert!(matches!(none, Err(EnrolClientError::Dial(_))), "{none:?}");
    let unpinned = enrol(&wire, [], Carriage::Both, &request).await;
    assert!(matches!(unpinned, Err(EnrolClientError::NoTarget)));
    assert!(lab.peers.by_key(&WORKER).is_none());
}

#[tokio::test]
async fn a_hub_that_says_another_key_is_not_believed() {
    let lab = lab(PeerKey::Ed25519([9; 32]));
    let request = request(&lab.token().await);
    let answer = enrol(
        &lab.wire(Some(WORKER)),
        [target()],
        Carriage::Both,
        &request,
    )
    .await;
    assert!(
        matches!(answer, Err(EnrolClientError::Impostor { .. })),
        "{answer:?}"
    );
}

async fn raw(
    lab: &EnrolHandlerTest,
    bytes: &[u8],
) -> (JoinHandle<Result<(), HandlerError>>, Connection) {
    let (near, far) = memory_pair(ALPN);
    let served = tokio::spawn(serve(&lab.handler, far, Some(WORKER)));
    let (mut send, _recv) = near.open_bi().await.expect("a stream");
    send.write_all(bytes).await.expect("room");
    send.shutdown().await.expect("open");
    (served, near)
}

#[tokio::test]
async fn what_is_no_request_ends_the_connection() {
    let lab = lab(HUB);
    for bytes in [
        &b"\0\0\0\0"[..],
        b"\0\0\x40\x01",
        b"\xff\xff\xff\xff",
        b"\0\0\0\x04null",
        b"\0\0\0\x02[]",
        b"\0\0\0\x0b{\"token\":1}",
        b"GET / HTTP/1.1\r\n\r\n",
    ] {
        let (served, _near) = raw(&lab, bytes).await;
        let ended = served.await.expect("no panic");
        assert!(matches!(ended, Err(HandlerError::Protocol(_))), "{ended:?}");
    }
    let (served, _near) = raw(&lab, b"\0\0\0\x09{}").await;
    let ended = served.await.expect("no panic");
    assert!(matches!(ended, Err(HandlerError::Stream(_))), "{ended:?}");
    let (near, far) = memory_pair(ALPN);
    let served = tokio::spawn(serve(&lab.handler, far, Some(WORKER)));
    drop(near);
    let ended = served.await.expect("no panic");
    assert!(matches!(ended, Err(HandlerError::Closed)), "{ended:?}");
}
