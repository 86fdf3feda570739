//! Two route netlink sockets: one for requests to the kernel, and one for its notifications.
//!
//! Requests block: the kernel answers within the system call, so there is no time to wait.

mod message;

use std::{
    io,
    net::IpAddr,
    os::fd::{AsRawFd, OwnedFd},
};

use message::{NetlinkMessage, NetlinkRequest, frames};
use nix::{
    errno::Errno,
    sys::socket::{
        AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send,
        setsockopt, socket, sockopt,
    },
};
use tokio::io::unix::AsyncFd;

pub(crate) use message::{AddressInfo, DefaultRoute, LinkInfo, NetlinkNotice};

use crate::{NetError, plan::Prefix};

/// Maximum length of a datagram of a dump (NLMSG_GOODSIZE allows no more).
const DATAGRAM_BYTES_MAX: usize = 32 * 1024;
/// Buffer for a burst of notifications, which makes an overrun rare. The manager survives one.
const RECEIVE_BYTES: usize = 256 * 1024;

/// Maximum number of notices that are handled at once: other events have their turn even in a
/// flood.
const BURST_MAX: usize = 256;

/// Notification groups: bit n-1 for RTNLGRP n.
const GROUPS: u32 = group(1) | group(5) | group(7) | group(9) | group(11) | group(12) | group(20);

const fn group(n: u32) -> u32 {
    1 << (n - 1)
}

const IFLA_MTU: u16 = 4;
const IFA_BROADCAST: u16 = 4;
const IFA_CACHEINFO: u16 = 6;
const RTA_DST: u16 = 1;
const RTA_PREFSRC: u16 = 7;
/// The router counts as on the link.
const RTNH_F_ONLINK: u32 = 4;

/// A lifetime without an end.
pub(crate) const FOREVER: u32 = u32::MAX;

/// An address to configure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NewAddress {
    pub(crate) prefix: Prefix,
    /// In seconds, or [`FOREVER`]. The kernel removes the address at its end, even if this process
    /// has ended.
    pub(crate) preferred: u32,
    pub(crate) valid: u32,
}

/// A route to configure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RouteConfig {
    pub(crate) target: Prefix,
    pub(crate) gateway: Option<IpAddr>,
    pub(crate) source: Option<IpAddr>,
    pub(crate) metric: u32,
    /// The router is on the link although no address of the card covers it.
    pub(crate) onlink: bool,
}

/// Sends requests to the kernel.
#[derive(Debug)]
pub(crate) struct NetlinkRequests {
    fd: OwnedFd,
    sequence: u32,
}

impl NetlinkRequests {
    pub(crate) fn open() -> Result<Self, NetError> {
        Ok(Self {
            fd: open(0, SockFlag::empty())?,
            sequence: 0,
        })
    }

    pub(crate) fn links(&mut self) -> Result<Vec<LinkInfo>, NetError> {
        self.dump(
            "list network cards",
            libc::RTM_GETLINK,
            &[0; 16],
            message::link,
        )
    }

    pub(crate) fn addresses(&mut self) -> Result<Vec<AddressInfo>, NetError> {
        self.dump(
            "list addresses",
            libc::RTM_GETADDR,
            &[0; 8],
            message::address,
        )
    }

    pub(crate) fn default_routes(&mut self) -> Result<Vec<DefaultRoute>, NetError> {
        self.dump(
            "list routes",
            libc::RTM_GETROUTE,
            &[0; 12],
            message::default_route,
        )
    }

    pub(crate) fn set_up(&mut self, index: u32, up: bool) -> Result<(), NetError> {
        let mut body = [0; 16];
        body[4..8].copy_from_slice(&index.to_ne_bytes());
        body[8..12].copy_from_slice(&u32::from(up).to_ne_bytes());
        body[12..16].copy_from_slice(&(libc::IFF_UP as u32).to_ne_bytes());
        self.change(
            "switch a card",
            NetlinkRequest::new(libc::RTM_NEWLINK, libc::NLM_F_ACK, &body),
        )
    }

    pub(crate) fn set_mtu(&mut self, index: u32, mtu: u16) -> Result<(), NetError> {
        let mut body = [0; 16];
        body[4..8].copy_from_slice(&index.to_ne_bytes());
        let request = NetlinkRequest::new(libc::RTM_NEWLINK, libc::NLM_F_ACK, &body);
        self.change("set the MTU", request.number(IFLA_MTU, mtu.into()))
    }

    /// Adds an address, or sets the lifetimes of an existing one.
    pub(crate) fn add_address(&mut self, index: u32, new: NewAddress) -> Result<(), NetError> {
        let flags = libc::NLM_F_ACK | libc::NLM_F_CREATE | libc::NLM_F_REPLACE;
        let mut request = address_request(libc::RTM_NEWADDR, flags, index, new.prefix);
        if let Some(broadcast) = new.prefix.broadcast() {
            request = request.address(IFA_BROADCAST, broadcast.into());
        }
        let lifetimes = [new.preferred, new.valid, 0, 0];
        let lifetimes: Vec<u8> = lifetimes.iter().flat_map(|n| n.to_ne_bytes()).collect();
        self.change(
            "add an address",
            request.attribute(IFA_CACHEINFO, &lifetimes),
        )
    }

    /// Removes an address. A missing address is no error.
    pub(crate) fn remove_address(&mut self, index: u32, prefix: Prefix) -> Result<(), NetError> {
        let request = address_request(libc::RTM_DELADDR, libc::NLM_F_ACK, index, prefix);
        gone_is_fine(
            self.change("remove an address", request),
            Errno::EADDRNOTAVAIL,
        )
    }

    /// Adds a route, or replaces the one with the same target and metric in one step.
    pub(crate) fn add_route(&mut self, index: u32, route: RouteConfig) -> Result<(), NetError> {
        let flags = libc::NLM_F_ACK | libc::NLM_F_CREATE | libc::NLM_F_REPLACE;
        self.change(
            "add a route",
            route_request(libc::RTM_NEWROUTE, flags, index, route),
        )
    }

    /// Removes a route. A missing route is no error.
    pub(crate) fn remove_route(&mut self, index: u32, route: RouteConfig) -> Result<(), NetError> {
        let request = route_request(libc::RTM_DELROUTE, libc::NLM_F_ACK, index, route);
        gone_is_fine(self.change("remove a route", request), Errno::ESRCH)
    }

    fn change(&mut self, what: &'static str, request: NetlinkRequest) -> Result<(), NetError> {
        self.exchange(request, |_| ())
            .map_err(|source| NetError::Netlink { what, source })
    }

    fn dump<T>(
        &mut self,
        what: &'static str,
        kind: u16,
        body: &[u8],
        read: fn(&[u8]) -> Option<T>,
    ) -> Result<Vec<T>, NetError> {
        let mut found = Vec::new();
        let request = NetlinkRequest::new(kind, libc::NLM_F_DUMP, body);
        self.exchange(request, |frame| found.extend(read(frame.body)))
            .map_err(|source| NetError::Netlink { what, source })?;
        Ok(found)
    }

    /// Sends a request and reads until its acknowledgement or the end of its dump.
    fn exchange(
        &mut self,
        request: NetlinkRequest,
        mut each: impl FnMut(NetlinkMessage<'_>),
    ) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let bytes = request.finish(self.sequence);
        retry(|| send(self.fd.as_raw_fd(), &bytes, MsgFlags::empty()))?;
        let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
        loop {
            // The call blocks for a short time: rtnetlink performs a change within `send` and a
            // dump within `recv`.
            let len = retry(|| recv(self.fd.as_raw_fd(), &mut buffer, MsgFlags::empty()))?;
            // Answers to an earlier request that failed half-way may be in the queue.
            for frame in frames(&buffer[..len]).filter(|f| f.sequence == self.sequence) {
                match i32::from(frame.kind) {
                    libc::NLMSG_DONE => return Ok(()),
                    libc::NLMSG_ERROR => return verdict(frame.body),
                    _ => each(frame),
                }
            }
        }
    }
}

/// Receives the kernel's notifications.
#[derive(Debug)]
pub(crate) struct NetlinkNotices {
    fd: AsyncFd<OwnedFd>,
    buffer: Vec<u8>,
}

impl NetlinkNotices {
    pub(crate) fn open() -> Result<Self, NetError> {
        let fd = open(GROUPS, SockFlag::SOCK_NONBLOCK)?;
        // A buffer beyond net.core.rmem_max requires CAP_NET_ADMIN, which tests in a namespace may
        // lack.
        if setsockopt(&fd, sockopt::RcvBufForce, &RECEIVE_BYTES).is_err() {
            tracing::debug!("the system's limit has to do for the netlink buffer");
        }
        // SAFETY: the `AsyncFd` owns the descriptor from here on and never gives it out by value.
        // The descriptor stays open and the same as long as it is registered.
        let registered = unsafe { AsyncFd::register(fd) };
        let fd = registered.map_err(|source| NetError::Socket {
            what: "the route netlink socket",
            source: source.into(),
        })?;
        Ok(Self {
            fd,
            buffer: vec![0; DATAGRAM_BYTES_MAX],
        })
    }

    /// Waits for notices, and returns all of them. Dropping the future loses none.
    pub(crate) async fn next(&mut self) -> io::Result<Vec<NetlinkNotice>> {
        loop {
            let mut guard = self.fd.readable().await?;
            let buffer = &mut self.buffer;
            if let Ok(notices) = guard.try_io(|fd| drain(fd.get_ref(), buffer)) {
                return notices;
            }
        }
    }
}

/// Reads until no notice is left, so that a burst is handled once. Returns `WouldBlock` if there
/// was none.
fn drain(fd: &OwnedFd, buffer: &mut [u8]) -> io::Result<Vec<NetlinkNotice>> {
    let mut notices = Vec::new();
    while notices.len() < BURST_MAX {
        match retry(|| recv(fd.as_raw_fd(), buffer, MsgFlags::MSG_DONTWAIT)) {
            Ok(len) => notices.extend(frames(&buffer[..len]).filter_map(message::notice)),
            // netlink(7): the kernel dropped notifications, and says so once.
            Err(Errno::ENOBUFS) => notices.push(NetlinkNotice::Overrun),
            // Without a notice the error is returned: it tells the runtime that the socket is no
            // longer readable.
            Err(Errno::EAGAIN) if !notices.is_empty() => break,
            Err(e) => return Err(e.into()),
        }
    }
    Ok(notices)
}

fn open(groups: u32, flags: SockFlag) -> Result<OwnedFd, NetError> {
    let made = || -> nix::Result<OwnedFd> {
        let fd = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC | flags,
            SockProtocol::NetlinkRoute,
        )?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
        Ok(fd)
    };
    made().map_err(|e| NetError::Socket {
        what: "a route netlink socket",
        source: e.into(),
    })
}

fn retry<T>(mut call: impl FnMut() -> nix::Result<T>) -> nix::Result<T> {
    loop {
        match call() {
            Err(Errno::EINTR) => {}
            done => return done,
        }
    }
}

fn verdict(body: &[u8]) -> io::Result<()> {
    match message::number(body, 0).map(|n| n as i32) {
        Some(0) => Ok(()),
        // The kernel sends errors as negative numbers.
        Some(code) => Err(io::Error::from_raw_os_error(-code)),
        None => Err(io::ErrorKind::InvalidData.into()),
    }
}

fn gone_is_fine(done: Result<(), NetError>, gone: Errno) -> Result<(), NetError> {
    match done {
        Err(NetError::Netlink { source, .. })
            // If the card was removed, everything on it was removed as well.
            if [Some(gone as i32), Some(libc::ENODEV)].contains(&source.raw_os_error()) =>
        {
            Ok(())
        }
        other => other,
    }
}

const fn family(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => libc::AF_INET as u8,
        IpAddr::V6(_) => libc::AF_INET6 as u8,
    }
}

fn address_request(kind: u16, flags: i32, index: u32, prefix: Prefix) -> NetlinkRequest {
    let mut body = [family(prefix.address), prefix.len, 0, 0, 0, 0, 0, 0];
    body[4..8].copy_from_slice(&index.to_ne_bytes());
    NetlinkRequest::new(kind, flags, &body)
        .address(libc::IFA_LOCAL, prefix.address)
        .address(libc::IFA_ADDRESS, prefix.address)
}

fn route_request(kind: u16, flags: i32, index: u32, route: RouteConfig) -> NetlinkRequest {
    let mut body = [0; 12];
    body[0] = family(route.target.address);
    body[1] = route.target.len;
    body[4] = libc::RT_TABLE_MAIN;
    body[5] = libc::RTPROT_STATIC;
    body[6] = match route.gateway {
        // IPv4 accepts a router only where a route of scope "link" leads to it.
        None if route.target.address.is_ipv4() => libc::RT_SCOPE_LINK,
        _ => libc::RT_SCOPE_UNIVERSE,
    };
    body[7] = libc::RTN_UNICAST;
    if route.onlink {
        body[8..12].copy_from_slice(&RTNH_F_ONLINK.to_ne_bytes());
    }
    let mut request = NetlinkRequest::new(kind, flags, &body);
    if route.target.len > 0 {
        request = request.address(RTA_DST, route.target.address);
    }
    if let Some(gateway) = route.gateway {
        request = request.address(libc::RTA_GATEWAY, gateway);
    }
    if let Some(source) = route.source {
        request = request.address(RTA_PREFSRC, source);
    }
    request
        .number(libc::RTA_OIF, index)
        .number(libc::RTA_PRIORITY, route.metric)
}
