//! How long a node takes to answer while something else happens to it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use alknet_call::{ALPN, CallClient};
use alknet_endpoint::Target;
use alknet_tls::NodeKey;
use serde_json::Value;

use crate::cli::CliRunner;
use crate::dialer::patient_dialer;

/// Pause between an answer and the next request. The node has other work, but no answer may take
/// many times as long unnoticed.
const PAUSE: Duration = Duration::from_millis(5);

/// A client that sends a node one request after the other, over one connection, from
/// [`begin`](Self::begin) to [`end`](Self::end).
#[derive(Debug)]
pub struct RequestLoop {
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<RequestLoopStats>>,
}

/// The results.
#[derive(Debug, Default)]
struct RequestLoopStats {
    /// Answers that came before the end.
    count: u32,
    longest: Duration,
}

impl RequestLoop {
    /// Sends requests to this node as `who`, who may read facts about it. Returns after the first
    /// answer.
    ///
    /// # Panics
    /// The node does not answer.
    #[must_use]
    pub fn begin(target: &str, who: &CliRunner) -> Self {
        let is_over = Arc::new(AtomicBool::new(false));
        let (answered, answers) = mpsc::channel();
        let (target, who, until) = (target.to_owned(), who.clone(), Arc::clone(&is_over));
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("this host has threads and sockets");
            runtime.block_on(ask(&target, &who, &until, &answered))
        });
        answers.recv().expect("a node at rest answers");
        Self {
            is_over,
            thread: Some(thread),
        }
    }

    /// The longest time of an answer. The load that was measured is over.
    ///
    /// # Panics
    /// The node did not answer, or nothing was answered meanwhile.
    #[must_use]
    pub fn end(mut self) -> Duration {
        self.is_over.store(true, Ordering::SeqCst);
        let thread = self.thread.take().expect("it ends once");
        let answers = thread.join().expect("the node answers");
        assert!(answers.count > 0, "nothing was answered meanwhile");
        answers.longest
    }
}

impl Drop for RequestLoop {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::SeqCst);
    }
}

async fn ask(
    target: &str,
    who: &CliRunner,
    is_over: &AtomicBool,
    answered: &Sender<()>,
) -> RequestLoopStats {
    let file = who.state().join("identity.key");
    let (key, _) = NodeKey::load_or_create(&file).expect("a key");
    let dialer = patient_dialer(Some(key));
    let target: Target = target.parse().expect("the node's own target");
    let connection = dialer.dial(&target, ALPN).await.expect("it serves");
    let client = CallClient::without_operations().attach(connection, None);
    let mut answers = RequestLoopStats::default();
    let first = client.call("node/info", &Value::Null).await;
    first.expect("it answers");
    answered.send(()).expect("it is waited for");
    while !is_over.load(Ordering::SeqCst) {
        let began = Instant::now();
        let answer = client.call("node/info", &Value::Null).await;
        answer.expect("it answers");
        answers.longest = answers.longest.max(began.elapsed());
        answers.count += u32::from(!is_over.load(Ordering::SeqCst));
        tokio::time::sleep(PAUSE).await;
    }
    answers
}
