//! A node with promotion, who is known on it, and bundles.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use alknet_call::{
    ALPN, CallClient, CallConnection, CallError, CallHandler, Dispatcher, ErrorCode, HandlerKind,
    OperationSpec, Provenance, Registration, Registry,
};
use alknet_core::{
    AuthContext, AuthToken, Carriage, Clock, Identity, IdentityKind, IdentityProvider, PeerId,
    PeerKey, ProtocolHandler, memory_pair,
};
use alknet_promotion::{
    ActivationTime, BundleContent, BundleError, FuelPercentiles, Promotion, PromotionBundle,
    PromotionConfig, PromotionParts, PromotionStore, RECHECK_PERIOD,
};
use alknet_runtime::ENGINE;
use alknet_test_support::deadline;
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::isolates::Isolates;

pub(crate) async fn soon<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(deadline(Duration::from_secs(120)), future)
        .await
        .expect("it happens")
}

/// The key pair of the peer with this name.
pub(crate) fn pair(name: &str) -> Ed25519KeyPair {
    let seed = *blake3::hash(name.as_bytes()).as_bytes();
    Ed25519KeyPair::from_seed_unchecked(&seed).expect("a seed")
}

pub(crate) fn key(name: &str) -> PeerKey {
    let public = pair(name).public_key().as_ref().try_into();
    PeerKey::Ed25519(public.expect("32 bytes"))
}

pub(crate) fn identity(name: &str, scopes: &[&str]) -> Arc<Identity> {
    Arc::new(Identity {
        id: name.parse().expect("a peer id"),
        kind: IdentityKind::Peer,
        scopes: scopes.iter().collect(),
        resources: BTreeMap::new(),
        generation: 0,
    })
}

/// Who is known, by name, and with which key.
#[derive(Default)]
pub(crate) struct PromotionIdentities {
    known: Mutex<BTreeMap<String, (PeerKey, Arc<Identity>)>>,
    changed: watch::Sender<u64>,
}

impl PromotionIdentities {
    pub(crate) fn set(&self, name: &str, scopes: &[&str]) {
        self.set_key(name, key(name), scopes);
    }

    /// The same with another key than the name's own.
    pub(crate) fn set_key(&self, name: &str, key: PeerKey, scopes: &[&str]) {
        let who = identity(name, scopes);
        let mut known = self.known.lock().expect("no poison");
        known.insert(name.to_owned(), (key, who));
        drop(known);
        self.changed.send_modify(|n| *n += 1);
    }

    /// The identity ends by its date, which nothing announces.
    pub(crate) fn end(&self, name: &str) {
        self.known.lock().expect("no poison").remove(name);
    }

    pub(crate) fn forget(&self, name: &str) {
        self.known.lock().expect("no poison").remove(name);
        self.changed.send_modify(|n| *n += 1);
    }

    pub(crate) fn get(&self, name: &str) -> (PeerKey, Arc<Identity>) {
        let known = self.known.lock().expect("no poison");
        known.get(name).expect("a known name").clone()
    }
}

impl IdentityProvider for PromotionIdentities {
    fn by_key(&self, asked: &PeerKey) -> Option<Arc<Identity>> {
        let known = self.known.lock().expect("no poison");
        let found = known.values().find(|(key, _)| key == asked);
        found.map(|(_, who)| Arc::clone(who))
    }

    fn by_token(&self, _: &AuthToken) -> Option<Arc<Identity>> {
        None
    }

    fn by_id(&self, id: &PeerId) -> Option<Arc<Identity>> {
        let known = self.known.lock().expect("no poison");
        let found = known.get(id.as_str());
        found.map(|(_, who)| Arc::clone(who))
    }

    fn watch(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }
}

/// It is always the same time.
pub(crate) struct NoonClock;

impl Clock for NoonClock {
    fn now_s(&self) -> Option<u64> {
        Some(1_800_000_000)
    }
}

pub(crate) struct PromotionNode {
    pub(crate) dispatcher: Arc<Dispatcher>,
    pub(crate) promotion: Arc<Promotion>,
    pub(crate) identities: Arc<PromotionIdentities>,
    pub(crate) isolates: Arc<Isolates>,
    pub(crate) handler: Arc<CallHandler>,
    pub(crate) file: PathBuf,
}

pub(crate) fn live() -> PromotionConfig {
    PromotionConfig {
        activate: ActivationTime::Live,
        ..PromotionConfig::default()
    }
}

/// A folder that is gone when the test ends.
pub(crate) fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary directory")
}

/// Operations of the program.
pub(crate) fn program() -> Vec<Registration> {
    let tax = OperationSpec::query("config/tax", "The tax.").with_scope("config:read");
    let write = OperationSpec::mutation("files/write", "Writes.").with_scope("files:write");
    let login = OperationSpec::query("door/open", "Opens.").with_input(json!({
        "type": "object", "properties": { "pin": { "type": "string", "x-secret": true } },
    }));
    let answer = |value: Value| {
        HandlerKind::once(move |_, _| {
            let value = value.clone();
            async move { Ok(value) }
        })
    };
    let full = OperationSpec::query("door/full", "Refuses every caller.");
    let far = OperationSpec::query("door/far", "A peer's that refuses every caller.");
    let refuses = || {
        HandlerKind::once(|_, _| async {
            Err::<Value, _>(CallError::new(
                ErrorCode::Overloaded,
                "as many are in as may be",
            ))
        })
    };
    let server = |name: &str, code: &'static str| {
        let spec = OperationSpec::query(name, "An imported server's.");
        let handler = HandlerKind::once(move |_, _| async move {
            Err::<Value, _>(CallError::operation(code, "the server says no"))
        });
        Registration::imported(spec, handler, Provenance::FromOpenApi).passing_errors_on()
    };
    vec![
        server("door/gone", "UNAVAILABLE"),
        server("door/late", "TIMEOUT"),
        server("door/odd", "HTTP_500"),
        Registration::new(full, refuses()),
        Registration::imported(far, refuses(), Provenance::FromCall),
        Registration::new(
            OperationSpec::query("door/stuck", "It never opens."),
            HandlerKind::once(|_, _| std::future::pending::<Result<Value, CallError>>()),
        ),
        Registration::new(tax, answer(json!({ "percent": 50 }))),
        Registration::new(write, answer(json!("written"))),
        Registration::new(login, answer(json!("open"))),
    ]
}

impl PromotionNode {
    /// Over the file in `folder`, which an earlier node may have left.
    pub(crate) async fn start(folder: &Path, config: PromotionConfig) -> Self {
        let identities = Arc::new(PromotionIdentities::default());
        identities.set("ada", &["ops:propose", "config:read"]);
        identities.set("bob", &["ops:propose", "ops:promote"]);
        identities.set("eve", &["ops:promote", "call:*"]);
        identities.set("cal", &["call:*"]);
        Self::start_with(folder, config, identities, program()).await
    }

    pub(crate) async fn start_with(
        folder: &Path,
        config: PromotionConfig,
        identities: Arc<PromotionIdentities>,
        program: Vec<Registration>,
    ) -> Self {
        Self::start_checking(folder, config, identities, program, RECHECK_PERIOD).await
    }

    /// The same, which looks at rights that end by date as often as `recheck`.
    pub(crate) async fn start_checking(
        folder: &Path,
        config: PromotionConfig,
        identities: Arc<PromotionIdentities>,
        program: Vec<Registration>,
        recheck: Duration,
    ) -> Self {
        let file = folder.join("promotion.db");
        let isolates = Arc::new(Isolates::default());
        let parts = PromotionParts {
            store: PromotionStore::open(&file).expect("a file"),
            runner: Arc::clone(&isolates) as _,
            invoker: Arc::clone(&isolates) as _,
            identities: Arc::clone(&identities) as _,
            capabilities: Default::default(),
            clock: Arc::new(NoonClock),
            config,
            recheck,
        };
        let promotion = Promotion::new(parts).expect("a configuration");
        let mut registry = Registry::builder();
        for registration in program.into_iter().chain(promotion.operations()) {
            registry.add(registration);
        }
        let registry = registry.build().expect("every rule is kept");
        let dispatcher = Dispatcher::new(registry).with_identities(Arc::clone(&identities) as _);
        let dispatcher = Arc::new(dispatcher);
        let attached = promotion.attach(&dispatcher).await;
        attached.expect("the store can be read");
        Self {
            handler: Arc::new(CallHandler::new(Arc::clone(&dispatcher))),
            dispatcher,
            promotion,
            identities,
            isolates,
            file,
        }
    }

    /// A connection of the peer with this name.
    pub(crate) fn client(&self, name: &str) -> CallConnection {
        self.client_of(name, &CallClient::without_operations())
    }

    /// The same, with what `client` serves.
    pub(crate) fn client_of(&self, name: &str, client: &CallClient) -> CallConnection {
        let (dialled, accepted) = memory_pair(ALPN);
        let (key, who) = self.identities.get(name);
        let auth = AuthContext {
            identity: Some(who),
            key: Some(key),
            alpn: ALPN.into(),
            sni: None,
            remote_addr: None,
            carriage: Carriage::Memory,
            early_data: false,
        };
        let handler: Arc<dyn ProtocolHandler> = Arc::clone(&self.handler) as _;
        tokio::spawn(handler.handle(accepted, auth));
        client.attach(dialled, None)
    }

    pub(crate) async fn call(
        &self,
        name: &str,
        operation: &str,
        input: &Value,
    ) -> Result<Value, CallError> {
        let client = self.client(name);
        let answer = soon(client.call(operation, input)).await;
        answer.map(|body| body.value().clone())
    }

    pub(crate) async fn code(&self, name: &str, operation: &str, input: &Value) -> ErrorCode {
        let answer = self.call(name, operation, input).await;
        answer.expect_err("it is refused").code
    }

    pub(crate) async fn propose(
        &self,
        name: &str,
        bundle: &PromotionBundle,
    ) -> Result<Value, CallError> {
        let input = json!({ "bundle": parsed(bundle.document()) });
        self.call(name, "ops/propose", &input).await
    }

    /// Proposed by its author, and accepted by eve for peers.
    #[track_caller]
    pub(crate) fn promote(&self, draft: &DraftBundle) -> impl Future<Output = Value> {
        let (bundle, author) = (draft.sign(), draft.author);
        async move {
            let proposed = self.propose(author, &bundle).await.expect("it is fine");
            let yes = json!({ "id": proposed["id"], "accept": true, "external": true });
            let promoted = self.call("eve", "ops/promote", &yes).await;
            promoted.expect("it is promoted")
        }
    }

    /// Ends, so that another can open the file.
    pub(crate) async fn stop(self) {
        let Self {
            dispatcher,
            promotion,
            ..
        } = self;
        let gone = Arc::downgrade(&promotion);
        drop((promotion, dispatcher, self.handler));
        soon(async {
            while gone.strong_count() > 0 {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }
}

pub(crate) fn parsed(text: &str) -> Value {
    serde_json::from_str(text).expect("JSON")
}

/// A bundle on its way.
pub(crate) struct DraftBundle {
    pub(crate) author: &'static str,
    pub(crate) content: BundleContent,
}

impl DraftBundle {
    /// One module that exports `run`.
    pub(crate) fn new(name: &str, source: &str) -> Self {
        let content = BundleContent {
            format: 1,
            engine: ENGINE.to_owned(),
            spec: serde_json::from_value(json!({ "name": name, "kind": "query" }))
                .expect("a specification"),
            entry: "./main.js".to_owned(),
            export: Some("run".to_owned()),
            service: false,
            modules: [("./main.js".to_owned(), source.to_owned())].into(),
            tests: Vec::new(),
            fuel: FuelPercentiles {
                p50: 5_000,
                p99: 5_000,
            },
            author: "ada".parse().expect("a name"),
            key: key("ada"),
        };
        Self {
            author: "ada",
            content,
        }
    }

    pub(crate) fn by(mut self, author: &'static str) -> Self {
        self.author = author;
        self.content.author = author.parse().expect("a name");
        self.content.key = key(author);
        self
    }

    pub(crate) fn uses(mut self, uses: &[&str]) -> Self {
        self.content.spec.uses = uses.iter().map(|it| (*it).to_owned()).collect();
        self
    }

    pub(crate) fn test(mut self, case: Value) -> Self {
        let case = serde_json::from_value(case).expect("a case");
        self.content.tests.push(case);
        self
    }

    pub(crate) fn try_sign(&self) -> Result<PromotionBundle, BundleError> {
        let pair = pair(self.author);
        PromotionBundle::sign(&self.content, |text| {
            pair.sign(text).as_ref().try_into().expect("64 bytes")
        })
    }

    #[track_caller]
    pub(crate) fn sign(&self) -> PromotionBundle {
        self.try_sign().expect("a bundle")
    }
}

/// One that answers with `value`, whatever it is asked.
pub(crate) fn says(name: &str, value: &Value) -> DraftBundle {
    DraftBundle::new(name, &format!("export const run = () => ({value});"))
        .test(json!({ "expect": { "output": value } }))
}
