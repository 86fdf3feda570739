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

/// Datagrams waiting for the manager; more stay in the kernel and then are lost, which DHCP
/// survives.
const PACKETS_MAX: usize = 32;
const COMMANDS_MAX: usize = 8;
/// When a state that the owner had no room for is offered again.
const OFFER_AGAIN: Duration = Duration::from_millis(100);
/// How long to sleep with nothing to wait for.
const IDLE: Duration = Duration::from_secs(3600);
/// Name servers kept in all.
const SERVERS_MAX: usize = 16;

/// Starts the network.
#[derive(Debug)]
pub struct NetManager(());

impl NetManager {
    /// Brings up what is there and watches for what comes. Runs as a task of the current tokio
    /// runtime until the handle is dropped or stopped. The first DHCP messages are sent when
    /// this returns and the runtime next polls the task.
    ///
    /// Starting a second one after the first ended, even by a panic, takes over what the first
    /// left on the cards.
    ///
    /// # Errors
    /// [`NetError::Socket`] or [`NetError::Netlink`] when the kernel offers no route netlink.
    pub fn start(plan: NetPlan, events: mpsc::Sender<NetEvent>) -> Result<NetHandle, NetError> {
        let (commands, command_rx) = mpsc::channel(COMMANDS_MAX);
        let manager = NetManagerTask::new(plan, events, command_rx)?;
        let task = tokio::spawn(manager.run());
        Ok(NetHandle { commands, task })
    }
}

/// The running network. Dropping it ends the task and leaves the cards as they are; leases are
/// not given back.
#[derive(Debug)]
pub struct NetHandle {
    commands: mpsc::Sender<NetCommand>,
    task: JoinHandle<()>,
}

impl NetHandle {
    /// Changes the plan. Cards whose settings stay the same are not disturbed. False when the
    /// manager has ended.
    pub async fn apply(&self, plan: NetPlan) -> bool {
        self.commands.send(NetCommand::Apply(plan)).await.is_ok()
    }

    /// Ends the task; cards stay as they are.
    pub fn stop(self) {}

    /// Waits until the task ends, which it never does by itself: says why it did. The caller
    /// starts another.
    pub async fn ended(&mut self) -> String {
        match (&mut self.task).await {
            Ok(()) => "the network manager ended".to_owned(),
            Err(e) => format!("the network manager ended: {e}"),
        }
    }

    /// Makes the task panic. Fault injection for tests of the supervisor.
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
    /// Addresses or routes changed: read them before reporting.
    stale: bool,
    state: NetState,
    /// The owner has not been told the state yet.
    untold: bool,
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
        // Listen before the first look, so that nothing is missed in between.
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
            untold: true,
            resolver: None,
            logs: Vec::new(),
            refused_before: 0,
            epoch: Instant::now(),
        };
        manager.look()?;
        Ok(manager)
    }

    async fn run(mut self) {
        loop {
            self.settle();
            let deadline = self.deadline();
            // Not biased: a flood of notices must not keep leases and the owner's commands waiting.
            tokio::select! {
                notices = self.notices.next() => match notices {
                    Ok(notices) => notices.into_iter().for_each(|n| self.hear(n)),
                    Err(e) => {
                        if let Err(e) = self.reopen_netlink(&e) {
                            self.log(NetLogLevel::Warn, e.to_string());
                            return self.report();
                        }
                    }
                },
                // The task holds a sender itself, so that the channel does not close with the last card.
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
        // `Instant` plus the longest duration would overflow.
        let next = next.unwrap_or(Duration::MAX).min(self.now() + IDLE);
        let next = if self.untold {
            next.min(self.now() + OFFER_AGAIN)
        } else {
            next
        };
        self.epoch + next
    }

    /// Reads all cards: at the start and after notices were lost.
    fn look(&mut self) -> Result<(), NetError> {
        let found = self.requests.links()?;
        self.addresses = self.requests.addresses()?;
        // Notices that were lost may have been those of cards that went.
        self.links
            .retain(|index, _| found.iter().any(|l| l.index == *index));
        for info in found {
            let (index, flags) = (info.index, info.ra_flags);
            self.see(info);
            self.ra_flags(index, flags.unwrap_or(0));
        }
        self.stale = true;
        Ok(())
    }

    fn hear(&mut self, notice: NetlinkNotice) {
        let now = self.now();
        match notice {
            // Only marked: a burst of them is read once, at the end of the turn.
            NetlinkNotice::Address | NetlinkNotice::Route => self.stale = true,
            NetlinkNotice::Link(info) => self.see(info),
            NetlinkNotice::LinkGone(index) => self.forget(index),
            NetlinkNotice::Neighbour { index, option } => {
                if let Some(link) = self.links.get_mut(&index) {
                    link.take_option(now, &option);
                }
            }
            NetlinkNotice::Overrun => {
                if let Err(e) = self.look() {
                    // The state as it was stays; the next overrun or restart reads it again.
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

    /// The socket failed: opens a new one. If that fails as well, the task ends and its owner
    /// starts another.
    fn reopen_netlink(&mut self, error: &std::io::Error) -> Result<(), NetError> {
        self.log(
            NetLogLevel::Warn,
            format!("route netlink failed: {error}; opening it again"),
        );
        self.notices = NetlinkNotices::open()?;
        self.look()
    }

    fn see(&mut self, info: LinkInfo) {
        let now = self.now();
        if info.is_loopback() {
            self.raise_loopback(&info);
        } else if let Some(link) = self.links.get_mut(&info.index) {
            link.update(now, info, &mut self.logs);
        } else if info.is_card() {
            self.meet(info);
        }
    }

    fn raise_loopback(&mut self, info: &LinkInfo) {
        if info.flags & libc::IFF_UP as u32 == 0
            && let Err(e) = self.requests.set_up(info.index, true)
        {
            self.log(NetLogLevel::Warn, format!("{}: {e}", info.name));
        }
    }

    /// A card not seen before.
    fn meet(&mut self, info: LinkInfo) {
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
        // Only now: a carrier that is there already starts the protocols at once.
        link.update(now, info.clone(), &mut self.logs);
        self.links.insert(info.index, link);
    }

    fn forget(&mut self, index: u32) {
        if let Some(link) = self.links.remove(&index) {
            // The figure counts since the start: it must not fall when a card is pulled out.
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
        // The new plan may name another file, which does not have the text yet.
        self.resolver = None;
        self.stale = true;
    }

    /// Down and up again: the kernel then forgets what routers told it.
    fn restart(&mut self, index: u32) {
        let Some(mut link) = self.links.remove(&index) else {
            return;
        };
        link.clear(&mut self.requests, &mut self.logs);
        self.refused_before += link.refused();
        let mut info = link.info.clone();
        // As the kernel will describe it: with the old flags the card would not be switched on again.
        info.flags &= !((libc::IFF_UP | libc::IFF_LOWER_UP) as u32);
        drop(link);
        self.addresses.retain(|a| a.index != index);
        self.meet(info);
    }

    /// After every event: lets the protocols act, then reports.
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
            // Read again at the next turn.
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
        // Also after a failure: else each turn would log it again.
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
        // Six domains are all that resolvers agree to read.
        domains.truncate(6);
        domains
    }

    fn report(&mut self) {
        for (level, message) in std::mem::take(&mut self.logs) {
            // A log line that finds no room is lost; the state is not.
            drop(self.events.try_send(NetEvent::Log { level, message }));
        }
        let state = self.state();
        self.untold |= state != self.state;
        self.state = state;
        if self.untold {
            let told = self.events.try_send(NetEvent::Changed(self.state.clone()));
            // A closed channel is no reason to try again: the owner is gone.
            self.untold = matches!(told, Err(TrySendError::Full(_)));
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
