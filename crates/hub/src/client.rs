//! The side of `alknet/enroll` that wants to join.

use std::time::Duration;

use alknet_core::{
    Carriage, CloseCode, Connection, DialError, DialRequest, Dialer, PeerAddr, PeerKey,
    PeerVerification,
};
use thiserror::Error;
use tokio::time::timeout;

use crate::wire::{self, JoinAcceptance, JoinRefusal, JoinReply, JoinRequest};

/// Time for one hub to answer, once it is connected.
const ANSWER_TIME: Duration = Duration::from_secs(15);

/// Asks the hub at one of `targets`, in their order, to be taken in; the pins of a target are the
/// keys that the hub may prove. The key that enrols is the dialler's.
///
/// # Errors
/// See [`EnrolClientError`]; where no target can be reached, the last failure.
pub async fn enrol(
    dialer: &dyn Dialer,
    targets: impl IntoIterator<Item = PeerAddr>,
    carriage: Carriage,
    request: &JoinRequest,
) -> Result<(JoinAcceptance, PeerAddr), EnrolClientError> {
    let mut last = EnrolClientError::NoTarget;
    for target in targets {
        match at(dialer, &target, carriage, request).await {
            Ok(enrolled) => return Ok((enrolled, target)),
            // The hub itself answered: another way to it changes nothing.
            Err(error @ (EnrolClientError::Refused(_) | EnrolClientError::Impostor { .. })) => {
                return Err(error);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

async fn at(
    dialer: &dyn Dialer,
    target: &PeerAddr,
    carriage: Carriage,
    request: &JoinRequest,
) -> Result<JoinAcceptance, EnrolClientError> {
    // Only a pinned hub is shown a key and a token.
    let expect = PeerVerification::Pinned(target.pins.clone());
    let mut dial = DialRequest::new(target.clone(), expect, wire::ALPN);
    dial.carriage = carriage;
    let connection = dialer.connect(dial).await?.connection;
    let answer = timeout(ANSWER_TIME, ask(&connection, request)).await;
    // The hub keeps its side open until this close says that the reply was read.
    connection.close(CloseCode::Normal, "");
    let reply = answer.map_err(|_| EnrolClientError::Silent)??;
    match reply {
        JoinReply::Refused { error } => Err(EnrolClientError::Refused(error)),
        // TLS proved a pinned key. Information about a hub with another key would have the node keep a hub that it
        // never spoke to.
        JoinReply::Taken(enrolled) if target.pins.contains(&enrolled.hub.key) => Ok(enrolled),
        JoinReply::Taken(enrolled) => Err(EnrolClientError::Impostor {
            says: enrolled.hub.key,
        }),
    }
}

async fn ask(
    connection: &Connection,
    request: &JoinRequest,
) -> Result<JoinReply, EnrolClientError> {
    let streams = if connection.is_multi() {
        connection.open_bi().await
    } else {
        connection.accept_bi().await
    };
    let (mut send, mut recv) = streams.map_err(std::io::Error::from)?;
    wire::write_message(&mut send, request).await?;
    if connection.is_multi() {
        send.finish().map_err(std::io::Error::from)?;
    }
    let reply = wire::read_message(&mut recv).await?;
    serde_json::from_slice(&reply).map_err(|_| EnrolClientError::Nonsense)
}

/// Why nothing came of it.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum EnrolClientError {
    /// The hub cannot be reached, or is another.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// The hub says that it has another key than it proved.
    #[error("the hub says that its key is {says}, and proved another")]
    Impostor {
        /// What it says.
        says: PeerKey,
    },
    /// There is nowhere to ask.
    #[error("no address of the hub is known")]
    NoTarget,
    /// The answer has no form.
    #[error("the hub answers something that is no answer")]
    Nonsense,
    /// The hub does not want us.
    #[error("{0}")]
    Refused(JoinRefusal),
    /// No answer in time.
    #[error("the hub does not answer")]
    Silent,
    /// The connection was lost.
    #[error("the connection to the hub was lost: {0}")]
    Stream(#[from] std::io::Error),
}
