//! A closed machine from outside: its port is not served, whatever the console says, and it tells
//! its link why.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use alknet_call::ALPN;
use alknet_core::{Carriage, CloseReason};
use alknet_endpoint::{EndpointDialError, EndpointDialer, Target};
use alknet_qemu::{DhcpLease, Lan, LanSettings, Nic, ROUTER_V4, Vm};
use alknet_test_support::deadline;
use alknet_tests::{MachineBuilder, READY, eventually};
use alknet_tls::NodeKey;
use tokio::runtime::Runtime;
use tokio::time::timeout;

/// How long to wait for an answer to a datagram, since nothing announces that none will come.
const NO_ANSWER: Duration = Duration::from_secs(2);
/// The port on which a closed machine answers its neighbours.
const STATUS_PORT: u16 = 7474;
/// Pause between two requests of a neighbour, and how long to wait for an answer to one from
/// outside the link.
const ASK_EVERY: Duration = Duration::from_millis(300);
/// Time from power-on until a machine uses an address. Firmware alone takes long in emulation.
const ADDRESS_WITHIN: Duration = Duration::from_secs(60);
/// The machine's address there, which a router would forward.
const FROM_AFAR: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 20);

/// The network of a machine's second card, beside the card whose port is forwarded.
pub(super) struct SecondCard(Lan);

impl SecondCard {
    pub(super) fn new() -> Self {
        let lease = DhcpLease {
            // The machine queries a time server from its address, which this network learns from
            // that. No server answers.
            time: Some(ROUTER_V4),
            ..DhcpLease::for_address(FROM_AFAR)
        };
        Self(Lan::new(LanSettings {
            dhcp4: Some(lease),
            ..LanSettings::default()
        }))
    }

    /// The machine with both cards.
    pub(super) fn join<'a>(&self, machine: MachineBuilder<'a>) -> MachineBuilder<'a> {
        machine.nic(Nic::user()).nic(Nic::lan(&self.0))
    }

    /// Asks a closed machine on its link why it is closed. To an address that a router would
    /// forward, the machine does not answer.
    pub(super) fn hears(&self, vm: &Vm, code: &str) {
        // A machine without an address never answers there.
        let from_afar = self.asking(vm, |address| address == IpAddr::from(FROM_AFAR));
        let beside = self.asking(vm, |address| match address {
            IpAddr::V4(_) => false,
            IpAddr::V6(address) => address.is_unicast_link_local(),
        });
        let answer = eventually("the status of the link", || {
            for socket in [&from_afar, &beside] {
                socket.send(b"?").expect("a port of this host");
            }
            let mut answer = [0; 512];
            let bytes = beside.recv(&mut answer).ok()?;
            Some(String::from_utf8_lossy(&answer[..bytes]).into_owned())
        });
        assert_eq!(answer, format!("alknet: closed: {code}\n"));
        // Each request from outside was sent before the neighbour's. One more comes while the
        // machine answers.
        let waits = from_afar.set_read_timeout(Some(vm.scale(ASK_EVERY)));
        waits.expect("a time that is not zero");
        from_afar.send(b"?").expect("a port of this host");
        let answered = from_afar.recv(&mut [0; 512]).map_err(|error| error.kind());
        assert!(
            matches!(answered, Err(ErrorKind::WouldBlock | ErrorKind::TimedOut)),
            "it answers more than its link: {answered:?}"
        );
    }

    /// A client of the status port, at an address that the machine visibly uses, that waits a
    /// moment for each answer.
    fn asking(&self, vm: &Vm, fits: impl Fn(IpAddr) -> bool) -> UdpSocket {
        let Self(lan) = self;
        let used = lan.wait_neighbour(fits, vm.scale(ADDRESS_WITHIN));
        let used = used.unwrap_or_else(|| {
            panic!("it uses {:?} only\n{}", lan.neighbours(), vm.report());
        });
        let to = lan.forward((used, STATUS_PORT).into());
        let to = to.unwrap_or_else(|error| panic!("{error}"));
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let waits = socket.set_read_timeout(Some(ASK_EVERY));
        waits.and_then(|()| socket.connect(to)).expect("a socket");
        socket
    }
}

/// Asserts that a closed machine serves nothing: after its network is up, neither carriage of its
/// port is served, and its console does not say that it serves.
pub(super) fn serves_nothing(vm: &Vm) {
    // Later than a serving machine would say so.
    let connected = vm.wait_for("alknet: address ", ADDRESS_WITHIN);
    connected.unwrap_or_else(|error| panic!("{error}"));
    no_node_answers(vm.address().expect("a card forwards the port"));
    let said = vm.console().text();
    assert!(!said.contains(READY), "{said}");
}

/// Asserts that neither carriage of the port at this address is served: TCP connections end before
/// any TLS. QEMU's network accepts them before the machine refuses them.
fn no_node_answers(address: SocketAddr) {
    let runtime = Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let (dialer, target) = node_at(address);
        let tcp = dialer.dial_over(Carriage::Tcp, &target, ALPN);
        let (tcp, ()) = tokio::join!(tcp, is_silent(&dialer, &target));
        let tcp = tcp.map(drop);
        // A server that answers in TLS causes another error: a wrong key, or an alert.
        let ends = matches!(
            tcp,
            Err(EndpointDialError::Unreachable { .. }
                | EndpointDialError::TimedOut { .. }
                | EndpointDialError::Refused {
                    reason: CloseReason::Lost(_),
                    ..
                })
        );
        assert!(ends, "it answers over TCP: {tcp:?}");
    });
}

/// A dialer, and the target of a node that does not exist. Any node that answers has another key,
/// and the error says so.
fn node_at(address: SocketAddr) -> (EndpointDialer, Target) {
    let key = || NodeKey::generate().expect("the system has entropy");
    let target = format!("{}@{address}", key().public()).parse();
    (
        EndpointDialer::new(Some(key())),
        target.expect("key and address"),
    )
}

async fn is_silent(dialer: &EndpointDialer, target: &Target) {
    let dialled = dialer.dial_over(Carriage::Quic, target, ALPN);
    let dialled = timeout(deadline(NO_ANSWER), dialled).await;
    let dialled = dialled.map(|dialled| dialled.map(drop));
    let is_silent = matches!(
        dialled,
        Err(_) | Ok(Err(EndpointDialError::TimedOut { .. }))
    );
    assert!(is_silent, "it answers over QUIC: {dialled:?}");
}
