//! The JSON of slots: exactly the fields of each type.

use data_encoding::BASE64;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::json;
use crate::slots::record::WRAPPED;
use crate::slots::{Argon2Params, KeySlot, KmsParams, SlotError, SlotId, SlotParams, Tpm2Params};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SlotForm {
    id: u32,
    params: Value,
    #[serde(rename = "type")]
    kind: String,
    wrap: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PassphraseForm {
    m: u32,
    p: u32,
    salt: String,
    t: u32,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ProvisioningForm {}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NoneForm {
    kek: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Tpm2Form {
    pcrs: Vec<u8>,
    pin: bool,
    policy: String,
    private: String,
    public: String,
    /// Absent in slots that record none.
    values: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct KmsForm {
    addresses: Vec<String>,
    client: String,
    half: String,
    key: String,
    peer: String,
}

/// The parameters as canonical JSON.
pub(super) fn params_text(params: &SlotParams) -> String {
    json::canonical(&params_value(params)).expect("parameters are texts, flags and small integers")
}

/// A slot in the form of the file.
pub(super) fn slot_value(slot: &KeySlot) -> Value {
    json!({
        "id": slot.id.0,
        "params": params_value(&slot.params),
        "type": slot.kind().name(),
        "wrap": BASE64.encode(&slot.wrapped),
    })
}

/// A slot of a file that is not authenticated yet.
pub(super) fn slot(value: Value) -> Result<KeySlot, SlotError> {
    let form: SlotForm = form(value)?;
    Ok(KeySlot {
        id: SlotId(form.id),
        params: params(&form.kind, form.params)?,
        wrapped: array::<WRAPPED>(&form.wrap)?,
    })
}

fn params_value(params: &SlotParams) -> Value {
    match params {
        SlotParams::Kms(kms) => json!({
            "addresses": kms.addresses(),
            "client": BASE64.encode(kms.client()),
            "half": BASE64.encode(kms.half()),
            "key": kms.key(),
            "peer": kms.peer(),
        }),
        SlotParams::None { kek } => json!({"kek": BASE64.encode(kek)}),
        SlotParams::Passphrase { argon2, salt } => json!({
            "m": argon2.kib(),
            "p": 1,
            "salt": BASE64.encode(salt),
            "t": argon2.passes(),
        }),
        SlotParams::Provisioning => json!({}),
        SlotParams::Tpm2(tpm) => {
            let mut value = json!({
                "pcrs": tpm.pcrs(),
                "pin": tpm.pin(),
                "policy": BASE64.encode(tpm.policy()),
                "private": BASE64.encode(tpm.private()),
                "public": BASE64.encode(tpm.public()),
            });
            // The field is left out if it is empty, so that files of earlier programs keep their
            // authentication code.
            if !tpm.values().is_empty() {
                value["values"] = BASE64.encode(tpm.values().as_flattened()).into();
            }
            value
        }
    }
}

fn params(kind: &str, value: Value) -> Result<SlotParams, SlotError> {
    match kind {
        "kms" => {
            let kms: KmsForm = form(value)?;
            let (client, half) = (array(&kms.client)?, array(&kms.half)?);
            let params = KmsParams::new(kms.peer, kms.addresses, kms.key, client, half)?;
            Ok(SlotParams::Kms(params))
        }
        "none" => {
            let none: NoneForm = form(value)?;
            Ok(SlotParams::None {
                kek: array(&none.kek)?,
            })
        }
        "passphrase" => {
            let passphrase: PassphraseForm = form(value)?;
            if passphrase.p != 1 {
                return Err(SlotError::BadParams("Argon2id lanes; one is used"));
            }
            Ok(SlotParams::Passphrase {
                argon2: Argon2Params::new(passphrase.m, passphrase.t)?,
                salt: array(&passphrase.salt)?,
            })
        }
        "provisioning" => {
            let ProvisioningForm {} = form(value)?;
            Ok(SlotParams::Provisioning)
        }
        "tpm2" => {
            let tpm: Tpm2Form = form(value)?;
            let policy = array(&tpm.policy)?;
            let (public, private) = (bytes(&tpm.public)?, bytes(&tpm.private)?);
            let params = Tpm2Params::new(public, private, tpm.pcrs, policy, tpm.pin)?;
            // Files of earlier programs have no values.
            let Some(values) = tpm.values else {
                return Ok(SlotParams::Tpm2(params));
            };
            let values = bytes(&values)?;
            let (values, rest) = values.as_chunks();
            if !rest.is_empty() {
                return Err(SlotError::Form("a field of another length"));
            }
            Ok(SlotParams::Tpm2(params.with_values(values.to_vec())?))
        }
        _ => Err(SlotError::Form("a slot of an unknown type")),
    }
}

fn form<T: for<'de> Deserialize<'de>>(value: Value) -> Result<T, SlotError> {
    serde_json::from_value(value).map_err(|_| SlotError::Form("a slot with other fields"))
}

pub(super) fn bytes(text: &str) -> Result<Vec<u8>, SlotError> {
    let bytes = BASE64.decode(text.as_bytes());
    bytes.map_err(|_| SlotError::Form("a field that is no base64"))
}

pub(super) fn array<const N: usize>(text: &str) -> Result<[u8; N], SlotError> {
    let bytes = bytes(text)?.try_into();
    bytes.map_err(|_| SlotError::Form("a field of another length"))
}
