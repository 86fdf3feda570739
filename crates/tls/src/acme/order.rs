//! One order, from the request to the issued certificate (RFC 8555 section 7.4).

use std::sync::Arc;
use std::time::Duration;

use instant_acme::{
    Account, AuthorizationHandle, AuthorizationStatus, CertificateIdentifier, ChallengeHandle,
    ChallengeType, Identifier, NewOrder, Order, OrderStatus, Problem, RetryPolicy,
};
use rcgen::{CertificateParams, DistinguishedName, KeyPair};
use tokio::time::timeout;
use zeroize::Zeroizing;

use super::challenge::{
    AlpnChallenges, ChallengeKind, DnsChallenge, HttpChallenges, PendingChallenge,
};
use super::error::AcmeError;
use crate::error::TlsError;
use crate::pair::CertificatePair;

/// Polling of an authority that checks names or signs.
const PATIENCE: RetryPolicy = RetryPolicy::new()
    .initial_delay(Duration::from_millis(250))
    .backoff(1.5)
    .timeout(Duration::from_secs(120));

/// Longest time for the proof of all names.
const PROVE_TIMEOUT: Duration = Duration::from_secs(300);

/// The challenges that this node can answer.
#[derive(Clone, Default)]
pub(super) struct ChallengeResponders {
    pub(super) alpn: Arc<AlpnChallenges>,
    pub(super) http: Option<Arc<HttpChallenges>>,
    pub(super) dns: Option<Arc<dyn DnsChallenge>>,
    /// The only challenge that the administrator allows.
    pub(super) only: Option<ChallengeKind>,
}

impl ChallengeResponders {
    /// The challenges that can work for `domain`, the best first.
    pub(super) fn ways(&self, domain: &str, wildcard: bool) -> Vec<ChallengeKind> {
        let dns = self.dns.as_ref();
        let mut ways = Vec::new();
        // A challenge that the administrator named is tried even where the zone does not look like the node's.
        let named = self.only == Some(ChallengeKind::Dns01);
        if dns.is_some_and(|dns| named || dns.covers(domain)) {
            ways.push(ChallengeKind::Dns01);
        }
        // Authorities accept only DNS as proof of a wildcard.
        if !wildcard {
            ways.push(ChallengeKind::TlsAlpn01);
            if self.http.is_some() {
                ways.push(ChallengeKind::Http01);
            }
        }
        ways.retain(|way| self.only.is_none_or(|only| only == *way));
        ways
    }

    /// The first of `names` that no challenge can work for.
    pub(super) fn unprovable<'a>(&self, names: &'a [String]) -> Option<&'a str> {
        let mut names = names.iter().map(String::as_str);
        names.find(|name| {
            let below = name.strip_prefix("*.");
            self.ways(below.unwrap_or(name), below.is_some()).is_empty()
        })
    }
}

/// A new key, and the signing request for its certificate.
pub(super) struct CsrKeyPair {
    /// The key, as PKCS #8.
    pub(super) pem: Zeroizing<String>,
    request: Vec<u8>,
}

impl CsrKeyPair {
    /// Makes both for a certificate with `names`.
    pub(super) fn make(names: &[String]) -> Result<Self, TlsError> {
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
        let mut params = CertificateParams::new(names)?;
        // The library's default has a common name of its own. Authorities take the names from subjectAltName.
        params.distinguished_name = DistinguishedName::new();
        let request = params.serialize_request(&key)?;
        Ok(Self {
            pem: Zeroizing::new(key.serialize_pem()),
            request: request.der().to_vec(),
        })
    }
}

/// The parameters of an order.
pub(super) struct CertificateOrder<'a> {
    pub(super) names: &'a [String],
    pub(super) fresh: &'a CsrKeyPair,
    pub(super) profile: Option<&'a str>,
    pub(super) replaces: Option<CertificateIdentifier<'a>>,
    /// Failures before this order: each attempt begins with the next challenge.
    pub(super) attempt: u32,
}

/// An issued certificate.
pub(super) struct Issued {
    pub(super) chain: String,
    pub(super) pair: CertificatePair,
}

/// Orders a certificate. `now` returns the time at which it must be valid.
pub(super) async fn order(
    account: &Account,
    parameters: CertificateOrder<'_>,
    answers: &ChallengeResponders,
    now: impl Fn() -> u64,
) -> Result<Issued, AcmeError> {
    let identifiers: Vec<Identifier> = parameters
        .names
        .iter()
        .map(|name| Identifier::Dns(name.clone()))
        .collect();
    let mut request = NewOrder::new(&identifiers);
    if let Some(profile) = parameters.profile {
        request = request.profile(profile);
    }
    if let Some(replaces) = parameters.replaces {
        request = request.replaces(replaces);
    }
    let mut order = account.new_order(&request).await?;
    let mut responses = ChallengeAnswers::default();
    let proven = timeout(
        PROVE_TIMEOUT,
        prove(&mut order, answers, parameters.attempt, &mut responses),
    )
    .await;
    // The responses are withdrawn before the result is examined, whatever the result is.
    responses.take_back(answers).await;
    proven.unwrap_or(Err(AcmeError::TimedOut(PROVE_TIMEOUT.as_secs())))?;
    let issued = collect(&mut order, parameters.fresh).await?;
    // The node checks the certificate as a client would: one that clients refuse must not replace a working one.
    issued.pair.validate(parameters.names, now())?;
    Ok(issued)
}

/// Answers every challenge and waits until the authority has checked them.
async fn prove(
    order: &mut Order,
    answers: &ChallengeResponders,
    attempt: u32,
    responses: &mut ChallengeAnswers,
) -> Result<(), AcmeError> {
    let mut authorizations = order.authorizations();
    while let Some(authorization) = authorizations.next().await {
        let authorization = authorization?;
        match authorization.status {
            // The authority still accepts an earlier proof.
            AuthorizationStatus::Valid => {}
            AuthorizationStatus::Pending => {
                answer(authorization, answers, attempt, responses).await?;
            }
            _ => return Err(refusal(&authorization)),
        }
    }
    match order.poll_ready(&PATIENCE).await {
        Ok(OrderStatus::Ready) => Ok(()),
        Ok(_) => Err(reason(order, None).await),
        // The order says that it failed, and the authorization says why.
        Err(instant_acme::Error::Api(problem)) => Err(reason(order, Some(problem)).await),
        Err(error) => Err(error.into()),
    }
}

/// The error that the authority reports about a name.
async fn reason(order: &mut Order, problem: Option<Problem>) -> AcmeError {
    let mut authorizations = order.authorizations();
    while let Some(Ok(mut authorization)) = authorizations.next().await {
        let refreshed = authorization.refresh().await.is_ok();
        if refreshed && authorization.status == AuthorizationStatus::Invalid {
            return refusal(&authorization);
        }
    }
    match problem {
        Some(problem) => AcmeError::Refused(problem.to_string()),
        None => AcmeError::Refused("it gives no reason".to_owned()),
    }
}

fn refusal(authorization: &AuthorizationHandle<'_>) -> AcmeError {
    let detail = authorization
        .challenges
        .iter()
        .find_map(|challenge| challenge.error.as_ref()?.detail.clone());
    let detail = detail.unwrap_or_else(|| format!("it is {:?}", authorization.status));
    AcmeError::Refused(format!("{}: {detail}", authorization.identifier()))
}

async fn answer(
    mut authorization: AuthorizationHandle<'_>,
    answers: &ChallengeResponders,
    attempt: u32,
    responses: &mut ChallengeAnswers,
) -> Result<(), AcmeError> {
    let wildcard = authorization.identifier().wildcard;
    let domain = match authorization.identifier().identifier {
        Identifier::Dns(domain) => domain.to_ascii_lowercase(),
        _ => return Err(AcmeError::NoWay(authorization.identifier().to_string())),
    };
    let offered = |kind: &ChallengeKind| {
        let wire = wire(*kind);
        authorization.challenges.iter().any(|c| c.r#type == wire)
    };
    let mut ways = answers.ways(&domain, wildcard);
    ways.retain(offered);
    if ways.is_empty() {
        return Err(AcmeError::NoWay(authorization.identifier().to_string()));
    }
    // A failed challenge spoils the whole order, so the next order tries the next one.
    let kind = ways[attempt as usize % ways.len()];
    let mut challenge = authorization
        .challenge(wire(kind))
        .ok_or_else(|| AcmeError::NoWay(domain.clone()))?;
    responses.give(kind, &domain, &challenge, answers).await?;
    tracing::info!("showing by {kind:?} that {domain} is ours");
    Ok(challenge.set_ready().await?)
}

fn wire(kind: ChallengeKind) -> ChallengeType {
    match kind {
        ChallengeKind::Dns01 => ChallengeType::Dns01,
        ChallengeKind::Http01 => ChallengeType::Http01,
        ChallengeKind::TlsAlpn01 => ChallengeType::TlsAlpn01,
    }
}

/// The challenge responses of one order.
#[derive(Default)]
struct ChallengeAnswers {
    pending: Vec<PendingChallenge>,
    records: Vec<(String, String)>,
}

impl ChallengeAnswers {
    async fn give(
        &mut self,
        kind: ChallengeKind,
        domain: &str,
        challenge: &ChallengeHandle<'_>,
        answers: &ChallengeResponders,
    ) -> Result<(), AcmeError> {
        let proof = challenge.key_authorization();
        let none = || AcmeError::NoWay(domain.to_owned());
        match kind {
            ChallengeKind::TlsAlpn01 => {
                let digest = proof.digest();
                let digest = digest.as_ref().try_into().map_err(|_| none())?;
                self.pending.push(answers.alpn.put(domain, digest)?);
            }
            ChallengeKind::Http01 => {
                let http = answers.http.as_ref().ok_or_else(none)?;
                self.pending
                    .push(http.put(&challenge.token, proof.as_str()));
            }
            ChallengeKind::Dns01 => {
                let dns = answers.dns.as_ref().ok_or_else(none)?;
                let name = format!("_acme-challenge.{domain}");
                let value = proof.dns_value();
                // The record is noted first: if publishing fails halfway, it is withdrawn as well.
                self.records.push((name.clone(), value.clone()));
                dns.publish(&name, &value).await.map_err(AcmeError::Dns)?;
            }
        }
        Ok(())
    }

    async fn take_back(self, answers: &ChallengeResponders) {
        let Some(dns) = &answers.dns else { return };
        for (name, value) in &self.records {
            if let Err(error) = dns.withdraw(name, value).await {
                tracing::warn!("cannot take back the record {name}: {error}");
            }
        }
    }
}

/// Collects the certificate of the fresh key.
async fn collect(order: &mut Order, fresh: &CsrKeyPair) -> Result<Issued, AcmeError> {
    order.finalize_csr(&fresh.request).await?;
    let chain = order.poll_certificate(&PATIENCE).await?;
    let pair = CertificatePair::from_pem(chain.as_bytes(), fresh.pem.as_bytes())?;
    Ok(Issued { chain, pair })
}

#[cfg(test)]
mod tests {
    use alknet_core::{BoxError, BoxFuture};

    use super::*;

    struct TestDnsZone;

    impl DnsChallenge for TestDnsZone {
        fn covers(&self, name: &str) -> bool {
            name.ends_with("ours.example")
        }

        fn publish<'a>(&'a self, _: &'a str, _: &'a str) -> BoxFuture<'a, Result<(), BoxError>> {
            Box::pin(std::future::ready(Ok(())))
        }

        fn withdraw<'a>(&'a self, _: &'a str, _: &'a str) -> BoxFuture<'a, Result<(), BoxError>> {
            Box::pin(std::future::ready(Ok(())))
        }
    }

    #[test]
    fn the_order_of_ways() {
        use ChallengeKind::{Dns01, Http01, TlsAlpn01};
        let mut answers = ChallengeResponders::default();
        assert_eq!(answers.ways("a.example", false), [TlsAlpn01]);
        assert_eq!(answers.ways("a.example", true), []);
        answers.http = Some(Arc::default());
        answers.dns = Some(Arc::new(TestDnsZone));
        assert_eq!(answers.ways("a.example", false), [TlsAlpn01, Http01]);
        assert_eq!(
            answers.ways("ours.example", false),
            [Dns01, TlsAlpn01, Http01]
        );
        assert_eq!(answers.ways("ours.example", true), [Dns01]);
        answers.only = Some(Http01);
        assert_eq!(answers.ways("ours.example", false), [Http01]);
        assert_eq!(answers.ways("ours.example", true), []);
        answers.only = Some(Dns01);
        assert_eq!(answers.ways("elsewhere.example", false), [Dns01]);
        let names = ["ours.example", "*.ours.example"].map(str::to_owned);
        assert_eq!(answers.unprovable(&names), None);
        answers.dns = None;
        assert_eq!(answers.unprovable(&names), Some("ours.example"));
        answers.only = None;
        assert_eq!(answers.unprovable(&names), Some("*.ours.example"));
    }
}
