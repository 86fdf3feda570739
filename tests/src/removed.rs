//! A peer that is removed while it follows something by a ticket that it was given before, and keeps another one.

use std::time::Duration;

use alknet_endpoint::Target;
use alknet_test_support::deadline;
use alknet_tls::NodeKey;

use crate::raw::{H1, RawQuicConnection};

/// For so long a stream may go on whose peer is gone: less than what passes until rights are looked at again by
/// themselves.
const AT_ONCE: Duration = Duration::from_secs(15);

/// What such a peer has.
#[derive(Debug)]
pub struct RemovedPeerFixture {
    /// An unknown peer's connection: the address of the ticket is all that is asked for.
    reader: RawQuicConnection,
    /// The address of a ticket that was not used.
    pub kept: String,
}

impl RemovedPeerFixture {
    /// The peer with this key has two tickets made for the log, and follows it by one of them.
    ///
    /// # Panics
    /// It may not, or no event comes.
    pub async fn begin(target: &Target, key: &NodeKey) -> Self {
        let (used, kept) = (ticket(target, key).await, ticket(target, key).await);
        let mut reader = RawQuicConnection::open(target, H1).await;
        let asks = format!("GET {used} HTTP/1.1\r\nHost: localhost\r\n\r\n");
        assert!(reader.say(asks.as_bytes()).await);
        let begins = reader.hear_until("event: data", deadline(AT_ONCE)).await;
        assert!(begins.starts_with("HTTP/1.1 200 "), "{begins}");
        Self { reader, kept }
    }

    /// The peer was removed just now: the node ends what it follows at once, and says why.
    ///
    /// # Panics
    /// It goes on.
    pub async fn is_ended(&mut self) {
        let ends = self.reader.hear_until("event: error", deadline(AT_ONCE));
        let ends = ends.await;
        let (_, error) = ends.split_once("event: error").expect("it was heard");
        let error = match error.contains('}') {
            true => error.to_owned(),
            false => self.reader.hear_until("}", deadline(AT_ONCE)).await,
        };
        assert!(error.contains("\"UNAUTHENTICATED\""), "{error}");
    }
}

/// By its key, over HTTP and without a token.
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
