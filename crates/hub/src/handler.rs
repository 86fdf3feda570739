//! The hub's side of `alknet/enroll`.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use alknet_core::{
    AlpnSpec, AuthContext, AuthNeed, BoxFuture, Clock, Connection, HandlerError, ProtocolHandler,
    StreamBudget, StreamError,
};
use tokio::time::timeout;

use crate::enrolment::{Applicant, EnrolError, EnrolmentService};
use crate::wire::{self, JoinAcceptance, JoinReply, JoinRequest};

/// Target of the records of refused requests, which any client can cause: the node's log gives them a rate.
pub const ENROL_REFUSED_TARGET: &str = "alknet_hub::refused";
/// Time for the request to arrive.
const REQUEST_TIME: Duration = Duration::from_secs(10);
/// Time for the reply to be read.
const REPLY_TIME: Duration = Duration::from_secs(2);

/// Serves `alknet/enroll`: one request, one reply. The key that enrols is the one the handshake
/// proved; nothing in the request can name another.
pub struct EnrolHandler {
    enrolment: Arc<EnrolmentService>,
    clock: Arc<dyn Clock>,
    alpns: [AlpnSpec; 1],
}

impl EnrolHandler {
    /// Lets `enrolment` decide.
    #[must_use]
    pub fn new(enrolment: Arc<EnrolmentService>, clock: Arc<dyn Clock>) -> Self {
        Self {
            enrolment,
            clock,
            alpns: [AlpnSpec {
                // An applicant is no peer yet: the handler itself looks at its key.
                auth: AuthNeed::Open,
                limits: StreamBudget::UNAUTHENTICATED,
                ..AlpnSpec::new(wire::ALPN)
            }],
        }
    }

    async fn serve(&self, connection: &Connection, auth: &AuthContext) -> Result<(), HandlerError> {
        let asked = async {
            let (send, mut recv) = connection.accept_bi().await.map_err(of_stream)?;
            let message = wire::read_message(&mut recv).await.map_err(of_message)?;
            Ok::<_, HandlerError>((send, message))
        };
        let asked = timeout(REQUEST_TIME, asked).await;
        let (mut send, message) = asked.map_err(|_| HandlerError::Timeout)??;
        let request = parse(&message)?;
        let mut outcome = self.decide(&request, auth).await;
        log(connection, auth, &outcome);
        // A penalty of the network is looked at only after the token proved wrong: an attacker
        // nearby must not keep an honest node with a right token out.
        if outcome.as_ref().is_err_and(EnrolError::is_suspicious) {
            // Before this failure counts: the first wrong token of a network is answered as what it
            // is.
            let penalty = connection.penalty();
            connection.auth_failed();
            if let Some(left) = penalty {
                outcome = Err(EnrolError::Guesses(left));
            }
        }
        let reply = match outcome {
            Ok(enrolled) => JoinReply::Taken(enrolled),
            Err(error) => JoinReply::Refused {
                error: error.refusal(),
            },
        };
        let told = async {
            wire::write_message(&mut send, &reply).await?;
            send.finish()?;
            // The end of the other side's connection says that it has read.
            connection.closed().await;
            Ok::<_, io::Error>(())
        };
        // An applicant that went away without its answer may come again for it.
        let told = timeout(REPLY_TIME, told).await.unwrap_or(Ok(()));
        told.map_err(|_| HandlerError::Closed)
    }

    async fn decide(
        &self,
        request: &JoinRequest,
        auth: &AuthContext,
    ) -> Result<JoinAcceptance, EnrolError> {
        let applicant = Applicant {
            key: auth.key.ok_or(EnrolError::Key)?,
            request,
            from: auth.remote_addr,
        };
        let now_s = self.clock.now_s();
        self.enrolment
            .enrol(&applicant, now_s, Instant::now())
            .await
    }
}

fn parse(message: &[u8]) -> Result<JoinRequest, HandlerError> {
    // A list would do for the parser.
    let object = message
        .starts_with(b"{")
        .then(|| serde_json::from_slice(message));
    object
        .and_then(Result::ok)
        .ok_or_else(|| HandlerError::Protocol("the request is no object of this form".into()))
}

/// One line for each attempt; the token is not in it, its name neither: a typing error could put a
/// secret there.
fn log(connection: &Connection, auth: &AuthContext, outcome: &Result<JoinAcceptance, EnrolError>) {
    let conn = connection.id().0;
    let key8 = auth.key.map(|key| key.short());
    let addr = auth.remote_addr.map(tracing::field::display);
    match outcome {
        Ok(enrolled) => {
            tracing::info!(conn, key8, addr, peer = %enrolled.peer_id, name = enrolled.name.as_str(), "enrol.taken");
        }
        Err(error) if error.code() == "INTERNAL" => {
            tracing::error!(conn, key8, addr, %error, "enrol.failed");
        }
        Err(error) => {
            let code = error.code();
            tracing::info!(target: ENROL_REFUSED_TARGET, conn, key8, addr, code, "enrol.refused");
        }
    }
}

fn of_message(error: io::Error) -> HandlerError {
    match error.kind() {
        io::ErrorKind::InvalidData => {
            HandlerError::Protocol("a request has 1 to 16384 bytes".into())
        }
        _ => HandlerError::Stream(error),
    }
}

fn of_stream(error: StreamError) -> HandlerError {
    match error {
        StreamError::Closed(_) | StreamError::Timeout => HandlerError::Closed,
        error => HandlerError::Stream(error.into()),
    }
}

impl ProtocolHandler for EnrolHandler {
    fn alpns(&self) -> &[AlpnSpec] {
        &self.alpns
    }

    fn handle(
        self: Arc<Self>,
        connection: Connection,
        auth: AuthContext,
    ) -> BoxFuture<'static, Result<(), HandlerError>> {
        Box::pin(async move { self.serve(&connection, &auth).await })
    }
}

impl fmt::Debug for EnrolHandler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EnrolHandler")
            .field("desk", &self.enrolment)
            .finish_non_exhaustive()
    }
}
