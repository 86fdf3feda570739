//! The operations of a node: collected by a builder, frozen by [`RegistryBuilder::build`].

use std::any::Any;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use data_encoding::HEXLOWER;
use hashbrown::HashMap;
use serde_json::Value;
use sha2::{Digest, Sha256};
use thiserror::Error;

use crate::check::Check;
use crate::error::{CallError, ErrorCode};
use crate::handler::{HandlerKind, OnSlow};
use crate::services;
use crate::spec::{self, OperationSpec, OperationType, Visibility};

/// Secrets and handles an operation was registered with. They reach its own handler, after access
/// control, and no other.
#[derive(Clone, Default)]
pub struct Capabilities(Option<Arc<dyn Any + Send + Sync>>);

impl Capabilities {
    /// Wraps a value of the handler's choice.
    pub fn new(value: impl Any + Send + Sync) -> Self {
        Self(Some(Arc::new(value)))
    }

    /// The value, if it is a `T`.
    #[must_use]
    pub fn get<T: Any + Send + Sync>(&self) -> Option<Arc<T>> {
        Arc::clone(self.0.as_ref()?).downcast().ok()
    }
}

impl fmt::Debug for Capabilities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Capabilities(…)")
    }
}

/// An operation on its way into the registry.
#[derive(Clone, Debug)]
pub struct Registration {
    spec: OperationSpec,
    handler: HandlerKind,
    capabilities: Capabilities,
    on_slow: OnSlow,
    open: bool,
    check_output: bool,
    schema_is_type: bool,
}

impl Registration {
    /// An operation of this node.
    #[must_use]
    pub fn new(spec: OperationSpec, handler: HandlerKind) -> Self {
        Self {
            spec,
            handler,
            capabilities: Capabilities::default(),
            on_slow: OnSlow::default(),
            open: false,
            check_output: false,
            schema_is_type: false,
        }
    }

    /// States that everybody, strangers included, may call this mutation. Without it a mutation
    /// with an empty access control is refused.
    #[must_use]
    pub fn open(mut self) -> Self {
        self.open = true;
        self
    }

    /// What the subscription does with slow readers.
    #[must_use]
    pub fn on_slow(mut self, policy: OnSlow) -> Self {
        self.on_slow = policy;
        self
    }

    /// What only this handler may use.
    #[must_use]
    pub fn with_capabilities(mut self, capabilities: Capabilities) -> Self {
        self.capabilities = capabilities;
        self
    }

    /// States that the handler parses its input into a type that takes what the schema takes, and
    /// refuses the rest as `INVALID_INPUT`: the input is not checked twice.
    #[must_use]
    pub fn schema_is_type(mut self) -> Self {
        self.schema_is_type = true;
        self
    }

    /// Checks outputs against their schema too; a violation is `INVALID_OUTPUT`.
    #[must_use]
    pub fn checking_output(mut self) -> Self {
        self.check_output = true;
        self
    }
}

/// Collects operations.
#[derive(Debug, Default)]
pub struct RegistryBuilder {
    registrations: Vec<Registration>,
}

impl RegistryBuilder {
    /// Adds an operation.
    #[must_use]
    pub fn with(mut self, registration: Registration) -> Self {
        self.registrations.push(registration);
        self
    }

    /// Adds an operation.
    pub fn add(&mut self, registration: Registration) -> &mut Self {
        self.registrations.push(registration);
        self
    }

    /// Checks every operation, compiles its schemas and freezes the set. `services/list` and
    /// `services/schema` are always part of it.
    ///
    /// # Errors
    /// The first operation that breaks a rule, by name.
    pub fn build(self) -> Result<Registry, RegistryError> {
        let registry = self.build_lazily()?;
        registry
            .sorted
            .iter()
            .try_for_each(|operation| operation.compile())?;
        Ok(registry)
    }

    /// The same, but a schema is compiled when a value first has to be checked: compiling is most
    /// of what starting a small node costs. For operations that a program brings with it and whose
    /// schemas its tests have compiled by [`RegistryBuilder::build`]; a call whose schema turns out
    /// wrong ends with `INTERNAL`.
    ///
    /// # Errors
    /// The first operation that breaks a rule, by name.
    pub fn build_lazily(self) -> Result<Registry, RegistryError> {
        let mut by_name = HashMap::new();
        for registration in self.registrations {
            if services::is_reserved(&registration.spec.namespace) {
                return Err(RegistryError::Reserved(registration.spec.name));
            }
            insert(&mut by_name, registration)?;
        }
        for registration in services::registrations() {
            insert(&mut by_name, registration)?;
        }
        let mut sorted: Vec<_> = by_name.values().map(Arc::clone).collect();
        sorted.sort_by(|a: &Arc<Compiled>, b| a.spec.name.cmp(&b.spec.name));
        let digest = digest(&sorted)?;
        Ok(Registry {
            by_name,
            sorted,
            digest,
        })
    }
}

type ByName = HashMap<Box<str>, Arc<Compiled>>;

fn insert(by_name: &mut ByName, registration: Registration) -> Result<(), RegistryError> {
    let compiled = Compiled::new(registration)?;
    let name = compiled.spec.name.as_str().into();
    match by_name.insert(name, Arc::new(compiled)) {
        None => Ok(()),
        Some(earlier) => Err(RegistryError::Duplicate(earlier.spec.name.clone())),
    }
}

fn digest(sorted: &[Arc<Compiled>]) -> Result<String, RegistryError> {
    let mut hash = Sha256::new();
    for operation in sorted {
        let text = serde_json::to_vec(&operation.spec).map_err(|error| RegistryError::Schema {
            name: operation.spec.name.clone(),
            reason: error.to_string(),
        })?;
        hash.update(text);
    }
    Ok(HEXLOWER.encode(&hash.finalize()))
}

/// The operations of a node, immutable.
pub struct Registry {
    by_name: ByName,
    sorted: Vec<Arc<Compiled>>,
    digest: String,
}

impl Registry {
    /// A builder without operations.
    #[must_use]
    pub fn builder() -> RegistryBuilder {
        RegistryBuilder::default()
    }

    /// No operation at all, not even the protocol's own.
    #[must_use]
    pub fn empty() -> Self {
        Self {
            by_name: HashMap::new(),
            sorted: Vec::new(),
            digest: String::new(),
        }
    }

    /// The spec of an operation, whoever may call it.
    #[must_use]
    pub fn spec(&self, name: &str) -> Option<&OperationSpec> {
        self.by_name.get(name).map(|operation| &operation.spec)
    }

    /// Every spec, in order of name.
    pub fn specs(&self) -> impl Iterator<Item = &OperationSpec> {
        self.sorted.iter().map(|operation| &operation.spec)
    }

    /// SHA-256 over every spec, in hex: changes when any operation does.
    #[must_use]
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// An operation by its name on the wire, with or without the leading slash.
    pub(crate) fn lookup(&self, name: &str) -> Option<&Arc<Compiled>> {
        self.by_name.get(name.strip_prefix('/').unwrap_or(name))
    }

    pub(crate) fn sorted(&self) -> &[Arc<Compiled>] {
        &self.sorted
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list()
            .entries(self.specs().map(|spec| &spec.name))
            .finish()
    }
}

/// An operation ready to be called.
pub(crate) struct Compiled {
    pub(crate) spec: OperationSpec,
    pub(crate) handler: HandlerKind,
    pub(crate) capabilities: Capabilities,
    pub(crate) on_slow: OnSlow,
    pub(crate) resource_pointer: Option<String>,
    input: Check,
    output: Check,
    check_input: bool,
    check_output: bool,
    running: AtomicU32,
}

impl Compiled {
    fn new(registration: Registration) -> Result<Self, RegistryError> {
        check_rules(&registration)?;
        let spec = registration.spec;
        let resource_pointer = match &spec.resource_id_path {
            Some(path) => Some(spec::pointer(path).ok_or_else(|| RegistryError::Pointer {
                name: spec.name.clone(),
                path: path.clone(),
            })?),
            None => None,
        };
        Ok(Self {
            handler: registration.handler,
            capabilities: registration.capabilities,
            on_slow: registration.on_slow,
            resource_pointer,
            input: Check::new(&spec.input_schema),
            output: Check::new(&spec.output_schema),
            check_input: !registration.schema_is_type,
            check_output: registration.check_output,
            running: AtomicU32::new(0),
            spec: OperationSpec {
                resource_id_path: spec.resource_id_path.as_deref().and_then(spec::pointer),
                ..spec
            },
        })
    }

    pub(crate) fn is_external(&self) -> bool {
        self.spec.visibility == Visibility::External
    }

    fn compile(&self) -> Result<(), RegistryError> {
        let spec = &self.spec;
        let input = self.input.compile(&spec.input_schema);
        input
            .and_then(|()| self.output.compile(&spec.output_schema))
            .map_err(|reason| RegistryError::Schema {
                name: spec.name.clone(),
                reason,
            })
    }

    /// Whether input has to be parsed to be checked.
    pub(crate) fn checks_input(&self) -> bool {
        self.check_input && !self.input.takes_everything()
    }

    pub(crate) fn check_input(&self, value: &Value) -> Result<(), CallError> {
        let schema = &self.spec.input_schema;
        self.input.check(schema, value, ErrorCode::InvalidInput)
    }

    pub(crate) fn checks_output(&self) -> bool {
        self.check_output && !self.output.takes_everything()
    }

    pub(crate) fn check_output(&self, value: &Value) -> Result<(), CallError> {
        let schema = &self.spec.output_schema;
        self.output.check(schema, value, ErrorCode::InvalidOutput)
    }

    /// Whether callers may see `code`.
    pub(crate) fn declares(&self, code: &ErrorCode) -> bool {
        match code {
            ErrorCode::Operation(name) => self
                .spec
                .error_schemas
                .iter()
                .any(|def| def.code == name.as_ref()),
            _ => true,
        }
    }

    /// Counts one more running call, unless as many run as may.
    pub(crate) fn enter(&self) -> Result<(), CallError> {
        let most = self.spec.concurrency.unwrap_or(u32::MAX);
        let taken = self
            .running
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |n| {
                (n < most).then(|| n + 1)
            });
        match taken {
            Ok(_) => Ok(()),
            Err(_) => Err(CallError::overloaded(
                "calls of this operation at once",
                most as usize,
            )),
        }
    }

    pub(crate) fn leave(&self) {
        self.running.fetch_sub(1, Ordering::AcqRel);
    }
}

impl fmt::Debug for Compiled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Compiled").field(&self.spec.name).finish()
    }
}

fn check_rules(registration: &Registration) -> Result<(), RegistryError> {
    let spec = &registration.spec;
    let name = || spec.name.clone();
    if !spec::is_operation_name(&spec.name) {
        return Err(RegistryError::Name(name()));
    }
    if spec.name.split('/').next() != Some(spec.namespace.as_str()) {
        return Err(RegistryError::Namespace(name()));
    }
    let streams = matches!(registration.handler, HandlerKind::Stream(_));
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
    check_openness(registration)
}

fn check_openness(registration: &Registration) -> Result<(), RegistryError> {
    let spec = &registration.spec;
    let risky = spec.visibility == Visibility::External
        && spec.op_type == OperationType::Mutation
        && spec.access_control.is_open();
    if risky && !registration.open {
        return Err(RegistryError::Open(spec.name.clone()));
    }
    if risky && !services::is_reserved(&spec.namespace) {
        tracing::warn!(operation = spec.name, "everybody may call this mutation");
    }
    Ok(())
}

/// Why a set of operations cannot be served.
#[derive(Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum RegistryError {
    /// Two operations have one name.
    #[error("operation '{0}' is registered twice; rename one")]
    Duplicate(String),
    /// An error code outside the grammar, or one of the protocol's own.
    #[error(
        "operation '{name}' declares the error '{code}'; own codes match [A-Z][A-Z0-9_]{{2,63}} and are none of the protocol's"
    )]
    ErrorCode {
        /// The operation.
        name: String,
        /// The code it declares.
        code: String,
    },
    /// A subscription needs a stream handler, anything else a once handler.
    #[error(
        "operation '{0}': subscriptions take a stream handler, queries and mutations a once handler"
    )]
    HandlerKind(String),
    /// The name does not follow the grammar.
    #[error("'{0}' is no operation name; write namespace/operation with letters, digits, '_', '-'")]
    Name(String),
    /// The namespace is not the name's first segment.
    #[error("operation '{0}': the namespace is the first segment of the name")]
    Namespace(String),
    /// A mutation for everybody that does not say so.
    #[error("mutation '{0}' has an empty access control; require a scope, or say .open()")]
    Open(String),
    /// `resource_id_path` is no pointer.
    #[error("operation '{name}': '{path}' is no JSON pointer; write /a/b")]
    Pointer {
        /// The operation.
        name: String,
        /// Its path.
        path: String,
    },
    /// The namespace belongs to the protocol.
    #[error("operation '{0}': its namespace belongs to the protocol; choose another")]
    Reserved(String),
    /// A schema does not compile.
    #[error("operation '{name}' has an invalid schema: {reason}")]
    Schema {
        /// The operation.
        name: String,
        /// What the compiler says.
        reason: String,
    },
}

#[cfg(test)]
mod tests {
    use futures_util::stream;
    use serde_json::json;

    use super::*;
    use crate::spec::ErrorDef;

    fn once() -> HandlerKind {
        HandlerKind::once(|_, _| async { Ok(Value::Null) })
    }

    fn build(registrations: Vec<Registration>) -> Result<Registry, RegistryError> {
        RegistryBuilder { registrations }.build()
    }

    fn refused(registration: Registration) -> RegistryError {
        build(vec![registration]).expect_err("a rule is broken")
    }

    #[test]
    fn broken_rules_are_named() {
        let query = |name| Registration::new(OperationSpec::query(name, ""), once());
        assert!(matches!(refused(query("bad")), RegistryError::Name(_)));
        assert!(matches!(
            refused(query("services/x")),
            RegistryError::Reserved(_)
        ));
        let twice = build(vec![query("a/b"), query("a/b")]).expect_err("twice");
        assert_eq!(twice, RegistryError::Duplicate("a/b".to_owned()));
        let mut odd = query("a/b");
        odd.spec.namespace = "b".to_owned();
        assert!(matches!(refused(odd), RegistryError::Namespace(_)));
        let wrong = Registration::new(OperationSpec::subscription("a/b", ""), once());
        assert!(matches!(refused(wrong), RegistryError::HandlerKind(_)));
        let streaming = HandlerKind::stream(|_, _| stream::empty::<Result<Value, CallError>>());
        let wrong = Registration::new(OperationSpec::query("a/b", ""), streaming);
        assert!(matches!(refused(wrong), RegistryError::HandlerKind(_)));
        let mut shadow = query("a/b");
        shadow.spec.error_schemas.push(ErrorDef {
            code: "TIMEOUT".to_owned(),
            description: String::new(),
            schema: Value::Null,
            http_status: None,
        });
        assert!(matches!(refused(shadow), RegistryError::ErrorCode { .. }));
        let mut path = query("a/b");
        path.spec.resource_id_path = Some("x".to_owned());
        assert!(matches!(refused(path), RegistryError::Pointer { .. }));
    }

    #[test]
    fn mutations_for_everybody_say_so() {
        let mutation = || Registration::new(OperationSpec::mutation("a/b", ""), once());
        assert!(matches!(refused(mutation()), RegistryError::Open(_)));
        assert!(build(vec![mutation().open()]).is_ok());
        let internal = OperationSpec::mutation("a/b", "").internal();
        assert!(build(vec![Registration::new(internal, once())]).is_ok());
    }

    #[test]
    fn schemas_never_leave_the_process() {
        for schema in [
            json!({"$ref": "http://127.0.0.1/x.json"}),
            json!({"$ref": "file:///etc/hostname"}),
            json!({"type": "nonsense"}),
            json!({"pattern": "("}),
            json!({"pattern": "(?:a{1000}){1000}"}),
        ] {
            let spec = OperationSpec::query("a/b", "").with_input(schema.clone());
            let error = refused(Registration::new(spec, once()));
            assert!(matches!(error, RegistryError::Schema { .. }), "{schema}");
        }
    }

    #[test]
    fn a_wrong_schema_that_is_compiled_late_fails_its_calls() {
        let spec = OperationSpec::query("a/b", "").with_input(json!({"type": "nonsense"}));
        let registrations = vec![Registration::new(spec, once())];
        let registry = RegistryBuilder { registrations }.build_lazily();
        let registry = registry.expect("no rule is broken");
        let operation = registry.lookup("a/b").expect("registered");
        let error = operation.check_input(&json!(1)).expect_err("no such type");
        assert_eq!(error.code, ErrorCode::Internal);
    }

    #[test]
    fn violations_are_listed_up_to_a_bound() {
        let schema = json!({"type":"array","items":{"type":"string"}});
        let spec = OperationSpec::query("a/b", "").with_input(schema);
        let registry = build(vec![Registration::new(spec, once())]).expect("valid");
        let operation = registry.lookup("/a/b").expect("registered");
        assert!(operation.check_input(&json!(["x"])).is_ok());
        let error = operation
            .check_input(&json!(vec![1; 50]))
            .expect_err("numbers");
        assert_eq!(error.code, ErrorCode::InvalidInput);
        let details = error.details.expect("a list");
        assert_eq!(details.as_array().map(Vec::len), Some(10));
        assert_eq!(details[3]["path"], "/3");
        assert_eq!(details[3]["keyword"], "type");
    }

    #[test]
    fn the_digest_follows_the_specs() {
        let with = |name| {
            build(vec![Registration::new(
                OperationSpec::query(name, ""),
                once(),
            )])
            .expect("valid")
            .digest()
            .to_owned()
        };
        assert_eq!(with("a/b"), with("a/b"));
        assert_ne!(with("a/b"), with("a/c"));
        assert_eq!(with("a/b").len(), 64);
    }
}
