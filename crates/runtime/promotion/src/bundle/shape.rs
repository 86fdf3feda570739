//! Checks of a bundle's members that go beyond their types.

use std::collections::BTreeSet;

use alknet_call::{ErrorCode, is_operation_name};
use alknet_core::PeerKey;
use alknet_runtime::{ModuleSet, RuntimeCode, ScriptOperationKind, ScriptRegistration};
use serde_json::Value;

use super::{BundleContent, BundleError, FORMAT};
use crate::limits::{
    ACTS, CASES_MAX, DESCRIPTION_BYTES_MAX, ERRORS_MAX, MODULES_MAX, NAME_BYTES_MAX, USES_MAX,
};

/// The most bytes of the names of an engine and of an export.
const WORD_BYTES_MAX: usize = 128;

/// Checks what the types cannot: serde would also accept an array for an object, and assign its
/// items to the members in the order of their declaration.
pub(super) fn check(document: &Value) -> Result<(), BundleError> {
    object(document, "document")?;
    for name in ["spec", "modules", "fuel"] {
        object(&document[name], name)?;
    }
    if let Some(errors) = document["spec"].get("errors") {
        object(errors, "spec.errors")?;
    }
    // serde reports a missing list later.
    let none = Vec::new();
    for (n, case) in document["tests"]
        .as_array()
        .unwrap_or(&none)
        .iter()
        .enumerate()
    {
        object(case, &format!("tests.{n}"))?;
        object(&case["expect"], &format!("tests.{n}.expect"))?;
        for (m, call) in case["calls"].as_array().unwrap_or(&none).iter().enumerate() {
            object(call, &format!("tests.{n}.calls.{m}"))?;
            if let Some(error) = call.get("error").filter(|error| !error.is_null()) {
                object(error, &format!("tests.{n}.calls.{m}.error"))?;
            }
        }
    }
    Ok(())
}

fn object(value: &Value, place: &str) -> Result<(), BundleError> {
    match value {
        Value::Object(_) => Ok(()),
        Value::Null => Err(BundleError::shape(place, "is missing; it is an object")),
        _ => Err(BundleError::shape(place, "is no object")),
    }
}

/// Checks the bounds of all members.
pub(super) fn check_content(content: &BundleContent) -> Result<(), BundleError> {
    let refuse = |place: &str, what: &str| Err(BundleError::shape(place, what));
    if content.format != FORMAT {
        return refuse("format", "this program knows 1");
    }
    if content.engine.is_empty() || content.engine.len() > WORD_BYTES_MAX {
        return refuse("engine", "1 to 128 bytes");
    }
    // `is_signed` verifies signatures of no other keys.
    if !matches!(content.key, PeerKey::Ed25519(_)) {
        return refuse("key", "only Ed25519 keys sign: ed25519:<64 hex>");
    }
    check_spec(&content.spec)?;
    check_modules(content)?;
    if let Some(export) = &content.export {
        if !is_identifier(export) {
            return refuse("export", "the name of an exported function");
        }
        if content.spec.kind == ScriptOperationKind::Subscription {
            return refuse("export", "a subscription is registered by its module");
        }
    }
    if content.service && content.export.is_none() {
        return refuse("service", "a service answers by a function that it exports");
    }
    if !(1..=CASES_MAX).contains(&content.tests.len()) {
        return refuse("tests", "1 to 256 cases");
    }
    let reach: alknet_call::NameSet = content.spec.uses.iter().collect();
    for (n, case) in content.tests.iter().enumerate() {
        // Capability actions are no operations: the configuration decides which ones an operation
        // has.
        let is_declared = |path: &str| reach.contains(path) || path.starts_with(ACTS);
        let beyond = case.calls.iter().find(|call| !is_declared(&call.path));
        if let Some(call) = beyond {
            let what = format!("'{}' is not among what the operation uses", call.path);
            return Err(BundleError::shape(format!("tests.{n}.calls"), what));
        }
    }
    Ok(())
}

fn check_spec(spec: &ScriptRegistration) -> Result<(), BundleError> {
    let refuse = |place: &str, what: String| Err(BundleError::shape(place, what));
    if !is_name(&spec.name) {
        let what = "1 to 128 of a-z, 0-9, - and _, with / between parts".to_owned();
        return refuse("spec.name", what);
    }
    if spec.description.len() > DESCRIPTION_BYTES_MAX {
        return refuse("spec.description", "at most 4096 bytes".to_owned());
    }
    if spec.errors.len() > ERRORS_MAX {
        return refuse("spec.errors", "at most 64 codes".to_owned());
    }
    let mine = |code: &&String| !ErrorCode::may_declare(code) || is_runtime_code(code);
    if let Some(code) = spec.errors.keys().find(mine) {
        let what =
            format!("'{code}': own codes match [A-Z][A-Z0-9_]{{2,63}} and are not the node's");
        return refuse("spec.errors", what);
    }
    if spec.uses.len() > USES_MAX {
        return refuse("spec.uses", "at most 64 operations".to_owned());
    }
    let distinct: BTreeSet<_> = spec.uses.iter().collect();
    if distinct.len() != spec.uses.len() {
        return refuse("spec.uses", "an operation is named twice".to_owned());
    }
    match spec.uses.iter().find(|name| !is_reach(name)) {
        Some(name) => refuse(
            "spec.uses",
            format!("'{name}' is neither an operation nor, as fs/*, all of a namespace"),
        ),
        None => Ok(()),
    }
}

fn check_modules(content: &BundleContent) -> Result<(), BundleError> {
    let refuse = |what: String| Err(BundleError::shape("modules", what));
    if !(1..=MODULES_MAX).contains(&content.modules.len()) {
        return refuse("1 to 256 modules".to_owned());
    }
    let mut set = ModuleSet::new();
    for (name, text) in &content.modules {
        if !name.starts_with("./") && !name.starts_with("blob:") {
            return refuse(format!("'{name}': a bundle brings ./ and blob: modules"));
        }
        // A session loads the modules into such a set, so a module that it refuses would fail
        // later.
        if let Err(failure) = set.insert(name, text.as_str()) {
            return refuse(failure.message);
        }
    }
    if !content.modules.contains_key(&content.entry) {
        return Err(BundleError::shape("entry", "no module has this name"));
    }
    Ok(())
}

/// Whether sessions can register this name.
fn is_name(name: &str) -> bool {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_';
    let part = |part: &str| !part.is_empty() && part.bytes().all(plain);
    name.len() <= NAME_BYTES_MAX && name.split('/').all(part)
}

fn is_identifier(name: &str) -> bool {
    let mut bytes = name.bytes();
    name.len() <= WORD_BYTES_MAX
        && bytes
            .next()
            .is_some_and(|b| b.is_ascii_alphabetic() || matches!(b, b'_' | b'$'))
        && bytes.all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'$'))
}

/// Whether this is an operation, or all operations below a prefix.
fn is_reach(name: &str) -> bool {
    match name.strip_suffix("/*") {
        // With a further segment, the text is a valid name exactly if the prefix is valid.
        Some(prefix) => is_operation_name(&format!("{prefix}/x")),
        None => is_operation_name(name),
    }
}

/// Whether the runtime gives this code to all promoted operations.
fn is_runtime_code(code: &str) -> bool {
    RuntimeCode::ALL.iter().any(|it| it.on_the_wire().0 == code)
}
