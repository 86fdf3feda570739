//! A user who stops waiting: the node stops working.

use std::net::Ipv4Addr;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use alknet_call::{
    CallError, CallHandler, Dispatcher, HandlerKind, OperationSpec, Registration, Registry,
};
use alknet_core::{Entries, HandlerRegistry, Identities, SystemClock};
use alknet_endpoint::{Server, ServerOptions};
use alknet_test_support::deadline;
use alknet_tests::{Answer, Cli, whole_seconds};
use alknet_tls::NodeKey;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tokio::sync::{Mutex, Semaphore};

/// A node whose one operation is done for one caller at a time, and never ends for the first.
struct Busy {
    server: Server,
    key: NodeKey,
    began: Arc<Semaphore>,
}

impl Busy {
    fn start() -> Self {
        let began = Arc::new(Semaphore::new(0));
        let (turn, first) = (Arc::new(Mutex::new(true)), Arc::clone(&began));
        let work = HandlerKind::once(move |_, _| {
            let (turn, began) = (Arc::clone(&turn), Arc::clone(&first));
            async move {
                let mut turn = turn.lock().await;
                if std::mem::take(&mut *turn) {
                    began.add_permits(1);
                    std::future::pending::<()>().await;
                }
                Ok::<_, CallError>(json!("done"))
            }
        });
        let spec = OperationSpec::query("test/work", "Takes one caller at a time.");
        let registry = Registry::builder().with(Registration::new(spec, work));
        let registry = registry.build().expect("every rule is kept");
        let handler = CallHandler::new(Arc::new(Dispatcher::new(registry)));
        let mut handlers = HandlerRegistry::new();
        handlers.register(Arc::new(handler)).expect("the only one");
        let key = NodeKey::generate().expect("a key");
        let clock = Arc::new(SystemClock { built_s: 0 });
        let known = Arc::new(Identities::new(Entries::default(), clock));
        let options = ServerOptions {
            port: 0,
            ..ServerOptions::default()
        };
        let server = Server::bind(options, &key, handlers, known).expect("a free port");
        Self { server, key, began }
    }

    fn call(&self, cli: &Cli, carriage: &str, within: Duration) -> Command {
        let port = self.server.port();
        let target = format!("{}@{}:{port}", self.key.public(), Ipv4Addr::LOCALHOST);
        let mut command = cli.command(&["call", "--carriage", carriage]);
        command.args(["--timeout", &whole_seconds(within), &target, "test/work"]);
        command
    }
}

fn interrupt(child: &Child) {
    let pid = Pid::from_raw(child.id().cast_signed());
    kill(pid, Signal::SIGINT).expect("the child was not waited for yet");
}

/// Over UDP nothing tells a node that a process is gone: the next caller would have to wait for what nobody
/// waits for any more.
#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_is_interrupted_ends_at_the_node() {
    let folder = tempfile::tempdir().expect("a folder");
    let cli = Cli::new(folder.path().to_owned());
    for carriage in ["quic", "tcp"] {
        let node = Busy::start();
        let mut first = node.call(&cli, carriage, Duration::from_secs(600));
        let first = first.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let mut first = first.expect("it starts");
        let began = tokio::time::timeout(deadline(Duration::from_secs(60)), node.began.acquire());
        began.await.expect("it hangs").expect("it is open").forget();
        interrupt(&first);
        // A tenth of what the first would have had.
        let next = node.call(&cli, carriage, Duration::from_secs(20));
        let next_cli = cli.clone();
        let next = tokio::task::spawn_blocking(move || next_cli.run(next));
        let next: Answer = next.await.expect("it runs");
        assert_eq!(next.json(), Value::from("done"), "{carriage}");
        let ended = tokio::task::spawn_blocking(move || first.wait())
            .await
            .expect("it runs");
        let status = ended.expect("it is our child").code();
        assert_eq!(status, Some(130), "{carriage}");
    }
}
