use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use alknet_core::{BoxError, BoxFuture};
use alknet_test_support::log_capture::{CapturedLine, LogCapture};
use bytes::Bytes;
use http::{Request, Response};
use tempfile::TempDir;
use tracing::Level;

use super::keys::tests::FakeSeal;
use super::plan::AcmeHistory;
use super::*;
use crate::pair::tests::{NOW, PairTestCa};

const NAME: &str = "a.example";

/// An authority that cannot be reached, and how often it was tried.
#[derive(Default)]
struct UnreachableCa(AtomicUsize);

impl AcmeTransport for UnreachableCa {
    fn send(&self, _: Request<Bytes>) -> BoxFuture<'static, Result<Response<Bytes>, BoxError>> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Box::pin(async { Err(BoxError::from("no server is there")) })
    }
}

/// The warnings of this thread with `part` in them, since the last look.
fn warned(log: &LogCapture, part: &str) -> Vec<String> {
    let warnings = log.take(|line| line.level == Level::WARN);
    let text = |line: CapturedLine| {
        line.fields
            .into_iter()
            .map(|(_, value)| value + " ")
            .collect()
    };
    let mut texts: Vec<String> = warnings.into_iter().map(text).collect();
    texts.retain(|text| text.contains(part));
    texts
}

/// What outlives a start.
struct AcmeTestState {
    state: TempDir,
    authority: Arc<UnreachableCa>,
    problems: Arc<NodeDiagnostics>,
    store: Arc<CertificateStore>,
}

impl AcmeTestState {
    fn new() -> Self {
        Self {
            state: tempfile::tempdir().expect("a directory"),
            authority: Arc::default(),
            problems: Arc::default(),
            store: Arc::default(),
        }
    }

    /// Where a certificate is kept already, so that no order is due.
    fn with_certificate(seal: Option<Arc<dyn KeySeal>>) -> Self {
        let state = Self::new();
        let disk = AcmeStorage::open(state.state.path(), NAME, seal).expect("a folder");
        let (chain, key) = PairTestCa::new("ca").issue(&[NAME]);
        let key = disk.seal(&key).expect("open");
        disk.keep_certificate(&chain, &key).expect("kept");
        state
    }

    fn start(&self, seal: &Arc<FakeSeal>) -> Acme {
        self.start_for(seal, &[NAME], None)
    }

    fn start_for(
        &self,
        seal: &Arc<FakeSeal>,
        names: &[&str],
        challenge: Option<ChallengeKind>,
    ) -> Acme {
        let options = AcmeOptions {
            directory: "https://localhost/dir".to_owned(),
            contact: Vec::new(),
            names: names.iter().map(|&name| name.to_owned()).collect(),
            challenge,
            profile: None,
            state_dir: self.state.path().to_owned(),
            clock_floor: 0,
        };
        let authority = Arc::clone(&self.authority);
        let parts = AcmeParts {
            key_seal: Some(Arc::clone(seal) as _),
            ..fake::parts(authority, &self.store, &self.problems)
        };
        Acme::new(options, parts).expect("good options")
    }

    fn folder(&self) -> PathBuf {
        self.state.path().join("acme").join(NAME)
    }

    fn is_served(&self) -> bool {
        self.store.pair(CertificateSource::Acme).is_some()
    }

    fn requests(&self) -> usize {
        self.authority.0.load(Ordering::Relaxed)
    }
}

fn seal(words: u8) -> Arc<FakeSeal> {
    Arc::new(FakeSeal::new(words))
}

fn is_there(folder: &Path, file: &str) -> bool {
    folder.join(file).exists()
}

#[test]
fn names_are_checked_before_the_authority_is_asked() {
    let check = |names: &[&str]| {
        let names: Vec<String> = names.iter().map(|&n| n.to_owned()).collect();
        check_names(&names).map(str::to_owned)
    };
    assert_eq!(
        check(&["a.example", "*.a.example"]).expect("good"),
        "a.example"
    );
    for bad in [
        "",
        "a b",
        "192.0.2.1",
        "*",
        "*.",
        "a.*.example",
        "../x",
        "a/b",
    ] {
        assert!(check(&[bad]).is_err(), "{bad}");
    }
    assert!(check(&[]).is_err());
    assert!(check(&["a.example"; NAMES_MAX]).is_ok());
    assert!(check(&["a.example"; NAMES_MAX + 1]).is_err());
}

#[test]
fn a_sealed_certificate_is_served_again_and_not_ordered() {
    let seal = seal(1);
    let state = AcmeTestState::with_certificate(Some(Arc::clone(&seal) as _));
    let mut acme = state.start(&seal);
    assert!(state.is_served() && !acme.locked);
    assert!(matches!(acme.plan.next(NOW), AcmeStep::Wait { .. }));
    assert_eq!(state.problems.list(), []);
}

/// The vault has other words. Orders are as rare as always, over a restart too.
#[tokio::test]
async fn a_key_that_does_not_open_is_said_once_and_another_ordered() {
    let state = AcmeTestState::with_certificate(Some(seal(1)));
    let log = LogCapture::listen();
    let other = seal(2);
    let mut acme = state.start(&other);
    assert!(!state.is_served() && !acme.locked);
    assert_eq!(acme.plan.next(NOW), AcmeStep::Order);
    acme.order().await;
    assert!(state.requests() > 0);
    assert!(matches!(acme.plan.next(acme.now()), AcmeStep::Wait { .. }));
    let folder = state.folder().display().to_string();
    let warnings = warned(&log, &folder);
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    for part in [
        "a new certificate is ordered",
        ".sealed",
        "cannot be decrypted",
    ] {
        assert!(warnings[0].contains(part), "{warnings:?}");
    }
    drop(acme);
    let mut again = state.start(&other);
    assert!(matches!(
        again.plan.next(again.now()),
        AcmeStep::Wait { .. }
    ));
}

#[test]
fn a_locked_key_is_waited_for() {
    let seal = seal(1);
    let state = AcmeTestState::with_certificate(Some(Arc::clone(&seal) as _));
    let log = LogCapture::listen();
    seal.lock(true);
    let mut acme = state.start(&seal);
    for _ in 0..3 {
        assert!(acme.locked && !state.is_served());
        let problems = state.problems.list();
        assert_eq!(problems.len(), 1, "{problems:?}");
        for part in [".sealed", "the vault is locked", "nothing is ordered"] {
            assert!(problems[0].text.contains(part), "{problems:?}");
        }
        acme.serve_stored();
    }
    assert_eq!(warned(&log, "the vault is locked").len(), 1);
    seal.lock(false);
    acme.serve_stored();
    assert!(!acme.locked && state.is_served());
    assert_eq!(state.problems.list(), []);
    assert!(matches!(acme.plan.next(NOW), AcmeStep::Wait { .. }));
    assert_eq!(state.requests(), 0);
}

#[tokio::test]
async fn nothing_is_ordered_whose_key_cannot_be_sealed() {
    let state = AcmeTestState::new();
    let seal = seal(1);
    let mut acme = state.start(&seal);
    seal.lock(true);
    let mut problems = state.problems.watch();
    tokio::select! {
        biased;
        () = acme.order() => panic!("it waits"),
        changed = problems.wait_for(|list| !list.is_empty()) => assert!(changed.is_ok()),
    }
    let text = state.problems.list()[0].text.clone();
    assert!(text.contains("the vault is locked"), "{text}");
    // It was no order, so that it does not count as one.
    assert_eq!(state.requests(), 0);
    assert_eq!(acme.plan.history(), &AcmeHistory::default());
    assert_eq!(acme.disk.history::<AcmeHistory>(), AcmeHistory::default());
    assert_eq!(acme.plan.next(acme.now()), AcmeStep::Order);
}

/// The node has no DNS part.
#[tokio::test]
async fn nothing_is_ordered_that_the_node_cannot_prove() {
    for (names, challenge) in [
        (&["*.a.example"][..], None),
        (&[NAME, "*.a.example"], None),
        (&[NAME], Some(ChallengeKind::Dns01)),
    ] {
        let state = AcmeTestState::new();
        let mut acme = state.start_for(&seal(1), names, challenge);
        let mut problems = state.problems.watch();
        tokio::select! {
            biased;
            () = acme.order() => panic!("it waits"),
            changed = problems.wait_for(|list| !list.is_empty()) => assert!(changed.is_ok()),
        }
        let text = state.problems.list()[0].text.clone();
        assert!(text.contains("no node serves one yet"), "{text}");
        assert_eq!(state.requests(), 0, "{names:?}");
        assert_eq!(acme.plan.history(), &AcmeHistory::default());
        assert_eq!(acme.plan.next(acme.now()), AcmeStep::Order);
    }
}

#[test]
fn a_key_in_the_clear_is_served_at_once_and_sealed_once_it_can_be() {
    let state = AcmeTestState::with_certificate(None);
    let folder = state.folder();
    let seal = seal(1);
    seal.lock(true);
    let mut acme = state.start(&seal);
    assert!(state.is_served() && acme.locked);
    assert!(is_there(&folder, "certificate.pem"));
    seal.lock(false);
    acme.serve_stored();
    assert!(!acme.locked);
    assert_eq!(state.problems.list(), []);
    assert!(is_there(&folder, "chain.pem") && !is_there(&folder, "certificate.pem"));
    assert!(matches!(acme.plan.next(NOW), AcmeStep::Wait { .. }));
    drop(state.start(&seal));
    assert!(state.is_served());
}
