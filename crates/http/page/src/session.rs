//! Sessions behind a cookie, and the proof of identity that each of them depends on.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use alknet_call::CallerProof;
use alknet_core::{AuthToken, Identity, IdentityProvider, PeerId, PeerKey};
use data_encoding::BASE64URL_NOPAD;
use http::HeaderMap;
use http::header::COOKIE;

use crate::limits::{SESSION_IDLE, SESSION_TIME, SESSIONS_MAX, SESSIONS_PER_IDENTITY};

/// The name of the cookie. Browsers accept a cookie with this prefix only over TLS, for the whole host and from that
/// host.
pub const COOKIE_NAME: &str = "__Host-alknet";
/// The scope that allows reading the page.
pub(crate) const SCOPE: &str = "admin";
/// The random bytes in the name of a session or a link, which make 43 characters.
const NAME_BYTES: usize = 32;

/// A random name of 256 bits that cannot be guessed; `None` while the system has no randomness.
pub(crate) fn new_name() -> Option<String> {
    let mut name = [0; NAME_BYTES];
    getrandom::fill(&mut name).ok()?;
    Some(BASE64URL_NOPAD.encode(&name))
}

/// The proof of a viewer's identity, which the page checks again later.
#[derive(Clone)]
pub(crate) struct ViewerProof {
    id: PeerId,
    by: ProofMethod,
}

#[derive(Clone)]
enum ProofMethod {
    /// The key of the connection that requested a link.
    Key(PeerKey),
    /// The token from the form, or the token that requested a link. Its holder may also have other tokens and keys.
    Token(Arc<AuthToken>),
    /// A proof that the page does not see: the connection has no key, and its handler names the peer.
    Name,
}

impl ViewerProof {
    pub(crate) fn key(id: PeerId, key: PeerKey) -> Self {
        let by = ProofMethod::Key(key);
        Self { id, by }
    }

    pub(crate) fn token(id: PeerId, token: Arc<AuthToken>) -> Self {
        let by = ProofMethod::Token(token);
        Self { id, by }
    }

    pub(crate) fn name(id: PeerId) -> Self {
        Self {
            id,
            by: ProofMethod::Name,
        }
    }

    /// The identity of the proof, as long as it is an administrator's.
    pub(crate) fn resolve(&self, identities: &dyn IdentityProvider) -> Option<Arc<Identity>> {
        let now = match &self.by {
            ProofMethod::Key(key) => identities.by_key(key),
            ProofMethod::Token(token) => identities.by_token(token),
            ProofMethod::Name => identities.by_id(&self.id),
        };
        now.filter(|now| now.id == self.id && now.scopes.allows(SCOPE))
    }

    /// The proof in the form that operations check; `None` for a token.
    pub(crate) fn proved_by(&self) -> Option<CallerProof> {
        match &self.by {
            ProofMethod::Key(key) => Some(CallerProof::Key(*key)),
            ProofMethod::Name => Some(CallerProof::Name),
            ProofMethod::Token(_) => None,
        }
    }

    /// The token, if the proof is one.
    pub(crate) fn bearer(&self) -> Option<Arc<AuthToken>> {
        match &self.by {
            ProofMethod::Token(token) => Some(Arc::clone(token)),
            ProofMethod::Key(_) | ProofMethod::Name => None,
        }
    }
}

impl fmt::Debug for ViewerProof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ViewerProof({})", self.id)
    }
}

#[derive(Debug)]
struct PageSession {
    proof: ViewerProof,
    started: Instant,
    used: Instant,
}

impl PageSession {
    fn is_over(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.used) >= SESSION_IDLE
            || now.saturating_duration_since(self.started) >= SESSION_TIME
    }
}

/// The current sessions.
///
/// The table uses randomly keyed hashes, so the time of a lookup reveals nothing about other names.
#[derive(Debug, Default)]
pub(crate) struct PageSessions(Mutex<HashMap<String, PageSession>>);

impl PageSessions {
    /// Begins a session and returns its name.
    pub(crate) fn begin(&self, proof: ViewerProof, now: Instant) -> Option<String> {
        let name = new_name()?;
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Expired sessions would otherwise count against the limits below.
        all.retain(|_, session| !session.is_over(now));
        let own = |session: &PageSession| session.proof.id == proof.id;
        if all.values().filter(|one| own(one)).count() >= SESSIONS_PER_IDENTITY {
            end_idlest(&mut all, own);
        }
        if all.len() >= SESSIONS_MAX {
            end_idlest(&mut all, |_| true);
        }
        let session = PageSession {
            proof,
            started: now,
            used: now,
        };
        all.insert(name.clone(), session);
        Some(name)
    }

    /// The proof of a session. If `used` is true, the session's idle time restarts.
    pub(crate) fn find(&self, name: &str, now: Instant, used: bool) -> Option<ViewerProof> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let session = all.get_mut(name)?;
        if session.is_over(now) {
            all.remove(name);
            return None;
        }
        if used {
            session.used = now;
        }
        Some(session.proof.clone())
    }

    /// Ends a session.
    pub(crate) fn end(&self, name: &str) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.remove(name);
    }
}

fn end_idlest(all: &mut HashMap<String, PageSession>, among: impl Fn(&PageSession) -> bool) {
    let mine = all.iter().filter(|(_, session)| among(session));
    let idlest = mine.min_by_key(|(_, session)| session.used);
    if let Some(name) = idlest.map(|(name, _)| name.clone()) {
        all.remove(&name);
    }
}

/// The name of the request's session. A request with two session cookies has no session.
pub(crate) fn cookie_of(headers: &HeaderMap) -> Option<&str> {
    let fields = headers.get_all(COOKIE).iter();
    let pairs = fields.filter_map(|field| field.to_str().ok());
    let pairs = pairs.flat_map(|field| field.split(';'));
    let mut found =
        pairs.filter_map(|pair| pair.trim().strip_prefix(COOKIE_NAME)?.strip_prefix('='));
    // The node cannot know which of the two it has set.
    let one = found.next()?;
    found.next().is_none().then_some(one)
}

/// The cookie for a session.
pub(crate) fn cookie(name: &str) -> String {
    // No script can read the cookie, and a browser does not send it with requests that another site causes.
    let seconds = SESSION_TIME.as_secs();
    format!("{COOKIE_NAME}={name}; Path=/; Secure; HttpOnly; SameSite=Strict; Max-Age={seconds}")
}

/// The cookie that removes the session's cookie.
pub(crate) fn no_cookie() -> String {
    // The attributes are the same as when the cookie was set, because browsers accept a cookie with this prefix only
    // with them.
    format!("{COOKIE_NAME}=; Path=/; Secure; HttpOnly; SameSite=Strict; Max-Age=0")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::HeaderValue;

    use super::*;

    fn proof(id: &str) -> ViewerProof {
        ViewerProof::name(id.parse().expect("a peer id"))
    }

    #[test]
    fn a_session_ends_when_idle_and_after_half_a_day() {
        let (sessions, start) = (PageSessions::default(), Instant::now());
        let name = sessions.begin(proof("ada"), start).expect("randomness");
        assert_eq!(name.len(), 43);
        let minute = Duration::from_secs(60);
        assert!(sessions.find(&name, start + 29 * minute, false).is_some());
        assert!(sessions.find(&name, start + 30 * minute, false).is_none());
        let name = sessions.begin(proof("ada"), start).expect("randomness");
        let mut now = start;
        while now < start + SESSION_TIME - 20 * minute {
            now += 20 * minute;
            assert!(sessions.find(&name, now, true).is_some());
        }
        assert!(sessions.find(&name, start + SESSION_TIME, true).is_none());
        assert!(sessions.find("x", start, true).is_none());
    }

    #[test]
    fn sessions_are_bounded_for_each_and_for_all() {
        let (sessions, start) = (PageSessions::default(), Instant::now());
        let at = |n: usize| start + Duration::from_millis(n as u64);
        let names: Vec<_> = (0..=SESSIONS_PER_IDENTITY)
            .map(|n| sessions.begin(proof("ada"), at(n)).expect("randomness"))
            .collect();
        assert!(
            sessions.find(&names[0], at(20), false).is_none(),
            "the oldest made room"
        );
        assert!(sessions.find(&names[1], at(20), false).is_some());
        for n in 0..2 * SESSIONS_MAX {
            sessions
                .begin(proof(&format!("p{n}")), at(100 + n))
                .expect("randomness");
        }
        let all = sessions.0.lock().expect("whole");
        assert_eq!(all.len(), SESSIONS_MAX);
    }

    #[test]
    fn a_session_that_was_left_is_over() {
        let (sessions, now) = (PageSessions::default(), Instant::now());
        let name = sessions.begin(proof("ada"), now).expect("randomness");
        sessions.end(&name);
        assert!(sessions.find(&name, now, true).is_none());
    }

    #[test]
    fn the_cookie_is_found_among_others() {
        let of = |fields: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for field in fields {
                headers.append(COOKIE, HeaderValue::from_static(field));
            }
            cookie_of(&headers).map(str::to_owned)
        };
        let one = Some("abc".to_owned());
        assert_eq!(of(&["__Host-alknet=abc"]), one);
        assert_eq!(of(&["a=b; __Host-alknet=abc;c=d"]), one);
        assert_eq!(of(&["a=b", "__Host-alknet=abc"]), one);
        assert_eq!(of(&["__Host-alknet=abc; __Host-alknet=def"]), None);
        assert_eq!(of(&["__Host-alknetx=abc", "alknet=abc"]), None);
        assert_eq!(of(&[]), None);
    }

    #[test]
    fn the_cookie_says_what_it_is_for() {
        let cookie = cookie("abc");
        for word in ["; Path=/", "; Secure", "; HttpOnly", "; SameSite=Strict"] {
            assert!(cookie.contains(word), "{cookie}");
        }
        assert!(!cookie.contains("Domain"));
        assert!(no_cookie().contains("Max-Age=0"));
    }
}
