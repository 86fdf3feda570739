//! Descriptions of operations without code behind them.

use alknet_core::BoxFuture;
use serde::Deserialize;
use serde_json::Value;

use crate::compiled::CompiledOperation;
use crate::compose::Provenance;
use crate::error::CallError;
use crate::handler::HandlerKind;
use crate::import::{AdapterError, OperationAdapter};
use crate::registry::Registration;
use crate::spec::{OperationSpec, OperationType, Visibility};

/// Operations that are described and not served. A program can check inputs against them
/// ([`Registry::validate`](crate::Registry::validate)) and make plans with them; calling one is `NOT_FOUND`.
#[derive(Clone, Debug)]
pub struct FromJsonSchema(Vec<OperationSpec>);

impl FromJsonSchema {
    /// The descriptions in these specs.
    #[must_use]
    pub fn new(specs: Vec<OperationSpec>) -> Self {
        Self(specs)
    }

    /// The descriptions in a document: one spec, a list of specs, or `{"specs":[…]}` as `services/schema` answers.
    ///
    /// # Errors
    /// [`AdapterError::Schema`], with the path in the document.
    pub fn parse(document: &Value) -> Result<Self, AdapterError> {
        let (path, list) = match document {
            Value::Array(list) => ("", list.as_slice()),
            Value::Object(members) => match members.get("specs") {
                Some(Value::Array(list)) => ("/specs", list.as_slice()),
                Some(_) => return Err(AdapterError::schema("/specs", "this is no list")),
                None => return Ok(Self(vec![read(document, "/")?])),
            },
            _ => {
                return Err(AdapterError::schema(
                    "/",
                    "this is neither a spec nor a list",
                ));
            }
        };
        let numbered = list.iter().enumerate();
        numbered
            .map(|(n, spec)| read(spec, &format!("{path}/{n}")))
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// The registrations: internal, checked by every rule, with schemas that compile.
    ///
    /// # Errors
    /// [`AdapterError::Schema`] with the operation's name.
    pub fn registrations(&self) -> Result<Vec<Registration>, AdapterError> {
        self.0.iter().map(registration).collect()
    }
}

impl OperationAdapter for FromJsonSchema {
    fn import(&self) -> BoxFuture<'_, Result<Vec<Registration>, AdapterError>> {
        Box::pin(std::future::ready(self.registrations()))
    }
}

fn read(value: &Value, path: &str) -> Result<OperationSpec, AdapterError> {
    OperationSpec::deserialize(value).map_err(|error| AdapterError::schema(path, error))
}

fn registration(spec: &OperationSpec) -> Result<Registration, AdapterError> {
    let mut spec = spec.clone();
    spec.visibility = Visibility::Internal;
    let path = format!("/{}", spec.name);
    let handler = match spec.op_type {
        OperationType::Subscription => HandlerKind::stream(|_, ctx: crate::Ctx| {
            futures_util::stream::iter([nothing(ctx.operation())])
        }),
        _ => HandlerKind::once(|_, ctx: crate::Ctx| async move { nothing(ctx.operation()) }),
    };
    let registration = Registration::imported(spec, handler, Provenance::FromJsonSchema);
    CompiledOperation::new(registration.clone())
        .and_then(|compiled| compiled.compile())
        .map_err(|error| AdapterError::schema(path, error))?;
    Ok(registration)
}

/// Lookup refuses such operations before any caller could reach this.
fn nothing(operation: &str) -> Result<Value, CallError> {
    Err(CallError::not_found(operation))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn spec(name: &str) -> OperationSpec {
        OperationSpec::query(name, "").with_input(json!({"type": "integer"}))
    }

    #[test]
    fn every_form_of_document_is_read() {
        let one = json!(spec("a/b"));
        for (document, count) in [
            (one.clone(), 1),
            (json!([one, spec("a/c")]), 2),
            (json!({"specs": [spec("a/b"), spec("a/c")]}), 2),
            (json!([]), 0),
        ] {
            let adapter = FromJsonSchema::parse(&document).expect("a document");
            assert_eq!(adapter.registrations().expect("valid").len(), count);
        }
    }

    #[test]
    fn a_fault_is_named_by_its_path() {
        let path_of = |document: Value| match FromJsonSchema::parse(&document) {
            Err(AdapterError::Schema { path, .. }) => path,
            other => panic!("{other:?}"),
        };
        assert_eq!(path_of(json!(1)), "/");
        assert_eq!(path_of(json!({"name": "a/b"})), "/");
        assert_eq!(path_of(json!({"specs": {}})), "/specs");
        assert_eq!(path_of(json!([spec("a/b"), 1])), "/1");
        assert_eq!(path_of(json!({"specs": [{"name": 1}]})), "/specs/0");
        let remote = spec("a/b").with_input(json!({"$ref": "http://127.0.0.1/x"}));
        let refused = FromJsonSchema::new(vec![remote]).registrations();
        assert!(matches!(refused, Err(AdapterError::Schema { path, .. }) if path == "/a/b"));
    }
}
