//! `[[credentials]]` and `[[operations]]`: secrets for other servers that the node uses, and which operation may use
//! which. A document holds only sealed ones. A text that is no name is not quoted in a diagnostic, because it may be
//! a secret in the wrong place.

use data_encoding::BASE64;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::capabilities::CapabilityKind;
use crate::credentials::EncryptedData;

use super::error::quote;
use super::principals::correct;
use super::read::{ConfigDiagnostics, ConfigTable, ConfigValue};
use super::sections::each;
use super::values::ConfigDiagnostic;
use super::vault::KEY_VERSIONS;

/// Most credentials: the node opens each record at a start.
const CREDENTIALS_MAX: usize = 256;
/// Most operations with grants.
const OPERATIONS_MAX: usize = 256;
/// Most credentials of one operation.
const GRANTED_MAX: usize = 32;
/// Longest name of a credential in bytes.
const NAME_BYTES_MAX: usize = 32;
/// Longest name of a header in bytes.
const HEADER_BYTES_MAX: usize = 64;
/// Longest user of `basic` in bytes.
const USER_BYTES_MAX: usize = 255;
/// Longest name of an operation in bytes: four segments of 63.
const OPERATION_BYTES_MAX: usize = 255;
/// Highest number of a zone or a generation: the last hardened level of a derivation path (BIP 32).
const INDEX_MAX: u32 = (1 << 31) - 1;
/// The only format of a record.
const ALG: &str = "ALK1";
/// Bytes of the authentication tag, which every record has.
const TAG_BYTES: usize = 16;
/// The one purpose whose keys operations may use, as the prefix of its numbers.
const DNS_ZONE: &str = "dns-zone-";

/// `[[credentials]]`: something that operations may use without seeing it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CredentialConfig {
    /// What operations ask for it by.
    #[schemars(regex(pattern = r"^[a-z][a-z0-9-]{0,31}$"))]
    pub name: String,
    /// What operations can do with the secret: send it in requests, sign, or encrypt.
    pub kind: CapabilityKind,
    /// The secret, sealed by the vault of this node's words under the label `cred:` and the name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub record: Option<EncryptedData>,
    /// Of `api-key`: the header that the key goes into.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^[a-z][a-z0-9-]{0,63}$"))]
    pub header: Option<String>,
    /// Of `api-key`: the parameter of the query that the key goes into, in the place of a header.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^[A-Za-z0-9_.~-]{1,64}$"))]
    pub query: Option<String>,
    /// Of `api-key`: the cookie that the key goes into, in the place of a header.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^[A-Za-z0-9_.~-]{1,64}$"))]
    pub cookie: Option<String>,
    /// Of `basic`: whose password it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Of `signer`: a key that is derived from the words, instead of a secret from outside.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^dns-zone-[0-9]+-[0-9]+$"))]
    pub purpose: Option<String>,
}

impl CredentialConfig {
    /// Whether it takes a secret from outside.
    #[must_use]
    pub fn needs_secret(&self) -> bool {
        self.kind != CapabilityKind::Aead && self.purpose.is_none()
    }
}

/// `[[operations]]`: what an operation is given.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OperationConfig {
    /// Its name, `js/mint`.
    pub name: String,
    /// Names of credentials that it may use.
    #[serde(default)]
    pub capabilities: Vec<String>,
}

/// The entries without mistakes.
pub(super) fn credentials(
    entries: &[ConfigValue<'_, '_>],
    notes: &mut ConfigDiagnostics<'_>,
) -> Vec<CredentialConfig> {
    bounded(entries, CREDENTIALS_MAX, "credentials", notes);
    let mut seen = Vec::new();
    correct(entries, notes, |section, notes| {
        credential(section, &mut seen, notes)
    })
}

/// The entries without mistakes. `known` are the names of all credentials, also of those with mistakes.
pub(super) fn operations(
    entries: &[ConfigValue<'_, '_>],
    known: &[String],
    notes: &mut ConfigDiagnostics<'_>,
) -> Vec<OperationConfig> {
    bounded(entries, OPERATIONS_MAX, "operations", notes);
    let mut seen = Vec::new();
    correct(entries, notes, |section, notes| {
        operation(section, known, &mut seen, notes)
    })
}

/// The names of all credentials, for the sections that refer to them: a mistake in an entry is not reported a second
/// time by those.
pub(super) fn names(entries: &[ConfigValue<'_, '_>]) -> Vec<String> {
    let name = |entry: &ConfigValue<'_, '_>| entry.text_of("name").map(str::to_owned);
    entries.iter().filter_map(name).collect()
}

fn bounded(
    entries: &[ConfigValue<'_, '_>],
    most: usize,
    what: &str,
    notes: &mut ConfigDiagnostics<'_>,
) {
    if let Some(beyond) = entries.get(most) {
        let what = format!("there are more than {most} {what}");
        beyond.report(notes, what, "leave some out");
    }
}

fn credential(
    mut section: ConfigTable<'_, '_>,
    seen: &mut Vec<String>,
    notes: &mut ConfigDiagnostics<'_>,
) -> Option<CredentialConfig> {
    let name = section.required("name", "\"a-name\"", notes);
    let kind = section.required("kind", "\"bearer\"", notes);
    let record = section.key("record");
    let header = section.key("header");
    let query = section.key("query");
    let cookie = section.key("cookie");
    let user = section.key("user");
    let purpose = section.key("purpose");
    section.finish(notes);
    let name = name.and_then(|value| {
        let name = value.parsed(notes, credential_name)?;
        unique(name, seen, &value, notes)
    });
    let kind_value = kind.clone();
    let kind = kind.and_then(|value| value.parsed(notes, capability_kind));
    if let (Some(kind), Some(kind_value)) = (kind, kind_value) {
        // A key that goes into two parts of a request would be logged in the less protected one as well.
        let locations = [&header, &query, &cookie];
        let mut given = locations.into_iter().flatten();
        let needed = [
            (CapabilityKind::ApiKey, "header", given.next().is_some()),
            (CapabilityKind::Basic, "user", user.is_some()),
        ];
        if let Some(second) = given.next().filter(|_| kind == CapabilityKind::ApiKey) {
            let what = "a key goes into one place only";
            second.report(notes, what, "keep one of header, query and cookie");
        }
        for (of, key, there) in needed {
            if kind == of && !there {
                let what = format!("the kind {kind} needs the key {key}");
                kind_value.report(notes, what, format!("add {key} = \"…\""));
            }
        }
        // A `signer` with a purpose derives its key, so that a sealed secret would never be used.
        let secret = kind != CapabilityKind::Aead && purpose.is_none();
        let fit = [
            (&record, secret),
            (&header, kind == CapabilityKind::ApiKey),
            (&query, kind == CapabilityKind::ApiKey),
            (&cookie, kind == CapabilityKind::ApiKey),
            (&user, kind == CapabilityKind::Basic),
            (&purpose, kind == CapabilityKind::Signer),
        ];
        for (value, is_valid) in fit {
            if let Some(value) = value.as_ref().filter(|_| !is_valid) {
                let what = format!("the kind {kind} as it is here has no use for this key");
                value.report(notes, what, "leave it out");
            }
        }
    }
    Some(CredentialConfig {
        record: record.and_then(|value| sealed(&value, notes)),
        header: header.and_then(|value| value.parsed(notes, header_name)),
        query: query.and_then(|value| value.parsed(notes, parameter_name)),
        cookie: cookie.and_then(|value| value.parsed(notes, parameter_name)),
        user: user.and_then(|value| value.parsed(notes, user_name)),
        purpose: purpose.and_then(|value| value.parsed(notes, signing_purpose)),
        name: name?,
        kind: kind?,
    })
}

fn operation(
    mut section: ConfigTable<'_, '_>,
    known: &[String],
    seen: &mut Vec<String>,
    notes: &mut ConfigDiagnostics<'_>,
) -> Option<OperationConfig> {
    let name = section.required("name", "\"js/mint\"", notes);
    let granted = section.list("capabilities", notes);
    section.finish(notes);
    let name = name.and_then(|value| {
        let name = value.parsed(notes, operation_name)?;
        unique(name, seen, &value, notes)
    });
    bounded(
        &granted,
        GRANTED_MAX,
        "capabilities of one operation",
        notes,
    );
    let is_known = |text: &str| match known.iter().any(|name| name == text) {
        true => Ok(text.to_owned()),
        false => Err(ConfigDiagnostic::new(
            "there is no credential of this name".to_owned(),
            "add [[credentials]] with it, or leave it out".to_owned(),
        )),
    };
    let capabilities = each(&granted, is_known, notes);
    for (at, one) in capabilities.iter().enumerate() {
        if capabilities[..at].contains(one)
            && let Some(value) = granted.get(at)
        {
            let what = format!("{} is listed twice", quote(one));
            value.report(notes, what, "keep one of the two");
        }
    }
    Some(OperationConfig {
        name: name?,
        capabilities,
    })
}

fn unique(
    name: String,
    seen: &mut Vec<String>,
    value: &ConfigValue<'_, '_>,
    notes: &mut ConfigDiagnostics<'_>,
) -> Option<String> {
    if seen.contains(&name) {
        let what = format!("{} has an entry already", quote(&name));
        value.report(notes, what, "keep one of the two");
        return None;
    }
    seen.push(name.clone());
    Some(name)
}

/// The JSON form of a sealed record, as a TOML table.
fn sealed(value: &ConfigValue<'_, '_>, notes: &mut ConfigDiagnostics<'_>) -> Option<EncryptedData> {
    let mut section = value.section(notes)?;
    let example = "… as 'alknet vault record add --print' prints it";
    let alg = section.required("alg", "\"ALK1\"", notes);
    let key_version = section.required("key_version", "2", notes);
    let salt = section.required("salt", example, notes);
    let iv = section.required("iv", example, notes);
    let data = section.required("data", example, notes);
    section.finish(notes);
    let format = |text: &str| match text == ALG {
        true => Ok(text.to_owned()),
        false => Err(ConfigDiagnostic::new(
            "this is no format of records",
            "write \"ALK1\"",
        )),
    };
    let alg = alg.and_then(|value| value.parsed(notes, format));
    let key_version = key_version.and_then(|value| value.number(KEY_VERSIONS, notes));
    let mut bytes = |value: Option<ConfigValue<'_, '_>>, is_valid: fn(usize) -> bool| {
        value?.parsed(notes, |text| match BASE64.decode(text.as_bytes()) {
            Ok(bytes) if is_valid(bytes.len()) => Ok(bytes),
            _ => Err(ConfigDiagnostic::new(
                "this is no part of a record",
                example,
            )),
        })
    };
    let salt = bytes(salt, |len| len == 32);
    let iv = bytes(iv, |len| len == 12);
    let data = bytes(data, |len| len >= TAG_BYTES);
    Some(EncryptedData {
        key_version: key_version?,
        salt: salt?.try_into().ok()?,
        iv: iv?.try_into().ok()?,
        data: data?,
        alg: alg?,
    })
}

fn credential_name(text: &str) -> Result<String, ConfigDiagnostic> {
    if is_credential_name(text) {
        return Ok(text.to_owned());
    }
    let fix = "use 1 to 32 of a-z, 0-9 and '-', a letter first";
    Err(ConfigDiagnostic::new(
        "this is no name of a credential",
        fix,
    ))
}

/// Whether `text` is a valid name of a credential: 1 to 32 of `a-z`, `0-9` and `-`, a letter first.
#[must_use]
pub fn is_credential_name(text: &str) -> bool {
    is_plain(text, NAME_BYTES_MAX)
}

fn is_plain(text: &str, most: usize) -> bool {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    let letter = text.bytes().next().is_some_and(|b| b.is_ascii_lowercase());
    letter && text.len() <= most && text.bytes().all(plain)
}

fn capability_kind(text: &str) -> Result<CapabilityKind, ConfigDiagnostic> {
    let mut all = CapabilityKind::ALL.into_iter();
    all.find(|kind| kind.name() == text).ok_or_else(|| {
        let names = CapabilityKind::ALL.map(CapabilityKind::name).join(", ");
        let what = "this is no kind of credential".to_owned();
        ConfigDiagnostic::new(what, format!("write one of {names}"))
    })
}

fn header_name(text: &str) -> Result<String, ConfigDiagnostic> {
    if is_plain(text, HEADER_BYTES_MAX) {
        return Ok(text.to_owned());
    }
    let fix = "write it in lower case, like x-api-key";
    Err(ConfigDiagnostic::new("this is no name of a header", fix))
}

/// The name of a parameter or a cookie, of characters that both allow without an escape.
fn parameter_name(text: &str) -> Result<String, ConfigDiagnostic> {
    // These are unreserved in a URI (RFC 3986 section 2.3), and allowed in the name of a cookie (RFC 6265 section
    // 4.1.1).
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'~' | b'-');
    if (1..=HEADER_BYTES_MAX).contains(&text.len()) && text.bytes().all(plain) {
        return Ok(text.to_owned());
    }
    let fix = "use 1 to 64 of A-Z, a-z, 0-9, '_', '.', '~' and '-'";
    Err(ConfigDiagnostic::new(
        "this is no name of a parameter or a cookie",
        fix,
    ))
}

fn user_name(text: &str) -> Result<String, ConfigDiagnostic> {
    // The colon ends the user of Basic authentication (RFC 7617 section 2).
    let plain = |b: u8| b.is_ascii_graphic() && b != b':';
    if (1..=USER_BYTES_MAX).contains(&text.len()) && text.bytes().all(plain) {
        return Ok(text.to_owned());
    }
    let fix = "use 1 to 255 printable ASCII characters without ':' and spaces";
    Err(ConfigDiagnostic::new("this is no user", fix))
}

/// Refuses the keys that identify the node elsewhere or that admit users.
fn signing_purpose(text: &str) -> Result<String, ConfigDiagnostic> {
    const NEVER: [&str; 6] = [
        "acme-account",
        "image-signing",
        "message-leaf",
        "node-identity",
        "ssh-host",
        "ssh-user-ca",
    ];
    let fix = "write dns-zone-ZONE-GENERATION, or leave the key out and bring a key from outside";
    // These keys act for the node itself: an operation that holds one could act as the node.
    if NEVER.contains(&text) {
        let what = format!("the key {} is handed to no operation", quote(text));
        return Err(ConfigDiagnostic::new(what, fix.to_owned()));
    }
    let number = |text: &str| {
        let number: u32 = text.parse().ok()?;
        // Each number has one spelling, without leading zeros and sign.
        (number <= INDEX_MAX && number.to_string() == text).then_some(number)
    };
    let numbers = text.strip_prefix(DNS_ZONE).and_then(|rest| {
        let (zone, generation) = rest.split_once('-')?;
        number(zone).zip(number(generation))
    });
    match numbers {
        Some(_) => Ok(text.to_owned()),
        None => Err(ConfigDiagnostic::new("this is no purpose of a key", fix)),
    }
}

fn operation_name(text: &str) -> Result<String, ConfigDiagnostic> {
    let is_segment = |segment: &str| {
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-');
        let letter = segment
            .bytes()
            .next()
            .is_some_and(|b| b.is_ascii_alphabetic());
        letter && segment.len() <= 63 && segment.bytes().all(plain)
    };
    let segments = text.split('/').count();
    let is_valid = text.len() <= OPERATION_BYTES_MAX && (2..=4).contains(&segments);
    if is_valid && text.split('/').all(is_segment) {
        return Ok(text.to_owned());
    }
    Err(ConfigDiagnostic::new(
        format!("{} is no name of an operation", quote(text)),
        "write it like js/mint".to_owned(),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::NodeConfig;

    fn assert_diagnostic(document: &str, word: &str) {
        let errors = NodeConfig::parse(document.as_bytes()).expect_err(document);
        assert_eq!(errors.len(), 1, "{document}: {errors:#?}");
        let text = errors[0].to_string();
        assert!(text.contains(word), "{word}: {text}");
        assert!(!text.contains("hush"), "{text}");
    }

    #[test]
    fn each_kind_has_its_keys_and_no_others() {
        let one = |rest: &str| format!("[[credentials]]\nname = \"one\"\n{rest}\n");
        for (rest, word) in [
            ("kind = \"hush\"", "no kind of credential"),
            ("kind = \"api-key\"", "needs the key header"),
            ("kind = \"basic\"", "needs the key user"),
            (
                "kind = \"api-key\"\nheader = \"x-key\"\nquery = \"key\"",
                "one place only",
            ),
            (
                "kind = \"api-key\"\nquery = \"hush hush\"",
                "no name of a parameter",
            ),
            ("kind = \"bearer\"\ncookie = \"a\"", "no use for this key"),
            ("kind = \"bearer\"\nuser = \"a\"", "no use for this key"),
            ("kind = \"aead\"\nrecord = {}", ""),
            (
                "kind = \"bearer\"\nsecret = \"hush\"",
                "unknown key 'secret'",
            ),
            ("kind = \"bearer\"\nrecord = \"hush\"", "expected a table"),
            (
                "kind = \"api-key\"\nheader = \"Hush\"",
                "no name of a header",
            ),
            ("kind = \"basic\"\nuser = \"a:hush\"", "no user"),
            (
                "kind = \"signer\"\npurpose = \"node-identity\"",
                "handed to no operation",
            ),
            (
                "kind = \"signer\"\npurpose = \"credentials-2\"",
                "no purpose of a key",
            ),
            (
                "kind = \"signer\"\npurpose = \"dns-zone-01-0\"",
                "no purpose of a key",
            ),
            (
                "kind = \"signer\"\npurpose = \"dns-zone-2147483648-0\"",
                "no purpose of a key",
            ),
        ] {
            let document = one(rest);
            if word.is_empty() {
                assert!(NodeConfig::parse(document.as_bytes()).is_err());
            } else {
                assert_diagnostic(&document, word);
            }
        }
        for fine in [
            "kind = \"aead\"",
            "kind = \"bearer\"",
            "kind = \"bytes\"",
            "kind = \"signer\"",
            "kind = \"signer\"\npurpose = \"dns-zone-0-7\"",
            "kind = \"basic\"\nuser = \"ada\"",
            "kind = \"api-key\"\nheader = \"x-api-key\"",
        ] {
            let config = NodeConfig::parse(one(fine).as_bytes()).expect(fine);
            let own = !fine.contains("aead") && !fine.contains("purpose");
            assert_eq!(config.credentials[0].needs_secret(), own, "{fine}");
        }
        assert_diagnostic(
            &[one("kind = \"aead\""), one("kind = \"bytes\"")].concat(),
            "has an entry already",
        );
        assert_diagnostic(
            "[[credentials]]\nname = \"Hush\"\nkind = \"aead\"\n",
            "no name",
        );
    }

    #[test]
    fn a_record_is_whole_or_refused_and_never_quoted() {
        let text = |salt: &str, data: &str, alg: &str| {
            format!(
                "[[credentials]]\nname = \"one\"\nkind = \"bearer\"\nrecord = {{ key_version = 2, \
                 salt = \"{salt}\", iv = \"{}\", data = \"{data}\", alg = \"{alg}\" }}\n",
                BASE64.encode(&[2; 12])
            )
        };
        let (salt, data) = (BASE64.encode(&[1; 32]), BASE64.encode(&[3; 20]));
        let config = NodeConfig::parse(text(&salt, &data, "ALK1").as_bytes()).expect("a record");
        let record = config.credentials[0].record.as_ref().expect("there");
        assert_eq!((record.key_version, record.data.len()), (2, 20));
        assert_diagnostic(&text("hush", &data, "ALK1"), "no part of a record");
        assert_diagnostic(&text(&salt, &BASE64.encode(&[3; 15]), "ALK1"), "no part");
        assert_diagnostic(&text(&salt, &data, "hush"), "no format of records");
        assert_diagnostic(
            &text(&salt, &data, "ALK1").replace("key_version = 2", "key_version = 1"),
            "out of range",
        );
        assert_diagnostic(
            &text(&salt, &data, "ALK1").replace("key_version = 2, ", ""),
            "missing",
        );
    }

    #[test]
    fn operations_get_what_there_is() {
        let credential = "[[credentials]]\nname = \"one\"\nkind = \"aead\"\n";
        let with = |rest: &str| format!("{credential}[[operations]]\n{rest}\n");
        let fine = with("name = \"js/mint\"\ncapabilities = [\"one\"]");
        let config = NodeConfig::parse(fine.as_bytes()).expect("correct");
        assert_eq!(config.operations[0].capabilities, ["one"]);
        for (rest, word) in [
            ("name = \"js/a\"\ncapabilities = [\"two\"]", "no credential"),
            (
                "name = \"js/a\"\ncapabilities = [\"one\", \"one\"]",
                "twice",
            ),
            (
                "name = \"js\"\ncapabilities = []",
                "no name of an operation",
            ),
            ("name = \"js/a\"\ncapability = []", "did you mean"),
            ("capabilities = [\"one\"]", "missing"),
        ] {
            assert_diagnostic(&with(rest), word);
        }
    }
}
