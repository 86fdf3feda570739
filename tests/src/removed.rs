//! A peer that is removed while it follows a stream with an earlier ticket, and keeps another
//! ticket.

use std::time::Duration;

use alknet_endpoint::Target;
use alknet_test_support::deadline;
use alknet_tls::NodeKey;

use crate::raw::{H1, RawQuicConnection};

/// How long the stream of a removed peer may continue: less than the time until rights are checked
/// again anyway.
const AT_ONCE: Duration = Duration::from_secs(15);

/// The streams and tickets of such a peer.
#[derive(Debug)]
pub struct RemovedPeerFixture {
    /// An unknown peer's connection, since only the ticket's address is needed.
    reader: RawQuicConnection,
    /// The address of an unused ticket.
    pub unused: String,
}

impl RemovedPeerFixture {
    /// The peer with this key gets two tickets for the log, and follows it with one of them.
    ///
    /// # Panics
    /// It may not, or no event comes.
    pub async fn begin(target: &Target, key: &NodeKey) -> Self {
        let (used, unused) = (ticket(target, key).await, ticket(target, key).await);
        let mut reader = RawQuicConnection::open(target, H1).await;
        let asks = format!("GET {used} HTTP/1.1\r\nHost: localhost\r\n\r\n");
        assert!(reader.say(asks.as_bytes()).await);
        let begins = reader.hear_until("event: data", deadline(AT_ONCE)).await;
        assert!(begins.starts_with("HTTP/1.1 200 "), "{begins}");
        Self { reader, unused }
    }

    /// After the peer was removed, the node ends its stream at once, and says why.
    ///
    /// # Panics
    /// The stream continues.
    pub async fn is_ended(&mut self) {
        let ends = self.reader.hear_until("event: error", deadline(AT_ONCE));
        let ends = ends.await;
        let (_, error) = ends.split_once("event: error").expect("it was heard");
        let error = match error.contains('}') {
            true => error.to_owned(),
            // The node's bytes may come in any parts.
            false => {
                let rest = self.reader.hear_until("}", deadline(AT_ONCE));
                error.to_owned() + &rest.await
            }
        };
        assert!(error.contains("\"UNAUTHENTICATED\""), "{error}");
    }
}

/// With its key, over HTTP and without a token.
async fn ticket(target: &Target, key: &NodeKey) -> String {
    let mut peer = RawQuicConnection::open_as(target, H1, key.clone()).await;
    let call = r#"{"operation":"/node/log","input":{"follow":true,"last":1}}"#;
    let head = format!(
        "POST /subscribe HTTP/1.1\r\nHost: localhost\r\nPrefer: respond-async\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{call}",
        call.len()
    );
    assert!(peer.say(head.as_bytes()).await);
    let told = peer.hear_until("}", deadline(AT_ONCE)).await;
    assert!(told.starts_with("HTTP/1.1 201 "), "{told}");
    let url = told
        .split('"')
        .find(|part| part.starts_with("/subscribe/t/"));
    url.unwrap_or_else(|| panic!("no address: {told}"))
        .to_owned()
}
