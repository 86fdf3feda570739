//! Documents of OpenAPI from other authors.

use std::sync::Arc;

use alknet_call::{AdapterError, Registry, is_operation_name};
use alknet_core::{BoxFuture, DialError, DialErrorKind, DialRequest, DialedConnection, Dialer};
use alknet_openapi::{FromOpenApi, OpenApiOptions};
use bytes::Bytes;

/// Refuses every call.
#[derive(Debug)]
struct RefusingDialer;

impl Dialer for RefusingDialer {
    fn connect(&self, _request: DialRequest) -> BoxFuture<'_, Result<DialedConnection, DialError>> {
        let unknown_peer = DialError::new(DialErrorKind::Local, "no server is called here");
        Box::pin(std::future::ready(Err(unknown_peer)))
    }
}

/// Reads a document, JSON or YAML. An accepted one has operations with names of the grammar, each once, whose schemas
/// compile and check values.
pub fn openapi(data: &[u8]) -> bool {
    let options = OpenApiOptions::new("ns", "https://api.example/v1");
    let adapter = FromOpenApi::new(
        Bytes::copy_from_slice(data),
        options,
        Arc::new(RefusingDialer),
    );
    let adapter = adapter.expect("an address");
    let registrations = match adapter.registrations() {
        Ok(registrations) => registrations,
        Err(error) => {
            assert!(matches!(
                error,
                AdapterError::Schema { .. } | AdapterError::TooLarge(_)
            ));
            assert!(!error.to_string().is_empty());
            return false;
        }
    };
    let mut builder = Registry::builder();
    let mut names = Vec::new();
    for registration in registrations {
        let spec = registration.spec();
        assert!(is_operation_name(&spec.name), "{}", spec.name);
        names.push(spec.name.clone());
        builder.add(registration);
    }
    let registry = builder.build().expect("every rule is kept");
    for name in &names {
        // Whatever the result, the check ends.
        let _ = registry.validate(name, &serde_json::json!({}));
        let _ = registry.validate(
            name,
            &serde_json::json!({ "body": { "a": [1, "x", null] } }),
        );
    }
    !names.is_empty()
}
