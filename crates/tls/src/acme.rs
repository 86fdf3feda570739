//! Certificates from an authority that speaks ACME (RFC 8555), ordered and renewed without anybody
//! having to think of it.
//!
//! One certificate holds all configured names. It is served from disk at start and replaced in
//! the [`CertificateStore`] when a new one has been checked; until then, and when something goes
//! wrong, the old one stays. What to do when is decided by a planner that knows neither clock nor
//! network; this module does it.

mod challenge;
mod disk;
mod error;
mod order;
mod plan;
mod transport;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use alknet_core::BoxError;
use instant_acme::{Account, AccountBuilder, CertificateIdentifier, Key, NewAccount};
use rustls::pki_types::{Der, PrivatePkcs8KeyDer};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout};
use zeroize::Zeroizing;

pub use challenge::{
    AlpnChallenges, ChallengeKind, DnsChallenge, HttpChallengeResponder, HttpChallenges,
};
pub use error::AcmeError;
pub use plan::{BACK_OFF_MAX_S, BACK_OFF_MIN_S, ORDERS_PER_DAY_MAX};
pub use transport::AcmeTransport;

use crate::der;
use crate::pair::CertificatePair;
use crate::problems::{ACME_FAILED, CLOCK_INSANE, Problems};
use crate::store::{CertificateStore, Source};
use disk::{Disk, StoredAccount};
use order::{Answers, Issued, Wanted};
use plan::{Planner, Span, Step};
use transport::Adapter;

/// Names in one certificate.
pub const NAMES_MAX: usize = 25;

/// Longest time for one order, all waiting included.
const ORDER_TIMEOUT: Duration = Duration::from_secs(600);

/// Longest sleep: a clock that is set meanwhile is noticed after this.
const SLEEP_MAX: Duration = Duration::from_secs(600);

/// How often a wrong clock is looked at again.
const CLOCK_PAUSE: Duration = Duration::from_secs(10);

/// How often the authority is asked when it would like a renewal, at least and at most (RFC 9773
/// section 4.3.2).
const WINDOW_PAUSE_MIN: Duration = Duration::from_secs(600);
const WINDOW_PAUSE_MAX: Duration = Duration::from_secs(86_400);

/// What to order, and where.
#[derive(Clone, Debug)]
pub struct AcmeOptions {
    /// URL of the authority's directory.
    pub directory: String,
    /// Where the authority may write to, `mailto:…`.
    pub contact: Vec<String>,
    /// The names of the certificate, 1 to [`NAMES_MAX`]; the first names its folder.
    pub names: Vec<String>,
    /// The only way to answer, where the operator named one.
    pub challenge: Option<ChallengeKind>,
    /// The authority's profile (`shortlived`), where not its usual one.
    pub profile: Option<String>,
    /// Directory for account and certificate.
    pub state_dir: PathBuf,
    /// Seconds of Unix time before which no clock is believed: the time of the build.
    pub clock_floor: u64,
}

/// The parts of the node it works with.
pub struct AcmeParts {
    /// The way to the authority.
    pub transport: Arc<dyn AcmeTransport>,
    /// Where the certificate is served from.
    pub store: Arc<CertificateStore>,
    /// Where trouble is reported.
    pub problems: Arc<Problems>,
    /// The same that the port's TLS was made with.
    pub alpn: Arc<AlpnChallenges>,
    /// Mounted on port 80, where there is one.
    pub http: Option<Arc<HttpChallenges>>,
    /// The DNS part, where there is one.
    pub dns: Option<Arc<dyn DnsChallenge>>,
    /// The account's key, where it is derived: a node that is made anew from the same secret has the same
    /// account. Without, one is made and kept on the disk.
    pub account_key: Option<Arc<dyn AccountKey>>,
}

/// A key of an account that is kept elsewhere.
pub trait AccountKey: Send + Sync + 'static {
    /// The key, P-256, as PKCS #8 (RFC 5958), which goes to the library that signs with it.
    ///
    /// # Errors
    /// It cannot be had now; it is asked for again with the next order.
    fn pkcs8(&self) -> Result<Zeroizing<Vec<u8>>, BoxError>;
}

/// Keeps one certificate.
pub struct Acme {
    options: AcmeOptions,
    transport: Arc<dyn AcmeTransport>,
    store: Arc<CertificateStore>,
    problems: Arc<Problems>,
    answers: Answers,
    disk: Disk,
    plan: Planner,
    account_key: Option<Arc<dyn AccountKey>>,
    account: Option<Account>,
    window_at: Option<Instant>,
    renew: Arc<Notify>,
}

/// Asks for a renewal before its time.
#[derive(Clone, Debug)]
pub struct AcmeHandle(Arc<Notify>);

impl AcmeHandle {
    /// Orders a new certificate as soon as the limits allow.
    pub fn renew(&self) {
        self.0.notify_one();
    }
}

impl Acme {
    /// Serves what the last run left, if it still fits.
    ///
    /// # Errors
    /// The names cannot stand in a certificate, or the state directory cannot be used.
    pub fn new(mut options: AcmeOptions, parts: AcmeParts) -> Result<Self, AcmeError> {
        options
            .names
            .iter_mut()
            .for_each(|n| n.make_ascii_lowercase());
        let first = check_names(&options.names)?;
        let disk = Disk::open(&options.state_dir, first)?;
        let plan = Planner::new(options.names.clone(), options.clock_floor, disk.history());
        let mut acme = Self {
            answers: Answers {
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
            window_at: None,
            renew: Arc::default(),
            options,
        };
        acme.serve_kept();
        Ok(acme)
    }

    /// For asking from outside while it runs.
    #[must_use]
    pub fn handle(&self) -> AcmeHandle {
        AcmeHandle(Arc::clone(&self.renew))
    }

    /// Orders and renews for ever.
    pub async fn run(mut self) {
        loop {
            match self.plan.next(unix_now()) {
                Step::ClockInsane => {
                    let text = "the clock is before this program was built; check the network's \
                                time servers. No certificate is ordered until then";
                    self.problems.set(CLOCK_INSANE, "acme", text.to_owned());
                    sleep(CLOCK_PAUSE).await;
                }
                Step::Order => {
                    self.problems.clear(CLOCK_INSANE, "acme");
                    self.order().await;
                }
                Step::Wait { until } => {
                    self.problems.clear(CLOCK_INSANE, "acme");
                    self.wait(until).await;
                }
            }
        }
    }

    /// Sleeps towards `until`, asking the authority meanwhile when it wants a renewal.
    async fn wait(&mut self, until: u64) {
        let left = Duration::from_secs(until.saturating_sub(unix_now()));
        tokio::select! {
            () = sleep(left.min(SLEEP_MAX)) => {}
            () = self.renew.notified() => self.plan.ask(),
        }
        if self.window_at.is_none_or(|at| at <= Instant::now()) {
            let pause = self.ask_window().await;
            self.window_at = Some(Instant::now() + pause);
        }
    }

    /// Asks for the renewal window; returns when to ask again. An authority that does not know
    /// windows, or is not there, leaves the usual plan.
    async fn ask_window(&mut self) -> Duration {
        let Some(pair) = self.store.pair(Source::Acme) else {
            return WINDOW_PAUSE_MIN;
        };
        let Some(id) = identifier(&pair) else {
            return WINDOW_PAUSE_MAX;
        };
        let Ok(account) = self.account().await else {
            return WINDOW_PAUSE_MIN;
        };
        match timeout(ORDER_TIMEOUT, account.renewal_info(&id)).await {
            Ok(Ok((info, again))) => {
                let seconds = |at: i64| u64::try_from(at).unwrap_or(0);
                self.plan.suggest(Some(Span {
                    from: seconds(info.suggested_window.start.unix_timestamp()),
                    to: seconds(info.suggested_window.end.unix_timestamp()),
                }));
                again.clamp(WINDOW_PAUSE_MIN, WINDOW_PAUSE_MAX)
            }
            Ok(Err(instant_acme::Error::Unsupported(_))) => WINDOW_PAUSE_MAX,
            Ok(Err(_)) | Err(_) => WINDOW_PAUSE_MIN,
        }
    }

    async fn order(&mut self) {
        self.plan.began(unix_now());
        // Written before the order, so that a crash in the middle of it counts.
        self.keep_history();
        let result = timeout(ORDER_TIMEOUT, self.try_order()).await;
        let result = result.unwrap_or(Err(AcmeError::TimedOut(ORDER_TIMEOUT.as_secs())));
        let subject = self.options.names.join(", ");
        match result {
            Ok(issued) => {
                self.plan.succeeded(validity(&issued.pair), random());
                self.window_at = None;
                tracing::info!("a new certificate is served for {subject}");
                self.store.put(Source::Acme, issued.pair);
                self.problems.clear(ACME_FAILED, &subject);
            }
            Err(error) => {
                self.plan.failed(unix_now());
                // The account may be what is wrong: it is looked up again.
                self.account = None;
                self.problems.set(ACME_FAILED, &subject, error.to_string());
            }
        }
        self.keep_history();
    }

    async fn try_order(&mut self) -> Result<Issued, AcmeError> {
        let account = self.account().await?;
        let held = self.store.pair(Source::Acme);
        let attempt = self.plan.failures();
        let wanted = Wanted {
            names: &self.options.names,
            profile: self.options.profile.as_deref(),
            // Only where the authority gave a window does it know the certificate; and a second
            // try must not fail because the first has replaced it.
            replaces: held
                .as_ref()
                .filter(|_| self.plan.has_window() && attempt == 0)
                .and_then(identifier),
            attempt,
        };
        let issued = order::order(&account, wanted, &self.answers, unix_now).await?;
        self.disk.keep_certificate(&issued.chain, &issued.key)?;
        Ok(issued)
    }

    /// The account at the configured authority, made with the first order.
    async fn account(&mut self) -> Result<Account, AcmeError> {
        if let Some(account) = &self.account {
            return Ok(account.clone());
        }
        let account = match &self.account_key {
            Some(key) => self.derived_account(&**key).await?,
            None => self.own_account().await?,
        };
        self.account = Some(account.clone());
        Ok(account)
    }

    /// The account of a key that is kept elsewhere; the authority says which that is, or makes one
    /// (RFC 8555 section 7.3.1).
    async fn derived_account(&self, key: &dyn AccountKey) -> Result<Account, AcmeError> {
        let pkcs8 = key.pkcs8().map_err(AcmeError::AccountKey)?;
        let der = PrivatePkcs8KeyDer::from(pkcs8.to_vec());
        let key = Key::from_pkcs8_der(der.clone_key())?;
        let directory = self.options.directory.clone();
        let builder = self.builder();
        let (account, _) = builder
            .create_from_key((key, der.into()), directory)
            .await?;
        let contact = self.contact();
        if !contact.is_empty() {
            account.update_contacts(&contact).await?;
        }
        tracing::info!("uses the account {}", account.id());
        Ok(account)
    }

    /// The account whose key is on the disk.
    async fn own_account(&self) -> Result<Account, AcmeError> {
        let stored = self.disk.account()?;
        let directory = &self.options.directory;
        if let Some(stored) = stored.filter(|stored| stored.directory == *directory) {
            return Ok(self.builder().from_credentials(stored.credentials).await?);
        }
        let new = NewAccount {
            contact: &self.contact(),
            terms_of_service_agreed: true,
            only_return_existing: false,
        };
        let made = self.builder().create(&new, directory.clone(), None).await;
        let (account, credentials) = made?;
        self.disk.keep_account(&StoredAccount {
            directory: directory.clone(),
            credentials,
        })?;
        tracing::info!("made the account {}", account.id());
        Ok(account)
    }

    fn builder(&self) -> AccountBuilder {
        Account::builder_with_http(Box::new(Adapter(Arc::clone(&self.transport))))
    }

    fn contact(&self) -> Vec<&str> {
        self.options.contact.iter().map(String::as_str).collect()
    }

    fn serve_kept(&mut self) {
        let kept = match self.disk.certificate() {
            Ok(Some(pair)) => pair,
            Ok(None) => return,
            Err(error) => return tracing::warn!("a new certificate is ordered: {error}"),
        };
        let fits = |name: &String| kept.names().contains(name);
        if self.options.names.iter().all(fits) {
            self.plan.hold(validity(&kept), random());
        }
        // Even for some of the names, or near its end, it is better than none.
        self.store.put(Source::Acme, kept);
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
    let wrong = |name: &&String| !crate::is_dns_name(name.strip_prefix("*.").unwrap_or(name));
    if let Some(name) = names.iter().find(wrong) {
        let text = format!("'{name}' in tls.acme.domains is no DNS name; correct it");
        return Err(AcmeError::Names(text));
    }
    Ok(first)
}

/// What the authority knows a certificate by (RFC 9773 section 4.1).
fn identifier(pair: &CertificatePair) -> Option<CertificateIdentifier<'static>> {
    let certificate = pair.certified().cert.first()?;
    let facts = der::facts(certificate)?;
    let authority = facts.authority_key?;
    Some(
        CertificateIdentifier::new(Der::from_slice(authority), Der::from_slice(facts.serial))
            .into_owned(),
    )
}

fn validity(pair: &CertificatePair) -> Span {
    Span {
        from: pair.not_before(),
        to: pair.not_after(),
    }
}

fn unix_now() -> u64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

/// Without random bytes all renewals come at the start of their spans, which is no harm.
fn random() -> u64 {
    getrandom::u64().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked_before_anybody_is_asked() {
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
}
