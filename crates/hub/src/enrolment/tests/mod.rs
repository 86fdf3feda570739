//! A hub in memory, and what it does with those who come.

mod invitations;
mod joining;
mod removals;

use std::time::Duration;

use alknet_core::{Clock, Identities, IdentityEntries, ScopeSet};

use super::*;
use crate::store::MemoryTokens;

struct EnrolmentTestClock;

impl Clock for EnrolmentTestClock {
    fn now_s(&self) -> Option<u64> {
        Some(NOW)
    }
}

const NOW: u64 = 1_800_000_000;

/// A hub in memory, and what time it is there.
struct EnrolmentTestHub {
    enrolment: EnrolmentService,
    peers: Arc<Identities>,
    start: Instant,
}

fn key(n: u8) -> PeerKey {
    PeerKey::Ed25519([n; 32])
}

/// A use of an invitation that was written, and whose peer was not.
fn cut_off_use(n: u8, peer: &str, name: &str) -> TokenUse {
    TokenUse {
        key: key(n),
        peer: peer.parse().expect("a peer id"),
        name: name.to_owned(),
        at: NOW,
        done: false,
    }
}

fn hub(mode: EnrolMode) -> EnrolmentTestHub {
    hub_of(Arc::new(MemoryTokens::default()), mode)
}

fn hub_of(tokens: Arc<dyn TokenStore>, mode: EnrolMode) -> EnrolmentTestHub {
    let entries = IdentityEntries {
        admins: vec![("admin".parse().expect("a peer id"), key(100))],
        peers: vec![PeerEntry {
            keys: vec![key(101)],
            display_name: Some("cellar".to_owned()),
            ..PeerEntry::new("fixed".parse().expect("a peer id"))
        }],
        api_keys: Vec::new(),
    };
    let peers = Arc::new(Identities::new(entries, Arc::new(EnrolmentTestClock)));
    EnrolmentTestHub {
        enrolment: enrolment(tokens, &peers, mode),
        peers,
        start: Instant::now(),
    }
}

fn enrolment(
    tokens: Arc<dyn TokenStore>,
    peers: &Arc<Identities>,
    mode: EnrolMode,
) -> EnrolmentService {
    let hub_info = HubInfo {
        key: key(200),
        names: vec!["hub".to_owned()],
    };
    let policy = EnrolPolicy { mode, peers_max: 3 };
    EnrolmentService::new(tokens, peers.clone(), hub_info, policy)
}

fn worker() -> EnrolRole {
    EnrolRole {
        scopes: ["relay:accept"].into_iter().collect(),
        labels: [("pool".to_owned(), "edge".to_owned())].into(),
        ..EnrolRole::new("worker".parse().expect("a role"))
    }
}

fn request(token: Option<&EnrolToken>, name: Option<&str>) -> JoinRequest {
    JoinRequest {
        token: token.map(|token| token.expose().to_string()),
        name: name.map(str::to_owned),
        labels: [("pool".to_owned(), "mine".to_owned())].into(),
        ..JoinRequest::default()
    }
}

fn approval(made_by: &str) -> Approval {
    Approval {
        role: worker(),
        name: None,
        made_by: made_by.to_owned(),
        made_by_key: None,
    }
}

impl EnrolmentTestHub {
    async fn token(&self, kind: TokenKind, role: EnrolRole) -> EnrolToken {
        let invitation = Invitation {
            role,
            kind,
            ttl_s: 3600,
            made_by: "admin".to_owned(),
            made_by_key: None,
        };
        let made = self.enrolment.invite(invitation, Some(NOW)).await;
        made.expect("a token").0
    }

    /// An invitation for several workers, by a maker that is known again by this key.
    async fn token_by(&self, made_by: &str, key: Option<PeerKey>) -> EnrolToken {
        let invitation = Invitation {
            role: worker(),
            kind: TokenKind::Many(5),
            ttl_s: 3600,
            made_by: made_by.to_owned(),
            made_by_key: key,
        };
        let made = self.enrolment.invite(invitation, Some(NOW)).await;
        made.expect("a token").0
    }

    /// Enrols the key 1 as a worker that holds this scope as well.
    async fn worker_with(&self, scope: &str) -> PeerId {
        let role = EnrolRole {
            scopes: [scope, "relay:accept"].into_iter().collect(),
            ..worker()
        };
        let token = self.token(TokenKind::Once, role).await;
        let enrolled = self.enrol(1, &request(Some(&token), None), NOW).await;
        enrolled.expect("taken").peer_id
    }

    async fn enrol(
        &self,
        n: u8,
        request: &JoinRequest,
        now: u64,
    ) -> Result<JoinAcceptance, EnrolError> {
        let applicant = Applicant {
            key: key(n),
            request,
            from: None,
        };
        let passed = Duration::from_secs(now.saturating_sub(NOW));
        self.enrolment
            .enrol(&applicant, Some(now), self.start + passed)
            .await
    }

    async fn code(&self, n: u8, request: &JoinRequest, now: u64) -> &'static str {
        match self.enrol(n, request, now).await {
            Ok(_) => "taken",
            Err(error) => error.code(),
        }
    }
}
