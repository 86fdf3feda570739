//! What a session is opened with: its rights, what it is told of them, and its first frame.

use alknet_call::{CompositionAuthority, Env};
use alknet_core::Identity;
use alknet_runtime::{Code, Failure, Grants as Globals, Operation, Recorded};
use alknet_worker::{Body, Hash, Told};

use super::{Grants, SessionSpec};
use crate::limits::{LISTED_BYTES_MAX, LISTED_MAX};
use crate::wire::{self, Opening};

/// Whose workers a session may be in.
pub(super) fn tenant(identity: Option<&Identity>) -> String {
    identity.map_or_else(String::new, |identity| identity.id.to_string())
}

/// Layer 1 of the session, with what it may and what it reaches.
pub(super) fn layer(env: &Env, spec: &SessionSpec) -> Result<alknet_call::Session, Failure> {
    let denied = |text: String| Failure::new(Code::Denied, text);
    let (Some(own), Some(reach)) = (env.authority(), env.scope()) else {
        let text = "the operation that opens the session calls nothing itself";
        return Err(denied(text.to_owned()));
    };
    let authority = authority(own, spec.identity.as_deref());
    let scope = spec.grants.scope(reach);
    alknet_call::Session::open(env, authority, scope).map_err(|error| denied(error.to_string()))
}

/// What both the operation and the identity may.
fn authority(own: &CompositionAuthority, identity: Option<&Identity>) -> CompositionAuthority {
    let Some(identity) = identity else {
        return CompositionAuthority::new("a stranger's script", [""; 0]);
    };
    let texts = |set: &alknet_core::ScopeSet| Vec::<String>::from(set.clone());
    let mut scopes: Vec<String> = texts(&identity.scopes);
    scopes.retain(|scope| own.scopes.allows(scope));
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

/// What a session is told that it may call.
pub(super) fn listed(env: &Env, grants: &Grants) -> Vec<Operation> {
    let mut bytes = 0;
    let mut operations = Vec::new();
    for found in env.reachable() {
        let spec = found.spec();
        if grants.find(&spec.name, None).is_none() {
            continue;
        }
        let operation = Operation {
            path: spec.name.clone(),
            kind: match spec.op_type {
                alknet_call::OperationType::Mutation => alknet_runtime::Kind::Mutation,
                alknet_call::OperationType::Query => alknet_runtime::Kind::Query,
                alknet_call::OperationType::Subscription => alknet_runtime::Kind::Subscription,
            },
            input: spec.input_schema.clone(),
            output: spec.output_schema.clone(),
            description: spec.description.clone(),
        };
        bytes += serde_json::to_string(&operation).map_or(0, |text| text.len());
        if operations.len() >= LISTED_MAX || bytes > LISTED_BYTES_MAX {
            break;
        }
        operations.push(operation);
    }
    operations
}

/// The first frame of a session.
pub(super) fn first_frame(
    spec: &mut SessionSpec,
    operations: Vec<Operation>,
    record: Option<Vec<Recorded>>,
    bundle: Hash,
) -> Result<(Told, Vec<std::os::fd::OwnedFd>), alknet_worker::FrameError> {
    let may = |name: &str| operations.iter().any(|operation| operation.path == name);
    let opening = Opening {
        mode: spec.mode,
        grants: Globals {
            ops: true,
            tensor: may("tensor/open"),
            gpu: may("compute/dispatch"),
        },
        frozen: spec.frozen,
        seeded_crypto: spec.seed.is_some(),
        limits: spec.limits.runtime.clone(),
        modules: Opening::texts(&spec.modules),
        imports: Opening::map(&spec.modules),
        main: spec.main.clone(),
        operations,
        record,
    };
    // The node needs the texts no longer.
    spec.modules = alknet_runtime::ModuleSet::new();
    let mut fds = Vec::new();
    let caps: Body = wire::body(&wire::blob(&opening, &mut fds)?)?;
    let told = Told::Open {
        caps,
        limits: wire::body(&spec.limits.runtime)?,
        bundle_hash: Some(bundle),
        seed: spec.seed.map(Hash),
        clock: wire::body(&spec.clock)?,
    };
    Ok((told, fds))
}
