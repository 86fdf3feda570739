//! Connections of one command.

use std::time::Duration;

use alknet_call::{ALPN, CallClient, CallConnection, ErrorCode};
use alknet_core::{Carriage, Connection, PeerAddr, PeerKey};
use alknet_endpoint::{DIAL_TIMEOUT, EndpointDialError, EndpointDialer};
use alknet_tls::NodeKey;
use clap::{Args, ValueEnum};

use super::duration;
use super::node_caller::NodeCaller;
use super::target::NodeRoute;
use super::{CommandError, CommandExit, StateArgs, output};

/// What to look at where nothing answers in time.
pub(crate) const NO_ANSWER: &str = "does the node run, is this its address and port, and does a firewall let UDP and \
                                    TCP through? --timeout TIME waits longer";

/// How to reach a node.
#[derive(Clone, Debug, Args)]
pub(crate) struct DialArgs {
    #[command(flatten)]
    pub(crate) state: StateArgs,
    /// Use only this carriage [default: QUIC first, and TLS over TCP if QUIC has not answered within 400 ms]
    #[arg(long, value_enum)]
    pub(crate) carriage: Option<CarriageArg>,
    /// Give up after this time: 90s, 30m, 12h, or a number of seconds.
    #[arg(long, value_name = "TIME", default_value = "30", value_parser = duration::timeout)]
    pub(crate) timeout: Duration,
    /// Present no key: the node treats this client as an unknown peer.
    #[arg(long)]
    pub(crate) anonymous: bool,
}

/// A carriage as the command line spells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum CarriageArg {
    /// Iroh, at the port on which the node serves iroh.
    Iroh,
    Quic,
    Tcp,
}

impl From<CarriageArg> for Carriage {
    fn from(arg: CarriageArg) -> Self {
        match arg {
            CarriageArg::Iroh => Self::Iroh,
            CarriageArg::Quic => Self::Quic,
            CarriageArg::Tcp => Self::Tcp,
        }
    }
}

/// What every connection of one command is made with.
pub(crate) struct CliDialer {
    dialer: EndpointDialer,
    carriage: Carriage,
    timeout: Duration,
    /// The key of this computer, if the connections present it.
    own: Option<OwnKey>,
}

/// The key of this computer, for the error of a node that does not know it.
struct OwnKey {
    key: PeerKey,
    state: StateArgs,
    /// Whether this command made it.
    is_new: bool,
}

impl CliDialer {
    pub(crate) fn new(args: &DialArgs) -> Result<Self, CommandError> {
        if args.anonymous {
            return Ok(Self::with_key(None, args));
        }
        // This comes before `key`, which makes a missing key: the error of a node says that the key is new.
        let is_new = !args.state.has_key();
        let key = args.state.key()?;
        let own = OwnKey {
            key: key.public(),
            state: args.state.clone(),
            is_new,
        };
        Ok(Self {
            own: Some(own),
            ..Self::with_key(Some(key), args)
        })
    }

    /// With another key than the one of this computer.
    pub(crate) fn with_key(key: Option<NodeKey>, args: &DialArgs) -> Self {
        Self {
            dialer: EndpointDialer::new(key).with_dial_timeout(dial_time(args.timeout, 1)),
            carriage: args.carriage.map_or(Carriage::Both, Into::into),
            timeout: args.timeout,
            own: None,
        }
    }

    /// The key that the connections present, if it is the one of this computer.
    pub(crate) fn presented_key(&self) -> Option<PeerKey> {
        self.own.as_ref().map(|own| own.key)
    }

    /// The error of a node. If the node did not know the key of this computer, the user may have meant another one.
    pub(crate) fn explained(&self, mut error: CommandError) -> CommandError {
        if error.code == ErrorCode::Unauthenticated.name()
            && let Some(own) = &self.own
        {
            error.further.push(format!(
                "An administrator lets it in: alknet peer add NODE NAME --key {} --scope SCOPE",
                own.key
            ));
            error.further.extend(own.state.unknown_key(own.is_new));
        }
        error
    }

    /// Runs `work` to its end or to Ctrl-C, and sees the goodbyes off.
    pub(crate) fn run<T>(
        &self,
        work: impl AsyncFnOnce(&Self) -> Result<T, CommandError>,
    ) -> Result<T, CommandError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        let runtime =
            runtime.map_err(|e| CommandError::local(format!("cannot start the runtime: {e}")))?;
        let result = runtime.block_on(async {
            let result = interruptible(work(self)).await;
            // Sent before the process ends: over UDP nothing else lets the other side know.
            self.dialer.close().await;
            result
        });
        // Where it was interrupted, a thread may still wait for a line of standard input.
        runtime.shutdown_background();
        result
    }

    /// Dials the node or its hub, runs `work`, says goodbye.
    pub(crate) async fn reached<T>(
        &self,
        route: &NodeRoute,
        work: impl AsyncFnOnce(&NodeCaller) -> Result<T, CommandError>,
    ) -> Result<T, CommandError> {
        let connection = self.dialled(&route.target, ALPN, self.carriage).await;
        let connection = connection.map_err(|error| route.explained(error))?;
        let result = used(connection, async |connection| {
            work(&NodeCaller::new(connection.clone(), route, self.timeout)).await
        });
        result.await.map_err(|error| self.explained(error))
    }

    /// Like `reached`, by another key than that of the command, beside its own connection.
    pub(crate) async fn reached_by<T>(
        key: NodeKey,
        route: &NodeRoute,
        args: &DialArgs,
        work: impl AsyncFnOnce(&NodeCaller) -> Result<T, CommandError>,
    ) -> Result<T, CommandError> {
        let dialer = Self::with_key(Some(key), args);
        let result = dialer.reached(route, work).await;
        dialer.dialer.close().await;
        result
    }

    /// Dials, runs `work`, says goodbye.
    pub(crate) async fn connected<T>(
        &self,
        target: &PeerAddr,
        work: impl AsyncFnOnce(&CallConnection) -> Result<T, CommandError>,
    ) -> Result<T, CommandError> {
        let connection = self.dialled(target, ALPN, self.carriage).await?;
        used(connection, work).await
    }

    /// Dials for another protocol, over the carriage that it is served on.
    pub(crate) async fn dialled(
        &self,
        target: &PeerAddr,
        alpn: &'static [u8],
        carriage: Carriage,
    ) -> Result<Connection, CommandError> {
        let dial = self.dialer.dial_over(carriage, target, alpn);
        let connection = within_time(self.timeout, &target.address(), dial).await?;
        connection.map_err(|error| of_dial(&error))
    }
}

/// Runs `work` on a connection, and says goodbye.
async fn used<T>(
    connection: Connection,
    work: impl AsyncFnOnce(&CallConnection) -> Result<T, CommandError>,
) -> Result<T, CommandError> {
    let client = CallClient::without_operations().attach(connection, None);
    // Also where it is interrupted, the close below lets the node know: over UDP it would notice the end by silence
    // alone, and work until then.
    let result = interruptible(work(&client)).await;
    client.close(alknet_core::CloseCode::Normal, "");
    result
}

/// What comes of `work`, unless Ctrl-C comes before. Once a command has waited here, the signal does not end the process
/// by itself any more, so all work of a command has to.
async fn interruptible<T>(
    work: impl Future<Output = Result<T, CommandError>>,
) -> Result<T, CommandError> {
    tokio::select! {
        // Work that notices the signal itself says goodbye, and has its own answer.
        biased;
        result = work => result,
        _ = tokio::signal::ctrl_c() => {
            Err(CommandError::new(CommandExit::Aborted, "ABORTED", "interrupted"))
        }
    }
}

/// Dials one node or its hub, runs `work`, says goodbye; all within the time the arguments allow, streams
/// excepted.
pub(crate) fn reached(
    route: &NodeRoute,
    args: &DialArgs,
    work: impl AsyncFnOnce(&NodeCaller) -> Result<CommandExit, CommandError>,
) -> Result<CommandExit, CommandError> {
    CliDialer::new(args)?.run(async |dialer| dialer.reached(route, work).await)
}

/// The time of each dial, where `targets` are dialled one after the other within `timeout`. It is never shorter than the
/// dialer's own: a short `timeout` ends the dial from outside.
pub(crate) fn dial_time(timeout: Duration, targets: usize) -> Duration {
    let targets = u32::try_from(targets).unwrap_or(u32::MAX).max(1);
    DIAL_TIMEOUT.max(timeout / targets)
}

/// What comes of `work`, if it comes in time.
pub(crate) async fn within_time<T>(
    timeout: Duration,
    who: &str,
    work: impl Future<Output = T>,
) -> Result<T, CommandError> {
    tokio::time::timeout(timeout, work).await.map_err(|_| {
        let seconds = timeout.as_secs_f64();
        let text = format!("{who} did not answer within {seconds} s; {NO_ANSWER}");
        CommandError::new(CommandExit::Timeout, "TIMEOUT", text)
    })
}

/// What the user can look at after a failed dial, beyond what the error itself says.
fn next_step(error: &EndpointDialError) -> Option<&'static str> {
    match error {
        EndpointDialError::Certificate { .. } => {
            Some("'alknet serve' there, or the console of the machine, shows the key")
        }
        EndpointDialError::TimedOut { .. } => Some(NO_ANSWER),
        EndpointDialError::Unreachable { .. } => Some("does the node run, and is this its port?"),
        _ => None,
    }
}

/// Like [`of_dial`], of a dial through core's trait.
pub(crate) fn of_dial_kind(error: &alknet_core::DialError) -> CommandError {
    use alknet_core::DialErrorKind as Kind;
    let (exit, code) = match error.kind {
        Kind::Local => (CommandExit::Failed, "LOCAL"),
        Kind::UnknownPeer => (CommandExit::Usage, "UNKNOWN_PEER"),
        Kind::Impostor => (CommandExit::Unreachable, "PIN_MISMATCH"),
        Kind::TimedOut => (CommandExit::Timeout, "TIMEOUT"),
        _ => (CommandExit::Unreachable, "UNAVAILABLE"),
    };
    CommandError::new(exit, code, output::one_line(&error.to_string()))
}

fn of_dial(error: &EndpointDialError) -> CommandError {
    let (exit, code) = match error {
        EndpointDialError::Local(_) | EndpointDialError::TlsSetup(_) => {
            (CommandExit::Failed, "LOCAL")
        }
        EndpointDialError::UnknownPeer { .. } => (CommandExit::Usage, "UNKNOWN_PEER"),
        EndpointDialError::OtherKey { .. } | EndpointDialError::PinMismatch(_) => {
            (CommandExit::Unreachable, "PIN_MISMATCH")
        }
        EndpointDialError::TimedOut { .. } => (CommandExit::Timeout, "TIMEOUT"),
        _ => (CommandExit::Unreachable, "UNAVAILABLE"),
    };
    // The other side may have said why.
    let mut text = error.to_string();
    if let Some(next) = next_step(error) {
        text.push_str("; ");
        text.push_str(next);
    }
    CommandError::new(exit, code, output::one_line(&text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_of_a_dial_says_what_to_look_at() {
        let target = || "node.example:443".to_owned();
        let reason = "self-signed".to_owned();
        for (error, next) in [
            (
                EndpointDialError::Certificate {
                    target: target(),
                    reason,
                },
                "; 'alknet serve' there, or the console of the machine, shows the key",
            ),
            (
                EndpointDialError::TimedOut {
                    target: target(),
                    seconds: 3,
                },
                "--timeout TIME waits longer",
            ),
        ] {
            let said = of_dial(&error).message;
            assert!(said.ends_with(next), "{said}");
        }
    }

    #[test]
    fn a_longer_timeout_gives_each_dial_longer_and_a_shorter_one_no_less() {
        let seconds = Duration::from_secs;
        assert_eq!(dial_time(Duration::from_millis(200), 1), DIAL_TIMEOUT);
        assert_eq!(dial_time(seconds(30), 1), seconds(30));
        assert_eq!(dial_time(seconds(3600), 1), seconds(3600));
        // A hub may have several addresses, and each has its turn.
        assert_eq!(dial_time(seconds(30), 2), seconds(15));
        assert_eq!(dial_time(seconds(30), 8), DIAL_TIMEOUT);
        assert_eq!(dial_time(seconds(30), 0), seconds(30));
    }

    #[tokio::test]
    async fn a_node_that_does_not_answer_may_get_more_time() {
        let never = std::future::pending::<()>();
        let late = within_time(Duration::from_millis(1), "node.example:443", never).await;
        let late = late.expect_err("it never answers");
        assert_eq!(late.exit, CommandExit::Timeout);
        assert!(late.message.contains("--timeout TIME"), "{late}");
    }
}
