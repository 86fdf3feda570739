//! The task that runs the network.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use tokio::{
    sync::mpsc::{self, error::TrySendError},
    task::JoinHandle,
    time::Instant,
};

use crate::{
    NetError, NetPlan,
    link::{DhcpPacket, Logs, ManagedLink},
    netlink::{
        AddressInfo, DefaultRoute, LinkInfo, NetlinkNotice, NetlinkNotices, NetlinkRequests,
    },
    plan::is_link_local,
    resolver::{NameServer, Resolver},
    state::{LinkState, NetEvent, NetLogLevel, NetState},
};

/// Maximum number of datagrams that wait for the manager. The kernel keeps further ones and then
/// drops them, which DHCP survives.
const PACKETS_MAX: usize = 32;
const COMMANDS_MAX: usize = 8;
/// When the manager sends its state again, after the owner's channel was full.
const OFFER_AGAIN: Duration = Duration::from_millis(100);
/// How long the manager sleeps if it has no deadline.
const IDLE: Duration = Duration::from_secs(3600);
/// Maximum number of name servers.
const SERVERS_MAX: usize = 16;

/// Starts the network.
#[derive(Debug)]
pub struct NetManager(());

impl NetManager {
    /// Configures the present cards, and watches for new ones. Runs as a task of the current tokio
    /// runtime until the handle is dropped or stopped. The first DHCP messages are sent after this
    /// returns, when the runtime next polls the task.
    ///
    /// A second manager that starts after the first one ended, even by a panic, takes over what the
    /// first one left on the cards.
    ///
    /// # Errors
    /// [`NetError::Socket`] or [`NetError::Netlink`] if the kernel offers no route netlink.
    pub fn start(plan: NetPlan, events: mpsc::Sender<NetEvent>) -> Result<NetHandle, NetError> {
        let (commands, command_rx) = mpsc::channel(COMMANDS_MAX);
        let manager = NetManagerTask::new(plan, events, command_rx)?;
        let task = tokio::spawn(manager.run());
        Ok(NetHandle { commands, task })
    }
}

/// The running network. Dropping it ends the task and leaves the cards as they are. Leases are not
/// released.
#[derive(Debug)]
pub struct NetHandle {
    commands: mpsc::Sender<NetCommand>,
    task: JoinHandle<()>,
}

impl NetHandle {
    /// Changes the plan. Cards whose settings stay the same are not disturbed. Returns `false` if
    /// the manager has ended.
    pub async fn apply(&self, plan: NetPlan) -> bool {
        self.commands.send(NetCommand::Apply(plan)).await.is_ok()
    }

    /// Ends the task. The cards stay as they are.
    pub fn stop(self) {}

    /// Waits until the task ends, and returns the reason. The task never ends by itself. The caller
    /// starts another one.
    pub async fn ended(&mut self) -> String {
        match (&mut self.task).await {
            Ok(()) => "the network manager ended".to_owned(),
            Err(e) => format!("the network manager ended: {e}"),
        }
    }

    /// Makes the task panic. Tests of the supervisor use this.
    pub async fn inject_panic(&self) {
        drop(self.commands.send(NetCommand::Panic).await);
    }
}

impl Drop for NetHandle {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[derive(Debug)]
enum NetCommand {
    Apply(NetPlan),
    Panic,
}

#[derive(Debug)]
struct NetManagerTask {
    plan: NetPlan,
    events: mpsc::Sender<NetEvent>,
    commands: mpsc::Receiver<NetCommand>,
    requests: NetlinkRequests,
    notices: NetlinkNotices,
    packets: mpsc::Receiver<DhcpPacket>,
    packet_sender: mpsc::Sender<DhcpPacket>,
    links: BTreeMap<u32, ManagedLink>,
    addresses: Vec<AddressInfo>,
    routes: Vec<DefaultRoute>,
    /// Addresses or routes have changed, and are read before the next report.
    stale: bool,
    state: NetState,
    /// Whether the owner's channel was full when the state last changed.
    is_unsent: bool,
    resolver: Option<Resolver>,
    logs: Logs,
    refused_before: u64,
    epoch: Instant,
}

impl NetManagerTask {
    fn new(
        plan: NetPlan,
        events: mpsc::Sender<NetEvent>,
        commands: mpsc::Receiver<NetCommand>,
    ) -> Result<Self, NetError> {
        let (packet_sender, packets) = mpsc::channel(PACKETS_MAX);
        // The socket listens before the first listing, so that no change in between is missed.
        let notices = NetlinkNotices::open()?;
        let mut manager = Self {
            plan,
            events,
            commands,
            requests: NetlinkRequests::open()?,
            notices,
            packets,
            packet_sender,
            links: BTreeMap::new(),
            addresses: Vec::new(),
            routes: Vec::new(),
            stale: true,
            state: NetState::default(),
            is_unsent: true,
            resolver: None,
            logs: Vec::new(),
            refused_before: 0,
            epoch: Instant::now(),
        };
        manager.list_all()?;
        Ok(manager)
    }

    async fn run(mut self) {
        loop {
            self.settle();
            let deadline = self.deadline();
            // The order is not biased: a flood of notices must not delay leases and the owner's
            // commands.
            tokio::select! {
                notices = self.notices.next() => match notices {
                    Ok(notices) => notices.into_iter().for_each(|n| self.handle_notice(n)),
                    Err(e) => {
                        if let Err(e) = self.reopen_netlink(&e) {
                            self.log(NetLogLevel::Warn, e.to_string());
                            return self.report();
                        }
                    }
                },
                // The task itself has a sender, so that the channel does not close with the last
                // card.
                Some(packet) = self.packets.recv() => {
                    let now = self.now();
                    if let Some(link) = self.links.get_mut(&packet.index) {
                        link.take_packet(now, &packet);
                    }
                }
                Some(command) = self.commands.recv() => match command {
                    NetCommand::Apply(plan) => self.change(plan),
                    NetCommand::Panic => panic!("asked for by fault injection"),
                },
                () = tokio::time::sleep_until(deadline) => {}
            }
        }
    }

    fn now(&self) -> Duration {
        self.epoch.elapsed()
    }

    fn deadline(&self) -> Instant {
        let next = self
            .links
            .values()
            .filter_map(ManagedLink::next_timeout)
            .min();
        // An `Instant` plus the maximum duration would overflow.
        let next = next.unwrap_or(Duration::MAX).min(self.now() + IDLE);
        let next = if self.is_unsent {
            next.min(self.now() + OFFER_AGAIN)
        } else {
            next
        };
        self.epoch + next
    }

    /// Lists all cards, at the start and after notices were lost.
    fn list_all(&mut self) -> Result<(), NetError> {
        let found = self.requests.links()?;
        self.addresses = self.requests.addresses()?;
        // The lost notices may have been about cards that were removed.
        self.links
            .retain(|index, _| found.iter().any(|l| l.index == *index));
        for info in found {
            let (index, flags) = (info.index, info.ra_flags);
            self.update_card(info);
            self.ra_flags(index, flags.unwrap_or(0));
        }
        self.stale = true;
        Ok(())
    }

    fn handle_notice(&mut self, notice: NetlinkNotice) {
        let now = self.now();
        match notice {
            // The change is only marked: a burst of them is read once, at the end of the turn.
            NetlinkNotice::Address | NetlinkNotice::Route => self.stale = true,
            NetlinkNotice::Link(info) => self.update_card(info),
            NetlinkNotice::LinkGone(index) => self.forget(index),
            NetlinkNotice::Neighbour { index, option } => {
                if let Some(link) = self.links.get_mut(&index) {
                    link.take_option(now, &option);
                }
            }
            NetlinkNotice::Overrun => {
                if let Err(e) = self.list_all() {
                    // The state stays as it was. The next overrun or restart reads it again.
                    self.log(NetLogLevel::Warn, e.to_string());
                }
            }
            NetlinkNotice::Router { index, flags } => self.ra_flags(index, flags),
        }
    }

    fn ra_flags(&mut self, index: u32, flags: u32) {
        let now = self.now();
        if let Some(link) = self.links.get_mut(&index) {
            link.set_ra_flags(now, flags, &self.packet_sender, &mut self.logs);
        }
    }

    /// Opens a new socket after the old one failed. If that fails as well, the task ends and its
    /// owner starts another.
    fn reopen_netlink(&mut self, error: &std::io::Error) -> Result<(), NetError> {
        self.log(
            NetLogLevel::Warn,
            format!("route netlink failed: {error}; opening it again"),
        );
        self.notices = NetlinkNotices::open()?;
        self.list_all()
    }

    fn update_card(&mut self, info: LinkInfo) {
        let now = self.now();
        if info.is_loopback() {
            self.raise_loopback(&info);
        } else if let Some(link) = self.links.get_mut(&info.index) {
            link.update(now, info, &mut self.logs);
        } else if info.is_card() {
            self.configure_card(info);
        }
    }

    fn raise_loopback(&mut self, info: &LinkInfo) {
        if info.flags & libc::IFF_UP as u32 == 0
            && let Err(e) = self.requests.set_up(info.index, true)
        {
            self.log(NetLogLevel::Warn, format!("{}: {e}", info.name));
        }
    }

    /// Configures a new card.
    fn configure_card(&mut self, info: LinkInfo) {
        let now = self.now();
        let mac = mac_text(info.mac);
        self.log(NetLogLevel::Info, format!("{}: found, {mac}", info.name));
        let (settings, problems) = self.plan.for_link(&info.name, &mac);
        for problem in problems {
            self.log(NetLogLevel::Warn, format!("{}: {problem}", info.name));
        }
        let mut link = ManagedLink::new(info.clone(), settings, &self.plan.hostname);
        link.adopt(&self.addresses);
        link.configure(&mut self.requests, &self.packet_sender, &mut self.logs);
        // The carrier is reported last: if the card has one, the protocols start at once.
        link.update(now, info.clone(), &mut self.logs);
        self.links.insert(info.index, link);
    }

    fn forget(&mut self, index: u32) {
        if let Some(link) = self.links.remove(&index) {
            // The number counts since the start, so it must not fall when a card is removed.
            self.refused_before += link.refused();
            self.log(NetLogLevel::Info, format!("{}: gone", link.info.name));
        }
        self.stale = true;
    }

    fn change(&mut self, plan: NetPlan) {
        self.plan = plan;
        let mut changed = Vec::new();
        for (index, link) in &mut self.links {
            let mac = mac_text(link.info.mac);
            if self.plan.for_link(&link.info.name, &mac).0 != link.settings {
                changed.push(*index);
            }
            link.set_hostname(&self.plan.hostname);
        }
        for index in changed {
            self.restart(index);
        }
        // The new plan may name another file, which has to be written.
        self.resolver = None;
        self.stale = true;
    }

    /// Switches a card off and on, so that the kernel forgets what routers advertised.
    fn restart(&mut self, index: u32) {
        let Some(mut link) = self.links.remove(&index) else {
            return;
        };
        link.clear(&mut self.requests, &mut self.logs);
        self.refused_before += link.refused();
        let mut info = link.info.clone();
        // The flags are those that the kernel will report: with the old flags the card would not be
        // switched on again.
        info.flags &= !((libc::IFF_UP | libc::IFF_LOWER_UP) as u32);
        drop(link);
        self.addresses.retain(|a| a.index != index);
        self.configure_card(info);
    }

    /// Runs after every event: lets the protocols act, and then reports.
    fn settle(&mut self) {
        let now = self.now();
        for link in self.links.values_mut() {
            link.settle(now, &mut self.requests, &mut self.logs);
        }
        if std::mem::take(&mut self.stale) {
            self.read_kernel();
        }
        self.keep_resolver();
        self.report();
    }

    fn read_kernel(&mut self) {
        let read = self.requests.addresses().and_then(|addresses| {
            self.addresses = addresses;
            self.routes = self.requests.default_routes()?;
            Ok(())
        });
        if let Err(e) = read {
            // The next turn reads them again.
            self.stale = true;
            self.log(NetLogLevel::Warn, e.to_string());
        }
        self.routes.sort_by_key(|r| r.metric);
    }

    fn keep_resolver(&mut self) {
        let resolver = Resolver {
            servers: self.name_servers(),
            search: self.search(),
        };
        if self.resolver.as_ref() == Some(&resolver) {
            return;
        }
        let path = &self.plan.resolv_conf;
        if let Err(e) = resolver.write(path) {
            let text = format!(
                "cannot write {}: {e}; names will not resolve",
                path.display()
            );
            self.logs.push((NetLogLevel::Warn, text));
        }
        // The configuration is stored even after a failure, which each turn would otherwise log
        // again.
        self.resolver = Some(resolver);
    }

    fn name_servers(&self) -> Vec<NameServer> {
        let mut servers: Vec<NameServer> = Vec::new();
        for server in self.links.values().flat_map(ManagedLink::name_servers) {
            if !servers.contains(&server) && servers.len() < SERVERS_MAX {
                servers.push(server);
            }
        }
        servers
    }

    fn search(&self) -> Vec<String> {
        let mut domains: Vec<String> = Vec::new();
        for link in self.links.values() {
            let leased = link.lease4.iter().filter_map(|l| l.domain.as_ref());
            let leased6 = link.lease6.iter().flat_map(|l| &l.search);
            for domain in leased.chain(leased6).chain(link.advertised.domains()) {
                if !domains.contains(domain) {
                    domains.push(domain.clone());
                }
            }
        }
        // Resolvers read at most six domains (resolv.conf(5)).
        domains.truncate(6);
        domains
    }

    fn report(&mut self) {
        for (level, message) in std::mem::take(&mut self.logs) {
            // A log line is lost if the channel is full. The state is sent later.
            drop(self.events.try_send(NetEvent::Log { level, message }));
        }
        let state = self.state();
        self.is_unsent |= state != self.state;
        self.state = state;
        if self.is_unsent {
            let sent = self.events.try_send(NetEvent::Changed(self.state.clone()));
            // If the channel is closed, the owner is gone, and the state is not sent again.
            self.is_unsent = matches!(sent, Err(TrySendError::Full(_)));
        }
    }

    fn state(&self) -> NetState {
        let resolver = self.resolver.clone().unwrap_or_default();
        let refused: u64 = self.links.values().map(ManagedLink::refused).sum();
        let offers = self
            .links
            .values()
            .filter_map(|l| l.lease4.as_ref()?.hostname.clone());
        NetState {
            links: self.links.values().map(|l| self.link_state(l)).collect(),
            dns: resolver.servers.iter().map(|s| s.address).collect(),
            resolvers: resolver.servers.iter().map(NameServer::socket).collect(),
            search: resolver.search,
            ntp: self.ntp(),
            hostname_offer: offers.into_iter().next(),
            refused_replies: self.refused_before + refused,
        }
    }

    fn ntp(&self) -> Vec<IpAddr> {
        let mut servers = Vec::new();
        for link in self.links.values() {
            servers.extend(
                link.lease4
                    .iter()
                    .flat_map(|l| &l.ntp)
                    .map(|a| IpAddr::V4(*a)),
            );
            servers.extend(
                link.lease6
                    .iter()
                    .flat_map(|l| &l.ntp)
                    .map(|a| IpAddr::V6(*a)),
            );
        }
        let mut seen = Vec::new();
        servers.retain(|s| {
            !seen.contains(s) && {
                seen.push(*s);
                true
            }
        });
        servers
    }

    fn link_state(&self, link: &ManagedLink) -> LinkState {
        let index = link.info.index;
        let usable = self
            .addresses
            .iter()
            .filter(|a| a.index == index && a.is_usable() && !is_link_local(a.prefix.address));
        let addresses: Vec<&AddressInfo> = usable.collect();
        let mut sources: Vec<String> = Vec::new();
        for address in &addresses {
            let source = link.source(address.prefix.address);
            if !sources.iter().any(|s| s == source) {
                sources.push(source.to_owned());
            }
        }
        let routes = self.routes.iter().filter(|r| r.index == index);
        LinkState {
            name: link.info.name.clone(),
            mac: mac_text(link.info.mac),
            up: link.info.has_carrier(),
            addresses: addresses.iter().map(|a| a.prefix.to_string()).collect(),
            gateways: routes.map(|r| r.gateway).collect(),
            sources,
        }
    }

    fn log(&mut self, level: NetLogLevel, message: String) {
        self.logs.push((level, message));
    }
}

fn mac_text(mac: Option<[u8; 6]>) -> String {
    let bytes = mac.unwrap_or_default();
    bytes.map(|b| format!("{b:02x}")).join(":")
}
