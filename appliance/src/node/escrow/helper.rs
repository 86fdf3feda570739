//! `alknet helper`: the child process that PID 1 starts to ask another node for a share of its
//! vault's key, or a cloud for its document. It is not a command for people. It reads one line,
//! writes one line, and has sixty seconds.

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
use crate::node::metadata;

/// Maximum time for everything that is asked of the other node. PID 1 waits a little longer.
const TIME_MAX: Duration = Duration::from_secs(50);
/// Maximum time of one call on an open connection.
const CALL_TIME: Duration = Duration::from_secs(15);

/// Reads the helper task, runs it and writes its outcome.
pub(crate) fn run() -> Result<CommandExit, CommandError> {
    let channel = channel().map_err(CommandError::usage)?;
    // The kernel then lets no other process of this user trace or dump this one, which has the
    // keys. It refuses only other values than 0 and 1 (PR_SET_DUMPABLE(2const)).
    let _ = nix::sys::prctl::set_dumpable(false);
    let task = read(&channel).map_err(CommandError::local)?;
    let outcome = match task {
        // Both keep to the time that PID 1 gave them.
        HelperTask::Metadata {
            service,
            interface,
            ms,
        } => metadata::fetch_document(&service, &interface, ms),
        HelperTask::ReportReady { interface, ms } => metadata::report(&interface, ms),
        HelperTask::Deposit { .. } | HelperTask::Release { .. } => {
            tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .map(|runtime| runtime.block_on(run_within_time(task)))
                .map_err(CommandError::local)?
        }
    };
    write(&channel, &outcome).map_err(CommandError::local)?;
    Ok(CommandExit::Ok)
}

/// The descriptor that PID 1 left for this process.
fn channel() -> io::Result<UnixStream> {
    let missing = || {
        let what = "'alknet helper' is for PID 1 of an appliance, which starts it itself";
        io::Error::new(io::ErrorKind::NotConnected, what)
    };
    // SAFETY: the descriptor is borrowed for one `fstat`, which fails with an error if the
    // descriptor is not open.
    let there = unsafe { std::os::fd::BorrowedFd::borrow_raw(HELPER_FD) };
    nix::sys::stat::fstat(there.as_fd()).map_err(|_| missing())?;
    // SAFETY: `fstat` just showed that the descriptor is open. By the contract of
    // `alknet_init::helper_task` this process alone has it, and this function is called once.
    let channel = UnixStream::from(unsafe { OwnedFd::from_raw_fd(HELPER_FD) });
    channel.peer_addr().map_err(|_| missing())?;
    Ok(channel)
}

fn read(channel: &UnixStream) -> io::Result<HelperTask> {
    let mut line = Zeroizing::new(Vec::with_capacity(LINE_BYTES_MAX + 1));
    let limited = channel.take(LINE_BYTES_MAX as u64 + 1);
    // The reader takes one byte at a time, so that no buffer has a copy of the secrets.
    BufReader::with_capacity(1, limited).read_until(b'\n', &mut line)?;
    serde_json::from_slice(&line).map_err(|_| io::Error::other("PID 1 sent no helper task"))
}

fn write(mut channel: &UnixStream, outcome: &HelperOutcome) -> io::Result<()> {
    // The buffer has its full size at once: growing it would leave a copy of the share behind,
    // which is not wiped.
    let mut line = Zeroizing::new(Vec::with_capacity(LINE_BYTES_MAX));
    serde_json::to_writer(&mut *line, outcome)?;
    line.push(b'\n');
    channel.write_all(&line)
}

async fn run_within_time(task: HelperTask) -> HelperOutcome {
    let outcome = tokio::time::timeout(TIME_MAX, perform(task)).await;
    outcome.unwrap_or_else(|_| {
        HelperOutcome::refused(HelperRefusal::Unreachable, "it did not answer in time")
    })
}

async fn perform(task: HelperTask) -> HelperOutcome {
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
                Ok(share_server) => share_server.deposit(name, &input).await,
                Err(no) => Err(no),
            }
        }
        HelperTask::Release {
            peer,
            addresses,
            id,
            client,
        } => match ShareServerAccess::at(&peer, &addresses, &client) {
            Ok(share_server) => share_server.release(&id).await,
            Err(no) => Err(no),
        },
        HelperTask::Metadata { .. } | HelperTask::ReportReady { .. } => {
            let text = "this task asks no other node";
            Err(EscrowRefusal::new(HelperRefusal::Denied, text))
        }
    };
    outcome
        .unwrap_or_else(|EscrowRefusal { refusal, text }| HelperOutcome::Refused { refusal, text })
}

/// Why the helper brings no share.
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

/// The node that keeps the share, and the key by which that node knows this one.
struct ShareServerAccess {
    key: PeerKey,
    targets: Vec<PeerAddr>,
    token: Option<String>,
    own: NodeKey,
    dialer: Arc<EndpointDialer>,
}

/// The result of a call.
enum ShareCallResult {
    Answer(Value),
    /// The other node knows no peer with this key.
    UnknownPeer,
}

impl ShareServerAccess {
    /// Access by the configuration: a join string, or a node with its key.
    fn from_config(
        code: Option<String>,
        node: Option<String>,
        client: &HexSecret,
    ) -> Result<Self, EscrowRefusal> {
        let invalid = |error: &dyn Display| {
            EscrowRefusal::new(HelperRefusal::Enrolment, format!("vault.kms: {error}"))
        };
        if let Some(text) = code.map(Zeroizing::new) {
            let code: JoinCode = text.parse().map_err(|error| invalid(&error))?;
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
            .map_err(|error| invalid(&error))?;
        match target.pins[..] {
            [key @ PeerKey::Ed25519(_)] => Ok(Self::new(key, vec![target], None, client)),
            _ => Err(invalid(&"the node is not given by its key and its address")),
        }
    }

    /// Access by the slot's record.
    fn at(peer: &str, addresses: &[String], client: &HexSecret) -> Result<Self, EscrowRefusal> {
        let invalid = |error: &dyn Display| {
            EscrowRefusal::new(HelperRefusal::Denied, format!("the slot: {error}"))
        };
        let key: PeerKey = peer.parse().map_err(|error| invalid(&error))?;
        let mut targets = Vec::new();
        for address in addresses {
            let target: PeerAddr = address.parse().map_err(|error| invalid(&error))?;
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
                        return Err(self.refuse(HelperRefusal::Enrolment, "it forgot us"));
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
                    .map_err(|_| self.refuse(HelperRefusal::Denied, "what it sends is no share"))?;
                Ok(HelperOutcome::Released { share })
            }
            ShareCallResult::UnknownPeer => {
                let text =
                    "it does not know this machine's slot any more: its peer was removed there";
                Err(self.refuse(HelperRefusal::Denied, text))
            }
        }
    }

    /// Calls one operation at the first address that answers.
    async fn call(&self, operation: &str, input: &Value) -> Result<ShareCallResult, EscrowRefusal> {
        let client = CallClient::without_operations().with_dialer(Arc::clone(&self.dialer) as _);
        let mut last = self.refuse(HelperRefusal::Unreachable, "it has no address");
        for target in &self.targets {
            let connection = match client.connect(target, &DialCredentials::default()).await {
                Ok(connection) => connection,
                Err(error) => {
                    last = self.not_reached(&error);
                    // The node is authenticated by the same key at each address, so the next one
                    // will do.
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
                Err(_) => Err(self.refuse(HelperRefusal::Unreachable, "it does not answer")),
            };
        }
        Err(last)
    }

    /// Enrols with the other node. If another peer has the name, it enrols without one.
    async fn enrol(&self, name: Option<String>) -> Result<(), EscrowRefusal> {
        let mut request = JoinRequest {
            token: self.token.clone(),
            name,
            version: alknet_init::image_version().to_owned(),
            arch: std::env::consts::ARCH.to_owned(),
            ..JoinRequest::default()
        };
        loop {
            let targets = self.targets.iter().cloned();
            let result = enrol(&*self.dialer, targets, Carriage::Both, &request).await;
            let Err(error) = result else { return Ok(()) };
            return Err(match error {
                EnrolClientError::Refused(refusal) => match refusal.code.as_ref() {
                    "ENROLL_NAME_TAKEN" if request.name.is_some() => {
                        // The hub then chooses a name. A share is found by its id and not by the
                        // name.
                        request.name = None;
                        continue;
                    }
                    "ENROLL_PENDING" => {
                        let words = fingerprint(&self.own.public());
                        let text = format!("an administrator has to let in the key {words} there");
                        self.refuse(HelperRefusal::Pending, text)
                    }
                    _ => self.refuse(HelperRefusal::Enrolment, refusal),
                },
                EnrolClientError::Dial(error) if error.kind == DialErrorKind::NoProtocol => {
                    let text = "it is no hub and does not know this machine: set hub.enabled there";
                    self.refuse(HelperRefusal::Enrolment, text)
                }
                other => self.refuse(HelperRefusal::Unreachable, other),
            });
        }
    }

    /// The refusal of a failed dial. The dial's error has the address in it.
    fn not_reached(&self, error: &ConnectError) -> EscrowRefusal {
        let refusal = match error {
            ConnectError::Dial(error) if error.kind == DialErrorKind::Impostor => {
                // Another machine has this address, which waiting does not change.
                HelperRefusal::Denied
            }
            _ => HelperRefusal::Unreachable,
        };
        EscrowRefusal::new(refusal, format!("node {}: {error}", self.key.short()))
    }

    // Codes that an administrator of the other node can resolve are pending, and PID 1 asks again.
    // The others end the attempt.
    fn refused(&self, error: &CallError) -> EscrowRefusal {
        let details = error.details.as_deref().unwrap_or(&Value::Null);
        match (error.code.name(), details["reason"].as_str()) {
            ("APPROVAL_PENDING", _) => {
                let text = format!("{} ('alknet escrow approve')", error.message);
                self.refuse(HelperRefusal::Pending, text)
            }
            // The administrator of the other node will open its vault.
            ("UNAVAILABLE", Some("vault_locked")) => {
                self.refuse(HelperRefusal::Pending, &error.message)
            }
            ("UNAVAILABLE" | "TIMEOUT", _) => {
                self.refuse(HelperRefusal::Unreachable, &error.message)
            }
            ("NOT_FOUND", _) => {
                self.refuse(HelperRefusal::Denied, "it has no share of this machine")
            }
            _ => self.refuse(HelperRefusal::Denied, &error.message),
        }
    }

    /// A refusal with the node's key and address.
    fn refuse(&self, refusal: HelperRefusal, text: impl Display) -> EscrowRefusal {
        let address = self.targets.first().map(PeerAddr::address);
        let address = address.unwrap_or_default();
        EscrowRefusal::new(
            refusal,
            format!("node {} at {address}: {text}", self.key.short()),
        )
    }
}
