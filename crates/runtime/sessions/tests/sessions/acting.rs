//! Scripts that act by what their operation was given, in real workers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use alknet_core::{
    Aead, Capabilities, CapabilityBackend, CapabilityError, CapabilityFiller, CapabilityKind,
    CapabilitySigner, Secret, capability,
};
use alknet_runtime::{CallRecorder, REDACTED};
use alknet_sessions::SessionSpec;
use serde_json::{Value, json};

use crate::support::{SessionLab, main, soon, spec};

/// Says of what it is asked how long it was.
struct LengthSigner;

impl CapabilitySigner for LengthSigner {
    fn public(&self) -> [u8; 32] {
        [7; 32]
    }

    fn sign(&self, message: &[u8]) -> Result<[u8; 64], CapabilityError> {
        Ok([message.len() as u8; 64])
    }
}

/// Puts the name in front.
struct PrefixAead;

impl Aead for PrefixAead {
    fn seal(&self, name: &str, plain: &[u8]) -> Result<Vec<u8>, CapabilityError> {
        Ok([name.as_bytes(), plain].concat())
    }

    fn open(&self, name: &str, sealed: &[u8]) -> Result<Secret, CapabilityError> {
        let plain = sealed.strip_prefix(name.as_bytes());
        let plain = plain.ok_or(CapabilityError::NotOpened)?;
        Ok(Secret::new(plain.to_vec()))
    }
}

struct CapabilityFixture {
    capabilities: Capabilities,
    is_open: Arc<AtomicBool>,
    _fillers: Vec<CapabilityFiller>,
}

fn given() -> CapabilityFixture {
    let is_open = Arc::new(AtomicBool::new(true));
    let asked = Arc::clone(&is_open);
    let gate: alknet_core::CapabilityGate = Arc::new(move || asked.load(Ordering::SeqCst));
    let powers = [
        (
            "mint",
            CapabilityKind::Signer,
            CapabilityBackend::Signer(Box::new(LengthSigner)),
        ),
        (
            "tray",
            CapabilityKind::Aead,
            CapabilityBackend::Aead(Box::new(PrefixAead)),
        ),
        (
            "openai",
            CapabilityKind::Bearer,
            CapabilityBackend::Bearer(Secret::new(b"sk-hush".to_vec())),
        ),
    ];
    let mut fillers = Vec::new();
    let all = powers.map(|(name, kind, power)| {
        let (one, filler) = capability(name, kind, Arc::clone(&gate));
        filler.fill(power);
        fillers.push(filler);
        one
    });
    CapabilityFixture {
        capabilities: Capabilities::new(all),
        is_open,
        _fillers: fillers,
    }
}

fn with(given: &CapabilityFixture, source: &str) -> SessionSpec {
    let mut spec = spec(source);
    spec.capabilities = given.capabilities.clone();
    spec
}

async fn value(lab: &SessionLab, spec: SessionSpec) -> Value {
    lab.run(spec).await.expect("a value").value
}

const CAUGHT: &str = "const caught = (promise) => promise.then(
    () => 'done', (e) => [e.code, e.details?.reason ?? null, e.retryable, e.path]);";

#[tokio::test(flavor = "multi_thread")]
async fn a_script_signs_and_seals_and_never_has_what_is_behind_it() {
    let lab = SessionLab::new();
    let source = "
        const mint = await capabilities.get('mint');
        const signed = new Uint8Array(await mint.sign(new TextEncoder().encode('abc')));
        const tray = await capabilities.get('tray');
        const sealed = await tray.seal('a', new Uint8Array([1, 2, 3]).subarray(1));
        const opened = new Uint8Array(await tray.open('a', sealed));
        const openai = await capabilities.get('openai');
        export default {
            mint: [mint.name, mint.kind, new Uint8Array(mint.publicKey)[31], signed.length, signed[0]],
            tray: [[...new Uint8Array(sealed)], [...opened]],
            openai: [Object.keys(openai), openai.kind, Object.isFrozen(openai)],
        };";
    let told = value(&lab, with(&given(), source)).await;
    let expected = json!({
        "mint": ["mint", "signer", 7, 64, 3],
        "tray": [[97, 2, 3], [2, 3]],
        "openai": [["name", "kind"], "bearer", true],
    });
    assert_eq!(told, expected);
    assert!(!told.to_string().contains("hush"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_not_given_or_is_locked_is_refused_by_its_reason() {
    let lab = SessionLab::new();
    let source = format!(
        "{CAUGHT}
        const data = new Uint8Array(1);
        const found = await capabilities.get('mint').catch(() => null);
        export default [
            await caught(capabilities.get('other')),
            await caught(found ? found.sign(data) : capabilities.get('mint')),
            await caught(ops.call('capability/sign', {{ name: 'openai', data: '' }})),
            await caught(ops.call('capability/derive', {{ name: 'mint' }})),
            await caught(ops.call('capability/get', {{ name: 'mint' }}, {{ peer: 'user' }})),
            await caught(ops.subscribe('capability/get', {{ name: 'mint' }}).next()),
        ];"
    );
    let none = value(&lab, spec(&source)).await;
    let refused = |code: &str, reason: Value, path: &str| json!([code, reason, false, path]);
    let not = |path: &str| refused("FORBIDDEN", json!("not_granted"), path);
    assert_eq!(none[0], not("capability/get"));
    assert_eq!(none[2], not("capability/sign"));
    let given = given();
    let open = value(&lab, with(&given, &source)).await;
    assert_eq!(open[0], not("capability/get"));
    assert_eq!(open[1], "done");
    let kind = refused("INVALID_INPUT", json!("capability_kind"), "capability/sign");
    assert_eq!(open[2], kind);
    assert_eq!(open[3][0], "NOT_FOUND");
    assert_eq!(open[4][0], "INVALID_INPUT");
    assert_eq!(open[5][0], "INVALID_INPUT");
    given.is_open.store(false, Ordering::SeqCst);
    let locked = value(&lab, with(&given, &source)).await;
    let expected = json!(["UNAVAILABLE", "vault_locked", true, "capability/get"]);
    assert_eq!(locked[1], expected);
}

/// A session's own operation cannot be in the way, and no operation of the node is.
#[tokio::test(flavor = "multi_thread")]
async fn no_script_answers_in_the_place_of_the_host() {
    let lab = SessionLab::new();
    let source = "
        await ops.register({ name: 'capability/sign', kind: 'query' }, async () => ({ signature: '' }))
            .catch(() => null);
        export default [
            ops.list('capability/').length,
            new Uint8Array(await (await capabilities.get('mint')).sign(new Uint8Array(2)))[0],
        ];";
    assert_eq!(value(&lab, with(&given(), source)).await, json!([0, 2]));
}

#[tokio::test(flavor = "multi_thread")]
async fn acts_are_recorded_without_plain_text() {
    let lab = SessionLab::new();
    let source = "
        const mint = await capabilities.get('mint');
        await mint.sign(new Uint8Array([1]));
        const tray = await capabilities.get('tray');
        const sealed = await tray.seal('a', new TextEncoder().encode('hush'));
        await tray.open('a', sealed);
        export default 0;";
    let request = lab.request().await;
    let session = lab.open(&request, with(&given(), source)).await;
    let record = CallRecorder::default();
    session.set_record(Some(record.clone()));
    soon(session.run(&request.env(), main()))
        .await
        .expect("a value");
    let calls = record.end();
    assert_eq!(calls.left_out, 0);
    let told = serde_json::to_value(&calls.calls).expect("JSON");
    let paths: Vec<_> = calls.calls.iter().map(|call| call.path.as_str()).collect();
    let acts = ["get", "sign", "get", "seal", "open"].map(|act| format!("capability/{act}"));
    assert_eq!(paths, acts);
    assert_eq!(told[1]["input"], json!({ "name": "mint", "data": "AQ==" }));
    assert_eq!(told[3]["input"]["data"], REDACTED);
    assert_eq!(told[4]["output"]["data"], REDACTED);
}

/// The worker of a session that has no capability, taken over, must not act by those of another session.
#[tokio::test(flavor = "multi_thread")]
async fn an_operation_shares_no_worker_with_one_that_has_capabilities() {
    let lab = SessionLab::new();
    let request = lab.request().await;
    let given = given();
    let mut acts = spec("");
    acts.capabilities = given.capabilities.clone();
    let acts = lab.open(&request, acts).await;
    let plain = lab.open(&request, spec("")).await;
    assert_ne!(acts.info().pid, plain.info().pid);
    // Sessions without capabilities share one: the capabilities make the difference.
    let also_plain = lab.open(&request, spec("")).await;
    assert_eq!(plain.info().pid, also_plain.info().pid);
}
