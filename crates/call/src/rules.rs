//! The rules that an operation has to satisfy before it may be registered.

use thiserror::Error;

use crate::error::ErrorCode;
use crate::handler::HandlerKind;
use crate::registry::Registration;
use crate::spec::{self, OperationSpec, OperationType, Visibility};
use crate::{services, session};

/// Checks one operation by itself.
pub(crate) fn check(registration: &Registration) -> Result<(), RegistryError> {
    let spec = &registration.spec;
    let name = || spec.name.clone();
    // Names are parts of paths and scopes: only the grammar keeps them unambiguous.
    if !spec::is_operation_name(&spec.name) {
        return Err(RegistryError::Name(name()));
    }
    if spec.name.split('/').next() != Some(spec.namespace.as_str()) {
        return Err(RegistryError::Namespace(name()));
    }
    if let Some(reason) = spec.access_control.excess() {
        return Err(RegistryError::Rule {
            name: name(),
            reason,
        });
    }
    let streams = matches!(registration.handler, HandlerKind::Stream(_));
    // A caller chooses how it reads answers by the type alone.
    if streams != (spec.op_type == OperationType::Subscription) {
        return Err(RegistryError::HandlerKind(name()));
    }
    if let Some(def) = spec
        .error_schemas
        .iter()
        .find(|def| !ErrorCode::may_declare(&def.code))
    {
        return Err(RegistryError::ErrorCode {
            name: name(),
            code: def.code.clone(),
        });
    }
    let composes = registration.authority.is_some() || registration.scoped_env.is_some();
    // An import runs elsewhere: rights given to it here would go unused, or to a peer.
    if composes && !registration.provenance.may_compose() {
        return Err(RegistryError::Leaf(name()));
    }
    check_openness(registration)
}

/// Namespaces whose operations this crate itself registers.
const PROTOCOL: [&str; 2] = [services::NAMESPACE, session::NAMESPACE];

/// Whether the namespace belongs to the protocol, and not even the node may register there.
pub(crate) fn is_protocols(namespace: &str) -> bool {
    PROTOCOL.contains(&namespace)
}

/// Namespaces in which only the node registers operations, for every program that uses this library. A configuration
/// reserves more for imports (`crates/core/src/config/import.rs`): those of the parts of the appliance.
const RESERVED: [&str; 13] = [
    "capability",
    "channel",
    "config",
    "escrow",
    "fs",
    "hub",
    "node",
    "ops",
    "peer",
    "services",
    "session",
    "update",
    "vault",
];

/// Whether a namespace is for the node's own operations: no promoted, imported or session's operation has a name in
/// it.
///
/// ```
/// use alknet_call::is_reserved_namespace;
///
/// assert!(is_reserved_namespace("vault"));
/// assert!(!is_reserved_namespace("notes"));
/// ```
#[must_use]
pub fn is_reserved_namespace(namespace: &str) -> bool {
    RESERVED.contains(&namespace)
}

/// Checks that the namespace is not reserved for the node.
pub(crate) fn check_namespace(spec: &OperationSpec) -> Result<(), RegistryError> {
    if is_reserved_namespace(&spec.namespace) {
        return Err(RegistryError::Reserved(spec.name.clone()));
    }
    Ok(())
}

fn check_openness(registration: &Registration) -> Result<(), RegistryError> {
    let spec = &registration.spec;
    let risky = spec.visibility == Visibility::External
        && spec.op_type == OperationType::Mutation
        && spec.access_control.is_open();
    // An empty access control is more often forgotten than meant.
    if risky && !registration.open {
        return Err(RegistryError::Open(spec.name.clone()));
    }
    if risky && !is_protocols(&spec.namespace) {
        tracing::warn!(
            operation = spec.name,
            "unknown peers may call this mutation"
        );
    }
    Ok(())
}

/// Why the node cannot serve a set of operations.
#[derive(Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum RegistryError {
    /// Two operations have one name.
    #[error("operation '{0}' is registered twice; rename one")]
    Duplicate(String),
    /// An error code outside the grammar, or one of the protocol's own.
    #[error(
        "operation '{name}' declares the error '{code}'; own codes match [A-Z][A-Z0-9_]{{2,63}} and are not the protocol's"
    )]
    ErrorCode {
        /// The operation.
        name: String,
        /// The code it declares.
        code: String,
    },
    /// A subscription needs a stream handler, every other operation a once handler.
    #[error(
        "operation '{0}': subscriptions take a stream handler, queries and mutations a once handler"
    )]
    HandlerKind(String),
    /// An import that may call others.
    #[error("operation '{0}' is imported and calls nothing here; leave out its authority and env")]
    Leaf(String),
    /// The name does not follow the grammar.
    #[error("'{0}' is no operation name; write namespace/operation with letters, digits, '_', '-'")]
    Name(String),
    /// The namespace is not the name's first segment.
    #[error("operation '{0}': the namespace is the first segment of the name")]
    Namespace(String),
    /// A mutation for every caller without the explicit statement.
    #[error("mutation '{0}' has an empty access control; require a scope, or say .open()")]
    Open(String),
    /// `resource_id_path` is not a pointer.
    #[error("operation '{name}': '{path}' is no JSON pointer; write /a/b")]
    Pointer {
        /// The operation.
        name: String,
        /// Its path.
        path: String,
    },
    /// The namespace belongs to the protocol.
    #[error("operation '{0}': its namespace belongs to the node itself; choose another")]
    Reserved(String),
    /// Its access control is too large.
    #[error("operation '{name}': {reason}")]
    Rule {
        /// The operation.
        name: String,
        /// The excess.
        reason: String,
    },
    /// A schema does not compile.
    #[error("operation '{name}' has an invalid schema: {reason}")]
    Schema {
        /// The operation.
        name: String,
        /// The compiler's message.
        reason: String,
    },
}
