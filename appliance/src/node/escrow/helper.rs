//! `alknet helper`: the child that PID 1 sends to another node, for a share of its vault's key. No verb
//! for people. It has one line to read, one to write, and sixty seconds.

use std::fmt::Display;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use alknet_call::{CallClient, CallError, ConnectError, DialCredentials, ErrorCode};
use alknet_core::{Carriage, CloseCode, DialErrorKind, PeerAddr, PeerKey};
use alknet_endpoint::EndpointDialer;
use alknet_hub::{EnrolClientError, JoinCode, JoinRequest, enrol, fingerprint};
use alknet_init::helper_task::{
    HELPER_FD, HelperOutcome, HelperRefusal, HelperTask, HexSecret, LINE_BYTES_MAX,
};
use alknet_tls::NodeKey;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use crate::cli::{CommandError, CommandExit};

/// Everything that is asked of the other node; PID 1 waits a little longer.
const TIME_MAX: Duration = Duration::from_secs(50);
/// One call, once there is a connection.
const CALL_TIME: Duration = Duration::from_secs(15);

/// Reads the helper task, runs it, and says what came of it.
pub(crate) fn run() -> Result<CommandExit, CommandError> {
    let channel = channel().map_err(CommandError::usage)?;
    // No other process of this user may trace or dump a process that has such keys.
    let _ = nix::sys::prctl::set_dumpable(false);
    let task = read(&channel).map_err(CommandError::local)?;
    let outcome = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map(|runtime| runtime.block_on(done(task)))
        .map_err(CommandError::local)?;
    write(&channel, &outcome).map_err(CommandError::local)?;
    Ok(CommandExit::Ok)
}

/// The descriptor that PID 1 left.
fn channel() -> io::Result<UnixStream> {
    let missing = || {
        let what = "'alknet helper' is for PID 1 of an appliance, which starts it itself";
        io::Error::new(io::ErrorKind::NotConnected, what)
    };
    // SAFETY: borrowed for one `fstat`, which fails cleanly on a descriptor that is not open.
    let there = unsafe { std::os::fd::BorrowedFd::borrow_raw(HELPER_FD) };
    nix::sys::stat::fstat(there.as_fd()).map_err(|_| missing())?;
    // SAFETY: `fstat` just showed that the descriptor is open, and by the contract of
    // `alknet_init::helper_task` it is ours alone; this is called once.
    let channel = UnixStream::from(unsafe { OwnedFd::from_raw_fd(HELPER_FD) });
    channel.peer_addr().map_err(|_| missing())?;
    Ok(channel)
}

fn read(channel: &UnixStream) -> io::Result<HelperTask> {
    let mut line = Zeroizing::new(Vec::with_capacity(LINE_BYTES_MAX + 1));
    let limited = channel.take(LINE_BYTES_MAX as u64 + 1);
    // One byte at a time, so that no buffer keeps a copy of the secrets.
    BufReader::with_capacity(1, limited).read_until(b'\n', &mut line)?;
    serde_json::from_slice(&line).map_err(|_| io::Error::other("PID 1 sent no helper task"))
}

fn write(mut channel: &UnixStream, outcome: &HelperOutcome) -> io::Result<()> {
    let mut line = Zeroizing::new(Vec::with_capacity(LINE_BYTES_MAX));
    serde_json::to_writer(&mut *line, outcome)?;
    line.push(b'\n');
    channel.write_all(&line)
}

async fn done(task: HelperTask) -> HelperOutcome {
    let outcome = tokio::time::timeout(TIME_MAX, go(task)).await;
    outcome.unwrap_or_else(|_| {
        HelperOutcome::refused(HelperRefusal::Unreachable, "it did not answer in time")
    })
}

async fn go(task: HelperTask) -> HelperOutcome {
    let outcome = match task {
        HelperTask::Deposit {
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
            match ShareServerAccess::from_config(code, node, &client) {
                Ok(keeper) => keeper.deposit(name, &input).await,
                Err(no) => Err(no),
            }
        }
        HelperTask::Release {
            peer,
            addresses,
            id,
            client,
        } => match ShareServerAccess::at(&peer, &addresses, &client) {
            Ok(keeper) => keeper.release(&id).await,
            Err(no) => Err(no),
        },
    };
    outcome
        .unwrap_or_else(|EscrowRefusal { refusal, text }| HelperOutcome::Refused { refusal, text })
}

/// Why there is nothing to bring.
struct EscrowRefusal {
    refusal: HelperRefusal,
    text: String,
}

impl EscrowRefusal {
    fn new(refusal: HelperRefusal, text: impl Display) -> Self {
        Self {
            refusal,
            text: text.to_string(),
        }
    }
}

/// The node that keeps the share, and the key that this one is known by there.
struct ShareServerAccess {
    key: PeerKey,
    targets: Vec<PeerAddr>,
    token: Option<String>,
    own: NodeKey,
    dialer: Arc<EndpointDialer>,
}

/// What a call came to.
enum ShareCallResult {
    Answer(Value),
    /// The other node knows no peer with this key.
    UnknownPeer,
}

impl ShareServerAccess {
    /// As the configuration has it.
    fn from_config(
        code: Option<String>,
        node: Option<String>,
        client: &HexSecret,
    ) -> Result<Self, EscrowRefusal> {
        let wrong = |error: &dyn Display| {
            EscrowRefusal::new(HelperRefusal::Enrolment, format!("vault.kms: {error}"))
        };
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
    fn at(peer: &str, addresses: &[String], client: &HexSecret) -> Result<Self, EscrowRefusal> {
        let wrong = |error: &dyn Display| {
            EscrowRefusal::new(HelperRefusal::Denied, format!("the slot: {error}"))
        };
        let key: PeerKey = peer.parse().map_err(|error| wrong(&error))?;
        let mut targets = Vec::new();
        for address in addresses {
            let target: PeerAddr = address.parse().map_err(|error| wrong(&error))?;
            targets.push(target.with_pins([key]));
        }
        Ok(Self::new(key, targets, None, client))
    }

    fn new(
        key: PeerKey,
        targets: Vec<PeerAddr>,
        token: Option<String>,
        client: &HexSecret,
    ) -> Self {
        let own = NodeKey::from_seed(client.expose());
        Self {
            key,
            targets,
            token,
            dialer: Arc::new(EndpointDialer::new(Some(own.clone()))),
            own,
        }
    }

    async fn deposit(
        self,
        name: Option<String>,
        input: &Value,
    ) -> Result<HelperOutcome, EscrowRefusal> {
        let answer = match self.call("escrow/deposit", input).await? {
            ShareCallResult::Answer(answer) => answer,
            ShareCallResult::UnknownPeer => {
                self.enrol(name).await?;
                match self.call("escrow/deposit", input).await? {
                    ShareCallResult::Answer(answer) => answer,
                    ShareCallResult::UnknownPeer => {
                        return Err(self.no(HelperRefusal::Enrolment, "it forgot us"));
                    }
                }
            }
        };
        let id = answer["id"].as_str().unwrap_or_default().to_owned();
        Ok(HelperOutcome::Deposited {
            peer: self.key.to_string(),
            addresses: self.targets.iter().map(PeerAddr::address).collect(),
            id,
        })
    }

    async fn release(self, id: &str) -> Result<HelperOutcome, EscrowRefusal> {
        match self.call("escrow/release", &json!({ "id": id })).await? {
            ShareCallResult::Answer(answer) => {
                let share = serde_json::from_value(answer["share"].clone());
                let share = share
                    .map_err(|_| self.no(HelperRefusal::Denied, "what it sends is no share"))?;
                Ok(HelperOutcome::Released { share })
            }
            ShareCallResult::UnknownPeer => {
                let text =
                    "it does not know this machine's slot any more: its peer was removed there";
                Err(self.no(HelperRefusal::Denied, text))
            }
        }
    }

    /// Calls one operation, at the first address that answers.
    async fn call(&self, operation: &str, input: &Value) -> Result<ShareCallResult, EscrowRefusal> {
        let client = CallClient::without_operations().with_dialer(Arc::clone(&self.dialer) as _);
        let mut last = self.no(HelperRefusal::Unreachable, "it has no address");
        for target in &self.targets {
            let connection = match client.connect(target, &DialCredentials::default()).await {
                Ok(connection) => connection,
                Err(error) => {
                    last = self.not_reached(&error);
                    // The same key counts at each address, so that any of them will do.
                    continue;
                }
            };
            let answer = tokio::time::timeout(CALL_TIME, connection.call(operation, input)).await;
            connection.close(CloseCode::Normal, "");
            self.dialer.close().await;
            return match answer {
                Ok(Ok(answer)) => Ok(ShareCallResult::Answer(answer.value().clone())),
                Ok(Err(error)) if error.code == ErrorCode::Unauthenticated => {
                    Ok(ShareCallResult::UnknownPeer)
                }
                Ok(Err(error)) => Err(self.refused(&error)),
                Err(_) => Err(self.no(HelperRefusal::Unreachable, "it does not answer")),
            };
        }
        Err(last)
    }

    /// Becomes a peer of the other node. If another peer has the name, it enrols without one.
    async fn enrol(&self, name: Option<String>) -> Result<(), EscrowRefusal> {
        let mut request = JoinRequest {
            token: self.token.clone(),
            name,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            arch: std::env::consts::ARCH.to_owned(),
            ..JoinRequest::default()
        };
        loop {
            let targets = self.targets.iter().cloned();
            let asked = enrol(&*self.dialer, targets, Carriage::Both, &request).await;
            let Err(error) = asked else { return Ok(()) };
            return Err(match error {
                EnrolClientError::Refused(refusal) => match refusal.code.as_ref() {
                    "ENROLL_NAME_TAKEN" if request.name.is_some() => {
                        // The hub chooses a name: a share is found by its id and not by the name.
                        request.name = None;
                        continue;
                    }
                    "ENROLL_PENDING" => {
                        let words = fingerprint(&self.own.public());
                        let text = format!("an administrator has to let in the key {words} there");
                        self.no(HelperRefusal::Pending, text)
                    }
                    _ => self.no(HelperRefusal::Enrolment, refusal),
                },
                EnrolClientError::Dial(error) if error.kind == DialErrorKind::NoProtocol => {
                    let text = "it is no hub and does not know this machine: set hub.enabled there";
                    self.no(HelperRefusal::Enrolment, text)
                }
                other => self.no(HelperRefusal::Unreachable, other),
            });
        }
    }

    /// What the dial says has the address in it.
    fn not_reached(&self, error: &ConnectError) -> EscrowRefusal {
        let refusal = match error {
            ConnectError::Dial(error) if error.kind == DialErrorKind::Impostor => {
                // Another machine at this address does not become the right one by waiting.
                HelperRefusal::Denied
            }
            _ => HelperRefusal::Unreachable,
        };
        EscrowRefusal::new(refusal, format!("node {}: {error}", self.key.short()))
    }

    fn refused(&self, error: &CallError) -> EscrowRefusal {
        let details = error.details.as_deref().unwrap_or(&Value::Null);
        match (error.code.name(), details["reason"].as_str()) {
            ("APPROVAL_PENDING", _) => {
                let text = format!("{} ('alknet escrow approve')", error.message);
                self.no(HelperRefusal::Pending, text)
            }
            // Its administrator opens it sooner or later.
            ("UNAVAILABLE", Some("vault_locked")) => {
                self.no(HelperRefusal::Pending, &error.message)
            }
            ("UNAVAILABLE" | "TIMEOUT", _) => self.no(HelperRefusal::Unreachable, &error.message),
            ("NOT_FOUND", _) => self.no(HelperRefusal::Denied, "it has no share of this machine"),
            _ => self.no(HelperRefusal::Denied, &error.message),
        }
    }

    /// With who it was.
    fn no(&self, refusal: HelperRefusal, text: impl Display) -> EscrowRefusal {
        let place = self.targets.first().map(PeerAddr::address);
        let place = place.unwrap_or_default();
        EscrowRefusal::new(
            refusal,
            format!("node {} at {place}: {text}", self.key.short()),
        )
    }
}
