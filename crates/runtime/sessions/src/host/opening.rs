//! What a session gets when it is opened: its authority, the list of its operations, and its first
//! frame.

use alknet_call::{CompositionAuthority, Env};
use alknet_core::Identity;
use alknet_runtime::{
    EnvOperation, GlobalGrants as Globals, RecordedCall, RuntimeCode, ScriptFailure,
};
use alknet_worker::{Bytes32, CborBody, SessionNotice};

use super::{SessionGrants, SessionMode, SessionSpec};
use crate::limits::{LISTED_BYTES_MAX, LISTED_IMPORTED_BYTES_MAX, LISTED_MAX};
use crate::wire::{self, SessionOpening};

/// The tenant whose workers a session may use.
pub(super) fn tenant(identity: Option<&Identity>) -> String {
    identity.map_or_else(String::new, |identity| identity.id.to_string())
}

/// A digest of what a session that `env` opens may do. Sessions share a worker only if it is the same: the worker says
/// which of its sessions calls, and code that takes it over has the rights of each. Services have workers of their own: a
/// call of another operation that is given up in native code, or uses up the memory, ends its worker, and with it the
/// state of each service there.
pub(super) fn rights(env: &Env, spec: &SessionSpec) -> Bytes32 {
    let of_opener = env.authority().map(|own| (&own.scopes, &own.resources));
    let of_identity = spec.identity.as_deref();
    let of_identity = of_identity.map(|identity| (&identity.scopes, &identity.resources));
    // Every one of these says all that it holds in its debug output, capabilities by their names.
    let rights = (
        of_opener,
        env.scope(),
        of_identity,
        &spec.grants,
        &spec.capabilities,
        spec.mode == SessionMode::Service,
    );
    Bytes32(*blake3::hash(format!("{rights:?}").as_bytes()).as_bytes())
}

/// Layer 1 of the session, with its authority and its reach.
pub(super) fn layer(
    env: &Env,
    spec: &SessionSpec,
) -> Result<alknet_call::SandboxSession, ScriptFailure> {
    let denied = |text: String| ScriptFailure::new(RuntimeCode::Denied, text);
    let (Some(own), Some(reach)) = (env.authority(), env.scope()) else {
        let text = "the operation that opens the session calls nothing itself";
        return Err(denied(text.to_owned()));
    };
    let mut authority = authority(own, spec.identity.as_deref());
    authority.is_requesters = !spec.lent;
    let scope = spec.grants.scope(reach);
    alknet_call::SandboxSession::open(env, authority, scope)
        .map_err(|error| denied(error.to_string()))
}

/// The authority that both the operation and the identity have.
fn authority(own: &CompositionAuthority, identity: Option<&Identity>) -> CompositionAuthority {
    // An unknown peer has no scopes, and neither has its script.
    let Some(identity) = identity else {
        return CompositionAuthority::new("an unknown peer's script", [""; 0]);
    };
    let texts = |set: &alknet_core::ScopeSet| Vec::<String>::from(set.clone());
    let mut scopes: Vec<String> = texts(&identity.scopes);
    scopes.retain(|scope| own.scopes.allows(scope));
    // Of two overlapping patterns, both sides allow the narrower one.
    let narrower = texts(&own.scopes);
    scopes.extend(
        narrower
            .into_iter()
            .filter(|scope| identity.scopes.allows(scope)),
    );
    let label = format!("script of {}", identity.id);
    let mut authority = CompositionAuthority::new(&label, scopes);
    for (kind, ids) in &identity.resources {
        let held = own.resources.get(kind).map_or(&[][..], Vec::as_slice);
        let both = ids.iter().filter(|id| held.contains(id));
        authority = authority.with_resources(kind, both);
    }
    authority
}

/// The list of operations that a session may call, in the form for the session.
pub(super) fn listed(env: &Env, grants: &SessionGrants) -> Vec<EnvOperation> {
    let mut bytes = 0;
    let mut operations = Vec::new();
    for found in env.reachable() {
        let spec = found.spec();
        if grants.find(&spec.name, None).is_none() {
            continue;
        }
        let operation = EnvOperation {
            path: spec.name.clone(),
            kind: match spec.op_type {
                alknet_call::OperationType::Mutation => {
                    alknet_runtime::ScriptOperationKind::Mutation
                }
                alknet_call::OperationType::Query => alknet_runtime::ScriptOperationKind::Query,
                alknet_call::OperationType::Subscription => {
                    alknet_runtime::ScriptOperationKind::Subscription
                }
            },
            input: spec.input_schema.clone(),
            output: spec.output_schema.clone(),
            description: spec.description.clone(),
        };
        bytes += serde_json::to_string(&operation).map_or(0, |text| text.len());
        // Imported operations come last.
        let most = match found.provenance().is_server() {
            true => LISTED_IMPORTED_BYTES_MAX,
            false => LISTED_BYTES_MAX,
        };
        if operations.len() >= LISTED_MAX || bytes > most {
            break;
        }
        operations.push(operation);
    }
    operations
}

/// The first frame of a session.
pub(super) fn first_frame(
    spec: &mut SessionSpec,
    operations: Vec<EnvOperation>,
    record: Option<Vec<RecordedCall>>,
    bundle: Bytes32,
) -> Result<(SessionNotice, Vec<std::os::fd::OwnedFd>), alknet_worker::WorkerFrameError> {
    let may = |name: &str| operations.iter().any(|operation| operation.path == name);
    let opening = SessionOpening {
        mode: spec.mode,
        grants: Globals {
            ops: true,
            tensor: may("tensor/open"),
            gpu: may("compute/dispatch"),
        },
        frozen: spec.frozen,
        seeded_crypto: spec.seed.is_some(),
        limits: spec.limits.runtime.clone(),
        modules: SessionOpening::texts(&spec.modules),
        imports: SessionOpening::map(&spec.modules),
        main: spec.main.clone(),
        operations,
        record,
    };
    // The node does not need the texts any more.
    spec.modules = alknet_runtime::ModuleSet::new();
    let mut fds = Vec::new();
    let caps: CborBody = wire::body(&wire::blob(&opening, &mut fds)?)?;
    let notice = SessionNotice::Open {
        caps,
        limits: wire::body(&spec.limits.runtime)?,
        bundle_hash: Some(bundle),
        seed: spec.seed.map(Bytes32),
        clock: wire::body(&spec.clock)?,
    };
    Ok((notice, fds))
}
