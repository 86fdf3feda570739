//! A network of two namespaces for one test: `server` with dnsmasq, and `client`, in which the
//! test's thread lives and runs the manager.

use std::{
    fmt::Debug,
    fs::File,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use alknet_init_net::{NetEvent, NetHandle, NetManager, NetPlan, NetState};
use alknet_test_support::{deadline, remove_orphaned_namespaces, skipped_whole};
use nix::sched::{CloneFlags, setns};
use tokio::{sync::mpsc, time::timeout};

/// Nothing here takes this long unless it is broken. The pauses of DHCP are seconds.
fn patience() -> Duration {
    deadline(Duration::from_secs(60))
}

/// Prefix of the names of namespaces. The number of this process follows.
const PREFIX: &str = "alkt";

static NUMBER: AtomicU32 = AtomicU32::new(0);

/// Two namespaces, which go away with this value, with everything in them.
#[derive(Debug)]
pub(crate) struct LinkNamespaces {
    id: String,
    children: Vec<Child>,
    pub(crate) dir: tempfile::TempDir,
}

impl LinkNamespaces {
    /// Runs a test with its own lab, on a thread inside `client`. Only root can make network
    /// namespaces, so another user's run skips the test.
    pub(crate) fn run<F: Future<Output = ()>>(test: impl FnOnce(Self) -> F + Send + 'static) {
        if !nix::unistd::geteuid().is_root() {
            return skipped_whole("root", "no network namespaces can be made");
        }
        // A thread that changed its namespace is not given back to the test runner.
        let thread = std::thread::spawn(move || {
            let lab = Self::new();
            let namespace =
                File::open(format!("/run/netns/{}", lab.client())).expect("made just now");
            setns(namespace, CloneFlags::CLONE_NEWNET).expect("root may enter it");
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            runtime.expect("a runtime").block_on(test(lab));
        });
        if let Err(panic) = thread.join() {
            std::panic::resume_unwind(panic);
        }
    }

    fn new() -> Self {
        remove_orphaned_namespaces(PREFIX);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let lab = Self {
            id: format!("{PREFIX}{}n{number}", std::process::id()),
            children: Vec::new(),
            dir: tempfile::tempdir().expect("a directory"),
        };
        ip(&["netns", "add", &lab.server()]);
        ip(&["netns", "add", &lab.client()]);
        ip(&["-n", &lab.server(), "link", "set", "lo", "up"]);
        lab
    }

    pub(crate) fn server(&self) -> String {
        format!("{}s", self.id)
    }

    pub(crate) fn client(&self) -> String {
        format!("{}c", self.id)
    }

    /// A cable: `srvN` at the server, up, with these addresses, and `ethN` at the client.
    pub(crate) fn cable(&self, n: u32, addresses: &[&str]) {
        let (here, there) = (format!("srv{n}"), format!("eth{n}"));
        let mac = format!("02:00:00:00:00:{n:02x}");
        let (server, client) = (self.server(), self.client());
        let plug = [
            "-n", &server, "link", "add", &here, "type", "veth", "peer", "name", &there,
        ];
        ip(&[&plug[..], &["address", &mac, "netns", &client]].concat());
        for address in addresses {
            let nodad = if address.contains(':') {
                &["nodad"][..]
            } else {
                &[]
            };
            ip(&[
                &["-n", &server, "addr", "add", address, "dev", &here],
                nodad,
            ]
            .concat());
        }
        ip(&["-n", &server, "link", "set", &here, "up"]);
    }

    /// Pulls the cable out, or puts it back.
    pub(crate) fn plug(&self, n: u32, up: bool) {
        let state = if up { "up" } else { "down" };
        ip(&[
            "-n",
            &self.server(),
            "link",
            "set",
            &format!("srv{n}"),
            state,
        ]);
    }

    /// Starts dnsmasq at the server with these options. `stop` takes the number.
    pub(crate) fn dnsmasq(&mut self, options: &[&str]) -> usize {
        let leases = self
            .dir
            .path()
            .join(format!("leases{}", self.children.len()));
        let mut all = vec![
            "--keep-in-foreground".to_owned(),
            "--conf-file=/dev/null".to_owned(),
            "--pid-file".to_owned(),
            "--user=root".to_owned(),
            "--no-resolv".to_owned(),
            "--no-hosts".to_owned(),
            "--no-ping".to_owned(),
            "--bind-dynamic".to_owned(),
            "--log-facility=/dev/null".to_owned(),
            format!("--dhcp-leasefile={}", leases.display()),
        ];
        all.extend(options.iter().map(|o| (*o).to_owned()));
        self.spawn(
            "dnsmasq",
            &all.iter().map(String::as_str).collect::<Vec<_>>(),
        )
    }

    /// Starts a program at the server.
    pub(crate) fn spawn(&mut self, program: &str, arguments: &[&str]) -> usize {
        // Without this check, `ip` would report it only on its standard error, and the test would
        // wait until its deadline.
        let path = std::env::var_os("PATH").unwrap_or_default();
        let mut folders = std::env::split_paths(&path);
        assert!(
            folders.any(|folder| folder.join(program).exists()),
            "{program} is missing: cargo xtask setup installs it"
        );
        let mut command = Command::new("ip");
        command
            .args(["netns", "exec", &self.server(), program])
            .args(arguments);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let child = command.spawn().expect("iproute2 is installed");
        self.children.push(child);
        self.children.len() - 1
    }

    pub(crate) fn stop(&mut self, child: usize) {
        let child = &mut self.children[child];
        drop(child.kill());
        drop(child.wait());
    }

    pub(crate) fn plan(&self) -> NetPlan {
        NetPlan {
            resolv_conf: self.resolv_conf(),
            ..NetPlan::automatic("lab")
        }
    }

    pub(crate) fn resolv_conf(&self) -> PathBuf {
        self.dir.path().join("resolv.conf")
    }

    /// Starts the manager.
    pub(crate) fn start(&self, plan: NetPlan) -> NetManagerProbe {
        let (events, news) = mpsc::channel(64);
        let handle = NetManager::start(plan, events).expect("the kernel has route netlink");
        NetManagerProbe {
            handle,
            news,
            state: NetState::default(),
            logs: Vec::new(),
        }
    }

    /// The output of `ip` in the client's namespace.
    pub(crate) fn show(&self, arguments: &[&str]) -> String {
        ip(&[&["-n", &self.client()], arguments].concat())
    }
}

impl Drop for LinkNamespaces {
    fn drop(&mut self) {
        for child in &mut self.children {
            drop(child.kill());
            drop(child.wait());
        }
        for namespace in [self.server(), self.client()] {
            drop(
                Command::new("ip")
                    .args(["netns", "del", &namespace])
                    .status(),
            );
        }
    }
}

/// A running manager and its events.
#[derive(Debug)]
pub(crate) struct NetManagerProbe {
    pub(crate) handle: NetHandle,
    news: mpsc::Receiver<NetEvent>,
    pub(crate) state: NetState,
    pub(crate) logs: Vec<String>,
}

impl NetManagerProbe {
    /// Waits until `wanted` accepts the state.
    pub(crate) async fn until(&mut self, what: &str, wanted: impl Fn(&NetState) -> bool) {
        let heard = timeout(patience(), async {
            while !wanted(&self.state) {
                match self.news.recv().await.expect("the manager runs") {
                    NetEvent::Changed(state) => self.state = state,
                    NetEvent::Log { message, .. } => self.logs.push(message),
                    _ => {}
                }
            }
        });
        if heard.await.is_err() {
            panic!("{what} did not come: {:#?}\n{:#?}", self.state, self.logs);
        }
    }

    /// Waits until a card has an address that starts with `start`.
    pub(crate) async fn address(&mut self, card: &str, start: &str) {
        let what = format!("{start} on {card}");
        self.until(&what, |s| {
            addresses(s, card).iter().any(|a| a.starts_with(start))
        })
        .await;
    }
}

/// Addresses of a card.
pub(crate) fn addresses<'a>(state: &'a NetState, card: &str) -> &'a [String] {
    let link = state.links.iter().find(|l| l.name == card);
    link.map_or(&[], |l| &l.addresses)
}

/// The one element of a list.
pub(crate) fn only<T: Debug>(list: &[T]) -> &T {
    assert_eq!(list.len(), 1, "{list:?}");
    &list[0]
}

fn ip(arguments: &[&str]) -> String {
    let output = Command::new("ip").args(arguments).output();
    let output = output.expect("iproute2 is installed");
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "ip {arguments:?}: {error}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}
