//! A network whose servers a test directs.
//!
//! QEMU's own network cannot change a lease, be IPv6 only and still be reached, or fall silent.
//! This one can: machines are connected to a small router in this process, which gives addresses by
//! DHCP, DHCPv6 and router advertisements as the test sets it, and carries UDP between the host and
//! the machines, and TCP from the machines to chosen services of the host. It needs no privilege and does not change the host's network. Machines reach the
//! router and through it the host, not each other.

mod dhcp4;
mod dhcp6;
mod router;
mod sntp;
mod tcp;
mod wire;

use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use nix::sys::socket::{MsgFlags, send};

pub use self::dhcp4::DhcpLease;
pub use self::router::{LanEvent, LanSettings, ROUTER_V4, ROUTER_V6, RouterAdvertisement};
use self::router::{LanRouter, ROUTER_MAC, RouterOutput};
use self::tcp::{LinkKey, SEGMENT_BYTES_MAX, TcpLinks, TcpReply};
use self::wire::{EthernetFrame, EthernetPayload, TcpSegment};
use crate::error::{Error, Result};

/// Largest frame: 1500 bytes of payload, a header, and a VLAN tag's worth of room.
const FRAME_BYTES_MAX: usize = 2048;

/// Largest UDP payload.
const DATAGRAM_BYTES_MAX: usize = 65_536;

/// How long a machine has for the acknowledgement of a segment, before the segment goes again.
const ACKNOWLEDGED_WITHIN: Duration = Duration::from_millis(500);

/// How often a segment goes at most. A machine that is off acknowledges none.
const SENT_MAX: u32 = 60;

/// A network of the harness. Clones are the same network.
#[derive(Clone, Debug)]
pub struct Lan {
    shared: Arc<LanShared>,
}

impl Lan {
    /// A network that offers what `settings` say.
    pub fn new(settings: LanSettings) -> Self {
        let router = LanRouter::new(settings);
        let state = LanInner {
            router,
            ports: vec![],
            forwards: vec![],
            links: TcpLinks::default(),
        };
        Self {
            shared: Arc::new(LanShared {
                state: Mutex::new(state),
                changed: Condvar::new(),
            }),
        }
    }

    /// Changes the offered settings, and advertises them at once.
    pub fn set(&self, change: impl FnOnce(&mut LanSettings)) {
        let mut state = self.shared.lock();
        change(&mut state.router.settings);
        let outputs = state.router.advertise();
        state.send(&outputs);
        drop(state);
        self.shared.changed.notify_all();
    }

    /// Sends an unsolicited router advertisement, if the settings have one.
    pub fn advertise(&self) {
        self.set(|_| {});
    }

    /// What machines did, oldest first.
    pub fn events(&self) -> Vec<LanEvent> {
        self.shared.lock().router.events.clone()
    }

    /// Waits until `event` happened more than `seen` times. `limit` is not scaled.
    pub fn wait_event(&self, event: LanEvent, seen: usize, limit: Duration) -> bool {
        self.shared
            .wait(limit, |router| {
                let count = router
                    .events
                    .iter()
                    .filter(|known| **known == event)
                    .count();
                (count > seen).then_some(())
            })
            .is_some()
    }

    /// Addresses that machines used.
    pub fn neighbours(&self) -> Vec<IpAddr> {
        self.shared.lock().router.neighbours().collect()
    }

    /// Waits until a machine uses an address that `is_wanted` accepts. `limit` is not scaled.
    pub fn wait_neighbour(
        &self,
        is_wanted: impl Fn(IpAddr) -> bool,
        limit: Duration,
    ) -> Option<IpAddr> {
        self.shared.wait(limit, |router| {
            router.neighbours().find(|address| is_wanted(*address))
        })
    }

    /// Carries UDP between a free port of 127.0.0.1, which is returned, and `guest`.
    pub fn forward(&self, guest: SocketAddr) -> Result<SocketAddr> {
        let bind = || {
            let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
            Ok((socket.try_clone()?, socket.local_addr()?, socket))
        };
        let (ours, address, socket) = bind().map_err(Error::io("opening a port for a machine"))?;
        let mut state = self.shared.lock();
        let index = state.forwards.len();
        state.forwards.push(ours);
        drop(state);
        // The reference is weak: the thread must not keep a network alive that the test has
        // dropped.
        let shared = Arc::downgrade(&self.shared);
        thread("lan-host", move || {
            from_host(&shared, &socket, index, guest)
        })?;
        Ok(address)
    }

    /// Lets machines that connect to `at` over the router reach a service of this host by TCP.
    /// Nothing else of the host is reached.
    pub fn serve(&self, at: SocketAddrV4, host: SocketAddr) {
        self.shared.lock().links.serve(at, host);
    }

    /// The machine's end of a new cable.
    pub(crate) fn attach(&self) -> Result<OwnedFd> {
        let (ours, theirs) = UnixDatagram::pair().map_err(Error::io("making a cable"))?;
        let port = ours.try_clone().map_err(Error::io("making a cable"))?;
        self.shared.lock().ports.push(port);
        let shared = Arc::downgrade(&self.shared);
        thread("lan-guest", move || from_guest(&shared, &ours))?;
        Ok(theirs.into())
    }
}

#[derive(Debug)]
struct LanShared {
    state: Mutex<LanInner>,
    changed: Condvar,
}

impl LanShared {
    fn lock(&self) -> MutexGuard<'_, LanInner> {
        // Each change of the state is complete before it can panic, so a later user can go on.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends bytes of a service, or its end, until the machine has them. `false` if it never does.
    fn deliver(&self, key: LinkKey, payload: &[u8]) -> bool {
        let mut state = self.lock();
        let Some(segment) = state.links.send(key, payload) else {
            return false;
        };
        for _ in 0..SENT_MAX {
            state.send(&[frame_of(&segment)]);
            let again = Instant::now() + ACKNOWLEDGED_WITHIN;
            while let Some(left) = again.checked_duration_since(Instant::now()) {
                match state.links.is_acknowledged(key) {
                    None => return false,
                    Some(true) => return true,
                    Some(false) => {}
                }
                state = self
                    .changed
                    .wait_timeout(state, left)
                    .unwrap_or_else(PoisonError::into_inner)
                    .0;
            }
        }
        state.links.forget(key);
        false
    }

    fn wait<T>(&self, limit: Duration, ready: impl Fn(&LanRouter) -> Option<T>) -> Option<T> {
        let deadline = Instant::now() + limit;
        let mut state = self.lock();
        loop {
            if let Some(value) = ready(&state.router) {
                return Some(value);
            }
            let left = deadline.checked_duration_since(Instant::now())?;
            state = self
                .changed
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }
}

impl Drop for LanShared {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        state.links.end_all();
        // Threads wait in a read. The end of the cable, or a datagram, wakes them, and they end.
        for port in &state.ports {
            let _ = port.shutdown(std::net::Shutdown::Both);
        }
        for forward in &state.forwards {
            let _ = forward
                .local_addr()
                .and_then(|address| forward.send_to(&[], address));
        }
    }
}

#[derive(Debug)]
struct LanInner {
    router: LanRouter,
    ports: Vec<UnixDatagram>,
    forwards: Vec<UdpSocket>,
    links: TcpLinks,
}

impl LanInner {
    /// Sends the outputs. A network may lose them: a machine may be gone, or a client may have
    /// left.
    fn send(&self, outputs: &[RouterOutput]) {
        for output in outputs {
            match output {
                RouterOutput::Frame(frame) => self.flood(frame),
                RouterOutput::Host {
                    forward,
                    client,
                    payload,
                } => {
                    if let Some(socket) = self.forwards.get(*forward) {
                        let _ = socket.send_to(payload, client);
                    }
                }
            }
        }
    }

    /// Handles a segment of TCP, if the frame has one. Returns a new connection to a service.
    fn tcp(&mut self, bytes: &[u8]) -> Option<(LinkKey, TcpStream)> {
        let frame = EthernetFrame::parse(bytes)?;
        let EthernetPayload::Tcp {
            source,
            target,
            segment,
        } = frame.body
        else {
            return None;
        };
        let key = (source, target);
        let outcome = self.links.take(frame.source, key, &segment);
        if let Some(reply) = &outcome.reply {
            self.send(&[frame_of(reply)]);
        }
        outcome.opened.map(|stream| (key, stream))
    }

    /// Sends a frame to every machine, because cards drop what is not for them. A machine that does
    /// not read loses frames, as on a real cable.
    fn flood(&self, frame: &[u8]) {
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        for port in &self.ports {
            let _ = send(port.as_raw_fd(), frame, flags);
        }
    }
}

/// The frame of a segment to a machine.
fn frame_of(reply: &TcpReply) -> RouterOutput {
    let (guest, service) = reply.key;
    let segment = TcpSegment {
        seq: reply.seq,
        ack: reply.ack,
        flags: reply.flags,
        payload: &reply.payload,
    };
    RouterOutput::Frame(wire::tcp((ROUTER_MAC, reply.mac), service, guest, &segment))
}

fn thread(name: &str, run: impl FnOnce() + Send + 'static) -> Result<()> {
    let builder = std::thread::Builder::new().name(name.to_owned());
    builder
        .spawn(run)
        .map(drop)
        .map_err(Error::io("starting a thread of the network"))
}

fn from_guest(shared: &Weak<LanShared>, port: &UnixDatagram) {
    let mut frame = [0; FRAME_BYTES_MAX];
    // An empty datagram is the shutdown. A machine's frame has at least a header.
    while let Ok(length @ 1..) = port.recv(&mut frame) {
        let Some(shared) = shared.upgrade() else {
            return;
        };
        let mut state = shared.lock();
        let outputs = state.router.frame(&frame[..length]);
        state.send(&outputs);
        if let Some((key, stream)) = state.tcp(&frame[..length]) {
            let shared = Arc::downgrade(&shared);
            // Without the thread the machine gets no answer, which its test reports.
            let _ = thread("lan-tcp", move || from_service(&shared, key, stream));
        }
        drop(state);
        shared.changed.notify_all();
    }
}

/// Carries what a service sends to a machine, one segment after the other.
fn from_service(shared: &Weak<LanShared>, key: LinkKey, mut stream: TcpStream) {
    let mut payload = [0; SEGMENT_BYTES_MAX];
    loop {
        // An error is the end too: the service, or the network, is gone.
        let length = stream.read(&mut payload).unwrap_or(0);
        let Some(shared) = shared.upgrade() else {
            return;
        };
        if !shared.deliver(key, &payload[..length]) || length == 0 {
            return;
        }
    }
}

fn from_host(shared: &Weak<LanShared>, socket: &UdpSocket, forward: usize, guest: SocketAddr) {
    let mut payload = vec![0; DATAGRAM_BYTES_MAX];
    loop {
        let received = socket.recv_from(&mut payload);
        let Some(shared) = shared.upgrade() else {
            return;
        };
        // The error belongs to an earlier send to a client that left. The next read works.
        let Ok((length, client)) = received else {
            continue;
        };
        let mut state = shared.lock();
        let output = state
            .router
            .datagram(forward, client, guest, &payload[..length]);
        state.send(output.as_slice());
    }
}
