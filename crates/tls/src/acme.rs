//! Certificates from a certificate authority that speaks ACME (RFC 8555). The node orders and renews them without the
//! administrator.
//!
//! One certificate holds all configured names. The node serves the stored one from its start, and replaces it in the
//! [`CertificateStore`] once it has checked a new one. Until then, and after an error, the old one stays. A planner
//! that has no clock and no network decides what to do when; this module does it.

mod account;
mod challenge;
mod clock;
mod disk;
mod error;
mod keys;
mod order;
mod plan;
mod retry_after;
mod transport;

#[cfg(test)]
mod backoff_tests;
#[cfg(test)]
mod fake;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use instant_acme::{Account, CertificateIdentifier};
use rustls::pki_types::Der;
use tokio::sync::Notify;
use tokio::time::timeout;

pub use challenge::{
    AlpnChallenges, ChallengeKind, DnsChallenge, HttpChallengeResponder, HttpChallenges,
};
pub use error::AcmeError;
pub use keys::{AccountKey, KeySeal, SealError};
pub use plan::{BACK_OFF_MAX_S, BACK_OFF_MIN_S, ORDERS_PER_DAY_MAX};
pub use retry_after::{RATE_LIMITED_S, RETRY_AFTER_MAX_S};
pub use transport::AcmeTransport;

use crate::der;
use crate::diagnostics::{ACME_FAILED, CLOCK_INSANE, NodeDiagnostics};
use crate::pair::CertificatePair;
use crate::store::{CertificateSource, CertificateStore};
use clock::{AcmeClock, AcmeSystemClock};
use disk::{AcmeStorage, StoredCertificateKey};
use order::{CertificateOrder, ChallengeResponders, CsrKeyPair, Issued};
use plan::{AcmeStep, Planner, UnixTimeSpan};
use retry_after::RetryAfter;

/// Most names in one certificate.
pub const NAMES_MAX: usize = 25;

/// Longest time for one order, with all its waits.
const ORDER_TIMEOUT: Duration = Duration::from_secs(600);

/// Longest sleep: the node notices after this time that the clock was set.
const SLEEP_MAX: Duration = Duration::from_secs(600);

/// Pause between checks of a wrong clock.
const CLOCK_PAUSE: Duration = Duration::from_secs(10);

/// Pause between attempts to seal or open a key, which take no request to the authority.
const KEY_PAUSE: Duration = Duration::from_secs(10);

/// Pause between checks whether the node can prove its names, which take no request to the authority.
const WAY_PAUSE: Duration = Duration::from_secs(60);

/// Shortest and longest pause between questions to the authority for its renewal window (RFC 9773 section 4.3.2).
const WINDOW_PAUSE_MIN: Duration = Duration::from_secs(600);
const WINDOW_PAUSE_MAX: Duration = Duration::from_secs(86_400);

/// The certificate to order, and its authority.
#[derive(Clone, Debug)]
pub struct AcmeOptions {
    /// URL of the authority's directory.
    pub directory: String,
    /// Contacts to which the authority may write, `mailto:…`.
    pub contact: Vec<String>,
    /// The names of the certificate, 1 to [`NAMES_MAX`]; the first names its folder.
    pub names: Vec<String>,
    /// The only challenge to use, if the administrator names one.
    pub challenge: Option<ChallengeKind>,
    /// The authority's profile (`shortlived`), if it is not the usual one.
    pub profile: Option<String>,
    /// Directory for account and certificate.
    pub state_dir: PathBuf,
    /// Seconds of Unix time before which the clock counts as wrong: the time of the build.
    pub clock_floor: u64,
}

/// The parts of the node that [`Acme`] works with.
pub struct AcmeParts {
    /// Sends requests to the authority.
    pub transport: Arc<dyn AcmeTransport>,
    /// The store from which the certificate is served.
    pub store: Arc<CertificateStore>,
    /// The diagnostics of the node.
    pub problems: Arc<NodeDiagnostics>,
    /// The same object with which the port's TLS was made.
    pub alpn: Arc<AlpnChallenges>,
    /// Mounted on port 80, if the node serves it.
    pub http: Option<Arc<HttpChallenges>>,
    /// The DNS part, if the node has one.
    pub dns: Option<Arc<dyn DnsChallenge>>,
    /// The account's key, if it is derived: a node that is built again from the same secret then has the same
    /// account. Without one, the node generates a key and stores it on disk.
    pub account_key: Option<Arc<dyn AccountKey>>,
    /// Seals the keys of certificates. Without it they are on disk in the clear, with mode 0600.
    pub key_seal: Option<Arc<dyn KeySeal>>,
}

/// Orders and renews one certificate.
pub struct Acme {
    options: AcmeOptions,
    transport: Arc<dyn AcmeTransport>,
    store: Arc<CertificateStore>,
    problems: Arc<NodeDiagnostics>,
    answers: ChallengeResponders,
    disk: AcmeStorage,
    plan: Planner,
    account_key: Option<Arc<dyn AccountKey>>,
    account: Option<Account>,
    retry_after: Arc<RetryAfter>,
    /// Time of the last question for the renewal window, and the pause after it.
    window_asked: Option<(u64, Duration)>,
    /// Whether a stored key cannot be opened, or a new one sealed, until an administrator unlocks the seal.
    locked: bool,
    renew: Arc<Notify>,
    clock: Arc<dyn AcmeClock>,
}

/// Requests a renewal before its time.
#[derive(Clone, Debug)]
pub struct AcmeHandle(Arc<Notify>);

impl AcmeHandle {
    /// Orders a new certificate as soon as the limits allow it.
    pub fn renew(&self) {
        self.0.notify_one();
    }
}

impl Acme {
    /// Serves the certificate of the last run, if it still matches the names.
    ///
    /// # Errors
    /// A name cannot be in a certificate, or the state directory cannot be used.
    pub fn new(mut options: AcmeOptions, parts: AcmeParts) -> Result<Self, AcmeError> {
        // DNS compares names without case (RFC 4343), and so does the code that looks these up.
        options
            .names
            .iter_mut()
            .for_each(|n| n.make_ascii_lowercase());
        let first = check_names(&options.names)?;
        let disk = AcmeStorage::open(&options.state_dir, first, parts.key_seal)?;
        let plan = Planner::new(options.names.clone(), options.clock_floor, disk.history());
        let mut acme = Self {
            answers: ChallengeResponders {
                alpn: parts.alpn,
                http: parts.http,
                dns: parts.dns,
                only: options.challenge,
            },
            transport: parts.transport,
            store: parts.store,
            problems: parts.problems,
            disk,
            plan,
            account_key: parts.account_key,
            account: None,
            retry_after: Arc::default(),
            window_asked: None,
            locked: false,
            renew: Arc::default(),
            clock: Arc::new(AcmeSystemClock),
            options,
        };
        acme.serve_stored();
        Ok(acme)
    }

    /// A handle for requests while the task runs.
    #[must_use]
    pub fn handle(&self) -> AcmeHandle {
        AcmeHandle(Arc::clone(&self.renew))
    }

    /// Orders and renews without end.
    pub async fn run(mut self) {
        loop {
            if self.locked {
                self.serve_stored();
            }
            if self.locked {
                self.clock.sleep(KEY_PAUSE).await;
                continue;
            }
            match self.plan.next(self.now()) {
                AcmeStep::ClockInsane => {
                    let text = "the clock is before this program was built; check the network's \
                                time servers. No certificate is ordered until then";
                    self.problems.set(CLOCK_INSANE, "acme", text.to_owned());
                    self.clock.sleep(CLOCK_PAUSE).await;
                }
                AcmeStep::Order => {
                    self.problems.clear(CLOCK_INSANE, "acme");
                    self.order().await;
                }
                AcmeStep::Wait { until } => {
                    self.problems.clear(CLOCK_INSANE, "acme");
                    self.wait(until).await;
                }
            }
        }
    }

    /// Sleeps until `until` at most, and asks the authority meanwhile for its renewal window.
    async fn wait(&mut self, until: u64) {
        let left = Duration::from_secs(until.saturating_sub(self.now()));
        tokio::select! {
            // A shorter sleep notices that the clock was set; `next` decides what to do then.
            () = self.clock.sleep(left.min(SLEEP_MAX)) => {}
            () = self.renew.notified() => self.plan.ask(),
        }
        let now = self.now();
        if now >= until || self.plan.is_paused(now) {
            return;
        }
        // A question that lies in the future was recorded by a clock that was ahead.
        let holds = |(at, pause): (u64, Duration)| at <= now && now - at < pause.as_secs();
        if !self.window_asked.is_some_and(holds) {
            let pause = self.ask_window().await;
            self.window_asked = Some((self.now(), pause));
        }
    }

    /// Asks for the renewal window, and returns the pause before the next question. An authority that has no windows,
    /// or does not answer, leaves the usual plan in force.
    async fn ask_window(&mut self) -> Duration {
        let Some(pair) = self.store.pair(CertificateSource::Acme) else {
            return WINDOW_PAUSE_MIN;
        };
        // Without its issuer's key identifier a certificate has no name in this protocol (RFC 9773 section 4.1).
        let Some(id) = identifier(&pair) else {
            return WINDOW_PAUSE_MAX;
        };
        let Ok(account) = self.account().await else {
            self.apply_retry_after();
            return WINDOW_PAUSE_MIN;
        };
        match timeout(ORDER_TIMEOUT, account.renewal_info(&id)).await {
            Ok(Ok((info, pause))) => {
                let seconds = |at: i64| u64::try_from(at).unwrap_or(0);
                self.plan.suggest(Some(UnixTimeSpan {
                    from: seconds(info.suggested_window.start.unix_timestamp()),
                    to: seconds(info.suggested_window.end.unix_timestamp()),
                }));
                pause.clamp(WINDOW_PAUSE_MIN, WINDOW_PAUSE_MAX)
            }
            // The directory offers no renewal information. One question a day notices when it does.
            Ok(Err(instant_acme::Error::Unsupported(_))) => WINDOW_PAUSE_MAX,
            Ok(Err(_)) | Err(_) => {
                self.apply_retry_after();
                WINDOW_PAUSE_MIN
            }
        }
    }

    /// Pauses requests to the authority for as long as its last refusal asks. Returns the seconds, if it asks for a
    /// pause.
    fn apply_retry_after(&mut self) -> Option<u64> {
        let now = self.now();
        let seconds = self.retry_after.take(now)?;
        self.plan.leave_alone(now, seconds);
        self.keep_history();
        Some(seconds)
    }

    async fn order(&mut self) {
        let subject = self.subject();
        // The authority would count an order that can only fail.
        if let Some(name) = self.answers.unprovable(&self.options.names) {
            let error = AcmeError::NoWay(name.to_owned());
            self.problems.set(ACME_FAILED, &subject, error.to_string());
            return self.clock.sleep(WAY_PAUSE).await;
        }
        let (fresh, stored) = match self.fresh_key() {
            Ok(keys) => keys,
            Err(error) => {
                // The node sent the authority no request, so this does not count as an order.
                self.problems.set(ACME_FAILED, &subject, error.to_string());
                return self.clock.sleep(KEY_PAUSE).await;
            }
        };
        let result = timeout(ORDER_TIMEOUT, self.try_order(&fresh, &stored)).await;
        let result = result.unwrap_or(Err(AcmeError::TimedOut(ORDER_TIMEOUT.as_secs())));
        match result {
            Ok(issued) => {
                // The refusals on the way were overcome, so that their pauses no longer count.
                let _ = self.retry_after.take(self.now());
                self.plan.succeeded(validity(&issued.pair), random());
                self.window_asked = None;
                tracing::info!("a new certificate is served for {subject}");
                self.store.put(CertificateSource::Acme, issued.pair);
                self.problems.clear(ACME_FAILED, &subject);
            }
            Err(error) => {
                self.plan.failed(self.now());
                // The account may be the cause: the next order looks it up again.
                self.account = None;
                let text = match self.apply_retry_after() {
                    Some(seconds) => format!("{error}; it is left alone for {seconds} s"),
                    None => error.to_string(),
                };
                self.problems.set(ACME_FAILED, &subject, text);
            }
        }
        self.keep_history();
    }

    /// A key for the next certificate, and its form on disk. It is sealed before the order, so that the authority
    /// issues no certificate whose key the node could not store.
    fn fresh_key(&self) -> Result<(CsrKeyPair, StoredCertificateKey), AcmeError> {
        let fresh = CsrKeyPair::make(&self.options.names)?;
        let stored = self.disk.seal(&fresh.pem)?;
        Ok((fresh, stored))
    }

    async fn try_order(
        &mut self,
        fresh: &CsrKeyPair,
        stored: &StoredCertificateKey,
    ) -> Result<Issued, AcmeError> {
        let account = self.account().await?;
        // Only from here on does the authority count an order. The history is written first, so that an order during
        // a crash counts as well.
        self.plan.began(self.now());
        self.keep_history();
        let held = self.store.pair(CertificateSource::Acme);
        let attempt = self.plan.failures();
        let parameters = CertificateOrder {
            names: &self.options.names,
            fresh,
            profile: self.options.profile.as_deref(),
            // The authority knows the certificate only if it gave a window. A second attempt must not fail because
            // the first one replaced the certificate.
            replaces: held
                .as_ref()
                .filter(|_| self.plan.has_window() && attempt == 0)
                .and_then(identifier),
            attempt,
        };
        let now = || self.clock.now();
        let issued = order::order(&account, parameters, &self.answers, now).await?;
        // The certificate is stored before it is served, so that a restart serves the same one.
        self.disk.keep_certificate(&issued.chain, stored)?;
        Ok(issued)
    }

    fn now(&self) -> u64 {
        self.clock.now()
    }

    /// Serves the stored certificate, and seals its key if the node has a seal. For a key that is only locked the
    /// node waits: it could not store the key of another certificate either.
    fn serve_stored(&mut self) {
        let was_locked = std::mem::take(&mut self.locked);
        match self.disk.certificate() {
            Ok(Some(stored)) => self.serve(stored),
            Ok(None) => {}
            Err(error) if error.is_locked() => return self.wait_for_key(&error),
            Err(error) => return tracing::warn!("a new certificate is ordered: {error}"),
        }
        match self.disk.seal_stored() {
            Ok(()) => {}
            Err(error) if error.is_locked() => return self.wait_for_key(&error),
            Err(error) => tracing::warn!("the key of the certificate is not sealed: {error}"),
        }
        if was_locked {
            self.problems.clear(ACME_FAILED, &self.subject());
        }
    }

    fn serve(&mut self, stored: CertificatePair) {
        let is_covered = |name: &String| stored.names().contains(name);
        if self.options.names.iter().all(is_covered) {
            self.plan.hold(validity(&stored), random());
        }
        // Even for some of the names, or near its end, a certificate is better than the self-signed one.
        self.store.put(CertificateSource::Acme, stored);
    }

    fn wait_for_key(&mut self, error: &AcmeError) {
        self.locked = true;
        let text = format!("{error}; it is tried again, and nothing is ordered until then");
        self.problems.set(ACME_FAILED, &self.subject(), text);
    }

    fn subject(&self) -> String {
        self.options.names.join(", ")
    }

    fn keep_history(&self) {
        if let Err(error) = self.disk.keep_history(self.plan.history()) {
            tracing::warn!("the history of certificate orders is not kept: {error}");
        }
    }
}

impl std::fmt::Debug for Acme {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Acme({})", self.options.names.join(", "))
    }
}

impl std::fmt::Debug for AcmeParts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AcmeParts")
    }
}

fn check_names(names: &[String]) -> Result<&str, AcmeError> {
    let first = names
        .first()
        .ok_or_else(|| AcmeError::Names("tls.acme.domains is empty; name a domain".to_owned()))?;
    if names.len() > NAMES_MAX {
        let text = format!("tls.acme.domains has more than {NAMES_MAX} names; leave some out");
        return Err(AcmeError::Names(text));
    }
    // A wildcard is `*.` and a domain name (RFC 8555 section 7.1.3).
    let is_invalid = |name: &&String| !crate::is_dns_name(name.strip_prefix("*.").unwrap_or(name));
    if let Some(name) = names.iter().find(is_invalid) {
        let text = format!("'{name}' in tls.acme.domains is no DNS name; correct it");
        return Err(AcmeError::Names(text));
    }
    Ok(first)
}

/// The name by which the authority knows a certificate (RFC 9773 section 4.1).
fn identifier(pair: &CertificatePair) -> Option<CertificateIdentifier<'static>> {
    let certificate = pair.certified().cert.first()?;
    let facts = der::facts(certificate)?;
    let authority = facts.authority_key?;
    Some(
        CertificateIdentifier::new(Der::from_slice(authority), Der::from_slice(facts.serial))
            .into_owned(),
    )
}

fn validity(pair: &CertificatePair) -> UnixTimeSpan {
    UnixTimeSpan {
        from: pair.not_before(),
        to: pair.not_after(),
    }
}

/// A random number. Without random bytes all renewals come at the start of their spans, which does no harm.
fn random() -> u64 {
    getrandom::u64().unwrap_or(0)
}

#[cfg(test)]
mod tests;
