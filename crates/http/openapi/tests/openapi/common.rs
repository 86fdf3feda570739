//! What the tests share: documents, and a node that has imported one.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use alknet_call::{
    AdapterError, BoxStream, CallBody, CallError, CallOutput, CompositionAuthority, Ctx,
    Dispatcher, HandlerKind, Idempotence, InvokeOptions, LocalCaller, LocalRequest, OperationSpec,
    Registration, Registry, ScopedPeerEnv,
};
use alknet_core::{Connection, Dialer, Identity, IdentityKind, memory_pair};
use alknet_openapi::{FromOpenApi, OpenApiOptions};
use bytes::Bytes;
use futures_util::StreamExt;
use serde_json::{Value, json};

/// A folder that `cargo xtask test` names.
pub(crate) fn folder(variable: &str) -> PathBuf {
    let folder = std::env::var_os(variable);
    folder
        .unwrap_or_else(|| panic!("{variable} names a folder; cargo xtask test sets it"))
        .into()
}

/// A document out of one of the packages.
pub(crate) fn packed(variable: &str, path: &str) -> Bytes {
    let path = folder(variable).join(path);
    let read = std::fs::read(&path);
    read.unwrap_or_else(|error| panic!("{}: {error}", path.display()))
        .into()
}

pub(crate) fn dialer() -> Arc<dyn Dialer> {
    Arc::new(alknet_endpoint::EndpointDialer::new(None))
}

pub(crate) fn import(document: impl Into<Bytes>) -> Result<Vec<Registration>, AdapterError> {
    let options = OpenApiOptions::new("ns", "https://api.example");
    let adapter = FromOpenApi::new(document.into(), options, dialer()).expect("an address");
    adapter.registrations()
}

pub(crate) fn import_json(document: &Value) -> Result<Vec<Registration>, AdapterError> {
    import(document.to_string())
}

/// Puts operations into a registry, which compiles every schema.
pub(crate) fn register(registrations: Vec<Registration>) -> Registry {
    let mut builder = Registry::builder();
    for registration in registrations {
        builder.add(registration);
    }
    builder.build().expect("every rule is kept")
}

/// Those of these names: the schemas of a large document take a second to compile, and `documents.rs` compiles all.
pub(crate) fn only(registrations: Vec<Registration>, names: &[&str]) -> Vec<Registration> {
    let wanted = registrations.into_iter();
    let wanted = wanted.filter(|one| names.contains(&one.spec().name.as_str()));
    let wanted: Vec<_> = wanted.collect();
    assert_eq!(wanted.len(), names.len(), "{names:?}");
    wanted
}

/// A node that calls imported operations, as one of its own would.
pub(crate) struct ImportTestNode {
    gate: LocalCaller,
    /// Its end lives as long as the node.
    _other: Connection,
}

impl ImportTestNode {
    pub(crate) fn with_registrations(registrations: Vec<Registration>) -> Self {
        let names: Vec<_> = registrations
            .iter()
            .map(|one| one.spec().name.clone())
            .collect();
        let authority = || CompositionAuthority::new("test", ["*"]);
        let reach = || ScopedPeerEnv::new(&names);
        let run = OperationSpec::query("t/run", "Calls another.");
        let follow = OperationSpec::subscription("t/follow", "Follows another.");
        let mut once = OperationSpec::mutation("t/once", "Calls another once for a key.");
        once.idempotent = Idempotence::Keyed;
        let mut builder = Registry::builder()
            .with(
                Registration::new(run, HandlerKind::once(run_other))
                    .passing_errors_on()
                    .composing(authority(), reach()),
            )
            .with(
                Registration::new(once, HandlerKind::once(run_other))
                    .open()
                    .passing_errors_on()
                    .composing(authority(), reach()),
            )
            .with(
                Registration::new(follow, HandlerKind::stream(follow_other))
                    .passing_errors_on()
                    .composing(authority(), reach()),
            );
        for registration in registrations {
            builder.add(registration);
        }
        let registry = builder.build().expect("every rule is kept");
        let (near, far) = memory_pair(b"test");
        let dispatcher = Arc::new(Dispatcher::new(registry));
        Self {
            gate: LocalCaller::new(&dispatcher, &near, None),
            _other: far,
        }
    }

    pub(crate) async fn call(&self, operation: &str, input: Value) -> Result<Value, CallError> {
        let asked = json!({ "op": operation, "input": input }).to_string();
        let incoming = LocalRequest {
            input: Some(asked.into()),
            ..LocalRequest::new("1", "t/run")
        };
        let answer = self.gate.call(incoming).await;
        let answer = answer.map_err(|refused| refused.error)?;
        Ok(CallBody::from(answer).value().clone())
    }

    /// The same for this identity, through a mutation that runs once where there is a key. What it answers counts until
    /// it is dropped.
    pub(crate) async fn call_as(
        &self,
        who: &str,
        key: Option<&str>,
        operation: &str,
        input: Value,
    ) -> Result<CallOutput, CallError> {
        let asked = json!({ "op": operation, "input": input }).to_string();
        let through = key.map_or("t/run", |_| "t/once");
        let incoming = LocalRequest {
            input: Some(asked.into()),
            identity: Some(identity(who)),
            idempotency_key: key,
            ..LocalRequest::new("1", through)
        };
        let answer = self.gate.call(incoming).await;
        answer.map_err(|refused| refused.error)
    }

    pub(crate) async fn events(&self, operation: &str, input: Value) -> Vec<Value> {
        let asked = json!({ "op": operation, "input": input }).to_string();
        let incoming = LocalRequest {
            input: Some(asked.into()),
            ..LocalRequest::new("1", "t/follow")
        };
        let mut events = self.gate.subscribe(incoming).expect("a subscription");
        let mut all = Vec::new();
        while let Some(event) = events.next().await {
            let event = event.expect("an event");
            all.push(CallBody::from(event.output).value().clone());
        }
        all
    }
}

fn identity(name: &str) -> Arc<Identity> {
    Arc::new(Identity {
        id: name.parse().expect("a peer id"),
        kind: IdentityKind::Token,
        scopes: ["*".to_owned()].into_iter().collect(),
        resources: BTreeMap::new(),
        generation: 0,
    })
}

async fn run_other(input: CallBody, ctx: Ctx) -> Result<CallOutput, CallError> {
    let op = input.value()["op"].as_str().unwrap_or_default();
    let answer = ctx.env().invoke(op, &input.value()["input"]).await?;
    Ok(answer.into())
}

fn follow_other(input: CallBody, ctx: Ctx) -> BoxStream<Result<Value, CallError>> {
    let op = input.value()["op"].as_str().unwrap_or_default().to_owned();
    let input = CallBody::json(&input.value()["input"]).expect("JSON");
    match ctx.env().follow(&op, input, &InvokeOptions::default()) {
        Ok(followed) => Box::pin(followed.map(|event| Ok(event?.value().clone()))),
        Err(error) => Box::pin(futures_util::stream::iter([Err(error)])),
    }
}
