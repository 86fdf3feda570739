//! One network card: its settings, and how they are applied.

use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6},
    sync::Arc,
    time::Duration,
};

use alknet_core::config::LinkMethod;
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::{net::UdpSocket, sync::mpsc, task::JoinHandle};

use crate::{
    NetError, dhcp4, dhcp6,
    entropy::careless_u64,
    neighbour::RouterAdvertisedDns,
    netlink::{AddressInfo, FOREVER, LinkInfo, NetlinkRequests, NewAddress, RouteConfig},
    plan::{LinkSettings, Prefix},
    resolver::NameServer,
    state::NetLogLevel,
    sysctl::{self, Ipv6Mode},
};

/// Metric of default routes. The first card wins, and the number is that of the kernel's own IPv6 default route.
const METRIC_BASE: u32 = 1024;
/// Flags M and O of router advertisements, as the kernel reports them (`IF_RA_MANAGED`, `IF_RA_OTHERCONF`).
const RA_MANAGED: u32 = 0x40;
const RA_OTHER: u32 = 0x80;
/// Maximum length of a DHCP datagram: an Ethernet frame has no room for more.
const DATAGRAM_BYTES_MAX: usize = 1500;
/// Pause of a reader after an error, so that a dead card does not keep the processor busy.
const READ_ERROR_PAUSE: Duration = Duration::from_millis(200);

/// A DHCP datagram that arrived on a card.
#[derive(Debug)]
pub(crate) struct DhcpPacket {
    pub(crate) index: u32,
    pub(crate) from: SocketAddr,
    pub(crate) bytes: Vec<u8>,
}

/// Lines for the log, until the manager sends them.
pub(crate) type Logs = Vec<(NetLogLevel, String)>;

/// A socket and the task that reads it. Both end together.
#[derive(Debug)]
struct DhcpSocket {
    socket: Arc<UdpSocket>,
    reader: JoinHandle<()>,
}

impl DhcpSocket {
    /// Sends without tokio's readiness check. That check fails until the runtime has first asked the kernel about
    /// the socket, and the first message must not wait for its repetition.
    fn send(&self, bytes: &[u8], to: SocketAddr) -> io::Result<usize> {
        SockRef::from(&*self.socket).send_to(bytes, &to.into())
    }
}

impl Drop for DhcpSocket {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

#[derive(Debug)]
pub(crate) struct ManagedLink {
    pub(crate) info: LinkInfo,
    pub(crate) settings: LinkSettings,
    carrier: bool,
    port4: Option<DhcpSocket>,
    client4: dhcp4::Dhcp4Client,
    port6: Option<DhcpSocket>,
    client6: dhcp6::Dhcp6Client,
    mode6: Option<dhcp6::Dhcp6Mode>,
    pub(crate) lease4: Option<dhcp4::Dhcp4Lease>,
    pub(crate) lease6: Option<dhcp6::Dhcp6Lease>,
    pub(crate) advertised: RouterAdvertisedDns,
    /// Addresses that an earlier manager left on the card. They are removed once this manager has others to replace
    /// them.
    adopted: Vec<Prefix>,
    addresses: BTreeSet<Prefix>,
    routes: Vec<RouteConfig>,
    pub(crate) malformed: u64,
}

impl ManagedLink {
    pub(crate) fn new(info: LinkInfo, settings: LinkSettings, hostname: &str) -> Self {
        let mac = info.mac.unwrap_or_default();
        Self {
            info,
            settings,
            carrier: false,
            port4: None,
            client4: dhcp4::Dhcp4Client::new(mac, hostname, careless_u64()),
            port6: None,
            client6: dhcp6::Dhcp6Client::new(mac, careless_u64()),
            mode6: None,
            lease4: None,
            lease6: None,
            advertised: RouterAdvertisedDns::default(),
            adopted: Vec::new(),
            addresses: BTreeSet::new(),
            routes: Vec::new(),
            malformed: 0,
        }
    }

    /// Remembers the addresses that an earlier manager left on the card. The kernel itself removes those of
    /// routers.
    pub(crate) fn adopt(&mut self, present: &[AddressInfo]) {
        let ours = present
            .iter()
            .filter(|a| a.index == self.info.index)
            .filter(|a| {
                // An IPv6 address with a lifetime came from a router's advertisement, and one of fe80::/10 from the
                // kernel.
                a.prefix.address.is_ipv4()
                    || (a.is_permanent() && !crate::plan::is_link_local(a.prefix.address))
            });
        self.adopted = ours.map(|a| a.prefix).collect();
    }

    /// Applies the settings of the card, and switches it on or off.
    pub(crate) fn configure(
        &mut self,
        requests: &mut NetlinkRequests,
        packets: &mpsc::Sender<DhcpPacket>,
        logs: &mut Logs,
    ) {
        let mode = match self.settings.method {
            LinkMethod::Auto => Ipv6Mode::Auto,
            LinkMethod::Static => Ipv6Mode::Manual,
            LinkMethod::Off => return self.switch(requests, false, logs),
        };
        // The switches are set before the card is up: the kernel then solicits routers and forms addresses at once.
        sysctl::prepare(&self.info.name, mode, self.metric());
        // The port of DHCPv6 is opened when a router asks for DHCPv6.
        if mode == Ipv6Mode::Auto {
            self.port4 = self.open(open4(&self.info.name), packets, logs);
        }
        self.switch(requests, true, logs);
        self.apply(requests, logs);
    }

    /// Removes all addresses of the card, and switches it off.
    pub(crate) fn clear(&mut self, requests: &mut NetlinkRequests, logs: &mut Logs) {
        self.adopted.extend(std::mem::take(&mut self.addresses));
        for prefix in std::mem::take(&mut self.adopted) {
            note(
                requests.remove_address(self.info.index, prefix),
                &self.info,
                logs,
            );
        }
        self.switch(requests, false, logs);
    }

    fn switch(&self, requests: &mut NetlinkRequests, up: bool, logs: &mut Logs) {
        let is_up = self.info.flags & libc::IFF_UP as u32 != 0;
        if is_up != up {
            note(requests.set_up(self.info.index, up), &self.info, logs);
        }
    }

    /// Takes the kernel's new description of the card.
    pub(crate) fn update(&mut self, now: Duration, info: LinkInfo, logs: &mut Logs) {
        let carrier = info.has_carrier();
        self.info = info;
        if self.settings.method == LinkMethod::Off || carrier == self.carrier {
            return;
        }
        self.carrier = carrier;
        let text = if carrier {
            "carrier found"
        } else {
            "carrier lost"
        };
        logs.push((NetLogLevel::Info, format!("{}: {text}", self.info.name)));
        if !carrier {
            // The lease stays: a cable that is unplugged for a moment must not cost the connections their address.
            self.client4.pause();
            self.client6.pause();
        } else if self.settings.method == LinkMethod::Auto {
            self.client4.start(now);
            if let Some(mode) = self.mode6 {
                self.client6.start(now, mode);
            }
        }
    }

    /// Takes the flags of a router's advertisement, which say whether to use DHCPv6.
    pub(crate) fn set_ra_flags(
        &mut self,
        now: Duration,
        flags: u32,
        packets: &mpsc::Sender<DhcpPacket>,
        logs: &mut Logs,
    ) {
        let mode = match () {
            () if flags & RA_MANAGED != 0 => Some(dhcp6::Dhcp6Mode::Stateful),
            () if flags & RA_OTHER != 0 => Some(dhcp6::Dhcp6Mode::Stateless),
            () => None,
        };
        // A router that stops asking for DHCPv6 does not end the lease (RFC 4861 §4.2).
        if self.settings.method != LinkMethod::Auto || mode.is_none() || mode == self.mode6 {
            return;
        }
        self.mode6 = mode;
        // A router may change the mode, and both modes use the same port.
        if self.port6.is_none() {
            self.port6 = self.open(open6(&self.info.name), packets, logs);
        }
        if let (Some(mode), true) = (mode, self.carrier) {
            self.client6.start(now, mode);
        }
    }

    pub(crate) fn take_option(&mut self, now: Duration, option: &[u8]) {
        if self.settings.method == LinkMethod::Auto && !self.advertised.take(now, option) {
            self.malformed += 1;
        }
    }

    pub(crate) fn take_packet(&mut self, now: Duration, packet: &DhcpPacket) {
        match packet.from {
            // RFC 2131 §4.1: servers send from port 67. RFC 8415 §7.2 defines only the ports that DHCPv6 listens
            // on.
            SocketAddr::V4(from) if from.port() == dhcp4::SERVER_PORT => {
                self.client4.handle_packet(now, &packet.bytes);
            }
            SocketAddr::V4(_) => self.malformed += 1,
            SocketAddr::V6(_) => self.client6.handle_packet(now, &packet.bytes),
        }
    }

    pub(crate) fn set_hostname(&mut self, hostname: &str) {
        self.client4.set_hostname(hostname);
    }

    pub(crate) fn next_timeout(&self) -> Option<Duration> {
        let clients = [self.client4.poll_timeout(), self.client6.poll_timeout()];
        clients
            .into_iter()
            .flatten()
            .chain(self.advertised.next_expiry())
            .min()
    }

    /// Handles the passage of time, and performs the actions of the protocols.
    pub(crate) fn settle(
        &mut self,
        now: Duration,
        requests: &mut NetlinkRequests,
        logs: &mut Logs,
    ) {
        self.advertised.expire(now);
        self.client4.handle_timeout(now);
        self.client6.handle_timeout(now);
        let mut changed = false;
        while let Some(event) = self.client4.poll_event() {
            changed |= self.event4(event, logs);
        }
        while let Some(event) = self.client6.poll_event() {
            changed |= self.event6(event, logs);
        }
        if changed {
            self.apply(requests, logs);
        }
    }

    fn event4(&mut self, event: dhcp4::Dhcp4Event, logs: &mut Logs) -> bool {
        let name = &self.info.name;
        match event {
            dhcp4::Dhcp4Event::Send { to, bytes } => {
                self.send4(to, &bytes, logs);
                return false;
            }
            dhcp4::Dhcp4Event::Bound(lease) => {
                // Each renewal is an event as well. Only a new address goes to the log.
                if self.lease4.as_ref().map(|l| l.address) != Some(lease.address) {
                    let (address, server) = (lease.address, lease.server);
                    let text = format!("{name}: {address}/{} from {server}", lease.prefix_len);
                    logs.push((NetLogLevel::Info, text));
                }
                self.lease4 = Some(lease);
            }
            dhcp4::Dhcp4Event::Lost(loss) => {
                let why = match loss {
                    dhcp4::LeaseLoss::Expired => "expired",
                    dhcp4::LeaseLoss::Refused => "was withdrawn by its server",
                };
                logs.push((NetLogLevel::Warn, format!("{name}: the DHCPv4 lease {why}")));
                self.lease4 = None;
            }
        }
        true
    }

    fn event6(&mut self, event: dhcp6::Dhcp6Event, logs: &mut Logs) -> bool {
        let name = &self.info.name;
        match event {
            dhcp6::Dhcp6Event::Send(bytes) => {
                self.send6(&bytes, logs);
                return false;
            }
            dhcp6::Dhcp6Event::Bound(lease) => {
                let old = self
                    .lease6
                    .as_ref()
                    .and_then(|l| l.addresses.first())
                    .map(|a| a.address);
                if let Some(first) = lease.addresses.first().filter(|a| Some(a.address) != old) {
                    logs.push((
                        NetLogLevel::Info,
                        format!("{name}: {} by DHCPv6", first.address),
                    ));
                }
                self.lease6 = Some(lease);
            }
            dhcp6::Dhcp6Event::Lost => {
                logs.push((
                    NetLogLevel::Warn,
                    format!("{name}: the DHCPv6 lease expired"),
                ));
                self.lease6 = None;
            }
        }
        true
    }

    /// Sends a datagram. If it cannot be sent now, the protocol repeats it, and the reason is logged.
    fn send4(&self, to: Ipv4Addr, bytes: &[u8], logs: &mut Logs) {
        let to = SocketAddr::from((to, dhcp4::SERVER_PORT));
        if let Some(Err(e)) = self.port4.as_ref().map(|p| p.send(bytes, to)) {
            logs.push((
                NetLogLevel::Debug,
                format!("{}: cannot send DHCPv4: {e}", self.info.name),
            ));
        }
    }

    fn send6(&self, bytes: &[u8], logs: &mut Logs) {
        let to = SocketAddrV6::new(dhcp6::SERVERS, dhcp6::SERVER_PORT, 0, self.info.index);
        if let Some(Err(e)) = self.port6.as_ref().map(|p| p.send(bytes, to.into())) {
            logs.push((
                NetLogLevel::Debug,
                format!("{}: cannot send DHCPv6: {e}", self.info.name),
            ));
        }
    }

    /// Brings the card into its new state. It first adds what is new and then removes what is old, so that the card
    /// always has an address.
    fn apply(&mut self, requests: &mut NetlinkRequests, logs: &mut Logs) {
        let (addresses, routes) = self.target_state();
        let info = &self.info;
        // Only now are there addresses to replace the old ones: until then the node is reachable at the old
        // address.
        if self.settings.method == LinkMethod::Static || self.lease4.is_some() {
            self.addresses.extend(self.adopted.drain(..));
        }
        for new in &addresses {
            note(requests.add_address(info.index, *new), info, logs);
        }
        add_routes(requests, info, &routes, logs);
        let keep: BTreeSet<Prefix> = addresses.iter().map(|a| a.prefix).collect();
        let mut removed = false;
        for old in self.addresses.difference(&keep) {
            note(requests.remove_address(info.index, *old), info, logs);
            removed = true;
        }
        // Adding has replaced these routes in one step. Removing them now would remove the new routes.
        let replaced = |old: &RouteConfig| {
            routes
                .iter()
                .any(|r| r.target == old.target && r.metric == old.metric)
        };
        for old in self.routes.iter().filter(|old| !replaced(old)) {
            note(requests.remove_route(info.index, *old), info, logs);
        }
        if removed {
            // The kernel drops routes whose source is a removed address.
            add_routes(requests, info, &routes, logs);
        }
        if let Some(mtu) = self.lease4.as_ref().and_then(|l| l.mtu) {
            note(requests.set_mtu(info.index, mtu), info, logs);
        }
        self.addresses = keep;
        self.routes = routes;
    }

    fn target_state(&self) -> (Vec<NewAddress>, Vec<RouteConfig>) {
        match self.settings.method {
            LinkMethod::Off => (Vec::new(), Vec::new()),
            LinkMethod::Static => (self.static_addresses(), self.static_routes()),
            LinkMethod::Auto => self.leased(),
        }
    }

    fn static_addresses(&self) -> Vec<NewAddress> {
        let endless = |prefix: &Prefix| NewAddress {
            prefix: *prefix,
            preferred: FOREVER,
            valid: FOREVER,
        };
        self.settings.addresses.iter().map(endless).collect()
    }

    fn static_routes(&self) -> Vec<RouteConfig> {
        let route = |gateway: &IpAddr| {
            // The kernel refuses a router that no prefix of the card covers, unless the route is marked as on the
            // link.
            let covered = self.settings.addresses.iter().any(|a| a.contains(*gateway));
            RouteConfig {
                target: default_of(*gateway),
                gateway: Some(*gateway),
                source: None,
                metric: self.metric(),
                onlink: !covered && !crate::plan::is_link_local(*gateway),
            }
        };
        self.settings.gateways.iter().map(route).collect()
    }

    fn leased(&self) -> (Vec<NewAddress>, Vec<RouteConfig>) {
        let mut addresses = Vec::new();
        let mut routes = Vec::new();
        if let Some(lease) = &self.lease4 {
            let prefix = Prefix::new(lease.address.into(), lease.prefix_len);
            // The kernel removes the address when the lease ends, even if PID 1 has ended before.
            let secs = lease
                .lasts
                .map_or(FOREVER, |l| l.as_secs().try_into().unwrap_or(FOREVER));
            addresses.push(NewAddress {
                prefix,
                preferred: secs,
                valid: secs,
            });
            routes.extend(lease.routes.iter().map(|r| self.leased_route(prefix, *r)));
        }
        for granted in self.lease6.iter().flat_map(|l| &l.addresses) {
            addresses.push(NewAddress {
                // DHCPv6 leases have no prefix length: routers say which prefixes are on the link (RFC 5942 §4).
                prefix: Prefix::new(granted.address.into(), 128),
                preferred: granted.preferred_secs,
                valid: granted.valid_secs,
            });
        }
        // Routes on the link come first, because the others may need them.
        routes.sort_by_key(|r| r.gateway.is_some());
        (addresses, routes)
    }

    fn leased_route(
        &self,
        own: Prefix,
        (target, len, via): (Ipv4Addr, u8, Ipv4Addr),
    ) -> RouteConfig {
        let gateway = (!via.is_unspecified()).then_some(IpAddr::V4(via));
        RouteConfig {
            target: Prefix::new(target.into(), len),
            gateway,
            source: Some(own.address),
            metric: self.metric(),
            onlink: gateway.is_some_and(|g| !own.contains(g)),
        }
    }

    pub(crate) fn name_servers(&self) -> Vec<NameServer> {
        let configured = self.settings.dns.iter().copied();
        let mut found: Vec<IpAddr> = configured.collect();
        // Configured servers replace the offered ones: an administrator who names servers wants no others.
        if found.is_empty() {
            found.extend(
                self.lease4
                    .iter()
                    .flat_map(|l| &l.dns)
                    .map(|a| IpAddr::V4(*a)),
            );
            found.extend(
                self.lease6
                    .iter()
                    .flat_map(|l| &l.dns)
                    .map(|a| IpAddr::V6(*a)),
            );
            found.extend(self.advertised.servers().map(IpAddr::V6));
        }
        let with_scope = |address| NameServer {
            address,
            scope: matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local())
                .then(|| (self.info.index, self.info.name.clone())),
        };
        found.into_iter().map(with_scope).collect()
    }

    pub(crate) fn refused(&self) -> u64 {
        self.malformed + self.client4.refused() + self.client6.refused()
    }

    /// The source of an address, for the state.
    pub(crate) fn source(&self, address: IpAddr) -> &'static str {
        let configured = self.settings.addresses.iter().any(|p| p.address == address);
        let leased = self
            .lease6
            .iter()
            .flat_map(|l| &l.addresses)
            .any(|a| a.address == address);
        match address {
            _ if configured && self.settings.method == LinkMethod::Static => "static",
            IpAddr::V4(_) => "dhcp4",
            IpAddr::V6(_) if leased => "dhcp6",
            IpAddr::V6(_) => "slaac",
        }
    }

    fn metric(&self) -> u32 {
        METRIC_BASE + self.info.index
    }

    fn open(
        &self,
        socket: io::Result<UdpSocket>,
        packets: &mpsc::Sender<DhcpPacket>,
        logs: &mut Logs,
    ) -> Option<DhcpSocket> {
        match socket {
            Ok(socket) => {
                let socket = Arc::new(socket);
                let reader = tokio::spawn(read(socket.clone(), self.info.index, packets.clone()));
                Some(DhcpSocket { socket, reader })
            }
            Err(e) => {
                // The machine continues: static addresses and router advertisements need no port.
                let text = format!("{}: cannot open the DHCP port: {e}", self.info.name);
                logs.push((NetLogLevel::Warn, text));
                None
            }
        }
    }
}

fn add_routes(
    requests: &mut NetlinkRequests,
    info: &LinkInfo,
    routes: &[RouteConfig],
    logs: &mut Logs,
) {
    for route in routes {
        note(requests.add_route(info.index, *route), info, logs);
    }
}

const fn default_of(gateway: IpAddr) -> Prefix {
    match gateway {
        IpAddr::V4(_) => Prefix::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0),
        IpAddr::V6(_) => Prefix::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), 0),
    }
}

fn note(done: Result<(), NetError>, info: &LinkInfo, logs: &mut Logs) {
    if let Err(error) = done {
        logs.push((NetLogLevel::Warn, format!("{}: {error}", info.name)));
    }
}

async fn read(socket: Arc<UdpSocket>, index: u32, packets: mpsc::Sender<DhcpPacket>) {
    let mut buffer = [0; DATAGRAM_BYTES_MAX];
    loop {
        match socket.recv_from(&mut buffer).await {
            Ok((len, from)) => {
                let bytes = buffer[..len].to_vec();
                if packets
                    .send(DhcpPacket { index, from, bytes })
                    .await
                    .is_err()
                {
                    return;
                }
            }
            Err(_) => tokio::time::sleep(READ_ERROR_PAUSE).await,
        }
    }
}

fn open4(name: &str) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM.nonblocking(), Some(Protocol::UDP))?;
    socket.set_broadcast(true)?;
    finish(
        socket,
        name,
        (Ipv4Addr::UNSPECIFIED, dhcp4::CLIENT_PORT).into(),
    )
}

fn open6(name: &str) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::IPV6, Type::DGRAM.nonblocking(), Some(Protocol::UDP))?;
    socket.set_only_v6(true)?;
    finish(
        socket,
        name,
        (Ipv6Addr::UNSPECIFIED, dhcp6::CLIENT_PORT).into(),
    )
}

/// Binds a socket to the card. Each card has a socket of its own on the same port, which needs no address to send
/// or receive.
fn finish(socket: Socket, name: &str, address: SocketAddr) -> io::Result<UdpSocket> {
    socket.set_reuse_address(true)?;
    socket.bind_device(Some(name.as_bytes()))?;
    socket.bind(&address.into())?;
    UdpSocket::from_std(socket.into())
}

#[cfg(test)]
mod tests;
