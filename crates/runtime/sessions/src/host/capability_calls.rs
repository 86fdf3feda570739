//! Capability actions of scripts: calls in the namespace `capability`, which are no operations. The session's host
//! performs them with the capabilities of the operation that opened the session, so neither another operation nor an
//! outside caller can do it in its place.

use alknet_call::CallError;
use alknet_core::{Capabilities, Capability, CapabilityError, CapabilityKind};
use alknet_runtime::SecretMarks;
use data_encoding::BASE64;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::limits::ACT_BYTES_MAX;

/// The prefix of their names. No operation may have such a name.
const NAMESPACE: &str = "capability/";

/// Whether the name is that of a capability action.
pub(super) fn is_act(name: &str) -> bool {
    name.starts_with(NAMESPACE)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CapabilityGetInput {
    name: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CapabilitySignInput {
    name: String,
    data: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CapabilitySealInput {
    name: String,
    label: String,
    data: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CapabilityOpenInput {
    name: String,
    label: String,
    sealed: String,
}

/// Performs a capability action.
///
/// # Errors
/// `FORBIDDEN` for a capability that was not granted. `UNAVAILABLE` while the vault is locked or lacks the secret.
/// `INVALID_INPUT` for an action that the capability does not support. Each has a `reason` in the details.
/// `NOT_FOUND` for an unknown action.
pub(super) fn act(given: &Capabilities, name: &str, input: &Value) -> Result<Value, CallError> {
    let of = |name: &str| given.get(name).map_err(CallError::from);
    match name.strip_prefix(NAMESPACE) {
        Some("get") => get(of(&read::<CapabilityGetInput>(input)?.name)?),
        Some("sign") => {
            let input: CapabilitySignInput = read(input)?;
            let signature = of(&input.name)?.sign(&bytes(&input.data)?)?;
            Ok(json!({ "signature": BASE64.encode(&signature) }))
        }
        Some("seal") => {
            let input: CapabilitySealInput = read(input)?;
            let sealed = of(&input.name)?.seal(&input.label, &bytes(&input.data)?)?;
            Ok(json!({ "sealed": BASE64.encode(&sealed) }))
        }
        Some("open") => {
            let input: CapabilityOpenInput = read(input)?;
            let opened = of(&input.name)?.open(&input.label, &bytes(&input.sealed)?)?;
            Ok(json!({ "data": BASE64.encode(opened.expose()) }))
        }
        _ => Err(CallError::not_found(name)),
    }
}

/// The parts of an action that a record of calls must not contain.
pub(super) fn marks(name: &str) -> Option<SecretMarks> {
    let secret = json!({ "properties": { "data": { "x-secret": true } } });
    let plain = json!({});
    let (input, output) = match name.strip_prefix(NAMESPACE)? {
        "get" | "sign" => (&plain, &plain),
        "seal" => (&secret, &plain),
        "open" => (&plain, &secret),
        _ => return None,
    };
    Some(SecretMarks::from_schemas(input, output, []))
}

fn get(one: &Capability) -> Result<Value, CallError> {
    let mut answer = json!({ "name": one.name(), "kind": one.kind().name() });
    if one.kind() == CapabilityKind::Signer {
        answer["public_key"] = BASE64.encode(&one.public()?).into();
    }
    Ok(answer)
}

fn read<T: DeserializeOwned>(input: &Value) -> Result<T, CallError> {
    // The error does not quote the input, which may contain a secret of the script.
    T::deserialize(input).map_err(|_| CallError::invalid_input("the act takes another input"))
}

fn bytes(text: &str) -> Result<Vec<u8>, CallError> {
    let invalid = |_| CallError::invalid_input("the bytes are no base64");
    let bytes = BASE64.decode(text.as_bytes()).map_err(invalid)?;
    match bytes.len() <= ACT_BYTES_MAX {
        true => Ok(bytes),
        false => Err(CapabilityError::TooLarge { max: ACT_BYTES_MAX }.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use alknet_call::ErrorCode;
    use alknet_core::{CapabilityBackend, Secret, capability};

    use super::*;

    struct FixedSigner;

    impl alknet_core::CapabilitySigner for FixedSigner {
        fn public(&self) -> [u8; 32] {
            [7; 32]
        }

        fn sign(&self, message: &[u8]) -> Result<[u8; 64], CapabilityError> {
            Ok([message.len() as u8; 64])
        }
    }

    fn given() -> Capabilities {
        let gate: alknet_core::CapabilityGate = Arc::new(|| true);
        let (mint, filler) = capability("mint", CapabilityKind::Signer, Arc::clone(&gate));
        filler.fill(CapabilityBackend::Signer(Box::new(FixedSigner)));
        let (openai, filler) = capability("openai", CapabilityKind::Bearer, Arc::clone(&gate));
        filler.fill(CapabilityBackend::Bearer(Secret::new(b"sk-hush".to_vec())));
        let (empty, _) = capability("empty", CapabilityKind::Signer, gate);
        Capabilities::new([mint, openai, empty])
    }

    fn failed(name: &str, input: Value) -> (ErrorCode, String) {
        let error = act(&given(), name, &input).expect_err(name);
        assert!(!format!("{error:?}").contains("hush"), "{error:?}");
        let reason = error
            .details
            .and_then(|it| it["reason"].as_str().map(str::to_owned));
        (error.code, reason.unwrap_or_default())
    }

    #[test]
    fn what_was_given_acts_and_tells_its_kind_only() {
        let signed = act(
            &given(),
            "capability/sign",
            &json!({ "name": "mint", "data": "YWJj" }),
        );
        let signature = BASE64.encode(&[3; 64]);
        assert_eq!(signed.expect("signed"), json!({ "signature": signature }));
        let get = |name: &str| act(&given(), "capability/get", &json!({ "name": name }));
        let public = BASE64.encode(&[7; 32]);
        assert_eq!(
            get("mint").expect("given"),
            json!({ "name": "mint", "kind": "signer", "public_key": public })
        );
        assert_eq!(
            get("openai").expect("given"),
            json!({ "name": "openai", "kind": "bearer" })
        );
    }

    #[test]
    fn everything_else_is_refused_by_one_code_and_reason() {
        let data = json!({ "name": "mint", "data": "YWJj" });
        let not = |code: ErrorCode, reason: &str| (code, reason.to_owned());
        let other = json!({ "name": "other", "data": "YWJj" });
        assert_eq!(
            failed("capability/sign", other),
            not(ErrorCode::Forbidden, "not_granted")
        );
        assert_eq!(
            failed("capability/sign", json!({ "name": "openai", "data": "" })),
            not(ErrorCode::InvalidInput, "capability_kind")
        );
        assert_eq!(
            failed("capability/get", json!({ "name": "empty" })),
            not(ErrorCode::Unavailable, "vault_locked")
        );
        assert_eq!(
            failed("capability/derive", data),
            not(ErrorCode::NotFound, "")
        );
        for input in [
            json!(null),
            json!({ "name": "mint" }),
            json!({ "name": "mint", "data": "hush!" }),
            json!({ "name": "mint", "data": 5 }),
            json!({ "name": "mint", "data": "", "more": 1 }),
        ] {
            let refused = failed("capability/sign", input);
            assert_eq!(refused, not(ErrorCode::InvalidInput, ""));
        }
        let long = BASE64.encode(&vec![0; ACT_BYTES_MAX + 1]);
        assert_eq!(
            failed("capability/sign", json!({ "name": "mint", "data": long })),
            not(ErrorCode::InvalidInput, "too_large")
        );
    }

    #[test]
    fn a_record_has_no_plain_text() {
        let mut input = json!({ "name": "box", "label": "a", "data": "aHVzaA==" });
        marks("capability/seal")
            .expect("an act")
            .redact_input(&mut input);
        assert_eq!(input["data"], alknet_runtime::REDACTED);
        let mut output = json!({ "data": "aHVzaA==" });
        marks("capability/open")
            .expect("an act")
            .redact_output(&mut output);
        assert_eq!(output["data"], alknet_runtime::REDACTED);
        assert!(marks("capability/other").is_none());
    }
}
