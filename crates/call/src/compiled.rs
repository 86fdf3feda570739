//! One operation that is ready to be called.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use alknet_core::Capabilities;
use bytes::Bytes;
use jsonschema::json::Node as _;

use crate::body::{CallBody, CallOutput};
use crate::compose::{CompositionAuthority, Provenance};
use crate::error::{CallError, ErrorCode};
use crate::handler::{HandlerKind, OnSlow};
use crate::peers::ScopedPeerEnv;
use crate::registry::Registration;
use crate::rules::{self, RegistryError};
use crate::schema::{PermitShare, SchemaError, SchemaValidator};
use crate::spec::{self, OperationSpec, Visibility};

/// An operation that is ready to be called.
pub(crate) struct CompiledOperation {
    pub(crate) spec: OperationSpec,
    pub(crate) handler: HandlerKind,
    pub(crate) capabilities: Capabilities,
    pub(crate) on_slow: OnSlow,
    pub(crate) provenance: Provenance,
    /// Its rights when it calls others.
    pub(crate) authority: Option<Arc<CompositionAuthority>>,
    /// The operations that it can call.
    pub(crate) scoped_env: Option<Arc<ScopedPeerEnv>>,
    resource_pointer: Option<String>,
    input: SchemaValidator,
    output: SchemaValidator,
    check_input: bool,
    check_output: bool,
    passes_errors: bool,
    running: AtomicU32,
}

impl CompiledOperation {
    pub(crate) fn new(registration: Registration) -> Result<Self, RegistryError> {
        rules::check(&registration)?;
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
            provenance: registration.provenance,
            authority: registration.authority.map(Arc::new),
            scoped_env: registration.scoped_env.map(Arc::new),
            resource_pointer,
            input: SchemaValidator::new(&spec.input_schema),
            output: SchemaValidator::new(&spec.output_schema),
            check_input: !registration.schema_is_type,
            check_output: registration.check_output,
            passes_errors: registration.passes_errors,
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

    /// Whether it has code.
    pub(crate) fn is_callable(&self) -> bool {
        self.provenance.is_callable()
    }

    /// Whether its output is this node's own: it belongs to no peer, server or session, and calls nothing whose
    /// output it could pass on.
    pub(crate) fn speaks_for_itself(&self) -> bool {
        self.provenance == Provenance::Local && self.scoped_env.is_none()
    }

    /// The resource that `input` names, if any. A value that is no string counts by its JSON text: neither a number
    /// in place of a name nor a text that cannot be read may count as no name.
    pub(crate) fn resource_id(&self, input: &CallBody) -> Result<Option<Box<str>>, CallError> {
        let Some(pointer) = self.resource_pointer.as_deref() else {
            return Ok(None);
        };
        input.read_tape(|value| {
            // An operation may take `null` for no resource.
            let found = value.pointer(pointer).filter(|found| !found.is_null())?;
            Some(match found.as_string() {
                Some(id) => id.into(),
                None => found.text().into(),
            })
        })
    }

    /// The part of a failure that a caller may see.
    pub(crate) fn visible(&self, error: CallError) -> CallError {
        if self.declares(&error.code) {
            error
        } else {
            error.undeclared()
        }
    }

    /// Checks an output if the registration asks for it.
    pub(crate) fn checked(
        &self,
        output: CallOutput,
        share: PermitShare<'_>,
    ) -> Result<CallOutput, CallError> {
        // Off by default: the operation's author vouches for its output.
        if self.check_output && !self.output.takes_everything() {
            return match output {
                CallOutput::Raw(text) => self
                    .check_output(&text, share)
                    .map(|()| CallOutput::Raw(text)),
                CallOutput::Mixed(value, tail) => self
                    .check_output(value.to_string().as_bytes(), share)
                    .map(|()| CallOutput::Mixed(value, tail)),
                CallOutput::MixedText(text, tail) => self
                    .check_output(&text, share)
                    .map(|()| CallOutput::MixedText(text, tail)),
                // The text that was written for the check is also the one that is sent.
                CallOutput::Value(value) => {
                    let text = Bytes::from(value.to_string());
                    self.check_output(&text, share)
                        .map(|()| CallOutput::Raw(text))
                }
            };
        }
        Ok(output)
    }

    /// Refuses schemas that cost too much, without compiling them: those with which values are checked here. The
    /// steps of the least check of each, and of compiling its patterns, are subtracted from `left`.
    pub(crate) fn admit(&self, left: &mut u64) -> Result<(), RegistryError> {
        let (input, output) = (&self.spec.input_schema, &self.spec.output_schema);
        for (check, schema, is_checked) in [
            (&self.input, input, self.check_input),
            (&self.output, output, self.check_output),
        ] {
            if is_checked {
                let admitted = check.admit(schema, left);
                let steps = admitted.map_err(|error| self.refused(&error))?;
                *left = left.checked_sub(steps).ok_or_else(|| {
                    self.refused(&SchemaError::TooMuch(
                        "evaluating it and the other schemas that come with it takes too many steps",
                    ))
                })?;
            }
        }
        Ok(())
    }

    pub(crate) fn compile(&self) -> Result<(), RegistryError> {
        let spec = &self.spec;
        let input = self.input.compile(&spec.input_schema);
        input
            .and_then(|()| self.output.compile(&spec.output_schema))
            .map_err(|error| self.refused(&error))
    }

    fn refused(&self, error: &SchemaError) -> RegistryError {
        RegistryError::Schema {
            name: self.spec.name.clone(),
            reason: error.to_string(),
        }
    }

    /// Whether input has to be parsed for the check.
    pub(crate) fn checks_input(&self) -> bool {
        self.check_input && !self.input.takes_everything()
    }

    pub(crate) fn check_input(
        &self,
        input: &CallBody,
        share: PermitShare<'_>,
    ) -> Result<(), CallError> {
        let schema = &self.spec.input_schema;
        let code = ErrorCode::InvalidInput;
        self.input
            .check(schema, input.raw(), (input.memory(), share), code)
    }

    fn check_output(&self, text: &[u8], share: PermitShare<'_>) -> Result<(), CallError> {
        let schema = &self.spec.output_schema;
        let code = ErrorCode::InvalidOutput;
        let checked = self.output.check(schema, text, (None, share), code);
        checked.map_err(|error| match error.code {
            // No JSON parser accepts it.
            ErrorCode::InvalidInput => CallError::internal(error.message),
            _ => error,
        })
    }

    /// Whether callers may see `code`.
    fn declares(&self, code: &ErrorCode) -> bool {
        match code {
            ErrorCode::Operation(name) => {
                let mut declared = self.spec.error_schemas.iter();
                // Callers switch on codes: an undeclared one has no documented meaning.
                self.passes_errors || declared.any(|def| def.code == name.as_ref())
            }
            _ => true,
        }
    }

    /// Number of its calls that run now.
    pub(crate) fn running(&self) -> usize {
        let running = self.running.load(Ordering::Acquire);
        usize::try_from(running).unwrap_or(usize::MAX)
    }

    /// Counts one more running call, unless the limit is reached.
    pub(crate) fn enter(&self) -> Result<(), CallError> {
        let most = self.spec.concurrency.unwrap_or(u32::MAX);
        // The comparison and the count are one step: of two calls for the last slot one gets it.
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

impl fmt::Debug for CompiledOperation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("CompiledOperation")
            .field(&self.spec.name)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::limits::INVALID_DETAILS_BYTES;

    fn checked(operation: &CompiledOperation, input: Value) -> Result<(), CallError> {
        operation.check_input(&CallBody::json(&input).expect("JSON"), PermitShare::Node)
    }

    fn compiled(spec: OperationSpec) -> CompiledOperation {
        let once = HandlerKind::once(|_, _| async { Ok(Value::Null) });
        CompiledOperation::new(Registration::new(spec, once)).expect("no rule is broken")
    }

    #[test]
    fn a_resource_id_of_another_kind_is_still_an_id() {
        let mut spec = OperationSpec::query("a/b", "");
        spec.resource_id_path = Some("$.disk.id".to_owned());
        let operation = compiled(spec);
        assert_eq!(operation.spec.resource_id_path.as_deref(), Some("/disk/id"));
        let id = |input: Value| {
            let body = CallBody::json(&input).expect("JSON");
            let id = operation.resource_id(&body).expect("it can be read");
            id.map(String::from)
        };
        assert_eq!(id(json!({"disk": {"id": "sda"}})).as_deref(), Some("sda"));
        assert_eq!(id(json!({"disk": {"id": 7}})).as_deref(), Some("7"));
        assert_eq!(
            id(json!({"disk": {"id": ["x"]}})).as_deref(),
            Some("[\"x\"]")
        );
        assert_eq!(id(json!({"disk": {"id": null}})), None);
        assert_eq!(id(json!({})), None);
        let text = Bytes::from_static(br#"{"disk":{"id":"sda"},"x":1e999}"#);
        let unreadable = CallBody::from_parts(text, Bytes::new());
        assert!(operation.resource_id(&unreadable).is_err());
    }

    #[test]
    fn a_wrong_schema_that_is_compiled_late_fails_its_calls() {
        let spec = OperationSpec::query("a/b", "").with_input(json!({"type": "nonsense"}));
        let operation = compiled(spec);
        let error = checked(&operation, json!(1)).expect_err("no such type");
        assert_eq!(error.code, ErrorCode::Internal);
    }

    #[test]
    fn violations_are_listed_up_to_a_bound() {
        let schema = json!({"type":"array","items":{"type":"string"}});
        let spec = OperationSpec::query("a/b", "").with_input(schema);
        let operation = compiled(spec);
        assert!(checked(&operation, json!(["x"])).is_ok());
        let error = checked(&operation, json!(vec![1; 50])).expect_err("numbers");
        assert_eq!(error.code, ErrorCode::InvalidInput);
        let details = error.details.expect("a list");
        assert_eq!(details.as_array().map(Vec::len), Some(10));
        assert_eq!(details[3]["path"], "/3");
        assert_eq!(details[3]["keyword"], "type");
        let many = json!(vec![1; INVALID_DETAILS_BYTES]);
        let error = checked(&operation, many).expect_err("numbers");
        assert_eq!((error.code, error.details), (ErrorCode::InvalidInput, None));
    }
}
