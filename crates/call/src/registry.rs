//! The operations of a node: collected by a builder, frozen by [`RegistryBuilder::build`].

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use alknet_core::Capabilities;
use arc_swap::ArcSwap;
use serde_json::Value;

use crate::body::CallBody;
use crate::compiled::CompiledOperation;
use crate::compose::{CompositionAuthority, Provenance};
use crate::error::CallError;
use crate::generation::{ByName, Generation};
use crate::handler::{HandlerKind, OnSlow};
use crate::peers::{PeerRef, ScopedPeerEnv};
use crate::rules::{self, RegistryError};
use crate::schema::PermitShare;
use crate::server_imports::{PendingImport, RegistrySnapshot, ServerImports};
use crate::services;
use crate::spec::{IMPORTED_TAG, OperationSpec, Visibility, import_scope};

/// An operation on its way into the registry.
#[derive(Clone, Debug)]
pub struct Registration {
    pub(crate) spec: OperationSpec,
    pub(crate) handler: HandlerKind,
    pub(crate) provenance: Provenance,
    pub(crate) authority: Option<CompositionAuthority>,
    pub(crate) scoped_env: Option<ScopedPeerEnv>,
    pub(crate) open: bool,
    pub(crate) capabilities: Capabilities,
    pub(crate) on_slow: OnSlow,
    pub(crate) check_output: bool,
    pub(crate) schema_is_type: bool,
    pub(crate) passes_errors: bool,
}

impl Registration {
    /// An operation of this node.
    #[must_use]
    pub fn new(spec: OperationSpec, handler: HandlerKind) -> Self {
        Self {
            spec,
            handler,
            provenance: Provenance::Local,
            authority: None,
            scoped_env: None,
            open: false,
            capabilities: Capabilities::default(),
            on_slow: OnSlow::default(),
            check_output: false,
            schema_is_type: false,
            passes_errors: false,
        }
    }

    /// An operation that came from somewhere else.
    #[must_use]
    pub fn imported(spec: OperationSpec, handler: HandlerKind, provenance: Provenance) -> Self {
        Self {
            provenance,
            ..Self::new(spec, handler)
        }
    }

    /// What the operation may do when it calls others, and which others it reaches. Without both, it calls none.
    #[must_use]
    pub fn composing(mut self, authority: CompositionAuthority, reach: ScopedPeerEnv) -> Self {
        self.authority = Some(authority);
        self.scoped_env = Some(reach);
        self
    }

    /// Offers an imported operation to the node's callers, as well as to its other operations: each caller has to
    /// hold [`import_scope`] of its name. The operation gets [`IMPORTED_TAG`]. Without this, only other operations of
    /// the node reach it, and requests from outside do not.
    #[must_use]
    pub fn with_import_scope(mut self) -> Self {
        let scope = import_scope(&self.spec.name);
        // The scope of the import decides who may call the operation.
        self.spec.visibility = Visibility::External;
        self.spec.access_control.required_scopes.push(scope);
        self.spec.tags.push(IMPORTED_TAG.to_owned());
        self
    }

    /// Its description.
    #[must_use]
    pub fn spec(&self) -> &OperationSpec {
        &self.spec
    }

    /// Where it came from.
    #[must_use]
    pub fn provenance(&self) -> Provenance {
        self.provenance
    }

    /// States that every caller, unknown peers included, may call this mutation. Without this the builder refuses a
    /// mutation with an empty access control.
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

    /// The capabilities that this handler alone may use. They reach it after access control
    /// ([`Ctx::capabilities`](crate::Ctx::capabilities)), and no other handler.
    #[must_use]
    pub fn with_capabilities(mut self, capabilities: Capabilities) -> Self {
        self.capabilities = capabilities;
        self
    }

    /// States that the handler parses its input into a type that takes what the schema takes, and refuses the rest as
    /// `INVALID_INPUT`: the node does not check the input twice.
    #[must_use]
    pub fn schema_is_type(mut self) -> Self {
        self.schema_is_type = true;
        self
    }

    /// States that its answers come from another operation, whose own codes callers may see though this one declares
    /// none of them: it passes requests on ([`Onward`](crate::CallForwarder)).
    #[must_use]
    pub fn passing_errors_on(mut self) -> Self {
        self.passes_errors = true;
        self
    }

    /// Checks outputs against their schema, too; a violation is `INVALID_OUTPUT`.
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
    promoted: Vec<Registration>,
    server_namespaces: BTreeSet<Box<str>>,
    node_namespaces: BTreeSet<Box<str>>,
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

    /// Gives each added operation the capabilities that `granted` returns for it. They replace those that the
    /// operation brought, unless `granted` returns none for it.
    pub fn equip(&mut self, granted: impl Fn(&str) -> Capabilities) -> &mut Self {
        for registration in &mut self.registrations {
            let own = granted(&registration.spec.name);
            // A registration may have capabilities of its own already.
            if !own.is_empty() {
                registration.capabilities = own;
            }
        }
        self
    }

    /// Reserves a namespace for imports from a server, also before the first import: no operation of a peer or of a
    /// caller's connection stands in for one that the server does not serve. An operation reaches such a name on a
    /// peer only where its [`ScopedPeerEnv`] pins or routes it there.
    pub fn keep_for_server(&mut self, namespace: &str) -> &mut Self {
        self.server_namespaces.insert(namespace.into());
        self
    }

    /// Keeps a namespace for operations of this node: where it has no operation of a name in it, a call that names no
    /// peer finds none on a peer, and none on a caller's connection, unless its [`ScopedPeerEnv`] pins the name to a
    /// peer.
    pub fn keep_for_node(&mut self, namespace: &str) -> &mut Self {
        self.node_namespaces.insert(namespace.into());
        self
    }

    /// Adds an operation that a session wrote and that an administrator reviewed and promoted: generation `b` of
    /// layer 0. A promoted operation never replaces one of this program. The builder leaves out promoted operations
    /// that break a rule, have a taken name or a reserved namespace, and [`Generation::rejected`] names them, so that
    /// no promotion can keep a node from starting.
    pub fn promote(&mut self, registration: Registration) -> &mut Self {
        self.promoted.push(registration);
        self
    }

    /// Checks every operation, compiles its schemas and freezes the set. `services/list` and `services/schema` are
    /// always part of it.
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

    /// Like `build`, but the registry compiles a schema when a call first has a value to check: compiling is most of
    /// what starting a small node costs. For operations that a program brings with it and whose schemas its tests have
    /// compiled by [`RegistryBuilder::build`]; a call whose schema has a fault ends with `INTERNAL`.
    ///
    /// # Errors
    /// The first operation that breaks a rule, by name.
    pub fn build_lazily(self) -> Result<Registry, RegistryError> {
        let mut by_name = ByName::new();
        for registration in self.registrations {
            // Callers rely on these operations to mean the same on every node.
            if rules::is_protocols(&registration.spec.namespace) {
                return Err(RegistryError::Reserved(registration.spec.name));
            }
            insert(&mut by_name, registration)?;
        }
        for registration in services::registrations() {
            insert(&mut by_name, registration)?;
        }
        let generation = Generation::new(0, &by_name, self.promoted, None)?;
        let mut sorted: Vec<_> = by_name.values().map(Arc::clone).collect();
        sorted.sort_by(|a: &Arc<CompiledOperation>, b| a.spec.name.cmp(&b.spec.name));
        Ok(Registry {
            by_name,
            sorted,
            generation: ArcSwap::from_pointee(generation),
            imported: ArcSwap::default(),
            server_namespaces: self.server_namespaces,
            node_namespaces: self.node_namespaces,
            node_names: ArcSwap::default(),
        })
    }
}

fn insert(by_name: &mut ByName, registration: Registration) -> Result<(), RegistryError> {
    let compiled = CompiledOperation::new(registration)?;
    let name = compiled.spec.name.as_str().into();
    match by_name.insert(name, Arc::new(compiled)) {
        None => Ok(()),
        Some(earlier) => Err(RegistryError::Duplicate(earlier.spec.name.clone())),
    }
}

/// The operations of a node that requests from outside reach: layer 0. Those of the program are immutable; promoted
/// ones stand beside them, a [`Generation`] at a time, and after these the imported ones that have a rule.
pub struct Registry {
    by_name: ByName,
    sorted: Vec<Arc<CompiledOperation>>,
    generation: ArcSwap<Generation>,
    /// The imports from servers that are no peers.
    imported: ArcSwap<ServerImports>,
    /// Namespaces in which only servers and this node have operations.
    pub(crate) server_namespaces: BTreeSet<Box<str>>,
    /// Namespaces in which a call that names no peer finds operations of this node alone.
    node_namespaces: BTreeSet<Box<str>>,
    /// Like `node_namespaces`, for single names outside them.
    node_names: ArcSwap<BTreeSet<Box<str>>>,
}

impl Registry {
    /// A builder without operations.
    #[must_use]
    pub fn builder() -> RegistryBuilder {
        RegistryBuilder::default()
    }

    /// A registry without operations, not even the protocol's own.
    #[must_use]
    pub fn empty() -> Self {
        Self {
            by_name: ByName::new(),
            sorted: Vec::new(),
            generation: ArcSwap::from_pointee(Generation::empty()),
            imported: ArcSwap::default(),
            server_namespaces: BTreeSet::new(),
            node_namespaces: BTreeSet::new(),
            node_names: ArcSwap::default(),
        }
    }

    /// The spec of an operation of the program. Access is not checked.
    #[must_use]
    pub fn spec(&self, name: &str) -> Option<&OperationSpec> {
        self.by_name.get(name).map(|operation| &operation.spec)
    }

    /// Every spec of the program's operations, in order of name.
    pub fn specs(&self) -> impl Iterator<Item = &OperationSpec> {
        self.sorted.iter().map(|operation| &operation.spec)
    }

    /// The promoted operations, as they are now.
    #[must_use]
    pub fn generation(&self) -> Arc<Generation> {
        self.generation.load_full()
    }

    /// SHA-256 over every spec, promoted and imported ones included, in hex: changes when any operation does.
    #[must_use]
    pub fn digest(&self) -> String {
        self.now().digest()
    }

    /// The present operations.
    pub(crate) fn now(&self) -> RegistrySnapshot {
        RegistrySnapshot::new(self.generation(), self.imported())
    }

    /// Replaces the present generation by another one.
    pub(crate) fn install(
        &self,
        number: u64,
        registrations: Vec<Registration>,
    ) -> Result<Arc<Generation>, RegistryError> {
        let now = self.generation.load();
        let next = Generation::new(number, &self.by_name, registrations, Some(&now))?;
        let next = Arc::new(next);
        self.generation.store(Arc::clone(&next));
        Ok(next)
    }

    /// Replaces the operations from `source`. Operations of this node find the new ones when they call others.
    /// Requests from outside find those that are external and have a rule, see
    /// [`with_import_scope`](Registration::with_import_scope). Only [`Dispatcher::import`](crate::Dispatcher::import)
    /// notifies watchers.
    ///
    /// # Errors
    /// An operation breaks a rule, or the program or another source has one of its name.
    pub fn import(
        &self,
        source: &str,
        registrations: Vec<Registration>,
    ) -> Result<(), RegistryError> {
        self.install_import(&PendingImport::new(source, registrations)?)
    }

    /// Installs the compiled operations.
    pub(crate) fn install_import(&self, next: &PendingImport<'_>) -> Result<(), RegistryError> {
        // An import must not stand in for an operation of the program.
        if let Some(taken) = next.names().find(|name| self.by_name.contains_key(*name)) {
            return Err(RegistryError::Duplicate(taken.to_owned()));
        }
        // Two sources must not offer one name: calls would go to either.
        if let Some(taken) = next.collision(&self.imported.load()) {
            return Err(RegistryError::Duplicate(taken.to_owned()));
        }
        // Another import may finish meanwhile: its operations must not be lost.
        self.imported.rcu(|before| next.over(before));
        Ok(())
    }

    /// The specs of the imports from servers that are no peers, in order of name.
    #[must_use]
    pub fn imported_specs(&self) -> Vec<OperationSpec> {
        let imported = self.imported();
        let mut specs: Vec<_> = imported.specs().cloned().collect();
        specs.sort_by(|one, other| one.name.cmp(&other.name));
        specs
    }

    /// Whether this node imported an operation of that name from `source`; `None` before the first import from it.
    #[must_use]
    pub fn has_imported(&self, source: &str, name: &str) -> Option<bool> {
        self.imported.load().serves(source, name)
    }

    /// Keeps these names for operations of this node, whether it has these operations or not, as
    /// [`keep_for_node`](RegistryBuilder::keep_for_node) keeps a namespace: for paths to which operations were promoted.
    /// They replace the names that were kept so before.
    pub fn keep_names(&self, names: BTreeSet<Box<str>>) {
        self.node_names.store(Arc::new(names));
    }

    /// The present imports from servers that are no peers.
    pub(crate) fn imported(&self) -> Arc<ServerImports> {
        self.imported.load_full()
    }

    /// Whether a call to this name, which names `peer`, finds no operation of a caller's connection, and on peers only
    /// what its scope pins or routes there; see [`keep_for_server`](RegistryBuilder::keep_for_server),
    /// [`keep_for_node`](RegistryBuilder::keep_for_node) and [`keep_names`](Self::keep_names).
    pub(crate) fn is_kept(&self, name: &str, peer: Option<&PeerRef>) -> bool {
        let names_peer = matches!(peer, Some(PeerRef::Specific(_)));
        let namespace = name.split('/').next().unwrap_or_default();
        self.server_namespaces.contains(namespace) || (!names_peer && self.is_of_node(name))
    }

    /// Whether this node keeps the name for an operation of its own.
    pub(crate) fn is_of_node(&self, name: &str) -> bool {
        let namespace = name.split('/').next().unwrap_or_default();
        self.node_namespaces.contains(namespace) || self.node_names.load().contains(name)
    }

    /// Checks `input` against the schema of an operation without calling it, for planning.
    ///
    /// # Errors
    /// `NOT_FOUND`, or `INVALID_INPUT` with the violations.
    pub fn validate(&self, operation: &str, input: &Value) -> Result<(), CallError> {
        self.lookup(operation)
            .ok_or_else(|| CallError::not_found(operation))?
            .check_input(&CallBody::json(input)?, PermitShare::Node)
    }

    /// An operation by its name on the wire, with or without the leading slash.
    pub(crate) fn lookup(&self, name: &str) -> Option<Arc<CompiledOperation>> {
        // Both forms of a name are allowed in requests.
        let name = name.strip_prefix('/').unwrap_or(name);
        // First: no promoted or imported operation replaces one of the program.
        if let Some(found) = self.curated(name) {
            return Some(Arc::clone(found));
        }
        let promoted = self.generation.load().get(name).map(Arc::clone);
        promoted.or_else(|| self.imported.load().get_external(name).map(Arc::clone))
    }

    /// An operation of the program by its name.
    pub(crate) fn curated(&self, name: &str) -> Option<&Arc<CompiledOperation>> {
        self.by_name.get(name)
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list()
            .entries(self.specs().map(|spec| &spec.name))
            .finish()
    }
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

    fn builder(registrations: Vec<Registration>) -> RegistryBuilder {
        RegistryBuilder {
            registrations,
            ..RegistryBuilder::default()
        }
    }

    fn build(registrations: Vec<Registration>) -> Result<Registry, RegistryError> {
        builder(registrations).build()
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
    fn mutations_for_every_caller_say_so() {
        let mutation = || Registration::new(OperationSpec::mutation("a/b", ""), once());
        assert!(matches!(refused(mutation()), RegistryError::Open(_)));
        assert!(build(vec![mutation().open()]).is_ok());
        let internal = OperationSpec::mutation("a/b", "").internal();
        assert!(build(vec![Registration::new(internal, once())]).is_ok());
    }

    #[test]
    fn imports_call_nothing() {
        let spec = OperationSpec::query("a/b", "");
        let authority = CompositionAuthority::new("a", ["x"]);
        let import = Registration::imported(spec, once(), Provenance::FromOpenApi)
            .composing(authority, ScopedPeerEnv::default());
        assert_eq!(refused(import), RegistryError::Leaf("a/b".to_owned()));
    }

    #[test]
    fn what_is_promoted_replaces_nothing_and_stops_nothing() {
        let query = |name| Registration::new(OperationSpec::query(name, ""), once());
        let mut builder = builder(vec![query("a/b")]);
        let broken = OperationSpec::query("a/d", "").with_input(json!({"type": "nonsense"}));
        builder
            .promote(query("a/b"))
            .promote(query("a/c"))
            .promote(query("node/info"))
            .promote(query("services/list"))
            .promote(Registration::new(broken, once()));
        let registry = builder.build_lazily().expect("the others are fine");
        let promoted = registry.generation();
        let names: Vec<_> = promoted.specs().map(|spec| spec.name.as_str()).collect();
        assert_eq!(names, ["a/c"]);
        assert!(registry.spec("a/c").is_none() && registry.lookup("/a/c").is_some());
        let rejected = promoted.rejected();
        assert_eq!(rejected[0], RegistryError::Duplicate("a/b".to_owned()));
        assert_eq!(rejected[1], RegistryError::Reserved("node/info".to_owned()));
        assert_eq!(
            rejected[2],
            RegistryError::Reserved("services/list".to_owned())
        );
        assert!(matches!(rejected[3], RegistryError::Schema { .. }));
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

    #[test]
    fn an_import_is_replaced_as_a_whole_and_replaces_no_other() {
        let query = |name: &str| {
            let spec = OperationSpec::query(name, "").internal();
            Registration::imported(spec, once(), Provenance::FromOpenApi)
        };
        let own = Registration::new(OperationSpec::query("a/b", ""), once());
        let registry = build(vec![own]).expect("fine");
        let found = |name: &str| registry.imported().get(name).is_some();
        registry
            .import("x", vec![query("x/a"), query("x/b")])
            .expect("fine");
        let taken = registry.import("y", vec![query("x/a")]).expect_err("taken");
        assert_eq!(taken, RegistryError::Duplicate("x/a".to_owned()));
        let taken = registry.import("y", vec![query("a/b")]).expect_err("taken");
        assert_eq!(taken, RegistryError::Duplicate("a/b".to_owned()));
        registry
            .import("x", vec![query("x/b"), query("x/c")])
            .expect("again");
        assert!(!found("x/a") && found("x/b") && found("x/c"));
        assert!(registry.lookup("x/b").is_none(), "not from outside");
    }

    fn imported(name: &str) -> Registration {
        let spec = OperationSpec::query(name, "").internal();
        Registration::imported(spec, once(), Provenance::FromOpenApi)
    }

    fn names(registry: &Registry, cursor: &str) -> Vec<String> {
        let now = registry.now();
        let names = now.after(cursor).map(|one| one.spec.name.clone());
        names.filter(|name| !name.starts_with("se")).collect()
    }

    #[test]
    fn of_an_import_requests_from_outside_reach_what_has_a_rule() {
        let own = |name| Registration::new(OperationSpec::query(name, ""), once());
        let registry = build(vec![own("a/b"), own("y/z")]).expect("fine");
        let digest = registry.digest();
        let open = Registration::imported(
            OperationSpec::query("x/open", ""),
            once(),
            Provenance::FromMcp,
        );
        let offered = ["x/a", "x/B"].map(|name| imported(name).with_import_scope());
        let all = [Vec::from(offered), vec![open, imported("x/inner")]].concat();
        registry.import("x", all).expect("fine");
        let found = |name: &str| registry.lookup(name).map(|one| one.spec.clone());
        let rule = found("/x/a").expect("it is offered").access_control;
        assert_eq!(rule.required_scopes, ["import:x:a"]);
        assert_eq!((found("x/open"), found("x/inner")), (None, None));
        assert_eq!(names(&registry, ""), ["a/b", "x/B", "x/a", "y/z"]);
        assert_eq!(names(&registry, "x/B"), ["x/a", "y/z"]);
        assert_ne!(registry.digest(), digest);
        // A promoted operation of the name counts before it.
        let install = registry.install(1, vec![own("x/a")]);
        install.expect("no rule is broken");
        assert_eq!(names(&registry, ""), ["a/b", "x/B", "x/a", "y/z"]);
        let rule = found("x/a").expect("it is promoted").access_control;
        assert!(rule.is_open());
        let digest = registry.digest();
        registry.import("x", Vec::new()).expect("nothing");
        assert_eq!(names(&registry, ""), ["a/b", "x/a", "y/z"]);
        assert_ne!(registry.digest(), digest);
    }
}
