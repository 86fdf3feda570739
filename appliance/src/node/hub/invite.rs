//! `hub/invite`: makes a join string.

use std::collections::BTreeMap;

use alknet_call::{CallBody, CallError, Ctx, ErrorCode, HandlerKind, OperationSpec, Registration};
use alknet_core::{Identity, PeerAddr, PeerKey};
use alknet_hub::{
    ADDRESSES_MAX, Invitation, InviteError, JoinCode, JoinError, NamePattern, TokenKind,
};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{HubContext, requester};

/// Default lifetime of a token, in seconds.
const TTL_S: u64 = 3600;
/// The port that a client assumes for an address without one.
const PORT: u16 = 443;
/// Default first and last number of a name pattern.
const NUMBERS: [u32; 2] = [1, 9999];

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct InviteInput {
    role: String,
    #[serde(default)]
    ttl_s: Option<u64>,
    #[serde(default)]
    count: Option<u32>,
    #[serde(default)]
    names: Option<String>,
    #[serde(default)]
    numbers: Option<[u32; 2]>,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    #[serde(default)]
    addresses: Vec<String>,
}

/// `hub/invite`
pub(super) fn invite(hub: HubContext) -> Registration {
    let spec = OperationSpec::mutation(
        "hub/invite",
        "Makes a join string. Every holder of the string may become a peer of this hub.",
    )
    .with_input(json!({
        "type": "object",
        "required": ["role"],
        "additionalProperties": false,
        "properties": {
            "role": { "type": "string", "description": "The role of the new peers" },
            "ttl_s": { "type": ["integer", "null"], "minimum": 1, "maximum": 2_592_000,
                       "description": "Seconds for which the invitation is valid; an hour unless given" },
            "count": { "type": ["integer", "null"], "minimum": 1, "maximum": 1000,
                       "description": "How many keys may use the invitation; one unless given" },
            "names": { "type": ["string", "null"],
                       "description": "The name of the new peer, or a pattern with * in the place of a number" },
            "numbers": { "type": ["array", "null"], "minItems": 2, "maxItems": 2,
                         "items": { "type": "integer", "minimum": 0, "maximum": 99_999 },
                         "description": "The first and the last number of the names" },
            "labels": { "type": "object", "additionalProperties": { "type": "string" } },
            "addresses": { "type": "array", "maxItems": ADDRESSES_MAX,
                           "items": { "type": "string" },
                           "description": "Addresses of the hub, HOST or HOST:PORT; unless given, its domain and the addresses it listens on" },
        }
    }))
    .with_output(json!({
        "type": "object",
        "required": ["join", "key_id", "expires", "role", "count"],
        "properties": {
            "join": { "type": "string", "x-secret": true }, "key_id": { "type": "string" },
            "expires": { "type": "string" }, "role": { "type": "string" },
            "count": { "type": "integer" }, "addresses": { "type": "array" },
        }
    }))
    .with_scope("hub:invite");
    let handler = HandlerKind::once(move |input: CallBody, ctx: Ctx| {
        let hub = hub.clone();
        async move {
            let who = requester(&ctx)?;
            let maker = hub.key_of_maker(&ctx, &who.id);
            hub.invite(input.parse()?, who, maker).await
        }
    });
    Registration::new(spec, handler)
}

impl HubContext {
    /// `made_by_key` is the key of `who` that counts as the maker.
    async fn invite(
        &self,
        input: InviteInput,
        who: &Identity,
        made_by_key: Option<PeerKey>,
    ) -> Result<Value, CallError> {
        let addresses = self.addresses(&input.addresses)?;
        let mut role = self.role_from(&input.role, who)?;
        role.labels.extend(input.labels);
        if let Some(names) = &input.names {
            let [first, last] = input.numbers.unwrap_or(NUMBERS);
            let pattern = NamePattern::new(names, first, last);
            role.names = Some(pattern.map_err(|e| CallError::invalid_input(e.to_string()))?);
        }
        let count = input.count.unwrap_or(1);
        let invitation = Invitation {
            role: role.clone(),
            kind: match count {
                1 => TokenKind::Once,
                count => TokenKind::Many(count),
            },
            ttl_s: input.ttl_s.unwrap_or(TTL_S),
            made_by: who.id.to_string(),
            made_by_key,
        };
        let hub = self.key()?;
        let made = self.enrolment.invite(invitation, self.clock.now_s()).await;
        let (token, record) = made.map_err(|error| from_invite_error(&error))?;
        let code = JoinCode {
            addresses,
            hub,
            token,
            expires: record.expires,
            role: role.name.clone(),
        };
        let (join, code) = shortened(code)?;
        Ok(json!({
            "join": join,
            "key_id": record.hash.key_id,
            "expires": super::peers::moment(record.expires),
            "role": role.name,
            "count": count,
            "addresses": code.addresses.iter().map(PeerAddr::address).collect::<Vec<_>>(),
        }))
    }

    /// Addresses at which peers may find this hub: the requested ones, or else the hub's domain and
    /// the addresses that it listens on.
    fn addresses(&self, requested: &[String]) -> Result<Vec<PeerAddr>, CallError> {
        if !requested.is_empty() {
            let parse = |at: &String| {
                at.parse::<PeerAddr>()
                    .map_err(|error| CallError::invalid_input(format!("'{at}': {error}")))
            };
            return requested.iter().map(parse).collect();
        }
        let current = self.identities.reloader.current();
        let config = &current.config;
        let found = self.description.addresses(&self.facts.load());
        let hosts = config.node.domain.iter().chain(&found);
        // An address that does not parse, such as a link-local one with a zone, is left out.
        let at: Vec<PeerAddr> = hosts
            .filter_map(|host| with_port(host, self.description.port()).parse().ok())
            .take(ADDRESSES_MAX)
            .collect();
        if at.is_empty() {
            return Err(CallError::new(
                ErrorCode::Unavailable,
                "this hub knows no address of its own: give one with addresses",
            ));
        }
        Ok(at)
    }
}

fn with_port(host: &str, port: u16) -> String {
    match (port, host.contains(':')) {
        // RFC 3986, 3.2.2: an IPv6 address in an authority has brackets.
        (PORT, true) => format!("[{host}]"),
        (PORT, false) => host.to_owned(),
        (port, true) => format!("[{host}]:{port}"),
        (port, false) => format!("{host}:{port}"),
    }
}

/// Encodes the string, without the last addresses if it would be too long.
fn shortened(mut code: JoinCode) -> Result<(String, JoinCode), CallError> {
    loop {
        match code.encode() {
            Ok(text) => return Ok((text, code)),
            Err(JoinError::TooLong) if code.addresses.len() > 1 => {
                // The last addresses matter least: the domain comes first.
                code.addresses.pop();
            }
            Err(error) => return Err(CallError::invalid_input(error.to_string())),
        }
    }
}

fn from_invite_error(error: &InviteError) -> CallError {
    let message = error.to_string();
    match error {
        InviteError::Name(_) | InviteError::Ttl | InviteError::Uses => {
            CallError::invalid_input(message)
        }
        InviteError::Maker => CallError::new(ErrorCode::Forbidden, message),
        InviteError::Clock => CallError::new(ErrorCode::Unavailable, message),
        InviteError::TooMany => CallError::new(ErrorCode::Overloaded, message),
        _ => CallError::internal(message),
    }
}

#[cfg(test)]
mod tests {
    use alknet_hub::EnrolToken;

    use super::*;

    #[test]
    fn a_port_is_said_where_it_is_another() {
        for (place, port, said) in [
            ("hub.example.org", 443, "hub.example.org"),
            ("hub.example.org", 4433, "hub.example.org:4433"),
            ("2001:db8::1", 443, "[2001:db8::1]"),
            ("2001:db8::1", 4433, "[2001:db8::1]:4433"),
        ] {
            assert_eq!(with_port(place, port), said);
            assert!(said.parse::<PeerAddr>().is_ok(), "{said}");
        }
    }

    #[test]
    fn what_is_too_long_loses_its_last_addresses() {
        let long = |n: u32| {
            format!("n{n}{}.example", "x".repeat(50))
                .parse()
                .expect("a name")
        };
        let code = JoinCode {
            addresses: (0..4).map(long).collect(),
            hub: [1; 32],
            token: EnrolToken::generate().expect("randomness"),
            expires: 1,
            role: "worker".parse().expect("a role"),
        };
        let first = code.addresses[0].clone();
        let (text, short) = shortened(code).expect("one fits");
        assert!((1..4).contains(&short.addresses.len()));
        assert_eq!(short.addresses[0], first);
        assert_eq!(text.parse::<JoinCode>(), Ok(short));
    }
}
