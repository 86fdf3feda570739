//! An authority of the tests, in memory. It believes every client, gives certificates at once, and is away or wants to
//! be left alone as the test sets it. The tests of the endpoint use an authority of another project.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use alknet_core::{BoxError, BoxFuture};
use bytes::Bytes;
use data_encoding::BASE64URL_NOPAD;
use http::header::{LOCATION, RETRY_AFTER};
use http::{Request, Response};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, PublicKeyData,
    SignatureAlgorithm, date_time_ymd,
};
use serde_json::{Value, json};

use super::clock::AcmeClock;
use super::{AcmeParts, AcmeTransport};
use crate::diagnostics::NodeDiagnostics;
use crate::store::CertificateStore;

/// The name that certificates are for.
pub(super) const NAME: &str = "edge.example";

const HOST: &str = "https://authority.example";

/// Its paths.
pub(super) const DIRECTORY: &str = "/directory";
pub(super) const ACCOUNT: &str = "/account";
pub(super) const ORDER: &str = "/order";
pub(super) const WINDOW: &str = "/window";

/// How it treats its clients.
#[derive(Clone, Debug)]
pub(super) enum FakeCaBehavior {
    Gives,
    /// No connection comes about.
    Away,
    /// Refuses, below one of its paths.
    Refuses {
        at: &'static str,
        status: u16,
        retry_after: Option<String>,
        body: &'static str,
    },
}

/// What [`Acme`](super::Acme) works with where there is neither port 80 nor DNS nor a vault.
pub(super) fn parts(
    authority: Arc<impl AcmeTransport + 'static>,
    store: &Arc<CertificateStore>,
    problems: &Arc<NodeDiagnostics>,
) -> AcmeParts {
    AcmeParts {
        transport: authority,
        store: Arc::clone(store),
        problems: Arc::clone(problems),
        alpn: Arc::default(),
        http: None,
        dns: None,
        account_key: None,
        key_seal: None,
    }
}

pub(super) struct FakeCa {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
    clock: Arc<dyn AcmeClock>,
    state: Mutex<FakeCaState>,
}

struct FakeCaState {
    behavior: FakeCaBehavior,
    /// What was asked for, and when.
    requests: Vec<(u64, String)>,
    /// The certificate of the last order, once it is made.
    issued: Option<String>,
}

impl FakeCa {
    pub(super) fn new(clock: Arc<dyn AcmeClock>) -> Arc<Self> {
        let mut params = CertificateParams::new(vec![]).expect("no names");
        params
            .distinguished_name
            .push(DnType::CommonName, "authority of a test");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(2040, 1, 1);
        let key = KeyPair::generate().expect("a key");
        let pem = params.self_signed(&key).expect("signed").pem();
        let state = FakeCaState {
            behavior: FakeCaBehavior::Gives,
            requests: Vec::new(),
            issued: None,
        };
        Arc::new(Self {
            pem,
            issuer: Issuer::new(params, key),
            clock,
            state: Mutex::new(state),
        })
    }

    pub(super) fn is(&self, behavior: FakeCaBehavior) {
        self.lock().behavior = behavior;
    }

    /// When something at this path or below it was asked for.
    pub(super) fn requests(&self, path: &str) -> Vec<u64> {
        let state = self.lock();
        let requests = state.requests.iter();
        let requests = requests.filter(|(_, requested)| requested.starts_with(path));
        requests.map(|(at, _)| *at).collect()
    }

    fn lock(&self) -> MutexGuard<'_, FakeCaState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answer(&self, request: &Request<Bytes>) -> Result<Response<Bytes>, BoxError> {
        let path = request.uri().path();
        let mut state = self.lock();
        state.requests.push((self.clock.now(), path.to_owned()));
        match state.behavior.clone() {
            FakeCaBehavior::Away => Err("no server answers there".into()),
            FakeCaBehavior::Refuses {
                at,
                status,
                retry_after,
                body,
            } if path.starts_with(at) => {
                let mut answer = Response::builder().status(status);
                if let Some(text) = retry_after {
                    answer = answer.header(RETRY_AFTER, text);
                }
                Ok(answer.body(Bytes::from(body))?)
            }
            FakeCaBehavior::Gives | FakeCaBehavior::Refuses { .. } => {
                self.gives(path, request.body(), &mut state)
            }
        }
    }

    fn gives(
        &self,
        path: &str,
        body: &[u8],
        state: &mut FakeCaState,
    ) -> Result<Response<Bytes>, BoxError> {
        let (status, body): (u16, String) = match path {
            DIRECTORY => (200, directory().to_string()),
            "/nonce" => (200, String::new()),
            ACCOUNT => (201, json!({ "status": "valid" }).to_string()),
            ORDER => {
                state.issued = None;
                (201, order("ready"))
            }
            "/order/1" if state.issued.is_some() => (200, order("valid")),
            "/order/1" => (200, order("ready")),
            "/name" => (200, authorization().to_string()),
            "/finalize" => {
                state.issued = Some(self.certificate(body)?);
                (200, order("valid"))
            }
            "/certificate" => (200, state.issued.clone().ok_or("it does not exist")?),
            _ => (404, String::new()),
        };
        let answer = Response::builder()
            .status(status)
            .header("replay-nonce", "good")
            .header(LOCATION, format!("{HOST}{path}/1"));
        Ok(answer.body(body.into())?)
    }

    /// A certificate for the key of a request for one (RFC 2986).
    fn certificate(&self, signed: &[u8]) -> Result<String, BoxError> {
        let csr = decoded(payload(signed)?["csr"].as_str())?;
        let key = P256Point::from_csr(&csr).ok_or("no key")?;
        let mut params = CertificateParams::new(vec![NAME.to_owned()])?;
        params.not_before = date_time_ymd(2025, 1, 1);
        params.not_after = date_time_ymd(2035, 1, 1);
        params.use_authority_key_identifier_extension = true;
        let leaf = params.signed_by(&key, &self.issuer)?.pem();
        Ok(format!("{leaf}{}", self.pem))
    }
}

impl AcmeTransport for FakeCa {
    fn send(
        &self,
        request: Request<Bytes>,
    ) -> BoxFuture<'static, Result<Response<Bytes>, BoxError>> {
        Box::pin(std::future::ready(self.answer(&request)))
    }
}

fn directory() -> Value {
    json!({
        "newNonce": format!("{HOST}/nonce"),
        "newAccount": format!("{HOST}{ACCOUNT}"),
        "newOrder": format!("{HOST}{ORDER}"),
        "renewalInfo": format!("{HOST}{WINDOW}"),
    })
}

fn order(status: &str) -> String {
    let order = json!({
        "status": status,
        "identifiers": [{ "type": "dns", "value": NAME }],
        "authorizations": [format!("{HOST}/name")],
        "finalize": format!("{HOST}/finalize"),
        "certificate": format!("{HOST}/certificate"),
    });
    order.to_string()
}

fn authorization() -> Value {
    json!({
        "status": "valid",
        "identifier": { "type": "dns", "value": NAME },
        "challenges": [],
    })
}

/// What was signed (RFC 7515 section 7.2.2); the signature is not checked.
fn payload(signed: &[u8]) -> Result<Value, BoxError> {
    let signed: Value = serde_json::from_slice(signed)?;
    let payload = decoded(signed["payload"].as_str())?;
    Ok(serde_json::from_slice(&payload)?)
}

fn decoded(text: Option<&str>) -> Result<Vec<u8>, BoxError> {
    let text = text.ok_or("nothing is there")?;
    Ok(BASE64URL_NOPAD.decode(text.as_bytes())?)
}

/// A key on the curve P-256 as it stands in certificates: a point, not compressed (RFC 5480 section 2.2).
struct P256Point(Vec<u8>);

impl P256Point {
    const BYTES: usize = 65;

    /// The point of a request: the first bit string in it.
    fn from_csr(csr: &[u8]) -> Option<Self> {
        let head = [3, 66, 0, 4];
        let at = csr.windows(head.len()).position(|bytes| bytes == head)?;
        let point = csr.get(at + 3..)?.get(..Self::BYTES)?;
        Some(Self(point.to_vec()))
    }
}

impl PublicKeyData for P256Point {
    fn der_bytes(&self) -> &[u8] {
        &self.0
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &rcgen::PKCS_ECDSA_P256_SHA256
    }
}
