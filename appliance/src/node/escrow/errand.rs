//! `alknet errand`: the child that PID 1 sends to another node, for a share of its vault's key. No verb
//! for people. It has one line to read, one to write, and sixty seconds.

use std::fmt::Display;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use alknet_call::{CallClient, CallError, ConnectError, Credentials, ErrorCode};
use alknet_core::{Carriage, CloseCode, DialErrorKind, PeerAddr, PeerKey};
use alknet_endpoint::Dialer;
use alknet_hub::{EnrolClientError, JoinCode, Request, enrol, fingerprint};
use alknet_init::errand::{ERRAND_FD, Errand, Hidden, LINE_BYTES_MAX, Outcome, Refusal};
use alknet_tls::NodeKey;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use crate::cli::{Exit, Failure};

/// Everything that is asked of the other node; PID 1 waits a little longer.
const TIME_MAX: Duration = Duration::from_secs(50);
/// One call, once there is a connection.
const CALL_TIME: Duration = Duration::from_secs(15);

/// Reads the errand, runs it, and says what came of it.
pub(crate) fn run() -> Result<Exit, Failure> {
    let channel = channel().map_err(Failure::usage)?;
    // Nobody else of this machine looks into a process that has such keys.
    let _ = nix::sys::prctl::set_dumpable(false);
    let errand = read(&channel).map_err(Failure::local)?;
    let outcome = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map(|runtime| runtime.block_on(done(errand)))
        .map_err(Failure::local)?;
    write(&channel, &outcome).map_err(Failure::local)?;
    Ok(Exit::Ok)
}

/// The descriptor that PID 1 left.
fn channel() -> io::Result<UnixStream> {
    let missing = || {
        let what =
            "'alknet errand' is started by PID 1 of an appliance, and does nothing for people";
        io::Error::new(io::ErrorKind::NotConnected, what)
    };
    // SAFETY: borrowed for one `fstat`, which fails cleanly on a descriptor that is not open.
    let there = unsafe { std::os::fd::BorrowedFd::borrow_raw(ERRAND_FD) };
    nix::sys::stat::fstat(there.as_fd()).map_err(|_| missing())?;
    // SAFETY: `fstat` just showed that the descriptor is open, and by the contract of
    // `alknet_init::errand` it is ours alone; this is called once.
    let channel = UnixStream::from(unsafe { OwnedFd::from_raw_fd(ERRAND_FD) });
    channel.peer_addr().map_err(|_| missing())?;
    Ok(channel)
}

fn read(channel: &UnixStream) -> io::Result<Errand> {
    let mut line = Zeroizing::new(Vec::with_capacity(LINE_BYTES_MAX + 1));
    let limited = channel.take(LINE_BYTES_MAX as u64 + 1);
    BufReader::with_capacity(1, limited).read_until(b'\n', &mut line)?;
    serde_json::from_slice(&line).map_err(|_| io::Error::other("PID 1 sent no errand"))
}

fn write(mut channel: &UnixStream, outcome: &Outcome) -> io::Result<()> {
    let mut line = Zeroizing::new(Vec::with_capacity(LINE_BYTES_MAX));
    serde_json::to_writer(&mut *line, outcome)?;
    line.push(b'\n');
    channel.write_all(&line)
}

async fn done(errand: Errand) -> Outcome {
    let outcome = tokio::time::timeout(TIME_MAX, go(errand)).await;
    outcome.unwrap_or_else(|_| Outcome::refused(Refusal::Unreachable, "it did not answer in time"))
}

async fn go(errand: Errand) -> Outcome {
    let outcome = match errand {
        Errand::Deposit {
            code,
            node,
            name,
            client,
            share,
            vault,
            from,
            approve,
        } => {
            let input = json!({ "share": share, "vault": vault, "from": from, "approve": approve });
            match Keeper::of(code, node, &client) {
                Ok(keeper) => keeper.deposit(name, &input).await,
                Err(no) => Err(no),
            }
        }
        Errand::Release {
            peer,
            addresses,
            id,
            client,
        } => match Keeper::at(&peer, &addresses, &client) {
            Ok(keeper) => keeper.release(&id).await,
            Err(no) => Err(no),
        },
    };
    outcome.unwrap_or_else(|No { refusal, text }| Outcome::Refused { refusal, text })
}

/// Why there is nothing to bring.
struct No {
    refusal: Refusal,
    text: String,
}

impl No {
    fn new(refusal: Refusal, text: impl Display) -> Self {
        Self {
            refusal,
            text: text.to_string(),
        }
    }
}

/// The node that keeps the share, and the key that this one is known by there.
struct Keeper {
    key: PeerKey,
    targets: Vec<PeerAddr>,
    token: Option<String>,
    own: NodeKey,
    dialer: Arc<Dialer>,
}

/// What a call came to.
enum Called {
    Answer(Value),
    /// Nobody is known there by this key.
    Stranger,
}

impl Keeper {
    /// As the configuration has it.
    fn of(code: Option<String>, node: Option<String>, client: &Hidden) -> Result<Self, No> {
        let wrong =
            |error: &dyn Display| No::new(Refusal::Enrolment, format!("vault.kms: {error}"));
        if let Some(text) = code.map(Zeroizing::new) {
            let code: JoinCode = text.parse().map_err(|error| wrong(&error))?;
            let token = code.token.expose().to_string();
            return Ok(Self::new(
                code.key(),
                code.targets().collect(),
                Some(token),
                client,
            ));
        }
        let target: PeerAddr = node
            .unwrap_or_default()
            .parse()
            .map_err(|error| wrong(&error))?;
        match target.pins[..] {
            [key @ PeerKey::Ed25519(_)] => Ok(Self::new(key, vec![target], None, client)),
            _ => Err(wrong(&"the node is not given by its key and its address")),
        }
    }

    /// As the slot has it.
    fn at(peer: &str, addresses: &[String], client: &Hidden) -> Result<Self, No> {
        let wrong = |error: &dyn Display| No::new(Refusal::Denied, format!("the slot: {error}"));
        let key: PeerKey = peer.parse().map_err(|error| wrong(&error))?;
        let mut targets = Vec::new();
        for address in addresses {
            let target: PeerAddr = address.parse().map_err(|error| wrong(&error))?;
            targets.push(target.with_pins([key]));
        }
        Ok(Self::new(key, targets, None, client))
    }

    fn new(key: PeerKey, targets: Vec<PeerAddr>, token: Option<String>, client: &Hidden) -> Self {
        let own = NodeKey::from_seed(client.expose());
        Self {
            key,
            targets,
            token,
            dialer: Arc::new(Dialer::new(Some(own.clone()))),
            own,
        }
    }

    async fn deposit(self, name: Option<String>, input: &Value) -> Result<Outcome, No> {
        let answer = match self.call("escrow/deposit", input).await? {
            Called::Answer(answer) => answer,
            Called::Stranger => {
                self.enrol(name).await?;
                match self.call("escrow/deposit", input).await? {
                    Called::Answer(answer) => answer,
                    Called::Stranger => return Err(self.no(Refusal::Enrolment, "it forgot us")),
                }
            }
        };
        let id = answer["id"].as_str().unwrap_or_default().to_owned();
        Ok(Outcome::Deposited {
            peer: self.key.to_string(),
            addresses: self.targets.iter().map(PeerAddr::address).collect(),
            id,
        })
    }

    async fn release(self, id: &str) -> Result<Outcome, No> {
        match self.call("escrow/release", &json!({ "id": id })).await? {
            Called::Answer(answer) => {
                let share = serde_json::from_value(answer["share"].clone());
                let share =
                    share.map_err(|_| self.no(Refusal::Denied, "what it sends is no share"))?;
                Ok(Outcome::Released { share })
            }
            Called::Stranger => {
                let text =
                    "it does not know this machine's slot any more: its peer was removed there";
                Err(self.no(Refusal::Denied, text))
            }
        }
    }

    /// Calls one operation, at the first address that answers.
    async fn call(&self, operation: &str, input: &Value) -> Result<Called, No> {
        let client = CallClient::without_operations().with_dialer(Arc::clone(&self.dialer) as _);
        let mut last = self.no(Refusal::Unreachable, "it has no address");
        for target in &self.targets {
            let connection = match client.connect(target, &Credentials::default()).await {
                Ok(connection) => connection,
                Err(error) => {
                    last = self.not_reached(&error);
                    continue;
                }
            };
            let answer = tokio::time::timeout(CALL_TIME, connection.call(operation, input)).await;
            connection.close(CloseCode::Normal, "");
            self.dialer.close().await;
            return match answer {
                Ok(Ok(answer)) => Ok(Called::Answer(answer.value().clone())),
                Ok(Err(error)) if error.code == ErrorCode::Unauthenticated => Ok(Called::Stranger),
                Ok(Err(error)) => Err(self.refused(&error)),
                Err(_) => Err(self.no(Refusal::Unreachable, "it does not answer")),
            };
        }
        Err(last)
    }

    /// Becomes a peer of the other node. A name that somebody else has is no reason not to.
    async fn enrol(&self, name: Option<String>) -> Result<(), No> {
        let mut request = Request {
            token: self.token.clone(),
            name,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            arch: std::env::consts::ARCH.to_owned(),
            ..Request::default()
        };
        loop {
            let targets = self.targets.iter().cloned();
            let asked = enrol(&*self.dialer, targets, Carriage::Both, &request).await;
            let Err(error) = asked else { return Ok(()) };
            return Err(match error {
                EnrolClientError::Refused(refusal) => match refusal.code.as_ref() {
                    "ENROLL_NAME_TAKEN" if request.name.is_some() => {
                        request.name = None;
                        continue;
                    }
                    "ENROLL_PENDING" => {
                        let words = fingerprint(&self.own.public());
                        let text = format!("an administrator has to let in the key {words} there");
                        self.no(Refusal::Pending, text)
                    }
                    _ => self.no(Refusal::Enrolment, refusal),
                },
                EnrolClientError::Dial(error) if error.kind == DialErrorKind::NoProtocol => {
                    let text = "it is no hub and does not know this machine: set hub.enabled there";
                    self.no(Refusal::Enrolment, text)
                }
                other => self.no(Refusal::Unreachable, other),
            });
        }
    }

    /// What the dial says has the address in it.
    fn not_reached(&self, error: &ConnectError) -> No {
        let refusal = match error {
            ConnectError::Dial(error) if error.kind == DialErrorKind::Impostor => Refusal::Denied,
            _ => Refusal::Unreachable,
        };
        No::new(refusal, format!("node {}: {error}", self.key.short()))
    }

    fn refused(&self, error: &CallError) -> No {
        let details = error.details.as_deref().unwrap_or(&Value::Null);
        match (error.code.name(), details["reason"].as_str()) {
            ("APPROVAL_PENDING", _) => {
                let text = format!("{} ('alknet escrow approve')", error.message);
                self.no(Refusal::Pending, text)
            }
            ("UNAVAILABLE", Some("vault_locked")) => self.no(Refusal::Pending, &error.message),
            ("UNAVAILABLE" | "TIMEOUT", _) => self.no(Refusal::Unreachable, &error.message),
            ("NOT_FOUND", _) => self.no(Refusal::Denied, "it has no share of this machine"),
            _ => self.no(Refusal::Denied, &error.message),
        }
    }

    /// With who it was.
    fn no(&self, refusal: Refusal, text: impl Display) -> No {
        let place = self.targets.first().map(PeerAddr::address);
        let place = place.unwrap_or_default();
        No::new(
            refusal,
            format!("node {} at {place}: {text}", self.key.short()),
        )
    }
}
