//! `token/make`, `token/list` and `token/revoke`: bearer tokens of programs, made while the node
//! runs.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use alknet_call::{CallBody, CallError, Ctx, ErrorCode, HandlerKind, OperationSpec, Registration};
use alknet_core::config::is_scope;
use alknet_core::{
    ApiKey, AuthToken, Identities, Identity, IdentityEntries, IdentityProvider, IdentityStore,
    IdentityStoreError, KeyId, PeerId, PeerKey, ScopeSet,
};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::identity_services::{IdentityServices, moment, no_identity};
use super::ops::empty_input;

/// Scope of callers that may make and revoke tokens.
const SCOPE: &str = "admin";
/// The scope that stands for every other scope, or resource, of a token.
const EVERYTHING: &str = "*";
/// Maximum number of tokens in the store.
const TOKENS_MAX: usize = 1024;
/// Maximum number of scopes of one token or one peer.
pub(super) const SCOPES_MAX: usize = 64;
/// Maximum number of kinds of resources of one token, and of resources of each kind.
const RESOURCES_MAX: usize = 64;
/// Maximum length in bytes of the name of a resource or a kind.
const RESOURCE_BYTES_MAX: usize = 255;
/// Maximum length of a note in characters.
const NOTE_CHARS_MAX: usize = 200;
/// Maximum lifetime of a token or a peer, in seconds. For longer access the caller gives no
/// lifetime.
pub(super) const TTL_S_MAX: u64 = 10 * 365 * 86_400;
/// How often the days of last use are stored.
const USES_KEPT_EVERY: Duration = Duration::from_secs(3600);
/// Seconds of a day.
const DAY_S: u64 = 86_400;

type Resources = BTreeMap<Arc<str>, Vec<Arc<str>>>;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct MakeInput {
    scopes: Vec<String>,
    #[serde(default)]
    resources: BTreeMap<String, Vec<String>>,
    #[serde(default)]
    ttl_s: Option<u64>,
    #[serde(default)]
    note: Option<String>,
}

/// `token/make`
pub(crate) fn make(identity_services: IdentityServices) -> Registration {
    let names = json!({ "type": "array", "maxItems": RESOURCES_MAX, "items":
        { "type": "string", "minLength": 1, "maxLength": RESOURCE_BYTES_MAX } });
    let spec = OperationSpec::mutation(
        "token/make",
        "Makes a bearer token for a program. Only this answer has the token.",
    )
    .with_input(json!({
        "type": "object",
        "required": ["scopes"],
        "additionalProperties": false,
        "properties": {
            "scopes": { "type": "array", "items": { "type": "string" }, "maxItems": SCOPES_MAX,
                        "description": "Scopes of the token, at most those of the caller" },
            "resources": { "type": "object", "maxProperties": RESOURCES_MAX,
                           "additionalProperties": names,
                           "description": "Resources of the token, by kind" },
            "ttl_s": { "type": ["integer", "null"], "minimum": 1, "maximum": TTL_S_MAX,
                       "description": "Seconds for which the token is valid; if absent or null, without end" },
            "note": { "type": ["string", "null"], "maxLength": NOTE_CHARS_MAX,
                      "description": "A note that the list of tokens shows" },
        }
    }))
    .with_output(json!({
        "type": "object",
        "required": ["token", "key_id", "scopes", "warnings"],
        "properties": {
            "token": { "type": "string", "x-secret": true },
            "key_id": { "type": "string" },
            "scopes": { "type": "array", "items": { "type": "string" } },
            "warnings": warnings_schema(),
            "expires": { "type": "string" }, "note": { "type": "string" },
        }
    }))
    .with_scope(SCOPE);
    let handler = HandlerKind::once(move |input: CallBody, ctx: Ctx| {
        let (identities, reloader) = (
            Arc::clone(&identity_services.identities),
            Arc::clone(&identity_services.reloader),
        );
        async move {
            if ctx.internal() {
                // The dispatcher checked the operation's authority and not that of its caller, and
                // a token outlives the call.
                let message =
                    "an operation may not make a token for its caller; call this directly";
                return Err(CallError::new(ErrorCode::Forbidden, message));
            }
            let who = ctx.identity().ok_or_else(no_identity)?;
            let token = AuthToken::generate().map_err(|error| unavailable(error.to_string()))?;
            let shown = ctx.conn().key;
            let key = planned(&identities, who, shown, &token, input.parse()?)?;
            let mut answer = made(&token, &key);
            answer["warnings"] = json!(reloader.scope_warnings(&key.id(), &key.scopes));
            identities.put_api_key(key).await.map_err(refused)?;
            tracing::info!(by = who.id.as_str(), key_id = %answer["key_id"], "token.make");
            Ok::<_, CallError>(answer)
        }
    });
    Registration::new(spec, handler)
}

/// JSON Schema of the scopes that were granted and that nothing on the node asks for.
pub(super) fn warnings_schema() -> Value {
    json!({ "type": "array",
            "description": "Scopes that nothing on this node asks for, each with the most similar one",
            "items": { "type": "object", "required": ["id", "what"], "properties": {
                "id": { "type": "string" }, "what": { "type": "string" } } } })
}

/// The entry that is asked for, where it may be. `shown` is the key of the connection.
fn planned(
    identities: &Identities,
    who: &Identity,
    shown: Option<PeerKey>,
    token: &AuthToken,
    request: MakeInput,
) -> Result<ApiKey, CallError> {
    let entries = identities.entries();
    let stored = entries.api_keys.iter();
    // Tokens of the configuration do not count against the limit of the store.
    let stored = stored.filter(|key| !identities.is_configured(&key.id()));
    if stored.count() >= TOKENS_MAX {
        let message = format!("there are {TOKENS_MAX} tokens: revoke unused ones");
        return Err(CallError::new(ErrorCode::Conflict, message));
    }
    let scopes = scopes(&request.scopes)?;
    let resources = resources(request.resources);
    may_give(who, &scopes, &resources)?;
    let now_s = identities.now_s();
    let expires = ends(request.ttl_s, now_s, ends_of(&entries, &who.id))?;
    let hash = token.hash().map_err(|e| unavailable(e.to_string()))?;
    Ok(ApiKey {
        scopes,
        resources,
        description: request
            .note
            .map(|note| note.trim().to_owned())
            .filter(|n| !n.is_empty()),
        expires,
        created_by: Some(who.id.to_string()),
        created_by_key: entries.lasting_key(&who.id, shown),
        created: now_s,
        ..ApiKey::new(hash)
    })
}

pub(super) fn scopes(texts: &[String]) -> Result<ScopeSet, CallError> {
    let invalid = texts
        .iter()
        .find(|scope| *scope != EVERYTHING && !is_scope(scope));
    match invalid {
        None => Ok(texts.iter().collect()),
        Some(invalid) => Err(CallError::invalid_input(format!(
            "'{}' is no scope: write segments joined by ':' like fs:read:docs; only the last may \
             be '*'",
            invalid.chars().take(80).collect::<String>()
        ))),
    }
}

fn resources(texts: BTreeMap<String, Vec<String>>) -> Resources {
    let named = |names: Vec<String>| names.into_iter().map(Into::into).collect();
    let texts = texts.into_iter();
    texts
        .map(|(kind, names)| (kind.into(), named(names)))
        .collect()
}

/// Checks that `who` may give these scopes and resources: only those that it has itself. A holder
/// of every scope may write the configuration, and so may give anything.
pub(super) fn may_give(
    who: &Identity,
    scopes: &ScopeSet,
    resources: &Resources,
) -> Result<(), CallError> {
    if !who.scopes.covers(scopes) {
        let held: Vec<String> = who.scopes.clone().into();
        let message = format!(
            "you can give no more than you hold: {}",
            if held.is_empty() {
                "nothing".to_owned()
            } else {
                held.join(", ")
            }
        );
        return Err(CallError::new(ErrorCode::Forbidden, message));
    }
    let everything = who.scopes.covers(&[EVERYTHING].into_iter().collect());
    let holds = |kind: &Arc<str>, name: &Arc<str>| {
        let held = who.resources.get(kind).into_iter().flatten();
        held.into_iter()
            .any(|held| held == name || **held == *EVERYTHING)
    };
    for (kind, names) in resources {
        if let Some(name) = names.iter().find(|name| !everything && !holds(kind, name)) {
            let message = format!("you do not hold '{name}' of '{kind}', and cannot give it");
            return Err(CallError::new(ErrorCode::Forbidden, message));
        }
    }
    Ok(())
}

/// The end of new access, at the latest that of its maker's own access.
pub(super) fn ends(
    ttl_s: Option<u64>,
    now_s: Option<u64>,
    makers: Option<u64>,
) -> Result<Option<u64>, CallError> {
    let requested = match (ttl_s, now_s) {
        (None, _) => None,
        (Some(ttl_s), Some(now_s)) => Some(now_s.saturating_add(ttl_s)),
        (Some(_), None) => {
            let message = "the clock of the node is not set yet, so that nothing can end in time: \
                           try again once it is";
            return Err(unavailable(message.to_owned()));
        }
    };
    let end = requested.or(makers);
    check_end(end, makers)?;
    Ok(end)
}

/// Refuses access that ends at `end`, or never, if that of its maker ends earlier.
///
/// # Errors
/// `FORBIDDEN`.
pub(super) fn check_end(end: Option<u64>, makers: Option<u64>) -> Result<(), CallError> {
    match makers {
        Some(makers) if end.is_none_or(|end| end > makers) => Err(CallError::new(
            ErrorCode::Forbidden,
            format!(
                "you are let in until {} yourself, and cannot give access for longer",
                moment(makers).unwrap_or_default()
            ),
        )),
        _ => Ok(()),
    }
}

/// When this identity's access ends. `None` if it has no end.
pub(super) fn ends_of(entries: &IdentityEntries, id: &PeerId) -> Option<u64> {
    let peer = entries.peers.iter().find(|peer| peer.peer_id == *id);
    let key = entries.api_keys.iter().find(|key| key.id() == *id);
    peer.and_then(|peer| peer.expires)
        .or_else(|| key.and_then(|key| key.expires))
}

fn made(token: &AuthToken, key: &ApiKey) -> Value {
    without_nulls(json!({
        "token": token.expose(),
        "key_id": key.token.key_id,
        "scopes": key.scopes,
        "expires": key.expires.and_then(moment),
        "note": key.description,
    }))
}

/// `token/list`
pub(crate) fn list(identity_services: IdentityServices) -> Registration {
    let spec = OperationSpec::query("token/list", "Lists the tokens of this node without their secrets.")
        .with_input(empty_input())
        .with_output(json!({
            "type": "object",
            "required": ["tokens"],
            "properties": { "tokens": { "type": "array", "items": { "type": "object",
                "required": ["key_id", "holder", "source", "scopes"],
                "properties": {
                    "key_id": { "type": "string" }, "holder": { "type": "string" },
                    "source": { "enum": ["config", "store"] },
                    "scopes": { "type": "array" }, "resources": { "type": "object" },
                    "expires": { "type": "string" }, "expired": { "const": true },
                    "note": { "type": "string" },
                    "created_by": { "type": "string" }, "created": { "type": "string" },
                    "maker_gone": { "const": true,
                        "description": "Whether the node refuses the token because its maker may no longer connect, or has lost a scope of it" },
                    "last_used": { "type": "string", "description": "The day of the last use, YYYY-MM-DD" },
                } } } }
        }))
        .with_scope(SCOPE);
    let handler = HandlerKind::once(move |_input: CallBody, _ctx| {
        std::future::ready(Ok::<_, CallError>(listed(&identity_services.identities)))
    });
    Registration::new(spec, handler)
}

fn listed(identities: &Identities) -> Value {
    let entries = identities.entries();
    let now_s = identities.now_s();
    // Without a set clock the node refuses a token with an end, so the list shows it as expired.
    let over = |end: Option<u64>| end.is_some_and(|end| now_s.is_none_or(|now| now >= end));
    let source = |id: &PeerId| match identities.is_configured(id) {
        true => "config",
        false => "store",
    };
    let day = |id: &KeyId| identities.used_day(id).and_then(date);
    let mut tokens = Vec::new();
    for key in &entries.api_keys {
        let (id, key_id) = (key.id(), &key.token.key_id);
        tokens.push(without_nulls(json!({
            "key_id": key_id,
            "source": source(&id),
            "holder": id,
            "scopes": key.scopes,
            "resources": Some(&key.resources).filter(|held| !held.is_empty()),
            "expires": key.expires.and_then(moment),
            "expired": over(key.expires).then_some(true),
            "note": key.description,
            "created_by": key.created_by,
            "maker_gone": (!over(key.expires) && identities.by_id(&id).is_none()).then_some(true),
            "created": key.created.and_then(moment),
            "last_used": day(key_id),
        })));
    }
    for peer in &entries.peers {
        for token in &peer.token_hashes {
            tokens.push(without_nulls(json!({
                "key_id": token.key_id,
                "source": source(&peer.peer_id),
                "holder": peer.peer_id,
                "scopes": peer.scopes,
                "resources": Some(&peer.resources).filter(|held| !held.is_empty()),
                "expires": peer.expires.and_then(moment),
                "expired": over(peer.expires).then_some(true),
                "note": peer.display_name,
                "last_used": day(&token.key_id),
            })));
        }
    }
    json!({ "tokens": tokens })
}

/// A day as ISO 8601 writes it.
fn date(day: u32) -> Option<String> {
    let text = moment(u64::from(day) * DAY_S)?;
    Some(text.split('T').next()?.to_owned())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TokenRevokeInput {
    key_id: KeyId,
}

/// `token/revoke`
pub(crate) fn revoke(identity_services: IdentityServices) -> Registration {
    let spec = OperationSpec::mutation(
        "token/revoke",
        "Revokes a token. The node closes the token's connections and sessions within a second.",
    )
    .with_input(json!({
        "type": "object",
        "required": ["key_id"],
        "additionalProperties": false,
        "properties": {
            "key_id": { "type": "string", "pattern": "^[a-z0-9]{8}$",
                        "description": "The name of the token: the eight characters behind alk_" },
        }
    }))
    .with_output(json!({
        "type": "object",
        "required": ["key_id", "revoked"],
        "properties": { "key_id": { "type": "string" }, "revoked": { "const": true } },
    }))
    .with_scope(SCOPE);
    let handler = HandlerKind::once(move |input: CallBody, ctx: Ctx| {
        let identity_services = identity_services.clone();
        async move {
            let who = ctx.identity().ok_or_else(no_identity)?;
            let TokenRevokeInput { key_id } = input.parse()?;
            let revoked = identity_services.identities.revoke_token(key_id).await;
            if !revoked.map_err(refused)? {
                let message =
                    format!("there is no token '{key_id}'; 'alknet token list' shows the tokens");
                return Err(CallError::new(ErrorCode::NotFound, message));
            }
            tracing::info!(by = who.id.as_str(), %key_id, "token.revoke");
            // The connections are closed before the answer, because the caller may rely on it.
            if let Some(server) = identity_services.server.get() {
                server.sweep();
            }
            Ok(json!({ "key_id": key_id, "revoked": true }))
        }
    });
    Registration::new(spec, handler)
}

/// Stores the days on which tokens were last used, every hour for as long as the node runs.
pub(crate) async fn keep_uses(identities: Arc<Identities>) {
    let mut often = tokio::time::interval(USES_KEPT_EVERY);
    loop {
        often.tick().await;
        keep_uses_now(&identities).await;
    }
}

/// Stores them once. A failure is logged: the next attempt stores the same days.
pub(crate) async fn keep_uses_now(identities: &Identities) {
    if let Err(error) = identities.keep_uses().await {
        tracing::warn!("cannot keep when tokens were last used: {error}");
    }
}

/// Removes the members that are null.
fn without_nulls(value: Value) -> Value {
    let Value::Object(members) = value else {
        return value;
    };
    let present = members.into_iter().filter(|(_, value)| !value.is_null());
    Value::Object(present.collect::<Map<_, _>>())
}

fn unavailable(message: String) -> CallError {
    CallError::new(ErrorCode::Unavailable, message)
}

fn refused(error: IdentityStoreError) -> CallError {
    let code = match &error {
        IdentityStoreError::ReadOnly(_) | IdentityStoreError::TokenTaken(_) => ErrorCode::Conflict,
        IdentityStoreError::Unavailable(_) | IdentityStoreError::ClockUnset => {
            ErrorCode::Unavailable
        }
        _ => ErrorCode::Internal,
    };
    CallError::new(code, error.to_string())
}

#[cfg(test)]
mod tests {
    use alknet_core::{IdentityKind, PeerEntry, SystemClock};

    use super::*;

    fn who(scopes: &[&str], held: &[&str]) -> Identity {
        Identity {
            id: "ada".parse().expect("a peer id"),
            kind: IdentityKind::Peer,
            scopes: scopes.iter().collect(),
            resources: [("fs".into(), held.iter().map(|&it| it.into()).collect())].into(),
            generation: 0,
        }
    }

    fn input_with(scopes: &[&str]) -> MakeInput {
        MakeInput {
            scopes: scopes.iter().map(|&it| it.to_owned()).collect(),
            resources: BTreeMap::new(),
            ttl_s: None,
            note: None,
        }
    }

    fn all_identities() -> Identities {
        let ada = PeerKey::Ed25519([1; 32]);
        let entries = IdentityEntries {
            admins: vec![("ada".parse().expect("a peer id"), ada)],
            ..IdentityEntries::default()
        };
        Identities::new(entries, Arc::new(SystemClock { built_s: 0 }))
    }

    fn plan(who: &Identity, asked: MakeInput) -> Result<ApiKey, CallError> {
        let token = AuthToken::generate().expect("randomness");
        planned(&all_identities(), who, None, &token, asked)
    }

    #[test]
    fn a_token_has_no_right_that_its_maker_lacks() {
        let admin = who(&["admin", "fs:*"], &["docs"]);
        for good in [&["admin"][..], &["fs:read"], &["fs:*"], &[]] {
            plan(&admin, input_with(good)).expect("it is held");
        }
        for more in [&["*"][..], &["node:read"], &["admin", "admin:*"]] {
            let refused = plan(&admin, input_with(more)).expect_err("it is not held");
            assert_eq!(refused.code, ErrorCode::Forbidden);
            assert!(refused.message.contains("admin, fs:*"), "{refused}");
        }
        let with = |kind: &str, name: &str| MakeInput {
            resources: [(kind.to_owned(), vec![name.to_owned()])].into(),
            ..input_with(&["fs:read"])
        };
        plan(&admin, with("fs", "docs")).expect("it is held");
        for other in [("fs", "*"), ("fs", "secrets"), ("git", "docs")] {
            assert!(plan(&admin, with(other.0, other.1)).is_err(), "{other:?}");
        }
        plan(&who(&["admin", "fs:*"], &["*"]), with("fs", "x")).expect("it is held");
        plan(&who(&["*"], &[]), with("git", "x")).expect("they could write it down");
        plan(&who(&["*"], &[]), input_with(&["*"])).expect("it is held");
    }

    #[test]
    fn what_is_no_scope_is_named() {
        for bad in ["", "a b", "a*", "a::b", "*:a", ":"] {
            let refused = plan(&who(&["*"], &[]), input_with(&[bad])).expect_err(bad);
            assert_eq!(refused.code, ErrorCode::InvalidInput);
        }
    }

    #[test]
    fn no_token_outlives_who_makes_it() {
        assert_eq!(ends(None, None, None), Ok(None));
        assert_eq!(ends(Some(10), Some(100), None), Ok(Some(110)));
        assert_eq!(ends(Some(10), Some(100), Some(110)), Ok(Some(110)));
        assert_eq!(ends(None, Some(100), Some(105)), Ok(Some(105)));
        let later = ends(Some(10), Some(100), Some(105)).expect_err("later");
        assert_eq!(later.code, ErrorCode::Forbidden);
        let unset = ends(Some(10), None, None).expect_err("no clock");
        assert_eq!(unset.code, ErrorCode::Unavailable);
    }

    #[tokio::test]
    async fn the_list_says_everything_but_the_token() {
        let identities = all_identities();
        let token = AuthToken::generate().expect("randomness");
        let mut input = input_with(&["metrics:read"]);
        (input.ttl_s, input.note) = (Some(60), Some(" the hall ".to_owned()));
        let key = planned(&identities, &who(&["*"], &[]), None, &token, input).expect("fine");
        let answer = made(&token, &key);
        assert_eq!(answer["token"], token.expose());
        identities.put_api_key(key.clone()).await.expect("room");
        assert!(identities.by_token(&token).is_some());
        let all = listed(&identities);
        let one = &all["tokens"][0];
        assert_eq!(
            (
                &one["note"],
                &one["created_by"],
                &one["source"],
                &one["holder"]
            ),
            (
                &json!("the hall"),
                &json!("ada"),
                &json!("store"),
                &json!(key.id())
            )
        );
        assert_eq!(one["maker_gone"], Value::Null);
        assert_eq!(key.created_by_key, Some(PeerKey::Ed25519([1; 32])));
        let day = one["last_used"].as_str().expect("it was used");
        assert_eq!(day.len(), "2030-01-01".len());
        let text = all.to_string();
        assert!(!text.contains(&token.expose()[13..]));
        assert!(!text.contains(&key.token.to_string()[9..]));
        identities.replace_config(IdentityEntries::default());
        assert!(identities.by_token(&token).is_none());
        assert_eq!(listed(&identities)["tokens"][0]["maker_gone"], json!(true));
    }

    /// By the key of its connection, if that stays. A program's token shows no key, and any key may come with a request
    /// that a node in between passes on.
    #[test]
    fn a_peer_is_known_again_by_the_key_that_it_used() {
        let key = |n| PeerKey::Ed25519([n; 32]);
        let mate = |keys: &[u8], ending: &[u8]| PeerEntry {
            keys: keys.iter().copied().map(key).collect(),
            key_ends: ending.iter().map(|&n| (key(n), 1)).collect(),
            ..PeerEntry::new("ada".parse().expect("a peer id"))
        };
        let token = AuthToken::generate().expect("randomness");
        for (entry, shown, expected) in [
            (mate(&[1, 2], &[]), Some(2), Some(2)),
            (mate(&[1, 2], &[]), None, Some(1)),
            (mate(&[1, 2], &[]), Some(3), Some(1)),
            (mate(&[1, 2], &[1]), Some(1), Some(2)),
            (mate(&[], &[]), Some(1), None),
        ] {
            let entries = IdentityEntries {
                peers: vec![entry],
                ..IdentityEntries::default()
            };
            let identities = Identities::new(entries, Arc::new(SystemClock { built_s: 0 }));
            let maker = who(&["admin"], &[]);
            let made = planned(&identities, &maker, shown.map(key), &token, input_with(&[]));
            let made = made.expect("it is held");
            assert_eq!(made.created_by_key, expected.map(key), "{shown:?}");
        }
    }

    #[tokio::test]
    async fn there_is_an_end_to_tokens() {
        let identities = all_identities();
        for _ in 0..TOKENS_MAX {
            let token = AuthToken::generate()
                .and_then(|it| it.hash())
                .expect("a token");
            identities
                .put_api_key(ApiKey::new(token))
                .await
                .expect("room");
        }
        let token = AuthToken::generate().expect("randomness");
        let full = planned(
            &identities,
            &who(&["*"], &[]),
            None,
            &token,
            input_with(&["a"]),
        );
        assert_eq!(full.expect_err("full").code, ErrorCode::Conflict);
    }
}
