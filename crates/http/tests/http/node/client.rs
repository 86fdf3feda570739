//! What a client has of a node: requests that are under way, and answers.

use super::*;

#[derive(Debug)]
pub(crate) struct HttpTestResponse {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Vec<u8>,
}

impl HttpTestResponse {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("JSON")
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }
}

/// A request that began.
pub(crate) struct UnfinishedRequest {
    pub(super) send: SendStream,
    pub(super) _recv: RecvStream,
    pub(super) _dialled: Connection,
    pub(super) _served: JoinHandle<Result<(), HandlerError>>,
}

impl UnfinishedRequest {
    pub(crate) async fn says(&mut self, text: &[u8]) {
        self.send.write_all(text).await.expect("it reads");
    }
}

/// The serving of one connection.
pub(crate) struct ServeTask(pub(super) JoinHandle<Result<(), HandlerError>>);

impl ServeTask {
    /// Waits until the node ends it.
    pub(crate) async fn ended(self) {
        let ended = tokio::time::timeout(hung(), self.0)
            .await
            .expect("it hangs");
        let ended = ended.expect("it does not panic");
        ended.expect("it is no failure");
    }

    pub(crate) fn is_over(&self) -> bool {
        self.0.is_finished()
    }
}

pub(crate) enum HttpTestClient {
    H1(http1::SendRequest<Full<Bytes>>),
    H2(http2::SendRequest<Full<Bytes>>),
}

impl HttpTestClient {
    pub(crate) async fn ask(&mut self, mut request: Request<Full<Bytes>>) -> Response<Incoming> {
        match self {
            Self::H1(sender) => {
                // Only proxies get the whole address (RFC 9112 section 3.2).
                let path = request.uri().path_and_query().expect("a path").clone();
                *request.uri_mut() = path.as_str().parse().expect("a path");
                sender.send_request(request).await.expect("an answer")
            }
            Self::H2(sender) => {
                request.headers_mut().remove(HOST);
                sender.send_request(request).await.expect("an answer")
            }
        }
    }

    pub(crate) async fn response(mut self, request: Request<Full<Bytes>>) -> HttpTestResponse {
        let work = async {
            let (head, body) = self.ask(request).await.into_parts();
            let body = body.collect().await.expect("a whole body");
            HttpTestResponse {
                status: head.status,
                headers: head.headers,
                body: body.to_bytes().to_vec(),
            }
        };
        tokio::time::timeout(hung(), work).await.expect("it hangs")
    }
}
