//! For all operations and all callers, what `/search` lists is what `/call` does not refuse, nothing more and nothing
//! less. Both are the gateway's, and so are the tools of models.

use std::collections::BTreeSet;
use std::sync::Arc;

use alknet_call::{
    AccessControl, CallError, Dispatcher, HandlerKind, LocalCaller, OperationSpec, OperationType,
    Provenance, Registration, Registry,
};
use alknet_core::{Identity, IdentityKind, memory_pair};
use alknet_gateway::{Gateway, GatewayCall, HttpCaller, HttpIngress, RequestId, SearchQuery};
use futures_util::stream;
use http::StatusCode;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use serde_json::{Value, json};

/// Callers of one registry.
const CALLERS: usize = 100;
/// Operations on a page, so that there are several pages.
const PAGE: usize = 3;
/// What callers hold all of, and inputs name one of: which resource a caller may touch is decided by the
/// input, and what is listed is not.
const RESOURCE: &str = "disk";

/// Where an operation comes from.
#[derive(Clone, Copy, Debug)]
enum Layer {
    Described,
    Imported,
    Own,
    Promoted,
}

/// An operation, as far as it decides who may call it.
#[derive(Clone, Debug)]
struct VisibilityCase {
    layer: Layer,
    kind: OperationType,
    is_internal: bool,
    needs_identity: bool,
    has_resource: bool,
    all: Vec<String>,
    any: Option<Vec<String>>,
}

fn operation() -> impl Strategy<Value = VisibilityCase> {
    let layers = vec![
        Layer::Described,
        Layer::Imported,
        Layer::Own,
        Layer::Own,
        Layer::Promoted,
        Layer::Promoted,
    ];
    let kinds = vec![
        OperationType::Mutation,
        OperationType::Query,
        OperationType::Subscription,
    ];
    let rule = (
        vec(scope(), 0..3),
        prop::option::of(vec(scope(), 0..3)),
        any::<bool>(),
        any::<bool>(),
    );
    let internal = prop::bool::weighted(0.2);
    (select(layers), select(kinds), internal, rule).prop_map(|(layer, kind, is_internal, rule)| {
        let (all, any, needs_identity, has_resource) = rule;
        VisibilityCase {
            layer,
            kind,
            is_internal,
            needs_identity,
            has_resource,
            all,
            any,
        }
    })
}

fn scope() -> impl Strategy<Value = String> {
    "[ab](:[ab]){0,2}"
}

/// The scopes that a caller holds, and wildcards for everything below some.
fn held() -> impl Strategy<Value = Vec<String>> {
    vec("[ab](:[ab]){0,2}|[ab](:[ab])?:\\*|\\*", 0..4)
}

impl VisibilityCase {
    fn registration(&self, name: &str) -> Registration {
        let mut spec = OperationSpec::new(name, self.kind, "Any.");
        if self.is_internal {
            spec = spec.internal();
        }
        spec.access_control = AccessControl {
            required_scopes: self.all.clone(),
            required_scopes_any: self.any.clone(),
            resource_type: self.has_resource.then(|| RESOURCE.to_owned()),
            identified: self.needs_identity,
            ..AccessControl::default()
        };
        spec.resource_id_path = self.has_resource.then(|| format!("/{RESOURCE}"));
        let handler = match self.kind {
            OperationType::Subscription => {
                HandlerKind::stream(|_, _| stream::empty::<Result<Value, CallError>>())
            }
            _ => HandlerKind::once(|_, _| async { Ok::<_, CallError>(Value::Null) }),
        };
        let registration = match self.layer {
            Layer::Described => Registration::imported(spec, handler, Provenance::FromJsonSchema),
            Layer::Imported => Registration::imported(spec, handler, Provenance::FromOpenApi),
            Layer::Own | Layer::Promoted => Registration::new(spec, handler),
        };
        registration.open()
    }
}

fn name(number: usize) -> String {
    format!("any/op{number}")
}

fn registry(operations: &[VisibilityCase]) -> Registry {
    let mut builder = Registry::builder();
    let mut imported = Vec::new();
    for (number, operation) in operations.iter().enumerate() {
        let registration = operation.registration(&name(number));
        match operation.layer {
            Layer::Described | Layer::Own => {
                builder.add(registration);
            }
            Layer::Imported => imported.push(registration),
            Layer::Promoted => {
                builder.promote(registration);
            }
        }
    }
    let registry = builder.build().expect("every rule is kept");
    let promoted = registry.generation();
    let rejected = promoted.rejected();
    assert!(rejected.is_empty(), "{rejected:?}");
    registry
        .import("server", imported)
        .expect("no name is taken");
    registry
}

fn caller(gate: &LocalCaller, number: usize, scopes: &[String]) -> HttpCaller {
    let identity = Identity {
        id: format!("caller-{number}").parse().expect("an id"),
        kind: IdentityKind::Token,
        scopes: scopes.iter().collect(),
        resources: [(RESOURCE.into(), vec!["*".into()])].into(),
        generation: 0,
    };
    HttpCaller {
        gate: gate.clone(),
        identity: Some(Arc::new(identity)),
        token: None,
        via: HttpIngress::Http,
        remote: None,
        proved_by: None,
        account: None,
        began: std::time::Instant::now(),
        request_id: RequestId::next(),
    }
}

/// Everything that is listed, page by page, but for what the protocol itself brings.
fn listed(gateway: &Gateway, caller: &HttpCaller) -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    let mut query = SearchQuery {
        limit: Some(PAGE),
        ..SearchQuery::default()
    };
    loop {
        let page = gateway.list(caller, &query);
        for one in page.operations {
            assert!(all.insert(one.operation), "an operation is listed twice");
        }
        match page.next {
            Some(next) => query.cursor = Some(next),
            None => break,
        }
    }
    all.retain(|operation| operation.starts_with("/any/"));
    all
}

/// Everything that is not refused. One name more than there are operations is tried.
async fn callable(gateway: &Gateway, caller: &HttpCaller, count: usize) -> BTreeSet<String> {
    let refusals = [
        StatusCode::UNAUTHORIZED,
        StatusCode::FORBIDDEN,
        StatusCode::NOT_FOUND,
    ];
    let input = json!({ RESOURCE: "vda" });
    let mut all = BTreeSet::new();
    for number in 0..=count {
        let operation = format!("/{}", name(number));
        let outcome = gateway
            .invoke(caller, GatewayCall::for_operation(&operation, &input))
            .await;
        let status = outcome.err().map(|error| error.status);
        if !status.is_some_and(|status| refusals.contains(&status)) {
            all.insert(operation);
        }
    }
    all
}

/// Callers for which the two are not the same, with both.
async fn differing(operations: &[VisibilityCase], callers: &[Vec<String>]) -> Vec<String> {
    let dispatcher = Arc::new(Dispatcher::new(registry(operations)));
    let (near, _far) = memory_pair(b"h2");
    let gate = LocalCaller::new(&dispatcher, &near, None);
    let gateway = Gateway::default();
    let mut differing = Vec::new();
    for (number, scopes) in callers.iter().enumerate() {
        let caller = caller(&gate, number, scopes);
        let listed = listed(&gateway, &caller);
        let callable = callable(&gateway, &caller, operations.len()).await;
        if listed != callable {
            differing.push(format!("{scopes:?}: {listed:?} but {callable:?}"));
        }
    }
    differing
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_is_listed_is_what_is_not_refused(
        operations in vec(operation(), 1..12),
        callers in vec(held(), CALLERS),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.expect("a runtime");
        let differing = runtime.block_on(differing(&operations, &callers));
        prop_assert!(differing.is_empty(), "{differing:#?}");
    }
}
